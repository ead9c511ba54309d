package haven_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The package graph of docs/architecture.md, held against what the code
// imports. A package may import packages of lower rank only.
//
// A new package gets its rank here. Think twice before one of these numbers or
// lists grows: the point of them is that a reader may rely on what a package
// cannot do.
var ranks = map[string]int{
	"": 0, // the shared nouns

	"internal/blockio": 1, "internal/config": 1, "internal/icmp": 1, "internal/isolation": 1, "internal/logind": 1, "internal/ledger": 1, "internal/netx": 1,
	"internal/notify": 1, "internal/obs": 1, "internal/pki": 1, "internal/redact": 1,

	"internal/tlsmux": 2,

	// Each way to notify is an adapter of its own.
	"internal/notify/email": 2, "internal/notify/snmp": 2, "internal/notify/webhook": 2,

	"cluster": 3, "detector": 3, "election": 3, "fencing": 3, "storagebeat": 3, "vmrestart": 3,
	"internal/client": 3,

	// Adapters are named after what they adapt.
	"fencing/ipmi": 4, "fencing/ipmi/ipmitest": 3, "fencing/redfish": 4, "fencing/redfish/redfishtest": 3, "fencing/command": 4, "fencing/watchdog": 4,
	"vmrestart/libvirt": 4, "storagebeat/storetest": 4, "storagebeat/block": 4,
	"storagebeat/rados": 4, "storagebeat/rados/cephtest": 3,
	"internal/diskwatch": 4, // it reads through storagebeat's child processes

	// The kinds of stores that a program is built with.
	"internal/stores": 5,

	"internal/pill": 4, // decides over what storagebeat read

	"internal/flight":  4, // recordings of the judge
	"internal/numbers": 4, // the judge's, from the configuration

	"internal/recovery": 5, "internal/helper": 5, "web": 5,
	"internal/api":   6,
	"internal/agent": 7,

	// The world outside the agents, for the simulator, the demo and tests.
	"internal/loopnet": 2, "internal/sim/simnet": 2, "internal/world": 4,
	"internal/minicluster": 8, "internal/sim": 8,
	"internal/cli": 8,

	"cmd/havend": 9, "cmd/haven": 9, "cmd/haven-helper": 9,

	"test/lab/gobmc": 1, "test/lab/guestos": 1, "test/lab/labfs": 1, "test/lab/labdog": 1,
	"test/lab": 3, "test/lab/cmd/lab": 9,
	"test/scenarios": 9, "test/demo": 9,
}

var domains = []string{"cluster", "detector", "election", "fencing", "storagebeat", "vmrestart"}

// domainsMay lists what a domain package and its adapters may import of ours,
// besides the shared nouns and, for adapters, their own domain.
var domainsMay = []string{"internal/blockio", "internal/netx", "internal/obs", "internal/redact", "internal/tlsmux"}

// owners says which packages may import a library, or anything below it.
var owners = map[string][]string{
	"github.com/hashicorp/memberlist":         {"cluster"},
	"github.com/hashicorp/raft":               {"election"},
	"github.com/hashicorp/raft-boltdb/v2":     {"election"},
	"go.etcd.io/bbolt":                        {"election"},
	"github.com/hashicorp/go-hclog":           {"election", "internal/obs"}, // raft takes one; the bridge to slog gives it
	"github.com/hashicorp/go-metrics":         {"internal/obs"},
	"github.com/prometheus/client_golang":     {"internal/obs"},
	"github.com/digitalocean/go-libvirt":      {"vmrestart/libvirt"},
	"libvirt.org/go/libvirtxml":               {"vmrestart/libvirt"},
	"github.com/bougou/go-ipmi":               {"fencing/ipmi", "fencing/ipmi/ipmitest", "test/lab/gobmc"}, // driver; boards to try it on
	"go.yaml.in/yaml/v4":                      {"internal/config"},
	"github.com/spf13":                        {"internal/cli"},      // cobra and its flags
	"github.com/ceph/go-ceph":                 {"storagebeat/rados"}, // with the tag ceph
	"github.com/coreos/go-systemd/v22/daemon": {"cmd/havend", "cmd/haven-helper"},
	"github.com/godbus/dbus/v5":               {"internal/logind"},
	"github.com/gosnmp/gosnmp":                {"internal/notify/snmp"},
	"github.com/hanwen/go-fuse/v2":            {"test/lab/labfs", "test/lab/labdog"},
	"golang.org/x/sys/unix":                   {"internal/blockio", "storagebeat", "internal/agent", "fencing/watchdog", "cmd/havend", "cmd/haven-helper", "test/lab", "test/lab/labfs"},
	// In tests anywhere; in other code only there.
	"pgregory.net/rapid":                 {},
	"github.com/anishathalye/porcupine":  {"internal/sim"},
	"github.com/rogpeppe/go-internal":    {},
	"github.com/hashicorp/go-msgpack/v2": {"internal/sim"},
}

// anyTest lists libraries that every test may use.
var anyTest = []string{"pgregory.net/rapid", "github.com/anishathalye/porcupine", "github.com/rogpeppe/go-internal", "golang.org/x/sys/unix"}

// notInBinaries may not be linked into what is installed on a host.
var notInBinaries = []string{
	// Not "testing" itself: raft links it, for helpers of its own.
	"pgregory.net/rapid", "github.com/anishathalye/porcupine", "github.com/rogpeppe/go-internal/testscript", "github.com/hanwen/go-fuse",
	module + "/test", module + "/internal/sim", module + "/internal/world", module + "/internal/loopnet", module + "/internal/minicluster", module + "/fencing/ipmi/ipmitest", module + "/fencing/redfish/redfishtest", module + "/storagebeat/storetest",
	"github.com/bougou/go-ipmi/pkg/server", "github.com/bougou/go-ipmi/pkg/hal",
}

// notInTool may not be linked into the operator's tool, which is a client.
var notInTool = []string{
	"github.com/hashicorp/memberlist", "github.com/hashicorp/raft", "github.com/digitalocean/go-libvirt", "github.com/bougou/go-ipmi",
	module + "/internal/agent", module + "/cluster", module + "/election", module + "/fencing", module + "/vmrestart",
}

const module = "github.com/haven-ha/haven"

type pkg struct {
	ImportPath   string
	Name         string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Deps         []string
	Module       *struct{ Path, Version string }
}

// own returns a path relative to the module, and whether it is of the module.
func own(path string) (string, bool) {
	if path == module {
		return "", true
	}
	return strings.CutPrefix(path, module+"/")
}

func thirdParty(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	_, ours := own(path)
	return !ours && strings.Contains(first, ".")
}

func within(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

// list asks the go tool for packages, with the build tags of the lab and of Ceph,
// so that no file is overlooked. It has to parse only, so cgo may be on where there
// is no C compiler.
func list(t *testing.T, patterns ...string) []pkg {
	t.Helper()
	args := append([]string{"list", "-tags=lab,ceph", "-json=ImportPath,Name,Imports,TestImports,XTestImports,Deps,Module"}, patterns...)
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestPackageGraph(t *testing.T) {
	pkgs := list(t, "./...")
	if len(pkgs) < 5 {
		t.Fatalf("only %d packages were found", len(pkgs))
	}
	for _, p := range pkgs {
		for _, complaint := range complaints(p) {
			t.Error(complaint)
		}
	}
}

// complaints holds one package against the tables above.
func complaints(p pkg) []string {
	name, _ := own(p.ImportPath)
	rank, known := rankOf(name)
	if !known {
		return []string{name + " has no rank: give it one in imports_test.go"}
	}
	var out []string
	complain := func(what, imported string) {
		out = append(out, cmp.Or(name, "the root package")+" imports "+imported+": "+what)
	}
	for _, path := range p.Imports {
		imported, ours := own(path)
		r, ok := rankOf(imported)
		switch {
		case name == "" && (ours || thirdParty(path)):
			complain("it imports the standard library only", path)
		case ours && ok && r >= rank:
			complain("arrows go down only", path)
		case thirdParty(path) && !allowed(path, name):
			complain("the library belongs to another package", path)
		}
		out = append(out, domainComplaints(name, path, imported, ours)...)
	}
	for _, path := range slices.Concat(p.TestImports, p.XTestImports) {
		imported, ours := own(path)
		if d, other := domainOf(name), domainOf(imported); ours && d != "" && other != "" && d != other {
			complain("domain packages never import each other, not in tests either", path)
		}
		if thirdParty(path) && !allowed(path, name) && !slices.ContainsFunc(anyTest, func(lib string) bool { return within(path, lib) }) {
			complain("the library belongs to another package", path)
		}
	}
	return out
}

func domainComplaints(name, path, imported string, ours bool) []string {
	d := domainOf(name)
	if d == "" || !ours || imported == "" {
		return nil
	}
	switch {
	case d == "detector":
		return []string{"detector imports " + path + ": it is pure and imports the shared nouns only"}
	case domainOf(imported) == d || slices.Contains(domainsMay, imported):
		return nil
	}
	return []string{name + " imports " + path + ": a domain package imports the shared nouns and a few leaves only"}
}

// domainOf returns the domain package that a package is or adapts.
func domainOf(name string) string {
	for _, d := range domains {
		if within(name, d) {
			return d
		}
	}
	return ""
}

func rankOf(name string) (int, bool) {
	if r, ok := ranks[name]; ok {
		return r, true
	}
	if within(name, "test") { // programs of the lab
		return 10, true
	}
	return 0, false
}

func allowed(path, name string) bool {
	for lib, names := range owners {
		if within(path, lib) {
			return slices.Contains(names, name)
		}
	}
	return false
}

func TestBinariesLinkNothingForTests(t *testing.T) {
	for _, p := range list(t, "./cmd/...") {
		if p.Name != "main" {
			continue
		}
		name, _ := own(p.ImportPath)
		forbidden := notInBinaries
		if name == "cmd/haven" {
			forbidden = slices.Concat(forbidden, notInTool)
		}
		for _, dep := range p.Deps {
			for _, f := range forbidden {
				if within(dep, f) {
					t.Errorf("%s links %s", name, dep)
				}
			}
		}
	}
}

// Every module that is linked into a binary is listed in THIRD_PARTY.md, with
// the version that is built.
func TestThirdPartyNotices(t *testing.T) {
	text, err := os.ReadFile("THIRD_PARTY.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (v[^ ]+) \\|").FindAllStringSubmatch(string(text), -1) {
		listed[row[1]] = row[2]
	}
	if len(listed) < 10 {
		t.Fatalf("only %d modules are listed", len(listed))
	}
	for _, p := range list(t, "-deps", "./cmd/...", "./internal/agent") {
		if m := p.Module; m != nil && m.Path != module && listed[m.Path] != m.Version {
			t.Errorf("%s %s is linked; THIRD_PARTY.md has %q", m.Path, m.Version, listed[m.Path])
		}
	}
	for path, version := range listed {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Version}}", path).Output()
		if got := strings.TrimSpace(string(out)); err != nil || got != version {
			t.Errorf("THIRD_PARTY.md lists %s %s; the build has %q (%v)", path, version, got, err)
		}
	}
}

// The checks above can fail: each kind of breach is found.
func TestGraphChecksBite(t *testing.T) {
	tests := []struct {
		name string
		pkg  pkg
		want string // empty: no complaint
	}{
		{"stdlib", pkg{ImportPath: module + "/detector", Imports: []string{"time", module}}, ""},
		{"root imports a library", pkg{ImportPath: module, Imports: []string{"golang.org/x/sys/unix"}}, "standard library only"},
		{"root imports ours", pkg{ImportPath: module, Imports: []string{module + "/internal/netx"}}, "standard library only"},
		{"arrow up", pkg{ImportPath: module + "/internal/ledger", Imports: []string{module + "/internal/recovery"}}, "down only"},
		{"arrow sideways", pkg{ImportPath: module + "/internal/obs", Imports: []string{module + "/internal/netx"}}, "down only"},
		{"siblings", pkg{ImportPath: module + "/cluster", Imports: []string{module + "/election"}}, "leaves only"},
		{"sibling's adapter", pkg{ImportPath: module + "/vmrestart/libvirt", Imports: []string{module + "/fencing"}}, "leaves only"},
		{"siblings in a test", pkg{ImportPath: module + "/cluster", XTestImports: []string{module + "/storagebeat"}}, "not in tests either"},
		{"adapter and its domain", pkg{ImportPath: module + "/fencing/ipmi", Imports: []string{module + "/fencing", module + "/internal/netx"}}, ""},
		{"domain imports the file", pkg{ImportPath: module + "/election", Imports: []string{module + "/internal/config"}}, "leaves only"},
		{"detector imports a leaf", pkg{ImportPath: module + "/detector", Imports: []string{module + "/internal/obs"}}, "it is pure"},
		{"library of another", pkg{ImportPath: module + "/internal/agent", Imports: []string{"github.com/hashicorp/raft"}}, "belongs to another"},
		{"library below a library", pkg{ImportPath: module + "/internal/agent", Imports: []string{"github.com/bougou/go-ipmi/pkg/client"}}, "belongs to another"},
		{"library that nobody named", pkg{ImportPath: module + "/internal/agent", Imports: []string{"example.com/left/pad"}}, "belongs to another"},
		{"library in a test", pkg{ImportPath: module + "/internal/agent", TestImports: []string{"pgregory.net/rapid"}}, ""},
		{"test library in code", pkg{ImportPath: module + "/internal/agent", Imports: []string{"pgregory.net/rapid"}}, "belongs to another"},
		{"package without a rank", pkg{ImportPath: module + "/utils"}, "has no rank"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.Join(complaints(tt.pkg), "\n")
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// Package docs holds the documentation against the code: the tables of numbers
// and words, the tests that are named, the links.
package docs

import (
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/cluster"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/election"
	"github.com/haven-ha/haven/internal/config"
)

const root = "../.."

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// pages are all pages of the documentation that people write.
func pages(t *testing.T) []string {
	t.Helper()
	all := []string{"README.md"}
	for _, pattern := range []string{"docs/*.md", "docs/decisions/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			rel, err := filepath.Rel(root, path)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, rel)
		}
	}
	if len(all) < 10 {
		t.Fatalf("only %d pages were found", len(all))
	}
	return all
}

// table returns the rows between two markers, without header, by their first cell.
func table(t *testing.T, path, name string) map[string][]string {
	t.Helper()
	_, rest, ok := strings.Cut(read(t, path), "<!-- begin "+name+" -->\n")
	body, _, ended := strings.Cut(rest, "<!-- end "+name+" -->")
	if !ok || !ended {
		t.Fatalf("%s has no table %q", path, name)
	}
	rows := map[string][]string{}
	for i, line := range strings.Split(strings.TrimSpace(body), "\n") {
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for k := range cells {
			cells[k] = strings.TrimSpace(cells[k])
		}
		if i >= 2 {
			rows[cells[0]] = cells[1:]
		}
	}
	return rows
}

// configured is the configuration of a cluster of so many hosts, with nothing in
// it that has a default.
func configured(t *testing.T, hosts int, witness bool) *config.Config {
	t.Helper()
	var y strings.Builder
	y.WriteString(`
cluster: c
gossip: {key_file: /k}
api: {ca_file: /a, cert_file: /c, key_file: /k}
helper: {cert_file: /c, key_file: /k, username: u, password_file: /p}
heartbeat: {stores: [{name: s, type: dir, path: /s}]}
hosts:
`)
	for i := range hosts {
		role := ""
		if witness && i == hosts-1 {
			role = ", role: witness"
		}
		fmt.Fprintf(&y, "  h%02d: {address: %s%s}\n", i, netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), role)
	}
	c, err := config.Parse("test.yaml", []byte(y.String()))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// voters is how many hosts vote when a cluster is begun with all of them there.
func voters(t *testing.T, c *config.Config) int {
	t.Helper()
	held := election.Promise{Proposer: "h00/0123456789abcdef", Round: 1}
	v := election.BootstrapView{
		Self: held.Proposer, Address: "10.0.0.1:1", Members: c.HostIDs(), Expect: c.BootstrapExpect, Live: c.HostIDs(), Held: held,
		Replies: map[haven.HostID]election.PromiseReply{},
	}
	for _, id := range c.HostIDs()[1:] {
		v.Replies[id] = election.PromiseReply{Granted: true, Server: election.ServerID(id + "/0123456789abcdef"), Address: "10.0.0.9:1", Round: 1}
	}
	plan := election.PlanBootstrap(v)
	if plan.Step != election.BootstrapBegin {
		t.Fatalf("bootstrap of %d hosts: %s, %s", len(c.Hosts), plan.Step, plan.Reason)
	}
	return len(plan.Voters)
}

// TestNumbers computes what majority, several and share mean in clusters of
// different sizes, and holds docs/architecture.md against it.
func TestNumbers(t *testing.T) {
	sizes := []struct {
		name    string
		hosts   int
		witness bool
	}{{"2 + witness", 3, true}, {"3", 3, false}, {"5", 5, false}, {"16", 16, false}, {"50", 50, false}}
	want := map[string][]string{}
	add := func(row string, n int) { want[row] = append(want[row], strconv.Itoa(n)) }
	for _, s := range sizes {
		c := configured(t, s.hosts, s.witness)
		d := detector.Normal()
		d.MassFailureShare = c.Detection.MassFailureShare
		vote := voters(t, c)
		if vote > election.MaxVoters || vote%2 == 0 {
			t.Errorf("%s: %d voters", s.name, vote)
		}
		add("configured hosts", len(c.Hosts))
		add("hypervisors", len(c.Hypervisors()))
		add("*majority* of hosts an observer must reach", c.Majority())
		add("hosts needed to begin a cluster (`bootstrap_expect`)", c.BootstrapExpect)
		add("voters when all are there at the beginning", vote)
		add("voters that must answer a master", vote/2+1)
		add("*several* neighbours asked about a suspect, beside the master", min(c.Detection.ProbeCount, len(c.Hosts)-2))
		add("*share*: hypervisors that may be bad at once", d.MassFailureAllowed(len(c.Hypervisors())))
		const row = "gossip calls a silent member dead after about"
		dead := float64(c.Gossip.SuspicionMultiplier) * max(1, math.Log10(float64(len(c.Hosts)))) * c.Gossip.ProbeInterval.Seconds()
		want[row] = append(want[row], strconv.FormatFloat(math.Round(dead*10)/10, 'f', -1, 64)+" s")
	}
	got := table(t, "docs/architecture.md", "numbers")
	for row, cells := range want {
		if !slices.Equal(got[row], cells) {
			t.Errorf("%s: the page says %v, the code %v", row, got[row], cells)
		}
		delete(got, row)
	}
	for row := range got {
		t.Errorf("nobody checks the row %q", row)
	}
}

// TestFresh holds the ages in docs/architecture.md against the code.
func TestFresh(t *testing.T) {
	c, d := config.Default(config.ProfileNormal), detector.Normal()
	constant := func(path, name string) time.Duration {
		m := regexp.MustCompile(`(?m)^\s*` + name + `\s*=\s*(\d+) \* time\.(Second|Minute)`).FindStringSubmatch(read(t, path))
		if m == nil {
			t.Fatalf("%s has no constant %s", path, name)
		}
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(n) * map[string]time.Duration{"Second": time.Second, "Minute": time.Minute}[m[2]]
	}
	want := map[string]time.Duration{
		"a report, before its host is suspected":                 c.Detection.SuspectAfter,
		"an agent's answer to a probe, as life":                  d.ProbeFresh,
		"another observer's words, and a beat that stands still": c.Heartbeat.StaleAfter,
		"silence of all paths before `failed`":                   c.Detection.Silence,
		"a reading of power off":                                 d.OffFresh,
		"gossip's \"alive\", against its lag":                    d.GossipLag,
		"*on* that vouches for a BMC without a recorded GUID":    constant("fencing/trust.go", "onFresh"),
		"a host's word that it does not have a VM":               constant("internal/agent/small.go", "absenceAge"),
		"a master's verified leadership, at the start of a VM":   c.Raft.Lease,
	}
	got := table(t, "docs/architecture.md", "fresh")
	for row, age := range want {
		text := fmt.Sprintf("%g s", age.Seconds())
		if age >= time.Minute {
			text = fmt.Sprintf("%g min", age.Minutes())
		}
		if !slices.Equal(got[row], []string{text}) {
			t.Errorf("%s: the page says %v, the code %s", row, got[row], text)
		}
		delete(got, row)
	}
	for row := range got {
		t.Errorf("nobody checks the row %q", row)
	}
	if cluster.DefaultTiming().ProbeInterval != c.Gossip.ProbeInterval {
		t.Error("gossip has two defaults")
	}
}

// constants returns the values of the string constants of the root package whose
// names begin with prefix.
func constants(t *testing.T, path, prefix string) []string {
	t.Helper()
	var all []string
	for _, m := range regexp.MustCompile(`(?m)^\s+`+prefix+`\w+(?:\s+\w+)?\s+= "([a-z-]+)"`).FindAllStringSubmatch(read(t, path), -1) {
		all = append(all, m[1])
	}
	if len(all) < 5 {
		t.Fatalf("%s: only %v begin with %s", path, all, prefix)
	}
	return all
}

// TestHolds makes sure that an operator finds every hold, and no other.
func TestHolds(t *testing.T) {
	rows := table(t, "docs/operations.md", "holds")
	for _, hold := range constants(t, "incident.go", "Hold") {
		row, ok := rows["`"+hold+"`"]
		if !ok || len(row) != 3 || slices.Contains(row, "") {
			t.Errorf("docs/operations.md does not say what to do about %s: %v", hold, row)
		}
		delete(rows, "`"+hold+"`")
	}
	for row := range rows {
		t.Errorf("docs/operations.md explains %s, which is no hold", row)
	}
}

// TestWords makes sure that the architecture names what there is.
func TestWords(t *testing.T) {
	page := read(t, "docs/architecture.md")
	words := slices.Concat(constants(t, "evidence.go", "Verdict"), constants(t, "incident.go", "Step"))
	for _, m := range regexp.MustCompile(`kind\(\) string\s+{ return "([a-z-]+)" }`).FindAllStringSubmatch(read(t, "internal/ledger/command.go"), -1) {
		words = append(words, m[1])
	}
	if len(words) < 30 {
		t.Fatalf("only %d words were found", len(words))
	}
	for _, w := range words {
		if !strings.Contains(page, "`"+w+"`") {
			t.Errorf("docs/architecture.md does not name %s", w)
		}
	}
}

// TestPackages makes sure that the map in the architecture has every package.
func TestPackages(t *testing.T) {
	page := read(t, "docs/architecture.md")
	dirs := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "tools" || name == "bin" || name == "build" || strings.HasSuffix(name, "_tmp")) {
			return filepath.SkipDir
		}
		if strings.HasSuffix(name, ".go") {
			rel, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			dirs[filepath.ToSlash(rel)] = true
		}
		return nil
	})
	if err != nil || len(dirs) < 20 {
		t.Fatal(len(dirs), err)
	}
	for dir := range dirs {
		if dir != "." && !regexp.MustCompile(`(?m)(^|[^\w/])`+regexp.QuoteMeta(dir)+`($|[^\w/])`).MatchString(page) {
			t.Errorf("docs/architecture.md does not name the package %s", dir)
		}
	}
}

// TestNamedTests makes sure that every test and benchmark that a page names
// exists.
func TestNamedTests(t *testing.T) {
	named := regexp.MustCompile("`([a-z][\\w/-]*)\\.((?:Test|Benchmark|Fuzz)\\w+)(?:/([^`\\s]+))?`")
	count := 0
	for _, page := range pages(t) {
		for _, m := range named.FindAllStringSubmatch(read(t, page), -1) {
			count++
			if complaint := findTest(t, m[1], m[2], m[3]); complaint != "" {
				t.Errorf("%s names %s: %s", page, m[0], complaint)
			}
		}
	}
	if count < 100 {
		t.Errorf("only %d tests are named", count)
	}
}

func findTest(t *testing.T, dir, test, sub string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(data), "\nfunc "+test+"(") {
			continue
		}
		// The testing package writes blanks in the names of parts as underscores.
		if sub == "" || strings.Contains(string(data), `"`+strings.ReplaceAll(sub, "_", " ")+`"`) {
			return ""
		}
		if _, err := os.Stat(filepath.Join(root, dir, "testdata", sub+".txt")); err == nil {
			return ""
		}
		return "it has no such part"
	}
	return "there is no such test"
}

// TestTranscriptsAreNamed makes sure that each of the detector's transcripts
// stands in the table of failure modes.
func TestTranscriptsAreNamed(t *testing.T) {
	page := read(t, "docs/failure-modes.md")
	files, err := filepath.Glob(filepath.Join(root, "detector/testdata/*.txt"))
	if err != nil || len(files) < 15 {
		t.Fatal(len(files), err)
	}
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".txt"); !strings.Contains(page, "`detector.TestScenarios/"+name+"`") {
			t.Errorf("docs/failure-modes.md does not name the transcript %s", name)
		}
	}
	scenarios, err := filepath.Glob(filepath.Join(root, "test/scenarios/*_test.go"))
	if err != nil || len(scenarios) < 5 {
		t.Fatal(len(scenarios), err)
	}
	for _, f := range scenarios {
		data := read(t, filepath.Join("test/scenarios", filepath.Base(f)))
		if filepath.Base(f) == "phases_test.go" {
			continue // it measures, and breaks nothing that others do not
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test[A-Z]\w+)\(t `).FindAllStringSubmatch(data, -1) {
			if m[1] != "TestMain" && !strings.Contains(page, "`test/scenarios."+m[1]+"`") && !strings.Contains(page, "`test/scenarios."+m[1]+"/") {
				t.Errorf("docs/failure-modes.md does not name the scenario %s", m[1])
			}
		}
		for _, m := range regexp.MustCompile(`(?m)^\s*(?:g\.trial\(t, "([^"]+)"|\{"([^"]+)", lab\.Storage)`).FindAllStringSubmatch(data, -1) {
			if !strings.Contains(page, "/"+strings.ReplaceAll(m[1]+m[2], " ", "_")+"`") {
				t.Errorf("docs/failure-modes.md does not name the scenario %q", m[1]+m[2])
			}
		}
	}
}

// TestLinks follows the links between pages, with their anchors.
func TestLinks(t *testing.T) {
	for _, page := range pages(t) {
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(read(t, page), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			path := page
			if target != "" {
				path = filepath.Join(filepath.Dir(page), target)
			}
			if _, err := os.Stat(filepath.Join(root, path)); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
				continue
			}
			if anchor != "" && !slices.Contains(anchors(read(t, path)), anchor) {
				t.Errorf("%s links to %s, which has no such heading", page, m[1])
			}
		}
	}
}

// anchors are the names of a page's headings, as forges make them.
func anchors(page string) []string {
	var all []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(page, -1) {
		name := regexp.MustCompile(`[^\w -]`).ReplaceAllString(strings.ToLower(m[1]), "")
		all = append(all, strings.ReplaceAll(name, " ", "-"))
	}
	return all
}

// TestCommands makes sure that the operator's tool has the verbs that the pages
// tell people to type.
func TestCommands(t *testing.T) {
	verbs := map[string]bool{}
	files, err := filepath.Glob(filepath.Join(root, "internal/cli/*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?:Use: +|group\()"([a-z-]+)`).FindAllStringSubmatch(string(data), -1) {
			verbs[m[1]] = true
		}
		for _, m := range regexp.MustCompile(`action: haven\.Action([A-Z][a-z]+)`).FindAllStringSubmatch(string(data), -1) {
			verbs[strings.ToLower(m[1])] = true
		}
	}
	if len(verbs) < 15 {
		t.Fatalf("only %d verbs were found", len(verbs))
	}
	for _, page := range pages(t) {
		for _, m := range regexp.MustCompile("(?m)(?:`|^    )haven ([a-z-]+)(?: ([a-z-]+))?").FindAllStringSubmatch(read(t, page), -1) {
			second := slices.Contains([]string{"fence", "host", "pki", "keys", "store", "config"}, m[1])
			if !verbs[m[1]] || second && m[2] != "" && !verbs[m[2]] {
				t.Errorf("%s says %q, which haven does not have", page, strings.TrimLeft(m[0], "` "))
			}
		}
	}
}

package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
)

const sample = "../../packaging/haven.yaml"

func load(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatalf("Parse:\n%v", err)
	}
	return c
}

// small is a valid file of three hosts, without sections that tests add.
const small = `
cluster: lab
gossip: {key_file: /k/gossip}
api: {ca_file: /k/ca, cert_file: /k/cert, key_file: /k/key}
helper: {cert_file: /k/cert, key_file: /k/key, username: haven, password_file: /k/helper}
heartbeat: {stores: [{name: nfs1, type: dir, path: /mnt/nfs1/.haven}]}
fencing:
  levels: [[bmc]]
  devices: {bmc: {driver: ipmi, username: haven, password_file: /k/bmc}}
hosts:
  h3: {address: 10.0.0.3, fencing: {devices: {bmc: {address: 10.1.0.3}}}}
  h1: {address: 10.0.0.1, fencing: {devices: {bmc: {address: 10.1.0.1}}}}
  h2: {address: 10.0.0.2, fencing: {devices: {bmc: {address: 10.1.0.2}}}}
`

func TestSample(t *testing.T) {
	c, err := Load(sample)
	if err != nil {
		t.Fatalf("the sample does not load:\n%v", err)
	}
	if len(c.Warnings) > 0 {
		t.Errorf("the sample has warnings: %v", c.Warnings)
	}
	if got := c.HostIDs(); !reflect.DeepEqual(got, []haven.HostID{"kvm-01", "kvm-02", "vote-1"}) {
		t.Errorf("hosts %v", got)
	}
	if c.Majority() != 2 || c.BootstrapExpect != 2 {
		t.Errorf("majority %d, bootstrap_expect %d, want 2 and 2", c.Majority(), c.BootstrapExpect)
	}
	if h, ok := c.Host("vote-1"); !ok || h.Role != haven.RoleWitness || h.Fencing.Action != haven.ActionNone || len(h.Ladder()) != 0 {
		t.Errorf("witness: %+v", h)
	}
	if _, ok := c.Host("kvm-09"); ok {
		t.Error("a host that is not configured was found")
	}
}

// The commented lines of the sample claim to be the defaults.
func TestSampleShowsDefaults(t *testing.T) {
	data, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	known := Default(ProfileNormal).keys()
	var lines []string
	changed := 0
	for line := range strings.Lines(string(data)) {
		bare := strings.TrimLeft(line, " ")
		indent := line[:len(line)-len(bare)]
		if key, isComment := strings.CutPrefix(bare, "# "); isComment {
			word, _, isKey := strings.Cut(strings.TrimSpace(key), ":")
			if isKey && len(findKey(known, "", word)) > 0 {
				line = indent + key
				changed++
			}
		}
		lines = append(lines, line)
	}
	if changed < 12 {
		t.Fatalf("only %d commented keys were found", changed)
	}
	full := load(t, strings.Join(lines, ""))
	plain, err := Load(sample)
	if err != nil {
		t.Fatal(err)
	}
	full.src, plain.src = nil, nil
	if !reflect.DeepEqual(full, plain) {
		t.Errorf("a commented value is not the default:\n%+v\n%+v", full, plain)
	}
}

func TestProfilesAreConsistent(t *testing.T) {
	for _, p := range []Profile{ProfileFast, ProfileNormal, ProfileCalm} {
		t.Run(string(p), func(t *testing.T) {
			c := load(t, small+"detection: {profile: "+string(p)+"}\n")
			want := Default(p)
			if !reflect.DeepEqual(c.Detection, want.Detection) || c.Raft != want.Raft || c.Heartbeat.StaleAfter != want.Heartbeat.StaleAfter || c.Gossip.ProbeInterval != want.Gossip.ProbeInterval {
				t.Errorf("the profile's times were not taken over")
			}
			// Values of the design that no profile may undercut.
			if c.Detection.OffReadings < 2 || c.Detection.OffReadingGap < 300*time.Millisecond {
				t.Errorf("P2: %d readings, %s apart", c.Detection.OffReadings, c.Detection.OffReadingGap)
			}
			if c.Fencing.Limit != (Limit{Count: 3, Window: time.Hour, PerHost: HostLimit{Window: time.Hour}}) {
				t.Errorf("P6: cap %+v", c.Fencing.Limit)
			}
		})
	}
	if n := Default(ProfileNormal); n.Detection.Silence != 8*time.Second || n.Detection.Rounds != 3 || n.Heartbeat.StaleAfter != 4*time.Second {
		t.Errorf("normal is not the design's default: %+v", n.Detection)
	}
}

func TestExplicitKeysOverrideProfile(t *testing.T) {
	// The profile stands behind the keys in the file and still comes first.
	c := load(t, small+"raft: {heartbeat_timeout: 3s, election_timeout: 3s}\ndetection: {silence: 30s, profile: fast}\n")
	if c.Detection.Silence != 30*time.Second || c.Raft.Heartbeat != 3*time.Second {
		t.Errorf("silence %s, heartbeat %s", c.Detection.Silence, c.Raft.Heartbeat)
	}
	if c.Detection.ReportInterval != 250*time.Millisecond {
		t.Errorf("report interval %s is not that of fast", c.Detection.ReportInterval)
	}
}

// TestCommandDevice: what is common stands with the cluster's device, the outlet
// with the host's, and one power strip serves several hosts.
func TestCommandDevice(t *testing.T) {
	c := load(t, strings.NewReplacer(
		"devices: {bmc: {driver: ipmi, username: haven, password_file: /k/bmc}}",
		"devices: {bmc: {driver: command, address: 10.1.0.1, username: apc, command: {style: fence-agents, program: /usr/sbin/fence_apc, options: {ssh: \"1\"}, words: {test: monitor}, exit_off: 3}}}",
		"devices: {bmc: {address: 10.1.0.1}}", "devices: {bmc: {command: {options: {plug: 1}}}}",
		"devices: {bmc: {address: 10.1.0.2}}", "devices: {bmc: {command: {options: {plug: 2}, run_timeout: 40s}}}",
	).Replace(small))
	h1, _ := c.Host("h1")
	h2, _ := c.Host("h2")
	want := Device{
		Driver: "command", Address: netip.MustParseAddr("10.1.0.1"), Port: 623, Username: "apc", Timeout: 2 * time.Second, CipherSuite: "auto", Redfish: defaultDevice().Redfish,
		Command: Command{
			Style: "fence-agents", Program: "/usr/sbin/fence_apc", Options: map[string]string{"plug": "1"},
			Words: Words{Off: "off", On: "on", Status: "status", Test: "monitor"}, ExitOff: 3, RunTimeout: 20 * time.Second, Proves: ProvesPower,
		},
	}
	if got := h1.Ladder()[0][0]; !reflect.DeepEqual(got, want) {
		t.Errorf("h1:\n got %+v\nwant %+v", got, want)
	}
	want.Command.Options, want.Command.RunTimeout = map[string]string{"plug": "2"}, 40*time.Second
	if got := h2.Ladder()[0][0]; !reflect.DeepEqual(got, want) {
		t.Errorf("h2:\n got %+v\nwant %+v", got, want)
	}
}

func TestHostViews(t *testing.T) {
	c := load(t, strings.Replace(small, "h2: {address: 10.0.0.2, fencing: {devices: {bmc: {address: 10.1.0.2}}}}",
		"h2: {zone: b, address: '::ffff:10.0.0.2', fencing: {action: none, levels: [[pdu, bmc]], devices: {bmc: {address: 'fd00::2', username: root, port: 624, timeout: 5s, cipher_suite: 3}, pdu: {driver: ipmi, address: 10.1.0.9, username: u, password_file: /k/pdu}}}}", 1))
	h2, _ := c.Host("h2")
	if h2.Address != netip.MustParseAddr("10.0.0.2") || h2.Zone != "b" || h2.Fencing.Action != haven.ActionNone {
		t.Errorf("h2: %+v", h2)
	}
	want := [][]Device{{
		{Driver: "ipmi", Address: netip.MustParseAddr("10.1.0.9"), Port: 623, Username: "u", PasswordFile: "/k/pdu", Timeout: 2 * time.Second, CipherSuite: "auto", Redfish: defaultDevice().Redfish, Command: defaultDevice().Command},
		{Driver: "ipmi", Address: netip.MustParseAddr("fd00::2"), Port: 624, Username: "root", PasswordFile: "/k/bmc", Timeout: 5 * time.Second, CipherSuite: "3", Redfish: defaultDevice().Redfish, Command: defaultDevice().Command},
	}}
	if got := h2.Ladder(); !reflect.DeepEqual(got, want) {
		t.Errorf("ladder of h2:\n got %+v\nwant %+v", got, want)
	}
	h1, _ := c.Host("h1")
	if v := h1.Ladder()[0][0]; v.Username != "haven" || v.Port != 623 || len(h1.Fencing.Devices) != 1 || h1.Fencing.Action != haven.ActionOff {
		t.Errorf("h2's overrides reached h1: %+v", h1.Fencing)
	}
	if v := c.Fencing.Devices["bmc"]; v.Username != "haven" || v.Address.IsValid() {
		t.Errorf("h2's overrides reached the cluster's defaults: %+v", v)
	}
}

func TestCipherSuites(t *testing.T) {
	for suite, want := range map[CipherSuite][]uint8{"auto": {17, 3}, "17": {17}, "3": {3}, "": {17, 3}} {
		if got := suite.Suites(); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, want %v", suite, got, want)
		}
	}
}

func TestFenceActions(t *testing.T) {
	with := func(action string) (*Config, error) {
		return Parse("f", []byte(strings.Replace(small, "levels:", "action: "+action+"\n  levels:", 1)))
	}
	for _, action := range []haven.FenceAction{haven.ActionNone, haven.ActionOff, haven.ActionReboot, haven.ActionBlink} {
		if c, err := with(string(action)); err != nil || c.Fencing.Action != action || c.Hosts["h1"].Fencing.Action != action {
			t.Errorf("%s: %v", action, err)
		}
	}
	if _, err := with("burn"); err == nil || !strings.Contains(err.Error(), "choose from none, off, reboot, blink") {
		t.Errorf("an invented action: %v", err)
	}
}

func TestWarnings(t *testing.T) {
	hosts := func(n int, rest string) string {
		head, _, _ := strings.Cut(small, "hosts:")
		var b strings.Builder
		b.WriteString(head + rest + "hosts:\n")
		for i := range n {
			fmt.Fprintf(&b, "  h%d: {address: 10.0.0.%d, fencing: {devices: {bmc: {address: 10.1.0.%d}}}}\n", i, i+1, i+1)
		}
		return b.String()
	}
	withCommand := func(more string) string {
		return strings.Replace(small, "{driver: ipmi, username: haven, password_file: /k/bmc}",
			"{driver: command, command: {program: /usr/local/sbin/strip, "+more+"}}", 1)
	}
	tests := []struct{ name, text, want string }{
		{"two hosts and no witness", hosts(2, ""), "no third vote"},
		{"one host", hosts(1, ""), "nobody sees it die"},
		{"even number", hosts(4, ""), "two equal halves"},
		{"odd number", hosts(3, ""), ""},
		{"no store", strings.Replace(small, "heartbeat:", "heartbeat: {}\n#", 1), "there is no store"},
		{"no store, fence all the same", strings.Replace(small, "heartbeat:", "fence_without_store: true\n#", 1), "by the network and the helper alone"},
		{"store and fence without", hosts(3, "fence_without_store: true\n"), "has no effect"},
		{"plain helper", strings.Replace(small, "helper:", "helper: {plain: true}\n#", 1), "without TLS"},
		{"no action", strings.Replace(small, "levels:", "action: none\n  levels:", 1), "only reported"},
		{"no device", strings.Replace(small, "levels: [[bmc]]", "levels: []", 1), "no fence device for h1, h2, h3"},
		{"off by a code of its own", withCommand("arguments: [\"{action}\"], exit_off: 11"), ""},
		{"a fence agent", withCommand("style: fence-agents"), ""},
		{"no status", withCommand("arguments: [\"{action}\"], words: {status: \"\"}"), ""},
		{"a board's key for a program", strings.Replace(withCommand("style: fence-agents"), "{driver: command,", "{driver: command, kg_file: /k/kg,", 1), "knows no kg_file"},
		{"unused device", strings.Replace(small, "devices: {bmc:", "devices: {old: {}, bmc:", 1), "never used"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := load(t, tt.text)
			var all []string
			for _, w := range c.Warnings {
				all = append(all, w.Message)
			}
			if got := strings.Join(all, "\n"); tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("warnings %q, want %q", got, tt.want)
			}
		})
	}
}

func TestPlainHelperPort(t *testing.T) {
	if c := load(t, small); c.Helper.Port != 8443 {
		t.Errorf("with TLS: %d", c.Helper.Port)
	}
	if c := load(t, strings.Replace(small, "helper:", "helper: {plain: true}\n#", 1)); c.Helper.Port != 8080 {
		t.Errorf("plain: %d", c.Helper.Port)
	}
	if c := load(t, strings.Replace(small, "helper:", "helper: {plain: true, port: 8081}\n#", 1)); c.Helper.Port != 8081 {
		t.Errorf("plain with port: %d", c.Helper.Port)
	}
}

// TestPrograms: what the driver of programs would refuse is refused here, before
// the agent is started with it.
func TestPrograms(t *testing.T) {
	for more, want := range map[string]string{
		`arguments: ["{action}"], exit_on: 11, exit_off: 11`:          "exit code 11 of device bmc means both on and off",
		`arguments: ["{action}"]`:                                     "exit code 2 of device bmc means off, and is also what programs end with by mistake",
		`arguments: ["off"]`:                                          "no argument of device bmc has {action} in it",
		`exit_off: 11`:                                                "no argument of device bmc has {action} in it",
		`arguments: ["{action}"], exit_off: 11, options: {plug: "1"}`: "options are for fence agents",
		`style: fence-agents, arguments: ["{action}"]`:                "a fence agent gets its options on standard input",
	} {
		text := strings.Replace(small, "{driver: ipmi, username: haven, password_file: /k/bmc}",
			"{driver: command, command: {program: /usr/local/sbin/strip, "+more+"}}", 1)
		if _, err := Parse("t.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", more, err, want)
		}
	}
}

// TestRelations draws times around the bounds that the relations set, and
// compares what Parse says with the plain list of inequalities, written a
// second time.
func TestRelations(t *testing.T) {
	var byBroken [15]int // how many draws broke so many rules
	draw := func(t *rapid.T) {
		sections, v := map[string][]string{}, map[string]int{}
		put := func(section, key string, ms int) int {
			v[section+"."+key] = ms
			sections[section] = append(sections[section], fmt.Sprintf("%s: %dms", key, ms))
			return ms
		}
		draw := func(section, key string, least, most int) int {
			return put(section, key, rapid.IntRange(least, most).Draw(t, key))
		}
		// near gives a value on the bound, beyond it or, one time in six, short of it.
		near := func(section, key string, bound, sign int) int {
			slack := rapid.SampledFrom([]int{0, 1, 7, 150, 900, -1}).Draw(t, key)
			return put(section, key, bound+sign*min(slack, bound/2))
		}
		interval, ioTimeout := draw("heartbeat", "interval", 500, 3000), draw("heartbeat", "io_timeout", 200, 3000)
		stale := near("heartbeat", "stale_after", 2*interval+ioTimeout, 1)
		suspect := near("detection", "suspect_after", 2*draw("detection", "report_interval", 150, 1500), 1)
		probe := draw("detection", "probe_timeout", 150, 3000)
		round := near("detection", "round_interval", probe, 1)
		rounds := rapid.IntRange(1, 6).Draw(t, "rounds")
		silence := near("detection", "silence", max(stale+interval, suspect+probe, rounds*round), 1)
		near("detection", "mass_failure_calm", max(round, 1001), 1)
		flaps := rapid.IntRange(1, 16).Draw(t, "flap_count")
		near("detection", "flap_window", max(flaps*silence, 10001), 1)
		near("detection", "flap_calm", max(silence, 1001), 1)
		sections["detection"] = append(sections["detection"], fmt.Sprintf("rounds: %d, flap_count: %d", rounds, flaps))
		raft := draw("raft", "heartbeat_timeout", 500, 3000)
		near("raft", "election_timeout", raft, 1)
		near("raft", "lease_timeout", raft, -1)
		near("raft", "commit_timeout", raft/2, -1)
		near("gossip", "probe_timeout", draw("gossip", "probe_interval", 200, 2000)-1, -1)
		expect := rapid.SampledFrom([]int{2, 3, 2, 3, 1, 4}).Draw(t, "bootstrap_expect")
		text := strings.Replace(small, "gossip: {", "gossip: {"+strings.Join(sections["gossip"], ", ")+", ", 1)
		text = strings.Replace(text, "heartbeat: {", "heartbeat: {"+strings.Join(sections["heartbeat"], ", ")+", ", 1)
		text += fmt.Sprintf("detection: {%s}\nraft: {%s}\nbootstrap_expect: %d\n", strings.Join(sections["detection"], ", "), strings.Join(sections["raft"], ", "), expect)

		b, d, r, g := "heartbeat.", "detection.", "raft.", "gossip."
		rules := []bool{
			v[b+"stale_after"] >= v[b+"interval"]+v[b+"io_timeout"]+v[b+"interval"],
			v[d+"suspect_after"] >= v[d+"report_interval"]+v[d+"report_interval"],
			v[d+"silence"] >= v[b+"stale_after"]+v[b+"interval"],
			v[d+"silence"] >= rounds*v[d+"round_interval"],
			v[d+"mass_failure_calm"] >= v[d+"round_interval"],
			v[d+"flap_window"] >= flaps*v[d+"silence"],
			v[d+"flap_calm"] >= v[d+"silence"],
			v[d+"silence"] >= v[d+"suspect_after"]+v[d+"probe_timeout"],
			v[d+"round_interval"] >= v[d+"probe_timeout"],
			v[r+"election_timeout"] >= v[r+"heartbeat_timeout"],
			v[r+"lease_timeout"] <= v[r+"heartbeat_timeout"],
			v[r+"commit_timeout"]*2 <= v[r+"heartbeat_timeout"],
			v[g+"probe_timeout"] < v[g+"probe_interval"],
			expect == 2 || expect == 3, // of three hosts
		}
		broken := 0
		for _, holds := range rules {
			if !holds {
				broken++
			}
		}
		_, err := Parse("t.yaml", []byte(text))
		var e *Error
		errors.As(err, &e)
		switch {
		case broken == 0 && err != nil:
			t.Fatalf("refused, although every rule holds:\n%v", err)
		case broken > 0 && (e == nil || len(e.Problems) != broken):
			t.Fatalf("%d rules are broken, got:\n%v", broken, err)
		}
		byBroken[broken]++
	}
	for range 20 { // One check of a short run has too few to see both ends.
		rapid.Check(t, draw)
	}
	if byBroken[0] == 0 || byBroken[1] == 0 {
		t.Errorf("the draws test nothing: %v", byBroken)
	}
}

// TestBootstrapMajority: no two disjoint groups of configured hosts can both
// found a cluster (P3), for every size and every value that is accepted.
func TestBootstrapMajority(t *testing.T) {
	head, _, _ := strings.Cut(small, "fencing:")
	for n := 1; n <= 12; n++ {
		var hosts strings.Builder
		hosts.WriteString("hosts:\n")
		for i := range n {
			fmt.Fprintf(&hosts, "  h%d: {address: 10.0.0.%d}\n", i, i+1)
		}
		for expect := 0; expect <= n+1; expect++ {
			text := head + hosts.String()
			if expect > 0 {
				text += fmt.Sprintf("bootstrap_expect: %d\n", expect)
			}
			c, err := Parse("t", []byte(text))
			possible := expect == 0
			for a := 0; a <= n; a++ { // cut into a and n-a: at most one side may be enough, and all together must be
				possible = possible || expect <= n && a == 0
			}
			for a := 0; a <= n && expect > 0; a++ {
				if a >= expect && n-a >= expect {
					possible = false
				}
			}
			if (err == nil) != possible {
				t.Fatalf("%d hosts, bootstrap_expect %d: %v", n, expect, err)
			}
			if err == nil && expect == 0 && (2*c.BootstrapExpect <= n || c.BootstrapExpect > n) {
				t.Fatalf("%d hosts: default %d is no majority", n, c.BootstrapExpect)
			}
		}
	}
}

func TestLoadErrors(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	big := filepath.Join(t.TempDir(), "big.yaml")
	if err := os.WriteFile(big, []byte("# "+strings.Repeat("x", maxFile)), 0o600); err != nil {
		t.Fatal(err)
	}
	var e *Error
	if _, err := Load(big); !errors.As(err, &e) || !strings.Contains(err.Error(), "larger than 1 MiB") || len(err.Error()) > 500 {
		t.Errorf("big file: %v", err)
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "haven.yaml")
	check := func(want int, parts ...string) {
		t.Helper()
		var b strings.Builder
		if got := Check(path, &b); got != want {
			t.Errorf("exit code %d, want %d:\n%s", got, want, b.String())
		}
		for _, p := range parts {
			if !strings.Contains(b.String(), p) {
				t.Errorf("%q is not in:\n%s", p, b.String())
			}
		}
		if strings.Contains(b.String(), "hunter2") {
			t.Errorf("a secret is shown:\n%s", b.String())
		}
	}
	check(2, "no such file")
	write("haven.yaml", "cluster: [", 0o600)
	check(1, "is not YAML")
	write("haven.yaml", strings.ReplaceAll(small, "/k/", dir+"/"), 0o600)
	check(1, "no such file on this machine", "6 errors, 0 warnings")
	for _, f := range []string{"ca", "cert", "key", "gossip", "helper"} {
		write(f, "hunter2\n", 0o600)
	}
	write("bmc", "hunter2\n", 0o644)
	check(0, "0 errors, 1 warning", "mode 0644", "chmod 600")
	write("key", "hunter2\n", 0o640)
	write("helper", "hunter2\nhunter2\n", 0o600)
	write("gossip", "# hunter2\n\nhunter2\nhunter2\n", 0o600)
	check(1, "2 errors, 1 warning", "more than one line", "mode 0640")
}

package haven_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
)

func TestPolicyValidate(t *testing.T) {
	long := strings.Repeat("x", 256)
	tests := []struct {
		name string
		p    haven.Policy
		want []string // parts of the errors; none: valid
	}{
		{"nothing said", haven.Policy{}, nil},
		{"none said", haven.Policy{AllowedHosts: []haven.HostID{}, Groups: []haven.Group{}}, nil},
		{"all said", haven.Policy{
			Priority: haven.PriorityOff, AllowedHosts: []haven.HostID{"a", "b"}, PreferredHosts: []haven.HostID{"b"},
			Groups:          []haven.Group{{Name: "g", Rule: haven.KeepApart, Strength: haven.GroupStrict}, {Name: "h", Rule: haven.KeepTogether}},
			StartAfter:      []haven.StartAfter{{VM: "x y"}, {VM: "z", Ready: "tcp:65535", TimeoutS: 86400}, {VM: "w", Ready: "delay:600"}},
			RestartsInPlace: new(0), StorageLost: haven.StorageLostRestart, Isolation: haven.IsolationPowerOff, IOError: haven.IOErrorResume,
		}, nil},
		{"words", haven.Policy{Priority: "urgent", StorageLost: "a", Isolation: "b", IOError: "c"}, []string{
			`priority: "urgent" is not one of highest, high, medium, low, lowest, off`, `storage_lost: "a" is not one of report, restart-elsewhere`,
			`isolation: "b" is not one of leave, shutdown, power-off`, `io_error: "c" is not one of report, resume, restart`,
		}},
		{"restarts below zero", haven.Policy{RestartsInPlace: new(-1)}, []string{"restarts_in_place: -1 is not from 0 to 100"}},
		{"many restarts", haven.Policy{RestartsInPlace: new(101)}, []string{"restarts_in_place: 101"}},
		{"hosts", haven.Policy{AllowedHosts: []haven.HostID{"A", "b", "b"}, PreferredHosts: []haven.HostID{"c"}}, []string{
			`allowed_hosts[0]: host name "A"`, "allowed_hosts[2]: b is named twice", "preferred_hosts[0]: c is not among the allowed hosts",
		}},
		{"many hosts", haven.Policy{AllowedHosts: make([]haven.HostID, 257)}, []string{"allowed_hosts: 257 hosts, at most 256"}},
		{"groups", haven.Policy{Groups: []haven.Group{{Name: "a b"}, {Name: "g", Rule: "near", Strength: "firm"}, {Name: "g", Rule: haven.KeepApart}}}, []string{
			`groups[0].name: "a b"`, "groups[0].rule: is missing", `groups[1].rule: "near"`, `groups[1].strength: "firm"`, "groups[2].name: g is named twice",
		}},
		{"many groups", haven.Policy{Groups: make([]haven.Group, 33)}, []string{"groups: 33 groups"}},
		{"start after", haven.Policy{StartAfter: []haven.StartAfter{
			{VM: ""},
			{VM: "a", Ready: "booted"},
			{VM: "a"},
			{VM: long},
			{VM: "a\nb"},
			{VM: " c"},
			{VM: "d", TimeoutS: -1},
			{VM: "e", TimeoutS: 86401},
			{VM: "f", Ready: "delay:601"},
			{VM: "\xff"},
		}}, []string{
			`start_after[0].vm: "" is empty`, `start_after[1].ready: "booted" is not one of running, guest-agent, tcp:PORT, delay:SECONDS`, "start_after[2].vm: a is named twice",
			"start_after[3].vm", "start_after[4].vm", "start_after[5].vm", "start_after[6].timeout_s: -1", "start_after[7].timeout_s: 86401", "start_after[8].timeout_s: 600 s are over before the delay of 601 s is", "start_after[9].vm",
		}},
		{"many to wait for", haven.Policy{StartAfter: make([]haven.StartAfter, 65)}, []string{"start_after: 65 VMs"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			if err := tt.p.Validate(); err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if len(got) != len(tt.want) {
				t.Fatalf("Validate() = %q, want %d errors", got, len(tt.want))
			}
			for _, w := range tt.want {
				if !slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, w) }) {
					t.Errorf("Validate() = %q lacks %q", got, w)
				}
			}
		})
	}
}

func TestReadiness(t *testing.T) {
	tests := []struct {
		name string
		in   haven.Readiness
		kind haven.Readiness
		n    int
		err  string
	}{
		{"nothing", "", haven.ReadyRunning, 0, ""},
		{"running", "running", haven.ReadyRunning, 0, ""},
		{"agent", "guest-agent", haven.ReadyAgent, 0, ""},
		{"port", "tcp:22", haven.ReadyTCP, 22, ""},
		{"delay", "delay:3600", haven.ReadyDelay, 3600, ""},
		{"no port", "tcp", "", 0, "is not one of"},
		{"empty port", "tcp:", "", 0, "from 1 to 65535"},
		{"port 0", "tcp:0", "", 0, "from 1 to 65535"},
		{"large port", "tcp:65536", "", 0, "from 1 to 65535"},
		{"padded", "tcp:022", "", 0, "from 1 to 65535"},
		{"signed", "delay:+5", "", 0, "from 1 to 3600"},
		{"overflow", "delay:99999999999999999999", "", 0, "from 1 to 3600"},
		{"unit", "delay:5s", "", 0, "from 1 to 3600"},
		{"number for none", "running:1", "", 0, "takes no number"},
		{"other", "Running", "", 0, "is not one of"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			kind, n, err := tt.in.Parse()
			if kind != tt.kind || n != tt.n || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Parse(%q) = %q, %d, %v", tt.in, kind, n, err)
			}
		})
	}
}

func maybe[T any](t *rapid.T, label string, zero T, some ...T) T {
	return rapid.SampledFrom(append([]T{zero}, some...)).Draw(t, label)
}

func drawPolicy(t *rapid.T, label string) haven.Policy {
	return haven.Policy{
		Priority:        maybe(t, label+" priority", "", haven.Priorities()...),
		AllowedHosts:    maybe(t, label+" allowed", nil, []haven.HostID{}, []haven.HostID{"a"}, []haven.HostID{"a", "b"}),
		PreferredHosts:  maybe(t, label+" preferred", nil, []haven.HostID{}, []haven.HostID{"a"}),
		Groups:          maybe(t, label+" groups", nil, []haven.Group{}, []haven.Group{{Name: label, Rule: haven.KeepApart}}),
		StartAfter:      maybe(t, label+" after", nil, []haven.StartAfter{}, []haven.StartAfter{{VM: label}}, []haven.StartAfter{{VM: "v", Ready: "tcp:1", TimeoutS: 5}}),
		RestartsInPlace: maybe(t, label+" restarts", nil, new(0), new(5)),
		StorageLost:     maybe(t, label+" storage", "", haven.StorageLostReport, haven.StorageLostRestart),
		Isolation:       maybe(t, label+" isolation", "", haven.IsolationLeave, haven.IsolationPowerOff),
		IOError:         maybe(t, label+" error", "", haven.IOErrorReport, haven.IOErrorRestart),
	}
}

// What is said comes back from JSON as it was, "none" and "nothing" included.
func TestPolicyJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPolicy(t, "p")
		data, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var back haven.Policy
		if err := json.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(p, back) {
			t.Fatalf("%+v became %s and then %+v, %v", p, data, back, err)
		}
	})
	if data, err := json.Marshal(haven.Policy{}); err != nil || string(data) != "{}" {
		t.Errorf("a policy that says nothing is %s, %v", data, err)
	}
}

// The dumb second opinion: field by field, by reflection over the JSON names.
// What is not in the default comes from the source that is said to have given it.
func TestMergePolicies(t *testing.T) {
	fields := reflect.TypeFor[haven.Policy]()
	rapid.Check(t, func(t *rapid.T) {
		metadata, ledger := drawPolicy(t, "metadata"), drawPolicy(t, "ledger")
		got := haven.MergePolicies(metadata, ledger)
		defaults := haven.MergePolicies(haven.Policy{}, haven.Policy{})
		if len(got.From) != fields.NumField() {
			t.Fatalf("%d fields have a source: %v", len(got.From), got.From)
		}
		for i := range fields.NumField() {
			name, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ",")
			m, l := reflect.ValueOf(metadata).Field(i), reflect.ValueOf(ledger).Field(i)
			source, alone := haven.PolicyDefault, defaults
			switch {
			case !l.IsZero():
				source, alone = haven.PolicyLedger, haven.MergePolicies(haven.Policy{}, ledger)
			case !m.IsZero():
				source, alone = haven.PolicyMetadata, haven.MergePolicies(metadata, haven.Policy{})
			}
			if got.From[name] != source {
				t.Fatalf("%s is from %q, want %q", name, got.From[name], source)
			}
			want := reflect.ValueOf(alone.Policy).Field(i).Interface()
			if name == "preferred_hosts" {
				continue // depends on the allowed hosts too; see below
			}
			if have := reflect.ValueOf(got.Policy).Field(i).Interface(); !reflect.DeepEqual(have, want) {
				t.Fatalf("%s = %v, want %v of the %s", name, have, want, source)
			}
		}
		if err := got.Validate(); err != nil {
			t.Fatalf("two valid policies make %v", err)
		}
	})
}

func TestMergeOverrides(t *testing.T) {
	metadata := haven.Policy{
		Priority: haven.PriorityLow, AllowedHosts: []haven.HostID{"a", "b"}, PreferredHosts: []haven.HostID{"a", "b"}, RestartsInPlace: new(9),
		StartAfter: []haven.StartAfter{{VM: "db"}},
	}
	got := haven.MergePolicies(metadata, haven.Policy{AllowedHosts: []haven.HostID{"b"}, RestartsInPlace: new(0), StartAfter: []haven.StartAfter{}})
	if got.Priority != haven.PriorityLow || *got.RestartsInPlace != 0 || len(got.StartAfter) != 0 || got.From["start_after"] != haven.PolicyLedger ||
		!slices.Equal(got.PreferredHosts, []haven.HostID{"b"}) {
		t.Errorf("MergePolicies() = %+v", got)
	}
	*got.RestartsInPlace = 7
	if len(metadata.PreferredHosts) != 2 || metadata.PreferredHosts[0] != "a" || *metadata.RestartsInPlace != 9 {
		t.Error("merging changed a source")
	}
	got = haven.MergePolicies(metadata, haven.Policy{})
	if got.StartAfter[0] != (haven.StartAfter{VM: "db", Ready: haven.ReadyRunning, TimeoutS: 600}) || metadata.StartAfter[0].TimeoutS != 0 {
		t.Errorf("MergePolicies() = %+v", got.StartAfter)
	}
	if d := haven.MergePolicies(haven.Policy{}, haven.Policy{}); d.Priority != haven.PriorityMedium || *d.RestartsInPlace != 3 || d.IOError != haven.IOErrorReport || d.Isolation != "" || d.StorageLost != "" {
		t.Errorf("the defaults are %+v", d)
	}
}

func TestPriorityRank(t *testing.T) {
	last := -1
	for _, p := range haven.Priorities() {
		if r := p.Rank(); r <= last {
			t.Errorf("%s ranks %d after %d", p, r, last)
		} else {
			last = r
		}
	}
	if haven.Priority("").Rank() != haven.PriorityMedium.Rank() || haven.Priority("odd").Rank() <= last {
		t.Error("no word ranks as medium, an odd word last")
	}
}

package ledger

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

// everyCommand is one of each kind, with every field set.
func everyCommand() []Command {
	evidence := []haven.Evidence{{Kind: haven.EvidencePower, Subject: "a", Observer: "b", Value: haven.No, Detail: "off"}}
	full := line("entry")
	full.Evidence = evidence
	proof := proved("i1", "a", "a1")
	proof.Proof.Evidence, proof.Proof.Detail = evidence, "twice off"
	attempt := beginFence("i1", 1)
	attempt.Attempt.EndedAt, attempt.Attempt.Proved, attempt.Attempt.Detail = stamp, true, "off"
	return []Command{
		Found{Cluster: "c", Generation: 1, By: "op", At: stamp},
		register("a", "a1", "sa", 1),
		ReleaseHost{Host: "a", By: "op", At: stamp},
		LearnPower{Host: "a", GUID: "g", Distrust: "why", By: "op", Clears: 1},
		DeclareWatchdog{Host: "a", Boot: "a1", State: "sa", Incarnation: 1, Number: 7, Watchdog: haven.Watchdog{Bound: 30 * time.Second, Stores: []string{"s1"}}},
		SetArmed{Armed: true, By: "op", Reason: "why", At: stamp},
		SetMaintenance{Host: "a", On: true, By: "op", Reason: "why", At: stamp},
		RecordDecisions{Decisions: []Decision{{
			At: stamp, Term: haven.Term{Generation: 1, Term: 7}, By: "b", Host: "a", Boot: "a1", From: haven.VerdictHealthy, To: haven.VerdictSuspect,
			Why: "silent", Evidence: evidence, LeftOut: 2,
		}}},
		protect(vm1, "a", "a1"),
		ForgetVM{VM: vm1, Epoch: 3},
		ObserveVM{VM: vm1, Epoch: 3, Host: "a", Boot: "a1", Desired: DesiredStopped, Migrating: true},
		MoveVM{VM: vm1, Epoch: 3, Host: "a", Boot: "a1", Absent: []Absence{not("b", "b1")}},
		FreeVM{VM: vm1, Epoch: 3, Host: "a", Boot: "a1", Detail: "crashed", At: stamp},
		HoldVM{VM: vm1, Epoch: 3, Hold: haven.Hold{Reason: haven.HoldCap, Detail: "d", Since: stamp}},
		order(vm1, 4, "b", "b1", not("b", "b1")),
		report(vm1, 4, "b", "b1", haven.OrderStarted),
		OpenIncident{ID: "i1", Host: "a", Boot: "a1", Verdict: haven.VerdictFailed, Entry: full},
		NoteIncident{ID: "i1", Step: haven.StepConfirmed, Verdict: haven.VerdictDead, Hold: &haven.Hold{Reason: haven.HoldCap}, Entry: full},
		attempt,
		EndFence{ID: "i1", N: 1, Proved: true, Detail: "off", At: stamp},
		proof,
		RecordAct{Act{Action: haven.ActionOff, Host: "a", By: "op", Reason: "why", Force: true, At: stamp}},
		BeginOn{ID: "i1", On: PowerOn{Term: haven.Term{Generation: 1, Term: 7}, By: "b", BegunAt: stamp, EndedAt: stamp, Failed: true, Detail: "why"}},
		EndOn{ID: "i1", Failed: true, Detail: "why", At: stamp},
		DoubtDevices{Host: "a", Doubts: []DeviceDoubt{{Device: "d", GUID: "g", Why: "why"}}},
		ReleaseFenced{Host: "a", Incident: "i1", By: "op", Reason: "why", At: stamp},
		CloseIncident{ID: "i1", Outcome: "done", Entry: full},
	}
}

func TestEncodeDecode(t *testing.T) {
	all := everyCommand()
	data, err := Encode(all...)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, all) {
		t.Errorf("decoded\n%+v\nwant\n%+v", got, all)
	}
	kinds := map[string]bool{}
	for _, c := range got {
		kinds[Kind(c)] = true
	}
	if len(kinds) != len(all) {
		t.Errorf("%d kinds of %d commands", len(kinds), len(all))
	}
}

// An agent that does not know a word of the log must not guess (it would hold
// another state than the rest).
func TestDecodeIsStrict(t *testing.T) {
	tests := []struct{ name, data, want string }{
		{"nothing", ``, "EOF"},
		{"no list", `{"kind":"set-armed"}`, "cannot unmarshal"},
		{"null", `null`, "no list of commands"},
		{"unknown command", `[{"kind":"dance","body":{}}]`, `unknown command "dance"`},
		{"no kind", `[{"body":{}}]`, "unknown command"},
		{"unknown field", `[{"kind":"set-armed","body":{"armed":true,"by":"op","at":"2026-03-01T12:00:00Z","how":"well"}}]`, "unknown field"},
		{"unknown field beside the body", `[{"kind":"set-armed","body":{"by":"op"},"unless":"tuesday"}]`, "unknown field"},
		{"unknown field deep inside", `[{"kind":"commit-order","body":{"order":{"id":"x","until":"noon"}}}]`, "unknown field"},
		{"no body", `[{"kind":"set-armed"}]`, "no body"},
		{"null for a body", `[{"kind":"set-armed","body":null}]`, "no body"},
		{"wrong type", `[{"kind":"forget-vm","body":{"vm":1}}]`, "cannot unmarshal"},
		{"more than a list", `[] []`, "after the end"},
		{"second of two", `[{"kind":"set-armed","body":{"by":"op"}},{"kind":"x","body":{}}]`, "command 2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmds, err := Decode([]byte(tt.data))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, %v; want an error with %q", cmds, err, tt.want)
			}
		})
	}
}

func TestStoreApply(t *testing.T) {
	st := NewStore()
	changed := st.Changed()
	data, err := Encode(Found{Cluster: "c", Generation: 1}, register("a", "", "sa", 1), register("a", "a1", "sa", 1))
	if err != nil {
		t.Fatal(err)
	}
	errs, ok := st.Apply(9, 7, data).([]error)
	if !ok || len(errs) != 3 || errs[0] != nil || !errors.Is(errs[1], ErrRejected) || errs[2] != nil {
		t.Fatalf("%v: a command that is rejected must not stop the others", errs)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told of the change")
	}
	st.View(func(s *State, at Position) {
		if at != (Position{9, 7}) || !s.Knows("a", "a1", "sa") || s.Knows("a", "a1", "sb") || s.Knows("a", "a2", "sa") || s.Knows("b", "b1", "sb") {
			t.Errorf("at %v: %+v", at, s.Hosts)
		}
	})
	if err, ok := st.Apply(10, 7, []byte(`[{"kind":"dance","body":{}}]`)).(error); !ok || err == nil {
		t.Error("an entry that cannot be read was applied")
	}
}

// fullStore has something of everything in it.
func fullStore(t testing.TB) *Store {
	t.Helper()
	cmds := with(fencing1(), EndFence{ID: "i1", N: 1, At: stamp, Proved: true}, proved("i1", "a", "a1"),
		order(vm1, 2, "b", "b1", not("b", "b1"), not("c", "c1")), report(vm1, 2, "b", "b1", haven.OrderFailed),
		HoldVM{VM: vm1, Epoch: 2, Hold: haven.Hold{Reason: haven.HoldCapacity, Since: stamp}}, protect(vm2, "c", "c1"),
		ObserveVM{VM: vm2, Epoch: 1, Host: "c", Boot: "c1", Desired: DesiredStopped}, register("a", "a2", "sa", 2), LearnPower{Host: "a", GUID: "g"})
	data, err := Encode(cmds...)
	if err != nil {
		t.Fatal(err)
	}
	st := NewStore()
	for i, err := range st.Apply(41, 7, data).([]error) {
		if err != nil {
			t.Fatalf("command %d: %v", i+1, err)
		}
	}
	return st
}

func TestSnapshot(t *testing.T) {
	from := fullStore(t)
	data, err := from.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	again, err := from.Snapshot()
	if err != nil || !bytes.Equal(data, again) {
		t.Errorf("two snapshots of one state differ (%v)", err)
	}
	to := NewStore()
	changed := to.Changed()
	if err := to.Restore(data); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told of the restore")
	}
	if got, want := text(t, to.state), text(t, from.state); got != want || to.at != from.at {
		t.Errorf("restored at %v\n%s\nwant at %v\n%s", to.at, got, from.at, want)
	}
	clone, err := from.Clone()
	if err != nil || text(t, clone) != text(t, from.state) {
		t.Errorf("the clone differs (%v)", err)
	}
	clone.VMs[vm1].Freed.Detail = "changed"
	if from.state.VMs[vm1].Freed.Detail == "changed" {
		t.Error("a clone shares memory with its origin")
	}
}

// A snapshot with any octet changed is refused, or means the same.
func TestDamagedSnapshot(t *testing.T) {
	from := fullStore(t)
	data, err := from.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	want := text(t, from.state)
	for i := range data {
		for _, flip := range []byte{0x01, 0x80} {
			broken := bytes.Clone(data)
			broken[i] ^= flip
			if s, _, err := readSnapshot(broken); err == nil && text(t, s) != want {
				t.Fatalf("octet %d of %d changed: another state was read", i, len(data))
			}
		}
	}
	for n := range data {
		if _, _, err := readSnapshot(data[:n]); err == nil {
			t.Fatalf("%d of %d octets were taken for a whole snapshot", n, len(data))
		}
	}
	if _, _, err := readSnapshot(append(bytes.Clone(data), "more"...)); err == nil {
		t.Error("a snapshot with something behind it was taken")
	}
	before := text(t, from.state)
	if err := from.Restore(data[:len(data)/2]); err == nil || text(t, from.state) != before {
		t.Errorf("a restore that failed (%v) changed the state", err)
	}
}

func TestSnapshotThatContradictsItself(t *testing.T) {
	tests := []struct {
		name   string
		damage func(m map[string]any)
	}{
		{"of another version", func(m map[string]any) { m["version"] = 99 }},
		{"without state", func(m map[string]any) { m["state"] = nil }},
		{"with a new field", func(m map[string]any) { m["state"].(map[string]any)["mood"] = "good" }},
		{"without hosts", func(m map[string]any) { m["state"].(map[string]any)["hosts"] = nil }},
		{"host under another name", func(m map[string]any) { part(m, "hosts", "a")["id"] = "z" }},
		{"host that is null", func(m map[string]any) { m["state"].(map[string]any)["hosts"].(map[string]any)["a"] = nil }},
		{"host with an incident that is not there", func(m map[string]any) { part(m, "hosts", "b")["incident"] = "i9" }},
		{"VM under another name", func(m map[string]any) { part(m, "vms", string(vm1))["id"] = "z" }},
		{"VM in no phase", func(m map[string]any) { part(m, "vms", string(vm1))["phase"] = "limbo" }},
		{"VM that nobody wants anything of", func(m map[string]any) { part(m, "vms", string(vm1))["desired"] = "" }},
		{"VM freed by nobody", func(m map[string]any) { delete(part(m, "vms", string(vm1)), "freed") }},
		{"VM ordered without order", func(m map[string]any) {
			vm := part(m, "vms", string(vm1))
			vm["phase"] = "ordered"
			delete(vm, "order")
		}},
		{"VM without epoch", func(m map[string]any) { part(m, "vms", string(vm1))["epoch"] = 0 }},
		{"incident under another name", func(m map[string]any) { part(m, "incidents", "i1")["id"] = "z" }},
		{"incident in no step", func(m map[string]any) { part(m, "incidents", "i1")["step"] = "limbo" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st := fullStore(t)
			data, err := json.Marshal(snapshot{snapshotVersion, st.at, st.state})
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := readSnapshot(pack(t, data)); err != nil {
				t.Fatalf("before it is broken: %v", err)
			}
			var m map[string]any
			if err := json.Unmarshal(data, &m); err != nil {
				t.Fatal(err)
			}
			tt.damage(m)
			if data, err = json.Marshal(m); err != nil {
				t.Fatal(err)
			}
			if _, _, err := readSnapshot(pack(t, data)); err == nil {
				t.Error("it was taken")
			}
		})
	}
}

func part(m map[string]any, kind, id string) map[string]any {
	return m["state"].(map[string]any)[kind].(map[string]any)[id].(map[string]any)
}

func pack(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestDefinition(t *testing.T) {
	xml := []byte("<domain>\n  <name>ü</name>  <!-- as it was -->\n</domain>\n")
	d, err := Pack(xml)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := d.Unpack(); err != nil || !bytes.Equal(got, xml) {
		t.Errorf("unpacked %q, %v", got, err)
	}
	other, err := Pack([]byte("<other/>"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (Definition{SHA: d.SHA, GZ: other.GZ}).Unpack(); err == nil {
		t.Error("a definition that is not the one of its digest was unpacked")
	}
	if _, err := (Definition{SHA: d.SHA, GZ: d.GZ[:len(d.GZ)-1]}).Unpack(); err == nil {
		t.Error("half a definition was unpacked")
	}
	if _, err := Pack(make([]byte, MaxDefinitionBytes)); err != nil {
		t.Errorf("the largest definition: %v", err)
	}
	if _, err := Pack(make([]byte, MaxDefinitionBytes+1)); err == nil {
		t.Error("a definition that is too large was packed")
	}
	bomb := pack(t, make([]byte, 64<<20))
	if _, err := (Definition{SHA: d.SHA, GZ: bomb}).Unpack(); err == nil {
		t.Error("a bomb was unpacked")
	}
}

func FuzzDecode(f *testing.F) {
	for _, c := range everyCommand() {
		data, err := Encode(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	full, err := fullStore(f).Snapshot()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cmds, err := Decode(data)
		if err != nil {
			return
		}
		again, err := Encode(cmds...)
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		if back, err := Decode(again); err != nil || len(back) != len(cmds) {
			t.Fatalf("second decoding: %d commands of %d, %v", len(back), len(cmds), err)
		}
		s, at, err := readSnapshot(full)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cmds {
			before := text(t, s)
			if err := s.Apply(c, at); err != nil && text(t, s) != before {
				t.Fatalf("%s was rejected (%v) and changed the state", Kind(c), err)
			}
		}
		if err := s.check(); err != nil {
			t.Fatalf("a snapshot of this state would be refused: %v", err)
		}
	})
}

func FuzzReadSnapshot(f *testing.F) {
	full, err := fullStore(f).Snapshot()
	if err != nil {
		f.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(full))
	if err != nil {
		f.Fatal(err)
	}
	var plain bytes.Buffer
	if _, err := plain.ReadFrom(r); err != nil {
		f.Fatal(err)
	}
	f.Add(plain.Bytes(), true)
	f.Add(full, false)
	f.Add([]byte(`{"version":1,"state":{"hosts":{},"vms":{},"incidents":{}}}`), true)
	f.Fuzz(func(t *testing.T, data []byte, zip bool) {
		if zip {
			data = pack(t, data)
		}
		s, at, err := readSnapshot(data)
		if err != nil {
			return
		}
		// What was taken must bear every command.
		for _, c := range everyCommand() {
			_ = s.Apply(c, at)
		}
		_, _, _ = s.AwaitedHosts(), s.MayHave(), s.OpenIncidents()
		st := &Store{state: s, at: at, changed: make(chan struct{})}
		if _, err := st.Clone(); err != nil {
			t.Fatalf("it cannot be written and read again: %v", err)
		}
	})
}

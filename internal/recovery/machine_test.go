package recovery

import (
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/ledger"
)

// stepper is a world that is stepped by hand.
func stepper(t *testing.T) *world {
	t.Helper()
	w := newWorld()
	for _, id := range []haven.HostID{"a", "b"} {
		w.addHost(id, haven.RoleHypervisor)
	}
	w.addVM("web", w.hosts["a"], 1024)
	w.run(time.Second)
	return w
}

func (w *world) input(done ...Done) Input {
	in := Input{Now: w.now, Self: "m", Term: haven.Term{Generation: 1, Term: w.term}, Hosts: map[haven.HostID]HostView{}, Done: done}
	for _, h := range w.sorted() {
		in.Hosts[h.id] = w.view(h)
	}
	return in
}

// P2: what was judged of one boot says nothing about the next.
func TestVerdictAboutAnotherBoot(t *testing.T) {
	w := stepper(t)
	in := w.input()
	v := in.Hosts["a"]
	v.Verdict = haven.VerdictDead
	in.Hosts["a"] = v
	w.bootHost(w.hosts["a"])
	out := w.m.Step(w.state, in)
	for _, c := range out.Commands {
		switch c.(type) {
		case ledger.ProveDead, ledger.OpenIncident:
			t.Errorf("%+v", c)
		}
	}
}

// P1: of two answers the one that was asked for later counts, whichever comes
// first; and an answer to a question of before counts for nothing.
func TestAnswersOutOfOrder(t *testing.T) {
	w := stepper(t)
	m, vm := w.m, vmID("web")
	w.now = w.now.Add(time.Second)
	since := w.now
	absent := haven.Inventory{Host: "b", Boot: "b/1", Complete: true}
	present := absent
	present.VMs = []haven.VMInfo{{ID: vm, State: haven.VMRunning}}
	answer := func(inv haven.Inventory, after time.Duration) Done {
		return Done{Act: Ask{"b"}, Begun: since.Add(after), Inventory: &inv}
	}
	m.Step(w.state, w.input(answer(absent, -time.Millisecond)))
	if inv, ok := m.ask("b", since); ok {
		t.Errorf("an answer to an older question counts: %+v", inv)
	}
	w.now = w.now.Add(100 * time.Millisecond)
	m.Step(w.state, w.input(answer(present, 2*time.Millisecond), answer(absent, time.Millisecond)))
	if inv, ok := m.ask("b", since); !ok || inv.Has(vm) != haven.Yes {
		t.Errorf("the older answer counts: %+v, %t", inv, ok)
	}
	w.now = w.now.Add(w.cfg.AbsenceAge + time.Second)
	m.Step(w.state, w.input())
	if inv, ok := m.ask("b", since); ok {
		t.Errorf("an answer that is too old counts: %+v", inv)
	}
}

// P7: one host is fenced once at a time, whatever arrives from an earlier term;
// but what that proved is proved.
func TestLateFence(t *testing.T) {
	w := stepper(t)
	w.fence = func(*host) (bool, time.Duration, string) { return true, time.Hour, "" }
	w.hosts["a"].verdict = haven.VerdictFailed
	w.run(time.Second)
	in := w.state.OpenIncidents()[0]
	act := Fence{Incident: in.ID, N: 1, Host: "a", Boot: "a/1"}
	if _, flies := w.m.flying[act.Key()]; !flies {
		t.Fatal("nothing is under way")
	}
	late := Done{Act: act, Begun: w.now.Add(-time.Hour), Err: haven.ErrUnavailable}
	for range 3 {
		out := w.m.Step(w.state, w.input(late))
		if len(out.Acts) > 0 || len(out.Commands) > 0 {
			t.Errorf("a failure of an earlier term: %+v, %+v", out.Acts, out.Commands)
		}
	}
	other := late
	other.Proof = &haven.Proof{Kind: haven.ProofPowerOff, Host: "a", Boot: "a/0", By: "m", At: w.now}
	if out := w.m.Step(w.state, w.input(other)); len(out.Commands) > 0 {
		t.Errorf("a proof about another boot: %+v", out.Commands)
	}
	late.Err, late.Proof = nil, &haven.Proof{Kind: haven.ProofPowerOff, Host: "a", Boot: "a/1", By: "m", At: w.now}
	out := w.m.Step(w.state, w.input(late))
	if len(out.Commands) == 0 || len(out.Acts) > 0 {
		t.Fatalf("a proof of an earlier term: %+v, %+v", out.Acts, out.Commands)
	}
	if p, ok := out.Commands[0].(ledger.ProveDead); !ok || p.Proof.Boot != "a/1" {
		t.Errorf("%+v", out.Commands[0])
	}
}

// P1: while a host whose boot is proved dead shows life of that very boot, nothing
// of what it ran is started.
func TestContradictedProofHolds(t *testing.T) {
	w := stepper(t)
	a, b, web := w.hosts["a"], w.hosts["b"], vmID("web")
	b.freeMiB = 512
	w.off(a)
	a.verdict = haven.VerdictDead
	w.run(10 * time.Second)
	if vm := w.state.VMs[web]; vm.Phase != ledger.PhaseFreed || vm.Hold.Reason != haven.HoldCapacity {
		t.Fatalf("%s, %+v", vm.Phase, vm.Hold)
	}
	a.hold = haven.Hold{Reason: haven.HoldContradiction, Detail: "its beat moves"}
	b.freeMiB = 4096
	w.run(10 * time.Second)
	if vm := w.state.VMs[web]; vm.Phase != ledger.PhaseFreed || vm.Hold.Reason != haven.HoldContradiction {
		t.Errorf("with a host that shows life: %s, %+v", vm.Phase, vm.Hold)
	}
	a.hold = haven.Hold{}
	w.run(10 * time.Second)
	if vm := w.state.VMs[web]; vm.Phase != ledger.PhaseOwned || vm.Owner != "b" {
		t.Errorf("when it shows none any more: %s at %s, %+v", vm.Phase, vm.Owner, vm.Hold)
	}
}

func TestInstruct(t *testing.T) {
	w := stepper(t)
	web := vmID("web")
	inventory := func(host haven.HostID, state haven.VMState) haven.Inventory {
		return haven.Inventory{Host: host, Complete: true, VMs: []haven.VMInfo{{ID: web, State: state}, {ID: vmID("other"), State: state}}}
	}
	if to := Instruct(w.state, "b", inventory("b", haven.VMShutOff)); len(to.Protected) != 1 || len(to.SetAside) != 1 || to.SetAside[0] != web {
		t.Errorf("a definition of a VM that runs elsewhere: %+v", to)
	}
	if to := Instruct(w.state, "b", inventory("b", haven.VMIncoming)); len(to.SetAside) != 0 {
		t.Errorf("a VM that is coming in: %+v", to)
	}
	unsure := inventory("b", haven.VMShutOff)
	unsure.Complete = false
	if to := Instruct(w.state, "b", unsure); len(to.SetAside) != 0 {
		t.Errorf("P5: an inventory that is not whole: %+v", to)
	}
	if to := Instruct(w.state, "a", inventory("a", haven.VMShutOff)); len(to.Protected) != 1 || len(to.SetAside) != 0 {
		t.Errorf("its owner: %+v", to)
	}
	w.off(w.hosts["a"])
	w.hosts["a"].verdict = haven.VerdictDead
	w.run(10 * time.Millisecond)
	if vm := w.state.VMs[web]; vm.Phase != ledger.PhaseFreed {
		t.Fatalf("%+v", vm)
	}
	if to := Instruct(w.state, "b", inventory("b", haven.VMShutOff)); len(to.SetAside) != 0 {
		t.Errorf("a VM that this host may get: %+v", to)
	}
}

package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

// stamp is the time in all commands of these tests; the transition never looks at it.
var stamp = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const (
	vm1 haven.VMID = "11111111-0000-4000-8000-000000000001"
	vm2 haven.VMID = "11111111-0000-4000-8000-000000000002"
)

// pos is a place in the log in the term that the orders of these tests name.
var pos = Position{Index: 1, Term: 7}

func def(text string) Definition {
	d, err := Pack([]byte("<domain>" + text + "</domain>"))
	if err != nil {
		panic(err)
	}
	return d
}

func register(host haven.HostID, boot haven.BootID, state haven.StateID, inc haven.Incarnation) RegisterHost {
	return RegisterHost{Host: host, Role: haven.RoleHypervisor, Address: "10.0.0.1:7947", Boot: boot, State: state, Incarnation: inc, At: stamp}
}

func protect(vm haven.VMID, host haven.HostID, boot haven.BootID) ProtectVM {
	return ProtectVM{VM: vm, Name: "web", Host: host, Boot: boot, MemoryMiB: 1024, VCPUs: 2, Definition: def("x")}
}

func opened(id haven.IncidentID, host haven.HostID, boot haven.BootID) OpenIncident {
	return OpenIncident{ID: id, Host: host, Boot: boot, Verdict: haven.VerdictFailed, Entry: line("opened")}
}

func line(what string) Entry {
	return Entry{At: stamp, Term: haven.Term{Generation: 1, Term: 7}, By: "a", What: what}
}

func proved(id haven.IncidentID, host haven.HostID, boot haven.BootID) ProveDead {
	return ProveDead{ID: id, Entry: line("proved"), Proof: haven.Proof{Kind: haven.ProofPowerOff, Host: host, Boot: boot, By: "b", At: stamp}}
}

func order(vm haven.VMID, epoch haven.Epoch, host haven.HostID, boot haven.BootID, absent ...Absence) CommitOrder {
	return CommitOrder{At: stamp, Absent: absent, Order: haven.Order{
		ID: OrderID(vm, epoch), VM: vm, Name: "web", Epoch: epoch, Target: host, TargetBoot: boot, TargetState: haven.StateID("s" + host),
		Term: haven.Term{Generation: 1, Term: 7}, DefinitionSHA: def("x").SHA, MemoryMiB: 1024,
	}}
}

func report(vm haven.VMID, epoch haven.Epoch, host haven.HostID, boot haven.BootID, status haven.OrderStatus) ReportOrder {
	return ReportOrder{Host: host, At: stamp, Report: haven.OrderReport{
		Boot: boot, State: haven.StateID("s" + host), Order: OrderID(vm, epoch), VM: vm, Epoch: epoch, Status: status, Detail: "because",
	}}
}

func not(host haven.HostID, boot haven.BootID) Absence {
	return Absence{Host: host, Boot: boot, Via: "inventory"}
}

func beginFence(id haven.IncidentID, n int) BeginFence {
	return BeginFence{ID: id, Attempt: FenceAttempt{N: n, Action: haven.ActionOff, Term: haven.Term{Generation: 1, Term: 7}, By: "b", BegunAt: stamp}}
}

func note(id haven.IncidentID, step haven.Step) NoteIncident {
	return NoteIncident{ID: id, Step: step, Entry: line("now " + string(step))}
}

// three is a cluster of three hosts, of which a runs vm1.
func three() []Command {
	return []Command{
		Found{Cluster: "c", Generation: 1, By: "op", At: stamp},
		register("a", "a1", "sa", 1), register("b", "b1", "sb", 1), register("c", "c1", "sc", 1),
		protect(vm1, "a", "a1"),
	}
}

// dead is three after a was proved dead.
func dead() []Command {
	return append(three(), opened("i1", "a", "a1"), note("i1", haven.StepConfirmed), proved("i1", "a", "a1"))
}

// kept is three after a was put in maintenance and powered off.
func kept() []Command {
	return append(three(), SetMaintenance{Host: "a", On: true, By: "op"}, opened("i1", "a", "a1"), note("i1", haven.StepConfirmed), proved("i1", "a", "a1"))
}

// ordered is dead after b was told to start vm1.
func ordered() []Command {
	return append(dead(), order(vm1, 2, "b", "b1", not("b", "b1"), not("c", "c1")))
}

// build applies commands as the log does: encoded and decoded.
func build(t *testing.T, cmds ...Command) *State {
	t.Helper()
	s := New("")
	for i, c := range cmds {
		if err := s.Apply(logged(t, c), pos); err != nil {
			t.Fatalf("command %d: %v", i+1, err)
		}
	}
	return s
}

// logged is what a command is after it went through the log.
func logged(t testing.TB, c Command) Command {
	t.Helper()
	data, err := Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	cmds, err := Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	return cmds[0]
}

func text(t testing.TB, s *State) string {
	t.Helper()
	data, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// with joins commands.
func with(cmds []Command, more ...Command) []Command {
	return append(slices.Clip(cmds), more...)
}

func TestApply(t *testing.T) {
	state2 := func(c RegisterHost) RegisterHost { c.State = "sa2"; return c }
	witness := func(c RegisterHost) RegisterHost { c.Role = haven.RoleWitness; return c }
	hold := &haven.Hold{Reason: haven.HoldCap}
	absent := []Absence{not("b", "b1"), not("c", "c1")}
	tests := []struct {
		name   string
		before []Command
		do     Command
		reject string // part of the reason; empty when it must be applied
		check  func(s *State) string
	}{
		// Found.
		{name: "found", do: Found{Cluster: "c", Generation: 1}, check: func(s *State) string { return want(s.Cluster == "c" && s.Generation == 1, "not founded") }},
		{name: "found of another cluster", before: three(), do: Found{Cluster: "d", Generation: 2}, reject: "this is the ledger of cluster"},
		{name: "found of an older generation", before: with(three(), Found{Cluster: "c", Generation: 3}), do: Found{Cluster: "c", Generation: 2}, reject: "not newer"},
		{name: "P6: a restore waits for every host again", before: with(three(), ReleaseHost{Host: "b", By: "op"}), do: Found{Cluster: "c", Generation: 2}, check: func(s *State) string {
			return want(len(s.AwaitedHosts()) == 3, "awaited %v", s.AwaitedHosts())
		}},
		{name: "P1: a proof of before a restore proves nothing after it", before: dead(), do: Found{Cluster: "c", Generation: 2}, check: func(s *State) string {
			return want(len(s.AwaitedHosts()) == 3 && len(s.MayHave()) == 3 && s.Hosts["a"].Incident == "", "awaited %v, may have %v, %q", s.AwaitedHosts(), s.MayHave(), s.Hosts["a"].Incident)
		}},
		// RegisterHost.
		{name: "register without boot", do: register("a", "", "sa", 1), reject: "no boot id"},
		{name: "register without state", do: register("a", "a1", "", 1), reject: "no agent-state id"},
		{name: "register an older incarnation", before: with(three(), register("a", "a1", "sa", 3)), do: register("a", "a1", "sa", 2), reject: "registered as incarnation 3"},
		{name: "P1: two boots of one incarnation are two machines", before: three(), do: register("a", "a2", "sa", 1), reject: "incarnation 1"},
		{name: "P1: a boot that is over does not come back", before: with(three(), register("a", "a2", "sa", 2)), do: register("a", "a1", "sa", 3), reject: "is over"},
		{name: "P1: a boot that is proved dead does not come back", before: dead(), do: register("a", "a1", "sa", 2), reject: "is proved dead"},
		{name: "P1: nor by losing its directory", before: dead(), do: state2(register("a", "a1", "", 1)), reject: "is proved dead"},
		{name: "an agent that lost its directory", before: three(), do: state2(register("a", "a1", "", 1)), check: func(s *State) string {
			return want(s.Hosts["a"].State == "sa2" && s.VMs[vm1].Phase == PhaseOwned, "state %q", s.Hosts["a"].State)
		}},
		{name: "P1: a directory that was lost does not come back in the same boot", before: with(three(), state2(register("a", "a1", "", 1))), do: register("a", "a1", "sa", 2), reject: "was given up"},
		{name: "a directory that was lost may come back with a boot", before: with(three(), state2(register("a", "a1", "", 1))), do: register("a", "a2", "sa", 2)},
		{name: "P1: a host that may have VMs is no witness before its next boot", before: three(), do: witness(register("a", "a1", "sa", 2)), reject: "boots anew"},
		{name: "a host becomes a witness with a boot", before: three(), do: witness(register("a", "a2", "sa", 2)), check: phase(vm1, PhaseFreed, "a", 1)},
		{name: "a new boot frees what ran in the old one", before: three(), do: register("a", "a2", "sa", 2), check: func(s *State) string {
			vm := s.VMs[vm1]
			return want(vm.Phase == PhaseFreed && vm.Freed.By == FreedByReboot && vm.Freed.Boot == "a1", "%s %+v", vm.Phase, vm.Freed)
		}},
		{name: "a new boot frees what was ordered in the old one", before: ordered(), do: register("b", "b2", "sb", 2), check: phase(vm1, PhaseFreed, "b", 2)},
		{name: "a new boot does not start what its user stopped", before: with(three(), ObserveVM{VM: vm1, Epoch: 1, Host: "a", Boot: "a1", Desired: DesiredStopped}), do: register("a", "a2", "sa", 2), check: func(s *State) string {
			return want(s.VMs[vm1].Phase == PhaseOwned && s.VMs[vm1].OwnerBoot == "a2", "%+v", s.VMs[vm1])
		}},
		{name: "a new boot is the proof that an incident waits for", before: with(three(), opened("i1", "a", "a1"), note("i1", haven.StepConfirmed), beginFence("i1", 1)), do: register("a", "a2", "sa", 2), check: func(s *State) string {
			in := s.Incidents["i1"]
			return want(in.Step == haven.StepProved && in.Proof.Kind == haven.ProofReboot && len(in.VMs) == 1 && s.VMs[vm1].Incident == "i1", "%+v", in)
		}},
		{name: "P7: a host that came back can be in trouble again", before: with(dead(), register("a", "a2", "sa", 2)), do: opened("i2", "a", "a2"), check: func(s *State) string {
			return want(s.Hosts["a"].Incident == "i2" && s.Incidents["i1"].Open(), "%q", s.Hosts["a"].Incident)
		}},
		// ReleaseHost, LearnPower, SetArmed.
		{name: "release without a name", before: three(), do: ReleaseHost{Host: "a"}, reject: "no operator"},
		{name: "release of a stranger", before: three(), do: ReleaseHost{Host: "x", By: "op"}, reject: "not registered"},
		{name: "release", before: with(three(), Found{Cluster: "c", Generation: 2}), do: ReleaseHost{Host: "b", By: "op"}, check: func(s *State) string {
			return want(len(s.AwaitedHosts()) == 2, "awaited %v", s.AwaitedHosts())
		}},
		{name: "P2: distrust is cleared by name only", before: with(three(), LearnPower{Host: "a", Distrust: "said off"}), do: LearnPower{Host: "a", GUID: "g"}, reject: "no operator"},
		{name: "distrust is cleared", before: with(three(), LearnPower{Host: "a", Distrust: "said off"}), do: LearnPower{Host: "a", By: "op", Clears: 1}, check: func(s *State) string {
			return want(s.Hosts["a"].Power.Distrust == "", "%q", s.Hosts["a"].Power.Distrust)
		}},
		{name: "disarm without a name", before: three(), do: SetArmed{}, reject: "no operator"},
		{name: "the first disarm stands", before: with(three(), SetArmed{By: "op"}), do: SetArmed{By: "other"}, check: func(s *State) string { return want(s.Disarm.By == "op", "%+v", s.Disarm) }},
		// ProtectVM.
		{name: "protect in an old boot", before: with(three(), register("b", "b2", "sb", 2)), do: protect(vm2, "b", "b1"), reject: "registered with boot b2"},
		{name: "protect without a definition", before: three(), do: ProtectVM{VM: vm2, Host: "b", Boot: "b1"}, reject: "definition"},
		{name: "protect what another owns", before: three(), do: protect(vm1, "b", "b1"), reject: "is not owned by host b"},
		{name: "P1: the definition of an order does not change", before: ordered(), do: ProtectVM{VM: vm1, Host: "b", Boot: "b1", Definition: def("y")}, reject: "is not owned by host b"},
		{name: "P1: an epoch is never used twice", before: with(ordered(), report(vm1, 2, "b", "b1", haven.OrderStarted), ForgetVM{VM: vm1, Epoch: 2}), do: protect(vm1, "b", "b1"), check: func(s *State) string {
			return want(s.VMs[vm1].Epoch > 2, "epoch %d", s.VMs[vm1].Epoch)
		}},
		// ForgetVM, ObserveVM, FreeVM, HoldVM.
		{name: "forget a VM that waits", before: dead(), do: ForgetVM{VM: vm1, Epoch: 1}, reject: "freed"},
		{name: "forget at another epoch", before: three(), do: ForgetVM{VM: vm1, Epoch: 2}, reject: "epoch"},
		{name: "observe nonsense", before: three(), do: ObserveVM{VM: vm1, Epoch: 1, Host: "a", Boot: "a1"}, reject: "desired"},
		{name: "observe by another host", before: three(), do: ObserveVM{VM: vm1, Epoch: 1, Host: "b", Boot: "b1", Desired: DesiredStopped}, reject: "owned at a"},
		{name: "every start has a new epoch", before: with(three(), ObserveVM{VM: vm1, Epoch: 1, Host: "a", Boot: "a1", Desired: DesiredStopped}), do: ObserveVM{VM: vm1, Epoch: 1, Host: "a", Boot: "a1", Desired: DesiredRunning}, check: phase(vm1, PhaseOwned, "a", 2)},
		{name: "free by the owner", before: three(), do: FreeVM{VM: vm1, Epoch: 1, Host: "a", Boot: "a1", At: stamp}, check: phase(vm1, PhaseFreed, "a", 1)},
		{name: "P1: free by another host", before: three(), do: FreeVM{VM: vm1, Epoch: 1, Host: "b", Boot: "b1"}, reject: "owned at a"},
		{name: "P1: free at an old epoch", before: with(ordered(), report(vm1, 2, "b", "b1", haven.OrderStarted)), do: FreeVM{VM: vm1, Epoch: 1, Host: "b", Boot: "b1"}, reject: "epoch 2"},
		{name: "P1: free what is only ordered", before: ordered(), do: FreeVM{VM: vm1, Epoch: 2, Host: "b", Boot: "b1"}, reject: "ordered"},
		{name: "hold at another epoch", before: three(), do: HoldVM{VM: vm1, Epoch: 4}, reject: "epoch 4"},
		// MoveVM.
		{name: "move needs every word", before: three(), do: MoveVM{VM: vm1, Epoch: 1, Host: "b", Boot: "b1", Absent: []Absence{not("a", "a1")}}, reject: "host c has not said"},
		{name: "move needs the owner's word", before: three(), do: MoveVM{VM: vm1, Epoch: 1, Host: "b", Boot: "b1", Absent: []Absence{not("c", "c1")}}, reject: "host a has not said"},
		{name: "move", before: three(), do: MoveVM{VM: vm1, Epoch: 1, Host: "b", Boot: "b1", Absent: []Absence{not("a", "a1"), not("c", "c1")}}, check: phase(vm1, PhaseOwned, "b", 2)},
		{name: "P1: a move loses against an order", before: ordered(), do: MoveVM{VM: vm1, Epoch: 1, Host: "c", Boot: "c1", Absent: absent}, reject: "ordered"},
		{name: "P1: also at the order's epoch", before: ordered(), do: MoveVM{VM: vm1, Epoch: 2, Host: "c", Boot: "c1", Absent: absent}, reject: "ordered"},
		{name: "P1: a move to a boot that is proved dead", before: dead(), do: MoveVM{VM: vm1, Epoch: 1, Host: "a", Boot: "a1", Absent: absent}, reject: "is proved dead"},
		{name: "move of a free VM that runs already", before: dead(), do: MoveVM{VM: vm1, Epoch: 1, Host: "c", Boot: "c1", Absent: []Absence{not("b", "b1")}}, check: phase(vm1, PhaseOwned, "c", 2)},
		// Maintenance and responses.
		{name: "maintenance of a stranger", before: three(), do: SetMaintenance{Host: "x", On: true, By: "op"}, reject: "not registered"},
		{name: "maintenance without a name", before: three(), do: SetMaintenance{Host: "a", On: true}, reject: "no operator"},
		{name: "maintenance outlasts a boot", before: with(three(), SetMaintenance{Host: "a", On: true, By: "op"}), do: register("a", "a2", "sa", 2), check: func(s *State) string {
			return want(s.Hosts["a"].Maintenance != nil, "%+v", s.Hosts["a"])
		}},
		{name: "powered off in maintenance", before: kept(), do: order(vm1, 2, "b", "b1", absent...), reject: "powered off in maintenance"},
		{name: "powered off in maintenance, and let go", before: with(kept(), SetMaintenance{Host: "a", LetGo: true, By: "op"}), do: order(vm1, 2, "b", "b1", absent...), check: phase(vm1, PhaseOrdered, "b", 2)},
		{name: "powered off in maintenance, which is over", before: with(kept(), SetMaintenance{Host: "a", By: "op"}), do: order(vm1, 2, "b", "b1", absent...), check: phase(vm1, PhaseOrdered, "b", 2)},
		{name: "powered off in maintenance, and booted", before: with(kept(), register("a", "a2", "sa", 2)), do: order(vm1, 2, "b", "b1", append(absent, not("a", "a2"))...), check: phase(vm1, PhaseOrdered, "b", 2)},
		{name: "in maintenance after its proof", before: with(dead(), SetMaintenance{Host: "a", On: true, By: "op"}), do: order(vm1, 2, "b", "b1", absent...), check: phase(vm1, PhaseOrdered, "b", 2)},
		{name: "P1: free by a beat of an old boot", before: three(), do: FreeVM{VM: vm1, Epoch: 1, Host: "a", Boot: "a0", By: FreedByBeat}, reject: "registered with boot a1"},
		{name: "free by a beat is no failure of the VM", before: with(three(), opened("i1", "a", "a1")), do: FreeVM{VM: vm1, Epoch: 1, Host: "a", Boot: "a1", By: FreedByBeat}, check: func(s *State) string {
			vm := s.VMs[vm1]
			return want(vm.Phase == PhaseFreed && len(vm.Attempts) == 0 && vm.Incident == "i1" && vm.Freed.By == FreedByBeat, "%+v", vm)
		}},
		{name: "P2: a proof is no word of the owner", before: three(), do: FreeVM{VM: vm1, Epoch: 1, Host: "a", Boot: "a1", By: FreedByProof}, reject: "is not freed by"},
		// CommitOrder.
		{name: "order", before: dead(), do: order(vm1, 2, "b", "b1", absent...), check: phase(vm1, PhaseOrdered, "b", 2)},
		{name: "P1: order of a VM that has an owner", before: three(), do: order(vm1, 2, "b", "b1", not("a", "a1"), not("b", "b1"), not("c", "c1")), reject: "is not free"},
		{name: "P1: order without the target's word", before: dead(), do: order(vm1, 2, "b", "b1", not("c", "c1")), reject: "host b has not said"},
		{name: "P1: order without a neighbour's word", before: dead(), do: order(vm1, 2, "b", "b1", not("b", "b1")), reject: "host c has not said"},
		{name: "P1: a word from an old boot", before: with(dead(), register("c", "c2", "sc", 2)), do: order(vm1, 2, "b", "b1", absent...), reject: "host c has not said"},
		{name: "P1: a word from the dead is not asked for, one from its next boot is", before: with(dead(), register("a", "a2", "sa", 2)), do: order(vm1, 2, "b", "b1", absent...), reject: "host a has not said"},
		{name: "P1: order at the same epoch", before: dead(), do: order(vm1, 1, "b", "b1", absent...), reject: "has epoch 1"},
		{name: "P1: order that skips an epoch", before: dead(), do: order(vm1, 3, "b", "b1", absent...), reject: "has epoch 3"},
		{name: "P1: order to an old boot", before: with(dead(), register("b", "b2", "sb", 2)), do: order(vm1, 2, "b", "b1", absent...), reject: "registered with boot b2"},
		{name: "P1: order to the dead", before: dead(), do: order(vm1, 2, "a", "a1", absent...), reject: "is proved dead"},
		{name: "P1: a second order while one is out", before: ordered(), do: order(vm1, 3, "c", "c1", absent...), reject: "is not free"},
		{name: "P3: order of another term", before: dead(), do: inTerm(order(vm1, 2, "b", "b1", absent...), 6), reject: "term 1.6"},
		{name: "P6: order while disarmed", before: with(three(), SetArmed{By: "op"}, opened("i1", "a", "a1"), note("i1", haven.StepConfirmed), proved("i1", "a", "a1")), do: order(vm1, 2, "b", "b1", absent...), reject: "disarmed by op"},
		{name: "P6: order of what was under way when disarmed", before: with(dead(), SetArmed{By: "op"}), do: order(vm1, 2, "b", "b1", absent...), check: phase(vm1, PhaseOrdered, "b", 2)},
		{name: "P6: order while disarmed at once", before: with(dead(), SetArmed{By: "op", Now: true}), do: order(vm1, 2, "b", "b1", absent...), reject: "disarmed by op"},
		{name: "P6: order while disarmed at once, after all", before: with(dead(), SetArmed{By: "op"}, SetArmed{By: "op", Now: true}), do: order(vm1, 2, "b", "b1", absent...), reject: "disarmed by op"},
		{name: "order to a host in maintenance", before: with(dead(), SetMaintenance{Host: "b", On: true, By: "op"}), do: order(vm1, 2, "b", "b1", absent...), reject: "in maintenance by op"},
		{name: "order to a host that was in maintenance", before: with(dead(), SetMaintenance{Host: "b", On: true, By: "op"}, SetMaintenance{Host: "b", By: "op"}), do: order(vm1, 2, "b", "b1", absent...), check: phase(vm1, PhaseOrdered, "b", 2)},
		{name: "P6: order while a restore waits for a host", before: with(dead(), Found{Cluster: "c", Generation: 2}), do: order(vm1, 2, "b", "b1", absent...), reject: "has not reported in generation 2"},
		{name: "order to a host in trouble", before: with(dead(), opened("i2", "b", "b1"), note("i2", haven.StepConfirmed)), do: order(vm1, 2, "b", "b1", absent...), reject: "is in incident i2"},
		{name: "order to an agent that lost its directory", before: with(dead(), RegisterHost{Host: "b", Boot: "b1", State: "new"}), do: order(vm1, 2, "b", "b1", absent...), reject: "has agent state new"},
		{name: "order with another definition", before: dead(), do: otherDefinition(order(vm1, 2, "b", "b1", absent...)), reject: "another definition"},
		{name: "P1: an order that differs from the one of its name", before: ordered(), do: order(vm1, 2, "c", "c1", absent...), reject: "exists and differs"},
		// ReportOrder.
		{name: "started", before: ordered(), do: report(vm1, 2, "b", "b1", haven.OrderStarted), check: phase(vm1, PhaseOwned, "b", 2)},
		{name: "refused", before: ordered(), do: report(vm1, 2, "b", "b1", haven.OrderRefused), check: phase(vm1, PhaseFreed, "b", 2)},
		{name: "failed", before: ordered(), do: report(vm1, 2, "b", "b1", haven.OrderFailed), check: phase(vm1, PhaseFreed, "b", 2)},
		{name: "unknown frees nothing", before: ordered(), do: report(vm1, 2, "b", "b1", haven.OrderUnknown), check: phase(vm1, PhaseOrdered, "b", 2)},
		{name: "a status that is no status", before: ordered(), do: report(vm1, 2, "b", "b1", "perhaps"), reject: "perhaps"},
		{name: "P1: refused on behalf of a lost directory", before: with(ordered(), RegisterHost{Host: "b", Boot: "b1", State: "new"}), do: inState(report(vm1, 2, "b", "b1", haven.OrderRefused), "new"), reject: "never had order"},
		{name: "P1: failed on behalf of a lost directory", before: with(ordered(), RegisterHost{Host: "b", Boot: "b1", State: "new"}), do: inState(report(vm1, 2, "b", "b1", haven.OrderFailed), "new"), reject: "never had order"},
		{name: "P1: refused by another host", before: ordered(), do: report(vm1, 2, "c", "c1", haven.OrderRefused), reject: "is for b"},
		{name: "P1: refused in another boot", before: ordered(), do: report(vm1, 2, "b", "b0", haven.OrderRefused), reject: "is for b"},
		{name: "P1: a late refusal of the order before", before: with(ordered(), report(vm1, 2, "b", "b1", haven.OrderFailed), order(vm1, 3, "c", "c1", absent...)), do: report(vm1, 2, "b", "b1", haven.OrderRefused), reject: "is not the one that is out"},
		{name: "P1: started after the proof", before: with(ordered(), opened("i2", "b", "b1"), proved("i2", "b", "b1")), do: report(vm1, 2, "b", "b1", haven.OrderStarted), reject: "freed"},
		{name: "P1: failed after it started", before: with(ordered(), report(vm1, 2, "b", "b1", haven.OrderStarted)), do: report(vm1, 2, "b", "b1", haven.OrderFailed), reject: "owned"},
		// Incidents.
		{name: "open for a stranger", before: three(), do: opened("i1", "x", "x1"), reject: "not registered"},
		{name: "open for an old boot", before: three(), do: opened("i1", "a", "a0"), reject: "registered with boot a1"},
		{name: "open a second one", before: with(three(), opened("i1", "a", "a1")), do: opened("i2", "a", "a1"), reject: "has incident i1 open"},
		{name: "open about the dead", before: with(dead(), CloseIncident{ID: "i1", Entry: line("closed")}), do: opened("i2", "a", "a1"), reject: "is proved dead already"},
		{name: "P7: a name that another incident has", before: with(three(), opened("i1", "a", "a1")), do: opened("i1", "b", "b1"), reject: "is another incident"},
		{name: "P7: the name of a closed incident", before: with(three(), opened("i1", "a", "a1"), CloseIncident{ID: "i1", Entry: line("closed")}), do: later(opened("i1", "a", "a1")), reject: "is another incident"},
		{name: "note on what is not open", before: three(), do: note("i1", ""), reject: "is not open"},
		{name: "P2: no step past the proof without one", before: with(three(), opened("i1", "a", "a1"), note("i1", haven.StepConfirmed)), do: note("i1", haven.StepPlacing), reject: "cannot go"},
		{name: "P2: nor to the proof", before: with(three(), opened("i1", "a", "a1"), note("i1", haven.StepConfirmed)), do: note("i1", haven.StepProved), reject: "cannot go"},
		{name: "no step backward", before: dead(), do: note("i1", haven.StepConfirmed), reject: "cannot go"},
		{name: "no step to nowhere", before: dead(), do: note("i1", "limbo"), reject: "cannot go"},
		{name: "P7: no fence without its own command", before: with(three(), opened("i1", "a", "a1")), do: note("i1", haven.StepFencing), reject: "its own command"},
		{name: "closed by its own command", before: dead(), do: note("i1", haven.StepClosed), reject: "cannot go"},
		{name: "back to suspected", before: with(three(), opened("i1", "a", "a1"), note("i1", haven.StepConfirmed)), do: note("i1", haven.StepSuspected)},
		{name: "hold", before: with(three(), opened("i1", "a", "a1")), do: NoteIncident{ID: "i1", Hold: hold}, check: func(s *State) string { return want(s.Incidents["i1"].Hold == *hold, "no hold") }},
		// Fences.
		{name: "fence of a suspect", before: with(three(), opened("i1", "a", "a1")), do: beginFence("i1", 1), reject: "is suspected"},
		{name: "fence", before: with(three(), opened("i1", "a", "a1"), note("i1", haven.StepConfirmed)), do: beginFence("i1", 1), check: func(s *State) string {
			_, pending := s.Incidents["i1"].Pending()
			return want(pending && len(s.Fences) == 1 && s.Incidents["i1"].Step == haven.StepFencing, "%+v", s.Incidents["i1"])
		}},
		{name: "fence while one is at work", before: fencing1(), do: beginFence("i1", 2), reject: "is not over"},
		{name: "fence that skips one", before: with(fencing1(), EndFence{ID: "i1", N: 1, At: stamp}), do: beginFence("i1", 3), reject: "does not follow"},
		{name: "P6: fence while disarmed", before: with(three(), opened("i1", "a", "a1"), note("i1", haven.StepConfirmed), SetArmed{By: "op"}), do: beginFence("i1", 1), reject: "disarmed"},
		{name: "P6: another fence of what was under way when disarmed", before: with(fencing1(), SetArmed{By: "op"}, EndFence{ID: "i1", N: 1, At: stamp}), do: beginFence("i1", 2), reject: "disarmed"},
		{name: "P6: fence in maintenance", before: with(three(), opened("i1", "a", "a1"), note("i1", haven.StepConfirmed), SetMaintenance{Host: "a", On: true, By: "op"}), do: beginFence("i1", 1), reject: "in maintenance by op"},
		{name: "P3: fence of another term", before: with(three(), opened("i1", "a", "a1"), note("i1", haven.StepConfirmed)), do: fenceInTerm(beginFence("i1", 1), 6), reject: "term 1.6"},
		{name: "fence of what came back", before: with(three(), opened("i1", "a", "a1"), note("i1", haven.StepConfirmed), register("a", "a2", "sa", 2)), do: beginFence("i1", 1), reject: "is proved"},
		{name: "end of a fence that never was", before: with(three(), opened("i1", "a", "a1")), do: EndFence{ID: "i1", N: 1, At: stamp}, reject: "no attempt 1"},
		{name: "end of a fence without a time", before: fencing1(), do: EndFence{ID: "i1", N: 1}, reject: "no time"},
		{name: "end of a fence after the proof", before: with(fencing1(), proved("i1", "a", "a1")), do: EndFence{ID: "i1", N: 1, At: stamp}, check: func(s *State) string {
			return want(s.Incidents["i1"].Step == haven.StepProved, "%s", s.Incidents["i1"].Step)
		}},
		{name: "close while a fence is at work", before: fencing1(), do: CloseIncident{ID: "i1"}, reject: "is not over"},
		// ProveDead, CloseIncident.
		{name: "P2: proof of another boot", before: with(three(), opened("i1", "a", "a1")), do: proved("i1", "a", "a0"), reject: "proof is about boot a0"},
		{name: "P2: proof of another host", before: with(three(), opened("i1", "a", "a1")), do: proved("i1", "b", "b1"), reject: "proof is about boot b1"},
		{name: "P2: a proof ends with a new boot", before: with(three(), opened("i1", "a", "a1"), register("a", "a2", "sa", 2)), do: proved("i1", "a", "a1"), reject: "proof is about boot a1"},
		{name: "P2: proof without author", before: with(three(), opened("i1", "a", "a1")), do: ProveDead{ID: "i1", Proof: haven.Proof{Kind: haven.ProofOperator, Host: "a", Boot: "a1"}}, reject: "without kind or author"},
		{name: "proof", before: with(three(), opened("i1", "a", "a1")), do: proved("i1", "a", "a1"), check: phase(vm1, PhaseFreed, "a", 1)},
		{name: "proof frees orders too", before: with(ordered(), opened("i2", "b", "b1")), do: proved("i2", "b", "b1"), check: func(s *State) string {
			return want(s.VMs[vm1].Phase == PhaseFreed && s.VMs[vm1].Incident == "i2", "%+v", s.VMs[vm1])
		}},
		{name: "a second proof in one incident", before: with(dead(), Found{Cluster: "c", Generation: 2}), do: proved("i1", "a", "a1"), reject: "has its proof"},
		{name: "close", before: dead(), do: CloseIncident{ID: "i1", Outcome: "done", Entry: line("closed")}, check: func(s *State) string {
			return want(!s.Incidents["i1"].Open() && s.Hosts["a"].Incident == "", "%+v", s.Incidents["i1"])
		}},
		{name: "close of an old incident leaves the new one", before: with(dead(), register("a", "a2", "sa", 2), opened("i2", "a", "a2")), do: CloseIncident{ID: "i1", Entry: line("closed")}, check: func(s *State) string {
			return want(s.Hosts["a"].Incident == "i2", "%q", s.Hosts["a"].Incident)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := build(t, tt.before...)
			before := text(t, s)
			err := s.Apply(logged(t, tt.do), pos)
			if tt.reject != "" {
				if !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), tt.reject) {
					t.Errorf("error is %v, want a rejection: … %s …", err, tt.reject)
				}
				if after := text(t, s); after != before {
					t.Errorf("a rejected command changed the state:\n%s\n→\n%s", before, after)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tt.check != nil {
				if complaint := tt.check(s); complaint != "" {
					t.Error(complaint)
				}
			}
			once := text(t, s)
			if err := s.Apply(logged(t, tt.do), pos); err != nil {
				t.Errorf("repeated: %v", err)
			}
			if twice := text(t, s); twice != once {
				t.Errorf("the repetition changed the state:\n%s\n→\n%s", once, twice)
			}
		})
	}
}

func fencing1() []Command {
	return with(three(), opened("i1", "a", "a1"), note("i1", haven.StepConfirmed), beginFence("i1", 1))
}

func want(ok bool, format string, args ...any) string {
	if ok {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

func phase(vm haven.VMID, p Phase, owner haven.HostID, epoch haven.Epoch) func(*State) string {
	return func(s *State) string {
		v := s.VMs[vm]
		return want(v.Phase == p && v.Owner == owner && v.Epoch == epoch, "VM is %s at %s, epoch %d", v.Phase, v.Owner, v.Epoch)
	}
}

func inTerm(c CommitOrder, term uint64) CommitOrder {
	c.Order.Term.Term = term
	return c
}

func otherDefinition(c CommitOrder) CommitOrder {
	c.Order.DefinitionSHA = def("y").SHA
	return c
}

func inState(c ReportOrder, state haven.StateID) ReportOrder {
	c.Report.State = state
	return c
}

func fenceInTerm(c BeginFence, term uint64) BeginFence {
	c.Attempt.Term.Term = term
	return c
}

func later(c OpenIncident) OpenIncident {
	c.Entry.At = stamp.Add(time.Hour)
	return c
}

// Everything that grows with time stays bounded, and what matters stays in.
func TestBounds(t *testing.T) {
	t.Run("time line", func(t *testing.T) {
		s := build(t, with(three(), opened("i1", "a", "a1"))...)
		for i := range 1000 {
			mustApply(t, s, NoteIncident{ID: "i1", Entry: line(fmt.Sprint("line ", i))})
		}
		tl := s.Incidents["i1"].Timeline
		if len(tl) != MaxTimeline || tl[0].What != "opened" || tl[1].What != "line 0" || tl[len(tl)-1].What != "line 999" {
			t.Errorf("%d lines from %q to %q", len(tl), tl[0].What, tl[len(tl)-1].What)
		}
	})
	t.Run("evidence", func(t *testing.T) {
		e := line("much")
		e.Evidence = make([]haven.Evidence, 1000)
		p := proved("i1", "a", "a1")
		p.Proof.Evidence = e.Evidence
		s := build(t, with(three(), opened("i1", "a", "a1"), NoteIncident{ID: "i1", Entry: e}, p)...)
		in := s.Incidents["i1"]
		if len(in.Timeline[1].Evidence) != MaxEvidence || len(in.Proof.Evidence) != MaxEvidence {
			t.Errorf("%d and %d", len(in.Timeline[1].Evidence), len(in.Proof.Evidence))
		}
	})
	t.Run("fence attempts", func(t *testing.T) {
		// A BMC may be gone for days; the attempts must go on all the same (P7).
		s := build(t, with(three(), opened("i1", "a", "a1"), note("i1", haven.StepConfirmed))...)
		for n := range 2000 {
			mustApply(t, s, beginFence("i1", n+1))
			mustApply(t, s, EndFence{ID: "i1", N: n + 1, At: stamp})
		}
		if in := s.Incidents["i1"]; len(in.Attempts) != MaxFenceAttempts || in.Attempts[len(in.Attempts)-1].N != 2000 {
			t.Errorf("%d attempts, the last is %d", len(in.Attempts), in.Attempts[len(in.Attempts)-1].N)
		}
		if err := s.Apply(EndFence{ID: "i1", N: 5, At: stamp}, pos); err != nil {
			t.Errorf("late end of an attempt that was dropped: %v", err)
		}
	})
	t.Run("P6: the cap sees every host that was powered down", func(t *testing.T) {
		s := build(t, with(three(), opened("i1", "b", "b1"), note("i1", haven.StepConfirmed), beginFence("i1", 1), EndFence{ID: "i1", N: 1, At: stamp},
			opened("i2", "a", "a1"), note("i2", haven.StepConfirmed))...)
		for n := range 2 * MaxFences {
			mustApply(t, s, beginFence("i2", n+1))
			mustApply(t, s, EndFence{ID: "i2", N: n + 1, At: stamp})
		}
		hosts := map[haven.HostID]bool{}
		for _, f := range s.Fences {
			hosts[f.Host] = true
		}
		if !hosts["a"] || !hosts["b"] || len(s.Fences) > MaxFences {
			t.Errorf("%d fences, of %v", len(s.Fences), hosts)
		}
	})
	t.Run("fences and closed incidents", func(t *testing.T) {
		s := build(t, three()...)
		for i := range 2 * MaxFences {
			id := haven.IncidentID(fmt.Sprintf("i%04d", i))
			mustApply(t, s, opened(id, "a", "a1"))
			mustApply(t, s, note(id, haven.StepConfirmed))
			mustApply(t, s, beginFence(id, 1))
			mustApply(t, s, EndFence{ID: id, N: 1, At: stamp})
			closed := CloseIncident{ID: id, Entry: line("closed")}
			closed.Entry.At = stamp.Add(time.Duration(i) * time.Minute)
			mustApply(t, s, closed)
		}
		if len(s.Fences) != MaxFences || len(s.Incidents) != MaxClosedIncidents || s.Incidents["i1023"] == nil {
			t.Errorf("%d fences, %d incidents", len(s.Fences), len(s.Incidents))
		}
	})
	t.Run("past boots", func(t *testing.T) {
		s := build(t, three()...)
		for i := range 100 {
			mustApply(t, s, register("a", haven.BootID(fmt.Sprint("n", i)), "sa", haven.Incarnation(i+2)))
		}
		if h := s.Hosts["a"]; len(h.PastBoots) != MaxPastBoots {
			t.Errorf("%d past boots", len(h.PastBoots))
		}
	})
	t.Run("past states", func(t *testing.T) {
		s := build(t, three()...)
		for i := range 100 {
			mustApply(t, s, register("a", "a1", haven.StateID(fmt.Sprint("s", i)), 1))
		}
		if h := s.Hosts["a"]; len(h.PastStates) != MaxPastBoots {
			t.Errorf("%d past states", len(h.PastStates))
		}
	})
	t.Run("attempts of a VM", func(t *testing.T) {
		s := build(t, dead()...)
		for i := range 100 {
			epoch := haven.Epoch(i + 2)
			mustApply(t, s, order(vm1, epoch, "b", "b1", not("b", "b1"), not("c", "c1")))
			mustApply(t, s, report(vm1, epoch, "b", "b1", haven.OrderFailed))
		}
		if vm := s.VMs[vm1]; len(vm.Attempts) != MaxAttempts || vm.Attempts[MaxAttempts-1].Epoch != 101 {
			t.Errorf("%d attempts", len(vm.Attempts))
		}
	})
	t.Run("hosts", func(t *testing.T) {
		s := build(t, three()...)
		for i := len(s.Hosts); i < MaxHosts; i++ {
			mustApply(t, s, register(haven.HostID(fmt.Sprint("h", i)), "b", "s", 1))
		}
		if err := s.Apply(register("more", "b", "s", 1), pos); !errors.Is(err, ErrRejected) || len(s.Hosts) != MaxHosts {
			t.Errorf("%v with %d hosts", err, len(s.Hosts))
		}
	})
	t.Run("VMs", func(t *testing.T) {
		s := build(t, three()...)
		p := protect(vm2, "b", "b1")
		for i := len(s.VMs); i < MaxVMs; i++ {
			p.VM = haven.VMID(fmt.Sprint("v", i))
			mustApply(t, s, p)
		}
		p.VM = "more"
		if err := s.Apply(p, pos); !errors.Is(err, ErrRejected) || len(s.VMs) != MaxVMs {
			t.Errorf("%v with %d VMs", err, len(s.VMs))
		}
		big := protect(vm1, "a", "a1")
		big.Definition.GZ = make([]byte, MaxDefinitionBytes+1)
		if err := s.Apply(big, pos); !errors.Is(err, ErrRejected) {
			t.Errorf("a definition of %d bytes: %v", len(big.Definition.GZ), err)
		}
	})
}

func mustApply(t *testing.T, s *State, c Command) {
	t.Helper()
	if err := s.Apply(c, pos); err != nil {
		t.Fatal(err)
	}
}

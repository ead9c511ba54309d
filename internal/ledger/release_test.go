package ledger

import (
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

func manually(c ProveDead) ProveDead {
	c.Manual = true
	return c
}

// fencedHost is a cluster whose host a, with vm1, was fenced and is to be released
// by an operator; it is back.
func fencedHost() []Command {
	return append(three(), opened("i1", "a", "a1"), note("i1", haven.StepConfirmed), manually(proved("i1", "a", "a1")), register("a", "a2", "sa", 2))
}

// A host that was fenced is given no VM before it registered anew, before it said
// that it does not have the VM and, where that is configured, before a named
// operator released it.
func TestFencedHostTakesNoOrder(t *testing.T) {
	all := []Absence{not("a", "a2"), not("b", "b1"), not("c", "c1")}
	release := ReleaseFenced{Host: "a", Incident: "i1", By: "maria", Reason: "looked at", At: stamp}
	other := release
	other.Incident = "i0"
	nameless := release
	nameless.By = ""
	rebooted := []Command{opened("i1", "a", "a1"), note("i1", haven.StepConfirmed), BeginFence{ID: "i1", Manual: true, Attempt: beginFence("i1", 1).Attempt}, register("a", "a2", "sa", 2)}
	tests := []struct {
		name   string
		before []Command
		do     Command
		reject string
	}{
		{name: "auto: still dead", before: dead(), do: order(vm1, 2, "a", "a1", not("b", "b1"), not("c", "c1")), reject: "proved dead"},
		{name: "auto: in a boot that did not register", before: dead(), do: order(vm1, 2, "a", "a2", not("b", "b1"), not("c", "c1")), reject: "registered with boot a1"},
		{name: "auto: without its own word", before: with(dead(), register("a", "a2", "sa", 2)), do: order(vm1, 2, "a", "a2", not("b", "b1"), not("c", "c1")), reject: "has not said"},
		{name: "auto: with the word of its old boot", before: with(dead(), register("a", "a2", "sa", 2)), do: order(vm1, 2, "a", "a2", not("a", "a1"), not("b", "b1"), not("c", "c1")), reject: "has not said"},
		{name: "auto: registered and with its word", before: with(dead(), register("a", "a2", "sa", 2)), do: order(vm1, 2, "a", "a2", all...)},
		{name: "manual: registered and with its word", before: fencedHost(), do: order(vm1, 2, "a", "a2", all...), reject: "no operator has released it"},
		{name: "manual: released", before: with(fencedHost(), release), do: order(vm1, 2, "a", "a2", all...)},
		{name: "manual: it booted while it was fenced", before: with(three(), rebooted...), do: order(vm1, 2, "a", "a2", all...), reject: "no operator has released it"},
		{name: "manual: another host", before: fencedHost(), do: order(vm1, 2, "b", "b1", all...)},
		{name: "manual: one more boot is no release", before: with(fencedHost(), register("a", "a3", "sa", 3)), do: order(vm1, 2, "a", "a3", not("a", "a3"), not("b", "b1"), not("c", "c1")), reject: "no operator has released it"},
		{name: "a release from another incident", before: fencedHost(), do: other, reject: "does not wait"},
		{name: "a release by nobody", before: fencedHost(), do: nameless, reject: "without a name"},
		{name: "a release of what was not fenced", before: three(), do: release, reject: "does not wait"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			s := build(t, tc.before...)
			err := s.Apply(logged(t, tc.do), pos)
			if tc.reject == "" && err != nil || tc.reject != "" && (err == nil || !strings.Contains(err.Error(), tc.reject)) {
				t.Errorf("err = %v, want %q", err, tc.reject)
			}
		})
	}
}

// What operators do is on record: who, what, when and why.
func TestActsAreRecorded(t *testing.T) {
	at := func(c ProveDead) ProveDead {
		c.Proof.Kind, c.Proof.By, c.Proof.Detail, c.Proof.At = haven.ProofOperator, "maria", "I pulled both plugs", stamp.Add(time.Second)
		c.Force = true
		return manually(c)
	}
	doubt := DeviceDoubt{Device: "bmc", GUID: "g2", Why: "it is not its own"}
	s := build(t, append(three(),
		DoubtDevices{Host: "a", Doubts: []DeviceDoubt{doubt}},
		opened("i1", "a", "a1"), note("i1", haven.StepConfirmed), at(proved("i1", "a", "a1")),
		LearnPower{Host: "a", By: "olaf", Reason: "board was replaced", At: stamp.Add(2 * time.Second), Clears: 1},
		ReleaseFenced{Host: "a", Incident: "i1", By: "maria", Reason: "looked at", At: stamp.Add(3 * time.Second)},
		ReleaseFenced{Host: "a", Incident: "i1", By: "maria", Reason: "looked at", At: stamp.Add(3 * time.Second)},
	)...)
	var got []string
	for _, a := range s.Acts {
		got = append(got, string(a.Action)+map[bool]string{true: " --force"}[a.Force]+" "+string(a.Host)+" by "+a.By+": "+a.Reason)
	}
	want := "confirm --force a by maria: I pulled both plugs; trust-bmc a by olaf: board was replaced; release a by maria: looked at"
	if strings.Join(got, "; ") != want {
		t.Errorf("acts: %s\nwant  %s", strings.Join(got, "; "), want)
	}
	if p := s.Hosts["a"].Power; p.Blocked() != "" || len(p.Accepted) != 1 || p.Accepted[0] != "g2" {
		t.Errorf("after the operator's word: %+v", p)
	}
	// What a master found before the operator's word does not come back after it.
	if err := s.Apply(DoubtDevices{Host: "a", Doubts: []DeviceDoubt{doubt}}, pos); err == nil || s.Hosts["a"].Power.Blocked() != "" {
		t.Errorf("an old finding was taken: %v", err)
	}
}

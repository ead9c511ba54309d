package ledger

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

// P6: what was under way when recovery was disarmed goes to its end, and is told
// as what is being finished until then.
func TestDisarmPending(t *testing.T) {
	s := build(t, with(dead(), SetArmed{By: "op", At: stamp})...)
	pending := func(want int, when string) {
		t.Helper()
		incidents, orders := s.DisarmPending()
		if len(incidents)+len(orders) != want {
			t.Errorf("%s: %v and %v are being finished, want %d", when, incidents, orders, want)
		}
	}
	pending(1, "with a proof")
	if s.Stopped("i1") || !s.Stopped("") || !s.Stopped("i2") {
		t.Errorf("what is stopped: %+v", s.Disarm)
	}
	apply := func(c Command) {
		t.Helper()
		if err := s.Apply(c, pos); err != nil {
			t.Fatal(err)
		}
	}
	apply(order(vm1, 2, "b", "b1", not("b", "b1"), not("c", "c1")))
	pending(2, "with an order out")
	apply(report(vm1, 2, "b", "b1", haven.OrderStarted))
	pending(1, "with the order carried out")
	apply(CloseIncident{ID: "i1", Entry: line("closed")})
	pending(0, "when all is done")
	if s.Disarm == nil {
		t.Error("it is armed again")
	}
}

// P9: a hold ends with a line that says how long it lasted, however it ends.
func TestHoldEndsAreWritten(t *testing.T) {
	hold := &haven.Hold{Reason: haven.HoldCap, Detail: "3 of 3", Since: stamp}
	held := with(three(), opened("i1", "a", "a1"), note("i1", haven.StepConfirmed), NoteIncident{ID: "i1", Hold: hold, Entry: line("held")})
	later := stamp.Add(90 * time.Second)
	at := Entry{At: later, Term: haven.Term{Generation: 1, Term: 7}, By: "a"}
	proof := proved("i1", "a", "a1")
	proof.Entry.At = later
	boot := register("a", "a2", "sa", 2)
	boot.At = later
	fence := beginFence("i1", 1)
	fence.Attempt.BegunAt = later
	other := &haven.Hold{Reason: haven.HoldObserver, Since: later}
	for name, c := range map[string]Command{
		"released": NoteIncident{ID: "i1", Hold: &haven.Hold{}, Entry: at},
		"another":  NoteIncident{ID: "i1", Hold: other, Entry: at},
		"fenced":   fence, "proved": proof, "booted": boot,
		"closed": CloseIncident{ID: "i1", Entry: at},
	} {
		t.Run(name, func(t *testing.T) {
			s := build(t, with(held, c)...)
			ends := slices.ContainsFunc(s.Incidents["i1"].Timeline, func(e Entry) bool {
				return e.What == "no longer held, power-down-cap: after 1m30s"
			})
			if !ends {
				t.Errorf("%+v", s.Incidents["i1"].Timeline)
			}
		})
	}
}

// The record of decisions is bounded in number and in size, and a command that
// is in the log twice counts once.
func TestDecisionsAreBounded(t *testing.T) {
	s := build(t, three()...)
	for i := range MaxDecisions + 50 {
		d := Decision{At: stamp.Add(time.Duration(i) * time.Second), By: "b", Host: "a", To: haven.VerdictSuspect, Why: strings.Repeat("w", 2*MaxDecisionWhy)}
		for range 2 * MaxDecisionEvidence {
			d.Evidence = append(d.Evidence, haven.Evidence{Kind: haven.EvidencePower, Subject: "a", Observer: "b"})
		}
		for range 2 {
			if err := s.Apply(RecordDecisions{[]Decision{d}}, pos); err != nil {
				t.Fatal(err)
			}
		}
	}
	last, ok := s.LastDecision("a")
	if len(s.Decisions) != MaxDecisions || !ok || !last.At.Equal(stamp.Add((MaxDecisions+49)*time.Second)) {
		t.Errorf("%d decisions, the last at %s", len(s.Decisions), last.At)
	}
	if len(last.Evidence) != MaxDecisionEvidence || len(last.Why) != MaxDecisionWhy {
		t.Errorf("%d pieces of evidence and %d octets", len(last.Evidence), len(last.Why))
	}
	if err := s.Apply(RecordDecisions{[]Decision{{Host: "a"}}}, pos); err == nil {
		t.Error("a decision without a verdict was taken")
	}
}

// A time line that is too long says how much of it is missing.
func TestTimelineSaysWhatIsMissing(t *testing.T) {
	s := build(t, with(three(), opened("i1", "a", "a1"))...)
	for i := range MaxTimeline + 20 {
		if err := s.Apply(NoteIncident{ID: "i1", Entry: line(fmt.Sprint("line ", i))}, pos); err != nil {
			t.Fatal(err)
		}
	}
	if in := s.Incidents["i1"]; len(in.Timeline) != MaxTimeline || in.Dropped != 21 {
		t.Errorf("%d lines, %d dropped", len(in.Timeline), in.Dropped)
	}
}

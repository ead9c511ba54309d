package detector

import (
	"time"

	"github.com/haven-ha/haven"
)

// Output is what one Step concludes. Nothing in it is reused by a later Step.
type Output struct {
	// Trusted says that the observer rule holds for this agent.
	Trusted bool
	// Holds are the brakes that hold for the whole cluster at this moment.
	Holds []Hold
	// Hosts are the judgements, in the order of Input.Hosts.
	Hosts []Judgement
	// Bad, Counted and Allowed are the numbers of the mass-failure brake: bad
	// hosts, of how many, and how many of these may be bad.
	Bad, Counted, Allowed int
}

// Hold says what holds judgement or action back, and what releases it.
type Hold struct {
	Reason string // one of the haven.Hold… words; empty if nothing holds
	Detail string
	Since  time.Duration
}

// Held says whether anything holds.
func (h Hold) Held() bool { return h.Reason != "" }

// Judgement is the conclusion about one host.
type Judgement struct {
	Host    haven.HostID
	Verdict haven.Verdict
	Since   time.Duration // when the verdict was reached
	Was     haven.Verdict // the verdict of the Step before; empty on the first
	Changed bool          // the verdict is not that of the Step before

	// Why is the verdict's reason in one line.
	Why string
	// Evidence led to it. It is left out while a host stays healthy; EvidenceOf
	// gives it at any time.
	Evidence []haven.Evidence
	// Missing is what an actionable verdict still lacks.
	Missing []string

	Suspected      bool
	SuspectedSince time.Duration // meaningful if Suspected
	Rounds         int           // rounds in a row that found every path dead
	RoundsNeeded   int

	// Hold holds this host's verdict, or the power command it asks for, back.
	Hold Hold
	// Left is why the agent left on purpose, as long as it is gone.
	Left haven.LeaveReason
	// PowerOff says that all conditions of a proof by the BMC hold. It is true
	// with VerdictDead, unless that rests on the ledger, and may be true with
	// VerdictShutdown.
	PowerOff bool
	// Distrust says that the BMC said off while this same boot lived on: its
	// word is to be distrusted until an operator clears it.
	Distrust bool
	// Flapping says that the host fell from health too often lately.
	Flapping bool

	// WantProbes are the questions neighbours should now be asked, and
	// WantNeighbours how many neighbours. WantPower asks for a BMC reading in
	// a new session. A want is given once and again when it is due again.
	WantProbes     []haven.EvidenceKind
	WantNeighbours int
	WantPower      bool

	mayFence bool
}

// MayFence says whether the verdict asks for a power command and no brake known
// to the detector holds it back: the host is failed, this agent is the master,
// and the host is a hypervisor that is not in maintenance. The cap, the disarm
// switch and the verification of leadership are the caller's.
func (j *Judgement) MayFence() bool { return j.mayFence }

// Proved says whether VMs of the host's boot may be given to others: no hold of
// the detector withdraws a proof.
func (j *Judgement) Proved() bool { return j.Verdict == haven.VerdictDead }

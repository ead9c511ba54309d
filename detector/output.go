package detector

import (
	"encoding/json"
	"time"

	"github.com/haven-ha/haven"
)

// Output is what one Step concludes. Nothing in it is reused by a later Step.
type Output struct {
	// Trusted says that the observer rule holds for this agent.
	Trusted bool `json:"trusted"`
	// Holds are the brakes that hold for the whole cluster at this moment.
	Holds []Hold `json:"holds,omitzero"`
	// Ended are the holds, of the cluster and of hosts, and the quarantines, that
	// the Step before knew and this one does not. Each is told once.
	Ended []EndedHold `json:"ended,omitzero"`
	// Hosts are the judgements, in the order of Input.Hosts.
	Hosts []Judgement `json:"hosts,omitzero"`
	// Bad, Counted and Allowed are the numbers of the mass-failure brake: bad
	// hosts, of how many, and how many of these may be bad.
	Bad     int `json:"bad"`
	Counted int `json:"counted"`
	Allowed int `json:"allowed"`
}

// Hold says what holds judgement or action back, its numbers, and what releases
// it. No hold ends by being forgotten: see Output.Ended.
type Hold struct {
	Reason string `json:"reason,omitzero"` // one of the haven.Hold… words; empty if nothing holds
	// Detail is all of it in one line for people: Is, May and Release.
	Detail  string `json:"detail,omitzero"`
	Is      string `json:"is,omitzero"`      // what is: "3 of 5 hypervisors are bad at once"
	May     string `json:"may,omitzero"`     // what may be: "at most 2 may be"; may be empty
	Release string `json:"release,omitzero"` // what ends it: "no more than that have been bad for 10s"

	Since time.Duration `json:"since,omitzero"`
	Age   time.Duration `json:"age,omitzero"` // how long it has held
	// Alarm says that people should look: it has held for Config.HoldAlarm. The
	// start-up grace may last its whole length, and a quarantine FlapCalm more. A
	// BMC that contradicts a live boot is an alarm at once; what an operator asked
	// for (action-none) never is.
	Alarm bool `json:"alarm,omitzero"`
}

// Held says whether anything holds.
func (h Hold) Held() bool { return h.Reason != "" }

// EndedHold is a hold that ended.
type EndedHold struct {
	Host haven.HostID  `json:"host,omitzero"` // whose it was; empty if the cluster's
	Hold Hold          `json:"hold"`          // as the last Step that knew it told it
	At   time.Duration `json:"at"`            // when it was found to have ended
	Why  string        `json:"why"`           // why it ended, for people
}

// Judgement is the conclusion about one host.
type Judgement struct {
	Host    haven.HostID  `json:"host,omitzero"`
	Verdict haven.Verdict `json:"verdict,omitzero"`
	Since   time.Duration `json:"since,omitzero"`   // when the verdict was reached
	Was     haven.Verdict `json:"was,omitzero"`     // the verdict of the Step before; empty on the first
	Changed bool          `json:"changed,omitzero"` // the verdict is not that of the Step before

	// Why is the verdict's reason in one line.
	Why string `json:"why,omitzero"`
	// Evidence led to it. It is left out while a host stays healthy; EvidenceOf
	// gives it at any time.
	Evidence []haven.Evidence `json:"evidence,omitzero"`
	// Missing is what an actionable verdict still lacks.
	Missing []string `json:"missing,omitzero"`

	Suspected      bool          `json:"suspected,omitzero"`
	SuspectedSince time.Duration `json:"suspected_since,omitzero"` // meaningful if Suspected
	Rounds         int           `json:"rounds,omitzero"`          // rounds in a row that found every path dead
	RoundsNeeded   int           `json:"rounds_needed,omitzero"`

	// Hold holds this host's verdict, or the power command it asks for, back.
	Hold Hold `json:"hold,omitzero"`
	// Left is why the agent left on purpose, as long as it is gone.
	Left haven.LeaveReason `json:"left,omitzero"`
	// PowerOff says that all conditions of a proof by the BMC hold. It is true
	// with VerdictDead, unless that rests on the ledger, and may be true with
	// VerdictShutdown.
	PowerOff bool `json:"power_off,omitzero"`
	// Distrust says that the BMC said off while this same boot lived on: its
	// word is to be distrusted until an operator clears it.
	Distrust bool `json:"distrust,omitzero"`
	// Flapping says that the host fell from health too often, and has not been
	// calm for long enough since: it is in quarantine and should be given no VMs.
	Flapping bool `json:"flapping,omitzero"`
	// Quarantine tells why, with its numbers; its reason is haven.HoldFlapping.
	// It ends at QuarantineUntil if the host stays healthy until then.
	Quarantine      Hold          `json:"quarantine,omitzero"`
	QuarantineUntil time.Duration `json:"quarantine_until,omitzero"`

	// WantProbes are the questions neighbours should now be asked, and
	// WantNeighbours how many neighbours. WantPower asks for a BMC reading in
	// a new session. A want is given once and again when it is due again.
	WantProbes     []haven.EvidenceKind `json:"want_probes,omitzero"`
	WantNeighbours int                  `json:"want_neighbours,omitzero"`
	WantPower      bool                 `json:"want_power,omitzero"`

	// FenceAllowed is what MayFence tells; NoFence is why it is not allowed.
	FenceAllowed bool   `json:"fence_allowed,omitzero"`
	NoFence      string `json:"no_fence,omitzero"`
}

// MayFence says whether the verdict asks for a power command and no brake known
// to the detector holds it back: the host is failed, every path was found dead
// at this very Step too, this agent is the master, and the host is a hypervisor
// that is not in maintenance. A verdict of failed alone is no permission. The
// cap, the disarm switch and the verification of leadership are the caller's.
func (j *Judgement) MayFence() bool { return j.Verdict == haven.VerdictFailed && j.FenceAllowed }

// Proved says whether VMs of the host's boot may be given to others: no hold of
// the detector withdraws a proof.
func (j *Judgement) Proved() bool { return j.Verdict == haven.VerdictDead }

// exact is Evidence with its age in nanoseconds: its own form in JSON keeps
// milliseconds, and a record must be read back without loss.
type exact struct {
	Kind     haven.EvidenceKind `json:"kind"`
	Subject  haven.HostID       `json:"subject"`
	Observer haven.HostID       `json:"observer,omitzero"`
	Store    string             `json:"store,omitzero"`
	Value    haven.Tri          `json:"value"`
	Age      time.Duration      `json:"age"`
	Detail   string             `json:"detail,omitzero"`
}

type judgementAlias Judgement

type judgementJSON struct {
	judgementAlias
	Evidence []exact `json:"evidence,omitzero"`
}

// MarshalJSON writes all of the judgement, times in nanoseconds.
func (j Judgement) MarshalJSON() ([]byte, error) {
	out := judgementJSON{judgementAlias: judgementAlias(j)}
	for _, e := range j.Evidence {
		out.Evidence = append(out.Evidence, exact(e))
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (j *Judgement) UnmarshalJSON(b []byte) error {
	var in judgementJSON
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	*j = Judgement(in.judgementAlias)
	for _, e := range in.Evidence {
		j.Evidence = append(j.Evidence, haven.Evidence(e))
	}
	return nil
}

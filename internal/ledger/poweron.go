package ledger

import (
	"time"

	"github.com/haven-ha/haven"
)

// PowerOn is the second half of a power cycle: the host that was powered off is
// switched on again. It proves nothing, and its failure frees nobody.
type PowerOn struct {
	Term    haven.Term   `json:"term"`
	By      haven.HostID `json:"by"`
	BegunAt time.Time    `json:"begun_at"`
	EndedAt time.Time    `json:"ended_at,omitzero"`
	Failed  bool         `json:"failed,omitempty"`
	Detail  string       `json:"detail,omitempty"`
}

// BeginOn records that a host that Haven powered off is switched on, before the
// command is sent. Only a host whose boot is proved dead by its own devices is.
type BeginOn struct {
	ID haven.IncidentID `json:"id"`
	On PowerOn          `json:"on"`
}

// EndOn records what became of it.
type EndOn struct {
	ID     haven.IncidentID `json:"id"`
	Failed bool             `json:"failed,omitempty"`
	Detail string           `json:"detail"`
	At     time.Time        `json:"at"`
}

func (BeginOn) kind() string { return "begin-on" }
func (EndOn) kind() string   { return "end-on" }

// SwitchingOn says whether a power-on was decided and is not over.
func (i *Incident) SwitchingOn() bool { return i.On != nil && i.On.EndedAt.IsZero() }

func (c BeginOn) apply(s *State, at Position) error {
	in, err := s.open(c.ID)
	if err != nil {
		return err
	}
	if in.On != nil && in.On.Term == c.On.Term && in.On.BegunAt.Equal(c.On.BegunAt) {
		return nil
	}
	h := s.Hosts[in.Host]
	_, pending := in.Pending()
	switch {
	case s.Disarm != nil:
		return reject("recovery is disarmed by %s", s.Disarm.By)
	case h == nil || h.Boot != in.Boot || !h.ProvedDead():
		return reject("host %s is not in boot %s any more, or not proved dead", in.Host, in.Boot)
	case h.Maintenance != nil:
		return reject("host %s is in maintenance by %s", in.Host, h.Maintenance.By)
	case in.Proof == nil || in.Proof.Kind != haven.ProofPowerOff:
		return reject("no device proved host %s off", in.Host) // cut off its storage, it may run on (P1)
	case len(in.Attempts) == 0:
		return reject("host %s was not powered off by an attempt of incident %s", in.Host, c.ID)
	case pending:
		return reject("a fence attempt of incident %s is not over", c.ID)
	case in.On != nil:
		return reject("host %s was switched on in incident %s already", in.Host, c.ID)
	case c.On.Term != haven.Term{Generation: s.Generation, Term: at.Term}:
		return reject("power-on of term %s in a log entry of term %d.%d", c.On.Term, s.Generation, at.Term)
	}
	on := c.On
	on.EndedAt, on.Failed, on.Detail = time.Time{}, false, ""
	in.On = &on
	s.note(in, Entry{At: on.BegunAt, Term: on.Term, By: on.By, What: "power-on decided: it is proved off, and its VMs are handed over"})
	return nil
}

func (c EndOn) apply(s *State, _ Position) error {
	in := s.Incidents[c.ID]
	switch {
	case in == nil || in.On == nil:
		return reject("incident %s has no power-on", c.ID)
	case c.At.IsZero():
		return reject("the end of a power-on has no time")
	case !in.On.EndedAt.IsZero():
		return nil
	}
	on := *in.On
	on.EndedAt, on.Failed, on.Detail = c.At, c.Failed, c.Detail
	in.On = &on
	what := "power-on over: " + c.Detail
	if c.Failed {
		what = "power-on failed: " + c.Detail
	}
	s.note(in, Entry{At: c.At, Term: on.Term, By: on.By, What: what})
	return nil
}

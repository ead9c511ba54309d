package ledger

import (
	"cmp"
	"slices"

	"github.com/haven-ha/haven"
)

func (c OpenIncident) apply(s *State, _ Position) error {
	h := s.Hosts[c.Host]
	if h == nil {
		return reject("host %s is not registered", c.Host)
	}
	if c.ID == "" {
		return reject("the incident has no name")
	}
	if in := s.Incidents[c.ID]; in != nil {
		if in.Host == c.Host && in.Boot == c.Boot && in.OpenedAt.Equal(c.Entry.At) {
			return nil
		}
		return reject("%s is another incident, of host %s", c.ID, in.Host)
	}
	if h.Incident != "" {
		return reject("host %s has incident %s open", c.Host, h.Incident)
	}
	if h.Boot != c.Boot {
		return reject("host %s is registered with boot %s, not %s", c.Host, h.Boot, c.Boot)
	}
	if h.ProvedDead() {
		return reject("boot %s of host %s is proved dead already", c.Boot, c.Host)
	}
	in := &Incident{
		ID: c.ID, Host: c.Host, Boot: c.Boot, Step: haven.StepSuspected, Verdict: c.Verdict, OpenedAt: c.Entry.At, SuspectedAt: c.SuspectedAt,
	}
	s.Incidents[c.ID] = in
	h.Incident = c.ID
	s.note(in, c.Entry)
	return nil
}

var stepOrder = []haven.Step{
	haven.StepSuspected, haven.StepConfirmed, haven.StepFencing, haven.StepProved,
	haven.StepPlacing, haven.StepRestarting, haven.StepClosed,
}

// stepMayFollow says whether an incident may go from one step to another. It
// goes forward; a host that shows life before anything was done to it goes back
// from confirmed to suspected; and VMs that lose their new host as well bring
// restarting back to placing.
func stepMayFollow(from, to haven.Step) bool {
	if from == haven.StepConfirmed && to == haven.StepSuspected {
		return true
	}
	if from == haven.StepRestarting && to == haven.StepPlacing {
		return true
	}
	return slices.Index(stepOrder, to) >= slices.Index(stepOrder, from)
}

// needsProof says whether a step comes with or after the proof of death (P2).
func needsProof(step haven.Step) bool {
	return slices.Index(stepOrder, step) >= slices.Index(stepOrder, haven.StepProved)
}

func (s *State) open(id haven.IncidentID) (*Incident, error) {
	in := s.Incidents[id]
	if in == nil || !in.Open() {
		return nil, reject("incident %s is not open", id)
	}
	return in, nil
}

// note adds a line to an incident's time line. When the line would be one too
// many, the middle is dropped: how it began and how it stands matter most.
func (s *State) note(in *Incident, e Entry) {
	if e.What == "" {
		return
	}
	if slices.ContainsFunc(in.Timeline, e.same) {
		return // a command may be in the log twice
	}
	e.Step = in.Step
	if len(e.Evidence) > MaxEvidence {
		e.Evidence = e.Evidence[:MaxEvidence]
	}
	if len(in.Timeline) >= MaxTimeline {
		half := MaxTimeline / 2
		in.Timeline = append(slices.Clone(in.Timeline[:half]), in.Timeline[half+1:]...)
		in.Dropped++
	}
	in.Timeline = append(in.Timeline, e)
}

// same says whether two lines are one, but for the step.
func (e Entry) same(o Entry) bool {
	return e.At.Equal(o.At) && e.Term == o.Term && e.By == o.By && e.What == o.What
}

func (c NoteIncident) apply(s *State, _ Position) error {
	in, err := s.open(c.ID)
	if err != nil {
		return err
	}
	if c.Step != "" && c.Step != in.Step {
		if !stepMayFollow(in.Step, c.Step) || c.Step == haven.StepClosed || (needsProof(c.Step) && in.Proof == nil) {
			return reject("incident %s cannot go from %s to %s", c.ID, in.Step, c.Step)
		}
		if c.Step == haven.StepFencing {
			return reject("a fence is begun by its own command")
		}
		in.Step = c.Step
	}
	if c.Verdict != "" {
		in.Verdict = c.Verdict
	}
	if c.Hold != nil {
		s.setHold(in, *c.Hold, c.Entry)
	}
	if c.Response != "" {
		in.Response = c.Response
	}
	s.note(in, c.Entry)
	return nil
}

func (c BeginFence) apply(s *State, at Position) error {
	in, err := s.open(c.ID)
	if err != nil {
		return err
	}
	n := c.Attempt.N
	if a := in.attempt(n); a != nil && a.Term == c.Attempt.Term {
		return nil
	}
	h := s.Hosts[in.Host]
	_, pending := in.Pending()
	switch {
	case s.Disarm != nil:
		return reject("recovery is disarmed by %s", s.Disarm.By)
	case h != nil && h.Maintenance != nil:
		return reject("host %s is in maintenance by %s", in.Host, h.Maintenance.By)
	case c.Attempt.Term != haven.Term{Generation: s.Generation, Term: at.Term}:
		return reject("fence of term %s in a log entry of term %d.%d", c.Attempt.Term, s.Generation, at.Term)
	case in.Step != haven.StepConfirmed && in.Step != haven.StepFencing:
		return reject("incident %s is %s", c.ID, in.Step)
	case h == nil || h.Boot != in.Boot || h.ProvedDead():
		return reject("host %s is not in boot %s any more, or proved dead", in.Host, in.Boot)
	case pending:
		return reject("attempt %d is not over", in.NextAttempt()-1)
	case n != in.NextAttempt():
		return reject("attempt %d does not follow %d", n, in.NextAttempt()-1)
	}
	s.setHold(in, haven.Hold{}, Entry{At: c.Attempt.BegunAt, Term: c.Attempt.Term, By: c.Attempt.By})
	in.Step = haven.StepFencing
	in.Attempts = keepLast(append(in.Attempts, c.Attempt), MaxFenceAttempts)
	in.Manual = in.Manual || c.Manual
	s.Fences = slices.DeleteFunc(s.Fences, func(f Fence) bool { return f.Incident == in.ID })
	s.Fences = keepLast(append(s.Fences, Fence{Incident: in.ID, Host: in.Host, N: n, At: c.Attempt.BegunAt}), MaxFences)
	s.note(in, Entry{At: c.Attempt.BegunAt, Term: c.Attempt.Term, By: c.Attempt.By, What: "power-off decided"})
	return nil
}

func (c EndFence) apply(s *State, _ Position) error {
	in := s.Incidents[c.ID]
	if in == nil || c.N < 1 || c.N >= in.NextAttempt() {
		return reject("incident %s has no attempt %d", c.ID, c.N)
	}
	if c.At.IsZero() {
		return reject("the end of attempt %d has no time", c.N)
	}
	a := in.attempt(c.N)
	if a == nil || !a.EndedAt.IsZero() {
		return nil
	}
	a.EndedAt, a.Proved, a.Detail = c.At, c.Proved, c.Detail
	if in.Proof == nil {
		s.finished(in.ID) // Another attempt would be something new.
	}
	s.note(in, Entry{At: c.At, Term: a.Term, By: a.By, What: "power-off over: " + c.Detail})
	return nil
}

func (c ProveDead) apply(s *State, _ Position) error {
	in, err := s.open(c.ID)
	if err != nil {
		return err
	}
	h := s.Hosts[in.Host]
	p := c.Proof
	switch {
	case h == nil || p.Host != in.Host || p.Boot != in.Boot || h.Boot != in.Boot:
		return reject("proof is about boot %s of %s, incident about boot %s of %s", p.Boot, p.Host, in.Boot, in.Host)
	case p.Kind == "" || p.By == "":
		return reject("a proof without kind or author")
	case p.Kind == haven.ProofWatchdog && !h.Watchdog.Armed() && !h.ProvedDead():
		return reject("host %s has declared no armed watchdog in boot %s", in.Host, in.Boot)
	case h.ProvedDead():
		return nil
	case in.Proof != nil:
		return reject("incident %s has its proof already", c.ID)
	}
	if len(p.Evidence) > MaxEvidence {
		p.Evidence = p.Evidence[:MaxEvidence]
	}
	h.Proof, in.Proof = &p, &p
	h.keep(in, p)
	in.Manual = in.Manual || c.Manual
	h.fenced(in, p)
	if p.Kind == haven.ProofOperator {
		s.act(Act{Action: ActConfirm, Host: h.ID, By: p.By, Reason: p.Detail, Force: c.Force, At: p.At})
	}
	s.setHold(in, haven.Hold{}, c.Entry)
	in.Step = haven.StepProved
	in.VMs = s.freeOwned(h.ID, p.Boot, Freed{By: FreedByProof, Host: h.ID, Boot: p.Boot, At: p.At, Detail: string(p.Kind)}, in.ID)
	s.note(in, c.Entry)
	return nil
}

func (c CloseIncident) apply(s *State, _ Position) error {
	in := s.Incidents[c.ID]
	if in == nil || !in.Open() {
		return nil
	}
	if _, pending := in.Pending(); pending {
		return reject("a fence attempt of incident %s is not over", c.ID)
	}
	if in.SwitchingOn() {
		return reject("the power-on of incident %s is not over", c.ID)
	}
	s.setHold(in, haven.Hold{}, c.Entry)
	in.Step, in.Outcome, in.ClosedAt = haven.StepClosed, c.Outcome, c.Entry.At
	s.finished(in.ID)
	if h := s.Hosts[in.Host]; h != nil && h.Incident == in.ID {
		h.Incident = ""
	}
	s.note(in, c.Entry)
	s.trimIncidents()
	return nil
}

// trimIncidents drops the incidents that were closed first.
func (s *State) trimIncidents() {
	var closed []*Incident
	for _, in := range s.Incidents {
		if !in.Open() {
			closed = append(closed, in)
		}
	}
	slices.SortFunc(closed, func(a, b *Incident) int {
		return cmp.Or(a.ClosedAt.Compare(b.ClosedAt), cmp.Compare(a.ID, b.ID))
	})
	for _, in := range closed[:max(0, len(closed)-MaxClosedIncidents)] {
		delete(s.Incidents, in.ID)
	}
}

package ledger

import (
	"fmt"
	"slices"
	"time"

	"github.com/haven-ha/haven"
)

// Disarm says who switched recovery off, when and why.
type Disarm struct {
	By     string    `json:"by"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason,omitempty"`
	// Now says that nothing was to be finished first.
	Now bool `json:"now,omitempty"`
	// Finishing are the incidents that were under way when recovery was disarmed:
	// a power-off was decided, or the host proved dead. They go on to their end,
	// and nothing new begins beside them.
	Finishing []haven.IncidentID `json:"finishing,omitempty"`
}

// Maintenance says who put a host into maintenance, when and why.
type Maintenance struct {
	By     string    `json:"by"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason,omitempty"`
	// Keeps is the boot that was proved dead during the maintenance, not by an
	// operator's word and not after a power-off by Haven: somebody powered the
	// host off on purpose. The VMs of that boot are not started elsewhere until an
	// operator says so, or until the host boots anew.
	Keeps haven.BootID `json:"keeps,omitempty"`
}

// Kept says whether a freed VM waits for the end of its last host's maintenance.
func (s *State) Kept(vm *VM) bool {
	if vm.Phase != PhaseFreed || vm.Freed == nil || vm.Freed.By != FreedByProof {
		return false
	}
	h := s.Hosts[vm.Freed.Host]
	return h != nil && h.Maintenance != nil && h.Maintenance.Keeps != "" && h.Maintenance.Keeps == vm.Freed.Boot
}

// keep notes a proof during a maintenance.
func (h *Host) keep(in *Incident, p haven.Proof) {
	if h.Maintenance == nil {
		return
	}
	m := *h.Maintenance
	m.Keeps = ""
	if p.Kind != haven.ProofOperator && len(in.Attempts) == 0 {
		m.Keeps = p.Boot
	}
	h.Maintenance = &m
}

// letGo lets the VMs of a host in maintenance be started elsewhere.
func (h *Host) letGo() {
	if h.Maintenance != nil && h.Maintenance.Keeps != "" {
		m := *h.Maintenance
		m.Keeps = ""
		h.Maintenance = &m
	}
}

// SetMaintenance puts a host into maintenance, or ends that. A host in
// maintenance is given no VMs and no power command.
type SetMaintenance struct {
	Host haven.HostID `json:"host"`
	On   bool         `json:"on"`
	// LetGo says that the maintenance goes on, and that the VMs of a host that was
	// powered off in it may be started elsewhere.
	LetGo  bool      `json:"let_go,omitempty"`
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at"`
}

func (c SetArmed) apply(s *State, _ Position) error {
	switch {
	case c.By == "":
		return reject("no operator is named")
	case c.Armed:
		s.Disarm = nil
	case s.Disarm == nil:
		s.Disarm = &Disarm{By: c.By, At: c.At, Reason: c.Reason, Now: c.Now}
		if !c.Now {
			s.Disarm.Finishing = s.underWay()
		}
	case c.Now:
		d := *s.Disarm
		d.Now, d.Finishing = true, nil
		s.Disarm = &d
	}
	return nil
}

// underWay lists the incidents that an operator's disarm does not stop: those in
// which a power-off is at work, or the host is proved dead and its VMs are on
// their way.
func (s *State) underWay() (ids []haven.IncidentID) {
	for _, in := range s.OpenIncidents() {
		if _, pending := in.Pending(); pending || in.Proof != nil {
			ids = append(ids, in.ID)
		}
	}
	return ids
}

// Stopped says whether an operator's disarm stops an incident, or what belongs
// to none.
func (s *State) Stopped(id haven.IncidentID) bool {
	return s.Disarm != nil && (id == "" || !slices.Contains(s.Disarm.Finishing, id))
}

// finished takes an incident out of those that are finished before a disarm
// takes effect.
func (s *State) finished(id haven.IncidentID) {
	if s.Disarm == nil || !slices.Contains(s.Disarm.Finishing, id) {
		return
	}
	d := *s.Disarm
	d.Finishing = slices.DeleteFunc(slices.Clone(d.Finishing), func(o haven.IncidentID) bool { return o == id })
	s.Disarm = &d
}

// DisarmPending says what is being finished before a disarm takes effect:
// incidents, and orders that are out.
func (s *State) DisarmPending() (incidents []haven.IncidentID, orders []haven.VMID) {
	if s.Disarm == nil || s.Disarm.Now {
		return nil, nil
	}
	for _, id := range s.VMIDs() {
		if s.VMs[id].Phase == PhaseOrdered {
			orders = append(orders, id)
		}
	}
	return s.Disarm.Finishing, orders
}

func (c SetMaintenance) apply(s *State, _ Position) error {
	h := s.Hosts[c.Host]
	switch {
	case h == nil:
		return reject("host %s is not registered", c.Host)
	case c.By == "":
		return reject("no operator is named")
	case c.LetGo:
		if h.Maintenance != nil && h.Maintenance.Keeps != "" {
			s.act(Act{Action: ActConfirm, Host: c.Host, By: c.By, Reason: c.Reason, At: c.At})
		}
		h.letGo()
	case !c.On:
		h.Maintenance = nil
	case h.Maintenance == nil:
		h.Maintenance = &Maintenance{By: c.By, At: c.At, Reason: c.Reason}
	}
	return nil
}

// setHold changes what holds an incident. The end of a hold is a line of its own:
// it never ends silently.
func (s *State) setHold(in *Incident, hold haven.Hold, e Entry) {
	if was := in.Hold; was.Reason != "" && was.Reason != hold.Reason {
		what := "no longer held, " + was.Reason
		if !was.Since.IsZero() && e.At.After(was.Since) {
			what += fmt.Sprintf(": after %s", e.At.Sub(was.Since).Round(time.Millisecond))
		}
		s.note(in, Entry{At: e.At, Term: e.Term, By: e.By, What: what})
	}
	in.Hold = hold
}

package ledger

import (
	"time"

	"github.com/haven-ha/haven"
)

// Fenced says that a host was fenced and is given no VMs, even when it is back,
// until an operator releases it.
type Fenced struct {
	Incident haven.IncidentID `json:"incident"`
	Proof    haven.ProofKind  `json:"proof"`
	At       time.Time        `json:"at"`
}

// ReleaseFenced says by name that a host that was fenced may be given VMs again.
// It names the incident, so that a late copy does not release the host from
// another one.
type ReleaseFenced struct {
	Host     haven.HostID     `json:"host"`
	Incident haven.IncidentID `json:"incident"`
	By       string           `json:"by"`
	Reason   string           `json:"reason,omitempty"`
	At       time.Time        `json:"at"`
}

func (ReleaseFenced) kind() string { return "release-fenced" }

func (c ReleaseFenced) apply(s *State, _ Position) error {
	h := s.Hosts[c.Host]
	if h == nil {
		return reject("host %s is not registered", c.Host)
	}
	if c.By == "" || c.At.IsZero() {
		return reject("a release without a name or a time")
	}
	act := Act{Action: ActRelease, Host: c.Host, By: c.By, Reason: c.Reason, At: c.At}
	if h.Fenced == nil || h.Fenced.Incident != c.Incident {
		if s.acted(act) {
			return nil
		}
		return reject("host %s does not wait for a release from incident %q", c.Host, c.Incident)
	}
	h.Fenced = nil
	s.act(act)
	return nil
}

// fenced notes that a host was fenced in an incident, where the configuration of
// the master that fenced it wants an operator to look before it is used again.
func (h *Host) fenced(in *Incident, p haven.Proof) {
	if in.Manual {
		h.Fenced = &Fenced{Incident: in.ID, Proof: p.Kind, At: p.At}
	}
}

package ledger

import (
	"slices"
	"strings"

	"github.com/haven-ha/haven"
)

// Bounds of what is kept of one host's fence devices.
const (
	MaxDeviceDoubts = 16
	maxDoubtBytes   = 600
	maxAccepted     = 32
)

// DeviceDoubt says why a fence device seems to be another host's. While a host has
// one, no power command is sent to any of its devices.
type DeviceDoubt struct {
	Device string `json:"device"` // its key
	GUID   string `json:"guid,omitempty"`
	Why    string `json:"why"` // names both identities
	// Twin is another host's device that gives the same GUID, if that is why.
	Twin string `json:"twin,omitempty"`
}

// DoubtDevices records which of a host's devices seem to be another host's, all of
// them: none means that there is no doubt any more.
type DoubtDevices struct {
	Host   haven.HostID  `json:"host"`
	Doubts []DeviceDoubt `json:"doubts,omitempty"`
	// Cleared is how often an operator had cleared this host's devices when it was
	// decided: what was found before is not news.
	Cleared uint64 `json:"cleared,omitempty"`
}

func (DoubtDevices) kind() string { return "doubt-devices" }

func (c DoubtDevices) apply(s *State, _ Position) error {
	h := s.Hosts[c.Host]
	switch {
	case h == nil:
		return reject("host %s is not registered", c.Host)
	case c.Cleared != h.Power.Cleared:
		return reject("the devices of %s were cleared %d times, that was found when it was %d", c.Host, h.Power.Cleared, c.Cleared)
	case len(c.Doubts) > MaxDeviceDoubts:
		return reject("%d devices of %s: at most %d", len(c.Doubts), c.Host, MaxDeviceDoubts)
	}
	for _, d := range c.Doubts {
		if d.Device == "" || d.Why == "" || len(d.Device)+len(d.GUID)+len(d.Why)+len(d.Twin) > maxDoubtBytes {
			return reject("a doubt of %s without device or reason, or of more than %d bytes", c.Host, maxDoubtBytes)
		}
	}
	h.Power.Doubts = slices.Clone(c.Doubts)
	if len(h.Power.Doubts) == 0 {
		h.Power.Doubts = nil
	}
	return nil
}

// Blocked says why no power command may be sent to a host's devices: one of them
// seems to be another host's, or is distrusted. Its word would be no proof then,
// and the command may meet a host that is well: mostly two addresses were
// exchanged. It is empty when nothing speaks against a command.
func (p PowerTrust) Blocked() string {
	var whys []string
	if p.Distrust != "" {
		whys = append(whys, "its fence device is distrusted: "+p.Distrust)
	}
	for _, d := range p.Doubts {
		whys = append(whys, "device "+d.Device+": "+d.Why)
	}
	return strings.Join(whys, "; ")
}

// Doubted says why what a host's devices say is no proof, or is empty.
func (p PowerTrust) Doubted() string {
	if p.Distrust != "" {
		return p.Distrust
	}
	return p.Blocked()
}

// accept makes the trust that an operator's word leaves: what was doubted is the
// host's own.
func (p PowerTrust) accept(guid string) PowerTrust {
	accepted := slices.Clone(p.Accepted)
	for _, d := range p.Doubts {
		if d.GUID != "" && !slices.Contains(accepted, d.GUID) {
			accepted = append(accepted, d.GUID)
		}
	}
	return PowerTrust{GUID: guid, Cleared: p.Cleared + 1, Accepted: keepLast(accepted, maxAccepted)}
}

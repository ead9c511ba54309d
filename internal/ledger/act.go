package ledger

import (
	"slices"
	"time"

	"github.com/haven-ha/haven"
)

// MaxActs bounds the record of what operators did about power.
const MaxActs = 256

// Acts that are no power commands.
const (
	// ActCapReset lets the power-downs so far count no more.
	ActCapReset haven.FenceAction = "cap-reset"
	// ActConfirm is an operator's word that a host is off.
	ActConfirm haven.FenceAction = "confirm"
	// ActRelease lets a host that was fenced be given VMs again.
	ActRelease haven.FenceAction = "release"
	// ActTrust clears the distrust of a host's fence devices.
	ActTrust haven.FenceAction = "trust-bmc"
)

// Act is what an operator did about the power of a host, or about the limit.
type Act struct {
	Action haven.FenceAction `json:"action"`
	Host   haven.HostID      `json:"host,omitempty"`
	By     string            `json:"by"`
	Reason string            `json:"reason,omitempty"`
	Force  bool              `json:"force,omitempty"`
	At     time.Time         `json:"at"`
}

// RecordAct records an operator's act before it is carried out. The history of
// power-downs that the limit counts ends with ActCapReset.
type RecordAct struct{ Act }

func (RecordAct) kind() string { return "record-act" }

func (c RecordAct) apply(s *State, _ Position) error {
	switch c.Action {
	case haven.ActionOn, haven.ActionOff, haven.ActionBlink:
		if s.Hosts[c.Host] == nil {
			return reject("host %s is not registered", c.Host)
		}
	case ActCapReset:
	case haven.ActionNone, haven.ActionReboot, haven.ActionStatus, haven.ActionTest:
		fallthrough
	default:
		return reject("%q is no act that is recorded", c.Action)
	}
	if c.By == "" || c.At.IsZero() {
		return reject("an act without a name or a time")
	}
	if s.acted(c.Act) {
		return nil // a command may be in the log twice
	}
	s.act(c.Act)
	if c.Action == ActCapReset {
		s.Fences = nil
	}
	return nil
}

// acted says whether an act is in the record.
func (s *State) acted(a Act) bool {
	return slices.ContainsFunc(s.Acts, func(o Act) bool { return o.At.Equal(a.At) && o.By == a.By && o.Action == a.Action && o.Host == a.Host })
}

// act puts an act into the record, once.
func (s *State) act(a Act) {
	if !s.acted(a) {
		s.Acts = keepLast(append(s.Acts, a), MaxActs)
	}
}

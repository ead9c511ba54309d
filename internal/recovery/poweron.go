package recovery

import (
	"fmt"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/ledger"
)

// PowerOn switches a host on that was powered off.
type PowerOn struct {
	Incident haven.IncidentID
	Host     haven.HostID
	Boot     haven.BootID // that is proved dead
}

// Blink makes a host's identify light blink.
type Blink struct {
	Incident haven.IncidentID
	Host     haven.HostID
}

// Key of a power-on: it never runs at once with a fence of the host.
func (a PowerOn) Key() string { return Fence{Host: a.Host}.Key() }

// Key of a blink.
func (a Blink) Key() string { return Fence{Host: a.Host}.Key() }

const (
	// onAfter is how long a host that is to be rebooted stays off for VMs that find
	// no host: its return may be what they wait for.
	onAfter = time.Minute
	// blinkEvery is shorter than a BMC's light blinks for at most.
	blinkEvery = 4 * time.Minute
)

// action is what is configured to be done to a failed host.
func (m *Machine) action(host haven.HostID) haven.FenceAction {
	if a, ok := m.cfg.Actions[host]; ok {
		return a
	}
	return m.cfg.Action
}

// powerOn takes the second half of action reboot further. It says whether the
// incident must stay open for it.
func (m *Machine) powerOn(s *ledger.State, in *ledger.Incident, waiting, ordered int) bool {
	h := s.Hosts[in.Host]
	if in.On != nil && !in.SwitchingOn() {
		return false
	}
	why := m.staysOff(s, h, in)
	if in.SwitchingOn() {
		if _, flies := m.flying[PowerOn{Host: in.Host}.Key()]; flies {
			return true
		}
		end, over := m.switched[in.ID]
		switch {
		case over:
		case h == nil || h.Boot != in.Boot:
			end = ledger.EndOn{ID: in.ID, Detail: "it booted", At: m.now}
		case why != "":
			end = ledger.EndOn{ID: in.ID, Failed: true, Detail: why, At: m.now}
		default:
			// One that this master did not begin was its predecessor's. The power state
			// is read first, so that beginning again repeats nothing.
			m.begin(PowerOn{Incident: in.ID, Host: in.Host, Boot: in.Boot})
			return true
		}
		m.propose(end)
		m.wake(time.Millisecond)
		return true
	}
	if !m.cycles(h, in) {
		return false
	}
	if waited := m.now.Sub(m.dead[in.Host]); waiting > 0 && waited < onAfter {
		m.wake(onAfter - waited)
		return false
	}
	if why != "" {
		if waiting+ordered == 0 {
			m.notice(Notice{Kind: "power-on-withheld", Host: in.Host, Incident: in.ID, Text: "it stays off: " + why})
		}
		return false
	}
	m.propose(ledger.BeginOn{ID: in.ID, On: ledger.PowerOn{Term: m.in.Term, By: m.in.Self, BegunAt: m.now}})
	m.notice(Notice{Kind: "power-on", Host: in.Host, Incident: in.ID, Text: "it is proved off and its VMs are handed over: it is switched on again"})
	m.wake(time.Millisecond)
	return true
}

// cycles says whether a host is one to be switched on: a device proved it off
// after Haven decided so. A host that was found off, or that an operator says is
// off, is somebody else's; and one that was cut off its storage may still run what is
// started elsewhere: it must not get its disks back (P1).
func (m *Machine) cycles(h *ledger.Host, in *ledger.Incident) bool {
	return m.action(in.Host) == haven.ActionReboot && h != nil && h.Boot == in.Boot && h.ProvedDead() && len(in.Attempts) > 0 &&
		in.Proof != nil && in.Proof.Kind == haven.ProofPowerOff
}

// staysOff says what forbids to switch a host on.
func (m *Machine) staysOff(s *ledger.State, h *ledger.Host, in *ledger.Incident) string {
	switch {
	case s.Disarm != nil:
		return "recovery is disarmed by " + s.Disarm.By
	case h != nil && h.Maintenance != nil:
		return "it is in maintenance by " + h.Maintenance.By
	}
	if by := poweredOff(s, in); by != "" {
		return "it was powered off by " + by + "; 'haven fence on " + string(in.Host) + "' switches it on"
	}
	return m.worn(s, in)
}

// shortlyBefore is how long before an incident an operator's power-off may have been
// its cause.
const shortlyBefore = 10 * time.Minute

// poweredOff names the operator who powered a host off in an incident or shortly
// before it, if nobody switched it on since. Haven may have decided the same
// meanwhile; that the host is off is the operator's wish all the same.
func poweredOff(s *ledger.State, in *ledger.Incident) (by string) {
	for _, act := range s.Acts {
		if act.Host != in.Host || act.At.Before(in.OpenedAt.Add(-shortlyBefore)) {
			continue
		}
		switch act.Action {
		case haven.ActionOff:
			by = act.By
		case haven.ActionOn:
			by = ""
		case haven.ActionNone, haven.ActionReboot, haven.ActionBlink, haven.ActionStatus, haven.ActionTest:
		}
	}
	return by
}

// worn says why a host that is switched on could not be powered off once more: a
// host that fails again and again stays off at its cap.
func (m *Machine) worn(s *ledger.State, in *ledger.Incident) string {
	limit := m.hostCap(in.Host)
	if limit.Count <= 0 {
		return ""
	}
	if may := limit.Allow(m.now, m.fences(s, in.Host), "", in.Host); !may.Allowed {
		return "it reached its own limit: " + may.Why
	}
	return ""
}

// switchedOn takes in the end of a power-on.
func (m *Machine) switchedOn(s *ledger.State, act PowerOn, d Done) {
	in := s.Incidents[act.Incident]
	if in == nil || !in.SwitchingOn() {
		return
	}
	end := ledger.EndOn{ID: in.ID, Detail: d.Detail, At: m.now}
	n := Notice{Kind: "power-on-over", Host: in.Host, Incident: in.ID, Text: "its power is on: " + d.Detail}
	if d.Err != nil {
		end.Failed, end.Detail = true, d.Err.Error()
		n = Notice{Kind: "power-on-failed", Alarm: true, Host: in.Host, Incident: in.ID, Text: fmt.Sprintf("it was not switched on: %s; its VMs are handed over; 'haven fence on %s' tries again", d.Err, in.Host)}
	}
	m.switched[in.ID] = end
	m.notice(n)
}

// blink makes a host's light blink, and again before it would stop.
func (m *Machine) blink(in *ledger.Incident) {
	if m.action(in.Host) != haven.ActionBlink || !m.cfg.Devices[in.Host] {
		return
	}
	if last, ok := m.blinked[in.ID]; ok && m.now.Sub(last) < blinkEvery {
		m.wake(blinkEvery - m.now.Sub(last))
		return
	}
	if m.begin(Blink{Incident: in.ID, Host: in.Host}) {
		m.blinked[in.ID] = m.now
	}
}

// blinks takes in the end of a blink. The first of a master is told.
func (m *Machine) blinks(s *ledger.State, act Blink, d Done) {
	in := s.Incidents[act.Incident]
	if in == nil || !in.Open() || m.blinking[in.ID] {
		return
	}
	m.blinking[in.ID] = true
	what := "its identify light blinks: " + d.Detail
	if d.Err != nil {
		what = "its identify light does not blink: " + d.Err.Error()
	}
	m.propose(ledger.NoteIncident{ID: in.ID, Entry: m.entry(nil, "%s", what)})
	m.notice(Notice{Kind: "blink", Alarm: true, Host: in.Host, Incident: in.ID, Text: what})
}

// forgetPower drops what is remembered of incidents that are over.
func (m *Machine) forgetPower(s *ledger.State) {
	for id := range m.switched {
		if in := s.Incidents[id]; in == nil || !in.SwitchingOn() {
			delete(m.switched, id)
		}
	}
	for id := range m.blinked {
		if in := s.Incidents[id]; in == nil || !in.Open() {
			delete(m.blinked, id)
			delete(m.blinking, id)
		}
	}
}

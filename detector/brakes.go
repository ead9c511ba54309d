package detector

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/haven-ha/haven"
)

// massBrake is the mass-failure brake. It closes as soon as more hypervisors are
// bad than may be, whether or not it holds anything back at that moment, and
// opens only after a calm: hosts that flap around the threshold must not open a
// gap through which one of them is fenced.
type massBrake struct {
	closed bool
	shown  bool   // it has held something back since it closed
	calm   moment // since when no more are bad than may be
}

// turn moves the brake by one Step. What an observer that is not trusted counts
// may close it and does not open it.
func (b *massBrake) turn(now time.Duration, over, trusted bool, calm time.Duration) {
	switch {
	case over:
		b.closed, b.calm = true, moment{}
	case !b.closed:
	case !trusted:
		b.calm = moment{}
	case !b.calm.ok:
		b.calm = moment{true, now}
	}
	if b.calm.ok && now-b.calm.at >= calm {
		*b = massBrake{}
	}
}

// bad says whether the verdict counts for the mass-failure brake. A host that
// is down and proved dead counts as well, so that a slow cascade does.
func bad(h *Host, j *Judgement) bool {
	switch j.Verdict {
	case haven.VerdictSuspect, haven.VerdictIsolated, haven.VerdictPartitioned,
		haven.VerdictUnreachable, haven.VerdictFailed, haven.VerdictDead:
		return true
	case haven.VerdictUnknown:
		return j.Suspected || h.Proved
	case haven.VerdictHealthy, haven.VerdictStorageLost, haven.VerdictStopped,
		haven.VerdictShutdown, haven.VerdictAgentDown:
	}
	return false
}

// counted says whether the mass-failure brake looks at the host at all.
func counted(h *Host) bool {
	return h.Configured && h.Role != haven.RoleWitness && !h.Maintenance
}

// brake applies what looks at all hosts at once, and says of every host why it
// may not be fenced.
func (m *Machine) brake(v *view, in *Input, out *Output) {
	for i := range in.Hosts {
		if counted(&in.Hosts[i]) {
			out.Counted++
			if bad(&in.Hosts[i], &out.Hosts[i]) {
				out.Bad++
			}
		}
	}
	out.Allowed = m.cfg.MassFailureAllowed(out.Counted)
	m.mass.turn(m.now, out.Bad > out.Allowed, v.trusted, m.cfg.MassFailureCalm)
	var mass Hold
	if m.mass.closed {
		mass = m.massHold(out)
	}
	for i := range in.Hosts {
		h, j := &in.Hosts[i], &out.Hosts[i]
		if j.Verdict == haven.VerdictFailed && !j.Hold.Held() {
			switch {
			case h.Role == haven.RoleWitness:
				j.Hold = newHold(haven.HoldActionNone, "a witness runs no VMs: there is nothing to fence it for", "", "it answers again")
			case h.Maintenance:
				j.Hold = newHold(haven.HoldActionNone, "the host is in maintenance", "", "that ends")
			case mass.Held():
				j.Hold, m.mass.shown = mass, true
			}
		}
		m.withhold(in, j)
	}
	if !m.mass.shown {
		mass = Hold{} // A brake that has held nothing back is no hold.
	}
	m.clusterHolds(out, v.grace, mass, v.distrust, v.outage)
}

// massHold puts the numbers of the closed brake into words.
func (m *Machine) massHold(out *Output) Hold {
	is := fmt.Sprintf("%d of %d hypervisors are bad at once", out.Bad, out.Counted)
	if m.mass.calm.ok {
		is = fmt.Sprintf("%d of %d hypervisors are bad, and more than may be were until %s ago", out.Bad, out.Counted, round(m.now-m.mass.calm.at))
	}
	return newHold(haven.HoldMassFailure, is, fmt.Sprintf("at most %d may be", out.Allowed),
		fmt.Sprintf("no more than that have been bad for %s, or an operator puts hosts that are known to be down in maintenance", m.cfg.MassFailureCalm))
}

// withhold says why no power command may follow. A verdict of failed stands
// through a moment in which something could not be looked at; a permission does
// not.
func (m *Machine) withhold(in *Input, j *Judgement) {
	switch {
	case j.Verdict != haven.VerdictFailed:
		j.NoFence = "it is not failed"
	case j.Hold.Held():
		j.NoFence = fmt.Sprintf("held, %s: %s", j.Hold.Reason, j.Hold.Detail)
	case len(j.Missing) > 0:
		j.NoFence = "not every path was found dead at this moment; missing: " + strings.Join(j.Missing, ", ")
	case !in.Self.Master:
		j.NoFence = "this agent is not the master"
	}
}

// clusterHolds tells the cluster-wide holds, in a fixed order, and which of those
// told before have ended.
func (m *Machine) clusterHolds(out *Output, now ...Hold) {
	for _, was := range m.holds {
		var h Hold
		for _, n := range now {
			if n.Reason == was.Reason {
				h = n
			}
		}
		if !h.Held() {
			m.end(out, "", was, endOfCluster(was.Reason, out.Trusted))
		}
	}
	var told []Hold
	for _, h := range now {
		if !h.Held() {
			continue
		}
		var was Hold
		for _, w := range m.holds {
			if w.Reason == h.Reason {
				was = w
			}
		}
		m.date(was, &h)
		told = append(told, h)
	}
	m.holds = told
	out.Holds = append(out.Holds, told...)
}

// newHold puts what holds, what may be, and what releases it into a hold.
func newHold(reason, is, may, release string) Hold {
	h := Hold{Reason: reason, Is: is, May: may, Release: release, Detail: is}
	if may != "" {
		h.Detail += "; " + may
	}
	h.Detail += "; released when " + release
	return h
}

// orHold returns h, or other if h holds nothing.
func orHold(h, other Hold) Hold {
	if h.Held() {
		return h
	}
	return other
}

// keep dates the hold that stands now by the one that was told before, tells
// the end of that one if it ended, and remembers the new one. The observer's hold
// is on all hosts at once: its end is told once, as the cluster's.
func (m *Machine) keep(out *Output, host haven.HostID, was, is *Hold, why func() string) {
	if was.Held() && was.Reason != is.Reason && was.Reason != haven.HoldObserver {
		m.end(out, host, *was, why())
	}
	m.date(*was, is)
	*was = *is
}

func (m *Machine) end(out *Output, host haven.HostID, was Hold, why string) {
	out.Ended = append(out.Ended, EndedHold{Host: host, Hold: was, At: m.now, Why: why})
}

// date fills in since when a hold holds, and whether that is an alarm.
func (m *Machine) date(was Hold, is *Hold) {
	if !is.Held() {
		*is = Hold{}
		return
	}
	is.Since = m.now
	if was.Reason == is.Reason {
		is.Since = was.Since
	}
	is.Age = m.now - is.Since
	limit := m.cfg.HoldAlarm
	switch is.Reason {
	case haven.HoldActionNone:
		return // An operator asked for it.
	case haven.HoldGrace:
		limit = max(limit, m.cfg.StartupGrace)
	case haven.HoldFlapping:
		limit += m.cfg.FlapCalm
	}
	is.Alarm = is.Age >= limit
}

// endOf says why a host's hold ended.
func endOf(reason string, j *Judgement) string {
	switch {
	case j.Hold.Held():
		return "another holds now, " + j.Hold.Reason
	case j.Changed:
		return fmt.Sprintf("the host is now %s: %s", j.Verdict, j.Why)
	case reason == haven.HoldMassFailure:
		return "the mass-failure brake is open again"
	case reason == haven.HoldGrace:
		return "the start-up grace is over"
	}
	return fmt.Sprintf("what held is no longer so; the host is %s: %s", j.Verdict, j.Why)
}

// endOfCluster says why a cluster-wide hold ended.
func endOfCluster(reason string, trusted bool) string {
	switch {
	case reason == haven.HoldGrace:
		return "its time is over"
	case reason == haven.HoldMassFailure:
		return "no more hypervisors than may be were bad for long enough"
	case reason == haven.HoldStorageOutage && trusted:
		return "a reader sees its own beat and another host's again"
	case reason == haven.HoldStorageOutage:
		return "this agent cannot trust its own paths any more, so it cannot tell"
	}
	return "this agent can vouch for its paths again"
}

// stick keeps the verdict failed, once it was reached, through Steps that could
// not look everywhere: it ends with a sign of life, also an old one, a proof, a leave, a new boot
// or the loss of trust. The permission to fence does not stick: see withhold.
func (s *sight) stick(j *Judgement, newLife bool) {
	st := s.st
	silent := j.Verdict == haven.VerdictSuspect || j.Verdict == haven.VerdictUnknown
	silent = silent && s.agentBeat != haven.Yes && s.helperState() != haven.Yes && s.disk != haven.Yes
	switch {
	case s.fresh:
		st.failed = true
	case st.failed && silent && !newLife && s.trusted && st.suspected && s.h.Configured && !s.h.Proved:
		j.Verdict, j.Why = haven.VerdictFailed, "it was found failed, and nothing shows life since; at this moment: "+j.Why
		if len(j.Missing) == 0 {
			j.Missing = []string{"fresh evidence that every path is dead"}
		}
	default:
		st.failed = false
	}
	if j.Verdict == haven.VerdictUnreachable {
		st.wrote = true
	}
}

// quarantine keeps a host that fell from health too often from being given VMs
// until it has been healthy for long enough.
func (m *Machine) quarantine(st *hostState, out *Output, j *Judgement, fell bool) {
	cfg, now := &m.cfg, m.now
	if fell {
		st.falls[st.fallen%maxFlapCount] = now
		st.fallen++
	}
	if j.Verdict != haven.VerdictHealthy {
		st.calm = moment{}
	} else if !st.calm.ok {
		st.calm = moment{true, now}
	}
	in := st.quarantine.Held()
	if n := cfg.FlapCount; fell && st.fallen >= n && now-st.falls[(st.fallen-n)%maxFlapCount] < cfg.FlapWindow {
		in = true
	}
	if !in {
		return
	}
	until := now + cfg.FlapCalm
	if st.calm.ok {
		until = st.calm.at + cfg.FlapCalm
	}
	var h Hold
	if !st.calm.ok || now < until {
		h = newHold(haven.HoldFlapping, fmt.Sprintf("it fell from health %d times in %s", st.recentFalls(now, cfg.FlapWindow), cfg.FlapWindow),
			fmt.Sprintf("%d times within that is too often", cfg.FlapCount), fmt.Sprintf("it has been healthy for %s", cfg.FlapCalm))
		j.Flapping, j.QuarantineUntil = true, until
	}
	m.keep(out, j.Host, &st.quarantine, &h, func() string { return fmt.Sprintf("it has been healthy for %s", cfg.FlapCalm) })
	j.Quarantine = h
}

// recentFalls counts the remembered falls within the window.
func (st *hostState) recentFalls(now, window time.Duration) (n int) {
	for i := range min(st.fallen, maxFlapCount) {
		if now-st.falls[i] < window {
			n++
		}
	}
	return n
}

// forget drops hosts that are no longer among those judged. Their holds end.
func (m *Machine) forget(out *Output) {
	var gone []haven.HostID
	for id, st := range m.hosts {
		if st.seenAt != m.steps {
			gone = append(gone, id)
		}
	}
	slices.Sort(gone)
	for _, id := range gone {
		for _, was := range [...]Hold{m.hosts[id].hold, m.hosts[id].quarantine} {
			if was.Held() {
				m.end(out, id, was, "the host is no longer among those judged")
			}
		}
		delete(m.hosts, id)
	}
}

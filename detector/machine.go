package detector

import (
	"time"

	"github.com/haven-ha/haven"
)

// Machine judges all hosts of one cluster as one agent sees them. It has no
// clock, no goroutine and does no I/O, and is not safe for concurrent use.
// What it remembers between steps is only ever the latest signs of life, the
// count of rounds and what it asked for; a new Machine starts knowing nothing
// and is therefore slower to act, never quicker.
type Machine struct {
	cfg   Config
	now   time.Duration
	steps uint64
	hosts map[haven.HostID]*hostState

	trusted      bool
	trustedSince time.Duration
	holds        []Hold // the cluster's, as the Step before told them
	mass         massBrake

	storeSince map[string]time.Duration // since when each store has been usable

	vouching map[haven.HostID]*Observer // reused by each Step
	stores   []string                   // likewise: see view.stores
	sight    sight                      // likewise, by each host
}

// New returns a Machine that judges by cfg, or the faults Validate finds in it.
func New(cfg Config) (*Machine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Machine{
		cfg:        cfg,
		hosts:      make(map[haven.HostID]*hostState),
		storeSince: make(map[string]time.Duration),
		vouching:   make(map[haven.HostID]*Observer),
	}, nil
}

// hostState is what is remembered of one host.
type hostState struct {
	seenAt uint64 // the Step it was last part of; others are forgotten
	writer bool   // it is due to write beats

	since0   time.Duration // when it was first judged
	net      moment        // last sign of life of its agent on the network
	helper   moment        // … of its helper or network stack, by net or beat
	life     moment        // … on any path
	boot     haven.BootID  // the newest that registered
	bootAt   moment        // when that was seen, if another one was known before
	provedAt moment        // since when the ledger has held a proof of this boot's end
	expected bool          // its direct words were due at the last Step
	due      time.Duration // since when they are
	alive    moment        // since when its agent has lived on the network without a break

	suspected      bool
	suspectedSince time.Duration
	rounds         int
	roundStart     time.Duration

	failed bool // it was found failed, and nothing showed life since
	wrote  bool // it was unreachable: see sight.wrote

	left    haven.LeaveReason
	leftAt  time.Duration
	verdict haven.Verdict
	since   time.Duration
	hold    Hold
	falls   [maxFlapCount]time.Duration
	fallen  int    // how often it fell; the last ones are in falls
	calm    moment // since when it has been healthy without a break

	quarantine Hold

	probed moment // when probes were last asked for
	read   moment // when a power reading was last asked for
	offAt  moment // end of the first off for which probes were asked
}

// moment is an instant that may not have come yet.
type moment struct {
	ok bool
	at time.Duration
}

// raise moves m to t if t is later, and tells whether it did.
func (m *moment) raise(t time.Duration) bool {
	if m.ok && t <= m.at {
		return false
	}
	m.ok, m.at = true, t
	return true
}

// within says whether m lies less than d before now.
func (m moment) within(now, d time.Duration) bool { return m.ok && now-m.at < d }

// Step judges every host at the instant now. It may be called at any rate: a
// round is never completed by time in which nobody looked, so a lower rate only
// makes judgement slower. Once per 100 ms, and whenever evidence arrives, is
// meant. An instant before that of the last Step counts as that one.
func (m *Machine) Step(now time.Duration, in Input) Output {
	m.now = max(m.now, now)
	m.steps++
	v := m.survey(&in)
	out := Output{Trusted: v.trusted, Hosts: make([]Judgement, len(in.Hosts))}
	for i := range in.Hosts {
		m.judge(&v, &in.Hosts[i], &out.Hosts[i])
	}
	m.brake(&v, &in, &out)
	for i := range in.Hosts {
		m.settle(&v, &in.Hosts[i], &out, &out.Hosts[i])
	}
	m.forget(&out)
	return out
}

// judge finds the verdict on one host, without the brakes that look at all.
func (m *Machine) judge(v *view, h *Host, j *Judgement) {
	st := m.hosts[h.ID]
	s := &m.sight
	*s = sight{view: v, h: h, st: st}
	s.look()
	newLife := s.remember()
	if !h.Proved || st.boot != h.Boot {
		st.provedAt = moment{}
	}
	if h.Proved && !st.provedAt.ok {
		st.provedAt = moment{true, s.now}
	}
	if st.boot != h.Boot {
		if st.boot != "" {
			st.bootAt = moment{true, s.now}
		}
		st.boot, st.failed = h.Boot, false
	}
	if !s.agentFresh {
		st.alive = moment{}
	} else if !st.alive.ok {
		st.alive = moment{true, s.now}
	}
	m.suspect(s)
	m.countRounds(s, newLife)
	s.off = s.readPower()
	*j = Judgement{
		Host: h.ID, Was: st.verdict, Left: st.left, Hold: Hold{},
		Suspected: st.suspected, SuspectedSince: st.suspectedSince,
		Rounds: st.rounds, RoundsNeeded: m.cfg.Rounds,
	}
	s.conclude(j)
	s.stick(j, newLife)
	s.want(j)
	if j.Verdict != haven.VerdictHealthy || j.Verdict != st.verdict || j.Hold.Held() {
		j.Evidence = s.evidence()
	}
}

// suspect begins or ends the suspicion of a host. It begins early, because all
// that follows from it is looking.
func (m *Machine) suspect(s *sight) {
	st, now := s.st, s.now
	silent := s.expected && now-max(s.reportAt(), st.due) > m.cfg.SuspectAfter
	gone := !s.reportFresh && (s.h.Gossip.State == GossipDead || s.agentBeat == haven.No)
	switch {
	case !s.h.Configured || s.h.ID == s.in.Self.Host || st.left != haven.LeaveNone:
		st.suspected = false
	case !st.suspected && (silent || gone):
		st.suspected, st.suspectedSince = true, now
		st.rounds, st.roundStart = 0, now
	case st.suspected && (s.reportFresh || !s.expected && s.agentFresh && !gone):
		st.suspected = false
	}
	if !st.suspected {
		st.rounds = 0
	}
	if !st.suspected || s.disk == haven.No {
		st.wrote = false
	}
}

// countRounds completes at most one round. It ends once it lasted long enough
// and found every path dead; if it did not within twice that time, it failed.
// That, life on any path, or an observer that cannot trust itself, starts the
// count again.
func (m *Machine) countRounds(s *sight, newLife bool) {
	st, now := s.st, s.now
	switch {
	case !st.suspected:
	case newLife || !s.trusted:
		st.rounds, st.roundStart = 0, now
	case now-st.roundStart < m.cfg.Round:
	case s.roundDead(st.roundStart):
		st.rounds, st.roundStart = min(st.rounds+1, m.cfg.Rounds), now
	case now-st.roundStart >= 2*m.cfg.Round:
		st.rounds, st.roundStart = 0, now
	}
}

// settle records the verdict after all brakes and fills in what depends on it.
func (m *Machine) settle(v *view, h *Host, out *Output, j *Judgement) {
	st := m.hosts[h.ID]
	j.Changed = j.Verdict != st.verdict
	fell := j.Changed && st.verdict == haven.VerdictHealthy && isFall(j.Verdict)
	if j.Changed {
		st.verdict, st.since = j.Verdict, v.now
	}
	j.Since = st.since
	m.keep(out, h.ID, &st.hold, &j.Hold, func() string { return endOf(st.hold.Reason, j) })
	j.Hold.Alarm = j.Hold.Alarm || j.Distrust
	m.quarantine(st, out, j, fell)
	j.FenceAllowed = j.NoFence == "" && j.Verdict == haven.VerdictFailed
}

// isFall says whether going from health to v counts for flapping. Leaving on
// purpose does not, nor does what the observer has only itself to blame for.
func isFall(v haven.Verdict) bool {
	switch v {
	case haven.VerdictUnknown, haven.VerdictHealthy, haven.VerdictStopped, haven.VerdictShutdown:
		return false
	case haven.VerdictSuspect, haven.VerdictStorageLost, haven.VerdictIsolated, haven.VerdictPartitioned,
		haven.VerdictAgentDown, haven.VerdictUnreachable, haven.VerdictFailed, haven.VerdictDead:
	}
	return true
}

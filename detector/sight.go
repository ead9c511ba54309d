package detector

import (
	"time"

	"github.com/haven-ha/haven"
)

// sight is one host as it is seen at one Step, path by path.
type sight struct {
	*view
	h  *Host
	st *hostState

	expected    bool // its agent's direct words are due here
	reportFresh bool
	agentFresh  bool // its agent lives on the network, now
	gossipLate  bool // gossip holds it for alive longer than it could be wrong
	agentBeat   haven.Tri
	helperBeat  haven.Tri
	disk        haven.Tri
	storeless   bool // no beats are to be had of it
	off         powerSight
	fresh       bool // this very Step found it failed, all conditions included
	isolated    haven.Tri
	seesOthers  haven.Tri
	stores      []string // on which its stillness would mean something
	storeBuf    [4]string
}

// look reads the paths that say something by themselves.
func (s *sight) look() {
	s.storeless = s.cfg.Stores == 0 || s.h.Storeless
	s.expected = s.in.Self.Master || s.h.Report.Expected
	s.reportFresh = s.h.ID == s.in.Self.Host || s.h.Report.Heard && s.now-s.reportAt() <= s.cfg.SuspectAfter
	if !s.storeless {
		s.stores = s.usableStores(s.h, s.storeBuf[:0])
		s.agentBeat = s.beat(WriterAgent)
		s.helperBeat = s.beat(WriterHelper)
	}
	s.disk = s.diskActivity()
}

// reportAt is when the host's agent was last heard directly.
func (s *sight) reportAt() time.Duration {
	if s.h.ID == s.in.Self.Host {
		return s.now
	}
	if !s.h.Report.Heard {
		return s.st.since0
	}
	return min(s.h.Report.At, s.now)
}

// remember moves the marks of life forward and tells whether there is a new
// one. The marks only ever rise, so evidence that the caller drops is not lost.
func (s *sight) remember() bool {
	st := s.st
	if s.expected && !st.expected {
		st.due = s.now
		if s.in.Self.Master {
			st.due = min(s.in.Self.MasterSince, s.now)
		}
	}
	st.expected = s.expected

	newLife := false
	live := func(mark *moment, at time.Duration) {
		at = min(at, s.now)
		if mark != nil {
			mark.raise(at)
		}
		newLife = st.life.raise(at) || newLife
	}
	var agent moment // apart from gossip and beats
	if s.h.Report.Heard || s.h.ID == s.in.Self.Host {
		live(&st.net, s.reportAt())
		agent.raise(s.reportAt())
	}
	for i := range s.h.Probes {
		p := &s.h.Probes[i]
		if p.Result != haven.Yes || p.Finished > s.now {
			continue
		}
		if p.Kind == haven.EvidenceProbeAgent {
			live(&st.net, p.Finished)
			agent.raise(p.Finished)
		} else {
			live(&st.helper, p.Finished)
		}
	}
	agentBeat := s.rememberBeats(live)
	for i := range s.h.Disks {
		if d := &s.h.Disks[i]; d.Active == haven.Yes && d.At <= s.now {
			live(nil, d.At-max(0, d.Quiet))
		}
	}
	s.rememberLeave(agent, agentBeat)
	s.rememberGossip(agent, live)
	s.agentFresh = s.agentFresh || s.reportFresh || s.answersProbe()
	return newLife
}

// rememberBeats returns when the agent's beat last changed without saying that
// the agent left.
func (s *sight) rememberBeats(live func(*moment, time.Duration)) (agent moment) {
	for i := range s.h.Beats {
		b := &s.h.Beats[i]
		if b.Absent || !b.Changed || b.ChangedAt > s.now {
			continue
		}
		if b.Writer == WriterHelper {
			live(&s.st.helper, b.ChangedAt)
			continue
		}
		live(nil, b.ChangedAt)
		if b.Left == haven.LeaveNone && b.Moving == haven.Yes {
			agent.raise(b.ChangedAt)
		}
	}
	return agent
}

// rememberLeave keeps that the agent left on purpose until the agent lives
// again: gossip forgets it, and a restarted agent must be judged like any
// other. Words that were under way when it left arrive a little later than its
// leave, so they do not count as a return.
func (s *sight) rememberLeave(agent, beat moment) {
	st, g := s.st, &s.h.Gossip
	said := func(reason haven.LeaveReason, at time.Duration) {
		if reason != haven.LeaveNone && at <= s.now && (st.left == haven.LeaveNone || at > st.leftAt) {
			st.left, st.leftAt = reason, at
		}
	}
	if g.State == GossipLeft {
		said(g.Left, g.Since)
	}
	for i := range s.h.Beats {
		b := &s.h.Beats[i]
		foreign := b.Boot != "" && s.h.Boot != "" && b.Boot != s.h.Boot
		if b.Writer == WriterAgent && !b.Absent && !foreign && s.recent(b.ReadAt) {
			said(b.Left, b.ChangedAt)
		}
	}
	returned := func(at moment) bool { return at.ok && at.at > st.leftAt+s.cfg.SuspectAfter }
	rejoined := g.State == GossipAlive && g.Since > st.leftAt && g.Since <= s.now
	if st.left != haven.LeaveNone && (returned(agent) || returned(beat) || rejoined) {
		st.left = haven.LeaveNone
	}
}

// rememberGossip weighs the word alive. A rise to alive is a sign of life. That
// it still stands may only be late: where reports are due or were missed, it
// counts again once gossip would have noticed by itself.
func (s *sight) rememberGossip(agent moment, live func(*moment, time.Duration)) {
	g, st := &s.h.Gossip, s.st
	if g.State != GossipAlive || g.Since > s.now {
		return
	}
	live(&st.net, g.Since)
	last := max(st.since0, g.Since)
	if agent.ok {
		last = max(last, agent.at)
	}
	if st.suspected {
		last = max(last, st.suspectedSince)
	}
	s.gossipLate = s.now-last >= s.cfg.GossipLag
	if s.gossipLate || !s.expected && !st.suspected {
		s.agentFresh = true
		live(&st.net, s.now)
	}
}

// answersProbe says whether the agent answered an observer lately.
func (s *sight) answersProbe() bool {
	for i := range s.h.Probes {
		p := &s.h.Probes[i]
		if p.Kind == haven.EvidenceProbeAgent && p.Result == haven.Yes && p.Finished <= s.now && s.now-p.Finished <= s.cfg.ProbeFresh {
			return true
		}
	}
	return false
}

// silentSince is the latest instant at which mark, or the lack of a trusted
// watcher, ends the silence.
func (s *sight) silentSince(mark moment) time.Duration {
	since := max(s.st.since0, s.trustedSince)
	if mark.ok {
		since = max(since, mark.at)
	}
	return since
}

// allSilentSince is when the last sign of life on any path was, or the last
// instant at which a path could not have been seen to be silent.
func (s *sight) allSilentSince() time.Duration {
	since := s.silentSince(s.st.life)
	for _, store := range s.stores {
		since = max(since, s.m.storeSince[store])
	}
	return since
}

// networkDead says whether the agent was silent for the whole window and no
// neighbour gets an answer from it.
func (s *sight) networkDead() bool {
	return !s.agentFresh && s.now-s.silentSince(s.st.net) >= s.cfg.Silence &&
		s.probes(haven.EvidenceProbeAgent, s.now-s.cfg.Silence, never) == haven.No
}

const never = time.Duration(-1 << 62)

// probes sums up the latest answer of each observer among the probes of a kind
// that finished after after and started no earlier than start. One answer is
// life, whoever got it. No needs at least one neighbour, not this agent alone,
// and no observer that was asked and did not tell. The words of an observer
// that cannot vouch for its own paths are nothing at all.
func (s *sight) probes(kind haven.EvidenceKind, after, start time.Duration) haven.Tri {
	neighbour, told := false, true
	for i := range s.h.Probes {
		p := &s.h.Probes[i]
		if p.Kind != kind || p.Finished > s.now || p.Finished <= after || p.Started < start {
			continue
		}
		if p.Result == haven.Yes {
			return haven.Yes
		}
		if s.m.vouching[p.Observer] == nil || p.Observer == s.h.ID || s.h.superseded(i, s.now) {
			continue
		}
		if p.Result == haven.Unknown {
			told = false
		}
		neighbour = neighbour || p.Result == haven.No && p.Observer != s.in.Self.Host
	}
	if neighbour && told {
		return haven.No
	}
	return haven.Unknown
}

// superseded says whether a later probe of the same kind by the same observer
// exists. Of two that finished at once, the one later in the list stands.
func (h *Host) superseded(i int, now time.Duration) bool {
	p := &h.Probes[i]
	for k := len(h.Probes) - 1; k >= 0; k-- { // The newest stand last, as a rule.
		q := &h.Probes[k]
		if (q.Finished > p.Finished || q.Finished == p.Finished && k > i) && q.Finished <= now &&
			q.Kind == p.Kind && q.Observer == p.Observer {
			return true
		}
	}
	return false
}

// beat sums up one writer's beats. Any that moves is life, whoever reads it. No
// needs a definite stillness on every store that can be vouched for, and at
// least one such store; everything else is unknown. A helper that never wrote
// to a store does not write there.
func (s *sight) beat(w Writer) haven.Tri {
	for i := range s.h.Beats {
		b := &s.h.Beats[i]
		if b.Writer == w && !b.Absent && b.Moving == haven.Yes && s.recent(b.ReadAt) {
			if b.Left == haven.LeaveNone {
				return haven.Yes
			}
		}
	}
	if len(s.stores) == 0 {
		return haven.Unknown
	}
	for _, store := range s.stores {
		back, dated := s.m.storeSince[store]
		if !dated || s.now-back <= s.cfg.StaleAfter || !s.stillOn(store, w, s.cfg.StaleAfter, true) {
			return haven.Unknown
		}
	}
	return haven.No
}

// stillOn says whether an observer who can vouch for the store saw the writer's
// beat stand still there for longer than age. If judged, the reader must also
// have concluded so itself.
func (s *sight) stillOn(store string, w Writer, age time.Duration, judged bool) bool {
	for i := range s.h.Beats {
		b := &s.h.Beats[i]
		if b.Writer != w || b.Store != store || !s.recent(b.ReadAt) || !s.vouches(b.Reader, store, s.h) {
			continue
		}
		if b.Absent {
			if w == WriterHelper || !judged {
				return true
			}
			continue
		}
		if b.ChangedAt <= s.now && s.now-b.ChangedAt > age && (!judged || b.Moving == haven.No) {
			return true
		}
	}
	return false
}

// flags reads what the newest moving beat of the agent says of itself.
func (s *sight) flags() {
	newest := never
	for i := range s.h.Beats {
		b := &s.h.Beats[i]
		if b.Writer == WriterAgent && !b.Absent && b.Moving == haven.Yes && b.ChangedAt > newest {
			newest, s.isolated, s.seesOthers = b.ChangedAt, b.Isolated, b.SeesOthers
		}
	}
}

// diskActivity sums up what the observers see of the disks. Activity is life,
// whoever sees it; idle needs somebody who can vouch for himself.
func (s *sight) diskActivity() haven.Tri {
	idle := haven.Unknown
	for i := range s.h.Disks {
		d := &s.h.Disks[i]
		if d.At > s.now || s.now-d.At >= s.cfg.Silence {
			continue
		}
		switch {
		case d.Active == haven.Yes:
			return haven.Yes
		case d.Active == haven.No && s.m.vouching[d.Observer] != nil:
			idle = haven.No
		}
	}
	return idle
}

// helperState sums up everything but the agent that would live on with the
// host: helper by network and beat, and the network stack itself.
func (s *sight) helperState() haven.Tri {
	switch {
	case s.helperBeat == haven.Yes, s.answered(haven.EvidenceProbeHelper), s.answered(haven.EvidenceProbeTCP):
		return haven.Yes
	case s.st.helper.within(s.now, s.cfg.Silence):
		return haven.Unknown // It lived a moment ago.
	case s.probes(haven.EvidenceProbeHelper, s.now-s.cfg.Silence, never) == haven.No && (s.storeless || s.helperBeat == haven.No):
		return haven.No
	}
	return haven.Unknown
}

// answered says whether some observer's latest probe of the kind was answered
// within the last half of the window; such probes are made each quarter of it.
func (s *sight) answered(kind haven.EvidenceKind) bool {
	for i := range s.h.Probes {
		p := &s.h.Probes[i]
		if p.Kind == kind && p.Result == haven.Yes && p.Finished <= s.now && s.now-p.Finished <= s.cfg.Silence/2 && !s.h.superseded(i, s.now) {
			return true
		}
	}
	return false
}

// roundDead says whether the round that began at start and ends now found every
// path dead.
func (s *sight) roundDead(start time.Duration) bool {
	return !s.agentFresh &&
		s.probes(haven.EvidenceProbeAgent, start, never) == haven.No &&
		s.probes(haven.EvidenceProbeHelper, start, never) == haven.No &&
		s.probes(haven.EvidenceProbeTCP, start, never) != haven.Yes &&
		s.pathsDead()
}

// pathsDead says whether beats and disks show no life, as far as they must.
func (s *sight) pathsDead() bool {
	if s.storeless {
		return s.disk == haven.No || s.disk == haven.Unknown && s.cfg.FenceWithoutStore && s.cfg.Stores == 0 && !s.wrote()
	}
	return s.agentBeat == haven.No && s.helperBeat == haven.No && s.disk != haven.Yes && !s.wrote()
}

// wrote says whether the host was unreachable during this suspicion and its
// disks have not been found idle since. Guests write in bursts: a pause that
// nobody measured is not the end.
func (s *sight) wrote() bool { return s.st.wrote && s.disk != haven.No }

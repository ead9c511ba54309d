package detector

import (
	"fmt"

	"github.com/haven-ha/haven"
)

// conclude goes through the verdict table from the top. The order matters where
// rows overlap: an observer that cannot be trusted concludes nothing, a leave
// on purpose explains silence, life needs no window, a proof needs no rounds,
// and all that remains rests on a network that is dead.
func (s *sight) conclude(j *Judgement) {
	h, st := s.h, s.st
	j.PowerOff = s.off.proved
	if s.off.against {
		j.Distrust = s.off.doubt
		j.Hold = newHold(haven.HoldContradiction, "the BMC says off, and the host shows signs of life", "", "either stops, or the BMC is distrusted")
	}
	switch {
	case !h.Configured:
		j.Verdict, j.Why = haven.VerdictUnknown, "not a configured host"
	case !s.trusted:
		j.Verdict, j.Why = haven.VerdictUnknown, "no judgement by an observer that cannot trust its own paths: "+s.distrust.Is
		if !j.Hold.Held() {
			j.Hold = s.distrust
		}
	case h.Proved && s.provedStands(j):
	case st.left == haven.LeaveShutdown:
		j.Verdict, j.Why = haven.VerdictShutdown, "its agent said that the host is shutting down"
	case s.off.proved:
		j.Verdict = haven.VerdictDead
		j.Why = fmt.Sprintf("its BMC said off %d times, nothing shows life since, and neighbours got no answer after the first", s.off.count)
		j.Hold = Hold{}
	case st.left != haven.LeaveNone:
		j.Verdict, j.Why = haven.VerdictStopped, fmt.Sprintf("its agent left on purpose (%s)", st.left)
	case s.agentFresh:
		s.concludeAlive(j)
	case !st.suspected && s.expected:
		j.Verdict, j.Why = haven.VerdictUnknown, "not heard yet"
		if st.verdict == haven.VerdictHealthy || st.verdict == haven.VerdictStorageLost {
			j.Verdict, j.Why = st.verdict, "not silent for long enough to be suspected"
		}
	case !st.suspected:
		j.Verdict, j.Why = haven.VerdictUnknown, "nothing is known of it here"
	case !s.networkDead():
		j.Verdict, j.Why = haven.VerdictSuspect, s.silentWhy()
		s.lackNetwork(j)
	default:
		s.concludeSilent(j)
	}
	if st.suspected && s.off.lacks != "" && !j.Verdict.Actionable() {
		j.Missing = append(j.Missing, "for a proof by the BMC: "+s.off.lacks)
		j.Hold = orHold(j.Hold, s.grace)
	}
}

// provedStands deals with a host whose newest boot the ledger holds for over.
// Signs of life of a boot that has not registered do not touch that proof;
// those of the same boot contradict it, if they are younger than the proof. A
// beat moves for a while after the last write, and what was on its way when the
// proof was made may arrive up to two intervals later.
func (s *sight) provedStands(j *Judgement) bool {
	h, over := s.h, s.st.provedAt.at+2*s.cfg.BeatInterval
	same := s.reportFresh && h.Report.Heard && h.Report.Boot == h.Boot && s.reportAt() > over
	for i := range h.Beats {
		b := &h.Beats[i]
		same = same || !b.Absent && b.Moving == haven.Yes && s.recent(b.ReadAt) && b.ChangedAt > over && b.Boot != "" && b.Boot == h.Boot
	}
	if same {
		j.Hold = newHold(haven.HoldContradiction, "the ledger holds a proof that this boot is over, and it shows signs of life", "", "it shows none any more, or a newer boot registers")
		return false
	}
	j.Verdict, j.Why = haven.VerdictDead, "the ledger holds a proof that its last boot is over; no newer one has registered"
	j.Hold = Hold{}
	return true
}

// concludeAlive judges a host whose agent lives on the network.
func (s *sight) concludeAlive(j *Judgement) {
	switch {
	case s.storeless:
		j.Verdict, j.Why = haven.VerdictHealthy, "its agent lives on the network; it is not to write beats"
	case s.agentBeat == haven.Yes:
		j.Verdict, j.Why = haven.VerdictHealthy, "its agent lives on the network and its beat moves"
	case s.agentBeat == haven.No && s.st.alive.within(s.now, s.cfg.StaleAfter):
		j.Verdict, j.Why = haven.VerdictHealthy, "its agent has come back on the network; its beat has not moved yet"
	case s.agentBeat == haven.No:
		j.Verdict, j.Why = haven.VerdictStorageLost, "its agent lives on the network and its beat stands still"
	case s.saysStorageLost():
		j.Verdict, j.Why = haven.VerdictStorageLost, "its agent lives on the network and says itself that no beat of it reaches a store"
	case s.st.verdict == haven.VerdictStorageLost:
		j.Verdict, j.Why = haven.VerdictStorageLost, "its agent lives on the network; its beat stood still, and now nothing is known of it"
	default:
		j.Verdict, j.Why = haven.VerdictHealthy, "its agent lives on the network; of its beats nothing is known"
	}
}

// saysStorageLost says whether the host's own agent finds none of its beats.
func (s *sight) saysStorageLost() bool {
	for i := range s.in.Observers {
		o := &s.in.Observers[i]
		if o.Host != s.h.ID || !s.recent(o.At) || len(o.Stores) == 0 {
			continue
		}
		for k := range o.Stores {
			if o.Stores[k].OwnBack != haven.No && !o.Stores[k].Hung {
				return false
			}
		}
		return true
	}
	return false
}

// unitWords is what the host's helper told last of the agent's unit, if anything.
func (s *sight) unitWords() string {
	var last *Probe
	for i := range s.h.Probes {
		p := &s.h.Probes[i]
		if p.Kind == haven.EvidenceProbeHelper && p.Result == haven.Yes && p.Detail != "" && p.Finished <= s.now &&
			(last == nil || p.Finished > last.Finished) {
			last = p
		}
	}
	if last == nil {
		return ""
	}
	return "; its helper says: " + last.Detail
}

// concludeSilent judges a host whose network is dead.
func (s *sight) concludeSilent(j *Judgement) {
	helper, st := s.helperState(), s.st
	switch {
	case s.agentBeat == haven.Yes:
		s.flags()
		if s.isolated == haven.Yes {
			j.Verdict, j.Why = haven.VerdictIsolated, "no network to it; its beat moves and says that it is isolated"
			return
		}
		j.Verdict, j.Why = haven.VerdictPartitioned, "no network to it; its beat moves"
		if s.seesOthers == haven.Yes {
			j.Why += " and says that it sees others"
		}
	case !s.storeless && s.agentBeat == haven.Unknown:
		s.concludeBlind(j)
	case helper == haven.Yes:
		j.Verdict, j.Why = haven.VerdictAgentDown, "its agent is dead on every path; its helper or network stack lives"+s.unitWords()
	case s.disk == haven.Yes:
		j.Verdict, j.Why = haven.VerdictUnreachable, "no network, no beat, but its VMs' disks change"
	case s.wrote():
		j.Verdict, j.Why = haven.VerdictUnreachable, "no network, no beat; its VMs' disks changed long after both were gone, and are not known to be idle now"
		j.Missing = append(j.Missing, "idle disks")
	case helper == haven.Unknown && st.helper.within(s.now, s.cfg.Silence):
		j.Verdict, j.Why = haven.VerdictSuspect, s.silentWhy()
		j.Missing = append(j.Missing, fmt.Sprintf("helper and network stack silent for %s of %s", round(s.now-st.helper.at), s.cfg.Silence))
	case helper == haven.Unknown:
		j.Verdict, j.Why = haven.VerdictUnknown, "its agent is dead on every path; of its helper nothing is known"
		j.Missing = append(j.Missing, "the helper's silence, by a neighbour's probe and by its beat")
	case s.storeless && !s.pathsDead():
		j.Verdict, j.Why = haven.VerdictUnknown, "silent, no store, and of its disks nothing is known"
		j.Hold = orHold(j.Hold, newHold(haven.HoldNeedsOperator, "it writes no beats, and of its disks nothing is known", "without a store a host is failed only if its disks are explicitly idle",
			"there is evidence of its disks or a proof by its BMC, an operator confirms by name, or fence_without_store is set"))
		j.Missing = append(j.Missing, "idle disks")
	default:
		s.concludeRounds(j)
	}
}

// concludeBlind judges a host with a dead network and beats nobody can tell of.
func (s *sight) concludeBlind(j *Judgement) {
	j.Verdict, j.Why = haven.VerdictUnknown, "no network to it; of its beat nothing is known"
	j.Missing = append(j.Missing, "its beat's stillness on a store whose reader can vouch for it")
	if s.outage.Held() {
		j.Why = "no network to it, and no store works for any reader"
		j.Hold = orHold(j.Hold, s.outage)
	}
}

// concludeRounds judges a host that is dead on every path at this moment.
func (s *sight) concludeRounds(j *Judgement) {
	st, cfg := s.st, s.cfg
	silent := s.now - s.allSilentSince()
	late := cfg.WaitForGossip && s.h.Gossip.State == GossipAlive
	j.Verdict, j.Why = haven.VerdictSuspect, fmt.Sprintf("dead on every path, all silent for %s", round(silent))
	lack := func(when bool, format string, args ...any) bool {
		if when {
			j.Missing = append(j.Missing, fmt.Sprintf(format, args...))
		}
		return when
	}
	lacking := lack(st.rounds < cfg.Rounds, "round %d of %d", st.rounds, cfg.Rounds)
	lacking = lack(silent < cfg.Silence, "all paths silent for %s of %s", round(silent), cfg.Silence) || lacking
	lacking = lack(late, "gossip to notice") || lacking
	lacking = lack(s.h.Boot == "", "a boot to recover: it never registered") || lacking
	if lacking {
		return
	}
	if s.grace.Held() {
		j.Missing = append(j.Missing, "the end of the start-up grace")
		j.Hold = orHold(j.Hold, s.grace)
		return
	}
	j.Verdict, s.fresh = haven.VerdictFailed, true
	j.Why = fmt.Sprintf("dead on every path for %s and %d rounds; power %s", round(silent), st.rounds, s.off.state)
	if s.off.state != haven.PowerOn {
		j.Why += ": proof missing"
	}
}

func (s *sight) lackNetwork(j *Judgement) {
	if d := s.now - s.silentSince(s.st.net); d < s.cfg.Silence {
		j.Missing = append(j.Missing, fmt.Sprintf("network silent for %s of %s", round(d), s.cfg.Silence))
	}
	if s.probes(haven.EvidenceProbeAgent, s.now-s.cfg.Silence, never) != haven.No {
		j.Missing = append(j.Missing, "a failing probe by every neighbour asked")
	}
}

func (s *sight) silentWhy() string {
	return fmt.Sprintf("no report and no answer from its agent, silent for %s", round(s.now-s.silentSince(s.st.net)))
}

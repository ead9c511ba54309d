package detector

import (
	"time"

	"github.com/haven-ha/haven"
)

// want asks for the evidence that is due. Looking is cheap and harmless, so it
// begins with the first suspicion; it is bounded in rate all the same.
func (s *sight) want(j *Judgement) {
	h, st := s.h, s.st
	if !h.Configured || h.Proved || h.ID == s.in.Self.Host || !st.suspected && !s.watchLeft() {
		st.probed, st.read = moment{}, moment{}
		return
	}
	every := s.cfg.Round
	switch j.Verdict {
	case haven.VerdictIsolated, haven.VerdictPartitioned, haven.VerdictAgentDown,
		haven.VerdictUnreachable, haven.VerdictStopped, haven.VerdictShutdown:
		// Nothing waits for a round there, but the answers that such a verdict
		// rests on must not grow stale between two looks.
		every = max(s.cfg.Round, min(s.cfg.Silence/4, s.cfg.ProbeFresh*3/4))
	case haven.VerdictUnknown, haven.VerdictHealthy, haven.VerdictSuspect,
		haven.VerdictStorageLost, haven.VerdictFailed, haven.VerdictDead:
	}
	// A proof needs probes that began after the first off: ask at once.
	after := s.off.count > 0 && s.off.first != st.offAt
	if !st.probed.within(s.now, every) || after {
		st.probed = moment{true, s.now}
		st.offAt = s.off.first
		j.WantProbes = []haven.EvidenceKind{haven.EvidenceProbeAgent, haven.EvidenceProbeHelper, haven.EvidenceProbeTCP}
		j.WantNeighbours = s.cfg.ProbeCount
	}
	if h.Role != haven.RoleWitness && !st.read.within(s.now, s.powerEvery()) {
		st.read = moment{true, s.now}
		j.WantPower = true
	}
}

// watchLeft says whether a host whose agent left is still worth looking at: its
// VMs run on, and the host under them can still die.
func (s *sight) watchLeft() bool {
	return s.st.left == haven.LeaveStopped || s.st.left == haven.LeaveShutdown
}

// powerEvery is the pace of BMC readings: the gap alone between the offs of one
// row, and slower the longer the trouble lasts.
func (s *sight) powerEvery() time.Duration {
	since := s.st.suspectedSince
	if !s.st.suspected {
		since = s.st.leftAt
	}
	switch age := s.now - since; {
	case s.off.count > 0 && !s.off.off:
		if s.now-s.off.first.at >= s.cfg.OffGap && s.st.read.at < s.off.first.at+s.cfg.OffGap {
			return 0
		}
		return s.cfg.PowerEvery
	case s.off.state == haven.PowerOff && s.off.count == 0 && !s.off.against && s.st.suspected && age <= 30*time.Second:
		// It said off before the last sign of life was seen, which may only
		// have been seen late: ask again soon.
		return max(s.cfg.OffGap, s.cfg.PowerEvery/4)
	case age > 5*time.Minute:
		return max(s.cfg.PowerEvery, 30*time.Second)
	case age > 30*time.Second || !s.st.suspected:
		return max(s.cfg.PowerEvery, 5*time.Second)
	}
	return s.cfg.PowerEvery
}

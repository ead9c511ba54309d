package detector

import (
	"fmt"
	"time"

	"github.com/haven-ha/haven"
)

// powerSight is what the BMC's readings come to.
type powerSight struct {
	state   haven.PowerState // of the newest reading that told
	first   moment           // end of the first off that counts and is not contradicted
	count   int              // such offs in a row, far enough apart
	off     bool             // enough of them
	proved  bool             // all conditions of a proof hold
	lacks   string           // what a proof still lacks, once there was an off
	against bool             // enough offs, and signs of life well after them
	doubt   bool             // … of this very boot
}

// readPower weighs the readings. Power off is proof at once if trusted readings
// repeat it, nothing shows life since, and everybody who can look agrees.
func (s *sight) readPower() powerSight {
	var p powerSight
	p.state = s.powerState()
	lastOn := s.lastOn()
	// Offs that began before the last sign of life are not proof of anything
	// that happened after it.
	since := lastOn
	if s.st.life.ok {
		since.raise(s.st.life.at)
	}
	for i := range s.h.Power {
		r := &s.h.Power[i]
		if !s.counts(r, since) {
			continue
		}
		p.consider(s, s.chain(r, since, false))
		if len(s.stores) == 0 && r.GUID == haven.Yes {
			// Only such readings will do; others among them must not be in the way.
			p.consider(s, s.chain(r, since, true))
		}
	}
	p.against, p.doubt = s.contradicted(lastOn)
	return p
}

// consider takes a row of offs into account. Any one row may prove; of the
// others the longest, and of these the earliest, is kept for people.
func (p *powerSight) consider(s *sight, r row) {
	lacks := s.proofLacks(r)
	better := r.count > p.count || r.count == p.count && r.first.at < p.first.at
	if p.proved || lacks != "" && !better {
		return
	}
	p.first, p.count, p.off = r.first, r.count, r.count >= s.cfg.OffReadings
	p.lacks, p.proved = lacks, lacks == ""
}

// counts says whether r is a fresh, believable off that began after since.
func (s *sight) counts(r *PowerReading, since moment) bool {
	return r.State == haven.PowerOff && r.Trusted && r.GUID != haven.No &&
		r.Started <= r.Finished && r.Finished <= s.now && s.now-r.Started <= s.cfg.OffFresh &&
		(!since.ok || r.Started > since.at)
}

// row is a row of offs of one device, each in another session than the one
// before and begun a gap after that one ended.
type row struct {
	first moment // end of the first
	count int    // at most as many as a proof needs
	nth   moment // end of the one that made the number full
	guid  bool   // each by a BMC whose GUID is the host's
}

// chain is the row that begins with start and takes the earliest next each time;
// if known, only of those by a BMC whose GUID is the host's.
func (s *sight) chain(start *PowerReading, since moment, known bool) row {
	w := row{first: moment{true, start.Finished}, guid: true}
	for r := start; r != nil; {
		w.count++
		w.guid = w.guid && r.GUID == haven.Yes
		if w.count == s.cfg.OffReadings {
			w.nth = moment{true, r.Finished}
			break
		}
		var next *PowerReading
		for i := range s.h.Power {
			q := &s.h.Power[i]
			if s.counts(q, since) && (!known || q.GUID == haven.Yes) && q.Device == r.Device && q.Session != r.Session &&
				q.Started-r.Finished >= s.cfg.OffGap && (next == nil || q.Finished < next.Finished) {
				next = q
			}
		}
		r = next
	}
	return w
}

// lastOn is the end of the last reading that said on. Whoever's word it is, an
// on breaks a row of offs.
func (s *sight) lastOn() (on moment) {
	for i := range s.h.Power {
		if r := &s.h.Power[i]; r.State == haven.PowerOn && r.Finished <= s.now {
			on.raise(r.Finished)
		}
	}
	return on
}

func (s *sight) powerState() haven.PowerState {
	state, newest := haven.PowerUnknown, never
	for i := range s.h.Power {
		r := &s.h.Power[i]
		told := r.State == haven.PowerOn || r.State == haven.PowerOff
		if told && r.Finished <= s.now && s.now-r.Finished <= s.cfg.OffFresh && r.Finished >= newest {
			state, newest = r.State, r.Finished
		}
	}
	return state
}

// beatMargin is how old the host's newest beat must be before an off is
// believed, and how long after an off life must show to contradict it.
func (s *sight) beatMargin() time.Duration {
	interval := s.cfg.BeatInterval
	for i := range s.h.Beats {
		if b := &s.h.Beats[i]; !b.Absent {
			interval = max(interval, b.Interval)
		}
	}
	return time.Duration(s.cfg.OffBeatAge * float64(interval))
}

// proofLacks names the first condition of a proof that does not hold.
func (s *sight) proofLacks(p row) string {
	switch {
	case p.count < s.cfg.OffReadings:
		return fmt.Sprintf("power off read %d of %d times", p.count, s.cfg.OffReadings)
	case !s.trusted:
		return "a trusted observer"
	case s.reportFresh || s.agentFresh:
		return "a silent network"
	case s.h.Boot == "":
		return "a boot to prove dead: it never registered"
	}
	asked := max(p.first.at, s.trustedSince)
	if s.probes(haven.EvidenceProbeAgent, never, asked) != haven.No {
		return "a neighbour's failing probe after the first off"
	}
	// A stopped agent answers nobody: its silence says nothing of the host.
	if s.st.left != haven.LeaveNone && s.probes(haven.EvidenceProbeHelper, never, asked) != haven.No {
		return "a neighbour's failing probe of the helper after the first off"
	}
	if lacks := s.beatsOld(p.guid); lacks != "" {
		return lacks
	}
	if s.grace.Held() {
		return "the end of the start-up grace"
	}
	return ""
}

// beatsOld checks the beats against an off. If stores are configured and nobody
// can vouch for any, the one thing that would show a BMC to be another host's
// is missing: then only a matching GUID makes its word a proof.
func (s *sight) beatsOld(guid bool) string {
	if s.storeless {
		return ""
	}
	if len(s.stores) == 0 {
		if guid {
			return ""
		}
		return "a readable store, or a BMC whose GUID is known to be this host's"
	}
	margin := s.beatMargin()
	for i := range s.h.Beats {
		if b := &s.h.Beats[i]; !b.Absent && b.Changed && s.now-b.ChangedAt <= margin {
			return fmt.Sprintf("its beats to be older than %s: %s on %s is not", round(margin), b.Writer.kind(), b.Store)
		}
	}
	for _, store := range s.stores {
		for _, w := range [...]Writer{WriterAgent, WriterHelper} {
			if !s.stillOn(store, w, margin, false) {
				return fmt.Sprintf("a reading of its %s on %s", w.kind(), store)
			}
		}
	}
	return ""
}

// contradicted says whether life showed well after enough offs, and whether it
// was of the very boot the offs were about. Words that were under way while the
// power went are late by less than the margin. Offs that were read before the
// present boot registered were about the one before, and life of the present one
// does not contradict them.
func (s *sight) contradicted(lastOn moment) (against, sameBoot bool) {
	if s.st.bootAt.ok {
		lastOn.raise(s.st.bootAt.at)
	}
	var full moment
	for i := range s.h.Power {
		if r := &s.h.Power[i]; s.counts(r, lastOn) {
			if w := s.chain(r, lastOn, false); w.nth.ok && (!full.ok || w.nth.at < full.at) {
				full = w.nth
			}
		}
	}
	if !full.ok || !s.st.life.ok {
		return false, false
	}
	after := full.at + s.beatMargin()
	against = s.st.life.at > after
	if r := &s.h.Report; r.Heard && r.Boot != "" && r.Boot == s.h.Boot && s.reportAt() > after {
		sameBoot = true
	}
	for i := range s.h.Beats {
		b := &s.h.Beats[i]
		if b.Changed && !b.Absent && b.Boot != "" && b.Boot == s.h.Boot && b.ChangedAt > after && b.ChangedAt <= s.now {
			sameBoot = true
		}
	}
	return against, against && sameBoot
}

package storagebeat

import (
	"fmt"
	"maps"
	"slices"
	"time"

	haven "github.com/haven-ha/haven"
)

// Snapshot judges all beats as of now. It changes nothing, so it may be asked
// at any time, also while a read hangs: what was read only gets older.
func (t *Tracker) Snapshot(now time.Time) Snapshot {
	var s Snapshot
	names := make(map[haven.HostID]bool)
	for _, h := range t.cfg.Hosts {
		names[h] = true
	}
	for k := range t.tracks {
		names[k.host] = true
	}
	for _, h := range slices.Sorted(maps.Keys(names)) {
		s.Hosts = append(s.Hosts, HostView{
			Host:   h,
			Agent:  t.view(now, key{h, WriterAgent}),
			Helper: t.view(now, key{h, WriterHelper}),
		})
	}
	s.Health = t.health(now, s.Hosts)
	return s
}

// current says why nothing can be judged now; it is empty when the last
// reading was good and is not too old.
func (t *Tracker) current(now time.Time) string {
	switch {
	case t.err != nil:
		return fmt.Sprintf("store cannot be read: %v", t.err)
	case !t.good:
		return "store was not read yet"
	case now.Sub(t.start) > t.cfg.maxGap():
		return fmt.Sprintf("store was last read %s ago", now.Sub(t.start).Round(time.Millisecond))
	}
	return ""
}

func (t *Tracker) view(now time.Time, k key) View {
	tr := t.tracks[k]
	blind := t.current(now)
	if tr == nil {
		if blind == "" && t.nameless {
			return View{Why: whyNameless}
		}
		if blind == "" {
			return View{Why: whyMissing, Missing: true, Lively: t.lively(k.host)}
		}
		return View{Why: blind}
	}
	v := View{Seen: tr.seen, Beat: tr.beat}
	if tr.seen {
		v.Age = now.Sub(tr.start)
	}
	if blind != "" {
		v.Why = blind
		return v
	}
	v.Lively = t.lively(k.host)
	if tr.problem != nil {
		v.Why = tr.problem.Error()
		return v
	}
	v.Left, v.Whole = tr.beat.Left, tr.seen
	if until, ok := t.liveUntil(k.host); ok && v.Lively {
		v.Silent = max(0, until.Sub(tr.quiet))
	}
	v.Moving, v.Why = t.judge(v, tr.moved)
	return v
}

// judge decides on a valid record in a current reading. Silence is certain
// from the end of one read to the start of another, so it falls short of the time
// that passed by the length of a read; a quarter of an interval is forgiven, or
// each stale time would cost one read more.
func (t *Tracker) judge(v View, moved bool) (haven.Tri, string) {
	stale := max(t.cfg.StaleAfter, 3*min(v.Beat.Interval, time.Hour))
	switch {
	case !moved:
		return haven.Unknown, "not seen to move since this reader first read it"
	case v.Age < stale:
		return haven.Yes, fmt.Sprintf("sequence %d", v.Beat.Sequence)
	case v.Silent >= stale-t.cfg.Interval/4:
		return haven.No, whyStill(v.Silent)
	case !v.Lively:
		return haven.Unknown, "stands still, but no other host's beat moves either"
	}
	return haven.Unknown, fmt.Sprintf("stands still; others' beats moved for only %s of that time", v.Silent.Round(time.Millisecond))
}

func (t *Tracker) health(now time.Time, hosts []HostView) Health {
	h := Health{ID: t.store, OwnReadBack: t.own, Problem: t.ownWhy, Alone: t.pair()}
	if t.good {
		h.ReadAge, h.ReadLatency = now.Sub(t.start), t.end.Sub(t.start)
	}
	blind := t.current(now)
	switch {
	case blind == "":
		h.Readable = haven.Yes
	case t.err != nil:
		h.Readable = haven.No
	}
	if blind != "" {
		h.OwnReadBack, h.Problem = haven.Unknown, blind
	}
	for _, hv := range hosts {
		if hv.Host == t.cfg.Self || !slices.Contains(t.cfg.Hosts, hv.Host) {
			continue
		}
		switch {
		case hv.Agent.Moving == haven.Yes || hv.Helper.Moving == haven.Yes:
			h.OthersMoving++
		case t.stopped(now, hv.Host):
			h.OthersStopped++
		}
	}
	h.Outage = t.outage(now, h)
	return h
}

// stopped says whether a host's beats moved once, do so no more, and that
// without a farewell.
func (t *Tracker) stopped(now time.Time, host haven.HostID) bool {
	stopped := false
	for _, w := range []Writer{WriterAgent, WriterHelper} {
		tr := t.tracks[key{host, w}]
		if tr == nil || !tr.moved || tr.beat.Left != haven.LeaveNone {
			continue
		}
		if now.Sub(tr.start) < t.cfg.StaleAfter {
			return false
		}
		stopped = true
	}
	return stopped
}

func (t *Tracker) outage(now time.Time, h Health) string {
	switch {
	case t.err != nil && now.Sub(t.failing) >= t.cfg.StaleAfter:
		return fmt.Sprintf("cannot be read for %s: %v", now.Sub(t.failing).Round(time.Second), t.err)
	case t.err == nil && t.good && now.Sub(t.start) >= t.cfg.StaleAfter:
		return fmt.Sprintf("no read completed for %s", now.Sub(t.start).Round(time.Second))
	case h.OthersMoving == 0 && h.OthersStopped > 0 && (!h.Alone || h.OwnReadBack != haven.Yes):
		return fmt.Sprintf("the beats of all other hosts stopped (%d)", h.OthersStopped)
	}
	return ""
}

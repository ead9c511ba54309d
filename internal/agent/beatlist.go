package agent

import (
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/recovery"
	"github.com/haven-ha/haven/storagebeat"
)

// beatLists knows how old the lists of VMs in beats can be at most. It belongs
// to the judge loop.
//
// A record does not tell when it was written, and one that hung in the storage
// may land minutes later. But a writer makes the content of a record only after
// its write before that one ended. So the content of the present record is newer
// than the landing of the record that was seen before it, and that one landed
// after the start of the last read that did not show it yet.
type beatLists struct {
	oldest  time.Duration // of a list when its record's write begins
	records map[recordKey]*recordSeen
}

type recordKey struct {
	store  string
	host   haven.HostID
	writer storagebeat.Writer
}

// recordSeen is what was seen of one beat: the present record, the start of the
// last read that showed it, and of the last reads that did not yet show it and
// the one before it.
type recordSeen struct {
	beat              storagebeat.Beat
	shown             time.Time
	without, previous time.Time
}

func newBeatLists(oldest time.Duration) *beatLists {
	return &beatLists{oldest: oldest, records: map[recordKey]*recordSeen{}}
}

// look takes in what the stores show and returns each host's freshest list.
func (l *beatLists) look(now time.Time, snaps []storagebeat.Snapshot) map[haven.HostID]recovery.BeatList {
	lists := map[haven.HostID]recovery.BeatList{}
	for _, snap := range snaps {
		read := now.Add(-snap.Health.ReadAge)
		for _, h := range snap.Hosts {
			best := lists[h.Host]
			best = l.better(best, recordKey{snap.Store, h.Host, storagebeat.WriterAgent}, h.Agent, read)
			best = l.better(best, recordKey{snap.Store, h.Host, storagebeat.WriterHelper}, h.Helper, read)
			lists[h.Host] = best
		}
	}
	return lists
}

func (l *beatLists) better(best recovery.BeatList, key recordKey, v storagebeat.View, read time.Time) recovery.BeatList {
	if v.Moving != haven.Yes {
		return best
	}
	seen := l.records[key]
	if seen == nil {
		seen = new(recordSeen)
		l.records[key] = seen
	}
	seen.take(v.Beat, read)
	since := seen.previous.Add(-l.oldest)
	if !v.Beat.Complete || seen.previous.IsZero() {
		return best
	}
	// A list of a host that stops its VMs is worth more than a fresher one of its
	// helper, which does not know of that.
	releasing := v.Beat.Releasing && key.writer == storagebeat.WriterAgent
	if releasing == best.Releasing && !since.After(best.Since) || best.Releasing && !releasing {
		return best
	}
	return recovery.BeatList{Complete: true, VMs: v.Beat.VMs, Since: since, Boot: v.Beat.Boot, Releasing: releasing}
}

func (r *recordSeen) take(b storagebeat.Beat, read time.Time) {
	sameLife := b.Boot == r.beat.Boot && b.State == r.beat.State && b.Incarnation == r.beat.Incarnation
	switch {
	case r.shown.IsZero() || !sameLife || b.Sequence < r.beat.Sequence:
		*r = recordSeen{beat: b, shown: read}
	case b.Sequence == r.beat.Sequence:
		r.shown = read
	default:
		*r = recordSeen{beat: b, shown: read, without: r.shown, previous: r.without}
	}
}

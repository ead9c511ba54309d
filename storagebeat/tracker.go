package storagebeat

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	haven "github.com/haven-ha/haven"
)

// ErrOlder says that a record is older than one that was read before: a write
// that landed late, a restored file, or a writer that should be gone.
var ErrOlder = errors.New("older than what was read before")

// pastLives is how many superseded lives of one writer are remembered. A
// record of a life older than these would be taken for a new one, and would
// still have to move before it counts.
const pastLives = 16

// TrackerConfig says whose beats are judged, and how. Hosts are the hosts that
// are expected to write to this store; only their beats show that it works.
type TrackerConfig struct {
	Self     haven.HostID
	Writer   Writer
	Hosts    []haven.HostID
	Interval time.Duration // of the beats
	// StaleAfter is how long a beat must stand still to be stale. It is never
	// less than 3 of the intervals that the beat itself declares.
	StaleAfter time.Duration
}

// Readings further apart than this do not show what happened between them, and
// a beat of another host that changed longer ago than this does not show that
// the store works now. A healthy beat read once an interval shows a change
// after at most two, because the phases of writer and reader drift.
func (c TrackerConfig) maxGap() time.Duration { return c.Interval * 5 / 2 }

// Reading is one attempt to read a whole store.
type Reading struct {
	Start, End time.Time // by the reader's monotonic clock
	Err        error     // of the whole attempt; all else below is void then
	Store      StoreID
	Beats      []RawBeat
	Own        Own
}

// Own is what the reader itself wrote before the reading started.
type Own struct {
	Boot        haven.BootID
	State       haven.StateID
	Incarnation haven.Incarnation
	Attempted   uint64    // the highest sequence that was tried; 0 when none
	Completed   uint64    // the highest sequence that the store confirmed; 0 when none
	Since       time.Time // the start of the write of Completed
}

type key struct {
	host   haven.HostID
	writer Writer
}

// track is all that is remembered of one beat.
type track struct {
	seen    bool // a valid record was read; beat is the newest
	beat    Beat
	moved   bool      // its sequence was seen to change in this life
	start   time.Time // of the read that last saw a new sequence, or the first record of a life
	quiet   time.Time // from when on silence counts
	problem error     // why the last good reading showed no valid record; nil when it did
	past    []life    // lives that ended
}

// Tracker judges from readings of one store which beats move. It is pure: it has
// no clock, does no I/O, and is not safe for concurrent use.
type Tracker struct {
	cfg      TrackerConfig
	store    StoreID
	tracks   map[key]*track
	expected map[haven.HostID]bool // the hosts of cfg, but for the reader
	// latest are the expected hosts whose beats were seen to move last, at most
	// two and the latest first: one of them is not the subject, whoever that is.
	latest []sighting
	// nameless says that the last good reading showed a damaged record whose host
	// cannot be told: then no host's record is missing for sure.
	nameless bool

	good       bool      // there was a good reading
	start, end time.Time // of the last good one
	err        error     // of the last reading
	failing    time.Time // start of the first reading of those that failed since the last good one
	own        haven.Tri
	ownWhy     string
}

// NewTracker returns a tracker that has read nothing.
func NewTracker(cfg TrackerConfig) *Tracker {
	t := &Tracker{cfg: cfg, tracks: make(map[key]*track)}
	t.SetHosts(cfg.Hosts)
	return t
}

// sighting is when a host's beat was last seen to move.
type sighting struct {
	host haven.HostID
	at   time.Time
}

// SetHosts changes the hosts that are expected to write to this store. Leave
// out a host that is known to be down for good: when no other is left, the own
// beat must stand in for those of others.
func (t *Tracker) SetHosts(hosts []haven.HostID) {
	t.cfg.Hosts = slices.Clone(hosts)
	t.expected = make(map[haven.HostID]bool, len(hosts))
	for _, h := range hosts {
		if h != t.cfg.Self {
			t.expected[h] = true
		}
	}
	t.rank()
}

// rank finds the expected hosts that were seen to move last.
func (t *Tracker) rank() {
	last := make(map[haven.HostID]time.Time, len(t.expected))
	for k, tr := range t.tracks {
		if tr.moved && t.expected[k.host] && tr.start.After(last[k.host]) {
			last[k.host] = tr.start
		}
	}
	t.latest = t.latest[:0]
	for host, at := range last {
		i := 0
		for i < len(t.latest) && !at.After(t.latest[i].at) {
			i++
		}
		if i < 2 {
			t.latest = slices.Insert(t.latest, i, sighting{host, at})
			t.latest = t.latest[:min(2, len(t.latest))]
		}
	}
}

// Step takes one reading. Readings come in order of time.
func (t *Tracker) Step(r Reading) {
	if r.Err != nil {
		if t.err == nil {
			t.failing = r.Start
		}
		t.err, t.own, t.ownWhy = r.Err, haven.Unknown, ""
		return
	}
	if r.Store != t.store {
		t.store = r.Store
		t.good = false
		clear(t.tracks)
		t.rank()
	}
	follows := t.good && t.err == nil && r.Start.Sub(t.start) <= t.cfg.maxGap()
	changed := t.take(r)
	t.good, t.err, t.start, t.end = true, nil, r.Start, r.End
	t.own, t.ownWhy = t.judgeOwn(r)
	t.rank()
	for k, tr := range t.tracks {
		if changed[k] || tr.problem != nil || !follows || !t.lively(k.host) {
			tr.quiet = r.End
		}
	}
}

// take stores the records of a reading and returns which beats showed something new.
func (t *Tracker) take(r Reading) map[key]bool {
	present, changed := make(map[key]bool), make(map[key]bool)
	t.nameless = false
	for _, raw := range r.Beats {
		if raw.Host == "" {
			t.nameless = true
			continue
		}
		k := key{raw.Host, raw.Writer}
		present[k] = true
		tr := t.tracks[k]
		if tr == nil {
			tr = &track{}
			t.tracks[k] = tr
		}
		b, err := DecodeAt(r.Store, raw)
		if err != nil {
			tr.problem = err
			continue
		}
		if tr.take(b, r.Start) {
			changed[k] = true
		}
	}
	for k, tr := range t.tracks {
		if present[k] {
			continue
		}
		tr.problem = errors.New(whyMissing)
		if !slices.Contains(t.cfg.Hosts, k.host) {
			delete(t.tracks, k)
		}
	}
	return changed
}

// take stores one valid record and says whether it is new.
func (tr *track) take(b Beat, start time.Time) bool {
	tr.problem = nil
	if tr.seen && b.life() == tr.beat.life() {
		switch cmp.Compare(b.Sequence, tr.beat.Sequence) {
		case 0:
			return false
		case 1:
			tr.beat, tr.moved, tr.start = b, true, start
			return true
		}
		tr.problem = fmt.Errorf("sequence %d after %d: %w", b.Sequence, tr.beat.Sequence, ErrOlder)
		return false
	}
	if tr.seen {
		if tr.superseded(b) {
			tr.problem = fmt.Errorf("incarnation %d of boot %s: %w", b.Incarnation, b.Boot, ErrOlder)
			return false
		}
		tr.past = append(tr.past, tr.beat.life())
		if len(tr.past) > pastLives {
			tr.past = slices.Delete(tr.past, 0, 1)
		}
	}
	// A new life is a new baseline: it has to move before it counts.
	tr.seen, tr.beat, tr.moved, tr.start = true, b, false, start
	return true
}

// superseded says whether a record of another life is of an earlier one.
func (tr *track) superseded(b Beat) bool {
	if b.State == tr.beat.State && b.Incarnation < tr.beat.Incarnation {
		return true
	}
	return slices.ContainsFunc(tr.past, func(p life) bool {
		return p.boot == b.Boot && b.Boot != tr.beat.Boot || p.state == b.State && b.State != tr.beat.State
	})
}

func (t *Tracker) judgeOwn(r Reading) (haven.Tri, string) {
	if r.Own.Attempted == 0 {
		return haven.Unknown, ""
	}
	if r.Own.Completed == 0 || r.Start.Sub(r.Own.Since) > t.cfg.StaleAfter {
		return haven.No, whyUnwritten
	}
	i := slices.IndexFunc(r.Beats, func(raw RawBeat) bool { return raw.Host == t.cfg.Self && raw.Writer == t.cfg.Writer })
	if i < 0 {
		return haven.No, "own beat was written but is not there"
	}
	b, err := DecodeAt(r.Store, r.Beats[i])
	if err != nil {
		return haven.No, fmt.Sprintf("own beat was written but cannot be read: %v", err)
	}
	if b.life() != (life{r.Own.Boot, r.Own.State, r.Own.Incarnation}) {
		return haven.No, fmt.Sprintf("another writer uses this host's name: boot %s, incarnation %d", b.Boot, b.Incarnation)
	}
	// A write that was given up may still have landed.
	if b.Sequence < r.Own.Completed || b.Sequence > r.Own.Attempted {
		return haven.No, fmt.Sprintf("own beat reads as %d after %d was written", b.Sequence, r.Own.Completed)
	}
	return haven.Yes, ""
}

// alone says whether no host but the reader and the subject is expected here.
// Then the reader's own beat vouches for the store, else those of the others.
func (t *Tracker) alone(subject haven.HostID) bool {
	return len(t.expected) == 0 || len(t.expected) == 1 && t.expected[subject]
}

// pair says whether the reader has to judge one host all alone.
func (t *Tracker) pair() bool { return len(t.expected) <= 1 }

// liveUntil is the start of the last reading that saw the beat of a host that
// vouches for the store when subject is judged move. The subject's silence counts
// up to then: what happened on the store later is not known.
func (t *Tracker) liveUntil(subject haven.HostID) (at time.Time, ok bool) {
	if t.alone(subject) {
		if subject == t.cfg.Self {
			return time.Time{}, false
		}
		for _, w := range []Writer{WriterAgent, WriterHelper} {
			if tr := t.tracks[key{t.cfg.Self, w}]; tr != nil && tr.moved && (!ok || tr.start.After(at)) {
				at, ok = tr.start, true
			}
		}
		return at, ok
	}
	for _, s := range t.latest {
		if s.host != subject {
			return s.at, true
		}
	}
	return time.Time{}, false
}

// lively says whether other hosts' beats moved lately when the store was last read.
func (t *Tracker) lively(subject haven.HostID) bool {
	at, ok := t.liveUntil(subject)
	return ok && t.start.Sub(at) <= t.cfg.maxGap()
}

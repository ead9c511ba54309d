package notify

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Limits bounds what one target is sent and what is kept for it.
type Limits struct {
	// PerMinute is the most messages within any minute. What is more becomes one
	// summary. At least 1.
	PerMinute int
	// Pending is the most events that wait. What is more is dropped, the least
	// severe first. At least 1.
	Pending int
	// Remind is how long a standing event is not told again: what comes meanwhile
	// is counted.
	Remind time.Duration
	// Repeat is the same for a happening; it only swallows stutter.
	Repeat time.Duration
	// FirstPause and MostPause are the pauses after the first failure, and at most;
	// each is twice the one before.
	FirstPause, MostPause time.Duration
	// MaxAge is how old a waiting event may become before it is dropped.
	MaxAge time.Duration
	// Refusals is how often a target may refuse a message for good before it is
	// dropped, so that one that it can never take does not hold up the others.
	Refusals int
}

// DefaultLimits are those of the configuration's defaults.
func DefaultLimits() Limits {
	return Limits{
		PerMinute: 10, Pending: 500, Remind: time.Hour, Repeat: time.Minute,
		FirstPause: 5 * time.Second, MostPause: 5 * time.Minute, MaxAge: 24 * time.Hour, Refusals: 5,
	}
}

// first is how many events a summary names.
const first = 5

// maxTold bounds the memory of what was told.
const maxTold = 4096

// Message is what a target is sent: one event, or a summary of several.
type Message struct {
	Event
	// Count is how often the event was told since it was sent last, this time
	// included.
	Count int
	// Number tells the sendings of one event apart: 0 is the first.
	Number int
	// Dropped is how many events were dropped since the last message.
	Dropped int
	// Summary has the kinds and their counts, and First the first few events, the
	// most severe first. Both are empty unless the message is a summary.
	Summary []KindCount
	First   []Event
}

// KindCount is how many events there are of a kind.
type KindCount struct {
	Kind  string `json:"kind"`
	Count int    `json:"count"`
}

// Queue decides what one target is sent, and when. It is pure: it has no clock
// and sends nothing. It is not safe for concurrent use.
type Queue struct {
	limits   Limits
	standing func(kind string) bool // says whether a kind is standing
	waiting  []*entry               // in the order in which they came
	told     map[string]*memo
	seq      int64

	sends    []time.Time // within the last minute, whether they succeeded or not
	flight   []*entry    // what Next returned and is neither sent nor failed
	reported int         // drops that the message in flight tells
	dropped  int         // not told yet
	failures int         // in a row
	notUntil time.Time
	batches  int64
	lost     uint64
}

type entry struct {
	Event
	seq      int64
	count    int
	number   int
	refusals int
	added    time.Time
	flying   bool
}

// memo is what is remembered of an event that was sent, or waits.
type memo struct {
	sent    time.Time // zero: never
	number  int       // of the next sending
	skipped int       // told since, and not sent
	used    int64
}

// NewQueue makes a queue. The function says which kinds are standing.
func NewQueue(l Limits, standing func(kind string) bool) *Queue {
	l.PerMinute, l.Pending = max(l.PerMinute, 1), max(l.Pending, 1)
	return &Queue{limits: l, standing: standing, told: map[string]*memo{}}
}

// Add takes an event that came now.
func (q *Queue) Add(now time.Time, e Event) {
	q.seq++
	if w := q.find(e.ID); w != nil {
		w.count++
		if e.Severity >= w.Severity {
			w.Event = e // the latest words
		}
		return
	}
	m := q.memo(e.ID)
	if quiet := q.quiet(e.Kind); !m.sent.IsZero() && now.Sub(m.sent) < quiet {
		m.skipped++
		return
	}
	w := &entry{Event: e, seq: q.seq, count: 1 + m.skipped, number: m.number, added: now}
	if m.number > 0 && q.standing(e.Kind) {
		w.Reminder = true
	}
	q.waiting = append(q.waiting, w)
	for len(q.waiting) > q.limits.Pending {
		q.drop(q.victim())
	}
}

func (q *Queue) quiet(kind string) time.Duration {
	if q.standing(kind) {
		return q.limits.Remind
	}
	return q.limits.Repeat
}

// find returns the waiting entry of an event. What is on its way cannot take a
// repetition any more.
func (q *Queue) find(id string) *entry {
	for _, w := range q.waiting {
		if w.ID == id && !w.flying {
			return w
		}
	}
	return nil
}

// memo returns what is remembered of an event, and forgets what was not heard of
// for longest when that is too much.
func (q *Queue) memo(id string) *memo {
	m := q.told[id]
	if m == nil {
		if len(q.told) >= maxTold {
			oldest, least := "", int64(0)
			for k, v := range q.told {
				if oldest == "" || v.used < least {
					oldest, least = k, v.used
				}
			}
			delete(q.told, oldest)
		}
		m = &memo{}
		q.told[id] = m
	}
	m.used = q.seq
	return m
}

// victim is what is dropped first: the least severe, of those the oldest, and
// what is on its way last of all of its severity.
func (q *Queue) victim() *entry {
	return slices.MinFunc(q.waiting, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), compareBool(a.flying, b.flying), cmp.Compare(a.seq, b.seq))
	})
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func (q *Queue) drop(w *entry) {
	q.remove(w)
	if w.flying {
		return // It is on its way: whether it is lost shows when that ends.
	}
	q.dropped++
	q.lost++
}

func (q *Queue) remove(w *entry) {
	q.waiting = slices.DeleteFunc(q.waiting, func(o *entry) bool { return o == w })
}

// Next returns what is to be sent now. When there is nothing, it returns when to
// ask again; zero means not before the next Add. After it returned a message,
// Sent or Failed must be called before it is asked again.
func (q *Queue) Next(now time.Time) (m Message, ok bool, again time.Time) {
	if len(q.flight) > 0 {
		return Message{}, false, time.Time{}
	}
	q.expire(now)
	q.sends = slices.DeleteFunc(q.sends, func(at time.Time) bool { return now.Sub(at) >= time.Minute })
	switch {
	case len(q.waiting) == 0:
		return Message{}, false, time.Time{}
	case now.Before(q.notUntil):
		return Message{}, false, q.notUntil
	case len(q.sends) >= q.limits.PerMinute:
		return Message{}, false, q.sends[0].Add(time.Minute)
	}
	batch := slices.Clone(q.waiting)
	slices.SortStableFunc(batch, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), cmp.Compare(a.seq, b.seq))
	})
	if len(q.sends) < q.limits.PerMinute-1 || len(batch) == 1 {
		batch = batch[:1]
		m = Message{Event: batch[0].Event, Count: batch[0].count, Number: batch[0].number}
	} else { // the last one within this minute tells everything
		m = q.summary(now, batch)
	}
	for _, w := range batch {
		w.flying = true
	}
	q.flight, q.reported, m.Dropped = batch, q.dropped, q.dropped
	q.sends = append(q.sends, now)
	return m, true, time.Time{}
}

// expire drops what has waited for too long.
func (q *Queue) expire(now time.Time) {
	for _, w := range slices.Clone(q.waiting) {
		if now.Sub(w.added) > q.limits.MaxAge {
			q.drop(w)
		}
	}
}

func (q *Queue) summary(now time.Time, batch []*entry) Message {
	q.batches++
	most := batch[0]
	m := Message{Count: 0}
	m.Event = Event{
		ID:   NewID(KindSummary, string(most.By), now.UTC().Format("20060102T150405Z"), fmt.Sprint(q.batches)),
		Kind: KindSummary, Severity: most.Severity, Cluster: most.Cluster, By: most.By, Time: now,
	}
	counts := map[string]int{}
	for _, w := range batch {
		counts[w.Kind] += w.count
		m.Count += w.count
		if len(m.First) < first {
			m.First = append(m.First, w.Event)
		}
	}
	for kind, n := range counts {
		m.Summary = append(m.Summary, KindCount{kind, n})
	}
	slices.SortFunc(m.Summary, func(a, b KindCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Kind, b.Kind))
	})
	m.Text = fmt.Sprintf("%d events in short order; the most severe: %s", m.Count, most.Text)
	m.Do = "Look: haven status, haven incidents"
	return m
}

// Sent says that what Next returned was sent.
func (q *Queue) Sent(now time.Time) {
	for _, w := range q.flight {
		q.remove(w)
		m := q.memo(w.ID)
		m.sent, m.number, m.skipped = now, w.number+1, 0
		q.absorb(m, w)
	}
	q.dropped -= q.reported
	q.land()
	q.failures, q.notUntil = 0, time.Time{}
}

// absorb takes what came of an event while it was on its way: a repetition is only
// counted, unless it is more severe than what was told.
func (q *Queue) absorb(m *memo, told *entry) {
	again := q.find(told.ID)
	switch {
	case again == nil:
	case again.Severity > told.Severity:
		again.number, again.Reminder = m.number, again.Reminder || q.standing(again.Kind)
	default:
		m.skipped += again.count
		q.remove(again)
	}
}

// Failed says that what Next returned was not sent. The target asked to be left
// alone for the given time, if it is more than zero; for good says that it will
// never take the message.
func (q *Queue) Failed(now time.Time, after time.Duration, forGood bool) {
	pause := q.limits.FirstPause
	for range min(q.failures, 30) {
		pause = min(2*pause, q.limits.MostPause)
	}
	q.failures++
	q.notUntil = now.Add(max(pause, min(after, 2*q.limits.MostPause)))
	for _, w := range q.flight {
		w.flying = false
		if forGood {
			w.refusals++
		}
		if q.isWaiting(w) && w.refusals < q.limits.Refusals {
			continue
		}
		q.drop(w) // It was squeezed out on its way, or is refused for good.
	}
	q.land()
}

func (q *Queue) isWaiting(w *entry) bool { return slices.Contains(q.waiting, w) }

func (q *Queue) land() { q.flight, q.reported = nil, 0 }

// Len is how many events wait.
func (q *Queue) Len() int { return len(q.waiting) }

// Lost is how many events were dropped since the queue was made.
func (q *Queue) Lost() uint64 { return q.lost }

// Failures is how many sendings failed in a row.
func (q *Queue) Failures() int { return q.failures }

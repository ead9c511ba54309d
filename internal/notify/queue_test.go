package notify

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Date(2026, 11, 22, 5, 0, 0, 0, time.UTC)

func at(d time.Duration) time.Time { return start.Add(d) }

func event(kind, id string, s Severity) Event {
	return Event{ID: id, Kind: kind, Severity: s, Text: "text of " + id, By: "kvm-01", Cluster: "prod-a"}
}

func standing(kind string) bool { return NewCatalogue().Lookup(kind).Standing }

func newQueue(change func(*Limits)) *Queue {
	l := DefaultLimits()
	if change != nil {
		change(&l)
	}
	return NewQueue(l, standing)
}

// next takes what must be there.
func next(t *testing.T, q *Queue, now time.Time) Message {
	t.Helper()
	m, ok, again := q.Next(now)
	if !ok {
		t.Fatalf("nothing to send; again %v", again)
	}
	return m
}

func none(t *testing.T, q *Queue, now, again time.Time) {
	t.Helper()
	m, ok, at := q.Next(now)
	if ok || !at.Equal(again) {
		t.Fatalf("got %v (%v), ask again at %v; want nothing and %v", m.ID, ok, at, again)
	}
}

func TestQueueTellsOnceAndReminds(t *testing.T) {
	q := newQueue(nil)
	held := event("hold-lasts", "hold-lasts/i1", Critical)
	q.Add(at(0), held)
	if m := next(t, q, at(0)); m.Count != 1 || m.Number != 0 || m.Reminder {
		t.Errorf("first: %+v", m)
	}
	q.Sent(at(time.Second))
	for i := range 5 {
		q.Add(at(time.Duration(i+1)*10*time.Minute), held)
	}
	none(t, q, at(50*time.Minute), time.Time{})
	q.Add(at(61*time.Minute), held)
	if m := next(t, q, at(61*time.Minute)); m.Count != 6 || m.Number != 1 || !m.Reminder {
		t.Errorf("reminder: count %d, number %d, reminder %v", m.Count, m.Number, m.Reminder)
	}
	q.Sent(at(61 * time.Minute))

	// A happening that comes again is news again, and no reminder.
	ended := event("vm-ended", "vm-ended/v1", Warning)
	q.Add(at(61*time.Minute), ended)
	next(t, q, at(61*time.Minute))
	q.Add(at(61*time.Minute+time.Second), ended) // while it is on its way: stutter
	q.Sent(at(61*time.Minute + 2*time.Second))
	none(t, q, at(61*time.Minute+3*time.Second), time.Time{})
	q.Add(at(63*time.Minute), ended)
	if m := next(t, q, at(63*time.Minute)); m.Reminder || m.Count != 2 || m.Number != 1 {
		t.Errorf("again: %+v", m)
	}
	worse := ended
	worse.Severity = Critical // what is worse than what is on its way is news
	q.Add(at(63*time.Minute+time.Second), worse)
	q.Sent(at(63*time.Minute + 2*time.Second))
	if m := next(t, q, at(63*time.Minute+3*time.Second)); m.Severity != Critical || m.Number != 2 {
		t.Errorf("worse: %+v", m)
	}
}

func TestQueueRepeatedWhileWaiting(t *testing.T) {
	q := newQueue(nil)
	e := event("held", "held/i1", Warning)
	q.Add(at(0), e)
	e.Text, e.Severity = "worse", Critical
	q.Add(at(1), e)
	q.Add(at(2), event("held", "held/i1", Info))
	if m := next(t, q, at(3)); m.Count != 3 || m.Text != "worse" || m.Severity != Critical {
		t.Errorf("%+v", m)
	}
}

func TestQueueStormBecomesASummary(t *testing.T) {
	q := newQueue(func(l *Limits) { l.PerMinute = 3 })
	for i := range 20 {
		q.Add(at(0), event("vm-started", fmt.Sprintf("vm/%d", i), Info))
	}
	q.Add(at(0), event("fence-blocked", "blocked", Critical))
	q.Add(at(0), event("held", "held", Warning))
	if m := next(t, q, at(0)); m.ID != "blocked" {
		t.Errorf("first is %s, want the most severe", m.ID)
	}
	q.Sent(at(0))
	next(t, q, at(1*time.Second))
	q.Sent(at(1 * time.Second))
	m := next(t, q, at(2*time.Second))
	if m.Kind != KindSummary || m.Count != 20 || m.Severity != Info || len(m.First) != first || len(m.Summary) != 1 || m.Summary[0] != (KindCount{"vm-started", 20}) {
		t.Errorf("summary: %+v", m)
	}
	q.Sent(at(2 * time.Second))
	if q.Len() != 0 {
		t.Errorf("%d wait", q.Len())
	}
	q.Add(at(3*time.Second), event("vm-moved", "a", Info))
	none(t, q, at(3*time.Second), at(time.Minute))
	next(t, q, at(time.Minute))
}

func TestQueueRetriesWithGrowingPauses(t *testing.T) {
	q := newQueue(nil)
	q.Add(at(0), event("fencing", "f", Critical))
	now := at(0)
	for _, want := range []time.Duration{5, 10, 20, 40, 80, 160, 300, 300} {
		next(t, q, now)
		q.Failed(now, 0, false)
		none(t, q, now, now.Add(want*time.Second))
		now = now.Add(want * time.Second)
	}
	next(t, q, now)
	q.Failed(now, time.Hour, false) // a target may ask for patience, but not for an hour
	none(t, q, now, now.Add(10*time.Minute))
	now = now.Add(10 * time.Minute)
	next(t, q, now)
	q.Sent(now)
	if q.Failures() != 0 || q.Len() != 0 {
		t.Errorf("%d failures, %d wait", q.Failures(), q.Len())
	}
}

func TestQueueDropsTheLeastSevereAndSaysSo(t *testing.T) {
	q := newQueue(func(l *Limits) { l.Pending = 3 })
	q.Add(at(0), event("fencing", "c1", Critical))
	q.Add(at(0), event("held", "w1", Warning))
	q.Add(at(0), event("vm-moved", "i1", Info))
	q.Add(at(0), event("held", "w2", Warning))     // i1 goes
	q.Add(at(0), event("vm-moved", "i2", Info))    // goes itself
	q.Add(at(0), event("fencing", "c2", Critical)) // w1 goes
	var left []string
	for _, w := range q.waiting {
		left = append(left, w.ID)
	}
	if !slices.Equal(left, []string{"c1", "w2", "c2"}) || q.Lost() != 3 {
		t.Errorf("left %v, lost %d", left, q.Lost())
	}
	if m := next(t, q, at(0)); m.Dropped != 3 {
		t.Errorf("%d dropped are told", m.Dropped)
	}
	q.Failed(at(0), 0, false)
	if m := next(t, q, at(10*time.Second)); m.Dropped != 3 {
		t.Errorf("%d dropped are told the second time", m.Dropped)
	}
	q.Sent(at(10 * time.Second))
	if m := next(t, q, at(10*time.Second)); m.Dropped != 0 {
		t.Errorf("%d dropped are told twice", m.Dropped)
	}
}

func TestQueueGivesUpWhatIsRefusedForGoodOrTooOld(t *testing.T) {
	q := newQueue(func(l *Limits) { l.Refusals = 2 })
	q.Add(at(0), event("fencing", "f", Critical))
	next(t, q, at(0))
	q.Failed(at(0), 0, true)
	next(t, q, at(time.Minute))
	q.Failed(at(time.Minute), 0, true)
	if q.Len() != 0 || q.Lost() != 1 {
		t.Errorf("%d wait, %d lost", q.Len(), q.Lost())
	}
	q.Add(at(time.Minute), event("fencing", "g", Critical))
	q.Add(at(20*time.Hour), event("fencing", "h", Critical))
	if m := next(t, q, at(25*time.Hour)); m.ID != "h" || m.Dropped != 2 {
		t.Errorf("%s, %d dropped", m.ID, m.Dropped)
	}
}

func TestQueueMemoryIsBounded(t *testing.T) {
	q := newQueue(func(l *Limits) { l.Pending = 1 })
	for i := range 2 * maxTold {
		q.Add(at(time.Duration(i)), event("vm-moved", fmt.Sprint(i), Info))
	}
	if len(q.told) > maxTold || q.Len() > 1 {
		t.Errorf("%d remembered, %d wait", len(q.told), q.Len())
	}
}

// TestQueueAgainstItsBook holds random histories against the promises, by plain
// book-keeping of what went in and what came out: nothing is lost while it fits, nothing severe is dropped before what is less so, never
// more than so many messages in a minute, and a pause after each failure.
func TestQueueAgainstItsBook(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := DefaultLimits()
		l.PerMinute, l.Pending = rapid.IntRange(1, 5).Draw(t, "perMinute"), rapid.IntRange(1, 12).Draw(t, "pending")
		l.MaxAge = 1000 * time.Hour
		q := NewQueue(l, func(kind string) bool { return kind == "standing" })
		now := start
		came, taken := map[string]int{}, map[string]bool{}
		severities := map[string]Severity{}
		var sends []time.Time
		var failedAt time.Time
		var flight []string // ids that are on their way, as the message names them
		waiting := func() (ids []string) {
			for _, w := range q.waiting {
				ids = append(ids, w.ID)
			}
			return ids
		}
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 30_000).Draw(t, "ms")) * time.Millisecond)
			switch rapid.SampledFrom([]string{"add", "add", "add", "next", "next", "sent", "failed"}).Draw(t, "op") {
			case "add":
				s := rapid.SampledFrom([]Severity{Info, Warning, Critical}).Draw(t, "severity")
				id := fmt.Sprintf("%s/%d", s, rapid.IntRange(0, 15).Draw(t, "id"))
				severities[id] = s
				before, lost := waiting(), q.Lost()
				q.Add(now, Event{ID: id, Kind: rapid.SampledFrom([]string{"standing", "happening"}).Draw(t, "kind"), Severity: s})
				came[id]++
				after := waiting()
				if len(after) > l.Pending {
					t.Fatalf("%d wait, %d may", len(after), l.Pending)
				}
				for _, gone := range before {
					if !slices.Contains(after, gone) {
						if len(before) < l.Pending {
							t.Fatalf("%s was dropped although there was room", gone)
						}
						for _, kept := range after {
							if severities[kept] < severities[gone] {
								t.Fatalf("%s was dropped before %s", gone, kept)
							}
						}
					}
				}
				if !slices.Contains(after, id) && !taken[id] && q.Lost() == lost {
					t.Fatalf("%s vanished: neither waiting, nor taken, nor counted as dropped", id)
				}
			case "next":
				m, ok, again := q.Next(now)
				if !ok {
					if len(flight) == 0 && q.Len() > 0 && !again.After(now) {
						t.Fatalf("%d wait, and nobody says until when", q.Len())
					}
					continue
				}
				if len(flight) > 0 {
					t.Fatal("two messages at once")
				}
				if !failedAt.IsZero() && now.Sub(failedAt) < l.FirstPause {
					t.Fatalf("tried again after %s", now.Sub(failedAt))
				}
				sends = append(sends, now)
				recent := 0
				for _, s := range sends {
					if now.Sub(s) < time.Minute {
						recent++
					}
				}
				if recent > l.PerMinute {
					t.Fatalf("%d messages in a minute, %d may be", recent, l.PerMinute)
				}
				flight = []string{m.ID}
				if m.Kind == KindSummary {
					flight = waiting()
					if total := sum(m.Summary); total < len(flight) || total != m.Count {
						t.Fatalf("the summary counts %d of %d", total, len(flight))
					}
				} else {
					for _, id := range waiting() {
						if severities[id] > severities[m.ID] {
							t.Fatalf("%s goes before %s", m.ID, id)
						}
					}
				}
			case "sent":
				if len(flight) > 0 {
					q.Sent(now)
					for _, id := range flight {
						taken[id] = true
					}
					flight, failedAt = nil, time.Time{}
				}
			case "failed":
				if len(flight) > 0 {
					dropped := q.Lost()
					q.Failed(now, 0, false)
					for _, id := range flight {
						if !slices.Contains(waiting(), id) && q.Lost() == dropped {
							t.Fatalf("%s is lost after a failure", id)
						}
					}
					flight, failedAt = nil, now
				}
			}
		}
		// In the end a target that works gets everything that was not dropped.
		if len(flight) > 0 {
			q.Failed(now, 0, false)
		}
		for range 200 {
			now = now.Add(10 * time.Minute)
			m, ok, _ := q.Next(now)
			if !ok {
				break
			}
			ids := []string{m.ID}
			if m.Kind == KindSummary {
				ids = waiting()
			}
			for _, id := range ids {
				taken[id] = true
			}
			q.Sent(now)
		}
		missing := uint64(0)
		for id := range came {
			if !taken[id] {
				missing++
			}
		}
		if q.Len() != 0 || missing > q.Lost() {
			t.Fatalf("%d wait, %d never arrived, %d were dropped", q.Len(), missing, q.Lost())
		}
	})
}

func sum(counts []KindCount) (n int) {
	for _, c := range counts {
		n += c.Count
	}
	return n
}

package obs

import (
	"log/slog"
	"sync"
	"time"
)

const (
	// quietWindow is how long repetitions of a message stay demoted after it
	// was logged at its own level.
	quietWindow = time.Minute
	// quietKeys bounds the number of different messages that are remembered.
	// Text from the network can be part of a key, so there must be a bound.
	quietKeys = 256
)

// quiet decides at which level a message is logged, given what was logged
// before. It is safe for concurrent use.
type quiet struct {
	mu   sync.Mutex
	seen map[string]*repeat
}

type repeat struct {
	since time.Time // when it was last logged at its own level
	count int       // repetitions demoted since then
}

func newQuiet() *quiet { return &quiet{seen: make(map[string]*repeat)} }

// admit returns the level for a message with the given key, and how many
// repetitions were demoted since it was last shown at its own level.
func (q *quiet) admit(now time.Time, level slog.Level, key string) (slog.Level, int) {
	if level <= slog.LevelDebug {
		return level, 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	r := q.seen[key]
	if r == nil && len(q.seen) >= quietKeys {
		q.forget(now)
		if len(q.seen) >= quietKeys {
			// Too many different messages at once are one kind of noise.
			key = ""
			r = q.seen[key]
		}
	}
	if r == nil {
		q.seen[key] = &repeat{since: now}
		return level, 0
	}
	if now.Sub(r.since) < quietWindow {
		r.count++
		return slog.LevelDebug, 0
	}
	n := r.count
	r.since, r.count = now, 0
	return level, n
}

// forget drops the keys whose window is over.
func (q *quiet) forget(now time.Time) {
	for k, r := range q.seen {
		if now.Sub(r.since) >= quietWindow {
			delete(q.seen, k)
		}
	}
}

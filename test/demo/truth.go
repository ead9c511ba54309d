package main

import (
	"slices"
	"sync"
	"time"

	"github.com/haven-ha/haven/internal/world"
)

// truth is what really happened to power and VMs, whatever any agent believes.
type truth struct {
	mu     sync.Mutex
	events []happened
}

// happened is one event and when it was.
type happened struct {
	at time.Time
	world.Event
}

// maxEvents bounds what is kept; the oldest go.
const maxEvents = 2000

func newTruth() *truth { return &truth{} }

// note is called by the world, which is locked.
func (t *truth) note(e world.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, happened{time.Now(), e})
	if over := len(t.events) - maxEvents; over > 0 {
		t.events = slices.Clone(t.events[over:])
	}
}

// since returns what happened from a moment on, oldest first.
func (t *truth) since(begin time.Time) []happened {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, _ := slices.BinarySearchFunc(t.events, begin, func(h happened, at time.Time) int { return h.at.Compare(at) })
	return slices.Clone(t.events[i:])
}

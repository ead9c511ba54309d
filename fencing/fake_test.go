package fencing_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
)

// fake is a device whose every answer may be wrong in some way. It keeps a
// transcript of what its clients were told, for the dumb twins to judge.
type fake struct {
	mu       sync.Mutex
	rnd      *rand.Rand
	p        faultRates
	on       bool
	changeAt time.Time // when a command that was taken has its effect
	change   *bool
	shown    bool // the state that a lagging status shows
	shownAt  time.Time

	inside   int // sessions at this moment
	overlap  bool
	readings []fencing.Reading // successful ones, as they were handed out
	sent     int
	guid     fencing.GUID
}

// faultRates are probabilities, but for the delays.
type faultRates struct {
	fail, hang, lie, ignore, lost, flip float64
	session, effect, lag                time.Duration
}

func newFake(seed uint64, on bool, p faultRates) *fake {
	return &fake{rnd: rand.New(rand.NewPCG(seed, 1)), p: p, on: on, shown: on, guid: "aa"}
}

var errFake = errors.New("device hiccup")

func (f *fake) enter() func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inside++
	f.overlap = f.overlap || f.inside > 1
	return func() { f.mu.Lock(); f.inside--; f.mu.Unlock() }
}

// session spends the time of a session; it may hang until the context ends.
func (f *fake) session(ctx context.Context) error {
	f.mu.Lock()
	hang, fail, d := f.rnd.Float64() < f.p.hang, f.rnd.Float64() < f.p.fail, f.p.session
	f.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
	}
	if fail {
		return errFake
	}
	return nil
}

func (f *fake) Power(ctx context.Context) (fencing.Reading, error) {
	defer f.enter()()
	r := fencing.Reading{State: haven.PowerUnknown, Start: time.Now()}
	err := f.session(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	r.Finish = time.Now()
	if err != nil {
		return r, err
	}
	f.settle()
	state := f.shown
	if f.rnd.Float64() < f.p.lie {
		state = !state
	}
	r.State, r.GUID = haven.PowerOff, f.guid
	if state {
		r.State = haven.PowerOn
	}
	f.readings = append(f.readings, r)
	return r, nil
}

func (f *fake) settle() {
	now := time.Now()
	if f.change != nil && !now.Before(f.changeAt) {
		f.on, f.change = *f.change, nil
		f.shownAt = now.Add(f.p.lag)
	}
	if f.rnd.Float64() < f.p.flip {
		f.on = !f.on
		f.shownAt = now.Add(f.p.lag)
	}
	if !now.Before(f.shownAt) {
		f.shown = f.on
	}
}

func (f *fake) Set(ctx context.Context, a haven.FenceAction, permit fencing.Permit) error {
	defer f.enter()()
	if err := f.session(ctx); err != nil {
		return err
	}
	if err := permit.Check(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sent++
	if f.rnd.Float64() >= f.p.ignore {
		on := a == haven.ActionOn
		f.change, f.changeAt = &on, time.Now().Add(f.p.effect)
	}
	if f.rnd.Float64() < f.p.lost {
		return fencing.ErrUnreachable
	}
	return nil
}

func (f *fake) Identity(ctx context.Context) (fencing.GUID, error) {
	defer f.enter()()
	return f.guid, f.session(ctx)
}

// provedByHand is the dumb twin of streak: somewhere in the transcript there
// are two readings of off that nothing speaks against.
func provedByHand(readings []fencing.Reading, gap, window time.Duration) bool {
	for i, a := range readings {
		for j := i + 1; j < len(readings); j++ {
			b := readings[j]
			if a.State != haven.PowerOff || b.State != haven.PowerOff || b.Start.Sub(a.Finish) < gap || b.Start.Sub(a.Finish) > window {
				continue
			}
			if a.GUID != "" && b.GUID != "" && a.GUID != b.GUID {
				continue
			}
			clean := true
			for _, c := range readings[i+1 : j] {
				clean = clean && c.State != haven.PowerOn
			}
			if clean {
				return true
			}
		}
	}
	return false
}

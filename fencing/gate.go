package fencing

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/haven-ha/haven"
)

// readersMax bounds the readings that wait for one device.
const readersMax = 4

var errGaveWay = fmt.Errorf("%w: %w: the reading gave way to a fence", ErrBusy, ErrOursIsAtIt)

// Gate lets one session at a time through to each device: small boards have
// four sessions or fewer, and some freeze when they are pressed. A fence goes
// before readings that wait, and breaks off one that is under way, so it never
// waits longer than a driver needs to end a session.
type Gate struct {
	mu    sync.Mutex
	lanes map[string]*lane
}

type lane struct {
	giveWay context.CancelCauseFunc // of the reading that holds it, or nil
	fences  []chan struct{}
	reads   []chan struct{}
}

// NewGate makes a gate.
func NewGate() *Gate { return &Gate{lanes: map[string]*lane{}} }

// Fence wraps a device's driver for fencing. Two drivers with the same key
// share one lane; the key is the device's address.
func (g *Gate) Fence(key string, d Driver) Driver { return &gated{g: g, key: key, d: d, fence: true} }

// Read wraps a device's driver for looking only: its Set always fails with
// ErrUnsupported. When too many wait it fails with ErrBusy.
func (g *Gate) Read(key string, d Driver) Driver { return &gated{g: g, key: key, d: d} }

type gated struct {
	g     *Gate
	key   string
	d     Driver
	fence bool
}

func (d *gated) Power(ctx context.Context) (Reading, error) {
	r := Reading{State: haven.PowerUnknown}
	err := d.g.do(ctx, d.key, d.fence, func(ctx context.Context) (err error) {
		r, err = d.d.Power(ctx)
		return err
	})
	return r, err
}

func (d *gated) Set(ctx context.Context, a haven.FenceAction, permit Permit) error {
	if !d.fence {
		return fmt.Errorf("%w: this driver may only read", ErrUnsupported)
	}
	return d.g.do(ctx, d.key, true, func(ctx context.Context) error { return d.d.Set(ctx, a, permit) })
}

func (d *gated) Light(ctx context.Context, length time.Duration, permit Permit) error {
	if !d.fence {
		return fmt.Errorf("%w: this driver may only read", ErrUnsupported)
	}
	return d.g.do(ctx, d.key, true, func(ctx context.Context) error { return Light(ctx, d.d, length, permit) })
}

func (d *gated) Identity(ctx context.Context) (GUID, error) {
	var id GUID
	err := d.g.do(ctx, d.key, d.fence, func(ctx context.Context) (err error) {
		id, err = d.d.Identity(ctx)
		return err
	})
	return id, err
}

// Examine asks the driver, if it has an answer.
func (d *gated) Examine(ctx context.Context) error {
	e, ok := d.d.(Examiner)
	if !ok {
		return nil
	}
	return d.g.do(ctx, d.key, d.fence, e.Examine)
}

func (g *Gate) do(ctx context.Context, key string, fence bool, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	turn, err := g.enter(key, fence, cancel)
	if err != nil {
		return err
	}
	select {
	case <-turn:
	case <-ctx.Done():
		g.abandon(key, turn)
		return fmt.Errorf("wait for the device: %w: %w", ErrOursIsAtIt, context.Cause(ctx))
	}
	defer g.leave(key)
	if !fence && !g.hold(key, cancel) {
		return errGaveWay
	}
	err = f(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errGaveWay) {
		return errGaveWay
	}
	return err
}

// enter queues for the lane. The channel it returns is closed when it is free.
func (g *Gate) enter(key string, fence bool, cancel context.CancelCauseFunc) (chan struct{}, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	turn := make(chan struct{})
	l := g.lanes[key]
	if l == nil {
		l = &lane{}
		if !fence {
			l.giveWay = cancel
		}
		g.lanes[key] = l
		close(turn)
		return turn, nil
	}
	if !fence {
		if len(l.reads) >= readersMax {
			return nil, fmt.Errorf("%w: %w: %d readings wait for it", ErrBusy, ErrOursIsAtIt, len(l.reads))
		}
		l.reads = append(l.reads, turn)
		return turn, nil
	}
	l.fences = append(l.fences, turn)
	if l.giveWay != nil {
		l.giveWay(errGaveWay)
	}
	return turn, nil
}

// hold marks the lane as held by a reading that can be told to give way. It
// says no when a fence came in between.
func (g *Gate) hold(key string, cancel context.CancelCauseFunc) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lanes[key]
	l.giveWay = cancel
	return len(l.fences) == 0
}

// abandon leaves the queue, or the lane if its turn came in the meantime.
func (g *Gate) abandon(key string, turn chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lanes[key]
	is := func(c chan struct{}) bool { return c == turn }
	if i := slices.IndexFunc(l.fences, is); i >= 0 {
		l.fences = slices.Delete(l.fences, i, i+1)
		return
	}
	if i := slices.IndexFunc(l.reads, is); i >= 0 {
		l.reads = slices.Delete(l.reads, i, i+1)
		return
	}
	g.next(key, l)
}

func (g *Gate) leave(key string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.next(key, g.lanes[key])
}

// next hands the lane on; the mutex is held. Closing a channel does not wait.
func (g *Gate) next(key string, l *lane) {
	l.giveWay = nil
	switch {
	case len(l.fences) > 0:
		close(l.fences[0])
		l.fences = l.fences[1:]
	case len(l.reads) > 0:
		close(l.reads[0])
		l.reads = l.reads[1:]
	default:
		delete(g.lanes, key)
	}
}

//go:build ceph

package rados

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/haven-ha/haven/storagebeat"
)

// patient is a store whose operations end with their contexts. One that is over
// time goes on behind it, for as long as librados takes to give up or to connect,
// and the next one waits for it: there is never more than one. So a Ceph that
// hangs costs no process, and no connection that was all but made.
type patient struct {
	store *store
	turn  chan struct{} // holds one token while an operation runs
	start time.Time
	began atomic.Int64 // the operation under way, in nanoseconds after start
}

func newPatient(s *store) *patient {
	return &patient{store: s, turn: make(chan struct{}, 1), start: time.Now()}
}

// wedged is after how long an operation counts as one that never ends. From then on
// the parent is kept waiting, so that it ends the process.
const wedged = 2 * time.Minute

// answerIn is how long an operation may take before it is answered for: what the
// context leaves, less a tenth for the way back.
func answerIn(ctx context.Context) time.Duration {
	end, ok := ctx.Deadline()
	if !ok {
		return wedged
	}
	left := time.Until(end)
	return left - left/10
}

type result[T any] struct {
	value T
	err   error
}

// within runs one operation.
func within[T any](ctx context.Context, p *patient, do func(context.Context) (T, error)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	soon, cancel := context.WithTimeout(ctx, answerIn(ctx))
	defer cancel()
	select {
	case p.turn <- struct{}{}:
		p.began.Store(int64(time.Since(p.start)))
	case <-soon.Done():
		if time.Since(p.start)-time.Duration(p.began.Load()) > wedged {
			select {} // No answer at all: the parent ends the process.
		}
		return none, fmt.Errorf("an earlier operation is still under way: %w", storagebeat.ErrTimeout)
	}
	done := make(chan result[T], 1)
	go func() {
		value, err := do(ctx)
		<-p.turn
		done <- result[T]{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-soon.Done():
		return none, fmt.Errorf("no answer from Ceph: %w", storagebeat.ErrTimeout)
	}
}

// ReadAll implements storagebeat.Backend.
func (p *patient) ReadAll(ctx context.Context) (storagebeat.Contents, error) {
	return within(ctx, p, p.store.readAll)
}

// Write implements storagebeat.Backend.
func (p *patient) Write(ctx context.Context, raw storagebeat.RawBeat) error {
	_, err := within(ctx, p, func(ctx context.Context) (struct{}, error) { return struct{}{}, p.store.write(ctx, raw) })
	return err
}

// WritePill implements storagebeat.Backend.
func (p *patient) WritePill(ctx context.Context, raw storagebeat.RawPill) error {
	_, err := within(ctx, p, func(ctx context.Context) (struct{}, error) { return struct{}{}, p.store.writePill(ctx, raw) })
	return err
}

// Init implements storagebeat.Backend.
func (p *patient) Init(ctx context.Context, o storagebeat.InitOptions) (storagebeat.Identity, error) {
	return within(ctx, p, func(ctx context.Context) (storagebeat.Identity, error) { return p.store.makeStore(ctx, o) })
}

// Check implements storagebeat.Backend.
func (p *patient) Check(ctx context.Context) (storagebeat.CheckReport, error) {
	return within(ctx, p, p.store.check)
}

// Close implements storagebeat.Backend. It waits for an operation that is still
// under way.
func (p *patient) Close() error {
	p.turn <- struct{}{}
	p.store.session.close()
	return nil
}

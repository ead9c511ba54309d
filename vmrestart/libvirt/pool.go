package libvirt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	lv "github.com/digitalocean/go-libvirt"

	"github.com/haven-ha/haven"
)

// pool is a fixed number of connections. Each carries one call at a time, so
// the pool's size bounds what Haven costs a libvirtd that does not answer.
type pool struct {
	name string
	opts *Options
	hold time.Duration // how long a call may keep its connection after all

	base   context.Context // ends when the client is closed
	free   chan *link
	flying sync.WaitGroup

	mu    sync.Mutex
	live  map[*session]struct{}
	calls map[string]time.Time // begun and not ended, by what they do
}

// link is one place for a connection. It is owned by whoever took it from free.
type link struct {
	s       *session
	retryAt time.Time
	delay   time.Duration
}

// Between failed connection attempts of one link. A libvirtd that is down is
// asked again soon, and one that hangs is not flooded: its attempts last
// Options.ConnectLimit each.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// abandonAfter is how long past its hold limit, when its connection was closed,
// a call is waited for before its place is given to a new connection.
const abandonAfter = 5 * time.Second

func newPool(base context.Context, name string, opts *Options, size int, hold time.Duration) *pool {
	p := &pool{
		name: name, opts: opts, hold: hold, base: base,
		free:  make(chan *link, size),
		live:  map[*session]struct{}{},
		calls: map[string]time.Time{},
	}
	for range size {
		p.free <- &link{}
	}
	return p
}

// errTimeout is what a caller gets that left before its call ended.
var errTimeout = errors.New("no answer yet")

// call runs fn with a connection of the pool. It returns at the latest when ctx
// ends, with an error that is errTimeout; fn may then still be running and must
// look at its context between calls. Its result is lost, but for a log line.
func call[T any](ctx context.Context, p *pool, op string, fn func(context.Context, *lv.Libvirt) (T, error)) (T, error) {
	return callThen(ctx, p, op, fn, func() {})
}

// callThen is call, and runs ended when fn has returned or will never run.
func callThen[T any](ctx context.Context, p *pool, op string, fn func(context.Context, *lv.Libvirt) (T, error), ended func()) (T, error) {
	type answer struct {
		value T
		err   error
	}
	var none T
	k, err := p.take(ctx, op)
	if err != nil {
		ended()
		return none, err
	}
	begun := time.Now()
	answers := make(chan answer, 1)
	var left atomic.Bool
	flies := p.fly(&left, k, op, func(s *session, err error) error {
		a := answer{err: err}
		if err == nil {
			a.value, a.err = fn(ctx, s.l)
		}
		answers <- a
		ended()
		return a.err
	})
	if !flies {
		ended()
		return none, fmt.Errorf("%w: the client is closed", haven.ErrUnavailable)
	}
	select {
	case a := <-answers:
		return a.value, a.err
	case <-ctx.Done():
	case <-p.base.Done():
	}
	left.Store(true)
	select {
	case a := <-answers: // Both were ready: an answer is worth more than a timeout.
		return a.value, a.err
	default:
	}
	return none, fmt.Errorf("%w: libvirtd (%s) was asked %v ago", errTimeout, p.name, time.Since(begun).Round(time.Millisecond))
}

// take waits for a free place until ctx ends.
func (p *pool) take(ctx context.Context, op string) (*link, error) {
	if p.base.Err() != nil {
		return nil, fmt.Errorf("%w: the client is closed", haven.ErrUnavailable)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %s was not begun: %w", haven.ErrUnavailable, op, err)
	}
	select {
	case k := <-p.free:
		if wait := time.Until(k.retryAt); wait > 0 {
			p.free <- k
			return nil, fmt.Errorf("%w: libvirtd did not let us in; next attempt in %v", haven.ErrUnavailable, wait.Round(time.Millisecond))
		}
		return k, nil
	case <-p.base.Done():
		return nil, fmt.Errorf("%w: the client is closed", haven.ErrUnavailable)
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: libvirtd (%s) is still busy with %s", haven.ErrUnavailable, p.name, p.oldest())
	}
}

// fly starts the goroutine that owns the link until the call has ended. It
// reports whether it did. run gets the session, or why there is none; left is
// set by a caller who does not wait any more.
func (p *pool) fly(left *atomic.Bool, k *link, op string, run func(*session, error) error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.base.Err() != nil {
		p.free <- k // There is room: the link came from there.
		return false
	}
	begun := time.Now()
	p.calls[op] = begun
	p.flying.Go(func() {
		err := p.ensure(k)
		if err != nil {
			err = run(nil, err)
		} else {
			err = p.guarded(k, run)
		}
		p.landed(left.Load(), op, begun, err)
		p.free <- k
	})
	return true
}

// guarded runs the call, closes its connection at the hold limit, and leaves a
// call behind that does not end even then.
func (p *pool) guarded(k *link, run func(*session, error) error) error {
	s := k.s
	done := make(chan error, 1)
	p.flying.Go(func() { done <- run(s, nil) })
	hold := time.NewTimer(p.hold)
	defer hold.Stop()
	var err error
	select {
	case err = <-done:
	case <-hold.C:
		s.close()
		select {
		case err = <-done:
		case <-time.After(abandonAfter):
			err = fmt.Errorf("abandoned after %v", p.hold)
			p.opts.Log.Error("a libvirt call did not end with its connection", "pool", p.name)
		}
	}
	if !s.alive() || (err != nil && !fromLibvirt(err)) {
		p.drop(k)
	}
	return err
}

// ensure gives the link a live session, or sets the time of its next attempt.
func (p *pool) ensure(k *link) error {
	if k.s != nil && k.s.alive() {
		return nil
	}
	p.drop(k)
	s, err := p.opts.connect(p.base, p.opts.ConnectLimit, nil)
	if err != nil {
		k.delay = min(max(2*k.delay, firstRetry), lastRetry)
		k.retryAt = time.Now().Add(k.delay)
		return fmt.Errorf("%w: %w", haven.ErrUnavailable, err)
	}
	k.s, k.delay, k.retryAt = s, 0, time.Time{}
	p.mu.Lock()
	p.live[s] = struct{}{}
	p.mu.Unlock()
	if p.base.Err() != nil {
		s.close() // Closing the client may not have seen this one.
	}
	return nil
}

func (p *pool) drop(k *link) {
	if k.s == nil {
		return
	}
	k.s.close()
	p.mu.Lock()
	delete(p.live, k.s)
	p.mu.Unlock()
	k.s = nil
}

// landed forgets a call, and tells of one whose caller has left.
func (p *pool) landed(late bool, op string, begun time.Time, err error) {
	p.mu.Lock()
	if p.calls[op].Equal(begun) {
		delete(p.calls, op)
	}
	p.mu.Unlock()
	if !late {
		return
	}
	attrs := []any{"pool", p.name, "call", op, "took", time.Since(begun)}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	p.opts.Log.Info("late answer from libvirtd", attrs...)
}

// oldest names the call that libvirtd has been working on for the longest time.
func (p *pool) oldest() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	name, since := "nothing we know of", time.Now()
	for op, t := range p.calls {
		if t.Before(since) {
			name, since = op, t
		}
	}
	return fmt.Sprintf("%s, for %v", name, time.Since(since).Round(time.Millisecond))
}

// closeAll closes every connection. The client has ended p.base before.
func (p *pool) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.live {
		s.close()
	}
}

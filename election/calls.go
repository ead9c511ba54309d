package election

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/haven-ha/haven"
)

// maxCalls bounds how many requests may wait for Raft at once. Raft's futures
// cannot be abandoned, so each that never ends costs a goroutine.
const maxCalls = 128

// errWaitEnded says that the caller's patience ended before the call did.
var errWaitEnded = errors.New("no answer in time")

// calls counts the requests to Raft that are under way.
type calls struct {
	mu     sync.Mutex
	n      int
	closed bool
	idle   chan struct{} // closed when n is 0 and no more may start
}

func newCalls() *calls { return &calls{idle: make(chan struct{})} }

// start runs f in a goroutine, unless too many run or the node is closing.
func (c *calls) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.n >= maxCalls {
		return false
	}
	c.n++
	go func() {
		defer c.end()
		f()
	}()
	return true
}

func (c *calls) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n--
	if c.closed && c.n == 0 {
		close(c.idle)
	}
}

// do waits for f no longer than ctx allows. With errWaitEnded, f goes on.
func (c *calls) do(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	if !c.start(func() { done <- f() }) {
		return errBusy
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.Join(errWaitEnded, ctx.Err())
	}
}

var errBusy = errors.Join(errors.New("raft is closing, or too many calls wait for it"), haven.ErrUnavailable)

// close lets no more calls start and waits for the others, at most for d.
// Raft forgets to answer what is in its queues when it is shut down; a call
// that had its answer before is not among that.
func (c *calls) close(d time.Duration) {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		if c.n == 0 {
			close(c.idle)
		}
	}
	c.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-c.idle:
	case <-t.C:
	}
}

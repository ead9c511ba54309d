package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/haven-ha/haven"
)

// maxJobs bounds the joins, and the notices, that are under way at once.
const maxJobs = 16

// Leave tells everybody why this agent is about to leave, and leaves. Close
// follows. It takes about one second among live members and four at most, or
// until the deadline of ctx. An error says that members may see this agent as
// dead, or as left without a reason; it has left all the same. A second Leave
// returns nil at once. The reason must not be empty.
func (c *Cluster) Leave(ctx context.Context, reason haven.LeaveReason) error {
	if code, err := leaveCode(reason); err != nil || code == 0 {
		return fmt.Errorf("leave: reason %q: want one that can be told", reason)
	}
	select {
	case c.announce <- struct{}{}:
	case <-c.stop:
		return ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("leave: %w", ctx.Err())
	}
	defer func() { <-c.announce }()
	first, err := c.beginLeave(reason)
	if err != nil || !first {
		return err
	}
	// memberlist drops the meta's broadcast as soon as that of the leave is queued,
	// here and in whoever passes it on, so the reason also goes straight to all.
	notices := c.sendNotices(ctx, reason)
	errTell := c.list.UpdateNode(within(ctx, tellTimeout))
	errNotice := <-notices
	if errTell != nil && errNotice == nil {
		errTell = nil // Everybody has it by the other way.
	}
	if err := errors.Join(errTell, c.list.Leave(within(ctx, tellTimeout))); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	return nil
}

// beginLeave puts the reason into the meta. It returns false if it was done before.
func (c *Cluster) beginLeave(reason haven.LeaveReason) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return false, ErrClosed
	}
	if c.leaving {
		return false, nil
	}
	m := c.meta
	m.Leave = reason
	raw, err := m.encode()
	if err != nil {
		return false, fmt.Errorf("leave: %w", err)
	}
	c.leaving, c.meta, c.raw = true, m, raw
	return true, nil
}

// within returns the time until the deadline of ctx, at most limit, and not 0,
// which memberlist takes for no limit at all.
func within(ctx context.Context, limit time.Duration) time.Duration {
	if d, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(d))
	}
	return max(limit, time.Millisecond)
}

// sendNotices tells every live member of the leave. The channel gets one value,
// within tellTimeout: nil if all members were told.
func (c *Cluster) sendNotices(ctx context.Context, reason haven.LeaveReason) <-chan error {
	result := make(chan error, 1)
	c.mu.Lock()
	session := c.meta.Session
	var to []*memberlist.Node
	for id, e := range c.table.members {
		if id != c.cfg.Host && e.state == StateAlive {
			to = append(to, &memberlist.Node{Name: string(id), Addr: net.IP(e.addr.Addr().AsSlice()), Port: e.addr.Port()})
		}
	}
	c.mu.Unlock()
	msg, err := notice{host: string(c.cfg.Host), session: session, reason: reason}.encode()
	if err != nil {
		result <- err
		return result
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	if !c.goWork(func() {
		defer cancel()
		result <- c.sendAll(ctx, to, msg)
	}) {
		cancel()
		result <- ErrClosed
	}
	return result
}

// sendAll sends msg to each of the members, some at a time. It returns when all
// are told or ctx ends; sends under way then end by their own deadline.
func (c *Cluster) sendAll(ctx context.Context, to []*memberlist.Node, msg []byte) error {
	slots := make(chan struct{}, maxJobs)
	sent := make(chan error, len(to))
	for _, n := range to {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !c.goWork(func() {
			defer func() { <-slots }()
			sent <- c.list.SendReliable(n, msg)
		}) {
			return ErrClosed
		}
	}
	var errs []error
	for range to {
		select {
		case err := <-sent:
			errs = append(errs, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.Join(errs...)
}

// goWork runs f in a goroutine that Close waits for, or returns false when Close
// has begun.
func (c *Cluster) goWork(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return false
	}
	c.work.Go(f)
	return true
}

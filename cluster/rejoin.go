package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/obs"
)

// rejoinLoop joins, for ever, every configured host that is not alive at its
// address. One exchange with one member of the other side is enough to merge
// the halves of a partition; all are tried because any may be down.
func (c *Cluster) rejoinLoop(ctx context.Context) {
	for {
		timer := time.NewTimer(c.joinMissing())
		select {
		case <-timer.C:
		case <-c.rejoin:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// joinMissing starts a join of each missing host that is not being joined
// already, up to maxJobs at once, and returns when to look again.
func (c *Cluster) joinMissing() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.cfg.Timing
	wait := t.RejoinMin + rand.N(t.RejoinMax-t.RejoinMin+1)
	if c.closing || c.leaving {
		return wait
	}
	missing, alone := c.table.missing()
	if alone && len(missing) > 0 {
		wait = t.RejoinAlone + rand.N(t.RejoinAlone/4+1)
	}
	// The order is drawn anew each time, so that hosts which are down for long and
	// take their whole timeout do not keep the same others waiting.
	rand.Shuffle(len(missing), func(i, j int) { missing[i], missing[j] = missing[j], missing[i] })
	for _, id := range missing {
		if len(c.joining) >= maxJobs {
			break
		}
		if _, busy := c.joining[id]; busy {
			continue
		}
		c.joining[id] = struct{}{}
		addr := c.table.peers[id]
		c.work.Go(func() { c.join(id, addr) })
	}
	return wait
}

// join makes one full exchange with one host. It is bounded by the stream
// timeout for the connection and for each side's turn.
func (c *Cluster) join(id haven.HostID, addr netip.AddrPort) {
	_, err := c.list.Join([]string{fmt.Sprintf("%s/%s", id, addr)})
	c.mu.Lock()
	delete(c.joining, id)
	_, configured := c.table.peers[id]
	_, failedBefore := c.joinErr[id]
	switch {
	case err == nil || !configured:
		delete(c.joinErr, id)
	default:
		c.joinErr[id] = cut(err.Error(), 300)
	}
	closing := c.closing
	c.mu.Unlock()
	switch {
	case closing:
	case err == nil && failedBefore:
		c.log.Info("joined a configured host after failing to", "host", id, "address", addr)
	case err == nil:
		c.log.Debug("joined a configured host", "host", id, "address", addr)
	case !failedBefore:
		c.log.Info("cannot join a configured host, will keep trying", "host", id, "address", addr, "error", err)
	}
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// logLoop writes memberlist's log. memberlist logs while it holds its locks, and a
// log handler may block, so the lines come through a queue.
func (c *Cluster) logLoop(ctx context.Context) {
	out := obs.NewLineLogger(c.log, "memberlist message")
	for {
		select {
		case line := <-c.lines:
			_, _ = out.Write([]byte(line)) // It never fails.
		case <-ctx.Done():
			return
		}
	}
}

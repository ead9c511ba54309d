package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/haven-ha/haven"
)

// Announce tells everybody that this host is about to shut down, while the agent
// goes on; with LeaveNone it takes that back, and the agent takes part as before.
// It goes out on both paths: to the master and in gossip, and in the beats on
// the stores, one of which is waited for. It ends with its context.
func (a *Agent) Announce(ctx context.Context, reason haven.LeaveReason) error {
	if a.leaving() == reason {
		return nil
	}
	if err := a.cluster.Announce(reason); err != nil {
		return err // It has left already.
	}
	a.mu.Lock()
	a.leave = reason
	a.mu.Unlock()
	a.dog.disarm(reason == haven.LeaveShutdown)
	a.log.Info("what this agent is about to do is announced", "leaving", reason)
	var errs []error
	if master, ok := a.master(); ok {
		limited, cancel := context.WithTimeout(ctx, reportTimeout)
		_, err := a.tell(limited, master, a.makeReport())
		cancel()
		if err != nil {
			errs = append(errs, fmt.Errorf("tell the master: %w", err))
		}
	}
	if len(a.monitors) > 0 {
		a.waitForBeat(ctx)
	}
	return errors.Join(errs...)
}

// waitForBeat gives every store the time for one beat more. A store that hangs
// is not waited for any longer.
func (a *Agent) waitForBeat(ctx context.Context) {
	t := time.NewTimer(a.cfg.Heartbeat.Interval + a.cfg.Heartbeat.IOTimeout/2)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// Leaving is what was announced last; LeaveNone when nothing was.
func (a *Agent) Leaving() haven.LeaveReason { return a.leaving() }

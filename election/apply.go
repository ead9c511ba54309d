package election

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/haven-ha/haven"
)

// ErrAmbiguous is returned when a command may have been committed, or may be
// yet. Any other error of Apply means that it was not and will not be.
var ErrAmbiguous = errors.New("the command may have been committed")

// ErrTooLarge is returned when a command is larger than MaxCommand.
var ErrTooLarge = errors.New("command too large")

// MaxCommand bounds a command in bytes. Larger ones would hold up heartbeats.
const MaxCommand = 512 << 10

// applyTimeout bounds Apply and Barrier when their contexts do not.
const applyTimeout = 10 * time.Second

// Applied is the outcome of a committed command.
type Applied struct {
	Index uint64
	Value any // what FSM.Apply returned
}

// Apply commits a command and waits until it was applied here. Without a
// deadline in ctx it waits ten seconds.
func (n *Node) Apply(ctx context.Context, cmd []byte) (Applied, error) {
	if len(cmd) > MaxCommand {
		return Applied{}, fmt.Errorf("apply command of %d bytes: %w", len(cmd), ErrTooLarge)
	}
	if err := n.failure(); err != nil {
		return Applied{}, notMaster("apply command", err)
	}
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return Applied{}, fmt.Errorf("apply command: %w: %w", haven.ErrUnavailable, err)
	}
	cmd = slices.Clone(cmd) // Raft keeps it.
	patience := remaining(ctx)
	got := make(chan Applied, 1)
	err := n.calls.do(ctx, func() error {
		f := n.raft.Apply(cmd, patience)
		if err := f.Error(); err != nil {
			return err
		}
		got <- Applied{Index: f.Index(), Value: f.Response()}
		return nil
	})
	if err != nil {
		return Applied{}, applyError("apply command", err)
	}
	return <-got, nil
}

// Barrier waits until everything that was committed before it is applied here.
// Only the leader can; an error means nothing about other commands.
func (n *Node) Barrier(ctx context.Context) error {
	if err := n.failure(); err != nil {
		return notMaster("barrier", err)
	}
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	patience := remaining(ctx)
	if err := n.calls.do(ctx, func() error { return n.raft.Barrier(patience).Error() }); err != nil {
		if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipLost) {
			return notMaster("barrier", err)
		}
		return fmt.Errorf("barrier: %w: %w", haven.ErrUnavailable, err)
	}
	return nil
}

func remaining(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return applyTimeout
	}
	return max(time.Until(deadline), time.Millisecond)
}

// applyError sorts Raft's errors into "surely not" and "perhaps". What is not
// known to come from before the command was taken is "perhaps".
func applyError(what string, err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return notMaster(what, err)
	case errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, errBusy):
		return fmt.Errorf("%s: %w: %w", what, haven.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w: %w", what, ErrAmbiguous, err)
}

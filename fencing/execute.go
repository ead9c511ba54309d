package fencing

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/haven-ha/haven"
)

// Execute carries out one fence run on one device and returns its outcome; it
// takes the policy's Total plus one session at most. The permit is asked right
// before each power command; its refusal ends the run. Execute does not keep
// others from the device: pass a driver that went through Gate.Fence.
func Execute(ctx context.Context, d Driver, p Policy, permit Permit, log *slog.Logger) (Outcome, error) {
	if err := p.Validate(); err != nil {
		return Outcome{}, fmt.Errorf("fence policy: %w", err)
	}
	run := NewRun(p)
	ev := Event{Kind: EventStart}
	for {
		if err := ctx.Err(); err != nil && ev.Kind != EventReading {
			// A reading that is already in hand is still judged: it may prove it.
			ev = Event{Kind: EventCancel, Err: err}
		}
		eff := run.Step(time.Now(), ev)
		switch eff.Do {
		case DoStop:
			log.InfoContext(ctx, "fence run ended", "proved", eff.Outcome.Proved, "reason", eff.Outcome.Reason,
				"sent", eff.Outcome.Sent, "sessions", eff.Outcome.Sessions)
			return eff.Outcome, nil
		case DoRead:
			ev = readPower(ctx, d, p.Session)
		case DoOff:
			ev = sendOff(ctx, d, p.Session, permit, log)
		case DoWait:
			ev = waitUntil(ctx, eff.Until)
		}
	}
}

func readPower(ctx context.Context, d Driver, limit time.Duration) Event {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, err := d.Power(ctx)
	if err != nil {
		r.State = haven.PowerUnknown
	}
	return Event{Kind: EventReading, Reading: r, Err: err}
}

func sendOff(ctx context.Context, d Driver, limit time.Duration, permit Permit, log *slog.Logger) Event {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := d.Set(ctx, haven.ActionOff, permit)
	log.WarnContext(ctx, "power off sent", "error", err)
	return Event{Kind: EventCommand, Err: err}
}

func waitUntil(ctx context.Context, until time.Time) Event {
	t := time.NewTimer(time.Until(until))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	return Event{Kind: EventTime}
}

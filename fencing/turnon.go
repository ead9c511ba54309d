package fencing

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/haven-ha/haven"
)

// Pauses of TurnOn: a board is read again after a moment, and asked again when a
// command has shown no effect for as long as a slow one needs.
const (
	onPoll   = time.Second
	onResend = 10 * time.Second
)

// TurnOn switches a host on: every device of its ladder that says off is asked
// for on, until none says off and at least one says on. It reads before it sends,
// so that a repetition changes nothing. It ends with the context, which the caller
// bounds. A device that does not answer is tried until then: the board behind a
// power strip starts only when the strip is on. The detail is what each device
// said last.
func TurnOn(ctx context.Context, ladder [][]Rung, permit Permit) (detail string, err error) {
	var rungs []*turning
	for _, level := range ladder {
		for _, r := range level {
			rungs = append(rungs, &turning{Rung: r, said: "was not read"})
		}
	}
	for {
		var wg sync.WaitGroup
		for _, r := range rungs {
			wg.Go(func() { r.turn(ctx, permit) })
		}
		wg.Wait()
		on, done := 0, true
		var words []string
		for _, r := range rungs {
			words = append(words, r.Name+": "+r.said)
			switch {
			case errors.Is(r.err, ErrNotPermitted):
				return strings.Join(words, "; "), r.err
			case r.state == haven.PowerOn:
				on++
			default:
				done = false
			}
		}
		detail = strings.Join(words, "; ")
		switch {
		case done && on > 0:
			return detail, nil
		case ctx.Err() != nil && on > 0 && !anyOff(rungs):
			return detail, nil // What never answered may be behind what is on.
		case ctx.Err() != nil:
			return detail, fmt.Errorf("not all devices say on in time: %s", detail)
		}
		waitUntil(ctx, time.Now().Add(onPoll))
	}
}

func anyOff(rungs []*turning) bool {
	for _, r := range rungs {
		if r.state == haven.PowerOff {
			return true
		}
	}
	return false
}

// turning is one device that is switched on.
type turning struct {
	Rung
	state haven.PowerState // as it said last; unknown while it does not answer
	sent  time.Time
	said  string
	err   error
}

// turn reads a device, and asks it for on when it says off.
func (t *turning) turn(ctx context.Context, permit Permit) {
	if ctx.Err() != nil {
		return // What it said before still stands.
	}
	ev := readPower(ctx, t.Driver, t.Policy.Session)
	if ctx.Err() != nil && ev.Err != nil {
		return
	}
	t.state, t.err, t.said = ev.Reading.State, ev.Err, string(ev.Reading.State)
	if ev.Err != nil {
		t.said = ev.Err.Error()
		return
	}
	t.Read(ev.Reading)
	if t.state != haven.PowerOff || !t.sent.IsZero() && time.Since(t.sent) < onResend {
		return
	}
	limited, cancel := context.WithTimeout(ctx, t.Policy.Session)
	defer cancel()
	err := t.Driver.Set(limited, haven.ActionOn, permit)
	t.Log.WarnContext(ctx, "power on sent", "error", err)
	t.sent, t.err = time.Now(), err
	t.said = "off, asked for on"
	if err != nil {
		t.said = "off, and on is refused: " + err.Error()
	}
}

// Blink makes the identify light of a host blink, by every device of its ladder
// that can: for length, or, when that is nil, for BlinkFor or as long as a device
// that cannot be told does by itself. Zero puts it out. It fails only if none could.
func Blink(ctx context.Context, ladder [][]Rung, length *time.Duration, permit Permit) (detail string, err error) {
	does := "blinks"
	switch {
	case length == nil:
	case *length == 0:
		does = "is put out"
	default:
		does = "blinks for " + length.String()
	}
	var words []string
	var errs []error
	ok := false
	for _, level := range ladder {
		for _, r := range level {
			limited, cancel := context.WithTimeout(ctx, r.Policy.Session)
			e := blink(limited, r.Driver, length, permit)
			cancel()
			word := does
			if e != nil {
				word = e.Error()
				errs = append(errs, e)
			}
			ok = ok || e == nil
			words = append(words, r.Name+": "+word)
		}
	}
	detail = strings.Join(words, "; ")
	if !ok {
		return detail, &blinkError{detail, errors.Join(errs...)}
	}
	return detail, nil
}

// BlinkFor is for how long a light is made to blink where nobody says and the device
// can be told: the most that IPMI has. Without being told a board stops after 15 s.
const BlinkFor = 255 * time.Second

func blink(ctx context.Context, d Driver, length *time.Duration, permit Permit) error {
	if length != nil {
		return Light(ctx, d, *length, permit)
	}
	if err := Light(ctx, d, BlinkFor, permit); !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrRejected) {
		return err
	}
	return d.Set(ctx, haven.ActionBlink, permit)
}

// blinkError is what every device said that could not blink.
type blinkError struct {
	detail string
	is     error
}

func (e *blinkError) Error() string { return e.detail }
func (e *blinkError) Unwrap() error { return e.is }

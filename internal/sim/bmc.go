package sim

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
)

// BMC is one machine's board. It has power of its own, unless the mains go. One
// that is an outlet switches one of the machine's power supplies instead, and its
// word is about that one.
type BMC struct {
	h      *Host
	guid   fencing.GUID
	outlet bool

	mu      sync.Mutex
	dark    bool             // without any power
	dead    bool             // does not answer
	lies    haven.PowerState // what it says whatever is true; empty: the truth
	lag     time.Duration    // its word is this old
	takes   time.Duration    // of one session
	acts    time.Duration    // from a command to its effect
	ignores int              // commands that it accepts and forgets
	history []powerMark
}

// powerMark is a change of a chassis' power.
type powerMark struct {
	at time.Time
	on bool
}

// Healthy values of a board.
const (
	bmcTakes = 60 * time.Millisecond
	bmcActs  = 700 * time.Millisecond
)

func newBMC(h *Host, n int) *BMC {
	return &BMC{h: h, guid: fencing.GUID(fmt.Sprintf("%032x", n+1)), takes: bmcTakes, acts: bmcActs}
}

// newOutlet makes an outlet of a power strip that is not the machine's own.
func newOutlet(h *Host) *BMC {
	b := &BMC{h: h, outlet: true, takes: bmcTakes, acts: bmcActs}
	b.noted(true)
	return b
}

// on says whether an outlet gives power.
func (b *BMC) on() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.history[len(b.history)-1].on
}

// Switch switches an outlet by hand, or as power that comes back does. The
// machine loses its power with the last one, its board too, and boots with the
// first.
func (b *BMC) Switch(on bool) {
	h := b.h
	h.c.tell(!on, h, fmt.Sprintf("an outlet is switched, on: %v", on))
	b.noted(on)
	switch {
	case on:
		h.PowerOn()
	case !slices.ContainsFunc(h.Outlets, (*BMC).on):
		h.PowerOff(true)
	}
}

// noted keeps the chassis' power for boards whose word lags.
func (b *BMC) noted(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.history = append(b.history, powerMark{time.Now(), on})
	if len(b.history) > 64 {
		b.history = slices.Clone(b.history[32:])
	}
}

// change breaks or mends the board.
func (b *BMC) change(f func(b *BMC)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b)
}

// mend makes the board healthy, but for its power.
func (b *BMC) mend() {
	b.change(func(b *BMC) {
		b.dead, b.lies, b.lag, b.takes, b.acts, b.ignores = false, "", 0, bmcTakes, bmcActs, 0
	})
}

// says is the board's word on the chassis.
func (b *BMC) says(now time.Time) haven.PowerState {
	if b.lies != "" {
		return b.lies
	}
	on := false
	for _, m := range b.history {
		if now.Sub(m.at) >= b.lag {
			on = m.on
		}
	}
	if on {
		return haven.PowerOn
	}
	return haven.PowerOff
}

// driver is a board as one agent reaches it.
type driver struct {
	b *BMC
	l *life
}

var _ fencing.Driver = driver{}

// session opens one, which a board that is dead or dark never answers.
func (d driver) session(ctx context.Context) error {
	if err := d.l.gate(ctx); err != nil {
		return err
	}
	d.b.mu.Lock()
	takes, silent := d.b.takes, d.b.dead || d.b.dark
	d.b.mu.Unlock()
	if silent || d.l.h.c.boardsCut(d.l.h) {
		takes = time.Hour
	}
	if err := d.l.pass(ctx, takes); err != nil {
		return fmt.Errorf("%w: %w", fencing.ErrUnreachable, err)
	}
	return nil
}

// Power reads the chassis' power.
func (d driver) Power(ctx context.Context) (fencing.Reading, error) {
	r := fencing.Reading{State: haven.PowerUnknown, Start: time.Now()}
	err := d.session(ctx)
	r.Finish = time.Now()
	if err != nil {
		return r, err
	}
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	r.State, r.GUID = d.b.says(r.Finish), d.b.guid
	if r.State == haven.PowerOff {
		d.l.h.c.trace.add(Event{At: d.l.h.c.Now(), What: BMCReadOff, Host: d.b.h.ID, By: d.l.h.ID, Text: "its BMC says off"})
	}
	return r, nil
}

// Identity reads the board's GUID.
func (d driver) Identity(ctx context.Context) (fencing.GUID, error) {
	if err := d.session(ctx); err != nil {
		return "", err
	}
	return d.b.guid, nil
}

// Set sends a power command.
func (d driver) Set(ctx context.Context, action haven.FenceAction, permit fencing.Permit) error {
	if err := d.session(ctx); err != nil {
		return err
	}
	if err := permit.Check(ctx); err != nil {
		return err
	}
	if d.l.dead() {
		return errGone
	}
	h := d.b.h
	switch action {
	case haven.ActionOff:
	case haven.ActionOn:
		h.c.emit(Event{What: BMCOn, Host: h.ID, By: d.l.h.ID, Boot: h.Boot(), Text: "power-on command"})
		h.c.After(bmcActs, d.b.turnOn)
		return nil
	case haven.ActionBlink:
		h.c.emit(Event{What: BMCBlinks, Host: h.ID, By: d.l.h.ID, Text: "its identify light blinks"})
		return nil
	case haven.ActionNone, haven.ActionReboot, haven.ActionStatus, haven.ActionTest:
		fallthrough
	default:
		return fencing.ErrUnsupported
	}
	h.c.emit(Event{What: BMCOff, Host: h.ID, By: d.l.h.ID, Boot: h.Boot(), Text: "power-off command"})
	d.b.mu.Lock()
	acts := d.b.acts
	ignored := d.b.ignores > 0
	if ignored {
		d.b.ignores--
	}
	d.b.mu.Unlock()
	if !ignored {
		h.c.After(acts, d.b.turnOff)
	}
	return nil
}

func (b *BMC) turnOff() {
	if b.outlet {
		b.Switch(false)
		return
	}
	b.h.powerLost("its BMC was told to")
}

func (b *BMC) turnOn() {
	if b.outlet {
		b.Switch(true)
		return
	}
	b.h.PowerOn()
}

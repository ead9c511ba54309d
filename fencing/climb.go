package fencing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/haven-ha/haven"
)

// ClimbPolicy bounds what is done about one level beyond the runs of its devices.
type ClimbPolicy struct {
	// Window is the most time that a look at all devices of a level may take,
	// from the start of the first reading to the end of the last. Only what was
	// read within it was true together.
	Window time.Duration
	// Gap is the pause before another look.
	Gap time.Duration
	// Looks is how often all devices of a level are looked at, at most.
	Looks int
	// Returns is how often a device that came back is powered off again, at most.
	Returns int
}

// DefaultClimbPolicy gives a level five looks, each within the window of a run,
// and devices that come back two more runs.
func DefaultClimbPolicy() ClimbPolicy {
	return ClimbPolicy{Window: DefaultPolicy().Window, Gap: time.Second, Looks: 5, Returns: 2}
}

// Validate checks the values.
func (p ClimbPolicy) Validate() error {
	if p.Window <= 0 || p.Gap <= 0 || p.Looks < 1 || p.Returns < 0 {
		return errors.New("climb policy: window, gap and looks must be positive")
	}
	return nil
}

// ClimbDo names what a climb wants done next.
type ClimbDo string

// The effects of a climb.
const (
	ClimbFence ClimbDo = "fence" // run each of Devices, all at once; answer with ClimbFenced
	ClimbLook  ClimbDo = "look"  // read each of Devices once, all at once; answer with ClimbLooked
	ClimbWait  ClimbDo = "wait"  // do nothing until Until; answer with ClimbTime
	ClimbStop  ClimbDo = "stop"  // it is over; Outcome says how
)

// ClimbEffect is what a climb wants done next, with devices of one level.
type ClimbEffect struct {
	Do      ClimbDo
	Level   int   // from 0
	Devices []int // of the level, from 0
	Until   time.Time
	Outcome ClimbOutcome
}

// ClimbEventKind names what happened to a climb.
type ClimbEventKind string

// The inputs of a climb.
const (
	ClimbStart  ClimbEventKind = "start"
	ClimbFenced ClimbEventKind = "fenced" // the runs are over: Words
	ClimbLooked ClimbEventKind = "looked" // the readings are over: Words
	ClimbTime   ClimbEventKind = "time"   // the wait is over
	ClimbCancel ClimbEventKind = "cancel" // the caller gives up: Err
)

// Word is what became of one device.
type Word struct {
	// Run is the end of a run.
	Run Outcome
	// Reading and Err are what came of a look.
	Reading Reading
	Err     error
	// Distrust says why the device's off is no proof; empty when it is one.
	Distrust string
}

// ClimbEvent is one input of a climb. Words are in the order of the effect's
// devices.
type ClimbEvent struct {
	Kind  ClimbEventKind
	Words []Word
	Err   error
}

// ClimbOutcome is the end of a climb.
type ClimbOutcome struct {
	// Proved says that all devices of one level said off together.
	Proved bool
	// Level is the one that proved it, or the last that was tried, from 0.
	Level int
	// Detail is what each device said, level by level.
	Detail string
	// Err is the last error of a device, if nothing is proved.
	Err error
	// Sent is how many power commands went out, or may have gone out.
	Sent int
}

// Climb takes the ladder of one host once, level by level: a pure machine, fed
// by Step. A level proves the host off when each of its devices was proved off
// and, after that, one look found all of them off together: of two power
// supplies that were off one after the other, one may have come back. A level
// that fails leads to the next one. It never sends anything but off.
type Climb struct {
	policy ClimbPolicy
	names  [][]string

	level   int
	said    []string  // of the level's devices
	guid    []GUID    // of their last off
	since   time.Time // when the last of them was proved off
	pending []int     // devices of the effect that is under way
	state   ClimbDo   // of that effect
	looks   int       // taken at this level
	returns int       // devices fenced again at this level
	story   []string  // of the levels that failed
	sent    int
	lastErr error
	outcome *ClimbOutcome
}

// NewClimb makes a climb of a ladder of at least one level of at least one
// device, given by the devices' names. The policy must be valid.
func NewClimb(p ClimbPolicy, names [][]string) *Climb {
	return &Climb{policy: p, names: names}
}

// Step takes what happened at now and returns what is to be done. After ClimbStop
// it returns the same outcome for ever.
func (c *Climb) Step(now time.Time, ev ClimbEvent) ClimbEffect {
	switch {
	case c.outcome != nil:
		return ClimbEffect{Do: ClimbStop, Level: c.level, Outcome: *c.outcome}
	case ev.Kind == ClimbStart && c.state == "":
		return c.enter(0)
	case ev.Kind == ClimbCancel:
		c.lastErr = ev.Err
		return c.stop("cancelled")
	case ev.Kind == ClimbFenced && c.state == ClimbFence && len(ev.Words) == len(c.pending):
		return c.fenced(now, ev.Words)
	case ev.Kind == ClimbLooked && c.state == ClimbLook && len(ev.Words) == len(c.pending):
		return c.looked(now, ev.Words)
	case ev.Kind == ClimbTime && c.state == ClimbWait:
		return c.look()
	}
	return c.stop(fmt.Sprintf("unexpected event %q", ev.Kind))
}

// enter begins a level with a run of each of its devices.
func (c *Climb) enter(level int) ClimbEffect {
	if level >= len(c.names) {
		return c.stop("")
	}
	n := len(c.names[level])
	c.level, c.looks, c.returns, c.since = level, 0, 0, time.Time{}
	c.said, c.guid = make([]string, n), make([]GUID, n)
	return c.fence(all(n))
}

func all(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

func (c *Climb) fence(devices []int) ClimbEffect {
	c.state, c.pending = ClimbFence, devices
	return ClimbEffect{Do: ClimbFence, Level: c.level, Devices: devices}
}

func (c *Climb) look() ClimbEffect {
	c.looks++
	c.state, c.pending = ClimbLook, all(len(c.said))
	return ClimbEffect{Do: ClimbLook, Level: c.level, Devices: c.pending}
}

// fenced takes in the ends of runs. The level goes on only if all of them proved
// their device off.
func (c *Climb) fenced(now time.Time, words []Word) ClimbEffect {
	ok := true
	for k, i := range c.pending {
		w := words[k]
		c.sent += w.Run.Sent
		c.said[i], c.guid[i] = w.Run.String(), w.Run.Last.GUID
		switch {
		case errors.Is(w.Run.Err, ErrNotPermitted):
			c.lastErr = w.Run.Err
			return c.stop("permission was withdrawn")
		case !w.Run.Proved:
			ok = false
			c.lastErr = w.Run.Err
		case w.Distrust != "":
			ok = false
			c.said[i] += ", but it is not trusted: " + w.Distrust
		}
	}
	if !ok {
		return c.fail("")
	}
	c.since = now
	if len(c.said) == 1 {
		return c.prove()
	}
	return c.look()
}

// looked judges a look at all devices of the level.
func (c *Climb) looked(now time.Time, words []Word) ClimbEffect {
	var back []int
	ok := true
	first, last := words[0].Reading.Start, words[0].Reading.Finish
	for i, w := range words {
		r := w.Reading
		if r.Start.Before(first) {
			first = r.Start
		}
		last = later(last, r.Finish)
		switch {
		case w.Err != nil || r.State != haven.PowerOn && r.State != haven.PowerOff:
			ok = false
			c.lastErr = w.Err
			c.said[i] = "off, but it could not be read together with the others"
			if w.Err != nil {
				c.said[i] += ": " + w.Err.Error()
			}
		case r.State == haven.PowerOn:
			back = append(back, i)
			c.said[i] = "was off, and came back on"
		case w.Distrust != "":
			c.said[i] = "off, but it is not trusted: " + w.Distrust
			return c.fail("")
		case c.guid[i] != "" && r.GUID != "" && c.guid[i] != r.GUID:
			c.said[i] = "off, but another board answers now than before"
			return c.fail("")
		default:
			ok = ok && !r.Start.Before(c.since)
			c.said[i] = "off, together with the others"
		}
	}
	switch {
	case len(back) > 0 && c.returns+len(back) > c.policy.Returns:
		return c.fail("")
	case len(back) > 0:
		c.returns += len(back)
		return c.fence(back)
	case ok && last.Sub(first) <= c.policy.Window:
		return c.prove()
	case c.looks >= c.policy.Looks:
		return c.fail("they were not read off together")
	}
	c.state = ClimbWait
	return ClimbEffect{Do: ClimbWait, Level: c.level, Until: now.Add(c.policy.Gap)}
}

// tell is what the devices of the present level said.
func (c *Climb) tell() string {
	var words []string
	for i, s := range c.said {
		if s != "" {
			words = append(words, c.names[c.level][i]+": "+s)
		}
	}
	text := strings.Join(words, "; ")
	if len(c.names) > 1 {
		text = fmt.Sprintf("level %d: %s", c.level+1, text)
	}
	return text
}

func (c *Climb) prove() ClimbEffect {
	c.story = append(c.story, c.tell())
	c.outcome = &ClimbOutcome{Proved: true, Level: c.level, Detail: strings.Join(c.story, "; "), Sent: c.sent}
	return ClimbEffect{Do: ClimbStop, Level: c.level, Outcome: *c.outcome}
}

// fail ends a level, and goes on to the next one.
func (c *Climb) fail(why string) ClimbEffect {
	text := c.tell()
	if why != "" {
		text += "; " + why
	}
	c.story = append(c.story, text)
	if c.level+1 >= len(c.names) {
		return c.stop("")
	}
	return c.enter(c.level + 1)
}

func (c *Climb) stop(why string) ClimbEffect {
	if why != "" {
		if text := c.tell(); c.state != "" && text != "" {
			c.story = append(c.story, text)
		}
		if c.lastErr != nil {
			why += ": " + c.lastErr.Error()
		}
		c.story = append(c.story, why)
	}
	c.outcome = &ClimbOutcome{Level: c.level, Detail: strings.Join(c.story, "; "), Err: c.lastErr, Sent: c.sent}
	return ClimbEffect{Do: ClimbStop, Level: c.level, Outcome: *c.outcome}
}

// Rung is one device of a ladder.
type Rung struct {
	Name   string
	Driver Driver // from Gate.Fence
	Policy Policy
	// Trusted says whether an off of the device whose first reading was this one
	// may be a proof, and why not. It must not block.
	Trusted func(first Reading) (ok bool, why string)
	// Read is told of each reading that was off in the end. It must not block.
	Read func(Reading)
	Log  *slog.Logger
}

// ExecuteClimb carries out one climb. The devices of a level are handled at the
// same time. The permit is asked right before each power command, and its refusal
// ends the climb.
func ExecuteClimb(ctx context.Context, p ClimbPolicy, ladder [][]Rung, permit Permit) (ClimbOutcome, error) {
	if err := p.Validate(); err != nil {
		return ClimbOutcome{}, err
	}
	names := make([][]string, len(ladder))
	for l, level := range ladder {
		for _, r := range level {
			if err := r.Policy.Validate(); err != nil {
				return ClimbOutcome{}, fmt.Errorf("fence policy of %s: %w", r.Name, err)
			}
			names[l] = append(names[l], r.Name)
		}
		if len(level) == 0 {
			return ClimbOutcome{}, fmt.Errorf("level %d has no device", l+1)
		}
	}
	climb := NewClimb(p, names)
	ev := ClimbEvent{Kind: ClimbStart}
	for {
		if err := ctx.Err(); err != nil && ev.Kind != ClimbFenced && ev.Kind != ClimbLooked {
			ev = ClimbEvent{Kind: ClimbCancel, Err: err}
		}
		eff := climb.Step(time.Now(), ev)
		switch eff.Do {
		case ClimbStop:
			return eff.Outcome, nil
		case ClimbFence:
			ev = ClimbEvent{Kind: ClimbFenced, Words: together(eff, ladder, func(r Rung) Word { return r.run(ctx, permit) })}
		case ClimbLook:
			ev = ClimbEvent{Kind: ClimbLooked, Words: together(eff, ladder, func(r Rung) Word { return r.look(ctx) })}
		case ClimbWait:
			waitUntil(ctx, eff.Until)
			ev = ClimbEvent{Kind: ClimbTime}
		}
	}
}

// together does something with several devices of a level at the same time.
func together(eff ClimbEffect, ladder [][]Rung, do func(Rung) Word) []Word {
	words := make([]Word, len(eff.Devices))
	var wg sync.WaitGroup
	for k, i := range eff.Devices {
		wg.Go(func() { words[k] = do(ladder[eff.Level][i]) })
	}
	wg.Wait()
	return words
}

func (r Rung) run(ctx context.Context, permit Permit) Word {
	out, err := Execute(ctx, r.Driver, r.Policy, permit, r.Log)
	if err != nil {
		out = Outcome{Reason: err.Error(), Err: err}
	}
	if !out.Proved {
		return Word{Run: out}
	}
	r.Read(out.First)
	r.Read(out.Last)
	return Word{Run: out, Distrust: r.distrust(out.First)}
}

func (r Rung) look(ctx context.Context) Word {
	ev := readPower(ctx, r.Driver, r.Policy.Session)
	w := Word{Reading: ev.Reading, Err: ev.Err}
	if ev.Err == nil {
		r.Read(ev.Reading)
		w.Distrust = r.distrust(ev.Reading)
	}
	return w
}

func (r Rung) distrust(first Reading) string {
	if ok, why := r.Trusted(first); !ok {
		return why
	}
	return ""
}

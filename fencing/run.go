package fencing

import (
	"errors"
	"fmt"
	"time"

	"github.com/haven-ha/haven"
)

// Policy bounds a fence run on one device.
type Policy struct {
	// Confirmations is how many readings of "off" make a proof, at least 2.
	Confirmations int
	// Gap is the least time from the end of one of these readings to the
	// start of the next, at least 300 ms. It is also the shortest poll.
	Gap time.Duration
	// Window is the most time between two of them; older ones do not count.
	Window time.Duration
	// Resend is after how long a power command that shows no effect is sent
	// again. Slow boards need 4 to 10 s from the command to "off". A device that
	// answers neither on nor off is given as long before the first command.
	Resend time.Duration
	// Sends is how often the command is sent at most, at least 1.
	Sends int
	// Settle is how long the status may lag behind the last command.
	Settle time.Duration
	// RetryMin and RetryMax bound the growing pause after a failed session.
	RetryMin, RetryMax time.Duration
	// Session bounds one session, Total the whole run. Total must leave room
	// for all commands: Total >= Resend*(Sends-1) + Settle.
	Session, Total time.Duration
}

// DefaultPolicy is that of the design: two readings 300 ms apart, a command
// without effect sent again every 6 s up to four times, a minute in all.
func DefaultPolicy() Policy {
	return Policy{
		Confirmations: 2,
		Gap:           300 * time.Millisecond,
		Window:        10 * time.Second,
		Resend:        6 * time.Second,
		Sends:         4,
		Settle:        20 * time.Second,
		RetryMin:      250 * time.Millisecond,
		RetryMax:      4 * time.Second,
		Session:       10 * time.Second,
		Total:         60 * time.Second,
	}
}

// Validate checks the relations between the values.
func (p Policy) Validate() error {
	switch {
	case p.Confirmations < 2:
		return fmt.Errorf("confirmations %d: one reading is no proof, want at least 2", p.Confirmations)
	case p.Gap < 300*time.Millisecond:
		return fmt.Errorf("gap %s: want at least 300ms between readings", p.Gap)
	case p.Window <= p.Gap:
		return fmt.Errorf("window %s: want more than the gap of %s", p.Window, p.Gap)
	case p.Sends < 1:
		return fmt.Errorf("sends %d: want at least 1", p.Sends)
	case p.RetryMin <= 0 || p.RetryMax < p.RetryMin:
		return fmt.Errorf("retry pauses %s to %s: want a positive, growing range", p.RetryMin, p.RetryMax)
	case p.Session <= 0 || p.Resend <= 0 || p.Settle <= 0:
		return errors.New("session, resend and settle must be positive")
	case p.Total < p.Resend*time.Duration(p.Sends-1)+p.Settle:
		return fmt.Errorf("total %s: want room for %d commands every %s and %s to settle", p.Total, p.Sends, p.Resend, p.Settle)
	}
	return nil
}

// Do names what a run wants done next.
type Do string

// The effects of a run.
const (
	DoRead Do = "read" // read the power state in a fresh session; answer with EventReading
	DoOff  Do = "off"  // send the power command; answer with EventCommand
	DoWait Do = "wait" // do nothing until Effect.Until; answer with EventTime
	DoStop Do = "stop" // it is over; Effect.Outcome says how
)

// Effect is what a run wants done next.
type Effect struct {
	Do      Do
	Until   time.Time
	Outcome Outcome
}

// EventKind names what happened to a run.
type EventKind string

// The inputs of a run.
const (
	EventStart   EventKind = "start"   // the first input
	EventReading EventKind = "reading" // a session is over: Reading and Err
	EventCommand EventKind = "command" // the command was accepted, or Err
	EventTime    EventKind = "time"    // the wait is over
	EventCancel  EventKind = "cancel"  // the caller gives up: Err
)

// Event is one input of a run.
type Event struct {
	Kind    EventKind
	Reading Reading
	Err     error
}

// Outcome is the end of a fence run.
type Outcome struct {
	// Proved says that the device reported "off" as often as the policy wants.
	// Whether that is a proof of death also depends on Trust.
	Proved bool
	// First and Last are the first and last of the readings that prove it.
	First, Last Reading
	// Reason says, for people, why it is not proved.
	Reason string
	// Err is the last error of a session, if that is what stood in the way.
	Err error
	// Sent is how many power commands went out, or may have gone out. If it is
	// not zero the host may still go off after a run that proved nothing.
	Sent int
	// Sessions is how many sessions were tried.
	Sessions int
	// Steps is what was done and answered, oldest first, at most 64 lines (P9).
	Steps []string
}

func (o Outcome) String() string {
	if o.Proved {
		return fmt.Sprintf("off, read %s apart, after %d power commands in %d sessions",
			o.Last.Start.Sub(o.First.Finish).Round(time.Millisecond), o.Sent, o.Sessions)
	}
	return fmt.Sprintf("not proved off: %s (%d power commands in %d sessions)", o.Reason, o.Sent, o.Sessions)
}

const (
	stepsMax   = 64               // lines kept of a run
	deniedMax  = 2                // refusals of the credentials in a row before a run gives up
	notYetMax  = 10 * time.Second // for which permission may be put off before a run gives up
	pollSlow   = time.Second
	pollSlowBy = 4 // polls slow down to a quarter of the time since the last command
)

// Run is one attempt to prove one host off through one device: a pure machine,
// fed by Step. It reads first: a host that is off already needs no command. A
// device that does not answer gets none either; its next session is a reading.
// It never takes an error, a timeout or an accepted command for "off".
type Run struct {
	policy Policy
	start  time.Time
	offs   streak

	sends    int
	lastSend time.Time
	prevSend time.Time // the one before
	sessions int
	failures int       // sessions that failed in a row
	denied   int       // sessions refused for good in a row
	unclear  time.Time // since when it answers neither on nor off, or zero
	refused  int       // commands refused for good
	putOff   time.Time // since when permission has been put off, or zero
	lastErr  error
	steps    []string
	skipped  int
	outcome  *Outcome
}

// NewRun makes a run. The policy must be valid.
func NewRun(p Policy) *Run {
	return &Run{policy: p, offs: streak{gap: p.Gap, window: p.Window}}
}

// Step takes what happened at now and returns what is to be done. After DoStop
// it returns the same outcome for ever.
func (r *Run) Step(now time.Time, ev Event) Effect {
	if r.outcome != nil {
		return Effect{Do: DoStop, Outcome: *r.outcome}
	}
	if r.start.IsZero() {
		r.start = now
	}
	switch ev.Kind {
	case EventStart:
		return r.read()
	case EventTime:
		if r.over(now) {
			return r.stop(now, "time is up")
		}
		return r.read()
	case EventReading:
		return r.onReading(now, ev)
	case EventCommand:
		return r.onCommand(now, ev.Err)
	case EventCancel:
		r.lastErr = ev.Err
		return r.stop(now, "cancelled")
	}
	return r.stop(now, fmt.Sprintf("unexpected event %q", ev.Kind))
}

func (r *Run) onReading(now time.Time, ev Event) Effect {
	r.sessions++
	err := ev.Err
	if err == nil && ev.Reading.State != haven.PowerOff && ev.Reading.State != haven.PowerOn {
		err = ErrNoState
	}
	switch {
	case errors.Is(err, ErrNoState):
		return r.onUnclear(now, err)
	case err != nil:
		return r.onFailure(now, err)
	}
	r.note(now, ev.Reading.String())
	r.failures, r.denied, r.unclear = 0, 0, time.Time{}
	r.offs.push(ev.Reading)
	switch {
	case r.offs.count >= r.policy.Confirmations:
		r.outcome = &Outcome{Proved: true, First: r.offs.first, Last: r.offs.last}
		return r.finish()
	case r.over(now):
		return r.stop(now, "time is up")
	case ev.Reading.State == haven.PowerOff:
		// One look is no proof, but it needs no command either.
		return r.wait(now, ev.Reading.Finish.Add(r.policy.Gap).Sub(now))
	}
	if r.sends == 0 {
		return r.send(now, r.policy.Resend)
	}
	return r.send(now, now.Sub(r.lastSend))
}

// onUnclear decides about a device that answers and says neither on nor off. It
// may be on its way to off, so it is given as long as a command is. It may also
// stay so for ever, with a host that runs: then it is told, and told again.
func (r *Run) onUnclear(now time.Time, err error) Effect {
	r.failures, r.denied, r.lastErr = 0, 0, err
	r.note(now, "reading: "+err.Error())
	if r.unclear.IsZero() {
		r.unclear = now
	}
	if r.over(now) {
		return r.stop(now, "time is up: "+err.Error())
	}
	return r.send(now, now.Sub(later(r.unclear, r.lastSend)))
}

// send decides what to do about a host that is not off, when the last power
// command, or what else it waits for, is so long ago: send, wait or give up.
func (r *Run) send(now time.Time, since time.Duration) Effect {
	switch {
	case r.refused >= deniedMax:
		return r.stop(now, "device refuses the power command")
	case since >= r.policy.Resend && r.sends < r.policy.Sends:
		r.sends++
		r.prevSend, r.lastSend = r.lastSend, now
		r.note(now, fmt.Sprintf("sending power off, %d of at most %d", r.sends, r.policy.Sends))
		return Effect{Do: DoOff}
	case r.sends >= r.policy.Sends && since >= r.policy.Settle && !r.unclear.IsZero():
		return r.stop(now, "power commands had no effect that shows: "+r.lastErr.Error())
	case r.sends >= r.policy.Sends && since >= r.policy.Settle:
		return r.stop(now, "power commands had no effect: the device still says on")
	}
	pause := min(max(r.policy.Gap, since/pollSlowBy), pollSlow)
	return r.wait(now, pause)
}

func (r *Run) onCommand(now time.Time, err error) Effect {
	r.sessions++
	switch {
	case errors.Is(err, ErrNotPermitted):
		return r.onRefusal(now, err)
	case errors.Is(err, ErrAuth), errors.Is(err, ErrUnsupported):
		r.refused++
	}
	r.putOff = time.Time{}
	// Accepted or not, only a look tells what became of it: the command may
	// have worked and its answer been lost.
	switch {
	case r.over(now):
		return r.stop(now, "time is up")
	case err == nil:
		r.note(now, "power off accepted")
		return r.read()
	}
	r.lastErr = err
	r.note(now, "power off: "+err.Error())
	return r.wait(now, r.policy.Gap)
}

// onRefusal decides about a command that was not permitted: nothing left this
// machine. One that is only put off is asked for again after another look.
func (r *Run) onRefusal(now time.Time, err error) Effect {
	r.sends--
	r.lastSend, r.lastErr = r.prevSend, err
	if !errors.Is(err, ErrNotYet) {
		return r.stop(now, "permission was withdrawn")
	}
	if r.putOff.IsZero() {
		r.putOff = now
	}
	if now.Sub(r.putOff) >= notYetMax || r.over(now) {
		return r.stop(now, "permission was withdrawn")
	}
	r.note(now, "power off: "+err.Error())
	return r.wait(now, pollSlow)
}

func (r *Run) onFailure(now time.Time, err error) Effect {
	r.failures++
	r.lastErr = err
	r.note(now, "reading failed: "+err.Error())
	if errors.Is(err, ErrAuth) || errors.Is(err, ErrUnsupported) {
		r.denied++
	} else {
		r.denied = 0
	}
	switch {
	case r.denied >= deniedMax:
		return r.stop(now, "device does not let us read its power state")
	case r.over(now):
		return r.stop(now, "time is up")
	}
	pause := r.policy.RetryMax
	if shift := r.failures - 1; shift < 16 {
		pause = min(pause, r.policy.RetryMin<<shift)
	}
	return r.wait(now, pause)
}

// wait pauses, but not past the end of the run.
func (r *Run) wait(now time.Time, d time.Duration) Effect {
	left := r.start.Add(r.policy.Total).Sub(now)
	return Effect{Do: DoWait, Until: now.Add(max(0, min(d, left)))}
}

func (r *Run) read() Effect { return Effect{Do: DoRead} }

func (r *Run) over(now time.Time) bool { return now.Sub(r.start) >= r.policy.Total }

func (r *Run) stop(now time.Time, reason string) Effect {
	if r.lastErr != nil && (r.failures > 0 || r.refused > 0 || errors.Is(r.lastErr, ErrNotPermitted)) {
		reason += ": " + r.lastErr.Error()
	}
	r.note(now, "giving up: "+reason)
	r.outcome = &Outcome{Reason: reason, Err: r.lastErr}
	return r.finish()
}

func (r *Run) finish() Effect {
	r.outcome.Sent, r.outcome.Sessions = r.sends, r.sessions
	if r.skipped > 0 {
		r.steps = append(r.steps, fmt.Sprintf("… and %d more steps", r.skipped))
	}
	r.outcome.Steps = r.steps
	return Effect{Do: DoStop, Outcome: *r.outcome}
}

func (r *Run) note(now time.Time, what string) {
	if len(r.steps) >= stepsMax-1 {
		r.skipped++
		return
	}
	r.steps = append(r.steps, fmt.Sprintf("+%s %s", now.Sub(r.start).Round(time.Millisecond), what))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

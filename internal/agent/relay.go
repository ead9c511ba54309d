package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/client"
)

// A master may have no way to the boards: a witness in another building, or a
// host whose link to their network broke. Then another agent reads and commands
// them for it. The delegate lends its network and nothing else: the readings are
// judged here, and right before a power command leaves it asks back whether the
// permit still holds.

// relays is what this agent knows of ways to boards through others.
type relays struct {
	mu      sync.Mutex
	ways    map[string]*way // by device key
	permits map[string]lent // by a name that nobody can guess
}

// way is how a device was reached the last time.
type way struct {
	far  bool // through a delegate
	last haven.HostID
	turn int // counts delegates that could not
}

// lent is a permit that one delegate may ask for.
type lent struct {
	to     haven.HostID
	permit fencing.Permit
}

func newRelays() *relays {
	return &relays{ways: map[string]*way{}, permits: map[string]lent{}}
}

func (r *relays) way(key string) way {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.ways[key]; w != nil {
		return *w
	}
	return way{}
}

// tried notes how a device was tried. A way that did not reach it makes room for
// the other one; any answer, also a refusal, shows that the way is open.
func (r *relays) tried(key string, delegate haven.HostID, reached bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.ways[key]
	if w == nil {
		w = &way{}
		r.ways[key] = w
	}
	far := delegate != ""
	w.far = far == reached
	switch {
	case far && reached:
		w.last = delegate
	case far:
		w.last = ""
		w.turn++
	}
}

// lend makes a permit that a delegate can ask for until it is taken back.
func (r *relays) lend(to haven.HostID, p fencing.Permit) (name string, back func()) {
	name = rand.Text()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.permits[name] = lent{to, p}
	return name, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.permits, name)
	}
}

func (r *relays) permit(name string, from haven.HostID) (fencing.Permit, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, ok := r.permits[name]
	return l.permit, ok && l.to == from
}

// relayed is a fence device with both ways to it: the agent's own and the one
// through a delegate. Each call takes the way that worked last. When that is
// closed at once the other one is tried in the same call, else in the next:
// a slow board needs the whole time of a session.
type relayed struct {
	a    *Agent
	host haven.HostID
	dev  FenceDevice
}

// throughOthers gives every device its second way.
func (a *Agent) throughOthers(all map[haven.HostID][][]FenceDevice) map[haven.HostID][][]FenceDevice {
	out := make(map[haven.HostID][][]FenceDevice, len(all))
	for host, ladder := range all {
		for _, level := range ladder {
			level = slices.Clone(level)
			for i, dev := range level {
				level[i].Driver = relayed{a, host, dev}
			}
			out[host] = append(out[host], level)
		}
	}
	return out
}

func (r relayed) Power(ctx context.Context) (fencing.Reading, error) {
	reading := fencing.Reading{State: haven.PowerUnknown, Start: time.Now()}
	err := r.do(ctx, func(ctx context.Context) (err error) {
		reading, err = r.dev.Driver.Power(ctx)
		return err
	}, func(ctx context.Context, delegate haven.HostID) error {
		// The delegate's clock means nothing here. The state was true at some
		// moment between the question and the answer.
		reading = fencing.Reading{State: haven.PowerUnknown, Start: time.Now(), Via: delegate}
		answer, err := r.ask(ctx, delegate, client.PowerRequest{})
		reading.Finish = time.Now()
		if err != nil {
			return err
		}
		reading.State, reading.GUID = answer.State, fencing.GUID(answer.GUID)
		return nil
	})
	if reading.Finish.IsZero() {
		reading.Finish = time.Now()
	}
	return reading, err
}

func (r relayed) Set(ctx context.Context, action haven.FenceAction, permit fencing.Permit) error {
	return r.do(ctx, func(ctx context.Context) error {
		return r.dev.Driver.Set(ctx, action, permit)
	}, func(ctx context.Context, delegate haven.HostID) error {
		return r.order(ctx, delegate, client.PowerRequest{Action: action}, permit)
	})
}

// Light times the device's light or puts it out.
func (r relayed) Light(ctx context.Context, length time.Duration, permit fencing.Permit) error {
	return r.do(ctx, func(ctx context.Context) error {
		return fencing.Light(ctx, r.dev.Driver, length, permit)
	}, func(ctx context.Context, delegate haven.HostID) error {
		seconds := int((length + time.Second - 1) / time.Second)
		return r.order(ctx, delegate, client.PowerRequest{Action: haven.ActionBlink, Light: &seconds}, permit)
	})
}

// order has a delegate send one command.
func (r relayed) order(ctx context.Context, delegate haven.HostID, q client.PowerRequest, permit fencing.Permit) error {
	if err := permit.Check(ctx); err != nil {
		return err
	}
	name, back := r.a.relays.lend(delegate, permit)
	defer back()
	q.Permit = name
	_, err := r.ask(ctx, delegate, q)
	return err
}

func (r relayed) Identity(ctx context.Context) (id fencing.GUID, err error) {
	err = r.do(ctx, func(ctx context.Context) error {
		id, err = r.dev.Driver.Identity(ctx)
		return err
	}, func(ctx context.Context, delegate haven.HostID) error {
		answer, err := r.ask(ctx, delegate, client.PowerRequest{Identity: true})
		id = fencing.GUID(answer.GUID)
		return err
	})
	return id, err
}

// Examine asks the driver, if it has an answer, on this agent's own way: through
// another one nothing is known.
func (r relayed) Examine(ctx context.Context) error {
	if r.a.relays.way(r.dev.Key).far {
		return fmt.Errorf("%w: it is out of this agent's own reach", fencing.ErrUnreachable)
	}
	return examine(ctx, r.dev.Driver)
}

// do takes the way that worked last, and the other one if that is closed at once.
func (r relayed) do(ctx context.Context, near func(context.Context) error, far func(context.Context, haven.HostID) error) error {
	began := time.Now()
	patience := time.Second
	if end, ok := ctx.Deadline(); ok {
		patience = time.Until(end) / 4
	}
	var err, first error
	for range 2 {
		w := r.a.relays.way(r.dev.Key)
		delegate := haven.HostID("")
		if w.far {
			delegate = r.a.delegate(r.host, w)
		}
		if delegate != "" {
			err = far(ctx, delegate)
		} else {
			err = near(ctx)
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return err // It was broken off, which tells nothing of the way.
		}
		if errors.Is(err, fencing.ErrNotPermitted) && first != nil {
			// A refusal would say that nothing went out, and nobody knows.
			return fmt.Errorf("%w; and no permission to send it on another way: %s", first, err.Error())
		}
		closed := errors.Is(err, fencing.ErrUnreachable)
		r.a.relays.tried(r.dev.Key, delegate, !closed)
		if !closed || ctx.Err() != nil || time.Since(began) > patience || r.a.delegate(r.host, w) == "" {
			return err
		}
		first = err
	}
	return err
}

// delegate chooses who may be asked to reach a host's device: the one that could
// the last time, else the next in turn.
func (a *Agent) delegate(subject haven.HostID, w way) haven.HostID {
	live, j := a.liveHosts(), a.judgement.Load()
	if a.isMaster() {
		live = a.ev.connected(time.Now().Add(-a.connectedFor()))
	}
	var able []haven.HostID
	for _, id := range live {
		if h, _ := j.host(id); id != subject && id != a.d.Host && !h.Suspected {
			able = append(able, id)
		}
	}
	slices.Sort(able)
	switch {
	case len(able) == 0:
		return ""
	case slices.Contains(able, w.last):
		return w.last
	}
	return able[w.turn%len(able)]
}

// ask has a delegate do one thing with the device. What goes wrong on the way to
// the delegate leaves open what became of it, as with the device itself.
func (r relayed) ask(ctx context.Context, delegate haven.HostID, q client.PowerRequest) (client.PowerAnswer, error) {
	q.Host, q.Device, q.Term = r.host, r.dev.Key, r.a.executor.Highest()
	q.Limit = client.MillisOf(r.dev.session())
	if end, ok := ctx.Deadline(); ok {
		q.Limit = min(q.Limit, client.MillisOf(time.Until(end)))
	}
	var answer client.PowerAnswer
	if err := r.a.client.Post(ctx, delegate, client.PathPower, q, &answer); err != nil {
		return answer, fmt.Errorf("%w: through %s: %w", fencing.ErrUnreachable, delegate, err)
	}
	if answer.Failed != "" {
		return answer, fmt.Errorf("through %s: %w", delegate, &relayError{fencing.Failure(answer.Failed).Err(), answer.Detail})
	}
	return answer, nil
}

// relayError is a driver's error that came over the wire.
type relayError struct {
	is   error // nil for one of no kind: the state is unknown
	text string
}

func (e *relayError) Error() string { return e.text }
func (e *relayError) Unwrap() error { return e.is }

// Power reaches a fence device for another agent.
func (a *Agent) Power(ctx context.Context, from haven.HostID, q client.PowerRequest) (client.PowerAnswer, error) {
	dev, ok := a.ownDevice(q.Host, q.Device)
	switch {
	case !ok:
		return client.PowerAnswer{}, fmt.Errorf("device %s of %s: %w", q.Device, q.Host, haven.ErrNotFound)
	case q.Host == a.d.Host:
		return client.PowerAnswer{}, fmt.Errorf("device of %s: a host does not fence itself: %w", q.Host, haven.ErrUnavailable)
	case a.loop.ok() != haven.Yes || a.majority() != haven.Yes:
		return client.PowerAnswer{}, fmt.Errorf("this agent cannot vouch for its own paths: %w", haven.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, min(q.Limit.Duration(), dev.session()))
	defer cancel()
	var answer client.PowerAnswer
	var err error
	switch {
	case q.Action != "":
		err = a.setFor(ctx, from, dev, q)
	case q.Identity:
		var id fencing.GUID
		id, err = a.power.gate.Read(dev.Key, dev.Driver).Identity(ctx)
		answer.GUID = string(id)
	default:
		var r fencing.Reading
		r, err = a.power.gate.Read(dev.Key, dev.Driver).Power(ctx)
		answer.State, answer.GUID = r.State, string(r.GUID)
	}
	if err != nil {
		answer = failedPower(err)
	}
	return answer, nil
}

// setFor sends a power command for the master, who is asked again right before.
func (a *Agent) setFor(ctx context.Context, from haven.HostID, dev FenceDevice, q client.PowerRequest) error {
	if q.Action != haven.ActionOff && q.Action != haven.ActionOn && q.Action != haven.ActionBlink {
		return fmt.Errorf("%w: action %q", fencing.ErrUnsupported, q.Action)
	}
	if err := checkLight(q.Action, q.Light); err != nil {
		return fmt.Errorf("%w: %w", fencing.ErrUnsupported, err)
	}
	if master, ok := a.master(); !ok || master != from {
		return fmt.Errorf("%w: %s is not the master", fencing.ErrNotPermitted, from)
	}
	if err := a.executor.See(q.Term); err != nil {
		return fmt.Errorf("%w: %w", fencing.ErrNotPermitted, err)
	}
	a.log.WarnContext(ctx, "power command for another agent", "from", from, "host", q.Host, "device", dev.Name, "action", q.Action)
	driver, permit := a.power.gate.Fence(dev.Key, dev.Driver), a.permitOf(from, q.Permit)
	if length := lightLength(q.Light); length != nil {
		return fencing.Light(ctx, driver, *length, permit)
	}
	return driver.Set(ctx, q.Action, permit)
}

// permitOf asks the master whether the command may leave. It verifies that it leads
// while it answers: an answer that took longer than a lease is none any more, and is
// asked for again (P3).
func (a *Agent) permitOf(master haven.HostID, name string) fencing.Permit {
	return func(ctx context.Context) error {
		for ctx.Err() == nil {
			asked := a.d.Boottime()
			var answer client.PermitAnswer
			if err := a.client.Post(ctx, master, client.PathPermit, client.PermitRequest{Permit: name}, &answer); err != nil {
				return fmt.Errorf("ask %s for the permit: %w", master, err)
			}
			if !answer.Stands {
				return fmt.Errorf("%s does not permit it: %s", master, answer.Why)
			}
			if a.d.Boottime()-asked <= a.cfg.Raft.Lease {
				return nil
			}
		}
		return fmt.Errorf("ask %s for the permit: %w", master, ctx.Err())
	}
}

func failedPower(err error) client.PowerAnswer {
	return client.PowerAnswer{Failed: string(fencing.FailureOf(err)), Detail: err.Error()}
}

// Permit tells a delegate whether a power command may still leave.
func (a *Agent) Permit(ctx context.Context, from haven.HostID, q client.PermitRequest) (client.PermitAnswer, error) {
	permit, ok := a.relays.permit(q.Permit, from)
	if !ok {
		return client.PermitAnswer{Why: "nothing of that name is asked for any more"}, nil
	}
	if err := permit.Check(ctx); err != nil {
		return client.PermitAnswer{Why: err.Error()}, nil
	}
	return client.PermitAnswer{Stands: true}, nil
}

// ownDevice finds a device with this agent's own way to it.
func (a *Agent) ownDevice(host haven.HostID, key string) (FenceDevice, bool) {
	for _, dev := range slices.Concat(a.ownFences[host]...) {
		if dev.Key == key {
			return dev, true
		}
	}
	return FenceDevice{}, false
}

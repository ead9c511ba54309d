package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/api"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/notify"
)

const (
	// operateWait is how long an operator's request waits for the end of a power
	// command; the command itself has operateLimit, less than the end of an agent.
	operateWait  = 8 * time.Second
	operateLimit = time.Minute
)

// errBusyHost is returned while something else is done to a host's power.
var errBusyHost = errors.New("something else is being done to its power")

// enter begins something about a host's power. One thing is done at a time,
// however many ask for it.
func (p *power) enter(host haven.HostID) (leave func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy[host] {
		return nil, errBusyHost
	}
	p.busy[host] = true
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.busy, host)
	}, nil
}

// operateRoutes are what operators do about power.
func (a *Agent) operateRoutes() []api.Route {
	return []api.Route{
		{Pattern: "POST /v1/hosts/{host}/fence/{action}", Need: api.NeedOperator, MaxBytes: client.MaxSmallBytes, Serve: a.operate},
		{Pattern: "POST /v1/hosts/{host}/fence/release", Need: api.NeedOperator, MaxBytes: client.MaxSmallBytes, Serve: a.acting(a.releaseFenced)},
		{Pattern: "GET " + client.PathActs, Need: api.NeedViewer, Serve: a.atMaster(a.viewActs)},
		{Pattern: "POST " + client.PathCapReset, Need: api.NeedOperator, MaxBytes: client.MaxSmallBytes, Serve: a.acting(a.resetCap)},
	}
}

func (a *Agent) resetCap(ctx context.Context, _ *api.Call, q client.Act) error {
	act := ledger.Act{Action: ledger.ActCapReset, By: q.By, Reason: q.Reason, At: time.Now()}
	return a.commitOne(ctx, ledger.RecordAct{Act: act})
}

// operate carries out an operator's action on a host's power, at the master.
func (a *Agent) operate(ctx context.Context, c *api.Call) (any, error) {
	var q client.Act
	if err := c.Decode(&q); err != nil {
		return nil, err
	}
	if err := sign(&q, c); err != nil {
		return nil, err
	}
	m := a.reign.Load()
	if m == nil {
		return a.passOn(ctx, c, q)
	}
	id, err := a.namedHost(c)
	if err != nil {
		return nil, err
	}
	answer := client.FenceAnswer{Host: id, Action: haven.FenceAction(c.Path("action")), Status: "done"}
	if err := checkLight(answer.Action, q.Light); err != nil {
		return nil, badRequest(err)
	}
	ladder := a.rungs(id)
	if len(ladder) == 0 {
		return nil, refused("host %s: %s", id, errNoDevice)
	}
	switch answer.Action {
	case haven.ActionStatus, haven.ActionTest:
		answer.Devices = a.readDevices(ctx, id)
		a.notify(looked(answer, q.By))
		return answer, nil
	case haven.ActionOff, haven.ActionOn, haven.ActionBlink:
		if err := a.mayOperate(id, answer.Action, q); err != nil {
			return nil, err
		}
		return a.command(ctx, m, c, answer, q, ladder)
	case haven.ActionNone, haven.ActionReboot:
		fallthrough
	default:
		return nil, badRequest(fmt.Errorf("action %q: want on, off, status, blink or test", answer.Action))
	}
}

// looked tells of an operator's look at a host's power, for those who want to know
// of everything that is asked of a board.
func looked(answer client.FenceAnswer, by string) notify.Event {
	var words []string
	for _, d := range answer.Devices {
		words = append(words, d.Device+": "+cmp.Or(d.Failed, string(d.Power)))
	}
	return notify.Event{
		Kind: notify.KindOperator, Severity: notify.Info, Host: answer.Host,
		Text: fmt.Sprintf("%s of %s, for %s: %s", answer.Action, answer.Host, by, strings.Join(words, ", ")),
		ID:   notify.NewID(notify.KindOperator, string(answer.Action), string(answer.Host), time.Now().UTC().Format(time.RFC3339Nano)),
	}
}

// command sends a power command in an operator's name. It is in the ledger before.
func (a *Agent) command(ctx context.Context, m *mastery, c *api.Call, answer client.FenceAnswer, q client.Act, ladder [][]fencing.Rung) (any, error) {
	leave, err := a.power.enter(answer.Host)
	if err != nil {
		return nil, refused("host %s: %s", answer.Host, err)
	}
	act := ledger.Act{Action: answer.Action, Host: answer.Host, By: q.By, Reason: reasonOf(q), Force: q.Force, At: time.Now()}
	if err := a.commitOne(ctx, ledger.RecordAct{Act: act}); err != nil {
		leave()
		return nil, err
	}
	a.log.Warn("operator acted", "by", q.By, "what", c.URI(), "reason", q.Reason)
	a.notifyActed(c, q)
	permit := func(ctx context.Context) error {
		if err := a.verified(ctx, m); err != nil {
			return err
		}
		return a.mayOperate(answer.Host, answer.Action, q)
	}
	// It goes on when the operator's request is over, and ends before the agent.
	long, cancel := context.WithTimeout(context.WithoutCancel(ctx), operateLimit)
	over := make(chan client.FenceAnswer, 1)
	a.owned.Go(func() {
		defer cancel()
		defer leave()
		over <- a.carryOut(long, answer, q, ladder, permit)
	})
	timer := time.NewTimer(operateWait)
	defer timer.Stop()
	select {
	case answer = <-over:
	case <-timer.C:
		answer.Status, answer.Detail = "begun", "it goes on; 'haven fence status "+string(answer.Host)+"' shows the power"
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return answer, nil
}

// checkLight refuses what cannot be asked of a light.
func checkLight(action haven.FenceAction, seconds *int) error {
	switch {
	case seconds == nil:
		return nil
	case action != haven.ActionBlink:
		return fmt.Errorf("action %q: light_s is for blink", action)
	case *seconds < 0 || *seconds > client.LightMax:
		return fmt.Errorf("a light for %d s: want 1 to %d, or 0 to put it out", *seconds, client.LightMax)
	}
	return nil
}

// lightLength is as fencing.Blink wants it.
func lightLength(seconds *int) *time.Duration {
	if seconds == nil {
		return nil
	}
	length := time.Duration(*seconds) * time.Second
	return &length
}

// reasonOf is what the ledger keeps for the reason. What was asked of a light is
// told in it: an agent of an older version ends at an entry with an unknown field,
// which a light is not worth.
func reasonOf(q client.Act) string {
	said := ""
	switch {
	case q.Light == nil:
		return q.Reason
	case *q.Light == 0:
		said = "light out"
	default:
		said = fmt.Sprintf("light for %d s", *q.Light)
	}
	if q.Reason != "" {
		said += ": " + q.Reason
	}
	return said
}

// carryOut does it, and tells people how it ended.
func (a *Agent) carryOut(ctx context.Context, answer client.FenceAnswer, q client.Act, ladder [][]fencing.Rung, permit fencing.Permit) client.FenceAnswer {
	var err error
	switch answer.Action {
	case haven.ActionOff:
		var out fencing.ClimbOutcome
		if out, err = fencing.ExecuteClimb(ctx, fencing.DefaultClimbPolicy(), ladder, permit); err == nil && !out.Proved {
			err = &unproved{out}
		}
		answer.Detail = out.Detail
	case haven.ActionOn:
		answer.Detail, err = fencing.TurnOn(ctx, ladder, permit)
	case haven.ActionBlink:
		answer.Detail, err = fencing.Blink(ctx, ladder, lightLength(q.Light), permit)
	case haven.ActionNone, haven.ActionReboot, haven.ActionStatus, haven.ActionTest: // see operate
	}
	if err != nil {
		answer.Status, answer.Detail = "failed", err.Error()
	}
	a.log.Warn("power command of an operator is over", "by", q.By, "host", answer.Host, "action", answer.Action, "status", answer.Status, "detail", answer.Detail)
	a.notify(notify.Event{
		Kind: notify.KindOperator, Host: answer.Host,
		Text: fmt.Sprintf("%s of %s, for %s: %s: %s", answer.Action, answer.Host, q.By, answer.Status, answer.Detail),
		ID:   notify.NewID(notify.KindOperator, string(answer.Action), string(answer.Host), answer.Status, time.Now().UTC().Format(time.RFC3339Nano)),
	})
	a.kick()
	return answer
}

// mayOperate is asked before an operator's power command is recorded and right
// before it leaves.
func (a *Agent) mayOperate(id haven.HostID, action haven.FenceAction, q client.Act) error {
	pending, cut, wrong := false, false, a.wrongDevice(id)
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		if h := s.Hosts[id]; h != nil {
			cut = h.ProvedDead() && h.Proof.Kind == haven.ProofDevice
		}
		for _, in := range s.OpenIncidents() {
			if _, p := in.Pending(); p && in.Host == id {
				pending = true
			}
		}
	})
	switch {
	case action == haven.ActionBlink:
		return nil
	case wrong != "":
		return refused("a device of host %s seems to be another host's: %s; when it is its own: haven host trust-bmc %s", id, wrong, id)
	case pending:
		return refused("host %s is being fenced: its power is not touched before that is over", id)
	case action == haven.ActionOn && cut:
		return refused("host %s was cut off its storage and has not booted since: it may still run VMs that were started elsewhere, and would write to their disks; power-cycle it first", id)
	case action == haven.ActionOn:
		return nil
	case id == a.d.Host:
		return refused("host %s is the master: a host does not power itself off", id)
	case q.Force && q.By == api.ByLocal:
		return badRequest(errors.New("a live host is powered off by name, and root is nobody's name: use --by NAME"))
	case q.Force:
		return nil
	}
	return a.mayCallDead(id)
}

// readDevices reads each device of a host once.
func (a *Agent) readDevices(ctx context.Context, id haven.HostID) []client.DeviceWord {
	var words []client.DeviceWord
	for l, level := range a.d.Fences[id] {
		for _, dev := range level {
			words = append(words, client.DeviceWord{Device: dev.Name, Level: l + 1, Power: haven.PowerUnknown})
		}
	}
	var wg sync.WaitGroup
	i := 0
	for _, level := range a.d.Fences[id] {
		for _, dev := range level {
			w := &words[i]
			i++
			wg.Go(func() { a.readDevice(ctx, id, dev, w) })
		}
	}
	wg.Wait()
	return words
}

func (a *Agent) readDevice(ctx context.Context, id haven.HostID, dev FenceDevice, w *client.DeviceWord) {
	ctx, cancel := context.WithTimeout(ctx, min(dev.session(), operateWait))
	defer cancel()
	begun := time.Now()
	r := fencing.TestDevice(ctx, fencing.Device{Host: id, Key: dev.Key, Driver: a.power.gate.Read(dev.Key, dev.Driver)}, true)
	impatient := ctx.Err() != nil && time.Since(begun) < dev.session()
	if r.Err != nil && (impatient || errors.Is(r.Err, fencing.ErrOursIsAtIt)) {
		// That the operator does not wait longer, or that a fence came first, says
		// nothing about the device: nobody else is told.
		w.Failed, w.Detail = string(fencing.FailureOf(r.Err)), r.Err.Error()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			w.Detail = fmt.Sprintf("no end in %s, after which nobody waits here; its background test gives it %s: 'haven hosts %s' shows that", operateWait, dev.session(), id)
		}
		return
	}
	a.tested(ctx, r)
	level := w.Level
	for _, said := range a.viewDevices(id, a.ledgerTrust(id), time.Now()) {
		if said.Device == dev.Name && said.Level == level {
			*w = said
		}
	}
}

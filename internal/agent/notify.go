package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/internal/api"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/isolation"
	"github.com/haven-ha/haven/internal/notify"
	"github.com/haven-ha/haven/internal/recovery"
)

// Notifier sends events to people. Notify must not wait for anything.
type Notifier interface {
	Notify(e notify.Event)
	// Test sends a test to one target, or to all for an empty name.
	Test(ctx context.Context, target, by string) ([]notify.Outcome, error)
	// Run sends until the context ends.
	Run(ctx context.Context)
}

// notify tells people of an event, if anybody is to be told.
func (a *Agent) notify(e notify.Event) {
	if a.d.Notifier != nil {
		a.d.Notifier.Notify(e)
	}
}

// newMasterFor is how long what a master finds held counts as told before: by the
// master before it, which may not have had the time.
const newMasterFor = 10 * time.Second

// noticeEvent makes an event of a notice. Its id is the same whichever master
// gives the notice.
func (a *Agent) noticeEvent(n recovery.Notice) notify.Event {
	k := a.kinds.Lookup(n.Kind)
	e := notify.Event{
		ID:   notify.NewID(n.Kind, string(n.Incident), string(n.Host), string(n.VM), n.About),
		Kind: n.Kind, Severity: k.Severity, Host: n.Host, VM: n.VM, Incident: n.Incident, Text: n.Text,
	}
	switch {
	case !n.Alarm && e.Severity == notify.Critical:
		e.Severity = notify.Info // such as the hold of a start-up grace
	case n.Alarm && e.Severity == notify.Info, n.Alarm && n.Kind == "held" && needsPerson(n.About):
		e.Severity++
	}
	if reason, _, _ := strings.Cut(n.About, "/"); k.Class == notify.ClassHold && recovery.Releases(reason) != "" {
		e.Do = "Released by " + recovery.Releases(reason) + ". " + k.Advise(e)
	}
	since, master := a.masterFor()
	cold, _ := a.coldStart()
	e.Reminder = k.Class == notify.ClassHold && k.Standing && master && !cold && since < newMasterFor
	return e
}

// needsPerson says whether a hold of an incident may never end by itself.
func needsPerson(reason string) bool {
	return slices.Contains([]string{
		haven.HoldCap, haven.HoldFenceBlocked, haven.HoldNoDevice, haven.HoldActionNone, haven.HoldContradiction, haven.HoldNeedsOperator, haven.HoldIdentity,
	}, reason)
}

// selfPatience is how long an agent must have seen nobody before it tells people:
// at a cold start the others come a moment later.
const selfPatience = 10 * time.Second

// notifySelf tells what this agent found out about its own host, which no master
// can tell: there may be none on this side.
func (a *Agent) notifySelf(now time.Time, v, was *selfView) {
	tell := func(kind, text string, since time.Time) {
		a.notify(notify.Event{Kind: kind, Host: a.d.Host, Text: text, ID: notify.NewID(kind, string(a.d.Host), since.UTC().Format(time.RFC3339))})
	}
	lost := v.State == isolation.Isolated || v.State == isolation.Partitioned
	switch {
	case lost && v.State != a.selfTold && now.Sub(v.Since) >= selfPatience:
		a.selfTold = v.State
		if v.State == isolation.Isolated {
			tell(notify.KindIsolated, fmt.Sprintf("%s is isolated; its VMs keep running: %s", a.d.Host, v.Why), v.Since)
		} else {
			tell(notify.KindCutOff, fmt.Sprintf("%s is cut off from all others, but its network works: %s", a.d.Host, v.Why), v.Since)
		}
	case v.State == isolation.Connected && a.selfTold != "":
		a.selfTold = ""
		tell(notify.KindRejoined, fmt.Sprintf("%s is not isolated any more: %s", a.d.Host, v.Why), now)
	}
	switch {
	case !v.noQuorum.IsZero() && was.noQuorum.IsZero():
		tell(notify.KindNoQuorum, fmt.Sprintf("no quorum on the side of %s: it sees %d of %d hosts, %s and no master; nothing is fenced or restarted here", a.d.Host, v.reached, v.hosts, v.votes), v.noQuorum)
	case v.noQuorum.IsZero() && !was.noQuorum.IsZero():
		tell(notify.KindQuorum, fmt.Sprintf("there is a master again, or less than half of the hosts are on the side of %s", a.d.Host), now)
	}
}

// notifyReleasing tells that this isolated host begins to stop its VMs, or leaves
// the rest of them running.
func (a *Agent) notifyReleasing(begun bool, action string) {
	now := time.Now()
	kind, text := notify.KindReleases, fmt.Sprintf("%s is isolated and stops its VMs, as configured (%s)", a.d.Host, action)
	if !begun {
		kind, text = notify.KindReleased, fmt.Sprintf("%s does not stop VMs any more", a.d.Host)
	}
	a.notify(notify.Event{Kind: kind, Host: a.d.Host, Text: text, ID: notify.NewID(kind, string(a.d.Host), now.UTC().Format(time.RFC3339))})
}

// notifyActed tells what an operator did.
func (a *Agent) notifyActed(c *api.Call, q client.Act) {
	what := strings.TrimPrefix(c.URI(), "/v1/")
	text := fmt.Sprintf("%s did: %s", q.By, what)
	if q.Reason != "" {
		text += ", because: " + q.Reason
	}
	a.notify(notify.Event{
		Kind: notify.KindOperator, Host: haven.HostID(c.Path("host")), Text: text,
		ID: notify.NewID(notify.KindOperator, what, time.Now().UTC().Format(time.RFC3339Nano)),
	})
}

// notifyHold tells, as the master, of a detector's hold of one host that became an
// alarm. Those of the whole cluster are told by the recovery.
func (a *Agent) notifyHold(of string, h detector.Hold) {
	if of == "cluster" || !a.isMaster() {
		return
	}
	since := a.origin.Add(h.Since).UTC().Format("20060102T1504Z")
	a.notify(notify.Event{
		Kind: notify.KindHoldAlarm, Host: haven.HostID(of), Text: fmt.Sprintf("%s: %s: %s", of, h.Reason, h.Detail),
		ID: notify.NewID(notify.KindHoldAlarm, of, h.Reason, since),
	})
}

// testNotify sends a test from this very agent: each has its own way to the
// targets, and each may be master one day.
func (a *Agent) testNotify(ctx context.Context, c *api.Call) (any, error) {
	var q client.NotifyTest
	if err := c.Decode(&q); err != nil {
		return nil, err
	}
	refuse := func(err error) error {
		return &client.Error{Problem: client.Problem{Title: "nobody to notify", Status: http.StatusNotFound, Detail: err.Error()}}
	}
	if a.d.Notifier == nil {
		return nil, refuse(fmt.Errorf("%w: none is configured", notify.ErrNoTarget))
	}
	out, err := a.d.Notifier.Test(ctx, q.Target, c.By)
	if errors.Is(err, notify.ErrNoTarget) {
		return nil, refuse(err)
	}
	if err != nil {
		return nil, err
	}
	a.log.Info("notifications were tested", "by", c.By, "target", q.Target)
	answer := client.NotifyTested{By: a.d.Host}
	for _, o := range out {
		answer.Targets = append(answer.Targets, client.NotifyOutcome{Target: o.Target, Type: o.Type, Took: client.MillisOf(o.Took), Error: o.Error})
	}
	return answer, nil
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/recovery"
	"github.com/haven-ha/haven/storagebeat"
)

// Bounds of a master that leaves pills.
const (
	// pillDelegates is how many agents are asked one after the other.
	pillDelegates = 3
	// unwantedFor is how long the judgement must speak against a pill before it is
	// taken back for that: what is taken back comes again with the next attempt only.
	// What the ledger says counts at once.
	unwantedFor = 2 * time.Second
	// withdrawEvery is how often it is looked at, and withdrawAgain how long is waited
	// after a store did not take it.
	withdrawEvery = time.Second
	withdrawAgain = 10 * time.Second
)

// leftPill is a pill that this agent left, or may have left, as master.
type leftPill struct {
	m        *mastery
	act      recovery.Fence
	unwanted time.Time // since when the judgement has spoken against it
	tried    time.Time // when it was last taken back somewhere, and not everywhere
}

// poison leaves a pill for the host of a fence attempt, beside the ladder. What it
// returns waits for the end and tells it in a sentence, empty when the host obeys
// no pills. That a pill lies there proves nothing (P2).
func (a *Agent) poison(ctx context.Context, m *mastery, act recovery.Fence) (told func() string) {
	if !a.obeysPills(act.Host) {
		return func() string { return "" }
	}
	done := make(chan string, 1)
	a.owned.Go(func() { done <- a.leavePill(ctx, m, act) })
	return func() string { return <-done }
}

func (a *Agent) leavePill(ctx context.Context, m *mastery, act recovery.Fence) string {
	permit := func(ctx context.Context) error { return a.mayFence(ctx, m, act) }
	if err := permit(ctx); err != nil {
		return "no poison pill was left: " + err.Error()
	}
	// Before it is written: also one whose write seems to fail is to be taken back.
	a.pills.keep(leftPill{m: m, act: act})
	p := a.post(ctx, pillOf(m, act, false), permit)
	where := "no poison pill could be left"
	if len(p.stores) > 0 {
		where = "a poison pill lies on " + strings.Join(p.stores, ", ")
	}
	if len(p.failed) > 0 {
		where += "; " + strings.Join(p.failed, "; ")
	}
	a.log.Warn("a poison pill is left for a host", "host", act.Host, "incident", act.Incident, "attempt", act.N, "stores", p.stores, "failed", p.failed)
	return where
}

// posted is what became of one pill.
type posted struct {
	stores []string // that have it
	failed []string // a sentence for each of the others
	open   bool     // of some it is not known what lies there
}

func pillOf(m *mastery, act recovery.Fence, withdrawn bool) storagebeat.Pill {
	return storagebeat.Pill{
		Host: act.Host, Boot: act.Boot, Incident: act.Incident, Attempt: uint32(act.N), Term: m.term, Withdrawn: withdrawn,
	}
}

// post writes a pill to every store of this agent, and has another agent do it when
// that works nowhere.
func (a *Agent) post(ctx context.Context, p storagebeat.Pill, permit fencing.Permit) posted {
	all := a.postHere(ctx, p)
	if len(all.stores) > 0 {
		return all
	}
	all.open = true // What this agent has no way to others may have written.
	for turn := range pillDelegates {
		delegate := a.delegate(p.Host, way{turn: turn})
		if delegate == "" || ctx.Err() != nil {
			break
		}
		ans, err := a.postThrough(ctx, delegate, p, permit)
		if err != nil {
			all.failed = append(all.failed, fmt.Sprintf("through %s: %s", delegate, err))
			continue
		}
		all.failed = append(all.failed, ans.Failed...)
		if len(ans.Stores) > 0 {
			all.stores, all.open = []string{fmt.Sprintf("%s (through %s)", strings.Join(ans.Stores, ", "), delegate)}, ans.Open
			return all
		}
	}
	return all
}

// postHere writes a pill to all of this agent's own stores at once. The monitors
// bound each write.
func (a *Agent) postHere(ctx context.Context, p storagebeat.Pill) (all posted) {
	keys := a.pills.keys.all()
	if len(keys) == 0 {
		return posted{failed: []string{"there is no gossip key to seal a pill with"}}
	}
	p.By = a.d.Host
	errs := make([]chan error, len(a.monitors))
	for i, m := range a.monitors {
		errs[i] = make(chan error, 1)
		a.owned.Go(func() { errs[i] <- m.Post(ctx, p, keys[0]) })
	}
	for i, m := range a.monitors {
		err := <-errs[i]
		if err == nil {
			all.stores = append(all.stores, m.Mailbox().Store)
			continue
		}
		all.failed = append(all.failed, err.Error())
		all.open = all.open || !errors.Is(err, storagebeat.ErrNoMailbox) && !errors.Is(err, storagebeat.ErrNewerPill)
	}
	return all
}

func (a *Agent) postThrough(ctx context.Context, delegate haven.HostID, p storagebeat.Pill, permit fencing.Permit) (ans client.LeavePillAnswer, err error) {
	q := client.LeavePillRequest{
		Host: p.Host, Boot: p.Boot, Incident: p.Incident, Attempt: int(p.Attempt), Term: p.Term, Withdrawn: p.Withdrawn,
	}
	if !p.Withdrawn {
		name, back := a.relays.lend(delegate, permit)
		defer back()
		q.Permit = name
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout+a.cfg.Heartbeat.IOTimeout)
	defer cancel()
	return ans, a.client.Post(ctx, delegate, client.PathPillLeave, q, &ans)
}

// LeavePill leaves a pill on this agent's stores for the master, who is asked again
// right before.
func (a *Agent) LeavePill(ctx context.Context, from haven.HostID, q client.LeavePillRequest) (client.LeavePillAnswer, error) {
	if master, ok := a.master(); !ok || master != from {
		return client.LeavePillAnswer{}, fmt.Errorf("leave a pill for %s: %s is not the master: %w", q.Host, from, haven.ErrNotMaster)
	}
	if err := a.executor.See(q.Term); err != nil {
		return client.LeavePillAnswer{}, err
	}
	if _, ok := a.cfg.Host(q.Host); !ok || q.Host == a.d.Host || q.Attempt < 0 {
		return client.LeavePillAnswer{}, fmt.Errorf("leave a pill for %s, attempt %d: %w", q.Host, q.Attempt, haven.ErrNotFound)
	}
	if !q.Withdrawn {
		if err := a.permitOf(from, q.Permit)(ctx); err != nil {
			return client.LeavePillAnswer{Failed: []string{err.Error()}}, nil
		}
	}
	p := a.postHere(ctx, storagebeat.Pill{
		Host: q.Host, Boot: q.Boot, Incident: q.Incident, Attempt: uint32(q.Attempt), Term: q.Term, Withdrawn: q.Withdrawn,
	})
	return client.LeavePillAnswer{Stores: p.stores, Failed: p.failed, Open: p.open}, nil
}

func (p *pills) keep(l leftPill) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left[l.act.Host] = l
}

// take returns the pills that were left; change notes what became of one, unless
// another one took its place.
func (p *pills) take() (all []leftPill) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.left {
		all = append(all, l)
	}
	return all
}

func (p *pills) change(l leftPill, gone bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, ok := p.left[l.act.Host]
	switch {
	case !ok || now.m != l.m || now.act != l.act:
	case gone:
		delete(p.left, l.act.Host)
	default:
		p.left[l.act.Host] = l
	}
}

// inherit takes over the pill that a master before this one left for a host, unless
// this one left another one since. A host that comes back with its stores and without
// its network hears of no new term: to it that pill stands until it is taken back.
func (p *pills) inherit(l leftPill) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now, ok := p.left[l.act.Host]; !ok || now.m != l.m {
		p.left[l.act.Host] = l
	}
}

// mayLie lists the pills that masters may have left, as the ledger tells: of each
// host the one for the latest attempt to end its present boot.
func mayLie(s *ledger.State, obeys func(haven.HostID) bool) []recovery.Fence {
	latest, begun := map[haven.HostID]recovery.Fence{}, map[haven.HostID]time.Time{}
	for _, in := range s.Incidents {
		h := s.Hosts[in.Host]
		if len(in.Attempts) == 0 || h == nil || h.Boot != in.Boot || h.ProvedDead() || !obeys(in.Host) {
			continue
		}
		last := in.Attempts[len(in.Attempts)-1]
		if at, found := begun[in.Host]; !found || last.BegunAt.After(at) {
			latest[in.Host], begun[in.Host] = recovery.Fence{Incident: in.ID, N: last.N, Host: in.Host, Boot: in.Boot}, last.BegunAt
		}
	}
	return slices.Collect(maps.Values(latest))
}

// withdrawLoop takes pills back that are not wanted any more, until ctx ends: those
// that this master left, and those of the masters before it (P7).
func (a *Agent) withdrawLoop(ctx context.Context) {
	tick := time.NewTicker(withdrawEvery)
	defer tick.Stop()
	var heir *mastery
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if m := a.reign.Load(); m != heir {
			heir = m
			a.inheritPills(m)
		}
		for _, l := range a.pills.take() {
			a.review(ctx, l, time.Now())
		}
	}
}

func (a *Agent) inheritPills(m *mastery) {
	if m == nil {
		return
	}
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		for _, act := range mayLie(s, a.obeysPills) {
			a.pills.inherit(leftPill{m: m, act: act})
		}
	})
}

// review takes one pill back when the time has come.
func (a *Agent) review(ctx context.Context, l leftPill, now time.Time) {
	if a.reign.Load() != l.m {
		a.pills.change(l, true)
		return
	}
	why := a.unwanted(l.act)
	if why == "" {
		against := a.judgement.Load().againstPill(l.act)
		switch {
		case against == "":
			l.unwanted = time.Time{}
		case l.unwanted.IsZero():
			l.unwanted = now
		case now.Sub(l.unwanted) >= unwantedFor:
			why = against
		}
		if why == "" {
			a.pills.change(l, false)
			return
		}
	}
	if !l.tried.IsZero() && now.Sub(l.tried) < withdrawAgain {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	if err := a.verified(ctx, l.m); err != nil {
		return // It is no business of this agent's then.
	}
	p := a.post(ctx, pillOf(l.m, l.act, true), nil)
	a.log.Info("a poison pill is taken back", "host", l.act.Host, "incident", l.act.Incident, "attempt", l.act.N, "why", why, "stores", p.stores, "failed", p.failed)
	l.tried = now
	a.pills.change(l, !p.open)
}

// unwanted says why the ledger wants no pill for a fence attempt any more. While
// the incident waits for its next attempt, or for its VMs to run, the pill stays.
func (a *Agent) unwanted(act recovery.Fence) (why string) {
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		in, h := s.Incidents[act.Incident], s.Hosts[act.Host]
		switch {
		case in == nil || !in.Open():
			why = "the incident is closed"
		case h == nil || h.Boot != act.Boot:
			why = "the host has another boot"
		case s.Stopped(act.Incident):
			why = "recovery was disarmed"
		case h.Maintenance != nil:
			why = "the host is in maintenance"
		case !slices.ContainsFunc(in.Attempts, func(f ledger.FenceAttempt) bool { return f.N == act.N }):
			why = "the ledger knows no such attempt"
		}
	})
	return why
}

// againstPill says why a host's pill should not lie there any longer: it shows life,
// or a brake is on. Doubt is no reason: a host that is only suspected, for a round
// was not answered in time, is as silent as before.
func (j *judged) againstPill(act recovery.Fence) string {
	h, ok := j.host(act.Host)
	if !ok || j.boots[act.Host] != act.Boot {
		return ""
	}
	switch h.Verdict {
	case haven.VerdictFailed:
		if !h.FenceAllowed {
			return "the detector withholds a power command: " + h.NoFence
		}
		return ""
	case haven.VerdictDead, haven.VerdictSuspect, haven.VerdictUnknown:
		return ""
	case haven.VerdictHealthy, haven.VerdictStorageLost, haven.VerdictStopped, haven.VerdictShutdown, haven.VerdictIsolated,
		haven.VerdictPartitioned, haven.VerdictAgentDown, haven.VerdictUnreachable:
	}
	return "the host shows life again: it is " + string(h.Verdict)
}

// withPill adds to the end of a fence attempt what became of the pill. A proof does
// not wait for that.
func withPill(d *recovery.Done, told func() string) {
	if d.Err == nil {
		return
	}
	if note := told(); note != "" {
		d.Err = &withNote{d.Err, note}
	}
}

// withNote is an error with something more to tell.
type withNote struct {
	error
	note string
}

func (e *withNote) Error() string { return e.error.Error() + "; " + e.note }
func (e *withNote) Unwrap() error { return e.error }

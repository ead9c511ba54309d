package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/recovery"
)

// Bounds of the master's calls.
const (
	applyTimeout   = 5 * time.Second
	askTimeout     = 3 * time.Second
	sendTimeout    = 3 * time.Second
	fetchTimeout   = 5 * time.Second
	maxEntryBytes  = 512 << 10 // of commands in one log entry
	doneQueueLimit = 4096
)

// mastery is the work of one term as master.
type mastery struct {
	machine *recovery.Machine
	term    haven.Term
	since   time.Time
	ready   bool // everything that earlier masters committed is applied here
	// readyAt is when that was so. Whatever earlier masters answered, they answered
	// to reports that were sent before.
	readyAt time.Time
}

// dutyLoop does the master's work after each judgement. It may wait for the
// ledger to commit, which the judgements must not.
func (a *Agent) dutyLoop(ctx context.Context) {
	timer := time.NewTimer(judgeIdle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			a.kick() // It comes back with a judgement.
			continue
		case <-a.judged:
		}
		if a.judgement.Load().index < a.decided {
			a.kick() // That was judged before the last decisions.
			continue
		}
		if wake, ok := a.duty(ctx); ok {
			timer.Reset(wake)
		}
	}
}

// ledgerIndex is that of the latest log entry in this agent's copy of the ledger.
func (a *Agent) ledgerIndex() (index uint64) {
	a.ledger.View(func(_ *ledger.State, at ledger.Position) { index = at.Index })
	return index
}

// duty does the master's work once, and returns when it wants to be called
// again. On an agent that is not the master it does nothing.
func (a *Agent) duty(ctx context.Context) (time.Duration, bool) {
	m := a.currentMastery(ctx)
	if m == nil {
		return 0, false
	}
	var out recovery.Output
	in, heard := a.recoveryInput(m)
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		if s.Generation == 0 {
			return
		}
		a.fillLedgerViews(s, &in, heard)
		out = m.machine.Step(s, in)
	})
	for _, n := range out.Notices {
		a.tellPeople(n)
	}
	commands := append(out.Commands, a.lessons()...)
	if len(commands) > 0 {
		err := a.propose(ctx, commands...)
		a.decided = a.ledgerIndex()
		if err != nil {
			a.log.Warn("decisions were not committed", "error", err)
			a.giveUp(ctx, m, out.Acts, err)
			return judgeIdle, true
		}
	}
	a.logDecisions(out.Commands)
	for _, act := range out.Acts {
		a.owned.Go(func() { a.perform(ctx, m, act) })
	}
	if len(out.Commands) > 0 {
		return time.Millisecond, true
	}
	return out.Wake, out.Wake > 0
}

// logDecisions writes one line for each change of a verdict that was recorded (P9).
func (a *Agent) logDecisions(cmds []ledger.Command) {
	for _, c := range cmds {
		r, ok := c.(ledger.RecordDecisions)
		if !ok {
			continue
		}
		for _, d := range r.Decisions {
			var evidence []string
			for _, e := range d.Evidence {
				evidence = append(evidence, e.String())
			}
			a.log.Info("decision", "host", d.Host, "boot", d.Boot, "verdict", d.To, "was", d.From, "why", d.Why, "term", d.Term.String(), "left_out", d.LeftOut, "evidence", evidence)
		}
	}
}

// currentMastery begins, keeps or ends this agent's work as master.
func (a *Agent) currentMastery(ctx context.Context) *mastery {
	lead := a.election.Leader()
	if lead.Host != "" {
		a.noteMaster(lead.Host)
	}
	if !lead.Self || !a.election.IsLeader() {
		if a.mastery != nil {
			a.log.Info("not the master any more", "term", a.mastery.term.String())
			a.endMastery()
		}
		return nil
	}
	raftTerm := lead.Term
	if a.mastery == nil || a.mastery.term.Term != raftTerm {
		a.endMastery()
		a.mastery = &mastery{machine: recovery.New(a.recoveryConfig()), term: haven.Term{Term: raftTerm}, since: time.Now()}
	}
	m := a.mastery
	if !m.ready {
		ctx, cancel := context.WithTimeout(ctx, applyTimeout)
		defer cancel()
		if err := a.election.Barrier(ctx); err != nil {
			a.log.Debug("master is not ready yet", "error", err)
			return nil
		}
		if err := a.found(ctx); err != nil {
			a.log.Warn("ledger could not be founded", "error", err)
			return nil
		}
		m.ready, m.readyAt = true, time.Now()
		m.term.Generation = a.ledger.Generation()
		a.reign.Store(m)
		a.log.Info("this agent is the master", "term", m.term.String())
		// What was judged so far was judged by an older ledger.
		a.decided = a.ledgerIndex()
		a.kick()
		return nil
	}
	return m
}

func (a *Agent) endMastery() {
	a.mastery = nil
	a.reign.Store(nil)
	a.ev.forgetReports()
}

// found names the cluster in a ledger that has just been begun.
func (a *Agent) found(ctx context.Context) error {
	if a.ledger.Generation() > 0 {
		return nil
	}
	return a.propose(ctx, ledger.Found{Cluster: a.cfg.Cluster, Generation: 1, By: string(a.d.Host), At: time.Now()})
}

// propose commits commands, in order. Commands that the ledger rejects are
// logged and dropped: the machine looks at the ledger again and decides anew.
func (a *Agent) propose(ctx context.Context, cmds ...ledger.Command) error {
	_, err := a.commit(ctx, cmds...)
	return err
}

// commit is propose with the ledger's word on each command.
func (a *Agent) commit(ctx context.Context, cmds ...ledger.Command) ([]error, error) {
	var all []error
	for len(cmds) > 0 {
		n, data, err := packEntry(cmds)
		if err != nil {
			return all, err
		}
		ctx, cancel := context.WithTimeout(ctx, applyTimeout)
		answer, err := a.election.Apply(ctx, data)
		cancel()
		if err != nil {
			return all, fmt.Errorf("commit %s: %w", ledger.Kind(cmds[0]), err)
		}
		errs, ok := answer.Value.([]error)
		if !ok {
			return all, fmt.Errorf("commit %s: the ledger answers %v", ledger.Kind(cmds[0]), answer.Value)
		}
		for i, e := range errs {
			if e != nil {
				a.log.Info("the ledger did not take a command", "command", ledger.Kind(cmds[i]), "error", e)
			}
		}
		all = append(all, errs...)
		cmds = cmds[n:]
	}
	return all, nil
}

// packEntry encodes as many of the commands as fit into one log entry.
func packEntry(cmds []ledger.Command) (int, []byte, error) {
	n := len(cmds)
	for {
		data, err := ledger.Encode(cmds[:n]...)
		if err != nil {
			return 0, nil, err
		}
		if len(data) <= maxEntryBytes || n == 1 {
			return n, data, nil
		}
		n = (n + 1) / 2
	}
}

// recoveryInput gathers what the machine may know, but for what only the ledger
// tells, and the reports that it is made of.
func (a *Agent) recoveryInput(m *mastery) (recovery.Input, map[haven.HostID]*heard) {
	in := recovery.Input{Now: time.Now(), Self: a.d.Host, Term: m.term, Hosts: map[haven.HostID]recovery.HostView{}}
	j := a.judgement.Load()
	reports := map[haven.HostID]*heard{}
	for _, h := range j.out.Holds {
		in.Brakes = append(in.Brakes, a.holdOf(h))
	}
	for _, h := range j.out.Hosts {
		reports[h.Host], _ = a.ev.view(h.Host)
		v := a.hostView(in.Now, h, reports[h.Host])
		v.Boot, v.Beat = j.boots[h.Host], j.lists[h.Host]
		if j.reign == m {
			a.addWatchdog(&v, h.Host, in.Now, j.dogs[h.Host])
		}
		in.Hosts[h.Host] = v
	}
	in.Done = a.takeDone(m)
	return in, reports
}

// ended is the end of an act, and in which mastery it was begun.
type ended struct {
	by *mastery
	recovery.Done
}

// takeDone returns the acts that ended. What an earlier mastery began means
// nothing to this one: its machine begins what is needed itself.
func (a *Agent) takeDone(m *mastery) (all []recovery.Done) {
	for {
		select {
		case d := <-a.done:
			if d.by == m {
				all = append(all, d.Done)
			}
			continue
		default:
		}
		return all
	}
}

// tellDone tells the machine that an act ended, unless that machine is no more.
func (a *Agent) tellDone(ctx context.Context, m *mastery, d recovery.Done) {
	if a.reign.Load() != m {
		return
	}
	select {
	case a.done <- ended{m, d}:
		a.kick()
	case <-ctx.Done():
	}
}

// giveUp ends acts that were not begun. The machine counts on an end of each.
func (a *Agent) giveUp(ctx context.Context, m *mastery, acts []recovery.Act, why error) {
	for _, act := range acts {
		a.owned.Go(func() { a.tellDone(ctx, m, recovery.Done{Act: act, Begun: time.Now(), Err: why}) })
	}
}

func (a *Agent) holdOf(h detector.Hold) haven.Hold {
	if !h.Held() {
		return haven.Hold{}
	}
	return haven.Hold{Reason: h.Reason, Detail: h.Detail, Since: a.origin.Add(h.Since)}
}

// hostView turns a judgement and a report into the machine's view of a host.
func (a *Agent) hostView(now time.Time, h detector.Judgement, rep *heard) recovery.HostView {
	v := recovery.HostView{
		Verdict: h.Verdict, Explanation: h.Why, Evidence: h.Evidence, Hold: a.holdOf(h.Hold), Leave: h.Left,
	}
	if !h.MayFence() {
		v.NoFence = "the detector withholds a power command: " + h.NoFence
	}
	if h.Flapping {
		v.Quarantine = cmp.Or(h.Quarantine.Detail, haven.HoldFlapping)
	}
	if h.Suspected {
		v.SuspectedFor = a.at(now) - h.SuspectedSince
	}
	if rep != nil {
		v.Inventory, v.Load, v.Refuses, v.Orders, v.Released = rep.inventory, rep.Load, rep.Refuses, rep.Orders, rep.Released
		for _, store := range rep.Observer.Stores {
			if store.Hung {
				v.Hung = store.Store
			}
		}
		if rep.Leaving != haven.LeaveNone {
			v.Leave = rep.Leaving
		}
	}
	return v
}

// fillLedgerViews says which hosts are connected as the ledger knows them: by the
// very reports that the views are made of.
func (a *Agent) fillLedgerViews(s *ledger.State, in *recovery.Input, reports map[haven.HostID]*heard) {
	for id, v := range in.Hosts {
		rep := reports[id]
		if rep != nil && in.Now.Sub(rep.at) <= a.connectedFor() && s.Knows(id, rep.Boot, rep.State) {
			v.Connected = true
			in.Hosts[id] = v
		}
	}
}

// connectedFor is how long a host counts as connected after a report.
func (a *Agent) connectedFor() time.Duration {
	return max(2*time.Second, 3*a.cfg.Detection.ReportInterval)
}

// lessons are what was learnt about BMCs and the ledger does not know yet.
func (a *Agent) lessons() []ledger.Command {
	var cmds []ledger.Command
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		doubts := a.doubts(s)
		cmds = a.doubtLessons(s, doubts)
		for _, id := range s.HostIDs() {
			keys := a.deviceKeys(id)
			if len(keys) == 0 {
				continue
			}
			known := s.Hosts[id].Power
			guid, distrust := a.power.learned(keys)
			if len(doubts[id]) > 0 {
				guid = "" // it is not this host's
			}
			if j, ok := a.judgement.Load().host(id); ok && j.Distrust && distrust == "" {
				distrust = "it said off while the host lived on"
			}
			c := ledger.LearnPower{Host: id, GUID: string(guid), Distrust: distrust}
			if known.Distrust != "" {
				c.Distrust = known.Distrust
			}
			if (guid != "" && known.GUID == "") || c.Distrust != known.Distrust {
				cmds = append(cmds, c)
			}
		}
	})
	return cmds
}

// perform carries out one act and tells how it ended.
func (a *Agent) perform(ctx context.Context, m *mastery, act recovery.Act) {
	d := recovery.Done{Act: act, Begun: time.Now()}
	switch act := act.(type) {
	case recovery.Fence:
		told := a.poison(ctx, m, act)
		a.performFence(ctx, m, act, &d)
		withPill(&d, told)
	case recovery.PowerOn:
		a.performPowerOn(ctx, m, act, &d)
	case recovery.Blink:
		a.performBlink(ctx, m, act, &d)
	case recovery.Ask:
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		inv, err := a.askInventory(ctx, act.Host)
		d.Inventory, d.Err = &inv, err
	case recovery.Send:
		ctx, cancel := context.WithTimeout(ctx, sendTimeout)
		defer cancel()
		report, err := a.sendOrder(ctx, m, act)
		d.Report, d.Err = &report, err
	case recovery.Fetch:
		ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
		defer cancel()
		a.performFetch(ctx, act, &d)
	case recovery.Stop:
		ctx, cancel := context.WithTimeout(ctx, stopTimeout+askTimeout)
		defer cancel()
		a.performStop(ctx, m, act, &d)
	}
	if d.Err != nil && ctx.Err() == nil {
		a.log.Debug("act did not succeed", "act", act.Key(), "error", d.Err)
	}
	a.tellDone(ctx, m, d)
}

func (a *Agent) askInventory(ctx context.Context, host haven.HostID) (haven.Inventory, error) {
	if host == a.d.Host {
		return a.watch.fresh(ctx), nil
	}
	return a.client.Inventory(ctx, host)
}

// sendOrder gives an order that stands in the ledger to its target. The target
// asks back right before it starts anything.
func (a *Agent) sendOrder(ctx context.Context, m *mastery, act recovery.Send) (haven.OrderReport, error) {
	var order haven.Order
	var def ledger.Definition
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		if vm := s.VMs[act.VM]; vm != nil && vm.Phase == ledger.PhaseOrdered && vm.Order.ID == act.Order {
			order, def = vm.Order.Order, vm.Definition
		}
	})
	if order.ID == "" {
		return haven.OrderReport{}, fmt.Errorf("send order %s: %w", act.Order, haven.ErrNotFound)
	}
	xml, err := def.Unpack()
	if err != nil {
		return haven.OrderReport{}, fmt.Errorf("send order %s: %w", act.Order, err)
	}
	if err := a.verified(ctx, m); err != nil {
		return haven.OrderReport{}, fmt.Errorf("send order %s: %w", act.Order, err)
	}
	if act.Host == a.d.Host {
		return a.executor.Accept(order, xml)
	}
	return a.client.Order(ctx, act.Host, order, xml)
}

// verified makes sure that this agent still leads, in the term that decided. When
// it returns, the word of the majority is at most one lease old.
func (a *Agent) verified(ctx context.Context, m *mastery) error {
	for {
		v, err := a.election.Verify(ctx)
		if err != nil {
			return err
		}
		if v.Term != m.term.Term {
			return fmt.Errorf("%w: term is %d, decided in %d", haven.ErrNotMaster, v.Term, m.term.Term)
		}
		if v.Age(time.Now()) <= a.cfg.Raft.Lease {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("verify leadership in time: %w", err)
		}
	}
}

func (a *Agent) performFetch(ctx context.Context, act recovery.Fetch, d *recovery.Done) {
	answer, err := a.fetchDefinition(ctx, act.Host, act.VM)
	if err != nil {
		d.Err = err
		return
	}
	d.Info, d.Boot = answer.Info, answer.Boot
	d.Definition, d.Err = ledger.Pack(answer.XML)
}

// untilProved returns when the context ends, or when there is nothing more to be
// proved: another proof came first, such as an operator's word or a new boot.
func (a *Agent) untilProved(ctx context.Context, act recovery.Fence) {
	for {
		changed := a.ledger.Changed()
		open := false
		a.ledger.View(func(s *ledger.State, _ ledger.Position) {
			in, h := s.Incidents[act.Incident], s.Hosts[act.Host]
			open = in != nil && in.Open() && in.Proof == nil && h != nil && h.Boot == act.Boot && !h.ProvedDead()
		})
		if !open {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// fencePolicy is the default one within the configured bound.
func (a *Agent) fencePolicy(dev FenceDevice) fencing.Policy {
	p := fencing.DefaultPolicy()
	p.Total, p.Session = a.cfg.Fencing.VerifyTimeout, dev.session()
	return p
}

func (a *Agent) ledgerDistrust(host haven.HostID) string { return a.ledgerTrust(host).Doubted() }

// errCameBack is returned when a host that was to be fenced shows life again.
var errCameBack = errors.New("the host shows life again")

// mayFence is asked right before a power command leaves. This agent must lead,
// the attempt must stand in the ledger, and the host must not have come back. The
// question that takes time comes first: meanwhile the others may change.
func (a *Agent) mayFence(ctx context.Context, m *mastery, act recovery.Fence) error {
	if err := a.verified(ctx, m); err != nil {
		return err
	}
	return a.fenceStands(act)
}

// fenceStands says why the ledger or the judgement is not for an attempt any more.
func (a *Agent) fenceStands(act recovery.Fence) error {
	stands := false
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		in := s.Incidents[act.Incident]
		if in == nil || !in.Open() || s.Stopped(act.Incident) {
			return
		}
		attempt, pending := in.Pending()
		h := s.Hosts[act.Host]
		stands = pending && attempt.N == act.N && h != nil && h.Boot == act.Boot && h.Maintenance == nil
	})
	if !stands {
		return errors.New("the ledger does not ask for it any more")
	}
	if why := a.wrongDevice(act.Host); why != "" {
		return errors.New("a device seems to be another host's: " + why)
	}
	return a.judgement.Load().stillDead(time.Now(), act)
}

// judgementFresh is how old the judgement may be that a power command rests on:
// some turns of the judge loop.
const judgementFresh = time.Second

// stillDead says whether a judgement still is for powering the host off.
func (j *judged) stillDead(now time.Time, act recovery.Fence) error {
	h, ok := j.host(act.Host)
	switch {
	case !ok:
		return errors.New("it was not judged")
	case now.Sub(j.at) > judgementFresh:
		return fmt.Errorf("%w: it was judged %s ago, and not since", fencing.ErrNotYet, now.Sub(j.at).Round(time.Millisecond))
	case j.boots[act.Host] != act.Boot:
		return errors.New("it was judged in another boot")
	case h.Verdict == haven.VerdictFailed && !h.FenceAllowed:
		return fmt.Errorf("%w: the detector withholds a power command: %s", fencing.ErrNotYet, h.NoFence)
	case h.Verdict == haven.VerdictSuspect: // too few answers came in time to find it dead once more, or it did show life
		return fmt.Errorf("%w: it is only suspected: %s", fencing.ErrNotYet, h.Why)
	case !h.MayFence() && h.Verdict != haven.VerdictDead:
		return fmt.Errorf("%w: it is %s", errCameBack, h.Verdict)
	}
	return nil
}

package agent

import (
	"context"
	"slices"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/storagebeat"
)

// reportTimeout bounds one report. It is as long as a suspicion takes, so that
// a report that is lost does not keep the next ones back for longer.
const reportTimeout = time.Second

// reportLoop tells the master about this host, again and again.
func (a *Agent) reportLoop(ctx context.Context) {
	r := reporter{a: a}
	var failing string
	for {
		every := a.cfg.Detection.ReportInterval
		// What changes from here on is not in the report, and is told at once.
		_, _, _, inventory := a.watch.get()
		_, orders := a.reports()
		master, ok := a.master()
		if ok {
			ack, err := r.send(ctx, master)
			if err != nil && failing != err.Error() && ctx.Err() == nil {
				a.log.Warn("report was not taken", "master", master, "error", err)
				failing = err.Error()
			}
			if err == nil {
				if failing != "" {
					a.log.Info("reports are taken again", "master", master)
				}
				failing = ""
				if a.obey(ack) {
					a.dog.heard(r.began, r.asked, ack)
				}
				every = max(every, ack.Every.Duration())
				if ack.WantInventory {
					r.sentSHA = ""
					every = time.Millisecond
				}
			} else {
				r.sentSHA = ""
			}
		} else {
			every = min(every, 100*time.Millisecond)
		}
		a.waitToReport(ctx, every, inventory, orders)
		if ctx.Err() != nil {
			return
		}
	}
}

// reporter makes reports. It sends the inventory only when it changed.
type reporter struct {
	a       *Agent
	sentSHA string
	sentTo  haven.HostID
	// began is a time before the last report was made; asked is what it said of the
	// watchdog.
	began time.Duration
	asked haven.Watchdog
}

// waitToReport ends when it is time for the next report, or when something
// happened that the master should hear at once. Two reports are at least 20 ms
// apart.
func (a *Agent) waitToReport(ctx context.Context, every time.Duration, inventory, orders <-chan struct{}) {
	least := time.NewTimer(min(every, 20*time.Millisecond))
	defer least.Stop()
	next := time.NewTimer(every)
	defer next.Stop()
	select {
	case <-ctx.Done():
		return
	case <-least.C:
	}
	select {
	case <-ctx.Done():
	case <-next.C:
	case <-inventory:
	case <-orders:
	case <-a.newMaster:
	}
}

func (r *reporter) send(ctx context.Context, master haven.HostID) (client.Ack, error) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	r.began = r.a.d.Boottime()
	rep := r.a.makeReport()
	r.asked = rep.Watchdog
	inv, sha, _, _ := r.a.watch.get()
	rep.InventorySHA = sha
	// After the inventory: what it does not show any more is then known as stopped.
	rep.Released = r.a.executor.Released()
	if r.sentTo != master || r.sentSHA != sha {
		rep.Inventory = &inv
	}
	ack, err := r.a.tell(ctx, master, rep)
	if err != nil {
		return client.Ack{}, err
	}
	r.sentTo, r.sentSHA = master, sha
	return ack, nil
}

// tell gives a report to the master, which may be this very agent.
func (a *Agent) tell(ctx context.Context, master haven.HostID, rep *client.Report) (client.Ack, error) {
	if master == a.d.Host {
		return a.TakeReport(ctx, master, rep)
	}
	return a.client.Report(ctx, master, rep)
}

func (a *Agent) makeReport() *client.Report {
	orders, _ := a.reports()
	load, loadWhy := a.watch.getLoad()
	snaps := a.snapshots()
	rep := &client.Report{
		Identity: a.identity(), Highest: a.executor.Highest(), Load: load, Orders: orders,
		Leaving: a.leaving(), Observer: a.observerView(snaps), Beats: a.beatViews(snaps, a.watched()),
	}
	a.number(rep)
	switch {
	case a.d.Hypervisor == nil:
		rep.Refuses = "it is a witness"
	case !a.told():
		rep.Refuses = "it was not told yet that it is registered"
	case loadWhy != "":
		rep.Refuses = loadWhy
	}
	return rep
}

// number counts the reports that are made. What a report wants of the ledger is
// read under the same lock: of two reports the later one says what is wanted.
func (a *Agent) number(rep *client.Report) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.made++
	rep.Number, rep.Watchdog = a.made, a.dog.declared()
	if !rep.Watchdog.Equal(a.asks) {
		a.asks, a.asksSince = rep.Watchdog, a.made
	}
	rep.WatchdogSince = a.asksSince
}

func (a *Agent) identity() client.Identity {
	host, _ := a.cfg.Host(a.d.Host)
	return client.Identity{
		Host: a.d.Host, Boot: a.d.Boot, State: a.d.State, Incarnation: a.d.Incarnation,
		Role: host.Role, Address: host.Address.String(), ServerID: string(a.election.ServerID()),
		UUID: a.d.UUID,
	}
}

// reports returns how orders stand, and a channel that is closed at a change.
func (a *Agent) reports() ([]haven.OrderReport, <-chan struct{}) { return a.executor.Reports() }

// obey does what the master's answer to a report asks for. An answer from a
// master that was superseded is worth nothing; obey says whether it counts.
func (a *Agent) obey(ack client.Ack) bool {
	if err := a.executor.See(ack.Term); err != nil {
		a.log.Warn("answer to a report is not obeyed", "master", ack.Master, "error", err)
		return false
	}
	if ack.Rejected != "" && a.setRejected(ack.Rejected) {
		a.log.Error("the ledger does not take this host", "reason", ack.Rejected)
	}
	if !ack.Registered {
		return false
	}
	a.ev.ack(ackHeard{ack.Master, a.bootOf(ack.Master), time.Now(), ack.LeaveRunning})
	a.useSlot(ack.Slot)
	a.setTold()
	a.setWatched(ack.Watch)
	a.protects.Store(&ack.Protected)
	select { // Nobody else sends, so there is room after this.
	case <-a.standing:
	default:
	}
	a.standing <- standing{time.Now(), ack.Protected, ack.SetAside}
	return true
}

// reportSoon has the next report made at once.
func (a *Agent) reportSoon() {
	select {
	case a.newMaster <- struct{}{}:
	default:
	}
}

// watchedBeats returns the content of one store's beats, and what is told of those
// that were written: the watchdog counts from a time before each was begun.
func (a *Agent) watchedBeats() (content func() storagebeat.Beat, wrote func(storagebeat.Beat)) {
	if a.dog == nil {
		return a.beat, nil
	}
	var began time.Duration // the content is made right before each write, by one goroutine
	content = func() storagebeat.Beat {
		began = a.d.Boottime()
		return a.beat()
	}
	return content, func(b storagebeat.Beat) { a.dog.wrote(began, b) }
}

func (a *Agent) setWatched(hosts []haven.HostID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.troubled = hosts
}

// standing is what a master wants of this host's definitions.
type standing struct {
	at                  time.Time
	protected, setAside []haven.VMID
}

// keepTimeout bounds one change of a definition's standing, and keepFor how long
// what the master wanted counts: the next report brings it anew.
const (
	keepTimeout = 5 * time.Second
	keepFor     = 2 * time.Second
)

// keepLoop carries out what masters want of this host's definitions. It is not
// done between two reports: a VM manager that hangs must not make the host look
// silent (P8).
func (a *Agent) keepLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case w := <-a.standing:
			if a.d.Hypervisor != nil {
				a.keepAutostart(ctx, w)
				a.setAside(ctx, w)
			}
		}
	}
}

// keepAutostart takes the start of protected VMs out of the VM manager's hands.
func (a *Agent) keepAutostart(ctx context.Context, w standing) {
	inv, _, _, _ := a.watch.get()
	for _, id := range w.protected {
		info, ok := inv.Find(id)
		if !ok || !info.Autostart || time.Since(w.at) > keepFor {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, keepTimeout)
		err := a.d.Hypervisor.SetAutostart(ctx, id, false)
		cancel()
		if err != nil {
			a.log.Warn("autostart of a protected VM could not be switched off", "vm", info.Name, "error", err)
			continue
		}
		a.log.Info("autostart was switched off, Haven starts this VM now", "vm", info.Name)
	}
}

// setAside takes stale definitions of VMs that run elsewhere off this host.
func (a *Agent) setAside(ctx context.Context, w standing) {
	for _, id := range w.setAside {
		inv, _, _, _ := a.watch.get()
		if _, listed := inv.Find(id); !listed || inv.Has(id) != haven.No || a.ordered(id) || time.Since(w.at) > keepFor {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, keepTimeout)
		err := a.d.Hypervisor.SetAside(ctx, id)
		cancel()
		if err != nil {
			a.log.Log(ctx, a.quiet.level("set-aside/"+string(id)), "stale definition could not be set aside", "vm", id, "error", err)
			continue
		}
		a.log.Info("stale definition of a VM that runs elsewhere was set aside", "vm", id)
	}
}

// ordered says whether an order for the VM is at work here.
func (a *Agent) ordered(id haven.VMID) bool {
	all, _ := a.reports()
	for _, r := range all {
		if r.VM == id && !r.Status.Final() {
			return true
		}
	}
	return false
}

// observerView is what this agent can say for its own paths.
func (a *Agent) observerView(snaps []storagebeat.Snapshot) client.ObserverView {
	o := client.ObserverView{Majority: a.majority(), LoopOK: a.loop.ok()}
	for _, s := range snaps {
		o.Stores = append(o.Stores, storeView(s))
	}
	return o
}

func storeView(s storagebeat.Snapshot) client.StoreView {
	h := s.Health
	v := client.StoreView{Store: s.Store, OwnBack: h.OwnReadBack, Hung: h.HungFor > 0, Why: h.Problem}
	switch {
	case h.OthersMoving > 0:
		v.Others = haven.Yes
	case h.OthersStopped > 0:
		v.Others = haven.No
	}
	if h.Readable == haven.No {
		v.OwnBack = haven.No
	}
	return v
}

// beatViews is what this agent reads of other hosts' beats: whatever it is of
// those that are watched, and of the others only that a beat stands still. In
// quiet times there is nothing to tell, however many hosts there are.
func (a *Agent) beatViews(snaps []storagebeat.Snapshot, watched []haven.HostID) []client.BeatView {
	var all []client.BeatView
	for _, s := range snaps {
		for _, h := range s.Hosts {
			watch := slices.Contains(watched, h.Host)
			if h.Host == a.d.Host {
				continue
			}
			if watch || h.Agent.Moving == haven.No {
				all = append(all, beatView(s, h.Host, false, h.Agent))
			}
			if watch || h.Helper.Moving == haven.No {
				all = append(all, beatView(s, h.Host, true, h.Helper))
			}
		}
	}
	return all
}

// watched are the hosts of whose beats the master wants to hear.
func (a *Agent) watched() []haven.HostID {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.troubled
}

func beatView(s storagebeat.Snapshot, host haven.HostID, helper bool, v storagebeat.View) client.BeatView {
	b := client.BeatView{
		Store: s.Store, Host: host, Helper: helper, Absent: v.Missing, Moving: v.Moving,
		StoreID: storeID(s), Vouched: vouched(s, v), Watchdog: client.MillisOf(v.Beat.Watchdog),
		ReadAge: client.MillisOf(s.Health.ReadAge), ChangedAge: client.MillisOf(v.Age), Left: v.Left,
	}
	if v.Seen {
		b.Boot, b.Interval = v.Beat.Boot, client.MillisOf(v.Beat.Interval)
		b.Isolated, b.SeesOthers = haven.TriOf(v.Beat.Isolated), haven.TriOf(v.Beat.Master != "")
	}
	return b
}

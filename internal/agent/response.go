package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/recovery"
	"github.com/haven-ha/haven/storagebeat"
)

// Stopper ends VMs on this host.
type Stopper interface {
	// Stop asks a VM's guest to shut down, when graceful, or ends it at once. That
	// it returns nil proves nothing: only the inventory tells what is gone.
	Stop(ctx context.Context, id haven.VMID, graceful bool) error
}

// isolationInput is all that the response to isolation may know.
type isolationInput struct {
	// Isolated says that this host reaches nobody, Backed that the others, by
	// their beats, see a master that can start its VMs.
	Isolated, Backed bool
	// Landed says that this host's word was read back from a store.
	Landed bool
	// LeaveRunning says why an operator wants no VM to be stopped, as far as this
	// host knows: recovery was disarmed, or the host is in maintenance. It holds back
	// a response that has not begun.
	LeaveRunning string
	// VMs are the protected VMs that are on this host.
	VMs []haven.VMID
}

// isolationOutput is what the response wants.
type isolationOutput struct {
	Releasing bool // to be said in the beat
	Stop      []vmStop
}

// vmStop is one VM to be stopped.
type vmStop struct {
	VM       haven.VMID
	Graceful bool
}

// isolationResponse decides when an isolated host stops its own VMs. It is pure.
// An action of leave never stops anything (P4).
type isolationResponse struct {
	action          config.IsolationAction
	delay, shutdown time.Duration

	since time.Duration // since when it is isolated and backed, without a break
	both  bool
	begun bool
	first map[haven.VMID]time.Duration // when a VM was first asked to end
	last  map[haven.VMID]time.Duration
}

// stopAgain is how often a VM that does not go is asked again.
const stopAgain = 5 * time.Second

// Step looks at one moment.
func (r *isolationResponse) Step(now time.Duration, in isolationInput) isolationOutput {
	if r.action == config.IsolationLeave || r.action == "" || !in.Isolated || in.LeaveRunning != "" && !r.begun {
		r.both, r.begun, r.first, r.last = false, false, nil, nil
		return isolationOutput{}
	}
	switch {
	case !in.Backed:
		r.both = false
	case !r.both:
		r.both, r.since = true, now
	}
	if !r.begun {
		if !r.both || now-r.since < r.delay {
			return isolationOutput{}
		}
		r.begun, r.first, r.last = true, map[haven.VMID]time.Duration{}, map[haven.VMID]time.Duration{}
	}
	// What was stopped stays stopped, and the beat goes on saying so; no more is
	// stopped while nobody could start it.
	out := isolationOutput{Releasing: true}
	if !in.Landed || !in.Backed {
		return out
	}
	for _, id := range in.VMs {
		if last, asked := r.last[id]; asked && now-last < stopAgain {
			continue
		}
		if _, asked := r.first[id]; !asked {
			r.first[id] = now
		}
		r.last[id] = now
		out.Stop = append(out.Stop, vmStop{id, r.action == config.IsolationShutdown && now-r.first[id] < r.shutdown})
	}
	return out
}

// Bounds of responses on this host.
const (
	respondEvery  = 250 * time.Millisecond
	stopTimeout   = 10 * time.Second
	stopsAtOnce   = 8
	unreleaseCalm = 30 * time.Second // a VM runs on after a response for so long: it was not stopped
)

// respondLoop carries out the response to isolation. It never waits for the VM
// manager: a stop that hangs costs one goroutine for each VM, for stopTimeout.
func (a *Agent) respondLoop(ctx context.Context) {
	conf := a.cfg.Response.Isolation
	r := &isolationResponse{action: a.cfg.Hosts[a.d.Host].Response.Isolation, delay: conf.Delay, shutdown: conf.ShutdownTimeout}
	tick := time.NewTicker(respondEvery)
	defer tick.Stop()
	slots := make(chan struct{}, stopsAtOnce)
	runs := map[haven.VMID]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		out := r.Step(a.at(time.Now()), a.isolationInput(r))
		if was := a.releasing.Swap(out.Releasing); was != out.Releasing {
			a.log.Warn("response to isolation", "action", r.action, "begun", out.Releasing)
			a.notifyReleasing(out.Releasing, string(r.action))
		}
		for _, s := range out.Stop {
			select {
			case slots <- struct{}{}:
				a.owned.Go(func() { defer func() { <-slots }(); a.stopVM(ctx, s.VM, s.Graceful) })
			default: // The next turn asks again.
				delete(r.last, s.VM)
			}
		}
		if !out.Releasing {
			a.unrelease(runs)
		} else {
			clear(runs)
		}
	}
}

// isolationInput gathers what the response may know. It costs nothing where no
// response is configured.
func (a *Agent) isolationInput(r *isolationResponse) isolationInput {
	if r.action == config.IsolationLeave || a.d.Stopper == nil || !a.saysIsolated() {
		return isolationInput{}
	}
	snaps := a.snapshots()
	in := isolationInput{Isolated: true, Backed: a.backed(snaps), Landed: a.wordLanded(snaps)}
	protected := map[haven.VMID]bool{}
	if ids := a.protects.Load(); ids != nil {
		for _, id := range *ids {
			protected[id] = true
		}
	}
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		in.LeaveRunning = cmp.Or(leaveRunning(s, a.d.Host), a.ev.lastAck().leaveRunning)
		for id, vm := range s.VMs {
			if vm.Owner == a.d.Host && vm.OwnerBoot == a.d.Boot && vm.Phase == ledger.PhaseOwned {
				protected[id] = true
			}
		}
	})
	inv, _, _, _ := a.watch.get()
	for _, info := range inv.VMs {
		here := info.State == haven.VMRunning || info.State == haven.VMStopping || info.State == haven.VMPaused && info.Reason != "migration"
		if here && protected[info.ID] && !a.ordered(info.ID) {
			in.VMs = append(in.VMs, info.ID)
		}
	}
	return in
}

// leaveRunning says why an operator wants no VM of an isolated host to be stopped.
// An agent without a vote has no ledger: it knows this from the last answer of the
// master.
func leaveRunning(s *ledger.State, host haven.HostID) string {
	if s.Disarm != nil {
		return "recovery was disarmed by " + s.Disarm.By
	}
	if h := s.Hosts[host]; h != nil && h.Maintenance != nil {
		return "the host is in maintenance by " + h.Maintenance.By
	}
	return ""
}

// backed says whether more than half of the other hosts that write beats say, in
// beats that move, that they see one and the same master, which is not this host,
// in a term that is not older than the newest known here.
func (a *Agent) backed(snaps []storagebeat.Snapshot) bool {
	sees := map[haven.HostID]map[haven.HostID]bool{}
	for _, snap := range snaps {
		for _, h := range snap.Hosts {
			b := h.Agent.Beat
			if h.Host == a.d.Host || h.Agent.Moving != haven.Yes || b.Isolated || b.Left != haven.LeaveNone || b.Master == "" || b.Master == a.d.Host || b.Term.Older(a.term()) {
				continue
			}
			if sees[b.Master] == nil {
				sees[b.Master] = map[haven.HostID]bool{}
			}
			sees[b.Master][h.Host] = true
		}
	}
	others := len(a.cfg.Hypervisors()) - 1
	return slices.ContainsFunc(slices.Collect(maps.Values(sees)), func(by map[haven.HostID]bool) bool { return 2*len(by) > others })
}

// wordLanded says whether this host reads, on a store, its own beat of this life
// that says that it stops its VMs.
func (a *Agent) wordLanded(snaps []storagebeat.Snapshot) bool {
	return slices.ContainsFunc(snaps, func(snap storagebeat.Snapshot) bool {
		own := snap.Host(a.d.Host).Agent
		return own.Moving == haven.Yes && own.Beat.Releasing && own.Beat.Boot == a.d.Boot && own.Beat.State == a.d.State && own.Beat.Incarnation == a.d.Incarnation
	})
}

// stopVM ends a VM for a response. That is on disk before it is done (P7).
func (a *Agent) stopVM(ctx context.Context, id haven.VMID, graceful bool) {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	err := a.executor.Release(id)
	if !a.releasing.Load() {
		return // The isolation ended while the journal was written.
	}
	if err == nil {
		err = a.d.Stopper.Stop(ctx, id, graceful)
	}
	if err != nil {
		a.log.Log(ctx, a.quiet.level("stop/"+string(id)), "VM could not be stopped for a response", "vm", id, "graceful", graceful, "error", err)
		return
	}
	a.log.Warn("VM was told to stop, as configured", "vm", id, "graceful", graceful)
}

// unrelease forgets VMs that run on although a response was to stop them: it ended
// before. Their users may stop them again.
func (a *Agent) unrelease(runs map[haven.VMID]time.Time) {
	released := a.executor.Released()
	if len(released) == 0 {
		clear(runs)
		return
	}
	calm := unreleaseCalm
	if a.cfg.Hosts[a.d.Host].Response.Isolation == config.IsolationShutdown {
		calm += a.cfg.Response.Isolation.ShutdownTimeout // a guest may still be on its way down
	}
	inv, _, _, _ := a.watch.get()
	for _, id := range released {
		info, _ := inv.Find(id)
		switch since, seen := runs[id]; {
		case info.State != haven.VMRunning:
			delete(runs, id)
		case !seen:
			runs[id] = time.Now()
		case time.Since(since) > calm:
			if err := a.executor.Unrelease(id); err != nil {
				a.log.Log(context.Background(), a.quiet.level("unrelease"), "a VM that runs on is still noted as stopped by a response", "vm", id, "error", err)
			}
		}
	}
}

// TakeStop ends a VM for the master, because this host lost its storage and the
// configuration says so, and says whether the VM is proved gone.
func (a *Agent) TakeStop(ctx context.Context, from haven.HostID, q client.StopRequest) (client.StopAnswer, error) {
	if err := a.mayStop(from, q); err != nil {
		return client.StopAnswer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := a.executor.Release(q.VM); err != nil {
		return client.StopAnswer{}, err
	}
	var stopErr error
	if a.watch.fresh(ctx).Has(q.VM) != haven.No {
		// That took time: the storage may have come back meanwhile, and the VM been
		// started anew.
		if err := a.mayStop(from, q); err != nil {
			return client.StopAnswer{}, err
		}
		a.log.Warn("stopping a VM for the master, as configured", "vm", q.VM, "master", from)
		stopErr = a.d.Stopper.Stop(ctx, q.VM, false)
	}
	inv := a.watch.fresh(ctx)
	ans := goneAnswer(inv, q.VM, a.hungStore())
	if stopErr != nil && ans.Gone != haven.Yes {
		ans.Detail += "; " + stopErr.Error()
	}
	return ans, nil
}

// goneAnswer says whether a VM is gone: shut off, with no process, and with no
// write that may still be under way to storage that hangs (P1).
func goneAnswer(inv haven.Inventory, id haven.VMID, hung string) client.StopAnswer {
	switch inv.Has(id) {
	case haven.Yes:
		info, _ := inv.Find(id)
		return client.StopAnswer{Gone: haven.No, Detail: fmt.Sprintf("it is still there: %s, process: %t", info.State, slices.Contains(inv.Processes, id))}
	case haven.Unknown:
		return client.StopAnswer{Detail: "whether it is gone cannot be told: " + inv.Why}
	case haven.No:
	}
	if hung != "" {
		return client.StopAnswer{Detail: "its process is gone, but store " + hung + " hangs: a write of it may still be under way"}
	}
	return client.StopAnswer{Gone: haven.Yes, Detail: "it is shut off, and no process of it is left"}
}

// hungStore names a store of which an operation does not come back.
func (a *Agent) hungStore() string {
	for _, snap := range a.snapshots() {
		if snap.Health.HungFor > 0 {
			return snap.Store
		}
	}
	return ""
}

// mayStop holds the master's wish against what this host itself knows.
func (a *Agent) mayStop(from haven.HostID, q client.StopRequest) error {
	no := func(format string, args ...any) error {
		return &client.Error{Problem: client.Problem{Title: "refused", Status: http.StatusConflict, Detail: fmt.Sprintf(format, args...)}}
	}
	switch master, known := a.master(); {
	case a.d.Stopper == nil || a.d.Hypervisor == nil:
		return no("this host cannot stop VMs")
	case a.cfg.Hosts[a.d.Host].Response.StorageLost != config.StorageLostRestart:
		return no("response.storage_lost.action is not %s here", config.StorageLostRestart)
	case q.Boot != a.d.Boot:
		return no("this is boot %s, not %s", a.d.Boot, q.Boot)
	case known && master != from:
		return fmt.Errorf("stop of VM %s by %s: the master is %s: %w", q.VM, from, master, haven.ErrNotMaster)
	case a.ordered(q.VM):
		return no("an order for the VM is at work")
	}
	if why := storageNotLost(a.snapshots()); why != "" {
		return no("%s", why)
	}
	return a.executor.See(q.Term)
}

// storageNotLost says why this host does not hold its storage for lost; nothing
// when it knows of every store that no beat of it arrives there (P5).
func storageNotLost(snaps []storagebeat.Snapshot) string {
	if len(snaps) == 0 {
		return "no store is configured here"
	}
	for _, snap := range snaps {
		if v := storeView(snap); v.OwnBack != haven.No && !v.Hung {
			return fmt.Sprintf("of store %s it is not known here that it is lost: own beat read back: %s", snap.Store, v.OwnBack)
		}
	}
	return ""
}

// performStop asks a host to stop a VM.
func (a *Agent) performStop(ctx context.Context, m *mastery, act recovery.Stop, d *recovery.Done) {
	if err := a.verified(ctx, m); err != nil {
		d.Err = fmt.Errorf("stop VM %s: %w", act.VM, err)
		return
	}
	stands := false
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		vm, h := s.VMs[act.VM], s.Hosts[act.Host]
		if vm == nil || h == nil || s.Disarm != nil {
			return
		}
		in := s.Incidents[h.Incident]
		stands = vm.Phase == ledger.PhaseOwned && vm.Epoch == act.Epoch && vm.Owner == act.Host && h.Boot == act.Boot &&
			in != nil && in.Response == recovery.ResponseStorageLost
	})
	if !stands {
		d.Err = errors.New("the ledger does not ask for it any more")
		return
	}
	q := client.StopRequest{VM: act.VM, Epoch: act.Epoch, Boot: act.Boot, Term: m.term}
	var ans client.StopAnswer
	if act.Host == a.d.Host {
		ans, d.Err = a.TakeStop(ctx, a.d.Host, q)
	} else {
		d.Err = a.client.Post(ctx, act.Host, client.PathStop, q, &ans)
	}
	d.Gone, d.Detail = ans.Gone, ans.Detail
}

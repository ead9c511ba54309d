package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/recovery"
)

// What follows answers other agents. The caller has proved who it is; a host
// speaks for itself only.

// Hello tells who this agent is.
func (a *Agent) Hello(context.Context) (client.Hello, error) {
	master, _ := a.master()
	return client.Hello{
		Identity: a.identity(), Cluster: a.cfg.Cluster, Generation: a.ledger.Generation(), Term: a.executor.Highest(), Master: master,
	}, nil
}

// TakeReport takes in a host's report. Only the master does.
func (a *Agent) TakeReport(ctx context.Context, from haven.HostID, r *client.Report) (client.Ack, error) {
	if r.Host != from {
		return client.Ack{}, fmt.Errorf("report about %s by %s: %w", r.Host, from, haven.ErrNotFound)
	}
	if _, ok := a.cfg.Host(r.Host); !ok {
		return client.Ack{}, fmt.Errorf("report by %s: not a configured host: %w", r.Host, haven.ErrNotFound)
	}
	m := a.reign.Load()
	if m == nil {
		return client.Ack{}, haven.ErrNotMaster
	}
	term := m.term
	ack := client.Ack{Master: a.d.Host, Term: term, Every: client.MillisOf(a.cfg.Detection.ReportInterval), Verified: -1}
	if why := a.register(ctx, r.Identity); why != nil {
		if errors.Is(why, ledger.ErrRejected) {
			ack.Rejected = why.Error()
			return ack, nil
		}
		return client.Ack{}, why
	}
	ack.Registered = true
	known, news := a.ev.report(r, time.Now())
	if a.ev.outdated(r) {
		return client.Ack{}, errOutdated
	}
	a.dogs.answered(r.Host, r.Boot, time.Now())
	ack.WantInventory, ack.Watch = !known, a.judgement.Load().troubled()
	a.power.alive(r.Host, a.deviceKeys(r.Host), r.Boot, time.Now())
	rep, _ := a.ev.view(r.Host)
	if rep == nil { // This agent lost its mastery a moment ago, and forgot all reports.
		return client.Ack{}, haven.ErrNotMaster
	}
	if err := a.declare(ctx, m, r); err != nil {
		return client.Ack{}, err
	}
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		to := recovery.Instruct(s, r.Host, rep.inventory)
		ack.Protected, ack.SetAside = to.Protected, to.SetAside
		if h := s.Hosts[r.Host]; h != nil {
			ack.Slot = h.Slot
			if h.Boot == r.Boot {
				ack.Watchdog = h.Watchdog
			}
		}
		ack.LeaveRunning = leaveRunning(s, r.Host)
	})
	if news {
		a.kick()
	}
	ack.Verified = a.verifiedAge(term)
	a.dogs.answered(r.Host, r.Boot, time.Now()) // before it leaves
	return ack, nil
}

// register makes sure that the ledger has a host as it describes itself.
func (a *Agent) register(ctx context.Context, id client.Identity) error {
	known := false
	id.UUID = fencing.CleanUUID(id.UUID)
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		h := s.Hosts[id.Host]
		known = s.Knows(id.Host, id.Boot, id.State) && h.Incarnation == id.Incarnation && h.Generation == s.Generation &&
			h.Role == id.Role && h.Address == id.Address && (id.UUID == "" || h.UUID == id.UUID)
	})
	if known {
		return nil
	}
	if why := a.ev.lastRejection(id, time.Now()); why != nil {
		return why
	}
	errs, err := a.commit(ctx, ledger.RegisterHost{
		Host: id.Host, Role: id.Role, Address: id.Address, Boot: id.Boot, State: id.State, Incarnation: id.Incarnation,
		UUID: id.UUID, At: time.Now(),
	})
	if err != nil {
		return err
	}
	if errs[0] == nil {
		a.log.Info("host registered", "host", id.Host, "boot", id.Boot, "incarnation", id.Incarnation)
		a.kick()
	} else {
		a.ev.rejected(id, errs[0], time.Now())
	}
	return errs[0]
}

// Inventory takes an inventory now.
func (a *Agent) Inventory(ctx context.Context) (haven.Inventory, error) {
	return a.watch.fresh(ctx), nil
}

// Definition reads a VM's definition and describes the VM.
func (a *Agent) Definition(ctx context.Context, id haven.VMID) (client.DefinitionAnswer, error) {
	if a.d.Hypervisor == nil {
		return client.DefinitionAnswer{}, haven.ErrNotFound
	}
	inv, _, _, _ := a.watch.get()
	info, ok := inv.Find(id)
	if !ok {
		return client.DefinitionAnswer{}, fmt.Errorf("VM %s: %w", id, haven.ErrNotFound)
	}
	xml, err := a.d.Hypervisor.Definition(ctx, id)
	if err != nil {
		return client.DefinitionAnswer{}, fmt.Errorf("read definition of VM %s: %w", id, err)
	}
	return client.DefinitionAnswer{Boot: a.d.Boot, Info: info, XML: xml}, nil
}

func (a *Agent) fetchDefinition(ctx context.Context, host haven.HostID, id haven.VMID) (client.DefinitionAnswer, error) {
	if host == a.d.Host {
		return a.Definition(ctx, id)
	}
	return a.client.Definition(ctx, host, id)
}

// TakeOrder takes an order from the master.
func (a *Agent) TakeOrder(_ context.Context, from haven.HostID, q client.OrderRequest) (haven.OrderReport, error) {
	if a.d.Hypervisor == nil {
		return haven.OrderReport{}, fmt.Errorf("this is a witness: %w", haven.ErrNotFound)
	}
	if !a.told() {
		return haven.OrderReport{}, fmt.Errorf("order from %s: this agent was not told yet that it is registered: %w", from, haven.ErrUnavailable)
	}
	return a.executor.Accept(q.Order, q.XML)
}

// Probe looks for a suspect from here.
func (a *Agent) Probe(ctx context.Context, q client.ProbeRequest) (client.ProbeAnswer, error) {
	if q.Host == a.d.Host {
		return client.ProbeAnswer{}, fmt.Errorf("probe of %s: that is this host: %w", q.Host, haven.ErrNotFound)
	}
	answer := client.ProbeAnswer{Results: a.look(ctx, q.Host, q.Kinds, min(q.Limit.Duration(), a.cfg.Detection.ProbeTimeout))}
	answer.Beats = a.beatViews(a.snapshots(), []haven.HostID{q.Host})
	return answer, nil
}

// Confirm says whether an order stands, after this agent verified that it leads.
func (a *Agent) Confirm(ctx context.Context, from haven.HostID, q client.ConfirmRequest) (client.ConfirmAnswer, error) {
	m := a.reign.Load()
	if m == nil {
		return client.ConfirmAnswer{}, haven.ErrNotMaster
	}
	if err := a.verified(ctx, m); err != nil {
		return client.ConfirmAnswer{}, err
	}
	var ans client.ConfirmAnswer
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		ans.Term = haven.Term{Generation: s.Generation, Term: m.term.Term}
		vm, h := s.VMs[q.VM], s.Hosts[from]
		switch {
		case vm == nil || vm.Phase != ledger.PhaseOrdered || vm.Order.ID != q.Order || vm.Epoch != q.Epoch:
			ans.Why = "the ledger has no such order out"
		case vm.Owner != from || vm.OwnerBoot != q.Boot || vm.Order.TargetState != q.State:
			ans.Why = "the order is for another host, boot or agent state"
		case h == nil || h.ProvedDead():
			ans.Why = "this boot is proved dead"
		case s.Disarm != nil && s.Disarm.Now:
			// Without "now" an order that is out is carried out; a new one is not
			// committed.
			ans.Why = "recovery is disarmed by " + s.Disarm.By
		default:
			ans.Stands = true
		}
	})
	return ans, nil
}

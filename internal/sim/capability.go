package sim

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/agent"
	"github.com/haven-ha/haven/internal/world"
	"github.com/haven-ha/haven/vmrestart"
)

// errGone is what is left of a process gets from everything it still holds.
var errGone = errors.New("this process is gone")

// life is one run of one process. All that the process can do to the world goes
// through it, so that goroutines that outlive their process have no effect.
type life struct {
	h    *Host
	boot haven.BootID
	gone chan struct{} // closed when the process is killed or the power goes

	began time.Time
}

func (l *life) dead() bool {
	select {
	case <-l.gone:
		return true
	default:
		return false
	}
}

// gate waits while the machine is frozen.
func (l *life) gate(ctx context.Context) error {
	for {
		if l.dead() {
			return errGone
		}
		ice := l.h.ice.Load()
		if ice == nil {
			return nil
		}
		select {
		case <-*ice:
		case <-l.gone:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// pass lets time pass as long as the process lives.
func (l *life) pass(ctx context.Context, d time.Duration) error {
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-l.gone:
			return errGone
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return l.gate(ctx)
}

// hypervisor is a machine's VM manager as one process reaches it.
type hypervisor struct {
	l *life
	v *world.Hypervisor
}

var _ agent.Hypervisor = hypervisor{}

func (h hypervisor) Inventory(ctx context.Context) (haven.Inventory, error) {
	if err := h.l.pass(ctx, 2*time.Millisecond); err != nil {
		return haven.Inventory{}, err
	}
	return h.v.Inventory(ctx)
}

func (h hypervisor) Start(ctx context.Context, id haven.VMID, xml []byte) (vmrestart.Outcome, error) {
	if err := h.l.gate(ctx); err != nil {
		return vmrestart.Unclear, err
	}
	h.l.h.c.emit(Event{What: StartCall, Host: h.l.h.ID, Boot: h.l.boot, VM: id, Text: "start of " + shortVM(id) + " is asked for"})
	// What was asked for happens, whatever becomes of the process. The process
	// itself must not wait longer than it lives.
	type answer struct {
		outcome vmrestart.Outcome
		err     error
	}
	answers := make(chan answer, 1)
	h.l.h.c.wg.Go(func() {
		outcome, err := h.v.Start(ctx, id, xml)
		answers <- answer{outcome, err}
	})
	select {
	case a := <-answers:
		return a.outcome, a.err
	case <-h.l.gone:
		return vmrestart.Unclear, errGone
	}
}

func (h hypervisor) Stop(ctx context.Context, id haven.VMID, graceful bool) error {
	if err := h.l.gate(ctx); err != nil {
		return err
	}
	return h.v.Stop(ctx, id, graceful)
}

func (h hypervisor) Definition(ctx context.Context, id haven.VMID) ([]byte, error) {
	if err := h.l.gate(ctx); err != nil {
		return nil, err
	}
	return h.v.Definition(ctx, id)
}

func (h hypervisor) SetAutostart(ctx context.Context, id haven.VMID, on bool) error {
	if err := h.l.gate(ctx); err != nil {
		return err
	}
	return h.v.SetAutostart(ctx, id, on)
}

func (h hypervisor) SetAside(ctx context.Context, id haven.VMID) error {
	if err := h.l.gate(ctx); err != nil {
		return err
	}
	return h.v.SetAside(ctx, id)
}

func (h hypervisor) Disks(xml []byte) ([]string, error)               { return h.v.Disks(xml) }
func (h hypervisor) Load(inv haven.Inventory) (haven.HostLoad, error) { return h.v.Load(inv) }
func (h hypervisor) Hints() <-chan struct{}                           { return h.v.Hints() }
func (h hypervisor) Run(ctx context.Context)                          { h.v.Run(ctx) }

// journal is an agent's order journal on its machine's disk.
type journal struct{ l *life }

// disk is what a machine keeps while its agents come and go.
type disk struct {
	orders      vmrestart.JournalState
	state       haven.StateID
	incarnation haven.Incarnation
	wiped       int
}

func (j journal) Load() (vmrestart.JournalState, error) {
	h := j.l.h
	h.mu.Lock()
	defer h.mu.Unlock()
	return copyJournal(h.disk.orders), nil
}

func (j journal) Save(s vmrestart.JournalState) error {
	h := j.l.h
	if j.l.dead() {
		return errGone
	}
	h.mu.Lock()
	var fresh []haven.Order
	for id, r := range s.VMs {
		if old, ok := h.disk.orders.VMs[id]; !ok || old.Order.ID != r.Order.ID {
			fresh = append(fresh, r.Order)
		}
	}
	h.disk.orders = copyJournal(s)
	h.mu.Unlock()
	for _, o := range fresh {
		h.c.emit(Event{What: OrderSaved, Host: h.ID, Boot: j.l.boot, VM: o.VM, Order: o, Text: "order " + shortVM(o.VM) + " is on disk, status " + string(s.VMs[o.VM].Status)})
	}
	return nil
}

func copyJournal(s vmrestart.JournalState) vmrestart.JournalState {
	s.VMs = maps.Clone(s.VMs)
	return s
}

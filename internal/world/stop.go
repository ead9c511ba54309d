package world

import (
	"context"
	"time"

	"github.com/haven-ha/haven"
)

// guestTakes is how long a guest takes to shut down when it is asked.
const guestTakes = 2 * time.Second

// Deaf makes the guests of a machine ignore that they are asked to shut down.
func (m *Machine) Deaf(deaf bool) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.deaf = deaf
}

// Stuck makes the VMs that are ended on a machine stay in its kernel, as with a
// write in flight to storage that hangs; or lets them go.
func (m *Machine) Stuck(stuck bool) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.stuck = stuck
	if stuck {
		return
	}
	for _, v := range m.vms {
		if m.on && v.info.State == haven.VMStopping {
			m.end(v, "destroyed")
		}
	}
}

// Stop asks a guest to shut down, or ends a VM at once.
func (h *Hypervisor) Stop(ctx context.Context, id haven.VMID, graceful bool) error {
	if err := h.enter(ctx); err != nil {
		return err
	}
	defer h.m.w.mu.Unlock()
	v := h.m.vms[id]
	switch {
	case v == nil || !v.info.State.Present():
	case graceful && !h.m.deaf:
		go h.shutDown(v)
	case graceful:
	case h.m.stuck:
		v.info.State, v.info.Reason = haven.VMStopping, ""
		h.m.hint()
	default:
		h.m.end(v, "destroyed")
	}
	return nil
}

// shutDown is the guest that does it.
func (h *Hypervisor) shutDown(v *vm) {
	<-time.After(guestTakes)
	h.m.w.mu.Lock()
	defer h.m.w.mu.Unlock()
	if h.m.on && h.m.boot == h.boot && h.m.vms[v.info.ID] == v && v.info.State == haven.VMRunning {
		h.m.end(v, "shutdown")
	}
}

// end ends a VM. The world is locked.
func (m *Machine) end(v *vm, reason string) {
	v.info.State, v.info.Reason = haven.VMShutOff, reason
	m.tell(VMEnds, v, "", "%s ends on %s (%s)", v.info.Name, m.id, reason)
	m.hint()
}

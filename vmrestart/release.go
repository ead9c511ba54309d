package vmrestart

import (
	"fmt"
	"maps"
	"slices"

	"github.com/haven-ha/haven"
)

// Release notes on disk that a VM is about to be stopped by a configured
// response, so that nobody takes its end for its user's wish. It fails while an
// order for the VM is at work.
func (e *Executor) Release(id haven.VMID) error {
	return e.changeReleased(func(st *JournalState) (bool, error) {
		if r, ok := st.VMs[id]; ok && !r.Status.Final() && r.Order.TargetBoot == e.cfg.Boot {
			return false, fmt.Errorf("release VM %s: order %s is at work: %w", id, r.Order.ID, haven.ErrUnavailable)
		}
		if st.Released[id] == e.cfg.Boot {
			return false, nil
		}
		st.Released[id] = e.cfg.Boot
		return true, nil
	})
}

// Unrelease forgets that a VM was to be stopped by a response: it runs, after all.
func (e *Executor) Unrelease(id haven.VMID) error {
	return e.changeReleased(func(st *JournalState) (bool, error) {
		_, known := st.Released[id]
		delete(st.Released, id)
		return known, nil
	})
}

// Released lists the VMs that a response stopped, or was about to stop, in this
// boot, and that no order started since.
func (e *Executor) Released() []haven.VMID {
	e.mu.Lock()
	defer e.mu.Unlock()
	var ids []haven.VMID
	for id, boot := range e.journal.Released {
		if boot == e.cfg.Boot {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// changeReleased has a change on disk when it returns nil.
func (e *Executor) changeReleased(change func(st *JournalState) (bool, error)) error {
	if err := e.lock(); err != nil {
		return err
	}
	defer e.unlock()
	next := e.journal.clone()
	if next.Released == nil {
		next.Released = map[haven.VMID]haven.BootID{}
	}
	maps.DeleteFunc(next.Released, func(_ haven.VMID, boot haven.BootID) bool { return boot != e.cfg.Boot })
	if changed, err := change(&next); err != nil || !changed {
		return err
	}
	return e.save(next)
}

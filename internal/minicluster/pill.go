package minicluster

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/storagebeat"
)

// RefuseWrites makes the machine's storage readable only, or whole again.
func (h *Host) RefuseWrites(refuse bool) { h.readOnly.Store(refuse) }

// Resets counts how often the machine reset itself.
func (h *Host) Resets() int { return int(h.resets.Load()) }

// reset is what the machine does when its agent asks the kernel for it: it is gone
// at once, and boots. Its power was never off.
func (h *Host) reset() error {
	h.resets.Add(1)
	h.powerLost()
	h.c.wg.Go(func() {
		if err := h.boot(); err != nil {
			h.c.opts.Log(h.ID).Error("the machine did not boot", "error", err)
		}
	})
	return nil
}

// Pills reads all mailboxes.
func (c *Cluster) Pills(ctx context.Context) (map[haven.HostID]storagebeat.Pill, error) {
	pills := map[haven.HostID]storagebeat.Pill{}
	err := c.withStore(func(child *storagebeat.Child) error {
		contents, err := child.ReadAll(ctx)
		for _, e := range storagebeat.DumpPills(contents) {
			if e.Pill == nil {
				return fmt.Errorf("mailbox of %s: %s", e.Host, e.Error)
			}
			pills[e.Pill.Host] = *e.Pill
		}
		return err
	})
	return pills, err
}

// LeavePill leaves a pill as a master of this cluster would.
func (c *Cluster) LeavePill(ctx context.Context, p storagebeat.Pill) error {
	key, err := storagebeat.PillKey(c.key, "demo")
	if err != nil {
		return err
	}
	p.Store = c.storeID
	if p, err = p.Sealed(key); err != nil {
		return err
	}
	data, err := storagebeat.EncodePill(p)
	if err != nil {
		return err
	}
	return c.withStore(func(child *storagebeat.Child) error {
		return child.WritePill(ctx, storagebeat.RawPill{Host: p.Host, Data: data})
	})
}

func (c *Cluster) withStore(do func(*storagebeat.Child) error) error {
	child, err := c.child(filepath.Join(c.opts.Dir, "store"))
	if err != nil {
		return err
	}
	return errors.Join(do(child), child.Close())
}

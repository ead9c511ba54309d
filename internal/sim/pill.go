package sim

import (
	"context"
	"fmt"
	"slices"

	"github.com/haven-ha/haven/storagebeat"
)

// WritePill writes into a mailbox. What is under way when the store hangs is lost.
func (d device) WritePill(ctx context.Context, raw storagebeat.RawPill) error {
	p, err := storagebeat.DecodePillAt(d.s.identity.ID, raw)
	if err != nil {
		return err
	}
	f, err := d.enter(ctx)
	if err == nil && f == StoreReadOnly {
		err = errIO
	}
	if err != nil {
		return fmt.Errorf("write pill: %w", err)
	}
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if err := p.MayReplace(d.s.pills[raw.Host]); err != nil {
		return fmt.Errorf("write pill: %w", err)
	}
	d.s.pills[raw.Host] = slices.Clone(raw.Data)
	return nil
}

// readPills lists what is in the mailboxes; the caller holds the lock.
func (s *store) readPills(torn bool) (all []storagebeat.RawPill) {
	for host, data := range s.pills {
		data = slices.Clone(data)
		if torn {
			clear(data[100:])
		}
		all = append(all, storagebeat.RawPill{Host: host, Data: data})
	}
	return all
}

// resetItself is what a machine does whose agent asks its kernel for it.
func (h *Host) resetItself(l *life) error {
	if l.dead() || !h.bootIs(l.boot) {
		return errGone
	}
	h.c.emit(Event{What: PillObeyed, Host: h.ID, Text: "it resets itself"})
	h.c.After(0, func() {
		if h.bootIs(l.boot) {
			h.powerLost("reset by itself")
			h.PowerOn()
		}
	})
	return nil
}

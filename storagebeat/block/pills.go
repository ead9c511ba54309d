package block

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	haven "github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/blockio"
	"github.com/haven-ha/haven/storagebeat"
)

const whyNoMailbox = "it was made for many hosts by an older version: 'haven store init' makes one with mailboxes"

// readPills reads mailboxes of slots that are in use. A process that writes for a
// host reads that one's only: the others would cost every host half as much again
// as all beats do.
func (s *store) readPills(ctx context.Context, d *blockio.Device, slots []slotAt, c *storagebeat.Contents) error {
	if _, ok := s.head.mailbox(1); !ok {
		c.NoMailbox = whyNoMailbox
		return nil
	}
	for _, at := range slots {
		if at.owner == "" || len(s.own) > 0 && s.own[at.owner] != at.n {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := s.readPill(d, at.n)
		if err != nil {
			return err
		}
		if !blank(data) {
			c.Pills = append(c.Pills, storagebeat.RawPill{Host: at.owner, Data: data})
		}
	}
	return nil
}

func (s *store) readPill(d *blockio.Device, slot int) ([]byte, error) {
	off, _ := s.head.mailbox(slot)
	p := s.buffer(storagebeat.RecordSize)
	for range 1 + rereads {
		if err := d.ReadAt(p, off); err != nil {
			return nil, fmt.Errorf("read mailbox of slot %d: %w", slot, err)
		}
		if _, err := storagebeat.DecodePill(p); !errors.Is(err, storagebeat.ErrTorn) {
			break
		}
	}
	return bytes.Clone(p), nil
}

// WritePill implements storagebeat.Backend.
func (s *store) WritePill(ctx context.Context, raw storagebeat.RawPill) error {
	d, err := s.device(ctx, true)
	if err != nil {
		return err
	}
	pill, err := storagebeat.DecodePillAt(s.head.id.ID, raw)
	if err != nil {
		return fmt.Errorf("pill for store %s: %w", s.head.id.ID, err)
	}
	slot, err := s.slotOf(ctx, d, raw.Host)
	if err != nil {
		return fmt.Errorf("find the mailbox of host %s: %w", raw.Host, err)
	}
	there, err := s.readPill(d, slot)
	if err != nil {
		return s.failed(err)
	}
	if err := pill.MayReplace(there); err != nil {
		return fmt.Errorf("write pill: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	off, _ := s.head.mailbox(slot)
	p := s.buffer(storagebeat.RecordSize)
	copy(p, raw.Data)
	if err := d.WriteAt(p, off); err != nil {
		return s.failed(fmt.Errorf("write pill: %w", err))
	}
	return nil
}

// slotOf finds the one slot that a host beats in: its mailbox goes with that.
func (s *store) slotOf(ctx context.Context, d *blockio.Device, host haven.HostID) (int, error) {
	if _, ok := s.head.mailbox(1); !ok {
		return 0, fmt.Errorf("%w: %s", storagebeat.ErrNoMailbox, whyNoMailbox)
	}
	used, err := s.scan(ctx, d)
	if err != nil {
		return 0, s.failed(err)
	}
	its := slices.DeleteFunc(used, func(at slotAt) bool { return at.owner != host })
	switch len(its) {
	case 0:
		return 0, fmt.Errorf("%w: no record of it is here", storagebeat.ErrNoMailbox)
	case 1:
		return its[0].n, nil
	}
	return 0, fmt.Errorf("%w: %w", storagebeat.ErrNoMailbox, errTwoSlots)
}

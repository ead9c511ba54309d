package block

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	haven "github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/blockio"
	"github.com/haven-ha/haven/storagebeat"
)

// takeAfter is how long another host's record in the slot that the ledger gave to
// this one must stand still before it is given up. Only a ledger that was lost and
// begun anew gives a slot that was another one's.
const takeAfter = time.Minute

// watch is about the slot that the ledger gave to a host of this process and that
// holds something else.
type watch struct {
	slot int
	sum  [sha256.Size]byte
	from time.Time // since when it has stood still
}

// slotAt is one slot as it was read.
type slotAt struct {
	n     int
	owner haven.HostID // empty when it cannot be told
	data  [2][]byte    // the agent's record and the helper's
}

var writers = [2]storagebeat.Writer{storagebeat.WriterAgent, storagebeat.WriterHelper}

// scan reads all slots, and returns those that are not blank.
func (s *store) scan(ctx context.Context, d *blockio.Device) ([]slotAt, error) {
	var used []slotAt
	per := int(chunk / s.head.slot())
	for first := 1; first <= s.head.slots; first += per {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n := min(per, s.head.slots-first+1)
		size := int(s.head.slot())
		p := s.buffer(n * size)
		if err := d.ReadAt(p, s.head.at(first, storagebeat.WriterAgent)); err != nil {
			return nil, fmt.Errorf("read slots: %w", err)
		}
		var torn []int
		for i := range n {
			if blank(p[i*size : (i+1)*size]) {
				continue
			}
			at := s.look(first+i, p[i*size:(i+1)*size])
			if at.torn() {
				torn = append(torn, len(used))
			}
			used = append(used, at)
		}
		for _, i := range torn {
			at, err := s.reread(ctx, d, used[i])
			if err != nil {
				return nil, err
			}
			used[i] = at
		}
	}
	return used, nil
}

// reread reads a torn slot again.
func (s *store) reread(ctx context.Context, d *blockio.Device, at slotAt) (slotAt, error) {
	for range rereads {
		if err := ctx.Err(); err != nil {
			return at, err
		}
		again, err := s.read(d, at.n)
		if err != nil || !again.torn() {
			return again, err
		}
	}
	return at, nil
}

// read reads one slot.
func (s *store) read(d *blockio.Device, n int) (slotAt, error) {
	p := s.buffer(int(s.head.slot()))
	if err := d.ReadAt(p, s.head.at(n, storagebeat.WriterAgent)); err != nil {
		return slotAt{}, fmt.Errorf("read slot %d: %w", n, err)
	}
	return s.look(n, p), nil
}

// look tells whose slot it is from what it holds: a sound record of this store;
// else what was seen there before; else the name in a record that is torn.
func (s *store) look(n int, p []byte) slotAt {
	at := slotAt{n: n}
	for i := range writers {
		at.data[i] = bytes.Clone(p[i*s.head.block:][:storagebeat.RecordSize])
	}
	for _, r := range at.data {
		if b, err := storagebeat.Decode(r); err == nil && b.Store == s.head.id.ID {
			s.owners[n] = b.Host
			at.owner = b.Host
			return at
		}
	}
	at.owner = s.owners[n]
	for _, r := range at.data {
		if host, ok := storagebeat.Claims(s.head.id.ID, r); at.owner == "" && ok {
			at.owner = host
		}
	}
	return at
}

func (at slotAt) torn() bool {
	return slices.ContainsFunc(at.data[:], func(r []byte) bool {
		_, err := storagebeat.Decode(r)
		return errors.Is(err, storagebeat.ErrTorn)
	})
}

// records are the records of a slot. A helper that never wrote has none; but an
// agent's that is blank beside a helper's was lost, for the agent comes first.
func (at slotAt) records(store storagebeat.StoreID) []storagebeat.RawBeat {
	if at.owner == "" {
		return []storagebeat.RawBeat{{Writer: storagebeat.WriterAgent, Slot: uint16(at.n), Err: fmt.Errorf("slot %d names nobody: %w", at.n, why(store, at.data))}}
	}
	var all []storagebeat.RawBeat
	for i, w := range writers {
		if w == storagebeat.WriterHelper && blank(at.data[i]) {
			continue
		}
		all = append(all, storagebeat.RawBeat{Host: at.owner, Writer: w, Slot: uint16(at.n), Data: at.data[i]})
	}
	return all
}

// why says what is wrong with a slot that names nobody.
func why(store storagebeat.StoreID, data [2][]byte) error {
	for _, r := range data {
		b, err := storagebeat.Decode(r)
		switch {
		case err == nil && b.Store != store:
			return fmt.Errorf("written for store %s: %w", b.Store, storagebeat.ErrForeign)
		case err != nil && !errors.Is(err, storagebeat.ErrBlank):
			return err
		}
	}
	return storagebeat.ErrForeign
}

// place returns the slot that a record goes to.
func (s *store) place(ctx context.Context, d *blockio.Device, raw storagebeat.RawBeat) (int, error) {
	if n := s.own[raw.Host]; n > 0 {
		at, err := s.read(d, n)
		if err != nil {
			return 0, err
		}
		if at.owner == raw.Host || at.owner == "" {
			return n, nil
		}
		delete(s.own, raw.Host) // Another host's record is there now.
	}
	used, err := s.scan(ctx, d)
	if err != nil {
		return 0, err
	}
	var mine []int
	for _, at := range used {
		if at.owner == raw.Host {
			mine = append(mine, at.n)
		}
	}
	agent := raw.Writer == storagebeat.WriterAgent
	given := int(raw.Slot)
	switch {
	case len(mine) == 1:
		return mine[0], nil
	case len(mine) > 1 && agent:
		return s.settle(d, used, mine, given)
	case len(mine) > 1:
		return 0, fmt.Errorf("slots %d: %w", mine, errTwoSlots)
	case !agent:
		return 0, fmt.Errorf("%w: this host's agent has not written here", storagebeat.ErrNoSlot)
	case given == 0:
		return 0, fmt.Errorf("%w: no record of this host is here, and no master has told its slot", storagebeat.ErrNoSlot)
	case given > s.head.slots:
		return 0, fmt.Errorf("%w: the ledger gave slot %d to this host, and the store has %d; 'haven store init --slots' makes one with more",
			storagebeat.ErrNoSlot, given, s.head.slots)
	}
	return given, s.claim(d, used, given)
}

// settle leaves a host one of several slots: the one that the ledger gave, else the
// first. Several come from a device that was put back from a copy.
func (s *store) settle(d *blockio.Device, used []slotAt, mine []int, given int) (int, error) {
	keep := mine[0]
	if slices.Contains(mine, given) {
		keep = given
	}
	for _, at := range used {
		if at.n != keep && slices.Contains(mine, at.n) {
			if err := s.clear(d, at.n); err != nil {
				return 0, err
			}
		}
	}
	return keep, nil
}

// claim makes sure that a slot is free for the host to which the ledger gave it.
// What moves there is another host's, and is never written over.
func (s *store) claim(d *blockio.Device, used []slotAt, n int) error {
	i := slices.IndexFunc(used, func(at slotAt) bool { return at.n == n })
	if i < 0 {
		return nil
	}
	at, now := used[i], s.now()
	sum := sha256.Sum256(append(bytes.Clone(at.data[0]), at.data[1]...))
	if s.watch.slot != n || s.watch.sum != sum {
		moved := s.watch.slot == n
		s.watch = watch{slot: n, sum: sum, from: now}
		if moved {
			return fmt.Errorf("%w: slot %d is this host's by the ledger, and %s writes there: is there another cluster or ledger of this name?",
				storagebeat.ErrSlotTaken, n, at.holder())
		}
	}
	if still := now.Sub(s.watch.from); still < takeAfter {
		return fmt.Errorf("%w: slot %d is this host's by the ledger, and holds a record of %s; it is used once that has stood still for %s, so far %s",
			storagebeat.ErrSlotTaken, n, at.holder(), takeAfter, still.Round(time.Second))
	}
	return s.clear(d, n)
}

func (at slotAt) holder() string {
	if at.owner == "" {
		return "nobody that it names"
	}
	return "host " + string(at.owner)
}

// clear empties a slot.
func (s *store) clear(d *blockio.Device, n int) error {
	if err := d.WriteAt(s.buffer(int(s.head.slot())), s.head.at(n, storagebeat.WriterAgent)); err != nil {
		return fmt.Errorf("clear slot %d: %w", n, err)
	}
	delete(s.owners, n)
	return nil
}

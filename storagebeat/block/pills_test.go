package block

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/haven-ha/haven/internal/blockio"
	"github.com/haven-ha/haven/storagebeat"
)

func pillFor(t testing.TB, id storagebeat.Identity, host string) storagebeat.RawPill {
	t.Helper()
	p := storagebeat.Pill{Store: id.ID, Boot: "boot", Incident: "i", Attempt: 1, By: "kvm-09"}
	p.Host, p.Term.Term = "kvm-01", 1
	if host != "" {
		p.Host = p.Host[:4] + "02"
	}
	data, err := storagebeat.EncodePill(p)
	if err != nil {
		t.Fatal(err)
	}
	return storagebeat.RawPill{Host: p.Host, Data: data}
}

// Mailboxes lie where versions without them keep nothing, or follow the slots of a
// store that those versions refuse; they never meet the header, a check or a slot.
func TestMailboxesMeetNothing(t *testing.T) {
	for _, tc := range []struct {
		name                   string
		slots, physical        int
		behind                 bool
		wantHeader, wantAreaAt int64
	}{
		{"the default", DefaultSlots, 512, false, headerVersion, slotsAt + 64*2*4096},
		{"as many as have room before", 112, 4096, false, headerVersion, slotsAt + 112*2*4096},
		{"one more", 113, 4096, true, mailVersion, slotsAt + 113*3*4096},
		{"large sectors", DefaultSlots, 64 << 10, true, mailVersion, slotsAt + 64*3*(64<<10)},
		{"the most", MaxSlots, 4096, true, mailVersion, slotsAt + MaxSlots*3*4096},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h, err := newHeader(blockio.Geometry{Size: 1 << 30, Logical: 512, Physical: tc.physical}, storagebeat.InitOptions{Cluster: "prod", Slots: tc.slots})
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, headerSize)
			if err := h.put(p); err != nil {
				t.Fatal(err)
			}
			if back, err := parse(p); err != nil || back != h || h.behind != tc.behind || int64(p[offVersion]) != tc.wantHeader || h.area() != tc.wantAreaAt {
				t.Fatalf("%+v of version %d takes %d: %v", back, p[offVersion], h.area(), err)
			}
			for slot := 1; slot <= h.slots; slot++ {
				off, ok := h.mailbox(slot)
				end := off + int64(h.block)
				before := off >= mailAt && end <= checkAt
				behind := off >= h.at(h.slots, storagebeat.WriterHelper)+int64(h.block) && end <= h.area()
				if !ok || off%int64(blockio.Align) != 0 || before == behind || mailAt < headerSize {
					t.Fatalf("mailbox of slot %d at %d", slot, off)
				}
			}
		})
	}
}

// A store that an older version made for many hosts works on without mailboxes,
// and says so.
func TestOldStoreHasNoMailbox(t *testing.T) {
	path := newDevice(t, testSize)
	d, err := blockio.OpenDevice(path, blockio.DeviceMode{Write: true, File: true})
	if err != nil {
		t.Fatal(err)
	}
	h := header{id: storagebeat.Identity{ID: storagebeat.StoreID{1}, Cluster: "prod"}, slots: 200, block: 4096, logical: 512}
	p := blockio.Buffer(headerSize)
	if err := errors.Join(h.put(p), d.WriteAt(p, 0), d.Close()); err != nil {
		t.Fatal(err)
	}
	s := open(t, path)
	write(t, s, beat(t, h.id, "kvm-01", storagebeat.WriterAgent, 1, 1))
	c, err := s.ReadAll(t.Context())
	if err != nil || len(c.Beats) != 1 || c.NoMailbox == "" {
		t.Fatalf("%+v, %v", c, err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WritePill(t.Context(), pillFor(t, h.id, "")); !errors.Is(err, storagebeat.ErrNoMailbox) {
		t.Errorf("write a pill: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("something was written, %v", err)
	}
}

// A host that never beat here has no slot, and so no mailbox.
func TestNoSlotNoMailbox(t *testing.T) {
	path := newDevice(t, testSize)
	id := made(t, path)
	s := open(t, path)
	write(t, s, beat(t, id, "kvm-01", storagebeat.WriterAgent, 1, 1))
	if err := s.WritePill(t.Context(), pillFor(t, id, "2")); !errors.Is(err, storagebeat.ErrNoMailbox) {
		t.Errorf("write a pill: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.WritePill(ended, pillFor(t, id, "")); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
}

package agent

import (
	"context"
	"testing"
	"time"

	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/storagebeat"
)

// numbered is a store with numbered places.
type numbered struct{ told []uint16 }

func (n *numbered) ReadAll(context.Context) (storagebeat.Contents, error) {
	return storagebeat.Contents{}, storagebeat.ErrNoIdentity
}

func (n *numbered) Write(context.Context, storagebeat.RawBeat) error { return storagebeat.ErrNoSlot }

func (n *numbered) SetSlot(slot uint16) { n.told = append(n.told, slot) }

// plain is a store without.
type plain struct{ storagebeat.Device }

// Only what a master says of a host that the ledger has is a slot.
func TestStoresLearnTheirSlot(t *testing.T) {
	d, store := parts(t, 60), &numbered{}
	d.Stores = []Store{{Name: "lun1", Device: store}, {Name: "nfs1", Device: plain{store}}}
	a, err := New(d)
	if err != nil {
		t.Fatal(err)
	}
	for _, ack := range []client.Ack{
		{Slot: 3},                                    // not registered
		{Slot: 4, Rejected: "its boot is over"},      // never will be
		{Registered: true, Every: client.Millis(10)}, // a master that knows no slots
		{Registered: true, Slot: 7},
	} {
		a.obey(ack)
	}
	if len(store.told) != 1 || store.told[0] != 7 {
		t.Errorf("told %v", store.told)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	cancel()
	if err := a.Run(ctx); err != nil {
		t.Error(err)
	}
}

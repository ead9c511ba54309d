package ledger

import (
	"fmt"
	"testing"

	"github.com/haven-ha/haven"
)

// agreeSlots is the twin of giveSlot: it goes through the whole history and
// numbers the hosts in the order in which they first came as hypervisors.
func agreeSlots(history []happened, s *State) error {
	want := map[haven.HostID]uint16{}
	for _, h := range history {
		c, ok := h.c.(RegisterHost)
		if ok && c.Role != haven.RoleWitness && want[c.Host] == 0 {
			want[c.Host] = uint16(len(want) + 1)
		}
	}
	for id, h := range s.Hosts {
		if h.Slot != want[id] {
			return fmt.Errorf("host %s has slot %d, want %d", id, h.Slot, want[id])
		}
	}
	return nil
}

func TestSlots(t *testing.T) {
	s := build(t)
	slots := func(want map[haven.HostID]uint16) {
		t.Helper()
		for id, n := range want {
			if got := s.Hosts[id].Slot; got != n {
				t.Errorf("host %s has slot %d, want %d", id, got, n)
			}
		}
	}
	witness := register("w", "w1", "sw", 1)
	witness.Role = haven.RoleWitness
	mustApply(t, s, register("b", "b1", "sb", 1))
	mustApply(t, s, witness)
	mustApply(t, s, register("a", "a1", "sa", 1))
	slots(map[haven.HostID]uint16{"b": 1, "w": 0, "a": 2})
	mustApply(t, s, register("b", "b2", "sb", 2))       // a new boot
	mustApply(t, s, register("a", "a1", "sa-other", 1)) // a lost directory
	slots(map[haven.HostID]uint16{"b": 1, "a": 2})
	mustApply(t, s, register("w", "w2", "sw", 2)) // it has VMs now
	slots(map[haven.HostID]uint16{"b": 1, "a": 2, "w": 3})
	mustApply(t, s, Found{Cluster: "c", Generation: 7, By: "op", At: stamp})
	mustApply(t, s, register("d", "d1", "sd", 1))
	slots(map[haven.HostID]uint16{"b": 1, "a": 2, "w": 3, "d": 4})

	t.Run("a host of a ledger that had no slots yet", func(t *testing.T) {
		old := build(t)
		mustApply(t, old, register("a", "a1", "sa", 1))
		old.Hosts["a"].Slot, old.LastSlot = 0, 0
		mustApply(t, old, register("a", "a1", "sa", 2))
		if old.Hosts["a"].Slot != 1 {
			t.Errorf("slot %d", old.Hosts["a"].Slot)
		}
	})
	t.Run("a snapshot with one slot for two", func(t *testing.T) {
		bad := copyOf(s)
		bad.Hosts["a"].Slot = bad.Hosts["b"].Slot
		if bad.check() == nil {
			t.Error("taken")
		}
		bad = copyOf(s)
		bad.LastSlot = 1
		if bad.check() == nil {
			t.Error("a slot that will be given again was taken")
		}
	})
}

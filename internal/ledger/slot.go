package ledger

import (
	"fmt"

	"github.com/haven-ha/haven"
)

// giveSlot gives a host that may beat on shared storage its number, once and for
// all: 1 for the first that registered, and so on. Raw devices have a numbered
// place for each host. A number is never given again, so it never means two hosts
// while this ledger lives; and there are never more than MaxHosts of them.
func (s *State) giveSlot(h *Host) {
	if h.Slot != 0 || h.Role == haven.RoleWitness {
		return
	}
	s.LastSlot++
	h.Slot = s.LastSlot
}

// checkSlots refuses a state in which one number means two hosts, or will.
func (s *State) checkSlots() error {
	owner := map[uint16]haven.HostID{}
	for id, h := range s.Hosts {
		switch other, taken := owner[h.Slot]; {
		case h.Slot == 0:
		case taken:
			return fmt.Errorf("hosts %s and %s have slot %d", id, other, h.Slot)
		case h.Slot > s.LastSlot:
			return fmt.Errorf("host %s has slot %d, %d were given", id, h.Slot, s.LastSlot)
		default:
			owner[h.Slot] = id
		}
	}
	return nil
}

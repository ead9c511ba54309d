package agent

// slotted is a store with a numbered place for each host, which the ledger gives.
type slotted interface {
	// SetSlot says which one is this host's. It does not block.
	SetSlot(slot uint16)
}

// useSlot tells all stores which place the ledger gave to this host. A store
// where the host has written before finds its place without being told, so that a
// cold start has beats before it has a master.
func (a *Agent) useSlot(slot uint16) {
	if slot == 0 {
		return // a witness, or a master that knows nothing of slots
	}
	for _, s := range a.d.Stores {
		if d, ok := s.Device.(slotted); ok {
			d.SetSlot(slot)
		}
	}
}

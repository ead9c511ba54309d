package ledger

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/haven-ha/haven"
)

// snapshotVersion is raised when the form of a snapshot changes.
const snapshotVersion = 1

// maxSnapshotBytes bounds an uncompressed snapshot: MaxVMs definitions of a
// usual size, with room to spare.
const maxSnapshotBytes = 4 << 30

// Store holds one agent's copy of the ledger. It is what the replicated log
// drives; everybody else looks at it through View.
type Store struct {
	mu      sync.RWMutex
	state   *State
	at      Position
	changed chan struct{}
}

// NewStore returns an empty copy.
func NewStore() *Store {
	return &Store{state: New(""), changed: make(chan struct{})}
}

// View calls f with the state. The state must not be changed, nor kept, nor may
// f wait for anything.
func (st *Store) View(f func(s *State, at Position)) {
	st.mu.RLock()
	defer st.mu.RUnlock()
	f(st.state, st.at)
}

// Changed returns a channel that is closed at the next change.
func (st *Store) Changed() <-chan struct{} {
	st.mu.RLock()
	defer st.mu.RUnlock()
	return st.changed
}

func (st *Store) bump() {
	close(st.changed)
	st.changed = make(chan struct{})
}

// Apply applies the commands of one log entry. The answer is a []error, one
// for each command, nil where it was applied; or one error when the entry
// cannot be read, which means that this agent is too old for the cluster.
func (st *Store) Apply(index, term uint64, data []byte) any {
	cmds, err := Decode(data)
	if err != nil {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.at = Position{index, term}
	errs := make([]error, len(cmds))
	for i, c := range cmds {
		errs[i] = st.state.Apply(c, st.at)
	}
	st.bump()
	return errs
}

type snapshot struct {
	Version int      `json:"version"`
	At      Position `json:"at"`
	State   *State   `json:"state"`
}

// Snapshot writes the state, compressed.
func (st *Store) Snapshot() ([]byte, error) {
	st.mu.RLock()
	defer st.mu.RUnlock()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		return nil, fmt.Errorf("write ledger snapshot: %w", err)
	}
	if err := json.NewEncoder(w).Encode(snapshot{snapshotVersion, st.at, st.state}); err != nil {
		return nil, fmt.Errorf("write ledger snapshot: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("write ledger snapshot: %w", err)
	}
	return b.Bytes(), nil
}

// Restore replaces the state by a snapshot. On error it is as before.
func (st *Store) Restore(data []byte) error {
	s, at, err := readSnapshot(data)
	if err != nil {
		return fmt.Errorf("read ledger snapshot: %w", err)
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.state, st.at = s, at
	st.bump()
	return nil
}

func readSnapshot(data []byte) (*State, Position, error) {
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, Position{}, err
	}
	snap := snapshot{State: New("")}
	// Up to the end, because only there the checksum is compared.
	if err := strictly(io.LimitReader(r, maxSnapshotBytes), &snap); err != nil {
		return nil, Position{}, err
	}
	if snap.Version != snapshotVersion || snap.State == nil {
		return nil, Position{}, fmt.Errorf("version %d, want %d", snap.Version, snapshotVersion)
	}
	if err := snap.State.check(); err != nil {
		return nil, Position{}, err
	}
	return snap.State, snap.At, nil
}

// check refuses a snapshot whose parts contradict one another.
func (s *State) check() error {
	if s.Hosts == nil || s.VMs == nil || s.Incidents == nil {
		return errors.New("a part is missing")
	}
	for id, h := range s.Hosts {
		if h == nil || h.ID != id || (h.Incident != "" && s.Incidents[h.Incident] == nil) {
			return fmt.Errorf("host %q is damaged", id)
		}
	}
	if err := s.checkSlots(); err != nil {
		return err
	}
	for id, vm := range s.VMs {
		if vm == nil || vm.ID != id || !vm.whole() {
			return fmt.Errorf("VM %q is damaged", id)
		}
	}
	for id, in := range s.Incidents {
		if in == nil || in.ID != id || !slices.Contains(stepOrder, in.Step) {
			return fmt.Errorf("incident %q is damaged", id)
		}
	}
	return nil
}

// whole says whether a VM has all that its phase needs.
func (vm *VM) whole() bool {
	if vm.Epoch == 0 || (vm.Desired != DesiredRunning && vm.Desired != DesiredStopped) {
		return false
	}
	switch vm.Phase {
	case PhaseOwned:
		return true
	case PhaseFreed:
		return vm.Freed != nil
	case PhaseOrdered:
		return vm.Order != nil
	}
	return false
}

// Generation returns the generation, for comparing the terms of masters.
func (st *Store) Generation() uint64 {
	st.mu.RLock()
	defer st.mu.RUnlock()
	return st.state.Generation
}

// Clone returns a deep copy of the state, for tools and tests.
func (st *Store) Clone() (*State, error) {
	data, err := st.Snapshot()
	if err != nil {
		return nil, err
	}
	s, _, err := readSnapshot(data)
	return s, err
}

// Knows says whether the host is registered with this boot and agent state.
func (s *State) Knows(host haven.HostID, boot haven.BootID, state haven.StateID) bool {
	h := s.Hosts[host]
	return h != nil && h.Boot == boot && h.State == state && !h.ProvedDead()
}

package election

import (
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// fsmAdapter shows an FSM to Raft.
type fsmAdapter struct {
	fsm  FSM
	conf *committedConfig
}

var _ raft.ConfigurationStore = (*fsmAdapter)(nil)

func (a *fsmAdapter) Apply(l *raft.Log) any { return a.fsm.Apply(l.Index, l.Term, l.Data) }

func (a *fsmAdapter) Snapshot() (raft.FSMSnapshot, error) {
	b, err := a.fsm.Snapshot()
	if err != nil {
		return nil, fmt.Errorf("snapshot state: %w", err)
	}
	if len(b) > maxState {
		return nil, fmt.Errorf("snapshot state: %d bytes are more than %d", len(b), maxState)
	}
	return stateSnapshot(b), nil
}

func (a *fsmAdapter) Restore(r io.ReadCloser) error {
	b, err := readState(r) // Raft closes it.
	if err != nil {
		return err
	}
	return a.fsm.Restore(b)
}

// StoreConfiguration is called for each configuration that is committed.
func (a *fsmAdapter) StoreConfiguration(index uint64, conf raft.Configuration) {
	a.conf.note(index, conf)
}

// committedConfig is the newest committed configuration with its index. Raft
// needs the index for a change that must not overtake another, and tells it
// to the state machine and in snapshots only: Raft.GetConfiguration always
// says 0, which switches the comparison off.
type committedConfig struct {
	mu      sync.Mutex
	index   uint64
	servers []Server
}

func (c *committedConfig) note(index uint64, conf raft.Configuration) {
	servers := convertServers(conf)
	c.mu.Lock()
	defer c.mu.Unlock()
	if index >= c.index {
		c.index, c.servers = index, servers
	}
}

func (c *committedConfig) get() (uint64, []Server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.index, c.servers
}

// notingSnapshots tells conf of the configuration in every snapshot that is
// opened: Raft opens those that it restores. Older ones do no harm.
type notingSnapshots struct {
	raft.SnapshotStore
	conf *committedConfig
}

func (s notingSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, r, err := s.SnapshotStore.Open(id)
	if err == nil {
		s.conf.note(meta.ConfigurationIndex, meta.Configuration)
	}
	return meta, r, err
}

type stateSnapshot []byte

func (s stateSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(s); err != nil {
		_ = sink.Cancel()
		return fmt.Errorf("write snapshot: %w", err)
	}
	return sink.Close()
}

func (stateSnapshot) Release() {}

package election

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// errRevoked is what an opening gets that a crash or a newer opening ended.
var errRevoked = errors.New("storage was taken away")

// MemStorage is a disk in memory for the simulator. It outlives the crash of
// the agent that has it open: each opening can write until Crash, Wipe or the
// next opening, so that what is left of a dead agent has no effect.
type MemStorage struct {
	mu    sync.Mutex
	life  int // counts openings and crashes
	disk  *raft.InmemStore
	snaps []*memSnapshot // newest first, finished ones only
	names int
}

// NewMemStorage returns an empty disk.
func NewMemStorage() *MemStorage {
	return &MemStorage{disk: raft.NewInmemStore()}
}

// Crash ends the current opening. What was written stays.
func (m *MemStorage) Crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life++
}

// Wipe ends the current opening and loses everything.
func (m *MemStorage) Wipe() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life++
	m.disk, m.snaps = raft.NewInmemStore(), nil
}

func (m *MemStorage) open(hclog.Logger) (*stores, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life++
	o := &memOpening{storage: m, life: m.life, disk: m.disk}
	return &stores{log: o, stable: o, snaps: memSnapshots{o}, close: func() error { return nil }}, nil
}

// memOpening is the log and stable store of one opening.
type memOpening struct {
	storage *MemStorage
	life    int
	disk    *raft.InmemStore
}

// valid is called first by each operation. A crash between the check and the
// operation is the same as a crash after it.
func (o *memOpening) valid() error {
	o.storage.mu.Lock()
	defer o.storage.mu.Unlock()
	if o.life != o.storage.life {
		return errRevoked
	}
	return nil
}

func (o *memOpening) FirstIndex() (uint64, error) {
	if err := o.valid(); err != nil {
		return 0, err
	}
	return o.disk.FirstIndex()
}

func (o *memOpening) LastIndex() (uint64, error) {
	if err := o.valid(); err != nil {
		return 0, err
	}
	return o.disk.LastIndex()
}

// GetLog works for ever: reading has no effect, and Raft panics when it cannot
// read an entry that was committed.
func (o *memOpening) GetLog(index uint64, log *raft.Log) error {
	return o.disk.GetLog(index, log)
}

func (o *memOpening) StoreLog(log *raft.Log) error { return o.StoreLogs([]*raft.Log{log}) }

func (o *memOpening) StoreLogs(logs []*raft.Log) error {
	if err := o.valid(); err != nil {
		return err
	}
	copies := make([]*raft.Log, len(logs))
	for i, l := range logs {
		c := *l // The caller's entry dies with its process.
		copies[i] = &c
	}
	return o.disk.StoreLogs(copies)
}

func (o *memOpening) DeleteRange(from, to uint64) error {
	if err := o.valid(); err != nil {
		return err
	}
	return o.disk.DeleteRange(from, to)
}

func (o *memOpening) Set(key, value []byte) error {
	if err := o.valid(); err != nil {
		return err
	}
	return o.disk.Set(key, slices.Clone(value))
}

func (o *memOpening) Get(key []byte) ([]byte, error) {
	if err := o.valid(); err != nil {
		return nil, err
	}
	return o.disk.Get(key)
}

func (o *memOpening) SetUint64(key []byte, value uint64) error {
	if err := o.valid(); err != nil {
		return err
	}
	return o.disk.SetUint64(key, value)
}

func (o *memOpening) GetUint64(key []byte) (uint64, error) {
	if err := o.valid(); err != nil {
		return 0, err
	}
	return o.disk.GetUint64(key)
}

type memSnapshot struct {
	meta raft.SnapshotMeta
	data []byte
}

// memSnapshots shows a snapshot only when it is finished; Raft's own store in
// memory shows the torn one after a crash.
type memSnapshots struct{ o *memOpening }

func (s memSnapshots) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration,
	confIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	if err := s.o.valid(); err != nil {
		return nil, err
	}
	m := s.o.storage
	m.mu.Lock()
	defer m.mu.Unlock()
	m.names++
	return &memSink{o: s.o, snap: &memSnapshot{meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d-%d", term, index, m.names),
		Index: index, Term: term, Configuration: conf, ConfigurationIndex: confIndex,
	}}}, nil
}

func (s memSnapshots) List() ([]*raft.SnapshotMeta, error) {
	if err := s.o.valid(); err != nil {
		return nil, err
	}
	m := s.o.storage
	m.mu.Lock()
	defer m.mu.Unlock()
	var metas []*raft.SnapshotMeta
	for _, s := range m.snaps {
		meta := s.meta
		metas = append(metas, &meta)
	}
	return metas, nil
}

func (s memSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if err := s.o.valid(); err != nil {
		return nil, nil, err
	}
	m := s.o.storage
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.snaps {
		if s.meta.ID == id {
			meta := s.meta
			return &meta, io.NopCloser(bytes.NewReader(s.data)), nil
		}
	}
	return nil, nil, fmt.Errorf("snapshot %s does not exist", id)
}

type memSink struct {
	o    *memOpening
	snap *memSnapshot
	done bool
}

func (s *memSink) ID() string { return s.snap.meta.ID }

func (s *memSink) Write(p []byte) (int, error) {
	if err := s.o.valid(); err != nil {
		return 0, err
	}
	s.snap.data = append(s.snap.data, p...)
	return len(p), nil
}

func (s *memSink) Cancel() error {
	s.done = true
	return nil
}

func (s *memSink) Close() error {
	if s.done {
		return nil
	}
	s.done = true
	m := s.o.storage
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.o.life != m.life {
		return errRevoked
	}
	s.snap.meta.Size = int64(len(s.snap.data))
	m.snaps = append([]*memSnapshot{s.snap}, m.snaps...)
	slices.SortStableFunc(m.snaps, func(a, b *memSnapshot) int {
		if a.meta.Term != b.meta.Term {
			return int(int64(b.meta.Term) - int64(a.meta.Term))
		}
		return int(int64(b.meta.Index) - int64(a.meta.Index))
	})
	m.snaps = m.snaps[:min(len(m.snaps), snapshotsKept)]
	return nil
}

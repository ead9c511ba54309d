package election

import (
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Op names an operation on a Storage.
type Op string

// The operations that can fail or hang.
const (
	OpReadLog       Op = "read-log"
	OpWriteLog      Op = "write-log"
	OpTrimLog       Op = "trim-log"
	OpReadState     Op = "read-state"     // term, vote, server id, promise
	OpWriteState    Op = "write-state"    //
	OpWriteSnapshot Op = "write-snapshot" // create, write and finish
)

// WithFaults calls fault before each operation of s. An error from it is the
// operation's result; while it blocks, the disk hangs. It is for tests and
// the simulator.
func WithFaults(s Storage, fault func(Op) error) Storage { return faultyStorage{s, fault} }

type faultyStorage struct {
	inner Storage
	fault func(Op) error
}

func (f faultyStorage) open(log hclog.Logger) (*stores, error) {
	s, err := f.inner.open(log)
	if err != nil {
		return nil, err
	}
	return &stores{
		log:    faultyLog{s.log, f.fault},
		stable: faultyStable{s.stable, f.fault},
		snaps:  faultySnapshots{s.snaps, f.fault},
		close:  s.close,
	}, nil
}

type faultyLog struct {
	raft.LogStore
	fault func(Op) error
}

func (f faultyLog) GetLog(index uint64, log *raft.Log) error {
	if err := f.fault(OpReadLog); err != nil {
		return err
	}
	return f.LogStore.GetLog(index, log)
}

func (f faultyLog) StoreLog(log *raft.Log) error { return f.StoreLogs([]*raft.Log{log}) }

func (f faultyLog) StoreLogs(logs []*raft.Log) error {
	if err := f.fault(OpWriteLog); err != nil {
		return err
	}
	return f.LogStore.StoreLogs(logs)
}

func (f faultyLog) DeleteRange(from, to uint64) error {
	if err := f.fault(OpTrimLog); err != nil {
		return err
	}
	return f.LogStore.DeleteRange(from, to)
}

type faultyStable struct {
	raft.StableStore
	fault func(Op) error
}

func (f faultyStable) Set(key, value []byte) error {
	if err := f.fault(OpWriteState); err != nil {
		return err
	}
	return f.StableStore.Set(key, value)
}

func (f faultyStable) SetUint64(key []byte, value uint64) error {
	if err := f.fault(OpWriteState); err != nil {
		return err
	}
	return f.StableStore.SetUint64(key, value)
}

func (f faultyStable) Get(key []byte) ([]byte, error) {
	if err := f.fault(OpReadState); err != nil {
		return nil, err
	}
	return f.StableStore.Get(key)
}

func (f faultyStable) GetUint64(key []byte) (uint64, error) {
	if err := f.fault(OpReadState); err != nil {
		return 0, err
	}
	return f.StableStore.GetUint64(key)
}

type faultySnapshots struct {
	raft.SnapshotStore
	fault func(Op) error
}

func (f faultySnapshots) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration,
	confIndex uint64, trans raft.Transport,
) (raft.SnapshotSink, error) {
	if err := f.fault(OpWriteSnapshot); err != nil {
		return nil, err
	}
	sink, err := f.SnapshotStore.Create(version, index, term, conf, confIndex, trans)
	if err != nil {
		return nil, err
	}
	return faultySink{sink, f.fault}, nil
}

type faultySink struct {
	raft.SnapshotSink
	fault func(Op) error
}

func (f faultySink) Write(p []byte) (int, error) {
	if err := f.fault(OpWriteSnapshot); err != nil {
		return 0, err
	}
	return f.SnapshotSink.Write(p)
}

func (f faultySink) Close() error {
	if err := f.fault(OpWriteSnapshot); err != nil {
		return err
	}
	return f.SnapshotSink.Close()
}

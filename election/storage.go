package election

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"github.com/haven-ha/haven"
)

// Storage keeps what a server must not forget: DirStorage, MemStorage, or one
// of them with faults.
type Storage interface {
	open(log hclog.Logger) (*stores, error)
}

// stores is one opening of a Storage.
type stores struct {
	log    raft.LogStore
	stable raft.StableStore
	snaps  raft.SnapshotStore
	close  func() error
}

const (
	// lockTimeout bounds the wait for another process that has the log open.
	lockTimeout = 5 * time.Second
	// snapshotsKept is one more than needed, for the case that the newest
	// one turns out to be unreadable.
	snapshotsKept = 3
	// logCacheSize is how many of the newest entries are served to followers
	// without reading the disk.
	logCacheSize = 256
)

type dirStorage string

// DirStorage keeps everything below the directory path, which is created when
// missing: log.db (bbolt) and snapshots/. Opening it blocks while the disk
// does.
func DirStorage(path string) Storage { return dirStorage(path) }

func (d dirStorage) open(log hclog.Logger) (*stores, error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, fmt.Errorf("make raft directory: %w", err)
	}
	db, err := raftboltdb.New(raftboltdb.Options{
		Path: filepath.Join(string(d), "log.db"),
		BoltOptions: &bbolt.Options{
			Timeout:        lockTimeout,
			NoFreelistSync: true, // Less to write for each entry; it is rebuilt at opening.
			FreelistType:   bbolt.FreelistMapType,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("open raft log: %w", err)
	}
	snaps, err := openSnapshots(string(d), log)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	cache, err := raft.NewLogCache(logCacheSize, db)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make log cache: %w", err), db.Close())
	}
	return &stores{log: cache, stable: db, snaps: snaps, close: db.Close}, nil
}

// openSnapshots also removes what a crash left of unfinished snapshots, which
// Raft never does.
func openSnapshots(dir string, log hclog.Logger) (raft.SnapshotStore, error) {
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, log)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "snapshots"))
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasSuffix(e.Name(), ".tmp") {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, "snapshots", e.Name())); err != nil {
			return nil, fmt.Errorf("remove unfinished snapshot: %w", err)
		}
	}
	return snaps, nil
}

// Keys of ours in the stable store, beside Raft's own.
var (
	keyServerID = []byte("HavenServerID")
	keyCluster  = []byte("HavenCluster")
	keyPromise  = []byte("HavenPromise")
)

// Keys of Raft's, as its sources name them. They are read to see whether a
// bootstrap was cut off in the middle.
var (
	keyCurrentTerm  = []byte("CurrentTerm")
	keyLastVoteTerm = []byte("LastVoteTerm")
)

// getStable reads a key; what is missing is nil.
func getStable(s raft.StableStore, key []byte) ([]byte, error) {
	b, err := s.Get(key)
	if err != nil && err.Error() != "not found" { // Raft itself compares this text.
		return nil, err
	}
	return b, nil
}

func getStableUint64(s raft.StableStore, key []byte) (uint64, error) {
	v, err := s.GetUint64(key)
	if err != nil && err.Error() != "not found" {
		return 0, err
	}
	return v, nil
}

// loadServerID reads the server's id, or draws one for a new directory.
func loadServerID(s *stores, cluster string, host haven.HostID) (ServerID, error) {
	raw, err := getStable(s.stable, keyServerID)
	if err != nil {
		return "", fmt.Errorf("read server id: %w", err)
	}
	if raw == nil {
		last, err := s.log.LastIndex()
		if err != nil {
			return "", fmt.Errorf("read last log index: %w", err)
		}
		if last > 0 {
			return "", errors.New("the raft log has entries but no server id: it was not written by haven")
		}
		id := newServerID(host)
		if err := s.stable.Set(keyCluster, []byte(cluster)); err != nil {
			return "", fmt.Errorf("save cluster name: %w", err)
		}
		if err := s.stable.Set(keyServerID, []byte(id)); err != nil {
			return "", fmt.Errorf("save server id: %w", err)
		}
		return id, nil
	}
	id := ServerID(raw)
	if id.Host() != host {
		return "", fmt.Errorf("the data directory belongs to server %s, but this is host %s: was it copied?", id, host)
	}
	was, err := getStable(s.stable, keyCluster)
	if err != nil {
		return "", fmt.Errorf("read cluster name: %w", err)
	}
	if string(was) != cluster {
		return "", fmt.Errorf("the data directory belongs to cluster %q, not %q", was, cluster)
	}
	return id, nil
}

// checkWhole looks for damage that Raft would answer with a panic, and mends
// a bootstrap that was cut off between its two writes.
func checkWhole(s *stores) error {
	snaps, err := s.snaps.List()
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	first, err := s.log.FirstIndex()
	if err != nil {
		return fmt.Errorf("read first log index: %w", err)
	}
	last, err := s.log.LastIndex()
	if err != nil {
		return fmt.Errorf("read last log index: %w", err)
	}
	if first > 1 && len(snaps) == 0 {
		return fmt.Errorf("the raft log begins at %d and there is no snapshot: remove the data directory to rejoin as a new server", first)
	}
	if last > 0 || len(snaps) > 0 {
		return nil
	}
	term, err := getStableUint64(s.stable, keyCurrentTerm)
	if err != nil {
		return fmt.Errorf("read current term: %w", err)
	}
	voted, err := getStableUint64(s.stable, keyLastVoteTerm)
	if err != nil {
		return fmt.Errorf("read last vote: %w", err)
	}
	// Raft's bootstrap writes term 1, then the first entry. Term 1 with no
	// entry and no vote is worth nothing to anybody, and would make Raft
	// refuse to bootstrap for ever.
	if term == 1 && voted == 0 {
		if err := s.stable.SetUint64(keyCurrentTerm, 0); err != nil {
			return fmt.Errorf("undo unfinished bootstrap: %w", err)
		}
	}
	return nil
}

// maxState bounds the replicated state in a snapshot.
const maxState = 256 << 20

func readState(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxState+1))
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	if len(b) > maxState {
		return nil, fmt.Errorf("read state: larger than %d bytes", maxState)
	}
	return b, nil
}

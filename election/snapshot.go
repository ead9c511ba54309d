package election

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
)

// snapshotTimeout bounds the work on a snapshot when the context does not.
const snapshotTimeout = 5 * time.Minute

// SnapshotHeader is the first line of a saved snapshot, in JSON; the state
// follows it.
type SnapshotHeader struct {
	Format  int       `json:"format"`
	Cluster string    `json:"cluster"`
	Index   uint64    `json:"index"`
	Term    uint64    `json:"term"`
	Size    int64     `json:"size"`
	SHA256  string    `json:"sha256"`
	TakenAt time.Time `json:"taken_at"` // for people
	TakenBy ServerID  `json:"taken_by"`
}

const snapshotFormat = 1

// ErrBadSnapshot is returned when a saved snapshot is damaged or not of this
// cluster.
var ErrBadSnapshot = errors.New("bad snapshot")

// SnapshotNow makes Raft take a snapshot of what is applied here, so that its
// log can be trimmed. That there is nothing new is no error.
func (n *Node) SnapshotNow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, snapshotTimeout)
	defer cancel()
	err := n.calls.do(ctx, func() error { return n.raft.Snapshot().Error() })
	if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("take snapshot: %w", err)
	}
	return nil
}

// SaveSnapshot writes a snapshot of what is applied here to w, in a form that
// RestoreSnapshot takes. On the leader, call Barrier first.
func (n *Node) SaveSnapshot(ctx context.Context, w io.Writer) (SnapshotHeader, error) {
	if err := n.SnapshotNow(ctx); err != nil {
		return SnapshotHeader{}, err
	}
	var meta *raft.SnapshotMeta
	var state []byte
	err := n.calls.do(ctx, func() error {
		var err error
		meta, state, err = n.newestSnapshot()
		return err
	})
	if err != nil {
		return SnapshotHeader{}, fmt.Errorf("read snapshot: %w", err)
	}
	sum := sha256.Sum256(state)
	h := SnapshotHeader{
		Format: snapshotFormat, Cluster: n.cfg.Cluster, Index: meta.Index, Term: meta.Term,
		Size: int64(len(state)), SHA256: hex.EncodeToString(sum[:]), TakenAt: time.Now().UTC(), TakenBy: n.id,
	}
	if err := json.NewEncoder(w).Encode(h); err != nil {
		return SnapshotHeader{}, fmt.Errorf("write snapshot: %w", err)
	}
	if _, err := w.Write(state); err != nil {
		return SnapshotHeader{}, fmt.Errorf("write snapshot: %w", err)
	}
	return h, nil
}

func (n *Node) newestSnapshot() (*raft.SnapshotMeta, []byte, error) {
	metas, err := n.stores.snaps.List()
	if err != nil {
		return nil, nil, err
	}
	if len(metas) == 0 {
		return nil, nil, errors.New("there is none: nothing was ever committed")
	}
	meta, r, err := n.stores.snaps.Open(metas[0].ID)
	if err != nil {
		return nil, nil, err
	}
	state, err := readState(r)
	return meta, state, errors.Join(err, r.Close())
}

// RestoreSnapshot replaces the replicated state of the whole cluster by one
// that SaveSnapshot wrote. Only the leader can, only for a named operator, and
// only when Config.PrepareRestore agrees. Everything committed since the
// snapshot was taken is lost. After an error the state may be the old or the
// new one.
func (n *Node) RestoreSnapshot(ctx context.Context, r io.Reader, operator string) error {
	if operator == "" {
		return errors.New("restore snapshot: no operator named")
	}
	if n.cfg.PrepareRestore == nil {
		return errors.New("restore snapshot: nobody is there to raise the generation")
	}
	h, state, err := readSnapshot(r, n.cfg.Cluster)
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	if state, err = n.cfg.PrepareRestore(operator, state); err != nil {
		return fmt.Errorf("restore snapshot: prepare: %w", err)
	}
	if _, err := n.Verify(ctx); err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotTimeout)
	defer cancel()
	n.cfg.Log.Warn("replicated state is being restored", "operator", operator, "from_index", h.Index, "from_term", h.Term, "taken_at", h.TakenAt)
	meta := &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Index: h.Index, Size: int64(len(state))}
	patience := remaining(ctx)
	err = n.calls.do(ctx, func() error { return n.raft.Restore(meta, bytes.NewReader(state), patience) })
	if err != nil {
		if errors.Is(err, raft.ErrNotLeader) {
			return notMaster("restore snapshot", err)
		}
		return fmt.Errorf("restore snapshot: %w: %w", ErrAmbiguous, err)
	}
	return nil
}

func readSnapshot(r io.Reader, cluster string) (SnapshotHeader, []byte, error) {
	br := bufio.NewReaderSize(r, 4096)
	line, err := br.ReadSlice('\n')
	if err != nil {
		return SnapshotHeader{}, nil, fmt.Errorf("%w: no header: %w", ErrBadSnapshot, err)
	}
	var h SnapshotHeader
	if err := json.Unmarshal(line, &h); err != nil {
		return SnapshotHeader{}, nil, fmt.Errorf("%w: header: %w", ErrBadSnapshot, err)
	}
	if h.Format != snapshotFormat {
		return SnapshotHeader{}, nil, fmt.Errorf("%w: format %d, want %d", ErrBadSnapshot, h.Format, snapshotFormat)
	}
	if h.Cluster != cluster {
		return SnapshotHeader{}, nil, fmt.Errorf("%w: of cluster %q, this is %q", ErrBadSnapshot, h.Cluster, cluster)
	}
	state, err := readState(br)
	if err != nil {
		return SnapshotHeader{}, nil, err
	}
	sum := sha256.Sum256(state)
	if int64(len(state)) != h.Size || hex.EncodeToString(sum[:]) != h.SHA256 {
		return SnapshotHeader{}, nil, fmt.Errorf("%w: its contents do not match its header", ErrBadSnapshot)
	}
	return h, state, nil
}

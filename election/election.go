package election

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/obs"
)

// FSM is the replicated state, as its owner implements it. Apply, Snapshot and
// Restore are never called at the same time.
type FSM interface {
	// Apply carries out a committed command. It must be deterministic and
	// must not block. Its result goes to the caller of Node.Apply. A command
	// may come twice under different indexes: commands carry ids.
	Apply(index, term uint64, cmd []byte) any
	// Snapshot returns the whole state. Nothing is applied meanwhile.
	Snapshot() ([]byte, error)
	// Restore replaces the whole state.
	Restore(state []byte) error
}

// Config configures a Node. Zero durations and counts take the defaults named
// beside them.
type Config struct {
	Cluster string
	Host    haven.HostID
	Address string // where the other hosts reach this one's Raft, ip:port
	Log     *slog.Logger

	// AddressOf, if set, gives the address of a host as it is now. It goes
	// before the one in the Raft configuration.
	AddressOf func(haven.HostID) (addr string, ok bool)
	// LedgerSeen, if set, says where a sign of an existing ledger was seen
	// (a peer, a store), or "". It must not block. While it says something,
	// this host takes no part in a bootstrap.
	LedgerSeen func() string
	// PrepareRestore, if set, checks and changes a state that a named operator
	// restores: its owner raises the generation there. Without it nothing can
	// be restored. A state that it lets pass must not fail in FSM.Restore.
	PrepareRestore func(operator string, state []byte) ([]byte, error)

	// Heartbeat is how long a voter waits for the leader: 1 s. Election is how
	// long an election may be without a winner, at least Heartbeat, and Lease how
	// long a leader goes on without a majority, at most Heartbeat. Both are
	// Heartbeat when zero.
	// A stall of the leader longer than the lease costs a change of master.
	Heartbeat, Election, Lease time.Duration
	// CommitTimeout is how often the leader tells an idle follower what is
	// committed: 200 ms.
	CommitTimeout time.Duration
	// RPCTimeout bounds one request to another server: 3 s.
	RPCTimeout time.Duration
	// CheckEvery and CheckDeadline rule the leader's self-check (see
	// selfCheck): 1 s and 5 s. The deadline must be at least two leases.
	CheckEvery    time.Duration
	CheckDeadline time.Duration
	// A snapshot is taken when SnapshotThreshold entries (4096) came since the
	// last one, looked at every SnapshotInterval (60 s); TrailingLogs entries
	// (1024) are kept behind it for followers that are a little late.
	SnapshotThreshold uint64
	SnapshotInterval  time.Duration
	TrailingLogs      uint64
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.Heartbeat, time.Second)
	def(&c.Election, c.Heartbeat)
	def(&c.Lease, c.Heartbeat)
	def(&c.CommitTimeout, 200*time.Millisecond)
	def(&c.RPCTimeout, 3*time.Second)
	def(&c.CheckEvery, time.Second)
	def(&c.CheckDeadline, 5*time.Second)
	def(&c.SnapshotInterval, time.Minute)
	if c.SnapshotThreshold == 0 {
		c.SnapshotThreshold = 4096
	}
	if c.TrailingLogs == 0 {
		c.TrailingLogs = 1024
	}
	return c
}

func (c Config) check() error {
	if _, err := haven.ParseHostID(string(c.Host)); err != nil {
		return err
	}
	if c.Cluster == "" || c.Address == "" || c.Log == nil {
		return errors.New("cluster, address and log must be set")
	}
	if c.Election < c.Heartbeat || c.Lease > c.Heartbeat {
		return fmt.Errorf("lease %s, heartbeat %s and election %s must be in this order", c.Lease, c.Heartbeat, c.Election)
	}
	if c.CheckDeadline < 2*c.Heartbeat {
		return fmt.Errorf("the self-check's deadline (%s) must be at least two leases (%s)", c.CheckDeadline, c.Heartbeat)
	}
	return nil
}

func (c Config) raft(id ServerID) *raft.Config {
	r := raft.DefaultConfig()
	r.LocalID = raft.ServerID(id)
	r.HeartbeatTimeout, r.ElectionTimeout, r.LeaderLeaseTimeout = c.Heartbeat, c.Election, c.Lease
	r.CommitTimeout = c.CommitTimeout
	r.SnapshotThreshold, r.SnapshotInterval, r.TrailingLogs = c.SnapshotThreshold, c.SnapshotInterval, c.TrailingLogs
	r.ShutdownOnRemove = false // A server that lost its vote stays, idle, and may get it back.
	r.NoLegacyTelemetry = true
	r.Logger = obs.HCLog(c.Log)
	return r
}

// Node is this host's part in electing a master. All methods may be called at
// any time from any goroutine.
type Node struct {
	cfg      Config
	id       ServerID
	raft     *raft.Raft
	raftConf *raft.Config
	stores   *stores
	layer    *streamLayer
	trans    *transport
	contacts *contacts
	disk     *diskWatch
	conf     *committedConfig
	calls    *calls
	promises *Promises
	changes  chan Leadership

	failed atomic.Pointer[error]
	fatal  chan error

	cancel    context.CancelFunc
	wg        sync.WaitGroup
	closeOnce sync.Once
	closeErr  error
}

// ErrFailed is returned when the node gave itself up: see Node.Fatal.
var ErrFailed = errors.New("the raft server failed")

// Open starts the Raft server of this host on its storage. A server that is no
// member of any configuration waits, idle, until a leader adds it or it is
// part of a bootstrap. Open blocks while the disk does. The node owns stream
// from now on; end it with Close.
func Open(cfg Config, fsm FSM, stream Stream, storage Storage) (*Node, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("configure election: %w", err)
	}
	opened, err := storage.open(obs.HCLog(cfg.Log))
	if err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, contacts: newContacts(), disk: newDiskWatch(), calls: newCalls(), conf: &committedConfig{},
		changes: make(chan Leadership, 1), fatal: make(chan error, 1),
	}
	n.stores = n.disk.watch(opened)
	n.stores.snaps = notingSnapshots{opened.snaps, n.conf}
	if err := n.start(fsm, stream); err != nil {
		if n.trans != nil {
			_ = n.trans.Close()
		}
		return nil, errors.Join(err, opened.close())
	}
	return n, nil
}

func (n *Node) start(fsm FSM, stream Stream) error {
	var err error
	if n.id, err = loadServerID(n.stores, n.cfg.Cluster, n.cfg.Host); err != nil {
		return err
	}
	if err := checkWhole(n.stores); err != nil {
		return err
	}
	if n.promises, err = openPromises(n); err != nil {
		return err
	}
	n.layer = &streamLayer{
		stream: stream, cluster: n.cfg.Cluster, self: n.id, address: n.cfg.Address,
		addressOf: n.cfg.AddressOf, log: n.cfg.Log, conns: map[net.Conn]struct{}{},
	}
	n.raftConf = n.cfg.raft(n.id)
	n.trans = newTransport(raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:          n.layer,
		MaxPool:         3,
		MaxRPCsInFlight: 1, // Pipelined replication can wedge after a stall (hashicorp/raft#612).
		Timeout:         n.cfg.RPCTimeout,
		Logger:          n.raftConf.Logger,
	}), n.contacts)
	n.raft, err = raft.NewRaft(n.raftConf, &fsmAdapter{fsm, n.conf}, n.stores.log, n.stores.stable, n.stores.snaps, n.trans)
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	n.contacts.setCommitIndex(n.raft.CommitIndex)
	n.disk.setOnError(n.diskFailed)
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	n.wg.Go(func() { n.trans.filter(ctx.Done(), n.mayVote) })
	n.wg.Go(func() { n.watch(ctx) })
	n.wg.Go(func() { n.selfCheck(ctx) })
	return nil
}

// mayVote keeps the votes of servers without a log for the one bootstrap that
// they promised to. Everybody else gets a log from a leader before a vote.
func (n *Node) mayVote(candidate ServerID) bool {
	if n.raft.LastIndex() > 0 {
		return true
	}
	p, ok := n.promises.Held()
	return ok && p.Proposer == candidate
}

// ServerID is this host's server. It changes when the disk is lost.
func (n *Node) ServerID() ServerID { return n.id }

// Promises are what this server promised about bootstraps.
func (n *Node) Promises() *Promises { return n.promises }

// HasLedger says whether this server has, or has heard of, a replicated log.
func (n *Node) HasLedger() bool { return n.raft.LastIndex() > 0 || n.raft.CurrentTerm() > 1 }

// Fatal gives one error when the node gave itself up: it cut its connections,
// so that the others elect a leader, and only a new process can help. The
// process is to exit.
func (n *Node) Fatal() <-chan error { return n.fatal }

// fail gives the node up. It does not wait for anything.
func (n *Node) fail(err error) {
	err = errors.Join(ErrFailed, err)
	if !n.failed.CompareAndSwap(nil, &err) {
		return
	}
	n.cfg.Log.Error("raft server failed, the process must exit", "err", err)
	_ = n.layer.Close()
	n.fatal <- err
}

func (n *Node) failure() error {
	if p := n.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// diskFailed is called when a write to the log failed. Raft makes such a
// leader a follower and may elect it again at once; what is really on the disk
// is not known. A follower just has no success to report, and is shown.
func (n *Node) diskFailed(err error) {
	if n.raft.State() == raft.Leader {
		n.fail(fmt.Errorf("this leader cannot write its log: %w", err))
		return
	}
	n.cfg.Log.Error("raft log not written", "err", err)
}

// Run waits until ctx ends or the node fails, and closes it. The error is the
// failure, or that of closing.
func (n *Node) Run(ctx context.Context) error {
	var failure error
	select {
	case <-ctx.Done():
	case failure = <-n.fatal:
		n.fatal <- failure // For whoever else looks.
	}
	return errors.Join(failure, n.Close())
}

// Bounds of closing.
const (
	quiesceTimeout  = time.Second
	shutdownTimeout = 10 * time.Second
)

// ErrStuck is returned when Raft or its disk did not end in time. Goroutines
// are left behind; only the end of the process helps.
var ErrStuck = errors.New("raft did not shut down in time")

// Close ends the node within about ten seconds. Calling it again gives the
// same result.
func (n *Node) Close() error {
	n.closeOnce.Do(func() { n.closeErr = n.close() })
	return n.closeErr
}

func (n *Node) close() error {
	n.calls.close(quiesceTimeout)
	n.cancel()
	_ = n.layer.Close() // Requests that are under way fail now, not at their timeout.
	done := make(chan error, 1)
	go func() {
		err := n.raft.Shutdown().Error()
		_ = n.trans.Close()
		n.wg.Wait()
		done <- errors.Join(err, n.stores.close())
	}()
	t := time.NewTimer(shutdownTimeout)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return ErrStuck
	}
}

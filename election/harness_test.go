package election

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/pki"
	"github.com/haven-ha/haven/internal/tlsmux"
)

// listFSM is a state machine that keeps all commands.
type listFSM struct {
	mu   sync.Mutex
	cmds []string
}

func (f *listFSM) Apply(_, _ uint64, cmd []byte) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cmds = append(f.cmds, string(cmd))
	return len(f.cmds)
}

func (f *listFSM) Snapshot() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return json.Marshal(f.cmds)
}

func (f *listFSM) Restore(state []byte) error {
	var cmds []string
	if err := json.Unmarshal(state, &cmds); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cmds = cmds
	return nil
}

func (f *listFSM) list() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.cmds)
}

// testHost is one machine: its disk outlives its processes.
type testHost struct {
	c     *testCluster
	id    haven.HostID
	ip    string
	creds *pki.Credentials
	mem   *MemStorage
	disk  Storage

	faultMu sync.Mutex
	fault   func(Op) error

	up     bool
	node   *Node
	fsm    *listFSM
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (h *testHost) setFault(f func(Op) error) {
	h.faultMu.Lock()
	defer h.faultMu.Unlock()
	h.fault = f
}

func (h *testHost) onOp(op Op) error {
	h.faultMu.Lock()
	f := h.fault
	h.faultMu.Unlock()
	if f == nil {
		return nil
	}
	return f(op)
}

// testCluster is several machines in one bubble, with real Raft over real TLS.
type testCluster struct {
	t      *testing.T
	net    *memNet
	expect int
	ca     *pki.CA
	hosts  []*testHost
	tune   func(*Config)
	alone  bool // no keeper runs

	mu sync.Mutex // guards up and node of the hosts against the others' goroutines
}

func newTestCluster(t *testing.T, size, expect int, tune func(*Config)) *testCluster {
	t.Helper()
	ca, err := pki.NewCA("test", 1000*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c := &testCluster{t: t, net: newMemNet(), ca: ca, expect: expect, tune: tune}
	for i := range size {
		c.hosts = append(c.hosts, c.newHost(i+1))
	}
	t.Cleanup(func() {
		for _, h := range c.hosts {
			h.stop()
		}
		time.Sleep(time.Minute) // Raft's transports end on their own.
	})
	return c
}

func (c *testCluster) newHost(i int) *testHost {
	c.t.Helper()
	h := &testHost{c: c, id: haven.HostID(fmt.Sprintf("kvm-%02d", i)), ip: fmt.Sprintf("10.0.0.%d", i), mem: NewMemStorage()}
	h.disk = WithFaults(h.mem, h.onOp)
	pair, err := c.ca.IssueHost(h.id, nil, 1000*time.Hour)
	if err != nil {
		c.t.Fatal(err)
	}
	if h.creds, err = pki.NewCredentials("test", c.ca.Pair().Cert, pair); err != nil {
		c.t.Fatal(err)
	}
	return h
}

func testLog() *slog.Logger {
	if os.Getenv("ELECTION_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

func (c *testCluster) members() []haven.HostID {
	var ids []haven.HostID
	for _, h := range c.hosts {
		ids = append(ids, h.id)
	}
	return ids
}

func (c *testCluster) startAll() {
	c.t.Helper()
	for _, h := range c.hosts {
		h.start()
	}
}

// start boots the host's agent: port, Raft, bootstrap and keeper.
func (h *testHost) start() {
	t := h.c.t
	t.Helper()
	log := testLog().With("host", h.id)
	mux, err := tlsmux.Listen(tlsmux.Config{Stack: h.c.net.stack(h.ip), Addr: h.ip + ":7947", Credentials: h.creds, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Cluster: "test", Host: h.id, Address: h.ip + ":7947", Log: log,
		PrepareRestore: func(_ string, state []byte) ([]byte, error) { return state, nil },
	}
	if h.c.tune != nil {
		h.c.tune(&cfg)
	}
	fsm := &listFSM{}
	node, err := Open(cfg, fsm, mux.Raft(), h.disk)
	if err != nil {
		t.Fatalf("host %s: %v", h.id, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.c.mu.Lock()
	h.node, h.fsm, h.up = node, fsm, true
	h.c.mu.Unlock()
	h.cancel = cancel
	h.wg.Go(func() { _ = mux.Run(ctx) })
	h.wg.Go(func() {
		_ = node.RunBootstrap(ctx, Bootstrap{
			Members: h.c.members(), Expect: h.c.expect, Peers: testPeers{h},
			Live: func() []haven.HostID { return h.c.seenBy(h) },
		})
	})
	if h.c.alone {
		return
	}
	h.wg.Go(func() {
		node.RunKeeper(ctx, Keeper{Configured: h.c.members, Members: func() []Member { return h.c.gossip(h) }})
	})
}

// stop ends the agent in good order.
func (h *testHost) stop() {
	h.c.mu.Lock()
	up := h.up
	h.up = false
	h.c.mu.Unlock()
	if !up {
		return
	}
	h.cancel()
	if err := h.node.Close(); err != nil {
		h.c.t.Errorf("close %s: %v", h.id, err)
	}
	h.wg.Wait()
}

// crash cuts the power: nothing leaves the host or reaches its disk any more.
func (h *testHost) crash() {
	h.c.net.powerOff(h.ip)
	h.mem.Crash()
	h.stop()
}

// reaches says whether messages pass between two hosts, both up.
func (c *testCluster) reaches(a, b *testHost) bool {
	c.mu.Lock()
	up := a.up && b.up
	c.mu.Unlock()
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	return up && !c.net.cuts[[2]string{a.ip, b.ip}] && !c.net.cuts[[2]string{b.ip, a.ip}]
}

func (c *testCluster) seenBy(h *testHost) []haven.HostID {
	var live []haven.HostID
	for _, o := range c.hosts {
		if o == h || c.reaches(h, o) {
			live = append(live, o.id)
		}
	}
	return live
}

func (c *testCluster) gossip(h *testHost) []Member {
	var out []Member
	for _, o := range c.hosts {
		m := Member{Host: o.id, Alive: o == h || c.reaches(h, o)}
		if m.Alive {
			c.mu.Lock()
			m.Server, m.Address = o.node.ServerID(), o.ip+":7947"
			c.mu.Unlock()
		}
		out = append(out, m)
	}
	return out
}

// partition cuts both ways between hosts of different groups.
func (c *testCluster) partition(cut bool, left, right []*testHost) {
	for _, a := range left {
		for _, b := range right {
			c.net.cut(a.ip, b.ip, cut)
			c.net.cut(b.ip, a.ip, cut)
		}
	}
}

// testPeers is the part of the HTTP API that a bootstrap uses.
type testPeers struct{ from *testHost }

func (p testPeers) target(ctx context.Context, host haven.HostID) (*Promises, error) {
	time.Sleep(time.Millisecond)
	for _, h := range p.from.c.hosts {
		if h.id == host {
			if !p.from.c.reaches(p.from, h) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			p.from.c.mu.Lock()
			defer p.from.c.mu.Unlock()
			return h.node.Promises(), nil
		}
	}
	return nil, errors.New("no such host")
}

func (p testPeers) RequestPromise(ctx context.Context, host haven.HostID, req PromiseRequest) (PromiseReply, error) {
	promises, err := p.target(ctx, host)
	if err != nil {
		return PromiseReply{}, err
	}
	return promises.Request(ctx, p.from.id, p.from.c.members(), req)
}

func (p testPeers) ProposalWithdrawn(ctx context.Context, host haven.HostID, promise Promise) (bool, error) {
	promises, err := p.target(ctx, host)
	if err != nil {
		return false, err
	}
	return promises.Withdrawn(promise), nil
}

// eventually waits, in virtual time, until cond holds.
func (c *testCluster) eventually(d time.Duration, what string, cond func() bool) {
	c.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if cond() {
			return
		}
	}
	for _, h := range c.hosts {
		if h.up {
			st, _ := json.Marshal(h.node.Status())
			c.t.Logf("%s: %s", h.id, st)
		}
	}
	c.t.Fatalf("not within %s: %s", d, what)
}

// leader is the host that leads and can commit, among those given.
func (c *testCluster) leader(among ...*testHost) *testHost {
	for _, h := range among {
		if !h.up {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, err := h.node.Verify(ctx)
		cancel()
		if err == nil {
			return h
		}
	}
	return nil
}

func (c *testCluster) waitLeader(d time.Duration, among ...*testHost) *testHost {
	c.t.Helper()
	if len(among) == 0 {
		among = c.hosts
	}
	var lead *testHost
	c.eventually(d, "a leader", func() bool {
		lead = c.leader(among...)
		return lead != nil
	})
	return lead
}

func (c *testCluster) apply(h *testHost, cmd string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := h.node.Apply(ctx, []byte(cmd)); err != nil {
		c.t.Fatalf("apply %q on %s: %v", cmd, h.id, err)
	}
}

// voters are the hosts with a vote, as h has the configuration.
func (h *testHost) voters() []haven.HostID {
	var out []haven.HostID
	for _, s := range h.node.servers() {
		if s.Voter {
			out = append(out, s.ID.Host())
		}
	}
	slices.Sort(out)
	return out
}

func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

package election

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/haven-ha/haven"
)

// A cluster begins, its master dies, another takes over, and the first one
// comes back with everything (P7).
func TestLeaderCrash(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, nil)
		c.startAll()
		first := c.waitLeader(20 * time.Second)
		c.apply(first, "one")
		term := first.node.Leader().Term

		first.crash()
		second := c.waitLeader(10 * time.Second)
		if second.node.Leader().Term <= term {
			t.Fatalf("term %d after %d", second.node.Leader().Term, term)
		}
		c.apply(second, "two")

		first.start()
		c.eventually(10*time.Second, "all have all commands", func() bool {
			return !slices.ContainsFunc(c.hosts, func(h *testHost) bool { return !slices.Equal(h.fsm.list(), []string{"one", "two"}) })
		})
		if lead := first.node.Leader(); lead.Self || lead.Host != second.id || lead.Address != second.ip+":7947" {
			t.Fatalf("the returned host sees %+v, want %s", lead, second.id)
		}
	})
}

func TestCleanRestartOfAll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 2, nil)
		c.startAll()
		lead := c.waitLeader(20 * time.Second)
		c.apply(lead, "one")
		ids := map[haven.HostID]ServerID{}
		for _, h := range c.hosts {
			ids[h.id] = h.node.ServerID()
			h.stop()
		}
		c.startAll()
		lead = c.waitLeader(10 * time.Second)
		if err := lead.node.Barrier(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := lead.fsm.list(); !slices.Equal(got, []string{"one"}) {
			t.Fatalf("after the restart: %v", got)
		}
		for _, h := range c.hosts {
			if h.node.ServerID() != ids[h.id] {
				t.Errorf("host %s was %s and is %s", h.id, ids[h.id], h.node.ServerID())
			}
		}
	})
}

// A host that lost its disk is a new server: it never answers for the old one,
// which is removed before the new one is added.
func TestLostDisk(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, nil)
		c.startAll()
		lead := c.waitLeader(20 * time.Second)
		c.apply(lead, "one")
		lost := c.hosts[0]
		if lost == lead {
			lost = c.hosts[1]
		}
		old := lost.node.ServerID()
		lost.crash()
		lost.mem.Wipe()
		lost.start()
		if lost.node.ServerID() == old {
			t.Fatal("the new disk has the old id")
		}
		contactAtStart, _ := lead.node.contacts.get(old, lead.node.Leader().Term)
		c.eventually(time.Minute, "the new server votes and the old one is gone", func() bool {
			servers := lead.node.servers()
			if n, _ := lead.node.contacts.get(old, lead.node.Leader().Term); n.at.After(contactAtStart.at) {
				t.Fatal("the new server answered for the old one")
			}
			both := slices.ContainsFunc(servers, func(s Server) bool { return s.ID == old }) &&
				slices.ContainsFunc(servers, func(s Server) bool { return s.ID == lost.node.ServerID() })
			if both {
				t.Fatal("the new server was added before the old one was removed")
			}
			return slices.Equal(lead.voters(), c.members()) && slices.Contains(lost.fsm.list(), "one")
		})
	})
}

// A follower that comes back after the log was trimmed gets a snapshot.
func TestFarBehind(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, func(cfg *Config) {
			cfg.SnapshotThreshold, cfg.SnapshotInterval, cfg.TrailingLogs = 20, time.Second, 5
		})
		c.startAll()
		lead := c.waitLeader(20 * time.Second)
		late := c.hosts[2]
		if late == lead {
			late = c.hosts[1]
		}
		c.apply(lead, "0")
		late.crash()
		for i := 1; i <= 200; i++ {
			c.apply(lead, fmt.Sprint(i))
		}
		c.eventually(20*time.Second, "a trimmed log", func() bool {
			first, err := lead.node.stores.log.FirstIndex()
			return err == nil && first > 100
		})
		late.start()
		c.eventually(20*time.Second, "the late host has everything", func() bool { return len(late.fsm.list()) == 201 })
		if !slices.Equal(late.fsm.list(), lead.fsm.list()) {
			t.Fatal("the lists differ")
		}
		if err := late.node.stores.log.GetLog(50, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
			t.Fatalf("no snapshot was used: it has entry 50 (%v)", err)
		}
	})
}

// P8: a master whose disk hangs goes on sending heartbeats. It must notice,
// cut itself off and say that the process is to exit.
func TestLeaderDiskHangs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, nil)
		c.startAll()
		lead := c.waitLeader(20 * time.Second)
		release := make(chan struct{})
		lead.setFault(func(op Op) error {
			if op == OpWriteLog {
				<-release
			}
			return nil
		})
		began := time.Now()
		select {
		case err := <-lead.node.Fatal():
			if !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), string(OpWriteLog)) {
				t.Fatalf("got %v", err)
			}
			if took := time.Since(began); took > 8*time.Second {
				t.Fatalf("noticed after %s", took)
			}
		case <-time.After(time.Minute):
			t.Fatal("not noticed")
		}
		if lead.node.IsLeader() {
			t.Error("the failed node says that it leads")
		}
		if _, err := lead.node.Verify(t.Context()); !errors.Is(err, haven.ErrNotMaster) {
			t.Errorf("verify: %v", err)
		}
		var others []*testHost
		for _, h := range c.hosts {
			if h != lead {
				others = append(others, h)
			}
		}
		c.apply(c.waitLeader(10*time.Second, others...), "after")
		close(release)
	})
}

// A master that cannot write its log fails at once; a follower only says so.
func TestDiskErrors(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, nil)
		c.startAll()
		lead := c.waitLeader(20 * time.Second)
		broken := errors.New("input/output error")
		fail := func(op Op) error {
			if op == OpWriteLog {
				return broken
			}
			return nil
		}
		follower := c.hosts[0]
		if follower == lead {
			follower = c.hosts[1]
		}
		follower.setFault(fail)
		c.apply(lead, "one")
		c.eventually(10*time.Second, "the follower shows its disk", func() bool {
			return strings.Contains(follower.node.Status().Disk.Error, broken.Error())
		})
		select {
		case err := <-follower.node.Fatal():
			t.Fatalf("the follower gave up: %v", err)
		default:
		}
		c.eventually(10*time.Second, "the leader shows that the follower is behind", func() bool {
			for _, s := range lead.node.Status().Servers {
				if s.Host == follower.id && s.ContactMS >= 0 && s.ContactMS < 1000 && s.BehindMS > 2000 {
					return true
				}
			}
			return false
		})
		follower.setFault(nil)
		c.eventually(20*time.Second, "the follower caught up", func() bool { return len(follower.fsm.list()) == 1 })

		lead.setFault(fail)
		select {
		case err := <-lead.node.Fatal():
			if !errors.Is(err, broken) {
				t.Fatalf("got %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("not noticed")
		}
	})
}

// Seven hosts, five voters: dead voters are replaced, the master's own host
// too, and the number stays right.
func TestVotersReplaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newTestCluster(t, 7, 5, nil)
		c.startAll()
		lead := c.waitLeader(20 * time.Second)
		c.eventually(time.Minute, "five voters", func() bool { return len(lead.voters()) == MaxVoters })
		c.apply(lead, "one")
		for i := range 2 {
			victim := lead
			if i == 0 {
				for _, h := range c.hosts {
					if h != lead && slices.Contains(lead.voters(), h.id) {
						victim = h
					}
				}
			}
			victim.crash()
			c.eventually(time.Minute, "the dead voter is replaced", func() bool {
				lead = c.leader(c.hosts...)
				return lead != nil && len(lead.voters()) == MaxVoters && !slices.Contains(lead.voters(), victim.id)
			})
			c.apply(lead, "again")
		}
		c.eventually(10*time.Second, "all voters have all", func() bool {
			for _, h := range c.hosts {
				if h.up && slices.Contains(lead.voters(), h.id) && len(h.fsm.list()) != 3 {
					return false
				}
			}
			return true
		})
		// A removed voter that comes back stays quiet: nobody's term moves.
		term := lead.node.Leader().Term
		for _, h := range c.hosts {
			if !h.up {
				h.start()
			}
		}
		time.Sleep(30 * time.Second)
		if now := lead.node.Leader(); !now.Self || now.Term != term {
			t.Fatalf("the returning hosts disturbed the leader of term %d: %+v", term, now)
		}
	})
}

// P3: a master without a majority cannot verify its leadership, says so in
// time, and what it accepts is not sure.
func TestIsolatedLeader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, nil)
		c.startAll()
		lead := c.waitLeader(20 * time.Second)
		if v, ok := lead.node.VerifiedWithin(time.Second); !ok || v.Term != lead.node.Leader().Term {
			t.Fatalf("not verified by heartbeats: %+v", v)
		}
		var others []*testHost
		for _, h := range c.hosts {
			if h != lead {
				others = append(others, h)
			}
		}
		c.partition(true, []*testHost{lead}, others)
		got := make(chan error, 1)
		go func() {
			_, err := lead.node.Apply(t.Context(), []byte("lost?"))
			got <- err
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if v, err := lead.node.Verify(ctx); !errors.Is(err, haven.ErrNotMaster) {
			t.Fatalf("verified in isolation: %+v, %v", v, err)
		}
		if err := <-got; !errors.Is(err, ErrAmbiguous) {
			t.Fatalf("apply in isolation: %v", err)
		}
		if _, ok := lead.node.VerifiedWithin(time.Second); ok {
			t.Fatal("verified by heartbeats in isolation")
		}
		next := c.waitLeader(10*time.Second, others...)
		c.apply(next, "kept")
		c.partition(false, []*testHost{lead}, others)
		c.eventually(20*time.Second, "the old master follows", func() bool {
			return !lead.node.IsLeader() && slices.Equal(lead.fsm.list(), next.fsm.list())
		})
		if _, err := lead.node.Apply(t.Context(), []byte("no")); !errors.Is(err, haven.ErrNotMaster) || errors.Is(err, ErrAmbiguous) {
			t.Fatalf("apply on a follower: %v", err)
		}
	})
}

// Raft counts the answers of servers without a vote when it verifies. We must
// not: one of them and the leader are no majority of three voters.
func TestVerifyCountsVotersOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, nil)
		c.alone = true
		c.startAll()
		lead := c.waitLeader(20 * time.Second)
		var others []*testHost
		for _, h := range c.hosts {
			if h != lead {
				others = append(others, h)
			}
		}
		extra := c.newHost(4)
		extra.start()
		defer extra.stop()
		change := Change{Kind: AddNonvoter, Server: Server{ID: extra.node.ServerID(), Address: extra.ip + ":7947"}}
		if err := lead.node.change(t.Context(), change, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		c.partition(true, []*testHost{lead}, others)
		time.Sleep(10 * time.Millisecond)
		if err := lead.node.raft.VerifyLeader().Error(); err != nil {
			t.Fatalf("raft counts right today, the test shows nothing: %v", err)
		}
		if v, err := lead.node.Verify(t.Context()); !errors.Is(err, haven.ErrNotMaster) {
			t.Fatalf("verified with one voter of three: %+v, %v", v, err)
		}
	})
}

// Changes coalesces and always ends with the truth.
func TestChanges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, nil)
		c.startAll()
		lead := c.waitLeader(20 * time.Second)
		watcher := c.hosts[0]
		if watcher == lead {
			watcher = c.hosts[1]
		}
		lead.crash() // Nobody reads the channel meanwhile.
		next := c.waitLeader(10 * time.Second)
		time.Sleep(2 * time.Second)
		got := <-watcher.node.Changes()
		if got.Host != next.id || got.Term != next.node.Leader().Term || got.Self != (watcher == next) {
			t.Fatalf("got %+v, want %s", got, next.id)
		}
		select {
		case more := <-watcher.node.Changes():
			t.Fatalf("a second, older change: %+v", more)
		default:
		}
	})
}

// Two sides of a partition that both would begin a cluster: never two.
func TestBootstrapInPartition(t *testing.T) {
	for split := 1; split <= 4; split++ {
		t.Run(fmt.Sprintf("%d and %d hosts", split, 5-split), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				c := newTestCluster(t, 5, 3, nil)
				left, right := c.hosts[:split], c.hosts[split:]
				c.partition(true, left, right)
				c.startAll()
				time.Sleep(20 * time.Second)
				lead := c.leader(c.hosts...)
				if lead == nil {
					t.Fatal("no side began the cluster")
				}
				c.apply(lead, "one")
				minority := left
				if split > 2 {
					minority = right
				}
				for _, h := range minority {
					if h.node.HasLedger() {
						t.Fatalf("host %s of the minority has a ledger", h.id)
					}
				}
				c.partition(false, left, right)
				c.eventually(time.Minute, "all have the one ledger", func() bool {
					return !slices.ContainsFunc(c.hosts, func(h *testHost) bool { return !slices.Equal(h.fsm.list(), []string{"one"}) })
				})
			})
		})
	}
}

// The proposer dies between the promises and the first entry, and in the
// middle of writing it. It goes on where it was, and nobody else begins.
func TestBootstrapCrash(t *testing.T) {
	for _, cutOff := range []Op{OpWriteState, OpWriteLog} {
		t.Run(string(cutOff), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				c := newTestCluster(t, 3, 2, nil)
				proposer := c.hosts[0]
				writes := 0
				proposer.setFault(func(op Op) error {
					if op == OpWriteState {
						writes++
					}
					// Cluster, id, term 0 and promise are saved, then term 1,
					// then the first entry.
					if op == cutOff && (op == OpWriteLog || writes > 4) {
						return errors.New("power lost")
					}
					return nil
				})
				c.startAll()
				select {
				case <-proposer.node.Fatal():
				case <-time.After(time.Minute):
					t.Fatal("the proposer did not get as far as that")
				}
				id := proposer.node.ServerID()
				proposer.crash()
				proposer.setFault(nil)
				time.Sleep(20 * time.Second)
				if c.leader(c.hosts...) != nil {
					t.Fatal("the others began a cluster of their own")
				}
				proposer.start()
				lead := c.waitLeader(30 * time.Second)
				if proposer.node.ServerID() != id {
					t.Fatal("the proposer is another server")
				}
				c.apply(lead, "one")
				c.eventually(time.Minute, "all have the one ledger", func() bool {
					return !slices.ContainsFunc(c.hosts, func(h *testHost) bool { return !slices.Equal(h.fsm.list(), []string{"one"}) })
				})
			})
		})
	}
}

// A server without a log votes only for whom it gave its promise to.
func TestVoteNeedsPromise(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, nil)
		c.hosts[0].start() // Alone, it waits.
		h := c.hosts[0].node
		if h.mayVote("kvm-02/0123456789abcdef") {
			t.Fatal("a vote without a promise")
		}
		req := PromiseRequest{Cluster: "test", Members: c.members(), Proposer: "kvm-02/0123456789abcdef", Round: 1}
		reply, err := h.Promises().Request(t.Context(), "kvm-02", c.members(), req)
		if err != nil || !reply.Granted {
			t.Fatalf("%+v, %v", reply, err)
		}
		if !h.mayVote("kvm-02/0123456789abcdef") || h.mayVote("kvm-03/0123456789abcdef") {
			t.Fatal("the vote does not follow the promise")
		}
		req.Proposer = "kvm-03/0123456789abcdef"
		if reply, err := h.Promises().Request(t.Context(), "kvm-03", c.members(), req); err != nil || reply.Granted {
			t.Fatalf("promised twice: %+v, %v", reply, err)
		}
		if reply, err := h.Promises().Request(t.Context(), "kvm-01", c.members(), req); err != nil || reply.Granted {
			t.Fatalf("a request in another host's name: %+v, %v", reply, err)
		}
		if _, err := h.Promises().ResetPromise(t.Context(), ""); err == nil {
			t.Fatal("reset by nobody")
		}
		was, err := h.Promises().ResetPromise(t.Context(), "ann")
		if err != nil || was.Proposer.Host() != "kvm-02" {
			t.Fatalf("%v, %v", was, err)
		}
		c.hosts[0].crash()
		c.hosts[0].start()
		resets := c.hosts[0].node.Promises().Resets()
		if len(resets) != 1 || resets[0].Operator != "ann" {
			t.Fatalf("the reset left no record: %+v", resets)
		}
	})
}

// A round that was taken back begins nothing, even when its promises are there.
func TestBeginNeedsItsRound(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newTestCluster(t, 3, 3, nil)
		c.hosts[0].start()
		n := c.hosts[0].node
		if err := n.Promises().propose(t.Context()); err != nil {
			t.Fatal(err)
		}
		held, _ := n.Promises().Held()
		voters := []Server{{ID: n.ServerID(), Address: "10.0.0.1:7947"}}
		if n.Promises().Withdrawn(held) {
			t.Fatal("a live round is said to be over")
		}
		if _, err := n.Promises().ResetPromise(t.Context(), "ann"); err != nil {
			t.Fatal(err)
		}
		if err := n.Promises().propose(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := n.begin(t.Context(), held, voters); !errors.Is(err, errRoundOver) || n.HasLedger() {
			t.Fatalf("begun in an old round: %v", err)
		}
		if now, _ := n.Promises().Held(); now.Round <= held.Round || !n.Promises().Withdrawn(held) {
			t.Fatalf("round %d after round %d", now.Round, held.Round)
		}
	})
}

// An operator saves the state and restores it later, into the same cluster.
func TestSaveAndRestore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		raised := ""
		c := newTestCluster(t, 3, 3, func(cfg *Config) {
			cfg.PrepareRestore = func(operator string, state []byte) ([]byte, error) {
				raised = operator
				return bytes.Replace(state, []byte("one"), []byte("ONE"), 1), nil
			}
		})
		c.startAll()
		lead := c.waitLeader(20 * time.Second)
		c.apply(lead, "one")
		var saved bytes.Buffer
		if _, err := lead.node.SaveSnapshot(t.Context(), &saved); err != nil {
			t.Fatal(err)
		}
		c.apply(lead, "two")
		damaged := bytes.Clone(saved.Bytes())
		damaged[len(damaged)-2] ^= 1
		if err := lead.node.RestoreSnapshot(t.Context(), bytes.NewReader(damaged), "ann"); !errors.Is(err, ErrBadSnapshot) {
			t.Fatalf("damaged: %v", err)
		}
		if err := lead.node.RestoreSnapshot(t.Context(), bytes.NewReader(saved.Bytes()), "ann"); err != nil {
			t.Fatal(err)
		}
		c.apply(lead, "three")
		c.eventually(20*time.Second, "all have the restored state", func() bool {
			return !slices.ContainsFunc(c.hosts, func(h *testHost) bool { return !slices.Equal(h.fsm.list(), []string{"ONE", "three"}) })
		})
		if raised != "ann" {
			t.Fatalf("prepared by %q", raised)
		}
		// The keeper still knows the configuration's index after a restore.
		if conf := lead.node.voterConfig(); !conf.Settled || conf.Index == 0 {
			t.Fatalf("%+v", conf)
		}
		// And all of it survives a restart of everybody.
		for _, h := range c.hosts {
			h.stop()
		}
		c.startAll()
		lead = c.waitLeader(10 * time.Second)
		if err := lead.node.Barrier(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(lead.fsm.list(), []string{"ONE", "three"}) {
			t.Fatalf("after the restart: %v", lead.fsm.list())
		}
		if conf := lead.node.voterConfig(); conf.Index == 0 {
			t.Fatalf("%+v", conf)
		}
	})
}

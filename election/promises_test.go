package election

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
)

func TestCheckExpect(t *testing.T) {
	for _, tc := range []struct {
		expect, members int
		ok              bool
	}{
		{1, 1, true},
		{1, 2, false},
		{2, 2, true},
		{2, 3, true},
		{1, 3, false},
		{2, 4, false},
		{3, 4, true},
		{3, 5, true},
		{6, 5, false},
		{0, 0, false},
	} {
		if err := CheckExpect(tc.expect, tc.members); (err == nil) != tc.ok {
			t.Errorf("expect %d of %d: %v", tc.expect, tc.members, err)
		}
	}
}

func server(host string, life int) ServerID { return ServerID(fmt.Sprintf("%s/%016x", host, life)) }

func TestPlanBootstrap(t *testing.T) {
	self := server("b", 1)
	mine := Promise{Proposer: self, Round: 2}
	members := []haven.HostID{"a", "b", "c", "d", "e"}
	granted := func(host string, round uint64) PromiseReply {
		return PromiseReply{Granted: true, Server: server(host, 1), Address: host + ":1", Round: round}
	}
	view := func(change func(*BootstrapView)) BootstrapView {
		v := BootstrapView{
			Self: self, Address: "b:1", Members: members, Expect: 3,
			Live: []haven.HostID{"b", "c", "d"}, Replies: map[haven.HostID]PromiseReply{},
		}
		change(&v)
		return v
	}
	tests := []struct {
		name   string
		view   BootstrapView
		want   BootstrapStep
		detail string // in the reason, the hosts to ask or the voters
	}{
		{"ledger here", view(func(v *BootstrapView) { v.HasLedger = true }), BootstrapDone, ""},
		{"ledger on a store", view(func(v *BootstrapView) { v.LedgerSeen = "store nfs1" }), BootstrapWait, "nfs1"},
		{"ledger on a store while proposing", view(func(v *BootstrapView) { v.LedgerSeen, v.Held = "store nfs1", mine }), BootstrapWithdraw, "nfs1"},
		{"ledger at a peer", view(func(v *BootstrapView) {
			v.Held = mine
			v.Replies["c"] = PromiseReply{Ledger: true, Reason: "this server has a ledger"}
		}), BootstrapWithdraw, "host c"},
		{"expect too small", view(func(v *BootstrapView) { v.Expect = 2 }), BootstrapWait, "bootstrap_expect"},
		{"not configured", view(func(v *BootstrapView) { v.Members = []haven.HostID{"a", "c", "d", "e", "f"} }), BootstrapWait, "not configured"},
		{"promised elsewhere", view(func(v *BootstrapView) { v.Held = Promise{Proposer: server("a", 1), Round: 1} }), BootstrapWait, "promised"},
		{"promised to this host's lost disk", view(func(v *BootstrapView) { v.Held = Promise{Proposer: server("b", 9), Round: 1} }), BootstrapWait, "promised"},
		{"a lower host is here", view(func(v *BootstrapView) { v.Live = []haven.HostID{"a", "b", "c"} }), BootstrapWait, "host a"},
		{"too few", view(func(v *BootstrapView) { v.Live = []haven.HostID{"c", "z"} }), BootstrapWait, "2 of 5"},
		{"propose", view(func(*BootstrapView) {}), BootstrapPropose, ""},
		{"ask", view(func(v *BootstrapView) { v.Held, v.Replies["c"] = mine, granted("c", 2) }), BootstrapAsk, "[d]"},
		{"old round does not count", view(func(v *BootstrapView) {
			v.Held = mine
			v.Replies["c"], v.Replies["d"] = granted("c", 1), granted("d", 2)
		}), BootstrapAsk, "[c]"},
		{"another host's server does not count", view(func(v *BootstrapView) {
			v.Held = mine
			v.Replies["c"], v.Replies["d"] = granted("d", 2), granted("d", 2)
		}), BootstrapAsk, "[c]"},
		{"give way to a lower host", view(func(v *BootstrapView) {
			v.Held, v.Live = mine, members
			v.Replies["c"] = granted("c", 2)
		}), BootstrapWithdraw, "host a"},
		{"enough, though a lower host is here", view(func(v *BootstrapView) {
			v.Held, v.Live = mine, members
			v.Replies["c"], v.Replies["d"] = granted("c", 2), granted("d", 2)
		}), BootstrapBegin, "b c d"},
		{"an even number: one is left out, one that is away", view(func(v *BootstrapView) {
			v.Held, v.Live = mine, []haven.HostID{"d", "e"}
			v.Replies["c"], v.Replies["d"], v.Replies["e"] = granted("c", 2), granted("d", 2), granted("e", 2)
		}), BootstrapBegin, "b d e"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			plan := PlanBootstrap(tc.view)
			detail := plan.Reason
			if plan.Ask != nil {
				detail = fmt.Sprint(plan.Ask)
			}
			if plan.Voters != nil {
				detail = voterNames(plan.Voters)
			}
			if plan.Step != tc.want || !strings.Contains(detail, tc.detail) {
				t.Fatalf("got %s, %q", plan.Step, detail)
			}
		})
	}
}

func voterNames(servers []Server) string {
	var names []string
	for _, s := range servers {
		names = append(names, string(s.ID.Host()))
	}
	return strings.Join(names, " ")
}

// founder is one host in the property test: real promises on a disk, no Raft.
type founder struct {
	host    haven.HostID
	stable  raft.StableStore
	node    *Node
	replies map[haven.HostID]PromiseReply
	begun   []Server
}

// boot starts the process anew: all that is not on the disk is forgotten.
func (f *founder) boot(t *rapid.T) {
	n := &Node{id: server(string(f.host), 1), cfg: Config{Cluster: "c", Address: string(f.host) + ":1", Log: testLog()}, calls: newCalls()}
	n.stores = &stores{stable: f.stable}
	n.raft = nil
	var err error
	if n.promises, err = openPromises(n); err != nil {
		t.Fatal(err)
	}
	f.node, f.replies = n, map[haven.HostID]PromiseReply{}
}

// Whatever hosts see of each other, whatever is lost, late, repeated or
// forgotten, at most one cluster is begun. When all is well in the end, one is.
func TestBootstrapOnce(t *testing.T) {
	for range 10 { // Two proposers with a chance each are rare.
		rapid.Check(t, bootstrapOnce)
	}
}

func bootstrapOnce(t *rapid.T) {
	size := rapid.SampledFrom([]int{3, 3, 4, 5, 2, 1}).Draw(t, "hosts")
	expect := rapid.IntRange(size/2+1, size).Draw(t, "expect")
	w := &founding{t: t, expect: expect}
	for i := range size {
		f := &founder{host: haven.HostID(string(rune('a' + i))), stable: raft.NewInmemStore()}
		f.boot(t)
		w.founders = append(w.founders, f)
		w.members = append(w.members, f.host)
	}
	steps := rapid.IntRange(20, 120).Draw(t, "steps")
	for range steps {
		w.chaos()
	}
	w.check()
	for range 12 { // Now everybody sees everybody.
		for _, f := range w.founders {
			w.step(f, w.members, func(haven.HostID) bool { return true })
		}
	}
	if w.check() == 0 {
		t.Fatalf("no cluster was begun by %d hosts, %d expected", size, expect)
	}
}

// founding is the small world of the property test.
type founding struct {
	t        *rapid.T
	expect   int
	members  []haven.HostID
	founders []*founder
	late     []func() // requests on their way
}

func (w *founding) find(host haven.HostID) *founder {
	return w.founders[slices.Index(w.members, host)]
}

// chaos does one random thing.
func (w *founding) chaos() {
	t := w.t
	f := rapid.SampledFrom(w.founders).Draw(t, "host")
	switch rapid.SampledFrom([]string{"step", "step", "step", "step", "step", "step", "crash", "late"}).Draw(t, "what") {
	case "step":
		mostly := func(what string) bool { return rapid.IntRange(0, 3).Draw(t, what) > 0 }
		live := slices.DeleteFunc(slices.Clone(w.members), func(haven.HostID) bool { return !mostly("is live") })
		w.step(f, live, func(haven.HostID) bool { return mostly("arrives") })
	case "crash":
		f.boot(t)
	case "late":
		if len(w.late) > 0 {
			w.late[rapid.IntRange(0, len(w.late)-1).Draw(t, "which")]()
		}
	}
}

// step lets one host decide and act, as bootstrapStep does.
func (w *founding) step(f *founder, live []haven.HostID, arrives func(haven.HostID) bool) {
	ctx := context.Background()
	held, _ := f.node.promises.Held()
	plan := PlanBootstrap(BootstrapView{
		Self: f.node.id, Address: f.node.cfg.Address, Members: w.members, Expect: w.expect, Live: live,
		HasLedger: f.begun != nil, Held: held, Replies: f.replies,
	})
	var err error
	switch plan.Step {
	case BootstrapDone:
	case BootstrapWait:
		dropPromises(f.replies)
		if held != (Promise{}) && held.Proposer != f.node.id && arrives(held.Proposer.Host()) {
			p := w.find(held.Proposer.Host())
			if p.begun == nil && p.node.promises.tookBack(held) {
				err = f.node.promises.release(ctx, held)
			}
		}
	case BootstrapPropose:
		err = f.node.promises.propose(ctx)
	case BootstrapWithdraw:
		dropPromises(f.replies)
		err = f.node.promises.withdraw(ctx)
	case BootstrapBegin:
		f.begun = plan.Voters
	case BootstrapAsk:
		for _, h := range plan.Ask {
			w.ask(f, w.find(h), Promise{Proposer: f.node.id, Round: held.Round}, arrives)
		}
	}
	if err != nil {
		w.t.Fatalf("%s: %s: %v", f.host, plan.Step, err)
	}
}

// ask delivers a request now or never, its answer too, and once more later.
func (w *founding) ask(f, to *founder, want Promise, arrives func(haven.HostID) bool) {
	deliver := func() (PromiseReply, bool) {
		if to.begun != nil {
			return PromiseReply{Ledger: true, Server: to.node.id, Reason: "this server has a ledger"}, true
		}
		granted, err := to.node.promises.grant(context.Background(), want)
		if err != nil {
			w.t.Fatal(err)
		}
		return PromiseReply{Granted: granted == "", Server: to.node.id, Address: to.node.cfg.Address, Round: want.Round, Reason: granted}, true
	}
	w.late = append(w.late, func() { _, _ = deliver() })
	if !arrives(to.host) {
		return
	}
	if reply, ok := deliver(); ok && arrives(f.host) {
		f.replies[to.host] = reply
	}
}

// check counts the clusters, in the plainest way.
func (w *founding) check() int {
	n := 0
	for _, f := range w.founders {
		if f.begun == nil {
			continue
		}
		n++
		if len(f.begun)%2 == 0 || len(f.begun) > MaxVoters || f.begun[0].ID != f.node.id {
			w.t.Fatalf("host %s begins with voters %v", f.host, f.begun)
		}
	}
	if n > 1 {
		w.t.Fatalf("%d clusters were begun", n)
	}
	return n
}

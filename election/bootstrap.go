package election

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/haven-ha/haven"
)

// MaxVoters bounds the servers with a vote. Five survive two failures; more
// make every commit dearer and nothing safer. There may be one more between the
// two changes that replace a voter.
const MaxVoters = 5

// BootstrapStep is what a host does next to begin a cluster.
type BootstrapStep string

// The steps.
const (
	BootstrapDone     BootstrapStep = "done"     // there is a ledger
	BootstrapWait     BootstrapStep = "wait"     // nothing to do now; the reason says why
	BootstrapPropose  BootstrapStep = "propose"  // promise oneself to oneself
	BootstrapAsk      BootstrapStep = "ask"      // ask the hosts named for their promise
	BootstrapBegin    BootstrapStep = "begin"    // begin the cluster with the voters named
	BootstrapWithdraw BootstrapStep = "withdraw" // take one's own round back
)

// BootstrapView is all that the decision rests on.
type BootstrapView struct {
	Self    ServerID
	Address string
	Members []haven.HostID // all configured hosts
	Expect  int            // bootstrap_expect
	Live    []haven.HostID // hosts that are seen to be alive
	// HasLedger: this server has a log. LedgerSeen: where else one was seen.
	HasLedger  bool
	LedgerSeen string
	// Held is this server's own promise; the zero value is none.
	Held Promise
	// Replies are the newest answers of other hosts to this server's requests.
	Replies map[haven.HostID]PromiseReply
}

// BootstrapPlan is the decision.
type BootstrapPlan struct {
	Step   BootstrapStep
	Ask    []haven.HostID
	Voters []Server // its first one is this server
	Reason string
}

// CheckExpect checks bootstrap_expect against the number of configured hosts.
// More than half of them must agree: two sets of that size have a host in
// common, and a host agrees once.
func CheckExpect(expect, members int) error {
	if 2*expect <= members || expect > members {
		return fmt.Errorf("bootstrap_expect is %d: with %d hosts it must be from %d to %d", expect, members, members/2+1, members)
	}
	return nil
}

// PlanBootstrap decides the next step. It is pure.
//
// The proposer is the host with the lowest name among the live ones. It begins
// the cluster when at least Expect configured hosts, itself included, gave it
// their promise in its current round. A proposer that learns of a lower live
// host, or of a ledger, takes its round back, so that those who promised are
// free again.
func PlanBootstrap(v BootstrapView) BootstrapPlan {
	self := v.Self.Host()
	mine := v.Held.Proposer == v.Self
	wait := func(format string, args ...any) BootstrapPlan {
		return BootstrapPlan{Step: BootstrapWait, Reason: fmt.Sprintf(format, args...)}
	}
	if v.HasLedger {
		return BootstrapPlan{Step: BootstrapDone}
	}
	seen := v.LedgerSeen
	for _, host := range sortedKeys(v.Replies) {
		if r := v.Replies[host]; r.Ledger && seen == "" {
			seen = fmt.Sprintf("host %s: %s", host, r.Reason)
		}
	}
	if seen != "" {
		if mine {
			return BootstrapPlan{Step: BootstrapWithdraw, Reason: "a ledger exists: " + seen}
		}
		return wait("a ledger exists: %s", seen)
	}
	if err := CheckExpect(v.Expect, len(v.Members)); err != nil {
		return wait("%s", err)
	}
	if !slices.Contains(v.Members, self) {
		return wait("host %s is not configured", self)
	}
	if v.Held != (Promise{}) && !mine {
		return wait("promised to %s", v.Held)
	}
	live := liveMembers(v, self)
	lowest := live[0] == self
	switch {
	case !mine && !lowest:
		return wait("host %s is to propose", live[0])
	case !mine && len(live) < v.Expect:
		return wait("%d of %d hosts are here, %d are needed", len(live), len(v.Members), v.Expect)
	case !mine:
		return BootstrapPlan{Step: BootstrapPropose}
	}
	promised := promisers(v, live)
	if len(promised) >= v.Expect {
		return BootstrapPlan{Step: BootstrapBegin, Voters: firstOdd(promised)}
	}
	if !lowest {
		return BootstrapPlan{Step: BootstrapWithdraw, Reason: fmt.Sprintf("host %s is to propose", live[0])}
	}
	ask := slices.DeleteFunc(live, func(h haven.HostID) bool {
		return slices.ContainsFunc(promised, func(s Server) bool { return s.ID.Host() == h })
	})
	return BootstrapPlan{Step: BootstrapAsk, Ask: ask, Reason: fmt.Sprintf("%d of %d promises%s", len(promised), v.Expect, refusals(v))}
}

func sortedKeys[V any](m map[haven.HostID]V) []haven.HostID {
	keys := make([]haven.HostID, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// liveMembers are the configured live hosts, sorted, this one included.
func liveMembers(v BootstrapView, self haven.HostID) []haven.HostID {
	live := []haven.HostID{self}
	for _, h := range v.Live {
		if h != self && slices.Contains(v.Members, h) {
			live = append(live, h)
		}
	}
	slices.Sort(live)
	return slices.Compact(live)
}

// promisers are the servers whose promise counts: this one first, then the
// live ones, then the others.
func promisers(v BootstrapView, live []haven.HostID) []Server {
	servers := []Server{{ID: v.Self, Address: v.Address, Voter: true}}
	for _, host := range sortedKeys(v.Replies) {
		r := v.Replies[host]
		if r.Granted && r.Round == v.Held.Round && r.Server.Host() == host && host != v.Self.Host() &&
			r.Address != "" && slices.Contains(v.Members, host) {
			servers = append(servers, Server{ID: r.Server, Address: r.Address, Voter: true})
		}
	}
	away := func(s Server) int {
		if slices.Contains(live, s.ID.Host()) {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(servers[1:], func(a, b Server) int { return cmp.Compare(away(a), away(b)) })
	return servers
}

// firstOdd takes as many as are odd in number and at most MaxVoters.
func firstOdd(servers []Server) []Server { return servers[:oddFloor(min(len(servers), MaxVoters))] }

// oddFloor is the greatest odd number not above n, for n ≥ 1.
func oddFloor(n int) int { return n - (n+1)%2 }

func refusals(v BootstrapView) string {
	var s strings.Builder
	for _, host := range sortedKeys(v.Replies) {
		if r := v.Replies[host]; !r.Granted && r.Reason != "" {
			fmt.Fprintf(&s, "; %s: %s", host, r.Reason)
		}
	}
	return s.String()
}

// BootstrapPeers reaches the other hosts' Promises. Calls are bounded by ctx.
type BootstrapPeers interface {
	RequestPromise(ctx context.Context, host haven.HostID, req PromiseRequest) (PromiseReply, error)
	// ProposalWithdrawn asks the proposer's host for Promises.Withdrawn.
	ProposalWithdrawn(ctx context.Context, host haven.HostID, p Promise) (bool, error)
}

// Bootstrap says how a new cluster is begun.
type Bootstrap struct {
	Members []haven.HostID           // all configured hosts
	Expect  int                      // see CheckExpect
	Live    func() []haven.HostID    // hosts that are seen to be alive; it must not block
	Peers   BootstrapPeers           //
	OnWait  func(plan BootstrapPlan) // if set, told what is waited for when that changes
}

const (
	bootstrapEvery   = time.Second
	bootstrapTimeout = 3 * time.Second // for one round of requests
	// believeLedger is how long a host's word that a ledger exists counts
	// before it is asked again. Most hosts are never members: they hear it
	// once, and should not ask all others every second.
	believeLedger = time.Minute
)

// RunBootstrap takes part in beginning the cluster until this server has a
// ledger, or ctx ends. It is idempotent: after a crash at any point it goes on
// where it was.
func (n *Node) RunBootstrap(ctx context.Context, b Bootstrap) error {
	b.Members = slices.Sorted(slices.Values(b.Members))
	tick := time.NewTicker(bootstrapEvery)
	defer tick.Stop()
	replies := map[haven.HostID]PromiseReply{}
	var refused time.Time // since when a reply tells of a ledger
	last := ""
	for {
		plan := n.bootstrapStep(ctx, b, replies)
		switch told := hasLedger(replies); {
		case !told:
			refused = time.Time{}
		case refused.IsZero():
			refused = time.Now()
		case time.Since(refused) > believeLedger:
			clear(replies)
		}
		if plan.Step == BootstrapDone {
			return nil
		}
		if text := string(plan.Step) + ": " + plan.Reason; text != last {
			last = text
			n.cfg.Log.Info("bootstrap", "step", plan.Step, "reason", plan.Reason)
			if b.OnWait != nil {
				b.OnWait(plan)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-n.fatal:
			n.fatal <- err
			return err
		case <-tick.C:
		}
	}
}

func hasLedger(replies map[haven.HostID]PromiseReply) bool {
	for _, r := range replies {
		if r.Ledger {
			return true
		}
	}
	return false
}

// dropPromises forgets what was granted in a round that is over.
func dropPromises(replies map[haven.HostID]PromiseReply) {
	maps.DeleteFunc(replies, func(_ haven.HostID, r PromiseReply) bool { return !r.Ledger })
}

func (n *Node) ledgerSeen() string {
	if n.cfg.LedgerSeen == nil {
		return ""
	}
	return n.cfg.LedgerSeen()
}

// bootstrapStep decides and carries out one step.
func (n *Node) bootstrapStep(ctx context.Context, b Bootstrap, replies map[haven.HostID]PromiseReply) BootstrapPlan {
	held, _ := n.promises.Held()
	view := BootstrapView{
		Self: n.id, Address: n.cfg.Address, Members: b.Members, Expect: b.Expect, Live: b.Live(),
		HasLedger: n.HasLedger(), LedgerSeen: n.ledgerSeen(), Held: held, Replies: replies,
	}
	plan := PlanBootstrap(view)
	ctx, cancel := context.WithTimeout(ctx, bootstrapTimeout)
	defer cancel()
	var err error
	switch plan.Step {
	case BootstrapDone:
	case BootstrapWait:
		dropPromises(replies)
		if held != (Promise{}) && held.Proposer != n.id {
			err = n.askWithdrawn(ctx, b.Peers, held)
		}
	case BootstrapPropose:
		err = n.promises.propose(ctx)
	case BootstrapWithdraw:
		dropPromises(replies)
		err = n.promises.withdraw(ctx)
	case BootstrapAsk:
		n.askPromises(ctx, b, held, plan.Ask, replies)
	case BootstrapBegin:
		err = n.begin(ctx, held, plan.Voters)
	}
	if err != nil {
		plan.Reason = cmp.Or(plan.Reason, "failed") + ": " + err.Error()
	}
	return plan
}

// askPromises asks all hosts at once and keeps what was answered in time.
func (n *Node) askPromises(ctx context.Context, b Bootstrap, held Promise, hosts []haven.HostID, replies map[haven.HostID]PromiseReply) {
	req := PromiseRequest{Cluster: n.cfg.Cluster, Members: b.Members, Proposer: n.id, Round: held.Round}
	type answer struct {
		host  haven.HostID
		reply PromiseReply
		err   error
	}
	answers := make(chan answer, len(hosts))
	for _, h := range hosts {
		go func() {
			reply, err := b.Peers.RequestPromise(ctx, h, req)
			answers <- answer{h, reply, err}
		}()
	}
	for range hosts {
		a := <-answers // Each ends with ctx.
		if a.err != nil {
			n.cfg.Log.Debug("promise not answered", "host", a.host, "err", a.err)
			delete(replies, a.host)
			continue
		}
		replies[a.host] = a.reply
	}
}

// askWithdrawn frees this server when the proposer took its round back.
func (n *Node) askWithdrawn(ctx context.Context, peers BootstrapPeers, held Promise) error {
	gone, err := peers.ProposalWithdrawn(ctx, held.Proposer.Host(), held)
	if err != nil {
		return fmt.Errorf("ask host %s: %w", held.Proposer.Host(), err)
	}
	if !gone {
		return nil
	}
	return n.promises.release(ctx, held)
}

var errRoundOver = errors.New("the round was taken back")

// begin writes the first entry of the log. From here on there is a ledger,
// and this server alone can be its first leader.
func (n *Node) begin(ctx context.Context, held Promise, voters []Server) error {
	var conf raft.Configuration
	for _, s := range voters {
		conf.Servers = append(conf.Servers, raft.Server{
			Suffrage: raft.Voter, ID: raft.ServerID(s.ID), Address: raft.ServerAddress(joinAddress(s.ID, s.Address)),
		})
	}
	n.cfg.Log.Info("a new cluster is begun", "voters", len(voters), "round", held.Round)
	err := n.promises.inTurn(ctx, func(rec promiseRecord) (func() error, error) {
		if rec.Held == nil || *rec.Held != held || held.Proposer != n.id {
			return nil, errRoundOver
		}
		return func() error { return n.raft.BootstrapCluster(conf).Error() }, nil
	})
	if err == nil || n.HasLedger() {
		return nil
	}
	if !errors.Is(err, errRoundOver) && !errors.Is(err, haven.ErrUnavailable) {
		// It was cut off between its two writes, perhaps: that is mended when
		// the log is opened.
		n.fail(fmt.Errorf("begin cluster: %w", err))
	}
	return fmt.Errorf("begin cluster: %w", err)
}

package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/isolation"
	"github.com/haven-ha/haven/internal/ledger"
)

// Echo says whether anything on this host's own network answers.
type Echo interface {
	// Ping asks an address once, until the context ends: Yes when it answered, No
	// when it did not, Unknown when it could not be asked. The words are for people.
	Ping(ctx context.Context, addr netip.Addr) (haven.Tri, string)
	// Gateways are those of the default routes.
	Gateways() ([]netip.Addr, error)
}

// The pace of self-knowledge.
const (
	isolationEvery = 500 * time.Millisecond
	pingEvery      = time.Second
	pingTimeout    = time.Second
	// gatewaysEvery is how often the routes are read. The last gateways are
	// remembered: with a link its routes go too.
	gatewaysEvery = 30 * time.Second
	maxAddresses  = 8
	// quorumPatience is how long an agent may know no master before the side that it
	// is on counts as one without quorum: elections take a second or two.
	quorumPatience = 10 * time.Second
)

// selfView is what an agent knows about itself at one moment.
type selfView struct {
	isolation.Output
	reached, hosts int
	// noQuorum is since when this agent has known no master although it sees half
	// of the hosts or more; zero when that is not so.
	noQuorum time.Time
	votes    string // how many voters it sees, for people
}

// isolationLoop keeps up what this agent knows about itself, until ctx ends.
func (a *Agent) isolationLoop(ctx context.Context) {
	w := selfWatch{a: a, pings: make(chan isolation.Ping, 2*maxAddresses), begun: map[string]time.Time{}, busy: map[string]bool{}}
	tick := time.NewTicker(isolationEvery)
	defer tick.Stop()
	for {
		w.look(ctx, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// selfWatch is the loop's own memory.
type selfWatch struct {
	a       *Agent
	machine isolation.Machine
	pings   chan isolation.Ping // room for more than can be under way

	gateways []netip.Addr
	readAt   time.Time
	begun    map[string]time.Time // of each address's last ping
	busy     map[string]bool

	founded    bool      // there is a cluster: a master or a ledger was known
	masterless time.Time // since when no master is known
	last       selfView
}

func (w *selfWatch) look(ctx context.Context, now time.Time) {
	in := w.input(now)
	v := selfView{Output: w.machine.Step(now, in)}
	var reached map[haven.HostID]bool
	reached, v.hosts = w.a.reach()
	v.reached = len(reached)
	w.quorum(now, &v, reached)
	w.tell(&v)
	w.last = v
	w.a.self.Store(&v)
	if v.Ask {
		w.ask(ctx, now, in.Addresses)
	}
}

func (w *selfWatch) input(now time.Time) isolation.Input {
	a := w.a
	since := now.Add(-a.connectedFor())
	in := isolation.Input{Majority: a.majority(), Gossip: !a.cluster.Health().Alone}
	ack := a.ev.lastAck()
	in.Direct = ack.from != "" && ack.from != a.d.Host && ack.at.After(since) ||
		slices.ContainsFunc(a.ev.connected(since), func(id haven.HostID) bool { return id != a.d.Host }) ||
		slices.ContainsFunc(a.ev.answered(a.d.Host, a.at(since)), func(id haven.HostID) bool { return id != a.d.Host })
	for _, addr := range w.addresses(now) {
		in.Addresses = append(in.Addresses, addr.String())
	}
	if a.d.Echo == nil {
		in.Unusable = "this agent has no means to"
	}
	for {
		select {
		case p := <-w.pings:
			w.busy[p.Address] = false
			in.Pings = append(in.Pings, p)
			continue
		default:
		}
		return in
	}
}

// addresses are those of the configuration, or the gateways.
func (w *selfWatch) addresses(now time.Time) []netip.Addr {
	if given := w.a.cfg.Detection.IsolationAddresses; len(given) > 0 || w.a.d.Echo == nil {
		return given
	}
	if w.readAt.IsZero() || now.Sub(w.readAt) >= gatewaysEvery {
		w.readAt = now
		found, err := w.a.d.Echo.Gateways()
		if err != nil {
			w.a.log.Log(context.Background(), w.a.quiet.level("gateways"), "gateways could not be found", "error", err)
		}
		if len(found) > 0 {
			w.gateways = found[:min(len(found), maxAddresses)]
		}
	}
	return w.gateways
}

// ask pings every address that is due and not being asked already.
func (w *selfWatch) ask(ctx context.Context, now time.Time, addresses []string) {
	for _, text := range addresses {
		addr, err := netip.ParseAddr(text)
		if err != nil || w.busy[text] || now.Sub(w.begun[text]) < pingEvery {
			continue
		}
		w.busy[text], w.begun[text] = true, now
		w.a.owned.Go(func() {
			limited, cancel := context.WithTimeout(ctx, pingTimeout)
			defer cancel()
			p := isolation.Ping{Address: text, Started: time.Now()}
			p.Result, p.Why = w.a.d.Echo.Ping(limited, addr)
			p.Ended = time.Now()
			select {
			case w.pings <- p:
			case <-ctx.Done():
			}
		})
	}
}

// quorum notes how long a side with half of the hosts has been without a master.
// A host that does not vote has no ledger of its own, and alarms all the same.
func (w *selfWatch) quorum(now time.Time, v *selfView, reached map[haven.HostID]bool) {
	_, known := w.a.master()
	w.founded = w.founded || known || w.a.ledger.Generation() > 0
	if known || !w.founded {
		w.masterless = time.Time{}
		return
	}
	if w.masterless.IsZero() {
		w.masterless = now
	}
	if now.Sub(w.masterless) < quorumPatience || 2*v.reached < v.hosts {
		return
	}
	v.noQuorum = w.masterless
	voters := w.a.voters()
	seen := 0
	for _, host := range voters {
		if reached[host] {
			seen++
		}
	}
	v.votes = fmt.Sprintf("%d of %d voters", seen, len(voters))
}

// voters are the hosts that vote: by the replicated log, or, where that is not
// kept, by what they last told in gossip.
func (a *Agent) voters() (hosts []haven.HostID) {
	for _, s := range a.election.Status().Servers {
		if s.Voter {
			hosts = append(hosts, s.Host)
		}
	}
	if len(hosts) > 0 {
		return hosts
	}
	for _, m := range a.cluster.Members() {
		if m.Meta.Voter && !m.Self {
			hosts = append(hosts, m.Host)
		}
	}
	return hosts
}

// tell logs what changed, and notifies people of it.
func (w *selfWatch) tell(v *selfView) {
	w.a.notifySelf(time.Now(), v, &w.last)
	log := w.a.log.With("reached", v.reached, "hosts", v.hosts)
	if v.State != w.last.State && (w.last.State != "" || v.State != isolation.Connected) {
		switch v.State {
		case isolation.Connected:
			log.Info("this host is not isolated", "was", w.last.State, "why", v.Why)
		case isolation.Alone:
			log.Info("this host sees nobody", "why", v.Why)
		case isolation.Partitioned:
			log.Warn("this host is cut off from all others, but its network works", "why", v.Why)
		case isolation.Isolated:
			log.Warn("this host is isolated; its VMs keep running", "why", v.Why)
		}
	}
	switch {
	case !v.noQuorum.IsZero() && w.last.noQuorum.IsZero():
		log.Warn("no quorum on this side, though it has half of the hosts or more: nothing is fenced or restarted here", "voters", v.votes)
	case v.noQuorum.IsZero() && !w.last.noQuorum.IsZero():
		log.Info("there is a quorum again, or less than half of the hosts are on this side")
	}
}

// saysIsolated says whether this agent holds itself for isolated.
func (a *Agent) saysIsolated() bool {
	v := a.self.Load()
	return v != nil && v.State == isolation.Isolated
}

// viewSelf is what this agent knows about itself, for people.
func (a *Agent) viewSelf() client.SelfView {
	v := a.self.Load()
	if v == nil {
		return client.SelfView{Watchdog: a.viewWatchdog()}
	}
	return client.SelfView{
		State: string(v.State), Since: v.Since.UTC().Round(time.Second), Why: v.Why,
		Reached: v.reached, Hosts: v.hosts, Majority: haven.TriOf(2*v.reached > v.hosts),
		Watchdog: a.viewWatchdog(),
	}
}

// selfHold is this agent's own alarm, which needs no master: the larger part of
// the hosts may be on a side that cannot act.
func (a *Agent) selfHold() (haven.Hold, bool) {
	v := a.self.Load()
	if v == nil || v.noQuorum.IsZero() {
		return haven.Hold{}, false
	}
	return haven.Hold{
		Reason: haven.HoldNoQuorum, Since: v.noQuorum.UTC().Round(time.Second),
		Detail: fmt.Sprintf("no quorum: %s sees %d of %d hosts and %s, and no master", a.d.Host, v.reached, v.hosts, v.votes),
	}, true
}

// selfSentence is the worst that this agent knows about itself; empty when there
// is nothing to say.
func (a *Agent) selfSentence(v client.SelfView) string {
	switch isolation.State(v.State) {
	case isolation.Isolated:
		return fmt.Sprintf("This host, %s, has been isolated since %s: %s. Its VMs keep running.", a.d.Host, v.Since.Format(time.RFC3339), v.Why)
	case isolation.Partitioned:
		return fmt.Sprintf("This host, %s, has been cut off from all others since %s: %s. Its VMs keep running.", a.d.Host, v.Since.Format(time.RFC3339), v.Why)
	case isolation.Connected, isolation.Alone:
	}
	return watchdogSentence(a.d.Host, v.Watchdog)
}

// reach is whom this agent reaches, and of how many hosts. Those that are proved
// dead are on nobody's side. A host is reached when its agent reports or is
// alive in gossip, or when it answered a probe from here: for the trust in one's
// own network it is enough that some process on the host answers.
func (a *Agent) reach() (reached map[haven.HostID]bool, hosts int) {
	now := time.Now()
	reached = map[haven.HostID]bool{a.d.Host: true}
	for _, id := range a.ev.connected(now.Add(-2 * a.cfg.Detection.SuspectAfter)) {
		reached[id] = true
	}
	// A master gets reports; a member that gossip still holds for alive, and
	// that stopped reporting, is not reached.
	if since, master := a.masterFor(); !master || since <= 2*a.cfg.Detection.SuspectAfter {
		for _, m := range a.cluster.Members() {
			if m.Trusted() {
				reached[m.Host] = true
			}
		}
	}
	for _, id := range a.ev.answered(a.d.Host, a.at(now)-a.cfg.Detection.Silence) {
		reached[id] = true
	}
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		for _, id := range a.cfg.HostIDs() {
			if h := s.Hosts[id]; h != nil && h.ProvedDead() {
				delete(reached, id)
			} else {
				hosts++
			}
		}
	})
	return reached, hosts
}

// majority says whether this agent reaches more than half of the hosts.
func (a *Agent) majority() haven.Tri {
	reached, hosts := a.reach()
	return haven.TriOf(2*len(reached) > hosts)
}

package election

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/haven-ha/haven"
)

// Member is a host as gossip shows it.
type Member struct {
	Host    haven.HostID
	Server  ServerID // its Raft server, as it says itself
	Address string   // of that server, ip:port
	Alive   bool
}

// Keeper says where the leader learns who could vote.
type Keeper struct {
	Configured func() []haven.HostID // all configured hosts; it must not block
	Members    func() []Member       // it must not block
	// Places says where configured hosts stand; nil for nowhere in particular.
	Places func() map[haven.HostID]Place
	Policy VoterPolicy // the zero value is DefaultVoterPolicy
	// OnChange, if set, is told of each change and its outcome.
	OnChange func(change Change, err error)
}

const (
	keeperEvery   = 2 * time.Second
	changeTimeout = 5 * time.Second
)

// RunKeeper keeps the set of voters in shape while this server leads, until
// ctx ends.
func (n *Node) RunKeeper(ctx context.Context, k Keeper) {
	if k.Policy == (VoterPolicy{}) {
		k.Policy = DefaultVoterPolicy()
	}
	tick := time.NewTicker(keeperEvery)
	defer tick.Stop()
	var t memberTracker
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		lead := n.Leader()
		conf := n.voterConfig()
		if !t.observe(now, lead, k.Members(), conf.Servers) {
			continue
		}
		health := t.health(k.Configured(), n.contactsOf(lead.Term))
		if k.Places != nil {
			health.Places = k.Places()
		}
		change, ok := PlanVoters(now, k.Policy, conf, health)
		if !ok {
			continue
		}
		err := n.change(ctx, change, conf.Index)
		n.cfg.Log.Info("voters change", "kind", change.Kind, "server", change.Server.ID, "reason", change.Reason, "err", err)
		if change.Kind == RemoveVoter {
			t.setBack(now, change.Server.ID.Host())
		}
		if k.OnChange != nil {
			k.OnChange(change, err)
		}
	}
}

// memberTracker remembers since when hosts have been alive, as one leader saw
// it in one term.
type memberTracker struct {
	term  uint64
	since time.Time
	hosts map[haven.HostID]HostHealth
	// servers is since when each server has been in the configuration.
	servers map[ServerID]time.Time
}

// observe takes in hosts and configuration as they are now. It returns false when this
// server does not lead; all is forgotten then.
func (t *memberTracker) observe(now time.Time, lead Leadership, members []Member, servers []Server) bool {
	if !lead.Self {
		*t = memberTracker{}
		return false
	}
	if t.term != lead.Term {
		*t = memberTracker{term: lead.Term, since: now}
	}
	seen := make(map[haven.HostID]HostHealth, len(members))
	for _, m := range members {
		h := HostHealth{Server: m.Server, Address: m.Address}
		if m.Alive {
			h.Since = now
			if old := t.hosts[m.Host]; old.Server == m.Server && !old.Since.IsZero() {
				h.Since = old.Since
			}
		}
		seen[m.Host] = h
	}
	t.hosts = seen
	since := make(map[ServerID]time.Time, len(servers))
	for _, s := range servers {
		since[s.ID] = now
		if old, ok := t.servers[s.ID]; ok {
			since[s.ID] = old
		}
	}
	t.servers = since
	return true
}

// setBack puts a host that was just removed behind all others, so that one
// that never gets ready does not keep better ones waiting.
func (t *memberTracker) setBack(now time.Time, host haven.HostID) {
	if h, ok := t.hosts[host]; ok && !h.Since.IsZero() {
		h.Since = now
		t.hosts[host] = h
	}
}

func (t *memberTracker) health(configured []haven.HostID, contacts map[ServerID]ServerContact) Health {
	return Health{LeaderSince: t.since, Configured: configured, Hosts: t.hosts, Contacts: contacts, MemberSince: t.servers}
}

// voterConfig is the newest configuration. It is settled when it is the
// committed one, whose index is known.
func (n *Node) voterConfig() VoterConfig {
	latest := n.servers()
	index, committed := n.conf.get()
	return VoterConfig{Self: n.id, Index: index, Settled: index > 0 && slices.Equal(latest, committed), Servers: latest}
}

func (n *Node) contactsOf(term uint64) map[ServerID]ServerContact {
	members := map[ServerID]bool{}
	out := map[ServerID]ServerContact{}
	for _, s := range n.servers() {
		members[s.ID] = true
		if c, ok := n.contacts.get(s.ID, term); ok {
			out[s.ID] = ServerContact{At: c.at, CaughtUp: c.caughtUp}
		}
	}
	n.contacts.forget(func(id ServerID) bool { return members[id] })
	return out
}

// change carries out one change, if the configuration is still the one that
// it was planned for.
func (n *Node) change(ctx context.Context, c Change, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	id := raft.ServerID(c.Server.ID)
	addr := raft.ServerAddress(joinAddress(c.Server.ID, c.Server.Address))
	return n.calls.do(ctx, func() error {
		switch c.Kind {
		// To raft, a non-voter that is a member already is one with a new address.
		// Whether it votes stays as it is.
		case AddNonvoter, SetAddress:
			return n.raft.AddNonvoter(id, addr, index, changeTimeout).Error()
		case AddVoter:
			return n.raft.AddVoter(id, addr, index, changeTimeout).Error()
		case RemoveVoter:
			return n.raft.RemoveServer(id, index, changeTimeout).Error()
		}
		return fmt.Errorf("unknown change %q", c.Kind)
	})
}

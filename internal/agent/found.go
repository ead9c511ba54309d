package agent

import (
	"context"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/cluster"
	"github.com/haven-ha/haven/election"
	"github.com/haven-ha/haven/internal/client"
)

// bootstrap takes part in beginning the cluster, until there is a ledger.
func (a *Agent) bootstrap(ctx context.Context) error {
	return a.election.RunBootstrap(ctx, election.Bootstrap{
		Members: a.cfg.HostIDs(), Expect: a.cfg.BootstrapExpect, Live: a.liveHosts, Peers: founders{a},
	})
}

// liveHosts are the configured hosts that gossip holds for alive.
func (a *Agent) liveHosts() []haven.HostID {
	ids := []haven.HostID{a.d.Host}
	for _, m := range a.cluster.Members() {
		if m.Trusted() && !m.Self {
			ids = append(ids, m.Host)
		}
	}
	return ids
}

// keepVoters replaces dead voters while this agent leads.
func (a *Agent) keepVoters(ctx context.Context) {
	a.election.RunKeeper(ctx, election.Keeper{Configured: a.cfg.HostIDs, Members: a.raftServers, Places: a.places})
}

// places says where the configured hosts stand, for the choice of voters.
func (a *Agent) places() map[haven.HostID]election.Place {
	all := map[haven.HostID]election.Place{}
	for _, id := range a.cfg.HostIDs() {
		host, _ := a.cfg.Host(id)
		all[id] = election.Place{Zone: host.Zone, Witness: host.Role == haven.RoleWitness}
	}
	return all
}

// raftServers are the configured hosts' Raft servers, as gossip has them.
func (a *Agent) raftServers() []election.Member {
	var all []election.Member
	for _, m := range a.cluster.Members() {
		addr, ok := a.apiAddress(m.Host)
		if !ok || m.Stranger != "" || m.Meta.Server == "" {
			continue
		}
		all = append(all, election.Member{
			Host: m.Host, Server: election.ServerID(m.Meta.Server), Address: addr, Alive: m.Self || m.Trusted(),
		})
	}
	return all
}

// founders reaches the other hosts' promises.
type founders struct{ a *Agent }

func (f founders) RequestPromise(ctx context.Context, host haven.HostID, req election.PromiseRequest) (election.PromiseReply, error) {
	var reply election.PromiseReply
	err := f.a.client.Post(ctx, host, client.PathPromise, req, &reply)
	return reply, err
}

func (f founders) ProposalWithdrawn(ctx context.Context, host haven.HostID, p election.Promise) (bool, error) {
	var withdrawn bool
	err := f.a.client.Post(ctx, host, client.PathWithdrawn, p, &withdrawn)
	return withdrawn, err
}

// gossipEvery is how often what gossip tells of this agent is brought up to
// date. The gossip layer announces changes only. A change of master is told at
// once; the rest, such as who votes, is a hint that may wait.
const gossipEvery = time.Second

func (a *Agent) tellGossip(ctx context.Context) {
	tick := time.NewTicker(gossipEvery)
	defer tick.Stop()
	tell := func() {
		if err := a.cluster.SetMeta(a.meta()); err != nil && a.leaving() == haven.LeaveNone {
			a.log.Log(ctx, a.quiet.level("meta"), "gossip does not take what is to be told", "error", err)
		}
	}
	tell()
	events := a.cluster.Events()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			tell()
		case l := <-a.election.Changes():
			a.log.Info("leadership changed", "master", l.Host, "raft_term", l.Term)
			tell()
			select {
			case a.newMaster <- struct{}{}:
			default:
			}
			a.kick()
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			a.log.Info("gossip", "event", e.Kind, "host", e.Member.Host, "detail", e.Detail)
			a.kick()
		}
	}
}

// meta is what gossip tells of this agent.
func (a *Agent) meta() cluster.Meta {
	self, _ := a.cfg.Host(a.d.Host)
	m := cluster.Meta{Boot: a.d.Boot, APIPort: uint16(a.cfg.API.Port), Role: self.Role}
	if a.election == nil {
		return m // not open yet
	}
	m.Server, m.Voter = string(a.election.ServerID()), a.votes()
	m.Generation = a.ledger.Generation()
	m.Ledger = m.Generation > 0 || a.election.HasLedger()
	if lead := a.election.Leader(); lead.Host != "" {
		m.Master, m.MasterTerm = lead.Host, haven.Term{Generation: m.Generation, Term: lead.Term}
	}
	return m
}

// votes says whether this agent believes to be a voter.
func (a *Agent) votes() bool {
	st := a.election.Status()
	for _, s := range st.Servers {
		if s.ID == st.Server {
			return s.Voter
		}
	}
	return false
}

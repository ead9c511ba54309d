package election

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/haven-ha/haven"
)

// VoterPolicy rules how the leader chooses voters.
type VoterPolicy struct {
	Max    int           // most voters, odd: 5
	Stable time.Duration // how long a host must have been alive to be taken in: 10 s
	// DeadAfter is how long a voter may be silent to the leader before it is
	// replaced: 5 s. A short stall must not cost a change of voters.
	DeadAfter time.Duration
	// StuckAfter is how long a voter may answer without taking new entries
	// before it counts as dead too: 30 s. Its disk hangs.
	StuckAfter time.Duration
	// StageFor is how long a server may take to get the log before another
	// one gets the chance: 5 min.
	StageFor time.Duration
	// ShrinkAfter is how long a leader must have led before it takes the vote
	// from a living server to make the number odd: 30 s.
	ShrinkAfter time.Duration
	// ImproveAfter is how long a leader must have led, and a host must have been
	// well, before it takes the place of a voter that is well too: 5 min.
	ImproveAfter time.Duration
}

// DefaultVoterPolicy gives the numbers above.
func DefaultVoterPolicy() VoterPolicy {
	return VoterPolicy{
		Max: MaxVoters, Stable: 10 * time.Second, DeadAfter: 5 * time.Second,
		StuckAfter: 30 * time.Second, StageFor: 5 * time.Minute, ShrinkAfter: 30 * time.Second,
		ImproveAfter: 5 * time.Minute,
	}
}

// VoterConfig is the Raft configuration as the leader has it.
type VoterConfig struct {
	Self    ServerID // the leader
	Index   uint64   // of the configuration, for comparing before a change
	Settled bool     // it is committed
	Servers []Server
}

// HostHealth is what gossip and reports say about a host.
type HostHealth struct {
	Server  ServerID // its Raft server now; empty when not known
	Address string   // of that server, ip:port
	// Since is from when on the host has been alive with this server without
	// a break, as this leader saw it; zero when it is not alive.
	Since time.Time
}

// ServerContact is what the leader knows of a member through Raft.
type ServerContact struct {
	At       time.Time // its newest acknowledgement was asked for then
	CaughtUp time.Time // it last had everything committed then
}

// Health is what the leader knows about hosts and members.
type Health struct {
	LeaderSince time.Time
	Configured  []haven.HostID
	Places      map[haven.HostID]Place // of configured hosts; the zero Place for those that are not in it
	Hosts       map[haven.HostID]HostHealth
	Contacts    map[ServerID]ServerContact
	// MemberSince is since when this leader has had a server in its
	// configuration.
	MemberSince map[ServerID]time.Time
}

// ChangeKind is a kind of change of the configuration.
type ChangeKind string

// The kinds of change.
const (
	AddNonvoter ChangeKind = "add-nonvoter" // send it the log, so that it can vote soon
	AddVoter    ChangeKind = "add-voter"
	RemoveVoter ChangeKind = "remove" // voter or not
	SetAddress  ChangeKind = "set-address"
)

// Change is one change of the configuration.
type Change struct {
	Kind   ChangeKind
	Server Server
	Reason string
}

// PlanVoters decides the next change of the Raft configuration, if one is
// needed. It is pure, and the leader carries out one change at a time.
//
//   - What stays after a removal must hold a majority that answered just now.
//   - A server whose host came back with another disk, or is not configured
//     any more, goes first.
//   - A dead voter is replaced when there is a living host to take its place,
//     which has the whole log and the vote before the dead one is removed:
//     until then the dead one's return still counts. Without a successor it
//     stays: fewer voters are no gain then.
//   - The number of voters is odd when all is well, at most Max, and never
//     grows to an even number to stay there. It is one more than Max between
//     two changes that replace a voter.
//   - Witnesses come first, then hosts of zones with few voters. A voter that
//     is well gives way only to a witness, or to end a zone's majority.
func PlanVoters(now time.Time, p VoterPolicy, c VoterConfig, h Health) (Change, bool) {
	if !c.Settled {
		return Change{}, false
	}
	m := newVoterMap(now, p, c, h)
	for _, decide := range []func() (Change, bool){m.dropForeign, m.readdress, m.dropNonvoter, m.dropVoter, m.promote, m.enlist, m.shrink, m.improve} {
		if change, ok := decide(); ok {
			return change, true
		}
	}
	return Change{}, false
}

// voterMap is the configuration sorted out.
type voterMap struct {
	now    time.Time
	policy VoterPolicy
	c      VoterConfig
	h      Health
	voters []Server
	dead   []Server // voters; longest dead first
	staged []Server // non-voters
	fresh  []Server // healthy hosts outside; best first
	target int      // number of voters to reach
	// votesIn counts the living voters of each zone.
	votesIn map[string]int
}

func newVoterMap(now time.Time, p VoterPolicy, c VoterConfig, h Health) *voterMap {
	m := &voterMap{now: now, policy: p, c: c, h: h, target: oddFloor(min(p.Max, max(1, len(h.Configured))))}
	taken := map[haven.HostID]bool{}
	for _, s := range c.Servers {
		taken[s.ID.Host()] = true
		switch {
		case !s.Voter:
			m.staged = append(m.staged, s)
			continue
		case !m.alive(s):
			m.dead = append(m.dead, s)
		}
		m.voters = append(m.voters, s)
	}
	byContact := func(a, b Server) int {
		return cmp.Or(m.lastContact(a).Compare(m.lastContact(b)), cmp.Compare(a.ID, b.ID))
	}
	slices.SortFunc(m.dead, byContact)
	m.countVotes()
	for _, host := range h.Configured {
		if hh := h.Hosts[host]; !taken[host] && m.healthy(host) {
			m.fresh = append(m.fresh, Server{ID: hh.Server, Address: hh.Address})
		}
	}
	slices.SortFunc(m.fresh, m.prefer)
	return m
}

// healthy says whether a host may be taken in.
func (m *voterMap) healthy(host haven.HostID) bool {
	hh := m.h.Hosts[host]
	return hh.Server != "" && hh.Server.Host() == host && hh.Address != "" &&
		!hh.Since.IsZero() && m.now.Sub(hh.Since) >= m.policy.Stable
}

// since is when this leader began to look at a member. It gets the benefit of
// the doubt from there on.
func (m *voterMap) since(s Server) time.Time {
	return later(m.h.LeaderSince, m.h.MemberSince[s.ID])
}

// lastContact is when a member was last heard of.
func (m *voterMap) lastContact(s Server) time.Time {
	return later(m.h.Contacts[s.ID].At, m.since(s))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (m *voterMap) alive(s Server) bool {
	if s.ID == m.c.Self {
		return true
	}
	patience := m.policy.StuckAfter
	if !s.Voter {
		patience = m.policy.StageFor
	}
	caughtUp := later(m.h.Contacts[s.ID].CaughtUp, m.since(s))
	return m.now.Sub(m.lastContact(s)) <= m.policy.DeadAfter && m.now.Sub(caughtUp) <= patience
}

// foreign says whether a server is not the one that its host has now.
func (m *voterMap) foreign(s Server) (string, bool) {
	if s.ID == m.c.Self {
		return "", false
	}
	host := s.ID.Host()
	if !slices.Contains(m.h.Configured, host) {
		return fmt.Sprintf("host %s is not configured", host), true
	}
	if hh := m.h.Hosts[host]; hh.Server != "" && hh.Server != s.ID {
		return fmt.Sprintf("host %s came back with another disk, as %s", host, hh.Server), true
	}
	return "", false
}

// freshContact is how new a voter's last answer must be for it to count as
// there when another is removed. It is shorter than DeadAfter: one that fell
// silent just now is not dead yet, and must not be relied upon either.
const freshContact = 2 * time.Second

// safeWithout says whether the voters that stay have a majority that answered
// just now.
func (m *voterMap) safeWithout(s Server) bool {
	left, here := 0, 0
	for _, v := range m.voters {
		if v.ID == s.ID {
			continue
		}
		left++
		if v.ID == m.c.Self || m.now.Sub(m.h.Contacts[v.ID].At) <= freshContact {
			here++
		}
	}
	return left > 0 && here >= left/2+1
}

func (m *voterMap) remove(s Server, reason string) (Change, bool) {
	if s.Voter && (s.ID == m.c.Self || !m.safeWithout(s)) {
		return Change{}, false
	}
	return Change{Kind: RemoveVoter, Server: s, Reason: reason}, true
}

func (m *voterMap) dropForeign() (Change, bool) {
	for _, s := range m.c.Servers {
		if why, ok := m.foreign(s); ok {
			if change, ok := m.remove(s, why); ok {
				return change, true
			}
		}
	}
	return Change{}, false
}

// needed says whether there is a vote for one of so many candidates.
func (m *voterMap) needed(candidates int) bool { return len(m.dead) > 0 || m.room(candidates) }

func (m *voterMap) dropNonvoter() (Change, bool) {
	for i, s := range m.staged {
		switch {
		case !m.alive(s):
			return m.remove(s, "it fell silent, or took too long to get the log")
		case i > 0 || !m.needed(1+len(m.fresh)) && !m.improves(s):
			return m.remove(s, "no vote is free for it")
		}
	}
	return Change{}, false
}

// ready is the staged server that has the whole log, if any.
func (m *voterMap) ready() (Server, bool) {
	for _, s := range m.staged {
		caughtUp := m.h.Contacts[s.ID].CaughtUp
		if m.alive(s) && m.healthy(s.ID.Host()) && m.now.Sub(caughtUp) <= m.policy.DeadAfter {
			return s, true
		}
	}
	return Server{}, false
}

// dropVoter removes a dead voter: when its successor votes, when the number
// of voters becomes odd by it, or when there are too many anyway.
func (m *voterMap) dropVoter() (Change, bool) {
	n := len(m.voters)
	if len(m.dead) > 0 && (n%2 == 0 || n > m.target) {
		s := m.dead[0]
		silent := m.now.Sub(m.lastContact(s)).Round(time.Second)
		return m.remove(s, fmt.Sprintf("silent or stuck, last heard of %s ago", silent))
	}
	return Change{}, false
}

// room says whether the number of voters may grow by one: for the successor of
// a dead one, to an odd number, or on to one, because another host stands ready
// behind.
func (m *voterMap) room(candidates int) bool {
	n := len(m.voters)
	return n <= m.target && len(m.dead) > 0 || n < m.target && (n%2 == 0 || candidates >= 2)
}

// safeWith says whether the voters and one more, who has the whole log, have a
// majority that answered just now.
func (m *voterMap) safeWith(s Server) bool {
	here := 0
	for _, v := range append(slices.Clone(m.voters), s) {
		if v.ID == m.c.Self || m.now.Sub(m.h.Contacts[v.ID].At) <= freshContact {
			here++
		}
	}
	return here >= (len(m.voters)+1)/2+1
}

func (m *voterMap) promote() (Change, bool) {
	s, ok := m.ready()
	if !ok || !m.safeWith(s) || !m.room(1+len(m.fresh)) && !m.improves(s) {
		return Change{}, false
	}
	s.Voter = true
	return Change{Kind: AddVoter, Server: s, Reason: "it has the whole log"}, true
}

func (m *voterMap) enlist() (Change, bool) {
	if len(m.staged) > 0 || len(m.fresh) == 0 || !m.needed(len(m.fresh)) {
		return Change{}, false
	}
	s := m.fresh[0]
	reason := fmt.Sprintf("%d of %d voters", len(m.voters), m.target)
	if len(m.dead) > 0 {
		reason = fmt.Sprintf("to replace %s", m.dead[0].ID)
	}
	return Change{Kind: AddNonvoter, Server: s, Reason: reason}, true
}

// shrink takes the vote from a living server when there are too many, or an
// even number with nobody to add.
func (m *voterMap) shrink() (Change, bool) {
	n := len(m.voters)
	tooMany := n > m.target
	lonely := n%2 == 0 && len(m.fresh) == 0 && len(m.staged) == 0
	if len(m.dead) > 0 || !tooMany && !lonely || m.now.Sub(m.h.LeaderSince) < m.policy.ShrinkAfter {
		return Change{}, false
	}
	last, ok := m.leastMissed(m.voters)
	if !ok {
		return Change{}, false
	}
	return m.remove(last, fmt.Sprintf("%d voters are one too many", n))
}

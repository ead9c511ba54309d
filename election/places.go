package election

import (
	"cmp"
	"slices"

	"github.com/haven-ha/haven"
)

// Place is where a host stands, as far as it matters to who votes.
type Place struct {
	Zone    string // what fails together; empty: the host alone
	Witness bool   // it only votes and observes
}

// standing is how good a set of voters is. A lower one is better.
type standing struct {
	hypervisors int // voters that are no witnesses
	captive     int // voters by which one zone holds a majority, and takes it along when it fails
	crowd       int // voters in the fullest zone
}

func (a standing) compare(b standing) int {
	return cmp.Or(cmp.Compare(a.hypervisors, b.hypervisors), cmp.Compare(a.captive, b.captive), cmp.Compare(a.crowd, b.crowd))
}

// betterBy says whether a is worth a change of voters that are all well. A fuller
// zone alone is not.
func (a standing) betterBy(b standing) bool {
	return cmp.Or(cmp.Compare(a.hypervisors, b.hypervisors), cmp.Compare(a.captive, b.captive)) < 0
}

// zone is what fails together with a host.
func (m *voterMap) zone(host haven.HostID) string {
	if z := m.h.Places[host].Zone; z != "" {
		return "zone " + z
	}
	return "host " + string(host)
}

// standingOf rates a set of voters.
func (m *voterMap) standingOf(set []Server) standing {
	var s standing
	zones := map[string]int{}
	for _, v := range set {
		host := v.ID.Host()
		if !m.h.Places[host].Witness {
			s.hypervisors++
		}
		zones[m.zone(host)]++
		s.crowd = max(s.crowd, zones[m.zone(host)])
	}
	if len(set) > 1 {
		s.captive = max(0, s.crowd-len(set)/2)
	}
	return s
}

// without returns a set of servers less one.
func without(set []Server, id ServerID) []Server {
	return slices.DeleteFunc(slices.Clone(set), func(s Server) bool { return s.ID == id })
}

// prefer orders candidates: witnesses first, then hosts in zones with the fewest
// living voters, then those that have been well for longest.
func (m *voterMap) prefer(a, b Server) int {
	ha, hb := a.ID.Host(), b.ID.Host()
	return cmp.Or(
		m.witnessFirst(ha, hb), cmp.Compare(m.votesIn[m.zone(ha)], m.votesIn[m.zone(hb)]),
		m.h.Hosts[ha].Since.Compare(m.h.Hosts[hb].Since), cmp.Compare(a.ID, b.ID))
}

func (m *voterMap) witnessFirst(a, b haven.HostID) int {
	wa, wb := m.h.Places[a].Witness, m.h.Places[b].Witness
	switch {
	case wa == wb:
		return 0
	case wa:
		return -1
	}
	return 1
}

// countVotes counts the living voters of each zone.
func (m *voterMap) countVotes() {
	m.votesIn = map[string]int{}
	for _, v := range m.voters {
		if !slices.ContainsFunc(m.dead, func(d Server) bool { return d.ID == v.ID }) {
			m.votesIn[m.zone(v.ID.Host())]++
		}
	}
}

// leastMissed is the voter, other than the leader, without whom the others stand
// best; of equals the last by name.
func (m *voterMap) leastMissed(set []Server) (Server, bool) {
	var worst Server
	for _, v := range set {
		if v.ID == m.c.Self {
			continue
		}
		by := -1
		if worst.ID != "" {
			by = cmp.Or(m.standingOf(without(set, v.ID)).compare(m.standingOf(without(set, worst.ID))), cmp.Compare(worst.ID, v.ID))
		}
		if by < 0 {
			worst = v
		}
	}
	return worst, worst.ID != ""
}

// improves says whether a server is worth to take the place of a voter that is
// well: it is a witness and that one is not, or it ends the majority of one
// zone. Both must have been so for long: what comes and goes is no gain.
func (m *voterMap) improves(s Server) bool {
	since := later(m.h.Hosts[s.ID.Host()].Since, m.h.LeaderSince)
	if len(m.dead) > 0 || len(m.voters) != m.target || since.IsZero() || m.now.Sub(since) < m.policy.ImproveAfter {
		return false
	}
	more := append(slices.Clone(m.voters), s)
	leaves, ok := m.leastMissed(more)
	if !ok || leaves.ID == s.ID {
		return false
	}
	was, then := m.standingOf(m.voters), m.standingOf(without(more, leaves.ID))
	if then.hypervisors == was.hypervisors && m.outside(s) < was.captive {
		return false // The zone keeps its majority, whoever changes places.
	}
	return then.betterBy(was)
}

// outside counts the hosts that could vote instead of hosts of the zone that
// holds a majority, the one that is about to included.
func (m *voterMap) outside(about Server) int {
	n := 0
	for _, s := range append(without(m.fresh, about.ID), about) {
		if 2*m.votesIn[m.zone(s.ID.Host())] <= len(m.voters) {
			n++
		}
	}
	return n
}

// improve sends the log to a host that would make the voters stand better.
func (m *voterMap) improve() (Change, bool) {
	if len(m.staged) > 0 {
		return Change{}, false
	}
	for _, s := range m.fresh {
		if m.improves(s) {
			return Change{Kind: AddNonvoter, Server: s, Reason: "it is a witness, or one zone holds a majority without it"}, true
		}
	}
	return Change{}, false
}

// readdress tells the configuration the new address of a server whose host came
// back with another one. It is the same server with the same disk.
func (m *voterMap) readdress() (Change, bool) {
	for _, s := range m.c.Servers {
		hh := m.h.Hosts[s.ID.Host()]
		if hh.Server == s.ID && !hh.Since.IsZero() && hh.Address != "" && hh.Address != s.Address {
			was := s.Address
			s.Address = hh.Address
			return Change{Kind: SetAddress, Server: s, Reason: "it moved from " + was}, true
		}
	}
	return Change{}, false
}

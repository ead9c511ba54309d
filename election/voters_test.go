package election

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
)

// voterWorld is a plain simulation of hosts, disks and a leader that runs
// PlanVoters every two seconds. It knows nothing of how PlanVoters works.
type voterWorld struct {
	t          *rapid.T
	now        time.Time
	configured []haven.HostID
	up         map[haven.HostID]bool
	life       map[haven.HostID]int // which disk the host has
	servers    []Server
	index      uint64
	added      map[ServerID]time.Time // since when it gets the log
	stuck      map[ServerID]bool      // its disk hangs: it answers and stays behind
	places     map[haven.HostID]Place

	leader   ServerID
	since    time.Time
	heard    map[ServerID]ServerContact
	members  memberTracker
	term     uint64
	log      []string
	lastMove time.Time
}

func newVoterWorld(t *rapid.T, hosts, voters int) *voterWorld {
	w := &voterWorld{
		t: t, now: time.Unix(1e9, 0), up: map[haven.HostID]bool{}, life: map[haven.HostID]int{}, index: 1,
		added: map[ServerID]time.Time{}, stuck: map[ServerID]bool{}, places: map[haven.HostID]Place{},
	}
	for i := range hosts {
		h := haven.HostID(fmt.Sprintf("h%d", i))
		w.configured = append(w.configured, h)
		w.up[h] = true
		if i < voters {
			w.servers = append(w.servers, Server{ID: w.current(h), Address: string(h) + ":1", Voter: true})
		}
	}
	return w
}

func (w *voterWorld) current(h haven.HostID) ServerID { return server(string(h), w.life[h]) }

// lives says whether the server's host is up with that very disk.
func (w *voterWorld) lives(id ServerID) bool { return w.up[id.Host()] && w.current(id.Host()) == id }

func (w *voterWorld) voters() (all, living []ServerID) {
	for _, s := range w.servers {
		if !s.Voter {
			continue
		}
		all = append(all, s.ID)
		if w.lives(s.ID) {
			living = append(living, s.ID)
		}
	}
	return all, living
}

func (w *voterWorld) hasQuorum() bool {
	all, living := w.voters()
	return len(living) > len(all)/2
}

// tick passes one second.
func (w *voterWorld) tick(n int) {
	w.now = w.now.Add(time.Second)
	if !w.hasQuorum() {
		w.leader = ""
		return
	}
	_, living := w.voters()
	if w.leader == "" || !slices.Contains(living, w.leader) {
		w.leader, w.since, w.heard = living[n%len(living)], w.now, map[ServerID]ServerContact{}
		w.term++
	}
	for _, s := range w.servers {
		if w.lives(s.ID) && s.ID != w.leader {
			c := ServerContact{At: w.now, CaughtUp: w.heard[s.ID].CaughtUp}
			if w.now.Sub(w.added[s.ID]) > 3*time.Second && !w.stuck[s.ID] {
				c.CaughtUp = w.now
			}
			w.heard[s.ID] = c
		}
	}
	if n%2 == 0 {
		w.plan()
	}
}

func (w *voterWorld) plan() {
	var members []Member
	for _, h := range w.configured {
		m := Member{Host: h, Alive: w.up[h]}
		if m.Alive {
			m.Server, m.Address = w.current(h), string(h)+":1"
		}
		members = append(members, m)
	}
	w.members.observe(w.now, Leadership{Self: true, Term: w.term}, members, w.servers)
	conf := VoterConfig{Self: w.leader, Index: w.index, Settled: true, Servers: slices.Clone(w.servers)}
	health := w.members.health(w.configured, w.heard)
	health.Places = w.places
	policy := DefaultVoterPolicy()
	policy.ImproveAfter = 2 * time.Minute
	change, ok := PlanVoters(w.now, policy, conf, health)
	if !ok {
		return
	}
	w.log = append(w.log, fmt.Sprintf("%s leader=%s %s %s: %s", w.now.Format("05"), w.leader, change.Kind, change.Server.ID, change.Reason))
	w.carryOut(change)
}

// carryOut changes the configuration as Raft would, and checks the promises.
func (w *voterWorld) carryOut(c Change) {
	i := slices.IndexFunc(w.servers, func(s Server) bool { return s.ID == c.Server.ID })
	w.index++
	w.lastMove = w.now
	switch c.Kind {
	case AddNonvoter:
		for _, s := range w.servers {
			if s.ID.Host() == c.Server.ID.Host() {
				w.fail("a host has two servers")
			}
		}
		w.servers = append(w.servers, Server{ID: c.Server.ID, Address: c.Server.Address})
		w.added[c.Server.ID] = w.now
	case AddVoter:
		if i < 0 || w.servers[i].Voter || w.heard[c.Server.ID].CaughtUp.IsZero() {
			w.fail("a voter that did not have the log before")
		}
		w.servers[i].Voter = true
	case SetAddress:
		w.fail("an address was changed, and no host has moved")
	case RemoveVoter:
		if i < 0 || c.Server.ID == w.leader {
			w.fail("a removal of the leader, or of nobody")
		}
		w.checkOrder(c.Server)
		w.servers = slices.Delete(w.servers, i, i+1)
		w.members.setBack(w.now, c.Server.ID.Host())
	}
	all, _ := w.voters()
	if len(all) > MaxVoters+1 || len(all) > MaxVoters && c.Kind != AddVoter {
		w.fail("more than five voters, and one for a moment")
	}
	// Those the leader heard within two seconds are the ones it may count on.
	here := 0
	for _, id := range all {
		if id == w.leader || w.now.Sub(w.heard[id].At) <= 2*time.Second {
			here++
		}
	}
	if c.Kind != AddNonvoter && here <= len(all)/2 {
		w.fail("the change left no majority of voters that answer")
	}
}

// checkOrder: a voter that may come back with its disk is not taken out before
// its successor is in. Both ways no more failures are survived, but with the
// dead one still in, its return can make up for the loss of another disk.
func (w *voterWorld) checkOrder(s Server) {
	all, _ := w.voters()
	host := s.ID.Host()
	mayReturn := slices.Contains(w.configured, host) && w.current(host) == s.ID
	if s.Voter && mayReturn && len(all)%2 == 1 && len(all) <= oddFloor(min(MaxVoters, len(w.configured))) {
		w.fail("a voter was removed before its successor was in")
	}
}

func (w *voterWorld) fail(what string) {
	w.t.Helper()
	for _, l := range w.log {
		w.t.Log(l)
	}
	w.t.Fatalf("%s: %v", what, w.servers)
}

// fault does one random thing to one host.
func (w *voterWorld) fault() {
	t := w.t
	h := rapid.SampledFrom(w.configured).Draw(t, "host")
	switch rapid.SampledFrom([]string{"down", "up", "wipe", "forget", "stick"}).Draw(t, "fault") {
	case "down":
		w.up[h] = false
	case "up":
		w.up[h] = true
	case "wipe":
		w.life[h]++ // The host comes back with an empty disk.
	case "forget":
		if len(w.configured) > 1 && rapid.Bool().Draw(t, "really") {
			w.configured = slices.DeleteFunc(slices.Clone(w.configured), func(o haven.HostID) bool { return o == h })
			w.up[h] = rapid.IntRange(0, 3).Draw(t, "stays up") > 0
		}
	case "stick":
		id := w.current(h)
		w.stuck[id] = !w.stuck[id] && id != w.leader
	}
}

// The keeper never loses the majority by its own change, never has more than
// five voters, and comes to rest in the right shape when the faults end.
func TestPlanVotersProperty(t *testing.T) {
	for range 3 { // Two faults within seconds of a change are rare.
		rapid.Check(t, keepVoters)
	}
}

func keepVoters(t *rapid.T) {
	hosts := rapid.IntRange(1, 9).Draw(t, "hosts")
	w := newVoterWorld(t, hosts, oddFloor(rapid.IntRange(1, min(hosts, MaxVoters)).Draw(t, "voters")))
	for _, h := range w.configured {
		w.places[h] = Place{Zone: rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "zone"), Witness: rapid.IntRange(0, 4).Draw(t, "witness") == 0}
	}
	n := 0
	for range rapid.IntRange(0, 40).Draw(t, "faults") {
		w.fault()
		for range rapid.SampledFrom([]int{0, 1, 2, 3, 4, 10, 40}).Draw(t, "seconds") {
			n++
			w.tick(n)
		}
	}
	clear(w.stuck)
	for range 500 {
		n++
		w.tick(n)
	}
	if w.leader == "" {
		return // A majority was lost by the faults; nobody may decide.
	}
	w.checkRest()
}

func (w *voterWorld) checkRest() {
	all, living := w.voters()
	upHosts := 0
	for _, h := range w.configured {
		if w.up[h] {
			upHosts++
		}
	}
	target := oddFloor(min(MaxVoters, len(w.configured)))
	if w.now.Sub(w.lastMove) < time.Minute {
		w.fail("it does not come to rest")
	}
	if slices.ContainsFunc(w.servers, func(s Server) bool { return !s.Voter }) {
		w.fail("a server is left without a vote")
	}
	if upHosts >= target && (len(all) != target || len(living) != target) {
		w.fail(fmt.Sprintf("want %d living voters", target))
	}
	if len(all)%2 == 0 {
		w.fail("an even number of voters")
	}
	for _, s := range w.servers {
		if s.ID != w.leader && w.up[s.ID.Host()] && s.ID != w.current(s.ID.Host()) {
			w.fail("a lost disk kept its vote")
		}
	}
	if len(living) == len(all) && len(all) == target {
		w.checkPlaces(all)
	}
}

// checkPlaces: no living witness stands outside while a hypervisor other than
// the leader votes.
func (w *voterWorld) checkPlaces(voters []ServerID) {
	for _, h := range w.configured {
		if !w.up[h] || !w.places[h].Witness || slices.Contains(voters, w.current(h)) {
			continue
		}
		for _, v := range voters {
			if v != w.leader && !w.places[v.Host()].Witness {
				w.fail(fmt.Sprintf("witness %s does not vote and hypervisor %s does", h, v))
			}
		}
	}
}

func TestPlanVoters(t *testing.T) {
	now := time.Unix(1e9, 0)
	long := now.Add(-time.Hour)
	ok := ServerContact{At: now, CaughtUp: now}
	silent := ServerContact{At: now.Add(-time.Minute), CaughtUp: now.Add(-time.Minute)}
	type setup struct {
		voters, staged, up []string // hosts; the first voter leads
		silent             []string
		conf               func(*VoterConfig, *Health)
	}
	tests := []struct {
		name string
		in   setup
		want string
	}{
		{"all is well", setup{voters: []string{"a", "b", "c"}, up: []string{"a", "b", "c"}}, ""},
		{"not settled", setup{voters: []string{"a"}, up: []string{"a", "b", "c"}, conf: func(c *VoterConfig, _ *Health) { c.Settled = false }}, ""},
		{"grow from one", setup{voters: []string{"a"}, up: []string{"a", "b", "c"}}, "add-nonvoter b"},
		{"not to two", setup{voters: []string{"a"}, up: []string{"a", "b"}}, ""},
		{"promote", setup{voters: []string{"a"}, staged: []string{"b"}, up: []string{"a", "b", "c"}}, "add-voter b"},
		{"on from two", setup{voters: []string{"a", "b"}, staged: []string{"c"}, up: []string{"a", "b", "c"}}, "add-voter c"},
		{"no replacement: the dead one stays", setup{voters: []string{"a", "b", "c"}, up: []string{"a", "b"}, silent: []string{"c"}}, ""},
		{"first the log", setup{voters: []string{"a", "b", "c"}, up: []string{"a", "b", "d"}, silent: []string{"c"}}, "add-nonvoter d"},
		{"then the vote", setup{voters: []string{"a", "b", "c"}, staged: []string{"d"}, up: []string{"a", "b", "d"}, silent: []string{"c"}}, "add-voter d"},
		{"the vote of a sixth, for a moment", setup{voters: []string{"a", "b", "c", "d", "e"}, staged: []string{"f"}, up: []string{"a", "b", "c", "d", "f"}, silent: []string{"e"}}, "add-voter f"},
		{"then the dead one of six", setup{voters: []string{"a", "b", "c", "d", "e", "f"}, up: []string{"a", "b", "c", "d", "f"}, silent: []string{"e"}}, "remove e"},
		{"no vote for one more while too few answer", setup{voters: []string{"a", "b", "c"}, staged: []string{"d"}, up: []string{"a", "b", "d"}, silent: []string{"c"}, conf: func(_ *VoterConfig, h *Health) {
			h.Contacts[server("b", 0)] = ServerContact{At: now.Add(-3 * time.Second), CaughtUp: now}
		}}, ""},
		{"a new address", setup{voters: []string{"a", "b", "c"}, up: []string{"a", "b", "c"}, silent: []string{"c"}, conf: func(_ *VoterConfig, h *Health) {
			c := h.Hosts["c"]
			c.Address = "c:2"
			h.Hosts["c"] = c
		}}, "set-address c"},
		{"the address of one that is gone", setup{voters: []string{"a", "b", "c"}, up: []string{"a", "b", "c"}, silent: []string{"c"}, conf: func(_ *VoterConfig, h *Health) {
			h.Hosts["c"] = HostHealth{Server: server("c", 0), Address: "c:2"}
		}}, ""},
		{"a dead one among four", setup{voters: []string{"a", "b", "c", "d"}, up: []string{"a", "b", "c"}, silent: []string{"d"}}, "remove d"},
		{"longest stable first", setup{voters: []string{"a"}, up: []string{"a", "b", "c"}, conf: func(_ *VoterConfig, h *Health) {
			b := h.Hosts["b"]
			b.Since = now.Add(-11 * time.Second)
			h.Hosts["b"] = b
		}}, "add-nonvoter c"},
		{"too young", setup{voters: []string{"a"}, up: []string{"a", "b", "c"}, conf: func(_ *VoterConfig, h *Health) {
			b := h.Hosts["b"]
			b.Since = now.Add(-9 * time.Second)
			h.Hosts["b"] = b
		}}, ""},
		{"lost disk", setup{voters: []string{"a", "b", "c"}, up: []string{"a", "b", "c"}, silent: []string{"c"}, conf: func(_ *VoterConfig, h *Health) {
			c := h.Hosts["c"]
			c.Server = server("c", 7)
			h.Hosts["c"] = c
		}}, "remove c"},
		{"lost disk, but no majority would answer", setup{voters: []string{"a", "b", "c"}, up: []string{"a", "b", "c"}, silent: []string{"b", "c"}, conf: func(_ *VoterConfig, h *Health) {
			c := h.Hosts["c"]
			c.Server = server("c", 7)
			h.Hosts["c"] = c
		}}, ""},
		{"not relying on one that fell silent just now", setup{voters: []string{"a", "b", "c"}, up: []string{"a", "b", "c"}, conf: func(_ *VoterConfig, h *Health) {
			h.Configured = []haven.HostID{"a", "b", "d"}
			h.Contacts[server("b", 0)] = ServerContact{At: now.Add(-3 * time.Second), CaughtUp: now}
		}}, ""},
		{"a new leader waits", setup{voters: []string{"a", "b", "c"}, up: []string{"a", "b", "d"}, silent: []string{"c"}, conf: func(_ *VoterConfig, h *Health) {
			h.LeaderSince = now.Add(-time.Second)
		}}, ""},
		{"hung disk", setup{voters: []string{"a", "b", "c"}, staged: []string{"d"}, up: []string{"a", "b", "c", "d"}, conf: func(_ *VoterConfig, h *Health) {
			h.Contacts[server("c", 0)] = ServerContact{At: now, CaughtUp: now.Add(-time.Minute)}
		}}, "add-voter d"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			c := VoterConfig{Index: 9, Settled: true}
			h := Health{LeaderSince: long, Hosts: map[haven.HostID]HostHealth{}, Contacts: map[ServerID]ServerContact{}}
			for i, names := range [][]string{tc.in.voters, tc.in.staged} {
				for _, n := range names {
					c.Servers = append(c.Servers, Server{ID: server(n, 0), Address: n + ":1", Voter: i == 0})
					h.Contacts[server(n, 0)] = ok
				}
			}
			c.Self = c.Servers[0].ID
			for _, n := range tc.in.up {
				h.Hosts[haven.HostID(n)] = HostHealth{Server: server(n, 0), Address: n + ":1", Since: long}
			}
			for _, n := range tc.in.silent {
				h.Contacts[server(n, 0)] = silent
			}
			for _, n := range []string{"a", "b", "c", "d", "e", "f"} {
				if slices.Contains(tc.in.up, n) || slices.ContainsFunc(c.Servers, func(s Server) bool { return s.ID.Host() == haven.HostID(n) }) {
					h.Configured = append(h.Configured, haven.HostID(n))
				}
			}
			if tc.in.conf != nil {
				tc.in.conf(&c, &h)
			}
			got := ""
			if change, ok := PlanVoters(now, DefaultVoterPolicy(), c, h); ok {
				got = fmt.Sprintf("%s %s", change.Kind, change.Server.ID.Host())
			}
			if got != tc.want {
				t.Fatalf("got %q, want %q", got, tc.want)
			}
		})
	}
}

package election

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

// town is a cluster in which all is well, and changes take no time.
type town struct {
	now     time.Time
	conf    VoterConfig
	health  Health
	changes int
}

// newTown has hosts named as in "k1:a" for one in zone a, and "w1:" or "w1:a"
// for a witness. The first so many vote, and the first leads.
func newTown(hosts []string, voters int) *town {
	w := &town{
		now:  time.Unix(1e9, 0),
		conf: VoterConfig{Index: 1, Settled: true},
	}
	w.health = Health{LeaderSince: w.now.Add(-time.Hour), Hosts: map[haven.HostID]HostHealth{}, Contacts: map[ServerID]ServerContact{}, Places: map[haven.HostID]Place{}}
	for i, h := range hosts {
		name, zone, _ := strings.Cut(h, ":")
		id := haven.HostID(name)
		w.health.Configured = append(w.health.Configured, id)
		w.health.Places[id] = Place{Zone: zone, Witness: strings.HasPrefix(name, "w")}
		w.rise(name, time.Hour)
		if i < voters {
			w.conf.Servers = append(w.conf.Servers, Server{ID: server(name, 0), Address: name + ":1", Voter: true})
		}
	}
	w.conf.Self = w.conf.Servers[0].ID
	return w
}

// rise lets a host have been well for so long.
func (w *town) rise(name string, d time.Duration) {
	w.health.Hosts[haven.HostID(name)] = HostHealth{Server: server(name, 0), Address: name + ":1", Since: w.now.Add(-d)}
	w.health.Contacts[server(name, 0)] = ServerContact{At: w.now, CaughtUp: w.now}
}

func (w *town) die(name string) {
	w.health.Hosts[haven.HostID(name)] = HostHealth{Server: server(name, 0), Address: name + ":1"}
	w.health.Contacts[server(name, 0)] = ServerContact{At: w.now.Add(-time.Minute), CaughtUp: w.now.Add(-time.Minute)}
}

// settle makes changes until none is wanted, and returns who votes.
func (w *town) settle(t *testing.T) string {
	t.Helper()
	for w.changes = 0; ; w.changes++ {
		c, ok := PlanVoters(w.now, DefaultVoterPolicy(), w.conf, w.health)
		if !ok {
			break
		}
		if w.changes > 30 {
			t.Fatalf("it does not come to rest: %+v", c)
		}
		w.conf.Index++
		w.conf.Servers = slices.Clone(w.conf.Servers)
		i := slices.IndexFunc(w.conf.Servers, func(s Server) bool { return s.ID == c.Server.ID })
		switch c.Kind {
		case AddNonvoter:
			w.conf.Servers = append(w.conf.Servers, c.Server)
		case AddVoter, SetAddress:
			w.conf.Servers[i] = c.Server
		case RemoveVoter:
			w.conf.Servers = slices.Delete(w.conf.Servers, i, i+1)
		}
	}
	var names []string
	for _, s := range w.conf.Servers {
		names = append(names, string(s.ID.Host()))
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// rack names n hosts of a zone.
func rack(prefix string, n int, zone string) (hosts []string) {
	for i := range n {
		hosts = append(hosts, fmt.Sprintf("%s%02d:%s", prefix, i+1, zone))
	}
	return hosts
}

// TestWhoVotes is the table of who votes in clusters of each size, when all is
// well and when the first voter is the only one to begin with.
func TestWhoVotes(t *testing.T) {
	tests := []struct {
		name  string
		hosts []string
		want  string
	}{
		{"two and a witness", []string{"k1:", "k2:", "w1:"}, "k1 k2 w1"},
		{"two, without", []string{"k1:", "k2:"}, "k1"},
		{"three", rack("k", 3, ""), "k01 k02 k03"},
		{"four", rack("k", 4, ""), "k01 k02 k03"},
		{"five", rack("k", 5, ""), "k01 k02 k03 k04 k05"},
		{"four and a witness", append(rack("k", 4, ""), "w1:"), "k01 k02 k03 k04 w1"},
		{"16 in one zone", rack("k", 16, "a"), "k01 k02 k03 k04 k05"},
		{"16 in two zones", append(rack("k", 8, "a"), rack("m", 8, "b")...), "k01 k02 k03 m01 m02"},
		{"16 in two zones, and a witness elsewhere", append(append(rack("k", 8, "a"), rack("m", 8, "b")...), "w1:c"), "k01 k02 m01 m02 w1"},
		{"50 in five zones", slices.Concat(rack("a", 10, "a"), rack("b", 10, "b"), rack("c", 10, "c"), rack("d", 10, "d"), rack("e", 10, "e")), "a01 b01 c01 d01 e01"},
		{"50 in three zones", slices.Concat(rack("a", 17, "a"), rack("b", 17, "b"), rack("c", 16, "c")), "a01 a02 b01 b02 c01"},
		{"more witnesses than votes", append(rack("k", 3, ""), rack("w", 6, "")...), "k01 w01 w02 w03 w04"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := newTown(tt.hosts, 1).settle(t); got != tt.want {
				t.Errorf("%s vote, want %s", got, tt.want)
			}
		})
	}
}

// TestVotersStay: who votes stays, unless there is a reason.
func TestVotersStay(t *testing.T) {
	two := append(rack("k", 8, "a"), rack("m", 8, "b")...)
	tests := []struct {
		name    string
		hosts   []string
		voters  int // the first of the hosts
		then    func(w *town)
		want    string
		changes int
	}{
		{"all well", rack("k", 16, ""), 5, nil, "k01 k02 k03 k04 k05", 0},
		{"a voter is gone for two seconds", rack("k", 6, ""), 5, func(w *town) {
			w.health.Contacts[server("k03", 0)] = ServerContact{At: w.now.Add(-2 * time.Second), CaughtUp: w.now.Add(-2 * time.Second)}
		}, "k01 k02 k03 k04 k05", 0},
		{
			"a dead one is replaced, from the zone with fewer votes",
			[]string{"k1:a", "k2:a", "m1:b", "k3:a", "m2:b", "n1:c"},
			3,
			func(w *town) { w.health.Configured = w.health.Configured[:6]; w.die("m1") }, "k1 k2 k3 m2 n1", 7,
		},
		{"a witness that came ends the vote of a hypervisor", append(rack("k", 5, ""), "w1:"), 5, nil, "k01 k02 k03 k04 w1", 3},
		{"not before it has been there for long", append(rack("k", 5, ""), "w1:"), 5, func(w *town) { w.rise("w1", time.Minute) }, "k01 k02 k03 k04 k05", 0},
		{"not under a new leader", append(rack("k", 5, ""), "w1:"), 5, func(w *town) { w.health.LeaderSince = w.now.Add(-time.Minute) }, "k01 k02 k03 k04 k05", 0},
		{"not while a voter is dead", append(rack("k", 5, ""), "w1:"), 5, func(w *town) { w.die("k02"); w.rise("w1", 20*time.Second) }, "k01 k03 k04 k05 w1", 3},
		{"a zone has a majority and need not", two, 5, nil, "k01 k02 k03 m01 m02", 6},
		{"a zone has a majority and must", append(rack("k", 5, "a"), "m1:b"), 5, nil, "k01 k02 k03 k04 k05", 0},
		{"a fuller zone without a majority", slices.Concat(rack("k", 2, "a"), rack("m", 2, "b"), rack("n", 1, "c"), rack("o", 4, "d")), 5, nil, "k01 k02 m01 m02 n01", 0},
		{"only the leader is no witness", append([]string{"k1:"}, rack("w", 6, "")...), 5, nil, "k1 w01 w02 w03 w04", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newTown(tt.hosts, tt.voters)
			if tt.then != nil {
				tt.then(w)
			}
			if got := w.settle(t); got != tt.want || w.changes != tt.changes {
				t.Errorf("%s vote after %d changes, want %s after %d", got, w.changes, tt.want, tt.changes)
			}
		})
	}
}

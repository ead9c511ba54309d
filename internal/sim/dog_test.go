package sim_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/sim"
)

// byTime checks that a host was proved dead by its watchdog's time.
func byTime(c *sim.Cluster, h *sim.Host) {
	if why := proofDetail(c, h); !strings.HasPrefix(why, "watchdog: ") {
		c.Broken("proved by %s", why)
	}
	commands(c, 0)
}

// stillWaits checks that an incident about a host is held, and that its VMs wait.
func stillWaits(c *sim.Cluster, h *sim.Host, words string) {
	c.Ledger(func(s *ledger.State) {
		in := s.Incidents[s.Hosts[h.ID].Incident]
		if in == nil || in.Proof != nil || !strings.Contains(in.Hold.Detail, words) {
			c.Broken("the incident does not wait with %q: %+v", words, in)
		}
	})
	once(c, 1, h.N())
}

// loseMasters kills masters until a witness leads.
func loseMasters(c *sim.Cluster) *sim.Host {
	c.Until("the witness to vote", 5*time.Minute, func() bool { return slices.Contains(c.Voters(), "vote-1") })
	for range 20 {
		m := c.Master()
		if m != nil && m.Witness {
			return m
		}
		if m != nil {
			m.KillAgent()
			c.Sleep(6 * time.Second)
			m.StartAgent()
		}
		c.Sleep(6 * time.Second)
	}
	c.Broken("no witness came to lead")
	return nil
}

// TestDogs plays hosts with armed watchdogs: P1, P2, P4, P5.
func TestDogs(t *testing.T) {
	for i, tt := range []struct {
		name string
		s    sim.Scenario
	}{
		{"host and BMC cut together", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			begun := c.Now()
			h.PowerOff(true)
			c.Recovered(2*time.Minute, h.N())
			t.Logf("host and BMC cut together: recovered after %s", (c.Now() - begun).Round(100*time.Millisecond))
			byTime(c, h)
			once(c, 2, h.N())
		}}},
		{"all paths of a host cut, and it runs on", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			sim.Kill(h.BMC)
			c.Silence(h, true)
			c.Recovered(2*time.Minute, h.N())
			byTime(c, h)
			if c.Count(sim.DogFired) != 1 {
				c.Broken("%d resets", c.Count(sim.DogFired))
			}
			once(c, 2, h.N())
			c.Silence(h, false) // it comes back with its new boot, and without its VMs
			c.Sleep(30 * time.Second)
			once(c, 2, h.N())
		}}},
		{"a kernel that hangs with its board", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			sim.Kill(h.BMC)
			h.Freeze(true)
			c.Recovered(2*time.Minute, h.N())
			once(c, 2, h.N())
		}}},
		{"one store of two is left to it", sim.Scenario{VMs: 3, Stores: 2, PoolApart: true, Script: func(c *sim.Cluster) {
			h := c.Slave()
			sim.Kill(h.BMC)
			c.Isolate(h, true)
			c.FirstStore(h, sim.StoreHangs)
			c.Calm(2 * time.Minute)
			once(c, 1, h.N())
			if n := c.Count(sim.DogFired); n > 0 {
				c.Broken("%d resets of a host that writes beats", n)
			}
		}}},
		{"the network alone is left to everybody", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			c.AllStores(sim.StoreHangs)
			c.Calm(2 * time.Minute)
			if n := c.Count(sim.DogFired); n > 0 {
				c.Broken("%d resets of hosts that a master answers", n)
			}
		}}},
		{"nobody can read the stores", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.PowerOff(true)
			c.Sleep(20 * time.Second) // it is failed; the promise lasts 24 s
			c.AllStores(sim.StoreFails)
			c.Sleep(2 * time.Minute)
			once(c, 1, h.N())
			c.AllStores("")
			c.Recovered(2*time.Minute, h.N())
			byTime(c, h)
		}}},
		{"a new master counts anew", sim.Scenario{Hosts: 5, VMs: 5, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.PowerOff(true)
			c.Sleep(20 * time.Second)
			killFor(c, c.Master(), 20*time.Second)
			changed := c.Now()
			c.Recovered(3*time.Minute, h.N())
			byTime(c, h)
			if took := c.Now() - changed; took < 24*time.Second {
				c.Broken("the new master took %s: it did not count anew", took)
			}
			once(c, 2, h.N())
		}}},
		{"a witness counts by what others read", sim.Scenario{Hosts: 3, Witnesses: 1, VMs: 3, Script: func(c *sim.Cluster) {
			if loseMasters(c) == nil {
				return
			}
			c.Sleep(20 * time.Second)
			h := c.Slave()
			c.UserStart(h, 9)
			c.Sleep(5 * time.Second)
			h.PowerOff(true)
			c.Recovered(3*time.Minute, 9)
			byTime(c, h)
		}}},
		{"the agent is killed for a moment", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.KillAgent()
			c.Sleep(2 * time.Second)
			h.StartAgent()
			c.Calm(time.Minute)
			if n := c.Count(sim.DogFired); n > 0 {
				c.Broken("%d resets: the new process did not take over", n)
			}
			h.PowerOff(true)
			c.Recovered(2*time.Minute, h.N())
			byTime(c, h)
		}}},
		{"the agent stays down, until the reset", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.KillAgent()
			c.Until("the reset of a host that nobody answers for", time.Minute, func() bool { return c.Count(sim.DogFired) > 0 })
			h.StartAgent()
			c.Recovered(2*time.Minute, h.N())
		}}},
		{"no action is configured", sim.Scenario{VMs: 3, Config: fencingOf("action: none"), Script: func(c *sim.Cluster) {
			h := c.Slave()
			sim.Kill(h.BMC)
			c.Silence(h, true)
			held(c, h, haven.HoldActionNone, time.Minute)
			stillWaits(c, h, "the proof by time is awaited")
			c.Recovered(2*time.Minute, h.N())
			byTime(c, h)
		}}},
	} {
		tt.s.Seed, tt.s.Dogs = uint64(7700+i), true
		t.Run(tt.name, func(t *testing.T) {
			if underRace && i%5 != 0 {
				t.Skip("a sample is enough under the race detector")
			}
			t.Parallel()
			run(t, tt.s)
		})
	}
}

// TestDogSeeds plays random faults about hosts with armed watchdogs, and checks all
// promises: above all that no VM runs twice (P1), and that nobody is proved dead
// who lives (P2).
func TestDogSeeds(t *testing.T) {
	n := uint64(4)
	if underRace {
		n = 1
	}
	if *flagSeeds > 0 {
		n = uint64(*flagSeeds)
	}
	for seed := uint64(1); seed <= n; seed++ {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			s := chaos(seed)
			s.Dogs = true
			script := s.Script
			s.Script = func(c *sim.Cluster) {
				script(c)
				t.Logf("%d hosts of seed %d were reset by their watchdogs", c.Count(sim.DogFired), seed)
			}
			run(t, s)
		})
	}
}

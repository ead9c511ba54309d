package sim_test

import (
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/agent"
	"github.com/haven-ha/haven/internal/sim"
)

// withoutStore takes the stores out of a scenario.
func withoutStore(s sim.Scenario) sim.Scenario {
	s.PoolApart = true
	s.Config = func(yaml string) string {
		before, rest, _ := strings.Cut(yaml, "  stores: [")
		_, after, _ := strings.Cut(rest, "]\n")
		return before + "  interval: 1s\n" + after
	}
	s.Wrap = func(_ *sim.Host, d *agent.Deps) { d.Stores = nil }
	return s
}

// TestDiskActivity guards P4 and P5: whoever's VMs are seen to write is left
// running, with and without a store, and idle disks are found to be idle only
// after the time that a guest may keep a write to itself.
func TestDiskActivity(t *testing.T) {
	for i, tt := range []struct {
		name string
		s    sim.Scenario
	}{
		{"cut off from network and store while its VMs write", sim.Scenario{VMs: 3, PoolApart: true, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Isolate(h, true)
			c.Store(h, sim.StoreHangs)
			c.Calm(5 * time.Minute)
			verdict(c, h, time.Second, haven.VerdictUnreachable)
			once(c, 1, h.N())
		}}},
		{"cut off, agent dead, and then the host hangs", sim.Scenario{VMs: 3, PoolApart: true, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.KillAgent()
			c.Isolate(h, true)
			c.Store(h, sim.StoreHangs)
			c.Calm(time.Minute)
			verdict(c, h, time.Second, haven.VerdictUnreachable)
			h.Freeze(true)
			c.Calm(34 * time.Second)
			c.Recovered(30*time.Second, h.N())
			commands(c, 1)
			once(c, 2, h.N())
		}}},
		{"the master goes while the disks of another are watched", sim.Scenario{VMs: 5, Hosts: 5, PoolApart: true, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Isolate(h, true)
			c.Store(h, sim.StoreHangs)
			c.Calm(time.Minute)
			verdict(c, h, time.Second, haven.VerdictUnreachable)
			c.Master().KillAgent()
			c.Calm(2 * time.Minute)
			verdict(c, h, time.Second, haven.VerdictUnreachable)
		}}},
		{"no store, a partition", withoutStore(sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Isolate(h, true)
			c.Calm(5 * time.Minute)
			verdict(c, h, time.Second, haven.VerdictUnreachable)
		}})},
		{"no store, a kernel hang", withoutStore(sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.Freeze(true)
			c.Calm(35 * time.Second)
			c.Recovered(30*time.Second, h.N())
			commands(c, 1)
			once(c, 2, h.N())
		}})},
		{"no store, a kernel hang, and disks that nobody can read", withoutStore(sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.BlindDisks(true)
			h.Freeze(true)
			c.Calm(5 * time.Minute)
			verdict(c, h, time.Second, haven.VerdictUnknown)
			c.BlindDisks(false)
			c.Recovered(2*time.Minute, h.N())
			commands(c, 1)
		}})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if underRace && i > 0 {
				t.Skip("a sample is enough under the race detector")
			}
			t.Parallel()
			tt.s.Seed = uint64(900 + i)
			run(t, tt.s)
		})
	}
}

package sim_test

import (
	"testing"
	"time"

	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/sim"
)

// unproved checks that nothing was proved about a host that reset itself (P2).
func unproved(c *sim.Cluster, h *sim.Host) {
	c.Ledger(func(s *ledger.State) {
		if in := s.Incidents[s.Hosts[h.ID].Incident]; in == nil || in.Proof != nil {
			c.Broken("a pill that was obeyed proves nothing: %+v", in)
		}
	})
	once(c, 1, h.N())
}

// TestPills plays hosts that are configured to obey poison pills: P1, P2, P4.
func TestPills(t *testing.T) {
	obeying := fencingOf("action: off\n  poison_pill: true\n  watchdog: {device: /dev/watchdog}")
	// readsOnly leaves a host nothing but a look at its store.
	readsOnly := func(c *sim.Cluster, h *sim.Host, on bool) {
		f := sim.StoreReadOnly
		if !on {
			f = ""
		}
		c.Isolate(h, on)
		c.Store(h, f)
	}
	resetOnce := func(c *sim.Cluster, h *sim.Host) {
		c.Until("the host resets itself", 2*time.Minute, func() bool { return c.Count(sim.PillObeyed) > 0 })
		c.Sleep(30 * time.Second) // the next boot is cut off as well, and finds the old pill
		if n := c.Count(sim.PillObeyed); n != 1 {
			c.Broken("%d resets", n)
		}
		unproved(c, h)
		readsOnly(c, h, false)
		c.Recovered(2*time.Minute, h.N())
		once(c, 2, h.N())
	}
	for i, tt := range []struct {
		name string
		s    sim.Scenario
	}{
		{"a host that can only read", sim.Scenario{VMs: 3, Config: obeying, Script: func(c *sim.Cluster) {
			h := c.Slave()
			sim.Kill(h.BMC)
			readsOnly(c, h, true)
			resetOnce(c, h)
		}}},
		{"a witness without a store is master", sim.Scenario{Hosts: 2, Witnesses: 1, VMs: 2, Config: obeying, Script: func(c *sim.Cluster) {
			for range 20 {
				if m := c.Master(); m != nil && m.Witness {
					break
				} else if m != nil {
					killFor(c, m, 5*time.Second)
				}
				c.Sleep(15 * time.Second)
			}
			if m := c.Master(); m == nil || !m.Witness {
				c.Broken("the witness never became master: this shows nothing")
				return
			}
			h := c.At(1)
			sim.Kill(h.BMC)
			readsOnly(c, h, true)
			resetOnce(c, h)
		}}},
		{"a host that stood still comes back", sim.Scenario{VMs: 3, Config: obeying, Script: func(c *sim.Cluster) {
			h := c.Slave()
			sim.Kill(h.BMC)
			h.Freeze(true)
			c.Sleep(40 * time.Second)
			h.Freeze(false) // it finds the pill, and reaches the master
			c.Calm(time.Minute)
			once(c, 1, h.N())
			if n := c.Count(sim.PillObeyed); n > 0 {
				c.Broken("%d resets of a host that is well", n)
			}
		}}},
		{"a host that is cut off, and whose beats land", sim.Scenario{VMs: 3, Config: obeying, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Isolate(h, true)
			c.Calm(2 * time.Minute)
			once(c, 1, h.N())
			if n := c.Count(sim.PillObeyed); n > 0 {
				c.Broken("%d resets", n)
			}
		}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if underRace && i > 0 {
				t.Skip("a sample is enough under the race detector")
			}
			t.Parallel()
			tt.s.Seed = 1
			run(t, tt.s)
		})
	}
}

package sim_test

import (
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/sim"
	"github.com/haven-ha/haven/internal/world"
)

// configured switches a response on.
func configured(response string) func(string) string {
	return func(yaml string) string {
		return strings.Replace(yaml, "\nhosts:", "\nresponse: "+response+"\nhosts:", 1)
	}
}

const powerOff = "{isolation: {action: power-off, delay: 20s}}"

// TestResponses plays the configured responses, and what an operator holds back:
// P1, P4, P6.
func TestResponses(t *testing.T) {
	for i, tt := range []struct {
		name string
		s    sim.Scenario
	}{
		{"isolation, leave", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Isolate(h, true)
			c.Calm(3 * time.Minute) // P4: nothing is ever stopped
			verdict(c, h, time.Second, haven.VerdictIsolated, haven.VerdictPartitioned)
			once(c, 1, h.N())
		}}},
		{"isolation, power-off", sim.Scenario{VMs: 3, Config: configured(powerOff), Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Isolate(h, true)
			c.Recovered(90*time.Second, h.N())
			commands(c, 0)
			once(c, 2, h.N())
		}}},
		{"isolation of the master, power-off", sim.Scenario{VMs: 3, Config: configured(powerOff), Script: func(c *sim.Cluster) {
			h := c.Master()
			c.Isolate(h, true)
			c.Recovered(90*time.Second, h.N())
			commands(c, 0)
			once(c, 2, h.N())
		}}},
		{"isolation, shutdown", sim.Scenario{VMs: 3, Config: configured("{isolation: {action: shutdown, delay: 20s, shutdown_timeout: 30s}}"), Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Isolate(h, true)
			c.Recovered(90*time.Second, h.N())
			once(c, 2, h.N())
		}}},
		{"isolation, shutdown of deaf guests", sim.Scenario{VMs: 3, Config: configured("{isolation: {action: shutdown, delay: 20s, shutdown_timeout: 30s}}"), Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.Machine.Deaf(true)
			c.Isolate(h, true)
			c.Recovered(2*time.Minute, h.N())
			once(c, 2, h.N())
		}}},
		{"isolation while disarmed, of a host without a vote and without a ledger", sim.Scenario{Hosts: 7, VMs: 7, Config: configured(powerOff), Script: func(c *sim.Cluster) {
			h := c.At(7) // the first five vote
			operate(c, "/v1/disarm")
			c.Sleep(3 * time.Second) // everybody has reported since
			c.Isolate(h, true)
			c.Calm(2 * time.Minute) // P4, P6
			c.Isolate(h, false)
			once(c, 1, h.N())
			if n := c.Count(sim.What(world.VMEnds)); n > 0 {
				c.Broken("%d VMs were stopped", n)
			}
			operate(c, "/v1/arm")
		}}},
		{"isolation of a host in maintenance", sim.Scenario{VMs: 3, Config: configured(powerOff), Script: func(c *sim.Cluster) {
			h := c.Slave()
			operate(c, "/v1/hosts/"+string(h.ID)+"/maintenance")
			c.Sleep(3 * time.Second)
			c.Isolate(h, true)
			c.Calm(90 * time.Second) // P4
			c.Isolate(h, false)
			operate(c, "/v1/hosts/"+string(h.ID)+"/maintenance/end")
			once(c, 1, h.N())
		}}},
		{"isolation that ends before the delay", sim.Scenario{VMs: 3, Config: configured(powerOff), Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Isolate(h, true)
			c.Calm(18 * time.Second)
			c.Isolate(h, false)
			c.Calm(time.Minute)
			once(c, 1, h.N())
		}}},
		{"isolation of all: nobody could start them", sim.Scenario{VMs: 3, Config: configured(powerOff), Script: func(c *sim.Cluster) {
			for n := range 3 {
				c.Isolate(c.At(n+1), true)
			}
			c.Calm(2 * time.Minute)
			once(c, 1, 1, 2, 3)
		}}},
		{"isolation, and the storage is gone: nobody could be told", sim.Scenario{VMs: 3, Config: configured(powerOff), Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Store(h, sim.StoreHangs)
			c.Sleep(5 * time.Second)
			c.Isolate(h, true)
			c.Sleep(4 * time.Second)
			once(c, 1, h.N())
		}, Unsettled: true}},
		{"isolation, a VM whose process is stuck", sim.Scenario{VMs: 3, Config: configured(powerOff), Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.Machine.Stuck(true)
			c.Isolate(h, true)
			c.Sleep(2 * time.Minute)
			once(c, 1, h.N()) // P1: it is not gone
			h.Machine.Stuck(false)
			c.Recovered(time.Minute, h.N())
			once(c, 2, h.N())
		}}},
		{"isolation, and the store of the disks hangs: a write may be under way", sim.Scenario{VMs: 3, Stores: 2, Config: configured(powerOff), Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Isolate(h, true)
			c.FirstStore(h, sim.StoreHangs)
			c.Sleep(2 * time.Minute)
			once(c, 1, h.N()) // P1
			c.FirstStore(h, "")
			c.Recovered(time.Minute, h.N())
			once(c, 2, h.N())
		}}},
		{"storage of one fails, report", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Store(h, sim.StoreFails)
			c.Calm(3 * time.Minute)
			once(c, 1, h.N())
		}}},
		{"storage of one fails, restart elsewhere", sim.Scenario{VMs: 3, Config: configured("{storage_lost: {action: restart-elsewhere, delay: 30s}}"), Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Store(h, sim.StoreFails)
			c.Recovered(2*time.Minute, h.N())
			commands(c, 0)
			once(c, 2, h.N())
		}}},
		{"storage of one hangs, restart elsewhere: a write may be under way", sim.Scenario{VMs: 3, Config: configured("{storage_lost: {action: restart-elsewhere, delay: 30s}}"), Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Store(h, sim.StoreHangs)
			c.Sleep(2 * time.Minute)
			once(c, 1, h.N()) // P1
			c.Ledger(func(s *ledger.State) {
				if hold := s.VMs[sim.VMID(h.N())].Hold; hold.Reason != haven.HoldStoppedRunning {
					c.Broken("the hold is %+v", hold)
				}
			})
			c.Store(h, "")
			c.Recovered(time.Minute, h.N())
			once(c, 2, h.N())
		}}},
		{"storage fails for all, restart elsewhere", sim.Scenario{VMs: 3, Config: configured("{storage_lost: {action: restart-elsewhere, delay: 30s}}"), Script: func(c *sim.Cluster) {
			c.AllStores(sim.StoreFails)
			c.Calm(2 * time.Minute)
			once(c, 1, 1, 2, 3)
		}}},
		{"maintenance: powered off on purpose", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			operate(c, "/v1/hosts/"+string(h.ID)+"/maintenance")
			h.PowerOff(false)
			c.Sleep(2 * time.Minute)
			once(c, 1, h.N())
			commands(c, 0)
			operate(c, "/v1/hosts/"+string(h.ID)+"/maintenance/end")
			c.Recovered(30*time.Second, h.N())
			once(c, 2, h.N())
		}}},
		{"disarmed in the middle of a recovery", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.Freeze(true)
			c.Until("a power-off", time.Minute, func() bool { return c.Count(sim.BMCOff) > 0 })
			operate(c, "/v1/disarm")
			c.Recovered(time.Minute, h.N())
			once(c, 2, h.N())
			operate(c, "/v1/arm")
		}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if underRace && i%10 != 0 {
				t.Skip("a sample is enough under the race detector")
			}
			t.Parallel()
			tt.s.Seed = uint64(i + 1)
			sim.Run(t, tt.s)
		})
	}
}

// operate is an operator's act.
func operate(c *sim.Cluster, path string) {
	if err := c.Operate(path, client.Act{By: "op", Reason: "test"}); err != nil {
		c.Broken("%s: %v", path, err)
	}
}

package sim_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/sim"
	"github.com/haven-ha/haven/internal/world"
)

// once fails the run unless each VM was started exactly so often, its user's
// start included.
func once(c *sim.Cluster, starts int, vms ...int) {
	for _, n := range vms {
		if got := c.World.Starts(sim.VMID(n)); got != starts {
			c.Broken("vm%d was started %d times, want %d", n, got, starts)
		}
	}
}

// commands fails the run unless so many power commands were sent.
func commands(c *sim.Cluster, want int) {
	if got := c.Count(sim.BMCOff); got != want {
		c.Broken("%d power commands were sent, want %d", got, want)
	}
}

// within fails the run when the time since then is longer.
func within(c *sim.Cluster, what string, since, limit time.Duration) {
	if d := c.Now() - since; d > limit {
		c.Broken("%s took %s, want at most %s", what, d, limit)
	}
}

// verdict waits until an incident says one of the words about a host.
func verdict(c *sim.Cluster, h *sim.Host, limit time.Duration, want ...haven.Verdict) {
	c.Until(fmt.Sprintf("a verdict %v of %s", want, h.ID), limit, func() bool { return slices.Contains(want, c.Verdict(h)) })
}

// noQuorum says whether an agent holds its own side for one without quorum.
func noQuorum(c *sim.Cluster, h *sim.Host) bool {
	const words = "sees 2 of 4 hosts and 1 of 3 voters, and no master"
	st, err := c.Status(h)
	if err != nil { // It keeps no ledger, and says what it knows of itself.
		return strings.Contains(err.Error(), words)
	}
	return slices.ContainsFunc(st.Holds, func(hold haven.Hold) bool {
		return hold.Reason == haven.HoldNoQuorum && strings.Contains(hold.Detail, words)
	})
}

// TestScripts plays one fault each (the scenarios of the lab, and more), and
// then heals it: P1 to P7.
func TestScripts(t *testing.T) {
	for i, tt := range []struct {
		name string
		s    sim.Scenario
	}{
		{"power cut of a slave", sim.Scenario{VMs: 6, Script: func(c *sim.Cluster) {
			h, begun := c.Slave(), c.Now()
			h.PowerOff(false)
			c.Recovered(time.Minute, h.N(), h.N()+3)
			within(c, "recovery", begun, 4*time.Second)
			commands(c, 0)
			c.Calm(time.Minute)
			once(c, 2, h.N(), h.N()+3)
		}}},
		{"power cut of the master's host", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h, begun := c.Master(), c.Now()
			h.PowerOff(false)
			c.Recovered(time.Minute, h.N())
			within(c, "recovery", begun, 8*time.Second)
			commands(c, 0)
			c.Calm(time.Minute)
			once(c, 2, h.N())
		}}},
		{"quick boot after a power cut", sim.Scenario{VMs: 3, BootTakes: time.Second, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.PowerOff(false)
			c.Recovered(time.Minute, h.N())
			h.PowerOn()
			c.Calm(20 * time.Second)
			c.Ledger(func(s *ledger.State) {
				if why := s.Hosts[h.ID].Power.Distrust; why != "" {
					c.Broken("the board told the truth and is distrusted: %s", why)
				}
			})
		}}},
		{"kernel hang", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h, begun := c.Slave(), c.Now()
			h.Freeze(true)
			c.Recovered(2*time.Minute, h.N())
			within(c, "recovery", begun, 25*time.Second)
			commands(c, 1)
			c.Calm(time.Minute)
			once(c, 2, h.N())
		}}},
		{"kernel hang of the master", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Master()
			h.Freeze(true)
			c.Recovered(2*time.Minute, h.N())
			commands(c, 1)
			once(c, 2, h.N())
		}}},
		{"stall of a host", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			for range 5 {
				h.Freeze(true)
				c.Calm(6 * time.Second)
				h.Freeze(false)
				c.Calm(10 * time.Second)
			}
		}}},
		{"agent killed", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.KillAgent()
			c.Calm(time.Minute)
			verdict(c, h, time.Second, haven.VerdictAgentDown)
		}}},
		{"master's agent killed", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Master()
			h.KillAgent()
			c.Calm(time.Minute)
			verdict(c, h, time.Second, haven.VerdictAgentDown)
		}}},
		{"management network of one cut", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Isolate(h, true)
			c.Calm(time.Minute)
			verdict(c, h, time.Second, haven.VerdictIsolated, haven.VerdictPartitioned)
		}}},
		{"management network of the master cut", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Master()
			c.Isolate(h, true)
			c.Calm(time.Minute)
			verdict(c, h, time.Second, haven.VerdictIsolated, haven.VerdictPartitioned)
		}}},
		{"one hears nobody", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			c.Deafen(c.Slave(), true, true)
			c.Calm(time.Minute)
		}}},
		{"one is heard by nobody", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			c.Deafen(c.Slave(), false, true)
			c.Calm(time.Minute)
		}}},
		{"master hears nobody", sim.Scenario{VMs: 5, Hosts: 5, Script: func(c *sim.Cluster) {
			c.Deafen(c.Master(), true, true)
			c.Calm(time.Minute)
		}}},
		{"storage of one hangs", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Store(h, sim.StoreHangs)
			c.Calm(time.Minute)
			verdict(c, h, time.Second, haven.VerdictStorageLost)
		}}},
		{"storage of the master hangs", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			c.Store(c.Master(), sim.StoreHangs)
			c.Calm(time.Minute)
		}}},
		{"storage hangs for all", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			c.AllStores(sim.StoreHangs)
			c.Calm(2 * time.Minute)
		}}},
		{"storage fails for all", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			c.AllStores(sim.StoreFails)
			c.Calm(2 * time.Minute)
		}}},
		{"storage dies and then a network", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			c.AllStores(sim.StoreHangs)
			c.Sleep(20 * time.Second)
			c.Isolate(c.Slave(), true)
			c.Calm(2 * time.Minute)
		}}},
		{"storage hangs for all, and a host loses its power", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			c.AllStores(sim.StoreHangs)
			c.Sleep(20 * time.Second)
			h := c.Slave()
			h.PowerOff(false)
			c.Sleep(time.Minute)
			commands(c, 0)
		}}},
		{"late and torn writes", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			c.Store(c.At(1), sim.StoreLags)
			c.Store(c.At(2), sim.StoreTears)
			c.Calm(time.Minute)
			c.Store(c.At(1), sim.StoreTears)
			c.Store(c.At(2), sim.StoreSlow)
			c.Calm(time.Minute)
		}}},
		{"mains cut: the board is dead too", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.PowerOff(true)
			c.Calm(3 * time.Minute) // no proof, no start
			verdict(c, h, time.Second, haven.VerdictFailed)
		}}},
		{"mains cut, and an operator says so", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.PowerOff(true)
			c.Calm(time.Minute)
			c.ConfirmDead(h)
			c.Recovered(20*time.Second, h.N())
			once(c, 2, h.N())
		}}},
		{"partition with a minority master", sim.Scenario{Hosts: 5, VMs: 5, Script: func(c *sim.Cluster) {
			m, s := c.Master(), c.Slave()
			c.Partition([]*sim.Host{m, s}, true)
			c.Calm(time.Minute)
			if n := c.Master(); n == nil || n == m || n == s {
				c.Broken("the majority has no master")
			}
		}}},
		{"partition of network and storage", sim.Scenario{Hosts: 5, VMs: 5, Script: func(c *sim.Cluster) {
			m := c.Master()
			c.Partition([]*sim.Host{m}, true)
			c.Store(m, sim.StoreHangs)
			c.Recovered(2*time.Minute, m.N()) // after a power-off
			commands(c, 1)
			once(c, 2, m.N())
		}}},
		{"half of the hosts have no quorum", sim.Scenario{Hosts: 4, VMs: 4, Script: func(c *sim.Cluster) {
			c.Until("three of the four vote", 3*time.Minute, func() bool { return len(c.Voters()) == 3 })
			m, voters := c.Master(), c.Voters()
			apart := make([]*sim.Host, 2) // one who has no vote, and one who has
			for _, h := range c.Hosts() {
				switch {
				case !slices.Contains(voters, h.ID):
					apart[0] = h
				case h != m:
					apart[1] = h
				}
			}
			c.Partition(apart, true)
			c.Until("the side without a quorum says so", 40*time.Second, func() bool { return noQuorum(c, apart[0]) && noQuorum(c, apart[1]) })
			if noQuorum(c, m) {
				c.Broken("the side with a master says that it has no quorum")
			}
			c.Calm(time.Minute)
			c.HealAll()
			c.Until("nobody says so any more", 40*time.Second, func() bool { return !noQuorum(c, apart[0]) && !noQuorum(c, apart[1]) })
		}}},
		{"no quorum", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			m := c.Master()
			for _, h := range c.Hosts() {
				if h != m {
					h.PowerOff(false)
				}
			}
			c.Calm(3 * time.Minute)
		}}},
		{"all power off and on", sim.Scenario{VMs: 6, Script: func(c *sim.Cluster) {
			for _, h := range c.Hosts() {
				h.PowerOff(true)
			}
			c.Sleep(30 * time.Second)
			for _, h := range c.Hosts() {
				h.PowerOn()
			}
			c.Recovered(3*time.Minute, 1, 2, 3, 4, 5, 6)
			once(c, 2, 1, 2, 3, 4, 5, 6)
			commands(c, 0)
		}}},
		{"power-down cap", sim.Scenario{Hosts: 5, VMs: 5, Script: func(c *sim.Cluster) {
			hung := 0
			for _, h := range c.Hosts() {
				if h == c.Master() || hung == 4 {
					continue
				}
				hung++
				h.Freeze(true)
				c.Sleep(50 * time.Second)
				h.PowerOn() // after the power-off
				h.Freeze(false)
				c.Sleep(30 * time.Second)
			}
			commands(c, 3)
		}}},
		{"mass failure", sim.Scenario{Hosts: 5, VMs: 5, Script: func(c *sim.Cluster) {
			n := 0
			for _, h := range c.Hosts() {
				if h != c.Master() && n < 2 {
					n++
					c.Store(h, sim.StoreHangs)
				}
			}
			m := c.Master()
			for _, h := range c.Hosts() {
				if h != m && n < 5 {
					n++
					c.Isolate(h, true)
				}
			}
			c.Calm(2 * time.Minute)
		}}},
		{"board that lies off about a live host", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Lie(h, haven.PowerOff)
			c.Calm(2 * time.Minute)
			c.Isolate(h, true)
			c.Calm(2 * time.Minute)
		}}},
		{"board begins to lie while its host is cut off", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Isolate(h, true)
			c.Lie(h, haven.PowerOff)
			c.Calm(2 * time.Minute)
		}}},
		{"board that says on for ever", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Lie(h, haven.PowerOn)
			h.PowerOff(false)
			c.Sleep(3 * time.Minute)
			if got := c.World.Starts(sim.VMID(h.N())); got != 1 {
				c.Broken("a VM was started without a proof")
			}
		}}},
		{"master has no way to the boards, and a host hangs", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Boards(c.Master(), true)
			c.Calm(time.Minute)
			h.Freeze(true)
			c.Recovered(2*time.Minute, h.N())
			commands(c, 1)
			once(c, 2, h.N())
		}}},
		{"master has no way to the boards, and a host loses its power", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Boards(c.Master(), true)
			c.Calm(2 * time.Minute)
			begun := c.Now()
			h.PowerOff(false)
			c.Recovered(time.Minute, h.N())
			within(c, "recovery", begun, 6*time.Second)
			commands(c, 0)
			once(c, 2, h.N())
		}}},
		{"master loses its ways to boards and stores right after a host hung", sim.Scenario{VMs: 5, Hosts: 5, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.Freeze(true)
			c.Sleep(5 * time.Second)
			c.Boards(c.Master(), true)
			c.Store(c.Master(), sim.StoreHangs)
			c.Recovered(3*time.Minute, h.N())
			commands(c, 1)
			once(c, 2, h.N())
		}}},
		{"slow, late and forgetful board", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.SlowBoard(h, 2*time.Second, 8*time.Second, 4*time.Second, 1)
			h.Freeze(true)
			c.Recovered(3*time.Minute, h.N())
			once(c, 2, h.N())
		}}},
		{"returning host with autostart", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.Machine.Autostart(sim.VMID(h.N()), true)
			c.Until("autostart taken over", time.Minute, func() bool { return c.Count(sim.What(world.Autostart)) > 0 })
			h.PowerOff(false)
			c.Recovered(time.Minute, h.N())
			h.PowerOn()
			c.Until("stale definition set aside", time.Minute, func() bool { return c.Count(sim.What(world.SetAside)) > 0 })
			c.Calm(20 * time.Second)
			once(c, 2, h.N())
		}}},
		{"lost data directory", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.KillAgent()
			h.LoseData()
			c.Sleep(5 * time.Second)
			h.StartAgent()
			c.Calm(time.Minute)
		}}},
		{"lost data directory of the master", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Master()
			h.KillAgent()
			h.LoseData()
			c.Sleep(5 * time.Second)
			h.StartAgent()
			c.Calm(time.Minute)
		}}},
		{"raft disk of the master hangs", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Master()
			h.HangDisk(true)
			c.Calm(time.Minute)
			if m := c.Master(); m == nil || m == h {
				c.Broken("the master did not step aside")
			}
		}}},
		{"VM stopped, crashed and started by its user", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			c.At(1).Machine.UserStop(sim.VMID(1), false)
			c.At(2).Machine.UserStop(sim.VMID(2), true)
			c.Until("crashed VM running again", time.Minute, func() bool { return len(c.World.RunsOn(sim.VMID(2))) == 1 })
			c.Calm(20 * time.Second)
			once(c, 1, 1)
			once(c, 2, 2)
			c.At(1).PowerOff(false)
			c.Sleep(20 * time.Second)
			once(c, 1, 1) // stopped stays stopped
			c.At(1).PowerOn()
			c.Sleep(20 * time.Second)
			c.UserStart(c.At(1), 1)
			c.Calm(10 * time.Second)
			c.At(1).PowerOff(false)
			c.Sleep(20 * time.Second)
			once(c, 3, 1)
		}}},
		{"migration", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			err := c.World.Migrate(sim.VMID(1), c.At(1).Machine, c.At(2).Machine, 5*time.Second, 500*time.Millisecond)
			if err != nil {
				c.Broken("%v", err)
			}
			c.Calm(10 * time.Second)
			c.Ledger(func(s *ledger.State) {
				if o := s.VMs[sim.VMID(1)].Owner; o != c.At(2).ID {
					c.Broken("owner after migration is %s", o)
				}
			})
			c.At(2).PowerOff(false)
			c.Sleep(20 * time.Second)
			if at := c.World.RunsOn(sim.VMID(1)); len(at) != 1 {
				c.Broken("migrated VM runs on %v after its host died", at)
			}
		}}},
		{"source dies while migrating", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			var wg sync.WaitGroup
			wg.Go(func() {
				_ = c.World.Migrate(sim.VMID(1), c.At(1).Machine, c.At(2).Machine, 5*time.Second, 500*time.Millisecond)
			})
			c.Sleep(4 * time.Second)
			c.At(1).PowerOff(false)
			c.Sleep(30 * time.Second)
			wg.Wait()
		}}},
		{"source dies right after the switch-over", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			var wg sync.WaitGroup
			wg.Go(func() {
				_ = c.World.Migrate(sim.VMID(1), c.At(1).Machine, c.At(2).Machine, 5*time.Second, 500*time.Millisecond)
			})
			c.Sleep(5*time.Second + 100*time.Millisecond)
			c.At(1).PowerOff(false)
			c.Sleep(30 * time.Second)
			wg.Wait()
			once(c, 1, 1)
		}}},
		{"migration to a host that boots", sim.Scenario{Hosts: 4, VMs: 4, BootTakes: 20 * time.Second, Script: func(c *sim.Cluster) {
			m := c.Master()
			h := c.Slave()
			h.PowerOff(false)
			c.Recovered(time.Minute, h.N())
			h.PowerOn() // its VM manager is up long before its agent
			c.Sleep(2 * time.Second)
			if err := c.World.Migrate(sim.VMID(m.N()), m.Machine, h.Machine, 3*time.Second, 500*time.Millisecond); err != nil {
				c.Broken("%v", err)
			}
			c.Calm(10 * time.Second)
			once(c, 1, m.N())
		}}},
		{"source dies after a migration to a host that boots", sim.Scenario{Hosts: 5, VMs: 5, BootTakes: 20 * time.Second, Script: func(c *sim.Cluster) {
			m := c.Master()
			h := c.Slave()
			h.PowerOff(false)
			c.Recovered(time.Minute, h.N())
			h.PowerOn()
			c.Sleep(2 * time.Second)
			var wg sync.WaitGroup
			wg.Go(func() {
				_ = c.World.Migrate(sim.VMID(m.N()), m.Machine, h.Machine, 3*time.Second, 500*time.Millisecond)
			})
			c.Sleep(3*time.Second + 200*time.Millisecond)
			m.PowerOff(false)
			c.Sleep(12 * time.Second)
			wg.Wait()
			once(c, 1, m.N())
		}}},
		{"target dies right after a migration", sim.Scenario{Hosts: 5, VMs: 5, Script: func(c *sim.Cluster) {
			var wg sync.WaitGroup
			wg.Go(func() {
				_ = c.World.Migrate(sim.VMID(1), c.At(1).Machine, c.At(2).Machine, 5*time.Second, 100*time.Millisecond)
			})
			c.Sleep(5*time.Second + 2*time.Millisecond)
			c.At(2).PowerOff(false)
			c.Sleep(40 * time.Second)
			wg.Wait()
			if at := c.World.RunsOn(sim.VMID(1)); len(at) != 1 {
				c.Broken("the VM runs on %v", at)
			}
		}}},
		{"target dies while starting", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Once(sim.Is(sim.StartCall), func(e sim.Event) {
				c.After(100*time.Millisecond, func() { c.Host(e.Host).PowerOff(false) })
			})
			h.PowerOff(false)
			c.Sleep(20 * time.Second)
		}}},
		{"target dies while starting, five hosts", sim.Scenario{Hosts: 5, VMs: 5, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Once(sim.Is(sim.StartCall), func(e sim.Event) {
				c.After(100*time.Millisecond, func() { c.Host(e.Host).PowerOff(false) })
			})
			h.PowerOff(false)
			c.Recovered(time.Minute, h.N())
			once(c, 2, h.N())
		}}},
		{"libvirt of the target hangs during the order", sim.Scenario{Hosts: 5, VMs: 5, Script: func(c *sim.Cluster) {
			h := c.Slave()
			var target *sim.Host
			c.Once(sim.Is(sim.StartCall), func(e sim.Event) {
				target = c.Host(e.Host)
				c.After(0, func() { c.Host(e.Host).HangLibvirt(true) })
			})
			h.PowerOff(false)
			c.Sleep(2 * time.Minute)
			once(c, 1, h.N()) // neither there nor anywhere else
			target.HangLibvirt(false)
			c.Recovered(30*time.Second, h.N())
			once(c, 2, h.N())
			if at := c.World.RunsOn(sim.VMID(h.N())); !slices.Contains(at, target.ID) {
				c.Broken("the VM runs on %v, its order went to %s", at, target.ID)
			}
		}}},
		{"target refuses to start", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Once(sim.Is(sim.StartCall), func(e sim.Event) {
				c.After(0, func() { c.Host(e.Host).Machine.Refuse(errors.New("no such machine type")) })
			})
			h.PowerOff(false)
			c.Recovered(time.Minute, h.N())
			once(c, 2, h.N())
		}}},
		{"agent of the target dies with the order", sim.Scenario{Hosts: 5, VMs: 5, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Once(sim.Is(sim.OrderSaved), func(e sim.Event) {
				c.Host(e.Host).KillAgent()
				c.After(10*time.Second, c.Host(e.Host).StartAgent)
			})
			h.PowerOff(false)
			c.Recovered(time.Minute, h.N())
			once(c, 2, h.N())
		}}},
		{"agent of the target dies in the start", sim.Scenario{Hosts: 5, VMs: 5, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Once(sim.Is(sim.StartCall), func(e sim.Event) {
				c.After(50*time.Millisecond, c.Host(e.Host).KillAgent)
				c.After(10*time.Second, c.Host(e.Host).StartAgent)
			})
			h.PowerOff(false)
			c.Recovered(time.Minute, h.N())
			once(c, 2, h.N())
		}}},
		{"target loses its data directory with the order", sim.Scenario{Hosts: 5, VMs: 5, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Once(sim.Is(sim.OrderSaved), func(e sim.Event) {
				c.Host(e.Host).KillAgent()
				c.After(time.Second, c.Host(e.Host).LoseData)
				c.After(5*time.Second, c.Host(e.Host).StartAgent)
			})
			h.PowerOff(false)
			c.Sleep(time.Minute)
			once(c, 1, h.N()) // nobody knows what became of the order
			c.Ledger(func(s *ledger.State) {
				if vm := s.VMs[sim.VMID(h.N())]; vm.Hold.Reason != haven.HoldOrderUnknown {
					c.Broken("the order is held by %q, want %s", vm.Hold.Reason, haven.HoldOrderUnknown)
				}
			})
		}}},
		{"master dies between off and proof", sim.Scenario{Hosts: 5, VMs: 5, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Once(sim.Is(sim.BMCOff), func(e sim.Event) {
				c.Host(e.By).KillAgent()
				c.After(20*time.Second, c.Host(e.By).StartAgent)
			})
			h.Freeze(true)
			c.Recovered(2*time.Minute, h.N())
			once(c, 2, h.N())
		}}},
		{"master's host dies between order and report", sim.Scenario{Hosts: 5, VMs: 5, Script: func(c *sim.Cluster) {
			h := c.Slave()
			m := c.Master()
			c.Once(sim.Is(sim.OrderSaved), func(e sim.Event) {
				c.After(0, func() { m.PowerOff(false) })
			})
			h.PowerOff(false)
			c.Recovered(2*time.Minute, h.N(), m.N())
		}}},
		{"master is cut off between order and confirmation", sim.Scenario{Hosts: 5, VMs: 5, Script: func(c *sim.Cluster) {
			h := c.Slave()
			m := c.Master()
			// There is most room on the others, so the order is not the master's own.
			c.UserStart(m, 6)
			c.Sleep(5 * time.Second)
			c.Once(sim.Is(sim.OrderSaved), func(e sim.Event) {
				c.After(0, func() { c.Isolate(m, true) })
			})
			h.PowerOff(false)
			c.Recovered(time.Minute, h.N())
			once(c, 2, h.N())
		}}},
		{"target is cut off with the order", sim.Scenario{Hosts: 5, VMs: 5, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.UserStart(c.Master(), 6)
			c.Sleep(5 * time.Second)
			c.Once(sim.Is(sim.OrderSaved), func(e sim.Event) {
				c.After(0, func() { c.Isolate(c.Host(e.Host), true) })
			})
			h.PowerOff(false)
			c.Sleep(time.Minute)
			once(c, 1, h.N()) // it may not start it, and nobody else may
			c.Ledger(func(s *ledger.State) {
				if vm := s.VMs[sim.VMID(h.N())]; vm.Hold.Reason != haven.HoldOrderUnknown {
					c.Broken("the order is held by %q, want %s", vm.Hold.Reason, haven.HoldOrderUnknown)
				}
			})
		}}},
		{"witness", sim.Scenario{Hosts: 2, Witnesses: 1, VMs: 2, Script: func(c *sim.Cluster) {
			h := c.At(1)
			h.PowerOff(false)
			c.Recovered(time.Minute, h.N())
			once(c, 2, h.N())
		}}},
		{"witness, and a hang", sim.Scenario{Hosts: 2, Witnesses: 1, VMs: 2, Script: func(c *sim.Cluster) {
			h := c.At(1)
			h.Freeze(true)
			c.Recovered(2*time.Minute, h.N())
			once(c, 2, h.N())
		}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if underRace && i%12 != 0 {
				t.Skip("a sample is enough under the race detector")
			}
			t.Parallel()
			tt.s.Seed = 1
			run(t, tt.s)
		})
	}
}

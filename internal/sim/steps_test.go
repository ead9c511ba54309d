package sim_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/sim"
)

// TestMasterKilledAfterEachStep guards P7: a recovery whose master dies right
// after any one of its ledger entries is finished by the next master, and
// nothing is started twice. The recovery is played once to learn how many
// entries it has, and then once for each of them.
func TestMasterKilledAfterEachStep(t *testing.T) {
	breaks := map[string]func(c *sim.Cluster, h *sim.Host){
		"power cut":   func(_ *sim.Cluster, h *sim.Host) { h.PowerOff(false) },
		"kernel hang": func(_ *sim.Cluster, h *sim.Host) { h.Freeze(true) },
		"mains cut, operator": func(c *sim.Cluster, h *sim.Host) {
			h.PowerOff(true)
			c.After(20*time.Second, func() { confirmUntilTaken(c, h) })
		},
	}
	kills := map[string]func(c *sim.Cluster, m *sim.Host){
		// An agent that is killed comes back after a while, a host does not.
		"agent": func(c *sim.Cluster, m *sim.Host) {
			m.KillAgent()
			c.After(30*time.Second, m.StartAgent)
		},
		"host": func(c *sim.Cluster, m *sim.Host) { c.After(0, func() { m.PowerOff(false) }) },
	}
	for what, breakIt := range breaks {
		t.Run(what, func(t *testing.T) {
			if underRace && what != "power cut" {
				t.Skip("a sample is enough under the race detector")
			}
			t.Parallel()
			steps := playSteps(t, breakIt, nil, 0)
			if steps < 5 {
				t.Fatalf("a recovery of %d ledger entries is none", steps)
			}
			t.Logf("%d ledger entries", steps)
			for who, kill := range kills {
				for k := 1; k <= steps; k += stride(what, who) {
					t.Run(fmt.Sprintf("%s killed after entry %d", who, k), func(t *testing.T) {
						playSteps(t, breakIt, kill, k)
					})
				}
			}
		})
	}
}

// stride is 1 where every step is played: for an agent that is killed in the
// recovery from a power cut and from a hang, and for everything when seeds were
// asked for by number. Other kinds are sampled.
func stride(what, who string) int {
	switch {
	case *flagSeeds > 0:
		return 1
	case underRace:
		return 9
	case who == "agent" && what != "mains cut, operator":
		return 1
	}
	return 4
}

func confirmUntilTaken(c *sim.Cluster, h *sim.Host) {
	for range 60 {
		proved := false
		c.Ledger(func(s *ledger.State) { proved = s.Hosts[h.ID].ProvedDead() })
		if proved {
			return
		}
		c.ConfirmDead(h)
		c.Sleep(time.Second)
	}
}

// playSteps breaks a host, kills the master after the k-th ledger entry of the
// recovery, and returns how many entries there were.
func playSteps(t *testing.T, breakIt func(*sim.Cluster, *sim.Host), kill func(*sim.Cluster, *sim.Host), k int) int {
	t.Helper()
	var entries, last atomic.Uint64
	var killed *sim.Host
	run(t, sim.Scenario{Seed: uint64(k) + 1, Hosts: 5, VMs: 10, Script: func(c *sim.Cluster) {
		victim := c.Slave()
		vms := []int{victim.N(), victim.N() + 5}
		off := c.On(func(e sim.Event) {
			if e.What != sim.Commit || last.Swap(e.Index) == e.Index {
				return
			}
			if n := entries.Add(1); kill != nil && n == uint64(k) {
				killed = c.Host(e.Host)
				kill(c, killed)
			}
		})
		breakIt(c, victim)
		c.Recovered(5*time.Minute, vms...)
		c.Until("the end of the incident", time.Minute, func() bool {
			open := false
			c.Ledger(func(s *ledger.State) { open = s.Hosts[victim.ID].Incident != "" })
			return !open
		})
		off()
		if killed == nil || killed.Boot() != "" {
			once(c, 2, vms...) // else it may have died with a VM that was just started
		}
	}})
	return int(entries.Load())
}

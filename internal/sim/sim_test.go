package sim_test

import (
	"testing"

	"github.com/haven-ha/haven/internal/sim"
)

// run plays a scenario, with its transcript when asked for.
func run(t *testing.T, s sim.Scenario) *sim.Result {
	t.Helper()
	s.Logs = true
	r := sim.Run(t, s)
	if *flagTrace && !t.Failed() {
		t.Logf("%s virtual\n%s", r.Virtual, r.Transcript(true))
	}
	return r
}

func TestQuiet(t *testing.T) {
	run(t, sim.Scenario{Seed: 1, VMs: 3})
}

func TestPowerCut(t *testing.T) {
	run(t, sim.Scenario{Seed: 1, VMs: 3, Script: func(c *sim.Cluster) {
		for _, h := range c.Hosts() {
			if h != c.Master() {
				h.PowerOff(false)
				break
			}
		}
		c.Sleep(10e9)
	}})
}

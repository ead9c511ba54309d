package sim_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/haven-ha/haven/internal/sim"
	"github.com/haven-ha/haven/internal/sim/simnet"
)

// seedsByDefault is how many seeds plain tests run: a sample that takes half a
// minute on two cores.
func seedsByDefault() int {
	if underRace {
		return 1
	}
	return 12
}

// chaos is the scenario of a seed: its size and its network are drawn as well.
func chaos(seed uint64) sim.Scenario {
	s := sim.Scenario{Seed: seed, Hosts: 3 + int(seed%3), VMs: 6, Stores: 1 + int(seed/3%2)}
	if seed%7 == 0 {
		s.Hosts, s.Witnesses = 2, 1
	}
	if seed%5 == 0 {
		s.Link = simnet.Link{Latency: 2 * time.Millisecond, Jitter: 20 * time.Millisecond, Loss: 0.01}
	}
	x := sim.Chaos{For: 6 * time.Minute, Every: 12 * time.Second}
	s.Script = x.Script
	return s
}

// TestSeeds plays random faults, and checks all promises (P1 to P7).
func TestSeeds(t *testing.T) {
	first, n := uint64(1), uint64(seedsByDefault())
	if *flagSeeds > 0 {
		n = uint64(*flagSeeds)
	}
	if *flagSeed >= 0 {
		first, n = uint64(*flagSeed), 1
	}
	for seed := first; seed < first+n; seed++ {
		for i := range *flagRepeat {
			t.Run(fmt.Sprintf("%d.%d", seed, i), func(t *testing.T) {
				t.Parallel()
				run(t, chaos(seed))
				if t.Failed() {
					t.Logf("again: go test ./internal/sim/ -run TestSeeds -args -seed %d -repeat 10", seed)
				}
			})
		}
	}
}

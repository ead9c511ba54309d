package sim_test

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/sim"
	"github.com/haven-ha/haven/internal/sim/simnet"
)

// noise is what goes on in a cluster in which nothing is broken: a share of all
// packets is lost, or one host after the other stands still for a while.
type noise struct {
	loss  float64
	stall time.Duration
}

func (n noise) String() string {
	if n.stall > 0 {
		return fmt.Sprintf("stalls of %s", n.stall)
	}
	return fmt.Sprintf("loss %.0f %%", n.loss*100)
}

// Times of one life: noise alone, then a power cut in the midst of it.
const (
	watchFor   = 2 * time.Minute
	stallEvery = 10 * time.Second
	lookEvery  = 50 * time.Millisecond
)

// tally is what a master concluded in one life, or in several.
type tally struct {
	lives     int
	watched   time.Duration // of hosts: two of them for a minute are two minutes
	suspected int           // times that a live host became suspect
	wrong     map[haven.Verdict]int
	fences    int // power commands to live hosts
	found     []time.Duration
	missed    int // power cuts that were not found in time
}

func (a *tally) add(b *tally) {
	a.lives += b.lives
	a.watched += b.watched
	a.suspected += b.suspected
	for v, n := range b.wrong {
		a.wrong[v] += n
	}
	a.fences += b.fences
	a.found = append(a.found, b.found...)
	a.missed += b.missed
}

// watch looks at the master's verdicts of live hosts. Unknown is no conclusion,
// and suspect only makes it look closer; everything else but healthy is wrong.
func (a *tally) watch(c *sim.Cluster, last map[haven.HostID]haven.Verdict) {
	m := c.Master()
	if m == nil {
		return
	}
	agent := m.Agent()
	if agent == nil {
		return
	}
	for _, h := range c.Hosts() {
		v := agent.Verdict(h.ID)
		if v != last[h.ID] && h.Boot() != "" {
			switch v {
			case haven.VerdictHealthy, haven.VerdictUnknown:
			case haven.VerdictSuspect:
				a.suspected++
			default:
				a.wrong[v]++
			}
		}
		last[h.ID] = v
	}
}

// live plays one life of a cluster.
func live(t *testing.T, hosts int, n noise, seed uint64) *tally {
	a := &tally{lives: 1, wrong: map[haven.Verdict]int{}}
	var fences atomic.Int64
	s := sim.Scenario{Seed: seed, Hosts: hosts, VMs: min(hosts, 6), Unsettled: true}
	s.Link = simnet.Link{Latency: 300 * time.Microsecond, Jitter: 400 * time.Microsecond, Loss: n.loss}
	s.Script = func(c *sim.Cluster) {
		defer c.On(func(e sim.Event) {
			if e.What == sim.BMCOff && e.Boot != "" {
				fences.Add(1)
			}
		})()
		last := map[haven.HostID]haven.Verdict{}
		stalled := c.Slave()
		look := func(until time.Duration, done func() bool) {
			for next := c.Now() + stallEvery/2; c.Now() < until && (done == nil || !done()); {
				if n.stall > 0 && c.Now() >= next && done == nil {
					next += stallEvery
					stalled = c.Hosts()[c.Rand().IntN(hosts)]
					stalled.Freeze(true)
					c.After(n.stall, func() { stalled.Freeze(false) })
				}
				c.Sleep(lookEvery)
				a.watch(c, last)
			}
		}
		look(c.Now()+watchFor, nil)
		c.Sleep(max(0, n.stall-stallEvery/2))
		a.watched += watchFor * time.Duration(hosts)
		victim, begun := c.Slave(), c.Now()
		if n.stall > 0 {
			c.After(100*time.Millisecond, func() {
				for _, h := range c.Hosts() {
					if h != victim && h != c.Master() {
						h.Freeze(true)
						c.After(n.stall, func() { h.Freeze(false) })
						return
					}
				}
			})
		}
		victim.PowerOff(false)
		look(begun+time.Minute, func() bool { return last[victim.ID] == haven.VerdictDead })
		if last[victim.ID] == haven.VerdictDead {
			a.found = append(a.found, c.Now()-begun)
		} else {
			a.missed++
		}
		for _, h := range c.Hosts() {
			h.Freeze(false)
		}
	}
	run(t, s)
	a.fences = int(fences.Load())
	return a
}

func (a *tally) row(hosts int, n noise) string {
	slices.Sort(a.found)
	found := "–"
	if len(a.found) > 0 {
		found = fmt.Sprintf("%.1f (%.1f–%.1f)", a.found[len(a.found)/2].Seconds(), a.found[0].Seconds(), a.found[len(a.found)-1].Seconds())
	}
	var wrong []string
	for v, n := range a.wrong {
		wrong = append(wrong, fmt.Sprintf("%s %d", v, n))
	}
	slices.Sort(wrong)
	text := strings.Join(wrong, ", ")
	if text == "" {
		text = "0"
	}
	return fmt.Sprintf("| %d | %s | %d | %s | %d | %.1f | %s | %d |", hosts, n, a.lives, found, a.missed,
		float64(a.suspected)/a.watched.Hours(), text, a.fences)
}

// TestDetection guards P4 and P5: noise alone leads to no power command, and a
// power cut in the midst of it is found. With -args -table it plays every size
// and every noise and prints the table of docs/performance.md.
func TestDetection(t *testing.T) {
	lives := map[int]int{3: 1}
	noises := []noise{{loss: 0.2}, {stall: 6 * time.Second}}
	if underRace {
		noises = noises[:1]
	}
	if *flagTable > 0 {
		lives = map[int]int{3: 5 * *flagTable, 5: 5 * *flagTable, 16: 2 * *flagTable, 50: *flagTable}
		noises = []noise{
			{},
			{loss: 0.01},
			{loss: 0.05},
			{loss: 0.1},
			{loss: 0.2},
			{stall: 300 * time.Millisecond},
			{stall: time.Second},
			{stall: 3 * time.Second},
			{stall: 6 * time.Second},
		}
	}
	for _, hosts := range []int{3, 5, 16, 50} {
		for _, n := range noises {
			if lives[hosts] == 0 {
				continue
			}
			all := &tally{wrong: map[haven.Verdict]int{}}
			t.Run(fmt.Sprintf("%d hosts, %s", hosts, n), func(t *testing.T) {
				for seed := range lives[hosts] {
					all.add(live(t, hosts, n, uint64(seed+1)))
				}
				if all.fences > 0 {
					t.Errorf("%d power commands, and nothing was broken but by a power cut", all.fences)
				}
			})
			t.Log(all.row(hosts, n))
		}
	}
}

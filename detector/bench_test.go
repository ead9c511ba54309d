package detector

import (
	"fmt"
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

// BenchmarkStep is one Step of a master over n hosts with two stores each, all
// healthy, and with one host in ten silent.
func BenchmarkStep(b *testing.B) {
	for _, n := range []int{3, 50, 1000} {
		for _, silent := range []int{0, 10} {
			b.Run(fmt.Sprintf("hosts=%d/silent=%d%%", n, silent), func(b *testing.B) {
				cfg := Normal()
				cfg.Stores, cfg.StartupGrace = 2, 0
				m, err := New(cfg)
				if err != nil {
					b.Fatal(err)
				}
				in := benchInput(n)
				now := time.Duration(0)
				b.ReportAllocs()
				for b.Loop() {
					now += tick
					age(&in, now, silent)
					m.Step(now, in)
				}
			})
		}
	}
}

func benchInput(n int) Input {
	in := Input{Self: Self{Host: "h0", Master: true}}
	stores := []string{"s0", "s1"}
	for i := range n {
		h := Host{ID: haven.HostID(fmt.Sprintf("h%d", i)), Configured: true, Role: haven.RoleHypervisor, Boot: "x", Gossip: Gossip{State: GossipAlive}}
		o := Observer{Host: h.ID, Majority: haven.Yes, LoopOK: haven.Yes}
		for _, s := range stores {
			o.Stores = append(o.Stores, StoreView{Store: s, OwnBack: haven.Yes, Others: haven.Yes})
			for _, w := range []Writer{WriterAgent, WriterHelper} {
				h.Beats = append(h.Beats, Beat{Store: s, Writer: w, Reader: "h0", Changed: true, Moving: haven.Yes})
			}
		}
		in.Hosts, in.Observers = append(in.Hosts, h), append(in.Observers, o)
	}
	return in
}

func age(in *Input, now time.Duration, silent int) {
	for i := range in.Hosts {
		in.Observers[i].At = now
		for k := range in.Hosts[i].Beats {
			in.Hosts[i].Beats[k].ReadAt = now
			if silent == 0 || i%silent != 1 {
				in.Hosts[i].Beats[k].ChangedAt = now
			} else if now > 4*time.Second {
				in.Hosts[i].Beats[k].Moving = haven.No
			}
		}
		if silent == 0 || i%silent != 1 {
			in.Hosts[i].Report = Report{Heard: true, At: now}
		}
	}
}

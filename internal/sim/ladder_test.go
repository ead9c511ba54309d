package sim_test

import (
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/sim"
)

// fencingOf changes keys of the fencing section.
func fencingOf(keys string) func(string) string {
	return func(yaml string) string { return strings.Replace(yaml, "  action: off\n", "  "+keys+"\n", 1) }
}

// held waits until an incident about a host is held for a reason.
func held(c *sim.Cluster, h *sim.Host, reason string, limit time.Duration) {
	c.Until(string(h.ID)+" to be held: "+reason, limit, func() bool {
		is := false
		c.Ledger(func(s *ledger.State) {
			in := s.Incidents[s.Hosts[h.ID].Incident]
			is = in != nil && in.Hold.Reason == reason
		})
		return is
	})
}

// killFor kills an agent, and starts it again after a while: its word is needed.
func killFor(c *sim.Cluster, h *sim.Host, d time.Duration) {
	h.KillAgent()
	c.After(d, h.StartAgent)
}

// proofDetail is the proof of the latest incident about a host.
func proofDetail(c *sim.Cluster, h *sim.Host) (detail string) {
	c.Ledger(func(s *ledger.State) {
		var latest time.Time
		for _, in := range s.Incidents {
			if in.Host == h.ID && in.Proof != nil && in.OpenedAt.After(latest) {
				latest = in.OpenedAt
				detail = string(in.Proof.Kind) + ": " + in.Proof.Detail
			}
		}
	})
	return detail
}

// TestLadder plays ladders of several devices, the actions, and boards that come
// back: P1, P2, P6, P7.
func TestLadder(t *testing.T) {
	const psus = 2
	for i, tt := range []struct {
		name string
		s    sim.Scenario
	}{
		{"two supplies: both off", sim.Scenario{VMs: 3, Supplies: psus, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.Freeze(true)
			c.Recovered(time.Minute, h.N())
			commands(c, 2)
			if why := proofDetail(c, h); !strings.Contains(why, "psu-2: off, together") {
				c.Broken("proved by %s", why)
			}
			c.Calm(30 * time.Second)
			once(c, 2, h.N())
		}}},
		{"two supplies: one is off while the host lives", sim.Scenario{VMs: 3, Supplies: psus, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.Outlets[0].Switch(false)
			c.Calm(3 * time.Minute)
			c.Ledger(func(s *ledger.State) {
				if why := s.Hosts[h.ID].Power.Distrust; why != "" {
					c.Broken("one supply of two is off, and that is no lie: %s", why)
				}
			})
			once(c, 1, h.N())
		}}},
		{"two supplies: one is off, the other unreadable, and the host silent", sim.Scenario{VMs: 3, Supplies: psus, Unsettled: true, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.Outlets[0].Switch(false)
			sim.Kill(h.Outlets[1])
			sim.Kill(h.BMC)
			h.Freeze(true) // its VMs can write again when it goes on
			held(c, h, haven.HoldFenceBlocked, 4*time.Minute)
			once(c, 1, h.N())
			h.Freeze(false)
			c.Calm(time.Minute)
			once(c, 1, h.N())
		}}},
		{"two supplies: one lags", sim.Scenario{VMs: 3, Supplies: psus, Script: func(c *sim.Cluster) {
			h := c.Slave()
			sim.Slow(h.Outlets[1], time.Second, 8*time.Second, 3*time.Second)
			h.Freeze(true)
			c.Recovered(2*time.Minute, h.N())
			once(c, 2, h.N())
		}}},
		{"two supplies: one comes back", sim.Scenario{VMs: 3, Supplies: psus, Script: func(c *sim.Cluster) {
			h := c.Slave()
			sim.Slow(h.Outlets[1], 60*time.Millisecond, 0, 5*time.Second) // the first one waits for it
			c.Once(sim.Is(sim.BMCOff), func(sim.Event) {
				c.After(3*time.Second, func() { h.Outlets[0].Switch(true) })
			})
			h.Freeze(true)
			c.Recovered(2*time.Minute, h.N())
			if n := c.Count(sim.BMCOff); n < 3 {
				c.Broken("%d power commands: the supply that came back was not powered off again", n)
			}
			once(c, 2, h.N())
		}}},
		{"two supplies: one board is dead, the BMC goes on", sim.Scenario{VMs: 3, Supplies: psus, Script: func(c *sim.Cluster) {
			h := c.Slave()
			sim.Kill(h.Outlets[1])
			h.Freeze(true)
			c.Recovered(4*time.Minute, h.N())
			if why := proofDetail(c, h); !strings.Contains(why, "level 2: bmc: off") {
				c.Broken("proved by %s", why)
			}
			once(c, 2, h.N())
		}}},
		{"two supplies: the master dies in the middle", sim.Scenario{Hosts: 5, VMs: 5, Supplies: psus, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Once(sim.Is(sim.BMCOff), func(e sim.Event) { killFor(c, c.Host(e.By), 30*time.Second) })
			h.Freeze(true)
			c.Recovered(4*time.Minute, h.N())
			once(c, 2, h.N())
		}}},
		{"reboot", sim.Scenario{VMs: 3, Config: fencingOf("action: reboot"), Script: func(c *sim.Cluster) {
			h := c.Slave()
			boot := h.Boot()
			h.Freeze(true)
			c.Recovered(time.Minute, h.N())
			c.Until("the host to be back", time.Minute, func() bool { return h.Boot() != "" && h.Boot() != boot && h.Up() })
			c.Calm(time.Minute)
			commands(c, 1)
			once(c, 2, h.N())
		}}},
		{"reboot of two supplies", sim.Scenario{VMs: 3, Supplies: psus, Config: fencingOf("action: reboot"), Script: func(c *sim.Cluster) {
			h := c.Slave()
			boot := h.Boot()
			h.Freeze(true)
			c.Recovered(time.Minute, h.N())
			c.Until("the host to be back", 3*time.Minute, func() bool { return h.Boot() != "" && h.Boot() != boot && h.Up() })
			c.Calm(time.Minute)
			commands(c, psus)
			once(c, 2, h.N())
		}}},
		{"blink", sim.Scenario{VMs: 3, Config: fencingOf("action: blink"), Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.Freeze(true)
			held(c, h, haven.HoldActionNone, time.Minute)
			c.Sleep(2 * time.Minute)
			commands(c, 0)
			once(c, 1, h.N())
			if c.Count(sim.BMCBlinks) == 0 {
				c.Broken("no light blinks")
			}
			h.PowerOff(false)
			c.Recovered(time.Minute, h.N())
			once(c, 2, h.N())
		}}},
		{"power restored by itself in the middle", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Once(sim.Is(sim.BMCOff), func(sim.Event) { c.After(900*time.Millisecond, h.PowerOn) })
			h.Freeze(true)
			c.Recovered(2*time.Minute, h.N())
			c.Calm(30 * time.Second)
			once(c, 2, h.N())
		}}},
		{"mains cut, and the BMC comes back", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.PowerOff(true)
			held(c, h, haven.HoldFenceBlocked, 3*time.Minute)
			c.Ledger(func(s *ledger.State) {
				detail := s.Incidents[s.Hosts[h.ID].Incident].Hold.Detail
				for _, want := range []string{"bmc: not proved off", "device does not answer", "next attempt in", "haven fence confirm " + string(h.ID)} {
					if !strings.Contains(detail, want) {
						c.Broken("the hold does not say %q: %s", want, detail)
					}
				}
			})
			sim.Light(h.BMC)
			c.Recovered(6*time.Minute, h.N())
			commands(c, 0)
			once(c, 2, h.N())
		}}},
		{"mains cut, and the host comes back", sim.Scenario{VMs: 3, Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.PowerOff(true)
			held(c, h, haven.HoldFenceBlocked, 3*time.Minute)
			h.PowerOn()
			c.Recovered(time.Minute, h.N())
			commands(c, 0)
			once(c, 2, h.N())
		}}},
		{"two incidents at the cap", sim.Scenario{Hosts: 5, VMs: 5, Config: fencingOf("action: off\n  limit: {count: 1}"), Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.Freeze(true)
			c.Recovered(time.Minute, h.N())
			o := c.At(1)
			for _, x := range c.Hosts() {
				if x != h && x != c.Master() {
					o = x
				}
			}
			o.Freeze(true)
			held(c, o, haven.HoldCap, time.Minute)
			c.Sleep(time.Minute)
			commands(c, 1)
			killFor(c, c.Master(), 30*time.Second) // the limit outlives the master
			c.Sleep(2 * time.Minute)
			commands(c, 1)
			o.PowerOff(false) // what is proved needs no power command
			c.Recovered(time.Minute, o.N())
		}}},
		{"cap reset", sim.Scenario{VMs: 3, Config: fencingOf("action: off\n  limit: {count: 5, per_host: {count: 1}}"), Script: func(c *sim.Cluster) {
			h := c.Slave()
			h.Freeze(true)
			c.Recovered(time.Minute, h.N())
			h.PowerOn()
			c.Calm(time.Minute)
			c.UserStart(h, 9)
			c.Sleep(5 * time.Second)
			h.Freeze(true)
			held(c, h, haven.HoldCap, time.Minute)
			c.Sleep(time.Minute)
			commands(c, 1)
			if err := c.Operate(client.PathCapReset, client.Act{Reason: "the board was replaced"}); err != nil {
				c.Broken("cap reset: %v", err)
			}
			c.Recovered(time.Minute, 9)
			commands(c, 2)
		}}},
		{"an operator's off and on", sim.Scenario{VMs: 3, Config: fencingOf("action: none"), Script: func(c *sim.Cluster) {
			h := c.Slave()
			boot := h.Boot()
			off := client.FencePath(h.ID, haven.ActionOff)
			if err := c.Operate(off, client.Act{Reason: "a mistake"}); err == nil {
				c.Broken("a live host was powered off without force")
			}
			h.Freeze(true)
			held(c, h, haven.HoldActionNone, time.Minute)
			if err := c.Operate(off, client.Act{Reason: "it hangs"}); err != nil {
				c.Broken("off: %v", err)
			}
			c.Recovered(time.Minute, h.N())
			commands(c, 1)
			if err := c.Operate(client.FencePath(h.ID, haven.ActionOn), client.Act{Reason: "again"}); err != nil {
				c.Broken("on: %v", err)
			}
			c.Until("the host to be back", time.Minute, func() bool { return h.Boot() != "" && h.Boot() != boot && h.Up() })
			c.Calm(time.Minute)
			once(c, 2, h.N())
			c.Ledger(func(s *ledger.State) {
				if len(s.Acts) != 2 || s.Acts[0].Action != haven.ActionOff || s.Acts[0].By == "" || s.Acts[1].Reason != "again" {
					c.Broken("the record of acts is %+v", s.Acts)
				}
			})
		}}},
	} {
		tt.s.Seed = uint64(7000 + i)
		t.Run(tt.name, func(t *testing.T) {
			if underRace && i%8 != 0 {
				t.Skip("a sample is enough under the race detector")
			}
			t.Parallel()
			run(t, tt.s)
		})
	}
}

package sim_test

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/agent"
	"github.com/haven-ha/haven/internal/sim"
)

// TestPlanted proves that the checker sees: each scenario gives the agents a lie
// that no rule can see through, and the checker must name the broken promise.
func TestPlanted(t *testing.T) {
	for _, tt := range []struct {
		name string
		want []string
		s    sim.Scenario
	}{
		{"a board lies and everything else is blind", []string{"P1", "P2"}, sim.Scenario{VMs: 3, Unsettled: true, Script: func(c *sim.Cluster) {
			h := c.Slave()
			c.Isolate(h, true)
			c.Store(h, sim.StoreHangs)
			c.Lie(h, haven.PowerOff)
			c.Sleep(time.Minute)
		}}},
		{"inventories say that a VM crashed while it runs", []string{"P1"}, sim.Scenario{VMs: 3, Unsettled: true, Wrap: hideVM(1), Script: func(c *sim.Cluster) {
			c.Sleep(3 * time.Minute)
		}}},
		{"boards say off about hosts that hang", []string{"P1", "P2"}, liars()},
		{"power commands without permission", []string{"P4"}, sim.Scenario{VMs: 3, Unsettled: true, Wrap: shootAtSight, Script: func(c *sim.Cluster) {
			c.Sleep(time.Minute)
		}}},
		{"watchdogs say that they reset, and do not", []string{"P1", "P2"}, sim.Scenario{VMs: 3, Dogs: true, Unsettled: true, Wrap: tameDogs, Script: func(c *sim.Cluster) {
			h := c.Slave()
			sim.Kill(h.BMC)
			c.Silence(h, true)
			c.Sleep(time.Minute)
		}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.s.Seed, tt.s.Logs = 1, true
			r := sim.Play(t, tt.s)
			for _, promise := range tt.want {
				if !slices.ContainsFunc(r.Violations, func(v string) bool { return strings.HasPrefix(v, promise) }) {
					t.Errorf("no violation of %s was found: %v\n%s", promise, r.Violations, r.Transcript(false))
				}
			}
		})
	}
}

// tameDogs makes devices keep a timeout of a minute, whatever they are told and say.
func tameDogs(_ *sim.Host, d *agent.Deps) {
	if d.Watchdog == nil {
		return
	}
	open := d.Watchdog.Open
	d.Watchdog.Open = func(device string, takeOver bool) (agent.WatchdogDevice, error) {
		dev, err := open(device, takeOver)
		if err != nil {
			return nil, err
		}
		return &tameDog{WatchdogDevice: dev}, nil
	}
}

type tameDog struct {
	agent.WatchdogDevice
	said time.Duration
}

func (d *tameDog) SetTimeout(t time.Duration) (time.Duration, error) {
	d.said = t
	return t, nil
}

func (d *tameDog) Timeout() (time.Duration, error) {
	if d.said > 0 {
		return d.said, nil
	}
	return d.WatchdogDevice.Timeout()
}

// hideVM makes the VM manager of every host say, from half a minute on, that a
// running VM crashed.
func hideVM(n int) func(*sim.Host, *agent.Deps) {
	return func(_ *sim.Host, d *agent.Deps) {
		d.Hypervisor = blind{d.Hypervisor, sim.VMID(n), time.Now()}
	}
}

type blind struct {
	agent.Hypervisor
	vm    haven.VMID
	since time.Time
}

func (b blind) Inventory(ctx context.Context) (haven.Inventory, error) {
	inv, err := b.Hypervisor.Inventory(ctx)
	if time.Since(b.since) < 30*time.Second {
		return inv, err
	}
	for i := range inv.VMs {
		if inv.VMs[i].ID == b.vm {
			inv.VMs[i].State, inv.VMs[i].Reason = haven.VMCrashed, "crashed"
		}
	}
	inv.Processes = slices.DeleteFunc(inv.Processes, func(id haven.VMID) bool { return id == b.vm })
	return inv, err
}

// liars is a cluster whose boards tell the truth until a host hangs.
func liars() sim.Scenario {
	var hang atomic.Bool
	return sim.Scenario{
		VMs: 3, Unsettled: true,
		Wrap: func(_ *sim.Host, d *agent.Deps) {
			eachDriver(d, func(inner fencing.Driver) fencing.Driver { return liar{inner, &hang} })
		},
		Script: func(c *sim.Cluster) {
			hang.Store(true)
			c.Slave().Freeze(true)
			c.Sleep(time.Minute)
		},
	}
}

type liar struct {
	fencing.Driver
	lies *atomic.Bool
}

func (l liar) Power(ctx context.Context) (fencing.Reading, error) {
	r, err := l.Driver.Power(ctx)
	if err == nil && l.lies.Load() {
		r.State = haven.PowerOff
	}
	return r, err
}

// shootAtSight sends a power-off with every reading, from half a minute on.
func shootAtSight(_ *sim.Host, d *agent.Deps) {
	eachDriver(d, func(inner fencing.Driver) fencing.Driver { return trigger{inner, time.Now()} })
}

type trigger struct {
	fencing.Driver
	since time.Time
}

func (s trigger) Power(ctx context.Context) (fencing.Reading, error) {
	if time.Since(s.since) > 30*time.Second {
		if err := s.Set(ctx, haven.ActionOff, nil); err != nil {
			return fencing.Reading{}, err
		}
	}
	return s.Driver.Power(ctx)
}

func eachDriver(d *agent.Deps, wrap func(fencing.Driver) fencing.Driver) {
	for _, ladder := range d.Fences {
		for _, level := range ladder {
			for i := range level {
				level[i].Driver = wrap(level[i].Driver)
			}
		}
	}
}

package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/sim/simnet"
)

// cut is a set of directions that are cut, or lossy, by one fault.
type cut struct {
	routes [][2]netip.Addr
	loss   float64 // 0: nothing arrives
}

// setCut begins or ends a fault of the network. Faults overlap: a direction is
// whole again when the last fault that touches it ended.
func (c *Cluster) setCut(name string, f *cut) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f == nil {
		delete(c.cuts, name)
	} else {
		c.cuts[name] = *f
	}
	c.net.Heal()
	for _, f := range c.cuts {
		for _, r := range f.routes {
			l := c.s.Link
			l.Loss, l.Cut = max(l.Loss, f.loss), f.loss == 0
			c.net.Set(r[0], r[1], &l)
		}
	}
	for _, f := range c.cuts { // A cut goes before a loss.
		for _, r := range f.routes {
			if f.loss == 0 {
				c.net.Set(r[0], r[1], &simnet.Link{Cut: true})
			}
		}
	}
}

// Isolate cuts a machine's management network, or puts it back.
func (c *Cluster) Isolate(h *Host, on bool) {
	name := "isolate " + string(h.ID)
	c.tell(on, h, "cut off the management network")
	if !on {
		c.setCut(name, nil)
		return
	}
	var f cut
	for _, o := range c.hosts {
		if o != h {
			f.routes = append(f.routes, [2]netip.Addr{h.Addr, o.Addr}, [2]netip.Addr{o.Addr, h.Addr})
		}
	}
	c.setCut(name, &f)
}

// CutOneWay cuts one direction between two machines, or puts it back.
func (c *Cluster) CutOneWay(from, to *Host, on bool) {
	name := fmt.Sprintf("one way %s %s", from.ID, to.ID)
	c.tell(on, from, "cannot send to "+string(to.ID))
	if !on {
		c.setCut(name, nil)
		return
	}
	c.setCut(name, &cut{routes: [][2]netip.Addr{{from.Addr, to.Addr}}})
}

// Deafen cuts all that a machine is sent, or all that it sends.
func (c *Cluster) Deafen(h *Host, inward, on bool) {
	what := "is heard by nobody"
	if inward {
		what = "hears nobody"
	}
	c.tell(on, h, what)
	var f cut
	for _, o := range c.hosts {
		switch {
		case o == h:
		case inward:
			f.routes = append(f.routes, [2]netip.Addr{o.Addr, h.Addr})
		default:
			f.routes = append(f.routes, [2]netip.Addr{h.Addr, o.Addr})
		}
	}
	if on {
		c.setCut(what+string(h.ID), &f)
	} else {
		c.setCut(what+string(h.ID), nil)
	}
}

// Partition cuts the given machines off all others, or ends that.
func (c *Cluster) Partition(some []*Host, on bool) {
	var f cut
	names := []string{"partition"}
	for _, a := range some {
		names = append(names, string(a.ID))
		for _, b := range c.hosts {
			if !slices.Contains(some, b) {
				f.routes = append(f.routes, [2]netip.Addr{a.Addr, b.Addr}, [2]netip.Addr{b.Addr, a.Addr})
			}
		}
	}
	name := strings.Join(names, " ")
	c.tell(on, some[0], name)
	if on {
		c.setCut(name, &f)
	} else {
		c.setCut(name, nil)
	}
}

// Lossy makes the network lose a share of what a machine sends and is sent.
func (c *Cluster) Lossy(h *Host, share float64, on bool) {
	c.tell(on, h, fmt.Sprintf("%.0f %% of its packets are lost", share*100))
	name := "loss " + string(h.ID)
	if !on {
		c.setCut(name, nil)
		return
	}
	f := cut{loss: share}
	for _, o := range c.hosts {
		if o != h {
			f.routes = append(f.routes, [2]netip.Addr{h.Addr, o.Addr}, [2]netip.Addr{o.Addr, h.Addr})
		}
	}
	c.setCut(name, &f)
}

// Store breaks a machine's way to all stores, or mends it.
func (c *Cluster) Store(h *Host, f StoreFault) {
	c.tell(f != "", h, fmt.Sprintf("its storage %s", f))
	for _, s := range c.stores {
		s.set(h.ID, f)
	}
}

// FirstStore breaks a machine's way to the first store, on which the VMs' disks
// are, or mends it.
func (c *Cluster) FirstStore(h *Host, f StoreFault) {
	c.tell(f != "", h, fmt.Sprintf("its way to the first store %s", f))
	c.stores[0].set(h.ID, f)
}

// AllStores breaks every machine's way to all stores, or mends it.
func (c *Cluster) AllStores(f StoreFault) {
	for _, h := range c.hosts {
		c.Store(h, f)
	}
}

// Boards cuts a machine's way to all BMCs, or mends it.
func (c *Cluster) Boards(h *Host, on bool) {
	c.tell(on, h, "cannot reach BMCs")
	c.mu.Lock()
	defer c.mu.Unlock()
	c.boardCut[h.ID] = on
}

func (c *Cluster) boardsCut(h *Host) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.boardCut[h.ID]
}

// tell records the beginning or end of a fault.
func (c *Cluster) tell(on bool, h *Host, text string) {
	what := Heal
	if on {
		what = Fault
	}
	var id haven.HostID
	if h != nil {
		id = h.ID
	}
	c.emit(Event{What: what, Host: id, Text: text})
}

// HealAll ends every fault. Machines without power boot, agents that are down
// start.
func (c *Cluster) HealAll() {
	c.tell(false, nil, "everything")
	c.mu.Lock()
	clear(c.cuts)
	clear(c.boardCut)
	c.mu.Unlock()
	c.net.Heal()
	for _, h := range c.hosts {
		for _, s := range c.stores {
			s.set(h.ID, "")
		}
		h.BMC.mend()
		for _, b := range h.Outlets {
			b.mend()
			b.noted(true)
		}
		h.HangDisk(false)
		h.Freeze(false)
		h.HangLibvirt(false)
		h.Machine.Refuse(nil)
		h.PowerOn()
		h.StartAgent()
	}
}

// Lie makes a machine's BMC say the same whatever is true.
func (c *Cluster) Lie(h *Host, state haven.PowerState) {
	c.tell(state != "", h, "its BMC always says "+string(state))
	h.BMC.change(func(b *BMC) { b.lies = state })
}

// SlowBoard makes a machine's BMC take its time: for a session, until its word
// is right, from a command to its effect; and forget some commands.
func (c *Cluster) SlowBoard(h *Host, session, lag, acts time.Duration, ignores int) {
	c.tell(true, h, fmt.Sprintf("its BMC takes %s, lags %s, acts after %s and forgets %d commands", session, lag, acts, ignores))
	h.BMC.change(func(b *BMC) { b.takes, b.lag, b.acts, b.ignores = session, lag, acts, ignores })
}

// ConfirmDead is an operator who says that a host is off. Only the truth is
// said.
func (c *Cluster) ConfirmDead(h *Host) {
	if h.Boot() != "" {
		return
	}
	if err := c.Operate("/v1/hosts/"+string(h.ID)+"/confirm-dead", client.Act{Reason: "seen with own eyes", Force: true}); err != nil {
		c.trace.add(Event{At: c.Now(), What: User, Host: h.ID, Text: err.Error()})
	}
}

// Kill makes a board, or an outlet, answer nobody.
func Kill(b *BMC) {
	b.h.c.tell(true, b.h, "a board of it answers nobody")
	b.change(func(b *BMC) { b.dead = true })
}

// Light gives a board its power back, and not its machine.
func Light(b *BMC) {
	b.h.c.tell(false, b.h, "its board has power again")
	b.change(func(b *BMC) { b.dark = false })
}

// Slow makes a board, or an outlet, take its time: for a session, until its word
// is right, from a command to its effect.
func Slow(b *BMC, session, lag, acts time.Duration) {
	b.h.c.tell(true, b.h, "a board of it is slow")
	b.change(func(b *BMC) { b.takes, b.lag, b.acts = session, lag, acts })
}

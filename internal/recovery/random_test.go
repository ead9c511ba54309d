package recovery

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/ledger"
)

// hung is a cluster in which a host hangs and is fenced, with everything that
// follows. It ends when nothing is left to do.
func hung(w *world) {
	for _, id := range []haven.HostID{"a", "b", "c"} {
		w.addHost(id, haven.RoleHypervisor)
	}
	w.addVM("web", w.hosts["a"], 1024)
	w.addVM("db", w.hosts["a"], 1024)
	w.run(10 * time.Second)
	w.hosts["a"].network, w.hosts["a"].verdict = false, haven.VerdictFailed
	w.run(2 * time.Minute)
}

// settled says what is not as it should be when everything has calmed down.
func settled(w *world) []string {
	wrong := slices.Clone(w.broken)
	for id, wanted := range w.users {
		vm, at := w.state.VMs[id], w.running(id)
		switch {
		case vm == nil:
			wrong = append(wrong, fmt.Sprintf("P7: %s was forgotten", w.names[id]))
		case (vm.Desired == ledger.DesiredRunning) != wanted:
			// Its user changed his mind on a host that nobody heard of any more.
		case wanted && (vm.Phase != ledger.PhaseOwned || len(at) != 1 || at[0] != vm.Owner):
			wrong = append(wrong, fmt.Sprintf("P7: %s runs on %v; the ledger has %+v", w.names[id], at, vm))
		case wanted && vm.Hold.Reason != "":
			wrong = append(wrong, fmt.Sprintf("P9: %s runs and is held: %+v", w.names[id], vm.Hold))
		case !wanted && len(at) > 0:
			wrong = append(wrong, fmt.Sprintf("%s was stopped by its user and runs on %v", w.names[id], at))
		}
	}
	for _, in := range w.state.OpenIncidents() {
		wrong = append(wrong, fmt.Sprintf("P7: incident %s about %s is %s, held %+v", in.ID, in.Boot, in.Step, in.Hold))
	}
	return wrong
}

// P7: the master dies after any entry of the ledger, before any act or with acts
// under way, and the next one finishes; or the entries do not come through.
func TestMasterDiesAnywhere(t *testing.T) {
	t.Run("off", func(t *testing.T) { dieAnywhere(t, haven.ActionOff) })
	t.Run("reboot", func(t *testing.T) { dieAnywhere(t, haven.ActionReboot) })
}

func dieAnywhere(t *testing.T, action haven.FenceAction) {
	probe := newWorld()
	probe.cfg.Action = action
	probe.m = New(probe.cfg)
	entries := 0
	probe.commit = func([]ledger.Command) bool { entries++; return true }
	if hung(probe); len(settled(probe)) > 0 || entries < 8 {
		t.Fatalf("%d entries, %v", entries, settled(probe))
	}
	ways := map[string]func(w *world) bool{
		"after the entry, before the acts": func(w *world) bool { w.in(0, w.mastered); return true },
		"a moment later":                   func(w *world) bool { w.in(10*time.Millisecond, w.mastered); return true },
		"with the entry":                   func(w *world) bool { w.in(0, w.mastered); return false },
		"twice":                            func(w *world) bool { w.in(0, w.mastered); w.in(30*time.Millisecond, w.mastered); return true },
		"and is elected again": func(w *world) bool {
			w.self = "again" // the acts of its earlier term still end, and it hears of them
			w.in(10*time.Millisecond, w.mastered)
			return true
		},
		"no: the entry is lost": func(*world) bool { return false },
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			for at := 1; at <= entries; at++ {
				w := newWorld()
				w.cfg.Action = action
				w.m = New(w.cfg)
				var transcript strings.Builder
				w.log = func(format string, args ...any) {
					fmt.Fprintf(&transcript, "%s %s\n", w.clock(), fmt.Sprintf(format, args...))
				}
				n := 0
				w.commit = func([]ledger.Command) bool {
					if n++; n == at {
						w.log("--- here")
						return way(w)
					}
					return true
				}
				hung(w)
				wrong := settled(w)
				for _, in := range w.state.Incidents {
					if len(in.Attempts) > 1 {
						wrong = append(wrong, fmt.Sprintf("%d power-offs for one hang", len(in.Attempts)))
					}
				}
				if len(wrong) > 0 {
					t.Fatalf("at entry %d of %d: %v\n%s", at, entries, wrong, transcript.String())
				}
			}
		})
	}
}

// chaos turns a world into one in which everything may be late, lost or wrong,
// as long as nobody lies about what he saw.
type chaos struct {
	*world
	t     *rapid.T
	rng   *rand.Rand
	calm  bool
	hosts []haven.HostID
	past  map[haven.HostID]HostView
}

func newChaos(t *rapid.T) *chaos {
	c := &chaos{
		world: newWorld(), t: t, rng: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1)),
		hosts: []haven.HostID{"a", "b", "c", "d"}, past: map[haven.HostID]HostView{},
	}
	for _, id := range c.hosts {
		c.addHost(id, haven.RoleHypervisor)
	}
	for i := range 4 {
		c.addVM(fmt.Sprint("v", i), c.world.hosts[c.hosts[i%2]], 1024)
	}
	for _, id := range c.hosts {
		c.cfg.StopsIsolated[id], c.cfg.StopsStorageLost[id] = true, true
	}
	c.cfg.StorageLostDelay = 5 * time.Second
	c.cfg.Action = rapid.SampledFrom([]haven.FenceAction{haven.ActionOff, haven.ActionReboot}).Draw(t, "action")
	c.m = New(c.cfg)
	c.run(10 * time.Second)
	c.delay = func(Act) time.Duration {
		if c.calm || c.rng.IntN(4) > 0 {
			return 20 * time.Millisecond
		}
		return time.Duration(c.rng.IntN(3000)) * time.Millisecond
	}
	c.fence = func(*host) (bool, time.Duration, string) {
		return c.calm || c.rng.IntN(2) == 0, time.Duration(c.rng.IntN(6000)) * time.Millisecond, "as it may be"
	}
	c.commit = func([]ledger.Command) bool { return c.calm || c.rng.IntN(30) > 0 }
	c.stale = func(id haven.HostID, fresh HostView) HostView {
		old, ok := c.past[id]
		if c.calm || !ok || c.rng.IntN(3) == 0 {
			c.past[id] = fresh
			return fresh
		}
		// The verdict and what it is about are of one moment; so is a report.
		old.SuspectedFor = fresh.SuspectedFor
		return old
	}
	return c
}

func (c *chaos) int(n int, what string) int { return rapid.IntRange(0, n-1).Draw(c.t, what) }

func (c *chaos) host(what string) *host { return c.world.hosts[c.hosts[c.int(len(c.hosts), what)]] }

func (c *chaos) vm() haven.VMID { return vmID(fmt.Sprint("v", c.int(4, "VM"))) }

// at returns the host on which a VM runs, if there is exactly one that nothing
// else is happening to.
func (c *chaos) at(id haven.VMID) *host {
	if on := c.running(id); len(on) == 1 && !c.world.hosts[on[0]].starting[id] {
		return c.world.hosts[on[0]]
	}
	return nil
}

// event is one thing that happens.
func (c *chaos) event() {
	h := c.host("host")
	kind := c.int(22, "event")
	c.log("=== event %d on %s", kind, h.id)
	switch kind {
	case 0: // the power goes, and somebody notices
		c.off(h)
		h.verdict = haven.VerdictFailed
	case 1: // it is proved off by readings
		if !h.on {
			h.verdict = haven.VerdictDead
		}
	case 2:
		c.bootHost(h)
		h.network = true
	case 3: // a network that is gone, and a detector that is wrong about it
		h.network = false
		h.verdict = []haven.Verdict{haven.VerdictSuspect, haven.VerdictFailed, haven.VerdictPartitioned, haven.VerdictUnknown}[c.int(4, "verdict")]
	case 4:
		h.network = true
		if h.on {
			h.verdict = ""
		}
	case 21: // it arms its watchdog; or that has reset it, and somebody counted
		if h.on {
			c.declare(h)
		} else if l := c.state.Hosts[h.id]; l.Boot == h.boot && l.Watchdog.Armed() {
			c.fires(h)
			h.verdict = haven.VerdictFailed
		}
	case 5: // the agent dies, and comes back, perhaps without its directory
		h.agent, h.told = false, false
		lost := c.int(4, "loses its directory") == 0
		c.in(time.Duration(c.rng.IntN(4000))*time.Millisecond, func() {
			if h.on && !h.agent {
				h.agent = true
				if h.inc++; lost {
					h.state += "x"
					clear(h.orders)
				}
			}
		})
	case 6:
		h.onOrder = []string{"", "", "refuse", "fail", "lose"}[c.int(5, "orders")]
	case 7:
		h.takes = time.Duration(c.int(30, "start takes")) * time.Second
	case 8:
		h.partial = !h.partial
	case 9:
		h.mute = !h.mute
	case 10, 11:
		c.mastered()
		c.self = []haven.HostID{"m", "again"}[c.int(2, "again")]
	case 12: // a user
		id := c.vm()
		if on := c.at(id); on != nil {
			c.users[id] = false
			c.set(on, id, haven.VMShutOff, "destroyed")
		} else if vm := c.state.VMs[id]; vm != nil && vm.Desired == ledger.DesiredStopped && vm.Phase == ledger.PhaseOwned {
			if o := c.world.hosts[vm.Owner]; o.on && o.boot == vm.OwnerBoot && !o.starting[id] {
				c.users[id] = true
				c.set(o, id, haven.VMRunning, "")
			}
		}
	case 13:
		if id := c.vm(); c.at(id) != nil {
			c.set(c.at(id), id, haven.VMCrashed, "crashed")
		}
	case 14: // a migration that takes its time
		id := c.vm()
		from, to := c.at(id), h
		if from == nil || from == to || !to.on || to.vms[id].State.Present() && to.vms[id].State != "" {
			return
		}
		c.migrate(id, from, to)
	case 16: // an operator
		_ = c.apply(ledger.SetMaintenance{Host: h.id, On: c.int(2, "on") == 0, LetGo: c.int(4, "let go") == 0, By: "op", At: c.now})
	case 17:
		_ = c.apply(ledger.SetArmed{Armed: c.int(2, "arm") == 0, Now: c.int(3, "now") == 0, By: "op", At: c.now})
	case 18: // its storage is lost, and a response is configured
		if h.network && h.on {
			h.verdict = haven.VerdictStorageLost
			h.onStop = []string{"", "", "stuck", "forget"}[c.int(4, "stops")]
		}
	case 19: // it is cut off, and stops its VMs as configured
		if h.on && h.agent {
			h.network, h.verdict = false, haven.VerdictIsolated
			c.in(time.Duration(c.rng.IntN(9000))*time.Millisecond, func() { c.release(h) })
		}
	case 20:
		h.quarantine = []string{"", "flapping"}[c.int(2, "quarantine")]
	case 15: // a beat that tells what is true now
		b := &BeatList{Complete: c.int(4, "complete") > 0, Boot: h.boot, Since: c.now.Add(-time.Second)}
		for id, info := range h.vms {
			if info.State.Present() {
				b.VMs = append(b.VMs, id)
			}
		}
		for id := range h.starting {
			b.VMs = append(b.VMs, id)
		}
		if h.beat = b; !h.on || len(h.starting) > 0 {
			h.beat = nil
		}
	}
}

// release is an isolated host that stops its VMs, unless it is not isolated any
// more. It writes its beat when they are gone.
func (c *chaos) release(h *host) {
	if h.network || !h.on || !h.agent || len(h.starting) > 0 {
		return
	}
	b := &BeatList{Complete: true, Boot: h.boot, Since: c.now, Releasing: true}
	for id, info := range h.vms {
		switch {
		case info.State == haven.VMRunning && c.rng.IntN(5) > 0:
			h.released[id] = true
			c.set(h, id, haven.VMShutOff, "destroyed")
		case info.State.Present():
			b.VMs = append(b.VMs, id)
		}
	}
	h.beat = b
}

func (c *chaos) migrate(id haven.VMID, from, to *host) {
	boot := to.boot
	c.set(from, id, haven.VMMigrating, "")
	info := from.vms[id]
	info.State = haven.VMIncoming
	to.vms[id] = info
	c.in(time.Duration(c.rng.IntN(8000))*time.Millisecond, func() {
		alive := from.on && from.vms[id].State == haven.VMMigrating
		arrived := to.on && to.boot == boot && to.vms[id].State == haven.VMIncoming
		switch {
		case alive && arrived:
			c.set(from, id, haven.VMShutOff, "migrated")
			c.set(to, id, haven.VMRunning, "")
		case alive:
			c.set(from, id, haven.VMRunning, "")
		case arrived:
			c.set(to, id, haven.VMShutOff, "failed")
		}
	})
}

// heal ends all trouble and gives the machine time.
func (c *chaos) heal() {
	c.log("=== healed")
	c.calm = true
	_ = c.apply(ledger.SetArmed{Armed: true, By: "op", At: c.now})
	for _, id := range c.hosts {
		_ = c.apply(ledger.SetMaintenance{Host: id, By: "op", At: c.now})
		h := c.world.hosts[id]
		h.quarantine, h.onStop = "", ""
		for vm, info := range h.vms {
			if info.State == haven.VMStopping { // the process comes out of the kernel
				c.set(h, vm, haven.VMShutOff, "destroyed")
			}
		}
	}
	for _, id := range c.hosts {
		h := c.world.hosts[id]
		h.network, h.partial, h.mute, h.onOrder, h.takes, h.beat = true, false, false, "", 300*time.Millisecond, nil
		lostOrder := slices.ContainsFunc(c.state.VMIDs(), func(id haven.VMID) bool {
			vm := c.state.VMs[id]
			return vm.Phase == ledger.PhaseOrdered && vm.Owner == h.id && vm.Order.TargetState != h.state
		})
		if !h.on || c.state.Hosts[id].ProvedDead() || lostOrder { // an operator looks after these
			c.bootHost(h)
		}
		if h.agent, h.verdict = true, ""; !h.told {
			c.register(h)
		}
	}
	for range 180 {
		if c.run(time.Minute); len(settled(c.world)) == 0 {
			break
		}
	}
	c.run(time.Minute) // and it stays so
}

// P1, P2, P7, P8: random troubles, late and lost answers, lost entries and
// masters that come and go. Nothing runs twice, nothing is proved that is not so,
// and in the end everything runs and every incident is closed.
func TestChaos(t *testing.T) {
	orders, proofs := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		c := newChaos(t)
		var transcript strings.Builder
		c.log = func(format string, args ...any) {
			line := fmt.Sprintf(format, args...)
			fmt.Fprintf(&transcript, "%s %s\n", c.clock(), line)
			if strings.HasPrefix(line, "ledger order") && strings.Contains(line, " to ") {
				orders++
			}
			if strings.Contains(line, "is proved dead") {
				proofs++
			}
		}
		for range rapid.IntRange(1, 25).Draw(t, "events") {
			c.event()
			c.run(time.Duration(c.int(6000, "pause")) * time.Millisecond)
		}
		c.heal()
		if wrong := settled(c.world); len(wrong) > 0 {
			t.Fatalf("%s\n%s", strings.Join(wrong, "\n"), transcript.String())
		}
	})
	t.Logf("%d orders, %d proofs", orders, proofs)
	if !t.Failed() && !testing.Short() && (orders < 20 || proofs < 5) {
		t.Errorf("too little happened: %d orders, %d proofs", orders, proofs)
	}
}

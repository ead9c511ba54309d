package sim

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/ledger"
)

// Chaos is a script of faults drawn from the seed.
type Chaos struct {
	// For is how long faults begin. Each ends by itself; what is left is healed
	// at the end of the scenario.
	For time.Duration
	// Every is the mean time between two faults.
	Every time.Duration
	// VMs is how many VMs there are.
	VMs int
}

// misfortune is one kind of fault.
type misfortune struct {
	name   string
	weight int
	// begin breaks something and returns how to mend it.
	begin func(c *Cluster, r *rand.Rand) (mend func())
	// least and most bound its length.
	least, most time.Duration
}

func misfortunes() []misfortune {
	const s, m = time.Second, time.Minute
	return []misfortune{
		{"power", 6, powerFault(false), 10 * s, 3 * m},
		{"mains", 3, powerFault(true), 20 * s, 3 * m},
		{"freeze", 5, freezeFault, 500 * time.Millisecond, 60 * s},
		{"agent", 6, agentFault, s, 2 * m},
		{"master's agent", 4, masterFault, s, 1 * m},
		{"isolate", 4, isolateFault, s, 2 * m},
		{"one way", 4, oneWayFault, s, 2 * m},
		{"deaf", 3, deafFault, s, 1 * m},
		{"partition", 4, partitionFault, s, 2 * m},
		{"loss", 3, lossFault, 5 * s, 2 * m},
		{"store of one", 5, storeFault, 2 * s, 2 * m},
		{"store of all", 2, allStoresFault, 2 * s, 1 * m},
		{"board", 6, boardFault, 10 * s, 3 * m},
		{"boards cut", 2, boardsFault, 5 * s, 1 * m},
		{"data lost", 2, dataFault, 2 * s, 20 * s},
		{"raft disk", 3, diskFault, s, 30 * s},
		{"libvirt hangs", 4, libvirtFault, 2 * s, 2 * m},
		{"starts refused", 2, refuseFault, 5 * s, 1 * m},
		{"user", 6, userDeed, s, s},
		{"migration", 4, migrationDeed, s, s},
		{"kill at a step", 5, stepFault, 5 * s, 40 * s},
	}
}

// Script turns the chaos into a script.
func (x Chaos) Script(c *Cluster) {
	r := c.rng
	all := misfortunes()
	total := 0
	for _, f := range all {
		total += f.weight
	}
	for end := c.Now() + x.For; c.Now() < end; {
		c.Sleep(time.Duration(r.ExpFloat64() * float64(x.Every)))
		n := r.IntN(total)
		for _, f := range all {
			if n -= f.weight; n >= 0 {
				continue
			}
			mend := f.begin(c, r)
			if mend != nil {
				// Short ones are as likely as long ones.
				length := time.Duration(float64(f.least) * math.Pow(float64(f.most)/float64(f.least), r.Float64()))
				c.After(length, mend)
			}
			break
		}
		c.repair()
	}
}

// repair is what an operator does in time: machines that a fence switched off,
// and that no fault keeps off, get their power back.
func (c *Cluster) repair() {
	for _, h := range c.hosts {
		h.mu.Lock()
		off := h.boot == "" && !h.keptOff && time.Since(h.offAt) > 30*time.Second
		h.mu.Unlock()
		if off {
			c.tell(false, h, "gets its power back from an operator")
			h.PowerOn()
		}
	}
}

func (c *Cluster) anyHost(r *rand.Rand) *Host { return c.hosts[r.IntN(len(c.hosts))] }

func (c *Cluster) anyHypervisor(r *rand.Rand) *Host { return c.hosts[r.IntN(c.s.Hosts)] }

func powerFault(mains bool) func(*Cluster, *rand.Rand) func() {
	return func(c *Cluster, r *rand.Rand) func() {
		h := c.anyHost(r)
		if r.IntN(4) == 0 {
			if m := c.Master(); m != nil {
				h = m
			}
		}
		if h.Boot() == "" {
			return nil
		}
		h.keepOff(true)
		h.PowerOff(mains)
		return func() { h.keepOff(false); h.PowerOn() }
	}
}

func freezeFault(c *Cluster, r *rand.Rand) func() {
	h := c.anyHost(r)
	if h.Boot() == "" || h.frozen() {
		return nil
	}
	c.tell(true, h, "is frozen")
	h.Freeze(true)
	return func() { c.tell(false, h, "thaws"); h.Freeze(false) }
}

func agentFault(c *Cluster, r *rand.Rand) func() {
	h := c.anyHost(r)
	h.KillAgent()
	return h.StartAgent
}

func masterFault(c *Cluster, _ *rand.Rand) func() {
	h := c.Master()
	if h == nil {
		return nil
	}
	h.KillAgent()
	return h.StartAgent
}

func isolateFault(c *Cluster, r *rand.Rand) func() {
	h := c.anyHost(r)
	c.Isolate(h, true)
	return func() { c.Isolate(h, false) }
}

func oneWayFault(c *Cluster, r *rand.Rand) func() {
	a, b := c.anyHost(r), c.anyHost(r)
	if a == b {
		return nil
	}
	c.CutOneWay(a, b, true)
	return func() { c.CutOneWay(a, b, false) }
}

func deafFault(c *Cluster, r *rand.Rand) func() {
	h, inward := c.anyHost(r), r.IntN(2) == 0
	c.Deafen(h, inward, true)
	return func() { c.Deafen(h, inward, false) }
}

func partitionFault(c *Cluster, r *rand.Rand) func() {
	n := 1 + r.IntN(len(c.hosts)-1)
	var some []*Host
	for _, i := range r.Perm(len(c.hosts))[:n] {
		some = append(some, c.hosts[i])
	}
	c.Partition(some, true)
	return func() { c.Partition(some, false) }
}

func lossFault(c *Cluster, r *rand.Rand) func() {
	h := c.anyHost(r)
	c.Lossy(h, 0.02+0.28*r.Float64(), true)
	return func() { c.Lossy(h, 0, false) }
}

func anyStoreFault(r *rand.Rand) StoreFault {
	return []StoreFault{StoreHangs, StoreHangs, StoreFails, StoreSlow, StoreLags, StoreTears}[r.IntN(6)]
}

func storeFault(c *Cluster, r *rand.Rand) func() {
	h := c.anyHypervisor(r)
	c.Store(h, anyStoreFault(r))
	return func() { c.Store(h, "") }
}

func allStoresFault(c *Cluster, r *rand.Rand) func() {
	c.AllStores(anyStoreFault(r))
	return func() { c.AllStores("") }
}

// boardFault breaks a BMC. A board that lies about power is only believed when
// nothing can unmask it, so a lie of off is told about a host that lives, and
// the host keeps its peace for as long as it takes to see through it.
func boardFault(c *Cluster, r *rand.Rand) func() {
	h := c.anyHypervisor(r)
	switch r.IntN(4) {
	case 0:
		c.tell(true, h, "its BMC is dead")
		h.BMC.change(func(b *BMC) { b.dead = true })
	case 1:
		c.Lie(h, haven.PowerOn)
	default:
		c.SlowBoard(h, time.Duration(r.IntN(3000))*time.Millisecond, time.Duration(r.IntN(10))*time.Second,
			time.Duration(r.IntN(5000))*time.Millisecond, r.IntN(3))
	}
	return func() { c.tell(false, h, "its BMC is well"); h.BMC.mend() }
}

func boardsFault(c *Cluster, r *rand.Rand) func() {
	h := c.anyHost(r)
	c.Boards(h, true)
	return func() { c.Boards(h, false) }
}

func dataFault(c *Cluster, r *rand.Rand) func() {
	// A voter's disk that is lost while others are down, or have not got back
	// their vote, is more than Raft can stand.
	h := c.anyHost(r)
	if c.Now()-c.lostAt < 2*time.Minute && c.lostAt > 0 || !c.wellFor(time.Minute) {
		return nil
	}
	c.lostAt = c.Now()
	h.KillAgent()
	c.tell(true, h, "loses its data directory")
	h.LoseData()
	return h.StartAgent
}

// wellFor says whether every agent has run for at least so long, and no network
// fault is about.
func (c *Cluster) wellFor(d time.Duration) bool {
	c.mu.Lock()
	cuts := len(c.cuts)
	c.mu.Unlock()
	for _, h := range c.hosts {
		h.mu.Lock()
		well := h.agent != nil && time.Since(h.agent.life.began) >= d
		h.mu.Unlock()
		if !well || h.frozen() {
			return false
		}
	}
	return cuts == 0 && c.Master() != nil
}

func diskFault(c *Cluster, r *rand.Rand) func() {
	h := c.anyHost(r)
	c.tell(true, h, "its Raft disk hangs")
	h.HangDisk(true)
	return func() { c.tell(false, h, "its Raft disk goes on"); h.HangDisk(false) }
}

func libvirtFault(c *Cluster, r *rand.Rand) func() {
	h := c.anyHypervisor(r)
	c.tell(true, h, "its VM manager hangs")
	h.HangLibvirt(true)
	return func() { c.tell(false, h, "its VM manager goes on"); h.HangLibvirt(false) }
}

var errRefused = errors.New("unsupported machine type")

func refuseFault(c *Cluster, r *rand.Rand) func() {
	h := c.anyHypervisor(r)
	c.tell(true, h, "refuses to start VMs")
	h.Machine.Refuse(errRefused)
	return func() { c.tell(false, h, "starts VMs again"); h.Machine.Refuse(nil) }
}

// userDeed is what people do to their VMs: stop one, start one again where it
// was, or make one crash.
func userDeed(c *Cluster, r *rand.Rand) func() {
	n := 1 + r.IntN(max(1, c.s.VMs))
	at := c.World.RunsOn(VMID(n))
	if len(at) != 1 {
		return nil // Nobody starts by hand what is not where it was left.
	}
	h := c.Host(at[0])
	if h.frozen() {
		return nil
	}
	crash := r.IntN(2) == 0
	c.emit(Event{What: User, Host: h.ID, VM: VMID(n), Text: fmt.Sprintf("ends vm%d, crash=%t", n, crash)})
	h.Machine.UserStop(VMID(n), crash)
	if crash {
		return nil
	}
	boot := h.Boot()
	return func() { c.startAgain(h, boot, n) }
}

// startAgain is a user who starts a VM again where it was stopped, if the ledger
// agrees that it belongs there: nobody would start it by hand in the middle of a
// recovery.
func (c *Cluster) startAgain(h *Host, boot haven.BootID, n int) {
	if !h.bootIs(boot) || h.frozen() || len(c.World.RunsOn(VMID(n))) > 0 || !c.restsAt(h, boot, n) {
		return
	}
	c.UserStart(h, n)
}

// restsAt says whether a VM, for the ledger, is stopped and belongs to a host.
func (c *Cluster) restsAt(h *Host, boot haven.BootID, n int) bool {
	rests := false
	c.Ledger(func(s *ledger.State) {
		vm := s.VMs[VMID(n)]
		rests = vm != nil && vm.Phase == ledger.PhaseOwned && vm.Desired == ledger.DesiredStopped && vm.Owner == h.ID && vm.OwnerBoot == boot
	})
	return rests
}

func migrationDeed(c *Cluster, r *rand.Rand) func() {
	n := 1 + r.IntN(max(1, c.s.VMs))
	at := c.World.RunsOn(VMID(n))
	to := c.anyHypervisor(r)
	if len(at) != 1 || at[0] == to.ID {
		return nil
	}
	from := c.Host(at[0])
	transfer := time.Duration(500+r.IntN(8000)) * time.Millisecond
	handover := time.Duration(r.IntN(1500)) * time.Millisecond
	c.wg.Go(func() {
		if err := c.World.Migrate(VMID(n), from.Machine, to.Machine, transfer, handover); err != nil {
			c.trace.add(Event{At: c.Now(), What: User, Host: from.ID, Text: fmt.Sprintf("migration of vm%d to %s: %v", n, to.ID, err)})
		}
	})
	return nil
}

// stepFault kills the master, or somebody else's agent, right after the next
// thing that matters.
func stepFault(c *Cluster, r *rand.Rand) func() {
	kinds := []What{Commit, Commit, OrderSaved, StartCall, BMCOff}
	kind, skip := kinds[r.IntN(len(kinds))], r.IntN(6)
	if kind != Commit {
		skip = 0
	}
	var left atomic.Int64
	left.Store(int64(skip) + 1)
	off := c.On(func(e Event) {
		if e.What != kind || left.Add(-1) != 0 {
			return
		}
		h := c.Host(e.Host)
		if e.By != "" {
			h = c.Host(e.By)
		}
		h.KillAgent()
	})
	return func() {
		off()
		for _, h := range c.hosts {
			h.mu.Lock()
			down := h.agent == nil
			h.mu.Unlock()
			if down {
				h.StartAgent()
			}
		}
	}
}

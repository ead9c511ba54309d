package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/cluster"
	"github.com/haven-ha/haven/election"
	"github.com/haven-ha/haven/internal/agent"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/obs"
	"github.com/haven-ha/haven/internal/pki"
	"github.com/haven-ha/haven/internal/sim/simnet"
	"github.com/haven-ha/haven/internal/world"
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/vmrestart"
)

// Host is one machine with everything on it.
type Host struct {
	ID      haven.HostID
	Addr    netip.Addr
	Machine *world.Machine
	BMC     *BMC
	Outlets []*BMC // of its power supplies, when they are a level of its ladder
	Witness bool

	c     *Cluster
	n     int
	net   *simnet.Machine
	creds *pki.Credentials
	raft  *election.MemStorage
	dog   *dog
	ice   atomic.Pointer[chan struct{}] // closed when the machine thaws; nil while it is not frozen
	stuck atomic.Pointer[chan struct{}] // closed when the Raft disk goes on

	mu      sync.Mutex
	boot    haven.BootID // empty without power
	disk    disk
	agent   *process
	helper  *process
	lives   int
	libHung bool
	stopped bool // its agent stays down until somebody starts it
	keptOff bool // a fault keeps its power off
	onAt    time.Time
	offAt   time.Time
}

// process is a running program.
type process struct {
	life  *life
	net   *simnet.Process
	agent *agent.Agent // nil: a helper
	stop  context.CancelFunc
	ended chan struct{}
	once  sync.Once
}

// lingers is how long the goroutines of a killed process run on.
const lingers = 200 * time.Millisecond

// kill takes everything away from a process at once. Its goroutines end a
// little later, without effect.
func (p *process) kill() {
	if p == nil {
		return
	}
	p.once.Do(func() {
		close(p.life.gone)
		p.net.Kill()
		p.life.h.dog.left(p.life)
		if p.agent != nil {
			p.life.h.raft.Crash()
		}
		// What is left runs on for a moment, as it must not matter. Raft needs it
		// to answer whom it would leave waiting for ever when it is shut down while
		// its disk hangs.
		p.life.h.c.wg.Go(func() { pass(lingers); p.stop() })
	})
}

// Boot is the machine's present boot; empty without power.
func (h *Host) Boot() haven.BootID {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.boot
}

func (h *Host) bootIs(b haven.BootID) bool { return b != "" && h.Boot() == b }

// Up says whether the machine's agent runs.
func (h *Host) Up() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.agent != nil
}

// Agent returns the running agent, or nil.
func (h *Host) Agent() *agent.Agent {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.agent == nil {
		return nil
	}
	return h.agent.agent
}

// helperUp says whether the machine's helper runs.
func (h *Host) helperUp() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.helper != nil
}

func (h *Host) frozen() bool { return h.ice.Load() != nil }

// restartAfter is the pause before an agent that ended by itself starts again.
const restartAfter = 2 * time.Second

// PowerOff cuts the machine's power. The board keeps its own unless the mains
// went.
func (h *Host) PowerOff(mains bool) {
	if mains {
		h.BMC.change(func(b *BMC) { b.dark = true })
	}
	h.powerLost("its power is cut")
}

func (h *Host) powerLost(why string) {
	h.mu.Lock()
	if h.boot == "" {
		h.mu.Unlock()
		return
	}
	a, p := h.agent, h.helper
	h.agent, h.helper, h.boot, h.offAt = nil, nil, "", time.Now()
	h.mu.Unlock()
	h.dog.powerLost()
	h.net.PowerOff() // before the processes are killed: nobody hears a reset
	a.kill()
	p.kill()
	h.BMC.noted(false)
	h.c.trace.add(Event{At: h.c.Now(), What: Fault, Host: h.ID, Text: "no power: " + why})
	h.Machine.PowerOff()
	h.thaw()
}

// keepOff keeps operators from giving the machine its power back.
func (h *Host) keepOff(keep bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keptOff = keep
}

// PowerOn gives the machine its power back. It boots, and its programs start.
func (h *Host) PowerOn() {
	h.BMC.change(func(b *BMC) { b.dark = false })
	if on, _ := h.Machine.On(); on {
		return
	}
	h.thaw()
	h.net.PowerOn()
	boot := h.Machine.PowerOn()
	h.BMC.noted(true)
	h.mu.Lock()
	h.boot, h.libHung, h.onAt = boot, false, time.Now()
	h.mu.Unlock()
	h.c.After(h.c.s.BootTakes, func() {
		if h.bootIs(boot) {
			h.startHelper(boot)
			h.startAgent(boot)
		}
	})
}

// Freeze stops the whole machine, as a kernel that hangs, or lets it go on. The
// chassis keeps its power, and its VMs can write again when it goes on.
func (h *Host) Freeze(frozen bool) {
	if !frozen {
		h.thaw()
		return
	}
	if h.Boot() == "" || h.frozen() {
		return
	}
	ice := make(chan struct{})
	h.ice.Store(&ice)
	h.net.Freeze(true)
	h.Machine.Hang(true)
}

func (h *Host) thaw() {
	if ice := h.ice.Swap(nil); ice != nil {
		h.mu.Lock()
		hung := h.libHung
		h.mu.Unlock()
		h.Machine.Hang(hung)
		h.net.Freeze(false)
		close(*ice)
	}
}

// HangLibvirt makes the VM manager hang, or go on.
func (h *Host) HangLibvirt(hung bool) {
	h.mu.Lock()
	h.libHung = hung
	h.mu.Unlock()
	h.Machine.Hang(hung || h.frozen())
}

// HangDisk makes the disk under Raft hang, or go on.
func (h *Host) HangDisk(hung bool) {
	if hung {
		ch := make(chan struct{})
		h.stuck.CompareAndSwap(nil, &ch)
		return
	}
	if ch := h.stuck.Swap(nil); ch != nil {
		close(*ch)
	}
}

// KillAgent ends the agent as SIGKILL does; the machine and its VMs live on.
// The agent stays down until StartAgent.
func (h *Host) KillAgent() {
	h.mu.Lock()
	p := h.agent
	h.agent, h.stopped = nil, true
	h.mu.Unlock()
	if p != nil {
		p.kill()
		h.c.emit(Event{What: AgentDown, Host: h.ID, Text: "killed"})
	}
}

// StartAgent starts the agent if it does not run.
func (h *Host) StartAgent() {
	h.mu.Lock()
	h.stopped = false
	boot, booted := h.boot, time.Since(h.onAt) >= h.c.s.BootTakes
	h.mu.Unlock()
	if boot != "" && booted { // Else it starts at the end of the boot.
		h.startAgent(boot)
	}
}

// LoseData wipes the agent's data directory, as a new disk would. The agent
// must be down.
func (h *Host) LoseData() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.raft.Wipe()
	h.disk = disk{wiped: h.disk.wiped + 1}
}

func (h *Host) startAgent(boot haven.BootID) {
	h.mu.Lock()
	if h.boot != boot || h.agent != nil || h.stopped {
		h.mu.Unlock()
		return
	}
	if h.disk.state == "" {
		h.disk.state = haven.StateID(fmt.Sprintf("state-%d-%d", h.n+1, h.disk.wiped))
	}
	h.disk.incarnation++
	state, incarnation := h.disk.state, h.disk.incarnation
	l := &life{h: h, boot: boot, gone: make(chan struct{}), began: time.Now()}
	p := &process{life: l, net: h.net.Process(), ended: make(chan struct{})}
	h.mu.Unlock()

	d := h.deps(p, state, incarnation)
	a, err := agent.New(d)
	if err != nil {
		h.c.trace.add(Event{At: h.c.Now(), What: AgentDown, Host: h.ID, Text: "does not start: " + err.Error()})
		p.net.Kill()
		h.again(boot)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	p.agent, p.stop = a, stop
	h.mu.Lock()
	if h.boot != boot || h.agent != nil || h.stopped {
		h.mu.Unlock()
		stop()
		close(l.gone)
		p.net.Kill()
	} else {
		h.agent = p
		h.mu.Unlock()
		h.c.emit(Event{What: AgentUp, Host: h.ID, Boot: boot, Text: fmt.Sprintf("%s, %s.%d", boot, state, incarnation)})
	}
	h.c.wg.Go(func() {
		err := a.Run(ctx)
		close(p.ended)
		h.mu.Lock()
		own := h.agent == p
		if own {
			h.agent = nil
		}
		h.mu.Unlock()
		if own { // It ended by itself; systemd starts it again.
			p.kill()
			h.c.emit(Event{What: AgentDown, Host: h.ID, Text: fmt.Sprintf("ended by itself: %v", err)})
			h.again(boot)
		}
		answerLeft(a, 30*time.Second)
	})
}

func (h *Host) again(boot haven.BootID) {
	h.c.After(restartAfter, func() { h.startAgent(boot) })
}

func (h *Host) deps(p *process, state haven.StateID, incarnation haven.Incarnation) agent.Deps {
	c, l := h.c, p.life
	h.mu.Lock()
	origin := h.onAt
	h.mu.Unlock()
	d := agent.Deps{
		Config: c.config, Host: h.ID, Boot: l.boot, Version: "sim", State: state, Incarnation: incarnation,
		Net: p.net, Credentials: h.creds, GossipKeys: []cluster.Key{c.key},
		Raft:    election.WithFaults(h.raft, func(op election.Op) error { return h.diskWaits(l, op) }),
		Journal: journal{l}, Helper: h.askHelper(p), Fences: map[haven.HostID][][]agent.FenceDevice{},
		Boottime: func() time.Duration { return time.Since(origin) }, Metrics: obs.NewMetrics(),
		Log: slog.New(logHandler{c: c, host: h.ID, level: c.level}),
		Applied: func(at ledger.Position, cmds []ledger.Command, words []error) {
			if !l.dead() {
				c.applied(h, at, cmds, words)
			}
		},
	}
	for _, s := range c.stores {
		d.Stores = append(d.Stores, agent.Store{Name: s.name, Device: device{s, l}})
	}
	d.Disks = vmDisks{c.pool, l}
	if !h.Witness {
		d.Hypervisor, d.Stopper = hypervisor{l, h.Machine.Hypervisor()}, hypervisor{l, h.Machine.Hypervisor()}
		d.Probe = diskProbe{device{c.stores[0], l}}
		if self, _ := c.config.Host(h.ID); self.Fencing.PoisonPill {
			d.Reset = func() error { return h.resetItself(l) }
		}
		if c.s.Dogs {
			d.Watchdog = h.dog.deps(l)
		}
	}
	for _, o := range c.hosts {
		if !o.Witness {
			key := "bmc-" + string(o.ID)
			d.Fences[o.ID] = [][]agent.FenceDevice{{{Name: "bmc", Key: key, Address: key, Driver: driver{o.BMC, l}}}}
			var level []agent.FenceDevice
			for i, b := range o.Outlets {
				key := fmt.Sprintf("outlet-%d-%s", i+1, o.ID)
				level = append(level, agent.FenceDevice{Name: fmt.Sprintf("psu-%d", i+1), Key: key, Address: key, Driver: driver{b, l}})
			}
			if len(level) > 0 {
				d.Fences[o.ID] = append([][]agent.FenceDevice{level}, d.Fences[o.ID]...)
			}
		}
	}
	if c.s.Wrap != nil {
		c.s.Wrap(h, &d)
	}
	return d
}

// diskWaits is called before each operation of Raft on its disk.
func (h *Host) diskWaits(l *life, op election.Op) error {
	for {
		ch := h.stuck.Load()
		switch {
		case op == election.OpReadLog && l.dead():
			return nil
		case op == election.OpWriteState && l.dead():
			// Raft panics when it cannot write its term. A goroutine of a process
			// that is no more just ends.
			runtime.Goexit()
		case l.dead():
			return errGone
		case ch == nil:
			return nil
		}
		select {
		case <-*ch:
		case <-l.gone:
		}
	}
}

const helperPort = 8443

// startHelper starts what stands for the host helper: a process with a port and
// a beat of its own.
func (h *Host) startHelper(boot haven.BootID) {
	if h.Witness {
		return
	}
	h.mu.Lock()
	if h.boot != boot || h.helper != nil {
		h.mu.Unlock()
		return
	}
	h.lives++
	l := &life{h: h, boot: boot, gone: make(chan struct{}), began: time.Now()}
	p := &process{life: l, net: h.net.Process(), ended: make(chan struct{})}
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	h.helper = p
	lives := h.lives
	h.mu.Unlock()

	ln, err := p.net.Listen("tcp", netip.AddrPortFrom(h.Addr, helperPort).String())
	if err != nil {
		h.c.fail("helper of %s: %v", h.ID, err)
		return
	}
	h.c.wg.Go(func() { h.serveHelper(ln) })
	hb := h.c.config.Heartbeat
	for _, s := range h.c.stores {
		m, err := storagebeat.NewMonitor(storagebeat.MonitorConfig{
			Store: s.name, Cluster: clusterName, Self: h.ID, Writer: storagebeat.WriterHelper, Boot: boot, State: "helper",
			Incarnation: haven.Incarnation(lives), Hosts: h.c.config.Hypervisors(), Interval: hb.Interval,
			StaleAfter: hb.StaleAfter, Timeout: hb.IOTimeout, WriteOnly: true,
		}, device{s, l}, func() storagebeat.Beat { return storagebeat.Beat{} }, slog.New(slog.DiscardHandler))
		if err != nil {
			h.c.fail("helper of %s: %v", h.ID, err)
			return
		}
		h.c.wg.Go(func() { _ = m.Run(ctx) })
	}
}

// serveHelper answers every question, until the process is killed.
func (h *Host) serveHelper(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		h.c.wg.Go(func() {
			_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
			if _, err := io.ReadFull(conn, make([]byte, 1)); err == nil {
				_, _ = conn.Write([]byte("+"))
			}
			_ = conn.Close()
		})
	}
}

// askHelper asks another machine's helper, over the network that a process has.
func (h *Host) askHelper(p *process) agent.HelperProbe {
	return func(ctx context.Context, id haven.HostID) (haven.Tri, string) {
		other := h.c.Host(id)
		if other == nil || other.Witness {
			return haven.Unknown, "it has no helper"
		}
		conn, err := p.net.DialContext(ctx, "tcp", netip.AddrPortFrom(other.Addr, helperPort).String())
		if err != nil {
			return haven.No, err.Error()
		}
		defer func() { _ = conn.Close() }()
		if deadline, ok := ctx.Deadline(); ok {
			_ = conn.SetDeadline(deadline)
		}
		_, err = conn.Write([]byte("?"))
		if err == nil {
			_, err = io.ReadFull(conn, make([]byte, 1))
		}
		if err != nil {
			return haven.No, err.Error()
		}
		return haven.Yes, "it answers"
	}
}

// leads says whether the machine's agent is master and ready, and in what term.
func (h *Host) leads() (haven.Term, bool) {
	if a := h.Agent(); a != nil {
		return a.Reign()
	}
	return haven.Term{}, false
}

// fencing says whether the machine's copy of the ledger has a power command out
// for a host.
func (h *Host) fencing(target haven.HostID) (out bool) {
	a := h.Agent()
	if a == nil {
		return false
	}
	a.Ledger().View(func(s *ledger.State, _ ledger.Position) {
		for _, in := range s.OpenIncidents() {
			if _, pending := in.Pending(); pending && in.Host == target {
				out = true
			}
		}
	})
	return out
}

var errNoMaster = errors.New("no master")

var _ vmrestart.Journal = journal{}

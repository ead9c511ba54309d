package sim

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/cluster"
	"github.com/haven-ha/haven/election"
	"github.com/haven-ha/haven/internal/agent"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/pki"
	"github.com/haven-ha/haven/internal/sim/simnet"
	"github.com/haven-ha/haven/internal/tlsmux"
	"github.com/haven-ha/haven/internal/world"
)

const clusterName = "sim"

// Scenario is one life of one cluster.
type Scenario struct {
	Seed uint64
	// Hosts is the number of hypervisors, 3 by default; Witnesses come on top.
	Hosts, Witnesses int
	// VMs are started by their user before the scenario begins, spread over the
	// hosts: the first on the first host, and so on.
	VMs int
	// Stores is the number of stores, 1 by default.
	Stores int
	// Supplies is the number of power supplies of each host whose outlets are the
	// first level of its ladder, before its BMC; 0 for none.
	Supplies int
	// PoolApart puts the VMs' disks on a pool of their own, which shares no fault
	// with the stores; else they are on the first store.
	PoolApart bool
	// Dogs says that every host has an armed watchdog.
	Dogs bool
	// Link is how the network is between any two machines.
	Link simnet.Link
	// Script is what happens. It runs once the cluster is ready.
	Script func(c *Cluster)
	// Unsettled leaves out the end: healing all, and waiting until every VM runs
	// exactly once.
	Unsettled bool
	// Config changes the YAML of the configuration.
	Config func(yaml string) string
	// BootTakes is the time from power to the first agent, 4 s by default.
	BootTakes time.Duration
	// Wrap changes what an agent is given.
	Wrap func(h *Host, d *agent.Deps)
	// Logs keeps the agents' logs for the transcript.
	Logs bool
}

// Result is what came of a scenario.
type Result struct {
	Violations []string
	trace      *transcript
	Virtual    time.Duration
}

// Cluster is a running cluster.
type Cluster struct {
	World *world.World

	t        *testing.T
	s        Scenario
	begun    time.Time
	net      *simnet.Net
	operator *simnet.Machine
	hosts    []*Host
	stores   []*store
	pool     *diskPool
	config   *config.Config
	key      cluster.Key
	api      *client.Client
	apiDone  func()
	level    slog.Level
	trace    *transcript
	check    *checker
	rng      *rand.Rand
	wg       sync.WaitGroup

	mu       sync.Mutex
	hooks    map[int]func(Event)
	hookN    int
	boardCut map[haven.HostID]bool
	cuts     map[string]cut
	lostAt   time.Duration // when a data directory was lost last
	quit     chan struct{}
}

// Run plays a scenario and fails the test, with the transcript, when a promise
// was broken.
func Run(t *testing.T, s Scenario) *Result {
	t.Helper()
	r := Play(t, s)
	for _, v := range r.Violations {
		t.Error(v)
	}
	if t.Failed() {
		t.Logf("transcript of seed %d:\n%s", s.Seed, r.Transcript(true))
	}
	return r
}

// Transcript is the story of a scenario, a line for each event.
func (r *Result) Transcript(logs bool) string { return r.trace.text(logs) }

// Play plays a scenario in a bubble of its own and returns what came of it.
func Play(t *testing.T, s Scenario) (r *Result) {
	t.Helper()
	if s.Hosts == 0 {
		s.Hosts = 3
	}
	if s.BootTakes == 0 {
		s.BootTakes = 4 * time.Second
	}
	if s.Stores == 0 {
		s.Stores = 1
	}
	if s.Link == (simnet.Link{}) {
		s.Link = simnet.Link{Latency: 300 * time.Microsecond, Jitter: 400 * time.Microsecond}
	}
	r = &Result{trace: &transcript{}}
	defer watchdog(s, r.trace)()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, s, r.trace)
		defer func() {
			c.close()
			r.Virtual = c.Now()
			r.Violations = c.check.found()
		}()
		c.ready()
		if s.Script != nil {
			s.Script(c)
		}
		if !s.Unsettled {
			c.settle()
		}
	})
	return r
}

// watchdogAfter is how long one scenario may take by the real clock. A bubble
// that stands still says nothing by itself.
const watchdogAfter = 4 * time.Minute

func watchdog(s Scenario, trace *transcript) (stop func()) {
	timer := time.AfterFunc(watchdogAfter, func() {
		fmt.Fprintf(os.Stderr, "seed %d took longer than %s by the real clock; the goroutines:\n", s.Seed, watchdogAfter)
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 2)
		fmt.Fprintln(os.Stderr, trace.text(true))
		os.Exit(3) //nolint:forbidigo // nothing else ends a bubble that stands still
	})
	return func() { timer.Stop() }
}

func newCluster(t *testing.T, s Scenario, trace *transcript) *Cluster {
	c := &Cluster{
		t: t, s: s, begun: time.Now(), trace: trace, level: slog.LevelWarn,
		net: simnet.New(s.Seed, s.Link), rng: rand.New(rand.NewPCG(s.Seed, 0x9e3779b97f4a7c15)),
		hooks: map[int]func(Event){}, boardCut: map[haven.HostID]bool{}, cuts: map[string]cut{}, quit: make(chan struct{}),
	}
	if s.Logs {
		c.level = slog.LevelInfo
	}
	c.check = newChecker(c)
	c.World = world.Observed(c.worldEvent)
	sum := sha256.Sum256([]byte("a key that guards nothing"))
	c.key = sum[:]
	c.pool = newDiskPool(c)
	for i := range s.Stores {
		c.stores = append(c.stores, newStore(c, i))
	}
	ca, err := pki.NewCA(clusterName, pki.DefaultCALifetime)
	c.must(err)
	for i := range s.Hosts + s.Witnesses {
		c.addHost(i, ca)
	}
	yaml := c.yaml()
	if s.Config != nil {
		yaml = s.Config(yaml)
	}
	c.config, err = config.Parse("sim.yaml", []byte(yaml))
	c.must(err)
	c.openAPI(ca)
	c.wg.Go(c.sampling)
	for _, h := range c.hosts {
		h.PowerOn()
	}
	return c
}

func (c *Cluster) must(err error) {
	if err != nil {
		panic(err)
	}
}

func (c *Cluster) addHost(i int, ca *pki.CA) {
	h := &Host{
		c: c, n: i, ID: haven.HostID(fmt.Sprintf("kvm-%d", i+1)), Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(11 + i)}),
		Witness: i >= c.s.Hosts, raft: election.NewMemStorage(),
	}
	if h.Witness {
		h.ID = haven.HostID(fmt.Sprintf("vote-%d", i+1-c.s.Hosts))
	}
	h.Machine = c.World.Add(h.ID, 16384)
	h.net = c.net.Add(h.Addr)
	h.BMC, h.dog = newBMC(h, i), &dog{h: h}
	for range c.s.Supplies {
		h.Outlets = append(h.Outlets, newOutlet(h))
	}
	pair, err := ca.IssueHost(h.ID, []netip.Addr{h.Addr}, pki.DefaultHostLifetime)
	c.must(err)
	h.creds, err = pki.NewCredentials(clusterName, ca.Pair().Cert, pair)
	c.must(err)
	c.hosts = append(c.hosts, h)
}

func (c *Cluster) openAPI(ca *pki.CA) {
	c.operator = c.net.Add(netip.MustParseAddr("10.0.0.250"))
	c.operator.PowerOn()
	pair, err := ca.IssueOperator("sim", pki.RoleAdmin, pki.DefaultOperatorLifetime)
	c.must(err)
	creds, err := pki.NewCredentials(clusterName, ca.Pair().Cert, pair)
	c.must(err)
	tr := tlsmux.NewTransport(c.operator.Process(), creds, func(id haven.HostID) (string, bool) {
		h := c.Host(id)
		if h == nil {
			return "", false
		}
		return netip.AddrPortFrom(h.Addr, uint16(c.config.API.Port)).String(), true
	})
	c.api = client.New(tr)
	c.apiDone = func() { closeIdle(tr) }
}

func closeIdle(tr *http.Transport) { tr.CloseIdleConnections() }

// Grace is the start-up grace of simulated clusters.
const Grace = 3 * time.Second

func (c *Cluster) yaml() string {
	var stores []string
	for _, s := range c.stores {
		stores = append(stores, fmt.Sprintf("{name: %s, type: dir, path: /%s}", s.name, s.name))
	}
	var y strings.Builder
	fmt.Fprintf(&y, `
cluster: sim
data_dir: /sim
bootstrap_expect: %d
gossip: {port: 7946, key_file: /sim/gossip.key}
api: {port: 7947, ca_file: /sim/ca.pem, cert_file: /sim/host.pem, key_file: /sim/host.key}
helper: {port: 8443, cert_file: /sim/host.pem, key_file: /sim/host.key, username: haven, password_file: /sim/password}
heartbeat:
  stores: [%s]
detection: {start_up_grace: %s}
fencing:
  action: off
  levels: [[bmc]]
  check_interval: 20s
  devices: {bmc: {driver: ipmi, username: haven, password_file: /sim/password}}
restart: {memory_reserve_mib: 256}
hosts:
`, len(c.hosts)/2+1, strings.Join(stores, ", "), Grace)
	for i, h := range c.hosts {
		if h.Witness {
			fmt.Fprintf(&y, "  %s: {address: %s, role: witness}\n", h.ID, h.Addr)
			continue
		}
		fmt.Fprintf(&y, "  %s: {address: %s, fencing: {devices: {bmc: {address: 10.1.0.%d}}}}\n", h.ID, h.Addr, 11+i)
	}
	return y.String()
}

// Now is the time since the cluster was built.
func (c *Cluster) Now() time.Duration { return time.Since(c.begun) }

// Rand draws from the seed.
func (c *Cluster) Rand() *rand.Rand { return c.rng }

// Hosts returns all machines, hypervisors first.
func (c *Cluster) Hosts() []*Host { return c.hosts }

// Host finds a machine by name.
func (c *Cluster) Host(id haven.HostID) *Host {
	for _, h := range c.hosts {
		if h.ID == id {
			return h
		}
	}
	return nil
}

// At returns the n-th machine, from 1.
func (c *Cluster) At(n int) *Host { return c.hosts[n-1] }

// After does f when d has passed, unless the simulation ended before.
func (c *Cluster) After(d time.Duration, f func()) {
	c.wg.Go(func() {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			f()
		case <-c.quit:
		}
	})
}

// Sleep lets virtual time pass.
func (c *Cluster) Sleep(d time.Duration) { pass(d) }

// pass lets virtual time pass; by the real clock it takes as long as what
// happens meanwhile.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // what is simulated must not depend on who waits for it
}

// emit records an event, checks it and tells the hooks.
func (c *Cluster) emit(e Event) {
	e.At = c.Now()
	c.trace.add(e)
	for _, v := range c.check.see(e) {
		c.trace.add(Event{At: e.At, What: Violated, Host: e.Host, Text: v})
	}
	c.mu.Lock()
	var hooks []func(Event)
	for _, n := range slices.Sorted(maps.Keys(c.hooks)) {
		hooks = append(hooks, c.hooks[n])
	}
	c.mu.Unlock()
	for _, f := range hooks {
		f(e)
	}
}

// On calls f at every event until the returned function is called. It runs
// where the event happens, before anything follows from it, and must not wait
// nor ask the world; it may kill agents.
func (c *Cluster) On(f func(Event)) (off func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hookN++
	n := c.hookN
	c.hooks[n] = f
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.hooks, n)
	}
}

// worldEvent passes on what the world tells.
func (c *Cluster) worldEvent(e world.Event) {
	c.emit(Event{What: What(e.Kind), Host: e.Machine, Boot: e.Boot, VM: e.VM, Text: e.Text, Order: haven.Order{Name: string(e.How)}})
}

// applied passes on what agents apply; each log entry counts once.
func (c *Cluster) applied(h *Host, at ledger.Position, cmds []ledger.Command, words []error) {
	if !c.check.first(at, h.ID, cmds) {
		return
	}
	for i, cmd := range cmds {
		text := describe(cmd)
		if words[i] != nil {
			text += " -- REFUSED: " + words[i].Error()
		}
		c.emit(Event{What: Commit, Host: h.ID, Index: at.Index, Command: cmd, Refused: words[i], Text: fmt.Sprintf("%d/%d %s", at.Index, at.Term, text)})
	}
}

// fail records that the simulation itself cannot go on.
func (c *Cluster) fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.check.violate("SIM", "%s", text)
	c.trace.add(Event{At: c.Now(), What: Violated, Text: text})
}

// Broken says that a promise was broken, from a script.
func (c *Cluster) Broken(format string, args ...any) { c.fail(format, args...) }

// Until waits until ok says so. It gives up, and fails the run, after limit.
func (c *Cluster) Until(what string, limit time.Duration, ok func() bool) bool {
	for end := time.Now().Add(limit); ; {
		if ok() {
			return true
		}
		if time.Now().After(end) {
			c.fail("waited %s in vain for %s", limit, what)
			return false
		}
		pass(50 * time.Millisecond)
	}
}

// Master returns the machine whose agent is master and ready; of two that
// believe so the one of the newer term.
func (c *Cluster) Master() *Host {
	var best *Host
	var term haven.Term
	for _, h := range c.hosts {
		if t, ok := h.leads(); ok && (best == nil || term.Older(t)) && !h.frozen() {
			best, term = h, t
		}
	}
	return best
}

// Ledger shows the master's ledger, or that of the agent that knows most. It
// returns false when there is none.
func (c *Cluster) Ledger(f func(s *ledger.State)) bool {
	var best *ledger.Store
	var at ledger.Position
	for _, h := range c.hosts {
		a := h.Agent()
		if a == nil {
			continue
		}
		a.Ledger().View(func(_ *ledger.State, p ledger.Position) {
			if best == nil || p.Index > at.Index {
				best, at = a.Ledger(), p
			}
		})
	}
	if best == nil {
		return false
	}
	best.View(func(s *ledger.State, _ ledger.Position) { f(s) })
	return true
}

// VMID is the name of the n-th VM, from 1.
func VMID(n int) haven.VMID {
	return haven.VMID(fmt.Sprintf("00000000-0000-4000-8000-%012d", n))
}

// vmMiB is the memory of a simulated VM.
const vmMiB = 512

// UserStart starts a VM as its user does.
func (c *Cluster) UserStart(h *Host, n int) {
	c.emit(Event{What: User, Host: h.ID, VM: VMID(n), Text: fmt.Sprintf("starts vm%d", n)})
	if _, err := h.Machine.UserStart(world.XML(VMID(n), fmt.Sprintf("vm%d", n), vmMiB)); err != nil {
		c.trace.add(Event{At: c.Now(), What: User, Host: h.ID, Text: err.Error()})
	}
}

// ready waits until the cluster is up, protects its VMs and trusts its BMCs.
func (c *Cluster) ready() {
	up := c.Until("a master that knows all hosts", time.Minute, func() bool {
		registered := 0
		c.Ledger(func(s *ledger.State) { registered = len(s.Hosts) })
		return c.Master() != nil && registered == len(c.hosts)
	})
	if !up {
		return
	}
	for i := range c.s.VMs {
		c.UserStart(c.hosts[i%c.s.Hosts], i+1)
	}
	c.Until("VMs that are protected, and boards that are known", time.Minute, func() bool {
		vms, boards := 0, 0
		c.Ledger(func(s *ledger.State) {
			vms = len(s.VMs)
			for _, h := range s.Hosts {
				if h.Power.GUID != "" {
					boards++
				}
			}
		})
		return c.declared() && vms == c.s.VMs && (boards == c.s.Hosts || c.s.Supplies > 0) // outlets have no GUID
	})
	if c.s.Supplies > 0 {
		c.Sleep(30 * time.Second) // each was read on by now
	}
	c.Sleep(Grace)
}

// close ends everything and lets the bubble run empty.
func (c *Cluster) close() {
	close(c.quit)
	for _, h := range c.hosts {
		h.HangDisk(false)
		h.mu.Lock()
		h.stopped = true
		h.mu.Unlock()
		h.powerLost("the simulation ends")
		for _, s := range c.stores {
			s.set(h.ID, "")
		}
	}
	c.apiDone()
	c.operator.PowerOff()
	done := make(chan struct{})
	go func() { c.wg.Wait(); close(done) }()
	// What production code left behind must end within its own bounds.
	select {
	case <-done:
	case <-time.After(10 * time.Minute):
		c.fail("goroutines did not end within 10 minutes of virtual time")
		fmt.Fprintln(os.Stderr, c.trace.text(true))
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 2)
		panic("goroutines are left")
	}
	pass(3 * time.Minute)
	c.net.Close()
}

// Operate sends an operator's act to any agent that takes it.
func (c *Cluster) Operate(path string, act client.Act) error {
	m := c.Master()
	if m == nil {
		return errNoMaster
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := c.api.Post(ctx, m.ID, path, act, nil)
	c.trace.add(Event{At: c.Now(), What: User, Host: m.ID, Text: fmt.Sprintf("operator: %s: %v", path, err)})
	return err
}

// Status asks one agent for its status, as an operator does who is beside it.
func (c *Cluster) Status(h *Host) (st client.Status, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = c.api.Get(ctx, h.ID, "/v1/status", &st)
	return st, err
}

// Voters are the hosts that have a vote, as the master says; nil if nobody does.
func (c *Cluster) Voters() (voters []haven.HostID) {
	m := c.Master()
	if m == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var r client.Raft
	if c.api.Get(ctx, m.ID, "/v1/raft", &r) != nil {
		return nil
	}
	for _, s := range r.Servers {
		if s.Voter {
			voters = append(voters, s.Host)
		}
	}
	return voters
}

// Count says how many events of a kind have happened so far.
func (c *Cluster) Count(what What) int {
	c.trace.mu.Lock()
	defer c.trace.mu.Unlock()
	n := 0
	for _, e := range c.trace.events {
		if e.What == what {
			n++
		}
	}
	return n
}

// Once calls do at the first event that matches, as On does.
func (c *Cluster) Once(match func(Event) bool, do func(Event)) {
	var once sync.Once
	var off func()
	off = c.On(func(e Event) {
		if match(e) {
			once.Do(func() {
				go off()
				do(e)
			})
		}
	})
}

// Is matches events of a kind.
func Is(what What) func(Event) bool { return func(e Event) bool { return e.What == what } }

// Recovered waits until all VMs that a host ran when it failed run elsewhere.
func (c *Cluster) Recovered(limit time.Duration, vms ...int) bool {
	return c.Until(fmt.Sprintf("VMs %v running elsewhere", vms), limit, func() bool {
		ok := true
		c.Ledger(func(s *ledger.State) {
			for _, n := range vms {
				vm := s.VMs[VMID(n)]
				ok = ok && vm != nil && vm.Phase == ledger.PhaseOwned && vm.Epoch > 1
			}
		})
		for _, n := range vms {
			ok = ok && len(c.World.RunsOn(VMID(n))) == 1
		}
		return ok
	})
}

// Calm lets time pass in which no power command may be sent and no VM be started.
func (c *Cluster) Calm(d time.Duration) {
	offs, starts := c.Count(BMCOff), c.Count(StartCall)
	c.Sleep(d)
	if n := c.Count(BMCOff) - offs; n > 0 {
		c.check.violate("P4", "%d power commands in a time that asks for none", n)
	}
	if n := c.Count(StartCall) - starts; n > 0 {
		c.check.violate("P4", "%d starts in a time that asks for none", n)
	}
}

// Verdict returns what the ledger's open incident says of a host; empty when
// there is none.
func (c *Cluster) Verdict(h *Host) (v haven.Verdict) {
	c.Ledger(func(s *ledger.State) {
		for _, in := range s.OpenIncidents() {
			if in.Host == h.ID {
				v = in.Verdict
			}
		}
	})
	return v
}

// Slave returns a hypervisor that is not master.
func (c *Cluster) Slave() *Host {
	m := c.Master()
	for _, h := range c.hosts {
		if h != m && !h.Witness {
			return h
		}
	}
	return nil
}

// N is the number of a host, from 1.
func (h *Host) N() int { return h.n + 1 }

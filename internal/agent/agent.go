package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/cluster"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/election"
	"github.com/haven-ha/haven/internal/api"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/flight"
	"github.com/haven-ha/haven/internal/isolation"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/notify"
	"github.com/haven-ha/haven/internal/numbers"
	"github.com/haven-ha/haven/internal/tlsmux"
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/vmrestart"
	"github.com/haven-ha/haven/web"
)

// Agent is one host's part in the cluster.
type Agent struct {
	d       Deps
	cfg     *config.Config
	log     *slog.Logger
	origin  time.Time
	metrics *metrics

	ledger    *ledger.Store
	mux       *tlsmux.Mux
	transport *http.Transport
	client    *client.Client
	cluster   *cluster.Cluster
	election  *election.Node
	monitors  []*storagebeat.Monitor
	executor  *vmrestart.Executor
	watch     *watcher
	detector  *detector.Machine
	recorder  *flight.Recorder // nil: nothing is recorded
	power     *power
	relays    *relays
	pills     *pills
	// ownFences are the devices by this agent's own way; d.Fences has both ways.
	ownFences map[haven.HostID][][]FenceDevice
	ev        *evidence
	dogs      *dogs
	loop      loopWatch
	quiet     *quiet
	kinds     notify.Catalogue
	asked     asked
	disks     *diskWatches // suspects whose disks are read here
	// diskEvidence is what was told of suspects' disks to this agent as master.
	diskEvidence *diskEvidence
	devices      deviceTests
	dog          *dog            // nil: there is no watchdog
	selfTold     isolation.State // the isolation loop's own: of what people were told

	self      atomic.Pointer[selfView]
	judgement atomic.Pointer[judged]
	reign     atomic.Pointer[mastery]      // set while this agent is master and ready
	releasing atomic.Bool                  // this isolated host stops its VMs, as configured
	protects  atomic.Pointer[[]haven.VMID] // what the master told last to be protected here
	mastery   *mastery                     // the duty loop's own
	decided   uint64                       // the duty loop's own: the ledger's index after its last decisions
	lists     *beatLists                   // the judge loop's own
	dogCounts dogCounts                    // the judge loop's own
	expected  []haven.HostID               // the judge loop's own: whose beats are expected
	done      chan ended
	kicked    chan struct{}
	reloaded  chan struct{} // secrets may be others now
	judged    chan struct{} // there is a new judgement
	newMaster chan struct{}
	standing  chan standing // the latest that a master wants of this host's definitions
	fatal     chan error
	owned     sync.WaitGroup // goroutines that answer to nobody else

	mu       sync.Mutex
	isTold   bool
	troubled []haven.HostID // as the master said last
	rejected string
	leave    haven.LeaveReason
	made     uint64 // reports
	// asks is what they want of the ledger for the watchdog, since the one so numbered.
	asks      haven.Watchdog
	asksSince uint64
	firstLed  time.Time // when this agent first knew a master
	coldLed   bool      // and that was itself
}

// New opens everything that an agent has. Whatever it opened is closed again
// when it fails. Run must be called once after it succeeded.
func New(d Deps) (a *Agent, err error) {
	a = &Agent{
		d: d, cfg: d.Config, log: d.Log, origin: time.Now(), metrics: newMetrics(d.Metrics),
		ledger: ledger.NewStore(), watch: newWatcher(d.Hypervisor, d.Host, d.Boot), power: newPower(d.Fences), relays: newRelays(),
		ev: newEvidence(), dogs: newDogs(), quiet: newQuiet(), kinds: notify.NewCatalogue(), done: make(chan ended, doneQueueLimit),
		kicked: make(chan struct{}, 1), reloaded: make(chan struct{}, 1), judged: make(chan struct{}, 1), newMaster: make(chan struct{}, 1), standing: make(chan standing, 1), fatal: make(chan error, 1),
	}
	var opened []func() error
	a.disks, a.diskEvidence = newDiskWatches(d.Config.Detection.DiskIdle, d.Config.Detection.DiskRepeats), newDiskEvidence()
	defer func() {
		for i := len(opened) - 1; err != nil && i >= 0; i-- {
			err = errors.Join(err, opened[i]())
		}
	}()
	a.ownFences, a.d.Fences = d.Fences, a.throughOthers(d.Fences)
	a.countDevices(d.Metrics)
	a.countArmed(d.Metrics)
	self, ok := d.Config.Host(d.Host)
	if !ok {
		return nil, fmt.Errorf("host %q is not in the hosts section of the configuration", d.Host)
	}
	// A list may be as old as a list in a beat may be: the agent's two seconds, the
	// helper's two intervals.
	a.lists = newBeatLists(max(inventoryFresh, 2*d.Config.Heartbeat.Interval))
	if a.detector, err = detector.New(numbers.Of(d.Config)); err != nil {
		return nil, fmt.Errorf("set up judgement: %w", err)
	}
	if a.pills, err = newPills(d.Config.Cluster, d.GossipKeys); err != nil {
		return nil, err
	}
	if err = a.openRecorder(); err != nil {
		return nil, err
	}
	if a.mux, err = tlsmux.Listen(tlsmux.Config{
		Stack: d.Net, Addr: netip.AddrPortFrom(self.Address, uint16(d.Config.API.Port)).String(), Credentials: d.Credentials, Log: d.Log,
	}); err != nil {
		return nil, fmt.Errorf("open API port: %w", err)
	}
	opened = append(opened, a.closePort)
	a.transport = tlsmux.NewTransport(d.Net, d.Credentials, a.apiAddress)
	a.client = client.New(a.transport)
	if err = a.openExecutor(); err != nil {
		return nil, err
	}
	if a.cluster, err = a.openCluster(self); err != nil {
		return nil, fmt.Errorf("open gossip: %w", err)
	}
	opened = append(opened, a.cluster.Close)
	a.dog = newWatchdog(d.Watchdog, d.Host, d.Boottime, a.reportSoon)
	a.measureWatchdog()
	if err = a.openMonitors(); err != nil {
		return nil, fmt.Errorf("open stores: %w", err)
	}
	if a.election, err = election.Open(a.electionConfig(self), machine{a}, a.mux.Raft(), d.Raft); err != nil {
		return nil, fmt.Errorf("open election: %w", err)
	}
	return a, nil
}

// closePort closes the port of an agent that never runs.
func (a *Agent) closePort() error {
	ended, end := context.WithCancel(context.Background())
	end()
	return a.mux.Run(ended)
}

// apiAddress finds the API of a host.
func (a *Agent) apiAddress(host haven.HostID) (string, bool) {
	h, ok := a.cfg.Host(host)
	if !ok {
		return "", false
	}
	return netip.AddrPortFrom(h.Address, uint16(a.cfg.API.Port)).String(), true
}

func (a *Agent) openCluster(self config.Host) (*cluster.Cluster, error) {
	peers := map[haven.HostID]netip.AddrPort{}
	for _, id := range a.cfg.HostIDs() {
		h, _ := a.cfg.Host(id)
		peers[id] = netip.AddrPortFrom(h.Address, uint16(a.cfg.Gossip.Port))
	}
	g := a.cfg.Gossip
	timing := cluster.DefaultTiming()
	timing.ProbeInterval, timing.ProbeTimeout, timing.SuspicionMult = g.ProbeInterval, g.ProbeTimeout, g.SuspicionMultiplier
	timing.GossipInterval, timing.PushPullInterval = g.Interval, g.PushPullInterval
	timing.RejoinMin, timing.RejoinMax = g.RejoinInterval, 2*g.RejoinInterval
	return cluster.New(cluster.Config{
		Cluster: a.cfg.Cluster, Host: a.d.Host, Bind: netip.AddrPortFrom(self.Address, uint16(g.Port)),
		Keys: a.d.GossipKeys, Peers: peers, Meta: a.meta(), Timing: timing, Net: a.d.Net, Log: a.d.Log,
	})
}

func (a *Agent) electionConfig(self config.Host) election.Config {
	return election.Config{
		Cluster: a.cfg.Cluster, Host: a.d.Host, Log: a.d.Log,
		Address:   netip.AddrPortFrom(self.Address, uint16(a.cfg.API.Port)).String(),
		AddressOf: a.apiAddress, LedgerSeen: a.ledgerSeen,
		Heartbeat: a.cfg.Raft.Heartbeat, Election: a.cfg.Raft.Election, Lease: a.cfg.Raft.Lease, CommitTimeout: a.cfg.Raft.Commit,
	}
}

func (a *Agent) openMonitors() error {
	if a.d.Config.Hosts[a.d.Host].Role == haven.RoleWitness {
		return nil
	}
	hosts := a.cfg.Hypervisors()
	for _, s := range a.d.Stores {
		content, wrote := a.watchedBeats()
		m, err := storagebeat.NewMonitor(storagebeat.MonitorConfig{
			Store: s.Name, Cluster: a.cfg.Cluster, Self: a.d.Host, Writer: storagebeat.WriterAgent,
			Boot: a.d.Boot, State: a.d.State, Incarnation: a.d.Incarnation, Hosts: hosts,
			Interval: a.cfg.Heartbeat.Interval, StaleAfter: a.cfg.Heartbeat.StaleAfter, Timeout: a.cfg.Heartbeat.IOTimeout,
			Wrote: wrote, Boottime: a.d.Boottime,
		}, s.Device, content, a.d.Log)
		if err != nil {
			return fmt.Errorf("store %s: %w", s.Name, err)
		}
		a.monitors = append(a.monitors, m)
	}
	return nil
}

// startTimeout bounds one start of a VM.
const startTimeout = time.Minute

func (a *Agent) openExecutor() (err error) {
	a.executor, err = vmrestart.NewExecutor(vmrestart.ExecutorConfig{
		Host: a.d.Host, Boot: a.d.Boot, State: a.d.State, Lease: a.cfg.Raft.Lease, Boottime: a.d.Boottime,
		ProbeTimeout: 5 * time.Second, ConfirmTimeout: 15 * time.Second, StartTimeout: startTimeout,
		Parallel:   a.cfg.Restart.MaxStartsInFlight,
		Hypervisor: a.d.Hypervisor, Prober: a.d.Probe, Master: confirmer{a}, Journal: a.d.Journal, Log: a.d.Log,
	})
	return err
}

// Run is the agent's life: until the context ends, Leave was called, or
// something failed that only a new process can mend.
func (a *Agent) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var parts sync.WaitGroup
	part := func(name string, run func(context.Context) error) {
		parts.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				a.fail(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	quietly := func(run func(context.Context)) func(context.Context) error {
		return func(ctx context.Context) error { run(ctx); return nil }
	}
	part("gossip", a.cluster.Run)
	part("election", a.election.Run)
	part("API port", a.mux.Run)
	part("API", a.serve)
	part("credentials", quietly(a.d.Credentials.Run))
	for _, m := range a.monitors {
		part("store", m.Run)
	}
	if a.d.Hypervisor != nil {
		part("VM manager", quietly(a.d.Hypervisor.Run))
		part("orders", quietly(a.executor.Run))
	}
	if len(a.monitors) > 0 {
		part("poison pills", quietly(a.pillLoop))
	}
	if slices.ContainsFunc(a.cfg.HostIDs(), a.obeysPills) {
		part("poison pills of others", quietly(a.withdrawLoop))
	}
	part("inventory", quietly(a.watch.run))
	if a.d.Notifier != nil {
		part("notifications", quietly(a.d.Notifier.Run))
	}
	if a.d.Disks != nil {
		part("disks of suspects", quietly(a.watchDisks))
	}
	part("bootstrap", a.bootstrap)
	part("voters", quietly(a.keepVoters))
	part("isolation", quietly(a.isolationLoop))
	part("judgement", quietly(a.judgeLoop))
	part("flight recorder", quietly(a.record))
	part("duty", quietly(a.dutyLoop))
	part("reports", quietly(a.reportLoop))
	part("definitions", quietly(a.keepLoop))
	part("gossip meta", quietly(a.tellGossip))
	part("fence devices", quietly(a.testDevices))
	if a.d.Hypervisor != nil {
		part("responses", quietly(a.respondLoop))
	}

	endWatchdog := a.runWatchdog(ctx)
	var err error
	select {
	case <-ctx.Done():
	case err = <-a.fatal:
		a.log.Error("the agent ends", "error", err)
	}
	stop()
	if !within(endLimit, func() { parts.Wait(); a.owned.Wait() }) {
		err = errors.Join(err, ErrStuck)
	}
	if !within(time.Second, endWatchdog) {
		err = errors.Join(err, ErrStuck)
	}
	a.transport.CloseIdleConnections()
	return err
}

// endLimit is how long the end of an agent may take: as long as one start that
// was begun, with some room.
const endLimit = startTimeout + 15*time.Second

// ErrStuck is returned by Run when a part did not end in time, such as a write to
// a disk that hangs. Goroutines are left behind; only the end of the process helps.
var ErrStuck = errors.New("a part of the agent does not end")

// within says whether wait came back in time.
func within(limit time.Duration, wait func()) bool {
	done := make(chan struct{})
	go func() { defer close(done); wait() }()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// fail ends the agent.
func (a *Agent) fail(err error) {
	select {
	case a.fatal <- err:
	default:
	}
}

// Leave tells everybody why this agent is about to stop. The caller ends Run's
// context afterwards, and then the stores get a farewell beat that says the
// same. It takes a few seconds at most.
func (a *Agent) Leave(ctx context.Context, reason haven.LeaveReason) error {
	a.mu.Lock()
	a.leave = reason
	a.mu.Unlock()
	a.dog.disarm(true)
	var errs []error
	if master, ok := a.master(); ok {
		ctx, cancel := context.WithTimeout(ctx, reportTimeout)
		_, err := a.tell(ctx, master, a.makeReport())
		cancel()
		errs = append(errs, err)
	}
	errs = append(errs, a.dog.disarmed(ctx), a.cluster.Leave(ctx, reason))
	return errors.Join(errs...)
}

func (a *Agent) serve(ctx context.Context) error {
	extra := map[string]http.Handler{
		"GET /metrics": a.d.Metrics.Handler(),
		"GET /{$}":     web.Handler(),
		"GET /web/":    web.Handler(),
	}
	h := api.Handler(a.cfg.Cluster, a.routes(), extra, a.log)
	if a.d.Local != nil {
		a.owned.Go(func() {
			if err := api.Serve(ctx, a.d.Local, h, true, a.log); err != nil && ctx.Err() == nil {
				a.fail(fmt.Errorf("local socket: %w", err))
			}
		})
	}
	return api.Serve(ctx, a.mux.HTTP(), h, false, a.log)
}

// machine is the replicated state machine that the election drives.
type machine struct{ a *Agent }

// Apply carries out a log entry. An entry that cannot be read was written by a
// newer agent; this one must not go on with a ledger that is not the others'.
func (m machine) Apply(index, term uint64, data []byte) any {
	answer := m.a.ledger.Apply(index, term, data)
	if err, broken := answer.(error); broken {
		m.a.fail(fmt.Errorf("apply log entry %d: %w; this agent is too old for the cluster", index, err))
	}
	m.tellApplied(index, term, data, answer)
	m.a.kick()
	return answer
}

func (m machine) tellApplied(index, term uint64, data []byte, answer any) {
	words, applied := answer.([]error)
	if m.a.d.Applied == nil || !applied {
		return
	}
	if cmds, err := ledger.Decode(data); err == nil { // It was decoded a moment ago.
		m.a.d.Applied(ledger.Position{Index: index, Term: term}, cmds, words)
	}
}

func (m machine) Snapshot() ([]byte, error)  { return m.a.ledger.Snapshot() }
func (m machine) Restore(state []byte) error { defer m.a.kick(); return m.a.ledger.Restore(state) }

// kick makes the judge loop turn at once.
func (a *Agent) kick() {
	select {
	case a.kicked <- struct{}{}:
	default:
	}
}

// Ledger is this agent's copy of the ledger, to look at.
func (a *Agent) Ledger() *ledger.Store { return a.ledger }

// Reign returns the term in which this agent is master and ready.
func (a *Agent) Reign() (haven.Term, bool) {
	if m := a.reign.Load(); m != nil {
		return m.term, true
	}
	return haven.Term{}, false
}

// Verdict returns what this agent holds a host for.
func (a *Agent) Verdict(host haven.HostID) haven.Verdict {
	if j, ok := a.judgement.Load().host(host); ok {
		return j.Verdict
	}
	return haven.VerdictUnknown
}

// isMaster says whether this agent leads and knows all that was committed.
func (a *Agent) isMaster() bool { return a.reign.Load() != nil }

// term is that of this master, or the highest that was seen.
func (a *Agent) term() haven.Term {
	if m := a.reign.Load(); m != nil {
		return m.term
	}
	return a.executor.Highest()
}

// masterSince says whether and since when this agent is master.
func (a *Agent) masterSince() (bool, time.Duration) {
	if m := a.reign.Load(); m != nil {
		return true, a.at(m.since)
	}
	return false, 0
}

func (a *Agent) masterFor() (time.Duration, bool) {
	if m := a.reign.Load(); m != nil {
		return time.Since(m.since), true
	}
	return 0, false
}

// coldStart says whether the first master that this agent ever knew was itself:
// then nobody was there before who knew more.
func (a *Agent) coldStart() (bool, time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.coldLed {
		return false, 0
	}
	return true, a.at(a.firstLed)
}

// noteMaster remembers the first master that was seen.
func (a *Agent) noteMaster(host haven.HostID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.firstLed.IsZero() {
		a.firstLed, a.coldLed = time.Now(), host == a.d.Host
	}
}

// master finds out who leads: from Raft when this agent takes part in it, else
// from the newest hint in gossip.
func (a *Agent) master() (haven.HostID, bool) {
	if l := a.election.Leader(); l.Host != "" {
		return l.Host, true
	}
	var best cluster.Meta
	var found bool
	for _, m := range a.cluster.Members() {
		// What this agent itself told last is no hint.
		if m.Trusted() && !m.Self && m.Meta.Master != "" && (!found || best.MasterTerm.Older(m.Meta.MasterTerm)) {
			best, found = m.Meta, true
		}
	}
	return best.Master, found
}

func (a *Agent) bootOf(host haven.HostID) (boot haven.BootID) {
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		if h := s.Hosts[host]; h != nil {
			boot = h.Boot
		}
	})
	if boot == "" {
		boot = a.memberTable()[host].Meta.Boot
	}
	return boot
}

func (a *Agent) memberTable() map[haven.HostID]cluster.Member {
	t := map[haven.HostID]cluster.Member{}
	for _, m := range a.cluster.Members() {
		t[m.Host] = m
	}
	return t
}

func (a *Agent) snapshots() []storagebeat.Snapshot {
	all := make([]storagebeat.Snapshot, 0, len(a.monitors))
	for _, m := range a.monitors {
		all = append(all, m.Snapshot())
	}
	return all
}

// beat is what this agent writes to the stores.
func (a *Agent) beat() storagebeat.Beat {
	vms, whole := a.watch.running()
	releasing := a.releasing.Load()
	if releasing && a.hungStore() != "" {
		whole = false // A VM that is not in the list may have a write under way (P1).
	}
	master, _ := a.master()
	return storagebeat.Beat{
		Term: a.term(), Master: master, KnowsLedger: a.ledger.Generation() > 0 || a.election.HasLedger(),
		Isolated: a.saysIsolated(), Releasing: releasing, Resetting: a.resetting(), Left: a.leaving(), VMs: vms, Complete: whole,
		Watchdog: a.dog.inBeat(),
	}
}

// ledgerSeen tells of signs that a ledger exists somewhere.
func (a *Agent) ledgerSeen() string {
	for _, m := range a.cluster.Members() {
		if !m.Self && m.Stranger == "" && m.Meta.Ledger {
			return fmt.Sprintf("host %s knows one", m.Host)
		}
	}
	for _, s := range a.snapshots() {
		for _, h := range s.Hosts {
			if h.Host != a.d.Host && h.Agent.Seen && h.Agent.Beat.KnowsLedger {
				return fmt.Sprintf("the beat of host %s on store %s says so", h.Host, s.Store)
			}
		}
	}
	return ""
}

func (a *Agent) leaving() haven.LeaveReason {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.leave
}

func (a *Agent) told() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.isTold
}

func (a *Agent) setTold() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.isTold, a.rejected = true, ""
}

// setRejected says whether the reason is news.
func (a *Agent) setRejected(why string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	news := a.rejected != why
	a.rejected, a.isTold = why, false
	return news
}

// confirmer asks the master of the moment.
type confirmer struct{ a *Agent }

func (c confirmer) Confirm(ctx context.Context, o haven.Order, boot haven.BootID, state haven.StateID) error {
	master, ok := c.a.master()
	if !ok {
		return haven.ErrNotMaster
	}
	q := client.ConfirmRequest{Order: o.ID, VM: o.VM, Epoch: o.Epoch, Boot: boot, State: state}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var ans client.ConfirmAnswer
	var err error
	if master == c.a.d.Host {
		ans, err = c.a.Confirm(ctx, c.a.d.Host, q)
	} else {
		ans, err = c.a.client.Confirm(ctx, master, q)
	}
	if err != nil {
		return err
	}
	if err := c.a.executor.See(ans.Term); err != nil {
		return err
	}
	if !ans.Stands {
		return fmt.Errorf("%w: %s", vmrestart.ErrVoid, ans.Why)
	}
	return nil
}

// hostPort joins an address of the configuration with a port.
func hostPort(addr netip.Addr, port int) string {
	return net.JoinHostPort(addr.String(), strconv.Itoa(port))
}

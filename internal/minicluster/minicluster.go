// Package minicluster runs a whole cluster in one process: real agents with real
// gossip, Raft, TLS, HTTP and beats on a real directory, real IPMI over UDP to
// boards in this process, and machines and VMs in memory. Everything can be
// broken as in a machine room. The demo is made of it, and tests use it.
package minicluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/cluster"
	"github.com/haven-ha/haven/election"
	"github.com/haven-ha/haven/fencing/ipmi"
	"github.com/haven-ha/haven/fencing/ipmi/ipmitest"
	"github.com/haven-ha/haven/internal/agent"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/diskwatch"
	"github.com/haven-ha/haven/internal/flight"
	"github.com/haven-ha/haven/internal/loopnet"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/obs"
	"github.com/haven-ha/haven/internal/pki"
	"github.com/haven-ha/haven/internal/tlsmux"
	"github.com/haven-ha/haven/internal/world"
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/vmrestart"
)

// Options say what cluster is wanted.
type Options struct {
	Hosts int
	// Dir is where everything is kept; it must exist.
	Dir string
	// StoreChild starts a store's child process; see storagebeat.ChildMain.
	StoreChild []string
	// Net is the second and third octet of 127.x.y.z, so that two clusters on
	// one machine do not meet.
	Net [2]byte
	// Config changes the YAML of the configuration; nil for nothing.
	Config func(yaml string) string
	// MemoryMiB is what each machine has.
	MemoryMiB uint64
	// DiskIdle is detection.disk_idle; 0 is the default of the configuration.
	DiskIdle time.Duration
	// Secrets are the cluster's; nil for well-known ones. With them, the fence devices
	// are those of the configuration, made as havend makes them.
	Secrets *Secrets
	// UUID is what a host's firmware says of it; nil for nothing.
	UUID func(haven.HostID) string
	// OnEvent is told what really happens. It must not call back.
	OnEvent func(world.Event)
	// Log makes the logger of one host.
	Log func(host haven.HostID) *slog.Logger
}

// Secrets are what must be seen nowhere.
type Secrets struct {
	BMC    string // the password of all boards, and
	KG     string // their own key; empty for none
	Gossip []byte // 32 octets
	// Launcher starts fence programs; see agent.Real.
	Launcher []string
}

// Ports of the agents, on each machine's own address.
const (
	GossipPort = 7946
	APIPort    = 7947
	bmcPort    = 6623
)

// bmcPassword is that of all BMCs. It is long enough to be found wherever it does
// not belong.
const bmcPassword = "knock-knock-bmc"

// Cluster is a running cluster.
type Cluster struct {
	World *world.World
	Net   *loopnet.Net

	opts    Options
	ca      *pki.CA
	key     cluster.Key
	config  *config.Config
	storeID storagebeat.StoreID
	hosts   []*Host
	wg      sync.WaitGroup
}

// Host is one machine of the cluster with everything on it.
type Host struct {
	ID      haven.HostID
	Addr    netip.Addr
	Machine *world.Machine
	BMC     *ipmitest.BMC

	c     *Cluster
	creds *pki.Credentials
	pair  pki.Pair
	hung  atomic.Pointer[chan struct{}] // storage hangs until it is closed
	// readOnly is set while the machine can read the store, and write nothing.
	readOnly atomic.Bool
	resets   atomic.Int64

	booting sync.Mutex // one boot at a time

	mu     sync.Mutex
	agent  *life
	helper *life
	dying  []*life // of an earlier boot; they still hold ports and files
	losses int     // of power, counted
	lives  int
	cut    bool // off the network by a fault, not by power
}

// life is one run of a process.
type life struct {
	agent *agent.Agent
	stop  context.CancelFunc
	ended chan struct{}
}

func (l *life) end() {
	if l != nil {
		l.stop()
		<-l.ended
	}
}

// New builds the cluster and powers every machine on.
func New(opts Options) (c *Cluster, err error) {
	c = &Cluster{World: world.Observed(opts.OnEvent), Net: loopnet.New(), opts: opts}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if c.ca, err = pki.NewCA("demo", pki.DefaultCALifetime); err != nil {
		return nil, err
	}
	key := sha256.Sum256([]byte("gossip in one process needs no secret"))
	c.key = key[:]
	if opts.Secrets != nil {
		c.key = opts.Secrets.Gossip
		if err := c.writeSecrets(); err != nil {
			return nil, err
		}
	}
	for i := range opts.Hosts {
		if err := c.addHost(i); err != nil {
			return nil, fmt.Errorf("host %d: %w", i+1, err)
		}
	}
	yaml := c.yaml()
	if opts.Config != nil {
		yaml = opts.Config(yaml)
	}
	if c.config, err = config.Parse("demo.yaml", []byte(yaml)); err != nil {
		return nil, err
	}
	if err := c.initStore(); err != nil {
		return nil, err
	}
	for _, h := range c.hosts {
		if err := h.PowerOn(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *Cluster) addHost(i int) error {
	h := &Host{
		ID: haven.HostID(fmt.Sprintf("kvm-%02d", i+1)), c: c,
		Addr: netip.AddrFrom4([4]byte{127, c.opts.Net[0], c.opts.Net[1], byte(11 + i)}),
	}
	h.Machine = c.World.Add(h.ID, c.opts.MemoryMiB)
	pair, err := c.ca.IssueHost(h.ID, []netip.Addr{h.Addr}, pki.DefaultHostLifetime)
	if err != nil {
		return err
	}
	if h.creds, err = pki.NewCredentials("demo", c.ca.Pair().Cert, pair); err != nil {
		return err
	}
	h.pair = pair
	password, kg := c.boardSecrets()
	h.BMC, err = ipmitest.Start(c.bmcAddr(h), ipmitest.Config{
		Accounts: []ipmitest.Account{{Name: "haven", Password: password, Privilege: ipmitest.Operator}}, KG: kg,
		GUID: [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, c.opts.Net[1], byte(i + 1)}, Off: true,
		OnPower: func(on bool) error {
			if on {
				return h.boot()
			}
			h.powerLost()
			return nil
		},
	})
	if err != nil {
		return fmt.Errorf("start BMC: %w", err)
	}
	c.hosts = append(c.hosts, h)
	return nil
}

// bmcAddr is on another address than the host: a BMC has its own network.
func (c *Cluster) bmcAddr(h *Host) string {
	a := h.Addr.As4()
	a[3] += 100
	return netip.AddrPortFrom(netip.AddrFrom4(a), bmcPort).String()
}

func (c *Cluster) yaml() string {
	dir := c.opts.Dir
	var y strings.Builder
	fmt.Fprintf(&y, `
cluster: demo
data_dir: %[1]s/data
bootstrap_expect: %[2]d
gossip: {port: %[3]d, key_file: %[1]s/gossip.key}
api: {port: %[4]d, ca_file: %[1]s/ca.pem, cert_file: %[1]s/host.pem, key_file: %[1]s/host.key}
helper: {port: 8443, cert_file: %[1]s/host.pem, key_file: %[1]s/host.key, username: haven, password_file: %[1]s/helper.password}
heartbeat:
  stores: [{name: nfs1, type: dir, path: %[1]s/store}]
detection: {start_up_grace: 3s%[6]s}
fencing:
  action: off
  check_interval: 10s
  levels: [[bmc]]
  devices: {bmc: {driver: ipmi, port: %[5]d, username: haven, password_file: %[1]s/bmc.password}}
restart: {memory_reserve_mib: 256}
hosts:
`, dir, len(c.hosts)/2+1, GossipPort, APIPort, bmcPort, c.diskIdle())
	for _, h := range c.hosts {
		bmc := netip.MustParseAddrPort(c.bmcAddr(h)).Addr()
		fmt.Fprintf(&y, "  %s: {address: %s, fencing: {devices: {bmc: {address: %s}}}}\n", h.ID, h.Addr, bmc)
	}
	return y.String()
}

func (c *Cluster) initStore() error {
	path := filepath.Join(c.opts.Dir, "store")
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	child, err := c.child(path)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	id, err := child.Init(ctx, storagebeat.InitOptions{Cluster: "demo"})
	if err != nil {
		return errors.Join(fmt.Errorf("init store: %w", err), child.Close())
	}
	c.storeID = id.ID
	return child.Close()
}

func (c *Cluster) child(path string) (*storagebeat.Child, error) {
	return storagebeat.NewChild(storagebeat.ChildConfig{
		Command: c.opts.StoreChild, Path: path, Cluster: "demo", Timeout: 2 * time.Second, Stderr: os.Stderr,
	})
}

// Client makes a client of the cluster's API, as an admin.
func (c *Cluster) Client() (*client.Client, error) {
	pair, err := c.ca.IssueOperator("demo", pki.RoleAdmin, pki.DefaultOperatorLifetime)
	if err != nil {
		return nil, err
	}
	creds, err := pki.NewCredentials("demo", c.ca.Pair().Cert, pair)
	if err != nil {
		return nil, err
	}
	return client.New(tlsmux.NewTransport(netx.Real{}, creds, func(id haven.HostID) (string, bool) {
		h := c.Host(id)
		if h == nil {
			return "", false
		}
		return netip.AddrPortFrom(h.Addr, APIPort).String(), true
	})), nil
}

// DataDir is where the agent of a host keeps its data.
func (c *Cluster) DataDir(id haven.HostID) string { return filepath.Join(c.opts.Dir, string(id)) }

// Hosts returns the machines, in order.
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

// Close ends everything.
func (c *Cluster) Close() {
	for _, h := range c.hosts {
		h.HangStore(false)
		h.powerLost()
		if err := h.BMC.Close(); err != nil {
			slog.New(slog.DiscardHandler).Debug("BMC did not close", "error", err)
		}
	}
	c.wg.Wait()
}

// PowerOn gives a machine its power back; it boots.
func (h *Host) PowerOn() error {
	h.BMC.SetPower(true)
	return h.boot()
}

// PowerOff cuts a machine's power. Its BMC has power of its own and says so.
func (h *Host) PowerOff() {
	h.BMC.SetPower(false)
	h.powerLost()
}

// boot starts what a machine starts when it boots: the helper and the agent.
func (h *Host) boot() error {
	h.booting.Lock()
	defer h.booting.Unlock()
	h.mu.Lock()
	dying, losses := h.dying, h.losses
	h.dying = nil
	h.mu.Unlock()
	for _, l := range dying {
		<-l.ended
	}
	h.mu.Lock()
	again := h.losses != losses
	if !again {
		h.Machine.PowerOn()
		h.c.Net.Cut(h.Addr, h.cut)
	}
	h.mu.Unlock()
	if again {
		return nil // The power went again meanwhile.
	}
	if err := h.startHelper(); err != nil {
		return err
	}
	return h.StartAgent()
}

// powerLost ends everything on a machine at once, without a word.
func (h *Host) powerLost() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.losses++
	h.c.Net.Cut(h.Addr, true)
	h.Machine.PowerOff()
	// Ending takes a moment in which the machine is cut off and powerless: to
	// the others it is gone already.
	for _, l := range []*life{h.agent, h.helper} {
		if l != nil {
			l.stop()
			h.dying = append(h.dying, l)
		}
	}
	h.agent, h.helper = nil, nil
}

// CutNetwork pulls the machine's management network cable, or puts it back.
func (h *Host) CutNetwork(cut bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cut = cut
	if on, _ := h.Machine.On(); on {
		h.c.Net.Cut(h.Addr, cut)
	}
}

// NetworkCut says whether the machine's cable is pulled.
func (h *Host) NetworkCut() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cut
}

// StoreHangs says whether the machine's storage hangs.
func (h *Host) StoreHangs() bool { return h.hung.Load() != nil }

// HangStore makes the machine's storage hang, or answer again.
func (h *Host) HangStore(hang bool) {
	old := h.hung.Load()
	switch {
	case hang && old == nil:
		ch := make(chan struct{})
		h.hung.Store(&ch)
	case !hang && old != nil && h.hung.CompareAndSwap(old, nil):
		close(*old)
	}
}

// KillAgent ends the agent as SIGKILL would; the machine and its VMs live on.
func (h *Host) KillAgent() {
	h.mu.Lock()
	a := h.agent
	h.agent = nil
	h.mu.Unlock()
	a.end()
}

// StopAgent stops the agent in good order.
func (h *Host) StopAgent(ctx context.Context) error {
	h.mu.Lock()
	a := h.agent
	h.agent = nil
	h.mu.Unlock()
	if a == nil {
		return nil
	}
	err := a.agent.Leave(ctx, haven.LeaveStopped)
	a.end()
	return err
}

// AgentRuns says whether the machine's agent runs.
func (h *Host) AgentRuns() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.agent != nil
}

// StartAgent starts the agent of a machine that has power.
func (h *Host) StartAgent() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	on, boot := h.Machine.On() // Power that goes from here on finds the agent.
	if !on || h.agent != nil {
		return nil
	}
	h.lives++
	deps, closeDeps, err := h.deps(boot)
	if err != nil {
		return fmt.Errorf("start agent on %s: %w", h.ID, err)
	}
	a, err := agent.New(deps)
	if err != nil {
		closeDeps()
		return fmt.Errorf("start agent on %s: %w", h.ID, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	l := &life{agent: a, stop: stop, ended: make(chan struct{})}
	h.agent = l
	h.c.wg.Go(func() {
		defer close(l.ended)
		defer closeDeps()
		if err := a.Run(ctx); err != nil {
			deps.Log.Error("agent ended", "error", err)
		}
	})
	return nil
}

func (h *Host) deps(boot haven.BootID) (d agent.Deps, closeAll func(), err error) {
	c := h.c
	log := c.opts.Log(h.ID)
	dir := c.DataDir(h.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return d, nil, err
	}
	d = agent.Deps{
		Config: c.config, Host: h.ID, Boot: boot, Version: "demo", Net: c.Net.Stack(h.Addr), Credentials: h.creds,
		GossipKeys: []cluster.Key{c.key}, Raft: election.DirStorage(filepath.Join(dir, "raft")),
		Journal: vmrestart.FileJournal{Path: filepath.Join(dir, "orders.json")}, Hypervisor: h.Machine.Hypervisor(),
		Probe: diskProbe{h}, Helper: h.askHelper, Boottime: bootClock(), Metrics: obs.NewMetrics(), Log: log,
		Recordings: flight.Dir(filepath.Join(dir, "flight")),
	}
	if c.opts.UUID != nil {
		d.UUID = c.opts.UUID(h.ID)
	}
	d.Stopper = h.Machine.Hypervisor()
	if self, _ := c.config.Host(h.ID); self.Fencing.PoisonPill {
		d.Reset = h.reset
	}
	d.Secrets = config.NewSecrets(log)
	if d.State, d.Incarnation, err = agent.OpenIdentity(dir); err != nil {
		return d, nil, err
	}
	if d.Notifier, err = agent.NewNotifier(c.config, h.ID, d.Incarnation, d.Net, d.Secrets, d.Metrics, log); err != nil {
		return d, nil, err
	}
	if d.Fences, err = c.fences(d.Secrets); err != nil {
		return d, nil, err
	}
	child, err := c.child(filepath.Join(c.opts.Dir, "store"))
	if err != nil {
		return d, nil, err
	}
	d.Stores = []agent.Store{{Name: "nfs1", Device: &gatedDevice{h, child}}}
	reader, err := diskwatch.NewReader(c.opts.StoreChild, c.config.Heartbeat.IOTimeout)
	if err != nil {
		return d, nil, errors.Join(err, child.Close())
	}
	d.Disks = vmDisks{h, reader}
	return d, func() {
		if err := errors.Join(child.Close(), reader.Close()); err != nil {
			log.Warn("store child did not close", "error", err)
		}
	}, nil
}

func (c *Cluster) fences(secrets *config.Secrets) (map[haven.HostID][][]agent.FenceDevice, error) {
	if s := c.opts.Secrets; s != nil {
		return agent.Real{Config: c.config, FenceLauncher: s.Launcher}.Fences(secrets)
	}
	all := map[haven.HostID][][]agent.FenceDevice{}
	for _, h := range c.hosts {
		driver, err := ipmi.New(ipmi.Config{
			Net: netx.Real{}, Address: h.BMC.Addr(), Username: "haven", Password: func() (string, error) { return bmcPassword, nil },
		})
		if err != nil {
			return nil, err
		}
		all[h.ID] = [][]agent.FenceDevice{{{Name: "bmc", Key: h.BMC.Addr(), Address: h.BMC.Addr(), Driver: driver}}}
	}
	return all, nil
}

// startHelper starts what stands for the host helper: a process beside the
// agent with a beat of its own.
func (h *Host) startHelper() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	on, boot := h.Machine.On()
	if !on || h.helper != nil {
		return nil
	}
	h.lives++
	child, err := h.c.child(filepath.Join(h.c.opts.Dir, "store"))
	if err != nil {
		return err
	}
	hb := h.c.config.Heartbeat
	m, err := storagebeat.NewMonitor(storagebeat.MonitorConfig{
		Store: "nfs1", Cluster: "demo", Self: h.ID, Writer: storagebeat.WriterHelper, Boot: boot, State: "helper",
		Incarnation: haven.Incarnation(h.lives), Hosts: h.c.config.Hypervisors(), Interval: hb.Interval,
		StaleAfter: hb.StaleAfter, Timeout: hb.IOTimeout, WriteOnly: true,
	}, &gatedDevice{h, child}, func() storagebeat.Beat { return storagebeat.Beat{} }, h.c.opts.Log(h.ID))
	if err != nil {
		return errors.Join(err, child.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	l := &life{stop: stop, ended: make(chan struct{})}
	h.helper = l
	h.c.wg.Go(func() {
		defer close(l.ended)
		err := errors.Join(m.Run(ctx), child.Close())
		h.c.opts.Log(h.ID).Debug("helper ended", "error", err)
	})
	return nil
}

// askHelper asks another machine's helper, over the network that this one has.
func (h *Host) askHelper(ctx context.Context, id haven.HostID) (haven.Tri, string) {
	other := h.c.Host(id)
	if other == nil {
		return haven.Unknown, "no such host"
	}
	conn, err := h.c.Net.Stack(h.Addr).DialContext(ctx, "tcp", netip.AddrPortFrom(other.Addr, APIPort).String())
	if err == nil {
		err = conn.Close()
	}
	if on, _ := other.Machine.On(); !on || !other.helperRuns() || errors.Is(err, os.ErrDeadlineExceeded) {
		return haven.No, "no answer"
	}
	return haven.Yes, "it answers"
}

func bootClock() func() time.Duration {
	origin := time.Now()
	return func() time.Duration { return time.Since(origin) }
}

// gatedDevice is a store as one machine reaches it: it hangs when told to, and
// with the machine's power it is gone.
type gatedDevice struct {
	h *Host
	*storagebeat.Child
}

func (g *gatedDevice) gate(ctx context.Context) error {
	for {
		hung := g.h.hung.Load()
		if hung == nil {
			break
		}
		select {
		case <-*hung:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if on, _ := g.h.Machine.On(); !on {
		return errors.New("the machine has no power")
	}
	return nil
}

// ReadAll reads the store.
func (g *gatedDevice) ReadAll(ctx context.Context) (storagebeat.Contents, error) {
	if err := g.gate(ctx); err != nil {
		return storagebeat.Contents{}, err
	}
	return g.Child.ReadAll(ctx)
}

// Write writes a beat.
func (g *gatedDevice) Write(ctx context.Context, b storagebeat.RawBeat) error {
	if err := g.mayWrite(ctx); err != nil {
		return err
	}
	return g.Child.Write(ctx, b)
}

// WritePill writes a pill.
func (g *gatedDevice) WritePill(ctx context.Context, p storagebeat.RawPill) error {
	if err := g.mayWrite(ctx); err != nil {
		return err
	}
	return g.Child.WritePill(ctx, p)
}

func (g *gatedDevice) mayWrite(ctx context.Context) error {
	if err := g.gate(ctx); err != nil {
		return err
	}
	if g.h.readOnly.Load() {
		return errors.New("the storage is read-only")
	}
	return nil
}

// diskProbe stands for the reading of VM disks, which are on the store.
type diskProbe struct{ h *Host }

func (p diskProbe) ReadProbe(ctx context.Context, _ string) error {
	g := gatedDevice{h: p.h}
	return g.gate(ctx)
}

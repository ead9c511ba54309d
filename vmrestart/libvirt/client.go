package libvirt

import (
	"context"
	"log/slog"
	"sync"
	"time"

	lv "github.com/digitalocean/go-libvirt"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/netx"
)

// Options are what a Client needs to know of its host.
type Options struct {
	// Socket is libvirtd's stream socket, such as /run/libvirt/libvirt-sock.
	Socket string
	// URI names the driver to open; empty means qemu:///system.
	URI string
	// Host and Boot are written into inventories.
	Host haven.HostID
	Boot haven.BootID
	// ProcRoot is where the process table is read; empty means /proc.
	ProcRoot string
	// SaveDir is where libvirt keeps managed-save images; empty means
	// /var/lib/libvirt/qemu/save, where qemu:///system keeps them.
	SaveDir string
	// Starts is how many control calls may be in libvirtd at once; 0 means 4.
	// With the six connections for inventory, jobs, probes and events it must
	// stay well below libvirtd's max_workers, which is 20.
	Starts int
	// ConnectLimit bounds one attempt to connect; 0 means 20 s. It is long on
	// purpose: one patient attempt hears at once when a hung libvirtd is back,
	// many short ones fill its queue of clients.
	ConnectLimit time.Duration
	// ReadHold and ControlHold bound how long a call that was given up by its
	// caller keeps its connection, and with it its place; 0 means 2 and 10
	// minutes. Each expiry may cost libvirtd one more worker, so they are long;
	// a start on hung storage was seen to take 9 minutes.
	ReadHold, ControlHold time.Duration
	// DefinitionAge is how old a definition's checksum in an inventory may be
	// when no event called for a fresh look; 0 means 10 s. Reading one costs
	// 0.4 ms of libvirtd's time, which matters when hundreds are polled.
	DefinitionAge time.Duration
	Net           netx.Stack
	Log           *slog.Logger
}

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&o.ConnectLimit, 20*time.Second)
	set(&o.ReadHold, 2*time.Minute)
	set(&o.ControlHold, 10*time.Minute)
	set(&o.DefinitionAge, 10*time.Second)
	if o.URI == "" {
		o.URI = string(lv.QEMUSystem)
	}
	if o.ProcRoot == "" {
		o.ProcRoot = "/proc"
	}
	if o.SaveDir == "" {
		o.SaveDir = "/var/lib/libvirt/qemu/save"
	}
	if o.Starts <= 0 {
		o.Starts = 4
	}
	if o.Net == nil {
		o.Net = netx.Real{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Client asks one libvirtd. Its methods may be called from many goroutines at
// once; each returns when its context ends, whatever libvirtd does. Connections
// are opened when they are first needed.
type Client struct {
	opts   Options
	base   context.Context
	cancel context.CancelFunc
	hints  chan struct{}
	procs  *scanner

	inventory, jobs, probe, control *pool

	mu       sync.Mutex
	starting map[haven.VMID]struct{} // starts whose call has not ended
	asking   map[lv.UUID]struct{}    // queries of jobs that have not ended
	defs     map[lv.UUID]definition  // by the inventory, to spare libvirtd
	defsFrom int                     // counts the hints; older definitions are stale
}

// New makes a client; it does not connect yet.
func New(o Options) *Client {
	o = o.withDefaults()
	base, cancel := context.WithCancel(context.Background())
	c := &Client{
		opts: o, base: base, cancel: cancel,
		hints:    make(chan struct{}, 1),
		procs:    newScanner(o.ProcRoot),
		starting: map[haven.VMID]struct{}{},
		asking:   map[lv.UUID]struct{}{},
		defs:     map[lv.UUID]definition{},
	}
	c.inventory = newPool(base, "inventory", &c.opts, 1, o.ReadHold)
	c.jobs = newPool(base, "jobs", &c.opts, 3, o.ReadHold)
	c.probe = newPool(base, "probe", &c.opts, 1, o.ReadHold)
	c.control = newPool(base, "control", &c.opts, o.Starts, o.ControlHold)
	return c
}

// closeLimit bounds Close. What has not ended then is stuck in the library.
const closeLimit = 5 * time.Second

// Close ends every connection and every call, and waits a few seconds at most
// for their goroutines. A start that is under way goes on inside libvirtd.
func (c *Client) Close() {
	c.cancel()
	pools := []*pool{c.inventory, c.jobs, c.probe, c.control}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, p := range pools {
			p.closeAll()
			p.flying.Wait()
		}
	}()
	select {
	case <-done:
	case <-time.After(closeLimit):
		c.opts.Log.Error("libvirt calls did not end with their connections")
	}
}

// Hints gets a value when something about domains has changed, or may have: an
// event came, or the connection for events was made anew. Many changes are one
// hint. It is never closed. Without Run it stays silent.
func (c *Client) Hints() <-chan struct{} { return c.hints }

func (c *Client) hint() {
	c.mu.Lock()
	c.defsFrom++
	c.mu.Unlock()
	select {
	case c.hints <- struct{}{}:
	default:
	}
}

// Run keeps a connection for events until ctx or the client ends.
func (c *Client) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.base, cancel)()
	delay := firstRetry
	for ctx.Err() == nil {
		began := time.Now()
		err := c.listen(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > c.opts.ConnectLimit {
			delay = firstRetry
		}
		c.opts.Log.Debug("no events from libvirtd", "error", err, "retry_in", delay)
		wait := time.NewTimer(delay)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
		}
		delay = min(2*delay, 5*time.Second)
	}
}

// listen is one connection for events, from its dial to its end.
func (c *Client) listen(ctx context.Context) error {
	s, err := c.opts.connect(ctx, c.opts.ConnectLimit, c.hint)
	if err != nil {
		return err
	}
	defer s.close()
	registered := make(chan error, 1)
	go func() {
		_, err := s.l.ConnectDomainEventCallbackRegisterAny(int32(lv.DomainEventIDLifecycle), nil)
		registered <- err
	}()
	limit := time.NewTimer(c.opts.ConnectLimit)
	defer limit.Stop()
	select {
	case err = <-registered:
	case <-limit.C:
		err = errTimeout
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		s.close() // This ends the call that may still be waiting.
		return err
	}
	c.hint() // What happened before is not told by events.
	select {
	case <-s.g.dead:
		return haven.ErrUnavailable
	case <-ctx.Done():
		return ctx.Err()
	}
}

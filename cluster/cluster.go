package cluster

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/haven-ha/haven"
)

// ErrClosed is returned when the cluster was closed, or this agent has left it.
var ErrClosed = errors.New("cluster is closed")

const (
	// tellTimeout bounds each of the two broadcasts and the direct notices of a
	// leave. In a quiet network they take less than one second.
	tellTimeout = 2 * time.Second
	// closeTimeout bounds how long Close waits for a leave that is under way: it
	// takes two broadcasts at most.
	closeTimeout = 2*tellTimeout + time.Second
	// maxLines bounds the lines of memberlist's log that wait for the handler.
	maxLines = 256
)

// Cluster is this agent's membership. All methods are safe for concurrent use.
type Cluster struct {
	cfg       Config
	log       *slog.Logger
	list      *memberlist.Memberlist
	transport *transport

	keyMu sync.Mutex // orders changes of the key ring
	keys  *memberlist.Keyring

	events   chan Event
	lines    chan string
	mailed   chan struct{} // 1: mail has something
	metaSet  chan struct{} // 1: meta was changed
	rejoin   chan struct{} // 1: the configured hosts were changed
	announce chan struct{} // 1: held by who announces this agent's meta or leave
	stop     chan struct{} // closed when Close begins
	closed   chan struct{} // closed when Close is done

	// mu is taken inside memberlist's callbacks, under memberlist's own lock: no
	// method of list may be called with it held.
	mu      sync.Mutex
	table   *table
	mail    mailbox
	meta    Meta
	raw     []byte            // meta encoded
	parting haven.LeaveReason // announced, while this agent is a member still
	running bool
	leaving bool
	closing bool
	joining map[haven.HostID]struct{}
	joinErr map[haven.HostID]string
	work    sync.WaitGroup // joins and notices under way; added to under mu while not closing

	stats stats
}

// New checks the configuration, opens the sockets and starts the gossip. Until
// Run it answers others but joins nobody. Close must be called, by Run or else.
func New(cfg Config) (*Cluster, error) {
	cfg, err := cfg.prepare()
	if err != nil {
		return nil, fmt.Errorf("cluster configuration: %w", err)
	}
	c := &Cluster{
		cfg: cfg, log: cfg.Log,
		events: make(chan Event), lines: make(chan string, maxLines),
		mailed: make(chan struct{}, 1), metaSet: make(chan struct{}, 1), rejoin: make(chan struct{}, 1),
		announce: make(chan struct{}, 1), stop: make(chan struct{}), closed: make(chan struct{}),
		table:   newTable(time.Now(), cfg.Host, cfg.Peers),
		joining: make(map[haven.HostID]struct{}), joinErr: make(map[haven.HostID]string),
	}
	c.stats.tell = cfg.OnDrop
	c.cfg.OnDrop = c.stats.drop
	if c.meta, c.raw, err = firstMeta(cfg.Meta); err != nil {
		return nil, fmt.Errorf("cluster configuration: %w", err)
	}
	if c.keys, err = newKeyring(cfg.Keys); err != nil {
		return nil, err
	}
	if c.transport, err = newTransport(c.cfg); err != nil {
		return nil, err
	}
	if c.list, err = memberlist.Create(c.memberlistConfig()); err != nil {
		return nil, errors.Join(fmt.Errorf("start gossip: %w", err), c.transport.Shutdown())
	}
	return c, nil
}

// firstMeta gives this start of the agent its session.
func firstMeta(m Meta) (Meta, []byte, error) {
	var session [8]byte
	_, _ = crand.Read(session[:]) // It never fails.
	m.Session, m.Leave = binary.BigEndian.Uint64(session[:]), haven.LeaveNone
	raw, err := m.encode()
	return m, raw, err
}

func newKeyring(keys []Key) (*memberlist.Keyring, error) {
	var raw [][]byte
	for _, k := range keys {
		raw = append(raw, k)
	}
	ring, err := memberlist.NewKeyring(raw, raw[0])
	if err != nil {
		return nil, fmt.Errorf("make gossip key ring: %w", err)
	}
	return ring, nil
}

func (c *Cluster) memberlistConfig() *memberlist.Config {
	t, d := c.cfg.Timing, &delegate{c}
	return &memberlist.Config{
		Name: string(c.cfg.Host), Label: c.cfg.Cluster,
		Transport: c.transport, Keyring: c.keys,
		Delegate: d, Events: d, Conflict: d, Alive: d,
		Logger: log.New(&lineSink{c}, "", 0),

		BindAddr: c.cfg.Bind.Addr().String(), BindPort: int(c.cfg.Bind.Port()),
		AdvertiseAddr: c.cfg.Advertise.Addr().String(), AdvertisePort: int(c.cfg.Advertise.Port()),
		ProtocolVersion: memberlist.ProtocolVersion2Compatible,

		TCPTimeout:    t.StreamTimeout,
		ProbeInterval: t.ProbeInterval, ProbeTimeout: t.ProbeTimeout, IndirectChecks: 3,
		// When too few members are left to confirm a suspicion, it lasts the
		// longest time: with memberlist's 6 that was seen to take 16 s among four
		// hosts of which two were dead. Here gossip is a hint, so 2 will do.
		SuspicionMult: t.SuspicionMult, SuspicionMaxTimeoutMult: 2, AwarenessMaxMultiplier: 8,
		GossipInterval: t.GossipInterval, GossipNodes: 3, RetransmitMult: 4,
		GossipToTheDeadTime: t.GossipToTheDead, DeadNodeReclaimTime: t.ReclaimAfter,
		PushPullInterval: t.PushPullInterval,

		GossipVerifyIncoming: true, GossipVerifyOutgoing: true,
		EnableCompression: false, // It costs more CPU than the octets are worth.
		HandoffQueueDepth: 1024, UDPBufferSize: 1400, QueueCheckInterval: 30 * time.Second,
	}
}

// Run joins the configured hosts, keeps joining those that are not alive, and
// delivers events. When ctx ends, or Close is called, it closes the cluster
// and returns after all its goroutines ended. It can be called once.
func (c *Cluster) Run(ctx context.Context) error {
	c.mu.Lock()
	again := c.running
	c.running = true
	c.mu.Unlock()
	if again {
		return errors.New("cluster runs already")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for _, loop := range []func(context.Context){c.deliver, c.announceLoop, c.rejoinLoop, c.logLoop} {
		wg.Go(func() { loop(ctx) })
	}
	select {
	case <-ctx.Done():
	case <-c.stop:
	}
	cancel()
	err := c.Close()
	wg.Wait()
	close(c.events)
	return err
}

// Close stops the gossip without a word, so that others find out by probing;
// call Leave first to part in good order. It can be called any number of times
// and takes a few milliseconds, or as long as a leave that is under way (five
// seconds at most).
func (c *Cluster) Close() error {
	c.mu.Lock()
	first := !c.closing
	c.closing = true
	c.mu.Unlock()
	if !first {
		<-c.closed
		return nil
	}
	defer close(c.closed)
	close(c.stop)
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case c.announce <- struct{}{}: // Kept: nothing is announced after this.
	case <-timer.C:
	}
	err := c.list.Shutdown()
	c.work.Wait()
	if err != nil {
		return fmt.Errorf("stop gossip: %w", err)
	}
	return nil
}

// Events returns the channel of changes, closed when Run returns. A consumer
// that falls behind by more than 256 events gets one EventResync instead of
// them, and reads Members then.
func (c *Cluster) Events() <-chan Event { return c.events }

// Members returns what is known of all configured hosts, this one included, and
// of strangers, sorted by host.
func (c *Cluster) Members() []Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.table.all(time.Now())
}

// SetPeers replaces the configured hosts after a change of the configuration.
// This agent's own address cannot be changed. An EventResync follows.
func (c *Cluster) SetPeers(peers map[haven.HostID]netip.AddrPort) error {
	checked, err := checkPeers(peers, c.cfg.Host, c.cfg.Advertise)
	if err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	c.change(func(t *table, now time.Time) []Event {
		t.setPeers(now, checked)
		maps.DeleteFunc(c.joinErr, func(id haven.HostID, _ string) bool { _, ok := checked[id]; return !ok })
		return []Event{{Kind: EventResync, Detail: "the configured hosts were changed"}}
	})
	poke(c.rejoin)
	return nil
}

// SetMeta changes what is told about this agent. It returns at once; the
// newest value is announced within MetaInterval, and values in between may
// never be. It returns ErrClosed after a leave, or why m cannot be told.
func (c *Cluster) SetMeta(m Meta) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.setMeta(m)
}

// setMeta does so for a caller that holds the lock.
func (c *Cluster) setMeta(m Meta) error {
	if c.closing || c.leaving {
		return ErrClosed
	}
	m.Session, m.Leave = c.meta.Session, c.parting
	raw, err := m.encode()
	if err != nil {
		return fmt.Errorf("set meta: %w", err)
	}
	c.meta, c.raw = m, raw
	poke(c.metaSet)
	return nil
}

// Announce tells others that this agent is about to leave, and why, while it
// stays a member; with LeaveNone it takes that back. Should the agent be gone
// without another word, it has left. It returns at once, as SetMeta does.
func (c *Cluster) Announce(reason haven.LeaveReason) error {
	if _, err := leaveCode(reason); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.parting
	c.parting = reason
	if err := c.setMeta(c.meta); err != nil {
		c.parting = before
		return fmt.Errorf("announce: %w", err)
	}
	return nil
}

// poke fills a channel of capacity one; what is in it already is enough.
func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// change feeds the table and queues the events for the consumer. It never waits.
// After Close it does nothing: memberlist's timers of suspicion outlive it, and
// would find everybody dead.
func (c *Cluster) change(f func(t *table, now time.Time) []Event) {
	c.mu.Lock()
	lost := 0
	if !c.closing {
		lost = c.mail.push(f(c.table, time.Now()))
	}
	c.mu.Unlock()
	if lost > 0 {
		c.stats.drop(DropEvent)
	}
	poke(c.mailed)
}

// deliver moves events from the queue to the consumer.
func (c *Cluster) deliver(ctx context.Context) {
	for {
		c.mu.Lock()
		e, ok := c.mail.pop()
		c.mu.Unlock()
		if !ok {
			select {
			case <-c.mailed:
			case <-ctx.Done():
				return
			}
			continue
		}
		select {
		case c.events <- e:
		case <-ctx.Done():
			return
		}
	}
}

// announceLoop tells others about changed meta, not more often than once in
// MetaInterval.
func (c *Cluster) announceLoop(ctx context.Context) {
	for {
		select {
		case <-c.metaSet:
		case <-ctx.Done():
			return
		}
		c.announceMeta(ctx)
		if !sleep(ctx, c.cfg.Timing.MetaInterval) {
			return
		}
	}
}

func (c *Cluster) announceMeta(ctx context.Context) {
	select {
	case c.announce <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-c.announce }()
	if c.announced() {
		return
	}
	// The wait for the broadcast to have gone out is cut short: gossip goes on
	// by itself, and the next change should not have to wait for it.
	_ = c.list.UpdateNode(time.Millisecond)
	if !c.announced() {
		// It collided with a refutation, which took a newer incarnation.
		poke(c.metaSet)
	}
}

// announced says whether memberlist has taken over the newest meta.
func (c *Cluster) announced() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.table.members[c.cfg.Host]
	return c.leaving || string(e.raw) == string(c.raw)
}

// sleep waits, and returns false if the context ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

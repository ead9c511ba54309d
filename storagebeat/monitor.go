package storagebeat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	haven "github.com/haven-ha/haven"
)

// MonitorConfig says what a Monitor writes and reads.
type MonitorConfig struct {
	Store   string // the store's configured name, for people
	Cluster string // the store must belong to this cluster

	// Who writes. Incarnation must be larger than ever before for this State.
	Self        haven.HostID
	Writer      Writer
	Boot        haven.BootID
	State       haven.StateID
	Incarnation haven.Incarnation

	// Hosts are the hosts that are expected to write to this store, with or
	// without Self.
	Hosts []haven.HostID

	// Interval is the time between two beats. StaleAfter is how long a beat
	// must stand still to be stale; it has to be at least 3 intervals.
	Interval   time.Duration
	StaleAfter time.Duration
	// Timeout bounds one operation on the store. It should be at least one interval and
	// less than StaleAfter, or one slow operation makes this host look stale.
	Timeout time.Duration

	// WriteOnly leaves out reading others, for a writer that judges nobody. Of
	// its snapshots only what tells about writes means anything.
	WriteOnly bool

	// Wrote is told of each beat that was written, before the next content is asked
	// for; nil for nobody. It must not block.
	Wrote func(Beat)

	// Boottime is a clock that goes on while the machine is suspended, as the
	// monotonic one does not: what was read before is as old as it is. Nil means that
	// the machine is never suspended.
	Boottime func() time.Duration
}

func (c MonitorConfig) check() error {
	switch {
	case c.Store == "" || c.Cluster == "":
		return errors.New("store and cluster need a name")
	case c.Interval <= 0:
		return fmt.Errorf("interval %s is not positive", c.Interval)
	case c.StaleAfter < 3*c.Interval:
		return fmt.Errorf("stale time %s is less than 3 intervals of %s", c.StaleAfter, c.Interval)
	case c.Timeout <= 0:
		return fmt.Errorf("timeout %s is not positive", c.Timeout)
	}
	_, err := Encode(Beat{
		Host: c.Self, Writer: c.Writer, Boot: c.Boot, State: c.State, Incarnation: c.Incarnation, Interval: c.Interval,
	})
	return err
}

// Monitor keeps one store: it writes the own beat every interval, reads all
// beats, and holds what follows from them.
type Monitor struct {
	cfg     MonitorConfig
	dev     Device
	content func() Beat
	log     *slog.Logger
	nudge   chan struct{}
	early   chan struct{}

	// Those below belong to Run.
	store    StoreID // zero until the first read
	own      Own
	lastRead time.Time

	mu      sync.Mutex // guards what Snapshot reads; never held over a call of the device
	tracker *Tracker
	io      ioState
	mail    Mailbox
	readAt  time.Duration // the start of the last good read, by Boottime
}

// ioState is what a Monitor knows of its own operations.
type ioState struct {
	asked    time.Time // when the operation under way was asked; zero when none is
	hung     time.Time // since when no operation was answered; zero while the store answers
	wrote    time.Time // start of the last write that completed
	took     time.Duration
	writeErr error
}

// NewMonitor checks the configuration. The content function is called right
// before each write; it must not block. It fills what changes: term, master,
// flags, watchdog and VMs; the monitor fills the rest.
func NewMonitor(cfg MonitorConfig, dev Device, content func() Beat, log *slog.Logger) (*Monitor, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("store %s: %w", cfg.Store, err)
	}
	return &Monitor{
		cfg: cfg, dev: dev, content: content, log: log.With("store", cfg.Store),
		nudge: make(chan struct{}, 1), early: make(chan struct{}, 1), mail: Mailbox{Store: cfg.Store},
		own: Own{Boot: cfg.Boot, State: cfg.State, Incarnation: cfg.Incarnation},
		tracker: NewTracker(TrackerConfig{
			Self: cfg.Self, Writer: cfg.Writer, Hosts: cfg.Hosts, Interval: cfg.Interval, StaleAfter: cfg.StaleAfter,
		}),
	}, nil
}

// Run keeps the store until ctx ends. Then, if the content says that this is a
// farewell, it writes one more beat. It returns at most two timeouts after ctx
// ended, and always nil: no state of a store stops a monitor.
func (m *Monitor) Run(ctx context.Context) error {
	// What is under way when ctx ends is finished: to break it off would cost
	// a child, and the farewell with it.
	work := context.WithoutCancel(ctx)
	ticker := time.NewTicker(m.cfg.Interval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		m.beat(work)
		if !m.cfg.WriteOnly && ctx.Err() == nil {
			m.read(work)
		}
		m.wait(ctx, work, ticker.C)
	}
	if b := m.content(); b.Left != haven.LeaveNone && !m.store.IsZero() {
		m.write(work, b)
	}
	return nil
}

// wait waits for the next beat, and reads in between when it is nudged.
func (m *Monitor) wait(ctx, work context.Context, tick <-chan time.Time) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
			return
		case <-m.early:
			return
		case <-m.nudge:
			if !m.cfg.WriteOnly && time.Since(m.lastRead) >= m.cfg.Interval/4 {
				m.read(work)
			}
		}
	}
}

// ReadNow asks for a read before the next one is due, when a suspicion makes a
// quarter of an interval matter. It never blocks; more often than four times an
// interval it does nothing.
func (m *Monitor) ReadNow() {
	select {
	case m.nudge <- struct{}{}:
	default:
	}
}

// SetHosts changes which hosts are expected to write here; see Tracker.SetHosts.
func (m *Monitor) SetHosts(hosts []haven.HostID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tracker.SetHosts(hosts)
}

// Snapshot returns what is known now. It never blocks on the store.
func (m *Monitor) Snapshot() Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	s := m.tracker.Snapshot(now)
	s.Store = m.cfg.Store
	h := &s.Health
	if m.cfg.Boottime != nil && m.tracker.good {
		h.ReadAge = max(h.ReadAge, m.cfg.Boottime()-m.readAt)
	}
	if m.cfg.WriteOnly {
		h.Problem, h.Outage = "", "" // It did not look, so it saw nothing wrong.
	}
	if !m.io.wrote.IsZero() {
		h.WriteAge, h.WriteLatency = now.Sub(m.io.wrote), m.io.took
	}
	if m.io.writeErr != nil {
		h.WriteError = m.io.writeErr.Error()
		if h.Problem == whyUnwritten {
			h.Problem += ": " + h.WriteError
		}
	}
	switch {
	case !m.io.hung.IsZero():
		h.HungFor = now.Sub(m.io.hung)
	case !m.io.asked.IsZero() && now.Sub(m.io.asked) > m.cfg.Interval:
		h.HungFor = now.Sub(m.io.asked)
	}
	return s
}

// beat writes one beat. Before the first one it reads, to learn which store this is.
func (m *Monitor) beat(ctx context.Context) {
	if m.store.IsZero() {
		m.read(ctx)
	}
	if !m.store.IsZero() {
		m.write(ctx, m.content())
	}
}

func (m *Monitor) write(ctx context.Context, b Beat) {
	// A sequence is used once: a write that was given up may still land, and
	// must not look like a later one.
	m.own.Attempted++
	b.Store, b.Host, b.Writer = m.store, m.cfg.Self, m.cfg.Writer
	b.Boot, b.State, b.Incarnation = m.cfg.Boot, m.cfg.State, m.cfg.Incarnation
	b.Sequence, b.Interval = m.own.Attempted, m.cfg.Interval
	data, err := Encode(b)
	var start time.Time
	if err == nil {
		start, err = m.operate(ctx, func(ctx context.Context) error {
			return m.dev.Write(ctx, RawBeat{Host: b.Host, Writer: b.Writer, Data: data})
		})
	}
	if err == nil {
		m.own.Completed, m.own.Since = b.Sequence, start
	}
	if errors.Is(err, ErrForeign) || errors.Is(err, ErrNoIdentity) {
		m.store = StoreID{} // It is not the store it was: ask again.
	}
	m.mu.Lock()
	was := m.io.writeErr
	m.io.writeErr = err
	if err == nil {
		m.io.wrote, m.io.took = start, time.Since(start)
	}
	m.mu.Unlock()
	if err == nil && m.cfg.Wrote != nil {
		m.cfg.Wrote(b)
	}
	m.tell(ctx, opWrite, was, err)
}

func (m *Monitor) read(ctx context.Context) {
	var c Contents
	var begun time.Duration
	if m.cfg.Boottime != nil {
		begun = m.cfg.Boottime()
	}
	start, err := m.operate(ctx, func(ctx context.Context) (err error) {
		c, err = m.dev.ReadAll(ctx)
		return err
	})
	end := time.Now()
	if took := end.Sub(start); err == nil && took > m.cfg.Timeout {
		// This process stood still. When the store was looked at is not known well enough.
		err = fmt.Errorf("read took %s: %w", took.Round(time.Millisecond), ErrTimeout)
	}
	if err == nil && c.Identity.Cluster != m.cfg.Cluster {
		err = fmt.Errorf("store of cluster %q, want %q: %w", c.Identity.Cluster, m.cfg.Cluster, ErrForeign)
	}
	switch {
	case err == nil && c.Identity.ID != m.store:
		// Whatever was written went to another store.
		m.store = c.Identity.ID
		m.own.Completed, m.own.Since = 0, time.Time{}
	case errors.Is(err, ErrForeign) || errors.Is(err, ErrNoIdentity):
		m.store = StoreID{}
	}
	m.lastRead = start
	m.mu.Lock()
	was := m.tracker.err
	if err == nil {
		m.takeMail(start, c)
		m.readAt = begun
	}
	m.tracker.Step(Reading{Start: start, End: end, Err: err, Store: c.Identity.ID, Beats: c.Beats, Own: m.own})
	m.mu.Unlock()
	m.tell(ctx, opRead, was, err)
}

// operate runs one operation and notes whether the store answers at all.
func (m *Monitor) operate(ctx context.Context, f func(context.Context) error) (start time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Timeout)
	defer cancel()
	start = time.Now()
	m.mu.Lock()
	m.io.asked = start
	m.mu.Unlock()
	err = f(ctx)
	silent := errors.Is(err, ErrTimeout) || errors.Is(err, ErrStuck) || errors.Is(err, ErrBusy) || errors.Is(err, context.DeadlineExceeded)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.io.asked = time.Time{}
	switch {
	case !silent:
		m.io.hung = time.Time{}
	case m.io.hung.IsZero():
		m.io.hung = start
	}
	return start, err
}

// tell logs changes between working and not working.
func (m *Monitor) tell(ctx context.Context, o op, was, err error) {
	switch {
	case errors.Is(err, ErrSlotTaken) && !errors.Is(was, ErrSlotTaken):
		m.log.ErrorContext(ctx, "another host's record is in this host's slot; nothing is written there", "operation", o, "error", err)
	case was == nil && err != nil:
		m.log.WarnContext(ctx, "store does not serve", "operation", o, "error", err)
	case was != nil && err == nil:
		m.log.InfoContext(ctx, "store serves again", "operation", o, "after_error", was)
	}
}

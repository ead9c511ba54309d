package storagebeat

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	haven "github.com/haven-ha/haven"
)

// disk is a store in memory that several hosts share.
type disk struct {
	mu    sync.Mutex
	id    Identity
	beats map[key]RawBeat
}

func newDisk() *disk {
	return &disk{id: Identity{ID: testStore(1), Cluster: "prod"}, beats: map[key]RawBeat{}}
}

// path is one host's way to a disk, with its faults.
type path struct {
	disk *disk

	mu      sync.Mutex
	latency time.Duration
	hung    bool
	err     error // of everything
	wErr    error // of writes
	calls   int   // under way
	most    int   // calls under way at once, at most
	done    int   // calls that ended
	again   int   // writes of a sequence that was tried before
	last    uint64
}

func (p *path) set(f func(*path)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
}

// enter waits as long as an operation takes on this path.
func (p *path) enter(ctx context.Context) error {
	p.mu.Lock()
	p.calls++
	p.most = max(p.most, p.calls)
	latency, hung, err := p.latency, p.hung, p.err
	p.mu.Unlock()
	defer p.set(func(p *path) { p.calls--; p.done++ })
	if hung {
		<-ctx.Done()
		return ErrTimeout
	}
	select {
	case <-time.After(latency):
		return err
	case <-ctx.Done():
		return ErrTimeout
	}
}

func (p *path) ReadAll(ctx context.Context) (Contents, error) {
	if err := p.enter(ctx); err != nil {
		return Contents{}, err
	}
	p.disk.mu.Lock()
	defer p.disk.mu.Unlock()
	c := Contents{Identity: p.disk.id}
	for _, raw := range p.disk.beats {
		c.Beats = append(c.Beats, raw)
	}
	slices.SortFunc(c.Beats, func(a, b RawBeat) int { return strings.Compare(beatName(a.Host, a.Writer), beatName(b.Host, b.Writer)) })
	return c, nil
}

func (p *path) Write(ctx context.Context, raw RawBeat) error {
	b, err := Decode(raw.Data)
	if err != nil {
		return err
	}
	err = p.enter(ctx)
	p.mu.Lock()
	if b.Sequence <= p.last {
		p.again++
	}
	p.last = b.Sequence
	if err == nil {
		err = p.wErr
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	p.disk.mu.Lock()
	defer p.disk.mu.Unlock()
	if _, err := DecodeAt(p.disk.id.ID, raw); err != nil {
		return err
	}
	p.disk.beats[key{raw.Host, raw.Writer}] = raw
	return nil
}

// member is one host that keeps the store.
type member struct {
	*Monitor
	path *path
	log  *bytes.Buffer
	mu   sync.Mutex
	say  Beat
	stop context.CancelFunc
	done chan struct{}
}

func (m *member) content() Beat {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.say
}

func (m *member) wait() { m.stop(); <-m.done }

func join(t *testing.T, d *disk, host haven.HostID, change func(*MonitorConfig)) *member {
	t.Helper()
	m := &member{path: &path{disk: d, latency: 5 * time.Millisecond}, log: &bytes.Buffer{}, done: make(chan struct{})}
	cfg := MonitorConfig{
		Store: "nfs1", Cluster: "prod", Self: host, Writer: WriterAgent, Boot: "boot-" + haven.BootID(host), State: "state", Incarnation: 1,
		Hosts: testHosts, Interval: time.Second, StaleAfter: 4 * time.Second, Timeout: 3 * time.Second,
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if m.Monitor, err = NewMonitor(cfg, m.path, m.content, slog.New(slog.NewTextHandler(m.log, nil))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	m.stop = cancel
	go func() {
		defer close(m.done)
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	return m
}

func (m *member) sees(t *testing.T, h haven.HostID, want haven.Tri) {
	t.Helper()
	if v := m.Snapshot().Host(h).Agent; v.Moving != want {
		t.Errorf("%s: %s because %q, want %s", h, v.Moving, v.Why, want)
	}
}

func TestMonitorsSeeEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		a, b, c := join(t, d, "a", nil), join(t, d, "b", nil), join(t, d, "c", nil)
		defer func() { a.wait(); b.wait(); c.wait() }()
		b.mu.Lock()
		b.say = Beat{Term: haven.Term{Generation: 1, Term: 4}, Master: "c", Complete: true}
		b.mu.Unlock()
		time.Sleep(10 * time.Second)
		a.sees(t, "b", haven.Yes)
		s := a.Snapshot()
		if v := s.Host("b").Agent; v.Beat.Master != "c" || v.Beat.Interval != time.Second || v.Beat.Boot != "boot-b" || v.Age > 1100*time.Millisecond {
			t.Errorf("view of b: %+v", v)
		}
		if h := s.Health; !h.Trusted() || h.OthersMoving != 2 || h.Problem+h.Outage+h.WriteError != "" ||
			h.WriteLatency != 5*time.Millisecond || h.ReadLatency != 5*time.Millisecond || h.WriteAge > time.Second || h.HungFor != 0 {
			t.Errorf("health %+v", h)
		}
		b.wait()
		time.Sleep(2500 * time.Millisecond)
		a.sees(t, "b", haven.Yes)
		if !a.Snapshot().Host("b").Agent.OlderThan(1250 * time.Millisecond) {
			t.Error("the beat is not known to be older than 1.25 intervals")
		}
		time.Sleep(2500 * time.Millisecond)
		a.sees(t, "b", haven.No)
		a.sees(t, "c", haven.Yes)
	})
}

func TestMonitorOnAHungPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		a, b, c := join(t, d, "a", nil), join(t, d, "b", nil), join(t, d, "c", nil)
		defer func() { a.wait(); b.wait(); c.wait() }()
		time.Sleep(5 * time.Second)
		a.path.set(func(p *path) { p.hung = true })
		time.Sleep(1700 * time.Millisecond)
		if h := a.Snapshot().Health; h.HungFor == 0 {
			t.Errorf("an operation hangs for more than an interval: %+v", h)
		}
		time.Sleep(20 * time.Minute)
		for _, h := range testHosts[1:] {
			a.sees(t, h, haven.Unknown)
			b.sees(t, "a", haven.No)
		}
		h := a.Snapshot().Health
		if h.Outage == "" || h.Trusted() || h.HungFor < 20*time.Minute || h.WriteAge < 20*time.Minute || h.WriteError == "" {
			t.Errorf("health %+v", h)
		}
		a.path.set(func(p *path) {
			if p.most != 1 {
				t.Errorf("P8: %d operations at once", p.most)
			}
			p.hung = false
		})
		time.Sleep(10 * time.Second)
		a.sees(t, "b", haven.Yes)
		b.sees(t, "a", haven.Yes)
		if h := a.Snapshot().Health; !h.Trusted() || h.HungFor != 0 {
			t.Errorf("health %+v", h)
		}
		if n := strings.Count(a.log.String(), "\n"); n == 0 || n > 4 {
			t.Errorf("%d log lines for one trouble:\n%s", n, a.log)
		}
	})
}

// TestStoreOutageKillsNobody is P6: the store hangs for all and comes back, and
// nobody calls anybody stale, then or after.
func TestStoreOutageKillsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		var members []*member
		for i, h := range testHosts {
			members = append(members, join(t, d, h, nil))
			defer members[i].wait()
			time.Sleep(270 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		for round := range 40 {
			for _, m := range members {
				m.path.set(func(p *path) { p.hung = round%4 == 1; p.err = nil })
				if round%4 == 3 {
					m.path.set(func(p *path) { p.err = errors.New("input/output error") })
				}
			}
			for range 70 {
				time.Sleep(time.Duration(100+round) * time.Millisecond)
				for _, m := range members {
					for _, h := range testHosts {
						if v := m.Snapshot().Host(h).Agent; v.Moving == haven.No {
							t.Fatalf("round %d: %s calls %s stale: %s", round, m.cfg.Self, h, v.Why)
						}
					}
				}
			}
		}
	})
}

func TestMonitorThatCannotWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		a, b, c := join(t, d, "a", nil), join(t, d, "b", nil), join(t, d, "c", nil)
		defer func() { a.wait(); b.wait(); c.wait() }()
		time.Sleep(5 * time.Second)
		a.path.set(func(p *path) { p.wErr = errors.New("read-only file system") })
		time.Sleep(7 * time.Second)
		a.path.set(func(p *path) {
			if p.again != 0 {
				t.Error("a sequence was used again: a late first write would look like the second")
			}
		})
		b.sees(t, "a", haven.No)
		a.sees(t, "b", haven.Yes)
		h := a.Snapshot().Health
		if h.OwnReadBack != haven.No || h.Trusted() || h.Outage != "" || !strings.Contains(h.WriteError, "read-only") || h.Problem != whyUnwritten+": read-only file system" || h.HungFor != 0 {
			t.Errorf("health %+v", h)
		}
	})
}

func TestMonitorAndItsStoresIdentity(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(a *member)
		why   string
	}{
		{"not mounted", func(a *member) { a.path.set(func(p *path) { p.err = ErrNoIdentity }) }, "no store identity"},
		{"another cluster's", func(a *member) {
			a.path.disk.mu.Lock()
			a.path.disk.id = Identity{ID: testStore(2), Cluster: "lab"}
			a.path.disk.mu.Unlock()
		}, `cluster "lab"`},
	} {
		t.Run("P5: "+tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDisk()
				a, b := join(t, d, "a", nil), join(t, d, "b", nil)
				defer func() { a.wait(); b.wait() }()
				time.Sleep(5500 * time.Millisecond)
				tc.spoil(a)
				b.wait()
				d.mu.Lock()
				clear(d.beats)
				d.mu.Unlock()
				time.Sleep(20 * time.Second)
				a.sees(t, "b", haven.Unknown)
				if v := a.Snapshot().Host("b").Agent; !strings.Contains(v.Why, tc.why) {
					t.Errorf("why: %q", v.Why)
				}
				d.mu.Lock()
				defer d.mu.Unlock()
				if len(d.beats) != 0 {
					t.Error("a beat was written")
				}
			})
		})
	}
	t.Run("made anew: it starts over", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := newDisk()
			a, b, c := join(t, d, "a", nil), join(t, d, "b", nil), join(t, d, "c", nil)
			defer func() { a.wait(); b.wait(); c.wait() }()
			time.Sleep(5 * time.Second)
			d.mu.Lock()
			d.id.ID = testStore(2)
			clear(d.beats)
			d.mu.Unlock()
			time.Sleep(5 * time.Second)
			a.sees(t, "b", haven.Yes)
			if h := a.Snapshot().Health; h.ID != testStore(2) || !h.Trusted() {
				t.Errorf("health %+v", h)
			}
		})
	})
}

func TestFarewell(t *testing.T) {
	last := func(d *disk) Beat {
		d.mu.Lock()
		defer d.mu.Unlock()
		b, err := DecodeAt(d.id.ID, d.beats[key{"a", WriterAgent}])
		if err != nil {
			t.Error(err)
		}
		return b
	}
	t.Run("is written after the end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := newDisk()
			a := join(t, d, "a", nil)
			time.Sleep(2500 * time.Millisecond)
			before := last(d)
			a.mu.Lock()
			a.say.Left = haven.LeaveShutdown
			a.mu.Unlock()
			a.wait()
			if b := last(d); b.Left != haven.LeaveShutdown || b.Sequence != before.Sequence+1 {
				t.Errorf("last beat %+v after %+v", b, before)
			}
		})
	})
	t.Run("is not written by an end that is none", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := newDisk()
			a := join(t, d, "a", nil)
			time.Sleep(2500 * time.Millisecond)
			before := last(d)
			a.wait()
			if b := last(d); b.Sequence != before.Sequence {
				t.Errorf("last beat %+v after %+v", b, before)
			}
		})
	})
	t.Run("P8: the end is bounded on a hung store", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := join(t, newDisk(), "a", nil)
			time.Sleep(2500 * time.Millisecond)
			a.mu.Lock()
			a.say.Left = haven.LeaveStopped
			a.mu.Unlock()
			a.path.set(func(p *path) { p.hung = true })
			time.Sleep(time.Second)
			started := time.Now()
			a.wait()
			if d := time.Since(started); d > 2*a.cfg.Timeout {
				t.Errorf("took %s", d)
			}
		})
	})
}

func TestReadNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		a := join(t, d, "a", nil)
		defer a.wait()
		time.Sleep(3300 * time.Millisecond)
		count := func() int { a.path.mu.Lock(); defer a.path.mu.Unlock(); return a.path.done }
		before := count()
		a.ReadNow()
		time.Sleep(10 * time.Millisecond)
		if n := count() - before; n != 1 {
			t.Fatalf("%d reads", n)
		}
		for range 1000 {
			a.ReadNow()
			time.Sleep(10 * time.Millisecond)
		}
		// Ten seconds: at most four reads a second, and a write.
		if n := count() - before; n < 30 || n > 55 {
			t.Errorf("%d operations in ten seconds", n)
		}
	})
}

func TestWriteOnlyReadsJustTheIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		a := join(t, d, "a", func(c *MonitorConfig) { c.WriteOnly, c.Writer = true, WriterHelper })
		defer a.wait()
		b := join(t, d, "b", nil)
		defer b.wait()
		time.Sleep(10500 * time.Millisecond)
		a.path.mu.Lock()
		reads := a.path.done - 11 // It wrote at 0 s, 1 s … 10 s.
		a.path.mu.Unlock()
		if reads != 1 {
			t.Errorf("%d reads", reads)
		}
		if v := b.Snapshot().Host("a"); v.Helper.Moving != haven.Yes || v.Agent.Moving != haven.Unknown {
			t.Errorf("view %+v", v)
		}
		if h := a.Snapshot().Health; h.Outage != "" || h.WriteAge > time.Second {
			t.Errorf("health %+v", h)
		}
	})
}

// TestOtherWriterOfTheSameName: two hosts under one name are an alarm and no life.
func TestOtherWriterOfTheSameName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		a := join(t, d, "a", nil)
		time.Sleep(500 * time.Millisecond)
		twin := join(t, d, "a", func(c *MonitorConfig) { c.Boot, c.State = "boot-twin", "state-twin" })
		defer func() { a.wait(); twin.wait() }()
		troubled := 0
		for range 50 {
			time.Sleep(100 * time.Millisecond)
			for _, m := range []*member{a, twin} {
				m.ReadNow()
				if h := m.Snapshot().Health; strings.Contains(h.Problem, "another writer") {
					troubled++
				}
			}
		}
		if troubled == 0 {
			t.Error("nobody noticed")
		}
	})
}

func TestMonitorConfigRefusals(t *testing.T) {
	good := MonitorConfig{
		Store: "nfs1", Cluster: "prod", Self: "a", Writer: WriterAgent, Interval: time.Second, StaleAfter: 4 * time.Second, Timeout: time.Second,
	}
	if _, err := NewMonitor(good, nil, nil, slog.Default()); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		set  func(*MonitorConfig)
	}{
		{"no store name", func(c *MonitorConfig) { c.Store = "" }},
		{"no cluster", func(c *MonitorConfig) { c.Cluster = "" }},
		{"no interval", func(c *MonitorConfig) { c.Interval = 0 }},
		{"stale too soon", func(c *MonitorConfig) { c.StaleAfter = 2 * time.Second }},
		{"no timeout", func(c *MonitorConfig) { c.Timeout = 0 }},
		{"no host", func(c *MonitorConfig) { c.Self = "" }},
		{"no writer", func(c *MonitorConfig) { c.Writer = 0 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := good
			tc.set(&cfg)
			if _, err := NewMonitor(cfg, nil, nil, slog.Default()); err == nil {
				t.Fatal("accepted")
			}
		})
	}
}

// A slot that is another host's is an error of its own, also after another one.
func TestMonitorTellsOfATakenSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		dev := &refusing{err: ErrNoSlot}
		m, err := NewMonitor(MonitorConfig{
			Store: "lun1", Cluster: "prod", Self: "a", Writer: WriterAgent, Boot: "boot", State: "state", Incarnation: 1, Hosts: []haven.HostID{"a", "b"},
			Interval: time.Second, StaleAfter: 4 * time.Second, Timeout: 2 * time.Second,
		}, dev, func() Beat { return Beat{} }, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = m.Run(ctx) }()
		time.Sleep(3500 * time.Millisecond)
		if h := m.Snapshot().Health; h.OwnReadBack != haven.No || !strings.Contains(h.Problem, "no slot yet") {
			t.Errorf("health %+v", h)
		}
		dev.set(ErrSlotTaken)
		time.Sleep(3 * time.Second)
		cancel()
		<-done
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%d alarms:\n%s", n, log.String())
		}
	})
}

// refusing is a store that takes no beats.
type refusing struct {
	mu  sync.Mutex
	err error
}

func (r *refusing) set(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (r *refusing) ReadAll(context.Context) (Contents, error) {
	return Contents{Identity: Identity{ID: testStore(1), Cluster: "prod"}}, nil
}

func (r *refusing) Write(context.Context, RawBeat) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// P2, P5: what a reader read before its machine was suspended is as old as it is,
// although its monotonic clock stood still: whoever counts down a watchdog must not
// take it for a look at the store as it is now.
func TestReadBeforeSuspensionIsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slept atomic.Int64
		origin := time.Now()
		a := join(t, newDisk(), "a", func(c *MonitorConfig) {
			c.Boottime = func() time.Duration { return time.Since(origin) + time.Duration(slept.Load()) }
		})
		defer a.wait()
		time.Sleep(3500 * time.Millisecond)
		if age := a.Snapshot().Health.ReadAge; age <= 0 || age > time.Second {
			t.Fatalf("read %s ago", age)
		}
		slept.Add(int64(100 * time.Second))
		if age := a.Snapshot().Health.ReadAge; age < 100*time.Second {
			t.Errorf("read %s ago, by its word, in a machine that slept for 100 s since", age)
		}
		if age := time.Since(a.Mailbox().Read); age < 100*time.Second {
			t.Errorf("mailbox read %s ago, by its word", age)
		}
		time.Sleep(1100 * time.Millisecond)
		if age := a.Snapshot().Health.ReadAge; age <= 0 || age > time.Second {
			t.Errorf("read %s ago after another read", age)
		}
	})
}

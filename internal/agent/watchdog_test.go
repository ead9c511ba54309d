package agent

import (
	"context"
	"errors"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing/watchdog"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/notify"
	"github.com/haven-ha/haven/internal/obs"
	"github.com/haven-ha/haven/storagebeat"
)

// memoryStore is a store in memory that can fail.
type memoryStore struct {
	id storagebeat.Identity

	mu    sync.Mutex
	beats map[storagebeat.Writer]storagebeat.RawBeat
	dead  bool
}

func newMemoryStore() *memoryStore {
	return &memoryStore{
		id:    storagebeat.Identity{ID: storagebeat.StoreID{1, 2, 3}, Cluster: "prod-a"},
		beats: map[storagebeat.Writer]storagebeat.RawBeat{},
	}
}

func (s *memoryStore) die(dead bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = dead
}

func (s *memoryStore) ReadAll(context.Context) (storagebeat.Contents, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return storagebeat.Contents{}, errors.New("input/output error")
	}
	c := storagebeat.Contents{Identity: s.id}
	for _, b := range s.beats {
		c.Beats = append(c.Beats, b)
	}
	return c, nil
}

func (s *memoryStore) Write(_ context.Context, b storagebeat.RawBeat) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return errors.New("input/output error")
	}
	s.beats[b.Writer] = b
	return nil
}

// said is the newest beat's word on the watchdog.
func (s *memoryStore) said(t *testing.T) time.Duration {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := storagebeat.Decode(s.beats[storagebeat.WriterAgent].Data)
	if err != nil {
		t.Fatal(err)
	}
	return b.Watchdog
}

// benchDog is a device that notes what is done with it, and what it says when.
type benchDog struct {
	driver  sync.Mutex // a pet waits for it
	mu      sync.Mutex
	doings  []string
	pets    int
	open    bool
	timeout time.Duration
	fail    error
	record  watchdog.Record
}

func (d *benchDog) note(what string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return d.fail
	}
	d.doings = append(d.doings, what)
	return nil
}

func (d *benchDog) SetTimeout(t time.Duration) (time.Duration, error) {
	d.timeout = t
	return t, d.note("timeout " + t.String())
}

func (d *benchDog) Timeout() (time.Duration, error) { return d.timeout, nil }

func (d *benchDog) Pet() error {
	d.driver.Lock()
	defer d.driver.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pets++
	return d.fail
}

func (d *benchDog) MagicClose() error { d.open = false; return d.note("stop") }
func (d *benchDog) Close() error      { d.open = false; return d.note("close") }

func (d *benchDog) broken(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = err
}

func (d *benchDog) saw() (doings []string, pets int, record watchdog.Record) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.doings), d.pets, d.record
}

// equip gives an agent's parts a watchdog and a store.
func equip(d *Deps, dog *benchDog, store *memoryStore, left watchdog.Record, terms *watchdog.Terms) {
	d.Stores = []Store{{Name: "nfs1", Device: store}}
	d.Watchdog = &Watchdog{
		Terms: terms, Left: left, Self: watchdog.Record{Boot: d.Boot, PID: left.PID + 1},
		Gone: func(int, uint64) bool { return true },
		Open: func(_ string, takeOver bool) (WatchdogDevice, error) {
			what := "open"
			if takeOver {
				what = "take over"
			}
			if err := dog.note(what); err != nil {
				return nil, err
			}
			dog.open = true
			return dog, nil
		},
		Save: func(r watchdog.Record) error {
			dog.mu.Lock()
			defer dog.mu.Unlock()
			dog.record = r
			return nil
		},
	}
}

// comes waits for something; its limit only ends a test that fails anyway.
func comes(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came true: %s", what)
		}
	}
}

// inLedger is what the agent's ledger holds of its watchdog.
func inLedger(a *Agent) (w haven.Watchdog) {
	a.Ledger().View(func(s *ledger.State, _ ledger.Position) {
		if h := s.Hosts[a.d.Host]; h != nil {
			w = h.Watchdog
		}
	})
	return w
}

// start runs an agent until the returned function is called, which leaves first
// when it is told to.
func startAgent(t *testing.T, d Deps) (a *Agent, end func(leave bool)) {
	t.Helper()
	a, err := New(d)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	var once sync.Once
	end = func(leave bool) {
		once.Do(func() {
			if leave {
				bye, cancel := context.WithTimeout(ctx, 10*time.Second)
				if err := a.Leave(bye, haven.LeaveStopped); err != nil {
					t.Errorf("leave: %v", err)
				}
				cancel()
			}
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { end(false) })
	return a, end
}

var benchTerms = watchdog.Terms{Device: "/dev/watchdog", Timeout: 2 * time.Second, Silence: 10 * time.Second}

// The watchdog is armed, declared in the ledger and told in beats; an agent that
// ends without a word leaves it to the next one, which takes it over; a clean stop
// disarms it.
func TestWatchdogFollowsTheAgent(t *testing.T) {
	d := partsWith(t, 61, 1)
	dog, store := &benchDog{timeout: 30 * time.Second}, newMemoryStore()
	equip(&d, dog, store, watchdog.Record{}, &benchTerms)
	a, end := startAgent(t, d)
	want := haven.Watchdog{Bound: 16 * time.Second, Stores: []string{store.id.ID.String()}}
	comes(t, "the ledger holds the promise", func() bool { return inLedger(a).Equal(want) })
	comes(t, "beats say so", func() bool { return store.said(t) == want.Bound })
	_, pets, _ := dog.saw()
	comes(t, "it is petted", func() bool { _, now, _ := dog.saw(); return now > pets })
	if doings, _, r := dog.saw(); !slices.Equal(doings, []string{"open", "timeout 2s"}) || !r.Armed || !slices.ContainsFunc(r.Standing, want.Equal) {
		t.Errorf("done: %q, record %+v", doings, r)
	}
	end(false)
	doings, _, left := dog.saw()
	if !slices.Equal(doings, []string{"open", "timeout 2s", "close"}) || !left.Armed || left.Life == 0 {
		t.Fatalf("after the end: %q, record %+v", doings, left)
	}

	equip(&d, dog, store, left, &benchTerms)
	d.Incarnation++
	d.Metrics = obs.NewMetrics()
	a, end = startAgent(t, d)
	comes(t, "it is taken over", func() bool { doings, _, _ := dog.saw(); return slices.Contains(doings, "take over") })
	comes(t, "it is in order again", func() bool { return a.dog.out.Load().State == watchdog.Armed })
	comes(t, "the ledger answers", func() bool { return a.told() })
	if got := inLedger(a); !got.Equal(want) {
		t.Errorf("the ledger holds %+v", got)
	}
	end(true)
	if doings, _, r := dog.saw(); doings[len(doings)-1] != "stop" || r.Armed {
		t.Errorf("after a leave: %q, record %+v", doings, r)
	}
	if got := store.said(t); got != 0 {
		t.Errorf("the last beat says %s", got)
	}
}

// What an earlier process left armed is disarmed when the configuration has no
// watchdog any more.
func TestWatchdogTakenOutOfTheConfiguration(t *testing.T) {
	d := partsWith(t, 62, 1)
	dog, store := &benchDog{timeout: 2 * time.Second}, newMemoryStore()
	left := watchdog.Record{
		Boot: d.Boot, PID: 1, Armed: true, Device: "/dev/watchdog", Silence: 10 * time.Second, Timeout: 2 * time.Second, Asked: 2 * time.Second,
		Life: d.Boottime(), Standing: []haven.Watchdog{{Bound: 16 * time.Second, Stores: []string{store.id.ID.String()}}},
	}
	equip(&d, dog, store, left, nil)
	a, _ := startAgent(t, d)
	comes(t, "it is stopped", func() bool { doings, _, _ := dog.saw(); return slices.Equal(doings, []string{"take over", "stop"}) })
	comes(t, "that is told", func() bool { return a.viewWatchdog().State == string(watchdog.Off) })
}

// A clean stop that nobody hears of leaves it armed and says so.
func TestWatchdogLeftArmedIsLoud(t *testing.T) {
	d := parts(t, 63) // there is no master
	dog, store := &benchDog{timeout: 2 * time.Second}, newMemoryStore()
	left := watchdog.Record{
		Boot: d.Boot, PID: 1, Armed: true, Device: "/dev/watchdog", Silence: 10 * time.Second, Timeout: 2 * time.Second, Asked: 2 * time.Second,
		Life: d.Boottime(), Standing: []haven.Watchdog{{Bound: 16 * time.Second, Stores: []string{store.id.ID.String()}}},
	}
	store.die(true)
	equip(&d, dog, store, left, &benchTerms)
	a := run(t, d)
	comes(t, "it is taken over", func() bool { return a.dog.out.Load().State == watchdog.Armed })
	bye, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := a.Leave(bye, haven.LeaveStopped)
	if err == nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("leave: %v", err)
	}
	if doings, _, _ := dog.saw(); slices.Contains(doings, "stop") {
		t.Errorf("done: %q", doings)
	}
}

// Beats alone are life: with no master there is a host that pets, and trouble with
// the device is told of.
func TestWatchdogLivesByBeats(t *testing.T) {
	d := parts(t, 64)
	told := &people{}
	d.Notifier = told
	dog, store := &benchDog{timeout: 2 * time.Second}, newMemoryStore()
	left := watchdog.Record{
		Boot: d.Boot, PID: 1, Armed: true, Device: "/dev/watchdog", Silence: 10 * time.Second, Timeout: 2 * time.Second, Asked: 2 * time.Second,
		Life:     d.Boottime() - time.Minute, // too old, so it waits for new life
		Standing: []haven.Watchdog{{Bound: 16 * time.Second, Stores: []string{store.id.ID.String()}}},
	}
	store.die(true)
	equip(&d, dog, store, left, &benchTerms)
	a := run(t, d)
	comes(t, "people see that it counts down", func() bool { return a.viewWatchdog().State == string(watchdog.Orphan) })
	if doings, _, _ := dog.saw(); len(doings) > 0 {
		t.Errorf("without life it did %q", doings)
	}
	store.die(false)
	comes(t, "new life brings it back", func() bool { return a.dog.out.Load().State == watchdog.Armed })
	dog.broken(errors.New("device gone"))
	comes(t, "people are told", func() bool { return told.has(notify.KindWatchdogTrouble, "device gone") })
	dog.broken(nil)
	comes(t, "and of its end", func() bool { return told.has(notify.KindWatchdogWorks, "in order") })
}

// P8, P9: a device whose driver does not come back is told of, and not said to be
// petted; the agent goes on, also to its end.
func TestWatchdogWhoseDeviceHangs(t *testing.T) {
	d := parts(t, 65)
	told := &people{}
	d.Notifier = told
	dog, store := &benchDog{timeout: 2 * time.Second}, newMemoryStore()
	left := watchdog.Record{
		Boot: d.Boot, PID: 1, Armed: true, Device: "/dev/watchdog", Silence: 10 * time.Second, Timeout: 2 * time.Second, Asked: 2 * time.Second,
		Life: d.Boottime(), Standing: []haven.Watchdog{{Bound: 16 * time.Second, Stores: []string{store.id.ID.String()}}},
	}
	equip(&d, dog, store, left, &benchTerms)
	a := run(t, d)
	armed := func() string {
		w := httptest.NewRecorder()
		d.Metrics.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
		_, rest, _ := strings.Cut(w.Body.String(), "\nhaven_watchdog_armed ")
		value, _, _ := strings.Cut(rest, "\n")
		return value
	}
	comes(t, "it is petted", func() bool { return a.dog.out.Load().State == watchdog.Armed && armed() == "1" })
	dog.driver.Lock()
	release := sync.OnceFunc(dog.driver.Unlock)
	defer release()
	comes(t, "people are told", func() bool { return told.has(notify.KindWatchdogTrouble, "has not come back") })
	if v := a.viewWatchdog(); !strings.Contains(v.Why, "not petted") || armed() != "0" {
		t.Errorf("%+v, measured as armed %s", v, armed())
	}
	release()
	comes(t, "and of its end", func() bool { return told.has(notify.KindWatchdogWorks, "in order") })
	if v := a.viewWatchdog(); v.Why != "" {
		t.Errorf("%+v afterwards", v)
	}
}

// people hear what is told.
type people struct {
	noted
	mu sync.Mutex
}

func (p *people) Notify(e notify.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noted.Notify(e)
}

func (p *people) has(kind, text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.events, func(e notify.Event) bool { return e.Kind == kind && strings.Contains(e.Text, text) })
}

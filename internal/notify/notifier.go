package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/haven-ha/haven"
)

// Sender sends to one target. Send ends when its context does, and its errors
// hold no secret.
type Sender interface {
	Send(ctx context.Context, m Message) error
}

// Error is what a Sender returns when there is more to say than that it failed.
type Error struct {
	Err error
	// After is how long the target wants to be left alone.
	After time.Duration
	// ForGood says that the target will never take this message.
	ForGood bool
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Target is one place that is told.
type Target struct {
	Name   string // unique among the targets
	Type   string // email, snmp or webhook, for people
	Least  Severity
	Sender Sender
}

// Meter counts what becomes of messages. Its methods must not wait.
type Meter interface {
	Sent(target string)
	Failed(target string)
	// Queued sets how many events wait, and how many were dropped so far.
	Queued(target string, waiting int, dropped uint64)
}

// Config is what a Notifier is made of.
type Config struct {
	Cluster string
	Self    haven.HostID
	Targets []Target
	Limits  Limits
	Meter   Meter // nil for none
	Log     *slog.Logger
}

// sendTimeout bounds one sending: a mail server may take its time, and nobody
// waits for it but its own queue.
const sendTimeout = 45 * time.Second

// testTimeout bounds the sending of a test, for which somebody waits.
const testTimeout = 10 * time.Second

// Notifier sends events to its targets, each at its own pace.
type Notifier struct {
	cfg     Config
	kinds   Catalogue
	targets []*target
}

type target struct {
	Target
	cfg   *Config
	mu    sync.Mutex
	queue *Queue
	news  chan struct{}
	down  bool // of the loop: the last sending failed
}

// New makes a notifier. Run must be called for anything to be sent.
func New(cfg Config) *Notifier {
	n := &Notifier{cfg: cfg, kinds: NewCatalogue()}
	if cfg.Meter == nil {
		n.cfg.Meter = noMeter{}
	}
	standing := func(kind string) bool { return n.kinds.Lookup(kind).Standing }
	for _, t := range cfg.Targets {
		n.targets = append(n.targets, &target{Target: t, cfg: &n.cfg, queue: NewQueue(cfg.Limits, standing), news: make(chan struct{}, 1)})
	}
	return n
}

type noMeter struct{}

func (noMeter) Sent(string)                {}
func (noMeter) Failed(string)              {}
func (noMeter) Queued(string, int, uint64) {}

// Notify takes an event for all targets. It never waits. What is empty of
// severity, class, time and what to do comes from the event's kind.
func (n *Notifier) Notify(e Event) {
	e = n.fill(e)
	for _, t := range n.targets {
		if e.Severity >= t.Least {
			t.add(e)
		}
	}
}

func (n *Notifier) fill(e Event) Event {
	k := n.kinds.Lookup(e.Kind)
	e.Cluster, e.By = n.cfg.Cluster, n.cfg.Self
	if e.Severity == 0 {
		e.Severity = k.Severity
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if e.ID == "" {
		e.ID = NewID(e.Kind, string(e.Incident), string(e.Host), string(e.VM))
	}
	if e.Do == "" {
		e.Do = k.Advise(e)
	}
	return e.tidy()
}

func (t *target) add(e Event) {
	t.mu.Lock()
	t.queue.Add(time.Now(), e)
	t.meter()
	t.mu.Unlock()
	select {
	case t.news <- struct{}{}:
	default:
	}
}

func (t *target) meter() { t.cfg.Meter.Queued(t.Name, t.queue.Len(), t.queue.Lost()) }

// Run sends until the context ends. What still waits then is not sent.
func (n *Notifier) Run(ctx context.Context) {
	var all sync.WaitGroup
	for _, t := range n.targets {
		all.Go(func() { t.run(ctx) })
	}
	all.Wait()
}

func (t *target) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Stop()
		t.mu.Lock()
		m, ok, again := t.queue.Next(time.Now())
		t.meter()
		t.mu.Unlock()
		if ok {
			t.send(ctx, m)
			if ctx.Err() != nil {
				return
			}
			continue
		}
		if !again.IsZero() {
			timer.Reset(max(time.Until(again), time.Millisecond))
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-t.news:
		}
	}
}

func (t *target) send(ctx context.Context, m Message) {
	limited, cancel := context.WithTimeout(ctx, sendTimeout)
	err := t.Sender.Send(limited, m)
	cancel()
	log := t.cfg.Log.With("target", t.Name, "type", t.Type, "event", m.ID)
	t.mu.Lock()
	if err == nil {
		t.queue.Sent(time.Now())
	} else {
		e, _ := errors.AsType[*Error](err)
		if e == nil {
			e = &Error{}
		}
		t.queue.Failed(time.Now(), e.After, e.ForGood)
	}
	waiting, failures := t.queue.Len(), t.queue.Failures()
	t.meter()
	t.mu.Unlock()
	switch {
	case err == nil:
		t.cfg.Meter.Sent(t.Name)
		if t.down {
			log.Info("notifications get through again", "waiting", waiting)
		}
	case ctx.Err() == nil:
		t.cfg.Meter.Failed(t.Name)
		level := slog.LevelDebug
		if !t.down || failures%12 == 0 { // about once an hour while it lasts
			level = slog.LevelWarn
		}
		log.Log(ctx, level, "notification was not sent; it is tried again", "error", err, "failures", failures, "waiting", waiting)
	}
	t.down = err != nil
}

// ErrNoTarget is returned by Test when there is no target of that name, or none
// at all.
var ErrNoTarget = errors.New("no such notification target")

// Outcome is what became of a test.
type Outcome struct {
	Target string        `json:"target"`
	Type   string        `json:"type"`
	Took   time.Duration `json:"-"`
	Error  string        `json:"error,omitempty"` // empty: the target took it
}

// Test sends a test event to the target of that name, or to all for an empty
// one, past their queues, and waits for the outcome: ten seconds at most.
func (n *Notifier) Test(ctx context.Context, name, by string) ([]Outcome, error) {
	chosen := slices.DeleteFunc(slices.Clone(n.targets), func(t *target) bool { return name != "" && t.Name != name })
	if len(chosen) == 0 {
		var names []string
		for _, t := range n.targets {
			names = append(names, t.Name)
		}
		if len(names) == 0 {
			return nil, fmt.Errorf("%w: none is configured", ErrNoTarget)
		}
		return nil, fmt.Errorf("%w: %q; there are %s", ErrNoTarget, name, strings.Join(names, ", "))
	}
	now := time.Now()
	m := Message{Count: 1, Event: n.fill(Event{
		Kind: KindTest, Host: n.cfg.Self, Time: now, ID: NewID(KindTest, string(n.cfg.Self), now.UTC().Format(time.RFC3339Nano)),
		Text: fmt.Sprintf("This is a test of notifications, asked for by %s. Nothing happened.", by),
	})}
	ctx, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	out := make([]Outcome, len(chosen))
	var all sync.WaitGroup
	for i, t := range chosen {
		all.Go(func() {
			err := t.Sender.Send(ctx, m)
			out[i] = Outcome{Target: t.Name, Type: t.Type, Took: time.Since(now)}
			if err != nil {
				out[i].Error = err.Error()
			}
		})
	}
	all.Wait()
	return out, nil
}

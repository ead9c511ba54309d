package fencing

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/haven-ha/haven"
)

// TestPolicy sets the pace of the background tests.
type TestPolicy struct {
	// Every is the time between two tests of one device. Boards are fragile:
	// at least 10 s, by default 60 s.
	Every time.Duration
	// AfterRefusal is the time after a refusal of the credentials, so that a
	// wrong password does not lock the account. By default 15 min.
	AfterRefusal time.Duration
	// Spread is the time over which the first tests are spread. By default 10 s.
	Spread time.Duration
	// Limit bounds one test, by default 10 s.
	Limit time.Duration
	// Concurrency is how many devices are tested at once, by default 4.
	Concurrency int
}

// DefaultTestPolicy returns the defaults.
func DefaultTestPolicy() TestPolicy {
	return TestPolicy{Every: time.Minute, AfterRefusal: 15 * time.Minute, Spread: 10 * time.Second, Limit: 10 * time.Second, Concurrency: 4}
}

// Validate checks the values.
func (p TestPolicy) Validate() error {
	switch {
	case p.Every < 10*time.Second:
		return errors.New("test interval: want at least 10s")
	case p.AfterRefusal < p.Every:
		return errors.New("test interval after a refusal: want at least the normal one")
	case p.Spread < 0 || p.Limit <= 0 || p.Concurrency < 1:
		return errors.New("test spread, limit and concurrency must be positive")
	}
	return nil
}

// TestPlan says which device is to be tested when: a pure schedule. Each
// interval is stretched or shortened by up to a tenth, so that devices, and
// agents, do not fall into step.
type TestPlan struct {
	policy TestPolicy
	random func() float64
	due    map[string]time.Time
	busy   map[string]bool
}

// NewTestPlan makes an empty plan. The function gives numbers in [0, 1).
func NewTestPlan(p TestPolicy, random func() float64) *TestPlan {
	return &TestPlan{policy: p, random: random, due: map[string]time.Time{}, busy: map[string]bool{}}
}

// Set tells which devices there are. Known ones keep their time.
func (p *TestPlan) Set(now time.Time, keys []string) {
	for k := range p.due {
		if !slices.Contains(keys, k) {
			delete(p.due, k)
		}
	}
	for _, k := range keys {
		if _, known := p.due[k]; !known {
			p.due[k] = now.Add(time.Duration(p.random() * float64(p.policy.Spread)))
		}
	}
}

// Take returns the devices to test now, the longest overdue first, within the
// bound on concurrency, and marks them as under test.
func (p *TestPlan) Take(now time.Time) []string {
	var keys []string
	for k, t := range p.due {
		if !p.busy[k] && !t.After(now) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b string) int {
		if c := p.due[a].Compare(p.due[b]); c != 0 {
			return c
		}
		if a < b {
			return -1
		}
		return 1
	})
	keys = keys[:min(len(keys), max(0, p.policy.Concurrency-len(p.busy)))]
	for _, k := range keys {
		p.busy[k] = true
	}
	return keys
}

// Done tells that a test is over.
func (p *TestPlan) Done(now time.Time, key string, err error) {
	delete(p.busy, key)
	if _, known := p.due[key]; !known {
		return
	}
	wait := p.policy.Every
	if errors.Is(err, ErrAuth) {
		wait = p.policy.AfterRefusal
	}
	p.due[key] = now.Add(time.Duration(float64(wait) * (0.9 + 0.2*p.random())))
}

// Again has the devices that refused their credentials tested soon: they may be
// given others now. The rest keep their time.
func (p *TestPlan) Again(now time.Time) {
	for k, t := range p.due {
		if !p.busy[k] && t.Sub(now) > p.policy.Every+p.policy.Every/10 {
			p.due[k] = now.Add(time.Duration(p.random() * float64(p.policy.Spread)))
		}
	}
}

// Next returns when the next test is due, or false when that depends on one
// that is under way, or nothing is to be tested.
func (p *TestPlan) Next() (time.Time, bool) {
	var next time.Time
	if len(p.busy) >= p.policy.Concurrency {
		return next, false
	}
	for k, t := range p.due {
		if !p.busy[k] && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next, !next.IsZero()
}

// Device is one configured device.
type Device struct {
	Host   haven.HostID
	Key    string // names the device; unique
	Driver Driver // from Gate.Read
}

// TestResult is what came of one test.
type TestResult struct {
	Host    haven.HostID
	Key     string
	Reading Reading
	Err     error // of the reading
	// Weak says what else would keep the device from switching power, as far as
	// that can be found out without doing it; nil when nothing is known to. Examined
	// says that this was looked at.
	Weak     error
	Examined bool
}

// Examiner is a driver of a device that answers whoever may only look: that the
// power was read does not show there that it may be switched.
type Examiner interface {
	// Examine finds out whether the account may switch power, without switching
	// anything. It returns an ErrPrivilege or an ErrUnfit when it may not, and nil
	// also when the device does not tell. Any other error leaves it open.
	Examine(ctx context.Context) error
}

// TestDevice tests one device: it reads the power state and, when asked to and
// where there is something to be found out, examines what the account may do.
func TestDevice(ctx context.Context, d Device, examine bool) TestResult {
	r := TestResult{Host: d.Host, Key: d.Key}
	if r.Reading, r.Err = d.Driver.Power(ctx); r.Err != nil {
		r.Reading.State = haven.PowerUnknown
		return r
	}
	if e, ok := d.Driver.(Examiner); ok && examine {
		err := e.Examine(ctx)
		if errors.Is(err, ErrPrivilege) || errors.Is(err, ErrUnfit) {
			r.Weak = err
		}
		r.Examined = err == nil || r.Weak != nil
	}
	return r
}

// Tester reads the power state and the GUID of every device again and again.
// It never sends a power command.
type Tester struct {
	Policy TestPolicy
	// Devices is asked for the configured devices before each round.
	Devices func() []Device
	// Report takes each result. It is called from several goroutines and must
	// not block.
	Report func(TestResult)
	// Again gets a value when credentials may have changed; see TestPlan.Again. Nil
	// for never.
	Again <-chan struct{}
	// Random gives numbers in [0, 1).
	Random func() float64
	Log    *slog.Logger
}

// testerLook is how often the list of devices is looked at.
const testerLook = 5 * time.Second

// Run tests until the context ends, and returns when all its tests have ended.
func (t *Tester) Run(ctx context.Context) error {
	if err := t.Policy.Validate(); err != nil {
		return err
	}
	type done struct {
		key string
		err error
	}
	plan := NewTestPlan(t.Policy, t.Random)
	ended := make(chan done, t.Policy.Concurrency) // never more under way
	exams := map[string]*exam{}
	var wg sync.WaitGroup
	defer wg.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case d := <-ended:
			plan.Done(time.Now(), d.key, d.err)
		case <-t.Again:
			plan.Again(time.Now())
		case <-timer.C:
		}
		now := time.Now()
		devices := map[string]Device{}
		var keys []string
		for _, d := range t.Devices() {
			if _, twice := devices[d.Key]; !twice {
				keys = append(keys, d.Key)
			}
			devices[d.Key] = d
		}
		plan.Set(now, keys)
		for _, k := range plan.Take(now) {
			if exams[k] == nil {
				exams[k] = new(exam) // by key: as many as there ever were devices
			}
			latest := exams[k] // The map itself is this goroutine's.
			wg.Go(func() { ended <- done{k, t.test(ctx, devices[k], latest)} })
		}
		wake := testerLook
		if next, ok := plan.Next(); ok {
			wake = min(wake, max(0, next.Sub(now)))
		}
		timer.Reset(wake)
	}
}

// exam is the latest examination of a device. One test of a device runs at a time.
type exam struct {
	at   time.Time
	weak error
}

func (t *Tester) test(ctx context.Context, d Device, last *exam) error {
	limited, cancel := context.WithTimeout(ctx, t.Policy.Limit)
	defer cancel()
	// What an account may do changes rarely, and is more to ask.
	due := last.at.IsZero() || time.Since(last.at) >= t.Policy.AfterRefusal || last.weak != nil
	r := TestDevice(limited, d, due)
	if ctx.Err() != nil {
		return r.Err // being stopped says nothing about the device
	}
	if errors.Is(r.Err, ErrOursIsAtIt) {
		return r.Err // nor does a fence that came first
	}
	switch {
	case r.Err != nil:
		t.Log.DebugContext(ctx, "fence device test failed", "host", d.Host, "device", d.Key, "error", r.Err)
	case r.Examined:
		last.at, last.weak = time.Now(), r.Weak
	default:
		r.Weak = last.weak
	}
	t.Report(r)
	return r.Err
}

package fencing_test

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
)

// One session at a time per device, whoever asks and whatever fails; other
// devices are not held up.
func TestGateLetsOneThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := fencing.NewGate()
		f := newFake(3, true, faultRates{session: 100 * time.Millisecond, fail: 0.3, hang: 0.05})
		other := newFake(4, true, faultRates{session: 10 * time.Millisecond})
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				d := g.Read("bmc-1", f)
				if i%5 == 0 {
					d = g.Fence("bmc-1", f)
				}
				for range 10 {
					ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
					_, _ = d.Power(ctx)
					cancel()
				}
			})
		}
		start := time.Now()
		if _, err := g.Read("bmc-2", other).Power(t.Context()); err != nil || time.Since(start) > 10*time.Millisecond {
			t.Errorf("another device was held up: %v, %s", err, time.Since(start))
		}
		wg.Wait()
		if f.overlap || f.inside != 0 {
			t.Error("two sessions at once")
		}
		if len(f.readings) == 0 {
			t.Error("nobody got through")
		}
		// The lane is free again.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		f.p = faultRates{}
		if _, err := g.Read("bmc-1", f).Power(ctx); err != nil {
			t.Error(err)
		}
	})
}

// A fence breaks off a reading that hangs, and goes before those that wait.
func TestGateFenceGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := fencing.NewGate()
		f := newFake(1, true, faultRates{hang: 1})
		errs := make(chan error, 3)
		for range 3 {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err := g.Read("bmc", f).Power(ctx)
				errs <- err
			}()
			synctest.Wait()
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := g.Fence("bmc", f).Power(ctx) // it hangs as well, on its own time
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("fence: %v after %s", err, time.Since(start))
		}
		if err := <-errs; !errors.Is(err, fencing.ErrBusy) {
			t.Errorf("reading that was under way: %v", err)
		}
		for range 2 {
			if err := <-errs; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("reading that waited: %v", err)
			}
		}
	})
}

func TestGateBoundsItsQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := fencing.NewGate()
		f := newFake(1, true, faultRates{hang: 1})
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for range 5 { // one inside, four waiting
			wg.Go(func() { _, _ = g.Read("bmc", f).Power(ctx) })
			synctest.Wait()
		}
		if _, err := g.Read("bmc", f).Power(t.Context()); !errors.Is(err, fencing.ErrBusy) {
			t.Errorf("err = %v", err)
		}
		cancel()
		wg.Wait()
	})
}

func TestGateReadersCannotControl(t *testing.T) {
	f := newFake(1, true, faultRates{})
	d := fencing.NewGate().Read("bmc", f)
	for _, a := range []haven.FenceAction{haven.ActionOff, haven.ActionOn, haven.ActionBlink} {
		if err := d.Set(t.Context(), a, nil); !errors.Is(err, fencing.ErrUnsupported) || f.sent != 0 {
			t.Errorf("%s: %v, device got %d", a, err, f.sent)
		}
	}
}

// The tester reads every device, bounded, slowly, never a command; a refusal
// of the credentials makes it wait long.
func TestTester(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := fencing.NewGate()
		fakes := map[string]*fake{}
		var devices []fencing.Device
		for _, k := range []string{"a", "b", "c", "d", "e", "f"} {
			fakes[k] = newFake(1, true, faultRates{session: 2 * time.Second})
			devices = append(devices, fencing.Device{Host: haven.HostID(k), Key: k, Driver: g.Read(k, fakes[k])})
		}
		fakes["c"].p.hang = 1
		locked := &countingAuth{}
		devices = append(devices, fencing.Device{Host: "g", Key: "g", Driver: g.Read("g", locked)})
		var mu sync.Mutex
		results := map[string]int{}
		failed := map[string]error{}
		again := make(chan struct{})
		tester := fencing.Tester{
			Again:   again,
			Policy:  fencing.DefaultTestPolicy(),
			Devices: func() []fencing.Device { mu.Lock(); defer mu.Unlock(); return devices },
			Report: func(r fencing.TestResult) {
				mu.Lock()
				defer mu.Unlock()
				results[r.Key]++
				failed[r.Key] = r.Err
				if r.Err != nil && r.Reading.State != haven.PowerUnknown {
					t.Errorf("P5: %v with %v", r.Reading, r.Err)
				}
			},
			Random: func() float64 { return 0.5 },
			Log:    quiet,
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- tester.Run(ctx) }()
		time.Sleep(10 * time.Minute)
		mu.Lock()
		for _, k := range []string{"a", "b", "d", "e", "f"} {
			if n := results[k]; n < 9 || n > 11 || failed[k] != nil {
				t.Errorf("%s: %d tests in 10 minutes, %v", k, n, failed[k])
			}
			if fakes[k].sent != 0 {
				t.Errorf("%s got a command", k)
			}
		}
		if n := results["c"]; n < 8 || !errors.Is(failed["c"], context.DeadlineExceeded) {
			t.Errorf("hung device: %d tests, %v", n, failed["c"])
		}
		if locked.n != 1 || !errors.Is(failed["g"], fencing.ErrAuth) {
			t.Errorf("wrong password was tried %d times in 10 minutes, %v", locked.n, failed["g"])
		}
		seen := maps.Clone(results)
		mu.Unlock()
		again <- struct{}{} // Passwords may be others now: who refused is asked, and nobody else.
		time.Sleep(20 * time.Second)
		mu.Lock()
		if locked.n != 2 || results["a"] > seen["a"]+1 {
			t.Errorf("%d logins after a reload, a %d times after %d", locked.n, results["a"], seen["a"])
		}
		devices = devices[:1] // the others are not configured any more
		before := results["b"]
		mu.Unlock()
		time.Sleep(10 * time.Minute)
		mu.Lock()
		if results["b"] != before || results["a"] < 18 {
			t.Errorf("after the change: a %d, b %d (%d before)", results["a"], results["b"], before)
		}
		mu.Unlock()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run() = %v", err)
		}
	})
}

type countingAuth struct{ n int }

func (c *countingAuth) Power(context.Context) (fencing.Reading, error) {
	c.n++
	return fencing.Reading{}, fencing.ErrAuth
}

func (c *countingAuth) Set(context.Context, haven.FenceAction, fencing.Permit) error {
	return fencing.ErrAuth
}

func (c *countingAuth) Identity(context.Context) (fencing.GUID, error) { return "", fencing.ErrAuth }

func TestTestPlanBoundsConcurrency(t *testing.T) {
	p := fencing.DefaultTestPolicy()
	p.Concurrency, p.Spread = 2, 0
	plan := fencing.NewTestPlan(p, func() float64 { return 0 })
	plan.Set(at(0), []string{"b", "a", "c"})
	if got := plan.Take(at(0)); len(got) != 2 || got[0] != "a" || got[1] != "b" {
		t.Fatalf("Take() = %v", got)
	}
	if _, ok := plan.Next(); ok || len(plan.Take(at(1))) != 0 {
		t.Error("more than two at once")
	}
	plan.Set(at(1), []string{"b", "c"}) // a goes while it is under test
	plan.Done(at(1), "a", nil)
	if got := plan.Take(at(1)); len(got) != 1 || got[0] != "c" {
		t.Errorf("Take() = %v", got)
	}
	plan.Done(at(2), "b", nil)
	if next, ok := plan.Next(); !ok || !next.Equal(at(2+54)) {
		t.Errorf("Next() = %s, %v", next, ok)
	}
}

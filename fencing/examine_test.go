package fencing_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
)

// examined is a board whose account is too weak, or not, and that may not tell.
type examined struct {
	mu           sync.Mutex
	says         error
	looks, exams int
}

func (e *examined) Power(context.Context) (fencing.Reading, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.looks++
	return fencing.Reading{State: haven.PowerOn, Start: time.Now(), Finish: time.Now()}, nil
}

func (e *examined) Set(context.Context, haven.FenceAction, fencing.Permit) error {
	panic("a test sent a power command")
}
func (e *examined) Identity(context.Context) (fencing.GUID, error) { return "", nil }

func (e *examined) Examine(context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.exams++
	return e.says
}

// What an account may do is looked at rarely while it is well, and at each test
// once it is not, so that its repair shows; what could not be found out changes
// nothing.
func TestExaminationsAreRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &examined{}
		var mu sync.Mutex
		var last fencing.TestResult
		tester := &fencing.Tester{
			Policy: fencing.DefaultTestPolicy(), Random: func() float64 { return 0.5 }, Log: slog.New(slog.DiscardHandler),
			Devices: func() []fencing.Device { return []fencing.Device{{Host: "h", Key: "k", Driver: d}} },
			Report:  func(r fencing.TestResult) { mu.Lock(); defer mu.Unlock(); last = r },
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = tester.Run(ctx) })
		wait := func(says error, d2 time.Duration) (weak bool) {
			d.mu.Lock()
			d.says, d.looks, d.exams = says, 0, 0
			d.mu.Unlock()
			time.Sleep(d2)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if last.Err != nil || last.Reading.State != haven.PowerOn {
				t.Errorf("%+v", last)
			}
			return last.Weak != nil
		}
		if weak := wait(nil, 29*time.Minute); weak || d.exams != 2 || d.looks < 25 {
			t.Errorf("sound: weak %v, %d examinations in %d tests", weak, d.exams, d.looks)
		}
		weak := fmt.Errorf("%w: role ReadOnly", fencing.ErrPrivilege)
		if !wait(weak, 17*time.Minute) {
			t.Error("it became weak, and nobody noticed")
		}
		if !wait(fencing.ErrUnreachable, 5*time.Minute) || d.exams < 4 {
			t.Errorf("what could not be found out: %d examinations", d.exams)
		}
		if wait(nil, 2*time.Minute) {
			t.Error("it was mended, and nobody noticed")
		}
		cancel()
		wg.Wait()
	})
}

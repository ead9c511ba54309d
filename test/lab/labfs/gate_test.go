package labfs

import (
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestGateModes(t *testing.T) {
	for _, tc := range []struct {
		name                 Mode
		read, change, writes syscall.Errno
	}{
		{OK, 0, 0, 0},
		{EIO, syscall.EIO, syscall.EIO, syscall.EIO},
		{Stale, syscall.ESTALE, syscall.ESTALE, syscall.ESTALE},
		{RO, 0, syscall.EROFS, syscall.EROFS},
		{NoSpace, 0, 0, syscall.ENOSPC},
	} {
		t.Run(string(tc.name), func(t *testing.T) {
			g := newGate()
			if err := g.set(tc.name); err != nil {
				t.Fatal(err)
			}
			for op, want := range map[operation]syscall.Errno{reading: tc.read, changing: tc.change, writing: tc.writes} {
				if got := g.pass(op); got != want {
					t.Errorf("operation %d: %v, want %v", op, got, want)
				}
			}
		})
	}
}

func TestGateRefusesUnknownModes(t *testing.T) {
	for _, m := range []Mode{"", "broken", "slow", "slow x", "slow -1s", "slow 0s"} {
		if err := newGate().set(m); err == nil {
			t.Errorf("mode %q was taken", m)
		}
	}
}

// passing runs one request and returns a channel with its result.
func passing(g *gate) <-chan syscall.Errno {
	done := make(chan syscall.Errno, 1)
	go func() { done <- g.pass(writing) }()
	synctest.Wait()
	return done
}

func TestGateHangEndsWithTheMode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		must(t, g.set(Hang))
		a := passing(g)
		must(t, g.set(Hang))
		synctest.Wait()
		if _, held := g.state(); held != 1 {
			t.Fatalf("%d requests wait, want 1", held)
		}
		must(t, g.set(OK))
		if e := <-a; e != 0 {
			t.Errorf("released with %v", e)
		}
	})
}

func TestGateReleaseFailsWhoWaitsAndKeepsTheMode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		must(t, g.set(Hang))
		a, b := passing(g), passing(g)
		g.release()
		if e, f := <-a, <-b; e != syscall.EIO || f != syscall.EIO {
			t.Errorf("released with %v and %v", e, f)
		}
		c := passing(g)
		if m, held := g.state(); m != Hang || held != 1 {
			t.Errorf("mode %v with %d waiting, want hang with 1", m, held)
		}
		must(t, g.set(EIO))
		if e := <-c; e != syscall.EIO {
			t.Errorf("got %v", e)
		}
	})
}

func TestGateSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		must(t, g.set(Slow(700*time.Millisecond)))
		start := time.Now()
		if e := g.pass(reading); e != 0 {
			t.Fatal(e)
		}
		if d := time.Since(start); d != 700*time.Millisecond {
			t.Errorf("took %v", d)
		}
		a := passing(g)
		must(t, g.set(OK))
		if e := <-a; e != 0 || time.Since(start) != 700*time.Millisecond {
			t.Errorf("a slow request did not end with its mode: %v after %v", e, time.Since(start))
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

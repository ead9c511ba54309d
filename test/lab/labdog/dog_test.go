package labdog

import (
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const timeout = 10 * time.Second

// bench runs a test of a device that expires into a counter.
func bench(t *testing.T, test func(t *testing.T, d *dog, fired *atomic.Int32)) {
	synctest.Test(t, func(t *testing.T) {
		var fired atomic.Int32
		d := newDog(Limits{Min: time.Second, Max: time.Minute}, timeout, func() { fired.Add(1) })
		test(t, d, &fired)
		d.cutPower()
	})
}

// after lets time pass and says how often the device had fired by then.
func after(d time.Duration, fired *atomic.Int32) int {
	time.Sleep(d)
	synctest.Wait()
	return int(fired.Load())
}

func mustOpen(t *testing.T, d *dog) *handle {
	t.Helper()
	h, errno := d.open()
	if errno != 0 {
		t.Fatal(errno)
	}
	return h
}

func TestDogExpiresOnceUnlessPetted(t *testing.T) {
	bench(t, func(t *testing.T, d *dog, fired *atomic.Int32) {
		h := mustOpen(t, d)
		for range 5 {
			if n := after(timeout-time.Millisecond, fired); n != 0 {
				t.Fatal("it fired before its time")
			}
			if errno := h.write([]byte{0}); errno != 0 {
				t.Fatal(errno)
			}
		}
		if n := after(timeout, fired); n != 1 {
			t.Errorf("fired %d times, want once", n)
		}
		if n := after(time.Hour, fired); n != 1 {
			t.Errorf("fired %d times, want once", n)
		}
	})
}

func TestDogIsOpenedOnce(t *testing.T) {
	bench(t, func(t *testing.T, d *dog, _ *atomic.Int32) {
		h := mustOpen(t, d)
		if _, errno := d.open(); errno != syscall.EBUSY {
			t.Errorf("a second open: %v, want EBUSY", errno)
		}
		h.release()
		mustOpen(t, d)
	})
}

func TestDogStopsByMagicAlone(t *testing.T) {
	tests := []struct {
		name     string
		writes   []string
		nowayout bool
		want     int
	}{
		{"magic", []string{"V"}, false, 0},
		{"magic and more", []string{"xVx"}, false, 0},
		{"no magic", []string{"\x00"}, false, 1},
		{"pet after magic", []string{"V", "\x00"}, false, 1},
		{"magic, no way out", []string{"V"}, true, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bench(t, func(t *testing.T, d *dog, fired *atomic.Int32) {
				d.nowayout = tt.nowayout
				h := mustOpen(t, d)
				for _, w := range tt.writes {
					if errno := h.write([]byte(w)); errno != 0 {
						t.Fatal(errno)
					}
				}
				time.Sleep(timeout - time.Second)
				h.release()
				// A close that does not stop it is a pet, as in the kernel.
				if n := after(timeout-time.Millisecond, fired); n != 0 {
					t.Errorf("it fired %d times too early", n)
				}
				if n := after(timeout, fired); n != tt.want {
					t.Errorf("fired %d times, want %d", n, tt.want)
				}
			})
		})
	}
}

func TestDogAfterAPowerCut(t *testing.T) {
	bench(t, func(t *testing.T, d *dog, fired *atomic.Int32) {
		old := mustOpen(t, d)
		d.cutPower()
		if n := after(time.Hour, fired); n != 0 {
			t.Fatal("a watchdog without power fired")
		}
		if errno := old.write([]byte{0}); errno == 0 {
			t.Error("an opening of before the power cut pets")
		}
		mustOpen(t, d)
		old.release() // the kernel closes the files of the dead late
		if !d.status().Open {
			t.Error("it closed the new opening")
		}
	})
}

func TestDogTimeouts(t *testing.T) {
	bench(t, func(t *testing.T, d *dog, fired *atomic.Int32) {
		h := mustOpen(t, d)
		for _, bad := range []time.Duration{0, time.Hour} {
			if errno := h.setTimeout(bad); errno != syscall.EINVAL {
				t.Errorf("timeout %s: %v, want EINVAL", bad, errno)
			}
		}
		time.Sleep(timeout / 2)
		if errno := h.setTimeout(3 * time.Second); errno != 0 {
			t.Fatal(errno)
		}
		if left := h.left(); left != 3*time.Second {
			t.Errorf("%s left", left)
		}
		if n := after(3*time.Second, fired); n != 1 {
			t.Errorf("fired %d times, want once", n)
		}
	})
}

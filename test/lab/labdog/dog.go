package labdog

import (
	"bytes"
	"sync"
	"syscall"
	"time"
)

// Limits are what a device's timeout can be.
type Limits struct{ Min, Max time.Duration }

// dog is the device itself, without a file system around it. It behaves as the
// kernel's watchdog core: opening and setting a timeout count as a pet, and so
// does a close without the magic letter.
type dog struct {
	limits  Limits
	expired func()

	mu       sync.Mutex
	timeout  time.Duration
	nowayout bool
	broken   bool    // every write fails
	opened   *handle // nil: it can be opened
	running  *time.Timer
	petted   time.Time
	pets     int
	fired    int
}

// handle is one opening. What is left of it after a power cut does nothing.
type handle struct {
	dog   *dog
	magic bool
}

func newDog(limits Limits, timeout time.Duration, expired func()) *dog {
	return &dog{limits: limits, timeout: timeout, expired: expired}
}

// pet starts the count anew. The lock is held.
func (d *dog) pet() {
	if d.running != nil {
		d.running.Stop()
	}
	d.petted = time.Now()
	d.pets++
	var own *time.Timer
	own = time.AfterFunc(d.timeout, func() {
		d.mu.Lock()
		current := d.running == own // else it was petted at the last moment
		if current {
			d.running = nil
			d.fired++
		}
		d.mu.Unlock()
		if current {
			d.expired()
		}
	})
	d.running = own
}

func (d *dog) stop() {
	if d.running != nil {
		d.running.Stop()
		d.running = nil
	}
}

func (d *dog) open() (*handle, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.opened != nil {
		return nil, syscall.EBUSY
	}
	d.opened = &handle{dog: d}
	d.pet()
	return d.opened, 0
}

// valid says whether the handle is of the present power-on. The lock is held.
func (h *handle) valid() bool { return h.dog.opened == h }

func (h *handle) write(data []byte) syscall.Errno {
	h.dog.mu.Lock()
	defer h.dog.mu.Unlock()
	if !h.valid() || h.dog.broken {
		return syscall.EIO
	}
	h.magic = bytes.ContainsRune(data, 'V')
	h.dog.pet()
	return 0
}

func (h *handle) release() {
	h.dog.mu.Lock()
	defer h.dog.mu.Unlock()
	if !h.valid() {
		return
	}
	h.dog.opened = nil
	if h.magic && !h.dog.nowayout {
		h.dog.stop()
	} else {
		h.dog.pet()
	}
}

// setTimeout takes what lies within the limits.
func (h *handle) setTimeout(t time.Duration) syscall.Errno {
	h.dog.mu.Lock()
	defer h.dog.mu.Unlock()
	if !h.valid() {
		return syscall.EIO
	}
	if t < h.dog.limits.Min || t > h.dog.limits.Max {
		return syscall.EINVAL
	}
	h.dog.timeout = t
	h.dog.pet()
	return 0
}

func (h *handle) left() time.Duration {
	h.dog.mu.Lock()
	defer h.dog.mu.Unlock()
	if h.dog.running == nil {
		return 0
	}
	return max(0, h.dog.timeout-time.Since(h.dog.petted))
}

// cutPower is what losing power does to a watchdog: it is off, and who had it
// open has it no more.
func (d *dog) cutPower() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stop()
	d.opened = nil
}

func (d *dog) status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	return Status{
		Open: d.opened != nil, Running: d.running != nil, Timeout: d.timeout, NoWayOut: d.nowayout, Broken: d.broken,
		Pets: d.pets, Fired: d.fired,
	}
}

// Status is the state of one device.
type Status struct {
	Open, Running    bool
	Timeout          time.Duration
	NoWayOut, Broken bool
	Pets, Fired      int // since it is served
}

func (d *dog) set(f func(*dog)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d)
}

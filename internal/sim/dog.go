package sim

import (
	"context"
	"errors"
	"sync"
	"time"

	keeping "github.com/haven-ha/haven/fencing/watchdog"
	"github.com/haven-ha/haven/internal/agent"
	"github.com/haven-ha/haven/internal/ledger"
)

// Terms of the simulated watchdogs.
const (
	dogTimeout = 4 * time.Second
	dogSilence = 12 * time.Second
	dogDefault = 60 * time.Second // of a device that nobody set
)

// dog is a machine's watchdog device. When it is not petted in time it resets the
// machine, which boots anew. It goes on while the machine is frozen, and when the
// process that opened it is killed.
type dog struct {
	h *Host

	mu      sync.Mutex
	armed   bool
	timeout time.Duration
	petted  time.Time
	by      *life // that has it open
	gen     int   // counts armings
	record  keeping.Record
	lives   []*life // of agents, by process number, from 1
}

var (
	errDogBusy   = errors.New("device or resource busy")
	errDogClosed = errors.New("file already closed")
)

// deps is the device as one process reaches it.
func (d *dog) deps(l *life) *agent.Watchdog {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lives = append(d.lives, l)
	left := d.record
	if left.Boot != l.boot {
		left = keeping.Record{}
	}
	pid := len(d.lives)
	return &agent.Watchdog{
		Terms: &keeping.Terms{Device: "dog", Timeout: dogTimeout, Silence: dogSilence},
		Open:  func(string, bool) (agent.WatchdogDevice, error) { return d.open(l) },
		Left:  left,
		Save: func(r keeping.Record) error {
			return d.do(l, false, func() { d.record = r })
		},
		Self: keeping.Record{Boot: l.boot, PID: pid, Started: uint64(pid)},
		Gone: func(pid int, _ uint64) bool {
			d.mu.Lock()
			defer d.mu.Unlock()
			return pid < 1 || pid > len(d.lives) || d.lives[pid-1].dead()
		},
	}
}

// do does something that a live process asks for; with open one that has the
// device.
func (d *dog) do(l *life, open bool, f func()) error {
	if err := l.gate(context.Background()); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case l.dead():
		return errGone
	case open && d.by != l:
		return errDogClosed
	}
	f()
	return nil
}

func (d *dog) open(l *life) (agent.WatchdogDevice, error) {
	busy := false
	err := d.do(l, false, func() {
		if busy = d.by != nil && !d.by.dead(); busy {
			return
		}
		d.by, d.petted = l, time.Now()
		if !d.armed {
			d.armed = true
			if d.timeout == 0 {
				d.timeout = dogDefault
			}
			d.gen++
			gen := d.gen
			d.h.c.wg.Go(func() { d.watch(gen) })
		}
	})
	if busy {
		err = errDogBusy
	}
	if err != nil {
		return nil, err
	}
	return openDog{d, l}, nil
}

// watch waits until nobody petted for too long.
func (d *dog) watch(gen int) {
	for {
		d.mu.Lock()
		over := !d.armed || d.gen != gen
		left := d.timeout - time.Since(d.petted)
		fires := !over && left <= 0
		if fires {
			d.armed = false
		}
		d.mu.Unlock()
		switch {
		case over:
			return
		case fires:
			d.fire()
			return
		}
		timer := time.NewTimer(min(left, 100*time.Millisecond)) // the timeout may get shorter
		select {
		case <-timer.C:
		case <-d.h.c.quit:
			timer.Stop()
			return
		}
	}
}

// fire resets the machine.
func (d *dog) fire() {
	h := d.h
	if h.Boot() == "" {
		return
	}
	h.c.emit(Event{What: DogFired, Host: h.ID, Text: "its watchdog resets it"})
	h.powerLost("reset by its watchdog")
	h.mu.Lock()
	off := h.keptOff
	h.mu.Unlock()
	if !off {
		h.PowerOn()
	}
}

// powerLost ends the count: the device starts anew with the machine.
func (d *dog) powerLost() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.armed, d.timeout, d.by, d.record = false, 0, nil, keeping.Record{}
	d.gen++
}

// left is what the kernel does with the device of a process that is no more: the
// close that nobody asked for is a pet.
func (d *dog) left(l *life) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.by == l {
		d.by, d.petted = nil, time.Now()
	}
}

// openDog is a device that one process has open.
type openDog struct {
	d *dog
	l *life
}

func (o openDog) SetTimeout(t time.Duration) (time.Duration, error) {
	return t, o.d.do(o.l, true, func() { o.d.timeout, o.d.petted = t, time.Now() })
}

func (o openDog) Timeout() (t time.Duration, err error) {
	err = o.d.do(o.l, true, func() { t = o.d.timeout })
	return t, err
}

func (o openDog) Pet() error {
	return o.d.do(o.l, true, func() { o.d.petted = time.Now() })
}

func (o openDog) MagicClose() error {
	return o.d.do(o.l, true, func() { o.d.armed, o.d.by = false, nil; o.d.gen++ })
}

func (o openDog) Close() error {
	return o.d.do(o.l, true, func() { o.d.by, o.d.petted = nil, time.Now() })
}

// declared says whether the ledger holds the armed watchdogs of all machines.
func (c *Cluster) declared() bool {
	if !c.s.Dogs {
		return true
	}
	n := 0
	c.Ledger(func(s *ledger.State) {
		for _, h := range s.Hosts {
			if h.Watchdog.Armed() {
				n++
			}
		}
	})
	return n == c.s.Hosts
}

// Silence cuts all paths of a machine but its board, and lets it run on.
func (c *Cluster) Silence(h *Host, on bool) {
	c.Isolate(h, on)
	fault := StoreFault("")
	if on {
		fault = StoreHangs
	}
	c.Store(h, fault)
}

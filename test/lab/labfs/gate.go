package labfs

import (
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Mode is what the storage does to one host's requests.
type Mode string

// The modes. Slow carries its delay behind a blank: "slow 500ms".
const (
	OK      Mode = "ok"
	Hang    Mode = "hang"   // requests are taken and not answered; who waits cannot be killed
	EIO     Mode = "eio"    // every request fails
	Stale   Mode = "estale" // as after the server lost its file handles
	RO      Mode = "ro"     // writing fails
	NoSpace Mode = "nospc"  // writing that takes space fails; over what a file has already it goes on
	slow         = "slow"
)

// Slow is the mode in which every request takes d longer.
func Slow(d time.Duration) Mode { return Mode(slow + " " + d.String()) }

// operation says what a request needs of the storage.
type operation int

const (
	reading     operation = iota
	changing              // changes the tree, takes no space
	writing               // takes space
	overwriting           // takes space where the file has none yet: who passes must ask full
)

// fault is one setting of the gate. Who waits under it holds a pointer to it, so
// that a release ends exactly the waits that exist at that moment.
type fault struct {
	mode    Mode
	delay   time.Duration
	over    chan struct{} // closed when another fault takes its place
	aborted bool          // written before over is closed: waiters fail with EIO
}

// gate is what every request passes before it reaches the real directory.
type gate struct {
	mu   sync.Mutex
	now  *fault
	held int // requests that wait
}

func newGate() *gate {
	return &gate{now: &fault{mode: OK, over: make(chan struct{})}}
}

// parse turns the words of a mode into a fault.
func parse(m Mode) (*fault, error) {
	f := &fault{mode: m, over: make(chan struct{})}
	switch m {
	case OK, Hang, EIO, Stale, RO, NoSpace:
		return f, nil
	}
	word, rest, _ := strings.Cut(string(m), " ")
	if word != slow {
		return nil, fmt.Errorf("unknown storage mode %q", m)
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d <= 0 {
		return nil, fmt.Errorf("storage mode %q: want a positive delay such as %q", m, Slow(500*time.Millisecond))
	}
	f.delay = d
	return f, nil
}

// set changes the mode; who waited is judged again under the new one.
func (g *gate) set(m Mode) error {
	f, err := parse(m)
	if err != nil {
		return err
	}
	g.replace(f, false)
	return nil
}

// release fails the requests that wait now with EIO and keeps the mode: what a
// power cut does to a request that a dead host had in flight.
func (g *gate) release() {
	g.mu.Lock()
	f := *g.now
	g.mu.Unlock()
	f.over, f.aborted = make(chan struct{}), false
	g.replace(&f, true)
}

func (g *gate) replace(f *fault, abort bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now.aborted = abort
	close(g.now.over)
	g.now = f
}

// state returns the mode and the number of waiting requests.
func (g *gate) state() (Mode, int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.now.mode, g.held
}

// pass blocks or fails a request as the mode wants. It ignores interrupts, as a
// dead disk does.
func (g *gate) pass(op operation) syscall.Errno {
	for {
		g.mu.Lock()
		f := g.now
		g.mu.Unlock()
		switch f.mode {
		case Hang:
			if g.wait(f, nil) && f.aborted {
				return syscall.EIO
			}
			continue
		case EIO:
			return syscall.EIO
		case Stale:
			return syscall.ESTALE
		case RO:
			if op != reading {
				return syscall.EROFS
			}
		case NoSpace:
			if op == writing {
				return syscall.ENOSPC
			}
		default: // ok, or only slow
		}
		if f.delay == 0 {
			return 0
		}
		timer := time.NewTimer(f.delay)
		changed := g.wait(f, timer.C)
		timer.Stop()
		switch {
		case !changed:
			return 0
		case f.aborted:
			return syscall.EIO
		}
	}
}

// full says whether there is no space left now.
func (g *gate) full() bool {
	mode, _ := g.state()
	return mode == NoSpace
}

// wait returns true when the fault is over, false when the time is.
func (g *gate) wait(f *fault, timeout <-chan time.Time) bool {
	g.count(1)
	defer g.count(-1)
	select {
	case <-f.over:
		return true
	case <-timeout:
		return false
	}
}

func (g *gate) count(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held += n
}

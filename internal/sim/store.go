package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/storagebeat"
)

// StoreFault is what is wrong with a machine's way to a store.
type StoreFault string

// The faults of a store.
const (
	StoreHangs StoreFault = "hangs"     // nothing is answered; what was asked happens when it ends
	StoreFails StoreFault = "fails"     // everything is refused at once
	StoreSlow  StoreFault = "is slow"   // answers take a second and a half
	StoreLags  StoreFault = "times out" // answers take longer than anybody waits; writes land all the same
	StoreTears StoreFault = "tears"     // every other read shows half of a record
	// StoreReadOnly refuses writes.
	StoreReadOnly StoreFault = "is read-only"
)

// times of a store that answers.
const (
	storeTakes = 3 * time.Millisecond
	storeSlow  = 1500 * time.Millisecond
	storeLags  = 2500 * time.Millisecond
)

type beatKey struct {
	host   haven.HostID
	writer storagebeat.Writer
}

// store is one place for beats, shared by all machines.
type store struct {
	c    *Cluster
	name string

	mu       sync.Mutex
	identity storagebeat.Identity
	records  map[beatKey][]byte
	pills    map[haven.HostID][]byte
	faults   map[haven.HostID]StoreFault
	changed  chan struct{} // closed when the faults change
	late     []func()      // writes that wait in a hung store
	reads    int
}

func newStore(c *Cluster, n int) *store {
	s := &store{
		c: c, name: fmt.Sprintf("store%d", n+1), records: map[beatKey][]byte{}, pills: map[haven.HostID][]byte{}, faults: map[haven.HostID]StoreFault{},
		changed: make(chan struct{}),
	}
	s.identity.ID[0], s.identity.ID[15], s.identity.Cluster = 1, byte(n+1), clusterName
	return s
}

// set changes a machine's way to the store; no fault mends it.
func (s *store) set(host haven.HostID, f StoreFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faults[host] == f {
		return
	}
	s.faults[host] = f
	close(s.changed)
	s.changed = make(chan struct{})
	if f != StoreHangs {
		for _, land := range s.late {
			land()
		}
		s.late = nil
	}
}

func (s *store) fault(host haven.HostID) StoreFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults[host]
}

// works says whether beats of the host land, and are read by it.
func (s *store) works(host haven.HostID) bool {
	f := s.fault(host)
	return f == "" || f == StoreSlow
}

// device is a store as one process reaches it.
type device struct {
	s *store
	l *life
}

var errIO = errors.New("input/output error")

// enter waits for the store. It returns the fault that is left for the caller
// to deal with.
func (d device) enter(ctx context.Context) (StoreFault, error) {
	for {
		if err := d.l.gate(ctx); err != nil {
			return "", err
		}
		d.s.mu.Lock()
		f, changed := d.s.faults[d.l.h.ID], d.s.changed
		d.s.mu.Unlock()
		switch f {
		case StoreHangs:
			select {
			case <-changed:
				continue
			case <-d.l.gone:
				return f, errGone
			case <-ctx.Done():
				return f, fmt.Errorf("%w: %w", storagebeat.ErrTimeout, ctx.Err())
			}
		case StoreFails:
			return f, d.slow(ctx, storeTakes, errIO)
		case StoreSlow:
			return f, d.slow(ctx, storeSlow, nil)
		case StoreLags:
			return f, d.slow(ctx, storeLags, nil)
		default:
			return f, d.slow(ctx, storeTakes, nil)
		}
	}
}

func (d device) slow(ctx context.Context, takes time.Duration, then error) error {
	err := d.l.pass(ctx, takes)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: %w", storagebeat.ErrTimeout, err)
	}
	if err == nil {
		err = then
	}
	return err
}

// ReadAll reads every record.
func (d device) ReadAll(ctx context.Context) (storagebeat.Contents, error) {
	f, err := d.enter(ctx)
	if err != nil {
		return storagebeat.Contents{}, err
	}
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	d.s.reads++
	c := storagebeat.Contents{Identity: d.s.identity, Pills: d.s.readPills(f == StoreTears && d.s.reads%2 == 0)}
	for k, data := range d.s.records {
		data = slices.Clone(data)
		if f == StoreTears && d.s.reads%2 == 0 {
			clear(data[len(data)/2:])
		}
		c.Beats = append(c.Beats, storagebeat.RawBeat{Host: k.host, Writer: k.writer, Data: data})
	}
	return c, nil
}

// Write writes one record. One that was given up may still land.
func (d device) Write(ctx context.Context, b storagebeat.RawBeat) error {
	if d.l.dead() {
		return errGone
	}
	data := slices.Clone(b.Data)
	f, err := d.enter(ctx)
	if err == nil && f == StoreReadOnly {
		err = errIO
	}
	land := func() { d.s.records[beatKey{b.Host, b.Writer}] = data }
	switch {
	case err == nil:
		d.s.mu.Lock()
		defer d.s.mu.Unlock()
		land()
	case f == StoreHangs && !d.l.dead():
		// It waits in the kernel, which lives as long as this boot does.
		d.s.mu.Lock()
		defer d.s.mu.Unlock()
		if len(d.s.late) < 64 {
			d.s.late = append(d.s.late, func() {
				if d.l.h.bootIs(d.l.boot) {
					land()
				}
			})
		}
	case f == StoreLags && errors.Is(err, storagebeat.ErrTimeout):
		d.s.c.net.After(storeLags, func() {
			d.s.mu.Lock()
			defer d.s.mu.Unlock()
			land()
		})
	}
	return err
}

// diskProbe reads VM disks, which are on the first store.
type diskProbe struct{ d device }

func (p diskProbe) ReadProbe(ctx context.Context, _ string) error {
	_, err := p.d.enter(ctx)
	return err
}

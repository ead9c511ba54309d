package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/diskwatch"
)

// Disks tells of the disks of VMs, as this host sees them.
type Disks interface {
	// Written lists the places that a VM may write to, by its definition.
	Written(xml []byte) ([]diskwatch.Disk, error)
	// Stat looks at files without opening them. It ends with its context, whatever
	// the storage does, and returns one answer for each path, in order.
	Stat(ctx context.Context, paths []string) []diskwatch.Found
	// Rest is called when no look is due for a while.
	Rest()
}

// Bounds of the watch on the disks of suspects.
const (
	diskPace   = time.Second      // from one turn of readings to the next
	diskTurn   = 8 * time.Second  // a turn may take this long; what was not read by then is unknown
	diskGap    = 10 * time.Second // readings further apart are not compared
	diskKept   = time.Minute      // a watch that no master asks about ends after this
	maxWatched = 8                // hosts at a time
)

// diskWatches are the suspects whose disks this agent looks at for a master. What
// was read is kept between two questions, and when the master changes.
type diskWatches struct {
	cfg  diskwatch.Config
	kick chan struct{}

	mu    sync.Mutex
	all   map[haven.HostID]*diskWatch
	tired bool // there was a watch since the last rest
}

type diskWatch struct {
	tracker *diskwatch.Tracker
	asked   time.Time
	begun   time.Time // of the last turn
	busy    bool      // a turn is under way
}

func newDiskWatches(idle time.Duration, repeats int) *diskWatches {
	return &diskWatches{
		cfg: diskwatch.Config{Idle: idle, Repeats: repeats, Gap: diskGap}, kick: make(chan struct{}, 1), all: map[haven.HostID]*diskWatch{},
	}
}

// ask says what the disks of a suspect are, and returns what is known of them at
// now, an instant that counts from the agent's origin.
func (w *diskWatches) ask(host haven.HostID, disks []diskwatch.Disk, partial bool, at time.Time, now time.Duration) (diskwatch.Sight, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	watch := w.all[host]
	if watch == nil {
		if len(w.all) >= maxWatched {
			return diskwatch.Sight{}, fmt.Errorf("watch disks of %s: %d hosts are watched already: %w", host, len(w.all), haven.ErrUnavailable)
		}
		watch = &diskWatch{tracker: diskwatch.NewTracker(w.cfg)}
		w.all[host] = watch
		select {
		case w.kick <- struct{}{}:
		default:
		}
	}
	watch.asked = at
	watch.tracker.Watch(disks, partial)
	return watch.tracker.Look(now), nil
}

// due forgets what nobody asks about any more, and takes the watches whose next
// turn is due. It says when the last one has just ended.
func (w *diskWatches) due(now time.Time) (turns map[haven.HostID][]string, over bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	turns = map[haven.HostID][]string{}
	for host, watch := range w.all {
		switch {
		case watch.busy:
		case now.Sub(watch.asked) > diskKept:
			delete(w.all, host)
		case watch.begun.IsZero() || now.Sub(watch.begun) >= diskPace:
			watch.begun, watch.busy = now, true
			turns[host] = watch.tracker.Paths()
		}
	}
	over = w.tired && len(w.all) == 0
	w.tired = len(w.all) > 0
	return turns, over
}

// take takes the readings of a turn in.
func (w *diskWatches) take(host haven.HostID, readings []diskwatch.Reading) {
	w.mu.Lock()
	defer w.mu.Unlock()
	watch := w.all[host]
	watch.busy = false // One that is busy is not forgotten.
	for _, r := range readings {
		watch.tracker.Read(r)
	}
}

// watchDisks reads the disks of suspects, one turn at a time for each. A turn that
// hangs holds nobody else up.
func (a *Agent) watchDisks(ctx context.Context) {
	var turns sync.WaitGroup
	defer turns.Wait()
	tick := time.NewTimer(diskPace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.disks.kick:
		case <-tick.C:
			tick.Reset(diskPace)
		}
		due, over := a.disks.due(time.Now())
		if over {
			a.d.Disks.Rest()
		}
		for host, paths := range due {
			turns.Go(func() { a.disks.take(host, a.readDisks(ctx, paths)) })
		}
	}
}

func (a *Agent) readDisks(ctx context.Context, paths []string) []diskwatch.Reading {
	ctx, cancel := context.WithTimeout(ctx, diskTurn)
	defer cancel()
	readings := make([]diskwatch.Reading, 0, len(paths))
	for _, f := range a.d.Disks.Stat(ctx, paths) {
		r := diskwatch.Reading{Path: f.Path, Started: a.at(f.Started), Ended: a.at(f.Ended), Attr: f.Attr}
		if f.Err != nil {
			r.Err = f.Err.Error()
		}
		readings = append(readings, r)
	}
	return readings
}

// DiskActivity says whether a suspect's VMs write to their disks, as seen from
// here. Only who leads is told: the paths are the caller's, and must not be a way
// to look around on this host.
func (a *Agent) DiskActivity(_ context.Context, from haven.HostID, q client.DiskRequest) (client.DiskAnswer, error) {
	if _, configured := a.cfg.Host(q.Host); !configured || q.Host == a.d.Host {
		return client.DiskAnswer{}, fmt.Errorf("disks of %s: not another configured host: %w", q.Host, haven.ErrNotFound)
	}
	if a.d.Disks == nil || a.d.Hypervisor == nil {
		return client.DiskAnswer{}, fmt.Errorf("disks of %s: this host sees none: %w", q.Host, haven.ErrNotFound)
	}
	master, _ := a.master()
	if err := leads(from, master, q.Term, a.executor.Highest()); err != nil {
		return client.DiskAnswer{}, fmt.Errorf("disks of %s: %w", q.Host, err)
	}
	return a.diskActivity(q)
}

// leads checks that who asks is the master that this agent knows, in a term that
// is not over.
func leads(from, master haven.HostID, term, highest haven.Term) error {
	switch {
	case from == "" || from != master:
		return fmt.Errorf("asked by %q, and the master that this agent knows is %q: %w", from, master, haven.ErrNotMaster)
	case term.Older(highest):
		return fmt.Errorf("%w: %s, %s was seen", haven.ErrStaleTerm, term, highest)
	}
	return nil
}

// diskActivity answers whoever may ask.
func (a *Agent) diskActivity(q client.DiskRequest) (client.DiskAnswer, error) {
	disks := make([]diskwatch.Disk, 0, len(q.Disks))
	for _, d := range q.Disks {
		disks = append(disks, diskwatch.Disk(d))
	}
	if err := diskwatch.CheckList(disks); err != nil {
		return client.DiskAnswer{}, badRequest(err)
	}
	at := time.Now()
	now := a.at(at)
	s, err := a.disks.ask(q.Host, disks, q.Partial, at, now)
	if err != nil {
		return client.DiskAnswer{}, err
	}
	return client.DiskAnswer{
		Active: s.Active, Age: client.MillisOf(now - s.At), Quiet: client.Millis(s.Quiet / time.Millisecond),
		Span: client.Millis(s.Span / time.Millisecond), Seen: s.Seen, Why: s.Why,
	}, nil
}

// listDisks lists the disks of the VMs that a host owns by the ledger and that no
// other host has. It unpacks and reads definitions, and belongs in a goroutine of
// its own.
func (a *Agent) listDisks(host haven.HostID) (disks []client.WatchedDisk, partial bool) {
	vms := a.ownedBy(host)
	elsewhere := a.runElsewhere(host)
	listed := map[haven.VMID]bool{}
	add := func(d client.WatchedDisk) {
		if len(disks) < diskwatch.MaxDisks {
			disks = append(disks, d)
		} else {
			partial = true
		}
	}
	for _, vm := range vms {
		listed[vm.id] = true
		if at := elsewhere[vm.id]; at != "" {
			add(client.WatchedDisk{VM: vm.id, Blind: fmt.Sprintf("host %s says that it has this VM", at)})
			continue
		}
		for _, d := range a.diskEvidence.written(a.d.Disks, vm) {
			add(client.WatchedDisk(d))
		}
	}
	// What ran there when it last reported and is not in the ledger writes, too,
	// and nobody here knows where.
	if rep, _ := a.ev.view(host); rep != nil {
		for _, info := range rep.inventory.VMs {
			if info.State.Present() && !listed[info.ID] && elsewhere[info.ID] == "" {
				add(client.WatchedDisk{VM: info.ID, Blind: "it ran there, and by the ledger it is not that host's to run"})
			}
		}
	}
	slices.SortStableFunc(disks, func(x, y client.WatchedDisk) int { return cmp.Compare(x.VM, y.VM) })
	return disks, partial
}

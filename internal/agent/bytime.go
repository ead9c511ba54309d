package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/obs"
	"github.com/haven-ha/haven/internal/recovery"
	"github.com/haven-ha/haven/storagebeat"
)

// dogs is what a master keeps about the watchdogs of hosts: what it answered, and
// what was asked of the ledger. It is bounded by the number of hosts.
type dogs struct {
	mu     sync.Mutex
	reign  *mastery
	acked  map[haven.HostID]dogAck
	doubts map[haven.HostID]bool
	turns  map[haven.HostID]chan struct{}
	// refused is what the ledger did not take, so that it is not asked again with every
	// report: each question is an entry in the log.
	refused map[haven.HostID]dogRefusal
}

type dogRefusal struct {
	boot  haven.BootID
	asked haven.Watchdog
	at    time.Time
}

// dogAck is when a host's report was answered last, or at least taken.
type dogAck struct {
	boot haven.BootID
	at   time.Time
}

func newDogs() *dogs {
	return &dogs{acked: map[haven.HostID]dogAck{}, doubts: map[haven.HostID]bool{}, turns: map[haven.HostID]chan struct{}{}, refused: map[haven.HostID]dogRefusal{}}
}

// answered notes that a host may have life from this moment: before the answer
// that gives it leaves.
func (d *dogs) answered(host haven.HostID, boot haven.BootID, at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if old := d.acked[host]; old.boot != boot || at.After(old.at) {
		d.acked[host] = dogAck{boot, at}
	}
}

func (d *dogs) lastAnswer(host haven.HostID, boot haven.BootID) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	if a := d.acked[host]; a.boot == boot {
		return a.at
	}
	return time.Time{}
}

// turn is held by the one report of a host about whose watchdog the ledger is
// being asked.
func (d *dogs) turn(host haven.HostID) chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.turns[host] == nil {
		d.turns[host] = make(chan struct{}, 1)
	}
	return d.turns[host]
}

// doubt says whether a declaration of the host may be in the log of this reign
// that is not in the ledger yet.
func (d *dogs) doubt(m *mastery, host haven.HostID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.reign != m { // What earlier terms left in the log was applied before this reign.
		d.reign = m
		clear(d.doubts)
	}
	return d.doubts[host]
}

func (d *dogs) settle(host haven.HostID, doubt bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.doubts[host] = doubt
}

// refuses says whether the ledger refused a host just this lately.
func (d *dogs) refuses(r *client.Report, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	no, ok := d.refused[r.Host]
	return ok && no.boot == r.Boot && no.asked.Equal(r.Watchdog) && now.Sub(no.at) < rejectionFor
}

func (d *dogs) refuse(r *client.Report, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refused[r.Host] = dogRefusal{r.Boot, r.Watchdog, now}
}

// errOutdated is returned for a report that a newer one overtook.
var errOutdated = fmt.Errorf("a newer report came before this one: %w", haven.ErrUnavailable)

// declare brings what a report says of its host's watchdog into the ledger. When
// it returns without an error, the ledger has it, or something newer, and
// nothing older can follow: the host may act on the ledger's word (P2).
func (a *Agent) declare(ctx context.Context, m *mastery, r *client.Report) error {
	turn := a.dogs.turn(r.Host)
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return fmt.Errorf("declare the watchdog of %s: %w", r.Host, ctx.Err())
	}
	if a.ev.outdated(r) { // It waited too long.
		return errOutdated
	}
	if a.reign.Load() != m {
		return fmt.Errorf("declare the watchdog of %s: %w", r.Host, haven.ErrNotMaster)
	}
	same, equal := false, false
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		h := s.Hosts[r.Host]
		equal = h != nil && h.Boot == r.Boot && h.Watchdog.Equal(r.Watchdog)
		// What the host asked for in between may be on its way yet: then the ledger must
		// know that this is later.
		same = equal && h.WatchdogAsked >= r.WatchdogSince
	})
	if same && !a.dogs.doubt(m, r.Host) {
		return nil
	}
	if !equal && a.dogs.refuses(r, time.Now()) {
		return nil // The answer shows that the ledger has something else.
	}
	a.dogs.settle(r.Host, true)
	words, err := a.commit(ctx, ledger.DeclareWatchdog{
		Host: r.Host, Boot: r.Boot, State: r.State, Incarnation: r.Incarnation, Number: r.Number, Watchdog: r.Watchdog,
	})
	if err != nil {
		return fmt.Errorf("declare the watchdog of %s: %w", r.Host, err)
	}
	a.dogs.settle(r.Host, false)
	if words[0] != nil {
		a.dogs.refuse(r, time.Now())
		a.log.Log(ctx, a.quiet.level("watchdog/"+string(r.Host)), "the ledger does not take what a host promises about its watchdog", "host", r.Host, "why", words[0])
	} else {
		a.log.Info("watchdog declared", "host", r.Host, "boot", r.Boot, "bound", r.Watchdog.Bound, "stores", r.Watchdog.Stores)
	}
	return nil
}

// verifiedAge is how long ago this agent, for certain, led in a term; negative when
// that is not known. It is measured from the sending of what was answered.
func (a *Agent) verifiedAge(term haven.Term) client.Millis {
	v, ok := a.election.VerifiedWithin(time.Hour)
	if !ok || v.Term != term.Term {
		return -1
	}
	return client.MillisOf(max(0, v.Age(time.Now())))
}

// dogCounts counts the watchdogs of all hosts, for one mastery. It belongs to the
// judge loop.
type dogCounts struct {
	reign  *mastery
	counts map[haven.HostID]*fencing.ByTime
}

// countDogs counts what follows from the watchdogs that are declared. Only a
// master counts. The stores were looked at after the given moment.
func (a *Agent) countDogs(now time.Time, snaps []storagebeat.Snapshot) (*mastery, map[haven.HostID]fencing.TimeCount) {
	m := a.reign.Load()
	if m != a.dogCounts.reign {
		a.dogCounts = dogCounts{m, map[haven.HostID]*fencing.ByTime{}}
	}
	if m == nil {
		return nil, nil
	}
	ins := map[haven.HostID]fencing.TimeInput{}
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		for id, h := range s.Hosts {
			if h.Watchdog.Armed() && !h.ProvedDead() && id != a.d.Host {
				ins[id] = fencing.TimeInput{Now: now, Boot: h.Boot, Promised: h.Watchdog, ReadTimeout: a.cfg.Heartbeat.IOTimeout}
			}
		}
	})
	told := a.ev.told(now.Add(-a.cfg.Detection.Silence))
	out := make(map[haven.HostID]fencing.TimeCount, len(ins))
	for id, in := range ins {
		in.Acked = m.readyAt
		if at := a.dogs.lastAnswer(id, in.Boot); at.After(in.Acked) {
			in.Acked = at
		}
		in.Sights = append(a.ownSights(id, now, time.Now(), snaps), toldSights(id, told)...)
		if a.dogCounts.counts[id] == nil {
			a.dogCounts.counts[id] = &fencing.ByTime{}
		}
		out[id] = a.dogCounts.counts[id].Step(in)
	}
	for id := range a.dogCounts.counts {
		if _, armed := ins[id]; !armed {
			delete(a.dogCounts.counts, id)
		}
	}
	return m, out
}

// ownSights are a host's records as this agent reads them. The snapshots were
// taken between two moments.
func (a *Agent) ownSights(id haven.HostID, before, after time.Time, snaps []storagebeat.Snapshot) []fencing.BeatSight {
	var all []fencing.BeatSight
	for _, s := range snaps {
		v := s.Host(id).Agent
		if !v.Seen {
			continue
		}
		all = append(all, fencing.BeatSight{
			Reader: a.d.Host, Store: storeID(s), Name: s.Store, Vouched: vouched(s, v), Moving: v.Moving == haven.Yes, Changed: v.Moving != haven.Unknown,
			Boot: v.Beat.Boot, Watchdog: v.Beat.Watchdog, ReadAt: before.Add(-s.Health.ReadAge), ChangedAt: after.Add(-v.Age),
		})
	}
	return all
}

// toldSights are a host's records as neighbours read them that were asked about it.
func toldSights(id haven.HostID, told []told) []fencing.BeatSight {
	var all []fencing.BeatSight
	for _, t := range told {
		for _, b := range t.beats {
			if b.Host != id || b.Helper || b.Boot == "" || t.observer == id {
				continue
			}
			s := fencing.BeatSight{
				Reader: t.observer, Store: b.StoreID, Name: b.Store, Vouched: b.Vouched, Moving: b.Moving == haven.Yes, Changed: b.Moving != haven.Unknown,
				Boot: b.Boot, Watchdog: b.Watchdog.Duration(),
			}
			all = append(all, s.Told(t.asked, t.at, b.ReadAge.Duration(), b.ChangedAge.Duration()))
		}
	}
	return all
}

// storeID is the identity of the store that a snapshot is of; empty when it is
// not known.
func storeID(s storagebeat.Snapshot) string {
	if s.Health.ID.IsZero() {
		return ""
	}
	return s.Health.ID.String()
}

// vouched says whether a record was read whole, in a read in which this reader
// found its own beat as well.
func vouched(s storagebeat.Snapshot, v storagebeat.View) bool {
	return v.Whole && s.Health.OwnReadBack == haven.Yes && !s.Health.ID.IsZero()
}

// addWatchdog tells the machine what follows from a host's watchdog. A proof
// stands on the boot that was judged.
func (a *Agent) addWatchdog(v *recovery.HostView, host haven.HostID, now time.Time, c fencing.TimeCount) {
	v.Watchdog = c.Why
	if c.State == fencing.TimeProved && c.Boot == v.Boot {
		v.Fired = &haven.Proof{
			Kind: haven.ProofWatchdog, Host: host, Boot: c.Boot, By: string(a.d.Host), At: now, Detail: c.Why, Evidence: v.Evidence,
		}
	}
}

// hostWatchdog shows what a host promises about its watchdog. The count is of
// interest when the host is silent.
func (a *Agent) hostWatchdog(j *judged, h *ledger.Host) *client.HostWatchdog {
	if !h.Watchdog.Armed() {
		return nil
	}
	v := &client.HostWatchdog{Bound: client.MillisOf(h.Watchdog.Bound), State: "armed", Stores: a.storeNames(h.Watchdog.Stores)}
	jh, known := j.host(h.ID)
	c, counted := fencing.TimeCount{}, false
	if j != nil {
		c, counted = j.dogs[h.ID]
	}
	if known && counted && jh.Suspected && c.Boot == h.Boot {
		v.State, v.Why, v.Left = string(c.State), c.Why, client.MillisOf(c.Left)
	}
	return v
}

// storeNames names stores as people do, where this agent knows how.
func (a *Agent) storeNames(ids []string) []string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id
		for _, s := range a.snapshots() {
			if storeID(s) == id {
				names[i] = s.Store
			}
		}
	}
	return names
}

// countArmed shows, while this agent is the master, which hosts' watchdogs the ledger
// holds armed: by them a host could be proved dead without its fence device.
func (a *Agent) countArmed(m *obs.Metrics) {
	m.GaugesFunc("host_watchdog_armed", "1 while the ledger holds a host's watchdog armed in its present boot, told by the master.", []string{"host"}, func(emit func(float64, ...string)) {
		if !a.isMaster() {
			return
		}
		a.ledger.View(func(s *ledger.State, _ ledger.Position) {
			for _, id := range a.cfg.Hypervisors() {
				armed := 0.0
				if h := s.Hosts[id]; h != nil && h.Watchdog.Armed() && !h.ProvedDead() {
					armed = 1
				}
				emit(armed, string(id))
			}
		})
	})
}

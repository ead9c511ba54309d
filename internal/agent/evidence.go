package agent

import (
	"slices"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/internal/client"
)

// evidence holds what others told this agent and what it found out by asking.
// It is bounded by the number of hosts.
type evidence struct {
	mu      sync.Mutex
	reports map[haven.HostID]*heard
	probes  map[haven.HostID][]detector.Probe
	// beats are what neighbours that were asked about a suspect read of its beats.
	beats map[haven.HostID]map[haven.HostID]told
	// rejections are what the ledger said of identities that it does not take.
	rejections map[haven.HostID]rejection
	// acked is when the master last answered this agent, and who it was.
	acked ackHeard
}

// heard is the latest report of one host.
type heard struct {
	client.Report
	at time.Time
	// inventory is the latest one, which not every report repeats.
	inventory    haven.Inventory
	inventorySHA string
}

type ackHeard struct {
	from haven.HostID
	boot haven.BootID
	at   time.Time
	// leaveRunning says why this host is to stop no VMs should it be isolated.
	leaveRunning string
}

// told is what a neighbour read of a suspect's beats when it was asked.
type told struct {
	observer haven.HostID
	beats    []client.BeatView
	asked    time.Time
	at       time.Time
}

type rejection struct {
	id  client.Identity
	why error
	at  time.Time
}

// rejectionFor is how long the ledger is not asked again about an identity that
// it rejected: each question is an entry in the log.
const rejectionFor = 5 * time.Second

// maxProbes bounds the probes kept about one host: some rounds of the three
// kinds by every neighbour that is asked.
const maxProbes = 64

func newEvidence() *evidence {
	return &evidence{
		reports: map[haven.HostID]*heard{}, probes: map[haven.HostID][]detector.Probe{}, rejections: map[haven.HostID]rejection{},
		beats: map[haven.HostID]map[haven.HostID]told{},
	}
}

// report takes in a host's report. It says whether the host's inventory is at
// hand, and whether the report tells more than that the host still lives.
func (e *evidence) report(r *client.Report, at time.Time) (known, news bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := &heard{Report: *r, at: at}
	old := e.reports[r.Host]
	if old != nil && old.Identity == r.Identity && r.Number < old.Number {
		return old.inventorySHA == r.InventorySHA, false // see outdated
	}
	news = old == nil || old.Identity != r.Identity || r.Inventory != nil || old.Leaving != r.Leaving ||
		old.Refuses != r.Refuses || !slices.Equal(old.Orders, r.Orders) || !slices.Equal(old.Released, r.Released)
	if old != nil && old.Boot == r.Boot && old.inventorySHA == r.InventorySHA {
		h.inventory, h.inventorySHA = old.inventory, old.inventorySHA
	}
	if r.Inventory != nil {
		h.inventory, h.inventorySHA = *r.Inventory, r.InventorySHA
	}
	h.Inventory = nil
	e.reports[r.Host] = h
	known = h.inventorySHA == r.InventorySHA
	return known, news || !known
}

// outdated says whether a newer report of the same life of an agent came before.
// One that was given up by its sender may still arrive, after what it says was
// taken back.
func (e *evidence) outdated(r *client.Report) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.reports[r.Host]
	return old != nil && old.Identity == r.Identity && r.Number < old.Number
}

// rejected notes that the ledger does not take a host as it describes itself.
func (e *evidence) rejected(id client.Identity, why error, at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rejections[id.Host] = rejection{id, why, at}
}

// lastRejection returns why the ledger rejected just this identity lately.
func (e *evidence) lastRejection(id client.Identity, now time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r, ok := e.rejections[id.Host]; ok && r.id == id && now.Sub(r.at) < rejectionFor {
		return r.why
	}
	return nil
}

// forgetReports drops all reports: they were sent to a master that this agent
// is not any more.
func (e *evidence) forgetReports() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reports = map[haven.HostID]*heard{}
	clear(e.rejections)
	clear(e.beats)
}

func (e *evidence) ack(heard ackHeard) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.acked = heard
}

func (e *evidence) probe(host haven.HostID, ps ...detector.Probe) {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := append(e.probes[host], ps...)
	if len(all) > maxProbes {
		all = slices.Clone(all[len(all)-maxProbes:])
	}
	e.probes[host] = all
}

// tell keeps what a neighbour read of a suspect's beats: the latest of each. Only
// words about the suspect count.
func (e *evidence) tell(suspect haven.HostID, t told) {
	t.beats = slices.DeleteFunc(t.beats, func(b client.BeatView) bool { return b.Host != suspect })
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.beats[suspect] == nil {
		e.beats[suspect] = map[haven.HostID]told{}
	}
	e.beats[suspect][t.observer] = t
}

// told returns what neighbours said about beats since the given moment, and
// forgets what is older.
func (e *evidence) told(since time.Time) (all []told) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for suspect, by := range e.beats {
		for observer, t := range by {
			if t.at.Before(since) {
				delete(by, observer)
			} else {
				all = append(all, t)
			}
		}
		if len(by) == 0 {
			delete(e.beats, suspect)
		}
	}
	slices.SortFunc(all, func(x, y told) int { return x.at.Compare(y.at) })
	return all
}

// view copies what is known of one host.
func (e *evidence) view(host haven.HostID) (*heard, []detector.Probe) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.reports[host], slices.Clone(e.probes[host])
}

func (e *evidence) lastAck() ackHeard {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.acked
}

// answered lists the hosts that answered a probe of one observer that ended
// since the given instant.
func (e *evidence) answered(observer haven.HostID, since time.Duration) []haven.HostID {
	e.mu.Lock()
	defer e.mu.Unlock()
	var ids []haven.HostID
	for id, probes := range e.probes {
		if slices.ContainsFunc(probes, func(p detector.Probe) bool {
			return p.Observer == observer && p.Result == haven.Yes && p.Finished >= since
		}) {
			ids = append(ids, id)
		}
	}
	return ids
}

// connected lists the hosts that reported since the given moment.
func (e *evidence) connected(since time.Time) []haven.HostID {
	e.mu.Lock()
	defer e.mu.Unlock()
	var ids []haven.HostID
	for id, h := range e.reports {
		if h.at.After(since) && h.Leaving == haven.LeaveNone {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

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
}

// maxProbes bounds the probes kept about one host: some rounds of the three
// kinds by every neighbour that is asked.
const maxProbes = 64

func newEvidence() *evidence {
	return &evidence{reports: map[haven.HostID]*heard{}, probes: map[haven.HostID][]detector.Probe{}}
}

// report takes in a host's report, and says whether its inventory is at hand.
func (e *evidence) report(r *client.Report, at time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := &heard{Report: *r, at: at}
	if old := e.reports[r.Host]; old != nil && old.Boot == r.Boot && old.inventorySHA == r.InventorySHA {
		h.inventory, h.inventorySHA = old.inventory, old.inventorySHA
	}
	if r.Inventory != nil {
		h.inventory, h.inventorySHA = *r.Inventory, r.InventorySHA
	}
	h.Inventory = nil
	e.reports[r.Host] = h
	return h.inventorySHA == r.InventorySHA
}

// forgetReports drops all reports: they were sent to a master that this agent
// is not any more.
func (e *evidence) forgetReports() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reports = map[haven.HostID]*heard{}
}

func (e *evidence) ack(from haven.HostID, boot haven.BootID, at time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.acked = ackHeard{from, boot, at}
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

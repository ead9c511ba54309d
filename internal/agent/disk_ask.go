package agent

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/diskwatch"
	"github.com/haven-ha/haven/internal/ledger"
)

// diskNeighbours is how many neighbours look at a suspect's disks, beside the
// master itself. They stay the same as long as they see anything: what counts is
// the change between two readings of one observer.
const diskNeighbours = 2

// diskBlindAfter is how long a neighbour may see none of the disks before another
// one is asked in its place.
const diskBlindAfter = 5 * time.Second

// diskEvidence is what this agent, as master, was told of suspects' disks. It is
// bounded by the number of hosts, and what it knows of definitions by the VMs of
// the suspects.
type diskEvidence struct {
	mu    sync.Mutex
	hosts map[haven.HostID]*diskSuspect
	// lists are what VMs write to, by the digests of their definitions.
	lists map[string][]diskwatch.Disk
}

// diskSuspect is one host whose disks are asked about.
type diskSuspect struct {
	busy      bool
	asked     time.Time
	observers map[haven.HostID]*diskObserver
}

type diskObserver struct {
	chosen time.Time
	saw    time.Time // when it last said that it sees a file
	disk   detector.Disk
	told   bool
}

func newDiskEvidence() *diskEvidence {
	return &diskEvidence{hosts: map[haven.HostID]*diskSuspect{}, lists: map[string][]diskwatch.Disk{}}
}

// begin says whether a suspect may be asked about now: one question at a time.
func (e *diskEvidence) begin(host haven.HostID, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, s := range e.hosts {
		if !s.busy && now.Sub(s.asked) > diskKept {
			delete(e.hosts, id)
		}
	}
	if len(e.hosts) == 0 {
		clear(e.lists)
	}
	s := e.hosts[host]
	if s == nil {
		s = &diskSuspect{observers: map[haven.HostID]*diskObserver{}}
		e.hosts[host] = s
	}
	if s.busy {
		return false
	}
	s.busy, s.asked = true, now
	return true
}

func (e *diskEvidence) end(host haven.HostID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hosts[host].busy = false // One that is busy is not forgotten.
}

// observers picks who is asked: those that were asked before and see something,
// and others of the candidates, which come best first.
func (e *diskEvidence) observers(host haven.HostID, candidates []haven.HostID, now time.Time) []haven.HostID {
	e.mu.Lock()
	defer e.mu.Unlock()
	known := e.hosts[host].observers
	var chosen, blind []haven.HostID
	for id, o := range known {
		if !slices.Contains(candidates, id) {
			continue
		}
		if now.Sub(o.chosen) < diskBlindAfter || now.Sub(o.saw) < diskBlindAfter {
			chosen = append(chosen, id)
		} else {
			blind = append(blind, id)
		}
	}
	slices.Sort(chosen)
	for _, id := range append(slices.DeleteFunc(slices.Clone(candidates), func(id haven.HostID) bool { return known[id] != nil }), blind...) {
		if len(chosen) >= diskNeighbours {
			break
		}
		if o := known[id]; o != nil {
			o.chosen = now
		} else {
			known[id] = &diskObserver{chosen: now}
		}
		chosen = append(chosen, id)
	}
	return chosen
}

// told notes an observer's answer, dated by its age when it arrived.
func (e *diskEvidence) told(host, observer haven.HostID, a client.DiskAnswer, at time.Time, arrived time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	o := e.hosts[host].observers[observer]
	if o == nil { // This agent itself.
		o = &diskObserver{chosen: at}
		e.hosts[host].observers[observer] = o
	}
	if a.Seen > 0 {
		o.saw = at
	}
	o.told = true
	o.disk = detector.Disk{
		Observer: observer, Active: a.Active, At: ago(arrived, max(0, a.Age.Duration())), Quiet: max(0, a.Quiet.Duration()),
		Span: a.Span.Duration(), Why: a.Why,
	}
}

// view lists what was told about a host.
func (e *diskEvidence) view(host haven.HostID) []detector.Disk {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.hosts[host]
	if s == nil {
		return nil
	}
	var disks []detector.Disk
	for _, o := range s.observers {
		if o.told {
			disks = append(disks, o.disk)
		}
	}
	slices.SortFunc(disks, func(a, b detector.Disk) int { return cmp.Compare(a.Observer, b.Observer) })
	return disks
}

// ownedVM is a VM as the ledger has it.
type ownedVM struct {
	id         haven.VMID
	definition ledger.Definition
}

// ownedBy lists the VMs that a host may run by the ledger. One that its user
// stopped writes nothing, and needs to show nothing.
func (a *Agent) ownedBy(host haven.HostID) (vms []ownedVM) {
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		for id, vm := range s.VMs {
			if vm.Owner == host && (vm.Phase == ledger.PhaseOrdered || vm.Phase == ledger.PhaseOwned && vm.Desired == ledger.DesiredRunning) {
				vms = append(vms, ownedVM{id, vm.Definition})
			}
		}
	})
	slices.SortFunc(vms, func(x, y ownedVM) int { return cmp.Compare(x.id, y.id) })
	return vms
}

// runElsewhere says which other host says that it has a VM: what is written then
// is no sign of life of its owner.
func (a *Agent) runElsewhere(host haven.HostID) map[haven.VMID]haven.HostID {
	at := map[haven.VMID]haven.HostID{}
	for _, id := range a.ev.connected(time.Now().Add(-2 * a.cfg.Detection.SuspectAfter)) {
		rep, _ := a.ev.view(id)
		if id == host || rep == nil {
			continue
		}
		for _, vm := range rep.inventory.VMs {
			if rep.inventory.Has(vm.ID) == haven.Yes {
				at[vm.ID] = id
			}
		}
	}
	return at
}

// maxLists bounds the definitions whose disks are remembered.
const maxLists = 4096

// written lists what a VM writes to. A definition that cannot be read makes the
// VM one that nobody can see (P5).
func (e *diskEvidence) written(d Disks, vm ownedVM) []diskwatch.Disk {
	e.mu.Lock()
	list, known := e.lists[vm.definition.SHA]
	e.mu.Unlock()
	if known {
		return list
	}
	xml, err := vm.definition.Unpack()
	if err == nil {
		list, err = d.Written(xml)
	}
	if err != nil {
		list = []diskwatch.Disk{{VM: vm.id, Blind: "its definition cannot be read: " + err.Error()}}
	}
	for i := range list {
		list[i].VM = vm.id
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.lists) >= maxLists {
		clear(e.lists)
	}
	e.lists[vm.definition.SHA] = list
	return list
}

// askDisks has this agent and some neighbours look at a suspect's disks. It
// returns at once.
func (a *Agent) askDisks(ctx context.Context, suspect haven.HostID) {
	if a.d.Disks == nil || !a.diskEvidence.begin(suspect, time.Now()) {
		return
	}
	a.owned.Go(func() {
		defer a.diskEvidence.end(suspect)
		q := client.DiskRequest{Host: suspect, Term: a.term()}
		q.Disks, q.Partial = a.listDisks(suspect)
		candidates := slices.DeleteFunc(a.neighbourOrder(suspect), func(id haven.HostID) bool {
			conf, _ := a.cfg.Host(id)
			return conf.Role == haven.RoleWitness
		})
		var asks sync.WaitGroup
		defer asks.Wait()
		for _, observer := range a.diskEvidence.observers(suspect, candidates, time.Now()) {
			asks.Go(func() {
				ask, cancel := context.WithTimeout(ctx, a.cfg.Detection.ProbeTimeout)
				defer cancel()
				answer, err := a.client.Disks(ask, observer, q)
				a.takeDisks(ctx, suspect, observer, answer, err)
			})
		}
		if a.d.Hypervisor != nil {
			answer, err := a.diskActivity(q)
			a.takeDisks(ctx, suspect, a.d.Host, answer, err)
		}
	})
}

// takeDisks records an observer's answer. Who did not answer leaves its last word
// to grow old.
func (a *Agent) takeDisks(ctx context.Context, suspect, observer haven.HostID, answer client.DiskAnswer, err error) {
	if err != nil {
		if ctx.Err() == nil {
			a.log.Debug("neighbour did not answer about a suspect's disks", "observer", observer, "host", suspect, "error", err)
		}
		return
	}
	at := time.Now()
	a.diskEvidence.told(suspect, observer, answer, at, a.at(at))
	a.kick()
}

// neighbourOrder lists all who could be asked about a suspect, best first and
// spread over zones.
func (a *Agent) neighbourOrder(suspect haven.HostID) []haven.HostID {
	last := a.judgement.Load()
	var candidates []neighbour
	for _, id := range a.ev.connected(time.Now().Add(-2 * a.cfg.Detection.SuspectAfter)) {
		conf, ok := a.cfg.Host(id)
		if id == suspect || id == a.d.Host || !ok {
			continue
		}
		candidates = append(candidates, neighbour{id: id, zone: conf.Zone, sound: a.isSound(last, id)})
	}
	own, _ := a.cfg.Host(a.d.Host)
	return chooseNeighbours(candidates, own.Zone, len(candidates))
}

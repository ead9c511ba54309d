package vmrestart

import (
	"cmp"
	"slices"

	"github.com/haven-ha/haven"
)

// PlanGroup is a rule that several VMs share. VMs are in one group when all
// fields are the same.
type PlanGroup struct {
	Name string
	// Apart keeps the members on different hosts, and in different zones as far
	// as that goes. Without it, they are kept together on one host.
	Apart bool
	// Strict rules are never broken: a VM rather stays without a host. Others
	// are preferences.
	Strict bool
}

// Offer is what a host said that it has, of one kind. The zero value is a host
// that said nothing, on which nothing is judged.
type Offer struct {
	Known bool
	Names []string
}

// PlanVM is a VM that wants a host.
type PlanVM struct {
	ID        haven.VMID
	Name      string
	MemoryMiB uint64
	// OverheadMiB is what the VM takes on its host beyond MemoryMiB.
	OverheadMiB uint64
	VCPUs       int
	// Priority says which VMs are placed first: one of a lower priority never takes
	// room that one of a higher one could have used. Those that are off are not planned.
	Priority haven.Priority
	// Last is the host that ran it last. Among equals it is preferred, because
	// its disks, networks and caches are known to be there.
	Last haven.HostID
	// Failed are hosts on which it failed to start, numbered in the order of the
	// last failure on each, from 1. They are used only when nothing else is left,
	// and then in turn.
	Failed map[haven.HostID]int
	// Allowed are the only hosts that may run it; empty: all.
	Allowed []haven.HostID
	// Preferred are the hosts that should run it, the best one first.
	Preferred []haven.HostID
	Groups    []PlanGroup
	// MachineType and CPUModel must be offered by the host; empty: any will do.
	MachineType, CPUModel string
	// Networks and Disks must all be offered by the host.
	Networks, Disks []string
}

// PlanHost is a host that may take VMs.
type PlanHost struct {
	ID haven.HostID
	// Refuses says why the host takes no VMs at all; empty when it does.
	Refuses string
	// FreeMiB is the memory that is neither used by running VMs, nor promised
	// to VMs under orders, nor reserved for the host itself.
	FreeMiB uint64
	// ReserveMiB is how much of FreeMiB is kept free all the same; 0 when
	// FreeMiB leaves the reserve out already.
	ReserveMiB uint64
	// CPUs is the number of the host's hardware threads; 0: not known, and the
	// ratio is not judged. VCPUs is the number of those of the VMs that run
	// there or are under orders.
	CPUs, VCPUs int
	// LoadPercent is how busy the CPUs are; 0: idle or not known. It only sorts.
	LoadPercent int
	// Zone is the room or site; hosts without one are no zone.
	Zone string
	// Starting is the number of starts in flight.
	Starting int
	// Running is the number of VMs on the host, for spreading.
	Running int
	// Groups is how many members of each group run there or are under orders.
	Groups map[PlanGroup]int
	// What the host offers.
	MachineTypes, CPUModels, Networks, Disks Offer
}

// PlanLimits bounds a plan.
type PlanLimits struct {
	// StartsPerHost is the most starts in flight on one host. A VM that would
	// be one too many waits for the next plan. Must be at least 1.
	StartsPerHost int
	// VCPURatio is the most vCPUs for each hardware thread; 0: no limit.
	VCPURatio float64
}

// Placement is the answer for one VM.
type Placement struct {
	VM   haven.VMID
	Host haven.HostID // empty: none now
	// Hold is why there is none: a Hold… word, or empty when the VM only waits
	// for starts in flight to end.
	Hold string
	// Why explains the choice, or for each host why it was not chosen (P9). It
	// speaks of reasonsGiven hosts at most and counts the others.
	Why string
}

// Plan places VMs on hosts: by priority, and large ones first, each on a host
// where it did not fail, where no preferred rule is broken, on a preferred host,
// else on its last one, else where fewest starts are in flight and most memory is
// left over, which spreads them. Strict rules are never broken. A VM that finds
// no host may push one placed before it to another host. It is deterministic and
// changes none of its arguments. Every VM gets an answer; the answers come in the
// order of the VMs.
//
// It leaves no VM out for which there is room, but as it spreads, it does not
// always find the plan that places most: docs/placement.md tells the gap.
func Plan(vms []PlanVM, hosts []PlanHost, limits PlanLimits) []Placement {
	p := newPlanner(vms, hosts, limits)
	p.run()
	return p.placed
}

// run places all VMs.
func (p *planner) run() {
	var left []int
	for _, v := range p.order {
		if p.vms[v].Priority == haven.PriorityOff {
			p.placed[v] = Placement{VM: p.vms[v].ID, Hold: haven.HoldActionNone, Why: "its restart priority is off"}
			continue
		}
		if !p.place(v) && !p.repair(v) {
			left = append(left, v)
			p.placed[v] = p.unplaced(v)
		}
	}
	if !p.repaired {
		return
	}
	// A VM that was moved may have left more room behind than was needed.
	for _, v := range left {
		if !p.place(v) {
			p.placed[v] = p.unplaced(v)
		}
	}
}

// place chooses a host for one VM and takes the room for it.
func (p *planner) place(v int) bool {
	h := p.best(v, -1, nil)
	if h < 0 {
		return false
	}
	p.settle(v, h, "")
	return true
}

// best is the host that suits a VM best, other than one and within what fits, or -1.
func (p *planner) best(v, other int, fits func(h int) bool) int {
	best := -1
	var top score
	for h := range p.hosts {
		if h == other || p.obstacle(v, h) != free || (fits != nil && !fits(h)) {
			continue
		}
		if s := p.score(v, h); best < 0 || s.better(top) {
			best, top = h, s
		}
	}
	return best
}

// loadBand is the step in which load is compared, in percent, so that noise does
// not outweigh memory.
const loadBand = 25

// score is how well a host suits a VM, in the order in which it counts.
type score struct {
	failed    int // less is better
	cramped   int // the rest of its group does not fit
	broken    int // preferred rules
	preferred int // place in the list
	zone      int // members of its keep-apart groups in the zone
	last      int
	starting  int
	load      int
	free      uint64 // more is better
	running   int
}

func (a score) better(b score) bool {
	switch {
	case a.failed != b.failed:
		return a.failed < b.failed
	case a.cramped != b.cramped:
		return a.cramped < b.cramped
	case a.broken != b.broken:
		return a.broken < b.broken
	case a.preferred != b.preferred:
		return a.preferred < b.preferred
	case a.zone != b.zone:
		return a.zone < b.zone
	case a.last != b.last:
		return a.last < b.last
	case a.starting != b.starting:
		return a.starting < b.starting
	case a.load != b.load:
		return a.load < b.load
	case a.free != b.free:
		return a.free > b.free
	}
	return a.running < b.running
}

// score judges a host with room for a VM.
func (p *planner) score(v, h int) score {
	vm, host := &p.vms[v], &p.hosts[h]
	s := score{
		failed: vm.Failed[host.ID], broken: p.broken(v, h), cramped: p.cramped(v, h), zone: p.inZone(v, h), last: 1,
		starting: host.Starting, load: max(0, host.LoadPercent) / loadBand, free: host.FreeMiB, running: host.Running,
	}
	if len(vm.Preferred) > 0 {
		if s.preferred = slices.Index(vm.Preferred, host.ID); s.preferred < 0 {
			s.preferred = len(vm.Preferred)
		}
	}
	if host.ID == vm.Last {
		s.last = 0
	}
	return s
}

const (
	// repairSteps bounds the looks at hosts and VMs that one plan spends on moving
	// VMs aside, so that a plan for a full cluster stays short.
	repairSteps = 1_500_000
	// swapSteps is what trying one change of places counts for.
	swapSteps = 25
)

// repair finds a host for a VM by moving one that was placed before it, and was
// not started yet, to another host, or by having two of them change places.
// Nobody loses its host, and nobody is moved to where it failed.
func (p *planner) repair(v int) bool {
	roomiest, open := p.roomiest()
	if !open {
		return false
	}
	p.roomy = roomiest
	for _, with := range []func(v, q, h int) bool{p.moveAside, p.swap} {
		for h := range p.hosts {
			if p.hosts[h].Refuses != "" || !p.suited(v, h) {
				continue
			}
			for _, q := range slices.Clone(p.on[h]) {
				if p.hosts[h].FreeMiB+p.need[q] < p.need[v] {
					continue
				}
				if p.steps > repairSteps {
					return false
				}
				if with(v, q, h) {
					p.repaired = true
					return true
				}
			}
		}
	}
	return false
}

// roomiest is the most memory free on a host that can begin a start now.
func (p *planner) roomiest() (mib uint64, open bool) {
	for h := range p.hosts {
		if host := &p.hosts[h]; host.Refuses == "" && host.Starting < p.limits.StartsPerHost {
			mib, open = max(mib, host.FreeMiB), true
		}
	}
	return mib, open
}

// moveAside puts v in the place of q on host h, and q elsewhere, or changes nothing.
func (p *planner) moveAside(v, q, h int) bool {
	if p.need[q] > p.roomy {
		return false
	}
	p.steps += len(p.hosts)
	p.take(q, h)
	if p.obstacle(v, h) != free {
		p.put(q, h)
		return false
	}
	p.put(v, h)
	to := p.best(q, h, func(g int) bool { return !p.worse(q, h, g) })
	p.take(v, h)
	if to < 0 {
		p.put(q, h)
		return false
	}
	p.settle(v, h, "in place of "+p.name(q))
	p.settle(q, to, "makes room for "+p.name(v))
	return true
}

// swap has q on host h change places with a VM of another host, so that v fits
// on h, or changes nothing.
func (p *planner) swap(v, q, h int) bool {
	for g := range p.hosts {
		p.steps += 1 + len(p.on[g])
		if g == h || p.worse(q, h, g) || !p.suited(q, g) {
			continue
		}
		for _, r := range slices.Clone(p.on[g]) {
			if p.hosts[h].FreeMiB+p.need[q] < p.need[v]+p.need[r] || p.hosts[g].FreeMiB+p.need[r] < p.need[q] || p.worse(r, g, h) {
				continue
			}
			if p.steps += swapSteps; p.steps > repairSteps {
				return false
			}
			p.take(q, h)
			p.take(r, g)
			if p.inTurn([3]int{q, r, v}, [3]int{g, h, h}) {
				p.take(v, h)
				p.take(r, h)
				p.take(q, g)
				p.settle(q, g, "makes room for "+p.name(v))
				p.settle(r, h, "makes room for "+p.name(v))
				p.settle(v, h, "in place of "+p.name(q))
				return true
			}
			p.put(r, g)
			p.put(q, h)
		}
	}
	return false
}

// worse says whether a VM failed on host g, and not or longer ago on host h.
func (p *planner) worse(v, h, g int) bool {
	return p.vms[v].Failed[p.hosts[g].ID] > p.vms[v].Failed[p.hosts[h].ID]
}

// inTurn puts each VM on its host, one after the other, or none of them.
func (p *planner) inTurn(vms, hosts [3]int) bool {
	for i, v := range vms {
		if p.obstacle(v, hosts[i]) == free {
			p.put(v, hosts[i])
			continue
		}
		for k := range i {
			p.take(vms[k], hosts[k])
		}
		return false
	}
	return true
}

func (p *planner) name(v int) string { return cmp.Or(p.vms[v].Name, string(p.vms[v].ID)) }

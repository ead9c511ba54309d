package vmrestart

import (
	"cmp"
	"maps"
	"math"
	"slices"

	"github.com/haven-ha/haven"
)

const (
	// surviveCases is how many sets of failed hosts are tried when more than one
	// fails at once. A single failure is tried for every host, however many.
	surviveCases = 2000
	// lossesKept is how many lost cases are told in full.
	lossesKept = 8
	// proofSteps bounds the search, for all lost cases together, for a plan that
	// Plan did not find.
	proofSteps = 200_000
)

// LossProof says whether a lost case could have been survived by any plan.
type LossProof string

// The proofs.
const (
	LossProved    LossProof = "no-plan"   // no plan places all of them
	LossPlanThere LossProof = "plan"      // there is one, which Plan does not find
	LossOpen      LossProof = "not-known" // the search for one was given up
)

// Loss is a set of hosts whose failure leaves VMs without a host.
type Loss struct {
	Hosts []haven.HostID
	// Left are the VMs that Plan would leave out, and why.
	Left []Placement
	// MissingMiB is the memory of those that are left out for want of room: one
	// more host with so much free memory, to which no rule objects, would take them.
	MissingMiB uint64
	Proof      LossProof
}

// Survival is what failures of hosts would do.
type Survival struct {
	// Failures is how many hosts fail at once.
	Failures int
	// Cases is how many different sets of hosts that are, at most the largest
	// int; Tried is how many were looked at.
	Cases, Tried int
	// Lost is how many of the tried leave a VM without a host.
	Lost int
	// Worst are the worst of them: lossesKept at most.
	Worst []Loss
}

// Holds is Yes when every case was tried and Plan places all VMs in each, No when
// it does not in one, and Unknown when the search was given up before.
func (s Survival) Holds() haven.Tri {
	switch {
	case s.Lost > 0:
		return haven.No
	case s.Tried < s.Cases:
		return haven.Unknown
	}
	return haven.Yes
}

// Survives tries what becomes of the VMs when any r of the hosts fail at once, r at
// least 1. Here the field Last of a VM is the host that it runs on; VMs that run
// on none of the hosts, and those whose priority is off, are left aside. The groups
// of the hosts are counted from the VMs. Starts in flight bound nothing, as they
// only take time.
//
// Every single host is tried. Of several at once, at most surviveCases sets are
// tried, those that displace most first, and Tried says so.
func Survives(hosts []PlanHost, vms []PlanVM, limits PlanLimits, r int) Survival {
	hosts, on := running(hosts, vms)
	r = min(max(1, r), len(hosts))
	s := Survival{Failures: r, Cases: binomial(len(hosts), r)}
	budget := proofSteps
	limits.StartsPerHost = math.MaxInt
	failed := make([]int, r)
	for i := range failed {
		failed[i] = i
	}
	for r > 0 && (r == 1 || s.Tried < surviveCases) {
		s.Tried++
		if loss, ok := fail(hosts, on, failed, limits, &budget); !ok {
			s.Lost++
			s.keep(loss)
		}
		if !next(failed, len(hosts)) {
			break
		}
	}
	return s
}

// running returns the hosts with the groups that run there, those that displace
// most first, and the VMs on each.
func running(hosts []PlanHost, vms []PlanVM) ([]PlanHost, [][]PlanVM) {
	byHost := map[haven.HostID][]PlanVM{}
	groups := map[haven.HostID]map[PlanGroup]int{}
	size := map[haven.HostID]uint64{}
	for _, vm := range vms {
		if groups[vm.Last] == nil {
			groups[vm.Last] = map[PlanGroup]int{}
		}
		seen := map[PlanGroup]bool{}
		for _, g := range vm.Groups {
			if !seen[g] {
				groups[vm.Last][g]++
				seen[g] = true
			}
		}
		if vm.Priority != haven.PriorityOff {
			byHost[vm.Last] = append(byHost[vm.Last], vm)
			size[vm.Last] += vm.MemoryMiB
		}
	}
	hosts = slices.Clone(hosts)
	slices.SortFunc(hosts, func(a, b PlanHost) int {
		return cmp.Or(cmp.Compare(size[b.ID], size[a.ID]), cmp.Compare(b.FreeMiB, a.FreeMiB), cmp.Compare(a.ID, b.ID))
	})
	on := make([][]PlanVM, len(hosts))
	for h := range hosts {
		hosts[h].Groups, on[h] = maps.Clone(groups[hosts[h].ID]), byHost[hosts[h].ID]
	}
	return hosts, on
}

// fail plans for the failure of some hosts, given by their numbers in order.
func fail(hosts []PlanHost, on [][]PlanVM, failed []int, limits PlanLimits, budget *int) (Loss, bool) {
	var vms []PlanVM
	var loss Loss
	left := make([]PlanHost, 0, len(hosts))
	for h := range hosts {
		if slices.Contains(failed, h) {
			vms = append(vms, on[h]...)
			loss.Hosts = append(loss.Hosts, hosts[h].ID)
			continue
		}
		left = append(left, hosts[h])
	}
	if len(vms) == 0 {
		return loss, true
	}
	p := newPlanner(vms, left, limits)
	p.run()
	for v, a := range p.placed {
		if a.Host != "" {
			continue
		}
		loss.Left = append(loss.Left, a)
		if a.Hold == haven.HoldCapacity {
			loss.MissingMiB += min(p.need[v], math.MaxUint64-loss.MissingMiB)
		}
	}
	if len(loss.Left) == 0 {
		return loss, true
	}
	slices.Sort(loss.Hosts)
	slices.SortFunc(loss.Left, func(a, b Placement) int { return cmp.Compare(a.VM, b.VM) })
	loss.Proof = newPlanner(vms, left, limits).prove(budget)
	return loss, false
}

// prove looks for a plan that places all VMs.
func (p *planner) prove(budget *int) LossProof {
	room, need := uint64(0), uint64(0)
	for h := range p.hosts {
		if p.hosts[h].Refuses == "" {
			room += min(p.hosts[h].FreeMiB, math.MaxUint64-room)
		}
	}
	for v := range p.vms {
		need += min(p.need[v], math.MaxUint64-need)
		// A VM finds less and less room as others are placed, never more.
		if p.best(v, -1, nil) < 0 {
			return LossProved
		}
	}
	if need > room {
		return LossProved
	}
	return p.search(p.order, budget)
}

// search tries all hosts for the first VM, and all for the others after it.
func (p *planner) search(order []int, budget *int) LossProof {
	if len(order) == 0 {
		return LossPlanThere
	}
	v := order[0]
	for h := range p.hosts {
		if *budget--; *budget < 0 {
			return LossOpen
		}
		if p.obstacle(v, h) != free {
			continue
		}
		p.put(v, h)
		found := p.search(order[1:], budget)
		p.take(v, h)
		if found != LossProved {
			return found
		}
	}
	return LossProved
}

// keep keeps the worst losses, the worst one first.
func (s *Survival) keep(loss Loss) {
	s.Worst = append(s.Worst, loss)
	slices.SortStableFunc(s.Worst, func(a, b Loss) int {
		return cmp.Or(cmp.Compare(b.MissingMiB, a.MissingMiB), cmp.Compare(len(b.Left), len(a.Left)), slices.Compare(a.Hosts, b.Hosts))
	})
	s.Worst = s.Worst[:min(len(s.Worst), lossesKept)]
}

// next goes on to the next set of numbers below n.
func next(set []int, n int) bool {
	for i := len(set) - 1; i >= 0; i-- {
		if set[i] < n-len(set)+i {
			set[i]++
			for k := i + 1; k < len(set); k++ {
				set[k] = set[k-1] + 1
			}
			return true
		}
	}
	return false
}

// binomial is the number of sets of r out of n, at most the largest int.
func binomial(n, r int) int {
	if n == 0 {
		return 0
	}
	c := 1
	for i := 1; i <= min(r, n-r); i++ {
		if c > math.MaxInt/(n-i+1) {
			return math.MaxInt
		}
		c = c * (n - i + 1) / i
	}
	return c
}

package vmrestart

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/haven-ha/haven"
)

// PlanVM is a VM that wants a host.
type PlanVM struct {
	ID        haven.VMID
	Name      string
	MemoryMiB uint64
	VCPUs     int
	// Last is the host that ran it last. Among equals it is preferred, because
	// its disks, networks and caches are known to be there.
	Last haven.HostID
	// Failed are hosts on which it failed to start, numbered in the order of the
	// last failure on each, from 1. They are used only when nothing else is left,
	// and then in turn.
	Failed map[haven.HostID]int
}

// PlanHost is a host that may take VMs.
type PlanHost struct {
	ID haven.HostID
	// Refuses says why the host takes no VMs at all; empty when it does.
	Refuses string
	// FreeMiB is the memory that is neither used by running VMs, nor promised
	// to VMs under orders, nor reserved for the host itself.
	FreeMiB uint64
	// Starting is the number of starts in flight.
	Starting int
	// Running is the number of VMs on the host, for spreading.
	Running int
}

// PlanLimits bounds a plan.
type PlanLimits struct {
	// StartsPerHost is the most starts in flight on one host. A VM that would
	// be one too many waits for the next plan. Must be at least 1.
	StartsPerHost int
}

// Placement is the answer for one VM.
type Placement struct {
	VM   haven.VMID
	Host haven.HostID // empty: none now
	// Hold is why there is none: a Hold… word, or empty when the VM only waits
	// for starts in flight to end.
	Hold string
	// Why explains the choice, or for each host why it was not chosen (P9).
	Why string
}

// Plan places VMs on hosts: large ones first, each on a host where it did not
// fail, else on its last one, else where fewest starts are in flight and most
// memory is left over, which spreads them. It is deterministic and changes none
// of its arguments. Every VM gets an answer; the answers come in the order of
// the VMs.
//
// It leaves no VM out for which there is room, but as it spreads, it does not
// always find the plan that places most: see TestPlanQuality for the gap.
func Plan(vms []PlanVM, hosts []PlanHost, limits PlanLimits) []Placement {
	room := slices.Clone(hosts)
	slices.SortFunc(room, func(a, b PlanHost) int { return cmp.Compare(a.ID, b.ID) })
	order := make([]int, len(vms))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(vms[b].MemoryMiB, vms[a].MemoryMiB), cmp.Compare(vms[a].ID, vms[b].ID))
	})
	placed := make([]Placement, len(vms))
	for _, i := range order {
		placed[i] = place(vms[i], room, limits)
	}
	return placed
}

// place chooses a host for one VM and takes the room for it.
func place(vm PlanVM, room []PlanHost, limits PlanLimits) Placement {
	best := -1
	for i := range room {
		if h := &room[i]; obstacle(vm, h, limits) == free && (best < 0 || better(vm, h, &room[best])) {
			best = i
		}
	}
	if best < 0 {
		return unplaced(vm, room, limits)
	}
	h := &room[best]
	p := Placement{VM: vm.ID, Host: h.ID, Why: fmt.Sprintf("%d MiB free, %d VMs, %d starting", h.FreeMiB, h.Running, h.Starting)}
	h.FreeMiB -= vm.MemoryMiB
	h.Starting++
	h.Running++
	return p
}

// What keeps a VM from a host. Of several hosts the highest is what it waits for.
const (
	free = iota
	refuses
	short
	busy
)

func obstacle(vm PlanVM, h *PlanHost, limits PlanLimits) int {
	switch {
	case h.Refuses != "":
		return refuses
	case h.FreeMiB < vm.MemoryMiB:
		return short
	case h.Starting >= max(1, limits.StartsPerHost):
		return busy
	}
	return free
}

// reasonsGiven is how many hosts an answer speaks of.
const reasonsGiven = 8

// unplaced says why there is no host for a VM.
func unplaced(vm PlanVM, room []PlanHost, limits PlanLimits) Placement {
	worst := free
	var why []string
	for i := range room {
		h := &room[i]
		o := obstacle(vm, h, limits)
		worst = max(worst, o)
		if len(why) == reasonsGiven {
			continue
		}
		switch o {
		case refuses:
			why = append(why, string(h.ID)+": "+h.Refuses)
		case short:
			why = append(why, fmt.Sprintf("%s: %d MiB free, %d needed", h.ID, h.FreeMiB, vm.MemoryMiB))
		case busy:
			why = append(why, fmt.Sprintf("%s: %d starts in flight", h.ID, h.Starting))
		}
	}
	p := Placement{VM: vm.ID, Why: cmp.Or(strings.Join(why, "; "), "no host is there")}
	if more := len(room) - reasonsGiven; more > 0 {
		p.Why += fmt.Sprintf("; and %d more hosts", more)
	}
	switch worst {
	case busy:
	case short:
		p.Hold = haven.HoldCapacity
	default:
		p.Hold = haven.HoldNoHost
	}
	return p
}

// better says whether host a suits a VM better than host b; both have room.
func better(vm PlanVM, a, b *PlanHost) bool {
	if failedA, failedB := vm.Failed[a.ID], vm.Failed[b.ID]; failedA != failedB {
		return failedA < failedB
	}
	if (a.ID == vm.Last) != (b.ID == vm.Last) {
		return a.ID == vm.Last
	}
	if a.Starting != b.Starting {
		return a.Starting < b.Starting
	}
	if a.FreeMiB != b.FreeMiB {
		return a.FreeMiB > b.FreeMiB
	}
	return a.Running < b.Running
}

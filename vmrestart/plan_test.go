package vmrestart

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
)

func TestPlan(t *testing.T) {
	vm := func(id haven.VMID, mib uint64) PlanVM { return PlanVM{ID: id, MemoryMiB: mib} }
	host := func(id haven.HostID, free uint64) PlanHost { return PlanHost{ID: id, FreeMiB: free} }
	limits := PlanLimits{StartsPerHost: 2}
	tests := []struct {
		name  string
		vms   []PlanVM
		hosts []PlanHost
		want  string // "host" or "!hold", one for each VM
	}{
		{"nothing to do", nil, []PlanHost{host("a", 10)}, ""},
		{"no host", []PlanVM{vm("1", 1)}, nil, "!no-host"},
		{"where most is left over", []PlanVM{vm("1", 4)}, []PlanHost{host("a", 8), host("b", 9)}, "b"},
		{"it fits exactly", []PlanVM{vm("1", 8)}, []PlanHost{host("a", 8)}, "a"},
		{"no room", []PlanVM{vm("1", 9)}, []PlanHost{host("a", 8)}, "!capacity"},
		{"the host refuses", []PlanVM{vm("1", 1)}, []PlanHost{{ID: "a", FreeMiB: 8, Refuses: "it is failed"}}, "!no-host"},
		{"no room on the one that does not refuse", []PlanVM{vm("1", 9)}, []PlanHost{{ID: "a", FreeMiB: 99, Refuses: "it is failed"}, host("b", 8)}, "!capacity"},
		{"large ones first", []PlanVM{vm("1", 2), vm("2", 8)}, []PlanHost{host("a", 8), host("b", 4)}, "b a"},
		{"spread", []PlanVM{vm("1", 1), vm("2", 1), vm("3", 1)}, []PlanHost{host("a", 9), host("b", 9), host("c", 9)}, "a b c"},
		{"among equals the emptier one", []PlanVM{vm("1", 1)}, []PlanHost{{ID: "a", FreeMiB: 9, Running: 4}, host("b", 9)}, "b"},
		{"only so many at once", []PlanVM{vm("1", 1), vm("2", 1), vm("3", 1)}, []PlanHost{host("a", 9)}, "a a !"},
		{"starts in flight count", []PlanVM{vm("1", 1)}, []PlanHost{{ID: "a", FreeMiB: 9, Starting: 2}}, "!"},
		{"the one that ran it last", []PlanVM{{ID: "1", MemoryMiB: 1, Last: "b"}}, []PlanHost{host("a", 9), host("b", 5)}, "b"},
		{"not where it failed", []PlanVM{{ID: "1", MemoryMiB: 1, Last: "b", Failed: map[haven.HostID]int{"b": 1}}}, []PlanHost{host("a", 1), host("b", 9)}, "a"},
		{"where it failed, when nothing else is left", []PlanVM{{ID: "1", MemoryMiB: 1, Failed: map[haven.HostID]int{"a": 1}}}, []PlanHost{host("a", 9)}, "a"},
		{"where it failed, in turn", []PlanVM{{ID: "1", MemoryMiB: 1, Last: "b", Failed: map[haven.HostID]int{"a": 2, "b": 3}}}, []PlanHost{host("a", 9), host("b", 9)}, "a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for i, p := range Plan(tt.vms, tt.hosts, limits) {
				if p.VM != tt.vms[i].ID {
					t.Errorf("answer %d is about VM %s", i, p.VM)
				}
				if p.Host != "" {
					got = append(got, string(p.Host))
				} else {
					got = append(got, "!"+p.Hold)
				}
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("%s, want %s", s, tt.want)
			}
		})
	}
}

func drawCase(t *rapid.T, mostVMs, mostHosts int, size uint64) ([]PlanVM, []PlanHost, PlanLimits) {
	hostIDs := []haven.HostID{"a", "b", "c", "d", "e", "f"}[:mostHosts]
	var hosts []PlanHost
	for _, id := range hostIDs[:rapid.IntRange(0, mostHosts).Draw(t, "hosts")] {
		h := PlanHost{
			ID: id, FreeMiB: rapid.Uint64Range(0, size).Draw(t, "free"),
			Starting: rapid.IntRange(0, 2).Draw(t, "starting"), Running: rapid.IntRange(0, 3).Draw(t, "running"),
		}
		if rapid.IntRange(0, 4).Draw(t, "refuses") == 0 {
			h.Refuses = "it is not well"
		}
		hosts = append(hosts, h)
	}
	var vms []PlanVM
	for i := range rapid.IntRange(0, mostVMs).Draw(t, "VMs") {
		vm := PlanVM{ID: haven.VMID(fmt.Sprint("vm", i)), MemoryMiB: rapid.Uint64Range(0, size).Draw(t, "MiB"), Failed: map[haven.HostID]int{}}
		if rapid.Bool().Draw(t, "has a last host") {
			vm.Last = rapid.SampledFrom(hostIDs).Draw(t, "last")
		}
		for _, h := range hostIDs {
			if rapid.IntRange(0, 3).Draw(t, "failed there") == 0 {
				vm.Failed[h] = rapid.IntRange(1, 9).Draw(t, "failed")
			}
		}
		vms = append(vms, vm)
	}
	return vms, hosts, PlanLimits{StartsPerHost: rapid.IntRange(1, 4).Draw(t, "starts per host")}
}

// The dumb check of a plan: add up what it puts where.
func valid(vms []PlanVM, hosts []PlanHost, limits PlanLimits, plan []Placement) error {
	if len(plan) != len(vms) {
		return fmt.Errorf("%d answers for %d VMs", len(plan), len(vms))
	}
	for _, h := range hosts {
		sum, starts := uint64(0), h.Starting
		for i, p := range plan {
			if p.Host == h.ID {
				sum += vms[i].MemoryMiB
				starts++
			}
		}
		switch {
		case starts == h.Starting:
		case h.Refuses != "":
			return fmt.Errorf("%s refuses and was given a VM", h.ID)
		case sum > h.FreeMiB:
			return fmt.Errorf("%s has %d MiB and was given %d", h.ID, h.FreeMiB, sum)
		case starts > limits.StartsPerHost:
			return fmt.Errorf("%s has %d starts, %d are allowed", h.ID, starts, limits.StartsPerHost)
		}
	}
	for i, p := range plan {
		known := slices.ContainsFunc(hosts, func(h PlanHost) bool { return h.ID == p.Host })
		switch {
		case p.VM != vms[i].ID:
			return fmt.Errorf("answer %d is about VM %s", i, p.VM)
		case p.Why == "":
			return fmt.Errorf("no reason for %s", p.VM)
		case p.Host != "" && !known:
			return fmt.Errorf("%s goes to %s, which is not there", p.VM, p.Host)
		case p.Host != "" && p.Hold != "":
			return fmt.Errorf("%s is both placed and held", p.VM)
		}
	}
	return idle(vms, hosts, limits, plan)
}

// idle finds a VM that was left out though there is room for it.
func idle(vms []PlanVM, hosts []PlanHost, limits PlanLimits, plan []Placement) error {
	for i, p := range plan {
		if p.Host != "" {
			continue
		}
		for _, h := range hosts {
			free, starts := h.FreeMiB, h.Starting
			for k, q := range plan {
				if q.Host == h.ID {
					free -= vms[k].MemoryMiB
					starts++
				}
			}
			if h.Refuses == "" && free >= vms[i].MemoryMiB && starts < limits.StartsPerHost {
				return fmt.Errorf("%s was left out (%s) though %s has %d MiB and %d starts", p.VM, p.Why, h.ID, free, starts)
			}
			if p.Hold == haven.HoldNoHost && h.Refuses == "" {
				return fmt.Errorf("%s has no host, says the plan, but %s refuses nothing", p.VM, h.ID)
			}
		}
	}
	return nil
}

func TestPlanIsValid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		vms, hosts, limits := drawCase(t, 12, 6, 16)
		vmsBefore, hostsBefore := slices.Clone(vms), slices.Clone(hosts)
		plan := Plan(vms, hosts, limits)
		if err := valid(vms, hosts, limits, plan); err != nil {
			t.Fatalf("%v\n%+v", err, plan)
		}
		if !reflect.DeepEqual(vms, vmsBefore) || !reflect.DeepEqual(hosts, hostsBefore) {
			t.Fatal("the plan changed what it was made of")
		}
		// The order in which hosts and VMs come makes no difference.
		hosts2, vms2 := rapid.Permutation(hosts).Draw(t, "hosts"), rapid.Permutation(vms).Draw(t, "VMs")
		plan2 := Plan(vms2, hosts2, limits)
		byVM := func(a, b Placement) int { return cmp.Compare(a.VM, b.VM) }
		slices.SortFunc(plan, byVM)
		slices.SortFunc(plan2, byVM)
		if !reflect.DeepEqual(plan, plan2) {
			t.Fatalf("two orders, two plans:\n%+v\n%+v", plan, plan2)
		}
	})
}

// most is how many VMs any plan can place: it tries them all.
func most(vms []PlanVM, hosts []PlanHost, limits PlanLimits) int {
	if len(vms) == 0 {
		return 0
	}
	best := most(vms[1:], hosts, limits)
	for i, h := range hosts {
		if h.Refuses != "" || h.FreeMiB < vms[0].MemoryMiB || h.Starting >= limits.StartsPerHost {
			continue
		}
		hosts[i].FreeMiB -= vms[0].MemoryMiB
		hosts[i].Starting++
		best = max(best, 1+most(vms[1:], hosts, limits))
		hosts[i] = h
	}
	return best
}

// Against exhaustive search on small, tight cases. The plan spreads, heeds where
// a VM failed and takes large VMs first, so it does not always place as many as
// could be. How far it is off is held here, so that it does not grow unseen:
// measured are 85 % of the cases optimal, 94 % of the possible VMs placed, and never more
// than 2 fewer than possible.
func TestPlanQuality(t *testing.T) {
	const cases = 3000
	optimal, placed, possible, worst, all, allFound := 0, 0, 0, 0, 0, 0
	for seed := range uint64(cases) {
		vms, hosts, limits := tightCase(rand.New(rand.NewPCG(seed, 1)))
		n := 0
		for _, p := range Plan(vms, hosts, limits) {
			if p.Host != "" {
				n++
			}
		}
		best := most(vms, slices.Clone(hosts), limits)
		if n > best {
			t.Fatalf("seed %d: %d placed, %d are possible", seed, n, best)
		}
		placed, possible = placed+n, possible+best
		worst = max(worst, best-n)
		if n == best {
			optimal++
		}
		if best == len(vms) {
			all++
			if n == best {
				allFound++
			}
		}
	}
	t.Logf("%d cases: %d optimal; %d of %d possible VMs placed; at most %d fewer than possible; all placed in %d of %d cases in which that is possible",
		cases, optimal, placed, possible, worst, allFound, all)
	if optimal*1000 < cases*tightOptimal || placed*1000 < possible*tightPlaced || allFound*1000 < all*tightAll || worst > tightWorst {
		t.Errorf("the plan is worse than it was, and than docs/placement.md says")
	}
}

// The floors of TestPlanQuality, in thousandths, and the most VMs fewer than possible.
const (
	tightOptimal, tightPlaced, tightAll = 860, 940, 900
	tightWorst                          = 2
)

// tightCase is one in which not everything fits.
func tightCase(r *rand.Rand) ([]PlanVM, []PlanHost, PlanLimits) {
	var hosts []PlanHost
	for _, id := range []haven.HostID{"a", "b", "c"}[:1+r.IntN(3)] {
		hosts = append(hosts, PlanHost{ID: id, FreeMiB: 2 + r.Uint64N(9), Starting: r.IntN(2)})
	}
	var vms []PlanVM
	for i := range 2 + r.IntN(5) {
		vm := PlanVM{ID: haven.VMID(fmt.Sprint("vm", i)), MemoryMiB: 1 + r.Uint64N(6), Last: hosts[r.IntN(len(hosts))].ID}
		if r.IntN(3) == 0 {
			vm.Failed = map[haven.HostID]int{hosts[r.IntN(len(hosts))].ID: 1}
		}
		vms = append(vms, vm)
	}
	return vms, hosts, PlanLimits{StartsPerHost: 2 + r.IntN(3)}
}

// The rows with rules are the target: 1 000 VMs over 200 hosts within 50 ms.
func BenchmarkPlan(b *testing.B) {
	var vms, ruled []PlanVM
	for i := range 1000 {
		vm := PlanVM{ID: haven.VMID(fmt.Sprintf("vm%04d", i)), MemoryMiB: uint64(512 + i*37%8192), Last: "h000"}
		vms = append(vms, vm)
		vm.VCPUs, vm.OverheadMiB, vm.Priority = 1+i%8, 200, haven.Priorities()[i%5]
		vm.MachineType, vm.CPUModel, vm.Networks, vm.Disks = "q35", "EPYC", []string{"lan", fmt.Sprint("vlan", i%20)}, []string{"pool"}
		vm.Groups = []PlanGroup{{Name: fmt.Sprint("pair", i/2), Apart: i%4 < 2, Strict: i%8 < 4}}
		vm.Preferred = []haven.HostID{haven.HostID(fmt.Sprintf("h%03d", i%200))}
		if i%10 == 0 {
			for k := range 20 {
				vm.Allowed = append(vm.Allowed, haven.HostID(fmt.Sprintf("h%03d", (i+k)%200)))
			}
		}
		ruled = append(ruled, vm)
	}
	hosts := func(refuse int, free, vary uint64) []PlanHost {
		var all []PlanHost
		for i := range 200 {
			h := PlanHost{ID: haven.HostID(fmt.Sprintf("h%03d", i)), FreeMiB: free + uint64(i)*991%vary, CPUs: 64, VCPUs: i, LoadPercent: i % 100, Zone: fmt.Sprint("z", i%4)}
			if i%10 < refuse {
				h.Refuses = "it is failed"
			}
			for k := range 20 {
				if (i+k)%3 > 0 {
					h.Networks.Names = append(h.Networks.Names, fmt.Sprint("vlan", k))
				}
			}
			h.Networks.Names, h.Networks.Known = append(h.Networks.Names, "lan"), true
			h.MachineTypes, h.CPUModels = Offer{true, []string{"pc", "q35"}}, Offer{true, []string{"EPYC", "qemu64"}}
			h.Disks = Offer{true, []string{"pool"}}
			all = append(all, h)
		}
		return all
	}
	for _, bb := range []struct {
		name   string
		vms    []PlanVM
		hosts  []PlanHost
		limits PlanLimits
	}{
		{"room for all", vms, hosts(1, 16384, 65536), PlanLimits{StartsPerHost: 100}},
		{"starts bound", vms, hosts(1, 16384, 65536), PlanLimits{StartsPerHost: 2}},
		{"no host", vms, hosts(10, 16384, 65536), PlanLimits{StartsPerHost: 2}},
		{"rules", ruled, hosts(1, 16384, 65536), PlanLimits{StartsPerHost: 100, VCPURatio: 4}},
		{"rules, starts bound", ruled, hosts(1, 16384, 65536), PlanLimits{StartsPerHost: 4, VCPURatio: 4}},
		{"rules, half the room", ruled, hosts(1, 4096, 16384), PlanLimits{StartsPerHost: 100, VCPURatio: 4}},
		{"rules, no room", ruled, hosts(1, 256, 300), PlanLimits{StartsPerHost: 100, VCPURatio: 4}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			left := 0
			for b.Loop() {
				left = 0
				for _, p := range Plan(bb.vms, bb.hosts, bb.limits) {
					if p.Host == "" {
						left++
					}
				}
			}
			b.ReportMetric(float64(left), "unplaced")
		})
	}
}

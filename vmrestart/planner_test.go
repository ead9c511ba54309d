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

var (
	strictApart = PlanGroup{Name: "db", Apart: true, Strict: true}
	softApart   = PlanGroup{Name: "web", Apart: true}
	strictWith  = PlanGroup{Name: "app", Strict: true}
	softWith    = PlanGroup{Name: "cache"}
	drawnGroups = []PlanGroup{strictApart, softApart, strictWith, softWith}
	drawnNames  = []string{"x", "y"}
)

func TestPlanRules(t *testing.T) {
	in := func(vm PlanVM, g ...PlanGroup) PlanVM { vm.Groups = g; return vm }
	vm := func(id haven.VMID, mib uint64) PlanVM { return PlanVM{ID: id, MemoryMiB: mib} }
	host := func(id haven.HostID, free uint64) PlanHost { return PlanHost{ID: id, FreeMiB: free} }
	has := func(names ...string) Offer { return Offer{Known: true, Names: names} }
	tests := []struct {
		name  string
		vms   []PlanVM
		hosts []PlanHost
		ratio float64
		want  string
		why   string // part of the first answer
	}{
		{name: "priority before size", vms: []PlanVM{vm("1", 8), {ID: "2", MemoryMiB: 2, Priority: haven.PriorityHigh}}, hosts: []PlanHost{host("a", 8)}, want: "!capacity a", why: "a: 6 MiB free, 8 needed"},
		{name: "lower than the middle comes later", vms: []PlanVM{{ID: "1", MemoryMiB: 8, Priority: haven.PriorityLowest}, vm("2", 2)}, hosts: []PlanHost{host("a", 8)}, want: "!capacity a"},
		{name: "off", vms: []PlanVM{{ID: "1", Priority: haven.PriorityOff}}, hosts: []PlanHost{host("a", 8)}, want: "!action-none", why: "priority is off"},
		{name: "overhead", vms: []PlanVM{{ID: "1", MemoryMiB: 7, OverheadMiB: 2}}, hosts: []PlanHost{host("a", 8)}, want: "!capacity", why: "8 MiB free, 9 needed"},
		{name: "overhead beyond all numbers", vms: []PlanVM{{ID: "1", MemoryMiB: 7, OverheadMiB: ^uint64(0)}}, hosts: []PlanHost{host("a", 8)}, want: "!capacity"},
		{name: "reserve", vms: []PlanVM{vm("1", 7)}, hosts: []PlanHost{{ID: "a", FreeMiB: 8, ReserveMiB: 2}}, want: "!capacity", why: "6 MiB free"},
		{name: "reserve beyond what is free", vms: []PlanVM{vm("1", 7)}, hosts: []PlanHost{{ID: "a", FreeMiB: 8, ReserveMiB: 9}}, want: "!capacity", why: "0 MiB free"},
		{name: "vCPU ratio", vms: []PlanVM{{ID: "1", VCPUs: 3}}, hosts: []PlanHost{{ID: "a", CPUs: 4, VCPUs: 6}}, ratio: 2, want: "!capacity", why: "6 vCPUs on 4 CPUs, 3 needed, 2 for each are allowed"},
		{name: "vCPU ratio kept", vms: []PlanVM{{ID: "1", VCPUs: 2}}, hosts: []PlanHost{{ID: "a", CPUs: 4, VCPUs: 6}}, ratio: 2, want: "a"},
		{name: "CPUs not known", vms: []PlanVM{{ID: "1", VCPUs: 99}}, hosts: []PlanHost{host("a", 1)}, ratio: 2, want: "a"},
		{name: "no ratio", vms: []PlanVM{{ID: "1", VCPUs: 99}}, hosts: []PlanHost{{ID: "a", CPUs: 1}}, want: "a"},
		{name: "machine type", vms: []PlanVM{{ID: "1", MachineType: "q35"}}, hosts: []PlanHost{{ID: "a", MachineTypes: has("pc")}, {ID: "b", MachineTypes: has("pc", "q35")}}, want: "b"},
		{name: "no such machine type", vms: []PlanVM{{ID: "1", MachineType: "q35"}}, hosts: []PlanHost{{ID: "a", MachineTypes: has("pc")}}, want: "!no-host", why: "a: machine type q35 is not there"},
		{name: "CPU model", vms: []PlanVM{{ID: "1", CPUModel: "EPYC"}}, hosts: []PlanHost{{ID: "a", CPUModels: has()}}, want: "!no-host", why: "CPU model EPYC is not there"},
		{name: "network", vms: []PlanVM{{ID: "1", Networks: []string{"x", "y"}}}, hosts: []PlanHost{{ID: "a", Networks: has("x")}}, want: "!no-host", why: "network y is not there"},
		{name: "disk", vms: []PlanVM{{ID: "1", Disks: []string{"/d"}}}, hosts: []PlanHost{{ID: "a", Disks: has("/e")}}, want: "!no-host", why: "disk /d is not there"},
		{name: "a host that said nothing is not judged", vms: []PlanVM{{ID: "1", MachineType: "q35", CPUModel: "EPYC", Networks: drawnNames, Disks: drawnNames}}, hosts: []PlanHost{host("a", 1)}, want: "a"},
		{name: "allowed hosts", vms: []PlanVM{{ID: "1", Allowed: []haven.HostID{"a", "gone"}}}, hosts: []PlanHost{host("a", 1), host("b", 9)}, want: "a"},
		{name: "no allowed host", vms: []PlanVM{{ID: "1", Allowed: []haven.HostID{"gone"}}}, hosts: []PlanHost{host("a", 1)}, want: "!no-host", why: "not one of the VM's allowed hosts"},
		{name: "preferred before last", vms: []PlanVM{{ID: "1", Preferred: []haven.HostID{"b", "a"}, Last: "c"}}, hosts: []PlanHost{host("a", 9), host("b", 1), host("c", 9)}, want: "b"},
		{name: "failed before preferred", vms: []PlanVM{{ID: "1", Preferred: []haven.HostID{"a"}, Failed: map[haven.HostID]int{"a": 1}}}, hosts: []PlanHost{host("a", 9), host("b", 1)}, want: "b"},
		{name: "strictly apart", vms: []PlanVM{in(vm("1", 1), strictApart), in(vm("2", 1), strictApart), in(vm("3", 1), strictApart)}, hosts: []PlanHost{host("a", 9), host("b", 2)}, want: "a b !no-host"},
		{name: "strictly apart from one that runs", vms: []PlanVM{in(vm("1", 1), strictApart)}, hosts: []PlanHost{{ID: "a", FreeMiB: 9, Groups: map[PlanGroup]int{strictApart: 1}}}, want: "!no-host", why: "kept apart from is there, group db"},
		{name: "rather apart", vms: []PlanVM{in(vm("1", 1), softApart), in(vm("2", 1), softApart), in(vm("3", 1), softApart)}, hosts: []PlanHost{host("a", 9), host("b", 2)}, want: "a b a"},
		{name: "a preferred rule is broken, and told", vms: []PlanVM{in(vm("1", 1), softApart)}, hosts: []PlanHost{{ID: "a", FreeMiB: 9, Groups: map[PlanGroup]int{softApart: 1}}}, want: "a", why: "against the preferred rule of group web"},
		{name: "strictly together where one runs", vms: []PlanVM{in(vm("1", 1), strictWith)}, hosts: []PlanHost{host("a", 9), {ID: "b", FreeMiB: 1, Groups: map[PlanGroup]int{strictWith: 1}}}, want: "b"},
		{name: "strictly together, no room there", vms: []PlanVM{in(vm("1", 2), strictWith)}, hosts: []PlanHost{host("a", 9), {ID: "b", FreeMiB: 1, Groups: map[PlanGroup]int{strictWith: 1}}}, want: "!capacity", why: "a: the VMs that it is kept together with are elsewhere, group app; b: 1 MiB free"},
		{name: "together where all fit", vms: []PlanVM{{ID: "1", MemoryMiB: 4, Last: "a", Groups: []PlanGroup{strictWith}}, in(vm("2", 4), strictWith)}, hosts: []PlanHost{host("a", 7), host("b", 8)}, want: "b b"},
		{name: "rather together where all fit", vms: []PlanVM{{ID: "1", MemoryMiB: 4, Last: "a", Groups: []PlanGroup{softWith}}, in(vm("2", 4), softWith)}, hosts: []PlanHost{host("a", 7), host("b", 8)}, want: "b b"},
		{name: "rather together, but not at the price of a host", vms: []PlanVM{in(vm("1", 4), softWith), in(vm("2", 4), softWith)}, hosts: []PlanHost{host("a", 7), host("b", 7)}, want: "a b"},
		{name: "a unit counts as one in the order", vms: []PlanVM{vm("0", 5), in(vm("1", 4), strictWith), in(vm("2", 4), strictWith)}, hosts: []PlanHost{host("a", 9), host("b", 5)}, want: "b a a"},
		{name: "zones", vms: []PlanVM{in(vm("1", 1), strictApart), in(vm("2", 1), strictApart)}, hosts: []PlanHost{{ID: "a", FreeMiB: 9, Zone: "n"}, {ID: "b", FreeMiB: 8, Zone: "n"}, {ID: "c", FreeMiB: 2, Zone: "s"}}, want: "a c"},
		{name: "a busy host comes later", vms: []PlanVM{vm("1", 1)}, hosts: []PlanHost{{ID: "a", FreeMiB: 9, LoadPercent: 80}, host("b", 5)}, want: "b"},
		{name: "a little load does not matter", vms: []PlanVM{vm("1", 1)}, hosts: []PlanHost{{ID: "a", FreeMiB: 9, LoadPercent: 20}, host("b", 5)}, want: "a"},
		{name: "moved aside for a bound one", vms: []PlanVM{vm("1", 6), {ID: "2", MemoryMiB: 5, Allowed: []haven.HostID{"a"}}}, hosts: []PlanHost{host("a", 8), host("b", 7)}, want: "b a", why: "makes room for 2"},
		{name: "not moved to where it failed", vms: []PlanVM{{ID: "1", MemoryMiB: 6, Failed: map[haven.HostID]int{"b": 1}}, {ID: "2", MemoryMiB: 5, Allowed: []haven.HostID{"a"}}}, hosts: []PlanHost{host("a", 8), host("b", 7)}, want: "a !capacity"},
		{name: "change of places", vms: []PlanVM{{ID: "1", MemoryMiB: 6, Last: "a"}, vm("2", 5), vm("3", 3)}, hosts: []PlanHost{host("a", 8), host("b", 6)}, want: "b a a"},
		{name: "no change of places to where the first failed", vms: []PlanVM{{ID: "1", MemoryMiB: 6, Last: "a", Failed: map[haven.HostID]int{"b": 1}}, vm("2", 5), vm("3", 3)}, hosts: []PlanHost{host("a", 8), host("b", 6)}, want: "a b !capacity"},
		{name: "no change of places to where the second failed", vms: []PlanVM{{ID: "1", MemoryMiB: 6, Last: "a"}, {ID: "2", MemoryMiB: 5, Failed: map[haven.HostID]int{"a": 1}}, vm("3", 3)}, hosts: []PlanHost{host("a", 8), host("b", 6)}, want: "a b !capacity"},
		{name: "together where there are CPUs for all", vms: []PlanVM{{ID: "1", VCPUs: 2, Groups: []PlanGroup{strictWith}}, {ID: "2", VCPUs: 2, Groups: []PlanGroup{strictWith}}}, hosts: []PlanHost{{ID: "a", FreeMiB: 9, CPUs: 3}, {ID: "b", FreeMiB: 5, CPUs: 4}}, ratio: 1, want: "b b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			limits := PlanLimits{StartsPerHost: 8, VCPURatio: tt.ratio}
			plan := Plan(tt.vms, tt.hosts, limits)
			if err := check(tt.vms, tt.hosts, limits, plan); err != nil {
				t.Error(err)
			}
			var got []string
			for _, p := range plan {
				got = append(got, cmp.Or(string(p.Host), "!"+p.Hold))
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("%s, want %s\n%+v", s, tt.want, plan)
			}
			if !strings.Contains(plan[0].Why, tt.why) {
				t.Errorf("%q does not say %q", plan[0].Why, tt.why)
			}
		})
	}
}

// A cluster may be large; an answer is not.
func TestPlanReasonsAreBounded(t *testing.T) {
	var hosts []PlanHost
	for i := range 500 {
		h := PlanHost{ID: haven.HostID(fmt.Sprintf("h%03d", i)), FreeMiB: 1}
		if i%2 == 0 {
			h.Refuses = strings.Repeat("ä", 5000)
		}
		hosts = append(hosts, h)
	}
	p := Plan([]PlanVM{{ID: "1", MemoryMiB: 2}}, hosts, PlanLimits{StartsPerHost: 1})[0]
	if want := "; and 492 more hosts: 246 refuse, 246 without room"; !strings.HasSuffix(p.Why, want) || len(p.Why) > reasonsGiven*(reasonLength+20)+100 {
		t.Errorf("%d octets: %s", len(p.Why), p.Why)
	}
}

// drawRules draws a case with all there is. It takes its numbers from f, so that
// rapid and a plain generator can both draw.
func drawRules(f func(most int) int, mostVMs, mostHosts int) ([]PlanVM, []PlanHost, PlanLimits) {
	ids := []haven.HostID{"a", "b", "c", "d", "e"}[:mostHosts]
	one := func(n int) bool { return f(n-1) == 0 } // one in n
	some := func() []haven.HostID {
		var out []haven.HostID
		for _, id := range ids {
			if one(2) {
				out = append(out, id)
			}
		}
		return out
	}
	offer := func() Offer {
		return Offer{Known: !one(3), Names: drawnNames[:f(2)]}
	}
	var hosts []PlanHost
	for _, id := range ids[:1+f(mostHosts-1)] {
		h := PlanHost{
			ID: id, FreeMiB: uint64(2 + f(10)), ReserveMiB: uint64(f(1)), CPUs: f(3), VCPUs: f(2), LoadPercent: f(100),
			Zone: []string{"", "n", "s"}[f(2)], Starting: f(1), Groups: map[PlanGroup]int{}, MachineTypes: offer(), CPUModels: offer(), Networks: offer(), Disks: offer(),
		}
		if one(8) {
			h.Refuses = "it is not well"
		}
		if one(3) {
			h.Groups[drawnGroups[f(3)]]++
		}
		hosts = append(hosts, h)
	}
	var vms []PlanVM
	for i := range 1 + f(mostVMs-1) {
		vm := PlanVM{
			ID: haven.VMID(fmt.Sprint("vm", i)), MemoryMiB: uint64(1 + f(5)), OverheadMiB: uint64(f(1)), VCPUs: f(2), Last: ids[f(mostHosts-1)],
			Priority: haven.Priorities()[f(5)], Preferred: some(), Failed: map[haven.HostID]int{ids[f(mostHosts-1)]: f(2)},
		}
		for _, g := range drawnGroups {
			if one(5) {
				vm.Groups = append(vm.Groups, g)
			}
		}
		if one(4) {
			vm.Allowed = some()
		}
		for _, need := range []*string{&vm.MachineType, &vm.CPUModel} {
			if one(6) {
				*need = drawnNames[f(1)]
			}
		}
		for _, need := range []*[]string{&vm.Networks, &vm.Disks} {
			if one(6) {
				*need = drawnNames[:f(2)]
			}
		}
		vms = append(vms, vm)
	}
	return vms, hosts, PlanLimits{StartsPerHost: 1 + f(5), VCPURatio: float64(f(4))}
}

// allows is the dumb judge of who is where, at[i] being the host of VM i or -1: it
// adds everything up, and says what is wrong.
func allows(vms []PlanVM, hosts []PlanHost, limits PlanLimits, at []int) error {
	for h, host := range hosts {
		mib, cpus, starts := host.ReserveMiB, host.VCPUs, host.Starting
		for i, vm := range vms {
			if at[i] != h {
				continue
			}
			mib, cpus, starts = mib+vm.MemoryMiB+vm.OverheadMiB, cpus+vm.VCPUs, starts+1
			tooMany := vm.VCPUs > 0 && host.CPUs > 0 && limits.VCPURatio > 0 && float64(cpus) > limits.VCPURatio*float64(host.CPUs)
			switch {
			case vm.Priority == haven.PriorityOff, host.Refuses != "", lacks(&vm, &host) != "":
				return fmt.Errorf("%s must not be on %s", vm.ID, host.ID)
			case starts > limits.StartsPerHost, mib > host.FreeMiB, vm.OverheadMiB > 1<<62, tooMany:
				return fmt.Errorf("%s is too much for %s", vm.ID, host.ID)
			}
		}
	}
	for i, vm := range vms {
		for _, g := range vm.Groups {
			if at[i] < 0 || !g.Strict {
				continue
			}
			here, elsewhere := hosts[at[i]].Groups[g], 0
			for h, host := range hosts {
				if h != at[i] {
					elsewhere += host.Groups[g]
				}
			}
			apartFrom := 0
			for k := range vms {
				if k != i && at[k] >= 0 && slices.Contains(vms[k].Groups, g) {
					if at[k] == at[i] {
						apartFrom++
					} else if !g.Apart && here == 0 {
						return fmt.Errorf("%s and %s are not together", vm.ID, vms[k].ID)
					}
				}
			}
			if g.Apart && here+apartFrom > 0 || !g.Apart && here == 0 && elsewhere > 0 {
				return fmt.Errorf("%s on %s breaks %v", vm.ID, hosts[at[i]].ID, g)
			}
		}
	}
	return nil
}

// check judges a plan: nothing is broken, and nobody is left out for whom there is
// a host as things are.
func check(vms []PlanVM, hosts []PlanHost, limits PlanLimits, plan []Placement) error {
	at := make([]int, len(vms))
	for i, p := range plan {
		at[i] = slices.IndexFunc(hosts, func(h PlanHost) bool { return h.ID == p.Host })
		if p.VM != vms[i].ID || p.Why == "" || (p.Host == "") != (at[i] < 0) || (p.Host != "" && p.Hold != "") {
			return fmt.Errorf("answer %d: %+v", i, p)
		}
	}
	if err := allows(vms, hosts, limits, at); err != nil {
		return err
	}
	for i := range vms {
		if at[i] >= 0 {
			continue
		}
		for h := range hosts {
			at[i] = h
			if allows(vms, hosts, limits, at) == nil {
				return fmt.Errorf("%s was left out (%s), %s is free", vms[i].ID, plan[i].Why, hosts[h].ID)
			}
			if !strings.Contains(plan[i].Why, string(hosts[h].ID)+": ") && vms[i].Priority != haven.PriorityOff {
				return fmt.Errorf("%s: no word about %s: %s", vms[i].ID, hosts[h].ID, plan[i].Why)
			}
		}
		at[i] = -1
	}
	return nil
}

// P9, and no strict rule broken, whatever the rules are.
func TestPlanKeepsRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		vms, hosts, limits := drawRules(func(most int) int { return rapid.IntRange(0, most).Draw(t, "n") }, 10, 5)
		plan := Plan(vms, hosts, limits)
		if err := check(vms, hosts, limits, plan); err != nil {
			t.Fatalf("%v\n%+v", err, plan)
		}
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

// The same judge over many more cases than rapid draws, and a count that shows
// that moves happen in them.
func TestPlanKeepsRulesInMany(t *testing.T) {
	moved := 0
	for seed := range uint64(20_000) {
		vms, hosts, limits := drawRules(plain(seed), 12, 5)
		plan := Plan(vms, hosts, limits)
		if err := check(vms, hosts, limits, plan); err != nil {
			t.Fatalf("seed %d: %v\n%+v", seed, err, plan)
		}
		if slices.ContainsFunc(plan, func(p Placement) bool { return strings.Contains(p.Why, "makes room") }) {
			moved++
		}
	}
	if t.Logf("VMs were moved aside in %d cases", moved); moved < 100 {
		t.Error("too few to mean anything")
	}
}

func plain(seed uint64) func(most int) int {
	r := rand.New(rand.NewPCG(seed, 2))
	return func(most int) int { return r.IntN(most + 1) }
}

// tally is how many VMs of each priority have a host, the highest first.
type tally [5]int

func (a tally) compare(b tally) int { return slices.Compare(a[:], b[:]) }

func (a tally) sum() (n int) {
	for _, k := range a {
		n += k
	}
	return n
}

func (a *tally) add(p haven.Priority) { a[p.Rank()]++ }

// optimum tries every plan there is.
func optimum(vms []PlanVM, hosts []PlanHost, limits PlanLimits) (best, most tally) {
	at := slices.Repeat([]int{-1}, len(vms))
	var now tally
	var try func(i int)
	try = func(i int) {
		if now.compare(best) > 0 {
			best = now
		}
		if now.sum() > most.sum() {
			most = now
		}
		if i == len(vms) {
			return
		}
		for h := range hosts {
			if at[i] = h; allows(vms, hosts, limits, at) == nil {
				before := now
				now.add(vms[i].Priority)
				try(i + 1)
				now = before
			}
		}
		at[i] = -1
		try(i + 1)
	}
	try(0)
	return best, most
}

// Against every plan there is, on tight cases with rules. docs/placement.md tells
// these numbers.
func TestPlanQualityWithRules(t *testing.T) {
	const cases = 1500
	optimal, placed, possible, all, allFound, worst := 0, 0, 0, 0, 0, 0
	for seed := range uint64(cases) {
		vms, hosts, limits := drawRules(plain(seed), 6, 4)
		want := 0
		for _, vm := range vms {
			if vm.Priority != haven.PriorityOff {
				want++
			}
		}
		var got tally
		for i, p := range Plan(vms, hosts, limits) {
			if p.Host != "" {
				got.add(vms[i].Priority)
			}
		}
		best, most := optimum(vms, hosts, limits)
		if got.compare(best) > 0 {
			t.Fatalf("seed %d: %v placed, %v are possible", seed, got, best)
		}
		if got == best {
			optimal++
		}
		if most.sum() == want {
			all++
			if got.sum() == want {
				allFound++
			}
		}
		placed, possible = placed+got.sum(), possible+most.sum()
		worst = max(worst, most.sum()-got.sum())
	}
	t.Logf("%d cases: %d optimal by priority; %d of %d possible VMs placed, at most %d fewer; all placed in %d of %d cases in which that is possible",
		cases, optimal, placed, possible, worst, allFound, all)
	if optimal*1000 < cases*planOptimal || placed*1000 < possible*planPlaced || allFound*1000 < all*planAll || worst > planWorst {
		t.Error("the plan is worse than it was, and than docs/placement.md says")
	}
}

// The floors of TestPlanQualityWithRules, in thousandths, and the most VMs fewer
// than possible.
const (
	planOptimal, planPlaced, planAll = 970, 975, 970
	planWorst                        = 1
)

// spread is the dumb twin of a plan without rules: it knows none of them, and
// moves nobody.
func spread(vms []PlanVM, hosts []PlanHost, limits PlanLimits) map[haven.VMID]haven.HostID {
	vms, hosts = slices.Clone(vms), slices.Clone(hosts)
	slices.SortFunc(vms, func(a, b PlanVM) int {
		return cmp.Or(cmp.Compare(b.MemoryMiB, a.MemoryMiB), cmp.Compare(a.ID, b.ID))
	})
	to := map[haven.VMID]haven.HostID{}
	for _, vm := range vms {
		slices.SortFunc(hosts, func(a, b PlanHost) int {
			last := func(h PlanHost) int { return map[bool]int{true: 0, false: 1}[h.ID == vm.Last] }
			return cmp.Or(cmp.Compare(vm.Failed[a.ID], vm.Failed[b.ID]), cmp.Compare(last(a), last(b)), cmp.Compare(a.Starting, b.Starting),
				cmp.Compare(b.FreeMiB, a.FreeMiB), cmp.Compare(a.Running, b.Running), cmp.Compare(a.ID, b.ID))
		})
		for i := range hosts {
			if h := &hosts[i]; h.Refuses == "" && h.FreeMiB >= vm.MemoryMiB && h.Starting < limits.StartsPerHost {
				to[vm.ID] = h.ID
				h.FreeMiB -= vm.MemoryMiB
				h.Starting++
				h.Running++
				break
			}
		}
	}
	return to
}

// Whoever sets no rules gets spreading by memory alone, and beyond it, where a VM
// finds no host, moves that serve it before smaller ones.
func TestPlanWithoutRules(t *testing.T) {
	same, moved := 0, 0
	for seed := range uint64(5000) {
		vms, hosts, limits := tightCase(rand.New(rand.NewPCG(seed, 3)))
		want, got := spread(vms, hosts, limits), map[haven.VMID]haven.HostID{}
		repaired := false
		for _, p := range Plan(vms, hosts, limits) {
			if p.Host != "" {
				got[p.VM] = p.Host
			}
			repaired = repaired || strings.Contains(p.Why, "makes room")
		}
		if !repaired {
			if same++; !reflect.DeepEqual(want, got) {
				t.Fatalf("seed %d: %v, want %v", seed, got, want)
			}
			continue
		}
		moved++
		slices.SortFunc(vms, func(a, b PlanVM) int {
			return cmp.Or(cmp.Compare(b.MemoryMiB, a.MemoryMiB), cmp.Compare(a.ID, b.ID))
		})
		i := slices.IndexFunc(vms, func(vm PlanVM) bool { return (want[vm.ID] == "") != (got[vm.ID] == "") })
		if i < 0 || got[vms[i].ID] == "" {
			t.Fatalf("seed %d: the moves served nobody: %v, the twin has %v", seed, got, want)
		}
	}
	if t.Logf("%d the same, %d with moves", same, moved); same < 4000 || moved < 20 {
		t.Error("the cases do not show both")
	}
}

package vmrestart

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/haven-ha/haven"
)

func TestSurvives(t *testing.T) {
	vm := func(id haven.VMID, on haven.HostID, mib uint64) PlanVM {
		return PlanVM{ID: id, Last: on, MemoryMiB: mib}
	}
	host := func(id haven.HostID, free uint64) PlanHost { return PlanHost{ID: id, FreeMiB: free} }
	tests := []struct {
		name  string
		hosts []PlanHost
		vms   []PlanVM
		r     int
		want  haven.Tri
		worst string
	}{
		{name: "no hosts", r: 1, want: haven.Yes},
		{name: "nothing runs", hosts: []PlanHost{host("a", 0)}, r: 1, want: haven.Yes},
		{name: "one host alone", hosts: []PlanHost{host("a", 9)}, vms: []PlanVM{vm("1", "a", 1)}, r: 1, want: haven.No, worst: "[a] [1] 0 no-plan"},
		{name: "there is room", hosts: []PlanHost{host("a", 2), host("b", 1)}, vms: []PlanVM{vm("1", "a", 1), vm("2", "b", 2)}, r: 1, want: haven.Yes},
		{name: "there is not", hosts: []PlanHost{host("a", 2), host("b", 1)}, vms: []PlanVM{vm("1", "a", 2), vm("2", "b", 2)}, r: 1, want: haven.No, worst: "[a] [1] 2 no-plan"},
		{name: "two at once", hosts: []PlanHost{host("a", 4), host("b", 4), host("c", 3)}, vms: []PlanVM{vm("1", "a", 2), vm("2", "b", 2)}, r: 2, want: haven.No, worst: "[a b] [2] 2 no-plan"},
		{name: "off counts for nothing", hosts: []PlanHost{host("a", 0), host("b", 0)}, vms: []PlanVM{{ID: "1", Last: "a", MemoryMiB: 1, Priority: haven.PriorityOff}}, r: 1, want: haven.Yes},
		{name: "a VM of another place", hosts: []PlanHost{host("a", 0), host("b", 0)}, vms: []PlanVM{vm("1", "z", 2)}, r: 1, want: haven.Yes},
		{name: "a rule, not memory", hosts: []PlanHost{host("a", 9), host("b", 9)}, vms: []PlanVM{{ID: "1", Last: "a", Groups: []PlanGroup{strictApart}}, {ID: "2", Last: "b", Groups: []PlanGroup{strictApart}}}, r: 1, want: haven.No, worst: "[a] [1] 0 no-plan"},
		{name: "starts in flight only take time", hosts: []PlanHost{host("a", 9), {ID: "b", FreeMiB: 9, Starting: 99}}, vms: []PlanVM{vm("1", "a", 1), vm("2", "a", 1), vm("3", "a", 1)}, r: 1, want: haven.Yes},
		{name: "a host that takes none may fail all the same", hosts: []PlanHost{{ID: "a", Refuses: "it is in maintenance"}, host("b", 1)}, vms: []PlanVM{vm("1", "a", 2)}, r: 1, want: haven.No, worst: "[a] [1] 2 no-plan"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := Survives(tt.hosts, tt.vms, PlanLimits{StartsPerHost: 1}, tt.r)
			worst := ""
			if len(s.Worst) > 0 {
				var left []haven.VMID
				for _, p := range s.Worst[0].Left {
					left = append(left, p.VM)
					if p.Why == "" {
						t.Errorf("no reason for %s", p.VM)
					}
				}
				worst = fmt.Sprintf("%v %v %d %s", s.Worst[0].Hosts, left, s.Worst[0].MissingMiB, s.Worst[0].Proof)
			}
			if s.Holds() != tt.want || worst != tt.worst || s.Tried != s.Cases {
				t.Errorf("%v, worst %q, want %v, %q: %+v", s.Holds(), worst, tt.want, tt.worst, s)
			}
		})
	}
}

// Every set of hosts, planned for by the dumb search over all plans, must agree
// with what Survives says of it, and of the sum.
func TestSurvivesAgainstAllPlans(t *testing.T) {
	proofs := map[LossProof]int{}
	holds := map[haven.Tri]int{}
	for seed := range uint64(3000) {
		f := plain(seed)
		vms, hosts, limits := drawRules(f, 6, 4)
		for h := range hosts {
			hosts[h].Groups = nil
		}
		r := 1 + f(1)
		s := Survives(hosts, vms, limits, r)
		holds[s.Holds()]++
		limits.StartsPerHost = 1000
		lost := 0
		for set := range 1 << len(hosts) {
			var failed []haven.HostID
			var left []PlanHost
			for h, host := range hosts {
				if set>>h&1 == 1 {
					failed = append(failed, host.ID)
				} else {
					left = append(left, host)
				}
			}
			if len(failed) != min(r, len(hosts)) {
				continue
			}
			var down []PlanVM
			for h := range left {
				left[h].Groups = map[PlanGroup]int{}
			}
			for _, vm := range vms {
				at := slices.IndexFunc(left, func(h PlanHost) bool { return h.ID == vm.Last })
				switch {
				case at >= 0:
					for _, g := range vm.Groups {
						left[at].Groups[g]++
					}
				case slices.Contains(failed, vm.Last) && vm.Priority != haven.PriorityOff:
					down = append(down, vm)
				}
			}
			_, most := optimum(down, left, limits)
			i := slices.IndexFunc(s.Worst, func(l Loss) bool { return slices.Equal(l.Hosts, failed) })
			if i < 0 {
				if most.sum() < len(down) {
					t.Fatalf("seed %d: %v cannot be survived, and is not told: %+v", seed, failed, s)
				}
				continue
			}
			lost++
			l := s.Worst[i]
			proofs[l.Proof]++
			if (l.Proof == LossPlanThere) != (most.sum() == len(down)) || l.Proof == LossOpen || len(l.Left) < len(down)-most.sum() {
				t.Fatalf("seed %d: %d of %d can be placed: %+v", seed, most.sum(), len(down), l)
			}
		}
		if lost != s.Lost || s.Tried != s.Cases {
			t.Fatalf("seed %d: %d lost, %+v", seed, lost, s)
		}
	}
	t.Logf("%v, %v", holds, proofs)
	if holds[haven.Yes] < 100 || holds[haven.No] < 100 || proofs[LossProved] < 100 || proofs[LossPlanThere] == 0 {
		t.Error("the cases do not show enough")
	}
}

// The search for several failures is bounded and says so; the one for a single
// failure is never cut.
func TestSurvivesGivesUp(t *testing.T) {
	var hosts []PlanHost
	var vms []PlanVM
	for i := range surviveCases + 1 {
		id := haven.HostID(fmt.Sprintf("h%04d", i))
		hosts = append(hosts, PlanHost{ID: id, FreeMiB: 1})
		if i < 10 {
			vms = append(vms, PlanVM{ID: haven.VMID(id), Last: id, MemoryMiB: 1})
		}
	}
	if s := Survives(hosts, vms, PlanLimits{}, 1); s.Tried != surviveCases+1 || s.Holds() != haven.Yes {
		t.Errorf("one: %+v", s)
	}
	if s := Survives(hosts[:100], vms, PlanLimits{}, 2); s.Tried != surviveCases || s.Cases != 4950 || s.Holds() != haven.Unknown {
		t.Errorf("two: %+v", s)
	}
	// Those that displace most come first: what is lost is found before.
	for i := range hosts {
		hosts[i].FreeMiB = 0
	}
	s := Survives(hosts[:100], vms, PlanLimits{}, 2)
	if s.Holds() != haven.No || len(s.Worst) != lossesKept || s.Worst[0].MissingMiB != 2 || s.Worst[0].Proof != LossProved {
		t.Errorf("two, and no room: %+v", s)
	}
}

// A case that is too large to know.
func TestSurvivesOpen(t *testing.T) {
	hosts := []PlanHost{{ID: "x"}}
	// An odd sum of even sizes leaves one host one short; all must be tried to see it.
	for i := range 8 {
		hosts = append(hosts, PlanHost{ID: haven.HostID(fmt.Sprint("h", i)), FreeMiB: 11})
	}
	var vms []PlanVM
	sizes := slices.Repeat([]uint64{4, 2, 2, 2}, 8)
	for i, mib := range append(sizes, 3, 3) {
		vms = append(vms, PlanVM{ID: haven.VMID(fmt.Sprintf("%02d", i)), Last: "x", MemoryMiB: mib})
	}
	s := Survives(hosts, vms, PlanLimits{}, 1)
	if s.Lost != 1 || s.Worst[0].Proof != LossOpen {
		t.Errorf("%+v", s)
	}
}

func TestBinomial(t *testing.T) {
	for n := range 12 {
		for r := range n + 1 {
			if n == 0 {
				continue
			}
			set, count := make([]int, r), 1
			for i := range set {
				set[i] = i
			}
			for next(set, n) {
				count++
			}
			if got := binomial(n, r); got != count {
				t.Errorf("%d of %d: %d, there are %d", r, n, got, count)
			}
		}
	}
	if got := binomial(1000, 500); got != math.MaxInt {
		t.Errorf("%d", got)
	}
}

func BenchmarkSurvives(b *testing.B) {
	var hosts []PlanHost
	var vms []PlanVM
	for i := range 200 {
		hosts = append(hosts, PlanHost{ID: haven.HostID(fmt.Sprintf("h%03d", i)), FreeMiB: uint64(8192 + i*991%32768)})
		for k := range 5 {
			vms = append(vms, PlanVM{ID: haven.VMID(fmt.Sprintf("vm%03d-%d", i, k)), Last: hosts[i].ID, MemoryMiB: uint64(512 + cmp.Or(i*37%8192, 1))})
		}
	}
	for _, r := range []int{1, 2} {
		b.Run(fmt.Sprint(r), func(b *testing.B) {
			for b.Loop() {
				Survives(hosts, vms, PlanLimits{}, r)
			}
		})
	}
}

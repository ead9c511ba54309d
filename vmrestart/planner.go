package vmrestart

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/haven-ha/haven"
)

// planner is a plan in the making. VMs, hosts, groups and zones are known by
// their numbers, because names are slow to compare.
type planner struct {
	vms    []PlanVM
	hosts  []PlanHost // by id; what they have left changes as VMs are placed
	limits PlanLimits

	order  []int    // the VMs in the order of placing
	need   []uint64 // memory for each VM with its overhead
	suits  []bool   // VM × host; nil when no VM asks for anything
	placed []Placement
	on     [][]int // for each host the VMs that this plan placed there

	groups  []PlanGroup
	member  [][]int // for each VM its groups
	here    [][]int // host × group: members
	inZones [][]int // zone × group: members
	total   []int   // for each group: members
	zone    []int   // for each host; -1: none
	mates   [][]int // for each VM those that are to be on one host with it; nil when none

	steps    int    // spent on repairs
	roomy    uint64 // the most memory free on one host, at the last repair
	repaired bool
}

func newPlanner(vms []PlanVM, hosts []PlanHost, limits PlanLimits) *planner {
	p := &planner{
		vms: vms, hosts: slices.Clone(hosts), limits: limits, order: make([]int, len(vms)), need: make([]uint64, len(vms)),
		placed: make([]Placement, len(vms)), on: make([][]int, len(hosts)),
	}
	p.limits.StartsPerHost = max(1, limits.StartsPerHost)
	slices.SortFunc(p.hosts, func(a, b PlanHost) int { return cmp.Compare(a.ID, b.ID) })
	for h := range p.hosts {
		p.hosts[h].FreeMiB -= min(p.hosts[h].FreeMiB, p.hosts[h].ReserveMiB)
	}
	for v := range vms {
		p.order[v] = v
		p.need[v] = vms[v].MemoryMiB + min(vms[v].OverheadMiB, math.MaxUint64-vms[v].MemoryMiB)
	}
	p.findSuits()
	p.findGroups()
	p.sort()
	return p
}

// sort finds the order of placing: by priority, then large ones first, where VMs
// of one priority that are to be together count as one.
func (p *planner) sort() {
	size, first, rank := slices.Clone(p.need), make([]haven.VMID, len(p.vms)), make([]int, len(p.vms))
	for v := range p.vms {
		rank[v] = p.vms[v].Priority.Rank()
	}
	for v := range p.vms {
		first[v] = p.vms[v].ID
		for _, m := range p.mates[v] {
			if rank[m] == rank[v] {
				size[v] += min(p.need[m], math.MaxUint64-size[v])
				first[v] = min(first[v], p.vms[m].ID)
			}
		}
	}
	slices.SortStableFunc(p.order, func(a, b int) int {
		if rank[a] != rank[b] {
			return cmp.Compare(rank[a], rank[b])
		}
		return cmp.Or(cmp.Compare(size[b], size[a]), cmp.Compare(first[a], first[b]), cmp.Compare(p.need[b], p.need[a]), cmp.Compare(p.vms[a].ID, p.vms[b].ID))
	})
}

// lacks says what keeps a VM from a host for good, or nothing.
func lacks(vm *PlanVM, host *PlanHost) string {
	missing := func(kind, name string, offer Offer) string {
		if name == "" || !offer.Known || slices.Contains(offer.Names, name) {
			return ""
		}
		return kind + " " + name + " is not there"
	}
	if len(vm.Allowed) > 0 && !slices.Contains(vm.Allowed, host.ID) {
		return "it is not one of the VM's allowed hosts"
	}
	if why := cmp.Or(missing("machine type", vm.MachineType, host.MachineTypes), missing("CPU model", vm.CPUModel, host.CPUModels)); why != "" {
		return why
	}
	for _, n := range vm.Networks {
		if why := missing("network", n, host.Networks); why != "" {
			return why
		}
	}
	for _, d := range vm.Disks {
		if why := missing("disk", d, host.Disks); why != "" {
			return why
		}
	}
	return ""
}

// findSuits finds the hosts that have all that a VM asks for.
func (p *planner) findSuits() {
	asks := func(vm PlanVM) bool {
		return len(vm.Allowed)+len(vm.MachineType)+len(vm.CPUModel)+len(vm.Networks)+len(vm.Disks) > 0
	}
	if !slices.ContainsFunc(p.vms, asks) {
		return
	}
	type offered struct {
		kind byte
		name string
	}
	n := len(p.hosts)
	has := map[offered][]bool{} // for each name the hosts that have it, or said nothing
	index := make(map[haven.HostID]int, n)
	for h := range p.hosts {
		index[p.hosts[h].ID] = h
	}
	for _, kind := range []byte("mcnd") {
		for h := range p.hosts {
			for _, name := range p.offer(kind, h).Names {
				if has[offered{kind, name}] == nil {
					has[offered{kind, name}] = make([]bool, n)
				}
				has[offered{kind, name}][h] = true
			}
		}
	}
	p.suits = make([]bool, len(p.vms)*n)
	for v := range p.vms {
		vm, row := &p.vms[v], p.suits[v*n:(v+1)*n]
		for h := range row {
			row[h] = len(vm.Allowed) == 0
		}
		for _, id := range vm.Allowed {
			if h, ok := index[id]; ok {
				row[h] = true
			}
		}
		needs := func(kind byte, name string) {
			if name == "" {
				return
			}
			there := has[offered{kind, name}]
			for h := range row {
				row[h] = row[h] && ((there != nil && there[h]) || !p.offer(kind, h).Known)
			}
		}
		needs('m', vm.MachineType)
		needs('c', vm.CPUModel)
		for _, name := range vm.Networks {
			needs('n', name)
		}
		for _, name := range vm.Disks {
			needs('d', name)
		}
	}
}

func (p *planner) offer(kind byte, h int) *Offer {
	switch host := &p.hosts[h]; kind {
	case 'm':
		return &host.MachineTypes
	case 'c':
		return &host.CPUModels
	case 'n':
		return &host.Networks
	default:
		return &host.Disks
	}
}

func (p *planner) suited(v, h int) bool { return p.suits == nil || p.suits[v*len(p.hosts)+h] }

// findGroups numbers the groups of the VMs and counts who runs already.
func (p *planner) findGroups() {
	number := map[PlanGroup]int{}
	p.member = make([][]int, len(p.vms))
	var members [][]int
	for v := range p.vms {
		for _, group := range p.vms[v].Groups {
			g, ok := number[group]
			if !ok {
				g = len(p.groups)
				number[group] = g
				p.groups, members = append(p.groups, group), append(members, nil)
			}
			if !slices.Contains(p.member[v], g) {
				p.member[v], members[g] = append(p.member[v], g), append(members[g], v)
			}
		}
	}
	zones := map[string]int{}
	p.total = make([]int, len(p.groups))
	p.here, p.zone = make([][]int, len(p.hosts)), make([]int, len(p.hosts))
	for h := range p.hosts {
		host := &p.hosts[h]
		p.zone[h], p.here[h] = -1, make([]int, len(p.groups))
		if host.Zone != "" {
			z, ok := zones[host.Zone]
			if !ok {
				z = len(zones)
				zones[host.Zone] = z
				p.inZones = append(p.inZones, make([]int, len(p.groups)))
			}
			p.zone[h] = z
		}
		for group, n := range host.Groups {
			if g, ok := number[group]; ok {
				p.count(h, g, n)
			}
		}
	}
	p.findMates(members)
}

// findMates finds, for each VM, those of its keep-together groups that are planned too.
func (p *planner) findMates(members [][]int) {
	p.mates = make([][]int, len(p.vms))
	for v := range p.vms {
		for _, g := range p.member[v] {
			if p.groups[g].Apart {
				continue
			}
			for _, m := range members[g] {
				if m != v && p.vms[m].Priority != haven.PriorityOff && !slices.Contains(p.mates[v], m) {
					p.mates[v] = append(p.mates[v], m)
				}
			}
		}
	}
}

// count notes n more members of a group on a host.
func (p *planner) count(h, g, n int) {
	p.here[h][g] += n
	p.total[g] += n
	if z := p.zone[h]; z >= 0 {
		p.inZones[z][g] += n
	}
}

// What keeps a VM from a host. Of several hosts the highest is what it waits for.
const (
	free = iota
	refuses
	unsuited
	ruled
	short
	busy
)

func (p *planner) obstacle(v, h int) int {
	host := &p.hosts[h]
	switch {
	case host.Refuses != "":
		return refuses
	case !p.suited(v, h):
		return unsuited
	case len(p.member[v]) > 0 && p.rule(v, h) >= 0:
		return ruled
	case host.FreeMiB < p.need[v] || !p.cpusFor(h, p.vms[v].VCPUs):
		return short
	case host.Starting >= p.limits.StartsPerHost:
		return busy
	}
	return free
}

// cpusFor says whether so many more vCPUs keep to the ratio.
func (p *planner) cpusFor(h, vcpus int) bool {
	host := &p.hosts[h]
	return p.limits.VCPURatio <= 0 || host.CPUs <= 0 || vcpus <= 0 || float64(host.VCPUs+vcpus) <= p.limits.VCPURatio*float64(host.CPUs)
}

// rule is the first strict group whose rule forbids the host, or -1.
func (p *planner) rule(v, h int) int {
	for _, g := range p.member[v] {
		if p.groups[g].Strict && p.against(g, h) > 0 {
			return g
		}
	}
	return -1
}

// against is how far one more member on a host is against the rule of a group.
func (p *planner) against(g, h int) int {
	switch n := p.here[h][g]; {
	case p.groups[g].Apart:
		return n
	case n == 0 && p.total[g] > 0:
		return 1
	}
	return 0
}

// broken is how far a host is against the preferred rules of a VM.
func (p *planner) broken(v, h int) int {
	n := 0
	for _, g := range p.member[v] {
		if !p.groups[g].Strict {
			n += p.against(g, h)
		}
	}
	return n
}

// inZone is how many VMs are in the host's zone that the VM is kept apart from.
func (p *planner) inZone(v, h int) int {
	n := 0
	if z := p.zone[h]; z >= 0 {
		for _, g := range p.member[v] {
			if p.groups[g].Apart {
				n += p.inZones[z][g]
			}
		}
	}
	return n
}

// cramped is 1 when a VM and those that are to be with it do not all fit on a host.
func (p *planner) cramped(v, h int) int {
	if len(p.mates[v]) == 0 {
		return 0
	}
	host := &p.hosts[h]
	left, vcpus := host.FreeMiB-min(host.FreeMiB, p.need[v]), max(0, p.vms[v].VCPUs)
	for _, m := range p.mates[v] {
		if p.placed[m].Host != "" {
			continue
		}
		vcpus += max(0, p.vms[m].VCPUs)
		if left < p.need[m] || !p.suited(m, h) || !p.cpusFor(h, vcpus) {
			return 1
		}
		left -= p.need[m]
	}
	return 0
}

// put takes the room for a VM on a host, take gives it back.
func (p *planner) put(v, h int) {
	p.change(v, h, 1)
	p.hosts[h].FreeMiB -= p.need[v]
	p.on[h] = append(p.on[h], v)
}

func (p *planner) take(v, h int) {
	p.change(v, h, -1)
	p.hosts[h].FreeMiB += p.need[v]
	i := slices.Index(p.on[h], v)
	p.on[h] = slices.Delete(p.on[h], i, i+1)
}

func (p *planner) change(v, h, by int) {
	host := &p.hosts[h]
	host.VCPUs += by * max(0, p.vms[v].VCPUs)
	host.Starting += by
	host.Running += by
	for _, g := range p.member[v] {
		p.count(h, g, by)
	}
}

// settle puts a VM on a host and says why.
func (p *planner) settle(v, h int, note string) {
	host := &p.hosts[h]
	why := fmt.Sprintf("%d MiB free, %d VMs, %d starting", host.FreeMiB, host.Running, host.Starting)
	if i := slices.IndexFunc(p.member[v], func(g int) bool { return !p.groups[g].Strict && p.against(g, h) > 0 }); i >= 0 {
		why += "; against the preferred rule of group " + clip(p.groups[p.member[v][i]].Name)
	}
	if note != "" {
		why += "; " + clip(note)
	}
	p.put(v, h)
	p.placed[v] = Placement{VM: p.vms[v].ID, Host: host.ID, Why: why}
}

const (
	// reasonsGiven is how many hosts an answer speaks of.
	reasonsGiven = 8
	// reasonLength is how much of one reason is told, in octets.
	reasonLength = 200
)

// clip shortens a reason.
func clip(s string) string {
	if len(s) <= reasonLength {
		return s
	}
	return strings.ToValidUTF8(s[:reasonLength], "") + "…"
}

// unplaced says why there is no host for a VM.
func (p *planner) unplaced(v int) Placement {
	worst := free
	var why []string
	var others [busy + 1]int
	for h := range p.hosts {
		o := p.obstacle(v, h)
		worst = max(worst, o)
		if len(why) == reasonsGiven {
			others[o]++
			continue
		}
		why = append(why, string(p.hosts[h].ID)+": "+clip(p.reason(v, h, o)))
	}
	a := Placement{VM: p.vms[v].ID, Why: cmp.Or(strings.Join(why, "; "), "no host is there")}
	if more := len(p.hosts) - reasonsGiven; more > 0 {
		a.Why += fmt.Sprintf("; and %d more hosts", more)
		sep := ": "
		for o, name := range [...]string{refuses: "refuse", unsuited: "lack something", ruled: "against a strict rule", short: "without room", busy: "busy with starts"} {
			if others[o] > 0 {
				a.Why += fmt.Sprintf("%s%d %s", sep, others[o], name)
				sep = ", "
			}
		}
	}
	switch worst {
	case busy:
	case short:
		a.Hold = haven.HoldCapacity
	default:
		a.Hold = haven.HoldNoHost
	}
	return a
}

// reason puts an obstacle into words.
func (p *planner) reason(v, h, obstacle int) string {
	host := &p.hosts[h]
	switch obstacle {
	case refuses:
		return host.Refuses
	case unsuited:
		return lacks(&p.vms[v], host)
	case ruled:
		group := p.groups[p.rule(v, h)]
		if group.Apart {
			return "a VM that it is kept apart from is there, group " + group.Name
		}
		return "the VMs that it is kept together with are elsewhere, group " + group.Name
	case short:
		if host.FreeMiB < p.need[v] {
			return fmt.Sprintf("%d MiB free, %d needed", host.FreeMiB, p.need[v])
		}
		return fmt.Sprintf("%d vCPUs on %d CPUs, %d needed, %g for each are allowed", host.VCPUs, host.CPUs, p.vms[v].VCPUs, p.limits.VCPURatio)
	}
	return fmt.Sprintf("%d starts in flight", host.Starting)
}

package vmrestart

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/haven-ha/haven"
)

// WavePhase is how far a VM is on its way to run.
type WavePhase string

// The phases of a VM.
const (
	WaveQueued   WavePhase = "queued"   // it is to be started; it may have failed and be due again
	WaveStarting WavePhase = "starting" // it was ordered to start, and has not been seen running
	WaveRunning  WavePhase = "running"  //
	WaveAbsent   WavePhase = "absent"   // nothing will start it: its user stopped it, its priority is off, an operator is needed
)

// WaveVM is a VM as Waves sees it. All times are of one clock.
type WaveVM struct {
	ID       haven.VMID
	Name     string
	Priority haven.Priority
	After    []haven.StartAfter
	Phase    WavePhase
	// Queued is when it was first to be started. It stays the same while the VM
	// fails, waits and is started again: all timeouts count from it. Zero for a
	// VM that was not to be started.
	Queued time.Time
	// Running is since when it runs, Agent since when its guest agent answers,
	// Ports since when TCP ports of it take connections. Zero or missing: not now.
	Running time.Time
	Agent   time.Time
	Ports   map[int]time.Time
}

// WaveWait is one VM that another waits for.
type WaveWait struct {
	On    haven.VMID
	Name  string
	Ready haven.Readiness
	Until time.Time // no longer than that, as things are now
}

// WaveSkip is a VM that is not waited for although the policy names it.
type WaveSkip struct {
	VM  string // as the policy names it
	Why string
}

// Turn is the answer for one queued VM.
type Turn struct {
	VM haven.VMID
	// Start says that it may start now. Otherwise Waits is not empty.
	Start bool
	Waits []WaveWait
	// Skips are named, so that a start without what it was to wait for is seen.
	Skips []WaveSkip
}

// Waves says which of the queued VMs may start now, and which wait for whom. The
// answers come in the order in which the VMs are to be started: by priority, by
// how long they are queued, by id. A VM that others wait for has at least their
// priority.
//
// No wait is for ever. It ends when the other VM is ready, or when its timeout
// is over, which counts from when the other VM itself had nothing left to wait
// for, whether or not it was then started. So a VM waits at most for the sum of
// the timeouts along its longest chain, after the last VM of that was queued. A
// VM that nothing will start, that is missing or that stands in a circle is not
// waited for at all. A time in the future counts as now.
func Waves(now time.Time, vms []WaveVM) []Turn {
	g := newStartGraph(vms)
	open := make([]time.Time, len(g.vms))
	// Of a VM and those it waits for the latter come first.
	for _, i := range g.order {
		open[i] = g.opens(now, i, open)
	}
	rank := g.ranks()
	var queued []int
	for i := range g.vms {
		if g.vms[i].Phase == WaveQueued {
			queued = append(queued, i)
		}
	}
	slices.SortFunc(queued, func(a, b int) int {
		return cmp.Or(cmp.Compare(rank[a], rank[b]), g.vms[a].Queued.Compare(g.vms[b].Queued), cmp.Compare(g.vms[a].ID, g.vms[b].ID))
	})
	turns := make([]Turn, len(queued))
	for k, i := range queued {
		turns[k] = g.turn(now, i, open)
	}
	return turns
}

// opens is when VM i has nothing left to wait for, as far as is known now.
func (g *startGraph) opens(now time.Time, i int, open []time.Time) time.Time {
	at := earlier(g.vms[i].Queued, now)
	for _, e := range g.edges[i] {
		if e.skip == "" {
			if _, until := g.wait(now, i, e, open); until.After(at) {
				at = until
			}
		}
	}
	if p := g.vms[i].Phase; p == WaveStarting || p == WaveRunning {
		at = earlier(at, now) // It was started, so it waits no more.
	}
	return at
}

// wait says until when VM i waits along an edge, and whether the other VM is
// ready, or will have been by then.
func (g *startGraph) wait(now time.Time, i int, e startEdge, open []time.Time) (ready bool, until time.Time) {
	other := &g.vms[e.to]
	if other.Phase == WaveAbsent {
		return false, time.Time{}
	}
	from := earlier(g.vms[i].Queued, now)
	if open[e.to].After(from) {
		from = open[e.to]
	}
	end := from.Add(time.Duration(e.after.Timeout()) * time.Second)
	at, ok := readyAt(now, other, e.after.Ready)
	if ok && !at.After(end) {
		return true, at
	}
	return ok && !at.After(now), end // Too late, but ready all the same.
}

// readyAt is when a VM became ready, or will be if nothing happens.
func readyAt(now time.Time, vm *WaveVM, r haven.Readiness) (time.Time, bool) {
	kind, n, err := r.Parse()
	if err != nil || vm.Phase != WaveRunning || vm.Running.IsZero() {
		return time.Time{}, false
	}
	at := vm.Running
	switch kind {
	case haven.ReadyRunning, haven.ReadyDelay:
	case haven.ReadyAgent:
		at = vm.Agent
	case haven.ReadyTCP:
		at = vm.Ports[n]
	}
	if at.IsZero() {
		return at, false
	}
	at = earlier(at, now)
	if kind == haven.ReadyDelay {
		at = at.Add(time.Duration(n) * time.Second)
	}
	return at, true
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (g *startGraph) turn(now time.Time, i int, open []time.Time) Turn {
	t := Turn{VM: g.vms[i].ID}
	for _, e := range g.edges[i] {
		if e.skip != "" {
			t.Skips = append(t.Skips, WaveSkip{VM: e.after.VM, Why: e.skip})
			continue
		}
		other := &g.vms[e.to]
		ready, until := g.wait(now, i, e, open)
		switch {
		case other.Phase == WaveAbsent:
			t.Skips = append(t.Skips, WaveSkip{VM: e.after.VM, Why: "nothing starts it"})
		case until.After(now):
			t.Waits = append(t.Waits, WaveWait{On: other.ID, Name: other.Name, Ready: cmp.Or(e.after.Ready, haven.ReadyRunning), Until: until})
		case !ready:
			t.Skips = append(t.Skips, WaveSkip{VM: e.after.VM, Why: fmt.Sprintf("it was not ready (%s) within %d s", cmp.Or(e.after.Ready, haven.ReadyRunning), e.after.Timeout())})
		}
	}
	t.Start = len(t.Waits) == 0
	return t
}

// StartProblem is something wrong with who starts after whom.
type StartProblem struct {
	VM   haven.VMID // whose policy it is; of a circle its first
	Name string
	// Circle are the names of VMs that wait for each other, the first again at
	// the end. Empty for other problems.
	Circle []string
	Why    string
}

// CheckStartAfter finds circles and names that lead nowhere. Of VMs that stand in
// several circles with each other one circle is named, a shortest through the VM
// with the lowest id. The answer is in the order of ids.
func CheckStartAfter(vms []WaveVM) []StartProblem {
	g := newStartGraph(vms)
	var all []StartProblem
	for i := range g.vms {
		for _, e := range g.edges[i] {
			if e.to < 0 {
				all = append(all, StartProblem{VM: g.vms[i].ID, Name: g.vms[i].Name, Why: fmt.Sprintf("start after %q: %s", e.after.VM, e.skip)})
			}
		}
	}
	named := map[int]bool{}
	for i := range g.vms {
		if !g.inCircle(i) || named[g.part[i]] {
			continue
		}
		named[g.part[i]] = true
		names := g.circle(i)
		all = append(all, StartProblem{VM: g.vms[i].ID, Name: g.vms[i].Name, Circle: names, Why: "each waits for the next: " + strings.Join(names, ", ")})
	}
	slices.SortStableFunc(all, func(a, b StartProblem) int { return cmp.Compare(a.VM, b.VM) })
	return all
}

// startEdge is one start-after of one VM.
type startEdge struct {
	after haven.StartAfter
	to    int    // the other VM, or -1
	skip  string // why it is not waited for, from what the policies say alone
}

// startGraph is who starts after whom. VMs are sorted by id.
type startGraph struct {
	vms   []WaveVM
	edges [][]startEdge
	part  []int // VMs of one part reach each other
	order []int // each VM after all it waits for, circles aside
}

func newStartGraph(vms []WaveVM) *startGraph {
	g := &startGraph{vms: slices.Clone(vms)}
	slices.SortStableFunc(g.vms, func(a, b WaveVM) int { return cmp.Compare(a.ID, b.ID) })
	g.vms = slices.CompactFunc(g.vms, func(a, b WaveVM) bool { return a.ID == b.ID })
	byID, byName := map[haven.VMID]int{}, map[string][]int{}
	for i := range g.vms {
		byID[g.vms[i].ID] = i
		byName[g.vms[i].Name] = append(byName[g.vms[i].Name], i)
	}
	g.edges = make([][]startEdge, len(g.vms))
	for i := range g.vms {
		for _, a := range g.vms[i].After {
			e := startEdge{after: a, to: -1}
			id, err := haven.ParseVMID(a.VM)
			if to, ok := byID[id]; err == nil && ok {
				e.to = to
			} else if found := byName[a.VM]; len(found) == 1 {
				e.to = found[0]
			} else if len(found) > 1 {
				e.skip = fmt.Sprintf("%d VMs have this name; say which by its UUID", len(found))
			} else {
				e.skip = "there is no such VM"
			}
			g.edges[i] = append(g.edges[i], e)
		}
	}
	g.findParts()
	for i := range g.edges {
		for k := range g.edges[i] {
			if e := &g.edges[i][k]; e.to >= 0 && g.part[e.to] == g.part[i] {
				e.skip = "they wait for each other"
			}
		}
	}
	return g
}

// findParts is Tarjan's algorithm, without recursion: a chain may be as long as
// there are VMs. It ends the parts in the order that Waves needs.
func (g *startGraph) findParts() {
	n := len(g.vms)
	g.part = make([]int, n)
	index, low, next := make([]int, n), make([]int, n), make([]int, n) // index 0: not seen
	onStack := make([]bool, n)
	var stack, path []int
	count := 0
	enter := func(v int) {
		count++
		index[v], low[v], onStack[v] = count, count, true
		stack, path = append(stack, v), append(path, v)
	}
	for root := range n {
		if index[root] != 0 {
			continue
		}
		enter(root)
		for len(path) > 0 {
			v := path[len(path)-1]
			if next[v] < len(g.edges[v]) {
				w := g.edges[v][next[v]].to
				next[v]++
				switch {
				case w < 0:
				case index[w] == 0:
					enter(w)
				case onStack[w]:
					low[v] = min(low[v], index[w])
				}
				continue
			}
			path = path[:len(path)-1]
			if len(path) > 0 {
				parent := path[len(path)-1]
				low[parent] = min(low[parent], low[v])
			}
			for low[v] == index[v] {
				w := stack[len(stack)-1]
				stack, onStack[w] = stack[:len(stack)-1], false
				g.part[w] = v
				g.order = append(g.order, w)
				if w == v {
					break
				}
			}
		}
	}
}

// inCircle says whether a VM waits, over others or at once, for itself.
func (g *startGraph) inCircle(i int) bool {
	return slices.ContainsFunc(g.edges[i], func(e startEdge) bool { return e.to >= 0 && g.part[e.to] == g.part[i] })
}

// circle names the VMs on a shortest way from a VM back to it.
func (g *startGraph) circle(i int) []string {
	from := map[int]int{}
	for queue := []int{i}; len(queue) > 0; queue = queue[1:] {
		v := queue[0]
		for _, e := range g.edges[v] {
			if e.to == i {
				names := []string{g.vms[i].Name}
				for ; v != i; v = from[v] {
					names = append(names, g.vms[v].Name)
				}
				names = append(names, g.vms[i].Name)
				slices.Reverse(names)
				return names
			}
			if e.to < 0 || g.part[e.to] != g.part[i] {
				continue
			}
			if _, seen := from[e.to]; !seen {
				from[e.to] = v
				queue = append(queue, e.to)
			}
		}
	}
	return nil
}

// ranks are the priorities of the VMs, each raised to the highest of those that
// are queued and wait for it: else that would wait for all in between.
func (g *startGraph) ranks() []int {
	rank := make([]int, len(g.vms))
	for i := range g.vms {
		rank[i] = g.vms[i].Priority.Rank()
	}
	for _, i := range slices.Backward(g.order) {
		if g.vms[i].Phase != WaveQueued {
			continue
		}
		for _, e := range g.edges[i] {
			if e.skip == "" {
				rank[e.to] = min(rank[e.to], rank[i])
			}
		}
	}
	return rank
}

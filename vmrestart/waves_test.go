package vmrestart

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
)

func waveID(n int) haven.VMID {
	return haven.VMID(fmt.Sprintf("00000000-0000-4000-8000-%012d", n))
}

var wave0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func second(n int) time.Time { return wave0.Add(time.Duration(n) * time.Second) }

// waveVM is a VM with the name "a" + n, queued at second 0.
func waveVM(n int, phase WavePhase, after ...haven.StartAfter) WaveVM {
	vm := WaveVM{ID: waveID(n), Name: fmt.Sprintf("a%d", n), Phase: phase, After: after, Queued: wave0}
	if phase == WaveRunning {
		vm.Running = second(5)
	}
	return vm
}

func after(n int, ready haven.Readiness, timeout int) haven.StartAfter {
	return haven.StartAfter{VM: fmt.Sprintf("a%d", n), Ready: ready, TimeoutS: timeout}
}

// say writes an answer in one line.
func say(turns []Turn) string {
	var all []string
	for _, t := range turns {
		s := "a" + strings.TrimLeft(string(t.VM[len(t.VM)-12:]), "0")
		if t.Start {
			s += " starts"
		}
		for _, w := range t.Waits {
			s += fmt.Sprintf(" waits for %s (%s) until %d", w.Name, w.Ready, int(w.Until.Sub(wave0)/time.Second))
		}
		for _, w := range t.Skips {
			s += fmt.Sprintf(" without %s: %s", w.VM, w.Why)
		}
		all = append(all, s)
	}
	return strings.Join(all, "; ")
}

func TestWaves(t *testing.T) {
	agent := waveVM(1, WaveRunning)
	agent.Agent = second(8)
	port := waveVM(1, WaveRunning)
	port.Ports = map[int]time.Time{80: second(9)}
	high := waveVM(3, WaveQueued, after(1, "", 0))
	high.Priority = haven.PriorityHighest
	low := waveVM(1, WaveQueued)
	low.Priority = haven.PriorityLowest
	future := waveVM(1, WaveQueued)
	future.Queued = second(5000)
	byID := waveVM(2, WaveQueued, haven.StartAfter{VM: strings.ToUpper(string(waveID(1)))})
	double := waveVM(3, WaveRunning)
	double.Name = "a1"
	tests := []struct {
		name string
		now  int
		vms  []WaveVM
		want string
	}{
		{"nobody", 10, nil, ""},
		{"alone", 10, []WaveVM{waveVM(1, WaveQueued)}, "a1 starts"},
		{"behind a queued one", 10, []WaveVM{waveVM(1, WaveQueued), waveVM(2, WaveQueued, after(1, "", 0))}, "a1 starts; a2 waits for a1 (running) until 600"},
		{"by UUID", 10, []WaveVM{waveVM(1, WaveQueued), byID}, "a1 starts; a2 waits for a1 (running) until 600"},
		{"behind one under order", 10, []WaveVM{waveVM(1, WaveStarting), waveVM(2, WaveQueued, after(1, "", 0))}, "a2 waits for a1 (running) until 600"},
		{"behind a running one", 10, []WaveVM{waveVM(1, WaveRunning), waveVM(2, WaveQueued, after(1, "", 0))}, "a2 starts"},
		{"agent silent", 10, []WaveVM{waveVM(1, WaveRunning), waveVM(2, WaveQueued, after(1, "guest-agent", 60))}, "a2 waits for a1 (guest-agent) until 60"},
		{"agent answers", 10, []WaveVM{agent, waveVM(2, WaveQueued, after(1, "guest-agent", 60))}, "a2 starts"},
		{"port open", 10, []WaveVM{port, waveVM(2, WaveQueued, after(1, "tcp:80", 60))}, "a2 starts"},
		{"other port open", 10, []WaveVM{port, waveVM(2, WaveQueued, after(1, "tcp:81", 60))}, "a2 waits for a1 (tcp:81) until 60"},
		{"delay", 14, []WaveVM{waveVM(1, WaveRunning), waveVM(2, WaveQueued, after(1, "delay:10", 60))}, "a2 waits for a1 (delay:10) until 15"},
		{"delay over", 15, []WaveVM{waveVM(1, WaveRunning), waveVM(2, WaveQueued, after(1, "delay:10", 60))}, "a2 starts"},
		{"delay does not begin", 15, []WaveVM{waveVM(1, WaveStarting), waveVM(2, WaveQueued, after(1, "delay:10", 60))}, "a2 waits for a1 (delay:10) until 60"},
		{"timeout", 60, []WaveVM{waveVM(1, WaveStarting), waveVM(2, WaveQueued, after(1, "", 60))}, "a2 starts without a1: it was not ready (running) within 60 s"},
		{
			"a chain", 10,
			[]WaveVM{waveVM(1, WaveQueued), waveVM(2, WaveQueued, after(1, "", 60)), waveVM(3, WaveQueued, after(2, "", 30))},
			"a1 starts; a2 waits for a1 (running) until 60; a3 waits for a2 (running) until 90",
		},
		{
			"a chain whose first is dead", 60,
			[]WaveVM{waveVM(1, WaveQueued), waveVM(2, WaveQueued, after(1, "", 60)), waveVM(3, WaveQueued, after(2, "", 30))},
			"a1 starts; a2 starts without a1: it was not ready (running) within 60 s; a3 waits for a2 (running) until 90",
		},
		{"time counts from when the other may start", 40, []WaveVM{agent, waveVM(2, WaveStarting, after(1, "guest-agent", 60)), waveVM(3, WaveQueued, after(2, "", 35))}, "a3 waits for a2 (running) until 43"},
		{"one that was started waits for nobody any more", 10, []WaveVM{waveVM(1, WaveStarting), waveVM(2, WaveRunning, after(1, "", 60)), waveVM(3, WaveQueued, after(2, "guest-agent", 35))}, "a3 waits for a2 (guest-agent) until 45"},
		{"delay longer than what is left", 11, []WaveVM{waveVM(1, WaveRunning), waveVM(2, WaveQueued, after(1, "delay:10", 12))}, "a2 waits for a1 (delay:10) until 12"},
		{"delay cut off", 12, []WaveVM{waveVM(1, WaveRunning), waveVM(2, WaveQueued, after(1, "delay:10", 12))}, "a2 starts without a1: it was not ready (delay:10) within 12 s"},
		{"ready too late is ready", 12, []WaveVM{waveVM(1, WaveRunning), waveVM(2, WaveQueued, after(1, "", 3))}, "a2 starts"},
		{"user stopped it", 10, []WaveVM{waveVM(1, WaveAbsent), waveVM(2, WaveQueued, after(1, "", 0))}, "a2 starts without a1: nothing starts it"},
		{"missing", 10, []WaveVM{waveVM(2, WaveQueued, after(1, "", 0))}, "a2 starts without a1: there is no such VM"},
		{"two of the name", 10, []WaveVM{waveVM(1, WaveQueued), waveVM(2, WaveQueued, after(1, "", 0)), double}, "a1 starts; a2 starts without a1: 2 VMs have this name; say which by its UUID"},
		{
			"circle", 10,
			[]WaveVM{waveVM(1, WaveQueued, after(2, "", 0)), waveVM(2, WaveQueued, after(1, "", 0)), waveVM(3, WaveQueued, after(2, "", 0))},
			"a1 starts without a2: they wait for each other; a2 starts without a1: they wait for each other; a3 waits for a2 (running) until 600",
		},
		{"itself", 10, []WaveVM{waveVM(1, WaveQueued, after(1, "", 0))}, "a1 starts without a1: they wait for each other"},
		{"priority", 10, []WaveVM{low, high, waveVM(2, WaveQueued)}, "a1 starts; a3 waits for a1 (running) until 600; a2 starts"},
		{"clock ran backwards", 10, []WaveVM{future, waveVM(2, WaveQueued, after(1, "", 20))}, "a2 waits for a1 (running) until 30; a1 starts"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := say(Waves(second(tt.now), tt.vms)); got != tt.want {
				t.Errorf("Waves() =\n%s, want\n%s", got, tt.want)
			}
		})
	}
}

func TestCheckStartAfter(t *testing.T) {
	tests := []struct {
		name string
		vms  []WaveVM
		want string
	}{
		{"in order", []WaveVM{waveVM(1, WaveQueued), waveVM(2, WaveQueued, after(1, "", 0))}, ""},
		{"circle of three", []WaveVM{waveVM(1, WaveQueued, after(2, "", 0)), waveVM(2, WaveQueued, after(3, "", 0)), waveVM(3, WaveRunning, after(1, "", 0))}, "a1: each waits for the next: a1, a2, a3, a1"},
		{"shortest of several", []WaveVM{waveVM(1, WaveQueued, after(2, "", 0)), waveVM(2, WaveQueued, after(3, "", 0), after(1, "", 0)), waveVM(3, WaveRunning, after(1, "", 0))}, "a1: each waits for the next: a1, a2, a1"},
		{"itself", []WaveVM{waveVM(7, WaveQueued, after(7, "", 0))}, "a7: each waits for the next: a7, a7"},
		{
			"two circles, one before",
			[]WaveVM{
				waveVM(5, WaveQueued, after(4, "", 0)), waveVM(4, WaveQueued, after(5, "", 0)), waveVM(3, WaveQueued, after(4, "", 0)),
				waveVM(1, WaveQueued, after(2, "", 0)), waveVM(2, WaveQueued, after(1, "", 0)),
			},
			"a1: each waits for the next: a1, a2, a1; a4: each waits for the next: a4, a5, a4",
		},
		{"missing", []WaveVM{waveVM(1, WaveQueued, after(2, "", 0))}, `a1: start after "a2": there is no such VM`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, p := range CheckStartAfter(tt.vms) {
				got = append(got, p.Name+": "+p.Why)
			}
			if strings.Join(got, "; ") != tt.want {
				t.Errorf("CheckStartAfter() = %q, want %q", got, tt.want)
			}
		})
	}
}

// drawWave draws VMs that name each other at will, circles included.
func drawWave(t *rapid.T, acyclic bool) []WaveVM {
	n := rapid.IntRange(1, 7).Draw(t, "vms")
	all := make([]WaveVM, n)
	for i := range all {
		vm := waveVM(i+1, rapid.SampledFrom([]WavePhase{WaveQueued, WaveQueued, WaveStarting, WaveRunning, WaveAbsent}).Draw(t, "phase"))
		vm.Queued = second(rapid.IntRange(0, 50).Draw(t, "queued"))
		vm.Priority = rapid.SampledFrom(haven.Priorities()).Draw(t, "priority")
		if vm.Phase == WaveRunning {
			vm.Running = second(rapid.IntRange(0, 60).Draw(t, "running"))
			if rapid.Bool().Draw(t, "answers") {
				vm.Agent = vm.Running.Add(time.Second)
			}
		}
		for range rapid.IntRange(0, 3).Draw(t, "edges") {
			top := n
			if acyclic {
				top = i
			}
			if top == 0 {
				break
			}
			ready := rapid.SampledFrom([]haven.Readiness{"", "running", "guest-agent", "delay:7", "tcp:80"}).Draw(t, "ready")
			vm.After = append(vm.After, after(rapid.IntRange(1, top).Draw(t, "to"), ready, rapid.IntRange(7, 40).Draw(t, "timeout")))
		}
		all[i] = vm
	}
	return all
}

// dumbReach says by walking whether a VM comes to another over start-afters.
func dumbReach(vms []WaveVM, from, to string, seen map[string]bool) bool {
	for _, vm := range vms {
		if vm.Name != from {
			continue
		}
		for _, a := range vm.After {
			if a.VM == to {
				return true
			}
			if !seen[a.VM] {
				seen[a.VM] = true
				if dumbReach(vms, a.VM, to, seen) {
					return true
				}
			}
		}
	}
	return false
}

// dumbOpens is when a VM may start, by the words of the promise alone: a
// recursion without memory, which draws no conclusion from any order.
func dumbOpens(now time.Time, vms []WaveVM, vm WaveVM) time.Time {
	late := func(a, b time.Time) time.Time {
		if a.After(b) {
			return a
		}
		return b
	}
	early := func(a, b time.Time) time.Time {
		if a.Before(b) {
			return a
		}
		return b
	}
	queued := early(vm.Queued, now)
	at := queued
	for _, a := range vm.After {
		i := slices.IndexFunc(vms, func(o WaveVM) bool { return o.Name == a.VM })
		other := vms[i]
		if other.Phase == WaveAbsent || dumbReach(vms, other.Name, vm.Name, map[string]bool{}) || other.Name == vm.Name {
			continue
		}
		until := late(queued, dumbOpens(now, vms, other)).Add(time.Duration(a.TimeoutS) * time.Second)
		if other.Phase == WaveRunning {
			switch a.Ready {
			case "guest-agent":
				if !other.Agent.IsZero() {
					until = early(until, early(other.Agent, now))
				}
			case "delay:7":
				until = early(until, early(other.Running, now).Add(7*time.Second))
			case "tcp:80": // is never open
			default:
				until = early(until, early(other.Running, now))
			}
		}
		at = late(at, until)
	}
	if vm.Phase == WaveRunning || vm.Phase == WaveStarting {
		at = early(at, now)
	}
	return at
}

// The dumb second implementation agrees on who may start, at any time; and what
// is answered is the same whatever the order of the VMs.
func TestWavesTwin(t *testing.T) {
	waits, circles := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		vms := drawWave(t, false)
		now := second(rapid.IntRange(0, 200).Draw(t, "now"))
		turns := Waves(now, vms)
		queued := 0
		for _, vm := range vms {
			if vm.Phase != WaveQueued {
				continue
			}
			queued++
			i := slices.IndexFunc(turns, func(t Turn) bool { return t.VM == vm.ID })
			if i < 0 {
				t.Fatalf("%s has no turn", vm.Name)
			}
			at := dumbOpens(now, vms, vm)
			if turns[i].Start == at.After(now) || turns[i].Start != (len(turns[i].Waits) == 0) {
				t.Fatalf("%s: %s; the twin has it start at %v", vm.Name, say(turns[i:i+1]), at.Sub(wave0))
			}
			last := time.Time{}
			for _, w := range turns[i].Waits {
				waits++
				if w.Until.After(last) {
					last = w.Until
				}
			}
			if !turns[i].Start && !last.Equal(at) {
				t.Fatalf("%s waits until %v, says the twin, not %v", vm.Name, at.Sub(wave0), last.Sub(wave0))
			}
		}
		if queued != len(turns) {
			t.Fatalf("%d turns for %d VMs", len(turns), queued)
		}
		shuffled := rapid.Permutation(vms).Draw(t, "shuffled")
		if got := Waves(now, shuffled); say(got) != say(turns) {
			t.Fatalf("in another order: %s, not %s", say(got), say(turns))
		}
		want := map[string]bool{}
		for _, vm := range vms {
			if dumbReach(vms, vm.Name, vm.Name, map[string]bool{}) {
				want[vm.Name] = true
			}
		}
		named := false
		for _, p := range CheckStartAfter(vms) {
			named = named || len(p.Circle) > 0
			for k, name := range p.Circle {
				if !want[name] {
					t.Fatalf("%s stands in no circle: %v", name, p.Circle)
				}
				if k > 0 && !slices.ContainsFunc(vms, func(vm WaveVM) bool {
					return vm.Name == p.Circle[k-1] && slices.ContainsFunc(vm.After, func(a haven.StartAfter) bool { return a.VM == name })
				}) {
					t.Fatalf("%v: %s does not wait for %s", p.Circle, p.Circle[k-1], name)
				}
			}
		}
		if named != (len(want) > 0) {
			t.Fatalf("circles: %v, named: %v", want, CheckStartAfter(vms))
		}
		if named {
			circles++
		}
	})
	if waits == 0 || circles == 0 {
		t.Errorf("the draw saw %d waits and %d circles", waits, circles)
	}
}

// No wait is for ever: whatever the others do, and however often they come and
// go, a VM starts when the timeouts of its chain have passed.
func TestWavesEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		vms := drawWave(t, rapid.Bool().Draw(t, "acyclic"))
		end := 50 + 40*len(vms) // all were queued; one timeout for each VM of the longest chain
		for now := 0; now <= end; now += rapid.IntRange(1, 60).Draw(t, "step") {
			for i := range vms {
				if vms[i].Phase == WaveQueued {
					continue // it is never let start
				}
				// It starts, runs, and dies again.
				vms[i].Phase = rapid.SampledFrom([]WavePhase{WaveStarting, WaveRunning}).Draw(t, "phase")
				vms[i].Running, vms[i].Agent = time.Time{}, time.Time{}
				if vms[i].Phase == WaveRunning {
					vms[i].Running = second(now)
				}
			}
			Waves(second(now), vms)
		}
		for _, turn := range Waves(second(end), vms) {
			if !turn.Start {
				t.Fatalf("after %d s: %s", end, say([]Turn{turn}))
			}
		}
	})
}

// A chain of as many VMs as a cluster has is walked without depth, and fast
// enough to be asked each second.
func BenchmarkWaves(b *testing.B) {
	vms := make([]WaveVM, 5000)
	for i := range vms {
		vms[i] = waveVM(i+1, WaveQueued)
		if i > 0 {
			vms[i].After = []haven.StartAfter{after(i, "tcp:80", 60)}
		}
	}
	for b.Loop() {
		if turns := Waves(second(1), vms); len(turns) != len(vms) || !turns[0].Start {
			b.Fatal(len(turns))
		}
	}
}

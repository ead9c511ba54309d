package agent

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/storagebeat"
)

const (
	respVM1 haven.VMID = "00000000-0000-4000-8000-000000000001"
	respVM2 haven.VMID = "00000000-0000-4000-8000-000000000002"
)

// moment is one look of the response, and what was made of it.
type moment struct {
	at  time.Duration
	in  isolationInput
	out isolationOutput
}

// allowed is the dumb check: it reads the whole history backwards and knows no
// state. It says why a stop at the last moment is not allowed.
func allowed(action config.IsolationAction, delay, shutdown time.Duration, history []moment) error {
	now := history[len(history)-1]
	if len(now.out.Stop) == 0 && !now.out.Releasing {
		return nil
	}
	if action == config.IsolationLeave {
		return fmt.Errorf("it acts, and is to leave everything running")
	}
	if !now.in.Isolated {
		return fmt.Errorf("it acts, and is not isolated")
	}
	// At some moment since it was isolated last without a break, both had lasted
	// for the delay.
	from := len(history) - 1
	for from > 0 && history[from-1].in.Isolated {
		from--
	}
	long := false
	for i := from; i < len(history); i++ {
		for k := i; k < len(history) && history[k].in.Backed; k++ {
			if history[k].at-history[i].at >= delay && history[k].in.LeaveRunning == "" {
				long = true
			}
		}
	}
	if !long {
		return fmt.Errorf("it acts, and was not isolated and backed for %s", delay)
	}
	if len(now.out.Stop) > 0 && (!now.in.Landed || !now.in.Backed) {
		return fmt.Errorf("it stops VMs, and its word has not landed, or nobody could start them")
	}
	for _, s := range now.out.Stop {
		if !slices.Contains(now.in.VMs, s.VM) {
			return fmt.Errorf("it stops %s, which is not protected here", s.VM)
		}
		if s.Graceful && action == config.IsolationPowerOff {
			return fmt.Errorf("it asks %s, and is to end it at once", s.VM)
		}
		if s.Graceful || action == config.IsolationPowerOff {
			continue
		}
		asked := false
		for _, m := range history[from:] {
			asked = asked || now.at-m.at >= shutdown && slices.Contains(m.out.Stop, vmStop{s.VM, true})
		}
		if !asked {
			return fmt.Errorf("it ends %s at once, which was not given %s to shut down", s.VM, shutdown)
		}
	}
	return nil
}

// P4: over random histories nothing is stopped without the right to; with leave
// nothing ever is.
func TestIsolationResponseAgainstTheDumbCheck(t *testing.T) {
	stops := 0
	rapid.Check(t, func(t *rapid.T) {
		action := rapid.SampledFrom([]config.IsolationAction{config.IsolationLeave, config.IsolationShutdown, config.IsolationPowerOff}).Draw(t, "action")
		r := &isolationResponse{action: action, delay: 10 * time.Second, shutdown: 20 * time.Second}
		// Small numbers are drawn more often than large ones.
		mostly := func(what string) bool { return rapid.IntRange(0, 79).Draw(t, what) < 79 }
		var history []moment
		at := time.Duration(0)
		for range rapid.IntRange(20, 80).Draw(t, "moments") {
			at += time.Duration(rapid.IntRange(100, 6000).Draw(t, "pause")) * time.Millisecond
			in := isolationInput{Isolated: mostly("isolated"), Backed: mostly("backed"), Landed: mostly("landed")}
			if !mostly("armed") {
				in.LeaveRunning = "an operator says so"
			}
			for _, id := range []haven.VMID{respVM1, respVM2} {
				if rapid.Bool().Draw(t, "there") {
					in.VMs = append(in.VMs, id)
				}
			}
			out := r.Step(at, in)
			history = append(history, moment{at, in, out})
			stops += len(out.Stop)
			if err := allowed(action, r.delay, r.shutdown, history); err != nil {
				t.Fatalf("P4: %v at %s: %+v", err, at, out)
			}
		}
	})
	if !t.Failed() && stops < 20 {
		t.Errorf("only %d stops: the check proves little", stops)
	}
}

func TestIsolationResponse(t *testing.T) {
	all := isolationInput{Isolated: true, Backed: true, Landed: true, VMs: []haven.VMID{respVM1}}
	with := func(change func(in *isolationInput)) isolationInput {
		in := all
		change(&in)
		return in
	}
	isolated := with(func(in *isolationInput) { in.Landed = false })
	type look struct {
		at        time.Duration
		in        isolationInput
		releasing bool
		stop      []vmStop
	}
	hard, soft := []vmStop{{respVM1, false}}, []vmStop{{respVM1, true}}
	tests := []struct {
		name   string
		action config.IsolationAction
		looks  []look
	}{
		{"leave", config.IsolationLeave, []look{{0, all, false, nil}, {time.Hour, all, false, nil}}},
		{"no action at all", "", []look{{0, all, false, nil}, {time.Hour, all, false, nil}}},
		{"power-off: the word first, then the VM, again until it is gone", config.IsolationPowerOff, []look{
			{0, isolated, false, nil},
			{29 * time.Second, isolated, false, nil},
			{30 * time.Second, isolated, true, nil},
			{31 * time.Second, all, true, hard},
			{32 * time.Second, all, true, nil},
			{37 * time.Second, all, true, hard},
			{38 * time.Second, with(func(in *isolationInput) { in.VMs = nil }), true, nil},
		}},
		{"shutdown: asked, and ended when that does not help", config.IsolationShutdown, []look{
			{0, isolated, false, nil},
			{30 * time.Second, isolated, true, nil},
			{31 * time.Second, all, true, soft},
			{90 * time.Second, all, true, soft},
			{152 * time.Second, all, true, hard},
		}},
		{"the network comes back before the delay", config.IsolationPowerOff, []look{
			{0, isolated, false, nil},
			{29 * time.Second, isolationInput{Backed: true}, false, nil},
			{30 * time.Second, all, false, nil},
			{59 * time.Second, all, false, nil},
			{60 * time.Second, all, true, hard},
		}},
		{"it comes back when the word is out, and nothing was stopped", config.IsolationPowerOff, []look{
			{0, isolated, false, nil},
			{30 * time.Second, isolated, true, nil},
			{31 * time.Second, isolationInput{VMs: all.VMs}, false, nil},
		}},
		{"nobody could start them", config.IsolationPowerOff, []look{
			{0, with(func(in *isolationInput) { in.Backed = false }), false, nil}, {time.Hour, with(func(in *isolationInput) { in.Backed = false }), false, nil},
		}},
		{"the master goes away in the middle", config.IsolationPowerOff, []look{
			{0, all, false, nil},
			{30 * time.Second, all, true, hard},
			{40 * time.Second, with(func(in *isolationInput) { in.Backed = false }), true, nil},
			{41 * time.Second, all, true, hard},
		}},
		{"disarmed, or in maintenance, before", config.IsolationPowerOff, []look{
			{0, with(func(in *isolationInput) { in.LeaveRunning = "an operator says so" }), false, nil}, {time.Hour, with(func(in *isolationInput) { in.LeaveRunning = "an operator says so" }), false, nil},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := &isolationResponse{action: tt.action, delay: 30 * time.Second, shutdown: 2 * time.Minute}
			for _, l := range tt.looks {
				out := r.Step(l.at, l.in)
				if out.Releasing != l.releasing || !slices.Equal(out.Stop, l.stop) {
					t.Errorf("at %s: %+v, want releasing %t and %v", l.at, out, l.releasing, l.stop)
				}
			}
		})
	}
}

// P1: gone means shut off, no process, and no storage that hangs.
func TestGoneAnswer(t *testing.T) {
	inv := func(complete bool, state haven.VMState, processes ...haven.VMID) haven.Inventory {
		return haven.Inventory{Complete: complete, VMs: []haven.VMInfo{{ID: respVM1, State: state}}, Processes: processes, Why: "because"}
	}
	tests := []struct {
		name string
		inv  haven.Inventory
		hung string
		want haven.Tri
	}{
		{"gone", inv(true, haven.VMShutOff), "", haven.Yes},
		{"gone, and another VM's process", inv(true, haven.VMShutOff, respVM2), "", haven.Yes},
		{"its process is left", inv(true, haven.VMShutOff, respVM1), "", haven.No},
		{"it runs on", inv(true, haven.VMRunning, respVM1), "", haven.No},
		{"the VM manager does not say", inv(true, haven.VMUnknown), "", haven.Unknown},
		{"not read whole", inv(false, haven.VMShutOff), "", haven.Unknown},
		{"storage hangs", inv(true, haven.VMShutOff), "nfs1", haven.Unknown},
		{"storage hangs, and its process is left", inv(true, haven.VMShutOff, respVM1), "nfs1", haven.No},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := goneAnswer(tt.inv, respVM1, tt.hung); got.Gone != tt.want || got.Detail == "" {
				t.Errorf("%+v, want %s", got, tt.want)
			}
		})
	}
}

// P4, P5: a host stops VMs for lost storage only if it knows itself that every
// store is lost. Not knowing is not enough.
func TestStorageNotLost(t *testing.T) {
	store := func(back, readable haven.Tri, hung time.Duration) storagebeat.Snapshot {
		return storagebeat.Snapshot{Store: "nfs", Health: storagebeat.Health{OwnReadBack: back, Readable: readable, HungFor: hung}}
	}
	works, fails, hangs := store(haven.Yes, haven.Yes, 0), store(haven.Unknown, haven.No, 0), store(haven.Unknown, haven.Unknown, time.Minute)
	still, unread := store(haven.No, haven.Yes, 0), store(haven.Unknown, haven.Unknown, 0)
	tests := []struct {
		name  string
		snaps []storagebeat.Snapshot
		lost  bool
	}{
		{"no store", nil, false},
		{"it works", []storagebeat.Snapshot{works}, false},
		{"it fails", []storagebeat.Snapshot{fails}, true},
		{"it hangs", []storagebeat.Snapshot{hangs}, true},
		{"own beat is not there", []storagebeat.Snapshot{still}, true},
		{"not read yet", []storagebeat.Snapshot{unread}, false},
		{"one fails, one works", []storagebeat.Snapshot{fails, works}, false},
		{"one fails, of the other nothing is known", []storagebeat.Snapshot{fails, unread}, false},
		{"one fails, one hangs", []storagebeat.Snapshot{fails, hangs}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if why := storageNotLost(tt.snaps); (why == "") != tt.lost {
				t.Errorf("%q, want lost %t", why, tt.lost)
			}
		})
	}
}

// stops counts what is asked of it.
type stops struct{ asked int }

func (s *stops) Stop(context.Context, haven.VMID, bool) error {
	s.asked++
	return nil
}

// P4: a stop that waited for the journal while the isolation ended is not made.
func TestStopAfterIsolation(t *testing.T) {
	d := partsWith(t, 73, 1)
	s := &stops{}
	d.Stopper = s
	a := run(t, d)
	a.stopVM(t.Context(), respVM1, false)
	if s.asked != 0 {
		t.Error("a VM of a host that is not isolated was told to stop")
	}
}

package agent

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/recovery"
	"github.com/haven-ha/haven/storagebeat"
)

// TestBeatListIsNeverYoungerThanItIs guards P1: the word of a beat that a host
// does not have a VM counts only for what is older than the list in it. A writer
// fills records and its store hangs, lets a write land late, or works; a reader
// reads now and then. Whatever it is told, the list was made after Since.
func TestBeatListIsNeverYoungerThanItIs(t *testing.T) {
	start := time.Now()
	rapid.Check(t, func(t *rapid.T) {
		lists := newBeatLists(0)
		now := start
		made := map[uint64]time.Time{} // when the content of each record was made
		var seq, onDisk, hanging, shown uint64
		trusted := 0
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(1, 30_000).Draw(t, "ms")) * time.Millisecond)
			switch rapid.SampledFrom([]string{"write", "write", "hang", "land", "read", "read", "read"}).Draw(t, "what") {
			case "write":
				if seq++; hanging == 0 { // else it fails: one operation at a time
					made[seq], onDisk = now, seq
				}
			case "hang":
				if seq++; hanging == 0 {
					made[seq], hanging = now, seq
				}
			case "land":
				if hanging != 0 {
					onDisk, hanging = hanging, 0
				}
			case "read":
				v := storagebeat.View{Seen: onDisk > 0, Beat: storagebeat.Beat{Boot: "b", Sequence: onDisk, Complete: true}}
				if v.Seen && (shown != 0 && onDisk != shown || rapid.Bool().Draw(t, "moved lately")) {
					v.Moving = haven.Yes
				}
				shown = onDisk
				age := time.Duration(rapid.IntRange(0, 1000).Draw(t, "read age")) * time.Millisecond
				snap := storagebeat.Snapshot{Store: "s", Health: storagebeat.Health{ReadAge: age}, Hosts: []storagebeat.HostView{{Host: "kvm-02", Agent: v}}}
				list := lists.look(now.Add(age), []storagebeat.Snapshot{snap})["kvm-02"]
				now = now.Add(age)
				if list.Complete {
					trusted++
					if made[onDisk].Before(list.Since) {
						t.Fatalf("record %d was made %s before the time that its list is said to be newer than", onDisk, list.Since.Sub(made[onDisk]))
					}
				}
			}
		}
		t.Logf("%d lists were trusted", trusted)
	})
}

// TestBeatListOfAHealthyHost: with a beat and a read each second a list is
// trusted from the third record on, and is at most some seconds old.
func TestBeatListOfAHealthyHost(t *testing.T) {
	lists := newBeatLists(2 * time.Second)
	now := time.Now()
	var got recovery.BeatList
	for seq := range uint64(5) {
		now = now.Add(time.Second)
		view := storagebeat.View{Seen: true, Moving: haven.Yes, Beat: storagebeat.Beat{Boot: "b", Sequence: seq + 1, Complete: true, VMs: []haven.VMID{"x"}}}
		got = lists.look(now, []storagebeat.Snapshot{{Store: "s", Hosts: []storagebeat.HostView{{Host: "kvm-02", Helper: view}}}})["kvm-02"]
		if trusted := seq >= 2; got.Complete != trusted {
			t.Errorf("record %d: trusted %t, want %t", seq+1, got.Complete, trusted)
		}
	}
	if age := now.Sub(got.Since); age > 5*time.Second || got.Boot != "b" || len(got.VMs) != 1 {
		t.Errorf("the list of a healthy host is %s old: %+v", age, got)
	}
}

package detector

import (
	"encoding/json"
	"reflect"
	"testing"
)

// TestSnapshotGoesOn guards recordings (P9): a Machine that was given the memory
// of another, through JSON, judges whatever comes next exactly as that one does.
func TestSnapshotGoesOn(t *testing.T) {
	n := uint64(500)
	if testing.Short() {
		n = 100
	}
	for seed := range n {
		h := newHistory(seed + 7<<40)
		m, err := New(h.cfg)
		if err != nil {
			t.Fatal(err)
		}
		var twin *Machine
		cut := 1 + h.r.IntN(40)
		for k := range 60 {
			r := h.next()
			if k == cut {
				data, err := json.Marshal(m.Snapshot())
				if err != nil {
					t.Fatal(err)
				}
				var s Snapshot
				if err := json.Unmarshal(data, &s); err != nil {
					t.Fatal(err)
				}
				if twin, err = Restore(h.cfg, s); err != nil {
					t.Fatal(err)
				}
			}
			want := m.Step(r.now, r.in)
			if twin == nil {
				continue
			}
			if got := twin.Step(r.now, r.in); !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d: step %d after a snapshot at %d\n got %+v\nwant %+v", seed, k, cut, got, want)
			}
			if got, want := twin.Snapshot(), m.Snapshot(); !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d: memory after step %d\n got %+v\nwant %+v", seed, k, got, want)
			}
		}
	}
}

// TestSnapshotIsWhole fails when a Machine remembers something new: Snapshot must
// copy it, or be told here why it need not.
func TestSnapshotIsWhole(t *testing.T) {
	for _, tt := range []struct {
		name         string
		state, saved any
		not          []string // not memory between steps
	}{
		{"machine", Machine{}, Snapshot{}, []string{"cfg", "steps", "vouching", "stores", "sight"}},
		{"host", hostState{}, HostSnapshot{Host: "its key"}, []string{"seenAt"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			state, saved := reflect.TypeOf(tt.state), reflect.TypeOf(tt.saved).NumField()
			if tt.name == "host" {
				saved-- // its name is the key of the map
			}
			if got := state.NumField() - len(tt.not); got != saved {
				t.Errorf("%s has %d fields to remember, the snapshot has %d", state, got, saved)
			}
		})
	}
}

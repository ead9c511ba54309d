package agent

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
)

func good(id haven.HostID, zone string, turn uint64) neighbour {
	return neighbour{id: id, zone: zone, sound: true, turn: turn}
}

// TestChooseNeighbours guards the evidence that a verdict rests on: it comes
// from several zones, and from agents whose word counts.
func TestChooseNeighbours(t *testing.T) {
	tests := []struct {
		name string
		in   []neighbour
		own  string
		n    int
		want []haven.HostID
	}{
		{"nobody", nil, "a", 3, nil},
		{"none wanted", []neighbour{good("k1", "a", 0)}, "b", 0, nil},
		{"fewer than wanted", []neighbour{good("k2", "", 0), good("k1", "", 0)}, "", 3, []haven.HostID{"k1", "k2"}},
		{"another zone first, the own one last", []neighbour{good("k1", "a", 0), good("k2", "a", 0), good("k3", "b", 0), good("k4", "c", 0)}, "a", 3, []haven.HostID{"k3", "k4", "k1"}},
		{"one of each zone before a second", []neighbour{good("k1", "b", 0), good("k2", "b", 0), good("k3", "c", 5)}, "a", 2, []haven.HostID{"k1", "k3"}},
		{"not asked for longest", []neighbour{good("k1", "", 3), good("k2", "", 1), good("k3", "", 2)}, "", 2, []haven.HostID{"k2", "k3"}},
		{"sound ones first, whatever the zone", []neighbour{{id: "k1", zone: "b"}, good("k2", "a", 9)}, "a", 1, []haven.HostID{"k2"}},
		{"who cannot vouch is better than nobody", []neighbour{{id: "k1", zone: "b"}, good("k2", "a", 9)}, "a", 2, []haven.HostID{"k2", "k1"}},
		{"the deaf one last", []neighbour{{id: "k1", sound: true, deaf: true}, {id: "k2"}, good("k3", "", 9)}, "", 2, []haven.HostID{"k3", "k2"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := chooseNeighbours(tt.in, tt.own, tt.n); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// TestChooseNeighboursProperty: nobody is chosen twice or left out for no reason,
// the order of candidates does not matter, and among equals everybody has
// a turn.
func TestChooseNeighboursProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOfNDistinct(rapid.StringMatching(`k[0-9]{1,2}`), 0, 20, rapid.ID).Draw(t, "hosts")
		n := rapid.IntRange(0, 6).Draw(t, "n")
		var in []neighbour
		for _, id := range ids {
			in = append(in, neighbour{
				id: haven.HostID(id), zone: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "zone"),
				sound: rapid.Bool().Draw(t, "sound"), deaf: rapid.Bool().Draw(t, "deaf"), turn: rapid.Uint64Range(0, 4).Draw(t, "turn"),
			})
		}
		got := chooseNeighbours(in, "a", n)
		if len(got) != min(n, len(in)) {
			t.Fatalf("%d of %d were chosen, of %d", len(got), n, len(in))
		}
		if distinct := slices.Compact(slices.Sorted(slices.Values(got))); len(distinct) != len(got) {
			t.Fatalf("chosen twice: %v", got)
		}
		if again := chooseNeighbours(rapid.Permutation(in).Draw(t, "order"), "a", n); !slices.Equal(again, got) {
			t.Fatalf("%v, in another order %v", got, again)
		}
		for _, c := range in { // No better one was left out.
			for _, d := range in {
				if !slices.Contains(got, c.id) && slices.Contains(got, d.id) && c.sound && !c.deaf && (d.deaf || !d.sound) {
					t.Fatalf("%+v was chosen before %+v", d, c)
				}
			}
		}
	})
}

// TestEveryNeighbourHasATurn: one that never answers is not asked again and again
// while others could be, and gets another chance later.
func TestEveryNeighbourHasATurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q asked
		ids := []haven.HostID{"k1", "k2", "k3", "k4", "k5", "k6", "k7"}
		count := map[haven.HostID]int{}
		round := func() {
			var in []neighbour
			for _, id := range ids {
				c := neighbour{id: id, sound: true}
				c.turn, c.deaf = q.of(id, time.Now())
				in = append(in, c)
			}
			chosen := chooseNeighbours(in, "", 3)
			q.took(chosen)
			for _, id := range chosen {
				count[id]++
				q.answered(id, id != "k2", time.Now())
			}
		}
		for range 12 {
			round()
		}
		for _, id := range ids {
			if id == "k2" && count[id] != 1 || id != "k2" && count[id] < 5 {
				t.Errorf("%s was asked %d times", id, count[id])
			}
		}
		time.Sleep(deafFor)
		for range 3 {
			round()
		}
		if count["k2"] != 2 {
			t.Errorf("the deaf one was asked %d times, want a second chance", count["k2"])
		}
	})
}

package fencing_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
)

const boot1 = haven.BootID("boot-1")

func promised(stores ...string) haven.Watchdog {
	return haven.Watchdog{Bound: 30 * time.Second, Stores: stores}
}

// seen is a sight that vouches, of a record that changed and was read at the
// given seconds.
func seen(store string, changed, read float64) fencing.BeatSight {
	return fencing.BeatSight{
		Reader: "r", Store: store, Name: "name-of-" + store, Vouched: true, Boot: boot1, Watchdog: 30 * time.Second,
		ReadAt: at(read), ChangedAt: at(changed),
	}
}

func but(s fencing.BeatSight, change func(s *fencing.BeatSight)) fencing.BeatSight {
	change(&s)
	return s
}

// P2: what a count says in each case. The base is 1 s here, the promise over at
// 1 s + 30 s + 2 % + 2 s = 33.6 s.
func TestByTimeCases(t *testing.T) {
	tests := []struct {
		name   string
		now    float64
		dog    haven.Watchdog
		acked  float64
		sights []fencing.BeatSight
		want   fencing.TimeState
		why    string
	}{
		{"read after the promise", 40, promised("s1"), 1, []fencing.BeatSight{seen("s1", -1, 34)}, fencing.TimeProved, "must have fired"},
		{"read a moment too early", 40, promised("s1"), 1, []fencing.BeatSight{seen("s1", -1, 33.5)}, fencing.TimeUnknown, "store name-of-s1 is not read"},
		{"acked later", 40, promised("s1"), 9, []fencing.BeatSight{seen("s1", -1, 39)}, fencing.TimeWaiting, "the proof by time is awaited"},
		{"changed later", 40, promised("s1"), 1, []fencing.BeatSight{seen("s1", 7, 39.5)}, fencing.TimeWaiting, "the proof by time is awaited"},
		{"changed for another reader", 40, promised("s1"), 1, []fencing.BeatSight{seen("s1", -1, 39.5), seen("s1", 7, 7)}, fencing.TimeWaiting, "the proof by time is awaited"},
		{"one store of two", 40, promised("s1", "s2"), 1, []fencing.BeatSight{seen("s1", -1, 39)}, fencing.TimeUnknown, "store s2 is not read"},
		{"two of two, by two readers", 40, promised("s1", "s2"), 1, []fencing.BeatSight{seen("s1", -1, 39), seen("s2", 0, 38)}, fencing.TimeProved, "(name-of-s1, name-of-s2)"},
		{"a store more than declared", 40, promised("s1"), 1, []fencing.BeatSight{seen("s1", -1, 39), but(seen("s2", -9, 38), func(s *fencing.BeatSight) { s.Watchdog = 0 })}, fencing.TimeProved, ""},
		{"nothing promised", 40, haven.Watchdog{}, 1, []fencing.BeatSight{seen("s1", -1, 39)}, fencing.TimeUnarmed, "not armed"},
		{"the beat says disarmed", 40, promised("s1"), 1, []fencing.BeatSight{but(seen("s1", -1, 39), func(s *fencing.BeatSight) { s.Watchdog = 0 })}, fencing.TimeUnarmed, "disarmed"},
		{"the latest beat says disarmed, where nothing was declared", 40, promised("s1"), 1, []fencing.BeatSight{seen("s1", -3, 39), but(seen("s2", -1, 39), func(s *fencing.BeatSight) { s.Watchdog, s.Changed = 0, true })}, fencing.TimeUnarmed, "latest beat"},
		{"a record of before the arming, where nothing was declared, read for the first time late", 40, promised("s1"), 1, []fencing.BeatSight{seen("s1", -3, 39), but(seen("s2", -1, 39), func(s *fencing.BeatSight) { s.Watchdog = 0 })}, fencing.TimeProved, ""},
		{"a reader that lost the store long ago remembers another boot", 40, promised("s1"), 1, []fencing.BeatSight{seen("s1", -1, 39), but(seen("s1", -900, -800), func(s *fencing.BeatSight) { s.Vouched, s.Boot = false, "boot-0" })}, fencing.TimeProved, ""},
		{"and one remembers what was before the arming", 40, promised("s1"), 1, []fencing.BeatSight{seen("s1", -1, 39), but(seen("s1", -900, -800), func(s *fencing.BeatSight) { s.Vouched, s.Watchdog = false, 0 })}, fencing.TimeProved, ""},
		{"and one remembers longer terms", 40, promised("s1"), 1, []fencing.BeatSight{seen("s1", -1, 39), but(seen("s1", -900, -800), func(s *fencing.BeatSight) { s.Vouched, s.Watchdog = false, time.Hour })}, fencing.TimeProved, ""},
		{"only such a one reads", 40, promised("s1"), 1, []fencing.BeatSight{but(seen("s1", -900, -800), func(s *fencing.BeatSight) { s.Vouched = false })}, fencing.TimeUnknown, "not read"},
		{"the beat says a longer time", 40, promised("s1"), 1, []fencing.BeatSight{but(seen("s1", -1, 39), func(s *fencing.BeatSight) { s.Watchdog = 50 * time.Second })}, fencing.TimeWaiting, "armed with 50s"},
		{"another boot", 40, promised("s1"), 1, []fencing.BeatSight{but(seen("s1", -1, 39), func(s *fencing.BeatSight) { s.Boot = "boot-2" })}, fencing.TimeUnarmed, "another boot"},
		{"it moves", 40, promised("s1"), 1, []fencing.BeatSight{but(seen("s1", -1, 39), func(s *fencing.BeatSight) { s.Moving = true })}, fencing.TimeUnarmed, "moves"},
		{"torn, or the reader does not find its own beat", 40, promised("s1"), 1, []fencing.BeatSight{but(seen("s1", -1, 39), func(s *fencing.BeatSight) { s.Vouched = false })}, fencing.TimeUnknown, "not read"},
		{"another store by the same name", 40, promised("s1"), 1, []fencing.BeatSight{but(seen("s3", -1, 39), func(s *fencing.BeatSight) { s.Name = "name-of-s1" })}, fencing.TimeUnknown, "not read"},
		{"no record", 40, promised("s1"), 1, []fencing.BeatSight{{Reader: "r", Store: "s1", Vouched: true, ReadAt: at(39)}}, fencing.TimeUnknown, "not read"},
		{"nobody reads", 40, promised("s1"), 1, nil, fencing.TimeUnknown, "not read by anybody"},
		{"on its way", 20, promised("s1"), 1, []fencing.BeatSight{seen("s1", -1, 19)}, fencing.TimeWaiting, "the proof by time is awaited"},
		{"on its way, and nobody reads", 20, promised("s1"), 1, []fencing.BeatSight{seen("s1", -1, 4)}, fencing.TimeUnknown, "not read by anybody"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b fencing.ByTime
			in := fencing.TimeInput{Now: at(tt.now), Boot: boot1, Promised: tt.dog, Acked: at(tt.acked), ReadTimeout: 2 * time.Second, Sights: tt.sights}
			c := b.Step(in)
			if c.State != tt.want || !strings.Contains(c.Why, tt.why) {
				t.Errorf("%s: %s, want %s: …%s…", c.State, c.Why, tt.want, tt.why)
			}
			if c := b.Step(in); c.State != tt.want {
				t.Errorf("asked again: %s", c.State)
			}
		})
	}
}

// P2: what was counted about one boot says nothing about the next.
func TestByTimeForgetsWithTheBoot(t *testing.T) {
	var b fencing.ByTime
	in := fencing.TimeInput{Now: at(40), Boot: boot1, Promised: promised("s1"), Acked: at(1), ReadTimeout: 2 * time.Second, Sights: []fencing.BeatSight{seen("s1", -1, 39)}}
	if c := b.Step(in); c.State != fencing.TimeProved {
		t.Fatal(c)
	}
	in.Boot, in.Sights = "boot-2", nil
	if c := b.Step(in); c.State == fencing.TimeProved {
		t.Fatal(c)
	}
	in.Boot = boot1
	if c := b.Step(in); c.State == fencing.TimeProved {
		t.Fatal("what another boot was judged by is left")
	}
}

// timeTwin is the same rule by brute force: it keeps every input and goes
// through all of them each time.
type timeTwin struct{ all []fencing.TimeInput }

func (w *timeTwin) proved(in fencing.TimeInput) bool {
	w.all = append(w.all, in)
	if !in.Promised.Armed() {
		return false
	}
	bound := in.Promised.Bound
	for _, s := range in.Sights {
		if s.Vouched && s.Boot != "" && s.Boot != in.Boot || s.Boot == in.Boot && (s.Moving || s.Vouched && s.Watchdog == 0) {
			return false // In the model no store is left out, so that all of them are declared.
		}
		if s.Vouched {
			bound = max(bound, s.Watchdog)
		}
	}
	limit := time.Duration(float64(bound)*1.02) + 2*time.Second
	for _, store := range in.Promised.Stores {
		ok := false
		for _, i := range w.all {
			for _, s := range i.Sights {
				ok = ok || s.Store == store && s.Vouched && s.Boot == in.Boot && w.nothingSince(s.ReadAt.Add(-limit))
			}
		}
		if !ok {
			return false
		}
	}
	return true
}

// nothingSince says whether no sign of life was later than that.
func (w *timeTwin) nothingSince(t time.Time) bool {
	for _, i := range w.all {
		if i.Acked.After(t) {
			return false
		}
		for _, s := range i.Sights {
			if s.ChangedAt.Add(i.ReadTimeout).After(t) {
				return false
			}
		}
	}
	return true
}

// P1, P2: whenever the count says so, the host's watchdog has fired. The host, the
// stores, the readers and the masters are in world below.
func TestByTimeNeverTooEarly(t *testing.T) {
	proved, outlived := 0, 0
	stages := []func(w *dogWorld){nil, nil, nil, oldMaster, newMaster, lateBeat, hungReads, latePets}
	rapid.Check(t, func(t *rapid.T) {
		stage := rapid.SampledFrom(stages).Draw(t, "stage")
		w := newDogWorld(rapid.Uint64().Draw(t, "seed"), mutant{stage: stage})
		w.play(func(format string, args ...any) { t.Fatalf(format, args...) })
		if w.proved {
			proved++
		}
		if w.firedAt > 0 && !w.proved {
			outlived++
		}
	})
	if !testing.Short() && proved < 20 {
		t.Errorf("only %d runs came to a proof, %d hosts were reset without one", proved, outlived)
	}
	t.Logf("%d proofs, %d hosts reset without one", proved, outlived)
}

// mutant is one way to get it wrong, in the count, in what it is given or at the
// host.
type mutant struct {
	name  string
	stage func(w *dogWorld) // where it shows soon
	count func(w *dogWorld, in *fencing.TimeInput)
	host  func(w *dogWorld)
}

// The model must be able to show each of these: else its silence means nothing.
func TestByTimeMutants(t *testing.T) {
	for _, m := range []mutant{
		{name: "a declared store is left out", count: func(_ *dogWorld, in *fencing.TimeInput) {
			in.Promised.Stores = slices.Clone(in.Promised.Stores[1:])
		}},
		{name: "a new master counts from the last acknowledgement that it gave itself", stage: oldMaster, count: func(w *dogWorld, in *fencing.TimeInput) {
			in.Acked = w.acked
		}},
		{name: "own acknowledgements do not count", stage: newMaster, count: func(w *dogWorld, in *fencing.TimeInput) {
			in.Acked = w.ready
		}},
		{name: "a read counts from when it was told", stage: hungReads, count: func(_ *dogWorld, in *fencing.TimeInput) {
			for i := range in.Sights {
				in.Sights[i].ReadAt = in.Now
			}
		}},
		{name: "changes of beats do not count", count: func(_ *dogWorld, in *fencing.TimeInput) {
			for i := range in.Sights {
				in.Sights[i].ChangedAt = time.Time{}
			}
		}},
		{name: "a reader that does not vouch is believed", count: func(_ *dogWorld, in *fencing.TimeInput) {
			for i := range in.Sights {
				in.Sights[i].Vouched = true
			}
		}},
		{name: "the device's own timeout counts once", stage: latePets, count: func(w *dogWorld, in *fencing.TimeInput) {
			in.Promised.Bound = w.t + w.d
			for i := range in.Sights {
				in.Sights[i].Watchdog = in.Promised.Bound
			}
		}},
		{name: "the host does not subtract how old the master's verification is", stage: oldMaster, host: func(w *dogWorld) { w.ignoresVerified = true }},
	} {
		t.Run(m.name, func(t *testing.T) {
			for seed := range uint64(500) {
				caught := false
				w := newDogWorld(seed, m)
				w.play(func(string, ...any) { caught = true })
				if caught {
					t.Logf("caught in run %d", seed)
					return
				}
			}
			t.Error("nobody notices")
		})
	}
}

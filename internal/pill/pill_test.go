package pill

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/storagebeat"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(d time.Duration) time.Time { return start.Add(d) }

func term(n uint64) haven.Term { return haven.Term{Generation: 1, Term: n} }

// letter is a good pill for boot b1, of attempt 1 of incident i1 in term 5, that
// was read at the given moment.
func letter(read time.Duration, change func(*Letter)) Letter {
	l := Letter{Store: "nfs1", Read: at(read), Sealed: true, Pill: storagebeat.Pill{
		Host: "a", Boot: "b1", Incident: "i1", Attempt: 1, Term: term(5), By: "m",
	}}
	if change != nil {
		change(&l)
	}
	return l
}

const tick = 500 * time.Millisecond

// run steps a host through some time, and returns when it first obeyed; -1 when
// it never did.
func run(m *Machine, from, to time.Duration, in func(now time.Duration) Input) time.Duration {
	for now := from; now <= to; now += tick {
		if out := m.Step(at(now), in(now)); out.Obey != nil {
			return now
		}
	}
	return -1
}

func enabled() *Machine { return New(Config{Boot: "b1", Enabled: true}) }

func TestHostCutOffObeysAfterItsPatience(t *testing.T) {
	m := enabled()
	got := run(m, 0, time.Minute, func(now time.Duration) Input {
		return Input{Letters: []Letter{letter(now, nil)}, Highest: term(5)}
	})
	if got != DefaultPatience {
		t.Fatalf("obeyed after %s", got)
	}
}

func TestPillIsNotObeyed(t *testing.T) {
	no := Answer{Name: Name{"i1", 1, term(5)}, Why: "it is healthy"}
	for _, tc := range []struct {
		name    string
		enabled bool
		in      func(now time.Duration) Input
		why     string // that the last step gives
	}{
		{"it is off for this host", false, func(now time.Duration) Input {
			return Input{Letters: []Letter{letter(now, nil)}}
		}, "off for this host"},
		{"of another boot", true, func(now time.Duration) Input {
			return Input{Letters: []Letter{letter(now, func(l *Letter) { l.Pill.Boot = "b0" })}}
		}, "boot b0"},
		{"of an older term", true, func(now time.Duration) Input {
			return Input{Letters: []Letter{letter(now, nil)}, Highest: term(6)}
		}, "of term 1.5, and 1.6 was seen"},
		{"without the seal", true, func(now time.Duration) Input {
			return Input{Letters: []Letter{letter(now, func(l *Letter) { l.Sealed = false })}}
		}, "seal"},
		{"a master says no", true, func(now time.Duration) Input {
			in := Input{Letters: []Letter{letter(now, nil)}}
			if now == time.Second {
				in.Answers = []Answer{no}
			}
			return in
		}, "does not stand"},
		{"a master takes reports, and cannot be asked", true, func(now time.Duration) Input {
			return Input{Letters: []Letter{letter(now, nil)}, Heard: at(now - 2*time.Second)}
		}, ""},
		{"it is taken back in time", true, func(now time.Duration) Input {
			return Input{Letters: []Letter{letter(now, func(l *Letter) { l.Pill.Withdrawn = now >= 4*time.Second })}}
		}, ""},
		{"it is taken back on another store", true, func(now time.Duration) Input {
			other := letter(now, func(l *Letter) { l.Pill.Withdrawn = now >= 4*time.Second; l.Store = "nfs2" })
			return Input{Letters: []Letter{letter(now, nil), other}}
		}, "taken back"},
		{"the store was restored to what it was before it was taken back", true, func(now time.Duration) Input {
			return Input{Letters: []Letter{letter(now, func(l *Letter) { l.Pill.Withdrawn = now == 4*time.Second })}}
		}, "taken back"},
		{"the store hangs before the patience is over", true, func(now time.Duration) Input {
			return Input{Letters: []Letter{letter(min(now, 500*time.Millisecond), nil)}}
		}, ""},
		{"an empty mailbox", true, func(now time.Duration) Input {
			return Input{Letters: []Letter{{Store: "nfs1", Read: at(now), Pill: storagebeat.Pill{Withdrawn: true}}}}
		}, ""},
		{"no mailbox was read", true, func(time.Duration) Input { return Input{Letters: []Letter{{Store: "nfs1"}}} }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := New(Config{Boot: "b1", Enabled: tc.enabled})
			var last Output
			for now := time.Duration(0); now <= time.Minute; now += tick {
				if last = m.Step(at(now), tc.in(now)); last.Obey != nil {
					t.Fatalf("obeyed at %s: %s", now, last.Why)
				}
			}
			var why string
			if len(last.Ignored) > 0 {
				why = last.Ignored[0].Why
			}
			if !strings.Contains(why, tc.why) || tc.why == "" && why != "" {
				t.Errorf("ignored because %q, want %q", why, tc.why)
			}
		})
	}
}

func TestMasterSaysYes(t *testing.T) {
	m := enabled()
	in := Input{Letters: []Letter{letter(0, nil)}, Heard: at(0)}
	if out := m.Step(at(0), in); out.Ask == nil || out.Obey != nil {
		t.Fatalf("%+v", out)
	}
	in.Answers = []Answer{{Name: Name{"i1", 2, term(5)}, Stands: true}, {Name: Name{"i2", 1, term(5)}, Stands: true}}
	if out := m.Step(at(tick), in); out.Obey != nil {
		t.Fatalf("an answer about another pill was taken: %+v", out)
	}
	in.Answers = []Answer{{Name: Name{"i1", 1, term(5)}, Stands: true}}
	if out := m.Step(at(2*tick), in); out.Obey == nil || out.Ask != nil {
		t.Fatalf("%+v", out)
	}
	in.Answers = nil
	if out := m.Step(at(3*tick), in); out.Obey == nil {
		t.Fatal("a yes was forgotten: a reset that failed is not tried again")
	}
	in.Answers = []Answer{{Name: Name{"i1", 1, term(5)}}}
	if out := m.Step(at(4*tick), in); out.Obey != nil {
		t.Fatalf("a later no does not end it: %+v", out)
	}
}

// A no is about one attempt. The master that goes on with the incident may ask again.
func TestNextAttemptIsAnotherPill(t *testing.T) {
	m := enabled()
	m.Step(at(0), Input{Letters: []Letter{letter(0, nil)}, Answers: []Answer{{Name: Name{"i1", 1, term(5)}}}})
	for name, change := range map[string]func(*Letter){
		"next attempt": func(l *Letter) { l.Pill.Attempt = 2 },
		"next term":    func(l *Letter) { l.Pill.Term = term(6) },
		"another one":  func(l *Letter) { l.Pill.Incident = "i2" },
	} {
		l := letter(0, change)
		if out := m.Step(at(0), Input{Letters: []Letter{l}}); out.Ask == nil {
			t.Errorf("%s: %+v", name, out)
		}
	}
}

// A process that stood still did not try to reach a master, so its patience begins
// anew: a host that wakes up asks first.
func TestStallIsNoSilence(t *testing.T) {
	m := enabled()
	in := func(now time.Duration) Input { return Input{Letters: []Letter{letter(now, nil)}} }
	if got := run(m, 0, 4*time.Second, in); got >= 0 {
		t.Fatalf("obeyed at %s", got)
	}
	if got := run(m, time.Minute, 2*time.Minute, in); got != time.Minute+DefaultPatience {
		t.Fatalf("obeyed at %s", got)
	}
}

// So is a suspension, which the clock of the steps does not show.
func TestSuspensionIsNoSilence(t *testing.T) {
	m := enabled()
	got := run(m, 0, time.Minute, func(now time.Duration) Input {
		return Input{Letters: []Letter{letter(now, nil)}, Slept: now == 4*time.Second}
	})
	if want := 4*time.Second + DefaultPatience; got != want {
		t.Fatalf("obeyed at %s, want %s", got, want)
	}
}

// twin is the rule said once more, by looking at the whole past.
type twin struct {
	cfg  Config
	past []moment
}

type moment struct {
	now time.Time
	in  Input
}

func (w *twin) obeys(now time.Time, in Input) bool {
	w.past = append(w.past, moment{now, in})
	var best *storagebeat.Pill
	for _, l := range in.Letters {
		if p := l.Pill; w.good(l, now, in) && (best == nil || newer(p, *best)) {
			best = &p
		}
	}
	if best == nil || !w.cfg.Enabled {
		return false
	}
	// Going back, for how long has just this pill been the one, without a gap?
	since, said := now, false
	for i, p := range slices.Backward(w.past) {
		if !w.chosen(p, *best, i) {
			break
		}
		for _, a := range p.in.Answers {
			said = said || a.Stands && a.Name == nameOf(*best)
		}
		if i == len(w.past)-1 || w.past[i+1].now.Sub(p.now) <= w.cfg.Gap && since.Equal(w.past[i+1].now) {
			since = p.now
		}
	}
	heard := in.Heard
	return said || now.Sub(since) >= w.cfg.Patience && now.Sub(heard) >= w.cfg.Patience
}

// chosen says whether a pill was the one to be considered at a moment of the past.
func (w *twin) chosen(p moment, want storagebeat.Pill, until int) bool {
	older := twin{w.cfg, w.past[:until+1]}
	found := false
	for _, l := range p.in.Letters {
		if !older.good(l, p.now, p.in) {
			continue
		}
		if newer(l.Pill, want) {
			return false
		}
		found = found || nameOf(l.Pill) == nameOf(want)
	}
	return found
}

func (w *twin) good(l Letter, now time.Time, in Input) bool {
	p := l.Pill
	if p.Withdrawn || !l.Sealed || p.Boot != w.cfg.Boot || p.Term.Older(in.Highest) || l.Read.IsZero() || now.Sub(l.Read) > w.cfg.Fresh {
		return false
	}
	for _, m := range w.past {
		for _, o := range m.in.Letters {
			if o.Sealed && o.Pill.Withdrawn && nameOf(p).until(nameOf(o.Pill)) {
				return false
			}
		}
		for _, a := range m.in.Answers {
			if !a.Stands && nameOf(p).until(a.Name) {
				return false
			}
		}
	}
	return true
}

// TestTwin: whatever is on the stores — pills of other boots, of older terms, of
// forgers, stores that are put back to an older state — the machine obeys exactly
// when the rule says so.
func TestTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{Boot: "b1", Enabled: rapid.IntRange(0, 5).Draw(t, "enabled") > 0, Patience: DefaultPatience, Fresh: DefaultFresh, Gap: DefaultGap}
		m, w := New(cfg), &twin{cfg: cfg}
		draw := func(now time.Time) Letter {
			return Letter{
				Store: "s", Read: now.Add(-time.Duration(rapid.SampledFrom([]int{0, 0, 1, 6}).Draw(t, "age")) * time.Second),
				Sealed: rapid.IntRange(0, 7).Draw(t, "sealed") > 0,
				Pill: storagebeat.Pill{
					Boot:     haven.BootID(rapid.SampledFrom([]string{"b1", "b1", "b1", "b0"}).Draw(t, "boot")),
					Incident: haven.IncidentID(rapid.SampledFrom([]string{"i1", "i1", "i2"}).Draw(t, "incident")),
					Attempt:  rapid.Uint32Range(1, 2).Draw(t, "attempt"), Term: term(rapid.Uint64Range(4, 6).Draw(t, "term")),
					Withdrawn: rapid.IntRange(0, 9).Draw(t, "withdrawn") == 0,
				},
			}
		}
		now, obeyed := start, 0
		held := []Letter{draw(now), draw(now)}
		if rapid.IntRange(0, 3).Draw(t, "plain") > 0 {
			held[0] = letter(0, func(l *Letter) { l.Pill.Term = term(6) })
		}
		kept := slices.Clone(held)
		in := Input{Highest: term(4)}
		for i := range rapid.IntRange(25, 50).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.SampledFrom([]int{500, 500, 500, 500, 900, 3000}).Draw(t, "passes")) * time.Millisecond)
			n := rapid.IntRange(0, len(held)-1).Draw(t, "store")
			switch rapid.IntRange(0, 15).Draw(t, "event") {
			case 0:
				held[n] = draw(now)
			case 1:
				kept[n] = held[n]
			case 2:
				held[n] = kept[n] // The store is restored.
			case 3:
				in.Heard = now
			case 4:
				in.Highest = term(rapid.Uint64Range(in.Highest.Term, 6).Draw(t, "highest"))
			case 5:
				held[n].Pill.Withdrawn = true
			}
			for j := range held {
				if rapid.IntRange(0, 9).Draw(t, "reads") > 0 {
					held[j].Read = now
				}
			}
			in.Letters, in.Answers = slices.Clone(held), nil
			if rapid.IntRange(0, 15).Draw(t, "answer") == 0 {
				in.Answers = []Answer{{Name: nameOf(held[n].Pill), Stands: rapid.Bool().Draw(t, "stands")}}
			}
			out, want := m.Step(now, in), w.obeys(now, in)
			if (out.Obey != nil) != want {
				t.Fatalf("step %d: the machine obeys: %t, the rule says %t; %+v", i, out.Obey != nil, want, out)
			}
			if p := out.Obey; p != nil {
				obeyed++
				if p.Boot != cfg.Boot || p.Term.Older(in.Highest) || p.Withdrawn {
					t.Fatalf("step %d: obeys %+v", i, p)
				}
			}
			if out.Obey != nil && out.Ask != nil {
				t.Fatal("asks and obeys at once")
			}
		}
		// At the end a pill like no other lies there, and nobody is heard: it is obeyed.
		in.Letters = []Letter{letter(0, func(l *Letter) { l.Pill.Incident, l.Pill.Term = "i9", term(6) })}
		in.Answers = nil
		for range 1 + DefaultPatience/tick {
			now = now.Add(tick)
			in.Letters[0].Read = now
			out, want := m.Step(now, in), w.obeys(now, in)
			if obeyed = 0; out.Obey != nil {
				obeyed = 1
			}
			if (out.Obey != nil) != want {
				t.Fatalf("at the end the machine obeys: %t, the rule says %t", out.Obey != nil, want)
			}
		}
		if (obeyed > 0) != cfg.Enabled {
			t.Fatalf("at the end: enabled %t, obeyed %d", cfg.Enabled, obeyed)
		}
	})
}

// The memory of void pills is bounded, and what was settled last is in it.
func TestMemoryIsBounded(t *testing.T) {
	m := enabled()
	for i := range 10 * maxVoid {
		m.Step(at(0), Input{Answers: []Answer{{Name: Name{haven.IncidentID(fmt.Sprint(i)), 1, term(5)}}}})
	}
	if len(m.void) != maxVoid || m.void[maxVoid-1].Incident != haven.IncidentID(fmt.Sprint(10*maxVoid-1)) {
		t.Errorf("%d remembered, the last of %s", len(m.void), m.void[len(m.void)-1].Incident)
	}
}

package fencing_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
)

// answerClimb feeds a climb from one line: an answer of all devices for each
// effect, such as "off,off" or "off,on"; it returns what was done.
func answerClimb(t *testing.T, names [][]string, answers string) (string, fencing.ClimbOutcome) {
	t.Helper()
	var did []string
	now := time.Unix(1000, 0)
	c := fencing.NewClimb(fencing.DefaultClimbPolicy(), names)
	ev := fencing.ClimbEvent{Kind: fencing.ClimbStart}
	lines := strings.Fields(answers)
	for range 100 {
		eff := c.Step(now, ev)
		switch eff.Do {
		case fencing.ClimbStop:
			if again := c.Step(now.Add(time.Hour), fencing.ClimbEvent{Kind: fencing.ClimbStart}); again.Outcome.Proved != eff.Outcome.Proved {
				t.Error("a climb that ended went on")
			}
			return strings.Join(did, " "), eff.Outcome
		case fencing.ClimbWait:
			did = append(did, "wait")
			now, ev = eff.Until, fencing.ClimbEvent{Kind: fencing.ClimbTime}
			continue
		case fencing.ClimbFence, fencing.ClimbLook:
			did = append(did, fmt.Sprintf("%s%d%v", eff.Do, eff.Level+1, eff.Devices))
		}
		if len(lines) == 0 {
			t.Fatalf("no answer left after %v", did)
		}
		var words []fencing.Word
		for a := range strings.SplitSeq(lines[0], ",") {
			words = append(words, climbWord(t, a, now))
		}
		lines = lines[1:]
		now = now.Add(100 * time.Millisecond)
		ev = fencing.ClimbEvent{Kind: fencing.ClimbFenced, Words: words}
		if eff.Do == fencing.ClimbLook {
			ev.Kind = fencing.ClimbLooked
		}
	}
	t.Fatal("the climb has no end")
	return "", fencing.ClimbOutcome{}
}

func climbWord(t *testing.T, a string, now time.Time) fencing.Word {
	t.Helper()
	r := fencing.Reading{State: haven.PowerOff, GUID: "aa", Start: now, Finish: now.Add(50 * time.Millisecond)}
	w := fencing.Word{Reading: r, Run: fencing.Outcome{Proved: true, First: r, Last: r}}
	switch a {
	case "off":
	case "on":
		w.Reading.State = haven.PowerOn
		w.Run = fencing.Outcome{Reason: "power commands had no effect", Sent: 4}
	case "dead":
		w.Reading.State, w.Err = haven.PowerUnknown, fencing.ErrUnreachable
		w.Run = fencing.Outcome{Reason: "time is up", Err: fencing.ErrUnreachable}
	case "slow":
		w.Reading.Finish = now.Add(time.Minute)
	case "old":
		w.Reading.Start = now.Add(-time.Minute)
	case "other":
		w.Reading.GUID = "bb"
	case "liar":
		w.Distrust = "it lied"
	case "denied":
		w.Run = fencing.Outcome{Reason: "permission was withdrawn", Err: fencing.ErrNotPermitted}
	default:
		t.Fatalf("what is %q?", a)
	}
	return w
}

// P2: all devices of a level must be off together; else the next level is tried.
func TestClimb(t *testing.T) {
	one, two := [][]string{{"bmc"}}, [][]string{{"psu-a", "psu-b"}, {"bmc"}}
	for _, tt := range []struct {
		name    string
		ladder  [][]string
		answers string
		did     string
		proved  bool
		level   int
		says    string
	}{
		{"one device", one, "off", "fence1[0]", true, 0, "bmc: off"},
		{"one device fails", one, "on", "fence1[0]", false, 0, "no effect"},
		{"one device that is not trusted", one, "liar", "fence1[0]", false, 0, "not trusted: it lied"},
		{"two supplies", two, "off,off off,off", "fence1[0 1] look1[0 1]", true, 0, "psu-b: off"},
		{"one came back, and goes", two, "off,off off,on off off,off", "fence1[0 1] look1[0 1] fence1[1] look1[0 1]", true, 0, ""},
		{"one comes back each time", two, "off,off on,off off on,off off on,off on", "fence1[0 1] look1[0 1] fence1[0] look1[0 1] fence1[0] look1[0 1] fence2[0]", false, 1, "psu-a: was off, and came back on"},
		{"both come back, and cannot be powered off again", two, "off,off on,on off,on off", "fence1[0 1] look1[0 1] fence1[0 1] fence2[0]", true, 1, "no effect"},
		{"one is out of reach", two, "off,dead off", "fence1[0 1] fence2[0]", true, 1, "psu-b: not proved off: time is up"},
		{"one falls silent after it was off", two, "off,off off,dead off,off", "fence1[0 1] look1[0 1] wait look1[0 1]", true, 0, ""},
		{"it stays silent", two, "off,off off,dead off,dead off,dead off,dead off,dead off", "fence1[0 1] look1[0 1] wait look1[0 1] wait look1[0 1] wait look1[0 1] wait look1[0 1] fence2[0]", true, 1, "not read off together"},
		{"a reading that took too long is not one together", two, "off,off off,slow off,off", "fence1[0 1] look1[0 1] wait look1[0 1]", true, 0, ""},
		{"a reading of before the last one was off", two, "off,off old,off off,off", "fence1[0 1] look1[0 1] wait look1[0 1]", true, 0, ""},
		{"another board answers", two, "off,off off,other off", "fence1[0 1] look1[0 1] fence2[0]", true, 1, "another board"},
		{"distrust in between", two, "off,off off,liar off", "fence1[0 1] look1[0 1] fence2[0]", true, 1, "not trusted"},
		{"the permit ends all", two, "denied,off", "fence1[0 1]", false, 0, "permission was withdrawn"},
		{"nothing helps", two, "dead,dead dead", "fence1[0 1] fence2[0]", false, 1, "level 2: bmc: not proved off: time is up"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			did, out := answerClimb(t, tt.ladder, tt.answers)
			if did != tt.did || out.Proved != tt.proved || out.Level != tt.level || !strings.Contains(out.Detail, tt.says) {
				t.Errorf("did %s\nwant %s\nproved %v at %d: %s", did, tt.did, out.Proved, out.Level, out.Detail)
			}
		})
	}
}

func rungOf(name string, f *fake, g *fencing.Gate) fencing.Rung {
	return fencing.Rung{
		Name: name, Driver: g.Fence(name, f), Policy: fencing.DefaultPolicy(), Log: quiet,
		Trusted: func(fencing.Reading) (bool, string) { return true, "" }, Read: func(fencing.Reading) {},
	}
}

// togetherByHand is the dumb twin of a level: each device alone said off as a run
// wants it, and later than all of that there is one off of each of them, all
// within the window.
func togetherByHand(level []*fake, p fencing.Policy, window time.Duration) bool {
	alone := make([]time.Time, 0, len(level))
	for _, f := range level {
		ok := false
		for n := range f.readings {
			if provedByHand(f.readings[:n+1], p.Gap, p.Window) {
				ok, alone = true, append(alone, f.readings[n].Finish)
				break
			}
		}
		if !ok {
			return false
		}
	}
	if len(level) == 1 {
		return true
	}
	for _, a := range level[0].readings {
		all := a.State == haven.PowerOff
		for _, t := range alone {
			all = all && !a.Start.Before(t)
		}
		for _, f := range level[1:] {
			found := false
			for _, b := range f.readings {
				near := b.Finish.Sub(a.Start) <= window && a.Finish.Sub(b.Start) <= window
				for _, t := range alone {
					near = near && !b.Start.Before(t)
				}
				found = found || near && b.State == haven.PowerOff
			}
			all = all && found
		}
		if all {
			return true
		}
	}
	return false
}

// P2 over levels of devices that fail, hang, lie, lag, ignore, lose and flip: a
// climb proves a host off only if the transcript of one level, read by hand, does
// so; it ends in time, and nothing is sent but off.
func TestClimbProvesOnlyWhatWasReadTogether(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var ladder [][]fencing.Rung
		var fakes [][]*fake
		gate := fencing.NewGate()
		for l := range rapid.IntRange(1, 3).Draw(rt, "levels") {
			var level []*fake
			var rungs []fencing.Rung
			for d := range rapid.IntRange(1, 3).Draw(rt, "devices") {
				rate := func(name string) float64 { return rapid.SampledFrom([]float64{0, 0, 0, 0.1, 0.5, 1}).Draw(rt, name) }
				delay := func(name string) time.Duration {
					return rapid.SampledFrom([]time.Duration{0, time.Millisecond, 200 * time.Millisecond, 3 * time.Second}).Draw(rt, name)
				}
				f := newFake(rapid.Uint64().Draw(rt, "seed"), rapid.Bool().Draw(rt, "on"), faultRates{
					fail: rate("fail"), hang: rate("hang"), lie: rate("lie"), ignore: rate("ignore"), flip: rate("flip"),
					session: delay("session"), effect: delay("effect"), lag: delay("lag"),
				})
				level, rungs = append(level, f), append(rungs, rungOf(fmt.Sprintf("d%d.%d", l, d), f, gate))
			}
			fakes, ladder = append(fakes, level), append(ladder, rungs)
		}
		p, cp := fencing.DefaultPolicy(), fencing.DefaultClimbPolicy()
		var out fencing.ClimbOutcome
		var took time.Duration
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			var err error
			if out, err = fencing.ExecuteClimb(t.Context(), cp, ladder, permitAll); err != nil {
				t.Fatal(err)
			}
			took = time.Since(begin)
		})
		if out.Proved && !togetherByHand(fakes[out.Level], p, cp.Window) {
			rt.Fatalf("proved at level %d, and by hand it is not: %s", out.Level+1, out.Detail)
		}
		runs, looks := time.Duration(1+cp.Returns), time.Duration(cp.Looks+cp.Returns)
		if most := time.Duration(len(ladder)) * (runs*(p.Total+p.Session) + looks*(p.Session+cp.Gap)); took > most {
			rt.Fatalf("it took %s, at most %s were allowed", took, most)
		}
		sent := 0
		for _, level := range fakes {
			for _, f := range level {
				sent += f.sent
				if f.overlap {
					rt.Fatal("two sessions at once with one device")
				}
			}
		}
		if out.Sent < sent || out.Detail == "" {
			rt.Fatalf("devices got %d commands, the outcome says %d: %q", sent, out.Sent, out.Detail)
		}
	})
}

// P8: two supplies of which one is slow take as long as the slow one, not both;
// and a host is off only then.
func TestClimbAtTheSameTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := fencing.NewGate()
		slow := faultRates{session: time.Second, effect: 6 * time.Second}
		a, b := newFake(1, true, slow), newFake(2, true, slow)
		begin := time.Now()
		out, err := fencing.ExecuteClimb(t.Context(), fencing.DefaultClimbPolicy(), [][]fencing.Rung{{rungOf("a", a, gate), rungOf("b", b, gate)}}, permitAll)
		if took := time.Since(begin); err != nil || !out.Proved || a.on || b.on || took > 20*time.Second {
			t.Errorf("%+v, %v after %s", out, err, took)
		}
	})
}

// P3: once the permit is withdrawn no level is tried any more.
func TestClimbEndsWithItsPermit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := fencing.NewGate()
		a, b := newFake(1, true, faultRates{ignore: 1}), newFake(2, true, faultRates{})
		asked := 0
		out, err := fencing.ExecuteClimb(t.Context(), fencing.DefaultClimbPolicy(), [][]fencing.Rung{{rungOf("a", a, gate)}, {rungOf("b", b, gate)}}, func(context.Context) error {
			if asked++; asked > 2 {
				return errors.New("lost the lead")
			}
			return nil
		})
		if err != nil || out.Proved || b.sent > 0 || len(b.readings) > 0 || !errors.Is(out.Err, fencing.ErrNotPermitted) {
			t.Errorf("%+v, %v; the second device got %d", out, err, b.sent)
		}
	})
}

package fencing_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
)

var quiet = slog.New(slog.DiscardHandler)

func permitAll(context.Context) error { return nil }

// script feeds a run from a list of answers, or one of answers to readings and
// after a "|" the answer to all commands, in virtual time without a clock,
// and returns what it did as one line.
func script(t *testing.T, p fencing.Policy, answers string) (string, fencing.Outcome) {
	t.Helper()
	var did []string
	now := time.Unix(1000, 0)
	run := fencing.NewRun(p)
	ev := fencing.Event{Kind: fencing.EventStart}
	reads, commands, split := strings.Cut(answers, "|")
	words := strings.Fields(reads)
	for range 1000 {
		eff := run.Step(now, ev)
		if eff.Do != fencing.DoWait {
			did = append(did, string(eff.Do))
		}
		switch eff.Do {
		case fencing.DoStop:
			if again := run.Step(now.Add(time.Hour), fencing.Event{Kind: fencing.EventStart}); again.Do != fencing.DoStop || again.Outcome.Proved != eff.Outcome.Proved {
				t.Error("a run that ended went on")
			}
			return strings.Join(did, " "), eff.Outcome
		case fencing.DoWait:
			if !eff.Until.After(now) {
				t.Fatalf("waits until %s at %s", eff.Until, now)
			}
			now = eff.Until
			ev = fencing.Event{Kind: fencing.EventTime}
			continue
		case fencing.DoRead:
			ev = fencing.Event{Kind: fencing.EventReading}
		case fencing.DoOff:
			ev = fencing.Event{Kind: fencing.EventCommand}
		}
		word := strings.TrimSpace(commands)
		if !split || eff.Do == fencing.DoRead {
			word = words[0]
			if len(words) > 1 {
				words = words[1:] // the last answer is given for ever
			}
		}
		start := now
		now = now.Add(10 * time.Millisecond)
		ev.Reading = fencing.Reading{State: haven.PowerUnknown, GUID: "aa", Start: start, Finish: now}
		switch word {
		case "on", "off", "unknown":
			ev.Reading.State = haven.PowerState(word)
		case "ok":
		case "other":
			ev.Reading.State, ev.Reading.GUID = haven.PowerOff, "bb"
		case "silent":
			ev.Err = fencing.ErrUnreachable
		case "auth":
			ev.Err = fencing.ErrAuth
		case "busy":
			ev.Err = fencing.ErrBusy
		case "rejected":
			ev.Err = fencing.ErrRejected
		case "nostate":
			ev.Err = fmt.Errorf("%w: it is PoweringOff", fencing.ErrNoState)
		case "denied":
			ev.Err = fencing.ErrNotPermitted
		case "later":
			ev.Err = fmt.Errorf("%w: %w", fencing.ErrNotPermitted, fencing.ErrNotYet)
		default:
			t.Fatalf("answer %q", word)
		}
	}
	t.Fatal("run does not end")
	return "", fencing.Outcome{}
}

func TestRun(t *testing.T) {
	tests := []struct {
		name, answers string
		did           string // prefix of what it did
		proved        bool
		reason        string
		sent          int
	}{
		{name: "off already needs no command, but two looks", answers: "off off", did: "read read stop", proved: true},
		{name: "on, off sent, off read twice", answers: "on ok off off", did: "read off read read stop", proved: true, sent: 1},
		{name: "status lags", answers: "on ok on on on on on off off", did: "read off read read read read read read read stop", proved: true, sent: 1},
		{name: "an accepted command is no proof", answers: "on | ok", reason: "no effect", sent: 4},
		{name: "answer to the command lost", answers: "on silent off off", did: "read off read read stop", proved: true, sent: 1},
		{name: "rejected because it went off by itself", answers: "on rejected off off", did: "read off read read stop", proved: true, sent: 1},
		{name: "on between starts again", answers: "off on ok off off", did: "read read off read read stop", proved: true, sent: 1},
		{name: "one off among many on", answers: "off on on on on off on | ok", reason: "no effect", sent: 4},
		{name: "another device answers", answers: "off other off other off off", did: "read read read read read read stop", proved: true},
		{name: "errors do not count as off", answers: "off silent silent off", did: "read read read read stop", proved: true},
		{name: "silent for ever", answers: "silent", reason: "time is up", sent: 0},
		{name: "neither on nor off for ever", answers: "unknown | ok", reason: "neither on nor off", sent: 4},
		{name: "neither, said as an error", answers: "nostate | ok", reason: "neither on nor off", sent: 4},
		{name: "neither, then off by itself", answers: "nostate nostate off off", did: "read read read read stop", proved: true},
		{name: "neither, then on: sent at once", answers: "nostate on ok off off", did: "read read off read read stop", proved: true, sent: 1},
		{name: "neither between on and off", answers: "on ok nostate nostate nostate nostate off off", did: "read off read read read read read read stop", proved: true, sent: 1},
		{name: "neither is no off", answers: "off nostate off nostate on ok off off", did: "read read read stop", proved: true},
		{name: "silence is not an answer that is neither", answers: "nostate silent", reason: "time is up", sent: 0},
		{name: "busy for a while", answers: "busy busy busy on ok off off", did: "read read read read off read read stop", proved: true, sent: 1},
		{name: "wrong password is not hammered", answers: "auth", did: "read read stop", reason: "does not let us read"},
		{name: "may read but not control", answers: "on | auth", reason: "refuses the power command", sent: 2},
		{name: "permission put off for a moment", answers: "on later on later on ok off off", did: "read off read off read off read read stop", proved: true, sent: 1},
		{name: "permission put off for ever", answers: "on | later", reason: "permission was withdrawn", sent: 0},
		{name: "permission put off, and off meanwhile", answers: "on later off off", did: "read off read read stop", proved: true, sent: 0},
		{name: "permission withdrawn", answers: "on denied", did: "read off stop", reason: "permission was withdrawn", sent: 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			did, out := script(t, fencing.DefaultPolicy(), tt.answers)
			if tt.did != "" && did != tt.did {
				t.Errorf("did  %s\nwant %s", did, tt.did)
			}
			if out.Proved != tt.proved || !strings.Contains(out.Reason, tt.reason) || out.Sent != tt.sent {
				t.Errorf("outcome %v, sent %d; want proved %v, %q, sent %d", out, out.Sent, tt.proved, tt.reason, tt.sent)
			}
			if len(out.Steps) == 0 || len(out.Steps) > 64 || (!out.Proved && out.Reason == "") {
				t.Errorf("P9: %d steps, reason %q", len(out.Steps), out.Reason)
			}
		})
	}
}

// A board that never says on is given as long as a command needs to show its
// effect, and not longer: nobody knows that it would ever go off by itself.
func TestUnclearIsWaitedForOnce(t *testing.T) {
	p := fencing.DefaultPolicy()
	start := time.Unix(1000, 0)
	now, sentAt := start, []time.Duration(nil)
	run := fencing.NewRun(p)
	ev := fencing.Event{Kind: fencing.EventStart}
	for {
		eff := run.Step(now, ev)
		switch eff.Do {
		case fencing.DoWait:
			now, ev = eff.Until, fencing.Event{Kind: fencing.EventTime}
			continue
		case fencing.DoRead:
			ev = fencing.Event{Kind: fencing.EventReading, Err: fencing.ErrNoState}
		case fencing.DoOff:
			sentAt = append(sentAt, now.Sub(start))
			ev = fencing.Event{Kind: fencing.EventCommand}
		case fencing.DoStop:
			if len(sentAt) != p.Sends || sentAt[0] < p.Resend || sentAt[0] > p.Resend+2*time.Second {
				t.Errorf("commands after %s, want %d, the first about %s after the start", sentAt, p.Sends, p.Resend)
			}
			if took := now.Sub(start); eff.Outcome.Proved || took < sentAt[p.Sends-1]+p.Settle || took > p.Total {
				t.Errorf("%v after %s", eff.Outcome, took)
			}
			return
		}
		now = now.Add(50 * time.Millisecond)
	}
}

func TestPolicyRelations(t *testing.T) {
	if err := fencing.DefaultPolicy().Validate(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		change func(*fencing.Policy)
	}{
		{"one confirmation", func(p *fencing.Policy) { p.Confirmations = 1 }},
		{"gap too short", func(p *fencing.Policy) { p.Gap = 299 * time.Millisecond }},
		{"window within the gap", func(p *fencing.Policy) { p.Window = p.Gap }},
		{"no command", func(p *fencing.Policy) { p.Sends = 0 }},
		{"no pause", func(p *fencing.Policy) { p.RetryMin = 0 }},
		{"shrinking pause", func(p *fencing.Policy) { p.RetryMax = p.RetryMin / 2 }},
		{"no session time", func(p *fencing.Policy) { p.Session = 0 }},
		{"too short for the commands", func(p *fencing.Policy) { p.Total = 30 * time.Second }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := fencing.DefaultPolicy()
			tt.change(&p)
			if p.Validate() == nil {
				t.Error("accepted")
			}
			if _, err := fencing.Execute(t.Context(), newFake(1, true, faultRates{}), p, permitAll, quiet); err == nil {
				t.Error("executed")
			}
		})
	}
}

// P2 over a device that fails, hangs, lies, lags, ignores, loses and flips: a
// run proves off only if the transcript of what the device said, judged by a
// second and dumber reader, says so; and it always ends in time. Nothing is
// claimed when nothing was read.
func TestRunProvesOnlyWhatWasRead(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rate := func(name string) float64 {
			return rapid.SampledFrom([]float64{0, 0, 0.1, 0.5, 0.9, 1}).Draw(rt, name)
		}
		delay := func(name string) time.Duration {
			return rapid.SampledFrom([]time.Duration{0, time.Millisecond, 200 * time.Millisecond, 2 * time.Second, 12 * time.Second}).Draw(rt, name)
		}
		f := newFake(rapid.Uint64().Draw(rt, "seed"), rapid.Bool().Draw(rt, "on"), faultRates{
			fail: rate("fail"), hang: rate("hang"), lie: rate("lie"), ignore: rate("ignore"), lost: rate("lost"), flip: rate("flip"),
			session: delay("session"), effect: delay("effect"), lag: delay("lag"),
		})
		p := fencing.DefaultPolicy()
		var out fencing.Outcome
		var took time.Duration
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			var err error
			if out, err = fencing.Execute(t.Context(), fencing.NewGate().Fence("x", f), p, permitAll, quiet); err != nil {
				t.Fatal(err)
			}
			took = time.Since(start)
		})
		if by := provedByHand(f.readings, p.Gap, p.Window); out.Proved != by {
			rt.Fatalf("Proved = %v, by hand %v: %v", out.Proved, by, f.readings)
		}
		if took > p.Total+p.Session {
			rt.Fatalf("took %s", took)
		}
		if f.sent > p.Sends || out.Sent < f.sent {
			rt.Fatalf("device got %d commands, outcome says %d", f.sent, out.Sent)
		}
		if out.Proved && (out.First.State != haven.PowerOff || out.Last.State != haven.PowerOff || out.Last.Start.Sub(out.First.Finish) < p.Gap) {
			rt.Fatalf("proof %v, %v", out.First, out.Last)
		}
	})
}

// A sound device, slow as the slowest that are known, is proved off.
func TestSlowDeviceIsProvedOff(t *testing.T) {
	for _, p := range []faultRates{
		{session: 7 * time.Millisecond},
		{session: time.Second, effect: 10 * time.Second},
		{session: 50 * time.Millisecond, effect: 4 * time.Second, lag: 12 * time.Second},
		{session: 50 * time.Millisecond, fail: 0.3, lost: 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(7, true, p)
			out, err := fencing.Execute(t.Context(), f, fencing.DefaultPolicy(), permitAll, quiet)
			if err != nil || !out.Proved || f.on {
				t.Errorf("%+v: %v, %v, on: %v", p, out, err, f.on)
			}
		})
	}
}

func TestExecuteEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(1, true, faultRates{hang: 1})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		out, err := fencing.Execute(ctx, f, fencing.DefaultPolicy(), permitAll, quiet)
		if err != nil || out.Proved || !errors.Is(out.Err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("%v, %v after %s", out, err, time.Since(start))
		}
		if f.sent != 0 {
			t.Error("a command was sent after the end")
		}
	})
}

// P3: a master that lost the lead sends nothing, not even a repetition.
func TestPermitIsAskedBeforeEachCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(1, true, faultRates{ignore: 1})
		asked := 0
		out, err := fencing.Execute(t.Context(), f, fencing.DefaultPolicy(), func(context.Context) error {
			if asked++; asked > 2 {
				return errors.New("lost the lead")
			}
			return nil
		}, quiet)
		if err != nil || out.Proved || f.sent != 2 || out.Sent != 2 || !errors.Is(out.Err, fencing.ErrNotPermitted) {
			t.Errorf("%v, %v; device got %d", out, err, f.sent)
		}
	})
}

package redfish_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/fencing/redfish"
	"github.com/haven-ha/haven/fencing/redfish/redfishtest"
)

// fence is the whole way with the real policy, but for the time of one session,
// which is the driver's.
func fence(t testing.TB, d *redfish.Driver) fencing.Outcome {
	t.Helper()
	p := fencing.DefaultPolicy()
	p.Session = 15*time.Second + redfish.Goodbye
	out, err := fencing.Execute(t.Context(), fencing.NewGate().Fence(d.Address(), d), p, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The whole way over the wire, in virtual time: what is proved off is off, by two
// readings; and a board that cannot be believed proves nothing.
func TestFenceOverTheWire(t *testing.T) {
	heal := func(after time.Duration, f func(*redfishtest.Faults)) func(*redfishtest.Service) {
		return func(b *redfishtest.Service) {
			b.SetFaults(f)
			time.AfterFunc(after, func() { b.SetFaults(func(f *redfishtest.Faults) { *f = redfishtest.Faults{} }) })
		}
	}
	always := func(f func(*redfishtest.Faults)) func(*redfishtest.Service) {
		return func(b *redfishtest.Service) { b.SetFaults(f) }
	}
	tests := []struct {
		name   string
		off    bool
		config func(*redfishtest.Config)
		driver func(*redfish.Config)
		faults func(*redfishtest.Service)
		proved bool
		sent   int // at least; none if zero
		text   string
	}{
		{name: "sound", proved: true, sent: 1},
		{name: "sound, basic", driver: func(c *redfish.Config) { c.Login = redfish.LoginBasic }, proved: true, sent: 1},
		{name: "off already", off: true, proved: true},
		{name: "off already, off refused with 409", off: true, faults: always(func(f *redfishtest.Faults) { f.RejectOff = 409 }), proved: true},
		{name: "off already, off refused with 400, status lags", faults: always(func(f *redfishtest.Faults) { f.RejectOff, f.Lag = 400, 8*time.Second }), proved: true, sent: 2},
		{name: "off already, off refused with 409, status lags", faults: always(func(f *redfishtest.Faults) { f.RejectOff, f.Lag = 409, 8*time.Second }), proved: true, sent: 2},
		{name: "status lags 8 s", faults: always(func(f *redfishtest.Faults) { f.Lag = 8 * time.Second }), proved: true, sent: 1},
		{name: "PoweringOff for 8 s", faults: always(func(f *redfishtest.Faults) { f.Transition = 8 * time.Second }), proved: true, sent: 1},
		{name: "PoweringOff for ever", faults: always(func(f *redfishtest.Faults) { f.Transition = time.Hour }), sent: 1, text: "PoweringOff"},
		{name: "status says on for ever", faults: always(func(f *redfishtest.Faults) { f.State = "On" }), sent: 4, text: "still says on"},
		{name: "PoweringOff from the start for ever", faults: always(func(f *redfishtest.Faults) { f.State = "PoweringOff" }), sent: 4, text: "PoweringOff"},
		{name: "PoweringOff from the start for 15 s", faults: heal(15*time.Second, func(f *redfishtest.Faults) { f.State = "PoweringOff" }), proved: true, sent: 1},
		{name: "status says null for ever", faults: always(func(f *redfishtest.Faults) { f.State = "null" }), sent: 4, text: "does not tell"},
		{name: "first command without effect", faults: always(func(f *redfishtest.Faults) { f.Ignore = 1 }), proved: true, sent: 2},
		{name: "commands without effect", faults: always(func(f *redfishtest.Faults) { f.Ignore = 99 }), sent: 4, text: "no effect"},
		{name: "3 s for each answer", faults: always(func(f *redfishtest.Faults) { f.Delay = 3 * time.Second }), proved: true, sent: 1},
		{name: "session table full for 20 s", faults: heal(20*time.Second, func(f *redfishtest.Faults) { f.SessionsFull = 503 }), proved: true, sent: 1},
		{name: "session table full", faults: always(func(f *redfishtest.Faults) { f.SessionsFull = 503 }), text: "busy"},
		{name: "restarts: 503 for 30 s", faults: heal(30*time.Second, func(f *redfishtest.Faults) { f.Starting, f.RetryAfter = true, "2" }), proved: true, sent: 1},
		{name: "restarts: connections cut for 30 s", faults: heal(30*time.Second, func(f *redfishtest.Faults) { f.Reset = true }), proved: true, sent: 1},
		{name: "dead for 20 s", faults: heal(20*time.Second, func(f *redfishtest.Faults) { f.Dead = true }), proved: true, sent: 1},
		{name: "dead", faults: always(func(f *redfishtest.Faults) { f.Dead = true })},
		{name: "loses its sessions for 10 s", faults: heal(10*time.Second, func(f *redfishtest.Faults) { f.Forget = true }), proved: true, sent: 1},
		{name: "wrong password", driver: func(c *redfish.Config) { c.Password = func() (string, error) { return "no", nil } }, text: "credentials"},
		{name: "wrong privilege", driver: func(c *redfish.Config) { c.Username = "viewer" }, sent: 2, text: "InsufficientPrivilege"},
		{name: "several systems", config: func(c *redfishtest.Config) { c.Others = []string{"2"} }, text: "several"},
		{name: "accepts for later", faults: always(func(f *redfishtest.Faults) { f.Async = true }), proved: true, sent: 1},
		{name: "answers to commands lost", faults: always(func(f *redfishtest.Faults) { f.LoseReply = true }), proved: true, sent: 1},
		{name: "bodies too long", faults: always(func(f *redfishtest.Faults) { f.Huge = true })},
		{name: "half a JSON for 10 s", faults: heal(10*time.Second, func(f *redfishtest.Faults) { f.Truncated = true }), proved: true, sent: 1},
		{name: "half a JSON", faults: always(func(f *redfishtest.Faults) { f.Truncated = true })},
		{name: "switch fails", config: func(c *redfishtest.Config) { c.OnPower = func(bool) error { return errors.New("stuck") } }, sent: 4},
		{name: "one session at a time, slow", config: func(c *redfishtest.Config) { c.SessionsMax = 1 }, faults: always(func(f *redfishtest.Faults) { f.Delay = time.Second }), proved: true, sent: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, stack := pipeBoard(t, func(c *redfishtest.Config) {
					c.Off = tt.off
					if tt.config != nil {
						tt.config(c)
					}
				})
				if tt.faults != nil {
					tt.faults(b)
				}
				d := driver(t, b, func(c *redfish.Config) {
					c.Net = stack
					if tt.driver != nil {
						tt.driver(c)
					}
				})
				start := time.Now()
				out := fence(t, d)
				if out.Proved != tt.proved || out.Sent < tt.sent || tt.sent == 0 && out.Sent != 0 || !strings.Contains(out.String(), tt.text) {
					t.Errorf("%v\n%s", out, strings.Join(out.Steps, "\n"))
				}
				if out.Proved && b.On() {
					t.Error("P2: proved off, and it is on")
				}
				if gap := out.Last.Start.Sub(out.First.Finish); out.Proved && (gap < 300*time.Millisecond || out.First.GUID != guid) {
					t.Errorf("P2: proved by readings %s apart of %s", gap, out.First.GUID)
				}
				if took := time.Since(start); took > fencing.DefaultPolicy().Total+15*time.Second+redfish.Goodbye {
					t.Errorf("took %s", took)
				}
				time.Sleep(10 * time.Second) // It may still be at the last deletion.
				inspect(t, b)
			})
		})
	}
}

// The host boots by itself in the middle: on, off, on never gives a proof that
// rests on readings around the "on" that was read.
func TestPowerRestoredInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, stack := pipeBoard(t, nil)
		d := driver(t, b, func(c *redfish.Config) { c.Net = stack })
		offs := 0
		b.SetFaults(func(f *redfishtest.Faults) {
			f.Rewrite = func(body []byte) []byte {
				if strings.Contains(string(body), `"PowerState":"Off"`) && offs < 3 {
					offs++
					b.SetPower(true) // right behind the reading's back
				}
				return body
			}
		})
		out := fence(t, d)
		if !out.Proved || b.On() || offs != 3 || out.Sent != 4 {
			t.Errorf("%v, on %v, after %d times\n%s", out, b.On(), offs, strings.Join(out.Steps, "\n"))
		}
		inspect(t, b)
	})
}

// What is read early is a proof only of a device that is known: another system at
// the address proves nothing.
func TestWrongHost(t *testing.T) {
	b := board(t, nil)
	d := driver(t, b, nil)
	trust := &fencing.Trust{}
	trust.Alive("boot", time.Now())
	trust.Read(wantPower(t, d, haven.PowerOn))
	id, ok := trust.Learned()
	if !ok || id.MatchesUUID(uuid) != haven.Yes {
		t.Fatalf("learned %q", id)
	}
	trust.Record(id)
	b.SetPower(false) // the power is cut
	judge := func() fencing.OffVerdict {
		early := fencing.NewOffProof(time.Now(), fencing.DefaultPolicy())
		for range 2 {
			time.Sleep(time.Until(early.NextReading(time.Now())))
			early.Step(d.Power(context.WithoutCancel(t.Context())))
		}
		return early.Verdict(time.Now(), trust)
	}
	if v := judge(); !v.Proved {
		t.Errorf("%+v", v)
	}
	b.SetUUID("b1234567-89ab-cdef-a123-456789abcd01")
	if v := judge(); v.Proved || !v.Off {
		t.Errorf("another system: %+v", v)
	}
}

// P2: nothing but the word Off is off, and nothing but On is on.
func TestOnlyStableStatesCount(t *testing.T) {
	words := []string{"On", "Off", "PoweringOn", "PoweringOff", "Paused", "off", "OFF", "Off ", " Off", "Of", "0", "false", "null", "Unknown", "Disabled", "StandbyOffline"}
	p := redfishtest.NewPipe()
	b, err := redfishtest.Serve(p, config(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer inspect(t, b)
	d := driver(t, b, func(c *redfish.Config) { c.Net = p })
	rapid.Check(t, func(t *rapid.T) {
		state := rapid.OneOf(rapid.SampledFrom(words), rapid.StringN(1, 20, 60)).Draw(t, "state")
		on := rapid.Bool().Draw(t, "on")
		b.SetPower(on)
		b.SetFaults(func(f *redfishtest.Faults) { f.State = state })
		r, err := d.Power(context.Background())
		want := haven.PowerUnknown
		switch state {
		case "On":
			want = haven.PowerOn
		case "Off":
			want = haven.PowerOff
		}
		if r.State != want || (err == nil) != (want != haven.PowerUnknown) || r.Finish.Before(r.Start) {
			t.Errorf("%q: %v, %v; want %s", state, r, err, want)
		}
	})
}

// P2 over random faults: whatever is wrong, a proof means off, and no session is
// left whose token was told in time.
func TestFenceProvesOnlyWhatIsOff(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		pick := func(name string, of ...time.Duration) time.Duration { return rapid.SampledFrom(of).Draw(rt, name) }
		f := redfishtest.Faults{
			Busy:      rapid.IntRange(0, 5).Draw(rt, "busy"),
			Delay:     pick("delay", 0, 0, time.Second, 3*time.Second, 20*time.Second),
			Lag:       pick("lag", 0, 8*time.Second, 30*time.Second),
			Ignore:    rapid.SampledFrom([]int{0, 1, 9}).Draw(rt, "ignore"),
			RejectOff: rapid.SampledFrom([]int{0, 400, 409}).Draw(rt, "reject"),
			State:     rapid.SampledFrom([]string{"", "", "", "On", "PoweringOff", "null"}).Draw(rt, "state"),
			LoseReply: rapid.Bool().Draw(rt, "lose"),
			Truncated: rapid.IntRange(0, 5).Draw(rt, "truncated") == 0,
			Forget:    rapid.IntRange(0, 5).Draw(rt, "forget") == 0,
		}
		healed := pick("healed", time.Second, 10*time.Second, time.Hour)
		synctest.Test(t, func(t *testing.T) {
			b, stack := pipeBoard(t, func(c *redfishtest.Config) { c.SessionsMax = 1 })
			b.SetFaults(func(g *redfishtest.Faults) { *g = f })
			defer time.AfterFunc(healed, func() { b.SetFaults(func(g *redfishtest.Faults) { *g = redfishtest.Faults{Lag: g.Lag} }) }).Stop()
			out := fence(t, driver(t, b, func(c *redfish.Config) { c.Net = stack }))
			if out.Proved && b.On() {
				t.Errorf("P2: proved off, and it is on: %v\n%s", out, strings.Join(out.Steps, "\n"))
			}
			time.Sleep(time.Minute)
			if f.Delay == 20*time.Second {
				b.Restart() // A login whose answer never came in time cannot be undone.
			}
			inspect(t, b)
		})
	})
}

// BenchmarkOffToProof is the time from the decision to fence to the proof, on a
// board that obeys at once: read, off, and two readings 300 ms apart.
func BenchmarkOffToProof(b *testing.B) {
	s := board(b, nil)
	d := driver(b, s, nil)
	for b.Loop() {
		s.SetPower(true)
		if out := fence(b, d); !out.Proved {
			b.Fatal(out)
		}
	}
}

// A fence of a board with another key ends at once, so that the ladder goes on.
func TestFenceWithWrongPin(t *testing.T) {
	b := board(t, nil)
	out := fence(t, driver(t, b, func(c *redfish.Config) { c.Pin = strings.Repeat("0", 64) }))
	if out.Proved || out.Sent != 0 || out.Sessions > 2 || !errors.Is(out.Err, redfish.ErrCertificate) {
		t.Errorf("%v\n%s", out, strings.Join(out.Steps, "\n"))
	}
}

package ipmi_test

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/fencing/ipmi"
	"github.com/haven-ha/haven/fencing/ipmi/ipmitest"
	"github.com/haven-ha/haven/internal/sim/simnet"
)

// wires is a network without sockets between an agent and boards, so that the
// real protocol runs in virtual time.
type wires struct {
	*simnet.Process
	net   *simnet.Net
	board netip.Addr
}

func newWires(t testing.TB, seed uint64, link simnet.Link) *wires {
	t.Helper()
	n := simnet.New(seed, link)
	t.Cleanup(n.Close)
	own := n.Add(netip.MustParseAddr("10.1.0.1"))
	own.PowerOn()
	return &wires{own.Process(), n, netip.MustParseAddr("10.1.0.11")}
}

// serve puts a board on the wires.
func (w *wires) serve(t testing.TB, change func(*ipmitest.Config)) *ipmitest.BMC {
	t.Helper()
	m := w.net.Add(w.board)
	m.PowerOn()
	sock, err := m.Process().ListenPacket("udp", netip.AddrPortFrom(w.board, 623).String())
	if err != nil {
		t.Fatal(err)
	}
	cfg := ipmitest.Config{
		Accounts: []ipmitest.Account{
			{Name: "haven", Password: secret, Privilege: ipmitest.Operator},
			{Name: "viewer", Password: secret, Privilege: ipmitest.User},
		},
		GUID: guid,
	}
	if change != nil {
		change(&cfg)
	}
	b, err := ipmitest.Serve(sock, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// driver makes a driver as an agent has it that was given no times.
func (w *wires) driver(t testing.TB, change func(*ipmi.Config)) *ipmi.Driver {
	t.Helper()
	return driver(t, w.board.String(), func(c *ipmi.Config) {
		// The time for a call is the configuration's default.
		c.Net, c.PacketTimeout, c.Timeout = w, 0, 2*time.Second
		if change != nil {
			change(c)
		}
	})
}

// DialContext opens a datagram socket to one address, which the simulated network
// does not have.
func (w *wires) DialContext(_ context.Context, network, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	sock, err := w.ListenPacket(network, "10.1.0.1:0")
	if err != nil {
		return nil, err
	}
	return &wire{sock, net.UDPAddrFromAddrPort(to)}, nil
}

type wire struct {
	net.PacketConn
	to *net.UDPAddr
}

func (c *wire) Read(b []byte) (int, error) {
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil || from.String() == c.to.String() {
			return n, err
		}
	}
}

func (c *wire) Write(b []byte) (int, error) { return c.WriteTo(b, c.to) }
func (c *wire) RemoteAddr() net.Addr        { return c.to }

// realPolicy is the shipped one, with the time that a session may take.
func realPolicy() fencing.Policy {
	p := fencing.DefaultPolicy()
	p.Session = ipmi.SessionMax + time.Second
	return p
}

// The faults that boards are known for, each for as long as it lasts in the field,
// over real sessions and with the shipped times.
func TestFaultsInVirtualTime(t *testing.T) {
	always := func(f func(*ipmitest.Faults)) func(*ipmitest.BMC) {
		return func(b *ipmitest.BMC) { b.SetFaults(f) }
	}
	heal := func(after time.Duration, f func(*ipmitest.Faults)) func(*ipmitest.BMC) {
		return func(b *ipmitest.BMC) {
			b.SetFaults(f)
			time.AfterFunc(after, func() { b.SetFaults(func(f *ipmitest.Faults) { *f = ipmitest.Faults{} }) })
		}
	}
	tests := []struct {
		name   string
		link   simnet.Link
		config func(*ipmitest.Config)
		driver func(*ipmi.Config)
		faults func(*ipmitest.BMC)
		off    bool
		proved bool
		sent   int // at least; none if zero
		text   string
	}{
		{name: "sound", proved: true, sent: 1},
		{name: "already off", off: true, proved: true},
		{name: "already off, off refused", off: true, faults: always(func(f *ipmitest.Faults) { f.RejectOff = true }), proved: true},
		{name: "off refused as off, status lags", faults: always(func(f *ipmitest.Faults) { f.RejectOff, f.Lag = true, 8*time.Second }), proved: true, sent: 2},
		{name: "status lags 8 s", faults: always(func(f *ipmitest.Faults) { f.Lag = 8 * time.Second }), proved: true, sent: 1},
		{name: "status lags 18 s", faults: always(func(f *ipmitest.Faults) { f.Lag = 18 * time.Second }), proved: true, sent: 3},
		{name: "status says on for ever", faults: always(func(f *ipmitest.Faults) { f.Stuck = haven.PowerOn }), sent: 4, text: "still says on"},
		{name: "commands without effect", faults: always(func(f *ipmitest.Faults) { f.Ignore = 99 }), sent: 4, text: "no effect"},
		{name: "first two commands without effect", faults: always(func(f *ipmitest.Faults) { f.Ignore = 2 }), proved: true, sent: 3},
		{name: "3 s for each answer", faults: always(func(f *ipmitest.Faults) { f.Delay = 3 * time.Second }), proved: true, sent: 1},
		{name: "3 s on the way", link: simnet.Link{Latency: 1500 * time.Millisecond}, proved: true, sent: 1},
		{name: "1 s for each answer, status lags 8 s", faults: always(func(f *ipmitest.Faults) { f.Delay, f.Lag = time.Second, 8*time.Second }), proved: true, sent: 1},
		{name: "one packet in twenty is lost", link: simnet.Link{Latency: time.Millisecond, Loss: 0.05}, proved: true, sent: 1},
		{name: "one packet in ten is lost, others are late", link: simnet.Link{Latency: 5 * time.Millisecond, Jitter: 200 * time.Millisecond, Loss: 0.1}, proved: true, sent: 1},
		{name: "answers to commands are lost", faults: always(func(f *ipmitest.Faults) { f.LoseCommandReply = true }), proved: true, sent: 1},
		{name: "session table full for 20 s", faults: heal(20*time.Second, func(f *ipmitest.Faults) { f.RefuseSessions = true }), proved: true, sent: 1},
		{name: "session table full", faults: always(func(f *ipmitest.Faults) { f.RefuseSessions = true }), text: "busy"},
		{name: "restarts: silent for 30 s, sessions lost", faults: func(b *ipmitest.BMC) {
			b.SetFaults(func(f *ipmitest.Faults) { f.Dead = true })
			time.AfterFunc(30*time.Second, func() {
				_ = b.Restart()
				b.SetFaults(func(f *ipmitest.Faults) { f.Dead = false })
			})
		}, proved: true, sent: 1},
		{name: "initialises: status busy for 30 s", faults: heal(30*time.Second, func(f *ipmitest.Faults) { f.StatusBusy = true }), proved: true, sent: 1},
		{name: "status busy for ever", faults: always(func(f *ipmitest.Faults) { f.StatusBusy = true }), sent: 4, text: "neither on nor off"},
		{name: "dead with its host", faults: always(func(f *ipmitest.Faults) { f.Dead = true }), text: "does not answer"},
		{name: "wrong password", driver: password("wrong"), text: "credentials"},
		{name: "wrong privilege", driver: func(c *ipmi.Config) { c.Username = "viewer" }, text: "privilege"},
		{name: "relay that sticks", config: func(c *ipmitest.Config) { c.OnPower = func(bool) error { return context.DeadlineExceeded } }, sent: 4, text: "still says on"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWires(t, 1, tt.link)
				b := w.serve(t, func(c *ipmitest.Config) {
					c.Off = tt.off
					if tt.config != nil {
						tt.config(c)
					}
				})
				if tt.faults != nil {
					tt.faults(b)
				}
				d := w.driver(t, tt.driver)
				p := realPolicy()
				start := time.Now()
				out, err := fencing.Execute(t.Context(), fencing.NewGate().Fence(d.Address(), d), p, nil, slog.New(slog.DiscardHandler))
				if err != nil || out.Proved != tt.proved || out.Sent < tt.sent || tt.sent == 0 && out.Sent != 0 || !strings.Contains(out.String(), tt.text) {
					t.Errorf("%v, %v\n%s", out, err, strings.Join(out.Steps, "\n"))
				}
				if out.Proved && b.On() {
					t.Error("P2: proved off, and it is on")
				}
				if gap := out.Last.Start.Sub(out.First.Finish); out.Proved && (gap < p.Gap || out.First.GUID != fencing.NewGUID(guid)) {
					t.Errorf("P2: proved by readings %s apart of %s", gap, out.First.GUID)
				}
				if took := time.Since(start); took > p.Total+p.Session {
					t.Errorf("took %s", took)
				}
				onlyOff(t, b)
			})
		})
	}
}

// onlyOff looks at what the chassis was told during a fence.
func onlyOff(t testing.TB, b *ipmitest.BMC) {
	t.Helper()
	for _, c := range b.Commands() {
		if c != "off" {
			t.Errorf("the chassis was told %q in a fence", b.Commands())
		}
	}
}

// A password that is changed in the middle of a fence: the file is read for each
// session, so the two may differ for a moment. When they do, the run ends after two
// refusals, for accounts get locked; the next one finds both the same.
func TestPasswordChangedInTheMiddle(t *testing.T) {
	for _, tt := range []struct {
		name string
		file time.Duration // when the file follows the board
		runs int           // until it is proved; 0 for never
		text string        // of the first
	}{
		{name: "together", runs: 1, text: "off, read"},
		{name: "the file is a second earlier", file: -time.Second, runs: 2, text: "wrong user name or password"},
		{name: "the file is a second later", file: time.Second, runs: 2, text: "wrong user name or password"},
		{name: "the file does not follow", file: time.Hour, text: "wrong user name or password"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const changed = "an0ther-pa55word"
				w := newWires(t, 1, simnet.Link{Latency: time.Millisecond})
				b := w.serve(t, nil)
				b.SetFaults(func(f *ipmitest.Faults) { f.Lag = 8 * time.Second })
				at := time.Now().Add(3 * time.Second) // off is sent, and not yet told
				time.AfterFunc(3*time.Second, func() {
					if err := b.SetPassword("haven", changed); err != nil {
						t.Error(err)
					}
				})
				d := w.driver(t, func(c *ipmi.Config) {
					c.Password = func() (string, error) {
						if time.Now().Before(at.Add(tt.file)) {
							return secret, nil
						}
						return changed, nil
					}
				})
				proved := 0
				for run := 1; run <= 3 && proved == 0; run++ {
					out, err := fencing.Execute(t.Context(), d, realPolicy(), nil, slog.New(slog.DiscardHandler))
					if err != nil || run == 1 && !strings.Contains(out.String(), tt.text) {
						t.Errorf("%v, %v\n%s", out, err, strings.Join(out.Steps, "\n"))
					}
					if out.Proved {
						proved = run
					}
					time.Sleep(5 * time.Second) // The pause before the next attempt is longer.
				}
				if proved != tt.runs || b.On() {
					t.Errorf("proved by run %d, want %d; on %v", proved, tt.runs, b.On())
				}
				onlyOff(t, b)
			})
		})
	}
}

// The power comes back by itself in the middle: no proof rests on readings around
// the "on" that was read, and off is sent again.
func TestPowerRestoredInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(t, 1, simnet.Link{Latency: time.Millisecond})
		b := w.serve(t, nil)
		d := w.driver(t, nil)
		times := 0
		out, err := fencing.Execute(t.Context(), restoring{d, func() {
			if times < 3 {
				times++
				b.SetPower(true) // right behind the reading's back
			}
		}}, realPolicy(), nil, slog.New(slog.DiscardHandler))
		if err != nil || !out.Proved || b.On() || times != 3 || out.Sent != 4 {
			t.Errorf("%v, %v, on %v, after %d times\n%s", out, err, b.On(), times, strings.Join(out.Steps, "\n"))
		}
	})
}

// restoring does something after each reading of off.
type restoring struct {
	fencing.Driver
	after func()
}

func (r restoring) Power(ctx context.Context) (fencing.Reading, error) {
	x, err := r.Driver.Power(ctx)
	if x.State == haven.PowerOff {
		r.after()
	}
	return x, err
}

// The patience that a slow board needs is learnt once, and unlearnt when the board
// is quick; a dead board does not keep it for ever.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(t, 1, simnet.Link{Latency: time.Millisecond})
		b := w.serve(t, nil)
		d := w.driver(t, nil)
		read := func() (time.Duration, error) {
			start := time.Now()
			_, err := d.Power(t.Context())
			return time.Since(start), err
		}
		delay := func(delay time.Duration) {
			b.SetFaults(func(f *ipmitest.Faults) { f.Delay = delay })
		}
		delay(3 * time.Second)
		var err error
		for range 4 {
			var took time.Duration
			if took, err = read(); took > ipmi.SessionMax+time.Second {
				t.Fatalf("a call took %s", took)
			}
			if err == nil {
				break
			}
		}
		if err != nil {
			t.Errorf("a slow board is not read in four calls: %v", err)
		}
		if took, err := read(); err != nil || took > 16*time.Second {
			t.Errorf("the next call: %s, %v", took, err)
		}
		delay(0)
		time.Sleep(5 * time.Second) // Its late answers are all there.
		if _, err := read(); err != nil {
			t.Error(err)
		}
		b.SetFaults(func(f *ipmitest.Faults) { f.Dead = true })
		if took, err := read(); err == nil || took > 3*time.Second {
			t.Errorf("a board that was quick, and is dead: %s, %v", took, err)
		}
	})
}

// P2 and the promise that fencing never cycles, over random faults: whatever is
// wrong, a proof means off, and the only power command on the wire is off.
func TestWireCarriesOnlyOff(t *testing.T) {
	proofs, commands := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		pick := func(name string, of ...time.Duration) time.Duration { return rapid.SampledFrom(of).Draw(rt, name) }
		f := ipmitest.Faults{
			Delay:            pick("delay", 0, 0, time.Second, 3*time.Second, 20*time.Second),
			Lag:              pick("lag", 0, 8*time.Second, 30*time.Second),
			Ignore:           rapid.SampledFrom([]int{0, 0, 1, 9}).Draw(rt, "ignore"),
			RejectOff:        rapid.Bool().Draw(rt, "reject"),
			LoseCommandReply: rapid.Bool().Draw(rt, "lose"),
			StatusBusy:       rapid.IntRange(0, 4).Draw(rt, "busy") == 0,
			RefuseSessions:   rapid.IntRange(0, 4).Draw(rt, "full") == 0,
			Dead:             rapid.IntRange(0, 9).Draw(rt, "dead") == 0,
			Stuck:            rapid.SampledFrom([]haven.PowerState{"", "", "", haven.PowerOn}).Draw(rt, "stuck"),
		}
		link := simnet.Link{
			Latency: time.Millisecond, Jitter: pick("jitter", 0, 0, 500*time.Millisecond, 2*time.Second),
			Loss: rapid.SampledFrom([]float64{0, 0, 0.05, 0.3}).Draw(rt, "loss"),
		}
		seed := rapid.Uint64().Draw(rt, "seed")
		off := rapid.IntRange(0, 4).Draw(rt, "off") == 0
		healed := pick("healed", time.Second, 10*time.Second, time.Hour)
		restart := pick("restart", time.Second, 7*time.Second, time.Hour)
		restored := pick("restored", 2*time.Second, 9*time.Second, time.Hour)
		synctest.Test(t, func(t *testing.T) {
			w := newWires(t, seed, link)
			b := w.serve(t, func(c *ipmitest.Config) { c.Off = off })
			b.SetFaults(func(g *ipmitest.Faults) { *g = f })
			ended := make(chan struct{})
			for _, e := range []struct {
				at time.Duration
				do func()
			}{
				{healed, func() { b.SetFaults(func(g *ipmitest.Faults) { *g = ipmitest.Faults{Lag: f.Lag} }) }},
				{restart, func() { _ = b.Restart() }},
				{restored, func() { b.SetPower(true) }},
			} {
				defer time.AfterFunc(e.at, e.do).Stop()
			}
			d := w.driver(t, nil)
			// Somebody else reads all the while: it never gets to send anything.
			gate := fencing.NewGate()
			other := make(chan struct{})
			go func() {
				defer close(other)
				reader := gate.Read(d.Address(), d)
				rnd := rand.New(rand.NewPCG(seed, 2))
				for {
					select {
					case <-ended:
						return
					case <-time.After(time.Duration(rnd.Int64N(int64(3 * time.Second)))):
						ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
						_, _ = reader.Power(ctx)
						_ = reader.Set(ctx, haven.ActionOn, nil)
						cancel()
					}
				}
			}()
			start := time.Now()
			out, err := fencing.Execute(t.Context(), gate.Fence(d.Address(), d), realPolicy(), nil, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			// A status that lags tells of an off that was, after the power came back.
			if out.Proved && b.On() && (f.Lag == 0 || time.Since(start) < restored) {
				t.Errorf("P2: proved off, and it is on: %v\n%s", out, strings.Join(out.Steps, "\n"))
			}
			close(ended)
			<-other
			onlyOff(t, b)
			commands += len(b.Commands())
			if out.Proved {
				proofs++
			}
		})
	})
	if proofs < 3 || commands < 3 {
		t.Errorf("%d proofs and %d commands: the draw is void", proofs, commands)
	}
}

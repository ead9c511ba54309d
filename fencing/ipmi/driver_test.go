package ipmi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/fencing/ipmi"
	"github.com/haven-ha/haven/fencing/ipmi/ipmitest"
	"github.com/haven-ha/haven/internal/netx"
)

const secret = "s3cret-pa55word!"

var guid = [16]byte{0xa1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xa1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0x01}

func board(t testing.TB, change func(*ipmitest.Config)) *ipmitest.BMC {
	t.Helper()
	cfg := ipmitest.Config{
		Accounts: []ipmitest.Account{
			{Name: "haven", Password: secret, Privilege: ipmitest.Operator},
			{Name: "viewer", Password: secret, Privilege: ipmitest.User},
		},
		GUID: guid,
	}
	addr := "127.0.0.1:0"
	if change != nil {
		change(&cfg)
	}
	b, err := ipmitest.Start(addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// driver makes a patient driver: on a loaded machine an answer may be late.
func driver(t testing.TB, addr string, change func(*ipmi.Config)) *ipmi.Driver {
	t.Helper()
	cfg := ipmi.Config{
		Net:           netx.Real{},
		Address:       addr,
		Username:      "haven",
		Password:      func() (string, error) { return secret, nil },
		PacketTimeout: 5 * time.Second,
		Timeout:       25 * time.Second,
	}
	if change != nil {
		change(&cfg)
	}
	d, err := ipmi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// hasty makes a driver that takes short silence for silence.
func hasty(cfg *ipmi.Config) { cfg.PacketTimeout, cfg.Timeout = 200*time.Millisecond, 20*time.Second }

func wantPower(t *testing.T, d *ipmi.Driver, want haven.PowerState) fencing.Reading {
	t.Helper()
	r, err := d.Power(t.Context())
	if err != nil || r.State != want {
		t.Fatalf("Power() = %v, %v; want %s", r, err, want)
	}
	return r
}

func TestPowerAndSet(t *testing.T) {
	for _, suite := range []int{17, 3} {
		t.Run(fmt.Sprint("suite ", suite), func(t *testing.T) {
			b := board(t, func(c *ipmitest.Config) { c.Suites = []int{suite} })
			d := driver(t, b.Addr(), nil)
			before := time.Now()
			r := wantPower(t, d, haven.PowerOn)
			if r.GUID != fencing.NewGUID(guid) {
				t.Errorf("GUID = %q", r.GUID)
			}
			if r.Start.Before(before) || r.Finish.Before(r.Start) || r.Finish.After(time.Now()) {
				t.Errorf("reading from %s to %s is not within the call", r.Start, r.Finish)
			}
			for _, step := range []struct {
				action haven.FenceAction
				want   haven.PowerState
			}{{haven.ActionBlink, haven.PowerOn}, {haven.ActionOff, haven.PowerOff}, {haven.ActionOff, haven.PowerOff}, {haven.ActionOn, haven.PowerOn}} {
				if err := d.Set(t.Context(), step.action, nil); err != nil {
					t.Fatal(err)
				}
				wantPower(t, d, step.want)
			}
			if got := strings.Join(b.Commands(), " "); got != "blink off off on" {
				t.Errorf("board got %q", got)
			}
			if id, err := d.Identity(t.Context()); err != nil || id != fencing.NewGUID(guid) {
				t.Errorf("Identity() = %q, %v", id, err)
			}
		})
	}
}

func TestIPv6(t *testing.T) {
	b, err := ipmitest.Start("[::1]:0", ipmitest.Config{Accounts: []ipmitest.Account{{Name: "haven", Password: secret, Privilege: ipmitest.Operator}}})
	if err != nil {
		t.Skip("no IPv6 on this machine: ", err)
	}
	defer func() { _ = b.Close() }()
	d := driver(t, b.Addr(), nil)
	wantPower(t, d, haven.PowerOn)
	if id, err := d.Identity(t.Context()); err != nil || id != "" {
		t.Errorf("a board without GUID: Identity() = %q, %v; want none", id, err)
	}
}

func TestAddress(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"IPv4", "10.1.0.11", "10.1.0.11:623"},
		{"IPv4 with port", "10.1.0.11:6230", "10.1.0.11:6230"},
		{"IPv6", "fd00::1", "[fd00::1]:623"},
		{"IPv6 in brackets", "[fd00::1]", "[fd00::1]:623"},
		{"IPv6 with port", "[fd00::1]:6230", "[fd00::1]:6230"},
		{"IPv4 written as IPv6 is the same address", "::ffff:10.1.0.11", "10.1.0.11:623"},
		{"name", "bmc-1.example", ""},
		{"port 0", "10.1.0.11:0", ""},
		{"empty", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := ipmi.New(ipmi.Config{Net: netx.Real{}, Address: tt.in, Username: "u", Password: func() (string, error) { return "", nil }})
			if (err == nil) != (tt.want != "") {
				t.Fatalf("New: %v", err)
			}
			if err == nil && d.Address() != tt.want {
				t.Errorf("Address() = %q, want %q", d.Address(), tt.want)
			}
		})
	}
}

// Suite 17 is tried first, 3 only when 17 is refused or met with silence; what
// worked is kept.
func TestSuiteNegotiation(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		b := board(t, func(c *ipmitest.Config) { c.Suites = []int{3} })
		d := driver(t, b.Addr(), nil)
		wantPower(t, d, haven.PowerOn)
		if n := b.Logins(); n != 2 {
			t.Errorf("first reading took %d sessions, want 2", n)
		}
		wantPower(t, d, haven.PowerOn)
		if n := b.Logins(); n != 3 {
			t.Errorf("second reading took %d sessions, want 1", n-2)
		}
	})
	t.Run("met with silence", func(t *testing.T) {
		b := board(t, nil)
		b.SetFaults(func(f *ipmitest.Faults) {
			f.Rewrite = func(p []byte) [][]byte {
				if p[5] == 0x11 && p[16+12+4] == 3 { // an Open Session Response for SHA-256
					return nil
				}
				return [][]byte{p}
			}
		})
		d := driver(t, b.Addr(), func(c *ipmi.Config) { c.PacketTimeout, c.Timeout = 300*time.Millisecond, 20*time.Second })
		wantPower(t, d, haven.PowerOn)
		n := b.Logins()
		wantPower(t, d, haven.PowerOn)
		if b.Logins() != n+1 {
			t.Error("the suite that worked was not kept")
		}
	})
	t.Run("board replaced", func(t *testing.T) {
		old := board(t, nil)
		d := driver(t, old.Addr(), nil)
		wantPower(t, d, haven.PowerOn)
		addr := old.Addr()
		_ = old.Close()
		b, err := ipmitest.Start(addr, ipmitest.Config{Suites: []int{3}, Accounts: []ipmitest.Account{{Name: "haven", Password: secret, Privilege: ipmitest.Operator}}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = b.Close() }()
		wantPower(t, d, haven.PowerOn)
	})
	t.Run("neither", func(t *testing.T) {
		b := board(t, func(c *ipmitest.Config) { c.Suites = []int{3} })
		d := driver(t, b.Addr(), func(c *ipmi.Config) { c.Suites = []int{17} })
		if _, err := d.Power(t.Context()); !errors.Is(err, fencing.ErrUnsupported) {
			t.Errorf("err = %v", err)
		}
	})
}

// Suite 0 authenticates nobody: it cannot be configured, and a device or
// somebody on the wire cannot talk the driver into it.
func TestNeverSuiteZero(t *testing.T) {
	for _, id := range []int{0, 1, 2, 6, 18} {
		if _, err := ipmi.New(ipmi.Config{Net: netx.Real{}, Address: "127.0.0.1", Username: "u", Password: func() (string, error) { return "", nil }, Suites: []int{id}}); err == nil {
			t.Errorf("suite %d was accepted", id)
		}
	}
	b := board(t, nil)
	b.SetFaults(func(f *ipmitest.Faults) {
		f.Rewrite = func(p []byte) [][]byte {
			if p[5] == 0x11 {
				for _, at := range []int{12, 20, 28} {
					p[16+at+4] = 0
				}
			}
			return [][]byte{p}
		}
	})
	if r, err := driver(t, b.Addr(), nil).Power(t.Context()); !errors.Is(err, fencing.ErrUnsupported) || r.State != haven.PowerUnknown {
		t.Errorf("Power() = %v, %v", r, err)
	}
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		name   string
		config func(*ipmi.Config)
		board  func(*ipmitest.Config)
		faults func(*ipmitest.Faults)
		off    bool // ask for off, not for the status
		want   error
		logins int
	}{
		// One failed login per call: two would lock accounts twice as fast.
		{name: "wrong password", config: password("wrong"), want: fencing.ErrAuth, logins: 1},
		{name: "unknown user", config: func(c *ipmi.Config) { c.Username = "nobody" }, want: fencing.ErrAuth, logins: 1},
		{name: "not an operator", config: func(c *ipmi.Config) { c.Username = "viewer" }, want: fencing.ErrPrivilege, logins: 1},
		{name: "password too long", config: password("123456789012345678901"), want: fencing.ErrAuth, logins: 0},
		{name: "BMC key missing", board: func(c *ipmitest.Config) { c.KG = []byte("key") }, want: fencing.ErrAuth, logins: 1},
		{name: "no session free", faults: func(f *ipmitest.Faults) { f.RefuseSessions = true }, want: fencing.ErrBusy, logins: 1},
		{name: "status busy", faults: func(f *ipmitest.Faults) { f.StatusBusy = true }, want: fencing.ErrNoState, logins: 1},
		{name: "off already", faults: func(f *ipmitest.Faults) { f.RejectOff = true }, board: func(c *ipmitest.Config) { c.Off = true }, off: true, want: fencing.ErrRejected, logins: 1},
		{name: "chassis fails", board: func(c *ipmitest.Config) { c.OnPower = func(bool) error { return errors.New("stuck relay") } }, off: true, want: fencing.ErrBusy, logins: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := board(t, tt.board)
			if tt.faults != nil {
				b.SetFaults(tt.faults)
			}
			d := driver(t, b.Addr(), tt.config)
			var err error
			if tt.off {
				err = d.Set(t.Context(), haven.ActionOff, nil)
			} else {
				var r fencing.Reading
				if r, err = d.Power(t.Context()); r.State != haven.PowerUnknown {
					t.Errorf("P5: state %q on an error", r.State)
				}
			}
			if !errors.Is(err, tt.want) || fencing.FailureOf(err) != fencing.FailureOf(tt.want) {
				t.Errorf("err = %v (%s), want %v", err, fencing.FailureOf(err), tt.want)
			}
			if fencing.FailureOf(tt.want) == fencing.FailurePrivilege && len(b.Commands()) > 0 {
				t.Errorf("the board was told %v", b.Commands())
			}
			if n := b.Logins(); n != tt.logins {
				t.Errorf("%d sessions were asked for, want %d", n, tt.logins)
			}
		})
	}
}

func password(p string) func(*ipmi.Config) {
	return func(c *ipmi.Config) { c.Password = func() (string, error) { return p, nil } }
}

// Both keys must be right, with either suite, whatever bytes the board's key has.
func TestTwoKeyLogin(t *testing.T) {
	keys := [][]byte{[]byte("board key"), {0xff, 0, 1, 0}, []byte("twenty bytes it has.")}
	for _, suite := range []int{17, 3} {
		for i, key := range keys {
			b := board(t, func(c *ipmitest.Config) { c.KG, c.Suites = key, []int{suite} })
			kg := key
			d := driver(t, b.Addr(), func(c *ipmi.Config) { c.KG = func() ([]byte, error) { return kg, nil } })
			wantPower(t, d, haven.PowerOn)
			kg = keys[(i+1)%len(keys)]
			if _, err := d.Power(t.Context()); !errors.Is(err, fencing.ErrAuth) {
				t.Errorf("suite %d, another key: %v", suite, err)
			}
		}
	}
	without := board(t, nil)
	d := driver(t, without.Addr(), func(c *ipmi.Config) { c.KG = func() ([]byte, error) { return keys[0], nil } })
	if _, err := d.Power(t.Context()); !errors.Is(err, fencing.ErrAuth) {
		t.Errorf("a key for a board that has none: %v", err)
	}
}

// The light blinks for as long as was asked, and is put out.
func TestLight(t *testing.T) {
	b := board(t, nil)
	d := driver(t, b.Addr(), nil)
	gate := fencing.NewGate()
	lamp := gate.Fence(d.Address(), d).(fencing.Lamp)
	for _, length := range []time.Duration{30 * time.Second, 1500 * time.Millisecond, 255 * time.Second, 0} {
		if err := lamp.Light(t.Context(), length, nil); err != nil {
			t.Errorf("%s: %v", length, err)
		}
	}
	for _, length := range []time.Duration{-time.Second, 256 * time.Second} {
		if err := lamp.Light(t.Context(), length, nil); !errors.Is(err, fencing.ErrUnsupported) {
			t.Errorf("%s: %v", length, err)
		}
	}
	no := errors.New("lost the lead")
	if err := lamp.Light(t.Context(), 0, func(context.Context) error { return no }); !errors.Is(err, fencing.ErrNotPermitted) {
		t.Errorf("without a permit: %v", err)
	}
	if err := gate.Read(d.Address(), d).(fencing.Lamp).Light(t.Context(), 0, nil); !errors.Is(err, fencing.ErrUnsupported) {
		t.Errorf("by a reader: %v", err)
	}
	if got := strings.Join(b.Commands(), ", "); got != "blink 30 s, blink 2 s, blink 255 s, dark" || !b.On() {
		t.Errorf("the board got %q", got)
	}
}

func TestOnlySingleCommandsAreSet(t *testing.T) {
	b := board(t, nil)
	d := driver(t, b.Addr(), nil)
	for _, a := range []haven.FenceAction{haven.ActionReboot, haven.ActionNone, haven.ActionStatus, haven.ActionTest, "frob"} {
		if err := d.Set(t.Context(), a, nil); !errors.Is(err, fencing.ErrUnsupported) {
			t.Errorf("%s: %v", a, err)
		}
	}
	if len(b.Commands()) != 0 || b.Logins() != 0 {
		t.Error("something was sent")
	}
}

// A silent device is unreachable, never unauthorised, and contexts end calls
// under their own names.
func TestSilence(t *testing.T) {
	b := board(t, nil)
	b.SetFaults(func(f *ipmitest.Faults) { f.Dead = true })
	t.Run("timeouts", func(t *testing.T) {
		_, err := driver(t, b.Addr(), hasty).Power(t.Context())
		if !errors.Is(err, fencing.ErrUnreachable) || errors.Is(err, fencing.ErrAuth) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("deadline of the caller", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := driver(t, b.Addr(), nil).Power(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("cancel by the caller", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		if _, err := driver(t, b.Addr(), nil).Power(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("own deadline", func(t *testing.T) {
		d := driver(t, b.Addr(), func(c *ipmi.Config) { c.PacketTimeout, c.Timeout = 20*time.Millisecond, 30*time.Millisecond })
		if _, err := d.Power(t.Context()); !errors.Is(err, fencing.ErrUnreachable) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("port closed", func(t *testing.T) {
		closed := board(t, nil)
		_ = closed.Close()
		if _, err := driver(t, closed.Addr(), nil).Power(t.Context()); !errors.Is(err, fencing.ErrUnreachable) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("network down", func(t *testing.T) {
		d := driver(t, b.Addr(), func(c *ipmi.Config) { c.Net = noNetwork{} })
		if _, err := d.Power(t.Context()); !errors.Is(err, fencing.ErrUnreachable) {
			t.Errorf("err = %v", err)
		}
	})
}

type noNetwork struct{ netx.Real }

func (noNetwork) DialContext(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("network is unreachable")
}

// Lost and late packets cost a fresh session, whichever packet it is; an
// answer to an earlier one is never taken for that to a later one.
func TestLossAndDelay(t *testing.T) {
	for n := range 6 {
		t.Run(fmt.Sprint("answer lost: ", n), func(t *testing.T) {
			b := board(t, nil)
			var sent atomic.Int32
			b.SetFaults(func(f *ipmitest.Faults) {
				f.Rewrite = func(p []byte) [][]byte {
					if sent.Add(1) == int32(n+1) {
						return nil
					}
					return [][]byte{p}
				}
			})
			d := driver(t, b.Addr(), func(c *ipmi.Config) { c.PacketTimeout, c.Timeout = 250*time.Millisecond, 20*time.Second })
			wantPower(t, d, haven.PowerOn)
		})
	}
	t.Run("slower than the first timeout", func(t *testing.T) {
		b := board(t, nil)
		b.SetFaults(func(f *ipmitest.Faults) { f.Delay = 150 * time.Millisecond })
		d := driver(t, b.Addr(), func(c *ipmi.Config) {
			c.PacketTimeout, c.Attempts, c.Timeout = 100*time.Millisecond, 5, 25*time.Second
		})
		wantPower(t, d, haven.PowerOn)
	})
	t.Run("every answer comes three times", func(t *testing.T) {
		b := board(t, nil)
		b.SetFaults(func(f *ipmitest.Faults) { f.Rewrite = func(p []byte) [][]byte { return [][]byte{p, p, p} } })
		d := driver(t, b.Addr(), nil)
		for range 5 {
			wantPower(t, d, haven.PowerOn)
		}
	})
	t.Run("answer to the command lost", func(t *testing.T) {
		b := board(t, nil)
		b.SetFaults(func(f *ipmitest.Faults) { f.LoseCommandReply = true })
		d := driver(t, b.Addr(), hasty)
		if err := d.Set(t.Context(), haven.ActionOff, nil); !errors.Is(err, fencing.ErrUnreachable) {
			t.Errorf("err = %v", err)
		}
		b.SetFaults(func(f *ipmitest.Faults) { *f = ipmitest.Faults{} })
		wantPower(t, driver(t, b.Addr(), nil), haven.PowerOff)
	})
	t.Run("firmware restarts between calls", func(t *testing.T) {
		b := board(t, nil)
		d := driver(t, b.Addr(), nil)
		wantPower(t, d, haven.PowerOn)
		if err := b.Restart(); err != nil {
			t.Fatal(err)
		}
		wantPower(t, d, haven.PowerOn)
	})
}

// P3: the permit is asked when the session is open, before each command.
func TestPermit(t *testing.T) {
	b := board(t, nil)
	d := driver(t, b.Addr(), nil)
	asked := 0
	denied := errors.New("lost the lead")
	err := d.Set(t.Context(), haven.ActionOff, func(context.Context) error {
		asked++
		if b.Logins() != 1 {
			t.Error("permit was asked before the session was open")
		}
		return denied
	})
	if !errors.Is(err, fencing.ErrNotPermitted) || !errors.Is(err, denied) || asked != 1 {
		t.Errorf("err = %v, asked %d times", err, asked)
	}
	if len(b.Commands()) != 0 {
		t.Errorf("board got %q", b.Commands())
	}
	asked = 0
	b.SetFaults(func(f *ipmitest.Faults) { f.LoseCommandReply = true })
	_ = driver(t, b.Addr(), hasty).Set(t.Context(), haven.ActionOff, func(context.Context) error { asked++; return nil })
	if n := len(b.Commands()); n < 2 || asked < n {
		t.Errorf("%d commands with %d permits", n, asked)
	}
	// A command went out, its answer is lost, and the permit is withdrawn before it is
	// sent again: nobody is told that nothing was sent.
	asked = 0
	before := len(b.Commands())
	b.SetFaults(func(f *ipmitest.Faults) { *f = ipmitest.Faults{LoseCommandReply: true} })
	err = driver(t, b.Addr(), hasty).Set(t.Context(), haven.ActionOff, func(context.Context) error {
		if asked++; asked > 1 {
			return denied
		}
		return nil
	})
	if got := len(b.Commands()) - before; got != 1 || asked != 2 || errors.Is(err, fencing.ErrNotPermitted) || !errors.Is(err, fencing.ErrUnreachable) || !strings.Contains(err.Error(), denied.Error()) {
		t.Errorf("%d commands, %d permits: %v", got, asked, err)
	}
}

// The secret is in no error, no log line and no print of a driver.
func TestPasswordIsNeverShown(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	b := board(t, nil)
	faults := []func(*ipmitest.Faults){
		func(*ipmitest.Faults) {},
		func(f *ipmitest.Faults) { f.Dead = true },
		func(f *ipmitest.Faults) { f.RefuseSessions = true },
		func(f *ipmitest.Faults) { f.StatusBusy = true },
		func(f *ipmitest.Faults) {
			f.Rewrite = func(p []byte) [][]byte { return [][]byte{append([]byte(secret), p...)} }
		},
	}
	for _, user := range []string{"haven", "viewer", "nobody"} {
		for _, pass := range []string{secret, secret + "x", secret + secret} {
			for _, fault := range faults {
				b.SetFaults(func(f *ipmitest.Faults) { *f = ipmitest.Faults{}; fault(f) })
				d := driver(t, b.Addr(), func(c *ipmi.Config) {
					c.Username, c.PacketTimeout, c.Timeout, c.Attempts = user, 20*time.Millisecond, time.Second, 1
					password(pass)(c)
				})
				r, err := d.Power(t.Context())
				log.Info("read", "driver", d, "reading", r, "error", err)
				err = d.Set(t.Context(), haven.ActionBlink, nil)
				log.Info("set", "error", err)
				fmt.Fprintf(&out, "%v %+v %v\n", d, d, err)
			}
		}
	}
	if strings.Contains(out.String(), secret) {
		t.Error("the password was shown")
	}
	if !strings.Contains(out.String(), "refused the credentials") {
		t.Error("nothing was logged: the test is void")
	}
}

// P8: no call leaves a goroutine, a socket or a session slot behind. The board
// has four slots, as small boards do.
func TestNothingLeaks(t *testing.T) {
	b := board(t, nil)
	good := driver(t, b.Addr(), nil)
	wrong := driver(t, b.Addr(), password("wrong"))
	viewer := driver(t, b.Addr(), func(c *ipmi.Config) { c.Username = "viewer" })
	impatient := func(c *ipmi.Config) { c.PacketTimeout, c.Timeout = 2*time.Millisecond, time.Second }
	wantPower(t, good, haven.PowerOn)
	files := openFiles(t)
	for i := range 200 {
		switch i % 5 {
		case 0, 1:
			wantPower(t, good, haven.PowerOn)
		case 2:
			_, _ = wrong.Power(t.Context())
		case 3:
			_, _ = viewer.Power(t.Context())
		case 4:
			b.SetFaults(func(f *ipmitest.Faults) { f.Dead = true })
			_, _ = driver(t, b.Addr(), impatient).Power(t.Context()) // one that goes on would learn patience
			b.SetFaults(func(f *ipmitest.Faults) { f.Dead = false })
		}
	}
	if got := openFiles(t); got > files {
		t.Errorf("%d files are open, %d were before", got, files)
	}
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		n := strings.Count(string(stacks), "fencing/ipmi.(*")
		if n == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d frames of the driver are left:\n%s", n, stacks)
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(e)
}

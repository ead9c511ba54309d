package redfish_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/fencing/redfish"
	"github.com/haven-ha/haven/fencing/redfish/redfishtest"
	"github.com/haven-ha/haven/internal/netx"
)

const (
	secret = "s3cret-pa55word!"
	uuid   = "a1234567-89ab-cdef-a123-456789abcd01"
)

var guid = fencing.NewGUID([16]byte{0xa1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xa1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0x01})

func config(change func(*redfishtest.Config)) redfishtest.Config {
	cfg := redfishtest.Config{
		Accounts: []redfishtest.Account{
			{Name: "haven", Password: secret, Role: redfishtest.Operator},
			{Name: "viewer", Password: secret, Role: redfishtest.ReadOnly},
		},
		UUID: uuid,
	}
	if change != nil {
		change(&cfg)
	}
	return cfg
}

// board runs one on a loopback socket. In the end it must have seen nothing that
// the standard does not have, and no session may be left.
func board(t testing.TB, change func(*redfishtest.Config)) *redfishtest.Service {
	t.Helper()
	b, err := redfishtest.Start("127.0.0.1:0", config(change))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inspect(t, b) })
	return b
}

// pipeBoard runs one in virtual time, without sockets.
func pipeBoard(t testing.TB, change func(*redfishtest.Config)) (*redfishtest.Service, netx.Stack) {
	t.Helper()
	p := redfishtest.NewPipe()
	b, err := redfishtest.Serve(p, config(change))
	if err != nil {
		t.Fatal(err)
	}
	return b, p
}

func inspect(t testing.TB, b *redfishtest.Service) {
	t.Helper()
	_ = b.Close()
	if v := b.Violations(); len(v) > 0 {
		t.Errorf("not as the standard has it: %q", v)
	}
	if open, ever := b.Sessions(); open > 0 {
		t.Errorf("%d of %d sessions are left at the board", open, ever)
	}
	for _, c := range b.Commands() {
		if !slices.Contains([]string{"ForceOff", "On", "light Lit", "light Blinking", "light Off"}, c) {
			t.Errorf("the board was told %q", c)
		}
	}
}

func driver(t testing.TB, b *redfishtest.Service, change func(*redfish.Config)) *redfish.Driver {
	t.Helper()
	cfg := redfish.Config{
		Net: netx.Real{}, Address: b.Addr(), Username: "haven", Pin: b.Pin(), Plain: b.Certificate() == nil,
		Password: func() (string, error) { return secret, nil },
	}
	if change != nil {
		change(&cfg)
	}
	d, err := redfish.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func wantPower(t testing.TB, d *redfish.Driver, want haven.PowerState) fencing.Reading {
	t.Helper()
	r, err := d.Power(t.Context())
	if err != nil || r.State != want {
		t.Fatalf("Power() = %v, %v; want %s", r, err, want)
	}
	return r
}

func TestPowerAndSet(t *testing.T) {
	tests := []struct {
		name   string
		board  func(*redfishtest.Config)
		driver func(*redfish.Config)
	}{
		{name: "session"},
		{name: "basic", driver: func(c *redfish.Config) { c.Login = redfish.LoginBasic }},
		{name: "basic, no session service", board: func(c *redfishtest.Config) { c.NoSessions = true }, driver: func(c *redfish.Config) { c.Login = redfish.LoginBasic }},
		{name: "without TLS", board: func(c *redfishtest.Config) { c.Plain = true }},
		{name: "reset types in a resource of their own", board: func(c *redfishtest.Config) { c.ActionInfo = true }},
		{name: "reset types not told", board: func(c *redfishtest.Config) { c.HideResetTypes = true }},
		{name: "redirects to slashes", board: func(c *redfishtest.Config) { c.Slash = true }},
		{name: "closes idle connections", board: func(c *redfishtest.Config) { c.IdleTimeout = time.Nanosecond }},
		{name: "several systems, one configured", board: func(c *redfishtest.Config) { c.Others = []string{"2", "3"} }, driver: func(c *redfish.Config) { c.System = "/redfish/v1/Systems/1" }},
		{name: "sessions by a name that we do not know", board: func(c *redfishtest.Config) { c.Base, c.SessionsMax = "https://bmc.example", 1 }},
		{name: "one session at a time", board: func(c *redfishtest.Config) { c.SessionsMax = 1 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := board(t, tt.board)
			d := driver(t, b, tt.driver)
			before := time.Now()
			r := wantPower(t, d, haven.PowerOn)
			if r.GUID != guid || r.GUID.MatchesUUID(uuid) != haven.Yes {
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
					t.Fatal(step.action, err)
				}
				wantPower(t, d, step.want)
			}
			if got := strings.Join(b.Commands(), ", "); got != "light Lit, ForceOff, ForceOff, On" {
				t.Errorf("board got %q", got)
			}
			if id, err := d.Identity(t.Context()); err != nil || id != guid {
				t.Errorf("Identity() = %q, %v", id, err)
			}
		})
	}
}

func TestIPv6(t *testing.T) {
	b, err := redfishtest.Start("[::1]:0", config(func(c *redfishtest.Config) { c.UUID = "" }))
	if err != nil {
		t.Skip("no IPv6 on this machine: ", err)
	}
	defer inspect(t, b)
	d := driver(t, b, nil)
	wantPower(t, d, haven.PowerOn)
	if id, err := d.Identity(t.Context()); err != nil || id != "" {
		t.Errorf("a board without UUID: Identity() = %q, %v; want none", id, err)
	}
}

func TestNew(t *testing.T) {
	pin := strings.Repeat("0f", 32)
	tests := []struct {
		name   string
		change func(*redfish.Config)
		want   string // of the error, or of the address after "="
	}{
		{"IPv4", func(c *redfish.Config) { c.Address = "10.1.0.11" }, "=10.1.0.11:443"},
		{"IPv4 with port", func(c *redfish.Config) { c.Address = "10.1.0.11:8443" }, "=10.1.0.11:8443"},
		{"IPv6 in brackets", func(c *redfish.Config) { c.Address = "[fd00::1]" }, "=[fd00::1]:443"},
		{"IPv4 written as IPv6 is the same address", func(c *redfish.Config) { c.Address = "::ffff:10.1.0.11" }, "=10.1.0.11:443"},
		{"name", func(c *redfish.Config) { c.Address = "bmc-1.example" }, "literal IP"},
		{"port 0", func(c *redfish.Config) { c.Address = "10.1.0.11:0" }, "port 0"},
		{"no pin and no authority", func(c *redfish.Config) { c.Pin = "" }, "authority or a pin"},
		{"short pin", func(c *redfish.Config) { c.Pin = pin[2:] }, "64 hexadecimal"},
		{"pin of other letters", func(c *redfish.Config) { c.Pin = "zz" + pin[2:] }, "64 hexadecimal"},
		{"plain on a network", func(c *redfish.Config) { c.Plain = true }, "loopback"},
		{"system on another host", func(c *redfish.Config) { c.System = "/other" }, "below /redfish/v1"},
		{"system that climbs", func(c *redfish.Config) { c.System = "/redfish/v1/../../x" }, "below /redfish/v1"},
		{"system with a query", func(c *redfish.Config) { c.System = "/redfish/v1/Systems/1?x=1" }, "below /redfish/v1"},
		{"unknown login", func(c *redfish.Config) { c.Login = "none" }, "login"},
		{"colon in the name, basic", func(c *redfish.Config) { c.Username, c.Login = "a:b", redfish.LoginBasic }, "colon"},
		{"no name", func(c *redfish.Config) { c.Username = "" }, "user name"},
		{"no password", func(c *redfish.Config) { c.Password = nil }, "password"},
		{"timeout", func(c *redfish.Config) { c.Timeout = time.Hour }, "timeout"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := redfish.Config{Net: netx.Real{}, Address: "10.1.0.1", Username: "haven", Pin: pin, Password: func() (string, error) { return secret, nil }}
			tt.change(&cfg)
			d, err := redfish.New(cfg)
			want, ok := strings.CutPrefix(tt.want, "=")
			switch {
			case ok && (err != nil || d.Address() != want):
				t.Errorf("address of %s: %v; want %s", cfg.Address, err, want)
			case !ok && (err == nil || !strings.Contains(err.Error(), want)):
				t.Errorf("err = %v; want %q", err, want)
			}
		})
	}
}

// A board that is not verified is sent nothing: neither password nor command (P2:
// else anything at its address could say off).
func TestCertificates(t *testing.T) {
	now := time.Now()
	certificate := func(from, to time.Time, names ...string) *tls.Certificate {
		c, err := redfishtest.NewCertificate(from, to, names...)
		if err != nil {
			t.Fatal(err)
		}
		return &c
	}
	roots := func(cs ...*tls.Certificate) func() (*x509.CertPool, error) {
		p := x509.NewCertPool()
		for _, c := range cs {
			p.AddCert(c.Leaf)
		}
		return func() (*x509.CertPool, error) { return p, nil }
	}
	good := certificate(now.Add(-time.Hour), now.Add(time.Hour), "127.0.0.1")
	named := certificate(now.Add(-time.Hour), now.Add(time.Hour), "bmc-1.example")
	expired := certificate(now.Add(-2*time.Hour), now.Add(-time.Hour), "127.0.0.1")
	other := certificate(now.Add(-time.Hour), now.Add(time.Hour), "127.0.0.1")
	pinOf := func(b *redfishtest.Service) string { return b.Pin() }
	wrong := func(*redfishtest.Service) string { return strings.Repeat("0f", 32) }
	none := func(*redfishtest.Service) string { return "" }
	tests := []struct {
		name  string
		shown *tls.Certificate
		pin   func(*redfishtest.Service) string
		roots func() (*x509.CertPool, error)
		dns   string
		ok    bool
	}{
		{"pin", good, pinOf, nil, "", true},
		{"pin of an expired one", expired, pinOf, nil, "", true},
		{"wrong pin", good, wrong, nil, "", false},
		{"authority", good, none, roots(good), "", true},
		{"another authority", good, none, roots(other), "", false},
		{"authority, expired", expired, none, roots(expired), "", false},
		{"authority, for another name", named, none, roots(named), "", false},
		{"authority, for the name", named, none, roots(named), "bmc-1.example", true},
		{"authority and pin", good, pinOf, roots(good), "", true},
		{"authority and a wrong pin", good, wrong, roots(good), "", false},
		{"pin and another authority", good, pinOf, roots(other), "", false},
		{"no authorities after all", good, none, func() (*x509.CertPool, error) { return nil, nil }, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := board(t, func(c *redfishtest.Config) { c.Certificate = tt.shown })
			d := driver(t, b, func(c *redfish.Config) { c.Pin, c.Roots, c.Name = tt.pin(b), tt.roots, tt.dns })
			if tt.ok {
				wantPower(t, d, haven.PowerOn)
				return
			}
			r, err := d.Power(t.Context())
			if err == nil || r.State != haven.PowerUnknown || tt.name != "no authorities after all" && !errors.Is(err, redfish.ErrCertificate) {
				t.Errorf("Power() = %v, %v", r, err)
			}
			if err := d.Set(t.Context(), haven.ActionOff, nil); err == nil {
				t.Error("it was switched off")
			}
			if got := b.Requests(); len(got) > 0 {
				t.Errorf("it was sent %q", got)
			}
		})
	}
}

// What stands in the way is told apart, because it is cured differently; and no
// error holds the password, although boards quote it.
func TestRefusals(t *testing.T) {
	read := func(d *redfish.Driver) error { _, err := d.Power(context.Background()); return err }
	off := func(d *redfish.Driver) error { return d.Set(context.Background(), haven.ActionOff, nil) }
	user := func(name, password string) func(*redfish.Config) {
		return func(c *redfish.Config) {
			c.Username, c.Password = name, func() (string, error) { return password, nil }
		}
	}
	faults := func(f func(*redfishtest.Faults)) func(*redfishtest.Service) {
		return func(b *redfishtest.Service) { b.SetFaults(f) }
	}
	tests := []struct {
		name   string
		do     func(*redfish.Driver) error
		board  func(*redfishtest.Config)
		driver func(*redfish.Config)
		faults func(*redfishtest.Service)
		want   error
		text   string
	}{
		{name: "wrong password", do: read, driver: user("haven", "wr0ng-pa55word"), want: fencing.ErrAuth, text: "401"},
		{name: "wrong password, basic", do: read, driver: func(c *redfish.Config) { user("haven", "wr0ng-pa55word")(c); c.Login = redfish.LoginBasic }, want: fencing.ErrAuth},
		{name: "wrong user", do: read, driver: user("root", secret), want: fencing.ErrAuth},
		{name: "wrong privilege", do: off, driver: user("viewer", secret), want: fencing.ErrPrivilege, text: "403, Base.1.8.InsufficientPrivilege"},
		{name: "password too long", do: read, driver: user("haven", strings.Repeat("wr0ng-pa55word", 40)), want: fencing.ErrAuth},
		{name: "no session left, 503", do: read, faults: faults(func(f *redfishtest.Faults) { f.SessionsFull = 503 }), want: fencing.ErrBusy, text: "SessionLimitExceeded"},
		{name: "no session left, 400", do: read, faults: faults(func(f *redfishtest.Faults) { f.SessionsFull = 400 }), want: fencing.ErrBusy},
		{name: "no session left, 403", do: read, faults: faults(func(f *redfishtest.Faults) { f.SessionsFull = 403 }), want: fencing.ErrBusy},
		{name: "sessions lost", do: read, faults: faults(func(f *redfishtest.Faults) { f.Forget = true }), want: fencing.ErrBusy},
		{name: "no session service", do: read, board: func(c *redfishtest.Config) { c.NoSessions = true }, want: fencing.ErrAuth},
		{name: "starting", do: read, faults: faults(func(f *redfishtest.Faults) { f.Starting = true }), want: fencing.ErrBusy},
		{name: "starting, wants an hour", do: read, faults: faults(func(f *redfishtest.Faults) { f.Starting, f.RetryAfter = true, "3600" }), want: fencing.ErrBusy},
		{name: "too many requests", do: read, faults: faults(func(f *redfishtest.Faults) { f.Starting, f.BusyStatus = true, 429 }), want: fencing.ErrBusy},
		{name: "cut at once", do: read, faults: faults(func(f *redfishtest.Faults) { f.Reset = true }), want: fencing.ErrUnreachable},
		{name: "breaks off", do: read, faults: faults(func(f *redfishtest.Faults) { f.Broken = true }), want: fencing.ErrUnreachable, text: "breaks off"},
		{name: "too long", do: read, faults: faults(func(f *redfishtest.Faults) { f.Huge = true }), want: fencing.ErrUnsupported, text: "1 MiB"},
		{name: "half a JSON", do: read, faults: faults(func(f *redfishtest.Faults) { f.Truncated = true }), want: fencing.ErrBusy, text: "no JSON"},
		{name: "another shape", do: read, faults: faults(func(f *redfishtest.Faults) {
			f.Rewrite = func([]byte) []byte {
				return []byte(`{"@odata.type":"#ComputerSystem.v1_0_0.ComputerSystem","PowerState":["Off"]}`)
			}
		}), want: fencing.ErrBusy, text: "shape"},
		{name: "being switched off", do: read, faults: faults(func(f *redfishtest.Faults) { f.State = "PoweringOff" }), want: fencing.ErrNoState, text: "PoweringOff"},
		{name: "power state null", do: read, faults: faults(func(f *redfishtest.Faults) { f.State = "null" }), want: fencing.ErrNoState},
		{name: "several systems", do: read, board: func(c *redfishtest.Config) { c.Others = []string{"2"} }, want: fencing.ErrUnsupported, text: "several computer systems; the configuration must name"},
		{name: "no such system", do: read, driver: func(c *redfish.Config) { c.System = "/redfish/v1/Systems/9" }, want: fencing.ErrUnsupported, text: "404"},
		{name: "a chassis for a system", do: read, driver: func(c *redfish.Config) { c.System = "/redfish/v1/Chassis/1" }, want: fencing.ErrUnsupported, text: "no computer system"},
		{name: "off when off, 409", do: off, board: func(c *redfishtest.Config) { c.Off = true }, faults: faults(func(f *redfishtest.Faults) { f.RejectOff = 409 }), want: fencing.ErrRejected, text: "409, Base.1.8.ActionNotSupported"},
		{name: "off when off, 409 of a Dell", do: off, board: func(c *redfishtest.Config) { c.Off = true }, faults: faults(func(f *redfishtest.Faults) { f.RejectOff, f.RejectAs = 409, "IDRAC.2.8.PSU501" }), want: fencing.ErrRejected},
		{name: "off when off, 400", do: off, board: func(c *redfishtest.Config) { c.Off = true }, faults: faults(func(f *redfishtest.Faults) { f.RejectOff = 400 }), want: fencing.ErrRejected},
		{name: "off when off, 400 of an HPE", do: off, board: func(c *redfishtest.Config) { c.Off = true }, faults: faults(func(f *redfishtest.Faults) {
			f.RejectOff, f.RejectAs = 400, "iLO.2.15.InvalidOperationForSystemState"
		}), want: fencing.ErrRejected},
		{name: "off is not offered when off", do: off, board: func(c *redfishtest.Config) { c.Off, c.ResetTypes = true, []string{"On"} }, want: fencing.ErrRejected},
		{name: "off is not offered", do: off, board: func(c *redfishtest.Config) { c.ResetTypes = []string{"GracefulShutdown", "PushPowerButton"} }, want: fencing.ErrUnsupported, text: "ForceOff"},
		{name: "the command's task fails", do: off, faults: faults(func(f *redfishtest.Faults) { f.Async, f.TaskState = true, "Exception" }), want: fencing.ErrRejected},
		{name: "the command's answer is lost", do: off, faults: faults(func(f *redfishtest.Faults) { f.LoseReply = true }), want: fencing.ErrUnreachable},
		{name: "no light", do: func(d *redfish.Driver) error { return d.Set(context.Background(), haven.ActionBlink, nil) }, board: func(c *redfishtest.Config) { c.Light = redfishtest.LightNone }, want: fencing.ErrUnsupported, text: "light"},
		{name: "not one command", do: func(d *redfish.Driver) error { return d.Set(context.Background(), haven.ActionReboot, nil) }, want: fencing.ErrUnsupported},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := board(t, tt.board)
			if tt.faults != nil {
				tt.faults(b)
			}
			err := tt.do(driver(t, b, tt.driver))
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("err = %v\nwant %v with %q", err, tt.want, tt.text)
			}
			for _, other := range []error{fencing.ErrAuth, fencing.ErrBusy, fencing.ErrRejected, fencing.ErrUnreachable, fencing.ErrUnsupported, fencing.ErrNoState} {
				if !errors.Is(tt.want, other) && errors.Is(err, other) {
					t.Errorf("%v is also %v", err, other)
				}
			}
			for _, s := range []string{secret, "wr0ng-pa55word"} {
				if strings.Contains(err.Error(), s) {
					t.Errorf("the password is told: %v", err)
				}
			}
		})
	}
}

// A redirection is followed on the board itself only: the password and the
// command are for no other.
func TestRedirect(t *testing.T) {
	thief, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	visited := make(chan struct{}, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := thief.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
			select {
			case visited <- struct{}{}:
			default:
			}
		}
	}()
	b := board(t, nil)
	tests := []struct{ name, to, want string }{
		{"another port", "https://" + thief.Addr().String() + "/redfish/v1/Systems/1", "another address"},
		{"another scheme", "http://" + b.Addr() + "/redfish/v1/Systems/1", "another address"},
		{"a name", "https://bmc.example/redfish/v1/Systems/1", "another address"},
		{"no resource", "/login.html", "no resource"},
		{"itself for ever", "/redfish/v1/Systems/1", "for ever"},
		{"nowhere", "", "no resource"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// An empty header is none, so this one cannot be set as a fault.
			to := tt.to
			if to == "" {
				to = "#"
			}
			b.SetFaults(func(f *redfishtest.Faults) { f.Redirect = to })
			_, err := driver(t, b, nil).Power(t.Context())
			if !errors.Is(err, fencing.ErrUnsupported) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("err = %v; want %q", err, tt.want)
			}
		})
	}
	b.SetFaults(func(f *redfishtest.Faults) { f.Redirect = "https://" + b.Addr() + "/redfish/v1/Systems/1/" })
	if _, err := driver(t, b, nil).Power(t.Context()); err == nil || !strings.Contains(err.Error(), "for ever") {
		t.Errorf("its own address is not followed: %v", err)
	}
	_ = thief.Close()
	<-ended
	if len(visited) > 0 {
		t.Error("the other address was visited")
	}
}

func TestBlink(t *testing.T) {
	tests := []struct {
		name  string
		light redfishtest.Light
		match bool
		want  string
	}{
		{"location indicator", redfishtest.LightLocation, false, "light Lit"},
		{"location indicator, by version", redfishtest.LightLocation, true, "light Lit"},
		{"light", redfishtest.LightLED, false, "light Blinking"},
		{"light that cannot blink", redfishtest.LightLit, false, "light Lit"},
		{"light that cannot blink, by version", redfishtest.LightLit, true, "light Lit"},
		{"light of the chassis", redfishtest.LightChassis, false, "light Lit"},
		{"light of the chassis, by version", redfishtest.LightChassis, true, "light Lit"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := board(t, func(c *redfishtest.Config) { c.Light, c.WantMatch = tt.light, tt.match })
			d := driver(t, b, nil)
			if err := d.Set(t.Context(), haven.ActionBlink, nil); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(b.Commands(), ", "); got != tt.want || !b.On() {
				t.Errorf("board got %q, on %v", got, b.On())
			}
			for range 2 { // It may be dark already.
				if err := d.Light(t.Context(), 0, nil); err != nil {
					t.Fatal(err)
				}
			}
			if got := strings.Join(b.Commands(), ", "); got != tt.want+", light Off, light Off" || !b.On() {
				t.Errorf("board got %q, on %v", got, b.On())
			}
		})
	}
}

// Redfish times no light: one is refused before anything is sent, and none is lit
// that nobody might put out. Nothing leaves without the permit (P3).
func TestLight(t *testing.T) {
	b := board(t, nil)
	d := driver(t, b, nil)
	for _, length := range []time.Duration{30 * time.Second, time.Nanosecond, -time.Second} {
		asked := false
		err := d.Light(t.Context(), length, func(context.Context) error { asked = true; return nil })
		if !errors.Is(err, fencing.ErrUnsupported) || !strings.Contains(err.Error(), "does not time lights") || asked {
			t.Errorf("%s: %v, permit asked %v", length, err, asked)
		}
	}
	no := errors.New("not the master any more")
	if err := d.Light(t.Context(), 0, func(context.Context) error { return no }); !errors.Is(err, fencing.ErrNotPermitted) || !errors.Is(err, no) {
		t.Errorf("without a permit: %v", err)
	}
	if got := b.Commands(); len(got) > 0 {
		t.Errorf("board got %q", got)
	}
	none := board(t, func(c *redfishtest.Config) { c.Light = redfishtest.LightNone })
	if err := driver(t, none, nil).Light(t.Context(), 0, nil); !errors.Is(err, fencing.ErrUnsupported) || !strings.Contains(err.Error(), "no indicator light") {
		t.Errorf("without a light: %v", err)
	}
}

// The permit is asked when everything else is done, and again before each
// repetition; without it nothing leaves (P3).
func TestPermit(t *testing.T) {
	b := board(t, nil)
	d := driver(t, b, nil)
	no := errors.New("not the master any more")
	for _, a := range []haven.FenceAction{haven.ActionOff, haven.ActionOn, haven.ActionBlink} {
		err := d.Set(t.Context(), a, func(context.Context) error { return no })
		if !errors.Is(err, fencing.ErrNotPermitted) || !errors.Is(err, no) {
			t.Errorf("%s: %v", a, err)
		}
	}
	if got := b.Commands(); len(got) > 0 || !b.On() {
		t.Fatalf("board got %q without permission", got)
	}
	asked := 0
	err := d.Set(t.Context(), haven.ActionOff, func(context.Context) error {
		asked++
		if asked == 1 { // The board wants this one again.
			b.SetFaults(func(f *redfishtest.Faults) { f.Busy, f.RetryAfter = 1, "0" })
			return nil
		}
		return no
	})
	if !errors.Is(err, fencing.ErrNotPermitted) || asked != 2 || !b.On() {
		t.Errorf("asked %d times, %v", asked, err)
	}
	asked = 0
	if err := d.Set(t.Context(), haven.ActionOff, func(context.Context) error { asked++; return nil }); err != nil || asked != 1 || b.On() {
		t.Errorf("asked %d times, %v", asked, err)
	}
}

// A board that asks for a short pause gets it, within the call's bound; one that
// asks for more, or for ever, does not hold the call up.
func TestRetryAfter(t *testing.T) {
	tests := []struct {
		name, after string
		times       int
		want        time.Duration
		ok          bool
	}{
		{"once, 2 s", "2", 1, 2 * time.Second, true},
		{"twice, 2 s", "2", 2, 4 * time.Second, true},
		{"for ever, 2 s", "2", 99, 4 * time.Second, false},
		{"once, an hour", "3600", 1, 0, false},
		{"once, below zero", "-1", 1, 0, false},
		{"once, a date", "Wed, 21 Oct 2015 07:28:00 GMT", 1, 0, false},
		{"once, not told", "", 1, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, stack := pipeBoard(t, nil)
				defer inspect(t, b)
				b.SetFaults(func(f *redfishtest.Faults) { f.Busy, f.RetryAfter = tt.times, tt.after })
				start := time.Now()
				_, err := driver(t, b, func(c *redfish.Config) { c.Net = stack }).Power(t.Context())
				if took := time.Since(start); took != tt.want || (err == nil) != tt.ok || !tt.ok && !errors.Is(err, fencing.ErrBusy) {
					t.Errorf("%v after %s; want %v after %s", err, took, tt.ok, tt.want)
				}
			})
		})
	}
}

// Every call ends with its context or its timeout and the goodbye, whatever the
// board does, and leaves no session that it could have deleted (P8).
func TestCallsAreBoundedAndSessionsDeleted(t *testing.T) {
	tests := []struct {
		name   string
		faults redfishtest.Faults
		cancel time.Duration // of the caller; zero for never
		want   error
		most   time.Duration
	}{
		{"dead", redfishtest.Faults{Dead: true}, 0, fencing.ErrUnreachable, 10*time.Second + redfish.Goodbye},
		{"dead, caller gives up", redfishtest.Faults{Dead: true}, time.Second, context.Canceled, time.Second + redfish.Goodbye},
		{"slow, 6 s", redfishtest.Faults{Delay: 6 * time.Second}, 0, fencing.ErrUnreachable, 10*time.Second + redfish.Goodbye},
		{"caller gives up during the login", redfishtest.Faults{Delay: time.Second}, 500 * time.Millisecond, context.Canceled, 500*time.Millisecond + redfish.Goodbye},
		{"caller gives up after the login", redfishtest.Faults{Delay: time.Second}, 1500 * time.Millisecond, context.Canceled, 1500*time.Millisecond + redfish.Goodbye},
		{"caller has given up", redfishtest.Faults{}, time.Nanosecond, context.Canceled, time.Second},
	}
	for _, tt := range tests {
		for _, login := range []redfish.Login{redfish.LoginSession, redfish.LoginBasic} {
			t.Run(tt.name+", "+string(login), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b, stack := pipeBoard(t, nil)
					b.SetFaults(func(f *redfishtest.Faults) { *f = tt.faults })
					d := driver(t, b, func(c *redfish.Config) { c.Net, c.Login, c.Timeout = stack, login, 10*time.Second })
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					if tt.cancel > 0 {
						defer time.AfterFunc(tt.cancel, cancel).Stop()
					}
					if tt.cancel == time.Nanosecond {
						cancel()
					}
					start := time.Now()
					r, err := d.Power(ctx)
					if took := time.Since(start); !errors.Is(err, tt.want) || took > tt.most || r.State != haven.PowerUnknown {
						t.Errorf("%v, %v after %s; want %v within %s", r, err, took, tt.want, tt.most)
					}
					// The board may still be at the deletion.
					time.Sleep(10 * time.Second)
					if _, ever := b.Sessions(); login == redfish.LoginSession && strings.HasPrefix(tt.name, "caller gives up") && ever != 1 {
						t.Errorf("%d sessions ever: the case shows nothing", ever)
					}
					inspect(t, b)
				})
			})
		}
	}
}

func BenchmarkReading(b *testing.B) {
	s := board(b, nil)
	d := driver(b, s, nil)
	for b.Loop() {
		if _, err := d.Power(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// Package redfish is the fence driver for boards that speak Redfish: JSON over
// HTTPS, as the DMTF wrote it down (DSP0266).
//
// Each call is one fresh connection, and on it one session that is deleted
// before the call returns, whatever happened: boards have few, and keep a
// forgotten one for half an hour. The board's certificate is always verified,
// against an authority or against the pin of its key. Off is ForceOff; nothing
// here can express a graceful shutdown or a push of the button. Only the states
// On and Off are states: one in between, or none, is an error (P2).
//
// The client is our own, one request after the other on one socket. That of the
// standard library follows redirects, reads proxies from the environment, sends
// requests again by itself and leaves goroutines behind, none of which is wanted
// of a power command.
package redfish

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/netx"
)

// Login is how a call shows who it is.
type Login string

// The ways to log in.
const (
	// LoginSession opens a session and deletes it again.
	LoginSession Login = "session"
	// LoginBasic sends user and password with each request, for boards whose
	// sessions do not work or are always taken.
	LoginBasic Login = "basic"
)

const (
	defaultPort    = 443
	defaultTimeout = 15 * time.Second
	timeoutMax     = 60 * time.Second
	usernameMax    = 64
	passwordMax    = 256
)

// Goodbye is how much longer than its timeout a call may take, because a session
// that is being opened is waited for and then deleted.
const Goodbye = 2 * goodbyePart

// ErrCertificate is returned when the board did not show the certificate that is
// asked of it. Then nothing was sent to it, neither password nor command.
var ErrCertificate = fmt.Errorf("%w: its certificate is not accepted", fencing.ErrUnsupported)

// Config describes one device.
type Config struct {
	// Net opens the sockets.
	Net netx.Stack
	// Address is a literal IPv4 or IPv6 address, with or without a port; an
	// IPv6 address with a port is in brackets. The port defaults to 443.
	Address string
	// Username is 1 to 64 bytes. The account needs the role Operator.
	Username string
	// Password is asked for each call, so that a changed file is noticed. What
	// it returns is never logged or put into an error.
	Password func() (string, error)
	// System is the path of the computer system, such as /redfish/v1/Systems/1.
	// Without it the board must have exactly one.
	System string
	// Roots gives the authorities that the board's certificate must come from;
	// it is asked for each call. Nil when Pin is set alone.
	Roots func() (*x509.CertPool, error)
	// Name is the name that a certificate from Roots must be for; by default
	// the address.
	Name string
	// Pin is the SHA-256 of the certificate's public key (its
	// SubjectPublicKeyInfo), as 64 hexadecimal digits. Alone it accepts a
	// certificate that is self-signed, expired or for another name. With Roots
	// both must be right.
	Pin string
	// Login is by default LoginSession.
	Login Login
	// Timeout bounds one call without the Goodbye, by default 15 s, at most
	// 60 s. Slow boards need 3 s for each of four or five answers.
	Timeout time.Duration
	// Plain speaks HTTP without TLS. It is for tests: the address must be a
	// loopback one.
	Plain bool
}

// Driver is a fencing.Driver for one device. It is safe for use by several
// goroutines, but devices are not: see fencing.Gate.
type Driver struct {
	cfg  Config
	addr netip.AddrPort
	pin  []byte

	mu    sync.Mutex
	found string // path of the only system, once it is known
}

var (
	_ fencing.Driver = (*Driver)(nil)
	_ fencing.Lamp   = (*Driver)(nil)
)

// New checks the configuration and makes a driver. It does not talk to the device.
func New(cfg Config) (*Driver, error) {
	addr, err := parseAddress(cfg.Address)
	if err != nil {
		return nil, err
	}
	if cfg.Login == "" {
		cfg.Login = LoginSession
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	d := &Driver{cfg: cfg, addr: addr}
	switch {
	case cfg.Net == nil || cfg.Password == nil:
		return nil, errors.New("redfish: a network and a password are needed")
	case cfg.Username == "" || len(cfg.Username) > usernameMax:
		return nil, fmt.Errorf("redfish: user name of %d bytes: want 1 to %d", len(cfg.Username), usernameMax)
	case cfg.Login != LoginSession && cfg.Login != LoginBasic:
		return nil, fmt.Errorf("redfish: login %q: want %s or %s", cfg.Login, LoginSession, LoginBasic)
	case cfg.Login == LoginBasic && strings.Contains(cfg.Username, ":"):
		return nil, errors.New("redfish: a user name with a colon cannot log in by basic authentication")
	case cfg.Timeout < 0 || cfg.Timeout > timeoutMax:
		return nil, fmt.Errorf("redfish: timeout %s: want at most %s", cfg.Timeout, timeoutMax)
	case cfg.Plain && !addr.Addr().IsLoopback():
		return nil, errors.New("redfish: HTTP without TLS is for loopback addresses only")
	case !cfg.Plain && cfg.Roots == nil && cfg.Pin == "":
		return nil, errors.New("redfish: an authority or a pin is needed, or anything at the address could say off")
	}
	if cfg.System != "" {
		if cfg.System, err = localPath(cfg.System); err != nil {
			return nil, fmt.Errorf("redfish: system: %w", err)
		}
		d.cfg.System = cfg.System
	}
	if cfg.Pin != "" {
		if d.pin, err = hex.DecodeString(cfg.Pin); err != nil || len(d.pin) != 32 {
			return nil, errors.New("redfish: pin: want the 64 hexadecimal digits of a SHA-256")
		}
	}
	return d, nil
}

func parseAddress(s string) (netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		if ap.Port() == 0 {
			return netip.AddrPort{}, fmt.Errorf("redfish: address %q: port 0", s)
		}
		return ap, nil
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("redfish: address %q: want a literal IP address, with or without a port", s)
	}
	return netip.AddrPortFrom(a, defaultPort), nil
}

// Address returns the device's address and port in one normal form.
func (d *Driver) Address() string {
	return netip.AddrPortFrom(d.addr.Addr().Unmap(), d.addr.Port()).String()
}

// Target names what is powered: for fencing.CrossCheck. One chassis controller
// may have a system for each of several hosts.
func (d *Driver) Target() string {
	if d.cfg.System == "" {
		return d.Address()
	}
	return d.Address() + d.cfg.System
}

func (d *Driver) String() string { return "redfish " + d.Target() }

// Power reads the power state. A system that is on its way from one state to
// the other is an error, ErrNoState: only On and Off are told.
func (d *Driver) Power(ctx context.Context) (fencing.Reading, error) {
	r := fencing.Reading{State: haven.PowerUnknown, Start: time.Now()}
	err := d.do(ctx, "read power", func(ctx context.Context, s *session) error {
		sys, err := d.system(ctx, s)
		if err != nil {
			return err
		}
		state, err := sys.power()
		if err != nil {
			return err
		}
		r.State, r.GUID = state, parseUUID(sys.UUID)
		r.Finish = time.Now()
		return nil
	})
	if err != nil {
		return fencing.Reading{State: haven.PowerUnknown, Start: r.Start, Finish: time.Now()}, err
	}
	return r, nil
}

// Set sends one command: off is ForceOff, never the graceful one. The light that
// blinks for ActionBlink does so until it is put out, here or at the board.
func (d *Driver) Set(ctx context.Context, action haven.FenceAction, permit fencing.Permit) error {
	switch action {
	case haven.ActionOff:
		return d.do(ctx, "off", func(ctx context.Context, s *session) error {
			return d.reset(ctx, s, haven.PowerOff, permit, "ForceOff")
		})
	case haven.ActionOn:
		return d.do(ctx, "on", func(ctx context.Context, s *session) error {
			return d.reset(ctx, s, haven.PowerOn, permit, "On", "ForceOn")
		})
	case haven.ActionBlink:
		return d.do(ctx, "blink", func(ctx context.Context, s *session) error { return d.shine(ctx, s, light.blinking, permit) })
	case haven.ActionNone, haven.ActionReboot, haven.ActionStatus, haven.ActionTest:
		return fmt.Errorf("%w: action %q is not one command", fencing.ErrUnsupported, action)
	}
	return fmt.Errorf("%w: action %q", fencing.ErrUnsupported, action)
}

// Light puts the light out when length is zero. All else is ErrUnsupported, and
// nothing is sent: Redfish has no light for a time, and one that a caller meant to
// put out later would blink on when the caller died.
func (d *Driver) Light(ctx context.Context, length time.Duration, permit fencing.Permit) error {
	if length != 0 {
		return fmt.Errorf("%s: %w: a light for %s: Redfish does not time lights; have it blink without a time, and put it out afterwards", d, fencing.ErrUnsupported, length)
	}
	return d.do(ctx, "put the light out", func(ctx context.Context, s *session) error { return d.shine(ctx, s, light.dark, permit) })
}

// Identity returns the system's UUID.
func (d *Driver) Identity(ctx context.Context) (fencing.GUID, error) {
	var id fencing.GUID
	err := d.do(ctx, "read identity", func(ctx context.Context, s *session) error {
		sys, err := d.system(ctx, s)
		if err == nil {
			id = parseUUID(sys.UUID)
		}
		return err
	})
	return id, err
}

// reset sends the first of the given reset types that the system takes.
func (d *Driver) reset(ctx context.Context, s *session, goal haven.PowerState, permit fencing.Permit, types ...string) error {
	sys, err := d.system(ctx, s)
	if err != nil {
		return err
	}
	target, err := localPath(sys.Actions.Reset.Target)
	if err != nil {
		return fmt.Errorf("%w: the system has no reset action", fencing.ErrUnsupported)
	}
	allowed, err := d.allowed(ctx, s, sys)
	if err != nil {
		return err
	}
	i := 0
	if len(allowed) > 0 {
		i = slices.IndexFunc(types, func(t string) bool { return slices.Contains(allowed, t) })
	}
	if i < 0 {
		// Some boards offer only what makes sense in the present state.
		if state, err := sys.power(); err == nil && state == goal {
			return fmt.Errorf("%w: it is %s already, and does not offer %s then", fencing.ErrRejected, state, types[0])
		}
		return fmt.Errorf("%w: it does not offer %s", fencing.ErrUnsupported, strings.Join(types, " or "))
	}
	res, err := s.request(ctx, request{method: "POST", path: target, body: map[string]string{"ResetType": types[i]}, permit: permit, command: true, reset: true})
	if err != nil {
		return err
	}
	return res.task()
}

// allowed lists the reset types that the system takes, or nothing where it does
// not say.
func (d *Driver) allowed(ctx context.Context, s *session, sys *system) ([]string, error) {
	a := sys.Actions.Reset
	if len(a.Allowable) > 0 || a.ActionInfo == "" {
		return a.Allowable, nil
	}
	path, err := localPath(a.ActionInfo)
	if err != nil {
		return nil, fmt.Errorf("%w: action info: %w", fencing.ErrUnsupported, err)
	}
	res, err := s.request(ctx, request{method: "GET", path: path})
	if err != nil {
		return nil, fmt.Errorf("read the action's values: %w", err)
	}
	var info actionInfo
	if err := res.decode(&info); err != nil {
		return nil, fmt.Errorf("read the action's values: %w", err)
	}
	return info.resetTypes(), nil
}

// shine changes the system's light, or that of its chassis, in the first way that
// it takes.
func (d *Driver) shine(ctx context.Context, s *session, ways func(light) []any, permit fencing.Permit) error {
	sys, err := d.system(ctx, s)
	if err != nil {
		return err
	}
	path, light := sys.path, sys.light
	if !light.any() && len(sys.Links.Chassis) > 0 {
		if path, err = localPath(sys.Links.Chassis[0].ID); err != nil {
			return fmt.Errorf("%w: chassis: %w", fencing.ErrUnsupported, err)
		}
		res, err := s.request(ctx, request{method: "GET", path: path})
		if err != nil {
			return fmt.Errorf("read the chassis: %w", err)
		}
		if err := res.decode(&light); err != nil {
			return fmt.Errorf("read the chassis: %w", err)
		}
		light.header = res.etag
	}
	changes := ways(light)
	if len(changes) == 0 {
		return fmt.Errorf("%w: it has no indicator light", fencing.ErrUnsupported)
	}
	for _, body := range changes {
		err = d.patch(ctx, s, path, light.etag(), body, permit)
		if !errors.Is(err, fencing.ErrUnsupported) {
			return err
		}
	}
	return err
}

// patch changes a resource. The condition is sent when it is asked for: some
// boards refuse one that they did not.
func (d *Driver) patch(ctx context.Context, s *session, path, etag string, body any, permit fencing.Permit) error {
	q := request{method: "PATCH", path: path, body: body, permit: permit, command: true}
	_, err := s.request(ctx, q)
	if !errors.Is(err, errCondition) {
		return err
	}
	if q.ifMatch = etag; etag == "" {
		q.ifMatch = "*"
	}
	_, err = s.request(ctx, q)
	return err
}

// system reads the computer system.
func (d *Driver) system(ctx context.Context, s *session) (*system, error) {
	path := d.cfg.System
	if path == "" {
		d.mu.Lock()
		path = d.found
		d.mu.Unlock()
	}
	known := path != ""
	if !known {
		var err error
		if path, err = s.onlySystem(ctx); err != nil {
			return nil, err
		}
	}
	res, err := s.request(ctx, request{method: "GET", path: path})
	if err != nil {
		d.forget()
		return nil, fmt.Errorf("read the system: %w", err)
	}
	sys := &system{path: path}
	if err := res.decode(sys); err != nil {
		return nil, fmt.Errorf("read the system: %w", err)
	}
	if err := sys.check(); err != nil {
		return nil, err
	}
	sys.light.header = res.etag
	if !known {
		d.mu.Lock()
		d.found = path
		d.mu.Unlock()
	}
	return sys, nil
}

// forget makes the next call look for the system again: the board, or its
// firmware, may be another one now.
func (d *Driver) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.found = ""
}

// do runs f in a fresh session on a fresh connection, and ends both.
func (d *Driver) do(ctx context.Context, what string, f func(context.Context, *session) error) error {
	password, err := d.cfg.Password()
	if err != nil {
		return fmt.Errorf("%s: get password: %w", d, err)
	}
	if len(password) > passwordMax {
		return fmt.Errorf("%s: %w: password of %d bytes, want at most %d", d, fencing.ErrAuth, len(password), passwordMax)
	}
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	s := &session{d: d, password: password}
	defer s.close()
	if err = s.open(ctx); err == nil {
		err = f(ctx, s)
	}
	s.logout(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fencing.ErrNotPermitted):
	case parent.Err() != nil:
		err = parent.Err()
	case ctx.Err() != nil:
		err = fmt.Errorf("%w: no answer in %s", fencing.ErrUnreachable, d.cfg.Timeout)
	}
	return fmt.Errorf("%s: %s: %w", d, what, err)
}

// Package ipmi is the fence driver for boards that speak IPMI 2.0 over the
// network (RMCP+).
//
// Each call is one session on one fresh socket. The cipher suite is 17, or 3
// where the device refuses 17; what worked is kept per device. The privilege
// is Operator. A call tells a silent device (ErrUnreachable) from one that
// refuses the credentials (ErrAuth), from one without a free session
// (ErrBusy), and takes nothing for an answer that is not authentic.
package ipmi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/command/app"
	"github.com/bougou/go-ipmi/pkg/command/chassis"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/netx"
)

// SessionMax bounds every call, without the goodbye (300 ms). It is well below
// the 60 s after which devices drop silent sessions, so that none needs to be
// kept alive.
const SessionMax = 25 * time.Second

const (
	defaultPort = 623
	// closeTimeout is how long the goodbye may take.
	closeTimeout = 300 * time.Millisecond
	// patienceMax is the most that a slow device is given for one answer. Those
	// that are known need 3 s.
	patienceMax = 4 * time.Second
	// answers is how many answers a session needs, and one to spare.
	answers     = 6
	usernameMax = 16 // of IPMI
	passwordMax = 20 // of IPMI 2.0
	kgMax       = 20
	identifyFor = 15 // seconds that the identify light blinks
	identifyMax = 255
)

// Config describes one device.
type Config struct {
	// Net opens the sockets.
	Net netx.Stack
	// Address is a literal IPv4 or IPv6 address, with or without a port; an
	// IPv6 address with a port is in brackets. The port defaults to 623.
	Address string
	// Username is 1 to 16 bytes.
	Username string
	// Password is asked for each session, so that a changed file is noticed.
	// It gives at most 20 bytes. What it returns is never logged or put into
	// an error.
	Password func() (string, error)
	// KG gives the BMC key for two-key logins, at most 20 bytes; nil for none.
	KG func() ([]byte, error)
	// Suites are the cipher suites to try, in order: 17, 3 or both. By
	// default 17, then 3.
	Suites []int
	// PacketTimeout is how long one answer may take at the first attempt, by
	// default 800 ms. It doubles with each further attempt.
	PacketTimeout time.Duration
	// Attempts is how many fresh sessions a call may use when answers do not
	// come, by default 3.
	Attempts int
	// Timeout bounds one call, without the goodbye (300 ms); by default 10 s,
	// at most SessionMax. After a call that met with silence the next one is more
	// patient, up to 4 s for an answer and SessionMax in all, until the device
	// has shown that it is quick.
	Timeout time.Duration
}

// Driver is a fencing.Driver for one device. It is safe for use by several
// goroutines, but devices are not: see fencing.Gate.
type Driver struct {
	cfg    Config
	addr   netip.AddrPort
	suites []suite

	mu       sync.Mutex
	pinned   int           // index of the suite that worked, or -1
	patience time.Duration // for one answer at the first attempt
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
	if cfg.Net == nil || cfg.Password == nil {
		return nil, errors.New("ipmi: a network and a password are needed")
	}
	if n := len(cfg.Username); n == 0 || n > usernameMax {
		return nil, fmt.Errorf("ipmi: user name of %d bytes: want 1 to %d", n, usernameMax)
	}
	if len(cfg.Suites) == 0 {
		cfg.Suites = []int{17, 3}
	}
	if cfg.PacketTimeout == 0 {
		cfg.PacketTimeout = 800 * time.Millisecond
	}
	if cfg.Attempts == 0 {
		cfg.Attempts = 3
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.PacketTimeout < 0 || cfg.Attempts < 0 || cfg.Timeout < cfg.PacketTimeout || cfg.Timeout > SessionMax {
		return nil, fmt.Errorf("ipmi: want packet timeout <= timeout <= %s and at least 1 attempt", SessionMax)
	}
	d := &Driver{cfg: cfg, addr: addr, pinned: -1, patience: cfg.PacketTimeout}
	for _, id := range cfg.Suites {
		s, ok := knownSuite(id)
		if !ok {
			return nil, fmt.Errorf("ipmi: cipher suite %d: want 17 or 3", id)
		}
		d.suites = append(d.suites, s)
	}
	return d, nil
}

func parseAddress(s string) (netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		if ap.Port() == 0 {
			return netip.AddrPort{}, fmt.Errorf("ipmi: address %q: port 0", s)
		}
		return ap, nil
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("ipmi: address %q: want a literal IP address, with or without a port", s)
	}
	return netip.AddrPortFrom(a, defaultPort), nil
}

// Address returns the device's address and port in one normal form: the key
// for fencing.Gate and fencing.CrossCheck.
func (d *Driver) Address() string {
	return netip.AddrPortFrom(d.addr.Addr().Unmap(), d.addr.Port()).String()
}

func (d *Driver) String() string { return "ipmi " + d.Address() }

// Power reads the chassis power state.
func (d *Driver) Power(ctx context.Context) (fencing.Reading, error) {
	r := fencing.Reading{State: haven.PowerUnknown, Start: time.Now()}
	err := d.do(ctx, "read power", func(ctx context.Context, s *session) error {
		data, err := s.command(ctx, &chassis.GetChassisStatusRequest{})
		switch {
		case errors.Is(err, fencing.ErrBusy): // it let us in, and might still take a command
			return fmt.Errorf("%w: %s", fencing.ErrNoState, err.Error())
		case err != nil:
			return err
		}
		var res chassis.GetChassisStatusResponse
		if err := res.Unpack(data); err != nil {
			return fmt.Errorf("%w: chassis status is too short", fencing.ErrUnsupported)
		}
		r.State = haven.PowerOff
		if res.PowerIsOn {
			r.State = haven.PowerOn
		}
		r.GUID = fencing.NewGUID(s.guid)
		r.Finish = time.Now()
		return nil
	})
	if err != nil {
		return fencing.Reading{State: haven.PowerUnknown, Start: r.Start, Finish: time.Now()}, err
	}
	return r, nil
}

// Set sends one power command: off is the hard power-off, never the graceful
// one.
func (d *Driver) Set(ctx context.Context, action haven.FenceAction, permit fencing.Permit) error {
	var req request
	switch action {
	case haven.ActionOff:
		req = &chassis.ChassisControlRequest{ChassisControl: chassis.ChassisControlPowerDown}
	case haven.ActionOn:
		req = &chassis.ChassisControlRequest{ChassisControl: chassis.ChassisControlPowerUp}
	case haven.ActionBlink:
		req = &chassis.ChassisIdentifyRequest{IdentifyInterval: identifyFor}
	case haven.ActionNone, haven.ActionReboot, haven.ActionStatus, haven.ActionTest:
		return fmt.Errorf("%w: action %q is not one command", fencing.ErrUnsupported, action)
	default:
		return fmt.Errorf("%w: action %q", fencing.ErrUnsupported, action)
	}
	sent := false
	return d.do(ctx, string(action), func(ctx context.Context, s *session) error {
		if err := permit.Check(ctx); err != nil && sent {
			// A refusal would say that nothing went out, and nobody knows.
			return fmt.Errorf("%w: no answer to the command, and no permission to send it again: %s", fencing.ErrUnreachable, err.Error())
		} else if err != nil {
			return err
		}
		sent = true
		_, err := s.command(ctx, req)
		return err
	})
}

// Light makes the identify light blink for up to 255 s, or puts it out.
func (d *Driver) Light(ctx context.Context, length time.Duration, permit fencing.Permit) error {
	seconds := (length + time.Second - 1) / time.Second
	if length < 0 || seconds > identifyMax {
		return fmt.Errorf("%w: a light for %s: want at most %d s", fencing.ErrUnsupported, length, identifyMax)
	}
	return d.do(ctx, "light", func(ctx context.Context, s *session) error {
		if err := permit.Check(ctx); err != nil {
			return err
		}
		_, err := s.command(ctx, &chassis.ChassisIdentifyRequest{IdentifyInterval: uint8(seconds)})
		return err
	})
}

// Identity returns the system GUID: the one of the handshake, or, where the
// device leaves that empty, the one it tells when asked.
func (d *Driver) Identity(ctx context.Context) (fencing.GUID, error) {
	var id fencing.GUID
	err := d.do(ctx, "read guid", func(ctx context.Context, s *session) error {
		if id = fencing.NewGUID(s.guid); id != "" {
			return nil
		}
		data, err := s.command(ctx, &app.GetSystemGUIDRequest{})
		if errors.Is(err, fencing.ErrUnsupported) || errors.Is(err, fencing.ErrRejected) {
			return nil // many boards have none
		}
		if err != nil {
			return err
		}
		if len(data) >= 16 {
			id = fencing.NewGUID([16]byte(data[:16]))
		}
		return nil
	})
	return id, err
}

// do runs f in a fresh session. Only silence is tried again, each time with a
// fresh socket and more patience.
func (d *Driver) do(ctx context.Context, what string, f func(context.Context, *session) error) error {
	cred, err := d.credentials()
	if err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	parent := ctx
	order, known, timeout, limit := d.habits()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for next, silences, refusals := 0, 0, 0; ; {
		s := order[next%len(order)]
		var slowest time.Duration
		slowest, err = d.once(ctx, s, cred, timeout, f)
		switch {
		case err == nil:
			d.learn(s, min(timeout, 2*slowest))
			return nil
		case errors.Is(err, fencing.ErrNotPermitted):
			return fmt.Errorf("%s: %s: %w", d, what, err)
		case parent.Err() != nil:
			return fmt.Errorf("%s: %s: %w", d, what, parent.Err())
		case ctx.Err() != nil:
			d.wait()
			return fmt.Errorf("%s: %s: %w: %w", d, what, fencing.ErrUnreachable, ctx.Err())
		case errors.Is(err, errSuite) && refusals+1 < len(order):
			refusals++ // it answered, and speaks another one
			next++
		case errors.Is(err, errSilent) && silences+1 < d.cfg.Attempts:
			silences++
			timeout *= 2
			if !known {
				next++ // perhaps it is silent because it does not know this one
			}
		default:
			if errors.Is(err, errSilent) {
				d.wait()
			}
			return fmt.Errorf("%s: %s: %w", d, what, err)
		}
	}
}

// once runs f in one session on one socket, and ends both whatever happens. It
// tells how long the slowest answer took.
func (d *Driver) once(ctx context.Context, s suite, cred credentials, timeout time.Duration, f func(context.Context, *session) error) (time.Duration, error) {
	conn, err := d.cfg.Net.DialContext(ctx, "udp", d.addr.String())
	if err != nil {
		return 0, fmt.Errorf("%w: %w", fencing.ErrUnreachable, err)
	}
	defer func() { _ = conn.Close() }()
	stop := bind(ctx, conn)
	ses, err := open(ctx, conn, s, cred, timeout)
	if err == nil {
		err = f(ctx, ses)
	}
	stop()
	if ses == nil {
		return 0, err
	}
	slowest := ses.slowest
	ses.close(ctx)
	return slowest, err
}

// bind makes a read on the socket end when the context does. The function it
// returns unbinds, after which no more deadlines are set behind one's back.
func bind(ctx context.Context, conn net.Conn) func() {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = conn.SetReadDeadline(time.Unix(1, 0))
	})
	return func() {
		if !stop() {
			<-done
		}
	}
}

func (d *Driver) credentials() (credentials, error) {
	c := credentials{username: d.cfg.Username}
	var err error
	if c.password, err = d.cfg.Password(); err != nil {
		return c, fmt.Errorf("get password: %w", err)
	}
	if len(c.password) > passwordMax {
		return c, fmt.Errorf("%w: password of %d bytes, want at most %d", fencing.ErrAuth, len(c.password), passwordMax)
	}
	if d.cfg.KG != nil {
		if c.kg, err = d.cfg.KG(); err != nil {
			return c, fmt.Errorf("get BMC key: %w", err)
		}
		if len(c.kg) > kgMax {
			return c, fmt.Errorf("%w: BMC key of %d bytes, want at most %d", fencing.ErrAuth, len(c.kg), kgMax)
		}
	}
	return c, nil
}

// habits returns the suites to try, and whether the first of them is known to
// work; how long an answer is waited for, and how long a call may take. A device
// whose suite is known and that is silent is not asked to negotiate again; one
// that refuses it is, for its board may have been replaced.
func (d *Driver) habits() (order []suite, known bool, timeout, limit time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	timeout, limit = d.patience, d.cfg.Timeout
	if timeout > d.cfg.PacketTimeout {
		limit = min(SessionMax, max(limit, answers*timeout))
	}
	if d.pinned < 0 {
		return d.suites, false, timeout, limit
	}
	order = []suite{d.suites[d.pinned]}
	for i, s := range d.suites {
		if i != d.pinned {
			order = append(order, s)
		}
	}
	return order, true, timeout, limit
}

// learn keeps the suite that worked, and the patience that a device needs.
func (d *Driver) learn(s suite, patience time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pinned = slices.Index(d.suites, s)
	d.patience = max(d.cfg.PacketTimeout, min(patience, patienceMax))
}

// wait makes the next call more patient than the one that met with silence.
func (d *Driver) wait() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.patience = max(d.patience, min(2*d.patience, patienceMax))
}

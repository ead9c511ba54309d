// Package redfishtest is a board that speaks Redfish inside the process: for
// tests, benchmarks and the demo. It is strict: written from the DMTF's schema
// and specification (DSP0266), not from what the driver sends, and it keeps a
// list of all requests that a strict service would refuse.
package redfishtest

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Role is what an account may do, by the standard's names.
type Role string

// The roles.
const (
	ReadOnly      Role = "ReadOnly"      // read
	Operator      Role = "Operator"      // read and control
	Administrator Role = "Administrator" // all
	Custom        Role = "Custom"        // read; of the operator's own making
)

// Account is one user of a board.
type Account struct {
	Name, Password string
	Role           Role
}

// Light says where the indicator light is, and of what kind.
type Light string

// The kinds of lights.
const (
	LightLocation Light = "location" // LocationIndicatorActive of the system; the default
	LightLED      Light = "led"      // IndicatorLED of the system
	LightLit      Light = "lit"      // an IndicatorLED that cannot blink
	LightChassis  Light = "chassis"  // LocationIndicatorActive of the chassis
	LightNone     Light = "none"
)

// Config describes a board.
type Config struct {
	Accounts []Account
	// UUID is the system's, in the usual form; empty for none.
	UUID string
	// Off starts it with the system off.
	Off bool
	// Certificate is by default a fresh one for the loopback addresses.
	Certificate *tls.Certificate
	// Plain speaks HTTP without TLS.
	Plain bool
	// Others are further members of the systems, which are always on. The
	// board's own is "1".
	Others []string
	// SessionsMax is how many sessions there can be, by default 4.
	SessionsMax int
	// HideAccounts leaves out the account service.
	HideAccounts bool
	// OEMRole gives the role Custom a privilege of the maker's own.
	OEMRole bool
	// NoSessions leaves out the session service: there is basic authentication only.
	NoSessions bool
	// ResetTypes is what the reset action takes, by default On, ForceOff and all
	// those that a fence driver must not send. HideResetTypes does not tell it.
	ResetTypes     []string
	HideResetTypes bool
	// ActionInfo tells the reset types in a resource of its own.
	ActionInfo bool
	Light      Light
	// Base stands before the paths of sessions, as https://bmc.example; by default
	// they have no host.
	Base string
	// WantMatch refuses changes without the version in If-Match.
	WantMatch bool
	// Slash redirects to paths that end in a slash, as some firmware does.
	Slash bool
	// IdleTimeout closes idle connections without a word; zero for never.
	IdleTimeout time.Duration
	// OnPower is called when an accepted command changes the power, before the
	// command is answered. An error keeps the state and fails the command.
	OnPower func(on bool) error
	// OnIdentify is called when the light is turned on.
	OnIdentify func()
}

// Faults is what is wrong with a board. The zero value is a sound one.
type Faults struct {
	// Dead takes connections and answers nothing.
	Dead bool
	// Reset cuts each connection as soon as it is made, as a board that restarts.
	Reset bool
	// Starting answers everything with 503.
	Starting bool
	// Busy answers so many of the next requests with 503 or BusyStatus.
	Busy       int
	BusyStatus int
	// RetryAfter goes with all these answers, if not empty.
	RetryAfter string
	// Delay holds each answer back.
	Delay time.Duration
	// State makes the power state this text, whatever is true; "null" for null.
	State string
	// Lag makes the state tell a change so much later; Transition says PoweringOff
	// or PoweringOn for so long after a change.
	Lag, Transition time.Duration
	// Ignore makes so many of the next power commands be accepted without effect.
	Ignore int
	// RejectOff is the status, 400 or 409, with which off is refused when it is off.
	RejectOff int
	// RejectAs is the message id with that; by default Base.1.8.ActionNotSupported.
	RejectAs string
	// SessionsFull says that others have all sessions, with status 503, or 400
	// or 403 as some firmware has it.
	SessionsFull int
	// Forget makes it lose its sessions right after each login.
	Forget bool
	// Async answers commands with 202 and a task; TaskState is the task's.
	Async     bool
	TaskState string
	// LoseReply carries out power commands and cuts the connection.
	LoseReply bool
	// Huge sends a system of 2 MiB, Truncated one whose JSON ends in the middle,
	// Broken one that ends before its announced length.
	Huge, Truncated, Broken bool
	// Redirect sends readers of the system elsewhere.
	Redirect string
	// Rewrite, if set, replaces the body of each answer about the system.
	Rewrite func(body []byte) []byte
}

// Service is a running board.
type Service struct {
	cfg    Config
	lis    net.Listener
	server *http.Server
	wg     sync.WaitGroup
	done   chan struct{}
	once   sync.Once

	mu         sync.Mutex
	faults     Faults
	uuid       string
	on, was    bool
	changed    time.Time
	etag       int
	lit        string
	sessions   map[string]session // by id
	logins     int
	commands   []string
	requests   []string
	violations []string
}

type session struct{ token, user string }

// Start runs a board on the TCP address, such as "127.0.0.1:0".
func Start(addr string, cfg Config) (*Service, error) {
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for Redfish: %w", err)
	}
	s, err := Serve(lis, cfg)
	if err != nil {
		_ = lis.Close()
	}
	return s, err
}

// Serve runs a board on a listener, which it closes in the end.
func Serve(lis net.Listener, cfg Config) (*Service, error) {
	if cfg.SessionsMax == 0 {
		cfg.SessionsMax = 4
	}
	if cfg.ResetTypes == nil {
		cfg.ResetTypes = []string{"On", "ForceOff", "GracefulShutdown", "GracefulRestart", "ForceRestart", "Nmi", "PushPowerButton", "PowerCycle"}
	}
	if cfg.Light == "" {
		cfg.Light = LightLocation
	}
	if cfg.Certificate == nil && !cfg.Plain {
		c, err := NewCertificate(time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour), "127.0.0.1", "::1")
		if err != nil {
			return nil, err
		}
		cfg.Certificate = &c
	}
	s := &Service{cfg: cfg, lis: lis, done: make(chan struct{}), uuid: cfg.UUID, on: !cfg.Off, was: !cfg.Off, lit: "Off", sessions: map[string]session{}}
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // failed handshakes are what some tests are about
	s.server = &http.Server{Handler: http.HandlerFunc(s.serve), ErrorLog: quiet, IdleTimeout: cfg.IdleTimeout, ReadHeaderTimeout: time.Minute}
	var outer net.Listener = &cutter{Listener: lis, s: s}
	if !cfg.Plain {
		outer = tls.NewListener(outer, &tls.Config{Certificates: []tls.Certificate{*cfg.Certificate}, MinVersion: tls.VersionTLS12})
	}
	s.wg.Go(func() { _ = s.server.Serve(outer) })
	return s, nil
}

// cutter cuts connections of a board that restarts.
type cutter struct {
	net.Listener
	s *Service
}

func (c *cutter) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil || !c.s.now().Reset {
			return conn, err
		}
		if t, ok := conn.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = conn.Close()
	}
}

// Addr is the address it listens on.
func (s *Service) Addr() string { return s.lis.Addr().String() }

// Certificate is the one it shows; nil without TLS.
func (s *Service) Certificate() *tls.Certificate { return s.cfg.Certificate }

// Restart loses all sessions, as firmware does that restarts. The system keeps
// its power.
func (s *Service) Restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions = map[string]session{}
}

// SetFaults changes what is wrong with it.
func (s *Service) SetFaults(change func(*Faults)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.faults)
}

func (s *Service) now() Faults {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults
}

// SetUUID makes it the board of another system.
func (s *Service) SetUUID(uuid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uuid = uuid
}

// On says whether the system truly is on.
func (s *Service) On() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.on
}

// SetPower switches the system without a command, as a hand at the button.
func (s *Service) SetPower(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.power(on)
}

// power needs the lock.
func (s *Service) power(on bool) {
	if s.on != on {
		s.was, s.on, s.changed = s.on, on, time.Now()
		s.etag++
	}
}

// Commands lists the reset types and light changes that were asked for.
func (s *Service) Commands() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.commands)
}

// Requests lists method and path of all requests.
func (s *Service) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Violations lists the requests that are not as the standard has them.
func (s *Service) Violations() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.violations)
}

// Sessions tells how many sessions are open, and how many ever were.
func (s *Service) Sessions() (open, ever int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions), s.logins
}

// Close ends it and all its connections.
func (s *Service) Close() error {
	s.once.Do(func() { close(s.done) })
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := s.server.Close()
	_ = s.server.Shutdown(ctx)
	s.wg.Wait()
	return err
}

func newToken() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Package logind hears from systemd-logind when this host is about to shut
// down, and delays the shutdown for a moment, so that the cluster can be told.
package logind

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
)

// DefaultAddress is where the system's bus listens.
const DefaultAddress = "unix:path=/run/dbus/system_bus_socket"

// Watcher listens to logind. Its fields are set before Run.
type Watcher struct {
	Address string // of the bus; empty means DefaultAddress
	// Told is told that a shutdown begins (true), or that one was called off
	// (false), in order, one at a time. Its context ends after Limit. The
	// shutdown waits until it returns, or until logind's own patience ends
	// (InhibitDelayMaxSec, 5 s unless configured otherwise).
	Told  func(ctx context.Context, coming bool)
	Limit time.Duration // the zero value means 4 s
	// Retry is how long to wait before the bus is tried again; the zero value
	// means 5 s.
	Retry time.Duration
	Log   *slog.Logger
}

const (
	service   = "org.freedesktop.login1"
	object    = dbus.ObjectPath("/org/freedesktop/login1")
	manager   = "org.freedesktop.login1.Manager"
	signal    = manager + ".PrepareForShutdown"
	ownerless = "org.freedesktop.DBus.NameOwnerChanged"
	// callLimit bounds one question to the bus.
	callLimit = 5 * time.Second
)

// Run listens until ctx ends. Without a bus, or without logind on it, it goes
// on trying and logs that once.
func (w *Watcher) Run(ctx context.Context) {
	var failing string
	coming := false
	for ctx.Err() == nil {
		err := w.listen(ctx, &coming, func() {
			if failing != "" {
				w.Log.Info("logind is heard again")
			}
			failing = ""
		})
		if ctx.Err() != nil {
			return
		}
		if why := cause(err); why != failing {
			w.Log.Warn("logind is not heard: a shutdown of this host is noticed only when the agent is stopped", "error", err)
			failing = why
		}
		wait(ctx, cmp.Or(w.Retry, 5*time.Second))
	}
}

// cause tells kinds of failures apart, not their details.
func cause(err error) string {
	for _, known := range []error{errBus, errService, errEnded} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return "unknown"
}

var (
	errBus     = errors.New("no bus")
	errService = errors.New("no logind on the bus")
	errEnded   = errors.New("the bus closed the connection")
)

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// session is one connection to the bus.
type session struct {
	w       *Watcher
	conn    *dbus.Conn
	owner   string // logind's own name on the bus
	lock    *os.File
	coming  *bool // what was told last
	refused bool  // a lock was refused, and that was logged
}

// listen connects and listens until the connection or ctx ends. It calls up
// once logind is heard.
func (w *Watcher) listen(ctx context.Context, coming *bool, up func()) error {
	conn, err := dial(ctx, cmp.Or(w.Address, DefaultAddress))
	if err != nil {
		return errors.Join(errBus, err)
	}
	defer func() { _ = conn.Close() }()
	s := &session{w: w, conn: conn, coming: coming}
	defer s.release()
	signals := make(chan *dbus.Signal, 64)
	conn.Signal(signals)
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchSender(service), dbus.WithMatchInterface(manager), dbus.WithMatchMember("PrepareForShutdown"), dbus.WithMatchObjectPath(object)},
		{dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, service)},
	} {
		limited, cancel := context.WithTimeout(ctx, callLimit)
		err := conn.AddMatchSignalContext(limited, match...)
		cancel()
		if err != nil {
			return fmt.Errorf("subscribe to signals: %w", err)
		}
	}
	if err := s.begin(ctx); err != nil {
		return errors.Join(errService, err)
	}
	up()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-conn.Context().Done():
			return errEnded
		case sig, ok := <-signals:
			if !ok {
				return errEnded
			}
			if err := s.take(ctx, sig); err != nil {
				return err
			}
		}
	}
}

// dial connects and says hello, within callLimit.
func dial(ctx context.Context, address string) (*dbus.Conn, error) {
	conn, err := dbus.Dial(address, dbus.WithContext(ctx), dbus.WithSignalHandler(dbus.NewSequentialSignalHandler()))
	if err != nil {
		return nil, fmt.Errorf("connect to the bus: %w", err)
	}
	// Neither of the two takes a context; to close the connection ends them.
	stop := time.AfterFunc(callLimit, func() { _ = conn.Close() })
	err = conn.Auth(nil)
	if err == nil {
		err = conn.Hello()
	}
	if !stop.Stop() {
		return nil, errors.New("the bus did not answer in time")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("greet the bus: %w", err), conn.Close())
	}
	return conn, nil
}

// begin finds logind, takes the lock, and asks whether a shutdown is under way: the
// signal may have come while nobody listened.
func (s *session) begin(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	bus := s.conn.BusObject()
	// It may be started by being asked for. If not, it is there or it is not.
	_ = bus.CallWithContext(limited, "org.freedesktop.DBus.StartServiceByName", 0, service, uint32(0)).Err
	if err := bus.CallWithContext(limited, "org.freedesktop.DBus.GetNameOwner", 0, service).Store(&s.owner); err != nil {
		return fmt.Errorf("find logind: %w", err)
	}
	s.hold(limited)
	var v dbus.Variant
	err := s.conn.Object(service, object).CallWithContext(limited, "org.freedesktop.DBus.Properties.Get", 0, manager, "PreparingForShutdown").Store(&v)
	if err != nil {
		return fmt.Errorf("ask whether a shutdown is under way: %w", err)
	}
	coming, ok := v.Value().(bool)
	if !ok {
		return fmt.Errorf("ask whether a shutdown is under way: logind answered with %s", v.Signature())
	}
	s.tell(ctx, coming)
	return nil
}

// hold takes the lock that delays a shutdown. Without it shutdowns are heard all
// the same, and the cluster is told in a race with the end.
func (s *session) hold(ctx context.Context) {
	s.release()
	var fd dbus.UnixFD
	err := s.conn.Object(service, object).CallWithContext(ctx, manager+".Inhibit", 0,
		"shutdown", "havend", "the cluster is told that this host shuts down", "delay").Store(&fd)
	if err != nil {
		var said dbus.Error // Anything else is the end of the connection.
		if errors.As(err, &said) && !s.refused {
			s.w.Log.Warn("logind gives no lock: a shutdown does not wait until the cluster is told", "error", err)
		}
		s.refused = s.refused || said.Name != ""
		return
	}
	s.lock = os.NewFile(uintptr(fd), "logind lock")
}

// release lets a shutdown go on.
func (s *session) release() {
	if s.lock != nil {
		_ = s.lock.Close() // To close it is all that it is for.
		s.lock = nil
	}
}

func (s *session) take(ctx context.Context, sig *dbus.Signal) error {
	switch sig.Name {
	case signal:
		// Anybody on the bus may send a signal of that name straight to us.
		var coming bool
		if sig.Sender != s.owner || dbus.Store(sig.Body, &coming) != nil {
			return nil
		}
		s.tell(ctx, coming)
		if !coming {
			limited, cancel := context.WithTimeout(ctx, callLimit)
			defer cancel()
			s.hold(limited)
		}
	case ownerless:
		var name, old, owner string
		if sig.Sender != "org.freedesktop.DBus" || dbus.Store(sig.Body, &name, &old, &owner) != nil || name != service || owner == s.owner {
			return nil
		}
		if owner == "" {
			s.release()
			return nil // It is being restarted, and comes back under another name.
		}
		if err := s.begin(ctx); err != nil {
			return errors.Join(errService, err)
		}
	}
	return nil
}

// tell passes news on, and lets a shutdown go on afterwards.
func (s *session) tell(ctx context.Context, coming bool) {
	if coming != *s.coming {
		*s.coming = coming
		s.w.Log.Info("logind tells of a shutdown of this host", "coming", coming)
		limited, cancel := context.WithTimeout(ctx, cmp.Or(s.w.Limit, 4*time.Second))
		s.w.Told(limited, coming)
		cancel()
	}
	if coming {
		s.release()
	}
}

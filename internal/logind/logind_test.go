package logind

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// bus is a private dbus-daemon.
type bus struct {
	t       *testing.T
	config  string
	address string
	cmd     *exec.Cmd
}

func newBus(t *testing.T) *bus {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Skip("dbus-daemon is not installed: the package is dbus-daemon, or dbus")
	}
	dir := t.TempDir()
	b := &bus{t: t, config: filepath.Join(dir, "bus.conf"), address: "unix:path=" + filepath.Join(dir, "bus")}
	config := fmt.Sprintf(`<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="false"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
  </policy>
</busconfig>
`, b.address)
	if err := os.WriteFile(b.config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	b.start()
	t.Cleanup(b.stop)
	return b
}

// start returns when the daemon listens: it prints its address then.
func (b *bus) start() {
	b.t.Helper()
	cmd := exec.Command("dbus-daemon", "--config-file="+b.config, "--nofork", "--nopidfile", "--nosyslog", "--print-address")
	cmd.Stderr = b.t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.cmd = cmd
	if _, err := out.Read(make([]byte, 1)); err != nil {
		b.t.Fatalf("dbus-daemon: %v", err)
	}
}

func (b *bus) stop() {
	if b.cmd == nil {
		return
	}
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait() // It was killed.
	b.cmd = nil
	_ = os.Remove(strings.TrimPrefix(b.address, "unix:path="))
}

func (b *bus) connect() *dbus.Conn {
	b.t.Helper()
	conn, err := dbus.Connect(b.address)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// fakeLogind is what the watcher needs of logind.
type fakeLogind struct {
	t    *testing.T
	conn *dbus.Conn
	// taken gets the reading end of each lock that was given out.
	taken chan *os.File

	mu        sync.Mutex
	preparing bool
	refuse    bool
}

func newLogind(b *bus, preparing, refuse bool) *fakeLogind {
	b.t.Helper()
	f := &fakeLogind{t: b.t, conn: b.connect(), taken: make(chan *os.File, 16), preparing: preparing, refuse: refuse}
	for _, e := range []error{f.conn.Export(f, object, manager), f.conn.Export(properties{f}, object, "org.freedesktop.DBus.Properties")} {
		if e != nil {
			b.t.Fatal(e)
		}
	}
	reply, err := f.conn.RequestName(service, dbus.NameFlagDoNotQueue)
	if err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		b.t.Fatalf("own %s: %v, %v", service, reply, err)
	}
	return f
}

// Inhibit is called over the bus.
func (f *fakeLogind) Inhibit(what, who, why, mode string) (dbus.UnixFD, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if what != "shutdown" || who != "havend" || why == "" || mode != "delay" {
		return 0, dbus.MakeFailedError(fmt.Errorf("lock %q of %q for %q, mode %q", what, who, why, mode))
	}
	if f.refuse {
		return 0, dbus.NewError("org.freedesktop.DBus.Error.AccessDenied", nil)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	f.taken <- r
	fd := dbus.UnixFD(w.Fd())
	// The library sends a copy; this one is closed a little later, as by logind.
	time.AfterFunc(100*time.Millisecond, func() { _ = w.Close() })
	return fd, nil
}

type properties struct{ f *fakeLogind }

// Get is called over the bus.
func (p properties) Get(iface, name string) (dbus.Variant, *dbus.Error) {
	if iface != manager || name != "PreparingForShutdown" {
		return dbus.Variant{}, dbus.NewError("org.freedesktop.DBus.Error.UnknownProperty", nil)
	}
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	return dbus.MakeVariant(p.f.preparing), nil
}

func (f *fakeLogind) shutdown(coming bool) {
	f.t.Helper()
	f.mu.Lock()
	f.preparing = coming
	f.mu.Unlock()
	if err := f.conn.Emit(object, signal, coming); err != nil {
		f.t.Fatal(err)
	}
}

// lock waits for the next lock to be taken.
func (f *fakeLogind) lock() *os.File {
	f.t.Helper()
	select {
	case r := <-f.taken:
		f.t.Cleanup(func() { _ = r.Close() })
		return r
	case <-time.After(patience):
		f.t.Fatal("no lock was taken")
		return nil
	}
}

// released waits until the holder of a lock has closed it.
func (f *fakeLogind) released(lock *os.File) {
	f.t.Helper()
	if err := lock.SetReadDeadline(time.Now().Add(patience)); err != nil {
		f.t.Fatal(err)
	}
	if _, err := io.ReadAll(lock); err != nil {
		f.t.Fatalf("the lock is held still: %v", err)
	}
}

// held says that a lock is held now.
func (f *fakeLogind) held(lock *os.File) {
	f.t.Helper()
	if err := lock.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		f.t.Fatal(err)
	}
	if n, err := lock.Read(make([]byte, 1)); !os.IsTimeout(err) {
		f.t.Fatalf("the lock is not held: %d, %v", n, err)
	}
}

// watch runs a watcher until the test ends. The channel gets what it is told;
// gate, if not nil, keeps it from going on.
func watch(t *testing.T, address string, gate chan struct{}) (told chan bool, log *safeBuffer) {
	t.Helper()
	told, log = make(chan bool, 16), new(safeBuffer)
	w := &Watcher{
		Address: address, Retry: 20 * time.Millisecond, Limit: patience, Log: slog.New(slog.NewTextHandler(io.MultiWriter(log, t.Output()), nil)),
		Told: func(ctx context.Context, coming bool) {
			told <- coming
			if gate != nil {
				select {
				case <-gate:
				case <-ctx.Done():
				}
			}
		},
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("the watcher did not end")
		}
	})
	return told, log
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) count(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.b.String(), text)
}

// wait waits until a line with the text was written.
func (s *safeBuffer) wait(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(patience); s.count(text) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not logged: %s", text)
		}
	}
}

func next(t *testing.T, told chan bool, want bool) {
	t.Helper()
	select {
	case got := <-told:
		if got != want {
			t.Fatalf("told %t, want %t", got, want)
		}
	case <-time.After(patience):
		t.Fatalf("not told %t", want)
	}
}

// TestShutdownWaitsUntilTheClusterIsTold (P4): the lock is held until the word
// went out, and given back then.
func TestShutdownWaitsUntilTheClusterIsTold(t *testing.T) {
	b := newBus(t)
	f := newLogind(b, false, false)
	gate := make(chan struct{})
	told, _ := watch(t, b.address, gate)
	lock := f.lock()
	f.held(lock)
	f.shutdown(true)
	next(t, told, true)
	f.held(lock)
	close(gate)
	f.released(lock)
}

// TestShutdownCalledOff: it is taken back, and the next one is delayed again.
func TestShutdownCalledOff(t *testing.T) {
	b := newBus(t)
	f := newLogind(b, false, false)
	told, _ := watch(t, b.address, nil)
	for range 2 {
		lock := f.lock()
		f.shutdown(true)
		next(t, told, true)
		f.released(lock)
		f.shutdown(false)
		next(t, told, false)
	}
	f.held(f.lock())
}

// TestShutdownUnderWayAtStart: the signal came before the agent did.
func TestShutdownUnderWayAtStart(t *testing.T) {
	b := newBus(t)
	f := newLogind(b, true, false)
	told, _ := watch(t, b.address, nil)
	next(t, told, true)
	f.released(f.lock())
}

// TestBusRestarts: what is heard after it is back is told, once each.
func TestBusRestarts(t *testing.T) {
	b := newBus(t)
	f := newLogind(b, false, false)
	told, log := watch(t, b.address, nil)
	lock := f.lock()
	b.stop()
	f.released(lock) // Nothing holds up a shutdown that nobody would hear of.
	b.start()
	g := newLogind(b, true, false) // It began while nobody listened.
	next(t, told, true)
	g.released(g.lock())
	g.shutdown(false)
	next(t, told, false)
	g.held(g.lock())
	if n := log.count("logind is not heard"); n != 1 && n != 2 { // the connection ended; no bus
		t.Errorf("told %d times that logind is not heard", n)
	}
	if log.count("logind is heard again") != 1 {
		t.Error("not told that logind is back")
	}
}

// TestLogindRestarts: it comes back under another name on the same bus.
func TestLogindRestarts(t *testing.T) {
	b := newBus(t)
	f := newLogind(b, false, false)
	told, _ := watch(t, b.address, nil)
	first := f.lock()
	if err := f.conn.Close(); err != nil {
		t.Fatal(err)
	}
	f.released(first)
	g := newLogind(b, false, false)
	second := g.lock()
	g.held(second)
	g.shutdown(true)
	next(t, told, true)
	g.released(second)
}

// TestNoLock: a shutdown is told also when logind gives no lock.
func TestNoLock(t *testing.T) {
	b := newBus(t)
	f := newLogind(b, false, true)
	told, log := watch(t, b.address, nil)
	log.wait(t, "logind gives no lock")
	f.shutdown(true)
	next(t, told, true)
	f.shutdown(false)
	next(t, told, false)
	if n := log.count("logind gives no lock"); n != 1 {
		t.Errorf("told %d times that there is no lock", n)
	}
}

// TestForgedSignal (P4): only logind's own word counts, not that of anybody else
// on the bus.
func TestForgedSignal(t *testing.T) {
	b := newBus(t)
	f := newLogind(b, false, false)
	told, _ := watch(t, b.address, nil)
	lock := f.lock()
	forger := b.connect()
	var names []string
	if err := forger.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&names); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, ":") {
			continue
		}
		msg := &dbus.Message{Type: dbus.TypeSignal, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldInterface: dbus.MakeVariant(manager), dbus.FieldMember: dbus.MakeVariant("PrepareForShutdown"),
			dbus.FieldPath: dbus.MakeVariant(object), dbus.FieldDestination: dbus.MakeVariant(name),
			dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(true)),
		}, Body: []any{true}}
		if call := forger.Send(msg, nil); call != nil && call.Err != nil {
			t.Fatal(call.Err)
		}
	}
	if err := forger.Emit(object, signal, true); err != nil {
		t.Fatal(err)
	}
	// A question to the bus after the forgeries: they were passed on before.
	if err := forger.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&names); err != nil {
		t.Fatal(err)
	}
	f.shutdown(false) // no news, and comes after them
	f.shutdown(true)
	next(t, told, true)
	f.released(lock)
	f.shutdown(false)
	next(t, told, false)
	if len(told) != 0 {
		t.Error("somebody else was believed")
	}
}

// TestNoBus: it is told once, and the watcher ends when it should.
func TestNoBus(t *testing.T) {
	told, log := watch(t, "unix:path="+filepath.Join(t.TempDir(), "none"), nil)
	log.wait(t, "logind is not heard")
	time.Sleep(100 * time.Millisecond) // some more attempts
	if n := log.count("logind is not heard"); n != 1 || len(told) != 0 {
		t.Errorf("told %d times; %d words", n, len(told))
	}
}

// TestNoLogind: there is a bus and nobody on it.
func TestNoLogind(t *testing.T) {
	b := newBus(t)
	told, log := watch(t, b.address, nil)
	log.wait(t, "logind is not heard")
	f := newLogind(b, false, false)
	lock := f.lock()
	f.shutdown(true)
	next(t, told, true)
	f.released(lock)
}

// TestBusThatSaysNothing (P8): a socket that takes connections and never answers.
func TestBusThatSaysNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bus")
	listener := listenSilently(t, path)
	_, log := watch(t, "unix:path="+path, nil)
	<-listener
	log.wait(t, "logind is not heard")
}

// listenSilently accepts and says nothing; the channel is closed at the first
// connection.
func listenSilently(t *testing.T, path string) <-chan struct{} {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	first, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if conns = append(conns, conn); len(conns) == 1 {
				close(first)
			}
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		for _, c := range conns {
			_ = c.Close()
		}
	})
	return first
}

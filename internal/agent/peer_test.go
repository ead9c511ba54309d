package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/world"
)

// TestAnswerOf guards P5: what went wrong on the asker's side is not the silence
// of who was asked, and an answer that refuses is an answer.
func TestAnswerOf(t *testing.T) {
	dial := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	tests := []struct {
		name string
		err  error
		want haven.Tri
	}{
		{"no answer in time", context.DeadlineExceeded, haven.No},
		{"no answer in time, by the kernel", dial(syscall.ETIMEDOUT), haven.No},
		{"nobody has that address", dial(syscall.EHOSTUNREACH), haven.No},
		{"refused", dial(syscall.ECONNREFUSED), haven.No},
		{"the asker gave up", context.Canceled, haven.Unknown},
		{"no network here", dial(syscall.ENETUNREACH), haven.Unknown},
		{"no files left here", dial(syscall.EMFILE), haven.Unknown},
		{"the asker's own firewall", dial(syscall.EPERM), haven.Unknown},
		{"the asker's own security module", dial(syscall.EACCES), haven.Unknown},
		{"no buffers left here", dial(syscall.ENOBUFS), haven.Unknown},
		{"no memory left here", dial(syscall.ENOMEM), haven.Unknown},
		{"somebody answers without TLS", tls.RecordHeaderError{Msg: "x"}, haven.Unknown},
		{"an error by HTTP", &client.Error{Problem: client.Problem{Title: "x", Status: 503}}, haven.Yes},
		{"another's certificate", &tls.CertificateVerificationError{Err: errors.New("x")}, haven.Unknown},
		{"a TLS alert", &net.OpError{Op: "remote error", Err: errors.New("tls: expired certificate")}, haven.Yes},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := answerOf(fmt.Errorf("ask: %w", tt.err)); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// TestReportThatIsNoNews: a report that only says that a host still lives does
// not make the master think at once, however many orders it ever had.
func TestReportThatIsNoNews(t *testing.T) {
	ev := newEvidence()
	report := func(change func(*client.Report)) bool {
		r := client.Report{
			Identity: client.Identity{Host: "kvm-02", Boot: "b"}, InventorySHA: "x",
			Orders: []haven.OrderReport{{Order: "o", Status: haven.OrderStarted}},
		}
		change(&r)
		_, news := ev.report(&r, time.Now())
		return news
	}
	same := func(*client.Report) {}
	steps := []struct {
		name   string
		change func(*client.Report)
		want   bool
	}{
		{"the first", func(r *client.Report) { r.Inventory = new(haven.Inventory) }, true},
		{"the same", same, false},
		{"an order that changed", func(r *client.Report) { r.Orders[0].Status = haven.OrderUnknown }, true},
		{"and back", same, true},
		{"the same again", same, false},
		{"leaving", func(r *client.Report) { r.Leaving = haven.LeaveStopped }, true},
		{"it refuses", func(r *client.Report) { r.Refuses = "x" }, true},
		{"another inventory that is not at hand", func(r *client.Report) { r.InventorySHA = "y" }, true},
		{"another boot", func(r *client.Report) { r.Boot = "c" }, true},
	}
	for _, s := range steps {
		if got := report(s.change); got != s.want {
			t.Errorf("%s: news %t, want %t", s.name, got, s.want)
		}
	}
}

// TestRejectedHostDoesNotFillTheLog: a host that the ledger does not take, such as
// one whose boot is proved dead, reports twice a second for as long as it lives.
func TestRejectedHostDoesNotFillTheLog(t *testing.T) {
	entries := 0
	var mu sync.Mutex
	d := partsWith(t, 70, 1)
	d.Applied = func(_ ledger.Position, cmds []ledger.Command, _ []error) {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range cmds {
			if r, ok := c.(ledger.RegisterHost); ok && r.State == "" {
				entries++
			}
		}
	}
	a := run(t, d)
	awaitReign(t, a)
	for range 20 {
		ack, err := a.TakeReport(t.Context(), "kvm-01", &client.Report{Identity: client.Identity{Host: "kvm-01", Boot: "x"}})
		if err != nil {
			t.Fatal(err)
		}
		if ack.Rejected == "" || ack.Registered {
			t.Fatalf("a host without an agent state was taken: %+v", ack)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if entries != 1 {
		t.Errorf("20 reports of a rejected host made %d entries in the log", entries)
	}
}

// hungKeeper is a VM manager that hangs when it is to change a flag.
type hungKeeper struct {
	Hypervisor
	asked chan struct{}
	once  *sync.Once
}

func (h hungKeeper) SetAutostart(ctx context.Context, _ haven.VMID, _ bool) error {
	h.once.Do(func() { close(h.asked) })
	<-ctx.Done()
	return ctx.Err()
}

// TestReportsGoOnWhileTheVMManagerHangs guards P8: a host whose VM manager hangs
// still reports, and is not suspected.
func TestReportsGoOnWhileTheVMManagerHangs(t *testing.T) {
	d := partsWith(t, 71, 1)
	w := world.New(func(string) {})
	machine := w.Add("kvm-01", 4096)
	machine.PowerOn()
	_, d.Boot = machine.On()
	id, err := machine.UserStart(world.XML("00000000-0000-4000-8000-000000000001", "vm1", 512))
	if err != nil {
		t.Fatal(err)
	}
	machine.Autostart(id, true)
	h := hungKeeper{machine.Hypervisor(), make(chan struct{}), new(sync.Once)}
	d.Hypervisor = h
	a := run(t, d)
	<-h.asked
	guard := time.After(keepTimeout - time.Second)
	seen := map[*heard]bool{}
	for len(seen) < 4 {
		rep, _ := a.ev.view("kvm-01")
		seen[rep] = true
		select {
		case <-guard:
			t.Fatalf("%d reports while the VM manager hangs", len(seen))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// TestLocalSocket: the socket is root's own; one that was left behind is
// replaced, and nothing else is ever removed.
func TestLocalSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "havend.sock")
	l, err := listenLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("the socket has mode %o", got)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as after a kill
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := listenLocal(path)
	if err != nil {
		t.Fatalf("with a socket left behind: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenLocal(path); err == nil {
		t.Error("a file was replaced by the socket")
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "precious" {
		t.Errorf("the file is now %q, %v", data, err)
	}
}

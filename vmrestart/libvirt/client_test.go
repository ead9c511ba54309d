package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	lv "github.com/digitalocean/go-libvirt"

	"github.com/haven-ha/haven"
)

// newClient makes a client of the fake with a process table of its own.
func newClient(t *testing.T, f *fakeLibvirtd, change ...func(*Options)) *Client {
	t.Helper()
	o := Options{
		Socket: f.socket, Host: "h1", Boot: "b1",
		ProcRoot: fakeProc(t), SaveDir: t.TempDir(),
	}
	for _, c := range change {
		c(&o)
	}
	c := New(o)
	t.Cleanup(c.Close)
	return c
}

// fakeProc makes a process table with an init, and a VM process for each id.
func fakeProc(t *testing.T, ids ...haven.VMID) string {
	t.Helper()
	root := t.TempDir()
	addProcess(t, root, 1, "/sbin/init\x00")
	for i, id := range ids {
		addProcess(t, root, 100+i, "/usr/bin/qemu-system-x86_64\x00-name\x00x\x00-uuid\x00"+string(id)+"\x00-m\x0016\x00")
	}
	return root
}

func addProcess(t *testing.T, root string, pid int, cmdline string) {
	t.Helper()
	dir := filepath.Join(root, fmt.Sprint(pid))
	if err := os.MkdirAll(filepath.Join(dir, "task", fmt.Sprint(pid)), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, filepath.Join(dir, "task", fmt.Sprint(pid))} {
		if err := os.WriteFile(filepath.Join(d, "cmdline"), []byte(cmdline), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// short gives a context that ends soon: for calls that are meant not to end.
func short(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestInventory(t *testing.T) {
	withJob := func(d *fakeDomain, op lv.DomainJobOperation) *fakeDomain { d.job = int32(op); return d }
	in := func(n int, s lv.DomainState, reason int32, active bool) *fakeDomain {
		d := shutOff(n)
		d.state, d.reason, d.active = int32(s), reason, active
		return d
	}
	transient := running(3)
	transient.persistent = false
	flagged := shutOff(4)
	flagged.autostart, flagged.saved = true, true
	tests := []struct {
		name   string
		domain *fakeDomain
		state  haven.VMState
		reason string
		also   func(haven.VMInfo) bool
	}{
		{"running", running(1), haven.VMRunning, "booted", func(v haven.VMInfo) bool { return v.Persistent && !v.Autostart && !v.ManagedSave }},
		{"shut off by destroy", shutOff(2), haven.VMShutOff, "destroyed", nil},
		{"transient", transient, haven.VMRunning, "booted", func(v haven.VMInfo) bool { return !v.Persistent }},
		{"autostart and saved", flagged, haven.VMShutOff, "destroyed", func(v haven.VMInfo) bool { return v.Autostart && v.ManagedSave }},
		{"paused on I/O error", in(5, lv.DomainPaused, int32(lv.DomainPausedIoerror), true), haven.VMPaused, "io-error", nil},
		{"incoming", withJob(in(6, lv.DomainPaused, int32(lv.DomainPausedMigration), true), lv.DomainJobOperationStrMigrationIn), haven.VMIncoming, "migration", nil},
		{"incoming without a job", in(7, lv.DomainPaused, int32(lv.DomainPausedMigration), true), haven.VMIncoming, "migration", nil},
		{"leaving", withJob(running(8), lv.DomainJobOperationStrMigrationOut), haven.VMMigrating, "booted", nil},
		{"leaving, already paused", withJob(in(9, lv.DomainPaused, int32(lv.DomainPausedMigration), true), lv.DomainJobOperationStrMigrationOut), haven.VMMigrating, "migration", nil},
		{"shutting down", in(10, lv.DomainShutdown, 1, true), haven.VMStopping, "user", nil},
		{"shut off by itself", in(11, lv.DomainShutoff, int32(lv.DomainShutoffShutdown), false), haven.VMShutOff, "shutdown", nil},
		{"migrated away", in(12, lv.DomainShutoff, int32(lv.DomainShutoffMigrated), false), haven.VMShutOff, "migrated", nil},
		{"killed", in(13, lv.DomainShutoff, int32(lv.DomainShutoffCrashed), false), haven.VMShutOff, "crashed", nil},
		{"crashed", in(14, lv.DomainCrashed, 1, false), haven.VMCrashed, "panicked", nil},
		{"crashed and preserved", in(15, lv.DomainCrashed, 1, true), haven.VMPaused, "crashed", nil},
		{"a state of the future", in(16, 42, 9, true), haven.VMUnknown, "state 42", nil},
		{"a reason of the future", in(17, lv.DomainRunning, 99, true), haven.VMRunning, "reason 99", nil},
	}
	for _, noStats := range []bool{false, true} {
		f := newFake(t)
		f.noStats = noStats
		for _, tt := range tests {
			f.domains = append(f.domains, tt.domain)
		}
		inv, err := newClient(t, f).Inventory(t.Context())
		if err != nil || !inv.Complete || inv.Host != "h1" || inv.Boot != "b1" || len(inv.VMs) != len(tests) {
			t.Fatalf("Inventory() = %+v, %v", inv, err)
		}
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s (one by one: %v)", tt.name, noStats), func(t *testing.T) {
				vm, ok := inv.Find(haven.VMID(vmID(tt.domain.uuid)))
				if !ok || vm.State != tt.state || vm.Reason != tt.reason {
					t.Errorf("got %+v, want %s (%s)", vm, tt.state, tt.reason)
				}
				if vm.MemoryMiB != 65 || vm.VCPUs != 2 || vm.DefinitionSHA != DefinitionSHA([]byte(tt.domain.xml)) {
					t.Errorf("definition was not read: %+v", vm)
				}
				if tt.also != nil && !tt.also(vm) {
					t.Errorf("flags are wrong: %+v", vm)
				}
			})
		}
	}
}

// P5: what was not read whole never says that a VM is absent.
func TestInventoryIncomplete(t *testing.T) {
	t.Run("libvirtd hangs", func(t *testing.T) {
		f := newFake(t, shutOff(1))
		_, release := f.hang(procList)
		c := newClient(t, f, func(o *Options) { o.ProcRoot = fakeProc(t, vmNumber(9)) })
		inv, err := c.Inventory(short(t))
		if err != nil || inv.Complete || inv.Why == "" || inv.Has(vmNumber(1)) != haven.Unknown || inv.Has(vmNumber(9)) != haven.Yes {
			t.Errorf("Inventory() = %+v, %v", inv, err)
		}
		release()
		inv, err = c.Inventory(t.Context())
		if err != nil || !inv.Complete || inv.Has(vmNumber(1)) != haven.No {
			t.Errorf("after the hang Inventory() = %+v, %v", inv, err)
		}
	})
	t.Run("no libvirtd", func(t *testing.T) {
		f := newFake(t)
		f.stop()
		inv, err := newClient(t, f).Inventory(t.Context())
		if err != nil || inv.Complete || inv.Why == "" {
			t.Errorf("Inventory() = %+v, %v", inv, err)
		}
	})
	t.Run("no process table", func(t *testing.T) {
		f := newFake(t, shutOff(1))
		inv, err := newClient(t, f, func(o *Options) { o.ProcRoot = t.TempDir() }).Inventory(t.Context())
		if err != nil || inv.Complete || inv.Has(vmNumber(1)) != haven.Unknown {
			t.Errorf("Inventory() = %+v, %v", inv, err)
		}
	})
	t.Run("neither", func(t *testing.T) {
		f := newFake(t)
		f.stop()
		if _, err := newClient(t, f, func(o *Options) { o.ProcRoot = t.TempDir() }).Inventory(t.Context()); err == nil {
			t.Error("Inventory() gave no error")
		}
	})
}

// P8: a domain whose job hangs is unknown, and hides no other one; it is not
// asked again before it has answered.
func TestHangingJob(t *testing.T) {
	d := running(1)
	f := newFake(t, d, shutOff(2))
	_, release := f.hang(procJob)
	c := newClient(t, f)
	for range 3 {
		inv, err := c.Inventory(t.Context())
		vm, _ := inv.Find(vmNumber(1))
		if err != nil || !inv.Complete || len(inv.VMs) != 2 || vm.State != haven.VMUnknown || inv.Has(vmNumber(1)) != haven.Unknown {
			t.Fatalf("Inventory() = %+v, %v", inv, err)
		}
	}
	if n := f.count(procJob); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
	release()
	c.jobs.flying.Wait()
	inv, err := c.Inventory(t.Context())
	if vm, _ := inv.Find(vmNumber(1)); err != nil || vm.State != haven.VMRunning {
		t.Errorf("after the hang: %+v, %v", vm, err)
	}
}

// A definition is read again when an event came, and not at every poll.
func TestDefinitionsAreReadOnHints(t *testing.T) {
	d := shutOff(1)
	f := newFake(t, d)
	c := newClient(t, f, func(o *Options) { o.DefinitionAge = time.Hour })
	var run sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	run.Go(func() { c.Run(ctx) })
	defer run.Wait()
	defer cancel()
	<-c.Hints() // The connection for events is up.
	for range 3 {
		if _, err := c.Inventory(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.count(procXML); n != 1 {
		t.Errorf("%d reads of the definition in 3 polls, want 1", n)
	}
	f.mu.Lock()
	d.xml = strings.Replace(d.xml, "<vcpu>2", "<vcpu>3", 1)
	f.mu.Unlock()
	f.event(d)
	<-c.Hints()
	inv, err := c.Inventory(t.Context())
	if vm, _ := inv.Find(vmNumber(1)); err != nil || vm.VCPUs != 3 {
		t.Errorf("after the event: %+v, %v", vm, err)
	}
}

// Events are coalesced and never block, and their connection is made anew.
func TestHints(t *testing.T) {
	d := running(1)
	f := newFake(t, d)
	c := newClient(t, f)
	var run sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	run.Go(func() { c.Run(ctx) })
	<-c.Hints()
	for range 1000 {
		f.event(d)
	}
	<-c.Hints()
	for drained := false; !drained; {
		select {
		case <-c.Hints():
		case <-time.After(50 * time.Millisecond):
			drained = true
		}
	}
	f.cut()
	<-c.Hints() // Reconnected: something may have been missed.
	cancel()
	run.Wait()
}

// P8: a libvirtd that answers nothing costs one place per pool, not one per
// question, and is heard again as soon as it is back.
func TestHungLibvirtdCostsLittle(t *testing.T) {
	f := newFake(t, running(1))
	c := newClient(t, f)
	if _, err := c.Running(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	_, releaseList := f.hang(procList)
	_, releaseLookup := f.hang(procLookup)
	for range 25 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		if _, err := c.Running(ctx); !errors.Is(err, haven.ErrUnavailable) {
			t.Errorf("Running() = %v, want unavailable", err)
		}
		if gone, err := c.Gone(ctx, vmNumber(1)); gone != haven.Unknown || err == nil {
			t.Errorf("Gone() = %v, %v, want unknown", gone, err)
		}
		cancel()
	}
	f.mu.Lock()
	opened, most := f.opened, f.most
	f.mu.Unlock()
	if opened > 2 || most > 2 {
		t.Errorf("50 questions made %d connections and %d calls at once, want at most 2 of each", opened, most)
	}
	if n := runtime.NumGoroutine(); n > before+20 {
		t.Errorf("%d goroutines, %d before", n, before)
	}
	releaseList()
	releaseLookup()
	if names, err := c.Running(t.Context()); err != nil || len(names) != 1 {
		t.Errorf("after the hang Running() = %v, %v", names, err)
	}
}

// A call that exceeds its hold limit loses its connection, and the place is
// used again.
func TestHoldLimit(t *testing.T) {
	f := newFake(t, running(1))
	_, release := f.hang(procList)
	defer release()
	c := newClient(t, f, func(o *Options) { o.ReadHold = 20 * time.Millisecond })
	for f.count(procList) < 3 {
		if _, err := c.Running(t.Context()); err == nil {
			t.Fatal("Running() succeeded")
		}
	}
}

func TestLostConnectionIsReplaced(t *testing.T) {
	f := newFake(t, running(1))
	c := newClient(t, f)
	for range 5 {
		// The first call after a cut may still find the old connection; one
		// that fails is replaced.
		if names, err := c.Running(t.Context()); err != nil || len(names) != 1 {
			t.Fatalf("Running() = %v, %v", names, err)
		}
		k := <-c.inventory.free
		f.cut()
		<-k.s.g.dead
		c.inventory.free <- k
	}
}

// A peer that breaks the framing must not crash the process or hang a call.
func TestBrokenFraming(t *testing.T) {
	for _, size := range []uint32{0, 4, headerLen - 1, maxPacket + 1, 1<<32 - 1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			f := newFake(t, running(1))
			f.raw[procList] = put32(nil, size)
			f.raw[procList] = append(f.raw[procList], make([]byte, 64)...)
			if _, err := newClient(t, f).Running(t.Context()); !errors.Is(err, haven.ErrUnavailable) {
				t.Errorf("Running() = %v, want unavailable", err)
			}
		})
	}
}

// P1: gone is both libvirt's word and an empty place in the process table.
func TestGone(t *testing.T) {
	tests := []struct {
		name    string
		domain  *fakeDomain
		process bool
		blind   bool // no process table
		hang    bool
		want    haven.Tri
	}{
		{name: "shut off", domain: shutOff(1), want: haven.Yes},
		{name: "not known", want: haven.Yes},
		{name: "running", domain: running(1), process: true, want: haven.No},
		{name: "shut off, process remains", domain: shutOff(1), process: true, want: haven.No},
		{name: "not known, process remains", process: true, want: haven.No},
		{name: "running, no process table", domain: running(1), blind: true, want: haven.No},
		{name: "shut off, no process table", domain: shutOff(1), blind: true, want: haven.Unknown},
		{name: "libvirtd hangs", domain: shutOff(1), hang: true, want: haven.Unknown},
		{name: "libvirtd hangs, process remains", domain: shutOff(1), hang: true, process: true, want: haven.No},
		{name: "a state of the future", domain: &fakeDomain{uuid: uuidOf(vmNumber(1)), state: 77}, want: haven.Unknown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			if tt.domain != nil {
				f.domains = []*fakeDomain{tt.domain}
			}
			root := fakeProc(t)
			if tt.process {
				root = fakeProc(t, vmNumber(1))
			}
			if tt.blind {
				root = t.TempDir()
			}
			ctx := t.Context()
			if tt.hang {
				f.hang(procLookup)
				ctx = short(t)
			}
			got, err := newClient(t, f, func(o *Options) { o.ProcRoot = root }).Gone(ctx, vmNumber(1))
			if got != tt.want || (err != nil) != (tt.want == haven.Unknown) {
				t.Errorf("Gone() = %v, %v, want %v", got, err, tt.want)
			}
		})
	}
}

func TestStart(t *testing.T) {
	other := shutOff(1)
	other.xml = strings.Replace(other.xml, "<vcpu>2", "<vcpu>1", 1)
	saved := shutOff(1)
	saved.saved = true
	tests := []struct {
		name    string
		domain  *fakeDomain
		xml     string
		resume  bool
		code    lv.ErrorNumber
		message string
		want    error
		defines int
	}{
		{name: "unknown here", want: nil, defines: 1},
		{name: "known here", domain: shutOff(1), want: nil},
		{name: "another definition", domain: other, want: nil, defines: 1},
		{name: "running", domain: running(1), want: ErrAlreadyRunning},
		{name: "saved", domain: saved, want: ErrSavedImage},
		{name: "saved, may resume", domain: saved, resume: true},
		{name: "definition of another VM", xml: testXML(2), want: ErrConflict},
		{name: "no definition", xml: "<domain", want: ErrUnsuitable},
		{name: "locked", domain: shutOff(1), code: lv.ErrInternalError, message: `process exited while connecting to monitor: Failed to get "write" lock`, want: ErrLocked},
		{name: "leased", domain: shutOff(1), code: lv.ErrResourceBusy, message: "resource busy: Lockspace resource 'x' is locked", want: ErrLocked},
		{name: "P1: another start holds it", domain: shutOff(1), code: lv.ErrOperationTimeout, message: "Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatchDomainCreateWithFlags)", want: ErrOutcomeUnknown},
		{name: "no network", domain: shutOff(1), code: lv.ErrNoNetwork, message: "Network not found", want: ErrNoNetwork},
		{name: "idle network", domain: shutOff(1), code: lv.ErrOperationInvalid, message: "Requested operation is not valid: network 'default' is not active", want: ErrNoNetwork},
		{name: "no bridge", domain: shutOff(1), code: lv.ErrSystemError, message: "Cannot get interface MTU on 'br7': No such device", want: ErrNoNetwork},
		{name: "no disk", domain: shutOff(1), code: lv.ErrSystemError, message: "Cannot access storage file '/srv/x.img': No such file or directory", want: ErrNoDisk},
		{name: "no memory", domain: shutOff(1), code: lv.ErrInternalError, message: "cannot set up guest memory 'pc.ram': Cannot allocate memory", want: ErrNoMemory},
		{name: "other CPU", domain: shutOff(1), code: lv.ErrCPUIncompatible, message: "the CPU is incompatible with host CPU", want: ErrUnsuitable},
		{name: "anything else", domain: shutOff(1), code: lv.ErrInternalError, message: "etwas anderes", want: ErrFailed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			if tt.domain != nil {
				d := *tt.domain
				f.domains = []*fakeDomain{&d}
			}
			if tt.code != 0 {
				f.fail(procCreate, tt.code, tt.message)
			}
			xml := tt.xml
			if xml == "" {
				xml = testXML(1)
			}
			err := newClient(t, f).Start(t.Context(), vmNumber(1), []byte(xml), StartOptions{Resume: tt.resume})
			if !errors.Is(err, tt.want) || (tt.want == nil && err != nil) {
				t.Fatalf("Start() = %v, want %v", err, tt.want)
			}
			if errors.Is(err, ErrOutcomeUnknown) != errors.Is(tt.want, ErrOutcomeUnknown) {
				t.Errorf("a definite failure is called unknown, or the reverse: %v", err)
			}
			if n := f.count(procDefine); n != tt.defines {
				t.Errorf("%d definitions were stored, want %d", n, tt.defines)
			}
			if d := f.find(uuidOf(vmNumber(1))); tt.want == nil && (!d.active || d.xml != testXML(1)) {
				t.Errorf("it does not run as defined: %+v", d)
			}
		})
	}
}

// P1, P5: a start whose answer was not heard is unknown, stays claimed until it
// has ended, and may well have happened.
func TestStartTimeoutIsUnknown(t *testing.T) {
	f := newFake(t)
	_, release := f.hang(procCreate)
	c := newClient(t, f)
	err := c.Start(short(t), vmNumber(1), []byte(testXML(1)), StartOptions{})
	var e interface{ OutcomeUnknown() bool }
	if !errors.As(err, &e) || !e.OutcomeUnknown() {
		t.Fatalf("Start() = %v, want unknown", err)
	}
	if err := c.Start(t.Context(), vmNumber(1), []byte(testXML(1)), StartOptions{}); !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("second Start() = %v, want unknown", err)
	}
	if gone, err := c.Gone(t.Context(), vmNumber(1)); gone != haven.Unknown || err == nil {
		t.Errorf("Gone() = %v, %v while the start is under way", gone, err)
	}
	if n := f.count(procCreate); n != 1 {
		t.Fatalf("%d creates were sent, want 1", n)
	}
	release() // The storage is back: libvirtd goes on with it.
	c.control.flying.Wait()
	if gone, err := c.Gone(t.Context(), vmNumber(1)); gone != haven.No || err != nil {
		t.Errorf("Gone() = %v, %v after the late start", gone, err)
	}
}

func TestStartLostConnectionIsUnknown(t *testing.T) {
	f := newFake(t)
	entered, release := f.hang(procCreate)
	c := newClient(t, f)
	done := make(chan error)
	go func() { done <- c.Start(t.Context(), vmNumber(1), []byte(testXML(1)), StartOptions{}) }()
	<-entered
	f.cut()
	if err := <-done; !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("Start() = %v, want unknown", err)
	}
	release()
}

// An error of a daemon in between is no word about the VM.
func TestStartErrorThatTheStateContradicts(t *testing.T) {
	f := newFake(t, shutOff(1))
	f.mu.Lock()
	f.hooks[procCreate] = func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.domains[0].active, f.domains[0].state = true, int32(lv.DomainRunning)
	}
	f.mu.Unlock()
	f.fail(procCreate, lv.ErrInternalError, "client socket is closed")
	err := newClient(t, f).Start(t.Context(), vmNumber(1), []byte(testXML(1)), StartOptions{})
	if !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("Start() = %v, want unknown", err)
	}
}

// A caller that gave up before the request was sent is told so, and nothing is
// sent afterwards.
func TestStartGivenUpBeforeItWasSent(t *testing.T) {
	f := newFake(t, shutOff(1))
	_, release := f.hang(procSaved)
	c := newClient(t, f)
	if err := c.Start(short(t), vmNumber(1), []byte(testXML(1)), StartOptions{}); !errors.Is(err, haven.ErrUnavailable) || errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("Start() = %v, want unavailable and definite", err)
	}
	release()
	c.control.flying.Wait()
	if n := f.count(procCreate); n != 0 {
		t.Errorf("%d creates were sent, want none", n)
	}
	if err := c.Start(t.Context(), vmNumber(1), []byte(testXML(1)), StartOptions{}); err != nil {
		t.Errorf("the next Start() = %v", err)
	}
}

// The control pool is bounded, and a start that finds no place was not begun.
func TestStartsAreBounded(t *testing.T) {
	f := newFake(t)
	entered, release := f.hang(procCreate)
	defer release()
	c := newClient(t, f, func(o *Options) { o.Starts = 2 })
	for n := 1; n <= 2; n++ {
		go func() { _ = c.Start(t.Context(), vmNumber(n), []byte(testXML(n)), StartOptions{}) }()
		<-entered
	}
	if err := c.Start(short(t), vmNumber(3), []byte(testXML(3)), StartOptions{}); !errors.Is(err, haven.ErrUnavailable) {
		t.Errorf("third Start() = %v, want unavailable", err)
	}
	if inv, err := c.Inventory(t.Context()); err != nil || !inv.Complete {
		t.Errorf("Inventory() = %+v, %v while starts hang", inv, err)
	}
}

func TestAutostartDefineDestroy(t *testing.T) {
	f := newFake(t, shutOff(1))
	c := newClient(t, f)
	for _, on := range []bool{true, false} {
		if err := c.SetAutostart(t.Context(), vmNumber(1), on); err != nil || f.domains[0].autostart != on {
			t.Errorf("SetAutostart(%v) = %v", on, err)
		}
	}
	if err := c.SetAutostart(t.Context(), vmNumber(2), true); !errors.Is(err, haven.ErrNotFound) {
		t.Errorf("SetAutostart of an unknown VM = %v", err)
	}
	if err := c.Define(t.Context(), []byte(testXML(2))); err != nil {
		t.Errorf("Define() = %v", err)
	}
	if xml, err := c.Definition(t.Context(), vmNumber(2)); err != nil || string(xml) != testXML(2) {
		t.Errorf("Definition() = %q, %v", xml, err)
	}
	if _, err := c.Definition(t.Context(), vmNumber(3)); !errors.Is(err, haven.ErrNotFound) {
		t.Errorf("Definition of an unknown VM = %v", err)
	}
	if err := c.Start(t.Context(), vmNumber(2), []byte(testXML(2)), StartOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Destroy(t.Context(), vmNumber(2)); err != nil {
		t.Errorf("Destroy() = %v", err)
	}
	if gone, err := c.Gone(t.Context(), vmNumber(2)); gone != haven.Yes || err != nil {
		t.Errorf("Gone() = %v, %v", gone, err)
	}
}

func TestSetAside(t *testing.T) {
	f := newFake(t, shutOff(1))
	f.domains[0].autostart = true
	dir := filepath.Join(t.TempDir(), "aside")
	c := newClient(t, f)
	image := filepath.Join(c.opts.SaveDir, "vm1.save")
	if err := os.WriteFile(image, []byte("memory"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.SetAside(t.Context(), vmNumber(1), dir); err != nil {
		t.Fatalf("SetAside() = %v", err)
	}
	if len(f.domains) != 0 {
		t.Error("the domain is still defined")
	}
	if got := lv.DomainUndefineFlagsValues(f.flags[procUndefine]); got != lv.DomainUndefineKeepNvram {
		t.Errorf("undefined with flags %d, want only to keep the NVRAM", got)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(files) != 2 {
		t.Fatalf("kept %v, want a definition and an image", files)
	}
	for _, p := range files {
		want := "memory"
		if strings.HasSuffix(p, ".xml") {
			want = testXML(1)
		}
		if b, err := os.ReadFile(p); err != nil || string(b) != want {
			t.Errorf("%s holds %q, %v", p, b, err)
		}
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s can be read by others: %v", p, info.Mode())
		}
	}
	if _, err := os.Stat(image); err == nil {
		t.Error("the image is still where libvirt finds it")
	}
	if err := c.SetAside(t.Context(), vmNumber(1), dir); err != nil {
		t.Errorf("the second SetAside() = %v", err)
	}
}

func TestSetAsideLeavesInPlace(t *testing.T) {
	t.Run("running", func(t *testing.T) {
		f := newFake(t, running(1))
		if err := newClient(t, f).SetAside(t.Context(), vmNumber(1), t.TempDir()); !errors.Is(err, ErrAlreadyRunning) || len(f.domains) != 1 {
			t.Errorf("SetAside() = %v", err)
		}
	})
	t.Run("snapshots", func(t *testing.T) {
		f := newFake(t, shutOff(1))
		f.domains[0].autostart = true
		f.fail(procUndefine, lv.ErrOperationInvalid, "cannot delete inactive domain with 1 snapshots")
		err := newClient(t, f).SetAside(t.Context(), vmNumber(1), t.TempDir())
		if !errors.Is(err, ErrKept) || f.domains[0].autostart {
			t.Errorf("SetAside() = %v, autostart %v", err, f.domains[0].autostart)
		}
	})
	t.Run("nowhere to write", func(t *testing.T) {
		f := newFake(t, shutOff(1))
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := newClient(t, f).SetAside(t.Context(), vmNumber(1), file); !errors.Is(err, ErrKept) || len(f.domains) != 1 {
			t.Errorf("SetAside() = %v", err)
		}
	})
	t.Run("an image of the same name is there", func(t *testing.T) {
		save, dir := t.TempDir(), t.TempDir()
		for n, want := range []string{"first", "second", "third"} {
			if err := os.WriteFile(filepath.Join(save, "vm1.save"), []byte(want), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := keepSavedImage(save, dir, "vm1", vmNumber(1)); err != nil {
				t.Fatal(err)
			}
			if files, _ := filepath.Glob(filepath.Join(dir, "*.save*")); len(files) != n+1 {
				t.Errorf("kept %v after %d images", files, n+1)
			}
		}
	})
}

// Secrets of a definition reach neither logs nor errors.
func TestNoSecretInLogs(t *testing.T) {
	var log bytes.Buffer
	f := newFake(t)
	_, release := f.hang(procCreate)
	c := newClient(t, f, func(o *Options) {
		o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	xml := strings.Replace(testXML(1), "</domain>", "<devices><graphics type='vnc' passwd='s3cret'/></devices></domain>", 1)
	err := c.Start(short(t), vmNumber(1), []byte(xml), StartOptions{})
	release()
	c.control.flying.Wait()
	if s := log.String() + err.Error(); strings.Contains(s, "s3cret") || !strings.Contains(s, "late answer") {
		t.Errorf("logged: %s", s)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	before := runtime.NumGoroutine()
	f := newFake(t, running(1))
	f.hang(procCreate)
	c := newClient(t, f)
	_, _ = c.Inventory(t.Context())
	_ = c.Start(short(t), vmNumber(2), []byte(testXML(2)), StartOptions{})
	c.Close()
	c.Close()
	if _, err := c.Running(t.Context()); !errors.Is(err, haven.ErrUnavailable) {
		t.Errorf("Running() on a closed client = %v", err)
	}
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	if n := strings.Count(string(buf), "libvirt.(*pool)"); n != 0 {
		t.Errorf("%d frames of the pool remain (%d goroutines before):\n%s", n, before, buf)
	}
}

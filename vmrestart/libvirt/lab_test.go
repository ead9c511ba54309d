//go:build lab

package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	lv "github.com/digitalocean/go-libvirt"

	"github.com/haven-ha/haven"
)

// daemon is a real libvirtd with configuration, state and sockets of its own.
type daemon struct {
	t      *testing.T
	dir    string
	socket string
	cmd    *exec.Cmd
}

// startDaemon starts a session libvirtd, which needs no root: everything of it
// is below one directory.
func startDaemon(t *testing.T) *daemon {
	t.Helper()
	path, err := exec.LookPath("libvirtd")
	if err != nil {
		t.Skip("libvirtd is not installed")
	}
	dir, err := os.MkdirTemp("", "hv")
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, dir: dir, socket: filepath.Join(dir, "run/libvirt/libvirt-sock")}
	for _, sub := range []string{"run", "config", "cache", "data", "config/libvirt"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	host := fmt.Sprintf("%08x-1111-4222-8333-%012x", time.Now().UnixNano()&0xffffffff, os.Getpid())
	d.write("config/libvirt/libvirtd.conf", "auth_unix_rw = \"none\"\nunix_sock_rw_perms = \"0700\"\nkeepalive_interval = -1\nhost_uuid = \""+host+"\"\n")
	d.write("config/libvirt/qemu.conf", strings.Join([]string{
		`security_driver = "none"`, `seccomp_sandbox = 0`, `stdio_handler = "file"`, `lock_manager = "nop"`, `max_core = 0`,
	}, "\n")+"\n")
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d.run(path)
	t.Cleanup(d.kill)
	return d
}

func (d *daemon) write(name, text string) {
	if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) run(path string) {
	d.cmd = exec.Command(path, "--config", filepath.Join(d.dir, "config/libvirt/libvirtd.conf"))
	log, err := os.OpenFile(filepath.Join(d.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=" + d.dir,
		"XDG_RUNTIME_DIR=" + filepath.Join(d.dir, "run"), "XDG_CONFIG_HOME=" + filepath.Join(d.dir, "config"),
		"XDG_CACHE_HOME=" + filepath.Join(d.dir, "cache"), "XDG_DATA_HOME=" + filepath.Join(d.dir, "data"),
	}
	if os.Geteuid() == 0 {
		// As root it would be the machine's one system daemon.
		d.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		if err := filepath.WalkDir(d.dir, func(p string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(p, nobody, nobody))
		}); err != nil {
			d.t.Fatal(err)
		}
	}
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
}

const nobody = 65534

func (d *daemon) kill() {
	_ = d.cmd.Process.Signal(syscall.SIGCONT)
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	_ = d.cmd.Wait()
}

func (d *daemon) signal(s syscall.Signal) {
	if err := d.cmd.Process.Signal(s); err != nil {
		d.t.Fatal(err)
	}
}

// client makes a client that has had an answer.
func (d *daemon) client(uri string, change ...func(*Options)) *Client {
	d.t.Helper()
	o := Options{Socket: d.socket, URI: uri, Host: "h1", Boot: "b1", SaveDir: filepath.Join(d.dir, "config/libvirt/qemu/save")}
	for _, c := range change {
		c(&o)
	}
	c := New(o)
	d.t.Cleanup(c.Close)
	d.until(c, 20*time.Second)
	return c
}

func (d *daemon) until(c *Client, limit time.Duration) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), limit)
	defer cancel()
	for {
		_, err := c.Running(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(d.dir, "log"))
			d.t.Fatalf("libvirtd does not answer: %v\n%s", err, log)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// guest makes a disk with a boot sector that halts, and a definition of a VM
// that boots it without any help of the CPU.
func (d *daemon) guest(n int) (haven.VMID, []byte) {
	d.t.Helper()
	path := filepath.Join(d.dir, fmt.Sprintf("vm%d.img", n))
	sector := make([]byte, 1<<20)
	copy(sector, []byte{0xfb, 0xf4, 0xeb, 0xfd}) // sti; hlt; jmp to the hlt
	sector[510], sector[511] = 0x55, 0xaa
	if err := os.WriteFile(path, sector, 0o600); err != nil {
		d.t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, nobody, nobody); err != nil {
			d.t.Fatal(err)
		}
	}
	return vmNumber(n), []byte(fmt.Sprintf(`<domain type='qemu'>
  <name>vm%d</name><uuid>%s</uuid><memory unit='MiB'>16</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os><features><acpi/></features>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
  <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%s'/><target dev='vda' bus='virtio'/></disk>
  <controller type='usb' model='none'/><memballoon model='none'/>
  <graphics type='vnc' port='-1' autoport='yes' passwd='s3cret'/></devices></domain>`, n, vmNumber(n), path))
}

func fds(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

// P8: a real libvirtd stopped for long, fifty questions with deadlines, and
// then nothing is left over.
func TestLabStoppedDaemon(t *testing.T) {
	d := startDaemon(t)
	c := d.client("test:///default")
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { c.Run(ctx) })
	<-c.Hints()
	inv, err := c.Inventory(ctx)
	if err != nil || !inv.Complete || len(inv.VMs) != 1 || inv.VMs[0].State != haven.VMRunning {
		t.Fatalf("Inventory() = %+v, %v", inv, err)
	}
	id := inv.VMs[0].ID
	if _, err := c.Gone(ctx, id); err != nil {
		t.Fatal(err)
	}
	goroutines, files := runtime.NumGoroutine(), fds(t)
	d.signal(syscall.SIGSTOP)
	for i := range 50 {
		short, cancel := context.WithTimeout(ctx, 40*time.Millisecond)
		inv, err := c.Inventory(short)
		if err == nil && inv.Complete {
			t.Fatalf("a stopped daemon answered: %+v", inv)
		}
		if gone, _ := c.Gone(short, id); gone != haven.Unknown {
			t.Fatalf("Gone() = %v of a stopped daemon", gone)
		}
		if err := c.SetAutostart(short, id, true); err == nil {
			t.Fatal("a stopped daemon did something")
		}
		cancel()
		if g, f := runtime.NumGoroutine(), fds(t); g > goroutines+30 || f > files+8 {
			t.Fatalf("after %d rounds %d goroutines (%d before), %d files (%d before)", i+1, g, goroutines, f, files)
		}
	}
	t.Logf("while stopped: %d goroutines (%d before), %d files (%d before)", runtime.NumGoroutine(), goroutines, fds(t), files)
	d.signal(syscall.SIGCONT)
	began := time.Now()
	d.until(c, 5*time.Second)
	t.Logf("answers %v after it goes on", time.Since(began))
	c.control.flying.Wait()
	c.probe.flying.Wait()
	if inv, err := c.Inventory(ctx); err != nil || !inv.Complete {
		t.Errorf("Inventory() = %+v, %v", inv, err)
	}
	cancel()
	run.Wait()
	c.Close()
	// The library's goroutines end by themselves once their connection is closed.
	for limit := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		g, f := runtime.NumGoroutine(), fds(t)
		if g <= goroutines && f <= files {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("after it all %d goroutines (%d before), %d files (%d before)", g, goroutines, f, files)
		}
	}
}

// A daemon that is restarted is found again, by calls and by events.
func TestLabRestartedDaemon(t *testing.T) {
	d := startDaemon(t)
	c := d.client("test:///default")
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	defer run.Wait()
	defer cancel()
	run.Go(func() { c.Run(ctx) })
	<-c.Hints()
	for range 3 {
		d.kill()
		d.run("libvirtd")
		d.until(c, 10*time.Second)
		select {
		case <-c.Hints():
		case <-time.After(20 * time.Second):
			t.Fatal("no hint after the restart")
		}
	}
}

// The whole life of a real VM, and what is said about it at each turn.
func TestLabRealVM(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	d := startDaemon(t)
	c := d.client("qemu:///session")
	ctx := t.Context()
	id, xml := d.guest(1)
	t.Cleanup(func() { _ = c.Destroy(context.WithoutCancel(ctx), id) })
	if gone, err := c.Gone(ctx, id); gone != haven.Yes {
		t.Fatalf("before it exists Gone() = %v, %v", gone, err)
	}
	began := time.Now()
	if err := c.Start(ctx, id, xml, StartOptions{}); err != nil {
		t.Fatalf("Start() = %v", err)
	}
	t.Logf("define and start took %v", time.Since(began))
	inv, err := c.Inventory(ctx)
	vm, _ := inv.Find(id)
	if err != nil || !inv.Complete || vm.State != haven.VMRunning || !vm.Persistent || vm.MemoryMiB != 16 || inv.Has(id) != haven.Yes || len(inv.Processes) == 0 {
		t.Fatalf("Inventory() = %+v, %v", inv, err)
	}
	if gone, err := c.Gone(ctx, id); gone != haven.No || err != nil {
		t.Errorf("while it runs Gone() = %v, %v", gone, err)
	}
	def, err := c.Definition(ctx, id)
	if err != nil || !strings.Contains(string(def), "s3cret") || DefinitionSHA(def) != vm.DefinitionSHA {
		t.Errorf("Definition() = %s, %v", def, err)
	}
	if err := c.Start(ctx, id, xml, StartOptions{}); !errors.Is(err, ErrAlreadyRunning) {
		t.Errorf("second Start() = %v", err)
	}
	if err := c.SetAside(ctx, id, t.TempDir()); !errors.Is(err, ErrAlreadyRunning) {
		t.Errorf("SetAside of a running VM = %v", err)
	}
	if err := c.Destroy(ctx, id); err != nil {
		t.Fatalf("Destroy() = %v", err)
	}
	if gone, err := c.Gone(ctx, id); gone != haven.Yes {
		t.Errorf("after its end Gone() = %v, %v", gone, err)
	}
	inv, _ = c.Inventory(ctx)
	if vm, _ := inv.Find(id); vm.State != haven.VMShutOff || vm.Reason != "destroyed" {
		t.Errorf("after its end: %+v", vm)
	}
	// A definition given back to libvirt stays the same, so that a move of the
	// VM does not look like a change of it.
	if err := c.Start(ctx, id, def, StartOptions{}); err != nil {
		t.Fatalf("Start with libvirt's own definition = %v", err)
	}
	if again, err := c.Definition(ctx, id); err != nil || string(again) != string(def) {
		t.Errorf("the definition has changed:\n%s\n%s", def, again)
	}
}

// Two daemons, one disk: QEMU's own lock refuses the second copy, and the error
// is known for what it is. A killed process is seen as such.
func TestLabLockAndKill(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	d1, d2 := startDaemon(t), startDaemon(t)
	c1, c2 := d1.client("qemu:///session"), d2.client("qemu:///session")
	ctx := t.Context()
	id, xml := d1.guest(1)
	t.Cleanup(func() { _ = c1.Destroy(context.WithoutCancel(ctx), id) })
	if err := c1.Start(ctx, id, xml, StartOptions{}); err != nil {
		t.Fatal(err)
	}
	var e *Error
	if err := c2.Start(ctx, id, xml, StartOptions{}); !errors.As(err, &e) || !e.Locked() || e.OutcomeUnknown() {
		t.Errorf("Start of a second copy = %v, want locked and definite", err)
	}
	// Both daemons share one process table: the second host says that the VM
	// is not gone although its libvirt says shut off.
	if gone, err := c2.Gone(ctx, id); gone != haven.No || err != nil {
		t.Errorf("Gone() = %v, %v beside a running process", gone, err)
	}
	missing := strings.Replace(string(xml), "vm1.img", "nothing.img", 1)
	missing = strings.Replace(missing, string(id), string(vmNumber(2)), 1)
	missing = strings.Replace(missing, "<name>vm1", "<name>vm2", 1)
	if err := c1.Start(ctx, vmNumber(2), []byte(missing), StartOptions{}); !errors.Is(err, ErrNoDisk) {
		t.Errorf("Start without a disk = %v", err)
	}
	taken := strings.Replace(string(xml), string(id), string(vmNumber(3)), 1)
	if err := c1.Start(ctx, vmNumber(3), []byte(taken), StartOptions{}); !errors.Is(err, ErrConflict) {
		t.Errorf("Start under a taken name = %v", err)
	}
	netless := strings.Replace(strings.Replace(string(xml), string(id), string(vmNumber(4)), 1), "<name>vm1", "<name>vm4", 1)
	netless = strings.Replace(netless, "<controller", "<interface type='bridge'><source bridge='nobridge0'/></interface><controller", 1)
	err := c1.Start(ctx, vmNumber(4), []byte(netless), StartOptions{})
	t.Logf("start without a bridge: %v", err)
	if err == nil || errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("Start without a bridge = %v, want a definite failure", err)
	}
	pid := qemuPIDs(t, id)[0]
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for {
		inv, err := c1.Inventory(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if vm, _ := inv.Find(id); vm.State == haven.VMShutOff {
			if vm.Reason != "crashed" {
				t.Errorf("a killed VM is %s (%s)", vm.State, vm.Reason)
			}
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func qemuPIDs(t *testing.T, id haven.VMID) (pids []int) {
	t.Helper()
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if got, err := vmOf(dir); err == nil && got == id {
			var pid int
			if _, err := fmt.Sscan(filepath.Base(dir), &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	if len(pids) == 0 {
		t.Fatalf("no process of %s", id)
	}
	return pids
}

// A stale VM on a returning host: its definition and its managed-save image go
// aside, and can be brought back.
func TestLabSetAside(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	d := startDaemon(t)
	c := d.client("qemu:///session")
	ctx := t.Context()
	id, xml := d.guest(1)
	if err := c.Start(ctx, id, xml, StartOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Destroy(context.WithoutCancel(ctx), id) })
	if err := c.SetAutostart(ctx, id, true); err != nil {
		t.Fatal(err)
	}
	if _, err := call(ctx, c.control, "managed save", func(_ context.Context, l *lv.Libvirt) (struct{}, error) {
		dom, err := lookup(l, id)
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, l.DomainManagedSave(dom, 0)
	}); err != nil {
		t.Fatal(err)
	}
	inv, err := c.Inventory(ctx)
	if vm, _ := inv.Find(id); err != nil || !vm.ManagedSave || !vm.Autostart || vm.State != haven.VMShutOff || vm.Reason != "saved" {
		t.Fatalf("after a managed save: %+v, %v", vm, err)
	}
	image := filepath.Join(c.opts.SaveDir, "vm1.save")
	if _, err := os.Stat(image); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx, id, xml, StartOptions{}); !errors.Is(err, ErrSavedImage) {
		t.Errorf("Start beside an old image = %v", err)
	}
	def, err := c.Definition(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(d.dir, "aside")
	if err := c.SetAside(ctx, id, dir); err != nil {
		t.Fatalf("SetAside() = %v", err)
	}
	if _, err := os.Stat(image); err == nil {
		t.Error("the image is still where libvirt finds it")
	}
	if inv, err := c.Inventory(ctx); err != nil || len(inv.VMs) != 0 {
		t.Errorf("Inventory() = %+v, %v", inv, err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(files) != 2 {
		t.Fatalf("kept %v", files)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || strings.HasSuffix(f, ".xml") && string(b) != string(def) || strings.HasSuffix(f, ".save") && !strings.HasPrefix(string(b), "LibvirtQemudSave") {
			t.Errorf("%s is not what it should be (%d bytes), %v", f, len(b), err)
		}
	}
	if err := c.Start(ctx, id, def, StartOptions{}); err != nil {
		t.Errorf("Start with the kept definition = %v", err)
	}
}

// TestLabCost prints what polling costs with many domains.
func TestLabCost(t *testing.T) {
	d := startDaemon(t)
	c := d.client("test:///default")
	for n := 1; n <= 200; n++ {
		xml := strings.Replace(testXML(n), "type='qemu'", "type='test'", 1)
		if err := c.Define(t.Context(), []byte(xml)); err != nil {
			t.Fatal(err)
		}
	}
	measure := func(name string) {
		began := time.Now()
		inv, err := c.Inventory(t.Context())
		if err != nil || len(inv.VMs) != 201 {
			t.Fatalf("%d domains, %v", len(inv.VMs), err)
		}
		t.Logf("%s: 201 domains in %v", name, time.Since(began))
	}
	measure("with definitions")
	measure("without")
	began := time.Now()
	if _, err := c.procs.scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("process table: %v", time.Since(began))
}

// A VM whose monitor does not answer does not hide the others, nor itself.
func TestLabStoppedQEMU(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	d := startDaemon(t)
	c := d.client("qemu:///session")
	ctx := t.Context()
	id, xml := d.guest(1)
	if err := c.Start(ctx, id, xml, StartOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Destroy(context.WithoutCancel(ctx), id) })
	pid := qemuPIDs(t, id)[0]
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	for range 5 {
		began := time.Now()
		inv, err := c.Inventory(ctx)
		if vm, _ := inv.Find(id); err != nil || !inv.Complete || vm.State != haven.VMRunning {
			t.Errorf("Inventory() = %+v, %v", inv, err)
		}
		t.Logf("inventory beside a stopped QEMU took %v", time.Since(began))
	}
}

// P1: in a live migration both hosts say that they have the VM, and neither
// calls it simply running until it is over.
func TestLabMigration(t *testing.T) {
	for _, program := range []string{"qemu-system-x86_64", "virsh"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed", program)
		}
	}
	d1, d2 := startDaemon(t), startDaemon(t)
	c1, c2 := d1.client("qemu:///session"), d2.client("qemu:///session")
	ctx := t.Context()
	id, xml := d1.guest(1)
	if err := c1.Start(ctx, id, xml, StartOptions{}); err != nil {
		t.Fatal(err)
	}
	source := qemuPIDs(t, id)[0]
	t.Cleanup(func() {
		_ = c1.Destroy(context.WithoutCancel(ctx), id)
		_ = c2.Destroy(context.WithoutCancel(ctx), id)
	})
	virsh := exec.Command("virsh", "-c", "qemu+unix:///session?socket="+d1.socket, "migrate", "--live", "--p2p", "--unsafe", "--persistent", "vm1",
		"qemu+unix:///session?socket="+d2.socket, "unix://"+d2.dir+"/migrate")
	done := make(chan error, 1)
	go func() {
		b, err := virsh.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, b)
		}
		done <- err
	}()
	see := func(c *Client) (haven.VMInfo, haven.Inventory) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		inv, err := c.Inventory(ctx)
		if err != nil || !inv.Complete {
			t.Fatalf("in a migration Inventory() = %+v, %v", inv, err)
		}
		vm, _ := inv.Find(id)
		return vm, inv
	}
	until := func(c *Client, state haven.VMState) {
		for limit := time.Now().Add(20 * time.Second); ; {
			if vm, _ := see(c); vm.State == state {
				return
			} else if time.Now().After(limit) {
				t.Fatalf("got %s (%s), want %s", vm.State, vm.Reason, state)
			}
			select {
			case err := <-done:
				t.Fatalf("the migration ended too early: %v", err)
			default:
			}
		}
	}
	until(c2, haven.VMIncoming)
	// The receiver is stopped, so that the migration stands still.
	for _, pid := range qemuPIDs(t, id) {
		if pid != source {
			_ = syscall.Kill(pid, syscall.SIGSTOP)
			defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
		}
	}
	until(c1, haven.VMMigrating)
	// A sender that hangs makes libvirtd hang on its job: then it is unknown,
	// and costs one connection.
	_ = syscall.Kill(source, syscall.SIGSTOP)
	until(c1, haven.VMUnknown)
	for range 20 {
		if vm, inv := see(c1); vm.State != haven.VMUnknown || inv.Has(id) != haven.Yes {
			t.Errorf("beside a hanging sender: %+v", vm)
		}
	}
	for _, pid := range qemuPIDs(t, id) {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(60 * time.Second):
		t.Fatal("the migration does not end")
	}
	i1, _ := c1.Inventory(ctx)
	i2, _ := c2.Inventory(ctx)
	v1, _ := i1.Find(id)
	v2, _ := i2.Find(id)
	if v1.State != haven.VMShutOff || v1.Reason != "migrated" || v2.State != haven.VMRunning {
		t.Errorf("afterwards source %+v, target %+v", v1, v2)
	}
}

// P1, P5: a start that hangs inside a real libvirtd is unknown for as long as
// it hangs, blinds nobody, and succeeds in the end without being asked again.
func TestLabStartThatHangs(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	d := startDaemon(t)
	c := d.client("qemu:///session")
	ctx := t.Context()
	other, otherXML := d.guest(2)
	if err := c.Start(ctx, other, otherXML, StartOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Destroy(context.WithoutCancel(ctx), other) })
	// An emulator that gets no further than its start, as on hung storage.
	gate, emulator := filepath.Join(d.dir, "gate"), filepath.Join(d.dir, "emulator")
	script := "#!/bin/sh\ncase \"$*\" in *guest=vm1*) while [ ! -e " + gate + " ]; do sleep 0.1; done;; esac\nexec /usr/bin/qemu-system-x86_64 \"$@\"\n"
	if err := os.WriteFile(emulator, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	id, xml := d.guest(1)
	xml = []byte(strings.Replace(string(xml), "/usr/bin/qemu-system-x86_64", emulator, 1))
	t.Cleanup(func() { _ = c.Destroy(context.WithoutCancel(ctx), id) })
	if err := c.Define(ctx, xml); err != nil { // This tries the emulator, which takes a while.
		t.Fatal(err)
	}
	brief, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := c.Start(brief, id, xml, StartOptions{}); !errors.Is(err, ErrOutcomeUnknown) {
		t.Fatalf("Start() = %v, want unknown", err)
	}
	seen := false
	for i := range 25 { // More questions than libvirtd has workers.
		brief, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		if err := c.Start(brief, id, xml, StartOptions{}); !errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("Start() again = %v", err)
		}
		if gone, _ := c.Gone(brief, id); gone == haven.Yes {
			t.Error("it is called gone while its start hangs")
		}
		inv, _ := c.Inventory(brief)
		if inv.Has(id) == haven.No || inv.Has(other) == haven.No {
			t.Errorf("a VM is called absent: %+v", inv)
		}
		seen = seen || inv.Has(id) == haven.Yes && inv.Has(other) == haven.Yes
		if i == 0 {
			vm, _ := inv.Find(id)
			t.Logf("the inventory meanwhile: complete %v (%s), the VM is %s", inv.Complete, inv.Why, vm.State)
		}
		cancel()
	}
	if !seen {
		t.Error("the process table never showed both VMs")
	}
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c.control.flying.Wait()
	if inv, err := c.Inventory(ctx); err != nil || inv.Has(id) != haven.Yes {
		t.Errorf("after the late start Inventory() = %+v, %v", inv, err)
	}
	if gone, err := c.Gone(ctx, id); gone != haven.No || err != nil {
		t.Errorf("after the late start Gone() = %v, %v", gone, err)
	}
}

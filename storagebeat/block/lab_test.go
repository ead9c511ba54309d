//go:build lab

package block

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/haven-ha/haven/internal/blockio"
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/storagebeat/storetest"
	"github.com/haven-ha/haven/test/lab/labfs"
)

// run runs a program and returns what it prints.
func run(t testing.TB, args ...string) string {
	t.Helper()
	// Not the test's own context: what is taken down in its end is run so too.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// loop makes a block device of a file.
func loop(t testing.TB, file string, sector int) (device string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	device = run(t, "losetup", "--find", "--show", "--direct-io=on", fmt.Sprintf("--sector-size=%d", sector), file)
	t.Cleanup(func() { run(t, "losetup", "--detach", device) })
	return device
}

// named gives a device a name of its own, as udev does.
func named(t testing.TB, device string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "wwn-0x5000")
	if err := os.Symlink(device, name); err != nil {
		t.Fatal(err)
	}
	return name
}

func repoint(t testing.TB, name, device string) {
	t.Helper()
	remove(t, name)
	if err := os.Symlink(device, name); err != nil {
		t.Fatal(err)
	}
}

func openDevice(t testing.TB, path string) *store {
	t.Helper()
	b, err := Type().Open(storagebeat.OpenOptions{Path: path, Cluster: "prod"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	s, ok := b.(*store)
	if !ok {
		t.Fatalf("%T", b)
	}
	return s
}

func madeOn(t testing.TB, path string) storagebeat.Identity {
	t.Helper()
	id, err := openDevice(t, path).Init(t.Context(), storagebeat.InitOptions{Cluster: "prod"})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestLoopDeviceConforms(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		t.Run(fmt.Sprintf("sectors of %d", sector), func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) storetest.Place {
				name := named(t, loop(t, newDevice(t, testSize), sector))
				p := placeOn(name, false)
				p.Vanish = func(t testing.TB) func() {
					t.Helper()
					rename(t, name, name+".away")
					return func() { rename(t, name+".away", name) }
				}
				return p
			})
		})
	}
}

func TestLoopDeviceFaults(t *testing.T) {
	agent := storagebeat.WriterAgent
	t.Run("what it says of itself", func(t *testing.T) {
		for _, sector := range []int{512, 4096} {
			path := loop(t, newDevice(t, testSize), sector)
			madeOn(t, path)
			r, err := openDevice(t, path).Check(t.Context())
			if err != nil || !r.Direct || !r.Local || !strings.Contains(r.FileSystem, fmt.Sprintf("sectors of %d octets", sector)) {
				t.Errorf("%+v, %v", r, err)
			}
		}
	})
	t.Run("read-only", func(t *testing.T) {
		path := loop(t, newDevice(t, testSize), 512)
		id := madeOn(t, path)
		s := openDevice(t, path)
		write(t, s, beat(t, id, "kvm-01", agent, 1, 1))
		run(t, "blockdev", "--setro", path)
		for _, w := range []*store{s, openDevice(t, path)} {
			if err := w.Write(t.Context(), beat(t, id, "kvm-01", agent, 1, 2)); !errors.Is(err, blockio.ErrReadOnly) {
				t.Errorf("write: %v", err)
			}
			if got := slotsOf(t, w); got["kvm-01.agent"] != [2]uint64{1, 1} {
				t.Errorf("read: %v", got)
			}
		}
		if _, err := openDevice(t, path).Init(t.Context(), storagebeat.InitOptions{Cluster: "prod", Replace: "prod"}); !errors.Is(err, blockio.ErrReadOnly) {
			t.Errorf("init: %v", err)
		}
		run(t, "blockdev", "--setrw", path)
		write(t, s, beat(t, id, "kvm-01", agent, 1, 3))
	})
	t.Run("mounted here", func(t *testing.T) {
		path := loop(t, newDevice(t, 32<<20), 512)
		run(t, "mkfs.ext4", "-q", path)
		dir := t.TempDir()
		if err := unix.Mount(path, dir, "ext4", 0, ""); err != nil {
			t.Skipf("mount: %v", err)
		}
		defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
		o := storagebeat.InitOptions{Cluster: "prod", Erase: storagebeat.EraseName(path, "prod")}
		if _, err := openDevice(t, path).Init(t.Context(), o); !errors.Is(err, storagebeat.ErrNotEmpty) || !errors.Is(err, blockio.ErrInUse) {
			t.Errorf("init over a mounted file system, which was named: %v", err)
		}
	})
	t.Run("real file systems are not given up", func(t *testing.T) {
		for mkfs, says := range map[string]string{"mkfs.ext4 -q": "ext4", "mkfs.xfs -q": "XFS", "mkfs.btrfs -q": "Btrfs", "mkswap": "swap", "mkfs.vfat": "boot sector"} {
			args := strings.Fields(mkfs)
			if _, err := exec.LookPath(args[0]); err != nil {
				t.Logf("no %s here", args[0])
				continue
			}
			path := loop(t, newDevice(t, 512<<20), 512)
			run(t, append(args, path)...)
			if _, err := openDevice(t, path).Init(t.Context(), storagebeat.InitOptions{Cluster: "prod"}); !errors.Is(err, storagebeat.ErrNotEmpty) || !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %v", mkfs, err)
			}
		}
	})
	t.Run("P5: another device at the name", func(t *testing.T) {
		one, two := loop(t, newDevice(t, testSize), 512), loop(t, newDevice(t, testSize), 512)
		first, second := madeOn(t, one), madeOn(t, two)
		name := named(t, one)
		s := openDevice(t, name)
		write(t, s, beat(t, first, "kvm-01", agent, 1, 1))
		repoint(t, name, two)
		if err := s.Write(t.Context(), beat(t, first, "kvm-01", agent, 1, 2)); !errors.Is(err, storagebeat.ErrForeign) {
			t.Errorf("write: %v", err)
		}
		if c, err := s.ReadAll(t.Context()); err != nil || c.Identity != second || len(c.Beats) != 0 {
			t.Errorf("read: %+v, %v", c, err)
		}
		repoint(t, name, one)
		write(t, s, beat(t, first, "kvm-01", agent, 1, 3))
	})
	t.Run("other sectors than the store was made with", func(t *testing.T) {
		file := newDevice(t, testSize)
		id := madeOn(t, loop(t, file, 512))
		s := openDevice(t, loop(t, file, 4096))
		if c, err := s.ReadAll(t.Context()); !errors.Is(err, storagebeat.ErrForeign) || !strings.Contains(err.Error(), "sectors of 4096") {
			t.Errorf("read: %+v, %v", c, err)
		}
		if err := s.Write(t.Context(), beat(t, id, "kvm-01", agent, 1, 1)); !errors.Is(err, storagebeat.ErrForeign) {
			t.Errorf("write: %v", err)
		}
	})
	t.Run("P5: it lost its medium and has it again", func(t *testing.T) {
		file := newDevice(t, testSize)
		device := run(t, "losetup", "--find", "--show", "--direct-io=on", file)
		attached := true
		defer func() {
			if attached {
				run(t, "losetup", "--detach", device)
			}
		}()
		id := madeOn(t, device)
		s := openDevice(t, device)
		write(t, s, beat(t, id, "kvm-01", agent, 1, 1))
		s.drop() // A loop device that is open keeps its file; a LUN does not ask.
		run(t, "losetup", "--detach", device)
		attached = false
		if c, err := s.ReadAll(t.Context()); err == nil {
			t.Errorf("read: %+v", c)
		}
		if err := s.Write(t.Context(), beat(t, id, "kvm-01", agent, 1, 2)); err == nil {
			t.Error("written")
		}
		run(t, "losetup", "--direct-io=on", device, file)
		attached = true
		write(t, s, beat(t, id, "kvm-01", agent, 1, 3))
		s.drop()
	})
}

// serveLabfs serves a file system whose answers a test can stop.
func serveLabfs(args []string) int {
	if err := labfs.Serve(labfs.Options{Export: args[0], Mount: args[1], Control: args[2]}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// faulty is a loop device over storage whose mode a test sets.
func faulty(t *testing.T) (device string, set func(labfs.Mode)) {
	t.Helper()
	dir := t.TempDir()
	export, mount, socket := filepath.Join(dir, "export"), filepath.Join(dir, "mount"), filepath.Join(dir, "s")
	for _, d := range []string{export, mount} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	lun := filepath.Join(export, "lun")
	rename(t, newDevice(t, testSize), lun)
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", "labfs", export, mount, socket)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(mount, unix.MNT_DETACH)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	ctl := labfs.Control(socket)
	until(t, "the storage is there", func() error { _, err := ctl.Status(t.Context()); return err })
	set = func(m labfs.Mode) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := ctl.Set(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	device = loop(t, filepath.Join(mount, "lun"), 512)
	t.Cleanup(func() { set(labfs.OK) })
	return device, set
}

// until asks again until ask is content: kernel and storage tell nobody when they
// are done.
func until(t testing.TB, what string, ask func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = ask(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// P8: a LUN that hangs costs one process and one operation, and comes back.
func TestHungLUN(t *testing.T) {
	device, set := faulty(t)
	hangs(t, device, func() { set(labfs.Hang) }, func() { set(labfs.OK) })
}

// P8: the same on a suspended device-mapper device, where the kernel has it.
func TestSuspendedDevice(t *testing.T) {
	if out, err := exec.CommandContext(t.Context(), "dmsetup", "version").CombinedOutput(); err != nil {
		t.Skipf("no device-mapper here: %v, %s", err, out)
	}
	under := loop(t, newDevice(t, testSize), 512)
	name := fmt.Sprintf("haven-test-%d", os.Getpid())
	run(t, "dmsetup", "create", name, "--table", fmt.Sprintf("0 %d linear %s 0", testSize/512, under))
	t.Cleanup(func() { run(t, "dmsetup", "remove", "--retry", name) })
	hangs(t, "/dev/mapper/"+name, func() { run(t, "dmsetup", "suspend", "--nolockfs", name) }, func() { run(t, "dmsetup", "resume", name) })
}

func hangs(t *testing.T, device string, hang, release func()) {
	t.Helper()
	id := madeOn(t, device)
	c := childOf(t, storagebeat.ChildConfig{Path: device, Cluster: "prod", Timeout: time.Second})
	agent := storagebeat.WriterAgent
	if err := c.Write(t.Context(), beat(t, id, "kvm-01", agent, 1, 1)); err != nil {
		t.Fatal(err)
	}
	hang()
	if err := c.Write(t.Context(), beat(t, id, "kvm-01", agent, 1, 2)); !errors.Is(err, storagebeat.ErrTimeout) {
		t.Errorf("write while it hangs: %v", err)
	}
	for range 50 {
		if _, err := c.ReadAll(t.Context()); !errors.Is(err, storagebeat.ErrStuck) {
			t.Fatalf("read while it hangs: %v", err)
		}
	}
	if s := c.Stats(); s.Started != 1 || s.Abandoned != 1 || !s.Stuck {
		t.Errorf("P8: %+v", s)
	}
	release()
	until(t, "it comes back", func() error { return c.Write(t.Context(), beat(t, id, "kvm-01", agent, 1, 3)) })
	contents, err := c.ReadAll(t.Context())
	if err != nil || len(contents.Beats) != 1 {
		t.Fatalf("%+v, %v", contents, err)
	}
	// The write that was given up may have landed late, but not over a later one.
	if b, err := storagebeat.DecodeAt(id.ID, contents.Beats[0]); err != nil || b.Sequence != 3 {
		t.Errorf("%+v, %v", b, err)
	}
}

// P5: a LUN that answers with errors is unknown, and used again when it works.
func TestLUNWithErrors(t *testing.T) {
	device, set := faulty(t)
	id := madeOn(t, device)
	s := openDevice(t, device)
	agent := storagebeat.WriterAgent
	write(t, s, beat(t, id, "kvm-01", agent, 1, 1))
	set(labfs.EIO)
	if c, err := s.ReadAll(t.Context()); !errors.Is(err, unix.EIO) {
		t.Errorf("read: %+v, %v", c, err)
	}
	if err := s.Write(t.Context(), beat(t, id, "kvm-01", agent, 1, 2)); !errors.Is(err, unix.EIO) {
		t.Errorf("write: %v", err)
	}
	set(labfs.OK)
	write(t, s, beat(t, id, "kvm-01", agent, 1, 3))
	if got := slotsOf(t, s); got["kvm-01.agent"] != [2]uint64{1, 3} {
		t.Error(got)
	}
}

//go:build lab

package watchdog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/haven-ha/haven/test/lab/labdog"
)

// TestMain is also the program that serves the device: a process that opens files
// of a file system of its own can wait for itself.
func TestMain(m *testing.M) {
	if len(os.Args) == 6 && os.Args[1] == "serve-watchdog" {
		err := labdog.Serve(labdog.Options{
			Mount: os.Args[2], Control: os.Args[3], Identity: os.Args[4],
			Limits: labdog.Limits{Min: time.Second, Max: time.Minute}, Timeout: 30 * time.Second,
			Expired: func() { _ = exec.Command("touch", os.Args[5]).Run() },
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type stand struct {
	path, fired string
	control     labdog.Control
}

// serve puts up a device for the time of the test.
func serve(t *testing.T, identity string) stand {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts a file system and needs root")
	}
	dir := t.TempDir()
	mnt := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	s := stand{filepath.Join(mnt, labdog.File), filepath.Join(dir, "fired"), labdog.Control(filepath.Join(dir, "ctl"))}
	cmd := exec.Command(os.Args[0], "serve-watchdog", mnt, string(s.control), identity, s.fired)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(mnt, unix.MNT_DETACH)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, "the device is there", func() bool { _, err := s.control.Status(t.Context()); return err == nil })
	return s
}

// eventually waits; its limit only ends a test that fails anyway.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came true: %s", what)
		}
	}
}

func (s stand) status(t *testing.T) labdog.Status {
	t.Helper()
	st, err := s.control.Status(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestLabDevice(t *testing.T) {
	s := serve(t, "labdog")
	f := Finder{}
	d := must(f.Open(s.path, false))(t)
	if d.Identity != "labdog" {
		t.Errorf("identity %q", d.Identity)
	}
	if got := must(d.Timeout())(t); got != 30*time.Second {
		t.Errorf("timeout %s before it was set", got)
	}
	if got := must(d.SetTimeout(7 * time.Second))(t); got != 7*time.Second {
		t.Errorf("timeout %s after 7 s was set", got)
	}
	if left := must(d.Left())(t); left < 5*time.Second || left > 7*time.Second {
		t.Errorf("%s left of 7 s", left)
	}
	if _, err := d.SetTimeout(time.Hour); err == nil {
		t.Error("a timeout beyond the device's limit was taken")
	}
	pets := s.status(t).Pets
	if err := d.Pet(); err != nil || s.status(t).Pets != pets+1 {
		t.Errorf("pet: %v, %d pets after %d", err, s.status(t).Pets, pets)
	}
	// It is opened once, and nobody else's close of nothing changes that.
	if _, err := f.Open(s.path, true); !errors.Is(err, ErrBusy) {
		t.Errorf("a second open: %v", err)
	}
	// What is left open by a process that ends goes on, and is taken over.
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "closed", func() bool { return !s.status(t).Open })
	if st := s.status(t); !st.Running || st.Pets != pets+2 {
		t.Errorf("after a close without magic: %+v; want it to run, with one pet more than %d", st, pets+1)
	}
	d = must(f.Open(s.path, true))(t)
	if got := must(d.Timeout())(t); got != 7*time.Second {
		t.Errorf("timeout %s when it was taken over", got)
	}
	if err := d.MagicClose(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "stopped", func() bool { return !s.status(t).Running })
}

func TestLabDeviceFires(t *testing.T) {
	s := serve(t, "labdog")
	d := must(Finder{}.Open(s.path, false))(t)
	must(d.SetTimeout(time.Second))(t)
	eventually(t, "it fires", func() bool { _, err := os.Stat(s.fired); return err == nil })
	_ = d.Close()
}

func TestLabDeviceNoWayOut(t *testing.T) {
	s := serve(t, "labdog")
	if err := s.control.NoWayOut(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	// What the kernel tells of it in sysfs keeps it from being opened.
	sys := t.TempDir()
	attributes := filepath.Join(sys, "class/watchdog/watchdog0")
	if err := errors.Join(os.MkdirAll(attributes, 0o755), os.WriteFile(filepath.Join(attributes, "nowayout"), []byte("1\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := (Finder{Sys: sys}).Open(s.path, false); !errors.Is(err, ErrNoWayOut) {
		t.Errorf("opened: %v", err)
	}
	if st := s.status(t); st.Running || st.Pets != 0 {
		t.Errorf("it was started: %+v", st)
	}
	// Without that word it shows only when it should stop.
	d := must(Finder{Sys: t.TempDir()}.Open(s.path, false))(t)
	if err := d.MagicClose(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "closed", func() bool { return !s.status(t).Open })
	if !s.status(t).Running {
		t.Error("a device without a way out was stopped")
	}
}

func TestLabSoftDevice(t *testing.T) {
	s := serve(t, softIdentity)
	if _, err := (Finder{}).Open(s.path, false); !errors.Is(err, ErrSoft) {
		t.Errorf("opened: %v", err)
	}
	eventually(t, "stopped again", func() bool { st := s.status(t); return !st.Open && !st.Running })
	d := must(Finder{AllowSoft: true}.Open(s.path, false))(t)
	if err := d.MagicClose(); err != nil {
		t.Fatal(err)
	}
}

func TestLabBrokenDevice(t *testing.T) {
	s := serve(t, "labdog")
	d := must(Finder{}.Open(s.path, false))(t)
	if err := s.control.Broken(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if err := d.Pet(); !errors.Is(err, unix.EIO) {
		t.Errorf("pet: %v", err)
	}
	if err := d.MagicClose(); err == nil {
		t.Error("a stop that failed was not told")
	}
	if !s.status(t).Running {
		t.Error("it was stopped")
	}
}

// must returns a value or ends the test.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

//go:build lab

package storagebeat

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/haven-ha/haven/test/lab/labfs"
)

// serveLabfs serves a file system whose answers a test sets.
func serveLabfs(args []string) int {
	if err := labfs.Serve(labfs.Options{Export: args[0], Mount: args[1], Control: args[2]}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// mountLabfs mounts such a file system, and returns where it is mounted, where its
// files are in truth, and what sets its mode.
func mountLabfs(t *testing.T) (mount, export string, set func(labfs.Mode)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	mount, export = filepath.Join(dir, "mount"), filepath.Join(dir, "export")
	mkdir(t, mount)
	mkdir(t, export)
	ctl := labfs.Control(filepath.Join(dir, "s"))
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", "labfs", export, mount, string(ctl))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Unmount(mount, syscall.MNT_DETACH)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	until(t, "the file system is there", func() error { _, err := ctl.Status(t.Context()); return err })
	return mount, export, func(m labfs.Mode) {
		t.Helper()
		if err := ctl.Set(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDirOnARealFileSystemThatFails: what TestDirThatTakesNoWrites and the others
// claim of a file system's errors, as the kernel gives them.
func TestDirOnARealFileSystemThatFails(t *testing.T) {
	mount, export, set := mountLabfs(t)
	path := filepath.Join(mount, ".haven")
	id, err := initStore(path, InitOptions{Cluster: "prod"})
	if err != nil {
		t.Fatal(err)
	}
	d, server := newDirStore(path, "prod"), newDirStore(filepath.Join(export, ".haven"), "prod")
	seq := uint64(0)
	next := func() error {
		seq++
		return d.write(rawOf(t, beatOf(id.ID, "kvm-01", WriterAgent, seq)))
	}
	for _, tc := range []struct {
		name        string
		mode        labfs.Mode
		write, read error // nil: works
	}{
		{"EIO", labfs.EIO, syscall.EIO, syscall.EIO},
		{"stale handles", labfs.Stale, syscall.ESTALE, syscall.ESTALE},
		{"read-only", labfs.RO, syscall.EROFS, nil},
		{"P5: full, with a record that has its space", labfs.NoSpace, nil, nil},
		{"slow", labfs.Slow(20 * time.Millisecond), nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := next(); err != nil {
				t.Fatal(err)
			}
			sequences(t, d)
			set(tc.mode)
			if err := next(); !errors.Is(err, tc.write) {
				t.Errorf("write: %v, want %v", err, tc.write)
			}
			if _, err := d.readAll(); !errors.Is(err, tc.read) || errors.Is(err, ErrNoIdentity) {
				t.Errorf("read: %v, want %v", err, tc.read)
			}
			set(labfs.OK)
			if err := next(); err != nil {
				t.Errorf("the first beat after it: %v", err)
			}
			for name, s := range map[string]*dirStore{"here": d, "on the server": server} {
				if got := sequences(t, s); got["kvm-01.agent"] != seq {
					t.Errorf("%s it reads as %v, want %d", name, got, seq)
				}
			}
		})
	}
	t.Run("full, and a host that never beat there", func(t *testing.T) {
		set(labfs.NoSpace)
		defer set(labfs.OK)
		if err := d.write(rawOf(t, beatOf(id.ID, "kvm-02", WriterAgent, 1))); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("write: %v", err)
		}
	})
	// P8: it hangs, and comes back with the same store.
	c, _ := startChild(t, path, time.Second)
	set(labfs.Hang)
	if _, err := c.ReadAll(t.Context()); !errors.Is(err, ErrTimeout) {
		t.Errorf("read while it hangs: %v", err)
	}
	if err := c.Write(t.Context(), rawOf(t, beatOf(id.ID, "kvm-01", WriterAgent, seq+1))); !errors.Is(err, ErrStuck) {
		t.Errorf("write while it hangs: %v", err)
	}
	set(labfs.OK)
	until(t, "it comes back", func() error { _, err := c.ReadAll(t.Context()); return err })
}

//go:build lab

package command

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/test/lab/labfs"
)

// TestLabProgramOnStorageThatHangs: what TestStartThatHangs claims, with a kernel
// that does not come back from starting the program (P8). Another device's program
// is started all the while, and what could not start in its time never runs (P3).
func TestLabProgramOnStorageThatHangs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	mount, export, mark := filepath.Join(dir, "mount"), filepath.Join(dir, "export"), filepath.Join(dir, "mark")
	if err := errors.Join(os.Mkdir(mount, 0o700), os.Mkdir(export, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(export, "program"), []byte("#!/bin/sh\necho \"$1\" >>"+mark+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctl := labfs.Control(filepath.Join(dir, "s"))
	served := make(chan error, 1)
	go func() { served <- labfs.Serve(labfs.Options{Export: export, Mount: mount, Control: string(ctl)}) }()
	defer func() {
		_ = syscall.Unmount(mount, syscall.MNT_DETACH)
		select {
		case <-served:
		case <-time.After(5 * time.Second): // It ends with this process.
		}
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := ctl.Status(t.Context()); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	d, err := New(Config{Launcher: launcher(), Program: filepath.Join(mount, "program"), Arguments: []string{"{action}"}, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	other := shell(t, "exit 2", nil)
	if err := ctl.Set(t.Context(), labfs.Hang); err != nil {
		t.Fatal(err)
	}
	hung := make(chan error, 1)
	go func() { hung <- d.Set(t.Context(), haven.ActionOff, nil) }()
	if r, err := other.Power(t.Context()); err != nil || r.State != haven.PowerOff {
		t.Errorf("another device meanwhile: %s, %v", r.State, err)
	}
	if err := <-hung; !errors.Is(err, fencing.ErrUnreachable) {
		t.Errorf("on storage that hangs: %v", err)
	}
	if err := ctl.Set(t.Context(), labfs.OK); err != nil {
		t.Fatal(err)
	}
	d.slot <- struct{}{} // The process is gone.
	<-d.slot
	if data, err := os.ReadFile(mark); err == nil {
		t.Errorf("P3: it ran when the storage came back: %q", data)
	}
	if err := d.Set(t.Context(), haven.ActionOff, nil); err != nil {
		t.Errorf("when the storage is back: %v", err)
	}
	if data, _ := os.ReadFile(mark); strings.TrimSpace(string(data)) != "off" {
		t.Errorf("the program was told %q", data)
	}
}

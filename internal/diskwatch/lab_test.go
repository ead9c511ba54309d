//go:build lab

package diskwatch

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/blockio"
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/test/lab/labfs"
)

// mount mounts one host's view of the export, and returns where, and its control.
func mount(t *testing.T, o labfs.Options) (string, labfs.Control) {
	t.Helper()
	dir := t.TempDir()
	o.Mount, o.Control = filepath.Join(dir, "mnt"), filepath.Join(dir, "control")
	if err := os.Mkdir(o.Mount, 0o755); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- labfs.Serve(o) }()
	c := labfs.Control(o.Control)
	for {
		if _, err := c.Status(t.Context()); err == nil {
			break
		}
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(o.Mount, unix.MNT_DETACH), <-ended); err != nil {
			t.Error(err)
		}
	})
	return o.Mount, c
}

// writer appends to a file as the VM of another host does.
func writer(t *testing.T, path string) (stop func()) {
	t.Helper()
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(300 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				if err := appendTo(path); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	return func() { close(quit); <-ended }
}

func appendTo(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString("journal")
	return errors.Join(err, f.Close())
}

// follow reads a disk again and again, and hands each conclusion over until it is
// told that this was enough.
func follow(t *testing.T, r *Reader, cfg Config, path string, enough func(time.Duration, Sight) bool) {
	t.Helper()
	tr := NewTracker(cfg)
	tr.Watch([]Disk{{VM: vmA, Path: path}}, false)
	begun := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, f := range r.Stat(t.Context(), tr.Paths()) {
			got := Reading{Path: f.Path, Started: f.Started.Sub(begun), Ended: f.Ended.Sub(begun), Attr: f.Attr}
			if f.Err != nil {
				got.Err = f.Err.Error()
			}
			tr.Read(got)
		}
		now := time.Since(begun)
		if enough(now, tr.Look(now)) {
			return
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			return
		}
	}
}

// TestLabAttributeCache guards P5 on a file system whose attributes are cached, as
// those of an NFS client are: a disk that is written is never idle, and one that is
// not becomes idle. The kernel's cache is passed by; that of the storage itself is
// covered by the time that idleness takes.
func TestLabAttributeCache(t *testing.T) {
	cfg := Config{Idle: 4 * time.Second, Repeats: 3, Gap: 2 * time.Second}
	for _, tt := range []struct {
		name string
		o    labfs.Options
	}{
		{"cached by the reader's kernel for a minute", labfs.Options{AttrCache: time.Minute}},
		{"repeated by the storage for two seconds", labfs.Options{AttrLag: 2 * time.Second}},
		{"both", labfs.Options{AttrCache: time.Minute, AttrLag: 2 * time.Second}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.Export = t.TempDir()
			at, _ := mount(t, tt.o)
			disk, seen := filepath.Join(tt.o.Export, "disk"), filepath.Join(at, "disk")
			if err := appendTo(disk); err != nil {
				t.Fatal(err)
			}
			// What a plain stat says is old: the cache is really there.
			before, err := os.Stat(seen)
			if err != nil {
				t.Fatal(err)
			}
			if err := appendTo(disk); err != nil {
				t.Fatal(err)
			}
			if after, err := os.Stat(seen); err != nil || after.Size() != before.Size() {
				t.Fatalf("a plain stat says %v, %v: nothing is cached here", after, err)
			}
			if a, err := blockio.Stat(seen); err != nil || !a.Shared || !a.Regular || tt.o.AttrLag == 0 && a.Size == uint64(before.Size()) {
				t.Fatalf("Stat() = %+v, %v, size before %d", a, err, before.Size())
			}

			r := newReader(t, time.Second)
			stop := writer(t, disk)
			active := 0
			follow(t, r, cfg, seen, func(now time.Duration, s Sight) bool {
				switch s.Active {
				case haven.No:
					t.Errorf("idle after %s while it is written: %+v", now, s)
					return true
				case haven.Yes:
					active++
				case haven.Unknown:
				}
				return now > 3*cfg.Idle
			})
			stop()
			if active == 0 {
				t.Error("never found active")
			}
			follow(t, r, cfg, seen, func(now time.Duration, s Sight) bool {
				if s.Active == haven.No {
					return true
				}
				if now > 5*cfg.Idle {
					t.Errorf("still not idle: %+v", s)
					return true
				}
				return false
			})
		})
	}
}

// TestLabHungPool guards P8: a pool that hangs costs one process, and the disks of
// another pool are seen all the same.
func TestLabHungPool(t *testing.T) {
	var pools []string
	var controls []labfs.Control
	for range 2 {
		o := labfs.Options{Export: t.TempDir()}
		if err := appendTo(filepath.Join(o.Export, "disk")); err != nil {
			t.Fatal(err)
		}
		at, c := mount(t, o)
		pools, controls = append(pools, filepath.Join(at, "disk")), append(controls, c)
	}
	r := newReader(t, 300*time.Millisecond)
	if err := controls[0].Set(t.Context(), labfs.Hang); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = controls[0].Set(t.Context(), labfs.OK) })
	for range 10 {
		found := r.Stat(t.Context(), pools)
		if found[0].Err == nil || found[1].Err != nil {
			t.Fatalf("hung: %v, healthy: %v", found[0].Err, found[1].Err)
		}
		if !errors.Is(found[0].Err, storagebeat.ErrTimeout) && !errors.Is(found[0].Err, storagebeat.ErrStuck) {
			t.Errorf("hung: %v", found[0].Err)
		}
	}
	if s, err := controls[0].Status(t.Context()); err != nil || s.Held != 1 {
		t.Errorf("%d requests wait in the hung pool, want 1; %v", s.Held, err)
	}
	started := 0
	for _, s := range r.Stats() {
		started += s.Started
	}
	if started != 2 {
		t.Errorf("%d processes were started, want 2", started)
	}
	if err := controls[0].Set(t.Context(), labfs.OK); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for r.Stat(t.Context(), pools[:1])[0].Err != nil {
		if time.Now().After(deadline) {
			t.Fatal("the pool is back, and its disk is not seen")
		}
	}
}

package storagebeat

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	haven "github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/blockio"
)

// faulty is a file system that fails when it is told to. Before each call it asks
// fault, with what is done and the last element of the path.
type faulty struct {
	osFiles
	fault func(what, name string) error
	calls []string
}

// on returns a fault that hits one kind of call, so many times.
func on(what string, err error, times int) func(string, string) error {
	return func(w, _ string) error {
		if w != what || times == 0 {
			return nil
		}
		times--
		return err
	}
}

func (f *faulty) ask(what, path string) error {
	f.calls = append(f.calls, what)
	if f.fault == nil {
		return nil
	}
	if err := f.fault(what, filepath.Base(path)); err != nil {
		return &os.PathError{Op: what, Path: path, Err: err}
	}
	return nil
}

func (f *faulty) open(path string, mode blockio.Mode) (file, error) {
	what := "open"
	if mode == blockio.Create {
		what = "create"
	}
	if err := f.ask(what, path); err != nil {
		return nil, err
	}
	h, err := f.osFiles.open(path, mode)
	if err != nil {
		return nil, err
	}
	return &faultyFile{h, f, path}, nil
}

func (f *faulty) identity(store string) ([]byte, error) {
	if err := f.ask("identity", store); err != nil {
		return nil, err
	}
	return f.osFiles.identity(store)
}

func (f *faulty) names(dir string, limit int) ([]string, error) {
	if err := f.ask("names", dir); err != nil {
		return nil, err
	}
	return f.osFiles.names(dir, limit)
}

func (f *faulty) syncDir(dir string) error {
	if err := f.ask("sync", dir); err != nil {
		return err
	}
	return f.osFiles.syncDir(dir)
}

type faultyFile struct {
	file
	fs   *faulty
	path string
}

func (f *faultyFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.fs.ask("read", f.path); err != nil {
		return 0, err
	}
	return f.file.ReadAt(p, off)
}

func (f *faultyFile) WriteAt(p []byte, off int64) error {
	if err := f.fs.ask("write", f.path); err != nil {
		return err
	}
	return f.file.WriteAt(p, off)
}

// faultyStore is a store with two hosts' beats, whose files are open.
func faultyStore(t testing.TB) (*dirStore, *faulty, StoreID) {
	t.Helper()
	path, id := makeStore(t, "prod")
	d, f := newDirStore(path, "prod"), &faulty{}
	d.fs = f
	put(t, d, beatOf(id.ID, "kvm-01", WriterAgent, 1))
	put(t, d, beatOf(id.ID, "kvm-02", WriterAgent, 1))
	sequences(t, d)
	return d, f, id.ID
}

// What a file system has forgotten, as after a restart of its server, is asked for
// once more at once: the beat is not late for that.
func TestDirReopensStaleHandles(t *testing.T) {
	for _, what := range []string{"read", "open", "identity", "names"} {
		t.Run("reading: "+what, func(t *testing.T) {
			d, f, _ := faultyStore(t)
			f.fault = on(what, syscall.ESTALE, 1)
			if got := sequences(t, d); got["kvm-01.agent"] != 1 || got["kvm-02.agent"] != 1 {
				t.Errorf("one stale answer: %v", got)
			}
		})
	}
	for _, what := range []string{"write", "identity"} {
		t.Run("writing: "+what, func(t *testing.T) {
			d, f, id := faultyStore(t)
			f.fault, f.calls = on(what, syscall.ESTALE, 1), nil
			put(t, d, beatOf(id, "kvm-01", WriterAgent, 2))
			if what == "write" && !slices.Contains(f.calls, "create") {
				t.Errorf("the handle was not opened anew: %v", f.calls)
			}
			if got := sequences(t, d); got["kvm-01.agent"] != 2 {
				t.Error(got)
			}
		})
	}
	t.Run("all handles at once, all the time", func(t *testing.T) {
		d, f, id := faultyStore(t)
		f.fault = on("write", syscall.ESTALE, -1)
		if err := d.write(rawOf(t, beatOf(id, "kvm-01", WriterAgent, 2))); !errors.Is(err, syscall.ESTALE) {
			t.Errorf("write: %v", err)
		}
		f.fault = on("read", syscall.ESTALE, -1)
		if got := sequences(t, d); got["kvm-01.agent"] != 0 || got["kvm-02.agent"] != 0 {
			t.Errorf("read: %v", got)
		}
		f.fault = nil
		put(t, d, beatOf(id, "kvm-01", WriterAgent, 3))
		if got := sequences(t, d); got["kvm-01.agent"] != 3 || got["kvm-02.agent"] != 1 {
			t.Errorf("when it is over: %v", got)
		}
	})
}

// P5: a store that takes no writes is still read, and written to again at the first
// beat after it takes them.
func TestDirThatTakesNoWrites(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.EROFS, syscall.ENOSPC, syscall.EDQUOT, syscall.EACCES, syscall.EPERM, syscall.ETIMEDOUT} {
		for _, what := range []string{"write", "create", "sync"} {
			t.Run(fmt.Sprintf("%s: %s", what, errno), func(t *testing.T) {
				d, f, id := faultyStore(t)
				host := haven.HostID("kvm-01")
				if what != "write" {
					host = "kvm-03" // its file has to be made
				}
				f.fault = on(what, errno, -1)
				for seq := uint64(2); seq < 5; seq++ {
					if err := d.write(rawOf(t, beatOf(id, host, WriterAgent, seq))); !errors.Is(err, errno) {
						t.Fatalf("write: %v", err)
					}
					if d.writing[beatName(host, WriterAgent)] != nil {
						t.Fatal("the handle that failed is kept")
					}
					if got := sequences(t, d); got["kvm-01.agent"] != 1 || got["kvm-02.agent"] != 1 || got["kvm-03.agent"] != 0 {
						t.Fatalf("reading goes on: %v", got)
					}
				}
				f.fault = nil
				put(t, d, beatOf(id, host, WriterAgent, 5))
				if got := sequences(t, d); got[beatName(host, WriterAgent)] != 5 || got["kvm-02.agent"] != 1 {
					t.Errorf("when it is over: %v", got)
				}
			})
		}
	}
}

// P5: what cannot be read is unknown: one record alone, or the store as a whole,
// which is not the same as one that is not mounted.
func TestDirThatCannotBeRead(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.EACCES, syscall.ENOTCONN, syscall.EHOSTDOWN, syscall.ETIMEDOUT} {
		t.Run("one record: "+errno.Error(), func(t *testing.T) {
			d, f, id := faultyStore(t)
			f.fault = func(what, name string) error {
				if (what == "read" || what == "open") && name == "kvm-02.agent" {
					return errno
				}
				return nil
			}
			put(t, d, beatOf(id, "kvm-01", WriterAgent, 2))
			c, err := d.readAll()
			if err != nil || len(c.Beats) != 2 || c.Beats[0].Err != nil || !errors.Is(c.Beats[1].Err, errno) || c.Beats[1].Data != nil {
				t.Fatalf("%+v, %v", c, err)
			}
			f.fault = nil
			if got := sequences(t, d); got["kvm-01.agent"] != 2 || got["kvm-02.agent"] != 1 {
				t.Error(got)
			}
		})
		for _, what := range []string{"identity", "names"} {
			t.Run(what+": "+errno.Error(), func(t *testing.T) {
				d, f, id := faultyStore(t)
				f.fault = on(what, errno, -1)
				if c, err := d.readAll(); !errors.Is(err, errno) || errors.Is(err, ErrNoIdentity) || errors.Is(err, ErrForeign) {
					t.Fatalf("%+v, %v", c, err)
				}
				if len(d.reading)+len(d.writing) != 0 {
					t.Error("files are kept open")
				}
				if err := d.write(rawOf(t, beatOf(id, "kvm-01", WriterAgent, 2))); what == "identity" && !errors.Is(err, errno) {
					t.Errorf("write: %v", err)
				}
				f.fault = nil
				put(t, d, beatOf(id, "kvm-01", WriterAgent, 3))
				if got := sequences(t, d); got["kvm-01.agent"] != 3 || got["kvm-02.agent"] != 1 {
					t.Error(got)
				}
			})
		}
	}
}

// A server restart, as a client goes through it: no answers, handles that mean
// nothing, an empty mount point, and then the same store again.
func TestDirSurvivesAServerRestart(t *testing.T) {
	d, f, id := faultyStore(t)
	for _, tc := range []struct {
		what string
		err  error
		want error
	}{
		{"identity", syscall.ETIMEDOUT, syscall.ETIMEDOUT},
		{"identity", syscall.ECONNREFUSED, syscall.ECONNREFUSED},
		{"identity", syscall.ESTALE, syscall.ESTALE},
		{"identity", fmt.Errorf("%w: %w", os.ErrNotExist, ErrNoIdentity), ErrNoIdentity},
	} {
		f.fault = on(tc.what, tc.err, -1)
		if c, err := d.readAll(); !errors.Is(err, tc.want) {
			t.Fatalf("read: %+v, %v", c, err)
		}
		if err := d.write(rawOf(t, beatOf(id, "kvm-01", WriterAgent, 2))); !errors.Is(err, tc.want) {
			t.Fatalf("write: %v", err)
		}
	}
	f.fault = nil
	put(t, d, beatOf(id, "kvm-01", WriterAgent, 3))
	if got := sequences(t, d); got["kvm-01.agent"] != 3 || got["kvm-02.agent"] != 1 {
		t.Error(got)
	}
}

// A first write that fails half-way leaves a file that is no beat, and the next one
// makes it one.
func TestDirHalfMadeRecord(t *testing.T) {
	d, f, id := faultyStore(t)
	f.fault = on("write", syscall.ENOSPC, 1)
	if err := d.write(rawOf(t, beatOf(id, "kvm-03", WriterAgent, 1))); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	c, err := d.readAll()
	if err != nil || len(c.Beats) != 3 {
		t.Fatalf("%+v, %v", c, err)
	}
	if _, err := DecodeAt(id, c.Beats[2]); !errors.Is(err, ErrBlank) {
		t.Errorf("half-made: %v", err)
	}
	put(t, d, beatOf(id, "kvm-03", WriterAgent, 2))
	if got := sequences(t, newDirStore(d.path, "prod")); got["kvm-03.agent"] != 2 {
		t.Error(got)
	}
}

// TestDirUnderAnyFaults: whatever fails, in whatever order, nothing is ever read
// that was not written, nothing goes back, and when it is over all is as it should
// be at the first try.
func TestDirUnderAnyFaults(t *testing.T) {
	errnos := []error{syscall.EIO, syscall.ESTALE, syscall.EROFS, syscall.ENOSPC, syscall.EACCES, syscall.ETIMEDOUT}
	rapid.Check(t, func(rt *rapid.T) {
		path, id := makeStore(t, "prod")
		hosts := []haven.HostID{"a", "b"}
		stores := map[haven.HostID]*dirStore{}
		on := false
		for _, h := range hosts {
			stores[h] = newDirStore(path, "prod")
			stores[h].fs = &faulty{fault: func(string, string) error {
				if on && rapid.IntRange(0, 4).Draw(rt, "fails") == 0 {
					return rapid.SampledFrom(errnos).Draw(rt, "with")
				}
				return nil
			}}
		}
		tried, done, seen := map[string]uint64{}, map[string]uint64{}, map[string]uint64{}
		look := func(d *dirStore) {
			c, err := d.readAll()
			if err != nil {
				return
			}
			for _, raw := range c.Beats {
				name := beatName(raw.Host, raw.Writer)
				b, err := DecodeAt(id.ID, raw)
				if err != nil {
					continue
				}
				if b.Sequence < max(seen[name], done[name]) || b.Sequence > tried[name] {
					rt.Fatalf("%s reads as %d: saw %d, wrote %d, tried %d", name, b.Sequence, seen[name], done[name], tried[name])
				}
				seen[name] = b.Sequence
			}
		}
		write := func(h haven.HostID) error {
			name := beatName(h, WriterAgent)
			tried[name]++
			err := stores[h].write(rawOf(t, beatOf(id.ID, h, WriterAgent, tried[name])))
			if err == nil {
				done[name] = tried[name]
			}
			return err
		}
		on = true
		for range rapid.IntRange(1, 20).Draw(rt, "steps") {
			h := rapid.SampledFrom(hosts).Draw(rt, "host")
			if rapid.Bool().Draw(rt, "write") {
				_ = write(h) // It fails or not.
			} else {
				look(stores[h])
			}
		}
		on = false
		for _, h := range hosts {
			if err := write(h); err != nil {
				rt.Fatalf("%s after the faults: %v", h, err)
			}
			look(stores[h])
			if name := beatName(h, WriterAgent); seen[name] != tried[name] {
				rt.Fatalf("%s reads as %d after %d was written", name, seen[name], tried[name])
			}
		}
	})
}

// TestDirWithoutDirectIO: where a file system refuses to pass the page cache by,
// beats go through it, and the check says so.
func TestDirWithoutDirectIO(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("haven-test", dir, "ramfs", 0, ""); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := filepath.Join(dir, ".haven")
	id, err := initStore(path, InitOptions{Cluster: "prod"})
	if err != nil {
		t.Fatal(err)
	}
	d, other := newDirStore(path, "prod"), newDirStore(path, "prod")
	for seq := uint64(1); seq <= 3; seq++ {
		put(t, d, beatOf(id.ID, "kvm-01", WriterAgent, seq))
		if got := sequences(t, other); got["kvm-01.agent"] != seq {
			t.Fatal(got)
		}
	}
	r, err := d.check()
	if err != nil || r.Direct {
		t.Errorf("%+v, %v", r, err)
	}
}

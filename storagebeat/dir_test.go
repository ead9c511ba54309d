package storagebeat

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	haven "github.com/haven-ha/haven"
)

// makeStore makes a store in a temporary directory.
func makeStore(t testing.TB, cluster string) (path string, id Identity) {
	t.Helper()
	path = filepath.Join(t.TempDir(), ".haven")
	id, err := initStore(path, InitOptions{Cluster: cluster})
	if err != nil {
		t.Fatal(err)
	}
	return path, id
}

func beatOf(id StoreID, host haven.HostID, w Writer, seq uint64) Beat {
	return Beat{Store: id, Host: host, Writer: w, Boot: "boot", State: "state", Incarnation: 1, Sequence: seq}
}

func rawOf(t testing.TB, b Beat) RawBeat {
	return RawBeat{Host: b.Host, Writer: b.Writer, Data: mustEncode(t, b)}
}

func put(t testing.TB, d *dirStore, b Beat) {
	t.Helper()
	if err := d.write(rawOf(t, b)); err != nil {
		t.Fatal(err)
	}
}

// sequences reads all and returns host.writer → sequence, 0 for what is no beat.
func sequences(t testing.TB, d *dirStore) map[string]uint64 {
	t.Helper()
	c, err := d.readAll()
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]uint64{}
	for _, raw := range c.Beats {
		b, _ := DecodeAt(c.Identity.ID, raw)
		m[beatName(raw.Host, raw.Writer)] = b.Sequence
	}
	return m
}

func TestDirWritesInPlace(t *testing.T) {
	path, id := makeStore(t, "prod")
	a, b := newDirStore(path, "prod"), newDirStore(path, "prod")
	for seq := uint64(1); seq <= 5; seq++ {
		put(t, a, beatOf(id.ID, "kvm-01", WriterAgent, seq))
		put(t, b, beatOf(id.ID, "kvm-02.agent", WriterHelper, 10*seq))
		for _, d := range []*dirStore{a, b} {
			got := sequences(t, d)
			if len(got) != 2 || got["kvm-01.agent"] != seq || got["kvm-02.agent.helper"] != 10*seq {
				t.Fatalf("after %d: %v", seq, got)
			}
		}
	}
	st, err := os.Stat(a.beatPath("kvm-01.agent"))
	if err != nil || st.Size() != RecordSize || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", st, err)
	}
}

func TestDirWithoutItsIdentityIsNoStore(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, path string)
		want  error
	}{
		{"not mounted: an empty directory", func(t *testing.T, path string) {
			rename(t, path, path+".elsewhere")
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, ErrNoIdentity},
		{"not mounted: no directory", func(t *testing.T, path string) { rename(t, path, path+".elsewhere") }, ErrNoIdentity},
		{"a file is there", func(t *testing.T, path string) {
			rename(t, path, path+".elsewhere")
			overwrite(t, path, "x")
		}, ErrNoIdentity},
		{"the identity was deleted", func(t *testing.T, path string) { remove(t, filepath.Join(path, identityName)) }, ErrNoIdentity},
		{"another cluster's", func(t *testing.T, path string) {
			text, err := EncodeIdentity(Identity{ID: testStore(3), Cluster: "lab"})
			if err != nil {
				t.Fatal(err)
			}
			overwrite(t, filepath.Join(path, identityName), string(text))
		}, ErrForeign},
		{"empty", func(t *testing.T, path string) { overwrite(t, filepath.Join(path, identityName), "") }, ErrForeign},
		{"of a later format", func(t *testing.T, path string) {
			edit(t, filepath.Join(path, identityName), `"format": 1`, `"format": 2`)
		}, ErrForeign},
		{"of something else", func(t *testing.T, path string) {
			edit(t, filepath.Join(path, identityName), identityMagic, "lost+found")
		}, ErrForeign},
		{"with an unknown field", func(t *testing.T, path string) {
			edit(t, filepath.Join(path, identityName), `"format"`, `"x": 1, "format"`)
		}, ErrForeign},
		{"without an id", func(t *testing.T, path string) {
			overwrite(t, filepath.Join(path, identityName), `{"magic":"haven-store","format":1,"cluster":"prod"}`)
		}, ErrForeign},
	} {
		t.Run("P5: "+tc.name, func(t *testing.T) {
			path, id := makeStore(t, "prod")
			d := newDirStore(path, "prod")
			put(t, d, beatOf(id.ID, "kvm-01", WriterAgent, 1))
			sequences(t, d) // The files are open now, and must not be used any more.
			tc.spoil(t, path)
			if c, err := d.readAll(); !errors.Is(err, tc.want) {
				t.Errorf("read: %+v, %v", c, err)
			}
			if err := d.write(rawOf(t, beatOf(id.ID, "kvm-01", WriterAgent, 2))); !errors.Is(err, tc.want) {
				t.Errorf("write: %v", err)
			}
			if len(d.reading)+len(d.writing) != 0 {
				t.Error("files are kept open: what is mounted there cannot be unmounted")
			}
			if entries, _ := os.ReadDir(filepath.Join(path, beatsName)); len(entries) > 1 {
				t.Errorf("something was written: %v", entries)
			}
		})
	}
}

func TestDirComesBack(t *testing.T) {
	path, id := makeStore(t, "prod")
	d := newDirStore(path, "prod")
	put(t, d, beatOf(id.ID, "kvm-01", WriterAgent, 1))
	rename(t, path, path+".away")
	if err := d.write(rawOf(t, beatOf(id.ID, "kvm-01", WriterAgent, 2))); err == nil {
		t.Fatal("written to a store that is away")
	}
	rename(t, path+".away", path)
	put(t, d, beatOf(id.ID, "kvm-01", WriterAgent, 3))
	if got := sequences(t, d); got["kvm-01.agent"] != 3 {
		t.Fatal(got)
	}
}

// TestDirSeesReplacedFiles: an open handle of a file that lost its name would
// show a host as silent for ever.
func TestDirSeesReplacedFiles(t *testing.T) {
	replace := map[string]func(t *testing.T, file string, data []byte){
		"deleted and made anew": func(t *testing.T, file string, data []byte) {
			remove(t, file)
			overwrite(t, file, string(data))
		},
		"another renamed over it": func(t *testing.T, file string, data []byte) {
			overwrite(t, file+".new", string(data))
			rename(t, file+".new", file)
		},
		"the whole directory put back": func(t *testing.T, file string, data []byte) {
			rename(t, filepath.Dir(file), filepath.Dir(file)+".old")
			if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil {
				t.Fatal(err)
			}
			overwrite(t, file, string(data))
		},
	}
	for name, f := range replace {
		t.Run(name, func(t *testing.T) {
			path, id := makeStore(t, "prod")
			reader, writer := newDirStore(path, "prod"), newDirStore(path, "prod")
			put(t, writer, beatOf(id.ID, "kvm-01", WriterAgent, 5))
			sequences(t, reader)
			f(t, reader.beatPath("kvm-01.agent"), mustEncode(t, beatOf(id.ID, "kvm-01", WriterAgent, 4)))
			if got := sequences(t, reader); got["kvm-01.agent"] != 4 {
				t.Fatalf("the reader sees %v, which has no name any more", got)
			}
			put(t, writer, beatOf(id.ID, "kvm-01", WriterAgent, 6))
			if got := sequences(t, reader); got["kvm-01.agent"] != 6 {
				t.Fatalf("the reader sees %v after a write", got)
			}
		})
	}
}

// TestDirSeesAnotherStoreAtItsPath: beats for the new store do not go to the old
// one, which others may still write to.
func TestDirSeesAnotherStoreAtItsPath(t *testing.T) {
	path, old := makeStore(t, "prod")
	next, id := makeStore(t, "prod")
	d := newDirStore(path, "prod")
	put(t, d, beatOf(old.ID, "kvm-01", WriterAgent, 1))
	sequences(t, d)
	rename(t, path, path+".old")
	rename(t, next, path)
	if c, err := d.readAll(); err != nil || c.Identity != id || len(c.Beats) != 0 {
		t.Fatalf("%+v, %v", c, err)
	}
	if len(d.reading)+len(d.writing) != 0 {
		t.Error("files of the old store are kept open")
	}
	put(t, d, beatOf(id.ID, "kvm-01", WriterAgent, 2))
	if got := sequences(t, newDirStore(path, "prod")); got["kvm-01.agent"] != 2 {
		t.Error(got)
	}
	if got := sequences(t, newDirStore(path+".old", "prod")); got["kvm-01.agent"] != 1 {
		t.Errorf("the old store was written to: %v", got)
	}
}

// TestDirReadBackReopensTheWriter: where a name lookup is answered from a cache, as
// over NFS, the own beat read back tells that writes go elsewhere.
func TestDirReadBackReopensTheWriter(t *testing.T) {
	path, id := makeStore(t, "prod")
	d := newDirStore(path, "prod")
	put(t, d, beatOf(id.ID, "kvm-01", WriterAgent, 5))
	overwrite(t, d.beatPath("kvm-01.agent"), string(mustEncode(t, beatOf(id.ID, "kvm-01", WriterAgent, 4))))
	sequences(t, d)
	if len(d.writing) != 0 {
		t.Error("the writer keeps its handle")
	}
}

func TestDirSingleRecordsFailAlone(t *testing.T) {
	path, id := makeStore(t, "prod")
	d := newDirStore(path, "prod")
	put(t, d, beatOf(id.ID, "good", WriterAgent, 1))
	beats := filepath.Join(path, beatsName)
	overwrite(t, filepath.Join(beats, "short.agent"), "HAVENBT\n")
	overwrite(t, filepath.Join(beats, "empty.agent"), "")
	overwrite(t, filepath.Join(beats, "torn.agent"), string(mustEncode(t, beatOf(id.ID, "torn", WriterAgent, 1))[:2048]))
	overwrite(t, filepath.Join(beats, "other.agent"), string(mustEncode(t, beatOf(id.ID, "good", WriterAgent, 9))))
	overwrite(t, filepath.Join(beats, "foreign.agent"), string(mustEncode(t, beatOf(testStore(9), "foreign", WriterAgent, 9))))
	overwrite(t, filepath.Join(beats, "README"), "hello")
	overwrite(t, filepath.Join(beats, "good.agent.bak"), "hello")
	if err := syscall.Mkfifo(filepath.Join(beats, "fifo.helper"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(beats, "dir.agent"), 0o700); err != nil {
		t.Fatal(err)
	}
	want := map[string]uint64{
		"good.agent": 1, "short.agent": 0, "empty.agent": 0, "torn.agent": 0, "other.agent": 0, "foreign.agent": 0,
		"fifo.helper": 0, "dir.agent": 0,
	}
	got := sequences(t, d)
	if len(got) != len(want) || got["good.agent"] != 1 {
		t.Errorf("got %v, want %v", got, want)
	}
	for name, seq := range got {
		if want[name] != seq {
			t.Errorf("%s: %d", name, seq)
		}
	}
	c, err := d.readAll()
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]string{
		"good": "", "empty": ErrBlank.Error(), "short": "torn", "torn": "torn", "other": "foreign", "foreign": "foreign",
		"fifo": "neither", "dir": "neither",
	}
	for _, e := range Dump(c) {
		if (e.Beat == nil) == (e.Error == "") || !strings.Contains(e.Error, reasons[e.Host]) {
			t.Errorf("dump of %s: %+v", e.Host, e)
		}
	}
}

func TestDirRefusesBeatsOfElsewhere(t *testing.T) {
	path, id := makeStore(t, "prod")
	d := newDirStore(path, "prod")
	good := beatOf(id.ID, "kvm-01", WriterAgent, 1)
	for _, tc := range []struct {
		name string
		raw  RawBeat
		want error
	}{
		{"for another store", rawOf(t, beatOf(testStore(9), "kvm-01", WriterAgent, 1)), ErrForeign},
		{"under another name", RawBeat{Host: "kvm-02", Writer: WriterAgent, Data: mustEncode(t, good)}, ErrForeign},
		{"a path instead of a name", RawBeat{Host: "../../x", Writer: WriterAgent, Data: mustEncode(t, good)}, ErrForeign},
		{"no record", RawBeat{Host: "kvm-01", Writer: WriterAgent}, ErrTorn},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := d.write(tc.raw); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
	if got := sequences(t, d); len(got) != 0 {
		t.Errorf("something was written: %v", got)
	}
}

func TestDirBoundsItsFiles(t *testing.T) {
	path, _ := makeStore(t, "prod")
	for i := range maxFiles + 1 {
		overwrite(t, filepath.Join(path, beatsName, "x"+strings.Repeat("y", i%200)+string(rune('a'+i/200))), "")
	}
	if _, err := newDirStore(path, "prod").readAll(); !errors.Is(err, ErrForeign) {
		t.Fatalf("got %v", err)
	}
}

// TestDirWritersDoNotTear: one host reads while others write, and never sees
// half a record or an older one after a newer one.
func TestDirWritersDoNotTear(t *testing.T) {
	path, id := makeStore(t, "prod")
	hosts := []haven.HostID{"a", "b", "c"}
	const beats = 60
	var wg sync.WaitGroup
	for _, h := range hosts {
		for _, w := range []Writer{WriterAgent, WriterHelper} {
			wg.Go(func() {
				d := newDirStore(path, "prod")
				for seq := uint64(1); seq <= beats; seq++ {
					if err := d.write(rawOf(t, beatOf(id.ID, h, w, seq))); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	d, last := newDirStore(path, "prod"), map[string]uint64{}
	for finished := false; !finished; {
		select {
		case <-done:
			finished = true
		default:
		}
		c, err := d.readAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, raw := range c.Beats {
			name := beatName(raw.Host, raw.Writer)
			b, err := DecodeAt(id.ID, raw)
			if err != nil && !errors.Is(err, ErrBlank) {
				t.Fatalf("%s: %v", name, err)
			}
			if b.Sequence < last[name] {
				t.Fatalf("%s: %d after %d", name, b.Sequence, last[name])
			}
			last[name] = b.Sequence
		}
	}
	for name, seq := range last {
		if seq != beats {
			t.Errorf("%s ends at %d", name, seq)
		}
	}
	if len(last) != 6 {
		t.Errorf("saw %v", last)
	}
}

// TestDirOnBadFileSystems uses real small mounts: it needs to be root.
func TestDirOnBadFileSystems(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	mount := func(t *testing.T) (path string, id Identity, dir string) {
		dir = t.TempDir()
		if err := syscall.Mount("haven-test", dir, "tmpfs", 0, "size=256k"); err != nil {
			t.Skipf("mount: %v", err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
		path = filepath.Join(dir, ".haven")
		id, err := initStore(path, InitOptions{Cluster: "prod"})
		if err != nil {
			t.Fatal(err)
		}
		return path, id, dir
	}
	t.Run("a full store goes on", func(t *testing.T) {
		path, id, dir := mount(t)
		d := newDirStore(path, "prod")
		put(t, d, beatOf(id.ID, "kvm-01", WriterAgent, 1))
		if err := os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("could not fill the store: %v", err)
		}
		put(t, d, beatOf(id.ID, "kvm-01", WriterAgent, 2))
		put(t, newDirStore(path, "prod"), beatOf(id.ID, "kvm-01", WriterAgent, 3))
		if err := d.write(rawOf(t, beatOf(id.ID, "kvm-02", WriterAgent, 1))); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a new host's first beat: %v", err)
		}
		if got := sequences(t, d); got["kvm-01.agent"] != 3 || got["kvm-02.agent"] != 0 {
			t.Error(got)
		}
		remove(t, filepath.Join(dir, "fill"))
		put(t, d, beatOf(id.ID, "kvm-02", WriterAgent, 2))
		if got := sequences(t, d); got["kvm-02.agent"] != 2 {
			t.Error(got)
		}
	})
	t.Run("a read-only store is read", func(t *testing.T) {
		path, id, dir := mount(t)
		d := newDirStore(path, "prod")
		put(t, d, beatOf(id.ID, "kvm-01", WriterAgent, 1))
		d.drop() // A file that is open for writing keeps the mount writable.
		remount := func(flags uintptr) {
			t.Helper()
			if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|flags, ""); err != nil {
				t.Fatal(err)
			}
		}
		remount(syscall.MS_RDONLY)
		if err := d.write(rawOf(t, beatOf(id.ID, "kvm-01", WriterAgent, 2))); !errors.Is(err, syscall.EROFS) {
			t.Errorf("write: %v", err)
		}
		if got := sequences(t, d); got["kvm-01.agent"] != 1 {
			t.Error(got)
		}
		remount(0)
		put(t, d, beatOf(id.ID, "kvm-01", WriterAgent, 3))
		if got := sequences(t, d); got["kvm-01.agent"] != 3 {
			t.Error(got)
		}
	})
	t.Run("P5: unmounted below us", func(t *testing.T) {
		path, id, dir := mount(t)
		d := newDirStore(path, "prod")
		put(t, d, beatOf(id.ID, "kvm-01", WriterAgent, 1))
		sequences(t, d)
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		if _, err := d.readAll(); !errors.Is(err, ErrNoIdentity) {
			t.Errorf("read: %v", err)
		}
		if err := d.write(rawOf(t, beatOf(id.ID, "kvm-01", WriterAgent, 2))); !errors.Is(err, ErrNoIdentity) {
			t.Errorf("write: %v", err)
		}
	})
}

func TestInit(t *testing.T) {
	for _, tc := range []struct {
		name  string
		setup func(t *testing.T, path string)
		opt   func(path string) InitOptions
		want  error
	}{
		{"a new directory", nil, func(string) InitOptions { return InitOptions{Cluster: "prod"} }, nil},
		{
			"an empty directory", func(t *testing.T, path string) { mkdir(t, path) },
			func(string) InitOptions { return InitOptions{Cluster: "prod"} }, nil,
		},
		{
			"something is there", func(t *testing.T, path string) { mkdir(t, path); overwrite(t, filepath.Join(path, "x"), "x") },
			func(string) InitOptions { return InitOptions{Cluster: "prod"} }, ErrNotEmpty,
		},
		{
			"something is there, another name", func(t *testing.T, path string) { mkdir(t, path); overwrite(t, filepath.Join(path, "x"), "x") },
			func(string) InitOptions { return InitOptions{Cluster: "prod", Replace: "prod"} }, ErrNotEmpty,
		},
		{
			"something is there, by name", func(t *testing.T, path string) { mkdir(t, path); overwrite(t, filepath.Join(path, "x"), "x") },
			func(path string) InitOptions { return InitOptions{Cluster: "prod", Replace: path} }, nil,
		},
		{"the same cluster's store", initAs("prod"), func(string) InitOptions { return InitOptions{Cluster: "prod"} }, ErrNotEmpty},
		{"the same cluster's store by name", initAs("prod"), func(string) InitOptions { return InitOptions{Cluster: "prod", Replace: "prod"} }, nil},
		{"another cluster's store", initAs("lab"), func(string) InitOptions { return InitOptions{Cluster: "prod"} }, ErrNotEmpty},
		{
			"another cluster's store, by the wrong name", initAs("lab"),
			func(path string) InitOptions { return InitOptions{Cluster: "prod", Replace: path} }, ErrNotEmpty,
		},
		{"another cluster's store by name", initAs("lab"), func(string) InitOptions { return InitOptions{Cluster: "prod", Replace: "lab"} }, nil},
		{"a store of a later format", func(t *testing.T, path string) {
			initAs("lab")(t, path)
			edit(t, filepath.Join(path, identityName), `"format": 1`, `"format": 2`)
		}, func(string) InitOptions { return InitOptions{Cluster: "prod"} }, ErrNotEmpty},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), ".haven")
			if tc.setup != nil {
				tc.setup(t, path)
			}
			before, _ := readIdentity(path)
			id, err := initStore(path, tc.opt(path))
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			after, _ := readIdentity(path)
			if err != nil && (after != before || id != before) {
				t.Fatalf("refused, and yet: was %v, is %v, returned %v", before, after, id)
			}
			if err == nil && (after != id || id.Cluster != "prod" || id.ID == before.ID) {
				t.Fatalf("is %v, returned %v", after, id)
			}
		})
	}
	t.Run("the mount point itself is not made", func(t *testing.T) {
		if _, err := initStore(filepath.Join(t.TempDir(), "mnt", ".haven"), InitOptions{Cluster: "prod"}); err == nil {
			t.Fatal("made")
		}
	})
	t.Run("a name that is none", func(t *testing.T) {
		if _, err := initStore(filepath.Join(t.TempDir(), ".haven"), InitOptions{Cluster: "a b"}); err == nil {
			t.Fatal("made")
		}
	})
	t.Run("an identity is never written over by accident", func(t *testing.T) {
		path, id := makeStore(t, "prod")
		other := Identity{ID: testStore(5), Cluster: "prod"}
		text, err := EncodeIdentity(other)
		if err != nil {
			t.Fatal(err)
		}
		if err := putIdentity(path, other, text, false); !errors.Is(err, ErrNotEmpty) {
			t.Errorf("got %v", err)
		}
		if got, err := readIdentity(path); got != id || err != nil {
			t.Errorf("is %v, %v", got, err)
		}
		if entries, _ := os.ReadDir(path); len(entries) != 2 {
			t.Errorf("left behind: %v", entries)
		}
	})
	t.Run("of many at once one wins", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), ".haven")
		mkdir(t, path)
		var wg sync.WaitGroup
		won := make(chan Identity, 8)
		for range 8 {
			wg.Go(func() {
				if id, err := initStore(path, InitOptions{Cluster: "prod"}); err == nil {
					won <- id
				} else if !errors.Is(err, ErrNotEmpty) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if id, err := readIdentity(path); err != nil || len(won) > 1 || len(won) == 1 && <-won != id {
			t.Fatalf("%d won; %v, %v", len(won), id, err)
		}
	})
}

// TestReinitForgetsOldBeats: beats of the store that was are nobody's sign of life.
func TestReinitForgetsOldBeats(t *testing.T) {
	path, old := makeStore(t, "prod")
	d := newDirStore(path, "prod")
	put(t, d, beatOf(old.ID, "kvm-01", WriterAgent, 1))
	id, err := initStore(path, InitOptions{Cluster: "prod", Replace: "prod"})
	if err != nil {
		t.Fatal(err)
	}
	if got := sequences(t, d); len(got) != 0 {
		t.Errorf("old beats are left: %v", got)
	}
	if err := d.write(rawOf(t, beatOf(old.ID, "kvm-01", WriterAgent, 2))); !errors.Is(err, ErrForeign) {
		t.Errorf("a beat for the old store: %v", err)
	}
	put(t, d, beatOf(id.ID, "kvm-01", WriterAgent, 3))
	if got := sequences(t, d); got["kvm-01.agent"] != 3 {
		t.Error(got)
	}
}

func TestCheck(t *testing.T) {
	path, id := makeStore(t, "prod")
	d := newDirStore(path, "prod")
	put(t, d, beatOf(id.ID, "kvm-01", WriterAgent, 1))
	overwrite(t, d.beatPath("kvm-02.agent"), "x")
	r, err := d.check()
	if err != nil || r.Identity != id || r.Records != 2 || r.Valid != 1 || r.FileSystem == "" || r.WriteLatency <= 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	names, err := d.list()
	if err != nil || !slices.Equal(names, []string{"kvm-01.agent", "kvm-02.agent"}) {
		t.Fatalf("the check left something behind: %v, %v", names, err)
	}
}

func FuzzIdentity(f *testing.F) {
	text, err := EncodeIdentity(Identity{ID: testStore(1), Cluster: "prod-a"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"magic":"haven-store","format":1,"id":"","cluster":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := DecodeIdentity(b)
		if err != nil {
			return
		}
		text, err := EncodeIdentity(id)
		if err != nil {
			t.Fatalf("decoded %v, which cannot be: %v", id, err)
		}
		if again, err := DecodeIdentity(text); err != nil || again != id {
			t.Fatalf("%v became %v, %v", id, again, err)
		}
	})
}

func initAs(cluster string) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		t.Helper()
		if _, err := initStore(path, InitOptions{Cluster: cluster}); err != nil {
			t.Fatal(err)
		}
	}
}

func mkdir(t testing.TB, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

func rename(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func edit(t testing.TB, path, from, to string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(b, []byte(from)) {
		t.Fatalf("%s has no %q: %v", path, from, err)
	}
	overwrite(t, path, strings.Replace(string(b), from, to, 1))
}

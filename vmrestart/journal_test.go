package vmrestart

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/haven-ha/haven"
)

func someState() JournalState {
	o := orderOf(vmA, 3)
	return JournalState{Version: journalVersion, Highest: haven.Term{Generation: 1, Term: 9}, VMs: map[haven.VMID]OrderRecord{
		vmA: {Order: o, Status: haven.OrderFailed, Detail: "locked", Locked: true, Tried: true},
		vmB: {Order: orderOf(vmB, 1), Status: haven.OrderAccepted},
	}}
}

func TestFileJournal(t *testing.T) {
	j := FileJournal{Path: filepath.Join(t.TempDir(), "orders.json")}
	empty, err := j.Load()
	if err != nil || len(empty.VMs) != 0 || !empty.Highest.IsZero() {
		t.Fatalf("a journal that was never written: %+v, %v", empty, err)
	}
	for range 3 {
		if err := j.Save(someState()); err != nil {
			t.Fatal(err)
		}
	}
	got, err := j.Load()
	if err != nil || !reflect.DeepEqual(got, someState()) {
		t.Errorf("read %+v, %v", got, err)
	}
	if info, err := os.Stat(j.Path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if left, err := os.ReadDir(filepath.Dir(j.Path)); err != nil || len(left) != 1 {
		t.Errorf("files left: %v, %v", left, err)
	}
}

// P7: a journal that cannot be read whole is an error: an empty one in its
// place would forget what was begun.
func TestDamagedJournal(t *testing.T) {
	dir := t.TempDir()
	j := FileJournal{Path: filepath.Join(dir, "orders.json")}
	if err := j.Save(someState()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(j.Path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if err := os.WriteFile(j.Path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := j.Load(); err == nil {
			t.Fatalf("%d of %d octets were read as %+v", n, len(whole), s)
		}
	}
	tests := []struct{ name, text, want string }{
		{"another version", `{"version":2,"vms":{}}`, "has version 2"},
		{"no version", `{}`, "has version 0"},
		{"null", `null`, "has version 0"},
		{"more behind", string(whole) + "x", "damaged"},
		{"another VM's order", strings.Replace(string(whole), `"`+string(vmA)+`":`, `"`+string(vmB)+`x":`, 1), "damaged"},
		{"no order", `{"version":1,"highest_term":{"generation":1,"term":1},"vms":{"x":{}}}`, "damaged"},
		{"no status", `{"version":1,"vms":{"x":{"order":{"id":"x.1","vm":"x"}}}}`, "damaged"},
		{"no VMs", `{"version":1}`, "damaged"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(j.Path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if s, err := j.Load(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%+v, %v; want an error with %q", s, err, tt.want)
			}
		})
	}
	t.Run("a directory in its place", func(t *testing.T) {
		if _, err := (FileJournal{Path: dir}).Load(); err == nil {
			t.Error("it was read")
		}
	})
}

// What cannot be written leaves the old journal as it was.
func TestJournalIsAtomic(t *testing.T) {
	dir := t.TempDir()
	j := FileJournal{Path: filepath.Join(dir, "orders.json")}
	if err := j.Save(someState()); err != nil {
		t.Fatal(err)
	}
	stays := func(t *testing.T, what string) {
		t.Helper()
		if err := j.Save(JournalState{}); err == nil {
			t.Errorf("%s: saving succeeded", what)
		}
		if got, err := j.Load(); err != nil || !reflect.DeepEqual(got, someState()) {
			t.Errorf("%s: the journal is %+v, %v", what, got, err)
		}
	}
	t.Run("something is in the way", func(t *testing.T) {
		if err := os.MkdirAll(j.Path+".new/x", 0o700); err != nil {
			t.Fatal(err)
		}
		stays(t, "a directory has the temporary name")
		if err := os.RemoveAll(j.Path + ".new"); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("the sync fails", func(t *testing.T) {
		// A file on which fsync fails: what was written may be nowhere.
		if err := os.Symlink("/dev/full", j.Path+".new"); err != nil {
			t.Fatal(err)
		}
		stays(t, "a full device")
		if _, err := os.Lstat(j.Path + ".new"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what could not be written was left behind: %v", err)
		}
		if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
			t.Fatal(err)
		}
		hold, err := os.OpenFile(filepath.Join(dir, "pipe"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer hold.Close()
		if err := os.Symlink("pipe", j.Path+".new"); err != nil {
			t.Fatal(err)
		}
		stays(t, "a pipe cannot be synced")
	})
	t.Run("the directory is gone", func(t *testing.T) {
		if err := (FileJournal{Path: filepath.Join(dir, "no", "orders.json")}).Save(someState()); err == nil {
			t.Error("saving succeeded")
		}
	})
	t.Run("a torn temporary file of a crash", func(t *testing.T) {
		if err := os.WriteFile(j.Path+".new", []byte(`{"version":1,"vms":{"half`), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := j.Load(); err != nil || !reflect.DeepEqual(got, someState()) {
			t.Errorf("%+v, %v", got, err)
		}
		if err := j.Save(someState()); err != nil {
			t.Error(err)
		}
	})
}

func FuzzJournalLoad(f *testing.F) {
	j := FileJournal{Path: filepath.Join(f.TempDir(), "orders.json")}
	if err := j.Save(someState()); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(j.Path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte(`{"version":1,"vms":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		j := FileJournal{Path: filepath.Join(t.TempDir(), "orders.json")}
		if err := os.WriteFile(j.Path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := j.Load()
		if err != nil {
			return
		}
		if err := j.Save(s); err != nil {
			t.Fatal(err)
		}
		if again, err := j.Load(); err != nil || !reflect.DeepEqual(again, s) {
			t.Fatalf("%+v, %v; want %+v", again, err, s)
		}
	})
}

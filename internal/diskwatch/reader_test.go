package diskwatch

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/haven-ha/haven/storagebeat"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "store-child" {
		os.Exit(storagebeat.ChildMain(os.Args[2:], os.Stdin, os.Stdout))
	}
	os.Exit(m.Run())
}

func newReader(t *testing.T, timeout time.Duration) *Reader {
	t.Helper()
	r, err := NewReader([]string{"/proc/self/exe", "store-child"}, timeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Log(err)
		}
	})
	return r
}

// TestReader guards P5 and P8 with real children: one answer for each path, in
// order, and never more processes than lanes, however many directories there are.
func TestReader(t *testing.T) {
	r := newReader(t, 5*time.Second)
	dir := t.TempDir()
	var paths []string
	for i := range 3 * lanes {
		sub := filepath.Join(dir, string(rune('a'+i)))
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(sub, "disk")
		paths = append(paths, path)
		if i == 5 {
			continue // It is missing.
		}
		if err := os.WriteFile(path, make([]byte, i+1), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	found := r.Stat(t.Context(), paths)
	for i, f := range found {
		if f.Path != paths[i] || f.Ended.Before(f.Started) {
			t.Errorf("answer %d is %+v", i, f)
		}
		if missing := i == 5; missing != (f.Err != nil) || !missing && f.Attr.Size != uint64(i+1) {
			t.Errorf("%s: %+v", f.Path, f)
		}
	}
	started := 0
	for _, s := range r.Stats() {
		started += s.Started
	}
	if started > lanes || len(found) != len(paths) {
		t.Errorf("%d processes for %d answers", started, len(found))
	}
	if again := r.Stat(t.Context(), paths); !slices.EqualFunc(again, found, func(a, b Found) bool { return a.Attr == b.Attr }) {
		t.Error("nothing was written, and the answers differ")
	}
	r.Rest()
	for _, s := range r.Stats() {
		if s.PID != 0 {
			t.Errorf("at rest: %+v", s)
		}
	}
	if f := r.Stat(t.Context(), paths[:1])[0]; f.Err != nil {
		t.Errorf("after a rest: %+v", f)
	}
}

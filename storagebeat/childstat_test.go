package storagebeat

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/haven-ha/haven/internal/blockio"
)

// TestStat guards P8 and P5: a child without a store tells of files, whatever they
// are, and one that hangs ends with its deadline.
func TestStat(t *testing.T) {
	c, set := startChild(t, "", 2*time.Second)
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := c.Stat(t.Context(), path)
	if err != nil || !first.Regular || first.Size != 5000 {
		t.Fatalf("Stat() = %+v, %v", first, err)
	}
	if again, err := c.Stat(t.Context(), path); err != nil || again != first {
		t.Errorf("nothing was written: %+v, %v; before %+v", again, err, first)
	}
	if err := os.WriteFile(path, make([]byte, 6000), 0o600); err != nil {
		t.Fatal(err)
	}
	if grown, err := c.Stat(t.Context(), path); err != nil || grown == first || !grown.SameFile(first) {
		t.Errorf("a file that grew: %+v, %v", grown, err)
	}
	if dev, err := c.Stat(t.Context(), "/dev/null"); err != nil || dev.Regular {
		t.Errorf("a device: %+v, %v", dev, err)
	}
	if own, err := blockio.Stat("/proc/self/status"); err != nil || own.Shared {
		t.Errorf("a file of this host's kernel: %+v, %v", own, err)
	}
	for _, path := range []string{"relative", filepath.Join(t.TempDir(), "missing")} {
		if a, err := c.Stat(t.Context(), path); err == nil {
			t.Errorf("%s: %+v", path, a)
		}
	}
	c.Rest()
	if s := c.Stats(); s.PID != 0 || s.Stuck || s.Started != 1 {
		t.Errorf("at rest: %+v", s)
	}
	if _, err := c.Stat(t.Context(), path); err != nil || c.Stats().Started != 2 {
		t.Errorf("after a rest: %v, %+v", err, c.Stats())
	}
	set("hang-stat", true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Stat(ctx, path); !errors.Is(err, ErrTimeout) {
		t.Errorf("hung: %v", err)
	}
	if s := c.Stats(); s.Abandoned != 1 {
		t.Errorf("hung: %+v", s)
	}
	set("hang-stat", false)
	if _, err := c.Stat(t.Context(), path); err != nil {
		t.Errorf("after the hang: %v", err)
	}
}

package minicluster

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/haven-ha/haven/internal/diskwatch"
	"github.com/haven-ha/haven/internal/world"
)

// DiskPath is the real file that stands for a disk on the shared storage, such as
// /shared/vm1.img. It does not exist before somebody makes it.
func (c *Cluster) DiskPath(disk string) string {
	return filepath.Join(c.opts.Dir, "disks", filepath.Base(disk))
}

func (c *Cluster) diskIdle() string {
	if c.opts.DiskIdle == 0 {
		return ""
	}
	return fmt.Sprintf(", disk_idle: %s", c.opts.DiskIdle)
}

// KillHelper ends the helper as SIGKILL would.
func (h *Host) KillHelper() {
	h.mu.Lock()
	l := h.helper
	h.helper = nil
	h.mu.Unlock()
	l.end()
}

func (h *Host) helperRuns() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.helper != nil
}

// vmDisks reads real files, as they are on the shared storage of one machine.
type vmDisks struct {
	h *Host
	r *diskwatch.Reader
}

// Written lists the disks of a definition.
func (d vmDisks) Written(xml []byte) ([]diskwatch.Disk, error) {
	paths, err := world.DiskPaths(xml)
	if err != nil {
		return nil, err
	}
	disks := make([]diskwatch.Disk, 0, len(paths))
	for _, p := range paths {
		disks = append(disks, diskwatch.Disk{Path: p})
	}
	return disks, nil
}

// Rest ends the children that stand by.
func (d vmDisks) Rest() { d.r.Rest() }

// Stat looks at files. The directory that they are in is shared by all machines of
// this process, whatever kind of file system it is on.
func (d vmDisks) Stat(ctx context.Context, paths []string) []diskwatch.Found {
	begun := time.Now()
	if err := (&gatedDevice{h: d.h}).gate(ctx); err != nil {
		found := make([]diskwatch.Found, 0, len(paths))
		for _, p := range paths {
			found = append(found, diskwatch.Found{Path: p, Started: begun, Ended: time.Now(), Err: err})
		}
		return found
	}
	files := make([]string, 0, len(paths))
	for _, p := range paths {
		files = append(files, d.h.c.DiskPath(p))
	}
	found := d.r.Stat(ctx, files)
	for i := range found {
		found[i].Path = paths[i]
		found[i].Attr.Shared = true
	}
	return found
}

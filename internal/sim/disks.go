package sim

import (
	"context"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/agent"
	"github.com/haven-ha/haven/internal/blockio"
	"github.com/haven-ha/haven/internal/diskwatch"
	"github.com/haven-ha/haven/internal/world"
)

// diskPool is where the VMs' disks are, on shared storage. Running VMs write all
// the time, as long as their machine runs and reaches the pool.
type diskPool struct {
	c *Cluster

	mu     sync.Mutex
	writes map[string]int64 // seen so far, by path
	blind  bool             // nobody is told anything of a disk
}

// BlindDisks makes all looks at VM disks fail, or succeed again. The VMs can
// write all the same.
func (c *Cluster) BlindDisks(blind bool) {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	c.pool.blind = blind
}

func (p *diskPool) isBlind() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.blind
}

func newDiskPool(c *Cluster) *diskPool { return &diskPool{c: c, writes: map[string]int64{}} }

// works says whether a machine reaches the pool.
func (p *diskPool) works(host haven.HostID) bool {
	return p.c.s.PoolApart || p.c.stores[0].works(host)
}

// attr is what the pool tells of a disk: its time moves on whenever somebody looks
// while a VM writes.
func (p *diskPool) attr(path string) blockio.Attr {
	writing := false
	for _, id := range p.c.World.Writers(path) {
		if h := p.c.Host(id); h != nil && !h.frozen() && p.works(id) {
			writing = true
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if writing {
		p.writes[path]++
	}
	return blockio.Attr{
		Dev: 1, Ino: 1, Size: 1 << 30, MTime: p.writes[path], CTime: p.writes[path], Regular: true, FileSystem: "nfs", Shared: true,
	}
}

// vmDisks is the pool as one process reaches it.
type vmDisks struct {
	p *diskPool
	l *life
}

var _ agent.Disks = vmDisks{}

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

// Rest does nothing: no process stands by.
func (d vmDisks) Rest() {}

// Stat looks at disks.
func (d vmDisks) Stat(ctx context.Context, paths []string) []diskwatch.Found {
	found := make([]diskwatch.Found, 0, len(paths))
	for _, path := range paths {
		f := diskwatch.Found{Path: path, Started: time.Now(), Err: d.l.gate(ctx)}
		if f.Err == nil && (d.p.isBlind() || !d.p.works(d.l.h.ID)) {
			f.Err = errIO
		}
		if f.Err == nil {
			f.Attr = d.p.attr(path)
		}
		f.Ended = time.Now()
		found = append(found, f)
	}
	return found
}

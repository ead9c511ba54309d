package labfs

import (
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// stale repeats what it told of a file's attributes for a while.
type stale struct {
	fuse.RawFileSystem
	lag time.Duration

	mu   sync.Mutex
	told map[uint64]toldAttr
}

type toldAttr struct {
	attr fuse.Attr
	at   time.Time
}

func lagging(f fuse.RawFileSystem, lag time.Duration) fuse.RawFileSystem {
	if lag == 0 {
		return f
	}
	return &stale{RawFileSystem: f, lag: lag, told: map[uint64]toldAttr{}}
}

// repeat puts old attributes in the place of new ones.
func (s *stale) repeat(node uint64, attr *fuse.Attr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.told[node]; ok && time.Since(t.at) < s.lag {
		*attr = t.attr
		return
	}
	s.told[node] = toldAttr{*attr, time.Now()}
}

func (s *stale) Lookup(c <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	status := s.RawFileSystem.Lookup(c, h, name, out)
	if status.Ok() {
		s.repeat(out.NodeId, &out.Attr)
	}
	return status
}

func (s *stale) GetAttr(c <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	status := s.RawFileSystem.GetAttr(c, in, out)
	if status.Ok() {
		s.repeat(in.NodeId, &out.Attr)
	}
	return status
}

// Statx makes the kernel ask with GetAttr instead.
func (s *stale) Statx(<-chan struct{}, *fuse.StatxIn, *fuse.StatxOut) fuse.Status { return fuse.ENOSYS }

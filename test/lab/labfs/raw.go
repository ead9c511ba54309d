package labfs

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// gated lets every request that needs the storage pass the gate first. Closing
// files (Flush, Release) passes always: with O_DIRECT nothing is left to write,
// and a host that loses its power must be able to die.
type gated struct {
	fuse.RawFileSystem
	gate *gate
}

func (g *gated) pass(op operation) fuse.Status { return fuse.Status(g.gate.pass(op)) }

func (g *gated) Lookup(c <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if s := g.pass(reading); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Lookup(c, h, name, out)
}

func (g *gated) GetAttr(c <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if s := g.pass(reading); !s.Ok() {
		return s
	}
	return g.RawFileSystem.GetAttr(c, in, out)
}

func (g *gated) Statx(c <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	if s := g.pass(reading); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Statx(c, in, out)
}

func (g *gated) SetAttr(c <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if s := g.pass(changing); !s.Ok() {
		return s
	}
	return g.RawFileSystem.SetAttr(c, in, out)
}

func (g *gated) Mknod(c <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := g.pass(writing); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Mknod(c, in, name, out)
}

func (g *gated) Mkdir(c <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := g.pass(writing); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Mkdir(c, in, name, out)
}

func (g *gated) Unlink(c <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if s := g.pass(changing); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Unlink(c, h, name)
}

func (g *gated) Rmdir(c <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if s := g.pass(changing); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Rmdir(c, h, name)
}

func (g *gated) Rename(c <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	if s := g.pass(changing); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Rename(c, in, from, to)
}

func (g *gated) Link(c <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := g.pass(writing); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Link(c, in, name, out)
}

func (g *gated) Symlink(c <-chan struct{}, h *fuse.InHeader, to, name string, out *fuse.EntryOut) fuse.Status {
	if s := g.pass(writing); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Symlink(c, h, to, name, out)
}

func (g *gated) Readlink(c <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	if s := g.pass(reading); !s.Ok() {
		return nil, s
	}
	return g.RawFileSystem.Readlink(c, h)
}

func (g *gated) Access(c <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	if s := g.pass(reading); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Access(c, in)
}

func (g *gated) GetXAttr(c <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	if s := g.pass(reading); !s.Ok() {
		return 0, s
	}
	return g.RawFileSystem.GetXAttr(c, h, attr, dest)
}

func (g *gated) ListXAttr(c <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if s := g.pass(reading); !s.Ok() {
		return 0, s
	}
	return g.RawFileSystem.ListXAttr(c, h, dest)
}

func (g *gated) SetXAttr(c <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	if s := g.pass(writing); !s.Ok() {
		return s
	}
	return g.RawFileSystem.SetXAttr(c, in, attr, data)
}

func (g *gated) RemoveXAttr(c <-chan struct{}, h *fuse.InHeader, attr string) fuse.Status {
	if s := g.pass(changing); !s.Ok() {
		return s
	}
	return g.RawFileSystem.RemoveXAttr(c, h, attr)
}

func (g *gated) Create(c <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if s := g.pass(writing); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Create(c, in, name, out)
}

func (g *gated) Tmpfile(c <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if s := g.pass(writing); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Tmpfile(c, in, out)
}

func (g *gated) Open(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	op := reading
	if in.Flags&(syscall.O_WRONLY|syscall.O_RDWR|syscall.O_TRUNC) != 0 {
		op = changing
	}
	if s := g.pass(op); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Open(c, in, out)
}

func (g *gated) Read(c <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if s := g.pass(reading); !s.Ok() {
		return nil, s
	}
	return g.RawFileSystem.Read(c, in, buf)
}

func (g *gated) Lseek(c <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if s := g.pass(reading); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Lseek(c, in, out)
}

func (g *gated) GetLk(c <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	if s := g.pass(reading); !s.Ok() {
		return s
	}
	return g.RawFileSystem.GetLk(c, in, out)
}

func (g *gated) SetLk(c <-chan struct{}, in *fuse.LkIn) fuse.Status {
	if s := g.pass(reading); !s.Ok() {
		return s
	}
	return g.RawFileSystem.SetLk(c, in)
}

func (g *gated) SetLkw(c <-chan struct{}, in *fuse.LkIn) fuse.Status {
	if s := g.pass(reading); !s.Ok() {
		return s
	}
	return g.RawFileSystem.SetLkw(c, in)
}

func (g *gated) Write(c <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if s := g.pass(overwriting); !s.Ok() {
		return 0, s
	}
	return g.RawFileSystem.Write(c, in, data)
}

func (g *gated) Writev(c <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	if s := g.pass(overwriting); !s.Ok() {
		return 0, s
	}
	return g.RawFileSystem.Writev(c, in, data)
}

func (g *gated) CopyFileRange(c <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if s := g.pass(writing); !s.Ok() {
		return 0, s
	}
	return g.RawFileSystem.CopyFileRange(c, in)
}

func (g *gated) Ioctl(c <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, out *fuse.IoctlOut, outbuf []byte) fuse.Status {
	if s := g.pass(reading); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Ioctl(c, in, inbuf, out, outbuf)
}

func (g *gated) Fsync(c <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if s := g.pass(changing); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Fsync(c, in)
}

func (g *gated) Fallocate(c <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if s := g.pass(writing); !s.Ok() {
		return s
	}
	return g.RawFileSystem.Fallocate(c, in)
}

func (g *gated) OpenDir(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if s := g.pass(reading); !s.Ok() {
		return s
	}
	return g.RawFileSystem.OpenDir(c, in, out)
}

func (g *gated) ReadDir(c <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if s := g.pass(reading); !s.Ok() {
		return s
	}
	return g.RawFileSystem.ReadDir(c, in, out)
}

func (g *gated) ReadDirPlus(c <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if s := g.pass(reading); !s.Ok() {
		return s
	}
	return g.RawFileSystem.ReadDirPlus(c, in, out)
}

func (g *gated) FsyncDir(c <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if s := g.pass(changing); !s.Ok() {
		return s
	}
	return g.RawFileSystem.FsyncDir(c, in)
}

func (g *gated) StatFs(c <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	if s := g.pass(reading); !s.Ok() {
		return s
	}
	return g.RawFileSystem.StatFs(c, in, out)
}

// node is a file or directory of the export.
type node struct {
	*fs.LoopbackNode
	gate *gate
}

// WrapChild makes every file below a node a node too.
func (n *node) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	if inner, ok := ops.(*fs.LoopbackNode); ok {
		return &node{inner, n.gate}
	}
	return ops
}

// Open hides the backing file from the kernel, see [file]. A host's O_DIRECT
// ends here: behind it, all hosts share the page cache of the export.
func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, options, errno := n.LoopbackNode.Open(ctx, flags&^syscall.O_DIRECT)
	return n.hidden(h), options, errno
}

// Create is as Open.
func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	inode, h, options, errno := n.LoopbackNode.Create(ctx, name, flags&^syscall.O_DIRECT, mode, out)
	return inode, n.hidden(h), options, errno
}

func (n *node) hidden(h fs.FileHandle) fs.FileHandle {
	if lf, ok := h.(*fs.LoopbackFile); ok {
		return &file{lf, n.gate}
	}
	return h
}

// file is an open file. The kernel must not learn its descriptor, or it reads
// and writes past this process, and no fault would ever reach it.
type file struct {
	*fs.LoopbackFile
	gate *gate
}

// PassthroughFd says no.
func (*file) PassthroughFd() (int, bool) { return 0, false }

// Write fails on a full file system where the file has no space yet.
func (f *file) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	if f.gate.full() && !f.allocated(off, int64(len(data))) {
		return 0, syscall.ENOSPC
	}
	return f.LoopbackFile.Write(ctx, data, off)
}

// allocated says whether the file has data in the whole range already.
func (f *file) allocated(off, n int64) bool {
	fd, ok := f.LoopbackFile.PassthroughFd()
	if !ok {
		return false
	}
	hole, err := unix.Seek(fd, off, unix.SEEK_HOLE)
	return err == nil && hole >= off+n
}

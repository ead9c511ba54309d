// Package blockio reads and writes small, fixed blocks of files and block
// devices past the page cache, so that a reader sees what the storage holds
// and not what its own kernel remembers.
//
// Every call may block for as long as the storage does, without a way to stop
// it. It belongs in a process that may be left behind.
package blockio

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Align is the alignment in octets of buffers, lengths and offsets. It covers
// every sector size in use (512 and 4096).
const Align = 4096

// ErrNotPlain is returned when a path is neither a regular file nor a block
// device: reading a FIFO or a terminal would wait for somebody else.
var ErrNotPlain = errors.New("neither a regular file nor a block device")

// Buffer returns n zero octets that start at a multiple of Align.
func Buffer(n int) []byte {
	b := make([]byte, n+Align)
	off := int(uintptr(unsafe.Pointer(&b[0])) % Align)
	if off != 0 {
		off = Align - off
	}
	return b[off : off+n : off+n]
}

// Mode says what a file is opened for.
type Mode int

// The modes.
const (
	Read   Mode = iota // read only
	Write              // read and write
	Create             // read and write; made when it is not there
)

// File is an open regular file or block device. It is not safe for concurrent use.
type File struct {
	f      *os.File
	direct bool
}

// Open opens path without following a symbolic link in its last element when
// it is opened for writing. It asks for direct I/O, and takes buffered I/O with
// synchronous writes where the file system refuses.
func Open(path string, mode Mode) (*File, error) {
	// O_NONBLOCK makes the open of a FIFO return, so that it can be refused; it
	// means nothing for files and block devices.
	flags := unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_DSYNC
	switch mode {
	case Read:
		flags |= os.O_RDONLY
	case Write:
		flags |= os.O_RDWR | unix.O_NOFOLLOW
	case Create:
		flags |= os.O_RDWR | os.O_CREATE | unix.O_NOFOLLOW
	}
	direct := true
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0o600)
	if errors.Is(err, unix.EINVAL) {
		direct = false
		f, err = os.OpenFile(path, flags, 0o600)
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	device := st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
	if !device && !st.Mode().IsRegular() {
		_ = f.Close()
		return nil, fmt.Errorf("open %s: %w", path, ErrNotPlain)
	}
	return &File{f: f, direct: direct}, nil
}

// Direct says whether the page cache is passed by. It can turn false at the
// first transfer, when a file system accepts the flag and refuses its use.
func (f *File) Direct() bool { return f.direct }

// ReadAt fills p from off, and returns fewer octets than len(p), without an
// error, only at the end of the file.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if err := check(p, off); err != nil {
		return 0, err
	}
	if !f.direct {
		f.forget(off, int64(len(p)))
	}
	n, err := f.f.ReadAt(p, off)
	if errors.Is(err, unix.EINVAL) && f.direct {
		if err := f.buffered(); err != nil {
			return 0, err
		}
		f.forget(off, int64(len(p)))
		n, err = f.f.ReadAt(p, off)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// WriteAt writes all of p at off and returns when the storage says that it has it.
func (f *File) WriteAt(p []byte, off int64) error {
	if err := check(p, off); err != nil {
		return err
	}
	_, err := f.f.WriteAt(p, off)
	if errors.Is(err, unix.EINVAL) && f.direct {
		if err := f.buffered(); err != nil {
			return err
		}
		_, err = f.f.WriteAt(p, off)
	}
	return err
}

// Size returns the size of a regular file in octets; it is 0 for a device.
func (f *File) Size() (int64, error) {
	st, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Is says whether path still names the open file. One that was deleted,
// replaced or mounted over is read by nobody else.
func (f *File) Is(path string) bool {
	here, err := f.f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(here, there)
}

// Close closes the file. Nothing is lost: every write was waited for.
func (f *File) Close() error { return f.f.Close() }

// SyncDir makes new, renamed and deleted names in a directory survive a crash.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

// FileSystem names the type of the file system that holds path, and says
// whether it is of a kind that only one host can mount. The name is a number
// in hex when the type is not known.
func FileSystem(path string) (name string, local bool, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "", false, fmt.Errorf("statfs %s: %w", path, err)
	}
	switch uint32(st.Type) {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4", true, nil
	case unix.XFS_SUPER_MAGIC:
		return "xfs", true, nil
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs", true, nil
	case unix.TMPFS_MAGIC:
		return "tmpfs", true, nil
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay", true, nil
	case unix.NFS_SUPER_MAGIC:
		return "nfs", false, nil
	case unix.CEPH_SUPER_MAGIC:
		return "ceph", false, nil
	case unix.FUSE_SUPER_MAGIC:
		return "fuse", false, nil
	case unix.OCFS2_SUPER_MAGIC:
		return "ocfs2", false, nil
	case 0x01161970:
		return "gfs2", false, nil
	case unix.CIFS_SUPER_MAGIC:
		return "cifs", false, nil
	case unix.SMB2_SUPER_MAGIC:
		return "smb2", false, nil
	case 0x0bd00bd0:
		return "lustre", false, nil
	case 0x47504653:
		return "gpfs", false, nil
	}
	return fmt.Sprintf("0x%x", uint32(st.Type)), false, nil
}

func check(p []byte, off int64) error {
	if len(p) == 0 || len(p)%Align != 0 || off%Align != 0 || uintptr(unsafe.Pointer(&p[0]))%Align != 0 {
		return fmt.Errorf("transfer of %d octets at %d is not aligned to %d", len(p), off, Align)
	}
	return nil
}

// buffered takes direct I/O back.
func (f *File) buffered() error {
	f.direct = false
	err := f.control(func(fd int) error {
		fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil {
			return err
		}
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, fl&^unix.O_DIRECT)
		return err
	})
	if err != nil {
		return fmt.Errorf("leave direct I/O: %w", err)
	}
	return nil
}

// forget asks the kernel to drop what it remembers of a range. It is advice: a
// failure leaves the reader with the cache rules of the file system.
func (f *File) forget(off, n int64) {
	_ = f.control(func(fd int) error { return unix.Fadvise(fd, off, n, unix.FADV_DONTNEED) })
}

func (f *File) control(fn func(fd int) error) error { return controlFile(f.f, fn) }

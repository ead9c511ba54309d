package blockio

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Attr is what the storage tells of a file without its being opened. Two equal
// values, some time apart, say that nobody wrote to the file in between, as far as
// the storage's own clock and caches go.
type Attr struct {
	Dev    uint64 `json:"dev"`
	Ino    uint64 `json:"ino"`
	Size   uint64 `json:"size"`
	Blocks uint64 `json:"blocks"`
	// MTime and CTime are the storage's own times, in nanoseconds since 1970.
	// They are compared with one another only, never with a clock of this host.
	MTime int64 `json:"mtime_ns"`
	CTime int64 `json:"ctime_ns"`
	// Regular says that it is a regular file. Of a block device the kernel keeps
	// no such times.
	Regular bool `json:"regular"`
	// FileSystem names the kind of file system, and Shared says that several hosts
	// can mount it. A kind that is not known is not shared.
	FileSystem string `json:"fs"`
	Shared     bool   `json:"shared"`
}

// SameFile says whether two readings are of one file.
func (a Attr) SameFile(b Attr) bool { return a.Dev == b.Dev && a.Ino == b.Ino }

// Stat asks the storage itself for a file's attributes, past the attribute cache
// of the kernel's file system. It follows symbolic links, as a VM manager does,
// and opens nothing. A file system that caches in its server, or in a process of
// its own, may still answer what was true a while ago.
func Stat(path string) (Attr, error) {
	var st unix.Statx_t
	const want = unix.STATX_TYPE | unix.STATX_INO | unix.STATX_SIZE | unix.STATX_BLOCKS | unix.STATX_MTIME | unix.STATX_CTIME
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_FORCE_SYNC, want, &st); err != nil {
		return Attr{}, fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mask&want != want {
		return Attr{}, fmt.Errorf("stat %s: the file system tells only 0x%x of 0x%x", path, st.Mask, want)
	}
	name, local, err := FileSystem(path)
	if err != nil {
		return Attr{}, err
	}
	return Attr{
		Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino, Size: st.Size, Blocks: st.Blocks,
		MTime: st.Mtime.Sec*1e9 + int64(st.Mtime.Nsec), CTime: st.Ctime.Sec*1e9 + int64(st.Ctime.Nsec),
		Regular: st.Mode&unix.S_IFMT == unix.S_IFREG, FileSystem: name, Shared: !local && shared(name),
	}, nil
}

// shared says whether a kind of file system is known to be mounted by several
// hosts at a time.
func shared(name string) bool {
	switch name {
	case "nfs", "ceph", "fuse", "ocfs2", "gfs2", "cifs", "smb2", "lustre", "gpfs":
		return true
	}
	return false
}

package blockio

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Reasons why a device cannot be used.
var (
	// ErrNotDevice is returned when a path is no block device.
	ErrNotDevice = errors.New("not a block device")
	// ErrReadOnly is returned when a device that should be written is read-only.
	ErrReadOnly = errors.New("the device is read-only")
	// ErrNoDirect is returned when transfers cannot pass the page cache by. What
	// another host writes to a device is not seen through the cache of this one.
	ErrNoDirect = errors.New("no direct I/O")
	// ErrInUse is returned when this host uses the device for something else:
	// it is mounted, or a part of a volume group, a RAID or a mapping.
	ErrInUse = errors.New("this host uses the device for something else")
)

// DeviceMode says how a device is opened.
type DeviceMode struct {
	Write bool
	// Exclusive fails with ErrInUse while this host uses the device otherwise, or
	// somebody else has it open so.
	Exclusive bool
	// File takes a regular file for a device. It is for tests.
	File bool
}

// Device is an open block device. All transfers pass the page cache by and are
// durable when they return. It is not safe for concurrent use.
type Device struct {
	f    *os.File
	file bool
	rdev uint64
}

// Geometry is what a device says of itself.
type Geometry struct {
	Size     int64 // in octets
	Logical  int   // the smallest transfer, in octets
	Physical int   // what is written at once without reading first, in octets
	ReadOnly bool
}

// OpenDevice opens a block device. Symbolic links are followed: that is how
// stable names of devices are made.
func OpenDevice(path string, mode DeviceMode) (*Device, error) {
	flags := unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_DSYNC | unix.O_DIRECT
	if mode.Write {
		flags |= os.O_RDWR
	}
	if mode.Exclusive {
		flags |= unix.O_EXCL
	}
	f, err := os.OpenFile(path, flags, 0)
	switch {
	case errors.Is(err, unix.EINVAL) && !deviceOrFile(path):
		return nil, fmt.Errorf("open %s: %w", path, ErrNotDevice)
	case errors.Is(err, unix.EINVAL):
		return nil, fmt.Errorf("open %s: %w", path, ErrNoDirect)
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("%w: %w", err, ErrInUse)
	case errors.Is(err, unix.EROFS), mode.Write && errors.Is(err, unix.EACCES) && readOnly(path):
		return nil, fmt.Errorf("%w: %w", err, ErrReadOnly)
	case errors.Is(err, unix.EISDIR):
		return nil, fmt.Errorf("%w: %w", err, ErrNotDevice)
	case err != nil:
		return nil, err
	}
	d := &Device{f: f}
	if err := d.inspect(mode); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), f.Close())
	}
	return d, nil
}

// inspect checks that what was opened is what was meant.
func (d *Device) inspect(mode DeviceMode) error {
	st, err := d.f.Stat()
	if err != nil {
		return err
	}
	if st.Mode().IsRegular() && mode.File {
		d.file = true
		if mode.Exclusive {
			err = d.control(func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrInUse
		}
		return err
	}
	if st.Mode()&os.ModeDevice == 0 || st.Mode()&os.ModeCharDevice != 0 {
		return ErrNotDevice
	}
	d.rdev = rdevOf(st)
	if !mode.Write {
		return nil
	}
	g, err := d.Geometry()
	if err == nil && g.ReadOnly {
		err = ErrReadOnly
	}
	return err
}

// deviceOrFile says whether path leads to something that may have direct I/O.
func deviceOrFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && (st.Mode().IsRegular() || st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0)
}

// readOnly says whether path is a device that says it is read-only.
func readOnly(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }() // nothing was written
	g, err := (&Device{f: f}).Geometry()
	return err == nil && g.ReadOnly
}

// Geometry asks the device.
func (d *Device) Geometry() (Geometry, error) {
	size, err := d.f.Seek(0, io.SeekEnd)
	if err != nil {
		return Geometry{}, fmt.Errorf("size of device: %w", err)
	}
	g := Geometry{Size: size, Logical: 512, Physical: Align}
	if d.file {
		return g, nil
	}
	var ro int
	for _, ask := range []struct {
		request uint
		answer  *int
	}{{unix.BLKSSZGET, &g.Logical}, {unix.BLKPBSZGET, &g.Physical}, {unix.BLKROGET, &ro}} {
		err := d.control(func(fd int) (err error) { *ask.answer, err = unix.IoctlGetInt(fd, ask.request); return err })
		if err != nil {
			return Geometry{}, fmt.Errorf("ask device for its sectors: %w", err)
		}
	}
	g.ReadOnly = ro != 0
	return g, nil
}

// Number returns the device's numbers, as MAJOR:MINOR.
func (d *Device) Number() string {
	if d.file {
		return "file"
	}
	return fmt.Sprintf("%d:%d", unix.Major(d.rdev), unix.Minor(d.rdev))
}

// Local says whether the device is of a kind that no other host can have: a loop
// device or memory.
func (d *Device) Local() bool {
	major := unix.Major(d.rdev)
	return !d.file && (major == 1 || major == 7)
}

// Is says whether path still leads to the open device.
func (d *Device) Is(path string) bool {
	there, err := os.Stat(path)
	if err != nil {
		return false
	}
	if d.file {
		here, err := d.f.Stat()
		return err == nil && os.SameFile(here, there)
	}
	return there.Mode()&os.ModeDevice != 0 && rdevOf(there) == d.rdev
}

func rdevOf(st os.FileInfo) uint64 {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return s.Rdev
	}
	return 0
}

// ReadAt fills p from off. The end of the device in the middle is an error.
func (d *Device) ReadAt(p []byte, off int64) error {
	if err := check(p, off); err != nil {
		return err
	}
	_, err := d.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("read at %d: the device ends there: %w", off, io.ErrUnexpectedEOF)
	}
	return err
}

// WriteAt writes all of p at off and returns when the device says that it has it.
func (d *Device) WriteAt(p []byte, off int64) error {
	if err := check(p, off); err != nil {
		return err
	}
	_, err := d.f.WriteAt(p, off)
	return err
}

// Close closes the device. Nothing is lost: every write was waited for.
func (d *Device) Close() error { return d.f.Close() }

func (d *Device) control(fn func(fd int) error) error { return controlFile(d.f, fn) }

// controlFile runs fn with the descriptor of a file.
func controlFile(f *os.File, fn func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := rc.Control(func(fd uintptr) { ferr = fn(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

package blockio

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestBufferIsAligned(t *testing.T) {
	for range 64 {
		b := Buffer(2 * Align)
		if len(b) != 2*Align || cap(b) != 2*Align || uintptr(unsafe.Pointer(&b[0]))%Align != 0 {
			t.Fatalf("len %d cap %d at %p", len(b), cap(b), &b[0])
		}
	}
}

func TestWriteIsSeenByAnotherHandle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	w := open(t, path, Create)
	if n, err := w.Size(); n != 0 || err != nil {
		t.Fatalf("size %d, %v", n, err)
	}
	out := Buffer(Align)
	for i := range out {
		out[i] = byte(i)
	}
	if err := w.WriteAt(out, 0); err != nil {
		t.Fatal(err)
	}
	if n, err := w.Size(); n != Align || err != nil {
		t.Fatalf("size %d, %v", n, err)
	}
	in := Buffer(2 * Align)
	n, err := open(t, path, Read).ReadAt(in, 0)
	if err != nil || n != Align || !bytes.Equal(in[:n], out) {
		t.Fatalf("read %d octets, %v", n, err)
	}
}

func TestDirectWhereTheKernelHasIt(t *testing.T) {
	// tmpfs takes O_DIRECT since Linux 6.6, ext4 and xfs always did.
	if f := open(t, filepath.Join(t.TempDir(), "a"), Create); !f.Direct() {
		t.Skip("the temporary directory's file system has no direct I/O")
	}
}

func TestBufferedFallbackReadsAndWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	f := open(t, path, Create)
	if err := f.buffered(); err != nil {
		t.Fatal(err)
	}
	var flags int
	if err := f.control(func(fd int) (err error) {
		flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if flags&unix.O_DIRECT != 0 || flags&unix.O_DSYNC == 0 {
		t.Fatalf("flags %#x: want no O_DIRECT and still O_DSYNC", flags)
	}
	out := Buffer(Align)
	out[7] = 7
	if err := f.WriteAt(out, 0); err != nil {
		t.Fatal(err)
	}
	in := Buffer(Align)
	if n, err := f.ReadAt(in, 0); n != Align || err != nil || in[7] != 7 || f.Direct() {
		t.Fatalf("n %d, err %v, octet %d, direct %v", n, err, in[7], f.Direct())
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	fifo, link, file := filepath.Join(dir, "fifo"), filepath.Join(dir, "link"), filepath.Join(dir, "file")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, make([]byte, Align), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		path string
		mode Mode
		want error
	}{
		{"a FIFO would wait for its writer", fifo, Read, ErrNotPlain},
		{"a directory", dir, Read, nil},
		{"a terminal-like device", "/dev/null", Read, ErrNotPlain},
		{"a link for writing", link, Write, unix.ELOOP},
		{"not there", filepath.Join(dir, "none"), Write, os.ErrNotExist},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, err := Open(tc.path, tc.mode)
			if err == nil {
				_ = f.Close()
				t.Fatal("opened")
			}
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
		})
	}
	f := open(t, file, Write)
	for _, tc := range []struct {
		name string
		p    []byte
		off  int64
	}{
		{"empty", nil, 0},
		{"odd length", Buffer(Align)[:512], 0},
		{"odd address", Buffer(2 * Align)[512 : 512+Align], 0},
		{"odd offset", Buffer(Align), 512},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := f.ReadAt(tc.p, tc.off); err == nil {
				t.Error("read was accepted")
			}
			if err := f.WriteAt(tc.p, tc.off); err == nil {
				t.Error("write was accepted")
			}
		})
	}
}

func TestIsNoticesAnotherFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	f := open(t, path, Create)
	if !f.Is(path) {
		t.Fatal("a new file is not itself")
	}
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if f.Is(path) {
		t.Fatal("a name that is gone still names it")
	}
	open(t, path, Create)
	if f.Is(path) {
		t.Fatal("the name of another file names it")
	}
	if !f.Is(path + ".old") {
		t.Fatal("its new name does not name it")
	}
}

func TestFileSystemAndSyncDir(t *testing.T) {
	dir := t.TempDir()
	if name, _, err := FileSystem(dir); name == "" || err != nil {
		t.Fatalf("%q, %v", name, err)
	}
	if name, local, err := FileSystem("/proc"); name != "0x9fa0" || local || err != nil {
		t.Fatalf("/proc: %q, %v, %v", name, local, err)
	}
	if _, _, err := FileSystem(filepath.Join(dir, "none")); err == nil {
		t.Fatal("a missing path has a type")
	}
	if err := SyncDir(dir); err != nil {
		t.Fatal(err)
	}
	if err := SyncDir(filepath.Join(dir, "none")); err == nil {
		t.Fatal("synced a missing directory")
	}
}

func open(t *testing.T, path string, mode Mode) *File {
	t.Helper()
	f, err := Open(path, mode)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

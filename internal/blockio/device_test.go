package blockio

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenDeviceRefuses(t *testing.T) {
	dir := t.TempDir()
	file, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "fifo")
	if err := os.WriteFile(file, make([]byte, 2*Align), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, path string
		want       error
	}{
		{"a file", file, ErrNotDevice},
		{"a directory", dir, ErrNotDevice},
		{"a FIFO", fifo, ErrNotDevice},
		{"a character device", "/dev/null", ErrNotDevice},
		{"nothing", filepath.Join(dir, "none"), os.ErrNotExist},
	} {
		for _, write := range []bool{false, true} {
			if d, err := OpenDevice(tc.path, DeviceMode{Write: write}); !errors.Is(err, tc.want) {
				t.Errorf("%s: %v, %v", tc.name, d, err)
			}
		}
	}
}

func TestFileAsDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lun")
	if err := os.WriteFile(path, make([]byte, 2*Align), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDevice(path, DeviceMode{Write: true, Exclusive: true, File: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDevice(path, DeviceMode{Write: true, Exclusive: true, File: true}); !errors.Is(err, ErrInUse) {
		t.Errorf("opened exclusively twice: %v", err)
	}
	if g, err := d.Geometry(); err != nil || g.Size != 2*Align || g.Logical != 512 || g.Physical != Align {
		t.Errorf("%+v, %v", g, err)
	}
	p := Buffer(2 * Align)
	p[Align] = 7
	if err := d.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadAt(p[:Align], Align); err != nil || p[0] != 7 {
		t.Errorf("%d, %v", p[0], err)
	}
	if err := d.ReadAt(p, Align); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("beyond the end: %v", err)
	}
	if err := d.ReadAt(p[:100], 0); err == nil {
		t.Error("a transfer that is not aligned")
	}
	if !d.Is(path) || d.Local() {
		t.Errorf("it is its path: %v, local: %v", d.Is(path), d.Local())
	}
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if d.Is(path) {
		t.Error("still its path, which leads nowhere")
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if d.Is(path) {
		t.Error("another file has its path")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

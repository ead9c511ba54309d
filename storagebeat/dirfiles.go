package storagebeat

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/haven-ha/haven/internal/blockio"
)

// files are what a dirStore asks of a file system. Tests put faults in between.
type files interface {
	open(path string, mode blockio.Mode) (file, error)
	identity(store string) ([]byte, error)
	names(dir string, limit int) ([]string, error)
	syncDir(dir string) error
}

// file is one open record.
type file interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) error
	Size() (int64, error)
	Is(path string) bool
	Close() error
}

// again does something once more when a network file system says that what it
// knew of a name is out of date: the next try asks the server.
func again(f func() error) error {
	err := f()
	if errors.Is(err, syscall.ESTALE) {
		err = f()
	}
	return err
}

// osFiles are the files of the system.
type osFiles struct{}

func (osFiles) open(path string, mode blockio.Mode) (file, error) {
	f, err := blockio.Open(path, mode)
	if err != nil {
		return nil, err // and not a file that is none
	}
	return f, nil
}

func (osFiles) identity(store string) ([]byte, error) {
	f, err := os.OpenFile(filepath.Join(store, identityName), os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, fmt.Errorf("open identity: %w: %w", err, ErrNoIdentity)
	}
	if err != nil {
		return nil, fmt.Errorf("open identity: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(f, identityLimit))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	return text, nil
}

func (osFiles) names(dir string, limit int) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(limit)
	if cerr := f.Close(); err == nil || errors.Is(err, io.EOF) {
		err = cerr
	}
	return names, err
}

func (osFiles) syncDir(dir string) error { return blockio.SyncDir(dir) }

// readIdentity reads the identity of the store at a path.
func readIdentity(path string) (Identity, error) {
	text, err := osFiles{}.identity(path)
	if err != nil {
		return Identity{}, err
	}
	return DecodeIdentity(text)
}

package flight

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// Disk is where recordings are kept. Every one of its calls may hang or fail.
type Disk interface {
	// List returns the files, in any order. One that does not exist is empty.
	List() ([]Entry, error)
	// Create makes a new file that only its owner can read.
	Create(name string) (File, error)
	Rename(from, to string) error
	Remove(name string) error
	// ReadAt reads a piece of a file, and says how long the file is. A piece that
	// begins at its end is empty.
	ReadAt(name string, p []byte, off int64) (n int, size int64, err error)
	// Path is where a file is, for people. It does no I/O.
	Path(name string) string
}

// File is one recording that is being written. Write appends.
type File interface {
	Write(p []byte) (int, error)
	Truncate(size int64) error
	Sync() error
	Close() error
}

// Entry is one file. Files are ordered by their age, oldest first, by Order.
type Entry struct {
	Name  string
	Bytes int64
	Order int64
}

// Dir is a Disk in a directory, which is made when the first file is.
type Dir string

// List implements Disk.
func (d Dir) List() ([]Entry, error) {
	files, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list recordings: %w", err)
	}
	var all []Entry
	for _, f := range files {
		info, err := f.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue // It went away, or is none of ours.
		}
		all = append(all, Entry{f.Name(), info.Size(), info.ModTime().UnixNano()})
	}
	return all, nil
}

// Create implements Disk.
func (d Dir) Create(name string) (File, error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, fmt.Errorf("make directory of recordings: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(string(d), name), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err // not f: a nil *os.File is no nil File
	}
	return f, nil
}

// Rename implements Disk.
func (d Dir) Rename(from, to string) error {
	return os.Rename(filepath.Join(string(d), from), filepath.Join(string(d), to))
}

// Path implements Disk.
func (d Dir) Path(name string) string { return filepath.Join(string(d), name) }

// ReadAt implements Disk.
func (d Dir) ReadAt(name string, p []byte, off int64) (n int, size int64, err error) {
	f, err := os.OpenFile(filepath.Join(string(d), name), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	if n, err = f.ReadAt(p, off); errors.Is(err, io.EOF) {
		err = nil
	}
	return n, info.Size(), err
}

// Remove implements Disk.
func (d Dir) Remove(name string) error { return os.Remove(filepath.Join(string(d), name)) }

// The names of recordings: while it is being written a file has a suffix more.
const (
	suffix = ".jsonl.gz"
	part   = ".part"
)

func isRecording(name string) bool {
	return strings.HasSuffix(strings.TrimSuffix(name, part), suffix)
}

var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// fileName is that of the recording of an incident by the master of a term.
func fileName(s Subject) (string, error) {
	id := string(s.Incident)
	if len(id) > 128 || !idPattern.MatchString(id) {
		return "", fmt.Errorf("incident %q cannot be the name of a file", id)
	}
	return fmt.Sprintf("%s.%s%s", id, s.Term, suffix), nil
}

func oldestFirst(all []Entry) {
	slices.SortFunc(all, func(a, b Entry) int { return cmp.Or(cmp.Compare(a.Order, b.Order), cmp.Compare(a.Name, b.Name)) })
}

// tidy removes the oldest recordings until there are at most keep of at most
// total bytes. Those that are being written stay.
func tidy(d Disk, keep int, total int64, busy func(name string) bool) error {
	all, err := d.List()
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(e Entry) bool { return !isRecording(e.Name) })
	oldestFirst(all)
	bytes := int64(0)
	for _, e := range all {
		bytes += e.Bytes
	}
	left := len(all)
	var errs []error
	for _, e := range all {
		if left <= keep && bytes <= total {
			break
		}
		if busy(e.Name) {
			continue
		}
		if err := d.Remove(e.Name); err != nil {
			errs = append(errs, fmt.Errorf("remove recording %s: %w", e.Name, err))
			continue
		}
		left--
		bytes -= e.Bytes
	}
	return errors.Join(errs...)
}

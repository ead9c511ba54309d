package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/haven-ha/haven/test/lab/labfs"
)

// StorageMode is what the shared storage does to a host's requests.
type StorageMode = labfs.Mode

// The storage's modes.
const (
	StorageOK      = labfs.OK
	StorageHang    = labfs.Hang // taken, never answered: as a dead disk
	StorageEIO     = labfs.EIO
	StorageStale   = labfs.Stale // ESTALE
	StorageRO      = labfs.RO
	StorageNoSpace = labfs.NoSpace
)

// StorageSlow is the mode in which every request takes d longer.
func StorageSlow(d time.Duration) StorageMode { return labfs.Slow(d) }

// StorageStatus is the mode of a host's storage and the number of requests that
// wait in it.
type StorageStatus = labfs.Status

// second is what the names of the second storage end in.
const second = ".2"

// storages are the endings of the names of each host's storages.
func (s *spec) storages() []string {
	if s.TwoStores {
		return []string{"", second}
	}
	return []string{""}
}

// startStorage mounts an export for one host.
func (s *spec) startStorage(ctx context.Context, name, which string) (*daemon, error) {
	host := name + which
	log := s.file("log", "store-"+host+".log")
	d, err := startDaemon(log, "", s.storeCgroup(name), s.binary(), childStorage, s.Dir, name, which)
	if err != nil {
		return nil, fmt.Errorf("start storage of %s: %w", host, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = poll(ctx, 5*time.Millisecond, func() (bool, error) {
		_, err := labfs.Control(s.storage(host)).Status(ctx)
		if err != nil && !d.alive() {
			return false, errors.New(lastLines(log))
		}
		return err == nil, nil
	})
	if err != nil {
		return d, fmt.Errorf("wait for storage of %s: %w", host, err)
	}
	return d, nil
}

// runStorage is the child that serves one of a host's storages.
func runStorage(dir, name, which string) error {
	host := name + which
	s, err := loadSpec(dir)
	if err != nil {
		return err
	}
	return labfs.Serve(labfs.Options{Export: s.export() + which, Mount: s.mount(host), Control: s.storage(host), Locks: s.Locks})
}

// removeMounts detaches those of the lab's mounts that exist, also such as were
// mounted twice.
func (s *spec) removeMounts() error {
	all, err := mounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range all {
		if !strings.HasPrefix(m.point, s.file("mnt")+"/") {
			continue
		}
		if err := unix.Unmount(m.point, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.point, err))
		}
	}
	return errors.Join(errs...)
}

// mount is one line of mountinfo.
type mount struct{ point, fstype string }

// mounts lists what is mounted in this process's namespace. Points with blanks in
// them are not unescaped: none of ours has any.
func mounts() ([]mount, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var all []mount
	for line := range strings.Lines(string(b)) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		fstype, _, _ := strings.Cut(after, " ")
		if len(fields) < 5 || fstype == "" {
			return nil, fmt.Errorf("list mounts: cannot read %q", line)
		}
		all = append(all, mount{point: fields[4], fstype: fstype})
	}
	return all, nil
}

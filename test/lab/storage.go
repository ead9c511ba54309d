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

// startStorage mounts the export for one host.
func (s *spec) startStorage(ctx context.Context, host string) (*daemon, error) {
	log := s.file("log", "store-"+host+".log")
	d, err := startDaemon(log, "", s.storeCgroup(host), s.binary(), childStorage, s.Dir, host)
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

// runStorage is the child that serves one host's storage.
func runStorage(dir, host string) error {
	s, err := loadSpec(dir)
	if err != nil {
		return err
	}
	return labfs.Serve(labfs.Options{Export: s.export(), Mount: s.mount(host), Control: s.storage(host), Locks: s.Locks})
}

// removeMounts detaches those of the lab's mounts that exist, also such as were
// mounted twice.
func (s *spec) removeMounts() error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var errs []error
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.HasPrefix(fields[4], s.file("mnt")+"/") {
			continue
		}
		if err := unix.Unmount(fields[4], unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", fields[4], err))
		}
	}
	return errors.Join(errs...)
}

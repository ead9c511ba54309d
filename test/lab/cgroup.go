package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// cgroup is the absolute path of a cgroup of version 2. Its controllers are not
// used: only that it knows, freezes and kills its processes.
type cgroup string

// cgroupRoot finds where cgroup version 2 is mounted.
func cgroupRoot() (string, error) {
	all, err := mounts()
	if err != nil {
		return "", err
	}
	for _, m := range all {
		if m.fstype == "cgroup2" {
			return m.point, nil
		}
	}
	return "", errors.New("cgroup v2 is not mounted")
}

func (c cgroup) write(file, value string) error {
	return os.WriteFile(filepath.Join(string(c), file), []byte(value), 0)
}

// event reads one value of cgroup.events.
func (c cgroup) event(key string) (bool, error) {
	b, err := os.ReadFile(filepath.Join(string(c), "cgroup.events"))
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(b)) {
		if k, v, _ := strings.Cut(strings.TrimSpace(line), " "); k == key {
			return v == "1", nil
		}
	}
	return false, fmt.Errorf("%s/cgroup.events has no %q", c, key)
}

// populated says whether a process lives in c or below.
func (c cgroup) populated() (bool, error) { return c.event("populated") }

// kill sends SIGKILL to every process in c and below, also when frozen.
func (c cgroup) kill() error { return c.write("cgroup.kill", "1") }

func (c cgroup) thaw() error { return c.write("cgroup.freeze", "0") }

// freeze stops every process. One that sleeps in the kernel and cannot be
// stopped there is not waited for longer than two seconds: it does nothing
// either.
func (c cgroup) freeze(ctx context.Context) error {
	if err := c.write("cgroup.freeze", "1"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := poll(ctx, 2*time.Millisecond, func() (bool, error) { return c.event("frozen") })
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// waitEmpty waits until no process is left.
func (c cgroup) waitEmpty(ctx context.Context) error {
	return poll(ctx, 5*time.Millisecond, func() (bool, error) {
		on, err := c.populated()
		return !on, err
	})
}

// fresh makes a new cgroup inside c for processes to be started in, and removes
// those that are empty by now. A cgroup that was killed once is no good: Linux
// 6.14 and later kill what clone3 starts in it.
func (c cgroup) fresh() (cgroup, error) {
	old, err := filepath.Glob(filepath.Join(string(c), "run-*"))
	if err != nil {
		return "", err
	}
	for _, dir := range old {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EBUSY) {
			return "", err
		}
	}
	dir, err := os.MkdirTemp(string(c), "run-")
	return cgroup(dir), err
}

// open returns a descriptor for clone3 to start a process in c.
func (c cgroup) open() (*os.File, error) { return os.Open(string(c)) }

// remove removes c and all below; the kernel may need a moment after the last
// process ended.
func (c cgroup) remove(ctx context.Context) error {
	return poll(ctx, 5*time.Millisecond, func() (bool, error) {
		err := c.removeOnce()
		if err != nil && ctx.Err() != nil {
			return false, err
		}
		return err == nil, nil
	})
}

func (c cgroup) removeOnce() error {
	var dirs []string
	err := filepath.WalkDir(string(c), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, dir := range slices.Backward(dirs) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// poll calls done at once and then after each pause until it returns true, fails,
// or ctx ends.
func poll(ctx context.Context, pause time.Duration, done func() (bool, error)) error {
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

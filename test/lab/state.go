package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Names and places. Everything follows from the spec, so that every process of
// the lab, and a later Down, finds it.

func (s *spec) file(parts ...string) string {
	return filepath.Join(append([]string{s.Dir}, parts...)...)
}

func specFile(dir string) string { return filepath.Join(dir, "lab.json") }

func (s *spec) binary() string              { return s.file("bin", "lab") }
func (s *spec) export() string              { return s.file("export") }
func (s *spec) mount(host string) string    { return s.file("mnt", host) }
func (s *spec) storage(host string) string  { return s.file("ctl", host) }
func (s *spec) hostDir(host string) string  { return s.file("hosts", host) }
func (s *spec) bmcDir(host string) string   { return s.file("bmc", host) }
func (s *spec) guestDir() string            { return s.file("guests") }
func (s *spec) netns(name string) string    { return s.Prefix + "-" + name }
func (s *spec) netnsPath(n string) string   { return "/run/netns/" + s.netns(n) }
func (s *spec) cgroup(name string) cgroup   { return cgroup(filepath.Join(s.Cgroup, name)) }
func (s *spec) hostCgroup(h string) cgroup  { return s.cgroup(h) }
func (s *spec) bmcCgroup(h string) cgroup   { return s.cgroup("bmc-" + h) }
func (s *spec) storeCgroup(h string) cgroup { return s.cgroup("store-" + h) }

// The network namespaces beside the hosts' own, which carry the hosts' names.
const (
	switchNS   = "sw"  // the three bridges
	operatorNS = "ctl" // an operator's seat with a leg on each network
)

func bmcNS(host string) string { return "b-" + host }

// The networks, each a bridge called br-<network>; a host's port on it is
// <host>-<network>, and its own interface is called as the network.
const (
	mgmt = "mgmt"
	oob  = "oob"
	stor = "stor"
)

func networks() []string { return []string{mgmt, oob, stor} }

func (s *spec) namespaces() []string {
	names := []string{switchNS, operatorNS}
	for _, h := range s.Hosts {
		names = append(names, h.Name, bmcNS(h.Name))
	}
	for _, name := range s.feedNames() {
		names = append(names, stripNS(name))
	}
	return names
}

func (s *spec) host(name string) (HostInfo, error) {
	for _, h := range s.Hosts {
		if h.Name == name {
			return h, nil
		}
	}
	return HostInfo{}, fmt.Errorf("no host %q in this lab", name)
}

func (s *spec) save() error {
	return writeJSON(specFile(s.Dir), s)
}

func loadSpec(dir string) (*spec, error) {
	s := &spec{}
	if err := readJSON(specFile(dir), s); err != nil {
		return nil, fmt.Errorf("read lab state: %w", err)
	}
	if s.Dir != dir || s.Prefix == "" || s.Cgroup == "" {
		return nil, fmt.Errorf("read lab state: %s is not of this directory", specFile(dir))
	}
	return s, nil
}

// writeJSON replaces the file at once: a reader sees the old or the new one.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return replaceFile(path, string(b)+"\n")
}

func replaceFile(path, content string) error {
	next := path + ".new"
	if err := os.WriteFile(next, []byte(content), 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// lockFile waits for an exclusive lock between processes; it ends with its holder.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = poll(ctx, 5*time.Millisecond, func() (bool, error) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}

// process names a process for good: a PID alone is used again.
type process struct {
	PID   int
	Start uint64 // clock ticks since boot, field 22 of /proc/PID/stat
}

var errNoProcess = errors.New("no such process")

func findProcess(pid int) (process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, errNoProcess
	}
	// The name in field 2 may hold blanks and brackets; the rest does not.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 {
		return process{}, fmt.Errorf("parse /proc/%d/stat: %d fields", pid, len(fields))
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return process{}, fmt.Errorf("parse /proc/%d/stat: %w", pid, err)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return process{}, errNoProcess
	}
	return process{PID: pid, Start: start}, nil
}

// alive says whether p still runs.
func (p process) alive() bool {
	now, err := findProcess(p.PID)
	return err == nil && now == p
}

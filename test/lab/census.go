package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Census is what one program of a host takes from the kernel, and its children.
// All numbers are those of /proc, read from outside the host.
type Census struct {
	PID      int // as the host sees it
	Threads  int
	Files    int   // open file descriptors
	Resident int64 // octets
	Children []ChildProcess
}

// ChildProcess is a child of a program.
type ChildProcess struct {
	PID   int
	State string // R, S, D (waits in the kernel and cannot be killed), Z, T …
	// Resident is in octets; 0 when it is dead.
	Resident int64
}

// Stuck returns the numbers of the children that wait in the kernel or are dead
// and not yet buried, ordered.
func (c Census) Stuck() []int {
	var pids []int
	for _, p := range c.Children {
		if p.State == "D" || p.State == "Z" {
			pids = append(pids, p.PID)
		}
	}
	return pids
}

// Census counts what a program of the host has at this moment.
func (h *Host) Census(ctx context.Context, program string) (Census, error) {
	p, err := h.Program(ctx, program)
	if err != nil {
		return Census{}, err
	}
	if p.PID == 0 {
		return Census{}, fmt.Errorf("count %s on %s: it does not run", program, h.Name)
	}
	c, err := census(h.inside("/proc"), p.PID)
	if err != nil {
		return c, fmt.Errorf("count %s on %s: %w", program, h.Name, err)
	}
	return c, nil
}

// census reads one process and its children from a mounted proc.
func census(proc string, pid int) (Census, error) {
	c := Census{PID: pid}
	own := filepath.Join(proc, strconv.Itoa(pid))
	status, err := os.ReadFile(filepath.Join(own, "status"))
	if err != nil {
		return c, err
	}
	if c.Threads, err = statusNumber(status, "Threads"); err != nil {
		return c, err
	}
	kib, err := statusNumber(status, "VmRSS")
	if err != nil {
		return c, err
	}
	c.Resident = int64(kib) << 10
	files, err := os.ReadDir(filepath.Join(own, "fd"))
	if err != nil {
		return c, err
	}
	c.Files = len(files)
	entries, err := os.ReadDir(proc)
	if err != nil {
		return c, err
	}
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		status, err := os.ReadFile(filepath.Join(proc, e.Name(), "status"))
		if errors.Is(err, fs.ErrNotExist) || err != nil && !exists(filepath.Join(proc, e.Name())) {
			continue // it ended meanwhile
		}
		if err != nil {
			return c, err
		}
		parent, err := statusNumber(status, "PPid")
		if err != nil {
			return c, err
		}
		if parent == pid {
			state, _, _ := strings.Cut(statusField(status, "State"), " ")
			kib, _ := statusNumber(status, "VmRSS") // the dead have none
			c.Children = append(c.Children, ChildProcess{PID: child, State: state, Resident: int64(kib) << 10})
		}
	}
	slices.SortFunc(c.Children, func(a, b ChildProcess) int { return a.PID - b.PID })
	return c, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func statusField(status []byte, name string) string {
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func statusNumber(status []byte, name string) (int, error) {
	value, _, _ := strings.Cut(statusField(status, name), " ")
	n, err := strconv.Atoi(value)
	if err != nil {
		return 0, fmt.Errorf("read %s of a process: %w", name, err)
	}
	return n, nil
}

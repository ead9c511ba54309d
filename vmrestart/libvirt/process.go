package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/haven-ha/haven"
)

// scanner finds VM processes in the process table. Reading a process's command
// line can hang as its memory hangs, so scans run in a goroutine of their own,
// one at a time: a stuck one costs one thread, however often it is asked for.
type scanner struct {
	root string
	slot chan struct{}
}

func newScanner(root string) *scanner { return &scanner{root: root, slot: make(chan struct{}, 1)} }

// scan returns the UUIDs of all VM processes, sorted, each once. The scan began
// after the call did. An error means that the list may miss some.
func (s *scanner) scan(ctx context.Context) ([]haven.VMID, error) {
	type answer struct {
		ids []haven.VMID
		err error
	}
	select {
	case s.slot <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("read process table: an earlier read is stuck: %w", ctx.Err())
	}
	answers := make(chan answer, 1)
	go func() {
		ids, err := vmProcesses(s.root)
		<-s.slot
		answers <- answer{ids, err}
	}()
	select {
	case a := <-answers:
		return a.ids, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("read process table: %w", ctx.Err())
	}
}

// vmProcesses reads a whole process table. A process that ends meanwhile is
// not there; one that cannot be looked into makes the table incomplete.
func vmProcesses(root string) ([]haven.VMID, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("read process table: %w", err)
	}
	var ids []haven.VMID
	var blind error
	seen := 0
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		seen++
		id, err := vmOf(filepath.Join(root, e.Name()))
		switch {
		case err != nil && !vanished(err):
			blind = fmt.Errorf("read process table: %w", err)
		case id != "":
			ids = append(ids, id)
		}
	}
	if seen == 0 {
		return nil, fmt.Errorf("read process table: %s shows no process at all", root)
	}
	slices.Sort(ids)
	return slices.Compact(ids), blind
}

// vmOf returns the UUID on the command line of a process, or "". A killed QEMU
// whose first thread is gone has an empty command line while another of its
// threads may still sit in the kernel with a write in flight; such a process is
// looked at thread by thread. Kernel threads and zombies look alike at first,
// but have one thread without a command line.
func vmOf(dir string) (haven.VMID, error) {
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return "", err
	}
	if len(line) > 0 {
		return uuidArgument(line), nil
	}
	threads, err := os.ReadDir(filepath.Join(dir, "task"))
	if err != nil || len(threads) < 2 {
		return "", err
	}
	for _, t := range threads {
		line, err := os.ReadFile(filepath.Join(dir, "task", t.Name(), "cmdline"))
		if err != nil && !vanished(err) {
			return "", err
		}
		if id := uuidArgument(line); id != "" {
			return id, nil
		}
	}
	return "", nil
}

// uuidArgument finds the argument after -uuid in a command line of arguments
// that end with NUL. Any program with such an argument counts: a wrong yes only
// holds a start back.
func uuidArgument(line []byte) haven.VMID {
	args := bytes.Split(line, []byte{0})
	for i := range len(args) - 1 {
		if a := string(args[i]); a != "-uuid" && a != "--uuid" {
			continue
		}
		if id, err := haven.ParseVMID(string(args[i+1])); err == nil {
			return id
		}
	}
	return ""
}

// vanished says whether a process was gone before it was read.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

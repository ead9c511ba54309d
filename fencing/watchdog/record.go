package watchdog

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/haven-ha/haven"
)

// Record is what one process leaves for the next one of the same boot: whether
// the watchdog runs, and on which terms.
type Record struct {
	Boot haven.BootID `json:"boot"`
	// PID and Started name the process, by its number and the kernel's time of its
	// start: its end, whatever ends it, is one more pet.
	PID     int    `json:"pid"`
	Started uint64 `json:"started"`
	Armed   bool   `json:"armed"`
	Device  string `json:"device,omitempty"`
	// Silence and Timeout are in use; Asked is the timeout that the device was asked
	// for. Life is the last one, by the boot-time clock.
	Silence time.Duration `json:"silence_ns,omitempty"`
	Timeout time.Duration `json:"timeout_ns,omitempty"`
	Asked   time.Duration `json:"asked_ns,omitempty"`
	Life    time.Duration `json:"life_ns,omitempty"`
	// Declared is what was asked for last. Standing is all that the ledger may
	// hold.
	Declared haven.Watchdog   `json:"declared,omitzero"`
	Standing []haven.Watchdog `json:"standing,omitempty"`
}

// File keeps the record. It belongs on a file system in memory, which is empty
// after a boot, in a directory that outlives the agent.
type File string

// Load reads the record of this boot; the zero record when there is none.
func (f File) Load(boot haven.BootID) (Record, error) {
	text, err := os.ReadFile(string(f))
	if errors.Is(err, os.ErrNotExist) {
		return Record{}, nil
	}
	if err != nil {
		return Record{}, fmt.Errorf("read hand-over of the watchdog: %w", err)
	}
	var r Record
	if err := json.Unmarshal(text, &r); err != nil {
		return Record{}, fmt.Errorf("read hand-over of the watchdog %s: %w", f, err)
	}
	if r.Boot != boot {
		return Record{}, nil // a reset disarmed whatever it tells of
	}
	return r, nil
}

// Save replaces the record at once. It need not outlive a power cut: the watchdog
// does not either.
func (f File) Save(r Record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode hand-over of the watchdog: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(string(f)), 0o750); err != nil {
		return fmt.Errorf("write hand-over of the watchdog: %w", err)
	}
	next := string(f) + ".new"
	if err := os.WriteFile(next, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("write hand-over of the watchdog: %w", err)
	}
	if err := os.Rename(next, string(f)); err != nil {
		return fmt.Errorf("write hand-over of the watchdog: %w", err)
	}
	return nil
}

// Process names this process for a Record.
func Process() (pid int, started uint64, err error) {
	pid = os.Getpid()
	_, started, _, err = processStat(pid)
	return pid, started, err
}

// Gone says whether a process has ended and closed all that it had open.
func Gone(pid int, started uint64) bool {
	state, begun, threads, err := processStat(pid)
	if err != nil {
		return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH)
	}
	// The first thread of a process may be a zombie while others still end.
	return begun != started || (state == 'Z' || state == 'X') && threads <= 1
}

func processStat(pid int) (state byte, started uint64, threads int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, 0, err
	}
	// The name, in brackets, may hold blanks and brackets; the rest does not.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 20 {
		return 0, 0, 0, fmt.Errorf("/proc/%d/stat has %d fields behind the name, want 20", pid, len(fields))
	}
	if threads, err = strconv.Atoi(fields[17]); err == nil {
		started, err = strconv.ParseUint(fields[19], 10, 64)
	}
	return fields[0][0], started, threads, err
}

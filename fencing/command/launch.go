package command

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

const (
	// permitFile is the launcher's descriptor on which the word to go on comes.
	permitFile = 3
	// turnFile is its descriptor on which it says that it turns into the program.
	// What ends before that word is not the program, and its exit code is no
	// answer: a launcher that gets no memory or no thread ends with 2, which is
	// "off" of a fence agent (P2).
	turnFile = 4
	// exitNotStarted is the launcher's exit code when the program was not started.
	// No status has it.
	exitNotStarted = 126
)

// Launch is the whole life of a launcher: the process between the agent and a
// program. It turns into the program that args name, with env, and returns an exit code only
// if it cannot. A program on storage that hangs would hang who starts it, and with
// it every other start of a process in the agent; here it hangs this process, which
// can be killed, and which then never comes to the program's first instruction,
// however late the storage answers.
func Launch(args, env []string, stderr io.Writer) int {
	word, turn := os.NewFile(permitFile, "permit"), os.NewFile(turnFile, "turn")
	if len(args) == 0 || word == nil || turn == nil {
		return exitNotStarted
	}
	syscall.CloseOnExec(turnFile)
	if n, _ := word.Read(make([]byte, 1)); n != 1 {
		return exitNotStarted // Who started us gave up, or is gone.
	}
	_ = word.Close() // It was read; the program has no use for it.
	if _, err := turn.Write([]byte{1}); err != nil {
		return exitNotStarted
	}
	err := syscall.Exec(args[0], args, env)
	_, _ = fmt.Fprintf(stderr, "start %s: %v\n", args[0], err)
	return exitNotStarted
}

// errNotTurned is returned when the launcher ended before it turned into the program.
var errNotTurned = errors.New("the program was not started: its launcher ended before")

// parts are what a process is made of; tests put others in their place.
type parts struct {
	start func(*exec.Cmd) error
	kill  func(pid int)
}

func realParts() parts {
	return parts{
		start: (*exec.Cmd).Start,
		// The group is gone when nothing of it is left, and its number is not used
		// again while this process has not waited for its leader, or right after.
		kill: func(pid int) { _ = syscall.Kill(-pid, syscall.SIGKILL) },
	}
}

// process is one run of a program.
type process struct {
	cmd   *exec.Cmd
	parts parts

	mu      sync.Mutex
	pid     int
	stopped bool
}

// run runs the program to its end. A start that comes back after stop leads to
// nothing: the permit for a power command may be long over (P3).
func (p *process) run() error {
	permit, word, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	turned, turn, err := os.Pipe()
	if err != nil {
		_, _ = permit.Close(), word.Close()
		return fmt.Errorf("start: %w", err)
	}
	defer func() { _ = turned.Close() }() // It was read, or nobody asks for it.
	p.cmd.ExtraFiles = []*os.File{permit, turn}
	err = p.parts.start(p.cmd)
	_, _ = permit.Close(), turn.Close()
	if err != nil {
		_ = word.Close()
		return fmt.Errorf("start: %w", err)
	}
	if p.started(p.cmd.Process.Pid) {
		_, err = word.Write([]byte{1})
	}
	_ = word.Close() // Without a word before it, this is one too: go away.
	werr := p.cmd.Wait()
	// The launcher's end of this pipe is closed, by its exec or by its end.
	_ = turned.SetReadDeadline(time.Now().Add(reapFor))
	switch n, _ := turned.Read(make([]byte, 1)); {
	case n != 1 && werr != nil:
		return fmt.Errorf("%w: %s", errNotTurned, werr.Error()) // Its exit code must not be found in there.
	case n != 1:
		return errNotTurned
	case werr != nil || err == nil:
		return werr
	}
	return fmt.Errorf("start: %w", err)
}

// started notes that the launcher runs, and says whether it may go on.
func (p *process) started(pid int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid = pid
	if p.stopped {
		p.parts.kill(pid)
	}
	return !p.stopped
}

// stop ends the program and all that it started, now or as soon as it runs.
func (p *process) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	if p.pid != 0 {
		p.parts.kill(p.pid)
	}
}

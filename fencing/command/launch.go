package command

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

const (
	// permitFile is the launcher's descriptor on which the word to go on comes.
	permitFile = 3
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
	word := os.NewFile(permitFile, "permit")
	if len(args) == 0 || word == nil {
		return exitNotStarted
	}
	if n, _ := word.Read(make([]byte, 1)); n != 1 {
		return exitNotStarted // Who started us gave up, or is gone.
	}
	_ = word.Close() // It was read; the program has no use for it.
	err := syscall.Exec(args[0], args, env)
	_, _ = fmt.Fprintf(stderr, "start %s: %v\n", args[0], err)
	return exitNotStarted
}

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
	p.cmd.ExtraFiles = []*os.File{permit}
	err = p.parts.start(p.cmd)
	_ = permit.Close()
	if err != nil {
		_ = word.Close()
		return fmt.Errorf("start: %w", err)
	}
	if p.started(p.cmd.Process.Pid) {
		_, err = word.Write([]byte{1})
	}
	_ = word.Close() // Without a word before it, this is one too: go away.
	if werr := p.cmd.Wait(); werr != nil || err == nil {
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

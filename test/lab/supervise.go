package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"slices"
	"syscall"
	"time"
)

const (
	libvirtd = "libvirtd"

	defaultRestartAfter = 100 * time.Millisecond
	stopTimeout         = 10 * time.Second // for programs at a shutdown
	requestTimeout      = 5 * time.Second
)

// ProgramState is where a program is in its life.
type ProgramState string

// The states.
const (
	ProgramRunning ProgramState = "running"
	ProgramWaiting ProgramState = "waiting" // ended; starts again after its pause
	ProgramHeld    ProgramState = "held"    // kept down until [Host.Start]
	ProgramEnded   ProgramState = "ended"   // ended for good, see [Program.Once]
)

// ProgramStatus is what a host's init knows about a program.
type ProgramStatus struct {
	Name     string
	State    ProgramState
	PID      int // as the host sees it; 0 unless running
	Starts   int // since power-on
	LastExit string
}

// request is what the lab asks a host's init; response is the answer.
type request struct {
	Do     string // status, signal, hold, stop, start or apply
	Name   string
	Signal syscall.Signal
	Group  bool // signal the program's whole process group
	// Programs replaces all programs but libvirtd.
	Programs []Program
}

type response struct {
	Programs []ProgramStatus
	Error    string
}

// job is a program and its process. Each runs in a process group of its own.
type job struct {
	spec     Program
	state    ProgramState
	pid      int
	starts   int
	lastExit string
	due      time.Time // of the next start while waiting
}

// supervisor is a host's init: one goroutine that owns all jobs.
type supervisor struct {
	logDir string
	jobs   []*job
}

// supervise keeps the programs running until ctx ends, which means shutdown; then
// it ends them in reverse order and returns, and with PID 1 the host is off.
func supervise(ctx context.Context, logDir string, programs []Program) error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	s := &supervisor{logDir: logDir}
	calls := make(chan call)
	l, err := net.Listen("unix", initSocket)
	if err != nil {
		return fmt.Errorf("listen for requests: %w", err)
	}
	go serveRequests(l, calls) // ends with the host

	for _, p := range append([]Program{{Name: libvirtd, Args: []string{libvirtd}}}, programs...) {
		s.add(p)
	}
	for {
		timer := time.NewTimer(s.startDue())
		select {
		case <-ctx.Done():
			s.shutDown(children)
			return nil
		case <-children:
			s.reap()
		case c := <-calls:
			c.answer <- s.handle(c.request)
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (s *supervisor) add(p Program) {
	if p.RestartAfter == 0 {
		p.RestartAfter = defaultRestartAfter
	}
	s.jobs = append(s.jobs, &job{spec: p, state: ProgramWaiting})
}

// startDue starts what is due and returns the time to the next start.
func (s *supervisor) startDue() time.Duration {
	next := time.Hour
	for _, j := range s.jobs {
		if j.state != ProgramWaiting {
			continue
		}
		if wait := time.Until(j.due); wait > 0 {
			next = min(next, wait)
			continue
		}
		s.startJob(j)
		if j.state == ProgramWaiting {
			next = min(next, j.spec.RestartAfter)
		}
	}
	return next
}

func (s *supervisor) startJob(j *job) {
	j.starts++
	pid, err := s.fork(j.spec)
	if err != nil {
		j.lastExit = err.Error()
		s.ended(j)
		return
	}
	j.pid, j.state = pid, ProgramRunning
}

func (s *supervisor) fork(p Program) (int, error) {
	path := p.Args[0]
	if !filepath.IsAbs(path) {
		var err error
		if path, err = toolPath(path); err != nil {
			return 0, err
		}
	}
	log, err := os.OpenFile(filepath.Join(s.logDir, p.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close() //nolint:errcheck // the child has its own copy
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close() //nolint:errcheck // opened for reading
	dir := p.Dir
	if dir == "" {
		dir = "/"
	}
	pid, err := syscall.ForkExec(path, p.Args, &syscall.ProcAttr{
		Dir: dir, Env: append(systemEnv(), p.Env...),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", path, err)
	}
	return pid, nil
}

// reap collects every ended process: PID 1 inherits all orphans, QEMU among them.
func (s *supervisor) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if pid <= 0 || err != nil {
			return
		}
		i := slices.IndexFunc(s.jobs, func(j *job) bool { return j.pid == pid })
		if i < 0 {
			continue
		}
		// A service manager ends what a dead service leaves behind. QEMU is in a
		// session of its own and lives on.
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		s.jobs[i].lastExit = describe(status)
		s.ended(s.jobs[i])
	}
}

func describe(w syscall.WaitStatus) string {
	if w.Signaled() {
		return w.Signal().String()
	}
	return fmt.Sprintf("exit status %d", w.ExitStatus())
}

// ended decides what becomes of a job whose process is gone.
func (s *supervisor) ended(j *job) {
	j.pid = 0
	switch {
	case j.state == ProgramHeld:
	case j.spec.Once:
		j.state = ProgramEnded
	default:
		j.state, j.due = ProgramWaiting, time.Now().Add(j.spec.RestartAfter)
	}
}

func (s *supervisor) handle(r request) response {
	if err := s.do(r); err != nil {
		return response{Error: err.Error()}
	}
	var all []ProgramStatus
	for _, j := range s.jobs {
		all = append(all, ProgramStatus{Name: j.spec.Name, State: j.state, PID: j.pid, Starts: j.starts, LastExit: j.lastExit})
	}
	return response{Programs: all}
}

func (s *supervisor) do(r request) error {
	switch r.Do {
	case "status":
		return nil
	case "apply":
		s.apply(r.Programs)
		return nil
	}
	i := slices.IndexFunc(s.jobs, func(j *job) bool { return j.spec.Name == r.Name })
	if i < 0 {
		return fmt.Errorf("no program %q on this host", r.Name)
	}
	j := s.jobs[i]
	switch r.Do {
	case "signal":
		return j.signal(r.Signal, r.Group)
	case "hold":
		j.state = ProgramHeld
		if j.pid != 0 {
			return j.signal(syscall.SIGKILL, true)
		}
		return nil
	case "stop":
		j.state = ProgramHeld
		return j.signal(syscall.SIGTERM, false)
	case "start":
		return s.startNow(j)
	default:
		return fmt.Errorf("unknown request %q", r.Do)
	}
}

// startNow ends a hold or a pause. A job that was held while its process still
// dies waits for the end of it.
func (s *supervisor) startNow(j *job) error {
	if j.state == ProgramRunning {
		return nil
	}
	j.state, j.due = ProgramWaiting, time.Time{}
	if j.pid != 0 {
		j.state = ProgramRunning // the end of the old process starts the new one
	}
	return nil
}

func (j *job) signal(sig syscall.Signal, group bool) error {
	if j.pid == 0 {
		return fmt.Errorf("program %q does not run", j.spec.Name)
	}
	pid := j.pid
	if group {
		pid = -pid
	}
	if err := syscall.Kill(pid, sig); err != nil {
		return fmt.Errorf("signal %s: %w", j.spec.Name, err)
	}
	return nil
}

// apply ends what is not wanted any more or is wanted otherwise, and adds what is
// new. A process that is ended here is forgotten, not waited for.
func (s *supervisor) apply(programs []Program) {
	wanted := func(p Program) bool {
		return p.Name == libvirtd || slices.ContainsFunc(programs, func(q Program) bool {
			if q.RestartAfter == 0 {
				q.RestartAfter = defaultRestartAfter
			}
			return reflect.DeepEqual(p, q)
		})
	}
	s.jobs = slices.DeleteFunc(s.jobs, func(j *job) bool {
		if wanted(j.spec) {
			return false
		}
		_ = j.signal(syscall.SIGKILL, true) // an error means that it is gone
		return true
	})
	for _, p := range programs {
		if !slices.ContainsFunc(s.jobs, func(j *job) bool { return j.spec.Name == p.Name }) {
			s.add(p)
		}
	}
}

// shutDown ends the programs as a service manager does, the last one first, and
// libvirtd at the end.
func (s *supervisor) shutDown(children <-chan os.Signal) {
	_ = os.WriteFile(systemState, []byte("stopping\n"), 0o644) // without it, it looks like a stop of the programs alone
	deadline := time.After(stopTimeout)
	for _, j := range slices.Backward(s.jobs) {
		j.spec.Once = true
		if j.signal(syscall.SIGTERM, false) != nil {
			continue
		}
		for j.pid != 0 {
			select {
			case <-children:
				s.reap()
			case <-deadline:
				return
			}
		}
	}
}

// call carries a request to the supervisor's goroutine.
type call struct {
	request request
	answer  chan response
}

// serveRequests takes one request on each connection, one at a time.
func serveRequests(l net.Listener, calls chan<- call) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		serveRequest(conn, calls)
		_ = conn.Close()
	}
}

func serveRequest(conn net.Conn, calls chan<- call) {
	_ = conn.SetDeadline(time.Now().Add(requestTimeout))
	c := call{answer: make(chan response, 1)}
	if err := json.NewDecoder(bufio.NewReader(conn)).Decode(&c.request); err != nil {
		return
	}
	calls <- c
	_ = json.NewEncoder(conn).Encode(<-c.answer) // who does not listen asks again
}

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// The lab's helpers are this program itself, started with one of these words.
const (
	childMark    = "haven-lab:"
	childInit    = childMark + "init"    // PID 1 of a host
	childStorage = childMark + "storage" // a host's view of the shared storage
	childBMC     = childMark + "bmc"     // a BMC in Go
	childChassis = childMark + "chassis" // one power command, for ipmi_sim
	childGuard   = childMark + "guard"   // takes the lab down when its owner dies
	childDog     = childMark + "dog"     // a host's watchdog device
	childStrip   = childMark + "strip"   // a switched power strip
	childOutlet  = childMark + "outlet"  // what hosts run to switch an outlet of it
)

// RunChild runs the lab's helper that this process was started as and does not
// return; in any other process it returns at once. A program that calls [New]
// must call it first thing in main or TestMain.
func RunChild() {
	if !isChild() {
		return
	}
	if err := runChild(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s %s: %v\n", os.Args[1], strings.Join(os.Args[2:], " "), err)
		os.Exit(1)
	}
	os.Exit(0)
}

func isChild() bool { return len(os.Args) > 1 && strings.HasPrefix(os.Args[1], childMark) }

func runChild(word string, args []string) error {
	need := map[string]int{childInit: 2, childStorage: 3, childBMC: 2, childChassis: 4, childGuard: 2, childDog: 2, childStrip: 2, childOutlet: 3}
	if n, ok := need[word]; !ok || len(args) < n {
		return errors.New("started with wrong arguments")
	}
	switch word {
	case childInit:
		return runInit(args[0], args[1])
	case childStorage:
		return runStorage(args[0], args[1], args[2])
	case childDog:
		return runDog(args[0], args[1])
	case childBMC:
		return runBMC(args[0], args[1])
	case childChassis:
		return runChassis(context.Background(), args[0], args[1], args[2:])
	case childStrip:
		return runStrip(args[0], args[1])
	case childOutlet:
		code, err := runOutlet(args[0], args[1], args[2])
		if err != nil {
			return err
		}
		os.Exit(code)
		return nil
	default:
		return runGuard(args[0], args[1])
	}
}

// daemon is a process that the lab started and that may outlive it.
type daemon struct {
	process
	cgroup cgroup // its own, made for it
	cmd    *exec.Cmd
}

// wait collects the process; it must be called once in a process that lives on.
func (d *daemon) wait() { _ = d.cmd.Wait() }

// startDaemon starts a process in a session of its own and a new cgroup below
// parent, inside a network namespace if one is given, with its output appended to
// a log.
func startDaemon(log, netns string, parent cgroup, args ...string) (*daemon, error) {
	return start(log, netns, parent, 0, args...)
}

func start(log, netns string, parent cgroup, cloneflags uintptr, args ...string) (*daemon, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() //nolint:errcheck // the child has its own copy
	group, err := parent.fresh()
	if err != nil {
		return nil, err
	}
	g, err := group.open()
	if err != nil {
		return nil, err
	}
	defer g.Close() //nolint:errcheck // opened for reading
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env, cmd.Dir = systemEnv(), "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(g.Fd()), Cloneflags: cloneflags}
	if netns == "" {
		err = cmd.Start()
	} else {
		err = inNetns(netns, cmd.Start)
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	p, err := findProcess(cmd.Process.Pid)
	if err != nil { // it ended already; the log tells why
		p = process{PID: cmd.Process.Pid}
	}
	return &daemon{process: p, cgroup: group, cmd: cmd}, nil
}

// lastLines is the end of a log, for error messages.
func lastLines(log string) string {
	b, err := os.ReadFile(log)
	if err != nil {
		return err.Error()
	}
	return "ended: …" + string(b[max(0, len(b)-500):])
}

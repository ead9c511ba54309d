package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/haven-ha/haven/test/lab/labfs"
)

// chassis is the power supply of one host. It is used by the lab itself and, in
// processes of their own, by the BMCs; a lock file orders them. A host is on as
// long as one of its processes lives.
type chassis struct {
	spec *spec
	host string
}

const powerTimeout = 15 * time.Second

// power says whether the host is on. It asks nobody who could be slow.
func (c chassis) power() (bool, error) { return c.spec.hostCgroup(c.host).populated() }

// lock waits for its turn at the switch.
func (c chassis) lock(ctx context.Context) (unlock func(), err error) {
	unlock, err = lockFile(ctx, filepath.Join(c.spec.hostDir(c.host), "chassis.lock"))
	if err != nil {
		return nil, fmt.Errorf("lock chassis of %s: %w", c.host, err)
	}
	return unlock, nil
}

// off ends the host at once, whatever its processes wait for.
func (c chassis) off(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, powerTimeout)
	defer cancel()
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return c.offLocked(ctx)
}

func (c chassis) offLocked(ctx context.Context) error {
	// The wires first: a machine without power says no goodbye, but the kernel
	// that our hosts share closes a killed process's connections politely.
	if err := setLinks(c.spec.netnsPath(c.host), false, networks()...); err != nil {
		return fmt.Errorf("power off %s: %w", c.host, err)
	}
	group := c.spec.hostCgroup(c.host)
	if err := group.kill(); err != nil {
		return fmt.Errorf("power off %s: %w", c.host, err)
	}
	quick, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if group.waitEmpty(quick) != nil {
		if err := c.releaseStuck(ctx, group); err != nil {
			return fmt.Errorf("power off %s: %w", c.host, err)
		}
	}
	if err := group.thaw(); err != nil {
		return fmt.Errorf("power off %s: %w", c.host, err)
	}
	return c.spec.stopDog(ctx, c.host)
}

// releaseStuck fails the storage requests that keep dead processes in the kernel,
// until none is left: a power cut wins over a hung disk.
func (c chassis) releaseStuck(ctx context.Context, group cgroup) error {
	return poll(ctx, 20*time.Millisecond, func() (bool, error) {
		if on, err := group.populated(); !on || err != nil {
			return !on, err
		}
		// Without an answer the storage is gone, and with it what they wait for.
		for _, which := range c.spec.storages() {
			_ = labfs.Control(c.spec.storage(c.host + which)).Release(ctx)
		}
		return false, nil
	})
}

// on starts the host's init; an error of the boot itself shows in its log.
func (c chassis) on(ctx context.Context) (*daemon, error) {
	ctx, cancel := context.WithTimeout(ctx, powerTimeout)
	defer cancel()
	unlock, err := c.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return c.onLocked(ctx)
}

func (c chassis) onLocked(ctx context.Context) (*daemon, error) {
	if on, err := c.power(); on || err != nil {
		return nil, err
	}
	if fed, err := c.powered(c.spec.feedNames()); !fed || err != nil {
		return nil, errors.Join(err, fmt.Errorf("power on %s: no outlet is on", c.host))
	}
	// What is started in a frozen cgroup stands still before it is a program.
	if err := c.spec.hostCgroup(c.host).thaw(); err != nil {
		return nil, fmt.Errorf("power on %s: %w", c.host, err)
	}
	if err := setLinks(c.spec.netnsPath(c.host), true, networks()...); err != nil {
		return nil, fmt.Errorf("power on %s: %w", c.host, err)
	}
	if err := c.spec.setGateway(ctx, c.host); err != nil {
		return nil, fmt.Errorf("power on %s: %w", c.host, err)
	}
	h, err := c.spec.host(c.host)
	if err != nil {
		return nil, err
	}
	const private = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
	d, err := start(filepath.Join(h.LogDir, "init.log"), c.spec.netnsPath(c.host), c.spec.hostCgroup(c.host),
		private, c.spec.binary(), childInit, c.spec.Dir, c.host)
	if err != nil {
		return nil, fmt.Errorf("power on %s: %w", c.host, err)
	}
	if err := writeJSON(c.initFile(), initState{Process: d.process, Cgroup: d.cgroup}); err != nil {
		return d, fmt.Errorf("power on %s: %w", c.host, err)
	}
	return d, nil
}

func (c chassis) initFile() string { return filepath.Join(c.spec.hostDir(c.host), "init.json") }

// initState is the host's PID 1 as the machine knows it, and the cgroup of all that
// runs since its power-on.
type initState struct {
	Process process
	Cgroup  cgroup
}

func (c chassis) init() (initState, error) {
	var s initState
	if err := readJSON(c.initFile(), &s); err != nil || !s.Process.alive() {
		return initState{}, fmt.Errorf("host %s is off", c.host)
	}
	return s, nil
}

// reset is off and on under one lock.
func (c chassis) reset(ctx context.Context) (*daemon, error) {
	ctx, cancel := context.WithTimeout(ctx, powerTimeout)
	defer cancel()
	unlock, err := c.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := c.offLocked(ctx); err != nil {
		return nil, err
	}
	return c.onLocked(ctx)
}

// hang stops all that runs on the host and its wires.
func (c chassis) hang(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, powerTimeout)
	defer cancel()
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := setLinks(c.spec.netnsPath(c.host), false, networks()...); err != nil {
		return fmt.Errorf("hang %s: %w", c.host, err)
	}
	return c.spec.hostCgroup(c.host).freeze(ctx)
}

// shutdown presses the power button.
func (c chassis) shutdown() error {
	s, err := c.init()
	if err != nil {
		return err
	}
	return syscall.Kill(s.Process.PID, syscall.SIGTERM)
}

// PowerCommand is a command that came to a host's BMC over the network; reading
// the power state is none.
type PowerCommand struct {
	At      time.Time // to the millisecond
	Command string    // off, on, reset, shutdown or identify
}

func (c chassis) commandLog() string { return filepath.Join(c.spec.bmcDir(c.host), "commands.log") }

// note writes a command down before it is done.
func (c chassis) note(command string) error { return c.noteIn(c.commandLog(), command) }

func (c chassis) noteIn(log, command string) error {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%d %s\n", time.Now().UnixMilli(), command)
	return errors.Join(err, f.Close())
}

// commands reads what [chassis.note] wrote.
func (c chassis) commands() ([]PowerCommand, error) { return readCommands(c.commandLog()) }

func readCommands(log string) ([]PowerCommand, error) {
	f, err := os.Open(log)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	var all []PowerCommand
	for lines := bufio.NewScanner(f); lines.Scan(); {
		at, command, _ := strings.Cut(lines.Text(), " ")
		ms, err := strconv.ParseInt(at, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", log, err)
		}
		all = append(all, PowerCommand{At: time.UnixMilli(ms), Command: command})
	}
	return all, nil
}

// obey does what came to the BMC, if the BMC is in the mood for it.
func (c chassis) obey(ctx context.Context, command string) (d *daemon, err error) {
	if err := c.note(command); err != nil {
		return nil, err
	}
	if willing, err := c.willing(); !willing {
		return nil, err
	}
	switch command {
	case "off":
		return nil, c.off(ctx)
	case "on":
		return c.on(ctx)
	default:
		return c.reset(ctx)
	}
}

// runChassis is the child that does one command of ipmi_sim, whose words are
// "set power 0" and the like.
func runChassis(ctx context.Context, dir, host string, words []string) error {
	s, err := loadSpec(dir)
	if err != nil {
		return err
	}
	c := chassis{spec: s, host: host}
	switch line := strings.Join(words, " "); {
	case line == "set power 0":
		_, err := c.obey(ctx, "off")
		return err
	case line == "set power 1":
		_, err := c.obey(ctx, "on")
		return err
	case strings.HasPrefix(line, "set reset"):
		_, err := c.obey(ctx, "reset")
		return err
	case strings.HasPrefix(line, "set shutdown"):
		return errors.Join(c.note("shutdown"), c.shutdown())
	case strings.HasPrefix(line, "set identify"):
		return c.note("identify")
	default:
		return fmt.Errorf("unknown command %q", line)
	}
}

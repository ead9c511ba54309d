package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/haven-ha/haven/test/lab/labfs"
)

// Host is one machine of the lab.
type Host struct {
	HostInfo
	lab *Lab
}

func (h *Host) chassis() chassis { return chassis{spec: h.lab.spec, host: h.Name} }
func (h *Host) cgroup() cgroup   { return h.lab.spec.hostCgroup(h.Name) }
func (h *Host) netns() string    { return h.lab.spec.netnsPath(h.Name) }

func (h *Host) mark(what string) { h.lab.Mark(h.Name + " " + what) }

// PowerOn starts the host; one that is on stays as it is. It returns before the
// host has booted, see [Host.WaitReady]. The BMC's log does not show it.
func (h *Host) PowerOn(ctx context.Context) error {
	h.mark("power on")
	d, err := h.chassis().on(ctx)
	h.lab.adopt(d)
	return err
}

// CutPower ends the host within a blink, whatever it waits for: its wires go dead
// first, then its processes. The BMC stays and says off.
func (h *Host) CutPower(ctx context.Context) error {
	h.mark("power cut")
	return h.chassis().off(ctx)
}

// CutMains ends the host and its BMC.
func (h *Host) CutMains(ctx context.Context) error {
	h.mark("mains cut")
	return errors.Join(h.killBMC(ctx, true), h.chassis().off(ctx))
}

// RestoreMains starts the BMC after [Host.CutMains]; the host stays off.
func (h *Host) RestoreMains(ctx context.Context) error {
	h.mark("mains back")
	return h.startBMC(ctx)
}

// Shutdown presses the power button: the host's init ends its programs in order
// and then itself. It returns at once.
func (h *Host) Shutdown() error {
	h.mark("shutdown")
	return h.chassis().shutdown()
}

// PowerIsOn is what a healthy BMC would say.
func (h *Host) PowerIsOn() (bool, error) { return h.chassis().power() }

// PowerCommands are the commands that came to the host's BMC so far, oldest first.
// What the lab itself did is not among them.
func (h *Host) PowerCommands() ([]PowerCommand, error) { return h.chassis().commands() }

// Hang stops the host's kernel: nothing on it runs, none of its wires answers, and
// its BMC says on.
func (h *Host) Hang(ctx context.Context) error {
	h.mark("hung")
	return h.chassis().hang(ctx)
}

// Unhang lets a hung host go on as if nothing had been.
func (h *Host) Unhang(ctx context.Context) error {
	h.mark("unhung")
	errs := []error{setLinks(h.netns(), true, networks()...), h.lab.spec.setGateway(ctx, h.Name), h.cgroup().thaw()}
	for _, network := range networks() {
		errs = append(errs, h.lab.spec.waitLeg(ctx, h.Name, network))
	}
	return errors.Join(errs...)
}

// CutMgmt unplugs the host from the management network.
func (h *Host) CutMgmt() error { return h.unplug(mgmt) }

// HealMgmt plugs it in again. A peer that was looked for in vain meanwhile may stay
// out of reach for another second: ARP asks no more often.
func (h *Host) HealMgmt(ctx context.Context) error { return h.plugIn(ctx, mgmt) }

// Deafen drops all IP packets to the host on the management network; what it
// sends arrives.
func (h *Host) Deafen(ctx context.Context) error { return h.oneWay(ctx, "deaf", true) }

// Undeafen ends [Host.Deafen].
func (h *Host) Undeafen(ctx context.Context) error { return h.oneWay(ctx, "deaf", false) }

// Mute drops all IP packets from the host on the management network; what is sent
// to it arrives.
func (h *Host) Mute(ctx context.Context) error { return h.oneWay(ctx, "mute", true) }

// Unmute ends [Host.Mute].
func (h *Host) Unmute(ctx context.Context) error { return h.oneWay(ctx, "mute", false) }

func (h *Host) oneWay(ctx context.Context, set string, in bool) error {
	h.mark(fmt.Sprintf("%s %v", set, in))
	if err := h.lab.spec.setElements(ctx, set, in, strconv.Quote(port(h.Name, mgmt))); err != nil {
		return fmt.Errorf("make %s %s: %w", h.Name, set, err)
	}
	return nil
}

// Lose drops so many of a hundred frames of the host on the management network,
// in each direction and by chance; 0 ends it.
func (h *Host) Lose(ctx context.Context, percent int) error {
	h.mark(fmt.Sprintf("loses %d %%", percent))
	return h.lab.spec.setLoss(ctx, port(h.Name, mgmt), percent)
}

// Flap unplugs the host from the management network and plugs it in again by
// turns, each for a period, until the time is over or ctx ends. It leaves it
// plugged in.
func (h *Host) Flap(ctx context.Context, period, during time.Duration) error {
	over := time.NewTimer(during)
	defer over.Stop()
	tick := time.NewTicker(period)
	defer tick.Stop()
	heal := func() error { return h.HealMgmt(context.WithoutCancel(ctx)) }
	for cut := true; ; cut = !cut {
		turn := heal
		if cut {
			turn = h.CutMgmt
		}
		if err := turn(); err != nil {
			return errors.Join(err, heal())
		}
		select {
		case <-tick.C:
		case <-over.C:
			return heal()
		case <-ctx.Done():
			return errors.Join(ctx.Err(), heal())
		}
	}
}

// CutStor unplugs the host from the storage network. Its storage is not reached
// through it, but other traffic may be, such as a second ring.
func (h *Host) CutStor() error { return h.unplug(stor) }

// HealStor plugs it in again.
func (h *Host) HealStor(ctx context.Context) error { return h.plugIn(ctx, stor) }

// CutOOB unplugs the host's own leg on the BMCs' network: it reaches no BMC.
func (h *Host) CutOOB() error { return h.unplug(oob) }

// HealOOB plugs it in again.
func (h *Host) HealOOB(ctx context.Context) error { return h.plugIn(ctx, oob) }

// unplug acts at the switch, so that a power-on does not undo it.
func (h *Host) unplug(network string) error {
	h.mark(network + " cut")
	return setLinks(h.lab.spec.netnsPath(switchNS), false, port(h.Name, network))
}

func (h *Host) plugIn(ctx context.Context, network string) error {
	h.mark(network + " healed")
	s := h.lab.spec
	return errors.Join(setLinks(s.netnsPath(switchNS), true, port(h.Name, network)), s.waitLeg(ctx, h.Name, network))
}

func (h *Host) startStorage(ctx context.Context) error {
	for _, which := range h.lab.spec.storages() {
		d, err := h.lab.spec.startStorage(ctx, h.Name, which)
		h.lab.adopt(d)
		if err != nil {
			return err
		}
	}
	return nil
}

// Storage sets what the shared storage does to this host.
func (h *Host) Storage(ctx context.Context, m StorageMode) error {
	h.mark("storage " + string(m))
	return labfs.Control(h.lab.spec.storage(h.Name)).Set(ctx, m)
}

// SecondStorage is [Host.Storage] for what the host has at [HostSecondStorePath].
func (h *Host) SecondStorage(ctx context.Context, m StorageMode) error {
	h.mark("second storage " + string(m))
	return labfs.Control(h.lab.spec.storage(h.Name+second)).Set(ctx, m)
}

// StorageStatus reads the mode and how many requests of the host wait.
func (h *Host) StorageStatus(ctx context.Context) (StorageStatus, error) {
	return labfs.Control(h.lab.spec.storage(h.Name)).Status(ctx)
}

func (h *Host) startBMC(ctx context.Context) error {
	d, err := h.lab.spec.bmcOn(ctx, h.HostInfo)
	h.lab.adopt(d)
	return err
}

func (h *Host) killBMC(ctx context.Context, unplug bool) error {
	return h.lab.spec.bmcOff(ctx, h.Name, unplug)
}

// KillBMC ends the BMC's firmware; its address answers "port unreachable". The
// host runs on.
func (h *Host) KillBMC(ctx context.Context) error {
	h.mark("BMC killed")
	return h.killBMC(ctx, false)
}

// UnplugBMC ends the BMC's firmware and its link; nothing answers.
func (h *Host) UnplugBMC(ctx context.Context) error {
	h.mark("BMC unplugged")
	return h.killBMC(ctx, true)
}

// HangBMC stops the BMC's firmware: it takes packets and answers none.
func (h *Host) HangBMC(ctx context.Context) error {
	h.mark("BMC hung")
	return h.lab.spec.bmcCgroup(h.Name).freeze(ctx)
}

// SlowBMC makes every chassis command take d longer; 0 ends it. A BMC of kind
// [BMCSim] answers nobody else meanwhile.
func (h *Host) SlowBMC(d time.Duration) error {
	h.mark("BMC slow " + d.String())
	text := ""
	if d > 0 {
		text = strconv.FormatFloat(d.Seconds(), 'f', 3, 64) + "\n"
	}
	return replaceFile(h.lab.spec.slowFile(h.Name), text)
}

// SulkBMC makes the BMC do nothing about power commands: it says that they are
// done, or it refuses them. The power state that it tells is true.
func (h *Host) SulkBMC(m BMCMood) error {
	h.mark("BMC " + string(m))
	return replaceFile(h.lab.spec.moodFile(h.Name), string(m))
}

// HealBMC ends every fault of the BMC and waits until it answers.
func (h *Host) HealBMC(ctx context.Context) error {
	h.mark("BMC healed")
	s := h.lab.spec
	return errors.Join(replaceFile(s.slowFile(h.Name), ""), replaceFile(s.moodFile(h.Name), string(BMCObeys)), h.lab.spec.bmcCgroup(h.Name).thaw(), h.startBMC(ctx))
}

// joinScript puts the shell into the host's cgroup and then becomes the command.
// A process that clone3 makes inside a frozen cgroup would stop before it is a
// program, and its parent with it.
const joinScript = `echo $$ > "$0/cgroup.procs" && exec nsenter "$@"`

// command prepares a command that runs on the host, as one of its processes: it
// ends with the host.
func (h *Host) command(ctx context.Context, args []string) (*exec.Cmd, error) {
	s, err := h.chassis().init()
	if err != nil {
		return nil, err
	}
	all := []string{"-c", joinScript, string(s.Cgroup), "-t", strconv.Itoa(s.Process.PID), "-m", "-u", "-i", "-n", "-p", "--"}
	all = append(all, args...)
	cmd := exec.CommandContext(ctx, "/bin/sh", all...)
	cmd.Env, cmd.Dir = systemEnv(), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd, nil
}

// Exec runs a command on the host and returns its standard output; its standard
// error is part of the error. On a hung host it blocks until ctx ends.
func (h *Host) Exec(ctx context.Context, args ...string) (string, error) {
	cmd, err := h.command(ctx, args)
	if err != nil {
		return "", err
	}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("run %s on %s: %w: %s", args[0], h.Name, errors.Join(err, ctx.Err()), strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// Interact runs a command on the host with this process's standard streams.
func (h *Host) Interact(ctx context.Context, args ...string) error {
	cmd, err := h.command(ctx, args)
	if err != nil {
		return err
	}
	cmd.SysProcAttr.Setpgid = false // it may want the terminal
	cmd.Cancel = nil
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

// Dial connects from the host's network; the address must be numeric. On a hung
// host nothing answers.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return dialIn(ctx, h.netns(), network, address)
}

// Virsh runs virsh against the host's libvirtd.
func (h *Host) Virsh(ctx context.Context, args ...string) (string, error) {
	return h.Exec(ctx, append([]string{"virsh", "-q", "-c", "qemu:///system"}, args...)...)
}

// Path is a path of the host's as seen from outside, good until the next power
// cut.
func (h *Host) Path(path string) string { return h.inside(path) }

// BootID is the boot id of the host's present power-on.
func (h *Host) BootID() (string, error) {
	b, err := os.ReadFile(h.inside(HostBootIDFile))
	if err != nil {
		return "", fmt.Errorf("read boot id of %s: %w", h.Name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// inside is a path of the host's, seen from outside; it leads nowhere while the
// host is off.
func (h *Host) inside(path string) string {
	s, _ := h.chassis().init() // PID 0 has no root
	return filepath.Join("/proc", strconv.Itoa(s.Process.PID), "root", path)
}

// LibvirtSocket is the host's libvirt socket as seen from outside, good until the
// next power cut.
func (h *Host) LibvirtSocket() string { return h.inside(HostLibvirtSocket) }

// WaitReady waits until the host has booted and its libvirtd answers.
func (h *Host) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var last error
	err := poll(ctx, 20*time.Millisecond, func() (bool, error) {
		if on, err := h.PowerIsOn(); err != nil || !on {
			return false, errors.Join(err, fmt.Errorf("off: %s", lastLines(filepath.Join(h.LogDir, "init.log"))))
		}
		if _, last = os.Stat(h.LibvirtSocket()); last != nil {
			return false, nil
		}
		// A libvirtd that dies while it starts leaves its clients waiting.
		once, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_, last = h.Virsh(once, "list")
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("wait for %s: %w", h.Name, errors.Join(err, last))
	}
	return nil
}

// probe has libvirtd ask QEMU what it can do, which takes seconds, so that the
// first start of a VM is as fast as on a machine that has been up for long.
func (h *Host) probe(ctx context.Context) error {
	_, err := h.Virsh(ctx, "domcapabilities", "--virttype", "qemu")
	return err
}

// ask sends a request to the host's init. On a hung host it fails after 5 s.
func (h *Host) ask(ctx context.Context, r request) ([]ProgramStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", h.inside(initSocket))
	if err != nil {
		return nil, fmt.Errorf("ask init of %s: %w", h.Name, err)
	}
	defer conn.Close() //nolint:errcheck // nothing to lose after the answer
	if d, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(d)
	}
	var answer response
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return nil, fmt.Errorf("ask init of %s: %w", h.Name, err)
	}
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		return nil, fmt.Errorf("ask init of %s: %w", h.Name, err)
	}
	if answer.Error != "" {
		return nil, fmt.Errorf("ask init of %s: %s", h.Name, answer.Error)
	}
	return answer.Programs, nil
}

// Programs are all supervised programs of the host, libvirtd first.
func (h *Host) Programs(ctx context.Context) ([]ProgramStatus, error) {
	return h.ask(ctx, request{Do: "status"})
}

// Program is the status of one of them.
func (h *Host) Program(ctx context.Context, name string) (ProgramStatus, error) {
	all, err := h.Programs(ctx)
	if err != nil {
		return ProgramStatus{}, err
	}
	for _, p := range all {
		if p.Name == name {
			return p, nil
		}
	}
	return ProgramStatus{}, fmt.Errorf("no program %q on %s", name, h.Name)
}

// Kill sends SIGKILL to a program's process; what it leaves behind in its process
// group is ended too. The host's init starts it again after its pause.
func (h *Host) Kill(ctx context.Context, name string) error {
	h.mark(name + " killed")
	return h.Signal(ctx, name, syscall.SIGKILL)
}

// Signal sends a signal to a program's process alone.
func (h *Host) Signal(ctx context.Context, name string, sig syscall.Signal) error {
	_, err := h.ask(ctx, request{Do: "signal", Name: name, Signal: sig})
	return err
}

// Pause stops a program and its children with SIGSTOP.
func (h *Host) Pause(ctx context.Context, name string) error {
	h.mark(name + " paused")
	_, err := h.ask(ctx, request{Do: "signal", Name: name, Signal: syscall.SIGSTOP, Group: true})
	return err
}

// Resume ends [Host.Pause].
func (h *Host) Resume(ctx context.Context, name string) error {
	h.mark(name + " resumed")
	_, err := h.ask(ctx, request{Do: "signal", Name: name, Signal: syscall.SIGCONT, Group: true})
	return err
}

// Hold kills a program and keeps it down until [Host.Start] or the next power-on.
func (h *Host) Hold(ctx context.Context, name string) error {
	h.mark(name + " held down")
	_, err := h.ask(ctx, request{Do: "hold", Name: name})
	return err
}

// Stop asks a program to end, as a service manager does, and keeps it down until
// [Host.Start] or the next power-on. It does not wait for the end.
func (h *Host) Stop(ctx context.Context, name string) error {
	h.mark(name + " stopped")
	_, err := h.ask(ctx, request{Do: "stop", Name: name})
	return err
}

// Start starts a program that is held, waits for its next start, or ended.
func (h *Host) Start(ctx context.Context, name string) error {
	h.mark(name + " started")
	_, err := h.ask(ctx, request{Do: "start", Name: name})
	return err
}

// SetPrograms replaces the host's programs, for the next power-on and, if the
// host is on, at once: what is no longer listed or is changed is killed, what is
// new is started.
func (h *Host) SetPrograms(ctx context.Context, programs []Program) error {
	if err := h.lab.spec.savePrograms(h.Name, programs); err != nil {
		return err
	}
	if on, err := h.PowerIsOn(); !on || err != nil {
		return err
	}
	_, err := h.ask(ctx, request{Do: "apply", Programs: programs})
	return err
}

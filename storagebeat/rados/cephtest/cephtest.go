// Package cephtest starts a Ceph cluster of one monitor and one OSD for tests. It
// lives in memory and in one directory, speaks on the loopback address unless it
// is put into a network namespace, and asks everybody for a key. It needs the
// packages that test/lab/packages-ceph.txt names, and root only for a namespace.
package cephtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/haven-ha/haven/internal/netx"
)

// programs are what must be installed.
var programs = []string{"ceph", "ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool"}

// ErrNotInstalled is returned when this machine has no Ceph.
var ErrNotInstalled = errors.New("ceph is not installed")

// Times within which a part must be ready, on a busy machine.
const (
	monitorTime = 60 * time.Second
	osdTime     = 60 * time.Second
	stopTime    = 10 * time.Second
	commandTime = 20 * time.Second
)

// Config says where a cluster is reached.
type Config struct {
	// Netns is the path of the network namespace that it runs in, and Address its
	// IPv4 address there. Both empty: here, on the loopback address.
	Netns, Address string
}

// Cluster is a running cluster.
type Cluster struct {
	Dir     string
	Monitor *Daemon
	OSD     *Daemon

	cfg Config
}

// Start makes a cluster and waits until its OSD is up. Of one that fails nothing
// stays; of the other, Close takes everything away.
func Start(ctx context.Context, cfg Config) (c *Cluster, err error) {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotInstalled, err)
		}
	}
	// Short, for the sockets in it.
	dir, err := os.MkdirTemp("", "ceph-")
	if err != nil {
		return nil, err
	}
	c = &Cluster{Dir: dir, cfg: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	for _, d := range []string{"mon", "osd", "run", "log"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	if err := c.startMonitor(ctx); err != nil {
		return nil, fmt.Errorf("start monitor: %w", err)
	}
	if err := c.startOSD(ctx); err != nil {
		return nil, fmt.Errorf("start OSD: %w", err)
	}
	return c, nil
}

// Conf is the path of the configuration for clients.
func (c *Cluster) Conf() string { return filepath.Join(c.Dir, "ceph.conf") }

// keyring is where a user's key is.
func (c *Cluster) keyring(user string) string {
	return filepath.Join(c.Dir, "client."+user+".keyring")
}

// MakeUser makes a user with capabilities, such as "osd", "allow rw", whom the
// configuration then knows.
func (c *Cluster) MakeUser(ctx context.Context, name string, caps ...string) error {
	_, err := c.Ceph(ctx, append([]string{"auth", "get-or-create", "client." + name, "-o", c.keyring(name)}, caps...)...)
	return err
}

func (c *Cluster) startMonitor(ctx context.Context) error {
	fsid, address := newUUID(), "v2:"+c.cfg.Address+":3300"
	if c.cfg.Netns == "" {
		c.cfg.Address = "127.0.0.1"
		free, err := freeAddress()
		if err != nil {
			return err
		}
		address = "v2:" + free
	}
	if err := os.WriteFile(c.Conf(), []byte(c.config(fsid, address)), 0o600); err != nil {
		return err
	}
	keyring, monmap := filepath.Join(c.Dir, "mon.keyring"), filepath.Join(c.Dir, "monmap")
	for _, command := range [][]string{
		{"ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"},
		{"ceph-authtool", c.keyring("admin"), "--create-keyring", "--gen-key", "-n", "client.admin", "--cap", "mon", "allow *", "--cap", "osd", "allow *"},
		{"ceph-authtool", keyring, "--import-keyring", c.keyring("admin")},
		{"monmaptool", "--create", "--fsid", fsid, "--addv", "a", "[" + address + "]", "--clobber", monmap},
		{"ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring, "-c", c.Conf()},
	} {
		if _, err := c.run(ctx, command...); err != nil {
			return err
		}
	}
	c.Monitor = c.daemon("mon", "ceph-mon", "-i", "a", "-c", c.Conf(), "-f")
	if err := c.Monitor.Start(); err != nil {
		return err
	}
	return c.WaitFor(ctx, monitorTime, "a monitor with a quorum", func(ctx context.Context) error {
		_, err := c.Ceph(ctx, "mon", "stat")
		return err
	})
}

func (c *Cluster) startOSD(ctx context.Context) error {
	id := newUUID()
	if _, err := c.Ceph(ctx, "osd", "new", id); err != nil {
		return err
	}
	if _, err := c.Ceph(ctx, "auth", "get-or-create", "osd.0", "mon", "allow profile osd", "osd", "allow *", "-o", filepath.Join(c.Dir, "osd", "keyring")); err != nil {
		return err
	}
	if _, err := c.run(ctx, "ceph-osd", "-i", "0", "-c", c.Conf(), "--mkfs", "--osd-uuid", id); err != nil {
		return err
	}
	c.OSD = c.daemon("osd", "ceph-osd", "-i", "0", "-c", c.Conf(), "-f")
	if err := c.OSD.Start(); err != nil {
		return err
	}
	return c.WaitOSD(ctx)
}

// WaitOSD waits until the monitor says that the OSD is up.
func (c *Cluster) WaitOSD(ctx context.Context) error {
	return c.WaitFor(ctx, osdTime, "an OSD that is up", func(ctx context.Context) error {
		out, err := c.Ceph(ctx, "osd", "stat")
		if err == nil && !strings.Contains(out, "1 up") {
			err = errors.New(out)
		}
		return err
	})
}

// MakePool makes a pool that is ready for use.
func (c *Cluster) MakePool(ctx context.Context, name string) error {
	_, err := c.Ceph(ctx, "osd", "pool", "create", name, "4")
	return err
}

// config is for the daemons and for clients. Nothing in it is good for data that
// somebody needs.
func (c *Cluster) config(fsid, monitor string) string {
	return fmt.Sprintf(`[global]
fsid = %[2]s
mon_host = [%[3]s]
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
osd_crush_chooseleaf_type = 0
ms_bind_ipv6 = false
public_addr = %[4]s
run_dir = %[1]s/run
admin_socket = %[1]s/run/$name.$pid.asok
pid_file =
log_file = %[1]s/log/$name.log
setuser_match_path =
[client]
keyring = %[1]s/client.$id.keyring
[mon]
mon_data = %[1]s/mon
mon_initial_members = a
mon_data_avail_crit = 1
[osd]
osd_data = %[1]s/osd
osd_objectstore = memstore
memstore_device_bytes = 268435456
osd_memory_target = 939524096
`, c.Dir, fsid, monitor, c.cfg.Address)
}

// Ceph runs one of the administrator's commands.
func (c *Cluster) Ceph(ctx context.Context, args ...string) (string, error) {
	return c.run(ctx, append([]string{"ceph", "-c", c.Conf(), "--connect-timeout", "10"}, args...)...)
}

// State tells what the cluster says of itself, and the last lines of its daemons'
// logs, for a test that failed.
func (c *Cluster) State(ctx context.Context) string {
	var all strings.Builder
	for _, of := range []string{"status", "health"} {
		out, err := c.Ceph(ctx, of)
		fmt.Fprintf(&all, "ceph %s: %s %v\n", of, out, err)
	}
	logs, _ := filepath.Glob(filepath.Join(c.Dir, "log", "*"))
	for _, path := range logs {
		b, err := os.ReadFile(path)
		fmt.Fprintf(&all, "%s: %v\n%s\n", path, err, b[max(0, len(b)-6000):])
	}
	return all.String()
}

func (c *Cluster) run(ctx context.Context, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	command = c.there(command)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.WaitDelay = time.Second
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s: %w: %s", strings.Join(command, " "), errors.Join(err, ctx.Err()), strings.TrimSpace(errOut.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// there makes a command run where the cluster is; it becomes that command.
func (c *Cluster) there(command []string) []string {
	if c.cfg.Netns == "" {
		return command
	}
	return append([]string{"nsenter", "--net=" + c.cfg.Netns, "--"}, command...)
}

// WaitFor asks again and again until ask is content.
func (c *Cluster) WaitFor(ctx context.Context, limit time.Duration, what string, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		for _, d := range []*Daemon{c.Monitor, c.OSD} {
			if d != nil && d.dead() {
				return fmt.Errorf("wait for %s: ceph-%s ended: %s", what, d.name, d.lastWords())
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("waited %s for %s: %w", limit, what, err)
		}
	}
}

// Close ends the daemons and removes the directory.
func (c *Cluster) Close() error {
	var errs []error
	for _, d := range []*Daemon{c.OSD, c.Monitor} {
		if d != nil {
			errs = append(errs, d.Kill())
		}
	}
	return errors.Join(append(errs, os.RemoveAll(c.Dir))...)
}

// Daemon is one of the cluster's processes.
type Daemon struct {
	name    string
	command []string
	log     string

	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has
}

func (c *Cluster) daemon(name string, command ...string) *Daemon {
	return &Daemon{name: name, command: c.there(command), log: filepath.Join(c.Dir, "log", name+".out")}
}

// Start starts it, unless it runs.
func (d *Daemon) Start() error {
	if d.cmd != nil && !d.dead() {
		return nil
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the process has its own
	cmd := exec.Command(d.command[0], d.command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own, so that a terminal's interrupt is the test's alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		// The kernel sends the signal when the thread that made the process ends, so
		// that thread must stay, whatever others do to theirs.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ends is the test's business
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	d.cmd, d.ended = cmd, ended
	return nil
}

// Signal sends it a signal, such as SIGSTOP and SIGCONT.
func (d *Daemon) Signal(sig syscall.Signal) error { return d.cmd.Process.Signal(sig) }

// Kill ends it as a power cut would, and waits for that.
func (d *Daemon) Kill() error {
	if d.cmd == nil {
		return nil
	}
	if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill ceph-%s: %w", d.name, err)
	}
	select {
	case <-d.ended:
		return nil
	case <-time.After(stopTime):
		return fmt.Errorf("kill ceph-%s: process %d is still there after %s", d.name, d.cmd.Process.Pid, stopTime)
	}
}

func (d *Daemon) dead() bool {
	select {
	case <-d.ended:
		return true
	default:
		return false
	}
}

func (d *Daemon) lastWords() string {
	b, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-1000):])
}

// freeAddress finds a port that nobody listens on.
func freeAddress() (string, error) {
	l, err := netx.Real{}.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

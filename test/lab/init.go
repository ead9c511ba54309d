package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// What libvirtd needs to live in a namespace: no security driver, no cgroups, no
// private /dev, no log daemon, no ownership games on FUSE.
const qemuConf = `security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = [ ]
cgroup_controllers = [ ]
seccomp_sandbox = 0
stdio_handler = "file"
lock_manager = "nop"
max_core = 0
`

const libvirtdConf = `unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
host_uuid = "%s"
keepalive_interval = -1
`

// binds are the parts of a host's system disk: the directory or file below its
// hostDir, and where the host sees it.
func binds() map[string]string {
	return map[string]string{
		"etc-libvirt":       "/etc/libvirt",
		"var-lib-libvirt":   "/var/lib/libvirt",
		"var-log-libvirt":   "/var/log/libvirt",
		"var-cache-libvirt": "/var/cache/libvirt",
		"etc-haven":         HostConfigDir,
		"var-lib-haven":     HostDataDir,
		"machine-id":        "/etc/machine-id",
		"hosts":             "/etc/hosts",
		"passwd":            "/etc/passwd",
		"group":             "/etc/group",
		"systemctl":         "/usr/bin/systemctl",
	}
}

func isFileBind(name string) bool {
	return slices.Contains([]string{"machine-id", "hosts", "passwd", "group", "systemctl"}, name)
}

// accounts returns the machine's passwd or group file with those lines added whose
// names it lacks. Debian's libvirtd does not start without the user and group it
// was built for, which a package that the lab does not need would make.
func accounts(file string, lines ...string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	content := strings.TrimSuffix(string(b), "\n") + "\n"
	for _, line := range lines {
		name, _, _ := strings.Cut(line, ":")
		if !strings.Contains("\n"+content, "\n"+name+":") {
			content += line + "\n"
		}
	}
	return content, nil
}

// prepareHost makes a host's system disk, and on the machine itself the empty
// directories that parts of it are mounted on.
func (s *spec) prepareHost(h HostInfo) error {
	dir := s.hostDir(h.Name)
	for name, target := range binds() {
		if isFileBind(name) {
			if err := touch(target); err != nil {
				return err
			}
			continue
		}
		for _, d := range []string{filepath.Join(dir, name), target} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
	}
	passwd, err := accounts("/etc/passwd", "libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin")
	if err != nil {
		return err
	}
	group, err := accounts("/etc/group", "libvirt-qemu:x:64055:", "kvm:x:64056:")
	if err != nil {
		return err
	}
	var names strings.Builder
	names.WriteString("127.0.0.1 localhost\n")
	for _, other := range s.Hosts {
		fmt.Fprintf(&names, "%s %s\n", other.Address, other.Name)
	}
	files := map[string]string{
		"machine-id":                strings.ReplaceAll(h.UUID, "-", "") + "\n",
		"hosts":                     names.String(),
		"passwd":                    passwd,
		"group":                     group,
		"etc-libvirt/qemu.conf":     qemuConf,
		"etc-libvirt/libvirtd.conf": fmt.Sprintf(libvirtdConf, h.UUID),
		"etc-libvirt/libvirt.conf":  "",
		"etc-libvirt/network.conf":  "",
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(systemctl), 0o755); err != nil {
		return err
	}
	return os.MkdirAll(h.LogDir, 0o755)
}

func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

const (
	initRunDir  = "/run/haven-lab"
	initSocket  = initRunDir + "/init.sock" // where the host's init takes requests
	systemState = initRunDir + "/state"     // what systemctl says of the host
	systemdDir  = "/run/systemd/system"     // shows that there is a systemctl to ask
)

// systemctl is all that a host has of one.
const systemctl = `#!/bin/sh
[ "$*" = is-system-running ] || exit 1
state=$(cat ` + systemState + `)
echo "$state"
[ "$state" = running ]
`

// runInit is the child that is PID 1 of a host.
func runInit(dir, host string) error {
	s, err := loadSpec(dir)
	if err != nil {
		return err
	}
	if os.Getpid() != 1 {
		return errors.New("not PID 1 of its own namespace")
	}
	h, err := s.host(host)
	if err != nil {
		return err
	}
	if err := s.setUpHost(h); err != nil {
		return fmt.Errorf("set up host: %w", err)
	}
	programs, err := s.loadPrograms(host)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := supervise(ctx, h.LogDir, programs); err != nil {
		return err
	}
	// A machine that is off answers nobody, but its network namespace stays.
	return setLinks("/proc/self/ns/net", false, networks()...)
}

// setUpHost turns the namespaces into a machine of its own.
func (s *spec) setUpHost(h HostInfo) error {
	steps := []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Sethostname([]byte(h.Name)) },
		func() error { return unix.Mount("proc", "/proc", "proc", 0, "") },
		// The machine's /sys shows its own network cards, and the cgroups.
		func() error { return unix.Unmount("/sys", unix.MNT_DETACH) },
		func() error { return unix.Mount("sysfs", "/sys", "sysfs", 0, "") },
		func() error { return unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755,size=64m") },
		func() error { return s.bindDisk(h.Name) },
		func() error { return bind(s.mount(h.Name), HostStorePath) },
		func() error { return s.bindSecondStore(h.Name) },
		func() error { return s.bindDog(h.Name) },
		hideStorage,
		drawBootID,
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return nil
}

func (s *spec) bindDisk(host string) error {
	for name, target := range binds() {
		if err := bind(filepath.Join(s.hostDir(host), name), target); err != nil {
			return err
		}
	}
	return nil
}

func (s *spec) bindSecondStore(host string) error {
	if !s.TwoStores {
		return nil
	}
	if err := os.MkdirAll(HostSecondStorePath, 0o755); err != nil {
		return err
	}
	return bind(s.mount(host+second), HostSecondStorePath)
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	return nil
}

// hideStorage takes the storage of all hosts, and of other labs, out of this host's
// sight, and their watchdogs; its own stays visible at [HostStorePath]. Else a tool that looks at all
// mounts would hang on another host's hung storage.
func hideStorage() error {
	all, err := mounts()
	if err != nil {
		return err
	}
	for _, m := range all {
		own := []string{HostStorePath, HostSecondStorePath, filepath.Dir(HostWatchdog)}
		if m.fstype != "fuse.labfs" && m.fstype != "fuse.labdog" || slices.Contains(own, m.point) {
			continue
		}
		if err := unix.Unmount(m.point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("hide %s: %w", m.point, err)
		}
	}
	return nil
}

// drawBootID gives this power-on a boot id of its own: the kernel's is the same
// for all hosts, and for ever.
func drawBootID() error {
	for _, d := range []string{"/run/lock", filepath.Dir(HostLibvirtSocket), HostRunDir, initRunDir, systemdDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(HostBootIDFile, []byte(newUUID()+"\n"), 0o444); err != nil {
		return err
	}
	if err := os.WriteFile(systemState, []byte("running\n"), 0o644); err != nil {
		return err
	}
	return bind(HostBootIDFile, "/proc/sys/kernel/random/boot_id")
}

package agent

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/cluster"
	"github.com/haven-ha/haven/election"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/fencing/command"
	"github.com/haven-ha/haven/fencing/ipmi"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/flight"
	"github.com/haven-ha/haven/internal/icmp"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/obs"
	"github.com/haven-ha/haven/internal/pki"
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/vmrestart"
	"github.com/haven-ha/haven/vmrestart/libvirt"
)

// Real says where the real parts of one host are.
type Real struct {
	Config *config.Config
	Host   haven.HostID
	// BootIDFile names this boot; empty means the kernel's own.
	BootIDFile string
	// UUIDFile holds the system's UUID; empty means the firmware's own.
	UUIDFile string
	// StoreChild starts the child process of a store; see storagebeat.ChildMain.
	StoreChild []string
	// FenceLauncher starts the programs of fence devices; see command.Launch.
	FenceLauncher []string
	Version       string
	Log           *slog.Logger
}

// kernelBootID is where Linux names its boot, and kernelUUID where it shows the
// system's UUID from the firmware's tables.
const (
	kernelBootID = "/proc/sys/kernel/random/boot_id"
	kernelUUID   = "/sys/class/dmi/id/product_uuid"
)

// Open opens the real parts. The function that it returns closes them, after
// the agent that was made of them has ended.
func (r Real) Open() (d Deps, closeAll func(), err error) {
	var closers []func() error
	closeAll = func() {
		for _, closer := range slices.Backward(closers) {
			if err := closer(); err != nil && !errors.Is(err, net.ErrClosed) {
				r.Log.Warn("a part did not close well", "error", err)
			}
		}
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	cfg := r.Config
	self, ok := cfg.Host(r.Host)
	if !ok {
		return d, nil, fmt.Errorf("host %q is not in the hosts section of the configuration; --host gives another name", r.Host)
	}
	d = Deps{
		Config: cfg, Host: r.Host, Version: r.Version, Net: netx.Real{}, Log: r.Log, Metrics: obs.NewMetrics(), Boottime: boottime,
		Echo: icmp.Pinger{}, UUID: systemUUID(r.UUIDFile),
	}
	if d.Boot, err = readBootID(r.BootIDFile); err != nil {
		return d, nil, err
	}
	if err = os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return d, nil, fmt.Errorf("make data directory: %w", err)
	}
	unlock, err := lockDir(cfg.DataDir)
	if err != nil {
		return d, nil, err
	}
	closers = append(closers, unlock)
	if d.State, d.Incarnation, err = OpenIdentity(cfg.DataDir); err != nil {
		return d, nil, err
	}
	d.Raft = election.DirStorage(filepath.Join(cfg.DataDir, "raft"))
	d.Journal = vmrestart.FileJournal{Path: filepath.Join(cfg.DataDir, "orders.json")}
	d.Recordings = flight.Dir(filepath.Join(cfg.DataDir, "flight"))
	if d.Credentials, err = pki.LoadCredentials(cfg.Cluster, pki.Files{CA: cfg.API.CAFile, Cert: cfg.API.CertFile, Key: cfg.API.KeyFile}, r.Log); err != nil {
		return d, nil, fmt.Errorf("load certificates: %w", err)
	}
	if id := d.Credentials.Identity(); id.Host != r.Host {
		return d, nil, fmt.Errorf("load certificates: %s is the certificate of %s, not of host %s", cfg.API.CertFile, id, r.Host)
	}
	if d.GossipKeys, err = LoadGossipKeys(cfg.Gossip.KeyFile); err != nil {
		return d, nil, err
	}
	d.Secrets = config.NewSecrets(r.Log)
	d.RereadGossipKeys = func() ([]cluster.Key, error) { return LoadGossipKeys(cfg.Gossip.KeyFile) }
	if d.Fences, err = r.Fences(d.Secrets); err != nil {
		return d, nil, err
	}
	if d.Disks, err = r.openDisks(&closers); err != nil {
		return d, nil, err
	}
	if self.Role != haven.RoleWitness {
		if err = r.openHost(&d, &closers); err != nil {
			return d, nil, err
		}
		if d.Watchdog, err = r.openWatchdog(d.Boot); err != nil {
			return d, nil, err
		}
	}
	d.Secrets.File(cfg.Helper.PasswordFile)
	if d.Notifier, err = NewNotifier(cfg, r.Host, d.Incarnation, d.Net, d.Secrets, d.Metrics, r.Log); err != nil {
		return d, nil, err
	}
	if d.Helper, err = r.helperProbe(d.Secrets); err != nil {
		return d, nil, err
	}
	// All of them are read now, so that a disk that fails later keeps nobody from
	// fencing. One that is missing is no reason not to protect the others.
	for _, f := range d.Secrets.Reload() {
		if f.Err != nil {
			r.Log.Error("a secret cannot be read", "file", f.Path, "error", f.Err)
		}
	}
	if cfg.API.Socket != "" {
		if d.Local, err = listenLocal(cfg.API.Socket); err != nil {
			return d, nil, err
		}
		closers = append(closers, d.Local.Close)
	}
	return d, closeAll, nil
}

// openHost opens what only a hypervisor has.
func (r Real) openHost(d *Deps, closers *[]func() error) error {
	cfg := r.Config
	virt := libvirt.New(libvirt.Options{Socket: cfg.Libvirt.Socket, Host: r.Host, Boot: d.Boot, Net: netx.Real{}, Log: r.Log})
	*closers = append(*closers, func() error { virt.Close(); return nil })
	hyp := libvirt.Hypervisor{Client: virt, AsideDir: filepath.Join(cfg.DataDir, "set-aside")}
	d.Hypervisor, d.Stopper = hyp, hyp
	if self, _ := cfg.Host(r.Host); self.Fencing.PoisonPill {
		d.Reset = resetMachine
	}
	probe, err := storagebeat.NewChild(storagebeat.ChildConfig{Command: r.StoreChild, Timeout: probeChildTimeout})
	if err != nil {
		return fmt.Errorf("set up disk probes: %w", err)
	}
	*closers = append(*closers, probe.Close)
	d.Probe = childProber{probe}
	for _, s := range cfg.Heartbeat.Stores {
		child, err := storagebeat.NewChild(storagebeat.ChildConfig{
			Command: r.StoreChild, Type: s.Type, Path: s.Place(), Options: s.Options(), Cluster: cfg.Cluster, Timeout: cfg.Heartbeat.IOTimeout,
		})
		if err != nil {
			return fmt.Errorf("store %s: %w", s.Name, err)
		}
		*closers = append(*closers, child.Close)
		d.Stores = append(d.Stores, Store{Name: s.Name, Device: child})
	}
	return nil
}

// probeChildTimeout bounds the reading of one disk before a start.
const probeChildTimeout = 5 * time.Second

// childProber reads VM disks in a child process.
type childProber struct{ child *storagebeat.Child }

func (p childProber) ReadProbe(ctx context.Context, path string) error {
	_, err := p.child.ReadProbe(ctx, path)
	return err
}

// systemUUID reads the system's own UUID, which root alone may read. Where there
// is none, nothing is compared with it.
func systemUUID(path string) string {
	if path == "" {
		path = kernelUUID
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return fencing.CleanUUID(string(data))
}

func readBootID(path string) (haven.BootID, error) {
	if path == "" {
		path = kernelBootID
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	id := strings.TrimSpace(string(data))
	if id == "" || len(id) > 64 {
		return "", fmt.Errorf("read boot id: %s holds %d octets, want 1 to 64", path, len(id))
	}
	return haven.BootID(id), nil
}

// lockDir makes sure that one agent at a time has the data directory.
func lockDir(dir string) (func() error, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock data directory %s: another agent has it: %w", dir, err), f.Close())
	}
	return f.Close, nil
}

// boottime counts while the machine is suspended.
func boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // the clock is there since Linux 2.6.39
	}
	return time.Duration(ts.Nano())
}

// LoadGossipKeys reads the gossip keys: one on each line, base64 of 16, 24 or 32
// octets. The first encrypts.
func LoadGossipKeys(path string) ([]cluster.Key, error) {
	lines, _, err := config.LoadSecrets(path)
	if err != nil {
		return nil, fmt.Errorf("load gossip keys: %w", err)
	}
	var keys []cluster.Key
	for i, l := range lines {
		k, err := base64.StdEncoding.DecodeString(l.Reveal())
		if err != nil || (len(k) != 16 && len(k) != 24 && len(k) != 32) {
			return nil, fmt.Errorf("load gossip keys: key %d in %s is not base64 of 16, 24 or 32 octets; 'haven keys generate' makes one", i+1, path)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("load gossip keys: %s holds none; 'haven keys generate' makes one", path)
	}
	return keys, nil
}

// Fences makes the drivers of all hosts' fence devices.
func (r Real) Fences(secrets *config.Secrets) (map[haven.HostID][][]FenceDevice, error) {
	all := map[haven.HostID][][]FenceDevice{}
	for _, id := range r.Config.HostIDs() {
		host, _ := r.Config.Host(id)
		for _, names := range host.Fencing.Levels {
			var level []FenceDevice
			for _, name := range names {
				dev, err := r.fenceDevice(id, name, host.Fencing.Devices[name], secrets)
				if err != nil {
					return nil, fmt.Errorf("fence device %s of host %s: %w", name, id, err)
				}
				level = append(level, dev)
			}
			if len(level) > 0 {
				all[id] = append(all[id], level)
			}
		}
	}
	return all, nil
}

func (r Real) fenceDevice(host haven.HostID, name string, d config.Device, secrets *config.Secrets) (FenceDevice, error) {
	password, kg := secrets.File(d.PasswordFile), secrets.File(d.KGFile)
	var dev FenceDevice
	var err error
	switch d.Driver {
	case "command":
		if dev, err = r.programDevice(host, name, d, password.Text); err == nil && d.PasswordFile != "" {
			dev.Driver = forgetful{dev.Driver, password}
		}
		return dev, err
	case "redfish":
		dev, err = redfishDevice(name, d, password.Text)
	default:
		dev, err = ipmiDevice(name, d, password.Text, kg)
	}
	if err == nil {
		files := []*config.SecretFile{password}
		if d.KGFile != "" {
			files = append(files, kg)
		}
		dev.Driver = rereading{dev.Driver, files}
	}
	return dev, err
}

// ipmiDevice is a BMC that speaks IPMI.
func ipmiDevice(name string, d config.Device, password func() (string, error), kg *config.SecretFile) (FenceDevice, error) {
	var suites []int
	for _, s := range d.CipherSuite.Suites() {
		suites = append(suites, int(s))
	}
	addr := netip.AddrPortFrom(d.Address, uint16(d.Port)).String()
	cfg := ipmi.Config{
		Net: netx.Real{}, Address: addr, Username: d.Username, Suites: suites, Timeout: d.Timeout, Password: password,
	}
	if d.KGFile != "" {
		cfg.KG = func() ([]byte, error) { return bmcKey(kg) }
	}
	driver, err := ipmi.New(cfg)
	if err != nil {
		return FenceDevice{}, err
	}
	// A board that turns out to be slow is given more than its timeout.
	return FenceDevice{Name: name, Key: addr, Address: addr, Driver: driver, Session: ipmi.SessionMax + time.Second}, nil
}

// bmcKey is a BMC's own key: text, or hexadecimal digits behind 0x, as boards and
// ipmitool take both.
func bmcKey(f *config.SecretFile) ([]byte, error) {
	text, err := f.Text()
	if err != nil {
		return nil, err
	}
	digits, isHex := strings.CutPrefix(text, "0x")
	if !isHex {
		return []byte(text), nil
	}
	key, err := hex.DecodeString(digits)
	if err != nil {
		return nil, errors.New("behind 0x the key is not made of hexadecimal digits") // The cause quotes it.
	}
	return key, nil
}

// programDevice is a device that comes with a program.
func (r Real) programDevice(host haven.HostID, name string, d config.Device, password func() (string, error)) (FenceDevice, error) {
	c := d.Command
	cfg := command.Config{
		Launcher: r.FenceLauncher,
		Style:    command.Style(c.Style), Program: c.Program, Arguments: c.Arguments, Options: c.Options,
		Words: map[command.Action]string{
			command.Off: c.Words.Off, command.On: c.Words.On, command.Blink: c.Words.Blink, command.BlinkOff: c.Words.BlinkOff,
			command.Status: c.Words.Status, command.Test: c.Words.Test,
		},
		ExitOn: c.ExitOn, ExitOff: c.ExitOff, Host: host, Username: d.Username, PasswordFile: d.PasswordFile, Timeout: c.RunTimeout,
		Storage: c.Proves == config.ProvesStorage,
	}
	if d.Address.IsValid() {
		cfg.Address = d.Address.String()
	}
	if d.PasswordFile != "" {
		cfg.Password = password
	}
	driver, err := command.New(cfg)
	if err != nil {
		return FenceDevice{}, err
	}
	return FenceDevice{Name: name, Key: string(host) + "/" + name, Address: driver.Target(), Driver: driver, Storage: cfg.Storage, Session: c.RunTimeout + 5*time.Second}, nil
}

// helperProbe asks helpers over HTTP as CloudStack's client would.
func (r Real) helperProbe(secrets *config.Secrets) (HelperProbe, error) {
	h := r.Config.Helper
	if h.Port == 0 {
		return nil, nil
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: 10 * time.Second, ResponseHeaderTimeout: 3 * time.Second}
	if !h.Plain {
		roots, err := pki.Roots(r.Config.API.CAFile)
		if err != nil {
			return nil, fmt.Errorf("set up helper probes: %w", err)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	c := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	password := secrets.File(h.PasswordFile)
	return func(ctx context.Context, id haven.HostID) (haven.Tri, string) {
		return askHelper(ctx, c, r.Config, password, id)
	}, nil
}

// listenLocal opens the socket for operators on this host. Only root, or the
// user that the agent runs as, can connect.
func listenLocal(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("open local socket: %w", err)
	}
	if err := removeSocket(path); err != nil {
		return nil, fmt.Errorf("open local socket: %w", err)
	}
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path) //nolint:forbidigo // a socket of this host, not of the network
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("open local socket: %w", err)
	}
	return l, nil
}

// removeSocket removes the socket that an agent left behind which was killed.
// What is not a socket is somebody else's.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s is in the way, and is not a socket", path)
	}
	return os.Remove(path)
}

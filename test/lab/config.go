package lab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// BMCKind chooses the BMC's firmware.
type BMCKind string

// The firmwares.
const (
	BMCSim BMCKind = "sim" // OpenIPMI's ipmi_sim: cipher suite 3, 63 sessions
	BMCGo  BMCKind = "go"  // go-ipmi's server: cipher suites 3 and 17, 4 sessions
)

const (
	maxHosts   = 64 // what the address plan has room for
	maxDirPath = 80 // a unix socket's path must fit below it
)

// Config says what lab to build. The zero value is a lab of three hosts in a new
// temporary directory.
type Config struct {
	// Dir holds everything that is not the kernel's. It must be absolute, at most
	// 80 octets long, not below /run, /srv, /etc/haven or /var/lib, and on a file
	// system with O_DIRECT. Empty: a new directory below /tmp, removed by Close.
	Dir string
	// Prefix names the lab's network namespaces and its cgroup. Empty: drawn.
	Prefix string
	// Hosts is the number of hosts, 1 to 64; 0 is 3. Host i is called "h<i>".
	Hosts int
	// Zones are given to the hosts in turn; empty gives none.
	Zones []string
	// BMC is the firmware of all BMCs; empty is [BMCSim].
	BMC BMCKind
	// NoLocks keeps each host's file locks to itself, so that QEMU's image locks
	// do not stop a second copy of a VM.
	NoLocks bool
	// TwoStores gives each host a second shared storage, at [HostSecondStorePath].
	TwoStores bool
	// Watchdogs gives each host a watchdog device, at [HostWatchdog]. It is a
	// machine's own: when it expires it resets the host, hung or not.
	Watchdogs bool
	// Feeds is the number of power supplies of each host, 0 to 2, each plugged into
	// an outlet that can be switched. Without, a host has one that nobody switches.
	Feeds int
	// Programs returns what a host runs beside libvirtd. It is called once for
	// each host before the first power-on; ConfigDir and DataDir exist by then.
	Programs func(HostInfo) ([]Program, error)
	// Persist leaves the lab alone when the process that built it ends.
	Persist bool
	// Logger hears what the lab does; nil is silence.
	Logger *slog.Logger
}

// HostInfo is what there is to know about a host, for instance to write the
// cluster's configuration.
type HostInfo struct {
	Index int    // from 1
	Name  string // also its hostname
	Zone  string
	UUID  string // libvirt's host UUID and the GUID of its BMC

	Address        string // on the management network, 10.77.0.0/24
	StorageAddress string // on the storage network, 10.79.0.0/24
	OOBAddress     string // its own leg on the BMCs' network, 10.78.0.0/24

	BMCAddress      string // port 623
	BMCUser         string // an OPERATOR: may read and switch power
	BMCPassword     string
	BMCAdmin        string // an ADMINISTRATOR
	BMCAdminSecret  string
	BMCCipherSuites []int

	Feeds []Feed // of a lab with [Config.Feeds]

	ConfigDir string // seen from outside; the host sees it as [HostConfigDir]
	DataDir   string // seen from outside; the host sees it as [HostDataDir]
	LogDir    string // one file for each program, and init.log
}

// What a host sees, the same on all hosts.
const (
	HostConfigDir = "/etc/haven"
	HostDataDir   = "/var/lib/haven" // survives power cuts
	HostRunDir    = "/run/haven"     // empty after each power-on but for the boot id
	HostStorePath = "/srv"           // the shared storage
	// HostSecondStorePath is another shared storage, which fails by itself.
	HostSecondStorePath = "/run/store2"
	HostLibvirtSocket   = "/run/libvirt/libvirt-sock"
	// HostWatchdog is the device of a lab with [Config.Watchdogs].
	HostWatchdog = "/run/dog/watchdog"
	// HostBootIDFile holds a boot id drawn at power-on. It is mounted over
	// /proc/sys/kernel/random/boot_id too.
	HostBootIDFile = "/run/haven/boot_id"
)

// Program is a process that the host's init starts at power-on and keeps
// running. It runs as root with standard output and error in LogDir/<Name>.log.
type Program struct {
	Name string // unique on the host: a-z, 0-9 and '-'
	Args []string
	Env  []string // beside PATH and HOME
	Dir  string   // working directory; empty is "/"
	// RestartAfter is the pause between an exit and the next start; 0 is 100 ms,
	// as systemd has it.
	RestartAfter time.Duration
	// Once leaves the program alone after it ended.
	Once bool
}

var (
	prefixPattern  = regexp.MustCompile(`^[a-z][a-z0-9-]{0,23}$`)
	programPattern = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)
)

// spec is a lab as its helpers and a later [Open] or [Down] know it: the file
// lab.json, written before anything else is made.
type spec struct {
	Prefix string
	Dir    string
	Cgroup string // the lab's own, absolute
	BMC    BMCKind
	Locks  bool
	OwnDir bool // Dir is ours to remove
	Feeds  int  // of each host
	// TwoStores says that hosts have a second shared storage.
	TwoStores bool
	// Watchdogs says that hosts have a watchdog device.
	Watchdogs bool
	Hosts     []HostInfo
}

// newSpec checks c and fills in what it leaves open.
func newSpec(c Config) (*spec, error) {
	if c.Hosts == 0 {
		c.Hosts = 3
	}
	if c.BMC == "" {
		c.BMC = BMCSim
	}
	if c.Prefix == "" {
		c.Prefix = "hv-" + randomHex(2)
	}
	var errs []error
	if c.Hosts < 1 || c.Hosts > maxHosts {
		errs = append(errs, fmt.Errorf("%d hosts: want 1 to %d", c.Hosts, maxHosts))
	}
	if c.BMC != BMCSim && c.BMC != BMCGo {
		errs = append(errs, fmt.Errorf("BMC %q: want %q or %q", c.BMC, BMCSim, BMCGo))
	}
	if !prefixPattern.MatchString(c.Prefix) {
		errs = append(errs, fmt.Errorf("prefix %q: want %s", c.Prefix, prefixPattern))
	}
	if c.Feeds < 0 || c.Feeds > maxFeeds {
		errs = append(errs, fmt.Errorf("%d feeds: want 0 to %d", c.Feeds, maxFeeds))
	}
	errs = append(errs, checkDir(c.Dir))
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	root, err := cgroupRoot()
	if err != nil {
		return nil, err
	}
	s := &spec{
		Prefix: c.Prefix, Dir: c.Dir, BMC: c.BMC, Locks: !c.NoLocks, TwoStores: c.TwoStores, Feeds: c.Feeds, Watchdogs: c.Watchdogs,
		Cgroup: filepath.Join(root, c.Prefix),
	}
	if s.Dir == "" {
		if s.Dir, err = os.MkdirTemp("", "haven-lab-"); err != nil {
			return nil, fmt.Errorf("make state directory: %w", err)
		}
		s.OwnDir = true
	}
	for i := 1; i <= c.Hosts; i++ {
		s.Hosts = append(s.Hosts, s.newHost(i, c.Zones))
	}
	return s, nil
}

func checkDir(dir string) error {
	if dir == "" {
		return nil
	}
	if !filepath.IsAbs(dir) || len(dir) > maxDirPath || filepath.Clean(dir) != dir {
		return fmt.Errorf("state directory %q: want a clean absolute path of at most %d octets", dir, maxDirPath)
	}
	for _, hidden := range []string{"/run", HostStorePath, HostConfigDir, "/var/lib", "/var/cache", "/var/log", "/etc", "/proc", "/sys"} {
		if strings.HasPrefix(dir+"/", hidden+"/") {
			return fmt.Errorf("state directory %q: hosts do not see what is below %s", dir, hidden)
		}
	}
	if strings.ContainsAny(dir, " \t\n\"'\\$`,") {
		return fmt.Errorf("state directory %q: it must not need quoting", dir)
	}
	return nil
}

func (s *spec) newHost(i int, zones []string) HostInfo {
	name := fmt.Sprintf("h%d", i)
	h := HostInfo{
		Index: i, Name: name, UUID: newUUID(),
		Address:        fmt.Sprintf("10.77.0.%d", 10+i),
		StorageAddress: fmt.Sprintf("10.79.0.%d", 10+i),
		OOBAddress:     fmt.Sprintf("10.78.0.%d", 110+i),
		BMCAddress:     fmt.Sprintf("10.78.0.%d", 10+i),
		BMCUser:        "haven", BMCPassword: randomHex(6),
		BMCAdmin: "admin", BMCAdminSecret: randomHex(6),
		BMCCipherSuites: []int{3},
		Feeds:           s.newFeeds(),
		ConfigDir:       filepath.Join(s.hostDir(name), "etc-haven"),
		DataDir:         filepath.Join(s.hostDir(name), "var-lib-haven"),
		LogDir:          filepath.Join(s.hostDir(name), "log"),
	}
	if s.BMC == BMCGo {
		h.BMCCipherSuites = []int{3, 17}
	}
	if len(zones) > 0 {
		h.Zone = zones[(i-1)%len(zones)]
	}
	return h
}

// checkPrograms refuses what a host's init could not run.
func checkPrograms(programs []Program) error {
	seen := map[string]bool{libvirtd: true}
	for _, p := range programs {
		switch {
		case !programPattern.MatchString(p.Name):
			return fmt.Errorf("program %q: want a name of %s", p.Name, programPattern)
		case seen[p.Name]:
			return fmt.Errorf("program %q: the name is taken", p.Name)
		case len(p.Args) == 0:
			return fmt.Errorf("program %q: no command", p.Name)
		case p.RestartAfter < 0:
			return fmt.Errorf("program %q: negative pause", p.Name)
		}
		seen[p.Name] = true
	}
	return nil
}

// checkMachine says what the machine lacks, all at once.
func checkMachine(kind BMCKind) error {
	var errs []error
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("the lab needs root"))
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		errs = append(errs, err)
	}
	tools := []string{"ip", "nft", "nsenter", "libvirtd", "virsh", "qemu-system-x86_64"}
	if kind == BMCSim {
		tools = append(tools, "ipmi_sim")
	}
	for _, t := range tools {
		if _, err := toolPath(t); err != nil {
			errs = append(errs, fmt.Errorf("%w (see packages.txt)", err))
		}
	}
	return errors.Join(errs...)
}

// toolPath finds a program in the places of the system, whatever PATH says.
func toolPath(name string) (string, error) {
	for _, dir := range filepath.SplitList(systemPath) {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

const systemPath = "/usr/sbin:/usr/bin:/sbin:/bin"

// systemEnv is the environment of every process of the lab. A helper that is built
// with the race detector would stay for a second after its end, and a BMC with it.
func systemEnv() []string {
	return []string{"PATH=" + systemPath, "HOME=/root", "LC_ALL=C", "GORACE=atexit_sleep_ms=0"}
}

func randomHex(octets int) string {
	b := make([]byte, octets)
	_, _ = io.ReadFull(rand.Reader, b) // crypto/rand never fails
	return hex.EncodeToString(b)
}

func newUUID() string {
	var b [16]byte
	_, _ = io.ReadFull(rand.Reader, b[:]) // crypto/rand never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

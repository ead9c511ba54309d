package config

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/haven-ha/haven"
)

// Config is a whole configuration file, checked, with every default filled in.
// It is not changed after Load returned it. docs/configuration.md tells what
// each value means; here only what a caller in Go must know beyond that.
type Config struct {
	Cluster         string
	DataDir         string
	BootstrapExpect int
	Log             Log
	Gossip          Gossip
	API             API
	Raft            Raft
	Libvirt         Libvirt
	Helper          Helper
	Heartbeat       Heartbeat
	Detection       Detection
	Fencing         Fencing
	// FenceWithoutStore lets the verdict failed stand on the network and the
	// helper alone when no store is configured.
	FenceWithoutStore bool
	Restart           Restart
	Response          Response
	Holds             Holds
	Recorder          Recorder
	Notify            Notify
	Hosts             map[haven.HostID]Host

	// Warnings are what is allowed and yet worth a second thought.
	Warnings []Problem

	src *source // for problems that are found later, by CheckFiles
}

// Log says how the agent writes its log.
type Log struct {
	Level  string // debug, info, warn or error
	Format string // text or json
}

// Gossip is the membership layer on the management network.
type Gossip struct {
	Port                int // UDP and TCP
	KeyFile             string
	ProbeInterval       time.Duration
	ProbeTimeout        time.Duration
	SuspicionMultiplier int
	Interval            time.Duration
	PushPullInterval    time.Duration
	RejoinInterval      time.Duration
}

// API is the one port for HTTPS and Raft, and the local socket.
type API struct {
	Port     int
	CAFile   string
	CertFile string
	KeyFile  string
	Socket   string
}

// Raft holds the times of the consensus layer.
type Raft struct {
	Heartbeat time.Duration
	Election  time.Duration
	Lease     time.Duration
	Commit    time.Duration
}

// Libvirt says where the VM manager is.
type Libvirt struct {
	Socket string
}

// Helper is the host helper's web server.
type Helper struct {
	Port         int
	CertFile     string
	KeyFile      string
	Username     string
	PasswordFile string
	// Plain means HTTP without TLS.
	Plain bool
}

// Heartbeat is about beats on shared storage.
type Heartbeat struct {
	Interval   time.Duration
	StaleAfter time.Duration
	IOTimeout  time.Duration
	Stores     []Store
}

// Detection holds the times and counts by which a host is judged.
type Detection struct {
	Profile          Profile
	ReportInterval   time.Duration
	SuspectAfter     time.Duration
	Silence          time.Duration
	Rounds           int
	RoundInterval    time.Duration
	ProbeTimeout     time.Duration
	ProbeCount       int
	OffReadings      int
	OffReadingGap    time.Duration
	StartUpGrace     time.Duration
	MassFailureShare float64 // of the hypervisors, 0.05 to 1
	MassFailureCalm  time.Duration
	FlapCount        int
	FlapWindow       time.Duration
	FlapCalm         time.Duration
	// IsolationAddresses are what an agent pings that sees nobody; none means the
	// gateways of its default routes.
	IsolationAddresses []netip.Addr
	DiskIdle           time.Duration
	DiskRepeats        int
}

// Fencing holds the cluster-wide fence settings.
type Fencing struct {
	Action        haven.FenceAction
	Release       Release
	Limit         Limit
	Levels        [][]string // names of devices; all of one level must succeed
	CheckInterval time.Duration
	VerifyTimeout time.Duration
	PoisonPill    bool
	Devices       map[string]Device // the defaults that hosts build upon
	Watchdog      Watchdog          // of each host that has none of its own
}

// Release says what must come before a host that was fenced is given VMs again,
// beside its return: nothing, or an operator's word.
type Release string

// The ways of a release.
const (
	ReleaseAuto   Release = "auto"
	ReleaseManual Release = "manual"
)

// Limit caps power-downs in the whole cluster, and those of one host.
type Limit struct {
	Count   int
	Window  time.Duration
	PerHost HostLimit
}

// HostLimit caps the power-downs of one host. A count of 0 is no limit of its own.
type HostLimit struct {
	Count  int
	Window time.Duration
}

// Device is one fence device. Of a host it is complete; among the cluster's
// defaults, parts may be missing.
type Device struct {
	Driver       string // ipmi, redfish or command
	Address      netip.Addr
	Port         int
	Username     string
	PasswordFile string
	KGFile       string // of driver ipmi; empty for boards without a key
	Timeout      time.Duration
	CipherSuite  CipherSuite
	Redfish      Redfish // of driver redfish
	Command      Command // of driver command
}

// Redfish is what only a device that speaks Redfish has.
type Redfish struct {
	System          string // path of the computer system; empty for the only one
	CAFile          string // one of CAFile and Pin is set, or both
	CertificateName string
	Pin             string // 64 hexadecimal digits
	Session         string // session or basic
}

// Command is a fence device that comes with a program.
type Command struct {
	Style      string // arguments or fence-agents
	Program    string
	Arguments  []string
	Options    map[string]string
	Words      Words
	ExitOn     int
	ExitOff    int
	RunTimeout time.Duration
	Proves     string // ProvesPower or ProvesStorage
}

// What the off of a program proves.
const (
	ProvesPower   = "power"
	ProvesStorage = "storage" // the host runs on, cut off its disks
)

// Words are what a program calls each action; empty for what it cannot do.
type Words struct{ Off, On, Blink, BlinkOff, Status, Test string }

// CipherSuite is how an IPMI session is protected: auto, 17 or 3.
type CipherSuite string

// Suites lists the RMCP+ cipher suites to try, in this order. Suite 0, which
// asks for no password, is not to be had.
func (c CipherSuite) Suites() []uint8 {
	switch c {
	case "17":
		return []uint8{17}
	case "3":
		return []uint8{3}
	}
	return []uint8{17, 3}
}

// Restart is about starting VMs again.
type Restart struct {
	Protect           string // all or opt-in
	MaxStartsInFlight int    // per host
	MemoryReserveMiB  int    // per host
}

// Recorder bounds the recordings of incidents.
type Recorder struct {
	Keep   int // files; 0: nothing is recorded
	MaxMiB int // all files together
}

// Host is one host's effective view: the cluster's defaults, overridden by what
// its own section says.
type Host struct {
	ID      haven.HostID
	Address netip.Addr
	Zone    string
	Role    haven.Role
	Fencing HostFencing
	// Response is all-off for a witness.
	Response HostResponse
}

// HostFencing says how one host is fenced.
type HostFencing struct {
	Action  haven.FenceAction // none for a witness
	Release Release
	Limit   HostLimit
	Levels  [][]string // none for a witness
	Devices map[string]Device
	// PoisonPill says that the host resets itself when it finds a pill for it on a
	// store. It is never set for a witness, which has no mailbox.
	PoisonPill bool
	// Watchdog is the host's own; none for a witness.
	Watchdog Watchdog
}

// Ladder returns the host's devices level by level, in the order in which they
// are to be tried. It is empty for a witness.
func (h Host) Ladder() [][]Device {
	ladder := make([][]Device, 0, len(h.Fencing.Levels))
	for _, names := range h.Fencing.Levels {
		level := make([]Device, 0, len(names))
		for _, name := range names {
			level = append(level, h.Fencing.Devices[name])
		}
		ladder = append(ladder, level)
	}
	return ladder
}

// Host returns the effective view of one host, and whether it is configured.
func (c *Config) Host(id haven.HostID) (Host, bool) {
	h, ok := c.Hosts[id]
	return h, ok
}

// HostIDs returns the names of all hosts, witnesses too, sorted.
func (c *Config) HostIDs() []haven.HostID {
	return slices.Sorted(maps.Keys(c.Hosts))
}

// Hypervisors returns the names of the hosts that run VMs, sorted.
func (c *Config) Hypervisors() []haven.HostID {
	return slices.DeleteFunc(c.HostIDs(), func(id haven.HostID) bool {
		return c.Hosts[id].Role == haven.RoleWitness
	})
}

// Majority is the least number of hosts that is more than half of the
// configured ones, witnesses counted.
func (c *Config) Majority() int { return len(c.Hosts)/2 + 1 }

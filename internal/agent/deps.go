package agent

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/cluster"
	"github.com/haven-ha/haven/election"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/flight"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/obs"
	"github.com/haven-ha/haven/internal/pki"
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/vmrestart"
)

// Deps is everything that an agent needs from the world. Production gives it
// the real parts, the simulator and the demo their own.
type Deps struct {
	Config  *config.Config
	Host    haven.HostID
	Boot    haven.BootID
	Version string
	// UUID is the system's own, as its firmware tells it; empty when it is not known.
	UUID string
	// State and Incarnation come from the data directory; see OpenIdentity.
	State       haven.StateID
	Incarnation haven.Incarnation

	Net         netx.Stack
	Credentials *pki.Credentials
	GossipKeys  []cluster.Key
	Raft        election.Storage
	Journal     vmrestart.Journal
	// Hypervisor is nil on a witness.
	Hypervisor Hypervisor
	// Stopper ends VMs for configured responses; nil where that is not possible.
	Stopper Stopper
	// Probe reads VM disks without being able to hang the agent; nil on a witness.
	Probe vmrestart.Prober
	// Disks tells of the disks of other hosts' VMs; nil for nothing.
	Disks  Disks
	Stores []Store
	// Fences is every host's ladder of fence devices.
	Fences map[haven.HostID][][]FenceDevice
	// Recordings is where incidents are recorded; nil for nowhere.
	Recordings flight.Disk
	// Helper asks a host's helper whether it lives.
	Helper HelperProbe
	// Echo asks addresses on this host's network whether they are there; nil when
	// that cannot be known.
	Echo Echo
	// Watchdog is the host's; nil for none.
	Watchdog *Watchdog
	// Reset resets this machine at once, without a word to anything that could hang;
	// nil where it must not. It comes back only when it failed.
	Reset func() error
	// Boottime counts while the machine is suspended.
	Boottime func() time.Duration
	// Local is where operators on this host come in; nil for nowhere.
	Local net.Listener
	// Applied is told of each log entry right after it was applied to this
	// agent's ledger, before anybody acts on it, with the ledger's word on each
	// command. It must not wait. Nil for nobody.
	Applied func(at ledger.Position, cmds []ledger.Command, words []error)
	// Secrets are the secrets of the configuration, and RereadGossipKeys reads those
	// of gossip; nil where there is nothing to read again.
	Secrets          *config.Secrets
	RereadGossipKeys func() ([]cluster.Key, error)
	// Notifier tells people; nil for nobody.
	Notifier Notifier
	Metrics  *obs.Metrics
	Log      *slog.Logger
}

// Hypervisor is the host's VM manager.
type Hypervisor interface {
	vmrestart.Hypervisor
	Keeper
	// Definition returns a VM's definition as its next start will use it.
	Definition(ctx context.Context, id haven.VMID) ([]byte, error)
	// Load says what the host has and what is left beside the VMs of inv.
	Load(inv haven.Inventory) (haven.HostLoad, error)
	// Hints gets a value when something about VMs has changed, or may have.
	Hints() <-chan struct{}
	// Run does what must be done all the time, until the context ends.
	Run(ctx context.Context)
}

// Keeper changes the standing of definitions on this host.
type Keeper interface {
	// SetAutostart says whether the VM manager starts the VM by itself.
	SetAutostart(ctx context.Context, id haven.VMID, on bool) error
	// SetAside takes the definition of a VM that moved away off this host. It
	// must fail when the VM is active.
	SetAside(ctx context.Context, id haven.VMID) error
}

// Store is one place where beats are written.
type Store struct {
	Name   string
	Device storagebeat.Device
}

// FenceDevice is one device of a host's ladder. Devices of one key are one
// device: one session at a time goes there.
type FenceDevice struct {
	Name    string
	Key     string
	Address string
	Driver  fencing.Driver
	// Storage says that its off cuts the host off its storage, which is a proof of its
	// own and no word about power.
	Storage bool
	// Session bounds one call of the driver; zero for the fence policy's bound.
	Session time.Duration
}

// session is how long one call of the device's driver may take.
func (d FenceDevice) session() time.Duration {
	return cmp.Or(d.Session, fencing.DefaultPolicy().Session)
}

// HelperProbe asks a host's helper for its list: Yes when it answers, No when
// it does not, Unknown when it could not be asked. It ends with its context.
type HelperProbe func(ctx context.Context, host haven.HostID) (haven.Tri, string)

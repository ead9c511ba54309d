package ledger

import (
	"maps"
	"slices"
	"time"

	"github.com/haven-ha/haven"
)

// Limits of the ledger. Everything that grows with time is trimmed; everything
// that grows with the cluster is refused beyond these.
const (
	MaxHosts           = 1024
	MaxVMs             = 65536
	MaxDefinitionBytes = 1 << 20 // of one uncompressed definition
	// MaxPackedBytes is of a compressed one: with its base64 and its envelope it
	// must fit into one log entry of 512 KiB.
	MaxPackedBytes     = 300 << 10
	MaxClosedIncidents = 200
	MaxTimeline        = 128 // entries of one incident; the middle is dropped
	MaxFences          = 512 // incidents in which a host was powered down
	MaxFenceAttempts   = 64  // of one incident; the first ones are dropped
	MaxAttempts        = 16  // of one VM
	MaxPastBoots       = 32  // of one host, and agent states of one boot
	MaxEvidence        = 48  // of one entry
)

// State is the replicated state. It changes only through Apply, which is a
// pure function of the state and the command.
type State struct {
	Cluster    string `json:"cluster"`
	Generation uint64 `json:"generation"`
	// Disarm is set while an operator has switched recovery off.
	Disarm    *Disarm                        `json:"disarm,omitempty"`
	Hosts     map[haven.HostID]*Host         `json:"hosts"`
	VMs       map[haven.VMID]*VM             `json:"vms"`
	Incidents map[haven.IncidentID]*Incident `json:"incidents"`
	// Fences is the history of power-downs, one for each incident, the one that
	// was tried last at the end. The cap counts it.
	Fences []Fence `json:"fences,omitempty"`
	// Acts are the latest of what operators did about power, the latest at the end.
	Acts []Act `json:"acts,omitempty"`
	// Forgotten is the highest epoch of all VMs that are not protected any more.
	// A VM that comes back goes on above it: agents remember the old epochs.
	Forgotten haven.Epoch `json:"forgotten,omitempty"`
	// LastSlot is the highest slot that was given to a host.
	LastSlot uint16 `json:"last_slot,omitempty"`
	// Decisions are the latest changes of verdicts, the latest at the end.
	Decisions []Decision `json:"decisions,omitempty"`
}

// Host is what the ledger knows of one host.
type Host struct {
	ID          haven.HostID      `json:"id"`
	Role        haven.Role        `json:"role"`
	Address     string            `json:"address"`
	Boot        haven.BootID      `json:"boot"`
	State       haven.StateID     `json:"state"`
	Incarnation haven.Incarnation `json:"incarnation"`
	// Generation is the one in which the host registered last.
	Generation   uint64    `json:"generation"`
	RegisteredAt time.Time `json:"registered_at"`
	// Incident is the open incident about the present boot, if any. Older ones
	// may be open still, for VMs that wait.
	Incident haven.IncidentID `json:"incident,omitempty"`
	// Proof says that a boot of this host is over. It counts while Proof.Boot
	// is Boot: a new boot ends it, and so does a new generation.
	Proof *haven.Proof `json:"proof,omitempty"`
	// PastBoots are the latest boots that are over, oldest first. None of them
	// may register again: a late copy of an old registration must not end the
	// present boot.
	PastBoots []haven.BootID `json:"past_boots,omitempty"`
	// PastStates are agent states that were given up in the present boot. One
	// that comes back, from a backup for example, does not know what was begun
	// since, and could refuse an order that it carried out.
	PastStates []haven.StateID `json:"past_states,omitempty"`
	// Released is the name of the operator who, after a change of generation,
	// said that this host need not be waited for.
	Released string `json:"released,omitempty"`
	// Power is what was learnt about the host's BMC.
	Power PowerTrust `json:"power,omitzero"`
	// Slot is the host's place on stores with numbered places, from 1 to
	// MaxHosts; 0 for a witness, which writes no beats.
	Slot uint16 `json:"slot,omitempty"`
	// Maintenance is set while an operator has the host in maintenance.
	Maintenance *Maintenance `json:"maintenance,omitempty"`
	// Watchdog is what the host promises about its watchdog in this boot, and
	// WatchdogAsked the number of the report of this incarnation that asked for it.
	Watchdog      haven.Watchdog `json:"watchdog,omitzero"`
	WatchdogAsked uint64         `json:"watchdog_asked,omitempty"`
	// Fenced is set while a host that was fenced waits for an operator's release.
	Fenced *Fenced `json:"fenced,omitempty"`
	// UUID is the system's own, as its agent reads it from the firmware; empty when
	// it cannot.
	UUID string `json:"uuid,omitempty"`
}

// ProvedDead says whether the boot that the ledger knows of is proved over.
func (h *Host) ProvedDead() bool { return h.Proof != nil && h.Proof.Boot == h.Boot }

// PowerTrust is what the ledger remembers about a host's BMC across masters.
type PowerTrust struct {
	// GUID is the BMC's system GUID, as read while the host was alive.
	GUID string `json:"guid,omitempty"`
	// Distrust says why the BMC's word is not a proof, until an operator
	// clears it. Empty means that it is trusted on the usual conditions.
	Distrust string `json:"distrust,omitempty"`
	// Cleared counts how often an operator cleared a distrust. Every agent that
	// holds one of its own drops it when the count grows.
	Cleared uint64 `json:"cleared,omitempty"`
	// Doubts are devices that seem to be another host's. While there is one, the
	// host is not fenced.
	Doubts []DeviceDoubt `json:"doubts,omitempty"`
	// Accepted are GUIDs that an operator took for this host's, whatever they are
	// compared with.
	Accepted []string `json:"accepted,omitempty"`
}

// Desired is what a VM's user wants of it.
type Desired string

// The desired states.
const (
	DesiredRunning Desired = "running"
	DesiredStopped Desired = "stopped"
)

// Phase says who may run a VM.
type Phase string

// The phases of a VM.
const (
	PhaseOwned   Phase = "owned"   // the owner runs it, or its user stopped it there
	PhaseFreed   Phase = "freed"   // nobody may run it; it wants a start
	PhaseOrdered Phase = "ordered" // the owner was told to start it
)

// VM is what the ledger knows of one protected VM.
type VM struct {
	ID         haven.VMID `json:"id"`
	Name       string     `json:"name"`
	MemoryMiB  uint64     `json:"memory_mib"`
	VCPUs      int        `json:"vcpus"`
	Definition Definition `json:"definition"`
	Desired    Desired    `json:"desired"`
	Phase      Phase      `json:"phase"`
	// Owner is the one host, in one boot, that may run the VM. In PhaseFreed it
	// is the last one.
	Owner     haven.HostID `json:"owner"`
	OwnerBoot haven.BootID `json:"owner_boot"`
	// Epoch grows with each change of owner and each start.
	Epoch haven.Epoch `json:"epoch"`
	// Freed says why nobody may run the VM, in PhaseFreed.
	Freed *Freed `json:"freed,omitempty"`
	// Order is the latest order, in PhaseOrdered the one that is out.
	Order    *OrderRecord `json:"order,omitempty"`
	Attempts []Attempt    `json:"attempts,omitempty"`
	Hold     haven.Hold   `json:"hold,omitzero"`
	// Migrating is set while the VM was last seen in migration. Such a VM is
	// started by nobody until both ends are known.
	Migrating bool `json:"migrating,omitempty"`
	// Incident is the one whose proof freed the VM, until it runs again.
	Incident haven.IncidentID `json:"incident,omitempty"`
}

// FreedBy says what allows a new start.
type FreedBy string

// The ways in which a VM loses its owner.
const (
	FreedByProof   FreedBy = "owner-proved-dead"
	FreedByReboot  FreedBy = "owner-rebooted"
	FreedByGone    FreedBy = "owner-says-gone"
	FreedByBeat    FreedBy = "owner-says-gone-by-beat" // after an isolated host stopped it, as configured
	FreedByStop    FreedBy = "stopped-on-its-owner"    // by a configured response, to be started elsewhere
	FreedByRefusal FreedBy = "order-refused"
	FreedByFailure FreedBy = "start-failed"
)

// Freed says why, by what word and when a VM lost its owner.
type Freed struct {
	By     FreedBy      `json:"by"`
	Host   haven.HostID `json:"host"`
	Boot   haven.BootID `json:"boot"`
	At     time.Time    `json:"at"`
	Detail string       `json:"detail,omitempty"`
}

// OrderRecord is an order with what became of it.
type OrderRecord struct {
	haven.Order
	CommittedAt time.Time         `json:"committed_at"`
	Status      haven.OrderStatus `json:"status"`
	ReportedAt  time.Time         `json:"reported_at,omitzero"`
	Detail      string            `json:"detail,omitempty"`
	// Absent lists who said, before the commit, that it does not have the VM.
	Absent []Absence `json:"absent,omitempty"`
}

// Absence is one host's word that it does not have a VM.
type Absence struct {
	Host haven.HostID `json:"host"`
	Boot haven.BootID `json:"boot"`
	Via  string       `json:"via"` // "inventory" or "beat"
}

// Attempt is a start that did not succeed.
type Attempt struct {
	Epoch  haven.Epoch       `json:"epoch"`
	Host   haven.HostID      `json:"host"`
	Status haven.OrderStatus `json:"status"`
	At     time.Time         `json:"at"`
	Detail string            `json:"detail,omitempty"`
	Locked bool              `json:"locked,omitempty"`
}

// Incident is the durable record of one host's trouble.
type Incident struct {
	ID       haven.IncidentID `json:"id"`
	Host     haven.HostID     `json:"host"`
	Boot     haven.BootID     `json:"boot"`
	Step     haven.Step       `json:"step"`
	Verdict  haven.Verdict    `json:"verdict"`
	Hold     haven.Hold       `json:"hold,omitzero"`
	OpenedAt time.Time        `json:"opened_at"`
	// SuspectedAt is when the master first suspected the host.
	SuspectedAt time.Time    `json:"suspected_at,omitzero"`
	ClosedAt    time.Time    `json:"closed_at,omitzero"`
	Outcome     string       `json:"outcome,omitempty"`
	Proof       *haven.Proof `json:"proof,omitempty"`
	// Attempts are the latest power commands that were decided for this incident.
	Attempts []FenceAttempt `json:"attempts,omitempty"`
	// Manual says that the host, once it is fenced, waits for an operator's release.
	Manual bool `json:"manual,omitempty"`
	// On is the power-on after the proof, with action reboot.
	On  *PowerOn     `json:"on,omitempty"`
	VMs []haven.VMID `json:"vms,omitempty"` // that the proof freed
	// Response is what was begun on the host itself because the configuration
	// says so; empty while nothing was. A VM that ends there afterwards was not
	// stopped by its user.
	Response string  `json:"response,omitempty"`
	Timeline []Entry `json:"timeline"`
	// Dropped counts the lines that were dropped from the middle of the time line.
	Dropped int `json:"dropped,omitempty"`
}

// Open says whether the incident is not closed yet.
func (i *Incident) Open() bool { return i.Step != haven.StepClosed }

// Pending returns the fence attempt that has begun and not ended, if any.
func (i *Incident) Pending() (FenceAttempt, bool) {
	if n := len(i.Attempts); n > 0 && i.Attempts[n-1].EndedAt.IsZero() {
		return i.Attempts[n-1], true
	}
	return FenceAttempt{}, false
}

// NextAttempt returns the number of the fence attempt that may begin next.
func (i *Incident) NextAttempt() int {
	if n := len(i.Attempts); n > 0 {
		return i.Attempts[n-1].N + 1
	}
	return 1
}

// attempt finds a fence attempt by its number, unless it was dropped.
func (i *Incident) attempt(n int) *FenceAttempt {
	for k := range i.Attempts {
		if i.Attempts[k].N == n {
			return &i.Attempts[k]
		}
	}
	return nil
}

// FenceAttempt is one decided power command, recorded before it is sent.
type FenceAttempt struct {
	N       int               `json:"n"` // from 1
	Action  haven.FenceAction `json:"action"`
	Term    haven.Term        `json:"term"`
	By      haven.HostID      `json:"by"`
	BegunAt time.Time         `json:"begun_at"`
	EndedAt time.Time         `json:"ended_at,omitzero"`
	Proved  bool              `json:"proved,omitempty"`
	Detail  string            `json:"detail,omitempty"`
}

// Fence is the latest power-down of one incident, in the history that the cap
// counts.
type Fence struct {
	Incident haven.IncidentID `json:"incident"`
	Host     haven.HostID     `json:"host"`
	N        int              `json:"n"`
	At       time.Time        `json:"at"`
}

// Entry is one line of an incident's time line (P9).
type Entry struct {
	At       time.Time        `json:"at"`
	Term     haven.Term       `json:"term"`
	By       haven.HostID     `json:"by"`
	Step     haven.Step       `json:"step"`
	What     string           `json:"what"`
	Evidence []haven.Evidence `json:"evidence,omitempty"`
}

// New returns the ledger of a cluster that has just been founded.
func New(cluster string) *State {
	return &State{
		Cluster:   cluster,
		Hosts:     map[haven.HostID]*Host{},
		VMs:       map[haven.VMID]*VM{},
		Incidents: map[haven.IncidentID]*Incident{},
	}
}

// HostIDs returns the registered hosts in order.
func (s *State) HostIDs() []haven.HostID { return slices.Sorted(maps.Keys(s.Hosts)) }

// VMIDs returns the protected VMs in order.
func (s *State) VMIDs() []haven.VMID { return slices.Sorted(maps.Keys(s.VMs)) }

// OpenIncidents returns the incidents that are not closed, in order of their ids.
func (s *State) OpenIncidents() []*Incident {
	var open []*Incident
	for _, id := range slices.Sorted(maps.Keys(s.Incidents)) {
		if in := s.Incidents[id]; in.Open() {
			open = append(open, in)
		}
	}
	return open
}

// MayHave returns the hosts whose word is needed before a VM is started: every
// registered hypervisor whose boot is not proved dead (P1).
func (s *State) MayHave() []haven.HostID {
	var ids []haven.HostID
	for _, id := range s.HostIDs() {
		if h := s.Hosts[id]; h.Role != haven.RoleWitness && !h.ProvedDead() {
			ids = append(ids, id)
		}
	}
	return ids
}

// AwaitedHosts returns the hosts that have not been heard of since the
// generation was raised, nor are proved dead, nor released by name. While
// there is one, nothing is started.
func (s *State) AwaitedHosts() []haven.HostID {
	var ids []haven.HostID
	for _, id := range s.HostIDs() {
		h := s.Hosts[id]
		if h.Generation != s.Generation && !h.ProvedDead() && h.Released == "" {
			ids = append(ids, id)
		}
	}
	return ids
}

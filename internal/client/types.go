package client

import (
	"encoding/json"
	"time"

	"github.com/haven-ha/haven"
)

// The paths between agents. Only certificates of hosts may use them.
const (
	PathHello      = "/v1/agent/hello"
	PathReport     = "/v1/agent/report"
	PathInventory  = "/v1/agent/inventory"
	PathDefinition = "/v1/agent/vms/{vm}/definition"
	PathOrders     = "/v1/agent/orders"
	PathProbe      = "/v1/agent/probe"
	PathPromise    = "/v1/agent/promise"
	PathConfirm    = "/v1/agent/confirm"
	PathWithdrawn  = "/v1/agent/withdrawn"
	PathPower      = "/v1/agent/power"
	PathPermit     = "/v1/agent/power/permit"
)

// Limits of the bodies of requests and answers, in bytes.
const (
	MaxReportBytes    = 16 << 20
	MaxOrderBytes     = 4 << 20
	MaxSmallBytes     = 64 << 10
	MaxAnswerBytes    = 64 << 20
	MaxInventoryBytes = 16 << 20
)

// Identity is who an agent is: the same host may come back as another boot, or
// with another data directory.
type Identity struct {
	Host        haven.HostID      `json:"host"`
	Boot        haven.BootID      `json:"boot"`
	State       haven.StateID     `json:"state"`
	Incarnation haven.Incarnation `json:"incarnation"`
	Role        haven.Role        `json:"role"`
	Address     string            `json:"address"`
	ServerID    string            `json:"server_id"` // of its Raft server
	// UUID is the system's own, as its firmware tells it; empty when it cannot be read.
	UUID string `json:"uuid,omitempty"`
}

// Report is what an agent tells the master several times a second.
type Report struct {
	Identity
	// Highest is the newest term that the agent has seen.
	Highest haven.Term `json:"highest_term"`
	// InventorySHA names the inventory; Inventory itself is sent when the master
	// does not know that name.
	InventorySHA string              `json:"inventory_sha"`
	Inventory    *haven.Inventory    `json:"inventory,omitempty"`
	Load         haven.HostLoad      `json:"load"`
	Orders       []haven.OrderReport `json:"orders,omitempty"`
	// Refuses says why the agent takes no orders now; empty when it does.
	Refuses string `json:"refuses,omitempty"`
	// Released are the VMs that the agent stopped for a configured response.
	Released []haven.VMID `json:"released,omitempty"`
	// Leaving is set by an agent's last reports.
	Leaving haven.LeaveReason `json:"leaving,omitempty"`
	// Number counts the reports of one incarnation. Of two, the higher one says what
	// the agent wants.
	Number uint64 `json:"number,omitempty"`
	// Watchdog is what the agent wants the ledger to hold of its watchdog. It
	// keeps what the ledger holds until an answer shows the new promise.
	Watchdog haven.Watchdog `json:"watchdog,omitzero"`
	// WatchdogSince is the number of the report that asked for this first; 0 when
	// nothing else was ever asked for. An older report must not come after it.
	WatchdogSince uint64 `json:"watchdog_since,omitempty"`
	// Observer is what the agent says of its own paths, Beats what it reads of
	// all hosts on the stores.
	Observer ObserverView `json:"observer"`
	Beats    []BeatView   `json:"beats,omitempty"`
}

// ObserverView is what an agent says about its own paths.
type ObserverView struct {
	Majority haven.Tri   `json:"majority"`
	LoopOK   haven.Tri   `json:"loop_ok"`
	Stores   []StoreView `json:"stores,omitempty"`
}

// StoreView is how one agent sees one store.
type StoreView struct {
	Store   string    `json:"store"`
	OwnBack haven.Tri `json:"own_back"`
	Others  haven.Tri `json:"others"`
	Hung    bool      `json:"hung,omitempty"`
	Why     string    `json:"why,omitempty"`
}

// BeatView is one host's beat on one store as one agent reads it. Ages are by
// that agent's clock at the moment of sending.
type BeatView struct {
	Store   string `json:"store"`
	StoreID string `json:"store_id,omitempty"` // the identity of what was read
	// Vouched says that the record was read whole, in a read in which the reader
	// found its own beat as well.
	Vouched bool `json:"vouched,omitempty"`
	// Watchdog is the bound of the armed watchdog that the record tells; 0: none.
	Watchdog   Millis            `json:"watchdog_ms,omitempty"`
	Host       haven.HostID      `json:"host"`
	Helper     bool              `json:"helper,omitempty"` // written by the helper
	Absent     bool              `json:"absent,omitempty"`
	Moving     haven.Tri         `json:"moving"`
	ReadAge    Millis            `json:"read_age_ms"`
	ChangedAge Millis            `json:"changed_age_ms"`
	Boot       haven.BootID      `json:"boot,omitempty"`
	Interval   Millis            `json:"interval_ms,omitempty"`
	Isolated   haven.Tri         `json:"isolated"`
	SeesOthers haven.Tri         `json:"sees_others"`
	Left       haven.LeaveReason `json:"left,omitempty"`
}

// Millis is a duration in whole milliseconds on the wire.
type Millis int64

// MillisOf rounds up, so that an age is never told too young.
func MillisOf(d time.Duration) Millis {
	return Millis((d + time.Millisecond - 1) / time.Millisecond)
}

// Duration is the reverse of MillisOf.
func (m Millis) Duration() time.Duration { return time.Duration(m) * time.Millisecond }

// Ack is the master's answer to a report.
type Ack struct {
	Master haven.HostID `json:"master"`
	Term   haven.Term   `json:"term"`
	// Registered says that the ledger has the agent as it described itself. Until
	// then it takes no orders. Rejected says why it never will.
	Registered bool   `json:"registered"`
	Rejected   string `json:"rejected,omitempty"`
	// WantInventory asks to send the inventory with the next report.
	WantInventory bool         `json:"want_inventory,omitempty"`
	Protected     []haven.VMID `json:"protected,omitempty"`
	SetAside      []haven.VMID `json:"set_aside,omitempty"`
	// LeaveRunning says why the agent is to stop no VMs should it be isolated: recovery
	// is disarmed, or its host is in maintenance. Empty when it may, as configured.
	LeaveRunning string `json:"leave_running,omitempty"`
	// Watch are the hosts whose beats the master wants to hear of whatever they
	// do; of others it wants to hear only when their beats stand still.
	Watch []haven.HostID `json:"watch,omitempty"`
	// Slot is the agent's place on stores with numbered places; 0 when it has none.
	Slot uint16 `json:"slot,omitempty"`
	// Watchdog is what the ledger holds of the agent's watchdog in this boot.
	Watchdog haven.Watchdog `json:"watchdog,omitzero"`
	// Verified is how long before this answer the master began the latest question
	// to the majority that said that it leads; negative when there was none, and
	// when the answer does not say.
	Verified Millis `json:"verified_ms"`
	// Every is how long to wait before the next report.
	Every Millis `json:"every_ms"`
}

// UnmarshalJSON takes an answer that does not say when the master was verified, as
// one of another version may not, for that of one that never was: its answer is no
// life (P2).
func (a *Ack) UnmarshalJSON(data []byte) error {
	type plain Ack
	p := plain{Verified: -1}
	if err := json.Unmarshal(data, &p); err != nil {
		return err
	}
	*a = Ack(p)
	return nil
}

// OrderRequest carries an order with the definition to start.
type OrderRequest struct {
	Order haven.Order `json:"order"`
	XML   []byte      `json:"xml"`
}

// ConfirmRequest asks the master whether an order still stands.
type ConfirmRequest struct {
	Order haven.OrderID `json:"order"`
	VM    haven.VMID    `json:"vm"`
	Epoch haven.Epoch   `json:"epoch"`
	Boot  haven.BootID  `json:"boot"`
	State haven.StateID `json:"state"`
}

// ConfirmAnswer is given after the master verified that it leads.
type ConfirmAnswer struct {
	Stands bool       `json:"stands"`
	Why    string     `json:"why,omitempty"`
	Term   haven.Term `json:"term"`
}

// ProbeRequest asks a neighbour to look for a suspect.
type ProbeRequest struct {
	Host  haven.HostID         `json:"host"`
	Kinds []haven.EvidenceKind `json:"kinds"`
	Limit Millis               `json:"limit_ms"` // of all probes together
	Term  haven.Term           `json:"term"`
}

// ProbeAnswer is what the neighbour found.
type ProbeAnswer struct {
	Results []ProbeResult `json:"results"`
	// Beats are the suspect's beats as the neighbour reads them.
	Beats []BeatView `json:"beats,omitempty"`
}

// ProbeResult is the answer to one kind of probe.
type ProbeResult struct {
	Kind   haven.EvidenceKind `json:"kind"`
	Value  haven.Tri          `json:"value"`
	Detail string             `json:"detail,omitempty"`
}

// PowerRequest asks an agent to reach a host's fence device for the caller, who
// cannot. It asks for the power state unless Identity or Action is set.
type PowerRequest struct {
	Host     haven.HostID      `json:"host"`
	Device   string            `json:"device"` // its key
	Identity bool              `json:"identity,omitempty"`
	Action   haven.FenceAction `json:"action,omitempty"`  // off, on or blink
	Light    *int              `json:"light_s,omitempty"` // of blink, as in Act
	// Permit names what is asked back at PathPermit right before a command leaves.
	Permit string     `json:"permit,omitempty"`
	Limit  Millis     `json:"limit_ms"`
	Term   haven.Term `json:"term"`
}

// PowerAnswer is what the device said, or why it said nothing.
type PowerAnswer struct {
	State  haven.PowerState `json:"state,omitempty"`
	GUID   string           `json:"guid,omitempty"`
	Failed string           `json:"failed,omitempty"` // auth, privilege, unreachable, busy, unsupported, rejected, not-permitted or other
	Detail string           `json:"detail,omitempty"`
}

// PermitRequest asks whether a power command may still leave.
type PermitRequest struct {
	Permit string `json:"permit"`
}

// PermitAnswer is given after the master verified that it leads and that the
// host is still to be fenced.
type PermitAnswer struct {
	Stands bool   `json:"stands"`
	Why    string `json:"why,omitempty"`
}

// DefinitionAnswer is a VM's definition with its present description.
type DefinitionAnswer struct {
	Boot haven.BootID `json:"boot"`
	Info haven.VMInfo `json:"info"`
	XML  []byte       `json:"xml"`
}

// Hello is an agent's answer to a caller that wants to know who it is.
type Hello struct {
	Identity
	Cluster    string       `json:"cluster"`
	Generation uint64       `json:"generation"` // 0: it knows no ledger
	Term       haven.Term   `json:"term"`
	Master     haven.HostID `json:"master,omitempty"`
}

// PromiseRequest asks an agent to take part in no other founding of the cluster.
type PromiseRequest struct {
	Proposer haven.HostID `json:"proposer"`
	ServerID string       `json:"server_id"`
}

// PromiseAnswer is the promise, or why it is refused.
type PromiseAnswer struct {
	Granted  bool   `json:"granted"`
	ServerID string `json:"server_id,omitempty"`
	Why      string `json:"why,omitempty"`
}

// Problem is the body of every error answer (RFC 9457).
type Problem struct {
	Type   string       `json:"type,omitempty"`
	Title  string       `json:"title"`
	Status int          `json:"status"`
	Detail string       `json:"detail,omitempty"`
	Master haven.HostID `json:"master,omitempty"` // with "not the master": who is
}

// Member is one host as the gossip layer sees it.
type Member struct {
	Host     haven.HostID      `json:"host"`
	Address  string            `json:"address"`
	State    string            `json:"state"` // alive, dead, left, unknown
	Since    Millis            `json:"since_ms"`
	Left     haven.LeaveReason `json:"left,omitempty"`
	Role     haven.Role        `json:"role"`
	Zone     string            `json:"zone,omitempty"`
	Master   bool              `json:"master"`
	Voter    bool              `json:"voter"`
	Boot     haven.BootID      `json:"boot,omitempty"`
	Stranger string            `json:"stranger,omitempty"` // why it does not belong here
}

// Members is the answer of /v1/members: this agent's own view.
type Members struct {
	Cluster     string       `json:"cluster"`
	Self        haven.HostID `json:"self"`
	Master      haven.HostID `json:"master,omitempty"`
	Term        haven.Term   `json:"term"`
	HealthScore int          `json:"health_score"` // 0 is healthy
	Members     []Member     `json:"members"`
}

// PathView is one path of evidence of a host for people.
type PathView struct {
	State string `json:"state"` // alive, silent, dead, stale, unknown, none
	Age   Millis `json:"age_ms,omitempty"`
	Why   string `json:"why,omitempty"`
}

// Host is one host as the master sees it.
type Host struct {
	Host      haven.HostID `json:"host"`
	Role      haven.Role   `json:"role"`
	Zone      string       `json:"zone,omitempty"`
	Address   string       `json:"address"`
	Boot      haven.BootID `json:"boot,omitempty"`
	Connected bool         `json:"connected"`
	// Registered is false for a configured host that never took part.
	Registered  bool             `json:"registered"`
	Verdict     haven.Verdict    `json:"verdict"`
	VerdictAge  Millis           `json:"verdict_age_ms"`
	Explanation string           `json:"explanation"`
	Missing     []string         `json:"missing,omitempty"`
	Hold        haven.Hold       `json:"hold,omitzero"`
	Evidence    []haven.Evidence `json:"evidence,omitempty"`
	Network     PathView         `json:"network"`
	Storage     PathView         `json:"storage"`
	Helper      PathView         `json:"helper"`
	Power       PathView         `json:"power"`
	// PowerTrusted says that an off of all of the host's fence devices would be
	// a proof, as far as they are known by now.
	PowerTrusted bool `json:"power_trusted"`
	// PowerGUID is the identity of the host's first fence device, as it was
	// recorded while the host lived: by it every master knows the device.
	PowerGUID   string            `json:"power_guid,omitempty"`
	Left        haven.LeaveReason `json:"left,omitempty"`
	Incident    haven.IncidentID  `json:"incident,omitempty"`
	Proof       *haven.Proof      `json:"proof,omitempty"`
	VMs         int               `json:"vms"` // protected VMs that it owns
	Load        haven.HostLoad    `json:"load"`
	Refuses     string            `json:"refuses,omitempty"`
	Maintenance *Maintenance      `json:"maintenance,omitempty"`
	// Quarantine says why it is given no VMs although it is healthy.
	Quarantine string `json:"quarantine,omitempty"`
	// Watchdog is what it promises about its watchdog; nil when that is nothing.
	Watchdog *HostWatchdog `json:"watchdog,omitempty"`
	// UUID is the system's own, as its firmware tells it; empty when it is not known.
	UUID string `json:"uuid,omitempty"`
	// Fenced says that it was fenced and waits for an operator's release.
	Fenced *Fenced `json:"fenced,omitempty"`
	// WrongDevice says why it is not fenced: a device seems to be another host's.
	WrongDevice string `json:"wrong_device,omitempty"`
	// Devices are its fence devices with their latest tests.
	Devices []DeviceWord `json:"devices,omitempty"`
}

// HostWatchdog is a host's armed watchdog as the ledger holds it, and how far the
// master's count of it is.
type HostWatchdog struct {
	// Bound is how long after its last life the host has been reset, at the latest.
	Bound Millis `json:"bound_ms"`
	// Stores are those that count, by name where the name is known.
	Stores []string `json:"stores"`
	// State is armed while the host lives, and else waiting, unknown, not-armed or
	// proved, as Why explains.
	State string `json:"state"`
	Why   string `json:"why,omitempty"`
	// Left is how long it takes at least until it is proved, while it is waiting.
	Left Millis `json:"left_ms,omitempty"`
}

// VM is one VM as the ledger has it.
type VM struct {
	VM        haven.VMID        `json:"vm"`
	Name      string            `json:"name"`
	Protected bool              `json:"protected"`
	Desired   string            `json:"desired"`
	Phase     string            `json:"phase"` // owned, freed, ordered
	Owner     haven.HostID      `json:"owner"`
	Epoch     haven.Epoch       `json:"epoch"`
	State     haven.VMState     `json:"state"` // as its owner reports it; unknown if it does not
	MemoryMiB uint64            `json:"memory_mib"`
	VCPUs     int               `json:"vcpus"`
	Hold      haven.Hold        `json:"hold,omitzero"`
	Order     haven.OrderStatus `json:"order,omitempty"`
	Incident  haven.IncidentID  `json:"incident,omitempty"`
	Why       string            `json:"why,omitempty"` // why it is not protected, or why it waits
}

// Incident is one incident, with its time line.
type Incident struct {
	ID      haven.IncidentID `json:"id"`
	Host    haven.HostID     `json:"host"`
	Boot    haven.BootID     `json:"boot"`
	Step    haven.Step       `json:"step"`
	Verdict haven.Verdict    `json:"verdict"`
	Hold    haven.Hold       `json:"hold,omitzero"`
	// SuspectedAt is when the first path fell silent, OpenedAt when that
	// became an incident; both by the master's clock.
	SuspectedAt time.Time       `json:"suspected_at,omitzero"`
	OpenedAt    time.Time       `json:"opened_at"`
	ClosedAt    time.Time       `json:"closed_at,omitzero"`
	Outcome     string          `json:"outcome,omitempty"`
	Proof       *haven.Proof    `json:"proof,omitempty"`
	Attempts    []FenceAttempt  `json:"attempts,omitempty"`
	VMs         []IncidentVM    `json:"vms,omitempty"`
	Timeline    []TimelineEntry `json:"timeline,omitempty"`
	// Dropped counts the lines that were dropped from the middle of the time line.
	Dropped int `json:"dropped,omitempty"`
	// Response is what was begun on the host itself, as configured.
	Response string `json:"response,omitempty"`
	// Recording is where the flight recorder of the host that answers keeps
	// what it saw of the incident. Masters before it may have one, too.
	Recording *Recording `json:"recording,omitempty"`
}

// Recording is a file that "haven replay" reads.
type Recording struct {
	Host haven.HostID `json:"host"`
	Path string       `json:"path"`
}

// FenceAttempt is one power-off that was decided.
type FenceAttempt struct {
	N       int               `json:"n"`
	Action  haven.FenceAction `json:"action"`
	By      haven.HostID      `json:"by"`
	BegunAt time.Time         `json:"begun_at"`
	EndedAt time.Time         `json:"ended_at,omitzero"`
	Proved  bool              `json:"proved"`
	Detail  string            `json:"detail,omitempty"`
}

// IncidentVM is one VM that an incident set free, and where it is now.
type IncidentVM struct {
	VM          haven.VMID        `json:"vm"`
	Name        string            `json:"name"`
	Phase       string            `json:"phase"`
	Owner       haven.HostID      `json:"owner"`
	Epoch       haven.Epoch       `json:"epoch"`
	OrderedAt   time.Time         `json:"ordered_at,omitzero"`
	Status      haven.OrderStatus `json:"status,omitempty"`
	ReportedAt  time.Time         `json:"reported_at,omitzero"`
	Hold        haven.Hold        `json:"hold,omitzero"`
	Explanation string            `json:"explanation,omitempty"`
}

// TimelineEntry is one line of an incident's time line.
type TimelineEntry struct {
	At       time.Time        `json:"at"`
	Term     haven.Term       `json:"term"`
	By       haven.HostID     `json:"by"`
	Step     haven.Step       `json:"step"`
	What     string           `json:"what"`
	Evidence []haven.Evidence `json:"evidence,omitempty"`
}

// Raft is the answer of /v1/raft: this agent's own view.
type Raft struct {
	Self         haven.HostID `json:"self"`
	State        string       `json:"state"`
	Leader       haven.HostID `json:"leader,omitempty"`
	Term         uint64       `json:"term"`
	Generation   uint64       `json:"generation"`
	LastIndex    uint64       `json:"last_index"`
	CommitIndex  uint64       `json:"commit_index"`
	AppliedIndex uint64       `json:"applied_index"`
	Snapshot     uint64       `json:"snapshot_index"`
	Servers      []RaftServer `json:"servers"`
}

// RaftServer is one server of the Raft configuration.
type RaftServer struct {
	ID          string       `json:"id"`
	Host        haven.HostID `json:"host,omitempty"`
	Address     string       `json:"address"`
	Voter       bool         `json:"voter"`
	Leader      bool         `json:"leader"`
	LastContact *Millis      `json:"last_contact_ms,omitempty"`
}

// Status is the cluster in one answer.
type Status struct {
	Cluster    string       `json:"cluster"`
	Self       haven.HostID `json:"self"`
	Master     haven.HostID `json:"master,omitempty"`
	Term       haven.Term   `json:"term"`
	Version    string       `json:"version"`
	Armed      bool         `json:"armed"`
	DisarmedBy string       `json:"disarmed_by,omitempty"`
	DisarmedAt time.Time    `json:"disarmed_at,omitzero"`
	// DisarmReason is the operator's, DisarmPending what is being finished before
	// the disarm takes effect; empty when it did.
	DisarmReason  string `json:"disarm_reason,omitempty"`
	DisarmPending string `json:"disarm_pending,omitempty"`
	// Sentence is the health of the cluster in one sentence.
	Sentence string       `json:"sentence"`
	Healthy  bool         `json:"healthy"`
	Holds    []haven.Hold `json:"holds,omitempty"`
	// Held is everything that is held: in the cluster, incidents and VMs.
	Held      []Held `json:"held,omitempty"`
	Hosts     int    `json:"hosts"`
	HostsUp   int    `json:"hosts_up"`
	VMs       int    `json:"vms"`
	VMsUp     int    `json:"vms_up"`
	Incidents int    `json:"incidents_open"`
	// Local is what the answering agent knows about itself.
	Local SelfView `json:"local,omitzero"`
	// Stale says that the answer comes from an agent that could not reach the
	// master; it may be old.
	Stale bool `json:"stale,omitempty"`
}

// SelfView is what an agent knows about its own network.
type SelfView struct {
	State    string    `json:"state"` // connected, alone, partitioned, isolated
	Since    time.Time `json:"since,omitzero"`
	Why      string    `json:"why,omitempty"`
	Reached  int       `json:"reached"` // hosts, itself included
	Hosts    int       `json:"hosts"`   // that are not proved dead
	Majority haven.Tri `json:"majority"`
	// Watchdog is nil where there is none.
	Watchdog *WatchdogView `json:"watchdog,omitempty"`
}

// WatchdogView is how an agent's own watchdog stands.
type WatchdogView struct {
	State    string         `json:"state"` // off, armed, silent, disarming, left-armed
	Device   string         `json:"device,omitempty"`
	Declared haven.Watchdog `json:"declared,omitzero"`
	// Agreed says that the last answer of a master showed what is declared.
	Agreed  bool   `json:"agreed,omitempty"`
	LifeAge Millis `json:"life_age_ms,omitempty"`
	// ResetsIn is set while no life keeps the host from being reset.
	ResetsIn Millis `json:"resets_in_ms,omitempty"`
	Why      string `json:"why,omitempty"` // what is wrong
}

// Act is an operator's word: who, what and why.
type Act struct {
	By     string `json:"by"`
	Reason string `json:"reason,omitempty"`
	// Force overrules the check that nothing shows life.
	Force bool `json:"force,omitempty"`
	// Now, when disarming, stops what is under way as well.
	Now bool `json:"now,omitempty"`
	// Light, of blink, is for how many seconds the light blinks, up to LightMax; 0
	// puts it out. Without it, it blinks for LightMax, or as long as a device that cannot
	// be told does by itself.
	Light *int `json:"light_s,omitempty"`
}

// LightMax is the longest that a light is made to blink, in seconds: IPMI's
// Chassis Identify has one octet for it.
const LightMax = 255

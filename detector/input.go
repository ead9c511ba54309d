package detector

import (
	"fmt"
	"time"

	"github.com/haven-ha/haven"
)

// All instants in the input and the output are durations since one origin that
// the caller chooses once for a Machine, by one monotonic clock. An age that
// another host told is turned into an instant when it arrives: arrival − age.
// An instant in the future is never believed. In JSON, each is in nanoseconds;
// what was written is read back without loss, so that a record can be replayed.

// Input is everything the detector may know at one Step.
type Input struct {
	Self      Self       `json:"self,omitzero"`
	Observers []Observer `json:"observers,omitzero"` // whose words are used; Self.Host's own entry among them
	Hosts     []Host     `json:"hosts,omitzero"`     // every host, in the order wanted for Output.Hosts; ids are unique
}

// Self says who judges.
type Self struct {
	Host haven.HostID `json:"host,omitzero"`
	// Master says that this agent is the master, and MasterSince since when.
	// A master expects reports from every host from that moment on.
	Master      bool          `json:"master,omitzero"`
	MasterSince time.Duration `json:"master_since,omitzero"`
	// Started is when this process started.
	Started time.Duration `json:"started,omitzero"`
	// ColdStart says that the whole cluster came up at ColdStarted: there was
	// no master before. A change of master is no cold start.
	ColdStart   bool          `json:"cold_start,omitzero"`
	ColdStarted time.Duration `json:"cold_started,omitzero"`
}

// Observer is what an agent says about its own paths. What an observer did not
// see counts only if it can vouch for the path it looked through.
type Observer struct {
	Host     haven.HostID  `json:"host,omitzero"`
	At       time.Duration `json:"at,omitzero"`       // when it said so
	Majority haven.Tri     `json:"majority,omitzero"` // it reaches a majority of the configured hosts
	LoopOK   haven.Tri     `json:"loop_ok,omitzero"`  // its own loop is not lagging
	Stores   []StoreView   `json:"stores,omitzero"`   // the stores it reads; empty if it has none
}

// StoreView is how one observer sees one store.
type StoreView struct {
	Store   string    `json:"store,omitzero"`
	OwnBack haven.Tri `json:"own_back,omitzero"` // it reads back its own beat, lately written
	Others  haven.Tri `json:"others,omitzero"`   // it sees the beat of a host other than itself move
	Hung    bool      `json:"hung,omitzero"`     // its last operation did not come back in time
}

// usableFor tells whether stillness read here means anything. If nobody else
// is due to write, the reader's own beat is the only sign that the store works.
func (v *StoreView) usableFor(othersDue bool) bool {
	return v.OwnBack == haven.Yes && !v.Hung && (!othersDue || v.Others == haven.Yes)
}

// dead tells whether the observer says outright that the store does not work.
func (v *StoreView) dead() bool {
	return v.OwnBack == haven.No || v.Hung || v.Others == haven.No
}

// Host is the evidence about one host.
type Host struct {
	ID          haven.HostID `json:"id,omitzero"`
	Configured  bool         `json:"configured,omitzero"` // a host that is not configured is never judged
	Role        haven.Role   `json:"role,omitzero"`
	Storeless   bool         `json:"storeless,omitzero"`   // it is not to write beats (a witness without a store)
	Maintenance bool         `json:"maintenance,omitzero"` // an operator put it in maintenance
	// Boot is the newest boot of it that registered; empty if none ever did.
	Boot haven.BootID `json:"boot,omitzero"`
	// Proved says that the ledger holds a proof that Boot is over.
	Proved bool `json:"proved,omitzero"`

	Report Report         `json:"report,omitzero"`
	Gossip Gossip         `json:"gossip,omitzero"`
	Probes []Probe        `json:"probes,omitzero"` // the last few by each observer asked; at most some dozens
	Beats  []Beat         `json:"beats,omitzero"`
	Disks  []Disk         `json:"disks,omitzero"` // the latest by each observer asked
	Power  []PowerReading `json:"power,omitzero"` // the last few, 10 s worth or more
}

// Report is the latest direct word of the host's agent to this one: a report to
// the master or, on another agent, what the master last sent it.
type Report struct {
	Heard    bool          `json:"heard,omitzero"`
	At       time.Duration `json:"at,omitzero"`
	Boot     haven.BootID  `json:"boot,omitzero"`
	Expected bool          `json:"expected,omitzero"` // this agent is due such words; a master is due them from all
}

// GossipState is what the gossip layer holds a host for.
type GossipState uint8

// The states of a host in gossip.
const (
	GossipUnknown GossipState = iota // not known: never seen, or forgotten
	GossipAlive
	GossipDead
	GossipLeft // it left; Gossip.Left may tell why
)

func (s GossipState) String() string {
	switch s {
	case GossipAlive:
		return "alive"
	case GossipDead:
		return "dead"
	case GossipLeft:
		return "left"
	case GossipUnknown:
	}
	return "unknown"
}

// MarshalText writes "unknown", "alive", "dead" or "left".
func (s GossipState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *GossipState) UnmarshalText(b []byte) error {
	for t := GossipUnknown; t <= GossipLeft; t++ {
		if string(b) == t.String() {
			*s = t
			return nil
		}
	}
	return fmt.Errorf("state in gossip %q: want unknown, alive, dead or left", b)
}

// Gossip is the word of the gossip layer.
type Gossip struct {
	State GossipState       `json:"state,omitzero"`
	Since time.Duration     `json:"since,omitzero"` // when it entered the state, as seen here
	Left  haven.LeaveReason `json:"left,omitzero"`
}

// Probe is one question to the host by one observer.
type Probe struct {
	Observer haven.HostID       `json:"observer,omitzero"`
	Kind     haven.EvidenceKind `json:"kind,omitzero"` // EvidenceProbeAgent, EvidenceProbeHelper or EvidenceProbeTCP
	// Result is Yes for an answer; No if the observer could ask and got none;
	// Unknown if the observer did not tell.
	Result haven.Tri `json:"result,omitzero"`
	// Started is an instant not later than the true start: when this agent
	// asked the observer. Finished is when its word came back.
	Started  time.Duration `json:"started,omitzero"`
	Finished time.Duration `json:"finished,omitzero"`
	// Detail is what the answer told, for people only: a helper tells how the
	// agent's unit is.
	Detail string `json:"detail,omitzero"`
}

// Writer says which process of a host writes a beat.
type Writer uint8

// The writers of beats.
const (
	WriterAgent Writer = iota
	WriterHelper
)

func (w Writer) String() string {
	if w == WriterHelper {
		return "helper"
	}
	return "agent"
}

// MarshalText writes "agent" or "helper".
func (w Writer) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (w *Writer) UnmarshalText(b []byte) error {
	switch string(b) {
	case WriterAgent.String():
		*w = WriterAgent
	case WriterHelper.String():
		*w = WriterHelper
	default:
		return fmt.Errorf("writer of a beat %q: want agent or helper", b)
	}
	return nil
}

func (w Writer) kind() haven.EvidenceKind {
	if w == WriterHelper {
		return haven.EvidenceHelperBeat
	}
	return haven.EvidenceAgentBeat
}

// Beat is one host's beat on one store as one observer reads it.
type Beat struct {
	Store  string       `json:"store,omitzero"`
	Writer Writer       `json:"writer"`
	Reader haven.HostID `json:"reader,omitzero"`
	// ReadAt is when the slot was last read whole, or seen to be empty.
	ReadAt time.Duration `json:"read_at,omitzero"`
	// Absent says that the slot was never written.
	Absent bool `json:"absent,omitzero"`
	// Moving is Yes if the sequence changed lately, No if the reader watched
	// it stand still for longer than a beat may take, Unknown otherwise.
	Moving haven.Tri `json:"moving,omitzero"`
	// Changed says that the reader saw the sequence change, at ChangedAt for
	// the last time. If it never did, ChangedAt is when it first read the slot.
	Changed   bool          `json:"changed,omitzero"`
	ChangedAt time.Duration `json:"changed_at,omitzero"`
	// The rest is what the record says.
	Boot       haven.BootID      `json:"boot,omitzero"`
	Interval   time.Duration     `json:"interval,omitzero"`
	Isolated   haven.Tri         `json:"isolated,omitzero"`
	SeesOthers haven.Tri         `json:"sees_others,omitzero"` // it sees a master or other hosts
	Left       haven.LeaveReason `json:"left,omitzero"`        // the clean-stop flag
}

// Disk is what one observer sees of the disks of the host's VMs.
type Disk struct {
	Observer haven.HostID `json:"observer,omitzero"`
	// Active is Yes if any disk changed between two readings of the observer not
	// longer ago than a disk must be still to be idle, No if all were explicitly
	// idle for that long, Unknown otherwise.
	Active haven.Tri     `json:"active,omitzero"`
	At     time.Duration `json:"at,omitzero"`   // when the latest of the readings ended
	Span   time.Duration `json:"span,omitzero"` // how long the readings span
	// Quiet is how long before At a change was last found, with Active Yes: that,
	// and not At, is the sign of life.
	Quiet time.Duration `json:"quiet,omitzero"`
	Why   string        `json:"why,omitzero"` // the observer's reason in one line
}

// PowerReading is one answer of a host's BMC, or the lack of one.
type PowerReading struct {
	Device   string           `json:"device,omitzero"`
	Session  uint64           `json:"session,omitzero"` // differs between sessions
	By       haven.HostID     `json:"by,omitzero"`
	State    haven.PowerState `json:"state,omitzero"`
	Started  time.Duration    `json:"started,omitzero"`
	Finished time.Duration    `json:"finished,omitzero"`
	// Trusted says that this BMC's off may be believed: it is known to be this
	// host's, and was never wrong about it. Why tells the reason either way.
	Trusted bool   `json:"trusted,omitzero"`
	Why     string `json:"why,omitzero"`
	// GUID tells whether the BMC's GUID matches the host's.
	GUID haven.Tri `json:"guid,omitzero"`
}

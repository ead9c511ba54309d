package detector

import (
	"time"

	"github.com/haven-ha/haven"
)

// All instants in the input and the output are durations since one origin that
// the caller chooses once for a Machine, by one monotonic clock. An age that
// another host told is turned into an instant when it arrives: arrival − age.
// An instant in the future is never believed.

// Input is everything the detector may know at one Step.
type Input struct {
	Self      Self
	Observers []Observer // whose words are used; Self.Host's own entry among them
	Hosts     []Host     // every host, in the order wanted for Output.Hosts; ids are unique
}

// Self says who judges.
type Self struct {
	Host haven.HostID
	// Master says that this agent is the master, and MasterSince since when.
	// A master expects reports from every host from that moment on.
	Master      bool
	MasterSince time.Duration
	// Started is when this process started.
	Started time.Duration
	// ColdStart says that the whole cluster came up at ColdStarted: there was
	// no master before. A change of master is no cold start.
	ColdStart   bool
	ColdStarted time.Duration
}

// Observer is what an agent says about its own paths. What an observer did not
// see counts only if it can vouch for the path it looked through.
type Observer struct {
	Host     haven.HostID
	At       time.Duration // when it said so
	Majority haven.Tri     // it reaches a majority of the configured hosts
	LoopOK   haven.Tri     // its own loop is not lagging
	Stores   []StoreView   // the stores it reads; empty if it has none
}

// StoreView is how one observer sees one store.
type StoreView struct {
	Store   string
	OwnBack haven.Tri // it reads back its own beat, lately written
	Others  haven.Tri // it sees the beat of a host other than itself move
	Hung    bool      // its last operation did not come back in time
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
	ID          haven.HostID
	Configured  bool // a host that is not configured is never judged
	Role        haven.Role
	Storeless   bool // it is not to write beats (a witness without a store)
	Maintenance bool // an operator put it in maintenance
	// Boot is the newest boot of it that registered; empty if none ever did.
	Boot haven.BootID
	// Proved says that the ledger holds a proof that Boot is over.
	Proved bool

	Report Report
	Gossip Gossip
	Probes []Probe // the last few by each observer asked; at most some dozens
	Beats  []Beat
	Disks  []Disk         // the latest by each observer asked
	Power  []PowerReading // the last few, 10 s worth or more
}

// Report is the latest direct word of the host's agent to this one: a report to
// the master or, on another agent, what the master last sent it.
type Report struct {
	Heard    bool
	At       time.Duration
	Boot     haven.BootID
	Expected bool // this agent is due such words; a master is due them from all
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

// Gossip is the word of the gossip layer.
type Gossip struct {
	State GossipState
	Since time.Duration // when it entered the state, as seen here
	Left  haven.LeaveReason
}

// Probe is one question to the host by one observer.
type Probe struct {
	Observer haven.HostID
	Kind     haven.EvidenceKind // EvidenceProbeAgent, EvidenceProbeHelper or EvidenceProbeTCP
	// Result is Yes for an answer; No if the observer could ask and got none;
	// Unknown if the observer did not tell.
	Result haven.Tri
	// Started is an instant not later than the true start: when this agent
	// asked the observer. Finished is when its word came back.
	Started, Finished time.Duration
}

// Writer says which process of a host writes a beat.
type Writer uint8

// The writers of beats.
const (
	WriterAgent Writer = iota
	WriterHelper
)

func (w Writer) kind() haven.EvidenceKind {
	if w == WriterHelper {
		return haven.EvidenceHelperBeat
	}
	return haven.EvidenceAgentBeat
}

// Beat is one host's beat on one store as one observer reads it.
type Beat struct {
	Store  string
	Writer Writer
	Reader haven.HostID
	// ReadAt is when the slot was last read whole, or seen to be empty.
	ReadAt time.Duration
	// Absent says that the slot was never written.
	Absent bool
	// Moving is Yes if the sequence changed lately, No if the reader watched
	// it stand still for longer than a beat may take, Unknown otherwise.
	Moving haven.Tri
	// Changed says that the reader saw the sequence change, at ChangedAt for
	// the last time. If it never did, ChangedAt is when it first read the slot.
	Changed   bool
	ChangedAt time.Duration
	// The rest is what the record says.
	Boot       haven.BootID
	Interval   time.Duration
	Isolated   haven.Tri
	SeesOthers haven.Tri         // it sees a master or other hosts
	Left       haven.LeaveReason // the clean-stop flag
}

// Disk is what one observer sees of the disks of the host's VMs.
type Disk struct {
	Observer haven.HostID
	// Active is Yes if any disk changed between two readings of the observer,
	// No if all were explicitly idle for long enough, Unknown otherwise.
	Active haven.Tri
	At     time.Duration // when the latest of the readings ended
	Span   time.Duration // how long the readings span
}

// PowerReading is one answer of a host's BMC, or the lack of one.
type PowerReading struct {
	Device            string
	Session           uint64 // differs between sessions
	By                haven.HostID
	State             haven.PowerState
	Started, Finished time.Duration
	// Trusted says that this BMC's off may be believed: it is known to be this
	// host's, and was never wrong about it. Why tells the reason either way.
	Trusted bool
	Why     string
	// GUID tells whether the BMC's GUID matches the host's.
	GUID haven.Tri
}

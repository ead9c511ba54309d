// Package recovery is the incident machine: it decides, on the master, what
// becomes of a host that the detector judged and of the VMs that it ran.
//
// The machine is level-triggered. Every decision is a ledger command; every act
// follows from what stands in the ledger, not from what was decided a moment
// ago. A new master therefore goes on wherever the old one died: it sees the
// same ledger, starts the same acts, and those are idempotent (P7).
package recovery

import (
	"fmt"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/vmrestart"
)

// Config holds what the operator chose.
type Config struct {
	Action  haven.FenceAction                  // cluster-wide default
	Actions map[haven.HostID]haven.FenceAction // overrides
	Devices map[haven.HostID]bool              // hosts that have a fence device
	// Cap is the limit on power-downs in the whole cluster (P6).
	Cap fencing.Limit
	// HostCap is the limit on power-downs of one host, and HostCaps what differs for
	// some. A count of 0 is no limit of its own.
	HostCap  fencing.Limit
	HostCaps map[haven.HostID]fencing.Limit
	// ManualRelease are the hosts that, once they were fenced, are given no VMs
	// until an operator releases them.
	ManualRelease map[haven.HostID]bool
	// ReportAfter is how long a trouble that leads to no action must last
	// before it becomes an incident. It keeps blips out of the ledger.
	ReportAfter time.Duration
	// ReturnAfter is how long a host must be healthy before its incident ends.
	ReturnAfter time.Duration
	// AbsenceAge is the most that a host's word "I do not have it" may be old
	// when an order is committed.
	AbsenceAge time.Duration
	// UnknownAfter is how long an order may be out, at a host that does not
	// answer, before it is called a hold.
	UnknownAfter time.Duration
	// Limits bounds placements.
	Limits vmrestart.PlanLimits
	// ReserveMiB is the memory of each host that VMs may not use.
	ReserveMiB uint64
	// Protect says whether running persistent VMs are protected without being
	// asked.
	ProtectAll bool
	// HoldAlarmAfter is how long a hold may last before it is an alarm, and
	// HoldAlarmEvery how often it is one again. 0: never.
	HoldAlarmAfter, HoldAlarmEvery time.Duration
	// StopsIsolated are the hosts that stop their VMs themselves while they are
	// isolated, and StopsStorageLost those whose VMs are stopped after they
	// lost their storage for StorageLostDelay. Both are empty by default (P4).
	StopsIsolated, StopsStorageLost map[haven.HostID]bool
	StorageLostDelay                time.Duration
}

// Input is all that the machine may know when it decides.
type Input struct {
	Now  time.Time // with a monotonic reading; all ages are differences of such times
	Self haven.HostID
	Term haven.Term
	// Brakes are the cluster-wide reasons not to fence (P6).
	Brakes []haven.Hold
	Hosts  map[haven.HostID]HostView
	Done   []Done // acts that ended since the last step
}

// HostView is what the master knows of a host right now.
type HostView struct {
	// Boot is the one that the verdict is about. A verdict about another boot
	// than the ledger's is none.
	Boot         haven.BootID
	Verdict      haven.Verdict
	Explanation  string
	Evidence     []haven.Evidence
	SuspectedFor time.Duration
	Hold         haven.Hold // the detector's, about this host alone
	// NoFence says why the detector would not have this host powered off now,
	// whatever its verdict; empty when it would.
	NoFence string
	Leave   haven.LeaveReason
	// Connected says that its agent reports to this master, registered, in the
	// boot and with the agent state that the ledger knows.
	Connected bool
	// Inventory is the latest that it reported. It is a hint: it may have been
	// under way for long.
	Inventory haven.Inventory
	Load      haven.HostLoad
	// Refuses says why the agent takes no orders now; empty when it does.
	Refuses string
	Orders  []haven.OrderReport
	// Released are the VMs that its agent stopped for a configured response.
	Released []haven.VMID
	// Hung names a store of which an operation does not come back on the host. While
	// there is one, that a VM's process is gone does not prove that the VM is.
	Hung string
	// Quarantine says why it is given no VMs although it is healthy; empty when
	// it may be given some.
	Quarantine string
	// Watchdog says how its watchdog is counted down, and Fired is the proof that it
	// has reset the host, as soon as that must be so. Empty and nil when nothing is
	// counted.
	Watchdog string
	Fired    *haven.Proof
	// Beat is what the host's own beats tell of its VMs, for a host that does
	// not answer.
	Beat BeatList
}

// BeatList is the list of VMs in a host's beat on a store.
type BeatList struct {
	Complete bool
	VMs      []haven.VMID
	// Since is a time before which the beat cannot have been written, by this
	// observer's clock. Zero when no beat was seen.
	Since time.Time
	Boot  haven.BootID
	// Releasing says that the agent itself wrote it, and that it is stopping its
	// VMs because it is isolated. Those that are not in the list are gone.
	Releasing bool
}

// Act is something to be done outside. Acts of one key never run at once.
type Act interface{ Key() string }

// Fence powers a host off and proves it.
type Fence struct {
	Incident haven.IncidentID
	N        int
	Host     haven.HostID
	Boot     haven.BootID
}

// Ask asks an agent for a fresh inventory.
type Ask struct{ Host haven.HostID }

// Send gives an order to its target, or asks how it stands.
type Send struct {
	Order haven.OrderID
	VM    haven.VMID
	Host  haven.HostID
}

// Fetch asks an agent for a VM's definition.
type Fetch struct {
	Host haven.HostID
	VM   haven.VMID
}

// Key of a fence: one host is fenced once at a time.
func (a Fence) Key() string { return "fence/" + string(a.Host) }

// Key of an inventory request.
func (a Ask) Key() string { return "ask/" + string(a.Host) }

// Key of an order.
func (a Send) Key() string { return "send/" + string(a.Order) }

// Key of a request for a definition.
func (a Fetch) Key() string { return "fetch/" + string(a.Host) + "/" + string(a.VM) }

// Done is the end of an act. Exactly one comes for each act, also when it
// failed; Err is then set.
type Done struct {
	Act Act
	Err error
	// Begun is when the act began, by the master's clock.
	Begun time.Time
	// Proof is set by a Fence that proved the host off. Detail tells how it went.
	Proof  *haven.Proof
	Detail string
	// Inventory is set by an Ask.
	Inventory *haven.Inventory
	// Report is set by a Send.
	Report *haven.OrderReport
	// Gone is set by a Stop: whether the VM is proved gone.
	Gone haven.Tri
	// Definition, Info and Boot are set by a Fetch.
	Definition ledger.Definition
	Info       haven.VMInfo
	Boot       haven.BootID
}

// Output is what the machine wants done: first all commands committed, in
// order, and then the acts begun.
type Output struct {
	Commands []ledger.Command
	Acts     []Act
	// Notices are for the log and for people.
	Notices []Notice
	// Wake is when to step again at the latest, if nothing happens before.
	Wake time.Duration
}

// Notice is something an operator should hear of.
type Notice struct {
	Kind     string // stable word, e.g. "incident-opened"; internal/notify lists them all
	Alarm    bool   // needs attention, not only a note
	Host     haven.HostID
	VM       haven.VMID
	Incident haven.IncidentID
	// About tells this notice from others of its kind about the same incident, host
	// and VM: a verdict, the reason of a hold, an epoch. Another master says the same.
	About string
	Text  string
}

// Machine is the recovery of one master in one term. It keeps only what can be
// learnt again: what acts are under way, and since when it has seen things.
type Machine struct {
	cfg    Config
	flying map[string]time.Time
	// answers are the latest inventories that were asked for.
	answers map[haven.HostID]answer
	asked   map[haven.HostID]time.Time
	seen    map[haven.VMID]sight
	sent    map[haven.OrderID]time.Time
	fetched map[string]time.Time
	blocked map[haven.IncidentID]retry
	// recounted is when what a hold says of a watchdog was last corrected.
	recounted map[haven.IncidentID]time.Time
	healthy   map[haven.HostID]time.Time
	// troubled is since when a host's verdict has been worth an incident.
	troubled map[haven.HostID]time.Time
	// dead is since when this master has known a host's proof, and there is when
	// it last saw a VM at its owner; see hidden.
	dead   map[haven.HostID]time.Time
	there  map[haven.VMID]time.Time
	twice  map[haven.VMID]bool                   // seen on two hosts, in this step
	ended  map[haven.IncidentID]ledger.EndFence  // of attempts that are over, until the ledger shows it
	proofs map[haven.IncidentID]ledger.ProveDead // that a fence brought, until the ledger has it

	// lost is since when a host's verdict has been storage-lost, stops when a VM
	// was last asked to be stopped.
	lost      map[haven.HostID]time.Time
	stops     map[string]time.Time
	held      map[holdKey]*heldFor
	faces     map[haven.HostID]*face
	switched  map[haven.IncidentID]ledger.EndOn // power-ons that are over, until the ledger shows it
	blinked   map[haven.IncidentID]time.Time    // when a light was made to blink last
	blinking  map[haven.IncidentID]bool         // and was told of
	finishing string                            // what a disarm waits for

	now time.Time
	in  Input
	out Output
}

type answer struct {
	inv   haven.Inventory
	asked time.Time
}

// sight is since when this master has seen a VM in one phase of one epoch. Only
// what was asked after it can tell anything about that phase.
type sight struct {
	epoch haven.Epoch
	phase ledger.Phase
	at    time.Time
}

type retry struct {
	n     int
	after time.Time
}

// New returns a machine for a master that has just been elected.
func New(cfg Config) *Machine {
	return &Machine{
		cfg:     cfg,
		flying:  map[string]time.Time{},
		answers: map[haven.HostID]answer{},
		asked:   map[haven.HostID]time.Time{},
		seen:    map[haven.VMID]sight{},
		sent:    map[haven.OrderID]time.Time{},
		fetched: map[string]time.Time{},
		blocked: map[haven.IncidentID]retry{}, recounted: map[haven.IncidentID]time.Time{},
		healthy: map[haven.HostID]time.Time{}, troubled: map[haven.HostID]time.Time{},
		dead: map[haven.HostID]time.Time{}, there: map[haven.VMID]time.Time{},
		lost: map[haven.HostID]time.Time{}, stops: map[string]time.Time{}, held: map[holdKey]*heldFor{}, faces: map[haven.HostID]*face{},
		ended: map[haven.IncidentID]ledger.EndFence{}, proofs: map[haven.IncidentID]ledger.ProveDead{},
		switched: map[haven.IncidentID]ledger.EndOn{}, blinked: map[haven.IncidentID]time.Time{}, blinking: map[haven.IncidentID]bool{},
	}
}

// Step decides. The state is only read. The caller commits the commands, begins
// the acts and steps again when something changed.
func (m *Machine) Step(s *ledger.State, in Input) Output {
	m.now, m.in, m.out = in.Now, in, Output{Wake: time.Second}
	m.twice = map[haven.VMID]bool{}
	for _, d := range in.Done {
		m.absorb(s, d)
	}
	m.watch(s)
	for _, id := range s.HostIDs() {
		m.host(s, s.Hosts[id])
	}
	m.settleAll(s)
	m.protect(s)
	for _, id := range s.VMIDs() {
		m.vm(s, s.VMs[id])
	}
	m.place(s)
	m.decide(s)
	m.watchHolds(s)
	m.watchDisarm(s)
	m.forget(s)
	m.forgetPower(s)
	return m.out
}

// absorb takes in the end of an act. It may be one that this machine did not
// begin: when a host becomes master again, acts of its earlier term still end.
func (m *Machine) absorb(s *ledger.State, d Done) {
	began, flies := m.flying[d.Act.Key()]
	mine := flies && !d.Begun.Before(began)
	if mine {
		delete(m.flying, d.Act.Key())
	}
	switch act := d.Act.(type) {
	case Fence:
		if mine {
			m.fenced(s, act, d)
		} else {
			m.keepProof(s, act, d)
		}
	case PowerOn:
		if mine {
			m.switchedOn(s, act, d)
		}
	case Blink:
		m.blinks(s, act, d)
	case Ask:
		if d.Err == nil && d.Inventory != nil && d.Inventory.Host == act.Host && !d.Begun.Before(m.answers[act.Host].asked) {
			m.answers[act.Host] = answer{*d.Inventory, d.Begun}
		}
	case Send:
		m.delivered(s, act, d)
	case Fetch:
		m.protected(s, act, d)
	case Stop:
		m.stopped(s, act, d)
	}
}

// watch notes since when each VM has been in its phase.
func (m *Machine) watch(s *ledger.State) {
	for id, vm := range s.VMs {
		if at := m.seen[id]; at.epoch != vm.Epoch || at.phase != vm.Phase || at.at.IsZero() {
			m.seen[id] = sight{vm.Epoch, vm.Phase, m.now}
		}
	}
	for id, h := range s.Hosts {
		if !h.ProvedDead() {
			delete(m.dead, id)
		} else if m.dead[id].IsZero() {
			m.dead[id] = m.now
		}
	}
}

// forget drops what the machine remembers of things that are no more.
func (m *Machine) forget(s *ledger.State) {
	for id := range m.seen {
		if s.VMs[id] == nil {
			delete(m.seen, id)
			delete(m.there, id)
		}
	}
	for id := range m.sent {
		if !m.orderIsOut(s, id) {
			delete(m.sent, id)
		}
	}
	for id := range m.blocked {
		if in := s.Incidents[id]; in == nil || !in.Open() {
			delete(m.blocked, id)
		}
	}
	for id := range m.recounted {
		if in := s.Incidents[id]; in == nil || !in.Open() {
			delete(m.recounted, id)
		}
	}
	for id := range m.proofs {
		if in := s.Incidents[id]; in == nil || !in.Open() || in.Proof != nil {
			delete(m.proofs, id)
		}
	}
	for id, end := range m.ended {
		in := s.Incidents[id]
		if in == nil {
			delete(m.ended, id)
		} else if attempt, pending := in.Pending(); !pending || attempt.N != end.N {
			delete(m.ended, id)
		}
	}
	for key, at := range m.stops {
		if m.now.Sub(at) > time.Minute {
			delete(m.stops, key)
		}
	}
	for key, at := range m.fetched {
		if m.now.Sub(at) > time.Minute {
			delete(m.fetched, key)
		}
	}
}

func (m *Machine) orderIsOut(s *ledger.State, id haven.OrderID) bool {
	for _, vm := range s.VMs {
		if vm.Phase == ledger.PhaseOrdered && vm.Order.ID == id {
			return true
		}
	}
	return false
}

func (m *Machine) propose(c ...ledger.Command) { m.out.Commands = append(m.out.Commands, c...) }

// begin starts an act unless one of its key is under way.
func (m *Machine) begin(a Act) bool {
	if _, flies := m.flying[a.Key()]; flies {
		return false
	}
	m.flying[a.Key()] = m.now
	m.out.Acts = append(m.out.Acts, a)
	return true
}

func (m *Machine) notice(n Notice) { m.out.Notices = append(m.out.Notices, n) }

// wake makes sure that the machine is stepped again within d.
func (m *Machine) wake(d time.Duration) { m.out.Wake = max(time.Millisecond, min(m.out.Wake, d)) }

// entry is a line for a time line, in this master's name.
func (m *Machine) entry(evidence []haven.Evidence, format string, args ...any) ledger.Entry {
	return ledger.Entry{At: m.now, Term: m.in.Term, By: m.in.Self, What: fmt.Sprintf(format, args...), Evidence: evidence}
}

// askEvery bounds how often one agent is asked for its inventory.
const askEvery = 200 * time.Millisecond

// ask wants the host's word, given after since.
func (m *Machine) ask(host haven.HostID, since time.Time) (haven.Inventory, bool) {
	if a, ok := m.answers[host]; ok && a.asked.After(since) && m.now.Sub(a.asked) <= m.cfg.AbsenceAge {
		return a.inv, true
	}
	if last, ok := m.asked[host]; ok && last.After(since) && m.now.Sub(last) < askEvery {
		m.wake(askEvery - m.now.Sub(last))
		return haven.Inventory{}, false
	}
	if m.begin(Ask{host}) {
		m.asked[host] = m.now
	}
	return haven.Inventory{}, false
}

package cluster

import (
	"net/netip"
	"time"

	"github.com/haven-ha/haven"
)

// State is what gossip holds a member for.
type State string

// The states of a member. Suspicion is internal to memberlist and not shown: a
// suspect is alive until it is dead.
const (
	StateUnknown State = "unknown" // a configured host that was not seen since this agent started
	StateAlive   State = "alive"   // it answers, or somebody says so
	StateDead    State = "dead"    // it stopped answering without a word
	StateLeft    State = "left"    // it said that it would leave, and is gone
)

// Stranger says why a member is not simply one of the configured hosts.
type Stranger string

// The reasons to be a stranger.
const (
	StrangerNone    Stranger = ""        // it is a configured host, where it should be
	StrangerName    Stranger = "name"    // no host of this name is configured
	StrangerAddress Stranger = "address" // the host is configured with another address
)

// Member is what this agent knows from gossip about one host. All of it is
// hearsay: nothing destructive may follow from it alone.
type Member struct {
	// Host is a configured host's id, or the name that a stranger gave itself.
	Host haven.HostID
	// Addr is where gossip has it; invalid while it was never seen.
	Addr netip.AddrPort
	// Self marks this agent.
	Self  bool
	State State
	// Age is how long the member has been in State, by this agent's monotonic
	// clock. Of an unknown member it is the time since the agent started.
	Age time.Duration
	// Leave is the reason given by a member that has left, or, while it is
	// alive, by one that is about to. It is never that of an earlier session.
	Leave haven.LeaveReason
	// Stranger is not empty if the member must not be taken for a configured host.
	Stranger Stranger
	// Conflicts counts the claims to this name from another address while this
	// member was alive or not long dead.
	Conflicts uint64
	// Meta is the last announcement that could be read. MetaError tells why the
	// newest could not be.
	Meta      Meta
	MetaError string
}

// Trusted says whether the member is alive, configured and readable, so that
// hints in its meta are worth following.
func (m Member) Trusted() bool {
	return m.State == StateAlive && m.Stranger == StrangerNone && m.MetaError == ""
}

// EventKind says what changed.
type EventKind string

// The kinds of events.
const (
	EventJoined   EventKind = "joined"   // a configured host became alive
	EventUpdated  EventKind = "updated"  // its meta or its announcement to leave changed
	EventDied     EventKind = "died"     // it is dead
	EventLeft     EventKind = "left"     // it has left; Member.Leave says why
	EventStranger EventKind = "stranger" // anything changed about a member that is not a configured host at its address
	EventConflict EventKind = "conflict" // somebody else claims the name of Member; at most once a minute for each name
	EventResync   EventKind = "resync"   // events were lost, or the configuration changed: read Members
)

// Event is one change. Member is its subject as it was right after the change;
// it is empty in EventResync.
type Event struct {
	Kind   EventKind
	Member Member
	// Detail is for people.
	Detail string
}

// maxEvents bounds the events that wait for the consumer.
const maxEvents = 256

// mailbox is the queue between the protocol's callbacks, which must not wait,
// and the consumer, which may. It is not safe for concurrent use.
type mailbox struct{ events []Event }

// push appends events. When they do not fit, all that wait are replaced by one
// EventResync, and push returns how many were lost.
func (m *mailbox) push(events []Event) int {
	if len(m.events)+len(events) <= maxEvents {
		m.events = append(m.events, events...)
		return 0
	}
	lost := len(m.events) + len(events)
	m.events = append(m.events[:0], Event{Kind: EventResync, Detail: "too many events were waiting"})
	return lost
}

func (m *mailbox) pop() (Event, bool) {
	if len(m.events) == 0 {
		m.events = nil // Give the memory of a burst back.
		return Event{}, false
	}
	e := m.events[0]
	m.events = m.events[1:]
	return e, true
}

package cluster

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/haven-ha/haven"
)

const (
	// maxStrangers bounds the members that are not configured. Whoever has the
	// key can invent any number of them.
	maxStrangers = 64
	// strangerMemory is how long a stranger that is gone is remembered.
	strangerMemory = 10 * time.Minute
	// conflictQuiet is the least time between two conflict events of one name.
	conflictQuiet = time.Minute
)

// table is what is known of all members: a pure machine that takes what
// memberlist tells and answers with what changed. memberlist itself shows only
// live members, and forgets dead ones after half a minute.
type table struct {
	self    haven.HostID
	start   time.Time
	peers   map[haven.HostID]netip.AddrPort
	members map[haven.HostID]*entry
}

// entry is what is remembered of one member.
type entry struct {
	addr    netip.AddrPort
	state   State
	since   time.Time
	meta    Meta
	raw     []byte // the newest announcement, readable or not
	metaErr string
	// said is the newest leave notice. It counts only while its session is
	// that of meta.
	said       notice
	conflicts  uint64
	conflictAt time.Time
}

// leave is the reason that the present session gave for leaving.
func (e *entry) leave() haven.LeaveReason {
	switch {
	case e.metaErr != "":
		return haven.LeaveNone // The meta that can be read is an older one.
	case e.meta.Leave != haven.LeaveNone:
		return e.meta.Leave
	case e.said.session == e.meta.Session:
		return e.said.reason
	}
	return haven.LeaveNone
}

func newTable(now time.Time, self haven.HostID, peers map[haven.HostID]netip.AddrPort) *table {
	t := &table{self: self, start: now, members: make(map[haven.HostID]*entry)}
	t.setPeers(now, peers)
	return t
}

// setPeers replaces the configured hosts. What is known of members stays; a host
// that is no longer configured becomes a stranger, and is forgotten if it
// is not alive.
func (t *table) setPeers(now time.Time, peers map[haven.HostID]netip.AddrPort) {
	t.peers = peers
	for id := range peers {
		if t.members[id] == nil {
			t.members[id] = &entry{state: StateUnknown, since: t.start}
		}
	}
	for id, e := range t.members {
		if _, ok := peers[id]; !ok && e.state != StateAlive {
			delete(t.members, id)
		}
	}
	t.forgetStrangers(now)
}

// forgetStrangers drops strangers that have been gone for long.
func (t *table) forgetStrangers(now time.Time) {
	for id, e := range t.members {
		if _, ok := t.peers[id]; !ok && e.state != StateAlive && now.Sub(e.since) > strangerMemory {
			delete(t.members, id)
		}
	}
}

// admits says whether an announcement of a member with this name is let in.
func (t *table) admits(now time.Time, name string) error {
	if name == "" || !plain(name) {
		return fmt.Errorf("name is not 1 to %d printable ASCII octets", maxMetaString)
	}
	if t.members[haven.HostID(name)] != nil {
		return nil
	}
	t.forgetStrangers(now)
	if len(t.members)-len(t.peers) >= maxStrangers {
		return fmt.Errorf("there are %d unknown members already", maxStrangers)
	}
	return nil
}

// alive takes a member's announcement: it joined, came back, or told new meta.
func (t *table) alive(now time.Time, name string, addr netip.AddrPort, raw []byte) []Event {
	id := haven.HostID(name)
	e := t.members[id]
	if e == nil {
		if t.admits(now, name) != nil {
			return nil
		}
		e = &entry{state: StateUnknown, since: now}
		t.members[id] = e
	}
	before, was, left, unreadable := e.meta, e.state, e.leave(), e.metaErr
	e.addr = addr
	if !bytes.Equal(raw, e.raw) || e.raw == nil {
		e.raw = bytes.Clone(raw)
		m, err := decodeMeta(raw)
		e.metaErr = ""
		if err != nil {
			e.metaErr = err.Error()
		} else {
			e.meta = m
		}
	}
	if was == StateAlive {
		detail := ""
		if before.Leave = e.meta.Leave; before == e.meta && e.metaErr == unreadable && e.leave() == left {
			return nil // The notice told it before.
		}
		if before.Session != e.meta.Session {
			detail = "the agent was restarted"
		}
		return t.tell(now, EventUpdated, id, detail)
	}
	e.state, e.since = StateAlive, now
	// A notice of the session that ended says nothing about one that goes on:
	// the same session coming back did not leave, it was cut off or thought so.
	e.said = notice{}
	return t.tell(now, EventJoined, id, "")
}

// gone takes memberlist's word that a member is no longer there.
func (t *table) gone(now time.Time, name string) []Event {
	e := t.members[haven.HostID(name)]
	if e == nil || e.state != StateAlive {
		return nil
	}
	e.state, e.since = StateDead, now
	if e.leave() != haven.LeaveNone {
		e.state = StateLeft
	}
	return t.tellGone(now, haven.HostID(name))
}

func (t *table) tellGone(now time.Time, id haven.HostID) []Event {
	kind := EventDied
	if t.members[id].state == StateLeft {
		kind = EventLeft
	}
	return t.tell(now, kind, id, "")
}

// notice takes a member's direct word that it is about to leave. It may come
// before or after the leave itself, or long after, when it says nothing.
func (t *table) notice(now time.Time, n notice) []Event {
	id := haven.HostID(n.host)
	e := t.members[id]
	if e == nil || e.metaErr != "" || e.state == StateUnknown || n.session != e.meta.Session || e.leave() != haven.LeaveNone {
		return nil
	}
	e.said = n
	if e.state == StateDead {
		e.state = StateLeft // Since it went is unchanged.
		return t.tellGone(now, id)
	}
	return t.tell(now, EventUpdated, id, "it is about to leave")
}

// conflict takes a refused claim to a member's name from another address.
func (t *table) conflict(now time.Time, name string, addr netip.AddrPort, raw []byte) []Event {
	id := haven.HostID(name)
	e := t.members[id]
	if e == nil {
		return nil
	}
	e.conflicts++
	if e.conflicts > 1 && now.Sub(e.conflictAt) < conflictQuiet {
		return nil
	}
	e.conflictAt = now
	who := "an agent whose meta cannot be read"
	if m, err := decodeMeta(raw); err == nil {
		who = fmt.Sprintf("an agent with boot %s, session %x", m.Boot, m.Session)
	}
	detail := fmt.Sprintf("%s at %v claims the name of boot %s, session %x at %v", who, addr, e.meta.Boot, e.meta.Session, e.addr)
	return []Event{{Kind: EventConflict, Member: t.member(now, id), Detail: detail}}
}

// tell makes the event about a member; those about strangers are of one kind.
func (t *table) tell(now time.Time, kind EventKind, id haven.HostID, detail string) []Event {
	m := t.member(now, id)
	if m.Stranger != StrangerNone {
		if detail == "" {
			detail = string(kind)
		}
		kind = EventStranger
	}
	return []Event{{Kind: kind, Member: m, Detail: detail}}
}

func (t *table) member(now time.Time, id haven.HostID) Member {
	e := t.members[id]
	return Member{
		Host: id, Addr: e.addr, Self: id == t.self,
		State: e.state, Age: now.Sub(e.since), Leave: e.leave(),
		Stranger: t.stranger(id, e), Conflicts: e.conflicts,
		Meta: e.meta, MetaError: e.metaErr,
	}
}

func (t *table) stranger(id haven.HostID, e *entry) Stranger {
	want, ok := t.peers[id]
	switch {
	case !ok:
		return StrangerName
	case e.addr.IsValid() && e.addr != want:
		return StrangerAddress
	}
	return StrangerNone
}

// all returns every member, by host: all configured ones, and strangers.
func (t *table) all(now time.Time) []Member {
	out := make([]Member, 0, len(t.members))
	for id := range t.members {
		out = append(out, t.member(now, id))
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Compare(a.Host, b.Host) })
	return out
}

// missing returns the configured hosts, by host, that are not alive at their
// address, and whether no other configured host is alive at all.
func (t *table) missing() (out []haven.HostID, alone bool) {
	alone = true
	for id, want := range t.peers {
		if id == t.self {
			continue
		}
		if e := t.members[id]; e.state == StateAlive && e.addr == want {
			alone = false
			continue
		}
		out = append(out, id)
	}
	slices.Sort(out)
	return out, alone
}

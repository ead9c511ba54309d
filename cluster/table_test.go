package cluster

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
)

var (
	t0    = time.Now()
	addrA = netip.MustParseAddrPort("10.0.0.1:7946")
	addrB = netip.MustParseAddrPort("10.0.0.2:7946")
	addrX = netip.MustParseAddrPort("10.0.0.99:7946")
)

func testTable() *table {
	return newTable(t0, "a", map[haven.HostID]netip.AddrPort{"a": addrA, "b": addrB})
}

func metaOf(session uint64, leave haven.LeaveReason) []byte {
	b, err := Meta{Session: session, Leave: leave}.encode()
	if err != nil {
		panic(err)
	}
	return b
}

func at(s int) time.Time { return t0.Add(time.Duration(s) * time.Second) }

// Each step is what memberlist says about b, and what is to be seen of it then.
func TestTable(t *testing.T) {
	alive := func(session uint64, leave haven.LeaveReason) func(*table, time.Time) []Event {
		return func(t *table, now time.Time) []Event { return t.alive(now, "b", addrB, metaOf(session, leave)) }
	}
	from := func(a netip.AddrPort, raw []byte) func(*table, time.Time) []Event {
		return func(t *table, now time.Time) []Event { return t.alive(now, "b", a, raw) }
	}
	gone := func(t *table, now time.Time) []Event { return t.gone(now, "b") }
	said := func(session uint64, r haven.LeaveReason) func(*table, time.Time) []Event {
		return func(t *table, now time.Time) []Event { return t.notice(now, notice{"b", session, r}) }
	}
	conflict := func(t *table, now time.Time) []Event { return t.conflict(now, "b", addrX, metaOf(9, "")) }
	none := haven.LeaveNone
	type step struct {
		at    int
		do    func(*table, time.Time) []Event
		event EventKind // empty: none
		state State
		leave haven.LeaveReason
		age   int
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"dies", []step{{1, alive(1, none), EventJoined, StateAlive, none, 0}, {9, gone, EventDied, StateDead, none, 0}, {11, gone, "", StateDead, none, 2}}},
		{"age counts from the change of state, not of meta", []step{
			{1, alive(1, none), EventJoined, StateAlive, none, 0}, {5, alive(2, none), EventUpdated, StateAlive, none, 4},
		}},
		{"leaves with a reason", []step{
			{1, alive(1, none), EventJoined, StateAlive, none, 0},
			{2, alive(1, haven.LeaveStopped), EventUpdated, StateAlive, haven.LeaveStopped, 1},
			{3, gone, EventLeft, StateLeft, haven.LeaveStopped, 0},
		}},
		{"leaves, only the notice came", []step{
			{1, alive(1, none), EventJoined, StateAlive, none, 0},
			{2, said(1, haven.LeaveShutdown), EventUpdated, StateAlive, haven.LeaveShutdown, 1},
			{3, gone, EventLeft, StateLeft, haven.LeaveShutdown, 0},
		}},
		{"leaves, the notice came last", []step{
			{1, alive(1, none), EventJoined, StateAlive, none, 0},
			{3, gone, EventDied, StateDead, none, 0},
			{4, said(1, haven.LeaveShutdown), EventLeft, StateLeft, haven.LeaveShutdown, 1},
		}},
		{"notice twice", []step{
			{1, alive(1, none), EventJoined, StateAlive, none, 0},
			{2, said(1, haven.LeaveStopped), EventUpdated, StateAlive, haven.LeaveStopped, 1},
			{3, said(1, haven.LeaveStopped), "", StateAlive, haven.LeaveStopped, 2},
		}},
		{"a restart clears the reason", []step{
			{1, alive(1, haven.LeaveStopped), EventJoined, StateAlive, haven.LeaveStopped, 0},
			{2, gone, EventLeft, StateLeft, haven.LeaveStopped, 0},
			{3, alive(2, none), EventJoined, StateAlive, none, 0},
			{9, gone, EventDied, StateDead, none, 0},
		}},
		{"a late notice of an earlier session says nothing", []step{
			{1, alive(2, none), EventJoined, StateAlive, none, 0},
			{2, said(1, haven.LeaveStopped), "", StateAlive, none, 1},
			{3, gone, EventDied, StateDead, none, 0},
			{4, said(1, haven.LeaveStopped), "", StateDead, none, 1},
		}},
		{"a restart too quick to be seen as a death", []step{
			{1, alive(1, none), EventJoined, StateAlive, none, 0},
			{2, said(1, haven.LeaveStopped), EventUpdated, StateAlive, haven.LeaveStopped, 1},
			{3, alive(2, none), EventUpdated, StateAlive, none, 2},
			{9, gone, EventDied, StateDead, none, 0},
		}},
		{"one that came back did not leave", []step{
			{1, alive(1, none), EventJoined, StateAlive, none, 0},
			{2, said(1, haven.LeaveStopped), EventUpdated, StateAlive, haven.LeaveStopped, 1},
			{3, gone, EventLeft, StateLeft, haven.LeaveStopped, 0},
			{4, alive(1, none), EventJoined, StateAlive, none, 0},
			{9, gone, EventDied, StateDead, none, 0},
		}},
		{"garbage hides an older reason", []step{
			{1, alive(1, haven.LeaveStopped), EventJoined, StateAlive, haven.LeaveStopped, 0},
			{2, from(addrB, []byte("garbage")), EventUpdated, StateAlive, none, 1},
			{3, gone, EventDied, StateDead, none, 0},
		}},
		{"what the notice told the meta does not tell again", []step{
			{1, alive(1, none), EventJoined, StateAlive, none, 0},
			{2, said(1, haven.LeaveStopped), EventUpdated, StateAlive, haven.LeaveStopped, 1},
			{3, alive(1, haven.LeaveStopped), "", StateAlive, haven.LeaveStopped, 2},
		}},
		{"from garbage back to what it was", []step{
			{1, alive(1, none), EventJoined, StateAlive, none, 0},
			{2, from(addrB, []byte{9}), EventUpdated, StateAlive, none, 1},
			{3, alive(1, none), EventUpdated, StateAlive, none, 2},
		}},
		{"never seen", []step{{4, gone, "", StateUnknown, none, 4}, {5, said(0, haven.LeaveStopped), "", StateUnknown, none, 5}, {6, conflict, EventConflict, StateUnknown, none, 6}}},
		{"another address is a stranger", []step{
			{1, from(addrX, metaOf(1, none)), EventStranger, StateAlive, none, 0},
			{2, gone, EventStranger, StateDead, none, 0},
			{3, alive(1, none), EventJoined, StateAlive, none, 0},
		}},
		{"conflicts once a minute", []step{
			{1, alive(1, none), EventJoined, StateAlive, none, 0},
			{2, conflict, EventConflict, StateAlive, none, 1},
			{3, conflict, "", StateAlive, none, 2},
			{61, conflict, "", StateAlive, none, 60},
			{62, conflict, EventConflict, StateAlive, none, 61},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tab := testTable()
			for i, s := range tt.steps {
				events := s.do(tab, at(s.at))
				var kind EventKind
				if len(events) == 1 {
					kind = events[0].Kind
				}
				if len(events) > 1 || kind != s.event {
					t.Fatalf("step %d: events %+v, want %q", i, events, s.event)
				}
				m := tab.member(at(s.at), "b")
				if m.State != s.state || m.Leave != s.leave || m.Age != time.Duration(s.age)*time.Second {
					t.Fatalf("step %d: %s, reason %q, age %v; want %s, %q, %ds", i, m.State, m.Leave, m.Age, s.state, s.leave, s.age)
				}
				if len(events) == 1 && events[0].Member != m {
					t.Fatalf("step %d: the event shows %+v, the table %+v", i, events[0].Member, m)
				}
			}
		})
	}
}

func TestTableStrangers(t *testing.T) {
	tab := testTable()
	for i := range 3 * maxStrangers {
		tab.alive(at(1), fmt.Sprintf("evil-%d", i), addrX, nil)
	}
	if n := len(tab.members); n != 2+maxStrangers {
		t.Errorf("%d members, want %d", n, 2+maxStrangers)
	}
	if tab.admits(at(2), "evil-new") == nil || tab.admits(at(2), "b") != nil || tab.admits(at(2), "evil-1") != nil {
		t.Error("a full table must refuse new strangers, and nobody else")
	}
	for _, name := range []string{"", "a b", "x\x1b[2J", "very-long-name-very-long-name-very-long-name-very-long-name-very-long"} {
		if tab.admits(at(2), name) == nil {
			t.Errorf("name %q was let in", name)
		}
	}
	if m := tab.member(at(2), "evil-1"); m.Stranger != StrangerName || m.Trusted() || m.MetaError == "" {
		t.Errorf("stranger shows as %+v", m)
	}
	tab.gone(at(3), "evil-1")
	if err := tab.admits(at(3).Add(strangerMemory+1), "evil-new"); err != nil {
		t.Errorf("a stranger long gone still takes room: %v", err)
	}
}

func TestTableSetPeers(t *testing.T) {
	tab := testTable()
	tab.alive(at(1), "b", addrX, metaOf(1, ""))
	tab.alive(at(1), "c", netip.MustParseAddrPort("10.0.0.3:1"), metaOf(1, ""))
	tab.setPeers(at(2), map[haven.HostID]netip.AddrPort{"a": addrA, "b": addrX, "d": addrB})
	if m := tab.member(at(2), "b"); m.Stranger != StrangerNone || m.State != StateAlive {
		t.Errorf("the moved host shows as %+v", m)
	}
	missing, alone := tab.missing()
	if len(missing) != 1 || missing[0] != "d" || alone {
		t.Errorf("missing %v, alone %v", missing, alone)
	}
	tab.setPeers(at(3), map[haven.HostID]netip.AddrPort{"a": addrA})
	var names []haven.HostID
	for _, m := range tab.all(at(3)) {
		names = append(names, m.Host)
	}
	if fmt.Sprint(names) != "[a b c]" {
		t.Errorf("members %v, want a, and b and c while they are alive", names)
	}
}

// A second, dumb view: whatever is said in whatever order, a reason is shown only
// if the newest announced session gave it, every configured host is always shown,
// and the table stays bounded.
func TestTableProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tab := testTable()
		now := t0
		gave := map[[2]any]map[haven.LeaveReason]bool{} // host, session
		newest := map[string]uint64{}
		reasons := []haven.LeaveReason{haven.LeaveNone, haven.LeaveStopped, haven.LeaveShutdown}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "seconds")) * time.Second)
			name := rapid.SampledFrom([]string{"a", "b", "x", "y"}).Draw(t, "name")
			session := rapid.Uint64Range(1, 3).Draw(t, "session")
			reason := rapid.SampledFrom(reasons).Draw(t, "reason")
			key := [2]any{name, session}
			if gave[key] == nil {
				gave[key] = map[haven.LeaveReason]bool{"": true}
			}
			var events []Event
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				events = tab.alive(now, name, rapid.SampledFrom([]netip.AddrPort{addrA, addrB, addrX}).Draw(t, "addr"), metaOf(session, reason))
				newest[name] = session
				gave[key][reason] = true
			case 1:
				events = tab.gone(now, name)
			case 2:
				if reason != haven.LeaveNone {
					events = tab.notice(now, notice{name, session, reason})
					gave[key][reason] = true
				}
			case 3:
				events = tab.conflict(now, name, addrX, []byte("?"))
			case 4:
				events = tab.alive(now, name, addrB, []byte{99})
			}
			for _, e := range events {
				if (e.Member.Stranger != StrangerNone) != (e.Kind == EventStranger) && e.Kind != EventConflict {
					t.Fatalf("event %+v", e)
				}
			}
			seen := map[haven.HostID]bool{}
			for _, m := range tab.all(now) {
				seen[m.Host] = true
				if !gave[[2]any{string(m.Host), newest[string(m.Host)]}][m.Leave] && m.Leave != "" {
					t.Fatalf("%s shows reason %q, which session %d never gave", m.Host, m.Leave, newest[string(m.Host)])
				}
				if (m.State == StateLeft) && m.Leave == "" || m.State == StateDead && m.Leave != "" {
					t.Fatalf("%s is %s with reason %q", m.Host, m.State, m.Leave)
				}
				if m.Age < 0 {
					t.Fatalf("age %v", m.Age)
				}
			}
			if !seen["a"] || !seen["b"] {
				t.Fatal("a configured host is not shown")
			}
		}
	})
}

func TestMailbox(t *testing.T) {
	var m mailbox
	for i := range maxEvents {
		if m.push([]Event{{Kind: EventJoined, Detail: fmt.Sprint(i)}}) != 0 {
			t.Fatal("lost too early")
		}
	}
	if lost := m.push([]Event{{Kind: EventDied}}); lost != maxEvents+1 {
		t.Errorf("lost %d", lost)
	}
	m.push([]Event{{Kind: EventLeft}})
	var kinds []EventKind
	for e, ok := m.pop(); ok; e, ok = m.pop() {
		kinds = append(kinds, e.Kind)
	}
	if fmt.Sprint(kinds) != "[resync left]" {
		t.Errorf("got %v, want one resync and what came after it", kinds)
	}
}

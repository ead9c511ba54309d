package storagebeat

import (
	"errors"
	"strings"
	"testing"
	"time"

	haven "github.com/haven-ha/haven"
)

// shelf is a store in a test: it holds records, and readings are taken of it.
type shelf struct {
	t     testing.TB
	id    StoreID
	now   time.Time
	beats map[key]Beat
	raw   map[key]RawBeat // shown instead of the beat
	own   Own
	tr    *Tracker
}

var testHosts = []haven.HostID{"a", "b", "c"}

func newShelf(t testing.TB, hosts ...haven.HostID) *shelf {
	if len(hosts) == 0 {
		hosts = testHosts
	}
	s := &shelf{
		t: t, id: testStore(1), now: time.Unix(1000, 0), beats: map[key]Beat{}, raw: map[key]RawBeat{},
		tr: NewTracker(TrackerConfig{
			Self: "a", Writer: WriterAgent, Hosts: hosts, Interval: time.Second, StaleAfter: 4 * time.Second,
		}),
	}
	for _, h := range hosts {
		s.beats[key{h, WriterAgent}] = Beat{
			Host: h, Writer: WriterAgent, Boot: haven.BootID("boot-" + h), State: haven.StateID("state-" + h),
			Incarnation: 1, Sequence: 100, Interval: time.Second,
		}
	}
	s.own = Own{Boot: "boot-a", State: "state-a", Incarnation: 1}
	return s
}

// write makes hosts' agents write one beat each.
func (s *shelf) write(hosts ...haven.HostID) {
	for _, h := range hosts {
		k := key{h, WriterAgent}
		b := s.beats[k]
		b.Sequence++
		s.beats[k] = b
		if h == "a" {
			s.own.Attempted, s.own.Completed, s.own.Since = b.Sequence, b.Sequence, s.now
		}
	}
}

func (s *shelf) edit(h haven.HostID, f func(*Beat)) {
	b := s.beats[key{h, WriterAgent}]
	f(&b)
	s.beats[key{h, WriterAgent}] = b
}

func (s *shelf) reading() Reading {
	r := Reading{Start: s.now, End: s.now.Add(10 * time.Millisecond), Store: s.id, Own: s.own}
	for k, b := range s.beats {
		if raw, ok := s.raw[k]; ok {
			r.Beats = append(r.Beats, raw)
			continue
		}
		if b.Store.IsZero() {
			b.Store = s.id
		}
		r.Beats = append(r.Beats, RawBeat{Host: k.host, Writer: k.writer, Data: mustEncode(s.t, b)})
	}
	return r
}

// round is one interval in which the named hosts write, with a read at its end.
func (s *shelf) round(writers ...haven.HostID) {
	s.now = s.now.Add(time.Second)
	s.write(writers...)
	s.tr.Step(s.reading())
	s.now = s.now.Add(10 * time.Millisecond)
}

func (s *shelf) rounds(n int, writers ...haven.HostID) {
	for range n {
		s.round(writers...)
	}
}

func (s *shelf) fail(d time.Duration) {
	s.now = s.now.Add(d)
	s.tr.Step(Reading{Start: s.now, End: s.now, Err: errors.New("input/output error")})
}

func (s *shelf) of(h haven.HostID) View { return s.tr.Snapshot(s.now).Host(h).Agent }

func (s *shelf) want(h haven.HostID, moving haven.Tri, why string) {
	s.t.Helper()
	if v := s.of(h); v.Moving != moving || !strings.Contains(v.Why, why) {
		s.t.Errorf("%s: moving %s because %q; want %s because %q", h, v.Moving, v.Why, moving, why)
	}
}

func TestTrackerJudges(t *testing.T) {
	setB := func(s *shelf, f func(*Beat)) { s.edit("b", f) }
	for _, tc := range []struct {
		name   string
		play   func(s *shelf)
		moving haven.Tri
		why    string
	}{
		{"never read", func(*shelf) {}, haven.Unknown, "not read yet"},
		{"the first read is only a baseline", func(s *shelf) { s.round("a", "b", "c") }, haven.Unknown, "not seen to move"},
		{"the second shows movement", func(s *shelf) { s.rounds(2, "a", "b", "c") }, haven.Yes, "sequence"},
		{"still for less than the stale time", func(s *shelf) { s.rounds(2, "a", "b", "c"); s.rounds(3, "a", "c") }, haven.Yes, ""},
		{"stale while another host's beat moves", func(s *shelf) { s.rounds(2, "a", "b", "c"); s.rounds(4, "a", "c") }, haven.No, "stood still"},
		{"P6: everybody stopped at once", func(s *shelf) { s.rounds(2, "a", "b", "c"); s.rounds(20, "a") }, haven.Unknown, "no other host"},
		{"P6: the own beat does not vouch for the store", func(s *shelf) { s.rounds(2, "a", "b"); s.rounds(20, "a") }, haven.Unknown, "no other host"},
		{"P6: others came back a moment ago", func(s *shelf) {
			s.rounds(2, "a", "b", "c")
			s.rounds(10, "a")
			s.rounds(3, "a", "c")
		}, haven.Unknown, "for only"},
		{"others are back for the stale time", func(s *shelf) {
			s.rounds(2, "a", "b", "c")
			s.rounds(10, "a")
			s.rounds(5, "a", "c")
		}, haven.No, ""},
		{"P5: a still beat that was never seen to move", func(s *shelf) { s.rounds(30, "a", "c") }, haven.Unknown, "not seen to move"},
		{"stale, then moves again", func(s *shelf) {
			s.rounds(2, "a", "b", "c")
			s.rounds(8, "a", "c")
			s.round("a", "b", "c")
		}, haven.Yes, ""},
		{"P5: the read failed", func(s *shelf) { s.rounds(3, "a", "b", "c"); s.fail(time.Second) }, haven.Unknown, "input/output error"},
		{"P5: a stale beat, then the read failed", func(s *shelf) {
			s.rounds(2, "a", "b", "c")
			s.rounds(8, "a", "c")
			s.fail(time.Second)
		}, haven.Unknown, "cannot be read"},
		{"P5: no read for too long", func(s *shelf) { s.rounds(3, "a", "b", "c"); s.now = s.now.Add(3 * time.Second) }, haven.Unknown, "last read 3"},
		{"P5: one failed read starts the silence anew", func(s *shelf) {
			s.rounds(2, "a", "b", "c")
			s.rounds(3, "a", "c")
			s.fail(0)
			s.rounds(3, "a", "c")
		}, haven.Unknown, "for only 2"},
		{"P5: the reader itself stalled", func(s *shelf) {
			s.rounds(2, "a", "b", "c")
			s.now = s.now.Add(30 * time.Second)
			s.rounds(2, "a", "c")
		}, haven.Unknown, ""},
		{"P5: torn", func(s *shelf) {
			s.rounds(3, "a", "b", "c")
			s.raw[key{"b", WriterAgent}] = RawBeat{Host: "b", Writer: WriterAgent, Data: append([]byte("HAVENBT\n"), make([]byte, RecordSize-8)...)}
			s.rounds(9, "a", "c")
		}, haven.Unknown, "torn"},
		{"P5: never written", func(s *shelf) {
			s.raw[key{"b", WriterAgent}] = RawBeat{Host: "b", Writer: WriterAgent, Data: make([]byte, RecordSize)}
			s.rounds(9, "a", "c")
		}, haven.Unknown, "nothing was written"},
		{"P5: one record cannot be read", func(s *shelf) {
			s.rounds(3, "a", "b", "c")
			s.raw[key{"b", WriterAgent}] = RawBeat{Host: "b", Writer: WriterAgent, Err: errors.New("permission denied")}
			s.rounds(9, "a", "c")
		}, haven.Unknown, "permission denied"},
		{"P5: the record is gone", func(s *shelf) {
			s.rounds(3, "a", "b", "c")
			delete(s.beats, key{"b", WriterAgent})
			s.rounds(9, "a", "c")
		}, haven.Unknown, "no such record"},
		{"P5: of another store", func(s *shelf) {
			s.rounds(3, "a", "b", "c")
			setB(s, func(b *Beat) { b.Store = testStore(9) })
			s.rounds(9, "a", "b", "c")
		}, haven.Unknown, "foreign"},
		{"P5: of another host", func(s *shelf) {
			s.rounds(3, "a", "b", "c")
			setB(s, func(b *Beat) { b.Host = "z" })
			s.rounds(9, "a", "b", "c")
		}, haven.Unknown, "foreign"},
		{"P5: an earlier sequence is no movement", func(s *shelf) {
			s.rounds(3, "a", "b", "c")
			setB(s, func(b *Beat) { b.Sequence = 50 })
			s.rounds(2, "a", "c")
		}, haven.Unknown, "older"},
		{"P5: an earlier incarnation that moves", func(s *shelf) {
			setB(s, func(b *Beat) { b.Incarnation = 5 })
			s.rounds(3, "a", "b", "c")
			setB(s, func(b *Beat) { b.Incarnation = 4 })
			s.rounds(9, "a", "b", "c")
		}, haven.Unknown, "older"},
		{"P5: an earlier boot that moves", func(s *shelf) {
			s.rounds(3, "a", "b", "c")
			setB(s, func(b *Beat) { b.Boot, b.Incarnation = "boot-b2", 2 })
			s.rounds(3, "a", "b", "c")
			setB(s, func(b *Beat) { b.Boot, b.Incarnation = "boot-b", 3 })
			s.rounds(9, "a", "b", "c")
		}, haven.Unknown, "older"},
		{"P5: an earlier data directory that moves", func(s *shelf) {
			s.rounds(3, "a", "b", "c")
			setB(s, func(b *Beat) { b.State = "state-b2" })
			s.rounds(3, "a", "b", "c")
			setB(s, func(b *Beat) { b.State = "state-b" })
			s.rounds(9, "a", "b", "c")
		}, haven.Unknown, "older"},
		{"after an older record the present one goes on", func(s *shelf) {
			s.rounds(3, "a", "b", "c")
			setB(s, func(b *Beat) { b.Sequence -= 50 })
			s.round("a", "c")
			setB(s, func(b *Beat) { b.Sequence += 60 })
			s.round("a", "b", "c")
		}, haven.Yes, ""},
		{"a new boot is a new baseline", func(s *shelf) {
			s.rounds(3, "a", "b", "c")
			setB(s, func(b *Beat) { b.Boot, b.Incarnation, b.Sequence = "boot-b2", 2, 1 })
			s.round("a", "b", "c")
		}, haven.Unknown, "not seen to move"},
		{"a new boot that moves", func(s *shelf) {
			s.rounds(3, "a", "b", "c")
			setB(s, func(b *Beat) { b.Boot, b.Incarnation, b.Sequence = "boot-b2", 2, 1 })
			s.rounds(2, "a", "b", "c")
		}, haven.Yes, ""},
		{"P5: another store is at the path now", func(s *shelf) {
			s.rounds(3, "a", "b", "c")
			s.id = testStore(2)
			s.round("a", "b", "c")
		}, haven.Unknown, "not seen to move"},
		{"a host that beats slowly is stale later", func(s *shelf) {
			setB(s, func(b *Beat) { b.Interval = 3 * time.Second })
			s.rounds(2, "a", "b", "c")
			s.rounds(8, "a", "c")
		}, haven.Yes, ""},
		{"an unknown host does not vouch for the store", func(s *shelf) {
			s.beats[key{"z", WriterAgent}] = Beat{Host: "z", Writer: WriterAgent, Incarnation: 1, Sequence: 1}
			s.rounds(2, "a", "b", "c", "z")
			s.rounds(9, "a", "z")
		}, haven.Unknown, "no other host"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newShelf(t)
			tc.play(s)
			s.want("b", tc.moving, tc.why)
		})
	}
}

func TestPairNeedsItsOwnReadBack(t *testing.T) {
	t.Run("the own beat stands in for others", func(t *testing.T) {
		s := newShelf(t, "a", "b")
		s.rounds(2, "a", "b")
		s.rounds(4, "a")
		s.want("b", haven.No, "")
		h := s.tr.Snapshot(s.now).Health
		if !h.Alone || !h.Trusted() || h.Outage != "" {
			t.Errorf("health %+v", h)
		}
	})
	t.Run("P6: nobody writes at all", func(t *testing.T) {
		s := newShelf(t, "a", "b")
		s.rounds(2, "a", "b")
		s.rounds(9)
		s.want("b", haven.Unknown, "no other host")
		if h := s.tr.Snapshot(s.now).Health; h.Trusted() || h.Outage == "" {
			t.Errorf("health %+v", h)
		}
	})
	t.Run("hosts that are down for good are left out by name", func(t *testing.T) {
		s := newShelf(t)
		s.rounds(2, "a", "b")
		s.rounds(9, "a")
		s.want("b", haven.Unknown, "no other host")
		s.tr.SetHosts([]haven.HostID{"a", "b"})
		s.rounds(5, "a")
		s.want("b", haven.No, "")
	})
}

func TestHealth(t *testing.T) {
	s := newShelf(t)
	health := func() Health { return s.tr.Snapshot(s.now).Health }
	check := func(what string, readable, own haven.Tri, moving, stopped int, outage string) {
		t.Helper()
		h := health()
		if h.Readable != readable || h.OwnReadBack != own || h.OthersMoving != moving || h.OthersStopped != stopped ||
			(h.Outage == "") != (outage == "") || !strings.Contains(h.Outage, outage) {
			t.Errorf("%s: %+v", what, h)
		}
	}
	check("before all", haven.Unknown, haven.Unknown, 0, 0, "")
	s.rounds(3, "a", "b", "c")
	check("all is well", haven.Yes, haven.Yes, 2, 0, "")
	if !health().Trusted() {
		t.Error("a good observer is not trusted")
	}
	s.rounds(5, "a", "b")
	check("one stopped", haven.Yes, haven.Yes, 1, 1, "")
	s.rounds(5, "a")
	check("P6: all others stopped", haven.Yes, haven.Yes, 0, 2, "all other hosts stopped (2)")
	if health().Trusted() {
		t.Error("an observer that sees nobody move is trusted")
	}
	s.rounds(3, "a", "b", "c")
	s.fail(time.Second)
	check("one failed read", haven.No, haven.Unknown, 0, 0, "")
	s.fail(5 * time.Second)
	check("failed for long", haven.No, haven.Unknown, 0, 2, "cannot be read for 5s")
	s.rounds(3, "a", "b", "c")
	s.now = s.now.Add(5 * time.Second)
	check("a read hangs", haven.Unknown, haven.Unknown, 0, 2, "no read completed")
}

func TestOwnReadBack(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(s *shelf)
		want haven.Tri
		why  string
	}{
		{"as written", func(*shelf) {}, haven.Yes, ""},
		{"a given up write landed", func(s *shelf) {
			s.edit("a", func(b *Beat) { b.Sequence++ })
			s.own.Attempted++
		}, haven.Yes, ""},
		{"a given up write did not land", func(s *shelf) { s.own.Attempted++ }, haven.Yes, ""},
		{"an earlier beat", func(s *shelf) { s.own.Attempted++; s.own.Completed++ }, haven.No, "reads as"},
		{"a later beat than any tried", func(s *shelf) { s.edit("a", func(b *Beat) { b.Sequence++ }) }, haven.No, "reads as"},
		{"somebody else under this name", func(s *shelf) { s.edit("a", func(b *Beat) { b.Boot = "other" }) }, haven.No, "another writer"},
		{"not there", func(s *shelf) { delete(s.beats, key{"a", WriterAgent}) }, haven.No, "not there"},
		{"damaged", func(s *shelf) {
			s.raw[key{"a", WriterAgent}] = RawBeat{Host: "a", Writer: WriterAgent, Data: make([]byte, RecordSize)}
		}, haven.No, "cannot be read"},
		{"no write completed", func(s *shelf) { s.own.Completed = 0 }, haven.No, "do not complete"},
		{"none completed for long", func(s *shelf) { s.own.Since = s.now.Add(-5 * time.Second) }, haven.No, "do not complete"},
		{"nothing was tried", func(s *shelf) { s.own.Attempted = 0 }, haven.Unknown, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newShelf(t)
			s.rounds(3, "a", "b", "c")
			tc.do(s)
			s.round("b", "c")
			if h := s.tr.Snapshot(s.now).Health; h.OwnReadBack != tc.want || !strings.Contains(h.Problem, tc.why) {
				t.Errorf("own read back %s because %q, want %s because %q", h.OwnReadBack, h.Problem, tc.want, tc.why)
			}
		})
	}
}

func TestSilenceAndAge(t *testing.T) {
	s := newShelf(t)
	s.rounds(3, "a", "b", "c")
	s.round("a", "c")
	v := s.of("b")
	// Read at 3.02 s to 3.03 s showed it, read at 4.03 s did not, now is 4.04 s.
	if v.Age != 1020*time.Millisecond || v.Silent != time.Second {
		t.Fatalf("age %s, silent %s", v.Age, v.Silent)
	}
	for _, tc := range []struct {
		d    time.Duration
		want bool
	}{{time.Second, true}, {time.Second + 1, false}} {
		if v.OlderThan(tc.d) != tc.want {
			t.Errorf("older than %s: %v", tc.d, !tc.want)
		}
	}
	s.now = s.now.Add(2 * time.Second)
	if v := s.of("b"); v.Silent != time.Second || v.Age != 3020*time.Millisecond {
		t.Errorf("without a read, age %s grows and silence %s does not", v.Age, v.Silent)
	}
	s.now = s.now.Add(2 * time.Second)
	if v := s.of("b"); v.OlderThan(0) {
		t.Error("silence is claimed without a recent read")
	}
}

func TestAllOlder(t *testing.T) {
	view := func(silent time.Duration) View { return View{Seen: true, Lively: true, Silent: silent} }
	missing := View{Missing: true, Lively: true}
	one := func(agent, helper View) Snapshot {
		return Snapshot{Hosts: []HostView{{Host: "b", Agent: agent, Helper: helper}}}
	}
	for _, tc := range []struct {
		name   string
		stores []Snapshot
		older  bool
		basis  int
	}{
		{"no store", nil, true, 0},
		{"both old", []Snapshot{one(view(2*time.Second), view(3*time.Second))}, true, 1},
		{"the helper's is young", []Snapshot{one(view(2*time.Second), view(0))}, false, 1},
		{"there is no helper", []Snapshot{one(view(2*time.Second), missing)}, true, 1},
		{"the host never wrote", []Snapshot{one(missing, missing)}, true, 0},
		{"nothing moves on the store", []Snapshot{one(View{Seen: true}, View{Seen: true})}, true, 0},
		{"young on the second store", []Snapshot{one(view(2*time.Second), missing), one(view(0), missing)}, false, 2},
		{"P5: torn counts as young", []Snapshot{one(View{Lively: true}, missing)}, false, 1},
		{"a host that is not in the store", []Snapshot{{}}, true, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if older, basis := AllOlder(tc.stores, "b", 1250*time.Millisecond); older != tc.older || basis != tc.basis {
				t.Errorf("older %v on %d stores", older, basis)
			}
		})
	}
}

func TestFarewellAndEvidence(t *testing.T) {
	s := newShelf(t)
	s.rounds(3, "a", "b", "c")
	s.edit("b", func(b *Beat) { b.Left = haven.LeaveShutdown })
	s.edit("c", func(b *Beat) { b.Isolated = true })
	s.round("a", "b", "c")
	s.rounds(9, "a", "c")
	snap := s.tr.Snapshot(s.now)
	snap.Store = "nfs1"
	if v := snap.Host("b").Agent; v.Left != haven.LeaveShutdown || v.Moving != haven.No {
		t.Errorf("left %q, moving %s", v.Left, v.Moving)
	}
	if snap.Health.OthersStopped != 0 {
		t.Error("a host that said farewell counts as stopped")
	}
	got := map[haven.EvidenceKind]map[haven.HostID]haven.Tri{}
	for _, e := range snap.Evidence("a") {
		if e.Observer != "a" || e.Store != "nfs1" || e.Subject == "a" {
			t.Errorf("evidence %s", e)
		}
		if got[e.Kind] == nil {
			got[e.Kind] = map[haven.HostID]haven.Tri{}
		}
		got[e.Kind][e.Subject] = e.Value
	}
	for _, tc := range []struct {
		kind haven.EvidenceKind
		b, c haven.Tri
	}{
		{haven.EvidenceAgentBeat, haven.No, haven.Yes},
		{haven.EvidenceHelperBeat, haven.Unknown, haven.Unknown},
		{haven.EvidenceLeft, haven.Yes, haven.No},
		{haven.EvidenceIsolated, haven.Unknown, haven.Yes},
	} {
		if got[tc.kind]["b"] != tc.b || got[tc.kind]["c"] != tc.c {
			t.Errorf("%s: b %s, c %s", tc.kind, got[tc.kind]["b"], got[tc.kind]["c"])
		}
	}
}

func TestTrackerForgetsStrangersAndOldLives(t *testing.T) {
	s := newShelf(t)
	for i := range 100 {
		s.edit("b", func(b *Beat) { b.Incarnation++ })
		k := key{haven.HostID("x" + string(rune('a'+i%26))), WriterAgent}
		s.beats[k] = Beat{Host: k.host, Writer: WriterAgent, Sequence: 1}
		s.round("a", "b", "c")
		delete(s.beats, k)
	}
	s.round("a", "b", "c")
	if n := len(s.tr.tracks); n != 3 {
		t.Errorf("%d beats are remembered, want 3", n)
	}
	if n := len(s.tr.tracks[key{"b", WriterAgent}].past); n != pastLives {
		t.Errorf("%d past lives, want %d", n, pastLives)
	}
}

// P5: a reader that never saw a host's record does not call it missing while a
// damaged record is there that may be that one.
func TestTrackerNamelessRecordMayBeAnybodys(t *testing.T) {
	tr := NewTracker(TrackerConfig{Self: "a", Writer: WriterAgent, Hosts: []haven.HostID{"a", "b"}, Interval: time.Second, StaleAfter: 4 * time.Second})
	at := time.Now()
	look := func(beats ...RawBeat) View {
		at = at.Add(time.Second)
		tr.Step(Reading{Start: at, End: at, Store: testStore(1), Beats: beats})
		return tr.Snapshot(at).Host("b").Agent
	}
	if v := look(); !v.Missing || v.Moving != haven.Unknown {
		t.Errorf("nothing there: %+v", v)
	}
	if v := look(RawBeat{Err: ErrTorn}); v.Missing || v.Moving != haven.Unknown || v.Why != whyNameless {
		t.Errorf("something nameless there: %+v", v)
	}
	if v := look(); !v.Missing {
		t.Errorf("nothing there again: %+v", v)
	}
}

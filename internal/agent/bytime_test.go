package agent

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/fencing/watchdog"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/recovery"
)

// TestAnswersAboutWatchdogs (P2): an answer shows what the ledger holds, after what
// the report asks for is in it; an older report changes nothing any more; and the
// master knows of each answer before it leaves.
func TestAnswersAboutWatchdogs(t *testing.T) {
	a := run(t, partsWith(t, 71, 1))
	awaitReign(t, a)
	const many = uint64(1) << 40 // above what the agent's own reports count
	armed := haven.Watchdog{Bound: 30 * time.Second, Stores: []string{"s1"}}
	tell := func(n uint64, w haven.Watchdog) (client.Ack, error) {
		return a.TakeReport(t.Context(), a.d.Host, &client.Report{Identity: a.identity(), Number: many + n, Watchdog: w})
	}
	held := func() (w haven.Watchdog) {
		a.ledger.View(func(s *ledger.State, _ ledger.Position) { w = s.Hosts[a.d.Host].Watchdog })
		return w
	}
	before := time.Now()
	ack, err := tell(2, armed)
	if err != nil || !ack.Watchdog.Equal(armed) || !held().Equal(armed) {
		t.Fatalf("%+v, %v; the ledger has %+v", ack, err, held())
	}
	if ack.Verified < 0 || ack.Verified.Duration() > time.Minute {
		t.Errorf("verified %s ago", ack.Verified.Duration())
	}
	if at := a.dogs.lastAnswer(a.d.Host, a.d.Boot); at.Before(before) {
		t.Errorf("the last answer was at %s", at)
	}
	if at := a.dogs.lastAnswer(a.d.Host, "another boot"); !at.IsZero() {
		t.Errorf("another boot was answered at %s", at)
	}
	if ack, err := tell(1, haven.Watchdog{}); !errors.Is(err, errOutdated) || !held().Equal(armed) {
		t.Errorf("an older report: %+v, %v; the ledger has %+v", ack, err, held())
	}
	if ack, err := tell(3, haven.Watchdog{}); err != nil || ack.Watchdog.Armed() || held().Armed() {
		t.Errorf("disarmed: %+v, %v; the ledger has %+v", ack, err, held())
	}
	var all sync.WaitGroup
	for i := range uint64(20) {
		all.Go(func() {
			w := haven.Watchdog{}
			if i%2 == 1 {
				w = armed
			}
			ack, err := tell(4+i, w)
			if err != nil && !errors.Is(err, errOutdated) {
				t.Error(err)
			}
			if err == nil && !ack.Watchdog.Equal(w) && i == 19 {
				t.Errorf("the latest report was told that the ledger holds %+v", ack.Watchdog)
			}
		})
	}
	all.Wait()
	if !held().Equal(armed) {
		t.Errorf("after reports in any order the ledger holds %+v, not what the latest one asked for", held())
	}
}

// TestReportThatComesAfterAChangeOfMaster (P2, P7): a report that asks to arm is held up
// on its way, the host takes that back, and goes. Whoever is master when the old one
// arrives must not hold armed what never was.
func TestReportThatComesAfterAChangeOfMaster(t *testing.T) {
	a := run(t, partsWith(t, 73, 1))
	awaitReign(t, a)
	const many = uint64(1) << 40 // above what the agent's own reports count
	tell := func(n, since uint64, w haven.Watchdog) (client.Ack, error) {
		return a.TakeReport(t.Context(), a.d.Host, &client.Report{Identity: a.identity(), Number: many + n, WatchdogSince: many + since, Watchdog: w})
	}
	if ack, err := tell(3, 3, haven.Watchdog{}); err != nil || ack.Watchdog.Armed() {
		t.Fatalf("%+v, %v", ack, err)
	}
	a.ev.forgetReports() // as in a change of master
	late, err := tell(2, 2, haven.Watchdog{Bound: 30 * time.Second, Stores: []string{"s1"}})
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		if w := s.Hosts[a.d.Host].Watchdog; w.Armed() {
			t.Errorf("the ledger holds %+v; the late report was answered %+v, %v", w, late, err)
		}
	})
	// What is asked for again and again costs no entries.
	index := a.ledgerIndex()
	for n := range uint64(5) {
		if _, err := tell(4+n, 3, haven.Watchdog{}); err != nil {
			t.Fatal(err)
		}
	}
	if now := a.ledgerIndex(); now != index {
		t.Errorf("%d entries for nothing", now-index)
	}
	// Nor does a report of an earlier reign decide anything.
	if err := a.declare(t.Context(), new(mastery), &client.Report{Identity: a.identity(), Number: many + 20, WatchdogSince: many + 20, Watchdog: haven.Watchdog{Bound: time.Minute, Stores: []string{"s1"}}}); !errors.Is(err, haven.ErrNotMaster) {
		t.Errorf("in another reign: %v", err)
	}
}

// TestRefusedPromiseIsNotAskedAgain: a promise that the ledger does not take, such as
// that of a boot which is proved dead and reports, fills the log with no entries.
func TestRefusedPromiseIsNotAskedAgain(t *testing.T) {
	a := run(t, partsWith(t, 76, 1))
	awaitReign(t, a)
	eventually(t, "the agent to be registered", a.told)
	const many = uint64(1) << 40 // above what the agent's own reports count
	index := a.ledgerIndex()
	for n := range uint64(10) {
		ack, err := a.TakeReport(t.Context(), a.d.Host, &client.Report{Identity: a.identity(), Number: many + n, WatchdogSince: many, Watchdog: haven.Watchdog{Bound: time.Second}})
		if err != nil || ack.Watchdog.Armed() {
			t.Fatalf("%+v, %v", ack, err)
		}
	}
	if n := a.ledgerIndex() - index; n == 0 || n > 3 {
		t.Errorf("%d entries for 10 reports", n)
	}
	// Something else is asked at once.
	w := haven.Watchdog{Bound: 30 * time.Second, Stores: []string{"s1"}}
	if ack, err := a.TakeReport(t.Context(), a.d.Host, &client.Report{Identity: a.identity(), Number: many + 20, WatchdogSince: many + 20, Watchdog: w}); err != nil || !ack.Watchdog.Equal(w) {
		t.Errorf("%+v, %v", ack, err)
	}
}

// TestAskedSince: a report says with which one its host began to ask for what it asks.
func TestAskedSince(t *testing.T) {
	k := &dog{}
	a := &Agent{dog: k}
	armed := haven.Watchdog{Bound: 30 * time.Second, Stores: []string{"s1"}}
	for i, tc := range []struct {
		asks  haven.Watchdog
		since uint64
	}{{haven.Watchdog{}, 0}, {haven.Watchdog{}, 0}, {armed, 3}, {armed, 3}, {haven.Watchdog{}, 5}, {haven.Watchdog{}, 5}, {armed, 7}} {
		k.out.Store(&watchdog.Output{Declare: tc.asks})
		var rep client.Report
		if a.number(&rep); rep.Number != uint64(i+1) || rep.WatchdogSince != tc.since || !rep.Watchdog.Equal(tc.asks) {
			t.Errorf("report %d: %d, since %d of %+v; want since %d", i+1, rep.Number, rep.WatchdogSince, rep.Watchdog, tc.since)
		}
	}
}

// TestArmedWatchdogsAreMeasured: the master tells whose watchdog the ledger holds.
func TestArmedWatchdogsAreMeasured(t *testing.T) {
	d := partsWith(t, 75, 1)
	a := run(t, d)
	page := func() string {
		w := httptest.NewRecorder()
		d.Metrics.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
		return w.Body.String()
	}
	shows := func(n int) func() bool {
		return func() bool {
			return strings.Contains(page(), fmt.Sprintf(`haven_host_watchdog_armed{host="kvm-01"} %d`, n))
		}
	}
	eventually(t, "a host that is not armed", shows(0))
	const many = uint64(1) << 40 // above what the agent's own reports count
	w := haven.Watchdog{Bound: 30 * time.Second, Stores: []string{"s1"}}
	if _, err := a.TakeReport(t.Context(), a.d.Host, &client.Report{Identity: a.identity(), Number: many, WatchdogSince: many, Watchdog: w}); err != nil {
		t.Fatal(err)
	}
	if !shows(1)() {
		t.Error("an armed host is not shown")
	}
	m := a.reign.Swap(nil)
	if strings.Contains(page(), "haven_host_watchdog_armed{") {
		t.Error("told by one that is not the master")
	}
	a.reign.Store(m)
}

// TestCountOfAnotherReign (P2): what was counted in one reign is no proof in the next:
// somebody else may have answered the host meanwhile.
func TestCountOfAnotherReign(t *testing.T) {
	a := &Agent{ev: newEvidence(), done: make(chan ended)}
	a.d.Host = "kvm-01"
	first, second := new(mastery), new(mastery)
	a.judgement.Store(&judged{
		at: time.Now(), hosts: map[haven.HostID]int{"kvm-02": 0}, boots: map[haven.HostID]haven.BootID{"kvm-02": "b1"}, reign: first,
		dogs: map[haven.HostID]fencing.TimeCount{"kvm-02": {State: fencing.TimeProved, Boot: "b1", Why: "it must have fired"}},
		out:  detector.Output{Hosts: []detector.Judgement{{Host: "kvm-02", Verdict: haven.VerdictFailed, FenceAllowed: true}}},
	})
	view := func(m *mastery) recovery.HostView {
		in, _ := a.recoveryInput(m)
		return in.Hosts["kvm-02"]
	}
	if v := view(first); v.Fired == nil || v.Fired.Kind != haven.ProofWatchdog || v.Fired.Boot != "b1" {
		t.Errorf("in the reign that counted: %+v", v.Fired)
	}
	if v := view(second); v.Fired != nil || v.Watchdog != "" {
		t.Errorf("in the next reign: %+v, %q", v.Fired, v.Watchdog)
	}
	a.judgement.Load().boots["kvm-02"] = "b2"
	if v := view(first); v.Fired != nil {
		t.Errorf("about another boot: %+v", v.Fired)
	}
}

// TestToldSights (P2, P5): of what others tell only the agent's own records count,
// and nobody speaks for himself.
func TestToldSights(t *testing.T) {
	now := time.Now()
	view := client.BeatView{Store: "nfs1", StoreID: "s1", Host: "kvm-02", Vouched: true, Boot: "b1", Watchdog: 30000, ReadAge: 500, ChangedAge: 40000}
	helper, other, none := view, view, view
	helper.Helper, other.Host, none.Boot = true, "kvm-03", ""
	got := toldSights("kvm-02", []told{
		{observer: "kvm-01", beats: []client.BeatView{view, helper, other, none}, asked: now.Add(-time.Second), at: now},
		{observer: "kvm-02", beats: []client.BeatView{view}, asked: now, at: now},
	})
	if len(got) != 1 {
		t.Fatalf("%+v", got)
	}
	s := got[0]
	if s.Store != "s1" || !s.Vouched || s.Watchdog != 30*time.Second || s.Reader != "kvm-01" {
		t.Errorf("%+v", s)
	}
	if s.ReadAt.After(now.Add(-1500*time.Millisecond)) || s.ChangedAt.Before(now.Add(-40*time.Second)) {
		t.Errorf("read %s ago, after it was; changed %s ago, before it did", now.Sub(s.ReadAt), now.Sub(s.ChangedAt))
	}
}

package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/fencing/watchdog"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/pill"
	"github.com/haven-ha/haven/internal/recovery"
	"github.com/haven-ha/haven/storagebeat"
)

// postbox is a store with a mailbox for one host, which it can read and not write.
type postbox struct {
	id storagebeat.Identity

	mu    sync.Mutex
	host  haven.HostID
	data  []byte
	last  storagebeat.Beat // that was tried
	wrote []storagebeat.Pill
	err   error // of a write of a pill
}

var errReadOnly = errors.New("read-only storage")

func newPostbox(host haven.HostID) *postbox {
	return &postbox{host: host, id: storagebeat.Identity{ID: storagebeat.StoreID{1}, Cluster: "prod-a"}}
}

func (b *postbox) ReadAll(context.Context) (storagebeat.Contents, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := storagebeat.Contents{Identity: b.id}
	if b.data != nil {
		c.Pills = []storagebeat.RawPill{{Host: b.host, Data: bytes.Clone(b.data)}}
	}
	return c, nil
}

func (b *postbox) Write(_ context.Context, raw storagebeat.RawBeat) error {
	beat, err := storagebeat.Decode(raw.Data)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = beat
	return errReadOnly
}

func (b *postbox) WritePill(_ context.Context, raw storagebeat.RawPill) error {
	p, err := storagebeat.DecodePillAt(b.id.ID, raw)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.wrote = append(b.wrote, p)
	}
	return b.err
}

func (b *postbox) beat() storagebeat.Beat {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last
}

// leave puts a pill into the mailbox, sealed by a's key unless that is left out.
func (b *postbox) leave(t *testing.T, a *Agent, sealed bool, change func(*storagebeat.Pill)) {
	t.Helper()
	p := storagebeat.Pill{
		Store: b.id.ID, Host: b.host, Boot: a.d.Boot, Incident: "i1", Attempt: 1, Term: haven.Term{Generation: 1, Term: 5}, By: "kvm-02",
	}
	if change != nil {
		change(&p)
	}
	var err error
	if sealed {
		p, err = p.Sealed(a.pills.keys.all()[0])
	}
	if err != nil {
		t.Fatal(err)
	}
	data, err := storagebeat.EncodePill(p)
	if err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = data
}

// lines keeps what is logged.
type lines struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// pilled is a host that runs with a postbox and reaches nobody, and what it counts
// of its resets.
func pilled(t *testing.T, last byte, enabled bool) (a *Agent, box *postbox, log *lines, resets chan time.Time) {
	t.Helper()
	d := partsWith(t, last, 2)
	box, log, resets = newPostbox(d.Host), &lines{}, make(chan time.Time, 100)
	self := d.Config.Hosts[d.Host]
	self.Fencing.PoisonPill = enabled
	d.Config.Hosts[d.Host] = self
	d.Stores = []Store{{Name: "nfs1", Device: box}}
	d.Reset = func() error { resets <- time.Now(); return errors.New("it is a test") }
	d.Log = slog.New(slog.NewTextHandler(log, nil))
	return run(t, d), box, log, resets
}

// eventually waits for something that takes seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 3000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("waited in vain for %s", what)
}

// TestHostThatIsCutOffObeys: a host that reads its store, writes nothing there and
// reaches no master resets itself because of a pill for its present boot, and of no
// other one. Its last beat says so. A reset that fails is tried again for as long as
// the pill lies there.
func TestHostThatIsCutOffObeys(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute in real time")
	}
	a, box, log, resets := pilled(t, 71, true)
	ignored := func(why string) {
		t.Helper()
		eventually(t, "a line that says "+why, func() bool { return strings.Contains(log.String(), why) })
	}
	box.leave(t, a, true, func(p *storagebeat.Pill) { p.Boot = "the boot before" })
	ignored("it is for boot the boot before")
	box.leave(t, a, false, nil)
	ignored("does not bear the seal")
	time.Sleep(pill.DefaultPatience + time.Second)
	if n := len(resets); n > 0 || a.resetting() {
		t.Fatalf("%d resets by pills that are not for it", n)
	}
	left := time.Now()
	box.leave(t, a, true, nil)
	select {
	case at := <-resets:
		if took := at.Sub(left); took < pill.DefaultPatience {
			t.Errorf("obeyed after %s", took)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it was not obeyed")
	}
	if b := box.beat(); !b.Resetting || b.Left != haven.LeaveNone {
		t.Errorf("the last beat says %+v", b)
	}
	if !a.resetting() || !strings.Contains(log.String(), "a poison pill is obeyed") {
		t.Error("nothing is said about it")
	}
	select {
	case <-resets:
	case <-time.After(3 * resetAgain):
		t.Fatal("a reset that failed is not tried again")
	}
	box.leave(t, a, true, func(p *storagebeat.Pill) { p.Withdrawn = true })
	eventually(t, "the end of it", func() bool { return !a.resetting() })
}

// P4: a host whose configuration does not name it obeys no pill, and says so.
func TestPillIsOffByDefault(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds in real time")
	}
	a, box, log, resets := pilled(t, 72, false)
	box.leave(t, a, true, nil)
	eventually(t, "a line about it", func() bool { return strings.Contains(log.String(), "fencing.poison_pill is off for this host") })
	time.Sleep(pill.DefaultPatience + time.Second)
	if n := len(resets); n > 0 || a.resetting() {
		t.Errorf("%d resets", n)
	}
}

// P3: only the master of the moment has a pill left on other agents' stores, for
// another host, and it is asked right before.
func TestDelegateLeavesPillsForTheMasterOnly(t *testing.T) {
	d := partsWith(t, 73, 2)
	box := newPostbox(d.Host)
	d.Stores = []Store{{Name: "nfs1", Device: box}}
	a := run(t, d)
	q := client.LeavePillRequest{Host: "kvm-02", Boot: "b", Incident: "i", Attempt: 1, Term: haven.Term{Generation: 1, Term: 1}}
	if ans, err := a.LeavePill(t.Context(), "kvm-02", q); !errors.Is(err, haven.ErrNotMaster) {
		t.Errorf("for one that is not the master: %+v, %v", ans, err)
	}
	if ans, err := a.PillStands(t.Context(), "kvm-02", client.PillRequest{Boot: "b", Incident: "i", Attempt: 1}); !errors.Is(err, haven.ErrNotMaster) {
		t.Errorf("a question to one that is not the master: %+v, %v", ans, err)
	}
	if len(box.wrote) > 0 {
		t.Errorf("wrote %+v", box.wrote)
	}
	// What it writes for a master is sealed, and in its own name.
	eventually(t, "the store to be read", func() bool { return !a.monitors[0].Mailbox().Read.IsZero() })
	p := a.postHere(t.Context(), storagebeat.Pill{Host: "kvm-02", Boot: "b", Incident: "i", Attempt: 1, Term: q.Term})
	if len(p.stores) != 1 || p.open || len(box.wrote) != 1 {
		t.Fatalf("%+v, %+v", p, box.wrote)
	}
	if w := box.wrote[0]; w.By != d.Host || w.Host != "kvm-02" || !w.SealedBy(a.pills.keys.all()...) {
		t.Errorf("wrote %+v", w)
	}
	for name, tc := range map[string]struct {
		err  error
		open bool
	}{
		"no mailbox":       {storagebeat.ErrNoMailbox, false},
		"a newer pill":     {storagebeat.ErrNewerPill, false},
		"a store in doubt": {storagebeat.ErrTimeout, true},
	} {
		box.err = tc.err
		p := a.postHere(t.Context(), storagebeat.Pill{Host: "kvm-02", Boot: "b", Incident: "i", Attempt: 1, Term: q.Term})
		if len(p.stores) != 0 || len(p.failed) != 1 || p.open != tc.open {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// What happened to a pill is told with the end of a fence attempt that proved
// nothing, and never makes one that did wait (P2).
func TestPillIsTold(t *testing.T) {
	why := errors.New("no answer")
	d := recovery.Done{Err: why}
	withPill(&d, func() string { return "a poison pill lies on nfs1" })
	if !errors.Is(d.Err, why) || d.Err.Error() != "no answer; a poison pill lies on nfs1" || d.Proof != nil {
		t.Errorf("%v", d.Err)
	}
	proved := recovery.Done{Proof: &haven.Proof{Kind: haven.ProofPowerOff}}
	withPill(&proved, func() string { t.Error("waited for"); return "" })
	none := recovery.Done{Err: why}
	if withPill(&none, func() string { return "" }); none.Err != why { //nolint:errorlint // the very same one
		t.Errorf("%v", none.Err)
	}
}

// The pills that a master keeps in mind are those that it left last.
func TestLeftPills(t *testing.T) {
	p, err := newPills("prod", nil)
	if err != nil {
		t.Fatal(err)
	}
	m := &mastery{}
	old := leftPill{m: m, act: recovery.Fence{Host: "a", N: 1}}
	p.keep(old)
	next := leftPill{m: m, act: recovery.Fence{Host: "a", N: 2}}
	p.keep(next)
	p.change(old, true) // Its end comes late, and is not that of the next one.
	if all := p.take(); len(all) != 1 || all[0].act.N != 2 {
		t.Errorf("%+v", all)
	}
	next.tried = time.Now()
	p.change(next, false)
	if all := p.take(); len(all) != 1 || all[0].tried.IsZero() {
		t.Errorf("%+v", all)
	}
	p.change(next, true)
	if all := p.take(); len(all) != 0 {
		t.Errorf("%+v", all)
	}
}

// A host that resets itself pets its watchdog no more: a reset that hangs is ended
// by that. When the pill is taken back before, it is petted again.
func TestResettingHostPetsNoWatchdog(t *testing.T) {
	bench := &benchDog{open: true}
	a := &Agent{pills: &pills{}, dog: &dog{device: bench}}
	for _, tc := range []struct {
		resets bool
		pets   int
	}{{false, 1}, {true, 1}, {true, 1}, {false, 2}} {
		a.setResetting(tc.resets)
		done := a.dog.act(watchdog.Output{Do: watchdog.Pet})
		if bench.pets != tc.pets || errors.Is(done.Err, errResetting) != tc.resets || a.resetting() != tc.resets {
			t.Errorf("resetting %t: %d pets, want %d; %v", tc.resets, bench.pets, tc.pets, done.Err)
		}
	}
	none := &Agent{pills: &pills{}}
	if none.setResetting(true); !none.resetting() {
		t.Error("a host without a watchdog does not reset itself")
	}
}

// A host that obeys pills can be fenced though it has no device: an attempt leaves
// one. Of a host that does not, none is begun.
func TestPillIsAMeansToFence(t *testing.T) {
	d := partsWith(t, 74, 2)
	other := d.Config.Hosts["kvm-02"]
	other.Fencing.PoisonPill = true
	d.Config.Hosts["kvm-02"] = other
	a := &Agent{d: d, cfg: d.Config}
	if rc := a.recoveryConfig(); !rc.Devices["kvm-02"] || rc.Devices["kvm-01"] {
		t.Errorf("means to fence: %v", rc.Devices)
	}
}

// TestPillsOfFormerMasters (P4, P7): a pill that a master left before it fell is the
// next one's to take back, when an operator disarms recovery, say. The host may come
// back with its stores and without its network: it hears of no new term, and would
// obey.
func TestPillsOfFormerMasters(t *testing.T) {
	cfg := config.Default(config.ProfileNormal)
	other := config.Host{}
	other.Fencing.PoisonPill = true
	cfg.Hosts = map[haven.HostID]config.Host{"kvm-02": other}
	p, err := newPills("prod", nil)
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{cfg: cfg, ledger: ledger.NewStore(), pills: p}
	apply := func(cmds ...ledger.Command) {
		t.Helper()
		data, err := ledger.Encode(cmds...)
		if err != nil {
			t.Fatal(err)
		}
		errs, ok := a.ledger.Apply(1, 1, data).([]error)
		if err := errors.Join(errs...); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	term := haven.Term{Generation: 1, Term: 1}
	entry := ledger.Entry{At: time.Now(), Term: term, By: "kvm-09", What: "test"}
	apply(
		ledger.Found{Cluster: "prod", Generation: 1, By: "kvm-09", At: time.Now()},
		ledger.RegisterHost{Host: "kvm-02", Role: haven.RoleHypervisor, Address: "127.0.0.98", Boot: "b1", State: "s", Incarnation: 1, At: time.Now()},
		ledger.OpenIncident{ID: "i1", Host: "kvm-02", Boot: "b1", Verdict: haven.VerdictFailed, Entry: entry},
		ledger.NoteIncident{ID: "i1", Step: haven.StepConfirmed, Verdict: haven.VerdictFailed, Entry: entry},
		ledger.BeginFence{ID: "i1", Attempt: ledger.FenceAttempt{N: 1, Action: haven.ActionOff, Term: term, By: "kvm-09", BegunAt: time.Now()}},
	)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); a.withdrawLoop(ctx) }()
	defer func() { cancel(); <-ended }()
	next := &mastery{term: haven.Term{Generation: 1, Term: 2}}
	a.reign.Store(next)
	eventually(t, "the pill to be known", func() bool { return len(a.pills.take()) == 1 })
	l := a.pills.take()[0]
	if want := (recovery.Fence{Incident: "i1", N: 1, Host: "kvm-02", Boot: "b1"}); l.m != next || l.act != want {
		t.Errorf("%+v, want %+v", l, want)
	}
	if why := a.unwanted(l.act); why != "" {
		t.Errorf("taken back while the incident is open: %s", why)
	}
	own := leftPill{m: next, act: recovery.Fence{Incident: "i1", N: 2, Host: "kvm-02", Boot: "b1"}}
	a.pills.keep(own)
	a.inheritPills(next)
	if all := a.pills.take(); len(all) != 1 || all[0].act.N != 2 {
		t.Errorf("%+v, want the newer one to stay", all)
	}
	cancel()
	<-ended
	apply(ledger.SetArmed{Armed: false, Now: true, By: "ann", At: time.Now()})
	if why := a.unwanted(l.act); why == "" {
		t.Error("it stays although an operator disarmed recovery")
	}
}

// Whose pills may lie somewhere: of the latest attempt to end a boot that is not over.
func TestPillsThatMayLie(t *testing.T) {
	at := func(n int) time.Time { return time.Date(2026, 1, 1, 0, 0, n, 0, time.UTC) }
	incident := func(id haven.IncidentID, host haven.HostID, boot haven.BootID, attempts ...ledger.FenceAttempt) *ledger.Incident {
		return &ledger.Incident{ID: id, Host: host, Boot: boot, Step: haven.StepClosed, Attempts: attempts}
	}
	s := &ledger.State{
		Hosts: map[haven.HostID]*ledger.Host{
			"a": {ID: "a", Boot: "b2"}, "dead": {ID: "dead", Boot: "b1", Proof: &haven.Proof{Boot: "b1"}}, "none": {ID: "none", Boot: "b1"}, "free": {ID: "free", Boot: "b1"},
		},
		Incidents: map[haven.IncidentID]*ledger.Incident{
			"1": incident("1", "a", "b1", ledger.FenceAttempt{N: 7, BegunAt: at(9)}),
			"2": incident("2", "a", "b2", ledger.FenceAttempt{N: 1, BegunAt: at(1)}, ledger.FenceAttempt{N: 2, BegunAt: at(2)}),
			"3": incident("3", "a", "b2", ledger.FenceAttempt{N: 1, BegunAt: at(3)}),
			"4": incident("4", "a", "b2"),
			"5": incident("5", "dead", "b1", ledger.FenceAttempt{N: 1, BegunAt: at(3)}),
			"6": incident("6", "gone", "b1", ledger.FenceAttempt{N: 1, BegunAt: at(3)}),
			"7": incident("7", "none", "b1"),
			"8": incident("8", "free", "b1", ledger.FenceAttempt{N: 1, BegunAt: at(3)}),
		},
	}
	got := mayLie(s, func(h haven.HostID) bool { return h != "free" })
	if want := []recovery.Fence{{Incident: "3", N: 1, Host: "a", Boot: "b2"}}; !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// A machine that was suspended has not tried to reach a master meanwhile.
func TestPillWatchNoticesSuspension(t *testing.T) {
	now, boot := time.Now(), time.Hour
	w := &pillWatch{a: &Agent{d: Deps{Boottime: func() time.Duration { return boot }}}}
	for _, tc := range []struct {
		name         string
		awake, sleep time.Duration
		slept        bool
	}{
		{"the first look", 0, 0, false},
		{"the next one", 500 * time.Millisecond, 0, false},
		{"a late one", 3 * time.Second, 0, false},
		{"after a night", 500 * time.Millisecond, 8 * time.Hour, true},
		{"the one after that", 500 * time.Millisecond, 0, false},
	} {
		now, boot = now.Add(tc.awake), boot+tc.awake+tc.sleep
		if got := w.slept(now); got != tc.slept {
			t.Errorf("%s: %t", tc.name, got)
		}
	}
}

// TestPillOfHostThatIsBack (P4): an agent that was just started may ask about a pill
// before its first report is taken. The master does not tell it to reset a host that
// is back: it says yes only to one that asks on and is not heard otherwise.
func TestPillOfHostThatIsBack(t *testing.T) {
	p, err := newPills("prod", nil)
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{cfg: config.Default(config.ProfileNormal), power: newPower(nil), ledger: ledger.NewStore(), pills: p, ev: newEvidence(), log: slog.New(slog.DiscardHandler)}
	now := time.Now()
	entry := ledger.Entry{At: now, Term: haven.Term{Generation: 1, Term: 1}, By: "m"}
	data, err := ledger.Encode(
		ledger.Found{Cluster: "c", Generation: 1, By: "m", At: now},
		ledger.RegisterHost{Host: "a", Boot: "a1", State: "s", Incarnation: 1},
		ledger.OpenIncident{ID: "i", Host: "a", Boot: "a1", Verdict: haven.VerdictFailed, Entry: entry},
		ledger.NoteIncident{ID: "i", Step: haven.StepConfirmed, Verdict: haven.VerdictFailed, Entry: entry},
		ledger.BeginFence{ID: "i", Attempt: ledger.FenceAttempt{N: 1, Action: haven.ActionOff, Term: entry.Term, By: "m", BegunAt: now}})
	if err != nil {
		t.Fatal(err)
	}
	errs, _ := a.ledger.Apply(1, 1, data).([]error)
	if err := errors.Join(errs...); err != nil || len(errs) != 5 {
		t.Fatal(err)
	}
	ask := func(after time.Duration) (client.PillAnswer, error) {
		j := &judged{at: time.Now(), hosts: map[haven.HostID]int{"a": 0}, boots: map[haven.HostID]haven.BootID{"a": "a1"}}
		j.out.Hosts = []detector.Judgement{{Host: "a", Verdict: haven.VerdictFailed, FenceAllowed: true}}
		a.judgement.Store(j)
		return a.pillStands("a", client.PillRequest{Boot: "a1", Incident: "i", Attempt: 1}, now.Add(after))
	}
	for _, after := range []time.Duration{0, time.Second, 2 * time.Second, 20 * time.Second, 21 * time.Second} { // it paused in between
		if ans, err := ask(after); ans.Stands || !errors.Is(err, haven.ErrUnavailable) {
			t.Errorf("after %s: %+v, %v", after, ans, err)
		}
	}
	for after := 22 * time.Second; after < 23*time.Second; after += pillEvery {
		_, _ = ask(after)
	}
	if ans, err := ask(20*time.Second + pillAskedFor); err != nil || !ans.Stands {
		t.Errorf("of one that is not heard otherwise: %+v, %v", ans, err)
	}
	a.ev.report(&client.Report{Identity: client.Identity{Host: "a", Boot: "a1"}}, now.Add(20*time.Second+pillAskedFor))
	if ans, err := ask(20*time.Second + pillAskedFor); err != nil || ans.Stands || ans.Why == "" {
		t.Errorf("of one that reports: %+v, %v", ans, err)
	}
}

package watchdog

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
)

const (
	ms  = time.Millisecond
	boo = haven.BootID("b1")
)

// world is a host with a simulated device, and the ledger. It knows the truth by
// rules of its own, and never asks the keeper for it.
type world struct {
	t   *rapid.T
	now time.Duration

	// The device, as the kernel has it.
	running bool
	timeout time.Duration
	fires   time.Duration
	fired   bool
	held    bool // a process has it open
	round   time.Duration

	// The agent's process.
	terms   *Terms
	k       *Keeper // nil: none runs
	out     Output
	acting  bool // its goroutine stalls between a step and what that asked for
	done    Done
	saved   uint64
	file    Record
	pid     int
	closing bool // a process died, and the kernel has not closed its device yet
	disarm  bool
	heard   []Heard
	wrote   []Wrote

	// What is under way.
	reports []report
	writes  []write

	// The cluster: what the ledger holds, and the newest time that a life can be of.
	holds  haven.Watchdog
	since  time.Duration // when it came to hold that
	acked  time.Duration // the latest sending, less the verification, of an answered report
	landed map[string]time.Duration
	beat   time.Duration // the newest beat's word
	stops  int
	armed  int // times that the ledger came to hold a promise

	// The paths from the host.
	master    string // good, stale (it answers, and leads no more), or gone
	staleFrom time.Duration
	reachable []string // stores
	mood      string
}

type report struct {
	sent  time.Duration
	asked haven.Watchdog
}

type write struct {
	store string
	start time.Duration
	said  time.Duration
}

func newWorld(t *rapid.T) *world {
	return &world{
		t: t, timeout: 30 * time.Second, landed: map[string]time.Duration{},
		terms: &Terms{Device: "/dev/watchdog", Timeout: 4 * time.Second, Silence: 6 * time.Second},
		round: rapid.SampledFrom([]time.Duration{time.Second, time.Second, 3 * time.Second}).Draw(t, "round"),
	}
}

func (w *world) pet() { w.running, w.fires = true, w.now+w.timeout }

// pass lets time go by. The device fires at its time, and then all is over.
func (w *world) pass(d time.Duration) {
	end := w.now + d
	if w.running && !w.fired && w.fires <= end {
		w.fired = true
	}
	w.check(end)
	w.now = end
}

// check is the promise: a host of which the ledger holds an armed watchdog, and
// whose newest beat does not take it back, was reset Bound after its last life at
// the latest (P1, P2).
func (w *world) check(now time.Duration) {
	if w.fired || !w.holds.Armed() || w.beat == 0 {
		return
	}
	last := max(w.since, w.acked)
	for _, s := range w.holds.Stores {
		last = max(last, w.landed[s])
	}
	if now > last+w.holds.Bound {
		w.t.Fatalf("P1, P2: at %s the host lives, %s after its last life at %s; it promised %s", now, now-last, last, w.holds.Bound)
	}
}

// start begins a process of the agent.
func (w *world) start() {
	w.pid++
	w.k = NewKeeper(w.now, w.terms, Record{Boot: boo, PID: w.pid}, w.file)
	w.saved, w.done, w.heard, w.wrote, w.acting, w.disarm = 0, Done{}, nil, nil, false, false
	w.step()
}

// kill ends it. The kernel closes the device at once or a little later.
func (w *world) kill() {
	w.k, w.reports, w.writes = nil, nil, nil
	w.closing = w.held
}

// closed is the kernel's close of what a dead process had open.
func (w *world) closed() {
	w.closing, w.held = false, false
	if w.running && !w.fired {
		w.pet()
	}
}

func (w *world) step() {
	in := Input{Heard: w.heard, Wrote: w.wrote, Done: w.done, Disarm: w.disarm, Saved: w.saved, Alone: !w.closing}
	w.heard, w.wrote, w.done = nil, nil, Done{}
	w.out = w.k.Step(w.now, in)
	w.acting = w.out.Do != Nothing
}

// act does what the last step asked for.
func (w *world) act() {
	w.acting = false
	d := Done{Action: w.out.Do}
	switch d.Action {
	case Open:
		if w.held {
			d.Err = ErrBusy
			break
		}
		w.held, d.Timeout = true, w.timeout
		w.pet()
	case SetTimeout:
		w.timeout = (w.out.Timeout + w.round - 1) / w.round * w.round
		d.Timeout = w.timeout
		w.pet()
	case Pet:
		w.pet()
	case Stop:
		w.stops++
		w.held, w.running = false, false
	case Nothing:
	}
	w.done = d
}

// send makes a report; give brings it to the ledger and perhaps the answer back.
func (w *world) send() {
	w.reports = append(w.reports, report{w.now, w.out.Declare})
}

func (w *world) give(answered bool) {
	r := w.reports[0]
	w.reports = w.reports[1:]
	verified := 100 * ms
	switch w.master {
	case "gone":
		return
	case "stale":
		verified = rapid.SampledFrom([]time.Duration{-ms, w.now - w.staleFrom + 100*ms}).Draw(w.t, "verified")
	default:
		if !w.holds.Equal(r.asked) {
			w.holds, w.since = r.asked, w.now
			if r.asked.Armed() {
				w.armed++
			}
		}
	}
	if verified >= 0 {
		w.acked = max(w.acked, r.sent-verified)
	}
	if answered {
		w.heard = append(w.heard, Heard{Sent: r.sent, Asked: r.asked, Verified: verified, Holds: w.holds})
	}
}

func (w *world) land(completed bool) {
	x := w.writes[0]
	w.writes = w.writes[1:]
	if !slices.Contains(w.reachable, x.store) {
		return
	}
	w.landed[x.store], w.beat = max(w.landed[x.store], x.start), x.said
	if completed {
		w.wrote = append(w.wrote, Wrote{Store: x.store, Start: x.start, Said: x.said})
	}
}

func (w *world) save() { w.file, w.saved = w.out.Record, w.out.Version }

// Whatever the order of reports, answers, writes, stalls, deaths, hand-overs,
// disarmings and changed terms: who trusts the ledger's word finds the host reset
// in time (P1, P2).
func TestResetByTheBound(t *testing.T) {
	var armed, fired, stopped, killed int
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		w.paths("good", "A", "B")
		w.start()
		for phase := range 4 {
			if phase > 0 {
				w.phase()
			}
			for range rapid.IntRange(2, 40).Draw(t, "turns") {
				if !w.fired {
					w.turn()
				}
				if w.k == nil {
					killed++
				}
			}
		}
		w.paths("gone") // and then everything ends
		w.mood = rapid.SampledFrom([]string{"calm", "dying", "dying"}).Draw(t, "mood")
		for range 100 {
			if !w.fired {
				w.turn()
			}
		}
		w.pass(time.Hour)
		armed += min(1, w.armed)
		stopped += min(1, w.stops)
		if w.fired {
			fired++
		}
	})
	t.Logf("armed %d, fired %d, stopped %d, killed %d", armed, fired, stopped, killed)
	if armed == 0 || fired == 0 || stopped == 0 || killed == 0 {
		t.Errorf("the draws never saw all: armed %d, fired %d, stopped %d, killed %d", armed, fired, stopped, killed)
	}
}

func (w *world) paths(master string, reachable ...string) {
	w.master, w.reachable, w.staleFrom, w.mood = master, reachable, w.now, "calm"
}

func (w *world) phase() {
	w.paths(rapid.SampledFrom([]string{"good", "good", "stale", "gone"}).Draw(w.t, "master"),
		rapid.SampledFrom([][]string{{"A", "B"}, {"A", "B", "C"}, {"A"}, {"C"}, {}}).Draw(w.t, "stores")...)
	w.disarm = rapid.Bool().Draw(w.t, "disarms")
}

// turn is something that happens, or a second in which all goes as it should.
func (w *world) turn() {
	moods := map[string][]string{
		"calm": {
			"well", "well", "well", "well", "well", "well", "well", "well", "well", "well", "well", "well",
			"brink", "run", "run", "save", "send", "give", "write", "land", "kill", "close", "disarm", "terms",
		},
		"dying": {"well", "well", "brink", "brink", "brink", "brink", "run", "run", "save", "save", "kill", "kill", "close", "close"},
	}
	switch rapid.SampledFrom(moods[w.mood]).Draw(w.t, "turn") {
	case "well":
		w.well()
	case "brink": // the longest stall that the device survives
		if w.running && w.fires > w.now+ms {
			w.pass(w.fires - w.now - ms)
		}
		w.alone()
	case "run":
		w.pass(rapid.SampledFrom([]time.Duration{0, 10 * ms, 300 * ms, 1100 * ms}).Draw(w.t, "pause"))
		w.alone()
	case "save":
		if w.k != nil {
			w.save()
		}
	case "send":
		if w.k != nil && len(w.reports) < 3 {
			w.send()
		}
	case "give":
		if len(w.reports) > 0 {
			w.give(rapid.Bool().Draw(w.t, "answered"))
		}
	case "write":
		if w.k != nil && len(w.writes) < 3 {
			w.writes = append(w.writes, write{rapid.SampledFrom([]string{"A", "B", "C"}).Draw(w.t, "store"), w.now, w.out.Beat})
		}
	case "land":
		if len(w.writes) > 0 {
			w.land(rapid.Bool().Draw(w.t, "completed"))
		}
	case "kill":
		if w.k != nil {
			w.kill()
		}
	case "close":
		if w.closing {
			w.closed()
		}
	case "disarm":
		w.disarm = rapid.Bool().Draw(w.t, "to disarm")
	case "terms": // for the next process
		w.terms = rapid.SampledFrom([]*Terms{
			{Device: "/dev/watchdog", Timeout: 4 * time.Second, Silence: 6 * time.Second},
			{Device: "/dev/watchdog", Timeout: 4 * time.Second, Silence: 20 * time.Second},
			{Device: "/dev/watchdog", Timeout: 9 * time.Second, Silence: 3 * time.Second},
			nil,
		}).Draw(w.t, "terms")
	}
}

// well is a second of a host on which nothing fails but, perhaps, its paths.
func (w *world) well() {
	if w.k == nil {
		w.start()
	}
	for range 4 {
		if w.fired {
			return
		}
		if w.acting {
			w.act()
		}
		w.save()
		w.send()
		for _, store := range []string{"A", "B", "C"} {
			w.writes = append(w.writes, write{store, w.now, w.out.Beat})
		}
		w.pass(250 * ms)
		for len(w.reports) > 0 {
			w.give(true)
		}
		for len(w.writes) > 0 {
			w.land(true)
		}
		w.step()
	}
}

// alone is one step of what happens on the host by itself.
func (w *world) alone() {
	switch {
	case w.fired:
	case w.k == nil && w.closing && rapid.Bool().Draw(w.t, "closes"):
		w.closed()
	case w.k == nil:
		if rapid.Bool().Draw(w.t, "starts") {
			w.start()
		}
	case w.acting:
		w.act()
		w.step()
	default:
		w.step()
	}
}

// bench is a keeper under the hand of a test.
type bench struct {
	t   *testing.T
	k   *Keeper
	now time.Duration
	out Output
}

func (b *bench) step(in Input) Output {
	b.t.Helper()
	b.out = b.k.Step(b.now, in)
	return b.out
}

// do carries out what the last step asked for, and what that leads to.
func (b *bench) do(timeout time.Duration) {
	b.t.Helper()
	for b.out.Do != Nothing {
		b.step(Input{Done: Done{Action: b.out.Do, Timeout: timeout}, Saved: b.out.Version})
	}
	b.step(Input{Saved: b.out.Version})
}

func (b *bench) heard(holds haven.Watchdog) Output {
	return b.step(Input{Heard: []Heard{{Sent: b.now, Asked: b.out.Declare, Verified: 0, Holds: holds}}, Saved: b.out.Version})
}

var terms = Terms{Device: "/dev/watchdog", Timeout: 4 * time.Second, Silence: 6 * time.Second}

// armedBench is a keeper whose watchdog is armed, and in the ledger.
func armedBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, k: NewKeeper(0, &terms, Record{Boot: boo, PID: 2}, Record{}), now: time.Second}
	b.step(Input{Alone: true})
	if b.step(Input{Saved: b.out.Version}); b.out.Do != Nothing {
		t.Fatal("it does something without any sign of life")
	}
	b.step(Input{Wrote: []Wrote{{Store: "A", Start: b.now, Said: b.out.Beat}}})
	if b.heard(haven.Watchdog{}); b.out.Do != Nothing {
		t.Fatal("it opens the device before the record of it is saved")
	}
	if b.step(Input{Saved: b.out.Version}); b.out.Do != Open || b.out.Beat != 0 || b.out.Declare.Armed() {
		t.Fatalf("%+v, want the device to be opened and nothing told", b.out)
	}
	b.step(Input{Done: Done{Action: Open, Timeout: 30 * time.Second}, Saved: b.out.Version})
	if b.out.Do != SetTimeout || b.out.Declare.Armed() {
		t.Fatalf("%+v, want the timeout to be set before anything is declared", b.out)
	}
	b.step(Input{Done: Done{Action: SetTimeout, Timeout: 4 * time.Second}})
	if b.step(Input{Wrote: []Wrote{{Store: "A", Start: b.now}}}); len(b.out.Record.Standing) != 0 {
		t.Fatal("it promises by a store on which its latest beat says that nothing is armed")
	}
	if b.step(Input{Wrote: []Wrote{{Store: "A", Start: b.now, Said: b.out.Beat}}}); b.out.Declare.Armed() || len(b.out.Record.Standing) != 1 {
		t.Fatal("it asks for a promise that the next process would not know of")
	}
	want := haven.Watchdog{Bound: 18 * time.Second, Stores: []string{"A"}}
	if b.do(0); !b.out.Declare.Equal(want) || b.out.Beat != want.Bound || b.out.State != Armed {
		t.Fatalf("%+v, want %+v to be asked for", b.out, want)
	}
	b.heard(want)
	b.do(0)
	return b
}

// The order of arming: life, record, device, its timeout, record, ledger.
func TestArmFirstThenDeclare(t *testing.T) { armedBench(t) }

// A write to a store that was not declared is no life before the ledger has it (P1).
func TestUndeclaredStoreIsNoLife(t *testing.T) {
	b := armedBench(t)
	b.now += 5 * time.Second
	b.step(Input{Wrote: []Wrote{{Store: "B", Start: b.now, Said: b.out.Beat}}, Saved: b.out.Version})
	b.do(0)
	want := haven.Watchdog{Bound: 18 * time.Second, Stores: []string{"A", "B"}}
	if !b.out.Declare.Equal(want) || b.out.Life >= b.now {
		t.Fatalf("life at %s of %s, declared %+v", b.out.Life, b.now, b.out.Declare)
	}
	b.heard(want)
	b.do(0)
	b.now += time.Second
	if b.step(Input{Wrote: []Wrote{{Store: "B", Start: b.now, Said: b.out.Beat}}}); b.out.Life != b.now {
		t.Errorf("life at %s of %s after the ledger has it", b.out.Life, b.now)
	}
}

// Disarming: the device is stopped when the ledger or a beat has it, not before.
func TestDisarm(t *testing.T) {
	b := armedBench(t)
	held := b.out.Declare
	disarm := func(in Input) Output { in.Disarm, in.Saved = true, b.out.Version; return b.step(in) }
	disarm(Input{})
	if b.out.Do == Stop || b.out.Beat != 0 || b.out.Declare.Armed() || b.out.State != Disarming {
		t.Fatalf("%+v, want it to tell first", b.out)
	}
	if disarm(Input{Heard: []Heard{{Sent: b.now, Asked: haven.Watchdog{}, Holds: held}}}); b.out.Do == Stop {
		t.Error("stopped while the ledger holds it")
	}
	if disarm(Input{Wrote: []Wrote{{Store: "A", Start: b.now, Said: held.Bound}}}); b.out.Do == Stop {
		t.Error("stopped for a beat that says that it is armed")
	}
	if disarm(Input{Wrote: []Wrote{{Store: "B", Start: b.now}}}); b.out.Do == Stop {
		t.Error("stopped for a beat where nobody need look")
	}
	if disarm(Input{Heard: []Heard{{Sent: b.now - 1, Asked: held, Holds: haven.Watchdog{}}}}); b.out.Do == Stop {
		t.Error("stopped for the answer to an earlier report")
	}
	byBeat := *b.k
	if disarm(Input{Wrote: []Wrote{{Store: "A", Start: b.now}}}); b.out.Do != Stop {
		t.Errorf("%+v after a beat says so", b.out)
	}
	*b.k = byBeat
	if disarm(Input{Heard: []Heard{{Sent: b.now, Asked: haven.Watchdog{}, Holds: haven.Watchdog{}}}}); b.out.Do != Stop {
		t.Errorf("%+v after the ledger has it", b.out)
	}
	disarm(Input{Done: Done{Action: Stop}})
	if b.out.State != Off || b.out.Record.Armed {
		t.Errorf("%+v after the stop", b.out)
	}
}

// A new process takes the armed device over only while there is life, and only when
// the one before it can pet no more (P1).
func TestTakeOver(t *testing.T) {
	b := armedBench(t)
	left := b.out.Record
	next := func(at time.Duration) *bench {
		n := &bench{t: t, k: NewKeeper(at, &terms, Record{Boot: boo, PID: 3}, left), now: at}
		n.step(Input{})
		return n
	}
	n := next(b.now + time.Second)
	if n.out.Do != Nothing || n.out.Record.PID != 2 || !n.out.Declare.Equal(left.Declared) || n.out.Beat == 0 || n.out.State != Orphan {
		t.Fatalf("%+v while the process before it may live", n.out)
	}
	if n.step(Input{Alone: true}); n.out.Do != Nothing || n.out.Record.PID != 3 {
		t.Fatalf("%+v, want it to put its name down first", n.out)
	}
	if n.step(Input{Alone: true, Saved: n.out.Version}); n.out.Do != Open {
		t.Fatalf("%+v, want the device to be taken over", n.out)
	}
	n.step(Input{Done: Done{Action: Open, Timeout: 4 * time.Second}})
	if n.do(0); n.out.State != Armed || !n.out.Declare.Equal(left.Declared) {
		t.Errorf("%+v after it was taken over", n.out)
	}

	late := next(left.Life + terms.Silence)
	late.step(Input{Alone: true})
	if late.step(Input{Alone: true, Saved: late.out.Version}); late.out.Do != Nothing || late.out.State != Orphan {
		t.Errorf("%+v with a life that is too old", late.out)
	}
	late.now += time.Second
	if late.step(Input{Alone: true, Wrote: []Wrote{{Store: "A", Start: late.now}}}); late.out.Do != Open {
		t.Errorf("%+v, want new life to bring it back in time", late.out)
	}
}

// A longer timeout is a new arming; a longer silence is declared before it is used.
func TestLongerTerms(t *testing.T) {
	left := armedBench(t).out.Record
	longer := Terms{Device: "/dev/watchdog", Timeout: 5 * time.Second, Silence: 6 * time.Second}
	n := &bench{t: t, k: NewKeeper(left.Life, &longer, Record{Boot: boo, PID: 3}, left), now: left.Life + time.Second}
	if n.step(Input{Alone: true}); n.out.Declare.Armed() || n.out.Beat != 0 {
		t.Errorf("%+v, want it to be disarmed first", n.out)
	}
	patient := Terms{Device: "/dev/watchdog", Timeout: 4 * time.Second, Silence: 20 * time.Second}
	n = &bench{t: t, k: NewKeeper(left.Life, &patient, Record{Boot: boo, PID: 3}, left), now: left.Life + time.Second}
	n.step(Input{Alone: true})
	n.step(Input{Alone: true, Saved: n.out.Version})
	n.step(Input{Done: Done{Action: Open, Timeout: 4 * time.Second}, Saved: n.out.Version})
	n.heard(n.out.Declare)
	if n.do(0); n.out.Declare.Bound != 32*time.Second || n.k.silence() != 6*time.Second {
		t.Fatalf("%+v with a silence of %s", n.out, n.k.silence())
	}
	n.heard(n.out.Declare)
	if got := n.k.silence(); got != 20*time.Second {
		t.Errorf("silence of %s after the ledger has it", got)
	}
}

// What the ledger holds binds, also when nobody here remembers having asked for it.
func TestForgottenPromise(t *testing.T) {
	b := &bench{t: t, k: NewKeeper(0, &terms, Record{Boot: boo, PID: 2}, Record{}), now: time.Second}
	b.step(Input{Alone: true, Wrote: []Wrote{{Store: "A", Start: b.now}}})
	forgotten := haven.Watchdog{Bound: 9 * time.Second, Stores: []string{"A"}}
	b.heard(forgotten)
	for range 3 {
		if b.step(Input{Saved: b.out.Version}); b.out.Do != Nothing || b.out.Declare.Armed() {
			t.Fatalf("%+v while the ledger holds a promise of an unknown device", b.out)
		}
	}
	b.heard(haven.Watchdog{})
	if b.step(Input{Saved: b.out.Version}); b.out.Do != Open {
		t.Errorf("%+v after the ledger forgot it too", b.out)
	}
}

// P4: while acknowledgements or beats go on, the host is not reset, stalls shorter
// than the device's timeout included.
func TestLivingHostIsNotReset(t *testing.T) {
	for _, path := range []string{"acknowledgements", "beats"} {
		t.Run(path, func(t *testing.T) {
			b := armedBench(t)
			fires := b.now + terms.Timeout
			for n := range 2000 {
				b.now += 700 * ms
				if n%10 == 0 {
					b.now += 2 * time.Second
				}
				if b.now > fires {
					t.Fatalf("reset at %s", fires)
				}
				if path == "beats" {
					b.step(Input{Wrote: []Wrote{{Store: "A", Start: b.now - ms, Said: b.out.Beat}}, Saved: b.out.Version})
				} else {
					b.heard(b.out.Declare)
				}
				for b.out.Do != Nothing {
					fires = b.now + terms.Timeout
					b.step(Input{Done: Done{Action: b.out.Do}, Saved: b.out.Version})
				}
			}
		})
	}
}

// A device that fails is told of, and tried again.
func TestDeviceTrouble(t *testing.T) {
	b := armedBench(t)
	b.now += time.Second
	if b.heard(b.out.Declare); b.out.Do != Pet {
		t.Fatalf("%+v, want a pet", b.out)
	}
	if b.step(Input{Done: Done{Action: Pet, Err: ErrUnable}}); b.out.Trouble == "" || b.out.Do != Nothing {
		t.Errorf("%+v after a pet failed", b.out)
	}
	b.now += retrySoon
	if b.step(Input{}); b.out.Do != Pet {
		t.Errorf("%+v, want it to be tried again", b.out)
	}
	if b.step(Input{Done: Done{Action: Pet}}); b.out.Trouble != "" {
		t.Errorf("%q after a pet that went well", b.out.Trouble)
	}

	busy := &bench{t: t, k: NewKeeper(0, &terms, Record{Boot: boo}, Record{}), now: time.Second}
	busy.step(Input{Alone: true, Wrote: []Wrote{{Store: "A", Start: busy.now}}})
	busy.heard(haven.Watchdog{})
	busy.step(Input{Saved: busy.out.Version})
	if busy.step(Input{Done: Done{Action: Open, Err: ErrBusy}}); busy.out.Trouble != ErrBusy.Error() || busy.out.State != Off || busy.out.Record.Armed {
		t.Errorf("%+v when somebody else has the device", busy.out)
	}
}

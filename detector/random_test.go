package detector

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
)

// coarse is a set of numbers with which short histories reach every verdict.
func coarse() Config {
	c := Normal()
	c.SuspectAfter, c.Silence, c.Round = 200*time.Millisecond, 1600*time.Millisecond, 300*time.Millisecond
	c.BeatInterval, c.StaleAfter = 200*time.Millisecond, 600*time.Millisecond
	c.PowerEvery, c.ProbeFresh = 400*time.Millisecond, 300*time.Millisecond
	c.GossipLag, c.OffFresh = 2500*time.Millisecond, 2*time.Second
	c.StartupGrace, c.MassFailureCalm, c.FlapCount, c.FlapCalm = 0, time.Second, 2, 1500*time.Millisecond
	return c
}

// history draws a random history of evidence. Most hosts die at some moment,
// and every value may be wrong, missing, late or from the future with a
// probability drawn for the whole history, so that some are nearly honest and
// some are noise.
type history struct {
	src   *rand.PCG
	r     *rand.Rand
	slab  slabs
	cfg   Config
	noise float64
	now   time.Duration
	dies  map[haven.HostID]time.Duration
	lives map[haven.HostID]string // what goes on living after that
	off   map[haven.HostID]bool
	flap  map[haven.HostID]time.Duration // it comes and goes for so long each time
	boots map[haven.HostID]bool          // it boots when it comes back
	guid  haven.Tri                      // of the boards
	// The times of a storage outage and of a master that lags.
	outage, lag [2]time.Duration
	power       map[haven.HostID][]PowerReading
	probe       map[haven.HostID][]Probe
}

// slabs hold what a history is made of, for the next one to use again.
type slabs struct {
	hosts     slab[Host]
	observers slab[Observer]
	stores    slab[StoreView]
	beats     slab[Beat]
	probes    slab[Probe]
	disks     slab[Disk]
	powers    slab[PowerReading]
}

// slab gives out slices of one large one.
type slab[T any] struct {
	all  []T
	used int
}

// take returns an empty slice with room for n.
func (s *slab[T]) take(n int) []T {
	if s.used+n > len(s.all) {
		s.all, s.used = make([]T, max(2*len(s.all), n, 64)), 0
	}
	s.used += n
	return s.all[s.used-n : s.used-n : s.used]
}

func (s *slab[T]) copyOf(v []T) []T { return append(s.take(len(v)), v...) }

func newHistory(seed uint64) *history {
	src := rand.NewPCG(0, 1)
	h := &history{
		src: src, r: rand.New(src), dies: map[haven.HostID]time.Duration{}, lives: map[haven.HostID]string{},
		off: map[haven.HostID]bool{}, flap: map[haven.HostID]time.Duration{}, boots: map[haven.HostID]bool{}, power: map[haven.HostID][]PowerReading{}, probe: map[haven.HostID][]Probe{},
	}
	h.begin(seed)
	return h
}

// begin draws another history. What the one before was made of is lost.
func (h *history) begin(seed uint64) {
	h.src.Seed(seed, 1)
	h.cfg, h.now = coarse(), 0
	clear(h.dies)
	clear(h.lives)
	clear(h.off)
	clear(h.flap)
	clear(h.boots)
	h.guid = [...]haven.Tri{haven.Yes, haven.Yes, haven.Unknown}[h.r.IntN(3)]
	h.outage, h.lag = h.sometimes(), h.sometimes()
	for id := range h.power {
		h.power[id] = h.power[id][:0]
	}
	for id := range h.probe {
		h.probe[id] = h.probe[id][:0]
	}
	s := &h.slab
	s.hosts.used, s.observers.used, s.stores.used, s.beats.used, s.probes.used, s.disks.used, s.powers.used = 0, 0, 0, 0, 0, 0, 0
	h.noise = []float64{0, 0, 0.002, 0.01, 0.05, 0.5}[h.r.IntN(6)]
	h.cfg.Stores = h.r.IntN(3)
	h.cfg.FenceWithoutStore = h.r.IntN(3) == 0
	h.cfg.WaitForGossip = h.r.IntN(2) == 0
	h.cfg.MassFailureCalm = [...]time.Duration{500 * time.Millisecond, time.Second, 2500 * time.Millisecond}[h.r.IntN(3)]
	h.cfg.MassFailureShare = [...]float64{0.5, 0.5, 0.3}[h.r.IntN(3)]
	if h.r.IntN(5) == 0 {
		h.cfg.StartupGrace = time.Duration(h.r.IntN(4)) * time.Second
	}
	for _, id := range []haven.HostID{"b", "c", "d"} {
		h.dies[id] = time.Hour
		if id == "d" || h.r.IntN(8) == 0 {
			h.dies[id] = time.Duration(h.r.IntN(1500)) * time.Millisecond
		}
		h.lives[id] = ways[h.r.IntN(len(ways))]
		h.off[id] = h.r.IntN(2) == 0
		if h.r.IntN(6) == 0 {
			h.dies[id], h.flap[id] = time.Duration(h.r.IntN(1500))*time.Millisecond, time.Duration(300+h.r.IntN(2000))*time.Millisecond
			h.boots[id] = h.r.IntN(2) == 0
		}
	}
}

// ways are what goes on living of a host that died.
var ways = [...]string{"", "", "", "", "agent-beat", "helper", "disk", "disk-pause", "stopped", "shutdown", "report"}

// sometimes draws a stretch of time, in one history of four.
func (h *history) sometimes() [2]time.Duration {
	if h.r.IntN(4) > 0 {
		return [2]time.Duration{}
	}
	from := time.Duration(h.r.IntN(5000)) * time.Millisecond
	return [2]time.Duration{from, from + time.Duration(h.r.IntN(3000))*time.Millisecond}
}

func (h *history) during(t [2]time.Duration) bool { return t[0] <= h.now && h.now < t[1] }

// fate says whether the host lives at this step, since when that is so, and how
// often it came back.
func (h *history) fate(id haven.HostID) (alive bool, since time.Duration, returns int) {
	dies, mortal := h.dies[id]
	switch {
	case !mortal || h.now < dies:
		return true, 0, 0
	case h.flap[id] == 0:
		return false, dies, 0
	}
	turns := int((h.now - dies) / h.flap[id])
	return turns%2 == 1, dies + time.Duration(turns)*h.flap[id], (turns + 1) / 2
}

func (h *history) odd() bool { return h.noise > 0 && h.r.Float64() < h.noise }

func (h *history) tri(t haven.Tri) haven.Tri {
	if h.odd() {
		return haven.Tri(h.r.IntN(3))
	}
	return t
}

func (h *history) at(t time.Duration) time.Duration {
	if h.odd() {
		return h.now + time.Duration(h.r.IntN(4000)-3500)*time.Millisecond
	}
	return t
}

func (h *history) next() rec {
	h.now += time.Duration(1+h.r.IntN(4)) * 100 * time.Millisecond
	in := Input{Self: Self{Host: "a", Master: !h.odd(), MasterSince: h.at(0), ColdStart: h.odd()}}
	in.Hosts, in.Observers = h.slab.hosts.take(4), h.slab.observers.take(4)
	for _, id := range [...]haven.HostID{"a", "b", "c", "d"} {
		in.Hosts = append(in.Hosts, h.host(id))
		if alive, _, _ := h.fate(id); alive || h.odd() {
			in.Observers = append(in.Observers, h.observer(id))
		}
	}
	return rec{h.now, in}
}

var storeNames = [...]string{"s0", "s1"}

func (h *history) stores() []string { return storeNames[:h.cfg.Stores] }

func (h *history) observer(id haven.HostID) Observer {
	o := Observer{Host: id, At: h.at(h.now), Majority: h.tri(haven.Yes), LoopOK: h.tri(haven.TriOf(id != "a" || !h.during(h.lag)))}
	o.Stores = h.slab.stores.take(len(h.stores()))
	for _, s := range h.stores() {
		if !h.odd() {
			o.Stores = append(o.Stores, StoreView{Store: s, OwnBack: h.tri(haven.Yes), Others: h.tri(haven.Yes), Hung: h.odd() != h.during(h.outage)})
		}
	}
	return o
}

func (h *history) host(id haven.HostID) Host {
	alive, since, returns := h.fate(id)
	how := ""
	seen := h.now
	if !alive {
		how, seen = h.lives[id], since
	}
	boot := haven.BootID("x")
	if h.boots[id] {
		boot += haven.BootID([...]string{"", "1", "2", "3"}[returns%4])
	}
	e := Host{ID: id, Configured: !h.odd(), Role: haven.RoleHypervisor, Boot: boot, Storeless: h.odd(), Maintenance: h.odd()}
	if h.odd() {
		e.Proved = h.odd()
	}
	if h.odd() {
		e.Role, e.Boot = haven.RoleWitness, ""
	}
	e.Report = Report{Heard: !h.odd(), At: h.at(seen), Boot: boot, Expected: h.odd()}
	if how == "report" {
		e.Report.At = h.now
	}
	e.Gossip = Gossip{State: GossipAlive}
	if alive {
		e.Gossip.Since = since
	}
	switch {
	case how == "stopped":
		e.Gossip = Gossip{State: GossipLeft, Since: seen, Left: haven.LeaveStopped}
	case how == "shutdown":
		e.Gossip = Gossip{State: GossipLeft, Since: seen, Left: haven.LeaveShutdown}
	case !alive && h.now-seen > time.Second:
		e.Gossip = Gossip{State: GossipDead, Since: seen + time.Second}
	}
	if h.odd() {
		e.Gossip = Gossip{State: GossipState(h.r.IntN(4)), Since: h.at(seen), Left: haven.LeaveStopped}
	}
	e.Beats = h.slab.beats.take(4 * len(h.stores()))
	for _, s := range h.stores() {
		for _, reader := range [...]haven.HostID{"a", "b"} {
			e.Beats = append(e.Beats, h.beat(s, reader, boot, WriterAgent, seen, alive || how == "agent-beat"),
				h.beat(s, reader, boot, WriterHelper, seen, alive || how == "helper" || how == "stopped"))
		}
	}
	d := Disk{Observer: "b", At: h.at(h.now), Active: haven.Unknown}
	switch {
	case alive || how == "disk", how == "disk-pause" && h.now-seen < 2200*time.Millisecond:
		d.Active = haven.Yes
	case how == "disk-pause" && h.now-seen < 3500*time.Millisecond:
	case h.now-seen > time.Second:
		d.Active = haven.No
	}
	d.Active = h.tri(d.Active)
	if h.r.IntN(4) == 0 {
		d.Quiet = time.Duration(h.r.IntN(12000)-1000) * time.Millisecond
	}
	e.Disks = append(h.slab.disks.take(1), d)
	if !alive || h.odd() {
		h.ask(id, how)
	}
	e.Probes, e.Power = h.slab.probes.copyOf(h.probe[id]), h.slab.powers.copyOf(h.power[id])
	return e
}

func (h *history) beat(store string, reader haven.HostID, boot haven.BootID, w Writer, seen time.Duration, moves bool) Beat {
	b := Beat{
		Store: store, Reader: reader, Writer: w, ReadAt: h.at(h.now), Changed: !h.odd(), ChangedAt: h.at(h.now), Boot: boot,
		Absent: h.odd(), Moving: haven.Yes, Isolated: haven.TriOf(h.r.IntN(2) == 0), SeesOthers: haven.Yes,
	}
	if !moves {
		b.ChangedAt = h.at(seen)
		if h.now-seen > h.cfg.StaleAfter {
			b.Moving = haven.No
		}
	}
	b.Moving = h.tri(b.Moving)
	if h.odd() {
		b.Left, b.Boot = haven.LeaveShutdown, "y"
	}
	return b
}

// ask adds what neighbours and the BMC answered since the last step.
func (h *history) ask(id haven.HostID, how string) {
	for _, kind := range [...]haven.EvidenceKind{haven.EvidenceProbeAgent, haven.EvidenceProbeHelper, haven.EvidenceProbeTCP} {
		for _, by := range [...]haven.HostID{"a", "b", "c"} {
			if h.r.IntN(3) > 0 {
				answer := haven.TriOf(how == "helper" && kind != haven.EvidenceProbeAgent)
				h.probe[id] = append(h.probe[id], Probe{
					Observer: by, Kind: kind, Result: h.tri(answer),
					Started: h.at(h.now - 100*time.Millisecond), Finished: h.at(h.now),
				})
			}
		}
	}
	state := haven.PowerOn
	if h.off[id] {
		state = haven.PowerOff
	}
	if h.odd() {
		state = []haven.PowerState{haven.PowerOn, haven.PowerOff, haven.PowerUnknown}[h.r.IntN(3)]
	}
	if h.r.IntN(3) == 0 {
		h.power[id] = append(h.power[id], PowerReading{
			Device: "bmc", Session: uint64(len(h.power[id])), By: "a", State: state,
			Started: h.at(h.now - 50*time.Millisecond), Finished: h.at(h.now), Trusted: !h.odd(), GUID: h.tri(h.guid),
		})
	}
	h.probe[id] = lastOf(h.probe[id], 24)
	h.power[id] = lastOf(h.power[id], 6)
}

// lastOf moves the last n to the front.
func lastOf[T any](all []T, n int) []T {
	if len(all) <= n {
		return all
	}
	copy(all, all[len(all)-n:])
	return all[:n]
}

// bulk is how many histories TestDumbTwinAgrees compares.
const bulk = 100_000

var histories = flag.Int("histories", bulk, "compare the two implementations on so many random histories")

// TestDumbTwinAgrees compares the machine with the dumb one on 100 000 random
// histories of evidence (P2, P4, P5, P6). It also counts what was reached, so
// that the comparison cannot become empty. The race detector would make it ten
// times slower and has nothing to find in it: a test binary without it, built
// on the spot, does the bulk then.
func TestDumbTwinAgrees(t *testing.T) {
	n := *histories
	if raceEnabled {
		t.Run("bulk", compareElsewhere)
		n = 400
	}
	defer debug.SetGCPercent(debug.SetGCPercent(800)) // What is made lives for one history.
	workers := runtime.GOMAXPROCS(0)
	tallies := make([]tally, workers)
	begun := time.Now()
	t.Run("here", func(t *testing.T) {
		for w := range workers {
			t.Run(fmt.Sprint(w), func(t *testing.T) {
				t.Parallel()
				h := newHistory(0)
				tallies[w].verdicts = map[haven.Verdict]int{}
				for seed := w; seed < n && !t.Failed(); seed += workers {
					compareOne(t, h, uint64(seed), &tallies[w])
				}
			})
		}
	})
	total := tally{verdicts: map[haven.Verdict]int{}}
	for _, c := range tallies {
		total.add(c)
	}
	total.check(t, n)
	t.Logf("%d histories, %d steps, %d judgements compared in %s: %+v", total.histories, total.steps, total.judgements, time.Since(begun).Round(time.Millisecond), total)
}

// compareElsewhere builds this package's tests without the race detector and
// lets them compare all the histories.
func compareElsewhere(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "detector.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the tests without the race detector: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), binary, "-test.v", "-test.run=^TestDumbTwinAgrees$", fmt.Sprintf("-histories=%d", *histories)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	said := regexp.MustCompile(`(\d+) histories, .*`).FindStringSubmatch(string(out))
	if said == nil || said[1] != fmt.Sprint(*histories) {
		t.Fatalf("it did not compare %d histories:\n%s", *histories, out)
	}
	t.Log(said[0])
}

// tally counts what the histories came to.
type tally struct {
	histories, steps, judgements   int
	fences, proofs, stuck, flaps   int // judgements
	massHeld, ended, contradictory int
	verdicts                       map[haven.Verdict]int
}

func (a *tally) add(b tally) {
	a.histories, a.steps, a.judgements = a.histories+b.histories, a.steps+b.steps, a.judgements+b.judgements
	a.fences, a.proofs, a.stuck, a.flaps = a.fences+b.fences, a.proofs+b.proofs, a.stuck+b.stuck, a.flaps+b.flaps
	a.massHeld, a.ended, a.contradictory = a.massHeld+b.massHeld, a.ended+b.ended, a.contradictory+b.contradictory
	for v, n := range b.verdicts {
		a.verdicts[v] += n
	}
}

func (a *tally) count(out *Output) {
	a.steps++
	a.ended += len(out.Ended)
	for i := range out.Hosts {
		j := &out.Hosts[i]
		a.judgements++
		a.verdicts[j.Verdict]++
		for _, c := range [...]struct {
			is bool
			n  *int
		}{
			{j.MayFence(), &a.fences},
			{j.PowerOff, &a.proofs},
			{j.Verdict == haven.VerdictFailed && len(j.Missing) > 0, &a.stuck},
			{j.Flapping, &a.flaps},
			{j.Hold.Reason == haven.HoldMassFailure, &a.massHeld},
			{j.Hold.Reason == haven.HoldContradiction, &a.contradictory},
		} {
			if c.is {
				*c.n++
			}
		}
	}
}

// check complains of what was reached too rarely for n histories.
func (a *tally) check(t *testing.T, n int) {
	t.Helper()
	for _, v := range []haven.Verdict{
		haven.VerdictUnknown, haven.VerdictHealthy, haven.VerdictSuspect, haven.VerdictStorageLost, haven.VerdictStopped,
		haven.VerdictShutdown, haven.VerdictIsolated, haven.VerdictPartitioned, haven.VerdictAgentDown, haven.VerdictUnreachable, haven.VerdictFailed, haven.VerdictDead,
	} {
		if a.verdicts[v] < n/10 {
			t.Errorf("verdict %s was reached only %d times", v, a.verdicts[v])
		}
	}
	for what, k := range map[string]int{
		"permissions to fence": a.fences, "proofs": a.proofs, "verdicts of failed that only stood": a.stuck, "quarantines": a.flaps,
		"hosts held by the mass-failure brake": a.massHeld, "holds that ended": a.ended, "contradictions": a.contradictory,
	} {
		if k < n/20 {
			t.Errorf("only %d %s", k, what)
		}
	}
}

// compareOne compares the two on the history of one seed.
func compareOne(t *testing.T, h *history, seed uint64, c *tally) {
	t.Helper()
	h.begin(seed)
	m, err := New(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	d := newDumb(h.cfg)
	c.histories++
	var hist []rec
	for range 20 + h.r.IntN(11) {
		r := h.next()
		hist = append(hist, r)
		out := m.Step(r.now, r.in)
		c.count(&out)
		if complaint := d.disagrees(r, &out); complaint != "" {
			short := shrink(h.cfg, hist)
			record, _ := json.MarshalIndent(short, "", " ")
			t.Fatalf("seed %d: %s\nconfiguration %+v\nthe shortest history that still does so, %d of %d steps:\n%s", seed, complaint, h.cfg, len(short), len(hist), record)
		}
	}
}

// shrink leaves out of a history on which the two disagree whatever it can.
func shrink(cfg Config, hist []rec) []rec {
	fails := func(hist []rec) bool {
		m, _ := New(cfg)
		d := newDumb(cfg)
		for _, r := range hist {
			out := m.Step(r.now, r.in)
			if d.disagrees(r, &out) != "" {
				return true
			}
		}
		return false
	}
	for smaller := true; smaller; {
		smaller = false
		for k := range slices.Backward(hist) {
			if try := slices.Delete(slices.Clone(hist), k, k+1); fails(try) {
				hist, smaller = try, true
			}
		}
	}
	for k := range hist {
		for what := range 6 {
			for i := range slices.Backward(hist[k].in.Hosts) {
				for at := 0; ; {
					try := slices.Clone(hist)
					try[k].in = cloneInput(try[k].in)
					if !leaveOut(&try[k].in, i, what, at) {
						break
					}
					if fails(try) {
						hist = try
					} else {
						at++
					}
				}
			}
		}
	}
	return hist
}

// leaveOut takes one thing out of an input, if there is one at that place.
func leaveOut(in *Input, host, what, at int) bool {
	if host >= len(in.Hosts) {
		return false
	}
	h := &in.Hosts[host]
	switch {
	case what == 0 && at == 0 && h.ID != in.Self.Host:
		in.Hosts = slices.Delete(in.Hosts, host, host+1)
	case what == 1 && at < len(h.Probes):
		h.Probes = slices.Delete(h.Probes, at, at+1)
	case what == 2 && at < len(h.Beats):
		h.Beats = slices.Delete(h.Beats, at, at+1)
	case what == 3 && at < len(h.Power):
		h.Power = slices.Delete(h.Power, at, at+1)
	case what == 4 && at < len(h.Disks):
		h.Disks = slices.Delete(h.Disks, at, at+1)
	case what == 5 && host == 0 && at < len(in.Observers):
		in.Observers = slices.Delete(in.Observers, at, at+1)
	default:
		return false
	}
	return true
}

// weaken takes something from the evidence about the host at index i in one
// step: it adds a sign of life, or turns a value that speaks for action into
// unknown.
func weaken(r *rand.Rand, now time.Duration, in *Input, i int) string {
	h := &in.Hosts[i]
	switch r.IntN(14) {
	case 0:
		h.Report = Report{Heard: true, At: now, Boot: h.Boot, Expected: h.Report.Expected}
		return "a report"
	case 1, 2, 3:
		kind := []haven.EvidenceKind{haven.EvidenceProbeAgent, haven.EvidenceProbeHelper, haven.EvidenceProbeTCP}[r.IntN(3)]
		h.Probes = append(h.Probes, Probe{Observer: "c", Kind: kind, Result: haven.Yes, Started: now, Finished: now})
		return "an answer to " + string(kind)
	case 4:
		h.Beats = append(h.Beats, Beat{Store: "s0", Reader: "c", Writer: Writer(r.IntN(2)), ReadAt: now, Changed: true, ChangedAt: now, Moving: haven.Yes, Boot: h.Boot})
		return "a moving beat"
	case 5:
		h.Disks = append(h.Disks, Disk{Observer: "c", At: now, Active: haven.Yes})
		return "an active disk"
	case 6:
		h.Gossip = Gossip{State: GossipAlive, Since: now}
		return "a return in gossip"
	case 7:
		for k := range in.Observers {
			in.Observers[k].Majority = haven.Unknown
		}
		return "no known majority"
	case 8:
		for k := range in.Observers {
			in.Observers[k].LoopOK = haven.Unknown
		}
		return "loops of unknown lag"
	case 9:
		for k := range h.Probes {
			if h.Probes[k].Result == haven.No && r.IntN(2) == 0 {
				h.Probes[k].Result = haven.Unknown
			}
		}
		return "failed probes unknown"
	case 10:
		for k := range h.Beats {
			if h.Beats[k].Moving == haven.No && r.IntN(2) == 0 {
				h.Beats[k].Moving = haven.Unknown
			}
		}
		return "stale beats unknown"
	case 11:
		for k := range h.Disks {
			if h.Disks[k].Active == haven.No {
				h.Disks[k].Active = haven.Unknown
			}
		}
		return "idle disks unknown"
	case 12:
		for k := range h.Power {
			if h.Power[k].State == haven.PowerOff && r.IntN(2) == 0 {
				h.Power[k].State = haven.PowerUnknown
			}
		}
		return "offs unknown"
	}
	for k := range h.Power {
		h.Power[k].Trusted = false
	}
	return "a BMC that is not trusted"
}

// actionable ranks judgements by what may follow from them.
func actionable(j *Judgement) int {
	n := 0
	if j.Verdict == haven.VerdictFailed {
		n = 1
	}
	if j.MayFence() {
		n = 2
	}
	if j.Proved() || j.PowerOff {
		n = 3
	}
	return n
}

// TestWeakerEvidenceNeverActsSooner takes a random step of a random history,
// weakens its evidence about one host, and checks that this host's judgement is
// not closer to action than without (P5), and that a sign of life keeps it from
// being failed for the whole window after it (P4). A host the BMC proved dead
// may fall back to failed, so ranks above 0 are compared only with 0.
func TestWeakerEvidenceNeverActsSooner(t *testing.T) {
	n := 20_000
	if testing.Short() || raceEnabled {
		n = 300
	}
	acted := 0
	for seed := range uint64(n) {
		h := newHistory(seed + 1<<40)
		hist := make([]rec, 18+h.r.IntN(8))
		for k := range hist {
			hist[k] = h.next()
		}
		cut := 8 + h.r.IntN(len(hist)-8)
		whole, _ := New(h.cfg)
		weak, _ := New(h.cfg)
		var a, b Output
		what := ""
		for k := range cut + 1 {
			a = whole.Step(hist[k].now, hist[k].in)
			in := hist[k].in
			if k == cut {
				in = cloneInput(in)
				what = weaken(h.r, hist[k].now, &in, 3)
			}
			b = weak.Step(hist[k].now, in)
		}
		before, after := actionable(&a.Hosts[3]), actionable(&b.Hosts[3])
		if before > 0 {
			acted++
		}
		if hist[cut].in.Hosts[3].Proved {
			continue // The ledger's proof is not the evidence weakened here.
		}
		if before == 0 && after > 0 || before < 3 && after > before {
			t.Fatalf("seed %d step %d: %s made %s (%d) into %s (%d): %s", seed, cut, what, a.Hosts[3].Verdict, before, b.Hosts[3].Verdict, after, b.Hosts[3].Why)
		}
	}
	if acted < n/50 {
		t.Errorf("only %d of %d histories were actionable when they were weakened", acted, n)
	}
}

func cloneInput(in Input) Input {
	in.Observers, in.Hosts = slices.Clone(in.Observers), slices.Clone(in.Hosts)
	for i := range in.Hosts {
		h := &in.Hosts[i]
		h.Probes, h.Beats, h.Disks, h.Power = slices.Clone(h.Probes), slices.Clone(h.Beats), slices.Clone(h.Disks), slices.Clone(h.Power)
	}
	return in
}

// TestNoLiveHostIsCondemned lets faults of every kind hit a cluster whose BMCs
// do not lie, and checks against the truth: a proof only about a host without
// power, a fence only for one that has not been able to show life (P2, P4, P6).
func TestNoLiveHostIsCondemned(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Normal()
		cfg.StartupGrace = 0
		w := newWorld(cfg, "a", "a", "b", "c", "d", "e")
		w.stores = []*worldStore{{name: "nfs1", hung: map[haven.HostID]bool{}}}
		w.m, _ = New(cfg)
		w.run(t, 15*time.Second, nil)
		shows := map[haven.HostID]time.Duration{}
		for range rapid.IntRange(1, 10).Draw(t, "faults") {
			fault(t, w)
			w.run(t, time.Duration(rapid.IntRange(1, 150).Draw(t, "ticks"))*tick, shows)
		}
		checkDumb(t, cfg, w.trace)
	})
}

// fault breaks or heals something of one host, or the store.
func fault(t *rapid.T, w *world) {
	h := w.hosts[rapid.IntRange(1, 4).Draw(t, "host")]
	s := w.stores[0]
	switch rapid.SampledFrom([]string{
		"power-off", "hang", "resume", "kill-agent", "kill-helper", "cut", "heal", "mute", "unmute",
		"start", "hang-store", "free-store", "hang-store-host", "bmc-dead", "bmc-back", "boot", "idle",
	}).Draw(t, "fault") {
	case "power-off":
		h.power, h.agent, h.helper = false, false, false
	case "boot":
		if !h.power {
			h.power, h.boot, h.agent, h.helper = true, h.boot+1, true, true
		}
	case "hang":
		h.hung = true
	case "resume":
		h.hung = false
	case "kill-agent":
		h.agent = false
	case "kill-helper":
		h.helper = false
	case "start":
		h.agent, h.helper = h.power, h.power
	case "cut":
		h.group = int(h.id[0])
	case "heal":
		h.group = 0
	case "mute":
		h.mute = true
	case "unmute":
		h.mute = false
	case "hang-store":
		s.hung[""] = true
	case "free-store":
		clear(s.hung)
	case "hang-store-host":
		s.hung[h.id] = true
	case "bmc-dead":
		h.bmc = "dead"
	case "bmc-back":
		h.bmc = ""
	case "idle":
		h.writing = false
	}
}

// run moves the world and compares each judgement with the truth. shows keeps
// since when each host has been able to show life without a break.
func (w *world) run(t *rapid.T, d time.Duration, shows map[haven.HostID]time.Duration) {
	for end := w.now + d; w.now < end; {
		w.step()
		for i, h := range w.hosts {
			j := &w.out.Hosts[i]
			if j.PowerOff && h.power && h.boot == h.known {
				t.Fatalf("%v: power off of %s is proved, and it is on", w.now, h.id)
			}
			able := h.runs() && (h.agent || h.helper) && (h.group == 0 || w.stores[0].works(h.id))
			if !able {
				delete(shows, h.id)
			} else if _, ok := shows[h.id]; !ok && shows != nil {
				shows[h.id] = w.now
			}
			// It needs up to a beat, or a round with its probes, to be seen.
			if since, ok := shows[h.id]; ok && j.MayFence() && w.now-since > 2500*time.Millisecond {
				t.Fatalf("%v: %s may be fenced, and has been able to show life since %v: %s", w.now, h.id, since, j.Why)
			}
		}
	}
}

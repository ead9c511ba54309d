package detector

import (
	"fmt"
	"math/rand/v2"
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
	r     *rand.Rand
	cfg   Config
	noise float64
	now   time.Duration
	dies  map[haven.HostID]time.Duration
	lives map[haven.HostID]string // what goes on living after that
	off   map[haven.HostID]bool
	power map[haven.HostID][]PowerReading
	probe map[haven.HostID][]Probe
}

func newHistory(seed uint64) *history {
	h := &history{
		r: rand.New(rand.NewPCG(seed, 1)), cfg: coarse(), dies: map[haven.HostID]time.Duration{}, lives: map[haven.HostID]string{},
		off: map[haven.HostID]bool{}, power: map[haven.HostID][]PowerReading{}, probe: map[haven.HostID][]Probe{},
	}
	h.noise = []float64{0, 0, 0.002, 0.01, 0.05, 0.5}[h.r.IntN(6)]
	h.cfg.Stores = h.r.IntN(3)
	h.cfg.FenceWithoutStore = h.r.IntN(3) == 0
	h.cfg.WaitForGossip = h.r.IntN(2) == 0
	if h.r.IntN(5) == 0 {
		h.cfg.StartupGrace = time.Duration(h.r.IntN(4)) * time.Second
	}
	for _, id := range []haven.HostID{"b", "c", "d"} {
		h.dies[id] = time.Hour
		if id == "d" || h.r.IntN(8) == 0 {
			h.dies[id] = time.Duration(h.r.IntN(1500)) * time.Millisecond
		}
		h.lives[id] = []string{"", "", "", "agent-beat", "helper", "disk", "stopped", "shutdown", "report"}[h.r.IntN(9)]
		h.off[id] = h.r.IntN(2) == 0
	}
	return h
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
	for _, id := range []haven.HostID{"a", "b", "c", "d"} {
		in.Hosts = append(in.Hosts, h.host(id))
		if id == "a" || h.now < h.dies[id] || h.odd() {
			in.Observers = append(in.Observers, h.observer(id))
		}
	}
	return rec{h.now, in}
}

func (h *history) stores() []string { return []string{"s0", "s1"}[:h.cfg.Stores] }

func (h *history) observer(id haven.HostID) Observer {
	o := Observer{Host: id, At: h.at(h.now), Majority: h.tri(haven.Yes), LoopOK: h.tri(haven.Yes)}
	for _, s := range h.stores() {
		if !h.odd() {
			o.Stores = append(o.Stores, StoreView{Store: s, OwnBack: h.tri(haven.Yes), Others: h.tri(haven.Yes), Hung: h.odd()})
		}
	}
	return o
}

func (h *history) host(id haven.HostID) Host {
	alive := id == "a" || h.now < h.dies[id]
	how := ""
	seen := h.now
	if !alive {
		how, seen = h.lives[id], h.dies[id]
	}
	e := Host{ID: id, Configured: !h.odd(), Role: haven.RoleHypervisor, Boot: "x", Storeless: h.odd(), Maintenance: h.odd()}
	if h.odd() {
		e.Proved = h.odd()
	}
	if h.odd() {
		e.Role, e.Boot = haven.RoleWitness, ""
	}
	e.Report = Report{Heard: !h.odd(), At: h.at(seen), Boot: "x", Expected: h.odd()}
	if how == "report" {
		e.Report.At = h.now
	}
	e.Gossip = Gossip{State: GossipAlive}
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
	for _, s := range h.stores() {
		for _, reader := range []haven.HostID{"a", "b"} {
			e.Beats = append(e.Beats, h.beat(s, reader, WriterAgent, seen, alive || how == "agent-beat"),
				h.beat(s, reader, WriterHelper, seen, alive || how == "helper" || how == "stopped"))
		}
	}
	d := Disk{Observer: "b", At: h.at(h.now), Active: haven.Unknown}
	switch {
	case alive || how == "disk":
		d.Active = haven.Yes
	case h.now-seen > time.Second:
		d.Active = haven.No
	}
	d.Active = h.tri(d.Active)
	if h.r.IntN(4) == 0 {
		d.Quiet = time.Duration(h.r.IntN(12000)-1000) * time.Millisecond
	}
	e.Disks = append(e.Disks, d)
	if !alive || h.odd() {
		h.ask(id, how)
	}
	e.Probes, e.Power = slices.Clone(h.probe[id]), slices.Clone(h.power[id])
	return e
}

func (h *history) beat(store string, reader haven.HostID, w Writer, seen time.Duration, moves bool) Beat {
	b := Beat{
		Store: store, Reader: reader, Writer: w, ReadAt: h.at(h.now), Changed: !h.odd(), ChangedAt: h.at(h.now), Boot: "x",
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
	for _, kind := range []haven.EvidenceKind{haven.EvidenceProbeAgent, haven.EvidenceProbeHelper, haven.EvidenceProbeTCP} {
		for _, by := range []haven.HostID{"a", "b", "c"} {
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
			Started: h.at(h.now - 50*time.Millisecond), Finished: h.at(h.now), Trusted: !h.odd(), GUID: h.tri(haven.Yes),
		})
	}
	h.probe[id] = h.probe[id][max(0, len(h.probe[id])-24):]
	h.power[id] = h.power[id][max(0, len(h.power[id])-6):]
}

// TestDumbTwinAgrees compares the machine with the dumb one on 100 000 random
// histories of evidence (P2, P4, P5, P6). It also counts the verdicts, so that
// the comparison cannot become empty.
func TestDumbTwinAgrees(t *testing.T) {
	const histories, parts = 100_000, 8
	n := histories / parts
	if testing.Short() || raceEnabled {
		n = 200
	}
	counts := make([]map[haven.Verdict]int, parts)
	t.Run("part", func(t *testing.T) {
		for p := range parts {
			t.Run(fmt.Sprint(p), func(t *testing.T) {
				t.Parallel()
				counts[p] = map[haven.Verdict]int{}
				for i := range n {
					compareOne(t, uint64(p*histories+i), counts[p])
				}
			})
		}
	})
	total := map[haven.Verdict]int{}
	for _, c := range counts {
		for v, k := range c {
			total[v] += k
		}
	}
	for _, v := range []haven.Verdict{
		haven.VerdictUnknown, haven.VerdictHealthy, haven.VerdictSuspect, haven.VerdictStorageLost, haven.VerdictStopped,
		haven.VerdictShutdown, haven.VerdictIsolated, haven.VerdictPartitioned, haven.VerdictAgentDown, haven.VerdictUnreachable, haven.VerdictFailed, haven.VerdictDead,
	} {
		if total[v] < n/10 {
			t.Errorf("verdict %s was reached only %d times", v, total[v])
		}
	}
	t.Logf("judgements: %v", total)
}

func compareOne(t *testing.T, seed uint64, counts map[haven.Verdict]int) {
	t.Helper()
	h := newHistory(seed)
	hist := make([]rec, 10+h.r.IntN(11))
	for k := range hist {
		hist[k] = h.next()
	}
	m, err := New(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	outs := make([]Output, len(hist))
	for k, r := range hist {
		outs[k] = m.Step(r.now, r.in)
		for i := range outs[k].Hosts {
			counts[outs[k].Hosts[i].Verdict]++
		}
	}
	checkDumb(seeded{t, seed}, h.cfg, hist, outs)
}

// seeded names the seed of a history that fails.
type seeded struct {
	*testing.T
	seed uint64
}

func (s seeded) Fatalf(format string, args ...any) {
	s.Helper()
	s.T.Fatalf("seed %d: %s", s.seed, fmt.Sprintf(format, args...))
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
		checkDumb(t, cfg, w.trace, nil)
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

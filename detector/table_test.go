package detector

import (
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

// testWorld is a cluster of five with one store, 20 s old, with an old BMC word.
func testWorld(t testing.TB, change func(*world)) *world {
	cfg := Normal()
	cfg.StartupGrace = 0
	w := newWorld(cfg, "a", "a", "b", "c", "d", "e")
	w.stores = []*worldStore{{name: "nfs1", hung: map[haven.HostID]bool{}}}
	if change != nil {
		change(w)
	}
	m, err := New(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.m = m
	w.pass(20 * time.Second)
	return w
}

func (w *world) pass(d time.Duration) {
	for end := w.now + d; w.now < end; {
		w.step()
	}
}

func (w *world) judgement(id haven.HostID) *Judgement {
	for i := range w.out.Hosts {
		if w.out.Hosts[i].Host == id {
			return &w.out.Hosts[i]
		}
	}
	return nil
}

// TestVerdictTable has a case for every row of the verdict table, in its order,
// and for what the row leaves open (P2, P4, P5, P6).
func TestVerdictTable(t *testing.T) {
	agentDead := func(_ *world, c *worldHost) { c.agent = false }
	hang := func(_ *world, c *worldHost) { c.hung = true }
	for _, tc := range []struct {
		name    string
		happens func(w *world, c *worldHost)
		tamper  func(c *Host)
		verdict haven.Verdict
		hold    string
		why     string
	}{
		{name: "1 alive, moves: healthy", verdict: haven.VerdictHealthy},
		{name: "2 alive, stale: storage-lost", happens: func(w *world, c *worldHost) { w.stores[0].hung[c.id] = true }, verdict: haven.VerdictStorageLost},
		{name: "3 left, said so: stopped", happens: func(w *world, c *worldHost) { (&player{w: w}).leave(c, "stop") }, verdict: haven.VerdictStopped},
		{name: "4 left, host shutting down: shutdown", happens: func(w *world, c *worldHost) { (&player{w: w}).leave(c, "shutdown") }, verdict: haven.VerdictShutdown},
		{name: "5 dead, moves and isolated: isolated", happens: func(_ *world, c *worldHost) { c.group, c.isolated = 7, true }, verdict: haven.VerdictIsolated},
		{name: "6 dead, moves and sees others: partitioned", happens: func(_ *world, c *worldHost) { c.group = 7 }, verdict: haven.VerdictPartitioned, why: "sees others"},
		{name: "7 dead, stale, helper alive, on: agent-down", happens: agentDead, verdict: haven.VerdictAgentDown},
		{name: "7 dead, stale, helper alive, BMC unknown: agent-down", happens: func(_ *world, c *worldHost) { c.agent, c.bmc = false, "dead" }, verdict: haven.VerdictAgentDown},
		{name: "7 helper alive by beat alone", happens: func(_ *world, c *worldHost) { c.agent, c.group = false, 7 }, verdict: haven.VerdictAgentDown},
		{name: "7 helper alive by network alone", happens: func(w *world, c *worldHost) { c.agent = false; w.stores[0].hung[c.id] = true }, verdict: haven.VerdictAgentDown},
		{name: "7 network stack alive alone", happens: func(_ *world, c *worldHost) { c.agent, c.helper = false, false }, verdict: haven.VerdictAgentDown},
		{name: "8 dead, stale, helper dead, disk active, on: unreachable", happens: func(_ *world, c *worldHost) { c.agent, c.helper, c.group = false, false, 7 }, verdict: haven.VerdictUnreachable},
		{name: "8 the same, BMC unknown: unreachable", happens: func(_ *world, c *worldHost) { c.agent, c.helper, c.group, c.bmc = false, false, 7, "dead" }, verdict: haven.VerdictUnreachable},
		{name: "9 silent, off: dead", happens: func(_ *world, c *worldHost) { c.power = false }, verdict: haven.VerdictDead},
		{name: "9 off, beat moves: contradiction", happens: func(_ *world, c *worldHost) { c.group, c.bmc = 7, "off" }, verdict: haven.VerdictPartitioned, hold: haven.HoldContradiction},
		{name: "9 off, helper's beat moves: contradiction", happens: func(_ *world, c *worldHost) { c.agent, c.group, c.bmc = false, 7, "off" }, verdict: haven.VerdictAgentDown, hold: haven.HoldContradiction},
		{
			name: "10 dead, stale, helper dead, disk idle, on: failed", happens: hang, verdict: haven.VerdictFailed, why: "power on",
			tamper: func(c *Host) { setDisks(c, haven.No) },
		},
		{
			name: "10 the same, disk unknown: failed", happens: hang, verdict: haven.VerdictFailed, why: "power on",
			tamper: func(c *Host) { setDisks(c, haven.Unknown) },
		},
		{name: "11 the same, BMC unknown: failed, proof missing", happens: func(_ *world, c *worldHost) { c.hung, c.bmc = true, "dead" }, verdict: haven.VerdictFailed, why: "proof missing"},
		{
			name: "11 the same, disk idle: failed, proof missing", happens: func(_ *world, c *worldHost) { c.hung, c.bmc = true, "dead" }, verdict: haven.VerdictFailed, why: "proof missing",
			tamper: func(c *Host) { setDisks(c, haven.No) },
		},
		{name: "12 dead, beat unknown, stores dead: unknown, storage outage", happens: func(w *world, c *worldHost) { c.hung = true; w.stores[0].hung[""] = true }, verdict: haven.VerdictUnknown, hold: haven.HoldStorageOutage},
		{
			name: "12 dead, beat unknown, store alive: unknown", happens: hang, verdict: haven.VerdictUnknown,
			tamper: func(c *Host) {
				for i := range c.Beats {
					c.Beats[i].Moving = haven.Unknown
				}
			},
		},
		{name: "13 observer in a minority: unknown", happens: func(w *world, _ *worldHost) { w.host("a").group = 7 }, verdict: haven.VerdictUnknown, hold: haven.HoldObserver},
		{name: "13 observer lags: unknown", happens: func(w *world, _ *worldHost) { w.lag = true }, verdict: haven.VerdictUnknown, hold: haven.HoldObserver},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := testWorld(t, nil)
			if tc.tamper != nil {
				w.tamper = func(in *Input) { tc.tamper(&in.Hosts[2]) }
			}
			if tc.happens != nil {
				tc.happens(w, w.host("c"))
			}
			w.pass(15 * time.Second)
			j := w.judgement("c")
			if j.Verdict != tc.verdict || j.Hold.Reason != tc.hold || !strings.Contains(j.Why, tc.why) {
				t.Errorf("%s held %q: %s (missing %v); want %s held %q: %s", j.Verdict, j.Hold.Reason, j.Why, j.Missing, tc.verdict, tc.hold, tc.why)
			}
			if j.Why == "" || j.Verdict != haven.VerdictHealthy && len(j.Evidence) == 0 {
				t.Errorf("verdict without a reason or evidence (P9): %+v", j)
			}
			if j.MayFence() != (tc.verdict == haven.VerdictFailed) {
				t.Errorf("may be fenced: %t", j.MayFence())
			}
			checkDumb(t, w.cfg, w.trace)
		})
	}
}

func setDisks(h *Host, t haven.Tri) {
	for i := range h.Disks {
		h.Disks[i].Active = t
	}
}

// TestFailedNeedsEverything takes one ingredient of failed at a time from a host
// that hangs: none may be missing (P5, P6).
func TestFailedNeedsEverything(t *testing.T) {
	probes := func(kind haven.EvidenceKind, by haven.HostID, r haven.Tri) func(*Input) {
		return func(in *Input) {
			for i := range in.Hosts[2].Probes {
				if p := &in.Hosts[2].Probes[i]; p.Kind == kind && (by == "" || p.Observer == by) {
					p.Result = r
				}
			}
		}
	}
	beats := func(w Writer, change func(*Beat)) func(*Input) {
		return func(in *Input) {
			for i := range in.Hosts[2].Beats {
				if b := &in.Hosts[2].Beats[i]; b.Writer == w {
					change(b)
				}
			}
		}
	}
	observers := func(change func(*Observer)) func(*Input) {
		return func(in *Input) {
			for i := range in.Observers {
				change(&in.Observers[i])
			}
		}
	}
	views := func(change func(*StoreView)) func(*Input) {
		return observers(func(o *Observer) {
			for i := range o.Stores {
				change(&o.Stores[i])
			}
		})
	}
	for name, tamper := range map[string]func(*Input){
		"nobody was asked":               func(in *Input) { in.Hosts[2].Probes = nil },
		"no neighbour told":              probes(haven.EvidenceProbeAgent, "", haven.Unknown),
		"one neighbour did not tell":     probes(haven.EvidenceProbeAgent, "b", haven.Unknown),
		"one neighbour gets an answer":   probes(haven.EvidenceProbeAgent, "d", haven.Yes),
		"helper: no neighbour told":      probes(haven.EvidenceProbeHelper, "", haven.Unknown),
		"helper answers":                 probes(haven.EvidenceProbeHelper, "e", haven.Yes),
		"network stack answers":          probes(haven.EvidenceProbeTCP, "e", haven.Yes),
		"this agent alone probed":        func(in *Input) { renameObservers(&in.Hosts[2], "a") },
		"the host probed itself":         func(in *Input) { renameObservers(&in.Hosts[2], "c") },
		"a stranger probed":              func(in *Input) { renameObservers(&in.Hosts[2], "x") },
		"agent beat unknown":             beats(WriterAgent, func(b *Beat) { b.Moving = haven.Unknown }),
		"agent beat never written":       beats(WriterAgent, func(b *Beat) { b.Absent = true }),
		"agent beat read long ago":       beats(WriterAgent, func(b *Beat) { b.ReadAt -= 5 * time.Second }),
		"agent beat young":               func(in *Input) { youngBeats(in) },
		"helper beat unknown":            beats(WriterHelper, func(b *Beat) { b.Moving = haven.Unknown }),
		"helper beat moves":              beats(WriterHelper, func(b *Beat) { b.Moving = haven.Yes }),
		"no beat was read":               func(in *Input) { in.Hosts[2].Beats = nil },
		"its beats read by itself alone": func(in *Input) { readItself(in) },
		"disk active":                    func(in *Input) { setDisks(&in.Hosts[2], haven.Yes) },
		"gossip holds it for alive":      func(in *Input) { in.Hosts[2].Gossip = Gossip{State: GossipAlive} },
		"it never registered":            func(in *Input) { in.Hosts[2].Boot = "" },
		"not configured":                 func(in *Input) { in.Hosts[2].Configured = false },
		"majority unknown":               observers(func(o *Observer) { o.Majority = haven.Unknown }),
		"loop unknown":                   observers(func(o *Observer) { o.LoopOK = haven.Unknown }),
		"no observer says anything":      func(in *Input) { in.Observers = nil },
		"observers said it long ago":     observers(func(o *Observer) { o.At -= 5 * time.Second }),
		"own beats unread":               views(func(v *StoreView) { v.OwnBack = haven.Unknown }),
		"nobody else's beat moves":       views(func(v *StoreView) { v.Others = haven.No }),
		"others' beats unknown":          views(func(v *StoreView) { v.Others = haven.Unknown }),
		"stores hang":                    views(func(v *StoreView) { v.Hung = true }),
		"start-up grace":                 func(in *Input) { in.Self.Started = 30 * time.Second },
		"cold start":                     func(in *Input) { in.Self.ColdStart, in.Self.ColdStarted = true, 30*time.Second },
		"a fresh report":                 func(in *Input) { in.Hosts[2].Report.At = in.Hosts[1].Report.At },
	} {
		t.Run(name, func(t *testing.T) {
			w := testWorld(t, func(w *world) { w.cfg.StartupGrace = 20 * time.Second })
			w.tamper = tamper
			w.host("c").hung = true
			for range 250 {
				w.step()
				if j := w.judgement("c"); j.Verdict.Actionable() || j.MayFence() {
					t.Fatalf("at %v: %s: %s", w.now, j.Verdict, j.Why)
				}
			}
			checkDumb(t, w.cfg, w.trace)
		})
	}
	t.Run("nothing missing", func(t *testing.T) {
		w := testWorld(t, func(w *world) { w.cfg.StartupGrace = 20 * time.Second })
		w.host("c").hung = true
		w.pass(15 * time.Second)
		if j := w.judgement("c"); !j.MayFence() {
			t.Fatalf("%s: %s, missing %v", j.Verdict, j.Why, j.Missing)
		}
	})
}

func renameObservers(h *Host, to haven.HostID) {
	for i := range h.Probes {
		h.Probes[i].Observer = to
	}
}

func youngBeats(in *Input) {
	for i := range in.Hosts[2].Beats {
		b := &in.Hosts[2].Beats[i]
		b.ChangedAt = max(b.ChangedAt, b.ReadAt-3*time.Second)
	}
}

// TestProofNeedsEverything does the same for a proof by the BMC (P2).
func TestProofNeedsEverything(t *testing.T) {
	readings := func(change func(i int, r *PowerReading)) func(*Input) {
		return func(in *Input) {
			for i := range in.Hosts[2].Power {
				change(i, &in.Hosts[2].Power[i])
			}
		}
	}
	for name, tamper := range map[string]func(*Input){
		"no reading":                           func(in *Input) { in.Hosts[2].Power = nil },
		"one reading":                          func(in *Input) { in.Hosts[2].Power = in.Hosts[2].Power[:min(1, len(in.Hosts[2].Power))] },
		"one session":                          readings(func(_ int, r *PowerReading) { r.Session = 1 }),
		"too close":                            readings(func(_ int, r *PowerReading) { r.Started, r.Finished = 21*time.Second, 21*time.Second }),
		"each of another device":               readings(func(i int, r *PowerReading) { r.Device = string(rune('a' + i)) }),
		"not trusted":                          readings(func(_ int, r *PowerReading) { r.Trusted = false }),
		"another host's GUID":                  readings(func(_ int, r *PowerReading) { r.GUID = haven.No }),
		"old":                                  readings(func(_ int, r *PowerReading) { r.Started -= 11 * time.Second }),
		"from before the last life":            readings(func(_ int, r *PowerReading) { r.Started = 19 * time.Second }),
		"on at last":                           func(in *Input) { lastReadingOn(in) },
		"unknown":                              readings(func(_ int, r *PowerReading) { r.State = haven.PowerUnknown }),
		"nobody was asked":                     func(in *Input) { in.Hosts[2].Probes = nil },
		"asked before the first off":           func(in *Input) { probesStarted(in, 20*time.Second) },
		"a neighbour did not tell":             func(in *Input) { probeResult(in, "d", haven.Unknown) },
		"a neighbour gets an answer":           func(in *Input) { probeResult(in, "d", haven.Yes) },
		"a beat of an interval ago":            func(in *Input) { beatsChanged(in, WriterAgent, time.Second) },
		"a helper's of an interval":            func(in *Input) { beatsChanged(in, WriterHelper, time.Second) },
		"no beat was read":                     func(in *Input) { in.Hosts[2].Beats = nil },
		"a beat younger than its own interval": func(in *Input) { slowBeats(in) },
		"a fresh report":                       func(in *Input) { in.Hosts[2].Report.At = in.Hosts[1].Report.At },
		"it never registered":                  func(in *Input) { in.Hosts[2].Boot = "" },
		"observer in a minority":               func(in *Input) { in.Observers[0].Majority = haven.No },
		"start-up grace":                       func(in *Input) { in.Self.Started = 30 * time.Second },
		"no store works, GUID unknown":         func(in *Input) { noStoreNoGUID(in) },
	} {
		t.Run(name, func(t *testing.T) {
			w := testWorld(t, func(w *world) { w.cfg.StartupGrace = 20 * time.Second })
			w.tamper = tamper
			w.host("c").power = false
			for range 100 {
				w.step()
				if j := w.judgement("c"); j.PowerOff || j.Proved() {
					t.Fatalf("at %v: %s: %s", w.now, j.Verdict, j.Why)
				}
			}
			checkDumb(t, w.cfg, w.trace)
		})
	}
	t.Run("nothing missing", func(t *testing.T) {
		w := testWorld(t, func(w *world) { w.cfg.StartupGrace = 20 * time.Second })
		w.host("c").power = false
		w.pass(3 * time.Second)
		if j := w.judgement("c"); !j.PowerOff || !j.Proved() {
			t.Fatalf("%s: %s, missing %v", j.Verdict, j.Why, j.Missing)
		}
	})
}

// readItself lets the suspect's own last words vouch for its own beats.
func readItself(in *Input) {
	o := in.Observers[1]
	o.Host, o.At = "c", in.Observers[0].At
	in.Observers = append(in.Observers, o)
	for i := range in.Hosts[2].Beats {
		in.Hosts[2].Beats[i].Reader = "c"
	}
}

// slowBeats makes the host one that beats every four seconds only.
func slowBeats(in *Input) {
	for i := range in.Hosts[2].Beats {
		b := &in.Hosts[2].Beats[i]
		b.Interval, b.ChangedAt = 4*time.Second, max(b.ChangedAt, b.ReadAt-4900*time.Millisecond)
	}
}

func lastReadingOn(in *Input) {
	if p := in.Hosts[2].Power; len(p) > 0 {
		p[len(p)-1].State = haven.PowerOn
	}
}

func probesStarted(in *Input, at time.Duration) {
	for i := range in.Hosts[2].Probes {
		in.Hosts[2].Probes[i].Started = at
	}
}

func probeResult(in *Input, by haven.HostID, r haven.Tri) {
	for i := range in.Hosts[2].Probes {
		if p := &in.Hosts[2].Probes[i]; p.Observer == by {
			p.Result = r
		}
	}
}

func beatsChanged(in *Input, w Writer, ago time.Duration) {
	for i := range in.Hosts[2].Beats {
		if b := &in.Hosts[2].Beats[i]; b.Writer == w {
			b.ChangedAt = b.ReadAt - ago
		}
	}
}

func noStoreNoGUID(in *Input) {
	for i := range in.Hosts[2].Power {
		in.Hosts[2].Power[i].GUID = haven.Unknown
	}
	for i := range in.Observers {
		in.Observers[i].Stores[0].Hung = true
	}
}

// TestLedgerProofStands: a host whose boot is proved over is neither failed nor
// asked about while it boots, however long that takes; life of the same boot is
// a contradiction, life of another one is not (P2).
func TestLedgerProofStands(t *testing.T) {
	w := testWorld(t, nil)
	c := w.host("c")
	c.power, c.agent, c.helper = false, false, false
	w.pass(3 * time.Second)
	c.proved = true
	c.power, c.hung, c.boot = true, true, 2 // Booting: on, and silent.
	probes, reads := w.probes, w.reads
	w.pass(5 * time.Minute)
	if j := w.judgement("c"); j.Verdict != haven.VerdictDead || w.probes != probes || w.reads != reads {
		t.Fatalf("%s, %d probes, %d readings", j.Verdict, w.probes-probes, w.reads-reads)
	}
	c.hung, c.helper = false, true // The helper is up before the agent.
	w.pass(3 * time.Second)
	if j := w.judgement("c"); j.Verdict != haven.VerdictDead || j.Hold.Held() {
		t.Fatalf("%s, held %v", j.Verdict, j.Hold)
	}
	c.boot, c.agent = 1, true // The proof was wrong: it is the old boot.
	w.tamper = func(in *Input) { in.Hosts[2].Proved = true }
	w.pass(3 * time.Second)
	if j := w.judgement("c"); j.Verdict != haven.VerdictHealthy || j.Hold.Reason != haven.HoldContradiction {
		t.Fatalf("%s, held %v", j.Verdict, j.Hold)
	}
}

// TestLeave covers what the stop of an agent is and is not (P4).
func TestLeave(t *testing.T) {
	stop := func(t *testing.T) (*world, *worldHost) {
		w := testWorld(t, nil)
		c := w.host("c")
		(&player{w: w}).leave(c, "stop")
		return w, c
	}
	t.Run("words under way when it left are no return", func(t *testing.T) {
		w, c := stop(t)
		left := w.now
		w.tamper = func(in *Input) { in.Hosts[2].Report.At = left + 400*time.Millisecond }
		c.power = false
		w.pass(400 * time.Millisecond)
		c.power, c.helper = true, true
		w.pass(20 * time.Second)
		if j := w.judgement("c"); j.Verdict != haven.VerdictStopped || j.Left != haven.LeaveStopped {
			t.Fatalf("%s: %s", j.Verdict, j.Why)
		}
	})
	t.Run("later words are a return", func(t *testing.T) {
		w, _ := stop(t)
		left := w.now
		w.tamper = func(in *Input) { in.Hosts[2].Report.At = left + 1500*time.Millisecond }
		w.pass(20 * time.Second)
		if j := w.judgement("c"); j.Left != haven.LeaveNone || j.Verdict == haven.VerdictStopped {
			t.Fatalf("%s: %s", j.Verdict, j.Why)
		}
	})
	t.Run("without the helper's silence an off proves nothing", func(t *testing.T) {
		w, c := stop(t)
		c.power, c.helper = false, false
		w.tamper = func(in *Input) {
			for i := range in.Hosts[2].Probes {
				if p := &in.Hosts[2].Probes[i]; p.Kind == haven.EvidenceProbeHelper {
					p.Result = haven.Unknown
				}
			}
		}
		w.pass(30 * time.Second)
		if j := w.judgement("c"); j.Verdict != haven.VerdictStopped || j.PowerOff {
			t.Fatalf("%s: %s", j.Verdict, j.Why)
		}
		w.tamper = nil
		w.pass(10 * time.Second)
		if j := w.judgement("c"); j.Verdict != haven.VerdictDead {
			t.Fatalf("%s: %s, missing %v", j.Verdict, j.Why, j.Missing)
		}
	})
	t.Run("a stop alone is never more", func(t *testing.T) {
		w, c := stop(t)
		c.helper, c.bmc = false, "dead"
		for range 3000 {
			w.step()
			if j := w.judgement("c"); j.Verdict != haven.VerdictStopped {
				t.Fatalf("at %v %s: %s", w.now, j.Verdict, j.Why)
			}
		}
	})
}

// TestOwnStoreAlone: two hosts and a witness, and the store hangs for the one
// that is master while the other is dead. It cannot tell its own fault from the
// storage's, so it is the observer rule that holds (P6).
func TestOwnStoreAlone(t *testing.T) {
	w := newWorld(Normal(), "a", "a", "b", "w")
	w.cfg.StartupGrace = 0
	w.host("w").role, w.host("w").storeless = haven.RoleWitness, true
	w.stores = []*worldStore{{name: "nfs1", hung: map[haven.HostID]bool{}}}
	m, err := New(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.m = m
	w.pass(20 * time.Second)
	w.stores[0].hung["a"], w.host("b").hung = true, true
	w.pass(20 * time.Second)
	if j := w.judgement("b"); j.Verdict != haven.VerdictUnknown || j.Hold.Reason != haven.HoldObserver || w.out.Trusted {
		t.Fatalf("%s held %q: %s", j.Verdict, j.Hold.Reason, j.Why)
	}
	checkDumb(t, w.cfg, w.trace)
}

// TestWantsAreBounded: a host that stays silent for an hour costs a bounded
// number of probes and BMC readings.
func TestWantsAreBounded(t *testing.T) {
	whole := time.Hour
	if testing.Short() {
		whole = 10 * time.Minute
	}
	w := testWorld(t, nil)
	w.forgets = true
	w.host("c").group = 7
	w.pass(whole)
	// 3 neighbours and 3 kinds every 1.5 s; 30 s at 2 s, 270 s at 5 s, then 30 s.
	probes, reads := 9*(int(whole/(1500*time.Millisecond))+50), 15+54+int((whole-5*time.Minute)/(30*time.Second))+3
	if w.probes > probes || w.reads > reads || w.reads < reads/2 {
		t.Errorf("%d probes, %d BMC readings in %s; at most %d and %d may be", w.probes, w.reads, whole, probes, reads)
	}
}

// TestMassFailureTable keeps the numbers of the package's table true (P6).
func TestMassFailureTable(t *testing.T) {
	for n, want := range map[int]int{0: 1, 1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 16: 8, 50: 25} {
		if got := Normal().MassFailureAllowed(n); got != want {
			t.Errorf("of %d hypervisors %d may be bad, want %d", n, got, want)
		}
	}
}

// TestValidate: the three profiles are sound, and each relation is checked.
func TestValidate(t *testing.T) {
	for name, c := range map[string]Config{"normal": Normal(), "fast": Fast(), "calm": Calm()} {
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, spoil := range map[string]func(*Config){
		"suspect after":      func(c *Config) { c.SuspectAfter = 0 },
		"silence":            func(c *Config) { c.Silence = c.StaleAfter },
		"rounds":             func(c *Config) { c.Rounds = 0 },
		"round":              func(c *Config) { c.Round = 0 },
		"must hold 3 rounds": func(c *Config) { c.Round, c.ProbeFresh = 3*time.Second, 3*time.Second },
		"beat interval":      func(c *Config) { c.BeatInterval = 0 },
		"beat stale":         func(c *Config) { c.StaleAfter = c.BeatInterval },
		"off readings":       func(c *Config) { c.OffReadings = 1 },
		"off gap":            func(c *Config) { c.OffGap = time.Millisecond },
		"off beat age":       func(c *Config) { c.OffBeatAge = 0.5 },
		"off fresh":          func(c *Config) { c.OffFresh = time.Second },
		"power every":        func(c *Config) { c.PowerEvery = 0 },
		"probe count":        func(c *Config) { c.ProbeCount = 0 },
		"probe fresh":        func(c *Config) { c.ProbeFresh = c.Silence },
		"gossip lag":         func(c *Config) { c.GossipLag = 0 },
		"stores":             func(c *Config) { c.Stores = -1 },
		"start-up grace":     func(c *Config) { c.StartupGrace = -1 },
		"mass-failure share": func(c *Config) { c.MassFailureShare = 0 },
		"flap count":         func(c *Config) { c.FlapCount = 0 },
		"flap window":        func(c *Config) { c.FlapWindow = 0 },
	} {
		c := Normal()
		spoil(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := New(c); err == nil {
			t.Errorf("%s: a machine was made", name)
		}
	}
}

// TestReturnSoonAfterOff: a host that was proved off and boots anew within the
// time in which the readings of off still count is no contradiction, and its BMC
// told the truth (P2).
func TestReturnSoonAfterOff(t *testing.T) {
	w := testWorld(t, nil)
	c := w.host("c")
	c.power, c.agent, c.helper = false, false, false
	w.pass(3 * time.Second)
	if j := w.judgement("c"); j.Verdict != haven.VerdictDead {
		t.Fatalf("after the power cut: %s, %s", j.Verdict, j.Why)
	}
	c.proved = true
	c.power, c.agent, c.helper, c.boot = true, true, true, 2
	for range 100 {
		w.pass(100 * time.Millisecond)
		j := w.judgement("c")
		if j.Distrust {
			t.Fatalf("its BMC is distrusted at %s for what it said of the boot before", w.now)
		}
		if j.Verdict == haven.VerdictHealthy && j.Hold.Reason == haven.HoldContradiction {
			t.Fatalf("held at %s: %s", w.now, j.Hold.Detail)
		}
	}
}

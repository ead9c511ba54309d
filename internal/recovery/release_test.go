package recovery

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/ledger"
)

// script plays lines of a script, and fails at the first broken promise.
func (w *world) script(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if err := w.do(strings.Fields(line)); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if len(w.broken) > 0 {
			t.Fatalf("%q: %v", line, w.broken)
		}
	}
}

// watched keeps what the world logs.
func watched() (*world, func(part string) int) {
	w := newWorld()
	var lines []string
	w.log = func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	return w, func(part string) (n int) {
		for _, l := range lines {
			if strings.Contains(l, part) {
				n++
			}
		}
		return n
	}
}

func (w *world) ownerOf(name string) string {
	vm := w.state.VMs[vmID(name)]
	return fmt.Sprintf("%s %s", vm.Phase, vm.Owner)
}

// A host that was fenced is the only one with room when it comes back: it gets the
// VM when it has registered and said that it does not have it, and, where that is
// configured, not before an operator released it, whoever is master.
func TestFencedHostWaits(t *testing.T) {
	for _, manual := range []bool{false, true} {
		t.Run(fmt.Sprintf("manual %v", manual), func(t *testing.T) {
			w, logged := watched()
			w.script(t, "cluster a b c", "vm web a")
			w.cfg.ManualRelease = map[haven.HostID]bool{"a": manual}
			w.m = New(w.cfg)
			w.script(t, "run 1s", "memory b 0", "memory c 0", "silent a", "verdict a failed", "run 20s")
			if got := w.ownerOf("web"); got != "freed a" || !w.state.Hosts["a"].ProvedDead() {
				t.Fatalf("after the fence: %s", got)
			}
			// It has booted, and its agent does not reach the master yet; then it is
			// registered, and does not say what it has.
			w.bootHost(w.hosts["a"])
			w.hosts["a"].mute = true
			w.script(t, "run 30s")
			if got := w.ownerOf("web"); got != "freed a" {
				t.Fatalf("while it is not registered: %s", got)
			}
			w.script(t, "heard a")
			w.hosts["a"].mute = true
			w.script(t, "run 30s")
			if got := w.ownerOf("web"); got != "freed a" {
				t.Fatalf("before its word: %s", got)
			}
			w.hosts["a"].mute = false
			w.script(t, "run 30s")
			if !manual {
				if got := w.ownerOf("web"); got != "owned a" {
					t.Errorf("after its word: %s", got)
				}
				return
			}
			for range 2 {
				if got := w.ownerOf("web"); got != "freed a" || logged("alarm awaits-release") == 0 {
					t.Fatalf("before the release: %s, told %d times", got, logged("alarm awaits-release"))
				}
				w.script(t, "master", "run 2m")
			}
			if err := w.apply(ledger.ReleaseFenced{Host: "a", Incident: w.state.Hosts["a"].Fenced.Incident, By: "maria", At: w.now}); err != nil {
				t.Fatal(err)
			}
			w.script(t, "run 30s")
			if got := w.ownerOf("web"); got != "owned a" {
				t.Errorf("after the release: %s", got)
			}
		})
	}
}

// P2: a host of which a device seems to be another host's is not powered off, by no
// master, before that is resolved; nothing of this is silent.
func TestWrongDeviceIsNotFenced(t *testing.T) {
	doubt := ledger.DoubtDevices{Host: "a", Doubts: []ledger.DeviceDoubt{{Device: "bmc", GUID: "ff00", Why: "its GUID ff00 is not the UUID a123 of a"}}}
	distrust := ledger.LearnPower{Host: "a", GUID: "a123", Distrust: "it said off while the host lived on"}
	t.Run("doubted", func(t *testing.T) {
		wrongDeviceIsNotFenced(t, doubt, "device bmc: its GUID ff00 is not the UUID a123 of a")
	})
	t.Run("distrusted", func(t *testing.T) {
		wrongDeviceIsNotFenced(t, distrust, "its fence device is distrusted: it said off while the host lived on")
	})
}

func wrongDeviceIsNotFenced(t *testing.T, lesson ledger.Command, why string) {
	w, logged := watched()
	w.script(t, "cluster a b c", "vm web a", "run 1s")
	if err := w.apply(lesson); err != nil {
		t.Fatal(err)
	}
	w.script(t, "run 1s")
	if logged("alarm fence-device-mismatch: "+why) != 1 {
		t.Error("nobody was told before it was needed")
	}
	w.script(t, "silent a", "verdict a failed", "run 1m", "master", "run 10m")
	if n := logged("act    power off"); n != 0 {
		t.Fatalf("%d power-offs", n)
	}
	in := w.state.OpenIncidents()[0]
	if in.Hold.Reason != haven.HoldIdentity || !strings.Contains(in.Hold.Detail, "haven host trust-bmc a") || logged("alarm hold-lasts") == 0 {
		t.Errorf("hold %+v", in.Hold)
	}
	if err := w.apply(ledger.LearnPower{Host: "a", By: "maria", Clears: 1, At: w.now}); err != nil {
		t.Fatal(err)
	}
	w.script(t, "run 1m")
	if got := w.ownerOf("web"); logged("act    power off a") != 1 || got == "freed a" || strings.HasSuffix(got, " a") {
		t.Errorf("after the operator's word: %d power-offs, web is %s", logged("act    power off a"), got)
	}
}

// A host that an operator powers off stays off, although action is reboot and Haven
// had decided to power it off as well.
func TestOperatorsOffStaysOff(t *testing.T) {
	for _, operator := range []bool{false, true} {
		w, logged := watched()
		w.script(t, "cluster a b c", "vm web a", "run 1s")
		w.cfg.Action = haven.ActionReboot
		w.m = New(w.cfg)
		if operator {
			if err := w.apply(ledger.RecordAct{Act: ledger.Act{Action: haven.ActionOff, Host: "a", By: "maria", Reason: "it burns", At: w.now}}); err != nil {
				t.Fatal(err)
			}
		}
		w.script(t, "silent a", "verdict a failed", "run 5m")
		if got := w.ownerOf("web"); got == "freed a" || strings.HasSuffix(got, " a") {
			t.Fatalf("web is %s", got)
		}
		if on := logged("act    switch on a") > 0; on == operator {
			t.Errorf("powered off by an operator: %v; switched on: %v", operator, on)
		}
		if why := w.m.staysOff(w.state, w.state.Hosts["a"], &ledger.Incident{Host: "a", OpenedAt: w.now.Add(-5 * time.Minute)}); strings.Contains(why, "powered off by maria") != operator {
			t.Errorf("powered off by an operator: %v; told why it stays off: %q", operator, why)
		}
	}
}

// P1: only a host that is proved off is switched on again. One that was cut off its
// storage would get its disks back, and may run on.
func TestOnlyWhatIsOffIsSwitchedOn(t *testing.T) {
	m := New(Config{Action: haven.ActionReboot})
	for kind, want := range map[haven.ProofKind]bool{haven.ProofPowerOff: true, haven.ProofDevice: false, haven.ProofOperator: false} {
		p := &haven.Proof{Kind: kind, Host: "a", Boot: "a1"}
		if got := m.cycles(&ledger.Host{ID: "a", Boot: "a1", Proof: p}, &ledger.Incident{Host: "a", Boot: "a1", Proof: p, Attempts: []ledger.FenceAttempt{{N: 1}}}); got != want {
			t.Errorf("after a proof of kind %s: %v", kind, got)
		}
	}
}

// P6: of incidents at one time, exactly as many hosts are powered off as the limit
// allows, however many masters there are in between, and those that were begun are
// gone on with.
func TestCapOverMasters(t *testing.T) {
	for limit := 1; limit <= 3; limit++ {
		for _, changes := range []int{0, 1, 5} {
			t.Run(fmt.Sprintf("limit %d, %d changes", limit, changes), func(t *testing.T) {
				w, logged := watched()
				w.script(t, "cluster a b c d e f g h", fmt.Sprintf("cap %d", limit), "run 1s", "bmc fails 3s")
				w.script(t, "silent a", "silent b", "silent c", "verdict a failed", "verdict b failed", "verdict c failed", "run 1500ms")
				for range changes {
					w.script(t, "master", "run 2500ms") // in the middle of a fence
				}
				w.script(t, "run 5m")
				hit, held := 0, 0
				for _, id := range []string{"a", "b", "c"} {
					if logged("act    power off "+id) > 0 {
						hit++
					}
				}
				for _, in := range w.state.OpenIncidents() {
					if in.Hold.Reason == haven.HoldCap {
						held++
					}
				}
				if hit != limit || held != 3-limit || len(w.state.Fences) != limit {
					t.Errorf("%d hosts were powered off, %d are held, %d are counted", hit, held, len(w.state.Fences))
				}
				w.script(t, "master", "bmc off 2s", "run 6m")
				for _, id := range []haven.HostID{"a", "b", "c"} {
					if proved := w.state.Hosts[id].ProvedDead(); proved != (logged("act    power off "+string(id)) > 0) {
						t.Errorf("%s: proved dead %v", id, proved)
					}
				}
				if len(w.state.Fences) != limit {
					t.Errorf("%d are counted at the end", len(w.state.Fences))
				}
			})
		}
	}
}

// One host's own limit stands for it instead of the others', and never allows more
// than the cluster's.
func TestHostCaps(t *testing.T) {
	w, logged := watched()
	w.cfg.Cap = fencing.Limit{Count: 5, Window: 24 * time.Hour}
	w.cfg.HostCap = fencing.Limit{Count: 3, Window: 24 * time.Hour}
	w.cfg.HostCaps = map[haven.HostID]fencing.Limit{"a": {Count: 1, Window: 24 * time.Hour}, "b": {Window: 24 * time.Hour}}
	w.m = New(w.cfg)
	w.script(t, "cluster a b c d", "run 1s")
	for _, id := range []string{"a", "a", "b", "b", "b", "b", "c"} {
		w.script(t, "silent "+id, "verdict "+id+" failed", "run 20s", "boot "+id, "heard "+id, "run 20s")
	}
	for id, want := range map[string]int{"a": 1, "b": 4, "c": 0} {
		if got := logged("act    power off " + id); got != want {
			t.Errorf("%s was powered off %d times, want %d", id, got, want)
		}
	}
}

// P9: what a hold says of the watchdog is so as long as it stands, whoever is master:
// a proof that cannot come is not to be waited for, and one that comes is not to be
// forestalled by a person. It costs no flood of entries, and begins no new hold.
func TestHoldSaysHowTheWatchdogStands(t *testing.T) {
	w, logged := watched()
	w.script(t, "cluster a b c", "vm web a", "run 1s", "watchdog a armed", "silent a", "verdict a failed", "bmc fails", "run 100s")
	h := w.hosts["a"]
	hold := func() haven.Hold { return w.state.Incidents[w.state.Hosts["a"].Incident].Hold }
	awaited := h.watchdog
	if got := hold(); got.Reason != haven.HoldFenceBlocked || !strings.Contains(got.Detail, awaited) {
		t.Fatalf("%+v", got)
	}
	w.script(t, "watchdog a uncountable")
	uncountable := h.watchdog
	for _, tc := range []struct{ name, says, not string }{
		{"nobody reads the store", uncountable, awaited},
		{"it is read again", awaited, uncountable},
	} {
		h.watchdog = tc.says
		w.m = New(w.cfg) // another master, who begins the fence anew
		w.script(t, "run 6s")
		h.watchdog = tc.not // and something in between
		w.script(t, "run 6s")
		h.watchdog = tc.says
		w.script(t, "run 11s")
		if got := hold().Detail; !strings.Contains(got, tc.says) || strings.Contains(got, tc.not) || strings.Count(got, "fence confirm a") != 1 {
			t.Errorf("%s: %s", tc.name, got)
		}
	}
	since := hold().Since
	before, notices := logged("held: fence-blocked"), logged("alarm fence-blocked")
	for i := range 200 { // it flaps
		h.watchdog = []string{awaited, uncountable}[i%2]
		w.script(t, "run 100ms")
	}
	if n := logged("held: fence-blocked") - before; n < 2 || n > 6 {
		t.Errorf("%d entries in 20 s", n)
	}
	if n := logged("alarm fence-blocked") - notices; n > 1 || n == 0 && !hold().Since.Equal(since) {
		t.Errorf("%d alarms; held since %s, %s", n, since, hold().Since)
	}
}

package recovery

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/ledger"
)

var update = flag.Bool("update", false, "rewrite what the scenarios in testdata lead to")

// TestScenarios plays the scripts in testdata. A line that is not indented is
// done; the indented ones below it are what followed, with the time in seconds.
// Lines that begin with # explain. Every script ends with its VMs and incidents.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got, broken := play(t, string(data))
			for _, b := range broken {
				t.Error(b)
			}
			if *update && len(broken) == 0 {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(data) {
				t.Errorf("%s leads to something else (-update rewrites it):\n%s", file, got)
			}
		})
	}
}

// play does what a script says, and returns it with what followed.
func play(t *testing.T, script string) (string, []string) {
	t.Helper()
	w := newWorld()
	var out strings.Builder
	w.log = func(format string, args ...any) {
		fmt.Fprintf(&out, "  %8s %s\n", w.clock(), fmt.Sprintf(format, args...))
	}
	for line := range strings.Lines(script) {
		if strings.HasPrefix(line, "  ") {
			continue
		}
		out.WriteString(line)
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if err := w.do(strings.Fields(line)); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if len(w.broken) > 0 {
			t.Log(out.String())
			return out.String(), w.broken
		}
	}
	return out.String(), nil
}

// do is one line of a script.
func (w *world) do(f []string) error {
	f = append(f, "", "", "")
	h := w.hosts[haven.HostID(f[1])]
	id := vmID(f[1])
	if d, ok := deeds[f[0]]; ok {
		if d.host && h == nil {
			return fmt.Errorf("no host %q", f[1])
		}
		if d.vm {
			if h = w.hosts[haven.HostID(f[2])]; h == nil {
				return fmt.Errorf("no host %q", f[2])
			}
		}
		return d.do(w, h, id, f)
	}
	return fmt.Errorf("what is %q?", f[0])
}

// deed is a word of the scripts. host: its first argument is a host; vm: its
// first argument is a VM and its second a host.
type deed struct {
	host, vm bool
	do       func(w *world, h *host, id haven.VMID, f []string) error
}

func hostDeed(do func(w *world, h *host, f []string)) deed {
	return deed{host: true, do: func(w *world, h *host, _ haven.VMID, f []string) error { do(w, h, f); return nil }}
}

func vmDeed(do func(w *world, h *host, id haven.VMID, f []string)) deed {
	return deed{vm: true, do: func(w *world, h *host, id haven.VMID, f []string) error { do(w, h, id, f); return nil }}
}

func clusterDeed(do func(w *world, f []string) error) deed {
	return deed{do: func(w *world, _ *host, _ haven.VMID, f []string) error { return do(w, f) }}
}

var deeds = map[string]deed{
	// cluster HOST… makes hosts; one that begins with w is a witness.
	"cluster": clusterDeed(func(w *world, f []string) error {
		for _, id := range f[1:] {
			if id == "" {
				continue
			}
			role := haven.RoleHypervisor
			if id[0] == 'w' {
				role = haven.RoleWitness
			}
			w.addHost(haven.HostID(id), role)
		}
		return nil
	}),
	"cap": clusterDeed(func(w *world, f []string) error {
		n, err := strconv.Atoi(f[1])
		w.cfg.Cap = fencing.Limit{Count: n, Window: time.Hour}
		w.m = New(w.cfg)
		return err
	}),
	// host-cap N is the limit of each host.
	"host-cap": clusterDeed(func(w *world, f []string) error {
		n, err := strconv.Atoi(f[1])
		w.cfg.HostCap = fencing.Limit{Count: n, Window: time.Hour}
		w.m = New(w.cfg)
		return err
	}),
	// on-fails WHY…: hosts cannot be switched on.
	"on-fails": clusterDeed(func(w *world, f []string) error { w.onFails = strings.TrimSpace(strings.Join(f[1:], " ")); return nil }),
	"action":   hostDeed(func(w *world, h *host, f []string) { w.cfg.Actions[h.id] = haven.FenceAction(f[2]) }),
	"no-device": hostDeed(func(w *world, h *host, _ []string) {
		w.cfg.Devices[h.id] = false
	}),
	"memory": hostDeed(func(_ *world, h *host, f []string) { h.freeMiB, _ = strconv.ParseUint(f[2], 10, 64) }),
	// run DURATION lets time pass.
	"run": clusterDeed(func(w *world, f []string) error {
		d, err := time.ParseDuration(f[1])
		w.run(d)
		return err
	}),
	// verdict HOST VERDICT [HOLD] is what the detector says, until the next one.
	"verdict": hostDeed(func(w *world, h *host, f []string) {
		h.verdict, h.hold = haven.Verdict(f[2]), haven.Hold{}
		if f[3] != "" {
			h.hold = haven.Hold{Reason: f[3], Detail: "says the detector", Since: w.now}
		}
		if h.verdict == haven.VerdictHealthy {
			h.verdict = ""
		}
	}),
	// watchdog HOST armed|uncountable|fires|lies: its watchdog is declared; cannot be
	// counted; resets the host; is said to have reset it, and the host is on.
	"watchdog": hostDeed(func(w *world, h *host, f []string) {
		switch f[2] {
		case "armed":
			w.declare(h)
		case "uncountable":
			h.watchdog = "its watchdog, armed with 30s, cannot be counted: store nfs1 is not read by anybody who can vouch for it"
		case "fires":
			w.fires(h)
		case "lies":
			w.counts(h)
		}
	}),
	"brake": clusterDeed(func(w *world, f []string) error {
		w.brakes = nil
		if f[1] != "" {
			w.brakes = []haven.Hold{{Reason: f[1], Detail: "says the detector", Since: w.now}}
		}
		return nil
	}),
	// power-cut, hang, agent-dies, cut, join: what happens to a host.
	"power-cut": hostDeed(func(w *world, h *host, _ []string) { w.off(h) }),
	"boot":      hostDeed(func(w *world, h *host, _ []string) { w.bootHost(h) }),
	"silent":    hostDeed(func(_ *world, h *host, _ []string) { h.network = false }),
	"heard":     hostDeed(func(_ *world, h *host, _ []string) { h.network, h.mute = true, false }),
	"mute":      hostDeed(func(_ *world, h *host, _ []string) { h.mute = true }),
	"partial":   hostDeed(func(_ *world, h *host, _ []string) { h.partial = true }),
	"whole":     hostDeed(func(_ *world, h *host, _ []string) { h.partial = false }),
	"leaving":   hostDeed(func(_ *world, h *host, f []string) { h.leave = haven.LeaveReason(f[2]) }),
	"refuses":   hostDeed(func(_ *world, h *host, f []string) { h.refuses = strings.TrimSpace(strings.Join(f[2:], " ")) }),
	"loses-directory": hostDeed(func(w *world, h *host, _ []string) {
		h.state, h.inc, h.told = h.state+"x", 1, false
		clear(h.orders)
		w.register(h)
	}),
	// orders HOST refuse|fail|unknown|lose|obey is what becomes of orders there.
	"orders":      hostDeed(func(_ *world, h *host, f []string) { h.onOrder = f[2] }),
	"starts-take": hostDeed(func(_ *world, h *host, f []string) { h.takes, _ = time.ParseDuration(f[2]) }),
	// started VM HOST: the start that was unclear happens. ended: it never will.
	"started": vmDeed(func(w *world, h *host, id haven.VMID, _ []string) { w.carryOut(h, h.orders[id].order) }),
	"ended":   vmDeed(func(_ *world, h *host, id haven.VMID, _ []string) { delete(h.starting, id) }),
	"answers": vmDeed(func(_ *world, h *host, id haven.VMID, f []string) {
		o := h.orders[id]
		o.status, o.detail = haven.OrderStatus(f[3]), ""
		h.orders[id] = o
	}),
	// bmc off|fails|slow DURATION is how BMCs behave.
	"bmc": clusterDeed(func(w *world, f []string) error {
		after, err := 2*time.Second, error(nil)
		if f[2] != "" {
			after, err = time.ParseDuration(f[2])
		}
		w.fence = func(*host) (bool, time.Duration, string) {
			return f[1] == "off", after, map[bool]string{true: "off, read twice", false: "the BMC does not answer"}[f[1] == "off"]
		}
		return err
	}),
	// beat HOST SEEN-BEFORE|none VM… is the list in its beat, which is fresh or of before.
	"beat": hostDeed(func(w *world, h *host, f []string) {
		b := &BeatList{Complete: f[2] != "incomplete", Boot: h.boot, Since: w.now}
		if f[2] == "old" {
			b.Since = w.begin
		}
		if f[2] == "other-boot" {
			b.Boot = "another"
		}
		for _, name := range f[3:] {
			if name != "" {
				b.VMs = append(b.VMs, vmID(name))
			}
		}
		h.beat = b
	}),
	// old-report HOST: what it says of VMs and memory stays as it is now.
	"old-report": hostDeed(func(w *world, h *host, _ []string) { old := w.view(h); h.old = &old }),
	"new-report": hostDeed(func(_ *world, h *host, _ []string) { h.old = nil }),
	// vm NAME HOST [MIB] is a user who makes a VM.
	"vm": vmDeed(func(w *world, h *host, _ haven.VMID, f []string) {
		mib, _ := strconv.ParseUint(f[3], 10, 64)
		w.addVM(f[1], h, max(mib, 1024))
	}),
	"user-stops": vmDeed(func(w *world, h *host, id haven.VMID, _ []string) {
		w.users[id] = false
		w.set(h, id, haven.VMShutOff, "destroyed")
	}),
	"user-starts": vmDeed(func(w *world, h *host, id haven.VMID, _ []string) {
		w.users[id] = true
		w.set(h, id, haven.VMRunning, "")
	}),
	"undefines": vmDeed(func(w *world, h *host, id haven.VMID, _ []string) { w.users[id] = false; delete(h.vms, id) }),
	"crashes":   vmDeed(func(w *world, h *host, id haven.VMID, _ []string) { w.set(h, id, haven.VMCrashed, "crashed") }),
	"state":     vmDeed(func(w *world, h *host, id haven.VMID, f []string) { w.set(h, id, haven.VMState(f[3]), "") }),
	// runs VM HOST is what no rule allows, or the arrival of a migration.
	"runs": vmDeed(func(w *world, h *host, id haven.VMID, f []string) {
		h.vms[id] = haven.VMInfo{ID: id, Name: f[1], State: haven.VMRunning, Persistent: true, MemoryMiB: 1024, DefinitionSHA: definition(f[1]).SHA}
	}),
	"migrated": vmDeed(func(w *world, h *host, id haven.VMID, _ []string) { w.set(h, id, haven.VMShutOff, "migrated") }),
	// master makes another host master. The acts of the old one end unheard.
	"master": clusterDeed(func(w *world, _ []string) error { w.mastered(); return nil }),
	// disarm [now]
	"disarm": clusterDeed(func(w *world, f []string) error {
		return w.apply(ledger.SetArmed{By: "op", At: w.now, Now: f[1] == "now"})
	}),
	// maintenance HOST on|off
	"maintenance": hostDeed(func(w *world, h *host, f []string) {
		_ = w.apply(ledger.SetMaintenance{Host: h.id, On: f[2] == "on", By: "op", Reason: "new fans", At: w.now})
	}),
	// quarantine HOST [WHY] is the detector's word on a host that flaps.
	"quarantine": hostDeed(func(_ *world, h *host, f []string) { h.quarantine = strings.TrimSpace(strings.Join(f[2:], " ")) }),
	// response isolation|storage-lost HOST… switches a response on.
	"response": clusterDeed(func(w *world, f []string) error {
		for _, id := range f[2:] {
			if id != "" && f[1] == ResponseIsolation {
				w.cfg.StopsIsolated[haven.HostID(id)] = true
			} else if id != "" {
				w.cfg.StopsStorageLost[haven.HostID(id)] = true
			}
		}
		return nil
	}),
	// stops HOST stuck|forget is what becomes of stops there.
	"stops": hostDeed(func(_ *world, h *host, f []string) { h.onStop = f[2] }),
	// hangs HOST [STORE] is a store of which an operation does not come back there.
	"hangs": hostDeed(func(_ *world, h *host, f []string) { h.hung = f[2] }),
	// releases HOST: it stopped its VMs, and its beat says so. The list is of now.
	"releases": hostDeed(func(w *world, h *host, f []string) {
		h.beat = &BeatList{Complete: f[2] != "incomplete", Boot: h.boot, Since: w.now, Releasing: true}
		for id, info := range h.vms {
			if f[2] == "still" && info.State.Present() {
				h.beat.VMs = append(h.beat.VMs, id)
			} else if info.State.Present() {
				h.released[id] = true
				w.set(h, id, haven.VMShutOff, "destroyed")
			}
		}
	}),
	"arm": clusterDeed(func(w *world, _ []string) error { return w.apply(ledger.SetArmed{Armed: true, By: "op", At: w.now}) }),
	"confirm": hostDeed(func(w *world, h *host, _ []string) {
		in := w.state.Hosts[h.id].Incident
		if w.state.Hosts[h.id].Maintenance != nil {
			_ = w.apply(ledger.SetMaintenance{Host: h.id, LetGo: true, By: "op", At: w.now})
		}
		_ = w.apply(ledger.ProveDead{ID: in, Entry: ledger.Entry{At: w.now, What: "op says so"}, Proof: haven.Proof{Kind: haven.ProofOperator, Host: h.id, Boot: h.boot, By: "op", At: w.now}})
	}),
	// restore raises the generation, as after a restore of the ledger.
	"restore": clusterDeed(func(w *world, _ []string) error {
		for _, h := range w.hosts {
			h.told = false
		}
		return w.apply(ledger.Found{Cluster: "c", Generation: w.state.Generation + 1, By: "op", At: w.now})
	}),
	// show writes how everything stands.
	"show": clusterDeed(func(w *world, _ []string) error {
		for _, id := range slices.SortedFunc(maps.Keys(w.state.VMs), func(a, b haven.VMID) int { return strings.Compare(w.names[a], w.names[b]) }) {
			vm := w.state.VMs[id]
			hold := ""
			if vm.Hold.Reason != "" {
				hold = ", held: " + vm.Hold.Reason + ": " + vm.Hold.Detail
			}
			w.log("VM     %s is %s, %s by %s, epoch %d; runs on %v%s", w.names[id], vm.Desired, vm.Phase, vm.Owner, vm.Epoch, w.running(id), hold)
		}
		for _, id := range slices.Sorted(maps.Keys(w.state.Incidents)) {
			in := w.state.Incidents[id]
			hold := ""
			if in.Hold.Reason != "" {
				hold = ", held: " + in.Hold.Reason + ": " + in.Hold.Detail
			}
			w.log("trouble %s is %s, %s%s", id, in.Verdict, in.Step, hold)
		}
		return nil
	}),
}

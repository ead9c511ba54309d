//go:build lab

package scenarios

import (
	"slices"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/test/lab"
)

// TestProcessTroubles stops, hangs and kills programs on one cluster of three, one
// at a time. The guests run on (P4, P8).
func TestProcessTroubles(t *testing.T) {
	t.Parallel()
	g := newGround(t, options{})

	g.trial(t, "an agent stands still", func(tr *trial) { standStill(tr, tr.victim()) })
	g.trial(t, "the master's agent stands still", func(tr *trial) { standStill(tr, tr.master()) })

	g.trial(t, "a helper is killed", func(tr *trial) {
		v := tr.victim()
		tr.ok(v.Hold(tr.t.Context(), "haven-helper"))
		ask(tr.site, 30*time.Second, "/v1/hosts", "a helper that is down", func(hosts []client.Host) bool {
			return slices.ContainsFunc(hosts, func(h client.Host) bool { return string(h.Host) == v.Name && h.Helper.State == "stale" })
		})
		tr.leftAlone(watched, g.guests...)
		tr.alwaysHealthy()
	})

	g.trial(t, "libvirtd hangs", func(tr *trial) {
		v := tr.victim()
		guests := tr.on(v)
		tr.ok(v.Pause(tr.t.Context(), "libvirtd"))
		ask(tr.site, time.Minute, "/v1/vms", "guests of which nothing is known", func(vms []client.VM) bool {
			return slices.ContainsFunc(vms, func(vm client.VM) bool { return vm.Name == guests[0].Name && vm.State == haven.VMUnknown })
		})
		tr.leftAlone(watched, g.guests...)
		tr.alwaysHealthy()
		tr.ok(v.Resume(tr.t.Context(), "libvirtd"))
		tr.protected(v, guests...)
	})

	g.trial(t, "libvirtd is killed and stays down", func(tr *trial) {
		v := tr.victim()
		guests := tr.on(v)
		tr.ok(v.Hold(tr.t.Context(), "libvirtd"))
		tr.leftAlone(watched, g.guests...)
		tr.alwaysHealthy()
		tr.ok(v.Start(tr.t.Context(), "libvirtd"))
		tr.protected(v, guests...)
	})

	g.trial(t, "an agent is stopped in good order", func(tr *trial) {
		v := tr.victim()
		tr.ok(v.Stop(tr.t.Context(), "havend"))
		tr.verdict(30*time.Second, v, haven.VerdictStopped, v)
		tr.leftAlone(watched, g.guests...)
	})

	g.trial(t, "a host is shut down in good order", hostShutdown)
}

// standStill stops an agent with SIGSTOP. If it led, it must find out that it does
// not any more before it does anything.
func standStill(tr *trial, v *lab.Host) {
	tr.ok(v.Pause(tr.t.Context(), "havend"))
	tr.verdict(60*time.Second, v, haven.VerdictAgentDown, v)
	tr.leftAlone(watched, tr.ground.guests...)
	tr.ok(v.Resume(tr.t.Context(), "havend"))
}

// alwaysHealthy checks that nobody was judged anything but healthy so far.
func (tr *trial) alwaysHealthy() {
	tr.t.Helper()
	ask(tr.site, 10*time.Second, "/v1/hosts", "healthy hosts", func(hosts []client.Host) bool {
		return !slices.ContainsFunc(hosts, func(h client.Host) bool { return h.Verdict != haven.VerdictHealthy })
	})
	for _, in := range ask(tr.site, 10*time.Second, "/v1/incidents", "the incidents", func([]client.Incident) bool { return true }) {
		if in.ClosedAt.IsZero() {
			tr.t.Errorf("an incident of %s is open: %s", in.Host, in.Verdict)
		}
	}
}

// hostShutdown shuts a host down. Its guests stay with it, also when its BMC says
// off, and start once when it is back.
func hostShutdown(tr *trial) {
	v := tr.victim()
	lost := tr.on(v)
	tr.rebooted(lost...)
	tr.ok(v.Shutdown())
	tr.eventually(60*time.Second, v.Name+" to be off", func() bool {
		on, err := v.PowerIsOn()
		return err == nil && !on
	})
	tr.verdict(60*time.Second, v, haven.VerdictShutdown, v)
	var others []*lab.Guest
	for _, g := range tr.ground.guests {
		if !slices.Contains(lost, g) {
			others = append(others, g)
		}
	}
	tr.leftAlone(watched, others...)
	for _, g := range lost {
		if pids := processes(g); len(pids) > 0 {
			tr.t.Errorf("%s was started elsewhere, its host was only shut down", g.Name)
		}
	}
	tr.verdict(10*time.Second, v, haven.VerdictShutdown, v)
}

//go:build lab

package scenarios

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/test/lab"
)

// cutOff are the verdicts about a host that lives and is not reached.
var cutOff = []haven.Verdict{haven.VerdictIsolated, haven.VerdictPartitioned}

// TestNetworkTroubles breaks the network of one cluster of five in many ways.
// Nobody dies of it (P3, P4, P6), and who really dies is restarted once (P1, P2).
func TestNetworkTroubles(t *testing.T) {
	t.Parallel()
	g := newGround(t, options{hosts: 5})

	g.trial(t, "nothing comes in at one host", func(tr *trial) {
		v := tr.victim()
		tr.ok(v.Deafen(tr.t.Context()))
		tr.verdictAmong(60*time.Second, v, cutOff, v)
		tr.leftAlone(watched, g.guests...)
	})

	g.trial(t, "nothing goes out of one host", func(tr *trial) {
		v := tr.victim()
		tr.ok(v.Mute(tr.t.Context()))
		tr.verdictAmong(60*time.Second, v, cutOff, v)
		tr.leftAlone(watched, g.guests...)
	})

	// A master that hears nobody must not take all others for dead. The others
	// have another one soon.
	g.trial(t, "nothing comes in at the master", func(tr *trial) {
		v := tr.master()
		tr.ok(v.Deafen(tr.t.Context()))
		tr.verdictAmong(60*time.Second, v, cutOff, v)
		tr.leftAlone(watched, g.guests...)
	})

	g.trial(t, "nothing goes out of the master", func(tr *trial) {
		v := tr.master()
		tr.ok(v.Mute(tr.t.Context()))
		tr.verdictAmong(60*time.Second, v, cutOff, v)
		tr.leftAlone(watched, g.guests...)
	})

	g.trial(t, "agent and network of one host die at once", func(tr *trial) {
		v := tr.victim()
		tr.ok(v.CutMgmt())
		tr.ok(v.Hold(tr.t.Context(), "havend"))
		tr.verdict(60*time.Second, v, haven.VerdictAgentDown, v)
		tr.leftAlone(watched, g.guests...)
	})

	// Nothing is left of the host to see but that its guests write.
	g.trial(t, "agent, helper and network of one host die, and its guests write on", func(tr *trial) {
		v := tr.victim()
		tr.ok(v.CutMgmt())
		tr.ok(v.Hold(tr.t.Context(), "havend"))
		tr.ok(v.Hold(tr.t.Context(), "haven-helper"))
		tr.verdict(60*time.Second, v, haven.VerdictUnreachable, v)
		tr.leftAlone(watched, g.guests...)
	})

	g.trial(t, "the master loses 30 % of all packets for two minutes", func(tr *trial) {
		tr.ok(tr.master().Lose(tr.t.Context(), 30))
		tr.leftAlone(2*time.Minute, g.guests...)
	})

	g.trial(t, "a link flaps for three minutes", func(tr *trial) {
		v := tr.victim()
		done := make(chan error, 1)
		go func() { done <- v.Flap(tr.t.Context(), 5*time.Second, 3*time.Minute) }()
		tr.leftAlone(3*time.Minute, g.guests...)
		tr.ok(<-done)
	})

	g.trial(t, "the switch is down for everybody for 90 s", switchDown)
	g.trial(t, "a partition of 3 and 2, and a host of the minority dies", minorityDies)
	g.trial(t, "a cold start with half the hosts a minute late", coldStart)
}

// switchDown leaves every host alone with itself: nobody has a majority, and each
// must say so.
func switchDown(tr *trial) {
	tr.ok(tr.lab.SwitchOff())
	begun := time.Now()
	for _, h := range tr.lab.Hosts() {
		c, idle := tr.local(h)
		tr.eventually(60*time.Second, h.Name+" to say that it cannot judge", func() bool {
			ctx, cancel := context.WithTimeout(tr.t.Context(), time.Second)
			defer cancel()
			var st client.Status
			return c.Get(ctx, haven.HostID(h.Name), "/v1/status", &st) == nil && (st.Stale || len(st.Holds) > 0)
		})
		idle()
	}
	tr.leftAlone(90*time.Second-time.Since(begun), tr.ground.guests...)
	tr.ok(tr.lab.SwitchOn(tr.t.Context()))
}

// minorityDies has a partition with the master on the smaller side, on which the
// other host then loses its power. Its guests start on the larger side, and the
// old master's host is left alone.
func minorityDies(tr *trial) {
	master, v := tr.master(), tr.victim()
	tr.ok(tr.lab.Partition(tr.t.Context(), master, v))
	tr.verdictAmong(60*time.Second, v, cutOff, master, v)
	tr.verdictAmong(60*time.Second, master, cutOff, master, v)
	tr.leftAlone(watched, tr.ground.guests...)

	lost := tr.on(v, master, v)
	tr.watch.excuse(v)
	tr.rebooted(lost...)
	before := tr.nonces(lost)
	tr.ok(v.CutPower(tr.t.Context()))
	for g, nonce := range before {
		tr.elsewhere(90*time.Second, g, nonce)
	}
	if in := tr.incident(v, master, v); in.Proof == nil || in.Proof.Kind != haven.ProofPowerOff || len(in.Attempts) != 0 {
		tr.t.Errorf("P2: proof %+v after the power commands %+v", in.Proof, in.Attempts)
	}
	if still := tr.on(v, master, v); len(still) > 0 {
		tr.t.Errorf("P1: the dead host still owns %d guests", len(still))
	}
	tr.writing(tr.ground.guests...)
}

// coldStart cuts the power of all hosts and gives it back to some of them a minute
// later than to the others. Those are not taken for dead meanwhile: the start-up
// grace is longer than that.
func coldStart(tr *trial) {
	hosts := tr.lab.Hosts()
	late := hosts[3:]
	tr.rebooted(tr.ground.guests...)
	for _, h := range hosts {
		file := filepath.Join(h.ConfigDir, "haven.yaml")
		data, err := os.ReadFile(file)
		tr.ok(err)
		tr.ok(os.WriteFile(file, []byte(strings.Replace(string(data), shortGrace, "start_up_grace: 90s", 1)), 0o600))
	}
	tr.ok(tr.lab.Each(func(h *lab.Host) error { return h.CutPower(tr.t.Context()) }))
	on := func(hosts []*lab.Host) {
		tr.t.Helper()
		for _, h := range hosts {
			tr.ok(h.PowerOn(tr.t.Context()))
		}
		for _, h := range hosts {
			tr.ok(h.WaitReady(tr.t.Context()))
		}
	}
	begun := time.Now()
	on(hosts[:3])
	ask(tr.site, 60*time.Second, "/v1/status", "a master in its start-up grace", func(st client.Status) bool {
		for _, h := range st.Holds {
			if h.Reason == haven.HoldGrace {
				return !st.Stale
			}
		}
		return false
	}, late...)
	select {
	case <-time.After(time.Minute - time.Since(begun)):
	case <-tr.t.Context().Done():
	}
	on(late)
}

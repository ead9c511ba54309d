//go:build lab

package scenarios

import (
	"context"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/test/lab"
)

// armed waits until each host's watchdog runs, and the ledger relies on it.
func (s *site) armed() {
	s.t.Helper()
	for _, h := range s.lab.Hosts() {
		s.waitArmed(h)
	}
}

// TestWatchdog: hosts arm their watchdogs. What no device can prove any more is
// proved by time (P1, P2).
func TestWatchdog(t *testing.T) {
	t.Parallel()
	// Beats have a store of their own, so that a host can be cut off from it while its
	// guests write on.
	s := newSite(t, options{
		watchdog: "timeout: 10s", twoStores: true, stores: "{name: beats, type: dir, path: " + lab.HostSecondStorePath + "/.haven}",
		fencing: shortClimb,
	})
	for i, tc := range []struct {
		name string
		run  func(*site, int)
	}{
		{"host and BMC lose their power together", (*site).mainsCutWithDog},
		{"a host is cut off from everything and runs on", (*site).cutOffWithDog},
	} {
		if !t.Run(tc.name, func(t *testing.T) {
			here := *s
			here.t = t
			tc.run(&here, i)
		}) {
			break
		}
	}
}

func (s *site) mainsCutWithDog(i int) {
	s.t.Helper()
	s.trusted()
	s.armed()
	victim := s.slaves()[i%2]
	guests := s.guests(victim, "w"+victim.Name, "x"+victim.Name)
	s.neverTwice(guests...)
	before := s.noncesOf(guests...)
	cut := time.Now()
	s.ok(victim.CutMains(s.t.Context()))
	var first time.Time
	for g, nonce := range before {
		w := s.elsewhere(climbLimit, g, nonce)
		if first.IsZero() || w.At.Before(first) {
			first = w.At
		}
	}
	s.settledIncident(victim, time.Minute, victim)
	in := s.incident(victim, victim)
	s.byTime(in)
	s.t.Logf("RECOVERY BY TIME: proof %s after the cut, first write %s", in.Proof.At.Sub(cut).Round(10*time.Millisecond), first.Sub(cut).Round(10*time.Millisecond))
	s.ok(victim.RestoreMains(s.t.Context()))
	s.ok(victim.PowerOn(s.t.Context()))
	s.back(victim, guests...)
	s.armed()
	s.once(2, guests...)
	for _, g := range guests {
		s.remove(g)
	}
}

// byTime checks that an incident was proved by the watchdog's time.
func (s *site) byTime(in client.Incident) {
	s.t.Helper()
	if in.Proof == nil || in.Proof.Kind != haven.ProofWatchdog {
		s.t.Fatalf("P2: the proof is %+v", in.Proof)
	}
	s.t.Logf("proof: %s", in.Proof.Detail)
}

// cutOffWithDog leaves a host and its guests alone: it has no network, its beats
// reach nobody, its BMC does not answer. Its guests write on, until its watchdog
// resets it; only then they start elsewhere.
func (s *site) cutOffWithDog(i int) {
	s.t.Helper()
	s.trusted()
	s.armed()
	ctx := s.t.Context()
	victim := s.slaves()[i%2]
	guests := s.guests(victim, "y"+victim.Name, "z"+victim.Name)
	s.neverTwice(guests...)
	before := s.noncesOf(guests...)
	boot, err := victim.BootID()
	s.ok(err)
	firings, err := victim.WatchdogFirings()
	s.ok(err)
	cut := time.Now()
	s.ok(victim.UnplugBMC(ctx))
	s.ok(victim.SecondStorage(ctx, lab.StorageHang))
	s.ok(victim.CutStor())
	s.ok(victim.CutOOB())
	s.ok(victim.CutMgmt())
	s.writingOn(3*time.Second, guests...)

	long, cancel := context.WithTimeout(ctx, climbLimit)
	defer cancel()
	fired, err := victim.WaitWatchdogFired(long, len(firings)+1)
	s.ok(err)
	for g, nonce := range before {
		if now := s.nonce(g); now != nonce {
			s.t.Errorf("P1: %s was started elsewhere before its host was reset", g.Name)
		}
	}
	for g, nonce := range before {
		w := s.elsewhere(climbLimit, g, nonce)
		s.t.Logf("RECOVERY BY TIME: %s: reset %s after the cut, first write %s", g.Name, fired.Sub(cut).Round(10*time.Millisecond), w.At.Sub(cut).Round(10*time.Millisecond))
	}
	s.settledIncident(victim, time.Minute, victim)
	in := s.incident(victim, victim)
	s.byTime(in)
	s.t.Logf("RECOVERY BY TIME: proof %s after the cut", in.Proof.At.Sub(cut).Round(10*time.Millisecond))
	if in.Proof.At.Before(fired) {
		s.t.Errorf("P2: proved at %s, and the watchdog fired at %s", in.Proof.At, fired)
	}
	s.ok(victim.WaitReady(ctx)) // it was reset, and is alone
	if now, err := victim.BootID(); err != nil || now == boot {
		s.t.Errorf("the host was not reset: boot %s, %v", now, err)
	}
	s.ok(victim.HealBMC(ctx))
	s.ok(victim.SecondStorage(ctx, lab.StorageOK))
	s.ok(victim.HealStor(ctx))
	s.ok(victim.HealOOB(ctx))
	s.ok(victim.HealMgmt(ctx))
	s.back(victim, guests...)
	s.once(2, guests...)
}

//go:build lab

package scenarios

import (
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
)

// TestPowerCut: a host loses its power; its BMC stays and says so (P1, P2, P7).
func TestPowerCut(t *testing.T) {
	s := newSite(t, options{})
	victim := s.slave()
	guests := s.guests(victim, "a", "b")
	before := s.nonce(guests[0])
	other := s.nonce(guests[1])
	cut := time.Now()
	s.ok(victim.CutPower(t.Context()))
	w := s.elsewhere(30*time.Second, guests[0], before)
	s.elsewhere(30*time.Second, guests[1], other)
	t.Logf("first write elsewhere %s after the cut", w.At.Sub(cut).Round(time.Millisecond))
	s.settled(30*time.Second, victim)
	s.once(2, guests...)
	in := s.incident(victim, victim)
	if in.Proof == nil || in.Proof.Kind != haven.ProofPowerOff {
		t.Errorf("P2: the proof is %+v", in.Proof)
	}
	cmds, err := victim.PowerCommands()
	s.ok(err)
	if len(cmds) > 0 {
		t.Errorf("the host was off already, yet its BMC got %v", cmds)
	}
	phases(t, in, guests[0].Name, cut, w.At)
}

// phases prints when what happened after the fault.
func phases(t testing.TB, in client.Incident, name string, cut, write time.Time) {
	t.Helper()
	since := func(at time.Time) string {
		if at.IsZero() {
			return "-"
		}
		return at.Sub(cut).Round(time.Millisecond).String()
	}
	for _, vm := range in.VMs {
		if vm.Name == name && in.Proof != nil {
			t.Logf("PHASES suspected %s, verdict %s, proof %s, order %s, running %s, first write %s",
				since(in.SuspectedAt), since(in.OpenedAt), since(in.Proof.At), since(vm.OrderedAt), since(vm.ReportedAt), since(write))
		}
	}
}

//go:build lab

package scenarios

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/test/lab"
)

// TestPowerCut: a host loses its power; its BMC stays and says so (P1, P2, P7).
func TestPowerCut(t *testing.T) {
	t.Parallel()
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

// TestMasterPowerCut: the host that loses its power is the master's own (P1, P3, P7).
func TestMasterPowerCut(t *testing.T) {
	t.Parallel()
	s := newSite(t, options{})
	victim := s.master()
	guests := s.guests(victim, "a", "b")
	before := s.nonce(guests[0])
	other := s.nonce(guests[1])
	cut := time.Now()
	s.ok(victim.CutPower(t.Context()))
	w := s.elsewhere(60*time.Second, guests[0], before)
	s.elsewhere(30*time.Second, guests[1], other)
	s.settled(30*time.Second, victim)
	s.once(2, guests...)
	phases(t, s.incident(victim, victim), guests[0].Name, cut, w.At)
}

// TestKernelHang: a host's kernel stops; its BMC says on. It must be fenced, and
// proved off, before anything else (P1, P2).
func TestKernelHang(t *testing.T) {
	t.Parallel()
	s := newSite(t, options{})
	victim := s.slave()
	guests := s.guests(victim, "a", "b")
	before := s.nonce(guests[0])
	hung := time.Now()
	s.ok(victim.Hang(t.Context()))
	w := s.elsewhere(60*time.Second, guests[0], before)
	s.settled(60*time.Second, victim)
	s.once(2, guests...)
	cmds, err := victim.PowerCommands()
	s.ok(err)
	if len(cmds) == 0 || cmds[0].Command != "off" {
		t.Errorf("P2: the BMC got %v, want an off first", cmds)
	}
	in := s.incident(victim, victim)
	if len(cmds) > 0 && in.Proof != nil && in.Proof.At.Before(cmds[0].At) {
		t.Errorf("P2: proved at %s, before the power-off at %s", in.Proof.At, cmds[0].At)
	}
	phases(t, in, guests[0].Name, hung, w.At)
}

// watched is how long a fault that must lead to nothing is looked at: longer
// than every time after which Haven would act on a dead host.
const watched = 20 * time.Second

// untouched checks that for a while no BMC gets a command, no VM stops writing
// and none is started anywhere (P4).
func (s *site) untouched(during time.Duration, boots uint32, guests []*lab.Guest) {
	s.t.Helper()
	end := time.Now().Add(during)
	for time.Now().Before(end) {
		for _, g := range guests {
			h, err := g.Header()
			s.ok(err)
			ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
			_, err = g.WaitWrite(ctx, h.Seq)
			cancel()
			if err != nil {
				s.t.Fatalf("P4: %s stopped writing: %v", g.Name, err)
			}
		}
		select {
		case <-s.t.Context().Done():
			s.t.Fatal("out of time")
		case <-time.After(200 * time.Millisecond):
		}
	}
	s.noPowerCommands()
	s.once(boots, guests...)
}

// TestAgentKilled: the agent of a host dies and stays down; the host and its
// helper live. It is reported, and nothing else is touched (P4).
func TestAgentKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t, options{})
	victim := s.slave()
	guests := s.guests(victim, "a")
	s.ok(victim.Hold(t.Context(), "havend"))
	s.verdict(40*time.Second, victim, haven.VerdictAgentDown, victim)
	in := s.incident(victim, victim)
	if in.Verdict != haven.VerdictAgentDown && in.Verdict != haven.VerdictSuspect {
		t.Errorf("the incident's verdict is %s", in.Verdict)
	}
	s.untouched(watched, 1, guests)
	s.ok(victim.Start(t.Context(), "havend"))
	s.whole()
	s.settled(30 * time.Second)
	s.noPowerCommands()
	s.once(1, guests...)
}

// TestNetworkCut: a host loses its management network; its beats go on (P4).
func TestNetworkCut(t *testing.T) {
	t.Parallel()
	s := newSite(t, options{})
	victim := s.slave()
	guests := s.guests(victim, "a")
	s.ok(victim.CutMgmt())
	s.verdict(40*time.Second, victim, haven.VerdictIsolated, victim)
	s.untouched(watched, 1, guests)
	s.ok(victim.HealMgmt(t.Context()))
	s.whole()
	s.settled(30 * time.Second)
	s.noPowerCommands()
	s.once(1, guests...)
}

// TestMasterNetworkCut: the master loses its management network. The others
// elect another one, and nobody is fenced (P3, P4).
func TestMasterNetworkCut(t *testing.T) {
	t.Parallel()
	s := newSite(t, options{})
	victim := s.master()
	guests := s.guests(victim, "a")
	s.ok(victim.CutMgmt())
	s.verdict(40*time.Second, victim, haven.VerdictIsolated, victim)
	s.untouched(watched, 1, guests)
	s.ok(victim.HealMgmt(t.Context()))
	s.whole()
	s.settled(30 * time.Second)
	s.noPowerCommands()
	s.once(1, guests...)
}

// TestStorageHungForOne: one host's storage hangs. Its network lives, so it is
// reported and left alone (P4, P8).
func TestStorageHungForOne(t *testing.T) {
	t.Parallel()
	s := newSite(t, options{})
	victim := s.slave()
	neighbour := s.master()
	guests := s.guests(neighbour, "a")
	s.guests(victim, "b") // it cannot write while its storage hangs
	s.ok(victim.Storage(t.Context(), lab.StorageHang))
	s.verdict(40*time.Second, victim, haven.VerdictStorageLost)
	s.untouched(watched, 1, guests)
	s.ok(victim.Storage(t.Context(), lab.StorageOK))
	s.whole()
	s.settled(60 * time.Second)
	s.noPowerCommands()
	s.once(1, guests...)
}

// TestStorageHungForAll: the storage itself fails. Everybody's beats stop; that
// is an outage of the storage and not of any host (P4, P6).
func TestStorageHungForAll(t *testing.T) {
	t.Parallel()
	s := newSite(t, options{})
	host := s.slave()
	guests := s.guests(host, "a")
	s.ok(s.lab.StorageAll(t.Context(), lab.StorageHang))
	st := ask(s, 40*time.Second, "/v1/status", "a storage outage", func(st client.Status) bool {
		return slices.ContainsFunc(st.Holds, func(h haven.Hold) bool { return h.Reason == haven.HoldStorageOutage || h.Reason == haven.HoldObserver })
	})
	t.Logf("held: %+v", st.Holds)
	select {
	case <-time.After(watched):
	case <-t.Context().Done():
	}
	s.noPowerCommands()
	s.ok(s.lab.StorageAll(t.Context(), lab.StorageOK))
	s.whole()
	s.settled(60 * time.Second)
	s.noPowerCommands()
	s.once(1, guests...)
}

// killMasterWhen kills the master's agent as soon as an incident of the victim
// satisfies the condition, as the master itself tells it.
func (s *site) killMasterWhen(victim, master *lab.Host, what string, cond func(client.Incident) bool) {
	s.t.Helper()
	others := slices.DeleteFunc(slices.Clone(s.lab.Hosts()), func(h *lab.Host) bool { return h == master })
	all := ask(s, 60*time.Second, "/v1/incidents", what, func(all []client.Incident) bool {
		return slices.ContainsFunc(all, func(in client.Incident) bool { return string(in.Host) == victim.Name && cond(in) })
	}, others...)
	s.ok(master.Hold(s.t.Context(), "havend"))
	s.t.Logf("master %s killed: %s", master.Name, all[0].Step)
}

// TestMasterKilledBetweenOffAndProof: the master dies after it decided the
// power-off and before the proof is in the ledger. The next one goes on (P7).
func TestMasterKilledBetweenOffAndProof(t *testing.T) {
	s := newSite(t, options{hosts: 5}) // two dead voters of five leave a quorum
	master := s.master()
	victim := s.slave()
	guests := s.guests(victim, "a", "b")
	before := s.nonce(guests[0])
	s.ok(victim.SlowBMC(1500 * time.Millisecond)) // keeps the window open
	s.ok(victim.Hang(t.Context()))
	s.killMasterWhen(victim, master, "a power-off that was decided", func(in client.Incident) bool {
		return len(in.Attempts) > 0 && in.Proof == nil
	})
	s.ok(victim.SlowBMC(0))
	s.elsewhere(90*time.Second, guests[0], before)
	s.settledIncident(victim, 60*time.Second, victim, master)
	s.once(2, guests...)
	s.ok(master.Start(t.Context(), "havend"))
	s.settled(90*time.Second, victim)
	s.once(2, guests...)
}

// TestMasterKilledBetweenOrderAndReport: the master dies when the order is out
// and nothing was heard of it yet. Nothing is started twice (P1, P7).
func TestMasterKilledBetweenOrderAndReport(t *testing.T) {
	s := newSite(t, options{hosts: 5}) // two dead voters of five leave a quorum
	master := s.master()
	victim := s.slave()
	guests := s.guests(victim, "a", "b")
	before, other := s.nonce(guests[0]), s.nonce(guests[1])
	s.ok(victim.CutPower(t.Context()))
	s.killMasterWhen(victim, master, "an order that is out", func(in client.Incident) bool {
		return slices.ContainsFunc(in.VMs, func(v client.IncidentVM) bool { return v.Phase == "ordered" })
	})
	ask(s, 30*time.Second, "/v1/members", "another master", func(m client.Members) bool {
		return m.Master != "" && string(m.Master) != master.Name
	}, victim, master)
	// An order that went to the dead master's own host stays there until its
	// agent is back and says what became of it.
	s.ok(master.Start(t.Context(), "havend"))
	s.elsewhere(90*time.Second, guests[0], before)
	s.elsewhere(90*time.Second, guests[1], other)
	s.settledIncident(victim, 60*time.Second, victim)
	s.settled(90*time.Second, victim)
	s.once(2, guests...)
}

// settledIncident waits until the host's incident is closed.
func (s *site) settledIncident(victim *lab.Host, limit time.Duration, but ...*lab.Host) {
	s.t.Helper()
	ask(s, limit, "/v1/incidents", "the incident's end", func(all []client.Incident) bool {
		return slices.ContainsFunc(all, func(in client.Incident) bool { return string(in.Host) == victim.Name }) &&
			!slices.ContainsFunc(all, func(in client.Incident) bool { return string(in.Host) == victim.Name && in.Step != haven.StepClosed })
	}, but...)
}

// TestReturningHost: a host that was fenced comes back. It starts nothing by
// itself, and its stale definitions are set aside (P1).
func TestReturningHost(t *testing.T) {
	t.Parallel()
	s := newSite(t, options{})
	victim := s.slave()
	guests := s.guests(victim, "a")
	_, err := victim.Virsh(t.Context(), "autostart", "a")
	s.ok(err)
	before := s.nonce(guests[0])
	// Haven takes the autostart over; only then is the host lost.
	s.eventually(30*time.Second, "autostart taken over", func() bool {
		out, err := victim.Virsh(t.Context(), "dominfo", "a")
		return err == nil && autostartOff.MatchString(out)
	})
	s.ok(victim.CutPower(t.Context()))
	s.elsewhere(30*time.Second, guests[0], before)
	s.settled(30*time.Second, victim)
	s.ok(victim.PowerOn(t.Context()))
	s.ok(victim.WaitReady(t.Context()))
	s.whole()
	s.eventually(60*time.Second, "stale definition set aside", func() bool {
		out, err := victim.Virsh(t.Context(), "list", "--all", "--name")
		return err == nil && !slices.Contains(strings.Fields(out), "a")
	})
	s.once(2, guests...)
}

var autostartOff = regexp.MustCompile(`Autostart:\s+disable`)

func (s *site) eventually(limit time.Duration, what string, cond func() bool) {
	s.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(end) {
			s.t.Fatalf("waited %s for %s", limit, what)
		}
		<-tick.C
	}
}

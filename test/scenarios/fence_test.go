//go:build lab

package scenarios

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/test/lab"
)

// climbLimit is how long a host that hangs is waited for until its ladder is
// climbed once, with a first level that fails: the verdict, 40 s, and room for a
// busy machine.
const climbLimit = 3 * time.Minute

// shortClimb gives a level as little time as is possible.
const shortClimb = "verify_timeout: 40s"

// trusted waits until an off of each host's devices would be a proof.
func (s *site) trusted() {
	s.t.Helper()
	s.whole()
	ask(s, 90*time.Second, "/v1/hosts", "fence devices that are trusted", func(hosts []client.Host) bool {
		return !slices.ContainsFunc(hosts, func(h client.Host) bool { return !h.PowerTrusted })
	})
}

// slaves are the hosts that do not lead.
func (s *site) slaves() []*lab.Host {
	s.t.Helper()
	master := s.master()
	return slices.DeleteFunc(s.lab.Hosts(), func(h *lab.Host) bool { return h == master })
}

// neverTwice looks at the processes of guests until the test is over, twice a
// second: none may have two, on whatever hosts (P1).
func (s *site) neverTwice(guests ...*lab.Guest) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	w := &watch{guests: map[*lab.Guest]int{}}
	w.excuseGuests(guests)
	w.over.Go(func() { w.processLoop(ctx) })
	s.t.Cleanup(func() {
		cancel()
		w.over.Wait()
		for _, what := range w.wrong {
			s.t.Error(what)
		}
	})
}

// blocked waits until the fence of a host ended without a proof, and returns its
// incident.
func (s *site) blocked(victim *lab.Host) client.Incident {
	s.t.Helper()
	var held client.Incident
	ask(s, climbLimit, "/v1/incidents", "a fence of "+victim.Name+" that is blocked", func(all []client.Incident) bool {
		i := slices.IndexFunc(all, func(in client.Incident) bool {
			return string(in.Host) == victim.Name && in.Step != haven.StepClosed && in.Hold.Reason == haven.HoldFenceBlocked
		})
		if i >= 0 {
			held = all[i]
		}
		return i >= 0
	}, victim)
	s.t.Logf("%s is held: %s", victim.Name, held.Hold.Detail)
	return held
}

// stays checks that a guest still writes from the boot that it had, or not at all.
func (s *site) stays(g *lab.Guest, nonce uint32) {
	s.t.Helper()
	j, err := g.Journal()
	s.ok(err)
	if now := s.nonce(g); now != nonce || j.Boots != 1 {
		s.t.Errorf("P1: %s was started elsewhere without a proof", g.Name)
	}
}

// recovered waits until guests of a host were started on another one and its
// incident is over, and returns that. Until the host is back it is not asked.
func (s *site) recovered(limit time.Duration, victim *lab.Host, before map[*lab.Guest]uint32) client.Incident {
	s.t.Helper()
	for g, nonce := range before {
		s.elsewhere(limit, g, nonce)
	}
	s.settledIncident(victim, time.Minute, victim)
	in := s.fenced(victim)
	s.t.Logf("incident of %s: %s, attempts %+v, proof %+v", victim.Name, in.Outcome, in.Attempts, in.Proof)
	return in
}

// fenced is the newest incident of a host in which a power-off was decided. One that
// boots may be suspected once more.
func (s *site) fenced(victim *lab.Host) client.Incident {
	s.t.Helper()
	var id haven.IncidentID
	ask(s, 10*time.Second, "/v1/incidents", "an incident of "+victim.Name+" with a fence", func(all []client.Incident) bool {
		i := slices.IndexFunc(all, func(in client.Incident) bool { return string(in.Host) == victim.Name && len(in.Attempts) > 0 })
		if i >= 0 {
			id = all[i].ID
		}
		return i >= 0
	}, victim)
	return ask(s, 10*time.Second, "/v1/incidents/"+string(id), "that incident", func(client.Incident) bool { return true }, victim)
}

// noncesOf are the boots of guests that write now.
func (s *site) noncesOf(guests ...*lab.Guest) map[*lab.Guest]uint32 {
	s.t.Helper()
	all := map[*lab.Guest]uint32{}
	for _, g := range guests {
		all[g] = s.nonce(g)
	}
	return all
}

// back waits until a host that was off takes part again, and has set aside what it
// knew of guests that run elsewhere by now.
func (s *site) back(h *lab.Host, moved ...*lab.Guest) {
	s.t.Helper()
	s.ok(h.WaitReady(s.t.Context()))
	s.whole()
	s.settled(2 * time.Minute)
	for _, g := range moved {
		owner := s.owner(g)
		if owner == h {
			continue
		}
		s.eventually(time.Minute, "the stale definition of "+g.Name+" on "+h.Name+" to be set aside", func() bool {
			out, err := h.Virsh(s.t.Context(), "list", "--all", "--name")
			return err == nil && !slices.Contains(strings.Fields(out), g.Name)
		})
	}
}

// owner is the host on which a guest is, by the ledger.
func (s *site) owner(g *lab.Guest, but ...*lab.Host) *lab.Host {
	s.t.Helper()
	var owner *lab.Host
	ask(s, 30*time.Second, "/v1/vms", "the owner of "+g.Name, func(vms []client.VM) bool {
		for _, v := range vms {
			if v.Name == g.Name && v.Phase == "owned" {
				h, err := s.lab.HostNamed(string(v.Owner))
				s.ok(err)
				owner = h
				return true
			}
		}
		return false
	}, but...)
	return owner
}

// said is when the first of the commands that begin with a word came, or zero.
func said(cmds []lab.PowerCommand, word string) time.Time {
	for _, c := range cmds {
		if strings.HasPrefix(c.Command, word) {
			return c.At
		}
	}
	return time.Time{}
}

func count(cmds []lab.PowerCommand, word string) (n int) {
	for _, c := range cmds {
		if strings.HasPrefix(c.Command, word) {
			n++
		}
	}
	return n
}

// inTimeline says whether a line of the time line has all of the words.
func inTimeline(in client.Incident, words ...string) bool {
	return slices.ContainsFunc(in.Timeline, func(e client.TimelineEntry) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(e.What, w) })
	})
}

// haven runs the operator's tool on a host, as root, and returns what it printed
// and its exit code.
func (s *site) haven(h *lab.Host, args ...string) (out string, code int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	out, err := h.Exec(ctx, append([]string{"sh", "-c", `exec "$@" 2>&1`, "sh", binaries + "/haven"}, args...)...)
	exit, is := errors.AsType[*exec.ExitError](err)
	if err != nil && !is {
		s.t.Fatal(err)
	}
	s.t.Logf("%s: haven %s: %s", h.Name, strings.Join(args, " "), strings.TrimSpace(out))
	if is {
		return out, exit.ExitCode()
	}
	return out, 0
}

// alarmed waits until an agent told people of something about a host.
func (s *site) alarmed(limit time.Duration, kind string, h *lab.Host, words ...string) {
	s.t.Helper()
	s.logged(limit, append([]string{"level=WARN", "msg=notice ", " kind=" + kind + " ", " host=" + h.Name + " "}, words...)...)
}

// logged waits until an agent wrote a line with all of the words.
func (s *site) logged(limit time.Duration, words ...string) {
	s.t.Helper()
	s.eventually(limit, "a line of a log with "+strings.Join(words, " and "), func() bool {
		for _, h := range s.lab.Hosts() {
			data, err := os.ReadFile(filepath.Join(h.LogDir, "havend.log"))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				s.t.Fatal(err)
			}
			for line := range bytes.Lines(data) {
				if !slices.ContainsFunc(words, func(w string) bool { return !bytes.Contains(line, []byte(w)) }) {
					return true
				}
			}
		}
		return false
	})
}

// TestTwoSupplies: a host has two power supplies, each on a switched outlet. One of
// them that is off proves nothing, neither while the host lives nor while it hangs
// and the other outlet is stuck. Both off do, and only then is it switched on again
// (P1, P2).
func TestTwoSupplies(t *testing.T) {
	t.Parallel()
	s := newSite(t, options{feeds: 2, levels: "[[psu-a, psu-b]]", action: "reboot", fencing: shortClimb})
	s.trusted()
	victim := s.slave()
	guests := s.guests(victim, "a", "b")
	s.neverTwice(guests...)

	s.ok(victim.SwitchOutlet(t.Context(), "a", false))
	for range 3 { // the master keeps what it reads for people
		if out, code := s.haven(victim, "fence", "status", victim.Name); code != 0 || !strings.Contains(out, "psu-a: power off") || !strings.Contains(out, "psu-b: power on") {
			t.Fatalf("fence status ends with %d: %s", code, out)
		}
		s.untouched(2*time.Second, 1, guests)
	}
	s.verdict(10*time.Second, victim, haven.VerdictHealthy)
	s.ok(victim.SwitchOutlet(t.Context(), "a", true))
	s.trusted()

	before := s.noncesOf(guests...)
	s.ok(victim.StickOutlet("b", true))
	s.ok(victim.Hang(t.Context()))
	in := s.blocked(victim)
	s.outlets(victim, false, true)
	for _, want := range []string{"psu-a: off, read", "psu-b: not proved off", "haven fence confirm " + victim.Name} {
		if !strings.Contains(in.Hold.Detail, want) {
			t.Errorf("P9: the hold does not say %q", want)
		}
	}
	for g, nonce := range before {
		s.stays(g, nonce)
	}
	if in.Proof != nil {
		t.Errorf("P2: one supply of two is off: %+v", in.Proof)
	}

	s.ok(victim.StickOutlet("b", false))
	in = s.recovered(climbLimit, victim, before)
	cmds, err := victim.OutletCommands()
	s.ok(err)
	if in.Proof == nil || in.Proof.Kind != haven.ProofPowerOff {
		t.Errorf("P2: the proof is %+v", in.Proof)
	}
	offA, offB, on := said(cmds, "off a"), said(cmds, "off b"), said(cmds, "on ")
	if offA.IsZero() || offB.IsZero() || in.Proof != nil && (in.Proof.At.Before(offA) || in.Proof.At.Before(offB)) {
		t.Errorf("P2: proved at %+v after the commands %v", in.Proof, cmds)
	}
	if on.IsZero() || in.Proof != nil && on.Before(in.Proof.At.Truncate(time.Millisecond)) || said(cmds, "on a").IsZero() || said(cmds, "on b").IsZero() {
		t.Errorf("both are to be switched on, after both were off: %v", cmds)
	}
	s.back(victim, guests...)
	s.outlets(victim, true, true)
	s.once(2, guests...)
}

// outlets checks how a host's outlets are.
func (s *site) outlets(h *lab.Host, want ...bool) {
	s.t.Helper()
	for i, f := range h.Feeds {
		on, err := h.OutletIsOn(f.Name)
		s.ok(err)
		if on != want[i] {
			s.t.Errorf("outlet %s of %s: on is %v, want %v", f.Name, h.Name, on, want[i])
		}
	}
}

// TestEscalation: a host hangs, and its BMC does not switch it off. The second level
// is a power strip that a program switches: it does (P1, P2, P7, P9).
func TestEscalation(t *testing.T) {
	t.Parallel()
	s := newSite(t, options{feeds: 1, levels: "[[bmc], [psu-a]]", fencing: shortClimb})
	for i, tc := range []struct {
		name  string
		fault func(*lab.Host) error
		asked bool // whether a command reaches the BMC
	}{
		{"the BMC hangs", func(h *lab.Host) error { return h.HangBMC(t.Context()) }, false},
		{"the BMC says that it is done and does nothing", func(h *lab.Host) error { return h.SulkBMC(lab.BMCIgnores) }, true},
		{"the BMC refuses", func(h *lab.Host) error { return h.SulkBMC(lab.BMCRefuses) }, true},
	} {
		if !t.Run(tc.name, func(t *testing.T) {
			here := *s
			here.t = t
			here.escalates(i, tc.fault, tc.asked)
		}) {
			break // what follows would tell nothing
		}
	}
}

func (s *site) escalates(i int, fault func(*lab.Host) error, asked bool) {
	s.t.Helper()
	s.trusted()
	slaves := s.slaves()
	victim := slaves[i%len(slaves)]
	g := s.guests(victim, "e"+victim.Name+string(rune('a'+i)))[0]
	s.neverTwice(g)
	bmcBefore, err := victim.PowerCommands()
	s.ok(err)
	before := s.noncesOf(g)
	s.ok(fault(victim))
	s.ok(victim.Hang(s.t.Context()))
	in := s.recovered(climbLimit, victim, before)
	bmc, err := victim.PowerCommands()
	s.ok(err)
	if got := count(bmc[len(bmcBefore):], "off") > 0; got != asked {
		s.t.Errorf("the BMC got %v", bmc[len(bmcBefore):])
	}
	strip, err := victim.OutletCommands()
	s.ok(err)
	if len(strip) == 0 || strip[len(strip)-1].Command != "off a" {
		s.t.Errorf("the power strip got %v", strip)
	}
	if in.Proof == nil || in.Proof.Kind != haven.ProofPowerOff || len(strip) > 0 && in.Proof.At.Before(strip[len(strip)-1].At) {
		s.t.Errorf("P2: the proof is %+v", in.Proof)
	}
	if !inTimeline(in, "level 1: bmc: not proved off: ", "level 2: psu-a: ") {
		s.t.Errorf("P9: the time line does not tell of the two levels: %+v", in.Timeline)
	}
	s.ok(victim.SulkBMC(lab.BMCObeys))
	s.ok(victim.SwitchOutlet(s.t.Context(), "a", true))
	s.back(victim, g)
	s.once(2, g)
	s.remove(g)
}

// TestReboot: a host that hangs is powered off, its guests start elsewhere, and then
// it is powered on again, joins, and takes guests (P1, P2).
func TestReboot(t *testing.T) {
	t.Parallel()
	s := newSite(t, options{action: "reboot"})
	s.trusted()
	victim := s.slave()
	guests := s.guests(victim, "a", "b")
	s.neverTwice(guests...)
	before := s.noncesOf(guests...)
	s.ok(victim.Hang(t.Context()))
	for g, nonce := range before {
		s.elsewhere(time.Minute, g, nonce)
	}
	s.back(victim, guests...)
	s.once(2, guests...)
	in := s.fenced(victim)
	cmds, err := victim.PowerCommands()
	s.ok(err)
	if n := len(cmds); n < 2 || cmds[0].Command != "off" || cmds[n-1].Command != "on" || count(cmds, "on") != 1 {
		t.Errorf("the BMC got %v", cmds)
	}
	if in.Proof == nil || in.Proof.Kind != haven.ProofPowerOff || said(cmds, "on").Before(in.Proof.At.Truncate(time.Millisecond)) {
		t.Errorf("P2: on at %v, proof %+v", cmds, in.Proof)
	}
	s.alarmedNot("power-on-failed")

	// The one host that may take guests is the one that was rebooted.
	owner := s.owner(guests[0])
	var third *lab.Host
	for _, h := range s.lab.Hosts() {
		if h != owner && h != victim {
			third = h
		}
	}
	if out, code := s.haven(victim, "maintenance", "on", third.Name, "--reason", "it is to take no guests"); code != 0 {
		t.Fatalf("maintenance ends with %d: %s", code, out)
	}
	lost := slices.DeleteFunc(slices.Clone(guests), func(g *lab.Guest) bool { return s.owner(g) != owner })
	before = s.noncesOf(lost...)
	s.ok(owner.CutPower(t.Context()))
	for g, nonce := range before {
		s.elsewhere(90*time.Second, g, nonce)
		if now := s.owner(g, owner); now != victim {
			t.Errorf("%s runs on %s, want %s", g.Name, now.Name, victim.Name)
		}
	}
	s.settledIncident(owner, time.Minute, owner)
	s.once(3, lost...)
}

// alarmedNot checks that nobody told people of something.
func (s *site) alarmedNot(kind string) {
	s.t.Helper()
	for _, h := range s.lab.Hosts() {
		data, err := os.ReadFile(filepath.Join(h.LogDir, "havend.log"))
		s.ok(err)
		for line := range bytes.Lines(data) {
			if bytes.Contains(line, []byte("msg=notice ")) && bytes.Contains(line, []byte(" kind="+kind+" ")) {
				s.t.Errorf("%s told: %s", h.Name, line)
			}
		}
	}
}

// TestPowerReturns: the power of a dead host comes back by itself in the middle of
// its recovery, and the host boots. Its guests run once, wherever; the host takes
// part again; and nobody powers it off for what its old boot did (P1, P2, P4).
func TestPowerReturns(t *testing.T) {
	t.Parallel()
	s := newSite(t, options{})
	for i, tc := range []struct {
		name string
		die  func(*lab.Host) error
		wait func(*site, *lab.Host) // until the power comes back
		offs bool                   // whether it takes power commands
	}{
		{"a moment after the cut", func(h *lab.Host) error { return h.CutPower(t.Context()) }, (*site).suspected, false},
		{"before it is proved", func(h *lab.Host) error { return h.Hang(t.Context()) }, (*site).isOff, true},
		{"while its guests are placed", func(h *lab.Host) error { return h.Hang(t.Context()) }, (*site).proved, true},
	} {
		if !t.Run(tc.name, func(t *testing.T) {
			here := *s
			here.t = t
			here.returns(i, tc.die, tc.wait, tc.offs)
		}) {
			break // what follows would tell nothing
		}
	}
}

func (s *site) returns(i int, die func(*lab.Host) error, wait func(*site, *lab.Host), offs bool) {
	s.t.Helper()
	s.trusted()
	slaves := s.slaves()
	victim := slaves[i%len(slaves)]
	suffix := "-" + victim.Name + string(rune('a'+i))
	guests := s.guests(victim, "p"+suffix, "q"+suffix, "r"+suffix)
	s.neverTwice(guests...)
	had, err := victim.PowerCommands()
	s.ok(err)
	before := s.noncesOf(guests...)
	s.ok(die(victim))
	wait(s, victim)
	// Haven may power it off once more, when it is found on before it was proved off
	// and before it has joined; then the power comes back again.
	s.eventually(3*time.Minute, "the guests to run and "+victim.Name+" to be back", func() bool {
		if on, err := victim.PowerIsOn(); err != nil || !on {
			s.ok(errors.Join(err, victim.PowerOn(s.t.Context())))
		}
		for g, nonce := range before {
			if s.nonce(g) == nonce {
				return false
			}
		}
		_, err := victim.BootID()
		return err == nil && s.closed(victim)
	})
	s.back(victim, guests...)
	s.writingOn(5*time.Second, guests...)
	s.once(2, guests...)
	cmds, err := victim.PowerCommands()
	s.ok(err)
	cmds = cmds[len(had):]
	if n := count(cmds, "off"); n > 0 != offs || n > 3 || len(cmds) != n {
		s.t.Errorf("P4: the BMC got %v", cmds)
	}
	for _, g := range guests {
		s.remove(g)
	}
}

// closed says whether no incident of a host is open, as any agent tells.
func (s *site) closed(h *lab.Host) bool {
	s.t.Helper()
	all := ask(s, 30*time.Second, "/v1/incidents", "the incidents", func([]client.Incident) bool { return true })
	return !slices.ContainsFunc(all, func(in client.Incident) bool { return string(in.Host) == h.Name && in.Step != haven.StepClosed })
}

// proved waits until there is a proof about a host, with an incident still open.
func (s *site) proved(h *lab.Host) {
	s.t.Helper()
	ask(s, time.Minute, "/v1/incidents", "a proof about "+h.Name, func(all []client.Incident) bool {
		return slices.ContainsFunc(all, func(in client.Incident) bool {
			return string(in.Host) == h.Name && in.Proof != nil && in.Step != haven.StepClosed
		})
	}, h)
}

// suspected waits until a host is not healthy any more.
func (s *site) suspected(h *lab.Host) {
	s.t.Helper()
	ask(s, time.Minute, "/v1/hosts", "a host that is suspected", func(hosts []client.Host) bool {
		return slices.ContainsFunc(hosts, func(v client.Host) bool { return string(v.Host) == h.Name && v.Verdict != haven.VerdictHealthy })
	}, h)
}

// isOff waits until a host has no power.
func (s *site) isOff(h *lab.Host) {
	s.t.Helper()
	s.eventually(time.Minute, h.Name+" to be off", func() bool {
		on, err := h.PowerIsOn()
		return err == nil && !on
	})
}

// writingOn sees guests write for a while.
func (s *site) writingOn(during time.Duration, guests ...*lab.Guest) {
	s.t.Helper()
	for end := time.Now().Add(during); time.Now().Before(end); {
		for _, g := range guests {
			h, err := g.Header()
			s.ok(err)
			ctx, cancel := context.WithTimeout(s.t.Context(), 15*time.Second)
			_, err = g.WaitWrite(ctx, h.Seq)
			cancel()
			s.ok(err)
		}
	}
}

//go:build lab

package scenarios

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/cli"
	"github.com/haven-ha/haven/test/lab"
)

// confirmCommand is what a hold tells operators to type.
var confirmCommand = regexp.MustCompile(`haven fence confirm (\S+) --reason "how you know" --by NAME`)

// TestMainsCut: a host and its BMC lose their power together, and there is no
// watchdog. Nothing can prove the host off, so it is held, with the reason and the
// command, and alarmed. An operator's word ends it, or the BMC's, or the host's own
// (P1, P2, P5, P9).
func TestMainsCut(t *testing.T) {
	t.Parallel()
	s := newSite(t, options{fencing: shortClimb})
	for i, tc := range []struct {
		name   string
		ends   func(s *site, victim *lab.Host, held string)
		proof  haven.ProofKind
		proves string // in the proof's words
	}{
		{"an operator confirms it", (*site).confirm, haven.ProofOperator, "I pulled both plugs"},
		{"the BMC comes back and says off", func(s *site, v *lab.Host, _ string) { s.ok(v.RestoreMains(s.t.Context())) }, haven.ProofPowerOff, ""},
		{"the host comes back", func(s *site, v *lab.Host, _ string) {
			s.ok(v.RestoreMains(s.t.Context()))
			s.ok(v.PowerOn(s.t.Context()))
		}, haven.ProofReboot, ""},
	} {
		if !t.Run(tc.name, func(t *testing.T) {
			here := *s
			here.t = t
			here.mainsCut(i, tc.ends, tc.proof, tc.proves)
		}) {
			break // what follows would tell nothing
		}
	}
}

func (s *site) mainsCut(i int, ends func(*site, *lab.Host, string), proof haven.ProofKind, proves string) {
	s.t.Helper()
	s.trusted()
	slaves := s.slaves()
	victim := slaves[i%len(slaves)]
	g := s.guests(victim, "m"+victim.Name+string(rune('a'+i)))[0]
	s.neverTwice(g)
	if i == 0 {
		s.refusedWhileAlive(victim, g)
	}
	nonce := s.nonce(g)
	s.ok(victim.CutMains(s.t.Context()))
	held := s.blocked(victim)
	for _, want := range []string{"bmc: not proved off: time is up", "next attempt in ", "haven fence confirm " + victim.Name} {
		if !strings.Contains(held.Hold.Detail, want) {
			s.t.Errorf("P9: the hold does not say %q", want)
		}
	}
	s.stays(g, nonce)
	s.alarmed(10*time.Second, "fence-blocked", victim, "haven fence confirm "+victim.Name)
	ends(s, victim, held.Hold.Detail)
	s.elsewhere(2*time.Minute, g, nonce)
	s.settledIncident(victim, time.Minute)
	in := s.fenced(victim)
	s.t.Logf("incident of %s: %s, attempts %+v, proof %+v", victim.Name, in.Outcome, in.Attempts, in.Proof)
	if in.Proof == nil || in.Proof.Kind != proof || !strings.Contains(in.Proof.Detail, proves) {
		s.t.Errorf("P2: the proof is %+v", in.Proof)
	}
	s.ok(victim.RestoreMains(s.t.Context()))
	s.ok(victim.PowerOn(s.t.Context()))
	s.back(victim, g)
	s.once(2, g)
	cmds, err := victim.PowerCommands()
	s.ok(err)
	if len(cmds) > 0 {
		s.t.Errorf("P4: a BMC that was back got %v", cmds)
	}
	s.remove(g)
}

// refusedWhileAlive says of a host that lives that it is dead, and is not believed.
func (s *site) refusedWhileAlive(h *lab.Host, g *lab.Guest) {
	s.t.Helper()
	out, code := s.haven(s.master(), "fence", "confirm", h.Name, "--reason", "I think so", "--by", "maria", "--yes")
	if code != cli.ExitRefused {
		s.t.Fatalf("P2: confirming a live host ends with %d: %s", code, out)
	}
	s.untouched(2*time.Second, 1, []*lab.Guest{g})
}

// confirm does as the hold says.
func (s *site) confirm(victim *lab.Host, held string) {
	s.t.Helper()
	m := confirmCommand.FindStringSubmatch(held)
	if m == nil {
		s.t.Fatalf("P9: no command in %q", held)
	}
	if out, code := s.haven(s.slavesBut(victim), "fence", "confirm", m[1], "--reason", "I pulled both plugs", "--by", "maria", "--yes"); code != 0 {
		s.t.Fatalf("fence confirm ends with %d: %s", code, out)
	}
	if in := s.fenced(victim); in.Proof == nil || !strings.HasPrefix(in.Proof.By, "maria ") {
		s.t.Errorf("P2: the proof is %+v", in.Proof)
	}
}

// slavesBut is any host but one.
func (s *site) slavesBut(not *lab.Host) *lab.Host {
	for _, h := range s.lab.Hosts() {
		if h != not {
			return h
		}
	}
	return nil
}

// TestBMCTroubles: BMCs that are slow or refuse the password (P2, P8).
func TestBMCTroubles(t *testing.T) {
	t.Parallel()
	s := newSite(t, options{bmc: "timeout: 15s", fencing: "verify_timeout: 1m\ncheck_interval: 20s"})

	t.Run("each answer about the power takes 3 s", func(t *testing.T) {
		here := *s
		here.t = t
		here.slowBMC()
	})
	t.Run("the password is wrong", func(t *testing.T) {
		here := *s
		here.t = t
		here.wrongPassword()
	})
}

func (s *site) slowBMC() {
	s.t.Helper()
	s.trusted()
	victim := s.slaves()[0]
	g := s.guests(victim, "slow")[0]
	s.neverTwice(g)
	before := s.noncesOf(g)
	s.ok(victim.SlowBMC(3 * time.Second))
	s.ok(victim.Hang(s.t.Context()))
	in := s.recovered(climbLimit, victim, before)
	cmds, err := victim.PowerCommands()
	s.ok(err)
	if in.Proof == nil || in.Proof.Kind != haven.ProofPowerOff || count(cmds, "off") == 0 {
		s.t.Errorf("P2: the proof is %+v after %v", in.Proof, cmds)
	}
	s.ok(victim.HealBMC(s.t.Context()))
	s.ok(victim.PowerOn(s.t.Context()))
	s.back(victim, g)
	s.once(2, g)
	s.remove(g)
}

// wrongPassword changes the password at Haven's side. It is alarmed before it is
// needed, blocks the fence when it is, and the right one ends that.
func (s *site) wrongPassword() {
	s.t.Helper()
	s.trusted()
	victim := s.slaves()[1]
	g := s.guests(victim, "wrong")[0]
	s.neverTwice(g)
	s.setPassword(victim, "not-it")
	for _, h := range s.lab.Hosts() {
		s.ok(h.Signal(s.t.Context(), "havend", syscall.SIGHUP))
	}
	s.logged(2*time.Minute, "level=WARN", "fence device failed its test", " host="+victim.Name+" ", "password")
	if out, code := s.haven(s.slavesBut(victim), "fence", "test", victim.Name); code != 1 || !strings.Contains(out, "password") {
		s.t.Errorf("fence test ends with %d: %s", code, out)
	}
	nonce := s.nonce(g)
	s.ok(victim.Hang(s.t.Context()))
	held := s.blocked(victim)
	if !strings.Contains(held.Hold.Detail, "does not let us read its power state") || !strings.Contains(held.Hold.Detail, "password") {
		s.t.Errorf("P9: the hold does not tell of the password")
	}
	s.stays(g, nonce)
	s.setPassword(victim, victim.BMCPassword)
	in := s.recovered(climbLimit, victim, map[*lab.Guest]uint32{g: nonce})
	if in.Proof == nil || in.Proof.Kind != haven.ProofPowerOff {
		s.t.Errorf("P2: the proof is %+v", in.Proof)
	}
	s.ok(victim.PowerOn(s.t.Context()))
	s.ok(victim.WaitReady(s.t.Context()))
	s.once(2, g)
}

// setPassword writes what all hosts say to a host's BMC, from the next reload on, or
// when the BMC refuses what they have.
func (s *site) setPassword(h *lab.Host, password string) {
	s.t.Helper()
	for _, each := range s.lab.Hosts() {
		s.ok(os.WriteFile(filepath.Join(each.ConfigDir, "bmc-"+h.Name+".password"), []byte(password+"\n"), 0o600))
	}
}

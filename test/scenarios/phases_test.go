//go:build lab

package scenarios

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/test/lab"
)

// runs is how often each fault is measured. HAVEN_LAB_RUNS changes it.
func runs(t *testing.T) int {
	t.Helper()
	n := 10
	if v := os.Getenv("HAVEN_LAB_RUNS"); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil || n < 1 {
			t.Fatalf("HAVEN_LAB_RUNS=%q: want a number of at least 1", v)
		}
	}
	return n
}

var phaseNames = []string{"suspected", "verdict", "proof", "order", "running", "first write"}

// measured is how long after the fault each phase was reached.
type measured []time.Duration

// TestPhaseTable measures how long a recovery takes, phase by phase, on real
// parts with the configuration as shipped. It prints; it asserts no times. Every
// single recovery is checked for P1 by the guest's own journal all the same.
func TestPhaseTable(t *testing.T) {
	faults := []struct {
		name   string
		victim func(*site) *lab.Host
		strike func(context.Context, *lab.Host) error
	}{
		{"power cut", (*site).slave, func(ctx context.Context, h *lab.Host) error { return h.CutPower(ctx) }},
		{"master's own host", (*site).master, func(ctx context.Context, h *lab.Host) error { return h.CutPower(ctx) }},
		{"kernel hang", (*site).slave, func(ctx context.Context, h *lab.Host) error { return h.Hang(ctx) }},
	}
	// The cap would stop the hangs, as it should.
	s := newSite(t, options{fencing: "limit: {count: 100, window: 1h}"})
	var table strings.Builder
	for _, f := range faults {
		var all []measured
		for i := range runs(t) {
			all = append(all, s.recovery(fmt.Sprintf("%s-%d", strings.Map(letters, f.name), i), f.victim(s), f.strike))
		}
		fmt.Fprintf(&table, "%-18s", f.name)
		for p := range phaseNames {
			median, least, most := spread(all, p)
			fmt.Fprintf(&table, "  %6d (%d–%d)", median.Milliseconds(), least.Milliseconds(), most.Milliseconds())
		}
		fmt.Fprintf(&table, "  n=%d\n", len(all))
	}
	t.Logf("PHASE TABLE, ms after the fault: median (least–most)\n%-18s  %s\n%s", "fault", strings.Join(phaseNames, "  "), table.String())
	s.footprint()
}

func letters(r rune) rune {
	if r >= 'a' && r <= 'z' {
		return r
	}
	return -1
}

func spread(all []measured, phase int) (median, least, most time.Duration) {
	var ds []time.Duration
	for _, m := range all {
		ds = append(ds, m[phase])
	}
	slices.Sort(ds)
	return ds[len(ds)/2], ds[0], ds[len(ds)-1]
}

// recovery strikes one host with one guest on it, waits for the guest elsewhere
// and makes everything whole again.
func (s *site) recovery(name string, victim *lab.Host, strike func(context.Context, *lab.Host) error) measured {
	s.t.Helper()
	g := s.guests(victim, name)[0]
	before := s.nonce(g)
	struck := time.Now()
	s.ok(strike(s.t.Context(), victim))
	w := s.elsewhere(60*time.Second, g, before)
	s.settled(60*time.Second, victim)
	s.once(2, g)
	in := s.incident(victim, victim)
	m := phasesOf(in, name, struck, w.At)
	if m == nil {
		s.t.Fatalf("the incident does not tell of %s: %+v", name, in)
	}
	s.ok(victim.CutPower(s.t.Context()))
	s.ok(victim.PowerOn(s.t.Context()))
	s.ok(victim.WaitReady(s.t.Context()))
	s.whole()
	s.remove(g)
	return m
}

func phasesOf(in client.Incident, name string, struck, write time.Time) measured {
	for _, vm := range in.VMs {
		if vm.Name == name && in.Proof != nil {
			m := measured{}
			for _, at := range []time.Time{in.SuspectedAt, in.OpenedAt, in.Proof.At, vm.OrderedAt, vm.ReportedAt, write} {
				m = append(m, at.Sub(struck))
			}
			return m
		}
	}
	return nil
}

// remove ends a guest as its user would.
func (s *site) remove(g *lab.Guest) {
	s.t.Helper()
	for _, h := range s.lab.Hosts() {
		if state, err := g.State(s.t.Context(), h); err == nil && state == "running" {
			s.ok(g.Destroy(s.t.Context(), h))
			s.ok(g.Undefine(s.t.Context(), h))
		}
	}
	ask(s, 30*time.Second, "/v1/vms", g.Name+" to be forgotten", func(vms []client.VM) bool {
		return !slices.ContainsFunc(vms, func(v client.VM) bool { return v.Name == g.Name && v.Protected && v.Desired == "running" })
	})
}

// footprint prints what idle agents cost.
func (s *site) footprint() {
	s.t.Helper()
	begun := map[string]time.Duration{}
	const watch = 20 * time.Second
	for _, h := range s.lab.Hosts() {
		_, begun[h.Name] = s.usage(h)
	}
	select {
	case <-time.After(watch):
	case <-s.t.Context().Done():
	}
	for _, h := range s.lab.Hosts() {
		rss, cpu := s.usage(h)
		s.t.Logf("FOOTPRINT %s: havend %d MiB RSS, %.1f %% of a core (log level debug)", h.Name, rss>>20, 100*float64(cpu-begun[h.Name])/float64(watch))
	}
}

// usage reads a host's agent's resident memory and CPU time.
func (s *site) usage(h *lab.Host) (rss int64, cpu time.Duration) {
	s.t.Helper()
	p, err := h.Program(s.t.Context(), "havend")
	s.ok(err)
	stat, err := h.Exec(s.t.Context(), "cat", filepath.Join("/proc", strconv.Itoa(p.PID), "stat"))
	s.ok(err)
	_, rest, ok := strings.Cut(stat, ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 22 {
		s.t.Fatalf("odd process status %q", stat)
	}
	number := func(i int) int64 {
		n, err := strconv.ParseInt(f[i], 10, 64)
		s.ok(err)
		return n
	}
	const hertz = 100 // USER_HZ, the same on every Linux port that libvirt runs on
	return number(21) * int64(os.Getpagesize()), time.Duration(number(11)+number(12)) * time.Second / hertz
}

//go:build lab

package scenarios

import (
	"context"
	"testing"
	"time"

	"github.com/haven-ha/haven/test/lab"
)

// TestWatchdogOfAnAgent follows a host's watchdog through the ends of its agent:
// one that is killed hands it over, one that is stopped disarms it, and after one
// that stays away the host is reset within the bound that it promised (P1, P2). No
// other host is reset (P4).
func TestWatchdogOfAnAgent(t *testing.T) {
	t.Parallel()
	const bound = 22 * time.Second // silence and three timeouts
	s := newSite(t, options{watchdog: "timeout: 5s, silence: 7s"})
	s.whole()
	for _, h := range s.lab.Hosts() {
		s.waitArmed(h)
	}
	h := s.slave()
	boot, err := h.BootID()
	s.ok(err)

	s.ok(h.Kill(t.Context(), "havend"))
	s.waitArmed(h)

	s.ok(h.Stop(t.Context(), "havend"))
	limited, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s.ok(h.WaitWatchdog(limited, false))
	s.ok(h.Start(t.Context(), "havend"))
	s.waitArmed(h)
	if now, err := h.BootID(); err != nil || now != boot {
		t.Fatalf("the host was reset meanwhile (%v)", err)
	}

	s.ok(h.Hold(t.Context(), "havend"))
	last := time.Now()
	limited, cancel = context.WithTimeout(t.Context(), bound+30*time.Second)
	defer cancel()
	fired, err := h.WaitWatchdogFired(limited, 1)
	s.ok(err)
	t.Logf("reset %.1f s after the last sign of life; %s were promised", fired.Sub(last).Seconds(), bound)
	if late := fired.Sub(last) - bound; late > 0 {
		t.Errorf("P1: %s later than promised", late)
	}
	s.ok(h.WaitNewBoot(limited, boot))
	s.ok(h.WaitReady(t.Context()))
	s.waitArmed(h)
	for _, other := range s.lab.Hosts() {
		if other != h && !firedNever(s, other) {
			t.Errorf("P4: %s was reset too", other.Name)
		}
	}
}

func firedNever(s *site, h *lab.Host) bool {
	s.t.Helper()
	all, err := h.WatchdogFirings()
	s.ok(err)
	return len(all) == 0
}

package agent

import (
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

// TestShutdownIsAnnouncedAndTakenBack (P4): while the host shuts down, the agent
// says so in its report, its beat and gossip; when that is called off, in none.
func TestShutdownIsAnnouncedAndTakenBack(t *testing.T) {
	d := partsWith(t, 73, 1)
	a := run(t, d)
	for range 3000 {
		if a.isMaster() {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, reason := range []haven.LeaveReason{haven.LeaveShutdown, haven.LeaveNone, haven.LeaveShutdown} {
		if err := a.Announce(t.Context(), reason); err != nil {
			t.Fatal(err)
		}
		rep, _ := a.ev.view(d.Host)
		if rep == nil || rep.Leaving != reason || a.beat().Left != reason || a.Leaving() != reason {
			t.Fatalf("report %+v, beat %q, want %q", rep, a.beat().Left, reason)
		}
	}
	if err := a.Leave(t.Context(), haven.LeaveShutdown); err != nil {
		t.Error(err)
	}
	if err := a.Announce(t.Context(), haven.LeaveNone); err == nil {
		t.Error("an agent that has left takes it back")
	}
}

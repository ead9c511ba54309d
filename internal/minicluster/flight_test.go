package minicluster_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/flight"
)

// TestFlightRecorder guards P9: after a power cut the master has a recording of
// what it saw, from the minute before on. Judged again it gives word for word what
// was concluded then, and with a later suspicion the proof comes later.
func TestFlightRecorder(t *testing.T) {
	c, victim := trouble(t)
	victim.PowerOff()
	in := until(t, c, "/v1/incidents", "a closed incident with its recording", func(all []client.Incident) bool {
		return len(all) == 1 && all[0].Step == haven.StepClosed && all[0].Recording != nil
	})[0]
	if in.Recording.Host != masterOf(t, c).ID || !strings.HasPrefix(in.Recording.Path, c.DataDir(in.Recording.Host)) {
		t.Errorf("the recording is %+v", *in.Recording)
	}
	// It goes on for a minute, and can be read meanwhile.
	var recorded, later time.Time
	until(t, c, "/v1/status", "the recording of what would have come later", func(client.Status) bool {
		recorded, later = replay(t, in.Recording.Path, victim.ID)
		return !later.IsZero()
	})
	// The ledger's own time line says when the proof was written down.
	if recorded.IsZero() || in.Proof == nil || recorded.After(in.Proof.At) || in.Proof.At.Sub(recorded) > 2*time.Second {
		t.Errorf("replayed dead at %s, proved at %+v", recorded, in.Proof)
	}
	if !later.After(recorded) {
		t.Errorf("with a suspicion four seconds later it is dead at %s, recorded was %s", later, recorded)
	}
	t.Logf("dead %s after the incident opened, with a later suspicion %s after that", recorded.Sub(in.OpenedAt), later.Sub(recorded))
}

// replay finds out when a host was judged dead, and when it would have been with a
// suspicion after two seconds.
func replay(t *testing.T, path string, host haven.HostID) (recorded, later time.Time) {
	t.Helper()
	f, err := os.Open(path + ".part")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	r, err := flight.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	other := r.Header.Judge
	other.SuspectAfter = 5 * time.Second
	sum, err := flight.Replay(r, &other, func(round flight.Round) error {
		if recorded.IsZero() && dead(round.Output, host) {
			recorded = round.Wall
		}
		if later.IsZero() && dead(round.Other, host) {
			later = round.Wall
		}
		return nil
	})
	if err != nil || !errors.Is(sum.Stopped, flight.ErrCut) || sum.Differ != 0 || !sum.Checked || len(sum.Gaps) != 0 {
		t.Fatalf("%+v, %v", sum, err)
	}
	return recorded, later
}

func dead(out *detector.Output, host haven.HostID) bool {
	for i := range out.Hosts {
		if j := &out.Hosts[i]; j.Host == host && j.Verdict == haven.VerdictDead {
			return true
		}
	}
	return false
}

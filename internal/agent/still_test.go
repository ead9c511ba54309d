package agent

import (
	"errors"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/internal/recovery"
)

// P6: the brakes are asked again right before each power command: a verdict that
// stands does not help when the detector withholds power commands meanwhile.
func TestBrakesBeforeEachPowerCommand(t *testing.T) {
	now := time.Now()
	act := recovery.Fence{Host: "h", Boot: "b1"}
	for _, tt := range []struct {
		name    string
		verdict haven.Verdict
		noFence string
		boot    haven.BootID
		age     time.Duration
		ok      bool
	}{
		{"failed, and may be fenced", haven.VerdictFailed, "", "b1", 0, true},
		{"mass failure began meanwhile", haven.VerdictFailed, haven.HoldMassFailure, "b1", 0, false},
		{"it lives again", haven.VerdictHealthy, "it is healthy", "b1", 0, false},
		{"too few answers for a round", haven.VerdictSuspect, "it is suspect", "b1", 0, false},
		{"an old judgement", haven.VerdictFailed, "", "b1", 2 * time.Second, false},
		{"another boot", haven.VerdictFailed, "", "b2", 0, false},
		{"dead already: reading on sends nothing", haven.VerdictDead, "it is dead", "b1", 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j := &judged{at: now.Add(-tt.age), hosts: map[haven.HostID]int{"h": 0}, boots: map[haven.HostID]haven.BootID{"h": tt.boot}}
			j.out.Hosts = []detector.Judgement{{Host: "h", Verdict: tt.verdict, FenceAllowed: tt.noFence == "", NoFence: tt.noFence}}
			err := j.stillDead(now, act)
			if (err == nil) != tt.ok {
				t.Error(err)
			}
			if lives := tt.verdict == haven.VerdictHealthy; lives != errors.Is(err, errCameBack) {
				t.Errorf("%v; that it came back is %v", err, lives)
			}
		})
	}
}

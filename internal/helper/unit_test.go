package helper

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestParseUnit(t *testing.T) {
	at := time.Unix(1767322800, 0).UTC()
	tests := []struct {
		name, text string
		want       Unit
		words      string
		bad        bool
	}{
		{
			"running", "Id=havend.service\nLoadState=loaded\nActiveState=active\nSubState=running\nResult=success\nMainPID=4711\nStateChangeTimestamp=@1767322800\n",
			Unit{Unit: AgentUnit, Active: "active", Sub: "running", Result: "success", Since: at, MainPID: 4711},
			"havend.service is active (running) since 2026-01-02T03:00:00Z", false,
		},
		{
			"killed", "Id=havend.service\nLoadState=loaded\nActiveState=failed\nSubState=failed\nResult=signal\nMainPID=0\nStateChangeTimestamp=@1767322800\n",
			Unit{Unit: AgentUnit, Active: "failed", Sub: "failed", Result: "signal", Since: at},
			"havend.service is failed (failed, signal) since 2026-01-02T03:00:00Z", false,
		},
		{
			"older systemd, other time", "Id=havend.service\nActiveState=inactive\nSubState=dead\nStateChangeTimestamp=Fri 2026-01-02 03:00:00 UTC\n",
			Unit{Unit: AgentUnit, Active: "inactive", Sub: "dead"},
			"havend.service is inactive (dead)", false,
		},
		{"not installed", "Id=havend.service\nLoadState=not-found\nActiveState=inactive\n", Unit{}, "", true},
		{"nothing", "", Unit{}, "", true},
		{"rubbish", "\x00=\n=\nActiveState\n", Unit{}, "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseUnit(tt.text)
			if (err != nil) != tt.bad || got != tt.want {
				t.Fatalf("%+v, %v", got, err)
			}
			if !tt.bad && got.String() != tt.words {
				t.Errorf("%q, want %q", got, tt.words)
			}
		})
	}
	long := Unit{Unit: strings.Repeat("x", 999), Active: strings.Repeat("x", 999), Sub: strings.Repeat("x", 999), Result: strings.Repeat("x", 999)}
	if n := len(long.String()); n > 200 {
		t.Errorf("%d octets of words", n)
	}
}

// TestAgentPath: the state of the agent's unit is told beside the list, whose form
// stays CloudStack's, and also while the VM manager hangs.
func TestAgentPath(t *testing.T) {
	o := options(&vms{})
	o.Unit = func(context.Context) (Unit, error) {
		return Unit{Unit: AgentUnit, Active: "failed", Sub: "failed", Result: "signal"}, nil
	}
	addr := serve(t, o)
	resp, err := http.Get("http://" + addr.String() + "/agent")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var u Unit
	if err := json.NewDecoder(resp.Body).Decode(&u); err != nil || resp.StatusCode != http.StatusOK || u.Active != "failed" || u.Result != "signal" {
		t.Errorf("%s, %+v, %v", resp.Status, u, err)
	}
}

// TestUnitIsUnknown (P5, P8): a service manager that fails or hangs costs one question
// at a time, and what is not known is said to be unknown.
func TestUnitIsUnknown(t *testing.T) {
	tests := []struct {
		name string
		read UnitReader
		why  string
	}{
		{"no means", nil, "no means"},
		{"no systemd", func(context.Context) (Unit, error) { return Unit{}, errors.New("no such file") }, "no such file"},
		{"it hangs until its deadline", func(ctx context.Context) (Unit, error) { <-ctx.Done(); return Unit{}, ctx.Err() }, "deadline"},
		{"it hangs for longer", func(context.Context) (Unit, error) { time.Sleep(time.Minute); return Unit{}, errors.New("late") }, "does not answer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				var asked atomic.Int32
				u := units{}
				if tt.read != nil {
					u.read = func(ctx context.Context) (Unit, error) { asked.Add(1); return tt.read(ctx) }
				}
				answers := make(chan Unit, 5)
				for range cap(answers) {
					go func() { answers <- u.get(t.Context()) }()
				}
				for range cap(answers) {
					if got := <-answers; got.Active != "unknown" || !strings.Contains(got.Error, tt.why) || !strings.Contains(got.String(), "nothing is known") {
						t.Errorf("%+v", got)
					}
				}
				if took := time.Since(begun); took > time.Second || asked.Load() > 1 {
					t.Errorf("%d questions in %s", asked.Load(), took)
				}
				wait, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				u.wait(wait)
			})
		})
	}
}

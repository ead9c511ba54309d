package helper

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

// AgentUnit is the unit that the agent runs as.
const AgentUnit = "havend.service"

// Unit is how the service manager sees the agent. It is what GET /agent answers.
type Unit struct {
	Unit   string `json:"unit"`
	Active string `json:"active"` // active, failed, inactive, activating …; unknown
	Sub    string `json:"sub,omitempty"`
	// Result says how it ended, as in exit-code, signal, oom-kill or watchdog;
	// success as long as nothing went wrong.
	Result  string    `json:"result,omitempty"`
	Since   time.Time `json:"since,omitzero"` // of the active state
	MainPID int       `json:"main_pid,omitempty"`
	Error   string    `json:"error,omitempty"` // why nothing is known
}

// String is the state in a few words, such as
// "havend.service is failed (failed, signal) since 2026-01-02T03:04:05Z".
func (u Unit) String() string {
	if u.Active == "" || u.Active == "unknown" {
		return fmt.Sprintf("of %s nothing is known: %s", AgentUnit, clip(u.Error, 100))
	}
	words := clip(u.Sub, 20)
	if u.Result != "" && u.Result != "success" {
		words += ", " + clip(u.Result, 20)
	}
	s := fmt.Sprintf("%s is %s (%s)", clip(u.Unit, 40), clip(u.Active, 20), words)
	if !u.Since.IsZero() {
		s += " since " + u.Since.UTC().Format(time.RFC3339)
	}
	return s
}

func clip(s string, n int) string { return s[:min(len(s), n)] }

// UnitReader asks the service manager for the agent's unit. It must come back
// soon after its context ends.
type UnitReader func(ctx context.Context) (Unit, error)

// ShowUnit asks systemd.
func ShowUnit(ctx context.Context) (Unit, error) {
	cmd := exec.CommandContext(ctx, "systemctl", "show", AgentUnit, "--timestamp=unix",
		"--property=Id,LoadState,ActiveState,SubState,Result,StateChangeTimestamp,MainPID")
	cmd.WaitDelay = 200 * time.Millisecond
	out, err := cmd.Output()
	if err != nil {
		return Unit{}, fmt.Errorf("ask systemd for %s: %w", AgentUnit, err)
	}
	return parseUnit(string(out))
}

// parseUnit reads the lines NAME=VALUE of systemctl show.
func parseUnit(text string) (Unit, error) {
	v := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			v[name] = value
		}
	}
	switch {
	case v["ActiveState"] == "":
		return Unit{}, errors.New("systemd told no state")
	case v["LoadState"] == "not-found":
		return Unit{}, fmt.Errorf("systemd has no %s", AgentUnit)
	}
	u := Unit{Unit: v["Id"], Active: v["ActiveState"], Sub: v["SubState"], Result: v["Result"]}
	if pid, err := strconv.Atoi(v["MainPID"]); err == nil && pid > 0 {
		u.MainPID = pid
	}
	if at, err := strconv.ParseInt(strings.TrimPrefix(v["StateChangeTimestamp"], "@"), 10, 64); err == nil && at > 0 {
		u.Since = time.Unix(at, 0).UTC()
	}
	return u, nil
}

const (
	// unitLimit bounds one question to systemd; a probe of this helper waits for it.
	unitLimit = 700 * time.Millisecond
	// unitAge is how long an answer, or the lack of one, serves other requests.
	unitAge = 500 * time.Millisecond
)

// units turns many requests into one question at a time.
type units struct {
	read UnitReader

	mu     sync.Mutex
	flight *unitFlight // the last one, ended or not
}

// unitFlight is one question. Its answer is set before done is closed.
type unitFlight struct {
	begun time.Time
	done  chan struct{}
	unit  Unit
}

// get never fails: what is not known is unknown (P5). It takes a little longer
// than unitLimit at most.
func (u *units) get(ctx context.Context) Unit {
	f := u.join()
	limit := time.NewTimer(unitLimit + 300*time.Millisecond)
	defer limit.Stop()
	select {
	case <-f.done:
		return f.unit
	case <-ctx.Done():
		return unknownUnit("nobody waits for it")
	case <-limit.C:
		return unknownUnit("systemd does not answer")
	}
}

func unknownUnit(why string) Unit { return Unit{Unit: AgentUnit, Active: "unknown", Error: why} }

// join returns the question that is under way, or one answered just now, or
// begins a new one.
func (u *units) join() *unitFlight {
	u.mu.Lock()
	defer u.mu.Unlock()
	if f := u.flight; f != nil {
		select {
		case <-f.done:
			if time.Since(f.begun) < unitAge {
				return f
			}
		default:
			return f
		}
	}
	f := &unitFlight{begun: time.Now(), done: make(chan struct{})}
	u.flight = f
	go func() {
		defer close(f.done)
		if u.read == nil {
			f.unit = unknownUnit("the helper has no means to ask")
			return
		}
		// No request's context: the answer is for all that wait.
		ctx, cancel := context.WithTimeout(context.Background(), unitLimit)
		defer cancel()
		unit, err := u.read(ctx)
		if err != nil {
			unit = unknownUnit(err.Error())
		}
		f.unit = unit
	}()
	return f
}

// wait waits for the question under way, until ctx ends.
func (u *units) wait(ctx context.Context) {
	u.mu.Lock()
	f := u.flight
	u.mu.Unlock()
	if f == nil {
		return
	}
	select {
	case <-f.done:
	case <-ctx.Done():
	}
}

func (s *Server) agent(w http.ResponseWriter, r *http.Request) {
	answer(w, http.StatusOK, s.units.get(r.Context()))
}

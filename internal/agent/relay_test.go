package agent

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/client"
)

// TestWays: a way that is closed makes room for the other one, and a delegate
// that could is asked again.
func TestWays(t *testing.T) {
	steps := []struct {
		name     string
		delegate haven.HostID
		reached  bool
		want     way
	}{
		{"the own way is open", "", true, way{}},
		{"it closes", "", false, way{far: true}},
		{"a delegate can", "kvm-2", true, way{far: true, last: "kvm-2"}},
		{"and again", "kvm-2", true, way{far: true, last: "kvm-2"}},
		{"it cannot any more", "kvm-2", false, way{turn: 1}},
		{"nor is the own way open", "", false, way{far: true, turn: 1}},
		{"another delegate cannot either", "kvm-3", false, way{turn: 2}},
		{"the own way is open again", "", true, way{turn: 2}},
	}
	r := newRelays()
	for _, s := range steps {
		r.tried("bmc", s.delegate, s.reached)
		if got := r.way("bmc"); got != s.want {
			t.Fatalf("%s: %+v, want %+v", s.name, got, s.want)
		}
	}
}

// board is a fence device that can be out of reach.
type board struct {
	closed error
	sent   int
}

func (b *board) Power(context.Context) (fencing.Reading, error) {
	return fencing.Reading{State: haven.PowerOff, GUID: "aa", Start: time.Unix(1, 0), Finish: time.Unix(2, 0)}, b.closed
}

func (b *board) Identity(context.Context) (fencing.GUID, error) { return "aa", b.closed }

func (b *board) Set(ctx context.Context, _ haven.FenceAction, permit fencing.Permit) error {
	if b.closed != nil {
		return b.closed
	}
	if err := permit.Check(ctx); err != nil {
		return err
	}
	b.sent++
	return nil
}

// TestPowerThroughAnother guards P3: an agent that commands a board for another
// asks back right before, obeys nobody but the master, and passes on what went
// wrong. One agent plays both sides, over real sockets.
func TestPowerThroughAnother(t *testing.T) {
	d := partsWith(t, 72, 1)
	b := &board{}
	d.Fences = map[haven.HostID][][]FenceDevice{"kvm-02": {{{Name: "bmc", Key: "bmc-2", Driver: b}}}}
	var slept atomic.Int64
	d.Boottime = func() time.Duration { return boottime() + time.Duration(slept.Load()) }
	a := run(t, d)
	for !a.isMaster() || a.loop.ok() != haven.Yes {
		time.Sleep(10 * time.Millisecond)
	}
	r := relayed{a, "kvm-02", a.ownFences["kvm-02"][0][0]}
	ask := func(q client.PowerRequest) (client.PowerAnswer, error) { return r.ask(t.Context(), "kvm-01", q) }

	asked := time.Now()
	if answer, err := ask(client.PowerRequest{}); err != nil || answer.State != haven.PowerOff || answer.GUID != "aa" {
		t.Errorf("reading: %+v, %v, asked at %s", answer, err, asked)
	}
	if answer, err := ask(client.PowerRequest{Identity: true}); err != nil || answer.GUID != "aa" {
		t.Errorf("identity: %+v, %v", answer, err)
	}
	if _, err := ask(client.PowerRequest{Action: haven.ActionOff, Permit: "made up"}); !errors.Is(err, fencing.ErrNotPermitted) || b.sent != 0 {
		t.Errorf("with a permit that nobody gave: %v, sent %d", err, b.sent)
	}
	var permit error
	name, back := a.relays.lend("kvm-01", func(context.Context) error { return permit })
	if _, err := ask(client.PowerRequest{Action: haven.ActionOff, Permit: name}); err != nil || b.sent != 1 {
		t.Errorf("with a permit: %v, sent %d", err, b.sent)
	}
	// The delegate's machine sleeps while the answer is on its way: meanwhile another
	// may lead.
	questions := 0
	late, backLate := a.relays.lend("kvm-01", func(context.Context) error {
		if questions++; questions == 1 {
			slept.Add(int64(time.Hour))
			return nil
		}
		return errors.New("a newer master leads")
	})
	if _, err := ask(client.PowerRequest{Action: haven.ActionOff, Permit: late}); !errors.Is(err, fencing.ErrNotPermitted) || b.sent != 1 || questions != 2 {
		t.Errorf("with a permit that is an hour old: %v, sent %d, asked %d times", err, b.sent, questions)
	}
	backLate()
	permit = errors.New("a newer master leads")
	if _, err := ask(client.PowerRequest{Action: haven.ActionOff, Permit: name}); !errors.Is(err, fencing.ErrNotPermitted) || b.sent != 1 {
		t.Errorf("with a permit that was withdrawn: %v, sent %d", err, b.sent)
	}
	permit = nil
	back()
	if _, err := ask(client.PowerRequest{Action: haven.ActionOff, Permit: name}); !errors.Is(err, fencing.ErrNotPermitted) || b.sent != 1 {
		t.Errorf("with a permit that was taken back: %v, sent %d", err, b.sent)
	}
	if _, err := ask(client.PowerRequest{Action: haven.ActionReboot, Permit: name}); err == nil || b.sent != 1 {
		t.Errorf("an action that is no command: %v, sent %d", err, b.sent)
	}
	b.closed = fmt.Errorf("%w: no way", fencing.ErrUnreachable)
	if _, err := ask(client.PowerRequest{}); !errors.Is(err, fencing.ErrUnreachable) {
		t.Errorf("a board out of reach: %v", err)
	}
	b.closed = fmt.Errorf("%w: wrong password", fencing.ErrAuth)
	if _, err := ask(client.PowerRequest{}); !errors.Is(err, fencing.ErrAuth) {
		t.Errorf("a board that refuses: %v", err)
	}

	// These come from a host that does not lead, or about what is not to be had.
	name, back = a.relays.lend("kvm-01", nil)
	defer back()
	b.closed = nil
	q := client.PowerRequest{Host: "kvm-02", Device: "bmc-2", Action: haven.ActionOff, Permit: name, Limit: 1000, Term: a.term()}
	if answer, err := a.Power(t.Context(), "kvm-03", q); err != nil || answer.Failed != "not-permitted" || b.sent != 1 {
		t.Errorf("for a host that is not the master: %+v, %v, sent %d", answer, err, b.sent)
	}
	if answer, err := a.Permit(t.Context(), "kvm-03", client.PermitRequest{Permit: name}); err != nil || answer.Stands {
		t.Errorf("a permit asked for by another delegate: %+v, %v", answer, err)
	}
	q.Device = "bmc-9"
	if _, err := a.Power(t.Context(), "kvm-01", q); !errors.Is(err, haven.ErrNotFound) {
		t.Errorf("a device that is not configured: %v", err)
	}
}

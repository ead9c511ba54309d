package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/netx"
)

// lamp is a board with a light that can be timed and put out.
type lamp struct {
	board
	told []string
}

func (l *lamp) Set(ctx context.Context, action haven.FenceAction, permit fencing.Permit) error {
	return l.take(ctx, string(action), permit)
}

func (l *lamp) Light(ctx context.Context, length time.Duration, permit fencing.Permit) error {
	return l.take(ctx, "light "+length.String(), permit)
}

func (l *lamp) take(ctx context.Context, what string, permit fencing.Permit) error {
	if err := permit.Check(ctx); err != nil {
		return err
	}
	l.told = append(l.told, what)
	return nil
}

// TestLight: an operator's word about a light goes from the socket to the board and
// into the ledger, and one that no board could follow goes nowhere. Through another
// agent it is the same, with the permit of every command (P3).
func TestLight(t *testing.T) {
	d := partsWith(t, 75, 1)
	near, far := &lamp{}, &lamp{}
	d.Fences = map[haven.HostID][][]FenceDevice{
		"kvm-01": {{{Name: "bmc", Key: "bmc-1", Driver: near}, {Name: "strip", Key: "strip-1", Driver: &board{closed: fencing.ErrUnsupported}}}},
		"kvm-02": {{{Name: "bmc", Key: "bmc-2", Driver: far}}},
	}
	local, err := netx.Real{}.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.Local = local
	a := run(t, d)
	for registered := false; !registered || a.loop.ok() != haven.Yes; {
		a.ledger.View(func(s *ledger.State, _ ledger.Position) { registered = s.Hosts["kvm-01"] != nil })
		time.Sleep(10 * time.Millisecond)
	}

	post := func(action, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+local.Addr().String()+"/v1/hosts/kvm-01/fence/"+action, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	for _, tt := range []struct {
		name, action, body string
		code               int
		says               string
	}{
		{"as ever", "blink", `{"by":"maria","reason":"which is it"}`, 200, "bmc: blinks; strip: "},
		{"the shortest", "blink", `{"by":"maria","light_s":1}`, 200, "bmc: blinks for 1s;"},
		{"the longest", "blink", `{"by":"maria","light_s":255,"reason":"rack 4"}`, 200, "bmc: blinks for 4m15s;"},
		{"out", "blink", `{"by":"maria","light_s":0,"reason":"found"}`, 200, "bmc: is put out;"},
		{"longer than an octet", "blink", `{"by":"maria","light_s":256}`, 400, "want 1 to 255, or 0"},
		{"negative", "blink", `{"by":"maria","light_s":-1}`, 400, "want 1 to 255, or 0"},
		{"half a second", "blink", `{"by":"maria","light_s":0.5}`, 400, "bad request"},
		{"of another action", "on", `{"by":"maria","light_s":30}`, 400, "light_s is for blink"},
	} {
		if code, text := post(tt.action, tt.body); code != tt.code || !strings.Contains(text, tt.says) {
			t.Errorf("%s: %d, %s", tt.name, code, text)
		}
	}
	if want := []string{"light 4m15s", "light 1s", "light 4m15s", "light 0s"}; !slices.Equal(near.told, want) {
		t.Errorf("the board was told %q", near.told)
	}
	var acts []string
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		for _, act := range s.Acts {
			acts = append(acts, fmt.Sprintf("%s %s: %s", act.Action, act.Host, act.Reason))
		}
	})
	if want := []string{"blink kvm-01: which is it", "blink kvm-01: light for 1 s", "blink kvm-01: light for 255 s: rack 4", "blink kvm-01: light out: found"}; !slices.Equal(acts, want) {
		t.Errorf("the ledger has %q", acts)
	}

	// Through another agent. One plays both sides, over real sockets.
	r := relayed{a, "kvm-02", a.ownFences["kvm-02"][0][0]}
	var permit error
	order := func(action haven.FenceAction, seconds int) error {
		return r.order(t.Context(), "kvm-01", client.PowerRequest{Action: action, Light: &seconds}, func(context.Context) error { return permit })
	}
	if err := errors.Join(order(haven.ActionBlink, 30), order(haven.ActionBlink, 0)); err != nil {
		t.Error(err)
	}
	for _, bad := range []error{order(haven.ActionBlink, 256), order(haven.ActionBlink, -1), order(haven.ActionOff, 30)} {
		if !errors.Is(bad, fencing.ErrUnsupported) {
			t.Errorf("what cannot be asked of a light: %v", bad)
		}
	}
	permit = errors.New("a newer master leads")
	if err := order(haven.ActionBlink, 30); !errors.Is(err, fencing.ErrNotPermitted) {
		t.Errorf("without a permit: %v", err)
	}
	if want := []string{"light 30s", "light 0s"}; !slices.Equal(far.told, want) {
		t.Errorf("the board behind another agent was told %q", far.told)
	}
	far.told = nil
	if err := r.Light(t.Context(), 2*time.Second, nil); err != nil || !slices.Equal(far.told, []string{"light 2s"}) {
		t.Errorf("by the own way: %v, %q", err, far.told)
	}
}

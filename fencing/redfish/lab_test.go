//go:build lab

package redfish_test

import (
	"context"
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/fencing/redfish/redfishtest"
)

// TestSecondReader holds the board of these tests against a client that is not
// ours, the DMTF's own: it reads what the driver did, and the driver what it did.
// A board that only our driver understands would prove nothing.
func TestSecondReader(t *testing.T) {
	if _, err := exec.LookPath("redfishtool"); err != nil {
		t.Skip("redfishtool is not installed")
	}
	for _, auth := range []string{"Session", "Basic"} {
		t.Run(auth, func(t *testing.T) {
			b, err := redfishtest.Start("127.0.0.1:0", config(func(c *redfishtest.Config) { c.Light = redfishtest.LightLED }))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = b.Close() }()
			tool := func(args ...string) string {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				all := slices.Concat([]string{"-r", b.Addr(), "-u", "haven", "-p", secret, "-A", auth, "-S", "Always", "-n", "-C"}, args)
				cmd := exec.CommandContext(ctx, "redfishtool", all...)
				var errs strings.Builder
				cmd.Stderr = &errs
				out, err := cmd.Output()
				if err != nil {
					t.Fatalf("redfishtool %s: %v\n%s%s", strings.Join(args, " "), err, out, errs.String())
				}
				return string(out)
			}
			read := func() (state, id string) {
				t.Helper()
				var sys struct{ PowerState, UUID string }
				if err := json.Unmarshal([]byte(tool("Systems", "-1")), &sys); err != nil {
					t.Fatal(err)
				}
				return sys.PowerState, sys.UUID
			}
			d := driver(t, b, nil)
			if state, id := read(); state != "On" || id != uuid {
				t.Errorf("it reads %s, %s", state, id)
			}
			if out := fence(t, d); !out.Proved {
				t.Fatal(out)
			}
			if state, _ := read(); state != "Off" {
				t.Errorf("it reads %s after a proof", state)
			}
			tool("Systems", "-1", "reset", "On")
			wantPower(t, d, haven.PowerOn)
			tool("Systems", "-1", "reset", "ForceOff")
			r := wantPower(t, d, haven.PowerOff)
			if r.GUID != fencing.GUID(strings.ReplaceAll(uuid, "-", "")) {
				t.Errorf("GUID %s", r.GUID)
			}
			tool("Systems", "-1", "setIndicatorLed", "Blinking")
			if got := b.Commands(); !slices.Equal(got, []string{"ForceOff", "On", "ForceOff", "light Blinking"}) || b.On() {
				t.Errorf("the board got %q", got)
			}
			if v := b.Violations(); len(v) > 0 {
				t.Errorf("the board takes for a violation of the standard what the DMTF's client does: %q", v)
			}
		})
	}
}

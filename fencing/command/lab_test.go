//go:build lab

package command

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/fencing/ipmi/ipmitest"
	"github.com/haven-ha/haven/fencing/redfish/redfishtest"
)

const labSecret = "s3cret-pa55word!"

// agent makes a driver of one of Debian's fence agents.
func agent(t *testing.T, program, addr, password string, options map[string]string) *Driver {
	t.Helper()
	if _, err := os.Stat(program); err != nil {
		t.Skip(program, " (package fence-agents) is not installed")
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	options["ipport"] = port
	d, err := New(Config{
		Launcher: launcher(), Style: StyleAgent, Program: program, Options: options, Address: host,
		Username: "haven", Password: func() (string, error) { return password, nil }, Timeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// wantFenced takes a board through reading, a fence with proof, on, and a wrong
// password; on tells the truth.
func wantFenced(t *testing.T, open func(password string) *Driver, on func() bool) {
	t.Helper()
	d := open(labSecret)
	read := func(want haven.PowerState) {
		t.Helper()
		if r, err := d.Power(t.Context()); err != nil || r.State != want || on() != (want == haven.PowerOn) {
			t.Fatalf("it reads %s, %v; the chassis is on: %v; want %s", r.State, err, on(), want)
		}
	}
	if err := d.Examine(t.Context()); err != nil {
		t.Errorf("test: %v", err)
	}
	read(haven.PowerOn)
	p := fencing.DefaultPolicy()
	p.Session, p.Total = time.Minute, 3*time.Minute
	out, err := fencing.Execute(t.Context(), d, p, nil, slog.New(slog.DiscardHandler))
	if err != nil || !out.Proved || out.Sent != 1 {
		t.Fatalf("%v, %v\n%s", out, err, strings.Join(out.Steps, "\n"))
	}
	read(haven.PowerOff)
	// Off that is off already is no failure.
	if err := d.Set(t.Context(), haven.ActionOff, nil); err != nil {
		t.Error(err)
	}
	if err := d.Set(t.Context(), haven.ActionOn, nil); err != nil {
		t.Fatal(err)
	}
	read(haven.PowerOn)
	const wrong = "wr0ng-pa55word"
	bad := open(wrong)
	if r, err := bad.Power(t.Context()); err == nil || r.State != haven.PowerUnknown || strings.Contains(fmt.Sprint(err), wrong) {
		t.Errorf("with a wrong password: %s, %v", r.State, err)
	}
	if err := bad.Set(t.Context(), haven.ActionOff, nil); err == nil || strings.Contains(err.Error(), wrong) || !on() {
		t.Errorf("off with a wrong password: %v; the chassis is on: %v", err, on())
	}
}

// TestLabFenceIPMILAN fences a board that is not ours by an agent that is not ours.
func TestLabFenceIPMILAN(t *testing.T) {
	s, err := ipmitest.StartSim(t.TempDir(), ipmitest.Config{
		Accounts: []ipmitest.Account{{Name: "haven", Password: labSecret, Privilege: ipmitest.Operator}}, GUID: [16]byte{1},
	})
	if err != nil {
		t.Skip(err)
	}
	defer func() { _ = s.Close() }()
	wantFenced(t, func(password string) *Driver {
		return agent(t, "/usr/sbin/fence_ipmilan", s.Addr, password, map[string]string{"lanplus": "1", "cipher": "3", "privlvl": "operator"})
	}, s.On)
}

// TestLabFenceRedfish fences our Redfish service by Debian's agent, over TLS.
func TestLabFenceRedfish(t *testing.T) {
	b, err := redfishtest.Start("127.0.0.1:0", redfishtest.Config{
		Accounts: []redfishtest.Account{{Name: "haven", Password: labSecret, Role: redfishtest.Operator}}, UUID: "a1234567-89ab-cdef-a123-456789abcd01",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	wantFenced(t, func(password string) *Driver {
		return agent(t, "/usr/sbin/fence_redfish", b.Addr(), password, map[string]string{"ssl_insecure": "1", "systems_uri": "/redfish/v1/Systems/1"})
	}, b.On)
	if got := b.Commands(); slices.ContainsFunc(got, func(c string) bool { return c != "ForceOff" && c != "On" }) {
		t.Errorf("the agent asked the board for %q", got)
	}
}

// A board that is not there is unknown to an agent, never off.
func TestLabAgentWithoutBoard(t *testing.T) {
	for program, options := range map[string]map[string]string{
		"/usr/sbin/fence_ipmilan": {"lanplus": "1", "cipher": "3"},
		"/usr/sbin/fence_redfish": {"ssl_insecure": "1"},
	} {
		d := agent(t, program, "127.0.0.1:9", labSecret, options)
		if r, err := d.Power(t.Context()); err == nil || r.State != haven.PowerUnknown {
			t.Errorf("%s: %s, %v", program, r.State, err)
		}
	}
}

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/fencing/ipmi/ipmitest"
	"github.com/haven-ha/haven/fencing/redfish/redfishtest"
)

// What a driver can do beside what all can is not lost in what is wrapped around it
// between the configuration and the ladder: an account that may not switch power is
// found, a program's own test is run, and a light blinks for longer than 15 s.
func TestWrappedDrivers(t *testing.T) {
	dir := t.TempDir()
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	device := func(text, at string) FenceDevice {
		t.Helper()
		h1, h2 := "{}", "{}"
		if at != "" {
			h1, h2 = fmt.Sprintf("{address: 127.0.0.1, port: %d}", netip.MustParseAddrPort(at).Port()), "{address: 127.0.0.2}"
		}
		all, err := fencesOf(t, text, h1, h2)
		if err != nil {
			t.Fatal(err)
		}
		a := &Agent{relays: newRelays()}
		return a.throughOthers(all)["kvm-01"][0][0]
	}
	test := func(dev FenceDevice) fencing.TestResult {
		return fencing.TestDevice(t.Context(), fencing.Device{Host: "kvm-01", Key: dev.Key, Driver: fencing.NewGate().Read(dev.Key, dev.Driver)}, true)
	}
	common := "username: haven, password_file: " + password

	board, err := redfishtest.Start("127.0.0.1:0", redfishtest.Config{Accounts: []redfishtest.Account{{Name: "haven", Password: "s3cret", Role: redfishtest.ReadOnly}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = board.Close() })
	dev := device("{driver: redfish, "+common+", redfish: {pin: "+board.Pin()+"}}", board.Addr())
	if r := test(dev); r.Err != nil || !errors.Is(r.Weak, fencing.ErrPrivilege) {
		t.Errorf("an account that may only read: %+v", r)
	}

	dev = device("{driver: command, "+common+`, command: {program: /bin/sh, exit_on: 10, exit_off: 11, arguments: ["-c", "case $0 in status) exit 10;; *) exit 5;; esac", "{action}"], words: {test: selftest}}}`, "")
	if r := test(dev); r.Err != nil || r.Reading.State != haven.PowerOn || !errors.Is(r.Weak, fencing.ErrUnfit) {
		t.Errorf("a program whose own test fails: %+v", r)
	}

	bmc, err := ipmitest.Start("127.0.0.1:0", ipmitest.Config{Accounts: []ipmitest.Account{{Name: "haven", Password: "s3cret", Privilege: ipmitest.Operator}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bmc.Close() })
	dev = device("{driver: ipmi, "+common+"}", bmc.Addr())
	ladder := [][]fencing.Rung{{{Name: "bmc", Driver: fencing.NewGate().Fence(dev.Key, dev.Driver), Policy: fencing.DefaultPolicy()}}}
	if detail, err := fencing.Blink(t.Context(), ladder, nil, nil); err != nil {
		t.Errorf("%s, %v", detail, err)
	}
	if got := strings.Join(bmc.Commands(), ", "); got != "blink 255 s" {
		t.Errorf("the light was told %q: it stops before it is told again", got)
	}
}

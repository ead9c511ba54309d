package agent

import (
	"encoding/pem"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/fencing/redfish/redfishtest"
)

// TestRedfishDevices: a board that the configuration describes is read, switched
// and known, by its pin and by an authority; and two hosts with one system are
// seen (P2: an off of the one would prove nothing of the other).
func TestRedfishDevices(t *testing.T) {
	dir := t.TempDir()
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func(uuid string) (*redfishtest.Service, string) {
		b, err := redfishtest.Start("127.0.0.1:0", redfishtest.Config{
			Accounts: []redfishtest.Account{{Name: "haven", Password: "s3cret", Role: redfishtest.Operator}}, UUID: uuid, Others: []string{"2"},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		return b, fmt.Sprintf("address: 127.0.0.1, port: %d", netip.MustParseAddrPort(b.Addr()).Port())
	}
	b1, at1 := start("a1234567-89ab-cdef-a123-456789abcd01")
	b2, at2 := start("a1234567-89ab-cdef-a123-456789abcd02")
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b2.Certificate().Leaf.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := fencesOf(t, "{driver: redfish, username: haven, password_file: "+password+", redfish: {system: /redfish/v1/Systems/1}}",
		"{"+at1+", redfish: {pin: \""+b1.Pin()+"\"}}", "{"+at2+", redfish: {ca_file: "+ca+", session: basic}}")
	if err != nil {
		t.Fatal(err)
	}
	for host, b := range map[haven.HostID]*redfishtest.Service{"kvm-01": b1, "kvm-02": b2} {
		d := all[host][0][0]
		if d.session() <= 15*time.Second {
			t.Errorf("%s: %s for a call leaves no time for the goodbye", host, d.session())
		}
		if r, err := d.Driver.Power(t.Context()); err != nil || r.State != haven.PowerOn || r.GUID == "" {
			t.Errorf("%s: %v, %v", host, r, err)
		}
		if err := d.Driver.Set(t.Context(), haven.ActionOff, nil); err != nil || b.On() {
			t.Errorf("%s: off: %v", host, err)
		}
	}
	if err := os.Remove(ca); err != nil {
		t.Fatal(err)
	}
	if r, err := all["kvm-02"][0][0].Driver.Power(t.Context()); err == nil || r.State != haven.PowerUnknown {
		t.Errorf("without its authority: %v, %v", r, err)
	}

	p := newPower(all)
	if _, why := p.vouches("kvm-01", all["kvm-01"][0][0].Key, "", time.Now()); strings.Contains(why, "kvm-02") {
		t.Errorf("two boards are taken for one: %s", why)
	}
	one := fencing.CrossCheck([]fencing.Station{
		{Host: "kvm-01", Key: "a", Address: all["kvm-01"][0][0].Address}, {Host: "kvm-02", Key: "b", Address: all["kvm-01"][0][0].Address},
	})
	if len(one) != 2 {
		t.Errorf("one system for two hosts: %v", one)
	}
}

//go:build lab

package ipmi_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/fencing/ipmi"
	"github.com/haven-ha/haven/internal/netx"
)

const simGUID = "a123456789abcdefa123456789abcd01"

// simulator runs OpenIPMI's ipmi_sim, whose chassis is a file.
func simulator(t *testing.T) (addr, state string) {
	t.Helper()
	if _, err := exec.LookPath("ipmi_sim"); err != nil {
		t.Skip("ipmi_sim (package openipmi) is not installed")
	}
	dir := t.TempDir()
	state = filepath.Join(dir, "power")
	probe, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := probe.LocalAddr().(*net.UDPAddr).Port
	_ = probe.Close()
	addr = fmt.Sprintf("127.0.0.1:%d", port)
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("power", "1", 0o644)
	script := write("chassis", `#!/bin/sh
case "$1 $2" in
"get power") echo power:$(cat `+state+`);;
"set power") printf %s "$3" > `+state+`;;
"get boot") echo boot:default;;
esac
`, 0o755)
	conf := write("lan.conf", fmt.Sprintf(`name "lab"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 %d
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid %s
  endlan
  chassis_control "%s"
  user 1 false "" "" user 10 none md2 md5 straight
  user 2 true "haven" "%s" operator 10 md5
  user 4 true "viewer" "%s" user 10 md5
`, port, simGUID, script, secret, secret), 0o600)
	emu := write("sim.emu", `mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
`, 0o644)
	cmd := exec.Command("ipmi_sim", "-c", conf, "-f", emu, "-s", filepath.Join(dir, "state"), "-n")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	d := driver(t, addr, func(c *ipmi.Config) { c.Suites = []int{3} })
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, err := d.Power(t.Context()); err == nil {
			return addr, state
		} else if time.Now().After(deadline) {
			t.Fatal("ipmi_sim does not answer: ", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestLabIPMISim(t *testing.T) {
	addr, state := simulator(t)
	t.Run("suite 17 is not spoken, 3 is", func(t *testing.T) {
		d := driver(t, addr, nil)
		r := wantPower(t, d, haven.PowerOn)
		if r.GUID == "" || r.GUID.MatchesUUID(simGUID) != haven.Yes {
			t.Errorf("GUID %q", r.GUID)
		}
		if id, err := d.Identity(t.Context()); err != nil || id != r.GUID {
			t.Errorf("Identity() = %q, %v", id, err)
		}
	})
	t.Run("wrong password", func(t *testing.T) {
		if _, err := driver(t, addr, password("wrong")).Power(t.Context()); fencing.FailureOf(err) != fencing.FailureAuth {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("unknown user", func(t *testing.T) {
		if _, err := driver(t, addr, func(c *ipmi.Config) { c.Username = "nobody" }).Power(t.Context()); !errors.Is(err, fencing.ErrAuth) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("an account that is too weak", func(t *testing.T) {
		_, err := driver(t, addr, func(c *ipmi.Config) { c.Username = "viewer" }).Power(t.Context())
		if fencing.FailureOf(err) != fencing.FailurePrivilege {
			t.Errorf("err = %v (%s)", err, fencing.FailureOf(err))
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		_, err := driver(t, "127.0.0.1:1", nil).Power(t.Context())
		if fencing.FailureOf(err) != fencing.FailureUnreachable {
			t.Errorf("err = %v (%s)", err, fencing.FailureOf(err))
		}
	})
	t.Run("fence", func(t *testing.T) {
		d := driver(t, addr, nil)
		out, err := fencing.Execute(t.Context(), d, fencing.DefaultPolicy(), nil, slog.New(slog.DiscardHandler))
		if err != nil || !out.Proved || out.Sent != 1 {
			t.Errorf("%v, %v", out, err)
		}
		if b, _ := os.ReadFile(state); string(b) != "0" {
			t.Errorf("chassis is %q", b)
		}
		if err := d.Set(t.Context(), haven.ActionOn, nil); err != nil {
			t.Fatal(err)
		}
		wantPower(t, d, haven.PowerOn)
	})
	t.Run("two hundred sessions leave no slot taken", func(t *testing.T) {
		d := driver(t, addr, nil)
		for range 200 {
			wantPower(t, d, haven.PowerOn)
		}
	})
}

// The board of the tests and of the demo is one that ipmitool can talk to.
func TestLabIPMITool(t *testing.T) {
	if _, err := exec.LookPath("ipmitool"); err != nil {
		t.Skip("ipmitool is not installed")
	}
	b := board(t, nil)
	host, port, _ := net.SplitHostPort(b.Addr())
	tool := func(suite string, args ...string) string {
		args = append([]string{"-I", "lanplus", "-C", suite, "-H", host, "-p", port, "-U", "haven", "-L", "OPERATOR", "-E"}, args...)
		cmd := exec.CommandContext(t.Context(), "ipmitool", args...)
		cmd.Env = append(os.Environ(), "IPMI_PASSWORD="+secret)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("ipmitool %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	for _, suite := range []string{"17", "3"} {
		if out := tool(suite, "chassis", "power", "status"); !strings.Contains(out, "is on") {
			t.Errorf("suite %s: %s", suite, out)
		}
		tool(suite, "chassis", "power", "off")
		if b.On() {
			t.Error("still on")
		}
		wantPower(t, driver(t, b.Addr(), func(c *ipmi.Config) { c.Net = netx.Real{} }), haven.PowerOff)
		tool(suite, "chassis", "power", "on")
	}
}

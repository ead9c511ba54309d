//go:build lab

package ipmi_test

import (
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/fencing/ipmi"
	"github.com/haven-ha/haven/fencing/ipmi/ipmitest"
)

const simGUID = "a123456789abcdefa123456789abcd01"

// simulator runs OpenIPMI's ipmi_sim, and waits for its first answer.
func simulator(t *testing.T, kg []byte) *ipmitest.Sim {
	t.Helper()
	if _, err := exec.LookPath(ipmitest.SimProgram); err != nil {
		t.Skip("ipmi_sim (package openipmi) is not installed")
	}
	s, err := ipmitest.StartSim(t.TempDir(), ipmitest.Config{
		Accounts: []ipmitest.Account{
			{Name: "haven", Password: secret, Privilege: ipmitest.Operator},
			{Name: "viewer", Password: secret, Privilege: ipmitest.User},
		},
		GUID: guid, KG: kg,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	d := driver(t, s.Addr, func(c *ipmi.Config) {
		c.Suites, c.PacketTimeout = []int{3}, 200*time.Millisecond
		if kg != nil {
			c.KG = func() ([]byte, error) { return kg, nil }
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, err := d.Power(t.Context()); err == nil {
			return s
		} else if time.Now().After(deadline) {
			t.Fatal("ipmi_sim does not answer: ", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ipmitool runs the tool against a board, as an operator.
func ipmitool(t *testing.T, addr, suite string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("ipmitool"); err != nil {
		t.Skip("ipmitool is not installed")
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"-I", "lanplus", "-C", suite, "-H", host, "-p", port, "-U", "haven", "-L", "OPERATOR", "-E"}, args...)
	cmd := exec.CommandContext(t.Context(), "ipmitool", args...)
	cmd.Env = append(os.Environ(), "IPMI_PASSWORD="+secret)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("ipmitool %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// TestLabSecondReader holds what the driver says of a board that is not ours
// against what ipmitool says of it, and the chassis itself, after each change that
// either of them makes.
func TestLabSecondReader(t *testing.T) {
	kg := []byte("kg-of-the-lab")
	for _, tt := range []struct {
		name string
		kg   []byte
		args []string
	}{{"one key", nil, nil}, {"two keys", kg, []string{"-y", hex.EncodeToString(kg)}}} {
		t.Run(tt.name, func(t *testing.T) {
			s := simulator(t, tt.kg)
			d := driver(t, s.Addr, func(c *ipmi.Config) {
				if tt.kg != nil {
					c.KG = func() ([]byte, error) { return tt.kg, nil }
				}
			})
			tool := func(args ...string) string {
				return ipmitool(t, s.Addr, "3", append(slices.Clone(tt.args), args...)...)
			}
			agree := func(on bool) {
				t.Helper()
				state, word := haven.PowerOff, "off"
				if on {
					state, word = haven.PowerOn, "on"
				}
				wantPower(t, d, state)
				if out := tool("chassis", "status"); !regexp.MustCompile(`(?m)^System Power +: `+word+`$`).MatchString(out) || s.On() != on {
					t.Errorf("the chassis is on: %v; ipmitool says\n%s", s.On(), out)
				}
			}
			agree(true)
			out, err := fencing.Execute(t.Context(), d, fencing.DefaultPolicy(), nil, slog.New(slog.DiscardHandler))
			if err != nil || !out.Proved {
				t.Fatal(out, err)
			}
			agree(false)
			tool("chassis", "power", "on")
			agree(true)
			tool("chassis", "power", "off")
			agree(false)
			if err := d.Set(t.Context(), haven.ActionOn, nil); err != nil {
				t.Fatal(err)
			}
			agree(true)
			if tt.kg != nil {
				wrong := driver(t, s.Addr, func(c *ipmi.Config) { c.KG = func() ([]byte, error) { return []byte("another"), nil } })
				if _, err := wrong.Power(t.Context()); !errors.Is(err, fencing.ErrAuth) {
					t.Errorf("with another BMC key: %v", err)
				}
			}
		})
	}
}

func TestLabIPMISim(t *testing.T) {
	sim := simulator(t, nil)
	addr := sim.Addr
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
	t.Run("what a weak account's test says is what its command meets", func(t *testing.T) {
		// This simulator gives a session whatever level it asks for, the user's own
		// limit aside. A test must not warn of what would work, nor the reverse.
		weak := driver(t, addr, func(c *ipmi.Config) { c.Username = "viewer" })
		_, tested := weak.Power(t.Context())
		commanded := weak.Set(t.Context(), haven.ActionOn, nil)
		if fencing.FailureOf(tested) != fencing.FailureOf(commanded) || tested != nil && fencing.FailureOf(tested) != fencing.FailurePrivilege {
			t.Errorf("test: %v; command: %v", tested, commanded)
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
		if sim.On() {
			t.Error("the chassis is on")
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
	kg := []byte("board key")
	for _, key := range [][]byte{nil, kg} {
		b := board(t, func(c *ipmitest.Config) { c.KG = key })
		var two []string
		if key != nil {
			two = []string{"-k", string(key)}
		}
		tool := func(suite string, args ...string) string {
			return ipmitool(t, b.Addr(), suite, append(slices.Clone(two), args...)...)
		}
		d := driver(t, b.Addr(), func(c *ipmi.Config) {
			if key != nil {
				c.KG = func() ([]byte, error) { return key, nil }
			}
		})
		for _, suite := range []string{"17", "3"} {
			if out := tool(suite, "chassis", "power", "status"); !strings.Contains(out, "is on") {
				t.Errorf("suite %s: %s", suite, out)
			}
			tool(suite, "chassis", "power", "off")
			if b.On() {
				t.Error("still on")
			}
			wantPower(t, d, haven.PowerOff)
			tool(suite, "chassis", "power", "on")
		}
	}
}

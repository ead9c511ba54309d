package agent

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/config"
)

// fencesOf makes the drivers of a configuration whose devices are given.
func fencesOf(t *testing.T, devices, h1, h2 string) (map[haven.HostID][][]FenceDevice, error) {
	t.Helper()
	cfg, err := config.Parse("test.yaml", []byte(strings.NewReplacer("DEVICES", devices, "H1", h1, "H2", h2).Replace(`
cluster: prod-a
gossip: {key_file: /k/gossip}
api: {ca_file: /k/ca, cert_file: /k/cert, key_file: /k/key}
helper: {cert_file: /k/cert, key_file: /k/key, username: haven, password_file: /k/helper}
heartbeat: {stores: [{name: nfs1, type: dir, path: /mnt/nfs1/.haven}]}
fencing: {levels: [[strip]], devices: {strip: DEVICES}}
hosts:
  kvm-01: {address: 10.0.0.1, fencing: {devices: {strip: H1}}}
  kvm-02: {address: 10.0.0.2, fencing: {devices: {strip: H2}}}
  vote-1: {address: 10.0.0.3, role: witness}
`)))
	if err != nil {
		t.Fatal(err)
	}
	return Real{Config: cfg, FenceLauncher: []string{"/bin/sh", "-c", `printf . >&4; exec "$@" 3<&- 4>&-`, "sh"}}.Fences(config.NewSecrets(slog.New(slog.DiscardHandler)))
}

// TestCommandDevices: a program is told its host's outlet, and two hosts with one
// outlet are seen (P2: an off of the one would prove nothing of the other).
func TestCommandDevices(t *testing.T) {
	password, mark := filepath.Join(t.TempDir(), "password"), filepath.Join(t.TempDir(), "mark")
	if err := os.WriteFile(password, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	common := `{driver: command, address: 10.1.0.1, username: apc, password_file: ` + password + `,
  command: {program: /bin/sh, words: {off: cut, blink_off: dark}, exit_off: 11, arguments: ["-c", "echo $* >>` + mark + `; exit 11", sh, "{action}", "{address}", "{host}", "{username}", "{password_file}"]}}`
	all, err := fencesOf(t, common, "{}", "{}")
	if err != nil {
		t.Fatal(err)
	}
	d := all["kvm-01"][0][0]
	if r, err := d.Driver.Power(t.Context()); err != nil || r.State != haven.PowerOff {
		t.Errorf("status: %s, %v", r.State, err)
	}
	_ = d.Driver.Set(t.Context(), haven.ActionOff, func(context.Context) error { return nil }) // It exits with 11.
	_ = d.Driver.(fencing.Lamp).Light(t.Context(), 0, nil)
	got, err := os.ReadFile(mark)
	rest := " 10.1.0.1 kvm-01 apc " + password + "\n"
	if want := "status" + rest + "cut" + rest + "dark" + rest; err != nil || string(got) != want {
		t.Errorf("the program was told %q, %v, want %q", got, err, want)
	}

	agent := `{driver: command, address: 10.1.0.1, command: {style: fence-agents, program: /usr/sbin/fence_apc}}`
	for _, tt := range []struct {
		name, h1, h2 string
		conflict     bool
	}{
		{"an outlet each", "{command: {options: {plug: 1}}}", "{command: {options: {plug: 2}}}", false},
		{"one outlet for both", "{command: {options: {plug: 1}}}", "{command: {options: {plug: 1}}}", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all, err := fencesOf(t, agent, tt.h1, tt.h2)
			if err != nil {
				t.Fatal(err)
			}
			p := newPower(all)
			for host, ladder := range all {
				key := ladder[0][0].Key
				_, why := p.vouches(host, key, "", time.Now())
				if got := strings.Contains(why, "kvm-0"); got != tt.conflict {
					t.Errorf("%s: %q", host, why)
				}
			}
		})
	}
	if _, err := fencesOf(t, `{driver: command, command: {program: /bin/true, arguments: ["{action}", "{nonsense}"], exit_off: 11}}`, "{}", "{}"); err == nil || !strings.Contains(err.Error(), "fence device strip of host kvm-01") {
		t.Errorf("a template with an unknown place: %v", err)
	}
}

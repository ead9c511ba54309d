package config

import (
	"strings"
	"testing"

	"github.com/haven-ha/haven"
)

// P4: no host obeys a pill unless the file says so, and none is told to that has no
// store to find one on.
func TestPoisonPill(t *testing.T) {
	const base = `
cluster: c
gossip: {key_file: /k}
api: {ca_file: /a, cert_file: /b, key_file: /c}
helper: {plain: true}
fence_without_store: true
`
	const store = "heartbeat: {stores: [{name: s, type: dir, path: /mnt/s/.haven}]}\n"
	hosts := func(own string) string {
		return "hosts:\n  a: {address: 10.0.0.1" + own + "}\n  b: {address: 10.0.0.2}\n  w: {address: 10.0.0.3, role: witness}\n"
	}
	const dog = "fencing: {watchdog: {device: /dev/watchdog}}\n"
	const on = "fencing: {poison_pill: true, watchdog: {device: /dev/watchdog}}\n"
	for _, tt := range []struct {
		name, yaml string
		want       map[haven.HostID]bool
		wrong      string // the key that is refused
	}{
		{"default", store + hosts(""), nil, ""},
		{"the cluster's", store + on + hosts(""), map[haven.HostID]bool{"a": true, "b": true}, ""},
		{"the host's own word against it", store + on + hosts(", fencing: {poison_pill: false}"), map[haven.HostID]bool{"b": true}, ""},
		{"only the host's own", store + dog + hosts(", fencing: {poison_pill: true}"), map[haven.HostID]bool{"a": true}, ""},
		{"without a watchdog", store + "fencing: {poison_pill: true}\n" + hosts(""), nil, "fencing.poison_pill"},
		{"without a watchdog, the host's own", store + hosts(", fencing: {poison_pill: true}"), nil, "hosts.a.fencing.poison_pill"},
		{"the host's own watchdog is left alone", store + on + hosts(`, fencing: {watchdog: {device: ""}}`), nil, "fencing.poison_pill"},
		{"without a store", on + hosts(""), nil, "fencing.poison_pill"},
		{"without a store, the host's own", dog + hosts(", fencing: {poison_pill: true}"), nil, "hosts.a.fencing.poison_pill"},
		{"no store, and off", hosts(", fencing: {poison_pill: false}"), nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse("x.yaml", []byte(base+tt.yaml))
			if tt.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wrong) || !strings.Contains(err.Error(), "a pill ") {
					t.Fatalf("got %v, want %s to be refused", err, tt.wrong)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for id, h := range c.Hosts {
				if h.Fencing.PoisonPill != tt.want[id] {
					t.Errorf("%s: %t", id, h.Fencing.PoisonPill)
				}
			}
		})
	}
}

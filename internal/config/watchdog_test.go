package config

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

const watchdogBase = `
cluster: c
gossip: {key_file: /k}
api: {ca_file: /a, cert_file: /b, key_file: /c}
helper: {plain: true}
`

// P4: without a word in the file no watchdog is armed. A host's own word wins, and a
// witness has none.
func TestWatchdogs(t *testing.T) {
	const store = "heartbeat: {stores: [{name: s, type: dir, path: /mnt/s/.haven}]}\n"
	const on = "fencing: {watchdog: {device: /dev/watchdog, timeout: 5s}}\n"
	hosts := func(own string) string {
		return "hosts:\n  a: {address: 10.0.0.1" + own + "}\n  b: {address: 10.0.0.2}\n  w: {address: 10.0.0.3, role: witness}\n"
	}
	const s = time.Second
	tests := []struct {
		name, yaml string
		host       haven.HostID
		want       Watchdog
	}{
		{"default", hosts(""), "a", Watchdog{"", 10 * s, 10 * s, false}},
		{"calm", "detection: {profile: calm}\n" + hosts(""), "a", Watchdog{"", 10 * s, 20 * s, false}},
		{"the cluster's", on + hosts(""), "b", Watchdog{"/dev/watchdog", 5 * s, 10 * s, false}},
		{"the host's own", on + hosts(", fencing: {watchdog: {device: /dev/watchdog1, silence: 20s}}"), "a", Watchdog{"/dev/watchdog1", 5 * s, 20 * s, false}},
		{"another host's own", on + hosts(", fencing: {watchdog: {device: /dev/watchdog1}}"), "b", Watchdog{"/dev/watchdog", 5 * s, 10 * s, false}},
		{"not on this host", on + hosts(`, fencing: {watchdog: {device: ""}}`), "a", Watchdog{"", 5 * s, 10 * s, false}},
		{"only on this host", hosts(", fencing: {watchdog: {device: /dev/watchdog}}"), "b", Watchdog{"", 10 * s, 10 * s, false}},
		{"a witness", on + hosts(""), "w", Watchdog{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse("x.yaml", []byte(watchdogBase+store+tt.yaml))
			if err != nil {
				t.Fatal(err)
			}
			if got := c.Hosts[tt.host].Fencing.Watchdog; got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}

// The terms of each profile are right without a further word.
func TestWatchdogDefaultsFitEachProfile(t *testing.T) {
	for _, p := range []Profile{ProfileFast, ProfileNormal, ProfileCalm} {
		text := watchdogBase + "heartbeat: {stores: [{name: s, type: dir, path: /mnt/s/.haven}]}\ndetection: {profile: " + string(p) + "}\n" +
			"fencing: {watchdog: {device: /dev/watchdog}}\nhosts: {a: {address: 10.0.0.1}}\n"
		if _, err := Parse("x.yaml", []byte(text)); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
}

// Problems are told where they can be mended.
func TestWatchdogRelations(t *testing.T) {
	const store = "heartbeat: {stores: [{name: s, type: dir, path: /mnt/s/.haven}]}\n"
	const one = "hosts: {a: {address: 10.0.0.1}, b: {address: 10.0.0.2}}\n"
	tests := []struct {
		name, yaml, at, want string
	}{
		{"no store", "fencing: {watchdog: {device: /dev/watchdog}}\n" + one, "x.yaml:6:30", "proves nothing without a store"},
		{"silence of the cluster", store + "fencing: {watchdog: {device: /dev/watchdog, silence: 3s}}\n" + one, "x.yaml:7:54", "a change of master must reset nobody"},
		{"silence of a host", store + "hosts: {a: {address: 10.0.0.1, fencing: {watchdog: {device: /dev/watchdog, silence: 3s}}}}\n", "x.yaml:7:85", "a change of master must reset nobody"},
		{"slow store", store + "hosts: {a: {address: 10.0.0.1, fencing: {watchdog: {device: /dev/watchdog, silence: 6500ms}}}}\n", "x.yaml:7:85", "a slow store must reset nobody"},
		{"part of a second", store + "fencing: {watchdog: {device: /dev/watchdog, timeout: 2500ms}}\n" + one, "x.yaml:7:54", "not a whole number of seconds"},
		{"too short for the pets", store + "fencing: {watchdog: {device: /dev/watchdog, timeout: 1s}}\n" + one, "x.yaml:7:54", "out of range"},
		{"no path", store + "fencing: {watchdog: {device: watchdog}}\n" + one, "x.yaml:7:30", "not an absolute path"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("x.yaml", []byte(watchdogBase+tt.yaml))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%v, want a problem", err)
			}
			found := slices.ContainsFunc(e.Problems, func(p Problem) bool {
				return strings.HasPrefix(p.String(), tt.at) && strings.Contains(p.String(), tt.want)
			})
			if !found {
				t.Errorf("%v, want %q at %s", err, tt.want, tt.at)
			}
		})
	}
}

package config

import (
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

// P4: without a word in the file no response is configured. A host's own word wins
// over the cluster's, and a witness has none.
func TestResponses(t *testing.T) {
	const base = `
cluster: c
gossip: {key_file: /k}
api: {ca_file: /a, cert_file: /b, key_file: /c}
helper: {plain: true}
heartbeat: {stores: [{name: s, type: dir, path: /mnt/s/.haven}]}
`
	hosts := func(own string) string {
		return "hosts:\n  a: {address: 10.0.0.1" + own + "}\n  b: {address: 10.0.0.2}\n  w: {address: 10.0.0.3, role: witness}\n"
	}
	const on = "response: {isolation: {action: power-off, delay: 45s}, storage_lost: {action: restart-elsewhere}}\n"
	tests := []struct {
		name, yaml string
		host       haven.HostID
		want       HostResponse
	}{
		{"default", base + hosts(""), "a", HostResponse{IsolationLeave, StorageLostReport}},
		{"the cluster's", base + on + hosts(""), "a", HostResponse{IsolationPowerOff, StorageLostRestart}},
		{"the cluster's, written below the hosts", base + hosts("") + on, "b", HostResponse{IsolationPowerOff, StorageLostRestart}},
		{"the host's own", base + on + hosts(", response: {isolation: leave}"), "a", HostResponse{IsolationLeave, StorageLostRestart}},
		{"only the host's own", base + hosts(", response: {isolation: shutdown}"), "a", HostResponse{IsolationShutdown, StorageLostReport}},
		{"another host's own", base + hosts(", response: {isolation: shutdown}"), "b", HostResponse{IsolationLeave, StorageLostReport}},
		{"a witness", base + on + hosts(""), "w", HostResponse{IsolationLeave, StorageLostReport}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse("x.yaml", []byte(tt.yaml))
			if err != nil {
				t.Fatal(err)
			}
			if got := c.Hosts[tt.host].Response; got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
	c, err := Parse("x.yaml", []byte(base+on+hosts("")))
	if err != nil {
		t.Fatal(err)
	}
	if d := c.Response.Isolation.Delay; d != 45*time.Second || c.Response.StorageLost.Delay != time.Minute {
		t.Errorf("delays %s and %s", d, c.Response.StorageLost.Delay)
	}
}

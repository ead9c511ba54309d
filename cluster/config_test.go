package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/netx"
)

func goodConfig() Config {
	return Config{
		Cluster: "prod-a", Host: "kvm-01", Bind: netip.MustParseAddrPort("10.0.0.1:7946"),
		Keys: []Key{bytes.Repeat([]byte{7}, 32)}, Net: netx.Real{}, Log: slog.New(slog.DiscardHandler),
		Peers: map[haven.HostID]netip.AddrPort{"kvm-02": netip.MustParseAddrPort("10.0.0.2:7946")},
	}
}

func TestConfig(t *testing.T) {
	addr := netip.MustParseAddrPort
	tests := []struct {
		name   string
		change func(*Config)
		want   string // part of the error; empty: none
	}{
		{"good", func(*Config) {}, ""},
		{"no key", func(c *Config) { c.Keys = nil }, "no gossip key"},
		{"short key", func(c *Config) { c.Keys = append(c.Keys, Key("short")) }, "5 octets"},
		{"too many keys", func(c *Config) {
			for i := range byte(4) {
				c.Keys = append(c.Keys, bytes.Repeat([]byte{i}, 16))
			}
		}, "at most 3"},
		{"one key thrice", func(c *Config) { c.Keys = append(c.Keys, c.Keys[0], c.Keys[0], c.Keys[0]) }, ""},
		{"no cluster name", func(c *Config) { c.Cluster = "" }, "cluster name"},
		{"long cluster name", func(c *Config) { c.Cluster = strings.Repeat("x", 65) }, "cluster name"},
		{"bad host", func(c *Config) { c.Host = "KVM 1" }, "host name"},
		{"bad peer", func(c *Config) { c.Peers["X"] = addr("10.0.0.3:1") }, "host name"},
		{"any address without advertised one", func(c *Config) { c.Bind = addr("0.0.0.0:7946") }, "advertised address"},
		{"any address with advertised one", func(c *Config) { c.Bind, c.Advertise = addr("[::]:7946"), addr("10.0.0.1:7946") }, ""},
		{"zone", func(c *Config) { c.Bind = addr("[fe80::1%eth0]:7946") }, "zone"},
		{"no port", func(c *Config) { c.Bind = addr("10.0.0.1:0") }, "port"},
		{"peer without address", func(c *Config) { c.Peers["kvm-03"] = netip.AddrPort{} }, "kvm-03"},
		{"two hosts with one address", func(c *Config) { c.Peers["kvm-03"] = addr("[::ffff:10.0.0.2]:7946") }, "kvm-02 and kvm-03"},
		{"self elsewhere", func(c *Config) { c.Peers["kvm-01"] = addr("10.0.0.9:7946") }, "advertises"},
		{"self where it is", func(c *Config) { c.Peers["kvm-01"] = addr("10.0.0.1:7946") }, ""},
		{"no network", func(c *Config) { c.Net = nil }, "network"},
		{"slow probe", func(c *Config) { c.Timing = DefaultTiming(); c.Timing.ProbeTimeout = time.Second }, "probe timeout"},
		{"no rejoin", func(c *Config) { c.Timing = DefaultTiming(); c.Timing.RejoinMin = 0 }, "rejoin minimum"},
		{"rejoin range", func(c *Config) { c.Timing = DefaultTiming(); c.Timing.RejoinMax = time.Second }, "rejoin maximum"},
		{"suspicion", func(c *Config) { c.Timing = DefaultTiming(); c.Timing.SuspicionMult = 0 }, "suspicion"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := goodConfig()
			tt.change(&c)
			_, err := c.prepare()
			if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	c := goodConfig()
	c.Meta.Boot = "not a boot id"
	if _, err := New(c); err == nil {
		t.Error("a meta that cannot be told was taken")
	}
}

func TestKeyIsNeverPrinted(t *testing.T) {
	k := Key("geheim-geheim-32-octets-geheim-!")
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", k, "config", Config{Keys: []Key{k}})
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", k)
	j, err := json.Marshal(map[string]any{"k": k})
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Keys: []Key{k}}
	all := log.String() + string(j) + fmt.Sprintf("%v %+v %#v %s %q %x", k, c, c, k, k, k)
	for _, leak := range []string{"geheim", fmt.Sprintf("%x", "geheim"), "Z2VoZWlt", "103 101 104", "0x67, 0x65"} {
		if strings.Contains(all, leak) {
			t.Errorf("the key shows as %q in %s", leak, all)
		}
	}
}

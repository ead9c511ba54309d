package numbers

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/internal/config"
)

// TestProfiles: an empty configuration judges by the detector's own profiles.
func TestProfiles(t *testing.T) {
	for p, want := range map[config.Profile]detector.Config{
		config.ProfileFast: detector.Fast(), config.ProfileNormal: detector.Normal(), config.ProfileCalm: detector.Calm(),
	} {
		want.Stores = 0
		if got := Of(config.Default(p)); got != want {
			t.Errorf("%s: %+v, want %+v", p, got, want)
		}
		if got := Profiled(Of(config.Default(config.ProfileFast)), p); got != want {
			t.Errorf("fast as %s: %+v, want %+v", p, got, want)
		}
	}
	was := detector.Normal()
	was.Stores, was.ProbeCount, was.FlapCount, was.FenceWithoutStore, was.HoldAlarm = 3, 5, 7, true, time.Hour
	got := Profiled(was, config.ProfileCalm)
	want := detector.Calm()
	want.Stores, want.ProbeCount, want.FlapCount, want.FenceWithoutStore, want.HoldAlarm = 3, 5, 7, true, time.Hour
	if got != want {
		t.Errorf("what no profile sets did not stay: %+v", got)
	}
}

// TestKeys: every number has a key of the documentation, a place of its own, and
// reaches the detector. What has no key is named here.
func TestKeys(t *testing.T) {
	page, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var d detector.Config
	places := map[any]string{}
	for key, at := range Keys(&d) {
		name := key[strings.LastIndex(key, ".")+1:]
		if !strings.Contains(string(page), "| `"+name+"` |") {
			t.Errorf("%s is no key of the configuration", key)
		}
		if other, twice := places[at]; twice {
			t.Errorf("%s and %s are one number", key, other)
		}
		places[at] = key
	}
	keyless := []string{"OffBeatAge", "OffFresh", "PowerEvery", "ProbeFresh", "GossipLag", "WaitForGossip", "Stores"}
	v := reflect.ValueOf(&d).Elem()
	for f, at := range v.Fields() {
		if places[at.Addr().Interface()] == "" != slices.Contains(keyless, f.Name) {
			t.Errorf("%s: has it a key or not?", f.Name)
		}
	}
}

// TestAccepted guards P8: what --check accepts, the agent starts with.
func TestAccepted(t *testing.T) {
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		span := func(key string, least, most time.Duration) string {
			if rapid.Bool().Draw(t, key+" given") {
				v := time.Duration(rapid.Int64Range(int64(least/time.Millisecond), int64(most/time.Millisecond)).Draw(t, key)) * time.Millisecond
				return fmt.Sprintf("  %s: %s\n", key, v)
			}
			return ""
		}
		count := func(key string, most int) string {
			if rapid.Bool().Draw(t, key+" given") {
				return fmt.Sprintf("  %s: %d\n", key, rapid.IntRange(2, most).Draw(t, key))
			}
			return ""
		}
		const s, m = time.Second, time.Minute
		text := head + "heartbeat:\n  io_timeout: 300ms\n" + span("interval", s/5, 2*s) + span("stale_after", s, 20*s) +
			"detection:\n  profile: " + rapid.SampledFrom([]string{"fast", "normal", "calm"}).Draw(t, "profile") + "\n" +
			span("suspect_after", s, 20*s) + span("silence", s, 2*m) + span("round_interval", s/2, 10*s) + count("rounds", 20) +
			count("off_readings", 10) + span("off_reading_gap", s/3, 20*s) + span("mass_failure_calm", 8*s, m) +
			count("flap_count", 16) + span("flap_window", 5*m, 15*m) + span("flap_calm", s, 15*m)
		c, err := config.Parse("test.yaml", []byte(text))
		if err != nil {
			return
		}
		accepted++
		if err := Of(c).Validate(); err != nil {
			t.Fatalf("accepted, and the detector does not take it:\n%s%v", text, err)
		}
	})
	if accepted == 0 {
		t.Error("no configuration was accepted")
	}
}

const head = `
cluster: prod-a
gossip: {key_file: /etc/haven/gossip.key}
api: {ca_file: /etc/haven/ca.pem, cert_file: /etc/haven/host.pem, key_file: /etc/haven/host.key}
helper: {cert_file: /etc/haven/host.pem, key_file: /etc/haven/host.key, username: haven, password_file: /etc/haven/helper.password}
hosts:
  kvm-01: {address: 10.0.0.11}
  kvm-02: {address: 10.0.0.12}
  kvm-03: {address: 10.0.0.13}
fencing: {action: none}
`

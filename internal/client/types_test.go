package client

import (
	"encoding/json"
	"testing"

	"github.com/haven-ha/haven"
)

// P2: life is what a verified master acknowledged. An answer that does not say when
// its master was verified is none.
func TestAckWithoutVerification(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       Millis
	}{
		{"it does not say", `{"master": "kvm-01", "registered": true, "every_ms": 500}`, -1},
		{"never", `{"master": "kvm-01", "verified_ms": -1}`, -1},
		{"just now", `{"master": "kvm-01", "verified_ms": 0}`, 0},
		{"null", `{"master": "kvm-01", "verified_ms": null}`, -1},
		{"some time ago", `{"master": "kvm-01", "verified_ms": 1200}`, 1200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ack := Ack{Verified: 7}
			if err := json.Unmarshal([]byte(tc.text), &ack); err != nil || ack.Verified != tc.want || ack.Master != "kvm-01" {
				t.Errorf("%+v, %v; want verified %d", ack, err, tc.want)
			}
		})
	}
	sent := Ack{Master: "kvm-01", Watchdog: haven.Watchdog{Bound: 1, Stores: []string{"s"}}, Verified: 3, Protected: []haven.VMID{"v"}}
	text, err := json.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	var got Ack
	if err := json.Unmarshal(text, &got); err != nil || got.Verified != 3 || !got.Watchdog.Equal(sent.Watchdog) || len(got.Protected) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

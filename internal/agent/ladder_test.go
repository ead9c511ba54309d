package agent

import (
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/ledger"
)

// P2: of a host with two power supplies, an off of one is a proof only with one of
// the other, read at the same time; and alone it is no lie about a live host.
func TestOneSupplyIsNoProof(t *testing.T) {
	begin := time.Now()
	type word struct {
		device string
		state  haven.PowerState
		from   time.Duration
		to     time.Duration
	}
	const ms = time.Millisecond
	for _, tt := range []struct {
		name    string
		words   []word
		trusted []bool // of the words, in order
		lived   bool   // the host goes on living afterwards
		distrst bool
	}{
		{"one alone", []word{{"a", haven.PowerOff, 0, 60 * ms}, {"a", haven.PowerOff, 400 * ms, 460 * ms}}, []bool{false, false}, true, false},
		{"both together", []word{{"a", haven.PowerOff, 0, 60 * ms}, {"b", haven.PowerOff, 0, 3000 * ms}}, []bool{true, true}, false, false},
		{"both together, and it lives on", []word{{"a", haven.PowerOff, 0, 60 * ms}, {"b", haven.PowerOff, 0, 3000 * ms}}, []bool{true, true}, true, true},
		{"one after the other", []word{{"a", haven.PowerOff, 0, 60 * ms}, {"b", haven.PowerOff, 61 * ms, 90 * ms}}, []bool{false, false}, false, false},
		{"the other one is on", []word{{"a", haven.PowerOff, 0, 60 * ms}, {"b", haven.PowerOn, 0, 60 * ms}}, []bool{false, true}, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPower(map[haven.HostID][][]FenceDevice{"h": {{{Key: "a", Address: "a"}, {Key: "b", Address: "b"}}}})
			keys := []string{"a", "b"}
			at := begin.Add(-time.Minute)
			p.alive("h", keys, "boot", at)
			for _, key := range keys {
				p.take("h", key, fencing.Reading{State: haven.PowerOn, Start: at, Finish: at.Add(50 * ms)})
			}
			for _, w := range tt.words {
				p.take("h", w.device, fencing.Reading{State: w.state, Start: begin.Add(w.from), Finish: begin.Add(w.to)})
			}
			got := p.detectorReadings("h", "m", begin, ledger.PowerTrust{}, func(at time.Time) time.Duration { return at.Sub(begin) })
			if len(got) != len(tt.words) {
				t.Fatalf("%d readings, want %d", len(got), len(tt.words))
			}
			for i, r := range got {
				if r.Trusted != tt.trusted[i] {
					t.Errorf("reading %d of %s: trusted %v (%s)", i, r.Device, r.Trusted, r.Why)
				}
			}
			if tt.lived {
				for n := range 5 {
					p.alive("h", keys, "boot", begin.Add(time.Duration(3+3*n)*time.Second))
				}
			}
			if _, why := p.learned(keys); (why != "") != tt.distrst {
				t.Errorf("distrust %q", why)
			}
		})
	}
}

package agent

import (
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

// A host that comes back with a new boot has its power read once, at once: what
// was read before was about the old boot.
func TestPowerIsReadOnceAfterANewBoot(t *testing.T) {
	tests := []struct {
		name  string
		boots []haven.BootID
		want  []bool
	}{
		{"first boot that is known", []haven.BootID{"a", "a"}, []bool{false, false}},
		{"not registered yet", []haven.BootID{"", "a"}, []bool{false, false}},
		{"a new boot", []haven.BootID{"a", "b", "b"}, []bool{false, true, false}},
		{"two new boots", []haven.BootID{"a", "b", "c"}, []bool{false, true, true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPower(nil)
			for i, boot := range tt.boots {
				p.booted("kvm-01", boot, time.Now())
				if got := p.unread("kvm-01"); got != tt.want[i] {
					t.Errorf("after boot %d of %v: %t, want %t", i, tt.boots, got, tt.want[i])
				}
			}
		})
	}
}

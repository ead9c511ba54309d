package libvirt

import (
	"testing"

	lv "github.com/digitalocean/go-libvirt"

	"github.com/haven-ha/haven/vmrestart"
)

// P1: only a VM that is gone counts as failed.
func TestOutcome(t *testing.T) {
	const lock = `Failed to get "write" lock`
	tests := []struct {
		name    string
		domain  *fakeDomain
		fail    string
		process bool
		hang    uint32
		down    bool
		want    vmrestart.Outcome
	}{
		{name: "starts", domain: shutOff(1), want: vmrestart.Started},
		{name: "runs already", domain: running(1), want: vmrestart.Started},
		{name: "fails", domain: shutOff(1), fail: "no", want: vmrestart.Failed},
		{name: "is locked", domain: shutOff(1), fail: lock, want: vmrestart.Locked},
		{name: "fails, process remains", domain: shutOff(1), fail: "no", process: true, want: vmrestart.Unclear},
		{name: "is locked, process remains", domain: shutOff(1), fail: lock, process: true, want: vmrestart.Unclear},
		{name: "is not heard of", domain: shutOff(1), hang: procCreate, want: vmrestart.Unclear},
		{name: "is not begun", domain: shutOff(1), hang: procSaved, want: vmrestart.Failed},
		{name: "no libvirtd", down: true, want: vmrestart.Failed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			if tt.domain != nil {
				f.domains = []*fakeDomain{tt.domain}
			}
			if tt.fail != "" {
				f.fail(procCreate, lv.ErrInternalError, tt.fail)
			}
			if tt.hang != 0 {
				f.hang(tt.hang)
			}
			if tt.down {
				f.stop()
			}
			c := newClient(t, f, func(o *Options) {
				if tt.process {
					o.ProcRoot = fakeProc(t, vmNumber(1))
				}
			})
			ctx := t.Context()
			if tt.hang != 0 {
				ctx = short(t)
			}
			got, err := Hypervisor{Client: c}.Start(ctx, vmNumber(1), []byte(testXML(1)))
			if got != tt.want || (err == nil) != (tt.want == vmrestart.Started) {
				t.Errorf("Start() = %v, %v, want %v", got, err, tt.want)
			}
		})
	}
}

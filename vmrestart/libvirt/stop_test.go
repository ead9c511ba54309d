package libvirt

import (
	"context"
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

// Stop asks, or ends at once; what is not active or not there is no error, and gets
// no request.
func TestStop(t *testing.T) {
	f := newFake(t, shutOff(1))
	h := Hypervisor{Client: newClient(t, f)}
	for _, graceful := range []bool{true, false} {
		for _, vm := range []int{1, 9} {
			if err := h.Stop(t.Context(), vmNumber(vm), graceful); err != nil {
				t.Errorf("Stop(%d, %t) = %v", vm, graceful, err)
			}
		}
	}
	if n := f.count(procShutdown) + f.count(procDestroy); n != 0 {
		t.Errorf("%d requests for what does not run", n)
	}
	if _, err := h.Start(t.Context(), vmNumber(1), []byte(testXML(1))); err != nil {
		t.Fatal(err)
	}
	if err := h.Stop(t.Context(), vmNumber(1), true); err != nil || f.count(procShutdown) != 1 || f.count(procDestroy) != 0 {
		t.Errorf("asked: %v, %d shutdowns, %d destroys", err, f.count(procShutdown), f.count(procDestroy))
	}
	if gone, _ := h.Gone(t.Context(), vmNumber(1)); gone != haven.No {
		t.Errorf("asked, and gone: %s", gone)
	}
	if err := h.Stop(t.Context(), vmNumber(1), false); err != nil {
		t.Error(err)
	}
	if gone, err := h.Gone(t.Context(), vmNumber(1)); gone != haven.Yes {
		t.Errorf("ended, and gone: %s, %v", gone, err)
	}
}

// P8: a libvirtd that hangs in a destroy costs the caller its deadline, and the VM
// is not called gone.
func TestStopThatHangs(t *testing.T) {
	f := newFake(t, shutOff(1))
	h := Hypervisor{Client: newClient(t, f)}
	if _, err := h.Start(t.Context(), vmNumber(1), []byte(testXML(1))); err != nil {
		t.Fatal(err)
	}
	_, release := f.hang(procDestroy)
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := h.Stop(ctx, vmNumber(1), false); err == nil {
		t.Error("a destroy that was not answered is no error")
	}
}

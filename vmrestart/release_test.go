package vmrestart

import (
	"errors"
	"slices"
	"testing"

	"github.com/haven-ha/haven"
)

// idle is an executor that works on nothing.
func (m *machine) idle(t *testing.T, boot haven.BootID) *Executor {
	t.Helper()
	e, err := NewExecutor(ExecutorConfig{Host: "h", Boot: boot, State: "s1", Journal: m})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// P7: what a response stopped is remembered across the agent's death, until an
// order starts it, it runs again, or the host boots anew.
func TestReleased(t *testing.T) {
	m := newMachine(t)
	e := m.idle(t, "b1")
	for range 2 {
		if err := e.Release(vmA); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Release(vmB); err != nil {
		t.Fatal(err)
	}
	if saves := m.saves; saves != 2 {
		t.Errorf("%d writes for two VMs", saves)
	}
	if err := e.Unrelease(vmB); err != nil {
		t.Fatal(err)
	}
	again := m.idle(t, "b1")
	if got := again.Released(); !slices.Equal(got, []haven.VMID{vmA}) {
		t.Errorf("after the agent's death: %v", got)
	}
	if _, err := again.Accept(orderOf(vmA, 2), xmlA); err != nil {
		t.Fatal(err)
	}
	if got := again.Released(); len(got) > 0 {
		t.Errorf("after an order: %v", got)
	}
	if err := again.Release(vmA); !errors.Is(err, haven.ErrUnavailable) {
		t.Errorf("released while its order is at work: %v", err)
	}
	if err := again.Release(vmB); err != nil {
		t.Fatal(err)
	}
	if got := m.idle(t, "b2").Released(); len(got) > 0 {
		t.Errorf("after a boot: %v", got)
	}
}

// P7: a VM is not called released before that is on disk.
func TestReleaseThatIsNotWritten(t *testing.T) {
	m := newMachine(t)
	m.save = func(int) error { return errors.New("disk full") }
	e := m.idle(t, "b1")
	if err := e.Release(vmA); err == nil || len(e.Released()) > 0 {
		t.Errorf("%v, %v", err, e.Released())
	}
}

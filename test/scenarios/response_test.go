//go:build lab

package scenarios

import (
	"slices"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/test/lab"
)

// TestResponses switches on what is off by default: a host that is isolated or has
// lost its storage gives its guests up. They start elsewhere once it is proved that
// they are gone, and not before (P1, P4). No BMC is asked for it.
func TestResponses(t *testing.T) {
	t.Parallel()
	g := newGround(t, options{more: `
response:
  isolation: {action: shutdown, delay: 10s, shutdown_timeout: 10s}
  storage_lost: {action: restart-elsewhere, delay: 10s}
`})

	g.trial(t, "an isolated host shuts its guests down", func(tr *trial) {
		v := tr.victim()
		lost := tr.on(v)
		before := tr.nonces(lost)
		tr.rebooted(lost...)
		tr.ok(v.CutMgmt())
		tr.startElsewhere(2*time.Minute, v, before)
		tr.verdict(10*time.Second, v, haven.VerdictIsolated, v)
	})

	g.trial(t, "a short isolation stops nothing", func(tr *trial) {
		v := tr.victim()
		tr.ok(v.CutMgmt())
		tr.leftAlone(5*time.Second, g.guests...)
		tr.ok(v.HealMgmt(tr.t.Context()))
		tr.leftAlone(watched, g.guests...)
	})

	g.trial(t, "guests leave a host whose storage fails", func(tr *trial) {
		v := tr.victim()
		lost := tr.on(v)
		before := tr.nonces(lost)
		tr.rebooted(lost...)
		tr.ok(v.Storage(tr.t.Context(), lab.StorageEIO))
		tr.startElsewhere(2*time.Minute, v, before)
	})

	// A process that waits for a hung disk cannot be ended: the guest is not gone,
	// and what it has in flight may still reach the disk.
	g.trial(t, "guests of a host whose storage hangs are not started twice", func(tr *trial) {
		v := tr.victim()
		lost := tr.on(v)
		tr.ok(v.Storage(tr.t.Context(), lab.StorageHang))
		tr.verdict(60*time.Second, v, haven.VerdictStorageLost)
		tr.watch.excuseGuests(lost) // they may end when the storage comes back
		ask(tr.site, time.Minute, "/v1/vms", "guests that are held", func(vms []client.VM) bool {
			return slices.ContainsFunc(vms, func(vm client.VM) bool {
				return vm.Hold.Reason == haven.HoldStoppedRunning && slices.ContainsFunc(lost, func(x *lab.Guest) bool { return x.Name == vm.Name })
			})
		})
		tr.leftAlone(watched)
		for _, x := range lost {
			j, err := x.Journal()
			tr.ok(err)
			if j.Boots != g.boots[x] {
				tr.t.Errorf("P1: %s was started elsewhere while its old process lives", x.Name)
			}
		}
		tr.ok(v.Storage(tr.t.Context(), lab.StorageOK))
		tr.settled(2 * time.Minute)
		for _, x := range lost { // it may or may not have been ended by then
			j, err := x.Journal()
			tr.ok(err)
			if j.Boots > g.boots[x]+1 {
				tr.t.Errorf("%s was booted %d times, want at most %d", x.Name, j.Boots, g.boots[x]+1)
			}
			g.boots[x] = j.Boots
		}
	})
}

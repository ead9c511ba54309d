//go:build lab

package scenarios

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/test/lab"
)

// TestBlockStore: a cluster whose only store is a block device. It is made while
// agents wait for it; each host learns its slot from the master; beats keep a host
// alive that lost its network; slots are found again in a cold start; and a power cut
// is found and recovered (P1, P4, P5).
func TestBlockStore(t *testing.T) {
	device := lun(t)
	s := newSite(t, options{stores: "{name: lun1, type: block, path: " + device + "}"})
	s.withStore(device, func(c *storagebeat.Child) error {
		_, err := c.Init(t.Context(), storagebeat.InitOptions{Cluster: "lab"})
		return err
	})
	s.whole()
	first := s.slots(device)
	t.Logf("slots: %v", first)
	taken := map[uint16]bool{}
	for _, slot := range first {
		taken[slot] = true
	}
	if len(first) != len(s.lab.Hosts()) || len(taken) != len(first) {
		t.Errorf("hosts do not have a slot each: %v", first)
	}

	victim := s.slave()
	guests := s.guests(victim, "a")
	s.ok(victim.CutMgmt())
	s.verdict(40*time.Second, victim, haven.VerdictIsolated, victim)
	s.untouched(watched, 1, guests)
	s.ok(victim.HealMgmt(t.Context()))
	s.whole()
	s.settled(60 * time.Second)
	s.noPowerCommands()

	before := s.nonce(guests[0])
	s.ok(victim.CutPower(t.Context()))
	s.elsewhere(60*time.Second, guests[0], before)
	s.settled(60*time.Second, victim)
	s.once(2, guests...)
	s.ok(victim.PowerOn(t.Context()))
	s.whole()

	s.ok(s.lab.Each(func(h *lab.Host) error { return h.CutPower(t.Context()) }))
	s.ok(s.lab.Each(func(h *lab.Host) error { return h.PowerOn(t.Context()) }))
	s.whole()
	if now := s.slots(device); !maps.Equal(now, first) {
		t.Errorf("slots after a cold start: %v, before: %v", now, first)
	}
}

// lun makes a block device that all hosts see.
func lun(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lun")
	if err := os.WriteFile(file, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", "--direct-io=on", file).Output()
	if err != nil {
		t.Fatalf("make a loop device: %v", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		// Not the test's own context, which has ended.
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil { //nolint:noctx // see above
			t.Errorf("detach %s: %v, %s", device, err, out)
		}
	})
	return device
}

// withStore does something to a store on a device. A child of its own each time: the
// lab's threads come and go, and a child ends with the thread that started it.
func (s *site) withStore(device string, do func(*storagebeat.Child) error) {
	s.t.Helper()
	c, err := storagebeat.NewChild(storagebeat.ChildConfig{
		Command: []string{binaries + "/havend", "store-child"}, Type: storagebeat.TypeBlock, Path: device, Cluster: "lab", Timeout: 10 * time.Second,
	})
	s.ok(err)
	err = do(c)
	s.ok(c.Close())
	s.ok(err)
}

// slots reads which slot each host has. Agent and helper of a host share one.
func (s *site) slots(device string) map[haven.HostID]uint16 {
	s.t.Helper()
	var contents storagebeat.Contents
	s.withStore(device, func(c *storagebeat.Child) (err error) {
		contents, err = c.ReadAll(s.t.Context())
		return err
	})
	slots, records := map[haven.HostID]uint16{}, 0
	for _, e := range storagebeat.Dump(contents) {
		host := haven.HostID(e.Host)
		if e.Beat == nil || e.Slot == 0 || slots[host] != 0 && slots[host] != e.Slot {
			s.t.Errorf("record of %s by its %s in slot %d: %s", e.Host, e.Writer, e.Slot, e.Error)
		}
		slots[host] = e.Slot
		records++
	}
	if records != 2*len(slots) {
		s.t.Errorf("%d records of %d hosts", records, len(slots))
	}
	return slots
}

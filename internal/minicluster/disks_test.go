package minicluster_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/minicluster"
	"github.com/haven-ha/haven/internal/world"
)

// TestWritesOn guards P4 and the mission's hard case: network, agent and helper
// of a host die at once, and only the growth of a VM's disk file says that it
// lives. It is left alone for as long as that goes on. When it ends, on all
// disks, the host is fenced and its VMs run elsewhere (P1).
func TestWritesOn(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute in real time")
	}
	const idle = 6 * time.Second
	w := t.Output()
	c, err := minicluster.New(minicluster.Options{
		Hosts: 3, Dir: t.TempDir(), StoreChild: []string{"/proc/self/exe", "store-child"}, DiskIdle: idle,
		Net: [2]byte{byte(os.Getpid() >> 8), byte(os.Getpid())}, MemoryMiB: 8192, OnEvent: func(e world.Event) { fmt.Fprintln(w, "WORLD", e.Text) },
		Log: func(host haven.HostID) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)).With("self", host) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	calm(t, c)
	owner := c.Hosts()[2]
	for i := 1; i <= 3; i++ {
		name := fmt.Sprintf("vm%d", i)
		if err := os.MkdirAll(filepath.Dir(c.DiskPath(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(c.DiskPath(name+".img"), []byte("disk"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := owner.Machine.UserStart(world.XML(vmID(i), name, 512)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, c, "/v1/vms", "three protected VMs", func(vms []client.VM) bool {
		return len(vms) == 3 && !slices.ContainsFunc(vms, func(v client.VM) bool { return !v.Protected || v.Owner != owner.ID })
	})
	calm(t, c)

	stop := writeOn(t, c.DiskPath("vm2.img"))
	owner.CutNetwork(true)
	owner.KillAgent()
	owner.KillHelper()
	verdict(t, c, owner.ID, haven.VerdictUnreachable)
	until(t, c, "/v1/hosts", "the evidence that it rests on", func(hosts []client.Host) bool {
		return slices.ContainsFunc(hosts, func(h client.Host) bool {
			return h.Host == owner.ID && slices.ContainsFunc(h.Evidence, func(e haven.Evidence) bool {
				return e.Kind == haven.EvidenceDisk && e.Value == haven.Yes && e.Observer != owner.ID && strings.Contains(e.Detail, "/shared/vm2.img")
			})
		})
	})
	// Longer than all that leads to a fence otherwise.
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range 20 {
		<-tick.C
		verdict(t, c, owner.ID, haven.VerdictUnreachable)
		untouched(t, c, owner)
	}
	stop()
	elsewhere(t, c, owner)
	once(t, c, true)
	if cmds := owner.BMC.Commands(); len(cmds) == 0 {
		t.Error("the VMs run elsewhere, and their host was not fenced")
	}
}

// writeOn appends to a file as a VM does, until it is stopped.
func writeOn(t *testing.T, path string) (stop func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				if _, err := f.WriteString("a journal entry"); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	return func() {
		close(quit)
		<-ended
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

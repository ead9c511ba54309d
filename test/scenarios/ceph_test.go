//go:build lab && ceph

package scenarios

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/storagebeat/rados/cephtest"
	"github.com/haven-ha/haven/test/lab"
)

// TestCeph: a cluster whose only store is a pool of a real Ceph on the storage
// network. Its beats keep a host alive that lost its other network, Ceph that hangs
// is an outage and no host's death, and a power cut is found and recovered (P1, P4,
// P6, P8). The cluster starts before Ceph does.
func TestCeph(t *testing.T) {
	programs := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-tags", "ceph", "-o", programs,
		"github.com/haven-ha/haven/cmd/havend", "github.com/haven-ha/haven/cmd/haven-helper", "github.com/haven-ha/haven/cmd/haven")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	s := newSite(t, options{
		programs: programs,
		stores:   "{name: ceph1, type: rados, pool: beats, namespace: lab, ceph_conf: /etc/haven/ceph.conf}",
	})
	ceph := s.startCeph()
	said, err := s.lab.Host(1).Exec(t.Context(), programs+"/haven", "store", "init", "ceph1")
	s.ok(err)
	t.Log(said)
	s.whole()
	for _, h := range s.lab.Hosts() {
		c, err := h.Census(t.Context(), "havend")
		s.ok(err)
		for _, child := range c.Children {
			t.Logf("%s: havend %d MiB resident, its child %d MiB", h.Name, c.Resident>>20, child.Resident>>20)
		}
	}
	victim := s.slave()
	guests := s.guests(victim, "a")

	s.ok(victim.CutMgmt())
	s.verdict(40*time.Second, victim, haven.VerdictIsolated, victim)
	s.untouched(watched, 1, guests)
	s.ok(victim.HealMgmt(t.Context()))
	s.whole()

	s.ok(victim.CutStor())
	s.verdict(60*time.Second, victim, haven.VerdictStorageLost)
	s.untouched(watched, 1, guests) // its disk is elsewhere
	s.ok(victim.HealStor(t.Context()))
	s.whole()

	s.ok(ceph.OSD.Signal(syscall.SIGSTOP))
	st := ask(s, 60*time.Second, "/v1/status", "a storage outage", func(st client.Status) bool {
		return slices.ContainsFunc(st.Holds, func(h haven.Hold) bool { return h.Reason == haven.HoldStorageOutage || h.Reason == haven.HoldObserver })
	})
	t.Logf("held: %+v", st.Holds)
	s.untouched(watched, 1, guests)
	s.ok(ceph.OSD.Signal(syscall.SIGCONT))
	s.ok(ceph.WaitOSD(t.Context()))
	s.whole()
	s.settled(60 * time.Second)
	s.noPowerCommands()

	before := s.nonce(guests[0])
	s.ok(victim.CutPower(t.Context()))
	s.elsewhere(60*time.Second, guests[0], before)
	s.settled(60*time.Second, victim)
	s.once(2, guests...)
}

// startCeph starts Ceph beside the cluster, makes the pool, and tells the hosts
// where it is.
func (s *site) startCeph() *cephtest.Cluster {
	s.t.Helper()
	ceph, err := cephtest.Start(s.t.Context(), cephtest.Config{Netns: s.lab.SeatNetns(), Address: lab.SeatStorageAddress})
	s.ok(err)
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Log(ceph.State(context.Background()))
		}
		if err := ceph.Close(); err != nil {
			s.t.Error(err)
		}
	})
	s.ok(ceph.MakePool(s.t.Context(), "beats"))
	conf, err := os.ReadFile(ceph.Conf())
	s.ok(err)
	for _, h := range s.lab.Hosts() {
		s.ok(os.WriteFile(filepath.Join(h.ConfigDir, "ceph.conf"), conf, 0o600))
	}
	return ceph
}

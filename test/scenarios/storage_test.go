//go:build lab

package scenarios

import (
	"slices"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/test/lab"
)

// TestStorageTroubles lets the storage of one host fail in its several ways. Its
// network lives, so it is reported and left alone (P4).
func TestStorageTroubles(t *testing.T) {
	t.Parallel()
	g := newGround(t, options{})
	others := func(tr *trial, v *lab.Host) []*lab.Guest {
		lost := tr.on(v)
		return slices.DeleteFunc(slices.Clone(g.guests), func(x *lab.Guest) bool { return slices.Contains(lost, x) })
	}
	for _, tc := range []struct {
		name string
		mode lab.StorageMode
	}{
		{"EIO on one host", lab.StorageEIO},
		{"read-only on one host", lab.StorageRO},
	} {
		g.trial(t, tc.name, func(tr *trial) {
			v := tr.victim()
			bystanders := others(tr, v)
			tr.ok(v.Storage(tr.t.Context(), tc.mode))
			tr.verdict(60*time.Second, v, haven.VerdictStorageLost)
			tr.leftAlone(watched, bystanders...)
		})
	}

	// Beats and thick disks have their space. A thin disk has not: QEMU pauses its
	// guest, and a person has to let it go on.
	g.trial(t, "full on one host", func(tr *trial) {
		v := tr.victim()
		thick := slices.Clone(g.guests)
		thin := tr.thin(v)
		tr.ok(v.Storage(tr.t.Context(), lab.StorageNoSpace))
		tr.eventually(60*time.Second, "a guest that pauses", func() bool {
			state, err := thin.State(tr.t.Context(), v)
			return err == nil && state == "paused"
		})
		tr.leftAlone(watched, thick...)
		tr.alwaysHealthy()
		tr.ok(v.Storage(tr.t.Context(), lab.StorageOK))
		_, err := v.Virsh(tr.t.Context(), "resume", thin.Name)
		tr.ok(err)
	})
}

// thin adds a guest whose disk takes space as it writes; it must live on, as all
// others.
func (tr *trial) thin(h *lab.Host) *lab.Guest {
	tr.t.Helper()
	g := tr.ground.add(tr.site, h, lab.GuestConfig{Name: "thin", Slow: true})
	tr.watch.add(tr.t, g)
	return g
}

// TestTwoStores lets one of two stores die for everybody. The other one still
// tells who lives (P4, P6).
func TestTwoStores(t *testing.T) {
	t.Parallel()
	g := newGround(t, options{twoStores: true})
	for _, tc := range []struct {
		name string
		mode lab.StorageMode
	}{
		{"the second store hangs for everybody", lab.StorageHang},
		{"the second store fails for everybody", lab.StorageEIO},
	} {
		g.trial(t, tc.name, func(tr *trial) {
			v := tr.victim()
			tr.ok(tr.lab.Each(func(h *lab.Host) error { return h.SecondStorage(tr.t.Context(), tc.mode) }))
			tr.leftAlone(watched, g.guests...)
			tr.alwaysHealthy()
			tr.ok(v.CutMgmt())
			tr.verdict(60*time.Second, v, haven.VerdictIsolated, v)
			tr.leftAlone(watched, g.guests...)
			if tr.watch.held(haven.HoldStorageOutage) {
				tr.t.Error("one store of two is no outage")
			}
		})
	}
}

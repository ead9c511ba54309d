package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/storagebeat"
)

// inventories is what beats need of the VM manager.
type inventories interface {
	Inventory(ctx context.Context) (haven.Inventory, error)
}

// beats are the helper's own beats, one writer for each store.
type beats struct {
	interval time.Duration
	vms      inventories
	children []*storagebeat.Child
	monitors []*storagebeat.Monitor

	leaving atomic.Bool
	last    atomic.Pointer[seen]
}

// seen is an inventory and when it began.
type seen struct {
	at       time.Time
	vms      []haven.VMID
	complete bool
}

// newBeats prepares the writers. Each start of a helper has a State of its own:
// so it needs nothing on a disk, and its beats are never taken for those of a
// helper before.
func newBeats(cfg *config.Config, host haven.HostID, boot haven.BootID, vms inventories, log *slog.Logger) (*beats, error) {
	hb := cfg.Heartbeat
	b := &beats{interval: hb.Interval, vms: vms}
	state := haven.StateID(rand.Text())
	for _, s := range hb.Stores {
		child, err := storagebeat.NewChild(storagebeat.ChildConfig{
			Command: []string{"/proc/self/exe", storeChild}, Type: s.Type, Path: s.Place(), Options: s.Options(), Cluster: cfg.Cluster, Timeout: hb.IOTimeout,
		})
		if err != nil {
			b.close()
			return nil, fmt.Errorf("store %s: %w", s.Name, err)
		}
		b.children = append(b.children, child)
		m, err := storagebeat.NewMonitor(storagebeat.MonitorConfig{
			Store: s.Name, Cluster: cfg.Cluster,
			Self: host, Writer: storagebeat.WriterHelper, Boot: boot, State: state, Incarnation: 1, Hosts: cfg.Hypervisors(),
			Interval: hb.Interval, StaleAfter: hb.StaleAfter, Timeout: hb.IOTimeout, WriteOnly: true,
		}, child, b.content, log)
		if err != nil {
			b.close()
			return nil, err
		}
		b.monitors = append(b.monitors, m)
	}
	return b, nil
}

// run writes beats until ctx ends, and returns when all writers have ended.
func (b *beats) run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	if len(b.monitors) == 0 {
		return
	}
	running.Go(func() { b.watch(ctx) })
	for _, m := range b.monitors {
		running.Go(func() { _ = m.Run(ctx) }) // It always returns nil.
	}
}

// farewell makes the last beats say that the helper stopped on purpose.
func (b *beats) farewell() { b.leaving.Store(true) }

func (b *beats) close() {
	for _, c := range b.children {
		_ = c.Close()
	}
}

// watch keeps the list of VMs for the beats, one question at a time. Writing a
// beat never waits for it.
func (b *beats) watch(ctx context.Context) {
	tick := time.NewTicker(b.interval)
	defer tick.Stop()
	for {
		b.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (b *beats) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, max(b.interval, time.Second))
	defer cancel()
	s := &seen{at: time.Now()}
	inv, err := b.vms.Inventory(ctx)
	s.vms, s.complete = present(inv)
	s.complete = s.complete && err == nil
	b.last.Store(s)
}

// present lists the VMs that are on the host, and says whether these are all.
// One that may be there or not is listed, and then nobody knows what is not.
func present(inv haven.Inventory) (ids []haven.VMID, complete bool) {
	complete = inv.Complete
	for _, vm := range inv.VMs {
		switch inv.Has(vm.ID) {
		case haven.Yes:
			ids = append(ids, vm.ID)
		case haven.Unknown:
			complete = false
			if vm.State.Present() {
				ids = append(ids, vm.ID)
			}
		case haven.No:
		}
	}
	ids = append(ids, inv.Processes...)
	slices.Sort(ids)
	return slices.Compact(ids), complete
}

// content fills in what a beat says. A list is part of it for two intervals.
func (b *beats) content() storagebeat.Beat {
	var beat storagebeat.Beat
	if s := b.last.Load(); s != nil && time.Since(s.at) <= 2*b.interval {
		beat.VMs, beat.Complete = s.vms, s.complete
	}
	if b.leaving.Load() {
		beat.Left = haven.LeaveStopped
	}
	return beat
}

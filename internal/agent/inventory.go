package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/haven-ha/haven"
)

// Bounds of looking at the host's own VMs.
const (
	inventoryEvery   = 500 * time.Millisecond // polling; events come on top as hints
	inventoryTimeout = 2 * time.Second        // a hung VM manager costs one call
	inventoryFresh   = 2 * time.Second        // older ones do not make a beat's list complete
)

// watcher keeps the latest inventory of this host.
type watcher struct {
	hyp  Hypervisor
	host haven.HostID
	boot haven.BootID

	mu      sync.Mutex
	latest  haven.Inventory
	sha     string
	begun   time.Time
	load    haven.HostLoad
	loadWhy string
	changed chan struct{}
}

func newWatcher(hyp Hypervisor, host haven.HostID, boot haven.BootID) *watcher {
	w := &watcher{hyp: hyp, host: host, boot: boot, changed: make(chan struct{})}
	w.set(haven.Inventory{Host: host, Boot: boot, Why: "not read yet"}, time.Time{})
	return w
}

// run polls until the context ends. Hints make it look at once.
func (w *watcher) run(ctx context.Context) {
	if w.hyp == nil {
		w.set(haven.Inventory{Host: w.host, Boot: w.boot, Complete: true}, time.Now())
		return
	}
	tick := time.NewTicker(inventoryEvery)
	defer tick.Stop()
	for {
		w.fresh(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-w.hyp.Hints():
		}
	}
}

// fresh takes an inventory now. It comes back within inventoryTimeout; when the
// VM manager does not answer, the inventory is incomplete and says why.
func (w *watcher) fresh(ctx context.Context) haven.Inventory {
	if w.hyp == nil {
		return haven.Inventory{Host: w.host, Boot: w.boot, Complete: true}
	}
	ctx, cancel := context.WithTimeout(ctx, inventoryTimeout)
	defer cancel()
	begun := time.Now()
	inv, err := w.hyp.Inventory(ctx)
	if err != nil {
		inv.Complete, inv.Why = false, err.Error()
	}
	inv.Host, inv.Boot = w.host, w.boot
	if err == nil || !errors.Is(ctx.Err(), context.Canceled) {
		w.set(inv, begun)
	}
	return inv
}

func (w *watcher) set(inv haven.Inventory, begun time.Time) {
	data, err := json.Marshal(inv)
	if err != nil {
		panic(err) // plain strings and numbers
	}
	sum := sha256.Sum256(data)
	sha := hex.EncodeToString(sum[:8])
	var load haven.HostLoad
	why := ""
	if w.hyp != nil && !begun.IsZero() {
		if load, err = w.hyp.Load(inv); err != nil {
			why = "what is free cannot be told: " + err.Error()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if begun.Before(w.begun) {
		return // a slower, older look
	}
	changed := sha != w.sha
	w.latest, w.sha, w.begun, w.load, w.loadWhy = inv, sha, begun, load, why
	if changed {
		close(w.changed)
		w.changed = make(chan struct{})
	}
}

// get returns the latest inventory, its name, when it was begun, and a channel
// that is closed when another one comes.
func (w *watcher) get() (haven.Inventory, string, time.Time, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.latest, w.sha, w.begun, w.changed
}

func (w *watcher) getLoad() (haven.HostLoad, string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.load, w.loadWhy
}

// running lists the VMs that are on the host, for the beat, and says whether
// the list is whole and fresh.
func (w *watcher) running() ([]haven.VMID, bool) {
	inv, _, begun, _ := w.get()
	var ids []haven.VMID
	seen := map[haven.VMID]bool{}
	for _, info := range inv.VMs {
		if info.State.Present() && !seen[info.ID] {
			seen[info.ID] = true
			ids = append(ids, info.ID)
		}
	}
	for _, id := range inv.Processes {
		if !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids, inv.Complete && time.Since(begun) < inventoryFresh
}

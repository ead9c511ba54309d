package election

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// diskWatch knows which operations on the log are under way, and since when.
type diskWatch struct {
	mu      sync.Mutex
	next    uint64
	running map[uint64]diskOp
	lastErr error
	onError func(error) // a write failed; called without the lock
}

type diskOp struct {
	op    Op
	since time.Time
}

func newDiskWatch() *diskWatch { return &diskWatch{running: map[uint64]diskOp{}} }

// do runs an operation and counts it as under way until it returns.
func (w *diskWatch) do(op Op, f func() error) error {
	w.mu.Lock()
	w.next++
	id := w.next
	w.running[id] = diskOp{op, time.Now()}
	w.mu.Unlock()
	err := f()
	w.mu.Lock()
	delete(w.running, id)
	report := w.onError
	if op != OpWriteLog && op != OpWriteState {
		report = nil // What is missing is an error of reading too.
	} else {
		w.lastErr = err
	}
	w.mu.Unlock()
	if err != nil && report != nil {
		report(fmt.Errorf("%s: %w", op, err))
	}
	return err
}

func (w *diskWatch) setOnError(f func(error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.onError = f
}

// oldest is the operation that has been under way for longest.
func (w *diskWatch) oldest(now time.Time) (op Op, age time.Duration, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.running {
		if a := now.Sub(r.since); a > age {
			op, age = r.op, a
		}
	}
	return op, age, w.lastErr
}

// watch wraps the log and the stable store; snapshots are written beside
// Raft's main loop and do not hold it up.
func (w *diskWatch) watch(s *stores) *stores {
	return &stores{log: watchedLog{s.log, w}, stable: watchedStable{s.stable, w}, snaps: s.snaps, close: s.close}
}

type watchedLog struct {
	raft.LogStore
	w *diskWatch
}

func (l watchedLog) GetLog(index uint64, log *raft.Log) error {
	return l.w.do(OpReadLog, func() error { return l.LogStore.GetLog(index, log) })
}

func (l watchedLog) StoreLog(log *raft.Log) error {
	return l.w.do(OpWriteLog, func() error { return l.LogStore.StoreLog(log) })
}

func (l watchedLog) StoreLogs(logs []*raft.Log) error {
	return l.w.do(OpWriteLog, func() error { return l.LogStore.StoreLogs(logs) })
}

func (l watchedLog) DeleteRange(from, to uint64) error {
	return l.w.do(OpTrimLog, func() error { return l.LogStore.DeleteRange(from, to) })
}

type watchedStable struct {
	raft.StableStore
	w *diskWatch
}

func (s watchedStable) Set(key, value []byte) error {
	return s.w.do(OpWriteState, func() error { return s.StableStore.Set(key, value) })
}

func (s watchedStable) SetUint64(key []byte, value uint64) error {
	return s.w.do(OpWriteState, func() error { return s.StableStore.SetUint64(key, value) })
}

// selfCheck makes the leader prove, every CheckEvery, that it can still
// commit. Heartbeats do not prove it: they are sent beside the log, and a
// leader whose disk hangs keeps its followers quiet for ever.
//
// A leader fails when an operation on its own disk hangs for CheckDeadline, or
// when nothing was committed for three times as long whatever the reason: then
// its followers' disks or Raft itself are stuck, and another leader may do
// better. CheckDeadline is several leases long: a disk that is only slow costs
// less than a change of master.
func (n *Node) selfCheck(ctx context.Context) {
	tick := time.NewTicker(n.cfg.CheckEvery)
	defer tick.Stop()
	var term uint64
	var good time.Time // a barrier that began then was committed
	answers := make(chan selfCheckAnswer, 1)
	waiting := false
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-answers:
			waiting = false
			if a.ok && a.term == term {
				good = a.began
			}
			continue
		case <-tick.C:
		}
		now := time.Now()
		lead := n.Leader()
		if !lead.Self {
			term = 0
			continue
		}
		if lead.Term != term {
			term, good = lead.Term, now
		}
		op, age, _ := n.disk.oldest(now)
		if age >= n.cfg.CheckDeadline {
			n.fail(fmt.Errorf("this leader's disk hangs: %s is under way for %s", op, age.Round(time.Millisecond)))
			return
		}
		if silent := now.Sub(good); silent >= 3*n.cfg.CheckDeadline {
			n.fail(fmt.Errorf("this leader committed nothing for %s", silent.Round(time.Millisecond)))
			return
		}
		if !waiting {
			waiting = n.checkBarrier(ctx, answers, selfCheckAnswer{term: term, began: now})
		}
	}
}

type selfCheckAnswer struct {
	term  uint64
	began time.Time
	ok    bool
}

// checkBarrier starts one barrier, whose answer comes through answers. There
// is never more than one, so a stuck Raft costs one goroutine.
func (n *Node) checkBarrier(ctx context.Context, answers chan<- selfCheckAnswer, a selfCheckAnswer) bool {
	return n.calls.start(func() {
		a.ok = n.raft.Barrier(n.cfg.CheckDeadline).Error() == nil
		select {
		case answers <- a:
		case <-ctx.Done():
		}
	})
}

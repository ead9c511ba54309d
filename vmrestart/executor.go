package vmrestart

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/haven-ha/haven"
)

// Outcome says what became of an attempt to start a VM.
type Outcome int

// The outcomes of a start.
const (
	Unclear Outcome = iota // it may happen yet: a deadline passed, or the connection broke
	Started                // the VM runs
	Failed                 // it did not start and will not, nor will an earlier call start it
	Locked                 // as Failed, because somebody holds a lock on its disks
)

// Hypervisor is the host's VM manager.
type Hypervisor interface {
	// Inventory lists all VMs on the host, and all VM processes. A VM that a
	// start may still be working on is not told as absent.
	Inventory(ctx context.Context) (haven.Inventory, error)
	// Start defines the VM as given, if it is not, and starts it. The error
	// explains every outcome but Started; with Failed, haven.ErrUnavailable means
	// that this call was not even made, which says nothing of earlier ones.
	Start(ctx context.Context, id haven.VMID, xml []byte) (Outcome, error)
	// Disks lists the files and devices that a definition needs to read.
	Disks(xml []byte) ([]string, error)
}

// Prober reads from a VM's disk. It must come back when its context ends, even
// when the storage hangs.
type Prober interface {
	ReadProbe(ctx context.Context, path string) error
}

// Master is whoever leads the cluster.
type Master interface {
	// Confirm asks the master, which verifies that it still leads, whether the
	// order stands. ErrVoid says that it does not; any other error says nothing.
	Confirm(ctx context.Context, order haven.Order, boot haven.BootID, state haven.StateID) error
}

// ErrVoid is returned by a Master when an order does not stand any more.
var ErrVoid = errors.New("order is void")

// ExecutorConfig is what an executor needs.
type ExecutorConfig struct {
	Host  haven.HostID
	Boot  haven.BootID
	State haven.StateID
	// Lease is the most that may pass, in time that includes suspension,
	// between asking the master and starting. One Raft lease.
	Lease time.Duration
	// Boottime is a clock that counts while the machine is suspended.
	Boottime func() time.Duration
	// ProbeTimeout bounds the reading of one disk and one inventory,
	// ConfirmTimeout all asking of the master, StartTimeout one call of the VM
	// manager with what is asked of it after that.
	ProbeTimeout, ConfirmTimeout, StartTimeout time.Duration
	// Parallel bounds the starts at one time.
	Parallel   int
	Hypervisor Hypervisor
	Prober     Prober
	Master     Master
	Journal    Journal
	Log        *slog.Logger
}

// Executor carries out orders on one host. It is idempotent: an order may come
// any number of times, before and after a crash.
type Executor struct {
	cfg   ExecutorConfig
	slots chan struct{}
	kick  chan struct{}

	// writing is held while the journal is written. The disk may hang; who only
	// reads waits for mu, which is never held for long.
	writing chan struct{}

	mu      sync.Mutex
	journal JournalState // changed under both
	xml     map[haven.OrderID][]byte
	working map[haven.OrderID]bool
	changed chan struct{}
}

// journalWait is the most that one writer waits for another.
const journalWait = 5 * time.Second

// NewExecutor reads the journal. Orders of other boots are dropped: whatever
// they began ended with their boot.
func NewExecutor(cfg ExecutorConfig) (*Executor, error) {
	st, err := cfg.Journal.Load()
	if err != nil {
		return nil, fmt.Errorf("load order journal: %w", err)
	}
	if st.VMs == nil {
		st.VMs = map[haven.VMID]OrderRecord{}
	}
	for id, r := range st.VMs {
		if r.Order.TargetBoot != cfg.Boot && !r.Status.Final() {
			r.Status, r.Detail = haven.OrderFailed, "the host was booted anew"
			st.VMs[id] = r
		}
	}
	return &Executor{
		cfg: cfg, journal: st,
		slots: make(chan struct{}, max(1, cfg.Parallel)), kick: make(chan struct{}, 1), writing: make(chan struct{}, 1),
		xml: map[haven.OrderID][]byte{}, working: map[haven.OrderID]bool{}, changed: make(chan struct{}),
	}, nil
}

// Highest returns the highest term that was seen and written to disk.
func (e *Executor) Highest() haven.Term {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.journal.Highest
}

// See notes a master's term. It returns haven.ErrStaleTerm when a newer one was
// seen, and otherwise has it on disk when it returns.
func (e *Executor) See(term haven.Term) error {
	if term == e.Highest() {
		return nil
	}
	if err := e.lock(); err != nil {
		return err
	}
	defer e.unlock()
	if term.Older(e.journal.Highest) {
		return fmt.Errorf("%w: %s, %s was seen", haven.ErrStaleTerm, term, e.journal.Highest)
	}
	next := e.journal.clone()
	next.Highest = term
	return e.save(next)
}

// lock makes the caller the one that writes the journal.
func (e *Executor) lock() error {
	late := time.NewTimer(journalWait)
	defer late.Stop()
	select {
	case e.writing <- struct{}{}:
		return nil
	case <-late.C:
		return fmt.Errorf("order journal has been under writing for %s: %w", journalWait, haven.ErrUnavailable)
	}
}

func (e *Executor) unlock() { <-e.writing }

// save writes the journal. The caller holds the lock.
func (e *Executor) save(next JournalState) error {
	if err := e.cfg.Journal.Save(next); err != nil {
		return fmt.Errorf("save order journal: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.journal = next
	close(e.changed)
	e.changed = make(chan struct{})
	return nil
}

// Accept takes an order, or says how one that was taken before stands. The
// answer is on disk before it is given; an error means that nothing is known to
// be on disk, and the master asks again.
func (e *Executor) Accept(o haven.Order, xml []byte) (haven.OrderReport, error) {
	if o.Target != e.cfg.Host || o.TargetBoot != e.cfg.Boot || o.TargetState != e.cfg.State {
		// Not this agent's to refuse: only the state that is named may speak for it.
		return haven.OrderReport{}, fmt.Errorf("order %s is for %s in boot %s with agent state %s, this is %s, %s, %s: %w",
			o.ID, o.Target, o.TargetBoot, o.TargetState, e.cfg.Host, e.cfg.Boot, e.cfg.State, haven.ErrNotFound)
	}
	if sum := sha256.Sum256(xml); len(xml) > 0 && hex.EncodeToString(sum[:]) != o.DefinitionSHA {
		return haven.OrderReport{}, fmt.Errorf("order %s came with another definition than it names", o.ID)
	}
	if err := e.lock(); err != nil {
		return haven.OrderReport{}, fmt.Errorf("take order %s: %w", o.ID, err)
	}
	defer e.unlock()
	old, known := e.journal.VMs[o.VM]
	if known && old.Order == o {
		if !old.Status.Final() {
			e.hand(o.ID, xml)
		}
		return e.report(old), nil
	}
	rec := OrderRecord{Order: o, Status: haven.OrderAccepted}
	if known {
		var err error
		if rec.Tried, err = e.supersede(old, o); err != nil {
			return haven.OrderReport{}, err
		}
	}
	if o.Term.Older(e.journal.Highest) {
		if rec.Tried {
			return haven.OrderReport{}, fmt.Errorf("order %s: %w: %s, %s was seen", o.ID, haven.ErrStaleTerm, o.Term, e.journal.Highest)
		}
		rec.Status, rec.Detail = haven.OrderRefused, fmt.Sprintf("term %s is stale, %s was seen", o.Term, e.journal.Highest)
	}
	next := e.journal.clone()
	if next.Highest.Older(o.Term) {
		next.Highest = o.Term
	}
	next.VMs[o.VM] = rec
	delete(next.Released, o.VM)
	if err := e.save(next); err != nil {
		return haven.OrderReport{}, err
	}
	if rec.Status == haven.OrderAccepted {
		e.hand(o.ID, xml)
	}
	return e.report(rec), nil
}

// supersede lets an order take the place of an older one for the same VM. The
// ledger gives a new one only when it knows what became of the old one, even if
// this agent does not: it may have been found running before the report came.
// It returns whether the VM manager may have been called for the old one, with
// an outcome that this agent does not know; the new one is then as if tried.
func (e *Executor) supersede(old OrderRecord, o haven.Order) (tried bool, err error) {
	if old.Order.Term.Generation == o.Term.Generation && o.Epoch <= old.Order.Epoch || o.Term.Generation < old.Order.Term.Generation {
		return false, fmt.Errorf("order %s is older than order %s: %w", o.ID, old.Order.ID, haven.ErrStaleTerm)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.working[old.Order.ID] {
		return false, fmt.Errorf("order %s is being worked on: %w", old.Order.ID, haven.ErrUnavailable)
	}
	delete(e.xml, old.Order.ID)
	return old.Tried && !old.Status.Final() && old.Order.TargetBoot == e.cfg.Boot, nil
}

// hand gives Run the definition that it needs to work on an order.
func (e *Executor) hand(id haven.OrderID, xml []byte) {
	if len(xml) == 0 {
		return
	}
	e.mu.Lock()
	e.xml[id] = xml
	e.mu.Unlock()
	e.poke()
}

func (e *Executor) report(r OrderRecord) haven.OrderReport {
	return haven.OrderReport{
		Boot: e.cfg.Boot, State: e.cfg.State, Order: r.Order.ID, VM: r.Order.VM, Epoch: r.Order.Epoch,
		Status: r.Status, Detail: r.Detail, Locked: r.Locked,
	}
}

// Reports returns how the orders of this boot stand, and a channel that is
// closed at the next change.
func (e *Executor) Reports() ([]haven.OrderReport, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []haven.OrderReport
	for _, r := range e.journal.VMs {
		if r.Order.TargetBoot == e.cfg.Boot && r.Order.TargetState == e.cfg.State {
			all = append(all, e.report(r))
		}
	}
	slices.SortFunc(all, func(a, b haven.OrderReport) int { return cmp.Compare(a.VM, b.VM) })
	return all, e.changed
}

func (e *Executor) poke() {
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// Run works on accepted orders until the context ends. It returns when every
// start that it began has come back; each is bounded.
func (e *Executor) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		for _, w := range e.due() {
			select {
			case e.slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			wg.Go(func() {
				defer func() { <-e.slots; e.leave(w.rec.Order.ID); e.poke() }()
				e.perform(ctx, w)
			})
		}
		select {
		case <-e.kick:
		case <-ctx.Done():
			return
		}
	}
}

type work struct {
	rec OrderRecord
	xml []byte
}

// due returns the orders that can be worked on: not final, not being worked on,
// and with a definition at hand. After a crash the definition comes with the
// master's next reminder.
func (e *Executor) due() []work {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []work
	for _, r := range e.journal.VMs {
		xml := e.xml[r.Order.ID]
		if r.Status.Final() || xml == nil || e.working[r.Order.ID] || r.Order.TargetBoot != e.cfg.Boot || r.Order.TargetState != e.cfg.State {
			continue
		}
		e.working[r.Order.ID] = true
		all = append(all, work{r, xml})
	}
	slices.SortFunc(all, func(a, b work) int { return cmp.Compare(a.rec.Order.VM, b.rec.Order.VM) })
	return all
}

func (e *Executor) leave(id haven.OrderID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.working, id)
	// Without a definition the order waits for the master's next reminder, which
	// paces the attempts to learn what became of an unclear start.
	delete(e.xml, id)
}

// settle writes how an order stands, and says whether that is on disk. What is
// not on disk is not said: the order stays as it was, and the next reminder
// finds out again.
func (e *Executor) settle(r OrderRecord, status haven.OrderStatus, detail string) bool {
	r.Status, r.Detail = status, detail
	err := e.lock()
	if err == nil {
		defer e.unlock()
		switch was := e.journal.VMs[r.Order.VM]; {
		case was == r:
			return true
		case was.Order != r.Order:
			return false
		}
		next := e.journal.clone()
		next.VMs[r.Order.VM] = r
		err = e.save(next)
	}
	if err != nil {
		e.cfg.Log.Error("order journal cannot be written", "order", r.Order.ID, "error", err)
	}
	return err == nil
}

// perform takes an order to its end, or as far as it gets now.
func (e *Executor) perform(ctx context.Context, w work) {
	r := w.rec
	log := e.cfg.Log.With("order", r.Order.ID, "vm", r.Order.Name)
	if e.already(ctx, r) {
		return
	}
	// Whether an earlier run of this agent, or an earlier turn, called the VM
	// manager: then a refusal would be a lie.
	called := r.Tried
	if !called {
		if err := e.probe(ctx, w.xml); err != nil {
			if ctx.Err() == nil {
				e.settle(r, haven.OrderRefused, err.Error())
			}
			return
		}
	}
	if r, ok := e.permitted(ctx, r, log); ok {
		e.start(ctx, r, w.xml, called, log)
	}
}

// permitted says whether the VM manager may be called right now: the master has
// just confirmed the order, and the journal says that the call may have been
// made.
func (e *Executor) permitted(ctx context.Context, r OrderRecord, log *slog.Logger) (OrderRecord, bool) {
	called := r.Tried
	limit, cancel := context.WithTimeout(ctx, e.cfg.ConfirmTimeout)
	defer cancel()
	for {
		asked, err := e.confirm(limit, r.Order)
		if err != nil {
			// When it may be on its way already, only the VM manager can tell.
			if !called && (errors.Is(err, ErrVoid) || ctx.Err() == nil) {
				e.settle(r, haven.OrderRefused, err.Error())
			}
			return r, false
		}
		if !r.Tried {
			r.Tried = true
			if !e.settle(r, haven.OrderAccepted, "starting") {
				return r, false
			}
		}
		age := e.cfg.Boottime() - asked
		if age <= e.cfg.Lease {
			return r, true
		}
		log.Warn("confirmation is too old, asking again", "age", age)
	}
}

// already settles an order whose VM runs, and stops one about which the host
// cannot speak now.
func (e *Executor) already(ctx context.Context, r OrderRecord) bool {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.ProbeTimeout)
	defer cancel()
	inv, err := e.cfg.Hypervisor.Inventory(ctx)
	has := haven.Unknown
	if err == nil {
		has = inv.Has(r.Order.VM)
	}
	switch has {
	case haven.No:
		return false
	case haven.Yes:
		info, _ := inv.Find(r.Order.VM)
		if info.State == haven.VMRunning {
			e.settle(r, haven.OrderStarted, "it runs")
		} else {
			e.settle(r, haven.OrderUnknown, strings.TrimSpace(fmt.Sprintf("it is there, but does not run: %s %s", info.State, info.Reason)))
		}
		return true
	case haven.Unknown:
	}
	why := inv.Why
	if err != nil {
		why = err.Error()
	}
	switch {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled):
	case !r.Tried:
		e.settle(r, haven.OrderRefused, "the VM manager does not say whether it runs already: "+why)
	default:
		e.settle(r, haven.OrderUnknown, "the VM manager does not say what became of it: "+why)
	}
	return true
}

func (e *Executor) probe(ctx context.Context, xml []byte) error {
	disks, err := e.cfg.Hypervisor.Disks(xml)
	if err != nil {
		return fmt.Errorf("read definition: %w", err)
	}
	for _, path := range disks {
		ctx, cancel := context.WithTimeout(ctx, e.cfg.ProbeTimeout)
		err := e.cfg.Prober.ReadProbe(ctx, path)
		cancel()
		if err != nil {
			return fmt.Errorf("read disk %s: %w", path, err)
		}
	}
	return nil
}

// confirm asks the master until it answers or the time is up. It returns when
// the question that was answered was asked.
func (e *Executor) confirm(ctx context.Context, o haven.Order) (time.Duration, error) {
	var err error
	for {
		if ctx.Err() != nil {
			return 0, fmt.Errorf("confirm order: %w", cmp.Or(err, ctx.Err()))
		}
		asked := e.cfg.Boottime()
		err = e.cfg.Master.Confirm(ctx, o, e.cfg.Boot, e.cfg.State)
		if err == nil || errors.Is(err, ErrVoid) {
			return asked, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// start calls the VM manager. earlier says that it may have been called before.
func (e *Executor) start(ctx context.Context, r OrderRecord, xml []byte, earlier bool, log *slog.Logger) {
	log.Info("starting VM", "epoch", r.Order.Epoch, "term", r.Order.Term.String())
	// A start that was begun is seen through: the agent's stop must not make its
	// outcome unknown. The call has its own bound.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.cfg.StartTimeout)
	defer cancel()
	outcome, err := e.cfg.Hypervisor.Start(ctx, r.Order.VM, xml)
	switch outcome {
	case Started:
		e.settle(r, haven.OrderStarted, "")
		return
	case Failed, Locked:
		inv, ierr := e.cfg.Hypervisor.Inventory(ctx)
		unasked := earlier && errors.Is(err, haven.ErrUnavailable)
		if ierr == nil && inv.Has(r.Order.VM) == haven.No && !unasked {
			r.Locked = outcome == Locked
			e.settle(r, haven.OrderFailed, fmt.Sprint(err))
			return
		}
		e.settle(r, haven.OrderUnknown, fmt.Sprintf("start failed (%v) and it is not known to be gone", err))
	case Unclear:
		e.settle(r, haven.OrderUnknown, fmt.Sprintf("start was not answered: %v", err))
	}
	log.Warn("outcome of start is not known yet", "error", err)
}

package vmrestart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	Failed                 // it did not start and will not
	Locked                 // as Failed, because somebody holds a lock on its disks
)

// Hypervisor is the host's VM manager.
type Hypervisor interface {
	// Inventory lists all VMs on the host, and all VM processes.
	Inventory(ctx context.Context) (haven.Inventory, error)
	// Start defines the VM as given, if it is not, and starts it. The error
	// explains every outcome but Started.
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
	// ProbeTimeout bounds the reading of one disk, ConfirmTimeout all asking of
	// the master, StartTimeout one call of the VM manager.
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

	mu      sync.Mutex
	journal JournalState
	xml     map[haven.OrderID][]byte
	working map[haven.OrderID]bool
	changed chan struct{}
}

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
		slots: make(chan struct{}, max(1, cfg.Parallel)), kick: make(chan struct{}, 1),
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
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.see(term)
}

func (e *Executor) see(term haven.Term) error {
	if term.Older(e.journal.Highest) {
		return fmt.Errorf("%w: %s, %s was seen", haven.ErrStaleTerm, term, e.journal.Highest)
	}
	if term == e.journal.Highest {
		return nil
	}
	next := e.journal.clone()
	next.Highest = term
	return e.save(next)
}

func (e *Executor) save(next JournalState) error {
	if err := e.cfg.Journal.Save(next); err != nil {
		return fmt.Errorf("save order journal: %w", err)
	}
	e.journal = next
	return nil
}

// Accept takes an order, or says how one that was taken before stands. The
// answer is on disk before it is given; an error means that nothing is known to
// be on disk, and the master asks again.
func (e *Executor) Accept(o haven.Order, xml []byte) (haven.OrderReport, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if o.Target != e.cfg.Host || o.TargetBoot != e.cfg.Boot || o.TargetState != e.cfg.State {
		// Not this agent's to refuse: only the state that is named may speak for it.
		return haven.OrderReport{}, fmt.Errorf("order %s is for %s in boot %s with agent state %s, this is %s, %s, %s: %w",
			o.ID, o.Target, o.TargetBoot, o.TargetState, e.cfg.Host, e.cfg.Boot, e.cfg.State, haven.ErrNotFound)
	}
	rec, known := e.journal.VMs[o.VM]
	if known && rec.Order.ID == o.ID {
		if len(xml) > 0 && !rec.Status.Final() {
			e.xml[o.ID] = xml
			e.poke()
		}
		return e.report(rec), nil
	}
	if known && o.Epoch <= rec.Order.Epoch {
		return haven.OrderReport{}, fmt.Errorf("order %s is older than order %s: %w", o.ID, rec.Order.ID, haven.ErrStaleTerm)
	}
	if known && !rec.Status.Final() && rec.Order.TargetBoot == e.cfg.Boot {
		return haven.OrderReport{}, fmt.Errorf("order %s is not settled yet", rec.Order.ID)
	}
	rec = OrderRecord{Order: o, Status: haven.OrderAccepted}
	if o.Term.Older(e.journal.Highest) {
		rec.Status, rec.Detail = haven.OrderRefused, fmt.Sprintf("term %s is stale, %s was seen", o.Term, e.journal.Highest)
	}
	next := e.journal.clone()
	if next.Highest.Older(o.Term) {
		next.Highest = o.Term
	}
	next.VMs[o.VM] = rec
	if err := e.save(next); err != nil {
		return haven.OrderReport{}, err
	}
	if rec.Status == haven.OrderAccepted {
		e.xml[o.ID] = xml
		e.poke()
	}
	return e.report(rec), nil
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

// settle writes how an order stands.
func (e *Executor) settle(r OrderRecord, status haven.OrderStatus, detail string) OrderRecord {
	e.mu.Lock()
	defer e.mu.Unlock()
	r.Status, r.Detail = status, detail
	next := e.journal.clone()
	next.VMs[r.Order.VM] = r
	if err := e.save(next); err != nil {
		// What is not on disk is not said: the order stays as it was, and the
		// next reminder finds out again.
		e.cfg.Log.Error("order journal cannot be written", "order", r.Order.ID, "error", err)
		return e.journal.VMs[r.Order.VM]
	}
	close(e.changed)
	e.changed = make(chan struct{})
	return r
}

// perform takes an order to its end, or as far as it gets now.
func (e *Executor) perform(ctx context.Context, w work) {
	r := w.rec
	log := e.cfg.Log.With("order", r.Order.ID, "vm", r.Order.Name)
	if done := e.already(ctx, r); done {
		return
	}
	if !r.Begun {
		if err := e.probe(ctx, w.xml); err != nil {
			e.settle(r, haven.OrderRefused, err.Error())
			return
		}
		// From here on a crash leaves behind an order that may have been begun.
		r.Begun = true
		if r = e.settle(r, haven.OrderAccepted, "about to start"); !r.Begun {
			return
		}
	}
	// Whether an earlier run of this agent, or an earlier turn, called the VM
	// manager: then a refusal would be a lie.
	called := r.Tried
	for {
		asked, err := e.confirm(ctx, r.Order)
		if err != nil {
			// When it may be on its way already, only the VM manager can tell.
			if !called && (errors.Is(err, ErrVoid) || ctx.Err() == nil) {
				e.settle(r, haven.OrderRefused, err.Error())
			}
			return
		}
		if !r.Tried {
			r.Tried = true
			if r = e.settle(r, haven.OrderAccepted, "starting"); !r.Tried {
				return
			}
		}
		age := e.cfg.Boottime() - asked
		if age <= e.cfg.Lease {
			break
		}
		log.Warn("confirmation is too old, asking again", "age", age)
	}
	e.start(ctx, r, w.xml, log)
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
		if info, ok := inv.Find(r.Order.VM); ok && info.State == haven.VMRunning {
			e.settle(r, haven.OrderStarted, "it runs")
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
	ctx, cancel := context.WithTimeout(ctx, e.cfg.ConfirmTimeout)
	defer cancel()
	for {
		asked := e.cfg.Boottime()
		err := e.cfg.Master.Confirm(ctx, o, e.cfg.Boot, e.cfg.State)
		if err == nil || errors.Is(err, ErrVoid) {
			return asked, err
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("confirm order: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (e *Executor) start(ctx context.Context, r OrderRecord, xml []byte, log *slog.Logger) {
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
		if ierr == nil && inv.Has(r.Order.VM) == haven.No {
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

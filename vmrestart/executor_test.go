package vmrestart

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/haven-ha/haven"
)

const (
	vmA haven.VMID = "11111111-0000-4000-8000-00000000000a"
	vmB haven.VMID = "11111111-0000-4000-8000-00000000000b"
)

var xmlA = []byte("<domain>a</domain>")

func orderOf(vm haven.VMID, epoch haven.Epoch) haven.Order {
	sum := sha256.Sum256(xmlA)
	return haven.Order{
		ID: haven.OrderID(fmt.Sprintf("%s.%d", vm, epoch)), VM: vm, Name: "web", Epoch: epoch, Target: "h", TargetBoot: "b1", TargetState: "s1",
		Term: haven.Term{Generation: 1, Term: 5}, DefinitionSHA: hex.EncodeToString(sum[:]), MemoryMiB: 64,
	}
}

// machine is what survives an agent: its disk, its VM manager and its VMs. It
// also is the witness of what was promised to the master.
type machine struct {
	t testing.TB

	mu       sync.Mutex
	disk     JournalState
	vms      map[haven.VMID]haven.VMState
	inFlight map[haven.VMID]bool // a start that the VM manager may still carry out
	starts   map[haven.VMID]int
	freed    map[haven.OrderID]bool // refused or failed: another host may start it now
	started  time.Duration          // how long a start takes
	ops      int                    // everything that a crash can come before or after
	dies     int                    // at which of them the agent dies; 0: never
	after    bool                   // dies after it has had its effect, not before
	dead     bool

	inventory func(ctx context.Context) error
	start     func(ctx context.Context, id haven.VMID) (Outcome, error, bool)
	confirm   func(ctx context.Context, n int) error
	probe     func(ctx context.Context) error
	save      func(n int) error
	confirms  int
	saves     int
	suspended time.Duration
	epoch     time.Time
}

func newMachine(t testing.TB) *machine {
	return &machine{
		t: t, vms: map[haven.VMID]haven.VMState{}, inFlight: map[haven.VMID]bool{}, starts: map[haven.VMID]int{}, freed: map[haven.OrderID]bool{},
		disk: JournalState{VMs: map[haven.VMID]OrderRecord{}}, started: 300 * time.Millisecond, epoch: time.Now(),
	}
}

var errDead = errors.New("the agent is dead")

// op is one effect on the outside. It returns errDead when the agent is dead.
func (m *machine) op(effect func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return errDead
	}
	m.ops++
	if m.ops == m.dies && !m.after {
		m.dead = true
		return errDead
	}
	effect()
	if m.ops == m.dies {
		m.dead = true
		return errDead
	}
	return nil
}

func (m *machine) Load() (JournalState, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.disk.clone(), nil
}

func (m *machine) Save(s JournalState) error {
	m.mu.Lock()
	m.saves++
	n, fail := m.saves, m.save
	m.mu.Unlock()
	if fail != nil {
		if err := fail(n); err != nil {
			return err
		}
	}
	return m.op(func() { m.disk = s.clone() })
}

func (m *machine) Inventory(ctx context.Context) (haven.Inventory, error) {
	if m.inventory != nil {
		if err := m.inventory(ctx); err != nil {
			return haven.Inventory{Why: err.Error()}, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	inv := haven.Inventory{Host: "h", Boot: "b1", Complete: true}
	for id, state := range m.vms {
		inv.VMs = append(inv.VMs, haven.VMInfo{ID: id, State: state})
	}
	return inv, nil
}

func (m *machine) Start(ctx context.Context, id haven.VMID, _ []byte) (Outcome, error) {
	if m.start != nil {
		if outcome, err, done := m.start(ctx, id); done {
			return outcome, err
		}
	}
	select {
	case <-ctx.Done():
		return Unclear, ctx.Err()
	case <-time.After(m.started):
	}
	if err := m.op(func() { m.run(id) }); err != nil {
		return Unclear, err
	}
	return Started, nil
}

// run makes a VM run. The machine's lock is held.
func (m *machine) run(id haven.VMID) {
	if m.vms[id].Present() && m.vms[id] != "" {
		m.t.Errorf("P1: VM %s was started while it was %s", id, m.vms[id])
	}
	for o := range m.freed {
		if strings.HasPrefix(string(o), string(id)) && m.disk.VMs[id].Order.ID == o {
			m.t.Errorf("P1: VM %s started after order %s was given back", id, o)
		}
	}
	m.vms[id] = haven.VMRunning
	m.starts[id]++
	delete(m.inFlight, id)
}

func (m *machine) Disks([]byte) ([]string, error) { return []string{"/disk"}, nil }

func (m *machine) ReadProbe(ctx context.Context, _ string) error {
	if m.probe != nil {
		return m.probe(ctx)
	}
	return nil
}

func (m *machine) Confirm(ctx context.Context, _ haven.Order, _ haven.BootID, _ haven.StateID) error {
	m.mu.Lock()
	m.confirms++
	n := m.confirms
	m.mu.Unlock()
	if err := m.op(func() {}); err != nil {
		return err
	}
	if m.confirm != nil {
		return m.confirm(ctx, n)
	}
	return nil
}

func (m *machine) boottime() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.epoch) + m.suspended
}

// heard is what the master makes of a report: a refusal or failure frees the VM.
func (m *machine) heard(r haven.OrderReport) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.Status != haven.OrderRefused && r.Status != haven.OrderFailed {
		return
	}
	m.freed[r.Order] = true
	if m.vms[r.VM] == haven.VMRunning || m.inFlight[r.VM] {
		m.t.Errorf("P1: order %s was given back as %s (%s) while the VM is %q and a start in flight: %t", r.Order, r.Status, r.Detail, m.vms[r.VM], m.inFlight[r.VM])
	}
}

// agent is one life of an executor.
type agent struct {
	*Executor
	m    *machine
	stop context.CancelFunc
	done chan struct{}
}

func (m *machine) boot(t testing.TB, boot haven.BootID, state haven.StateID) *agent {
	t.Helper()
	m.mu.Lock()
	m.dead = false
	m.mu.Unlock()
	e, err := NewExecutor(ExecutorConfig{
		Host: "h", Boot: boot, State: state, Lease: time.Second, Boottime: m.boottime,
		ProbeTimeout: 5 * time.Second, ConfirmTimeout: 15 * time.Second, StartTimeout: 60 * time.Second, Parallel: 2,
		Hypervisor: m, Prober: m, Master: m, Journal: m, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := &agent{Executor: e, m: m, stop: cancel, done: make(chan struct{})}
	go func() { defer close(a.done); e.Run(ctx) }()
	return a
}

func (a *agent) end() { a.stop(); <-a.done }

// remind sends the order every second, as the master does, until it is settled
// or the time is up.
func (a *agent) remind(o haven.Order, limit time.Duration) haven.OrderReport {
	var last haven.OrderReport
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Second) {
		r, err := a.Accept(o, xmlA)
		if err == nil {
			a.m.heard(r)
			last = r
		}
		if last.Status.Final() {
			break
		}
	}
	return last
}

func (a *agent) status(vm haven.VMID) haven.OrderReport {
	all, _ := a.Reports()
	for _, r := range all {
		if r.VM == vm {
			a.m.heard(r)
			return r
		}
	}
	return haven.OrderReport{}
}

// rec, all, count and put look at the machine from a test.
func (m *machine) rec(id haven.VMID) OrderRecord { return m.all().VMs[id] }

func (m *machine) all() JournalState {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.disk
}

func (m *machine) count(id haven.VMID) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.starts[id]
}

func (m *machine) put(id haven.VMID, state haven.VMState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.vms[id] = state
}

// fly notes that the VM manager may start a VM later, and whether it might before.
func (m *machine) fly(id haven.VMID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.inFlight[id]
	m.inFlight[id] = true
	return before
}

// behave changes how the machine behaves while an agent runs.
func (m *machine) behave(f func()) {
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

func bubble(t *testing.T, f func(t *testing.T, m *machine)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newMachine(t)) })
}

func TestExecutorStarts(t *testing.T) {
	bubble(t, func(t *testing.T, m *machine) {
		a := m.boot(t, "b1", "s1")
		defer a.end()
		o := orderOf(vmA, 2)
		if r, err := a.Accept(o, xmlA); err != nil || r.Status != haven.OrderAccepted || r.Boot != "b1" || r.State != "s1" || m.rec(vmA).Order != o {
			t.Fatalf("accepted: %+v, %v; on disk: %+v", r, err, m.rec(vmA))
		}
		_, changed := a.Reports()
		time.Sleep(200 * time.Millisecond)
		if rec := m.rec(vmA); !rec.Tried {
			t.Errorf("the VM manager is called, and the disk does not know: %+v", rec)
		}
		time.Sleep(time.Second)
		select {
		case <-changed:
		default:
			t.Error("nobody was told of the change")
		}
		for range 3 {
			if r := a.remind(o, time.Minute); r.Status != haven.OrderStarted {
				t.Errorf("%+v", r)
			}
		}
		if m.count(vmA) != 1 || m.confirms != 1 {
			t.Errorf("%d starts, %d confirmations", m.count(vmA), m.confirms)
		}
		saves := m.saves
		a.remind(o, time.Minute)
		if m.saves != saves {
			t.Error("a repeated order was written again")
		}
	})
}

// What Accept must not take. None of it may be refused in the ledger's sense:
// a refusal lets another host start the VM.
func TestAcceptErrors(t *testing.T) {
	with := func(f func(*haven.Order)) haven.Order {
		o := orderOf(vmA, 5)
		f(&o)
		return o
	}
	tests := []struct {
		name  string
		order haven.Order
		xml   string
		want  error
	}{
		{"another host", with(func(o *haven.Order) { o.Target = "x" }), "", haven.ErrNotFound},
		{"another boot", with(func(o *haven.Order) { o.TargetBoot = "b0" }), "", haven.ErrNotFound},
		{"P1: a directory that was lost", with(func(o *haven.Order) { o.TargetState = "s0" }), "", haven.ErrNotFound},
		{"P1: an older epoch", with(func(o *haven.Order) { o.ID, o.Epoch = "old", 3 }), "", haven.ErrStaleTerm},
		{"P1: the same epoch with another content", with(func(o *haven.Order) { o.Epoch, o.MemoryMiB = 4, 1 }), "", haven.ErrStaleTerm},
		{"P1: an older generation", with(func(o *haven.Order) { o.Term.Generation = 0 }), "", haven.ErrStaleTerm},
		{"another definition", orderOf(vmA, 5), "<other/>", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, m *machine) {
				a := m.boot(t, "b1", "s1")
				defer a.end()
				a.remind(orderOf(vmA, 4), time.Minute)
				before := m.all()
				r, err := a.Accept(tt.order, []byte(tt.xml))
				if err == nil || (tt.want != nil && !errors.Is(err, tt.want)) || r.Status != haven.OrderNone {
					t.Errorf("%+v, %v; want %v", r, err, tt.want)
				}
				if !maps.Equal(m.all().VMs, before.VMs) {
					t.Errorf("it left %+v on disk", m.all().VMs)
				}
			})
		})
	}
}

func TestTerms(t *testing.T) {
	bubble(t, func(t *testing.T, m *machine) {
		a := m.boot(t, "b1", "s1")
		if err := a.See(haven.Term{Generation: 1, Term: 9}); err != nil || m.all().Highest.Term != 9 {
			t.Fatalf("%v, on disk %v", err, m.all().Highest)
		}
		if err := a.See(haven.Term{Generation: 1, Term: 8}); !errors.Is(err, haven.ErrStaleTerm) {
			t.Errorf("an older term: %v", err)
		}
		// It was never begun here and never will be: that may be said.
		if r, err := a.Accept(orderOf(vmA, 2), xmlA); err != nil || r.Status != haven.OrderRefused || m.rec(vmA).Status != haven.OrderRefused {
			t.Errorf("an order of an older term: %+v, %v", r, err)
		}
		a.end()
		a = m.boot(t, "b1", "s1")
		defer a.end()
		if a.Highest().Term != 9 {
			t.Errorf("after a crash the highest term is %v", a.Highest())
		}
		if r := a.remind(orderOf(vmA, 2), 5*time.Second); r.Status != haven.OrderRefused || m.count(vmA) != 0 {
			t.Errorf("a refused order came again: %+v, %d starts", r, m.count(vmA))
		}
		m.save = func(int) error { return errors.New("disk full") }
		if err := a.See(haven.Term{Generation: 1, Term: 10}); err == nil || a.Highest().Term != 9 {
			t.Errorf("a term that is not on disk: %v, highest %v", err, a.Highest())
		}
	})
}

// P7: an order of which this agent does not know the end gives way to the next
// one for the same VM: the ledger knows the end, or it would not give one.
func TestNextOrder(t *testing.T) {
	unsettled := func(m *machine, a *agent) {
		m.start = func(context.Context, haven.VMID) (Outcome, error, bool) { return Unclear, errors.New("hung"), true }
		a.remind(orderOf(vmA, 2), 3*time.Second)
		m.behave(func() { m.start = nil })
	}
	t.Run("after an unclear start", func(t *testing.T) {
		bubble(t, func(t *testing.T, m *machine) {
			a := m.boot(t, "b1", "s1")
			defer a.end()
			unsettled(m, a)
			// The master found the VM running, it ended, and is to be started again.
			if r := a.remind(orderOf(vmA, 3), time.Minute); r.Status != haven.OrderStarted || r.Epoch != 3 {
				t.Errorf("%+v", r)
			}
		})
	})
	t.Run("P1: it is not refused, the old start may be in flight", func(t *testing.T) {
		bubble(t, func(t *testing.T, m *machine) {
			a := m.boot(t, "b1", "s1")
			defer a.end()
			unsettled(m, a)
			m.behave(func() {
				m.inFlight[vmA] = true
				m.probe = func(context.Context) error { return errors.New("no disk") }
				m.confirm = func(context.Context, int) error { return ErrVoid }
			})
			if r := a.remind(orderOf(vmA, 3), time.Minute); r.Status != haven.OrderAccepted {
				t.Errorf("%+v", r)
			}
		})
	})
	t.Run("not while the old one is worked on", func(t *testing.T) {
		bubble(t, func(t *testing.T, m *machine) {
			a := m.boot(t, "b1", "s1")
			defer a.end()
			m.started = 5 * time.Second
			if _, err := a.Accept(orderOf(vmA, 2), xmlA); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if r, err := a.Accept(orderOf(vmA, 3), xmlA); !errors.Is(err, haven.ErrUnavailable) {
				t.Errorf("%+v, %v", r, err)
			}
			if r := a.remind(orderOf(vmA, 3), time.Minute); r.Status != haven.OrderStarted || m.count(vmA) != 1 {
				t.Errorf("%+v, %d starts", r, m.count(vmA))
			}
		})
	})
	t.Run("of a newer generation, with an older epoch", func(t *testing.T) {
		bubble(t, func(t *testing.T, m *machine) {
			a := m.boot(t, "b1", "s1")
			defer a.end()
			a.remind(orderOf(vmA, 7), time.Minute)
			m.put(vmA, haven.VMShutOff)
			for _, epoch := range []haven.Epoch{3, 7} {
				o := orderOf(vmA, epoch)
				o.Term = haven.Term{Generation: uint64(epoch), Term: 1}
				if r := a.remind(o, time.Minute); r.Status != haven.OrderStarted || r.Epoch != epoch {
					t.Errorf("%+v", r)
				}
				m.put(vmA, haven.VMShutOff)
			}
			if m.count(vmA) != 3 {
				t.Errorf("%d starts", m.count(vmA))
			}
		})
	})
}

func TestNewBootForgetsWhatTheOldOneBegan(t *testing.T) {
	bubble(t, func(t *testing.T, m *machine) {
		a := m.boot(t, "b1", "s1")
		m.start = func(context.Context, haven.VMID) (Outcome, error, bool) { return Unclear, errors.New("hung"), true }
		a.remind(orderOf(vmA, 2), 3*time.Second)
		a.end()
		m.start = nil
		a = m.boot(t, "b2", "s1")
		defer a.end()
		if all, _ := a.Reports(); len(all) != 0 {
			t.Errorf("a new boot speaks for the old one: %+v", all)
		}
		o := orderOf(vmA, 3)
		o.TargetBoot = "b2"
		if r := a.remind(o, time.Minute); r.Status != haven.OrderStarted || r.Boot != "b2" {
			t.Errorf("%+v", r)
		}
	})
}

// Everything that can be in the way before the VM manager is called, and what
// is said then.
func TestBeforeTheStart(t *testing.T) {
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	tests := []struct {
		name   string
		set    func(m *machine)
		status haven.OrderStatus
		detail string
		starts int
	}{
		{"it runs already", func(m *machine) { m.put(vmA, haven.VMRunning) }, haven.OrderStarted, "runs", 0},
		{"P1: it is paused there", func(m *machine) { m.put(vmA, haven.VMPaused) }, haven.OrderUnknown, "paused", 0},
		{"P1: it is coming in", func(m *machine) { m.put(vmA, haven.VMIncoming) }, haven.OrderUnknown, "incoming", 0},
		{"P5: its state is not known", func(m *machine) { m.put(vmA, haven.VMUnknown) }, haven.OrderRefused, "does not say", 0},
		{"P5: the VM manager fails", func(m *machine) { m.inventory = func(context.Context) error { return errors.New("no socket") } }, haven.OrderRefused, "no socket", 0},
		{"P8: the VM manager hangs", func(m *machine) { m.inventory = hang }, haven.OrderRefused, "deadline", 0},
		{"its disk cannot be read", func(m *machine) { m.probe = func(context.Context) error { return errors.New("I/O error") } }, haven.OrderRefused, "I/O error", 0},
		{"P8: its disk hangs", func(m *machine) { m.probe = hang }, haven.OrderRefused, "deadline", 0},
		{"P1: the order is void", func(m *machine) {
			m.confirm = func(context.Context, int) error { return fmt.Errorf("%w: no such order", ErrVoid) }
		}, haven.OrderRefused, "void", 0},
		{"P3: no master answers", func(m *machine) { m.confirm = func(context.Context, int) error { return haven.ErrNotMaster } }, haven.OrderRefused, "not the master", 0},
		{"P8: the master hangs", func(m *machine) { m.confirm = func(ctx context.Context, _ int) error { return hang(ctx) } }, haven.OrderRefused, "confirm", 0},
		{"the master answers late", func(m *machine) {
			m.confirm = func(_ context.Context, n int) error {
				if n < 20 {
					return haven.ErrNotMaster
				}
				return nil
			}
		}, haven.OrderStarted, "", 1},
		{"P8: the master is always too slow", func(m *machine) {
			m.confirm = func(context.Context, int) error { time.Sleep(2 * time.Second); return nil }
		}, haven.OrderRefused, "confirm", 0},
		{"P1: suspended after the confirmation", func(m *machine) {
			m.confirm = func(_ context.Context, n int) error {
				m.mu.Lock()
				defer m.mu.Unlock()
				if n == 1 {
					m.suspended += time.Hour
				}
				return nil
			}
		}, haven.OrderStarted, "", 1},
		{"P1: suspended, and void when it wakes", func(m *machine) {
			m.confirm = func(_ context.Context, n int) error {
				m.mu.Lock()
				defer m.mu.Unlock()
				if m.suspended += time.Hour; n == 1 {
					return nil
				}
				return ErrVoid
			}
		}, haven.OrderRefused, "void", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, m *machine) {
				tt.set(m)
				a := m.boot(t, "b1", "s1")
				defer a.end()
				r := a.remind(orderOf(vmA, 2), 30*time.Second)
				if r.Status != tt.status || !strings.Contains(r.Detail, tt.detail) || m.count(vmA) != tt.starts {
					t.Errorf("%s (%s), %d starts; want %s (… %s …), %d", r.Status, r.Detail, m.count(vmA), tt.status, tt.detail, tt.starts)
				}
			})
		})
	}
	t.Run("P1: asked again after a suspension", func(t *testing.T) {
		bubble(t, func(t *testing.T, m *machine) {
			tests[13].set(m)
			a := m.boot(t, "b1", "s1")
			defer a.end()
			if a.remind(orderOf(vmA, 2), 30*time.Second); m.confirms != 2 {
				t.Errorf("asked %d times", m.confirms)
			}
		})
	})
}

func TestOutcomes(t *testing.T) {
	always := func(o Outcome, err error) func(*machine) {
		return func(m *machine) {
			m.start = func(context.Context, haven.VMID) (Outcome, error, bool) { return o, err, true }
		}
	}
	tests := []struct {
		name   string
		set    func(m *machine)
		status haven.OrderStatus
		locked bool
	}{
		{"failed", always(Failed, errors.New("no memory")), haven.OrderFailed, false},
		{"locked", always(Locked, errors.New("write lock")), haven.OrderFailed, true},
		{"unclear", always(Unclear, errors.New("hung")), haven.OrderUnknown, false},
		{"P1: failed, and there", func(m *machine) {
			m.start = func(_ context.Context, id haven.VMID) (Outcome, error, bool) {
				m.put(id, haven.VMPaused)
				return Failed, errors.New("half"), true
			}
		}, haven.OrderUnknown, false},
		{"P5: failed, and nobody can tell whether it is gone", func(m *machine) {
			m.start = func(context.Context, haven.VMID) (Outcome, error, bool) {
				m.inventory = func(context.Context) error { return errors.New("no socket") }
				return Failed, errors.New("half"), true
			}
		}, haven.OrderUnknown, false},
		{"failed: it could not even be asked", always(Failed, haven.ErrUnavailable), haven.OrderFailed, false},
		{"P1: an earlier one is unclear, this one could not be asked", func(m *machine) {
			n := 0
			m.start = func(context.Context, haven.VMID) (Outcome, error, bool) {
				if n++; n == 1 {
					m.fly(vmA)
					return Unclear, errors.New("hung"), true
				}
				return Failed, haven.ErrUnavailable, true
			}
		}, haven.OrderUnknown, false},
		{"an unclear start that happens later", func(m *machine) {
			m.start = func(_ context.Context, id haven.VMID) (Outcome, error, bool) {
				if m.fly(id) {
					return Unclear, errors.New("an earlier start of it has not ended"), true
				}
				time.AfterFunc(20*time.Second, func() { m.mu.Lock(); defer m.mu.Unlock(); m.run(id) })
				return Unclear, errors.New("hung"), true
			}
		}, haven.OrderStarted, false},
		{"P8: the start hangs", func(m *machine) {
			m.start = func(ctx context.Context, _ haven.VMID) (Outcome, error, bool) {
				<-ctx.Done()
				return Unclear, ctx.Err(), true
			}
		}, haven.OrderUnknown, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, m *machine) {
				tt.set(m)
				a := m.boot(t, "b1", "s1")
				defer a.end()
				r := a.remind(orderOf(vmA, 2), 100*time.Second)
				if r.Status != tt.status || r.Locked != tt.locked {
					t.Errorf("%+v, want %s", r, tt.status)
				}
				if again := a.status(vmA); again != r {
					t.Errorf("reported %+v, answered %+v", again, r)
				}
			})
		})
	}
}

// What is not on disk is not claimed.
func TestJournalFailure(t *testing.T) {
	for n := 1; n <= 4; n++ {
		t.Run(fmt.Sprintf("save %d", n), func(t *testing.T) {
			bubble(t, func(t *testing.T, m *machine) {
				m.save = func(k int) error {
					if k == n {
						return errors.New("disk full")
					}
					return nil
				}
				a := m.boot(t, "b1", "s1")
				defer a.end()
				r, err := a.Accept(orderOf(vmA, 2), xmlA)
				if (err != nil) != (n == 1) {
					t.Errorf("%+v, %v", r, err)
				}
				for range 10 {
					time.Sleep(100 * time.Millisecond)
					synctest.Wait() // What is due at this moment is done, or else it falls between the two looks.
					if got := a.status(vmA); got.Status != m.rec(vmA).Status {
						t.Errorf("it says %q, on disk is %q", got.Status, m.rec(vmA).Status)
					}
				}
				if n == 2 && m.count(vmA) != 0 {
					t.Error("the VM manager was called, and the disk does not know")
				}
				if r := a.remind(orderOf(vmA, 2), time.Minute); r.Status != haven.OrderStarted || m.count(vmA) != 1 {
					t.Errorf("in the end: %+v, %d starts", r, m.count(vmA))
				}
			})
		})
	}
	t.Run("P8: a disk that hangs stops no reports", func(t *testing.T) {
		bubble(t, func(t *testing.T, m *machine) {
			a := m.boot(t, "b1", "s1")
			defer a.end()
			a.remind(orderOf(vmA, 2), time.Minute)
			free := make(chan struct{})
			m.save = func(int) error { <-free; return nil }
			var wg sync.WaitGroup
			wg.Go(func() { _, _ = a.Accept(orderOf(vmB, 2), xmlA) })
			time.Sleep(time.Second)
			begun := time.Now()
			if all, _ := a.Reports(); len(all) != 1 || a.Highest().Term != 5 || time.Since(begun) > 0 {
				t.Errorf("%d reports after %s", len(all), time.Since(begun))
			}
			if _, err := a.Accept(orderOf("x", 2), xmlA); !errors.Is(err, haven.ErrUnavailable) || time.Since(begun) > journalWait {
				t.Errorf("%v after %s", err, time.Since(begun))
			}
			close(free)
			wg.Wait()
		})
	})
}

// P1, P7: an agent that dies before or after anything it does, and comes back,
// finishes the order: one start, no lie.
func TestCrashAnywhere(t *testing.T) {
	for _, later := range []bool{false, true} {
		for point := 1; ; point++ {
			finished := false
			name := fmt.Sprintf("point %d, effect %t", point, later)
			t.Run(name, func(t *testing.T) {
				bubble(t, func(t *testing.T, m *machine) {
					m.dies, m.after = point, later
					a := m.boot(t, "b1", "s1")
					a.remind(orderOf(vmA, 2), 10*time.Second)
					finished = !m.dead
					a.end()
					m.dies = 0
					a = m.boot(t, "b1", "s1")
					defer a.end()
					r := a.remind(orderOf(vmA, 2), time.Minute)
					if r.Status != haven.OrderStarted || m.count(vmA) != 1 {
						t.Errorf("%+v, %d starts", r, m.count(vmA))
					}
				})
			})
			if finished {
				if point < 5 {
					t.Errorf("only %d points", point)
				}
				break
			}
		}
	}
}

// As above, but the agent comes back to disks that cannot be read and a master
// that calls the order void: whatever it says must be true.
func TestCrashAnywhereIntoTrouble(t *testing.T) {
	for _, later := range []bool{false, true} {
		for point := 1; point <= 6; point++ {
			t.Run(fmt.Sprintf("point %d, effect %t", point, later), func(t *testing.T) {
				bubble(t, func(t *testing.T, m *machine) {
					m.dies, m.after = point, later
					m.start = func(_ context.Context, id haven.VMID) (Outcome, error, bool) {
						m.fly(id) // and it will run in the end, whoever asked
						time.AfterFunc(40*time.Second, func() { m.mu.Lock(); defer m.mu.Unlock(); m.run(id) })
						return Unclear, errors.Join(m.op(func() {}), errors.New("hung")), true
					}
					a := m.boot(t, "b1", "s1")
					a.remind(orderOf(vmA, 2), 3*time.Second)
					a.end()
					m.dies = 0
					m.start = func(context.Context, haven.VMID) (Outcome, error, bool) { return Unclear, errors.New("hung"), true }
					m.probe = func(context.Context) error { return errors.New("no disk") }
					m.confirm = func(context.Context, int) error { return ErrVoid }
					a = m.boot(t, "b1", "s1")
					defer a.end()
					r := a.remind(orderOf(vmA, 2), time.Minute)
					want := haven.OrderRefused
					switch tried := m.rec(vmA).Tried; {
					case m.count(vmA) == 1:
						want = haven.OrderStarted
					case tried:
						want = haven.OrderAccepted // only the VM manager could tell, and it was not asked
					}
					if r.Status != want {
						t.Errorf("%+v with %d starts, want %s", r, m.count(vmA), want)
					}
				})
			})
		}
	}
}

func TestParallelLimit(t *testing.T) {
	bubble(t, func(t *testing.T, m *machine) {
		running, most := 0, 0
		m.start = func(_ context.Context, id haven.VMID) (Outcome, error, bool) {
			m.mu.Lock()
			running++
			most = max(most, running)
			m.mu.Unlock()
			time.Sleep(time.Second)
			m.mu.Lock()
			defer m.mu.Unlock()
			running--
			m.run(id)
			return Started, nil, true
		}
		a := m.boot(t, "b1", "s1")
		defer a.end()
		for i := range 10 {
			if _, err := a.Accept(orderOf(haven.VMID(fmt.Sprintf("vm%d", i)), 2), xmlA); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(6 * time.Second)
		all, _ := a.Reports()
		for _, r := range all {
			if r.Status != haven.OrderStarted {
				t.Errorf("%+v", r)
			}
		}
		if most != 2 || len(all) != 10 {
			t.Errorf("%d at a time, %d reports", most, len(all))
		}
	})
}

// P8: when it is told to end it ends, though not before a start that was begun.
func TestRunEnds(t *testing.T) {
	tests := []struct {
		name string
		set  func(m *machine)
		most time.Duration
		want haven.OrderStatus
	}{
		{"idle", func(*machine) {}, 0, haven.OrderStarted},
		{"while the VM manager hangs", func(m *machine) {
			m.inventory = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		}, 0, haven.OrderAccepted},
		{"while a disk hangs", func(m *machine) {
			m.probe = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		}, 0, haven.OrderAccepted},
		{"while the master hangs", func(m *machine) {
			m.confirm = func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }
		}, 0, haven.OrderAccepted},
		{"while a VM starts", func(m *machine) { m.started = 10 * time.Second }, 10 * time.Second, haven.OrderStarted},
		{"while a start hangs", func(m *machine) { m.started = time.Hour }, time.Minute, haven.OrderUnknown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, m *machine) {
				tt.set(m)
				a := m.boot(t, "b1", "s1")
				if _, err := a.Accept(orderOf(vmA, 2), xmlA); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				begun := time.Now()
				a.end()
				if d := time.Since(begun); d > tt.most {
					t.Errorf("it took %s", d)
				}
				if got := m.rec(vmA).Status; got != tt.want {
					t.Errorf("on disk is %q, want %q", got, tt.want)
				}
			})
		})
	}
}

func TestNewExecutorNeedsItsJournal(t *testing.T) {
	if _, err := NewExecutor(ExecutorConfig{Journal: FileJournal{Path: t.TempDir()}}); err == nil {
		t.Error("an executor was made without its memory")
	}
}

package recovery

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/vmrestart"
)

// world is what the machine acts on: a real ledger, and hosts with agents, VMs
// and a BMC, all of them very small. Time passes only when nothing is left to do.
type world struct {
	now    time.Time
	begin  time.Time
	cfg    Config
	state  *ledger.State
	m      *Machine
	self   haven.HostID
	term   uint64
	index  uint64
	hosts  map[haven.HostID]*host
	brakes []haven.Hold
	events []event
	done   []Done
	flying map[string]int // acts under way, of all masters, by key
	reign  int            // counts masters; acts of an older one end unheard

	users map[haven.VMID]bool // what the users want: it runs
	names map[haven.VMID]string
	// onFails says why hosts cannot be switched on; empty: they can.
	onFails string
	// fence decides what a power-off leads to; delay how long an act takes.
	fence func(h *host) (proves bool, after time.Duration, detail string)
	delay func(a Act) time.Duration
	// commit may lose the commands of a step.
	commit func(cmds []ledger.Command) bool
	// stale may show the machine an older view of a host.
	stale func(id haven.HostID, fresh HostView) HostView

	log      func(format string, args ...any)
	broken   []string
	rejected map[string]int
	steps    int
}

type event struct {
	at time.Time
	do func()
}

// host is one hypervisor with its agent.
type host struct {
	id       haven.HostID
	role     haven.Role
	boot     haven.BootID
	state    haven.StateID
	inc      haven.Incarnation
	boots    int
	on       bool // powered, and its kernel works
	agent    bool // its agent works
	network  bool // its agent reaches the master
	told     bool // registered in this boot
	mute     bool // answers no requests, though it reports
	partial  bool // its inventories are incomplete
	refuses  string
	leave    haven.LeaveReason
	freeMiB  uint64
	watchdog string        // what its count says
	fired    *haven.Proof  // what its count proves
	verdict  haven.Verdict // overrides what is true
	hold     haven.Hold
	since    time.Time // since when it has been in trouble
	vms      map[haven.VMID]haven.VMInfo
	starting map[haven.VMID]bool // a start in the VM manager that has not ended
	orders   map[haven.VMID]orderAt
	onOrder  string // refuse, fail, unknown, lose: what becomes of orders
	takes    time.Duration
	beat     *BeatList
	old      *HostView // the report that counts, when it is not the present one
	// quarantine is what the detector says; onStop what becomes of a stop: "" ends
	// the VM, stuck leaves its process in the kernel, forget ends it and the answer
	// is lost. hung is a store of which an operation does not come back there: a
	// process that is gone may still have a write under way.
	quarantine, onStop string
	hung               string
	released           map[haven.VMID]bool
}

type orderAt struct {
	order  haven.Order
	status haven.OrderStatus
	detail string
}

func newWorld() *world {
	begin := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	w := &world{
		now: begin, begin: begin, state: ledger.New(""), self: "m", term: 1, hosts: map[haven.HostID]*host{}, flying: map[string]int{},
		users: map[haven.VMID]bool{}, names: map[haven.VMID]string{}, rejected: map[string]int{},
		cfg: Config{
			Action: haven.ActionOff, Actions: map[haven.HostID]haven.FenceAction{}, Devices: map[haven.HostID]bool{},
			Cap: fencing.DefaultLimit(), ReportAfter: 3 * time.Second, ReturnAfter: 5 * time.Second, AbsenceAge: 2 * time.Second,
			StopsIsolated: map[haven.HostID]bool{}, StopsStorageLost: map[haven.HostID]bool{}, StorageLostDelay: 60 * time.Second,
			HoldAlarmAfter: 5 * time.Minute, HoldAlarmEvery: 10 * time.Minute,
			UnknownAfter: 10 * time.Second, Limits: vmrestart.PlanLimits{StartsPerHost: 2}, ProtectAll: true,
		},
		log: func(string, ...any) {},
	}
	w.fence = func(*host) (bool, time.Duration, string) { return true, 2 * time.Second, "off, read twice" }
	w.delay = func(Act) time.Duration { return 20 * time.Millisecond }
	w.commit = func([]ledger.Command) bool { return true }
	w.stale = func(_ haven.HostID, fresh HostView) HostView { return fresh }
	if err := w.apply(ledger.Found{Cluster: "c", Generation: 1, By: "op", At: w.now}); err != nil {
		panic(err)
	}
	w.m = New(w.cfg)
	return w
}

func (w *world) addHost(id haven.HostID, role haven.Role) *host {
	h := &host{
		id: id, role: role, state: haven.StateID("s-" + id), on: true, agent: true, network: true, freeMiB: 8192, takes: 300 * time.Millisecond,
		vms: map[haven.VMID]haven.VMInfo{}, starting: map[haven.VMID]bool{}, orders: map[haven.VMID]orderAt{},
		released: map[haven.VMID]bool{},
	}
	w.hosts[id] = h
	w.cfg.Devices[id] = true
	w.bootHost(h)
	return h
}

func (w *world) sorted() []*host {
	return slices.SortedFunc(maps.Values(w.hosts), func(a, b *host) int { return cmp.Compare(a.id, b.id) })
}

// bootHost brings a machine up, with nothing running on it.
func (w *world) bootHost(h *host) {
	h.boots++
	h.boot, h.on, h.agent, h.told = haven.BootID(fmt.Sprintf("%s/%d", h.id, h.boots)), true, true, false
	h.inc++
	h.verdict, h.hold, h.leave, h.watchdog = "", haven.Hold{}, haven.LeaveNone, ""
	clear(h.released)
	w.off(h)
	h.on = true
	w.register(h)
}

// off ends everything that runs on a machine.
func (w *world) off(h *host) {
	h.on = false
	clear(h.starting)
	for id, info := range h.vms {
		if info.State.Present() {
			info.State, info.Reason = haven.VMShutOff, "unknown"
			h.vms[id] = info
		}
	}
}

// declare puts an armed watchdog into the ledger.
func (w *world) declare(h *host) {
	_ = w.apply(ledger.DeclareWatchdog{
		Host: h.id, Boot: h.boot, State: h.state, Incarnation: h.inc, Number: w.state.Hosts[h.id].WatchdogAsked + 1,
		Watchdog: haven.Watchdog{Bound: 30 * time.Second, Stores: []string{"s1"}},
	})
	h.watchdog = "its watchdog is armed with 30s, and the proof by time is awaited"
}

// fires is the watchdog's reset, as the count proves it. The host stays off.
func (w *world) fires(h *host) {
	w.off(h)
	w.counts(h)
}

// counts is a count that says that the watchdog has fired.
func (w *world) counts(h *host) {
	h.watchdog = "its armed watchdog must have fired"
	h.fired = &haven.Proof{Kind: haven.ProofWatchdog, Host: h.id, Boot: h.boot, By: string(w.self), At: w.now, Detail: h.watchdog}
}

func (w *world) register(h *host) {
	if !h.on || !h.agent || !h.network || w.state.Knows(h.id, h.boot, h.state) && h.told {
		return
	}
	h.told = w.apply(ledger.RegisterHost{Host: h.id, Role: h.role, Boot: h.boot, State: h.state, Incarnation: h.inc, At: w.now}) == nil
}

// apply puts a command through the log.
func (w *world) apply(c ledger.Command) error {
	data, err := ledger.Encode(c)
	if err != nil {
		panic(err)
	}
	cmds, err := ledger.Decode(data)
	if err != nil {
		panic(err)
	}
	w.index++
	err = w.state.Apply(cmds[0], ledger.Position{Index: w.index, Term: w.term})
	if err == nil {
		w.checkCommand(cmds[0])
	}
	return err
}

// checkCommand holds what was committed against the truth.
func (w *world) checkCommand(c ledger.Command) {
	switch c := c.(type) {
	case ledger.CommitOrder:
		for _, h := range w.sorted() {
			if h.vms[c.Order.VM].State.Present() && h.vms[c.Order.VM].State != "" || h.starting[c.Order.VM] {
				w.violation("P1: order %s was committed while %s is %q on %s", c.Order.ID, w.names[c.Order.VM], h.vms[c.Order.VM].State, h.id)
			}
		}
	case ledger.FreeVM:
		if h := w.hosts[c.Host]; h.on && h.boot == c.Boot && h.vms[c.VM].State.Present() && h.vms[c.VM].State != "" {
			w.violation("P1: %s was freed (%s) while it is %q on %s", w.names[c.VM], c.By, h.vms[c.VM].State, h.id)
		}
		if h := w.hosts[c.Host]; h.on && h.boot == c.Boot && h.hung != "" {
			w.violation("P1: %s was freed (%s) while a write of it may be under way: store %s hangs on %s", w.names[c.VM], c.By, h.hung, h.id)
		}
	case ledger.BeginFence:
		if w.state.Hosts[w.state.Incidents[c.ID].Host].Maintenance != nil || w.state.Disarm != nil {
			w.violation("P6: %s is fenced while it is held back", c.ID)
		}
	case ledger.BeginOn:
		in := w.state.Incidents[c.ID]
		l := w.state.Hosts[in.Host]
		if in.Proof == nil || l.Maintenance != nil || w.state.Disarm != nil {
			w.violation("P6: %s is switched on while it is held back, or not proved off", in.Host)
		}
	case ledger.ProveDead:
		if h := w.hosts[c.Proof.Host]; h.on && h.boot == c.Proof.Boot {
			w.violation("P2: %s is on and proved dead", h.id)
		}
	}
}

func (w *world) violation(format string, args ...any) {
	w.broken = append(w.broken, fmt.Sprintf("%s "+format, append([]any{w.clock()}, args...)...))
}

func (w *world) clock() string { return fmt.Sprintf("%.3f", w.now.Sub(w.begin).Seconds()) }

func (w *world) in(d time.Duration, do func()) {
	w.events = append(w.events, event{w.now.Add(d), do})
	slices.SortStableFunc(w.events, func(a, b event) int { return a.at.Compare(b.at) })
}

// mastered puts another machine in place, as a new master would. Acts of the
// old one go on, and are heard of when the same host becomes master again.
func (w *world) mastered() {
	w.reign++
	w.term++
	w.done = nil
	w.now = w.now.Add(time.Microsecond) // no two masters at one instant
	w.m = New(w.cfg)
}

// run lets the machine step until the time is up.
func (w *world) run(d time.Duration) {
	for end := w.now.Add(d); ; {
		again, wake := w.step()
		if again {
			wake = time.Millisecond
		}
		next := w.now.Add(wake)
		if len(w.events) > 0 && w.events[0].at.Before(next) {
			next = w.events[0].at
		}
		if next.After(end) || len(w.broken) > 0 {
			w.now = end
			return
		}
		w.now = next
		for len(w.events) > 0 && !w.events[0].at.After(w.now) {
			e := w.events[0]
			w.events = w.events[1:]
			e.do()
		}
	}
}

// step steps the machine once and does what it wants, in the order of the
// contract. It says whether anything was proposed.
func (w *world) step() (bool, time.Duration) {
	in := Input{Now: w.now, Self: w.self, Term: haven.Term{Generation: w.state.Generation, Term: w.term}, Brakes: w.brakes, Hosts: map[haven.HostID]HostView{}, Done: w.done}
	w.done = nil
	for _, h := range w.sorted() {
		w.register(h)
		v := w.stale(h.id, w.view(h))
		v.Connected = v.Connected && w.state.Knows(h.id, h.boot, h.state)
		in.Hosts[h.id] = v
	}
	pure := w.pure()
	out := w.m.Step(w.state, in)
	if !pure() {
		w.violation("Step changed the ledger")
	}
	for _, n := range out.Notices {
		if n.Alarm {
			w.log("alarm %s: %s", n.Kind, n.Text)
		}
	}
	if len(out.Commands) > 0 && !w.commit(out.Commands) {
		w.log("(not committed)")
		for _, a := range out.Acts {
			w.done = append(w.done, Done{Act: a, Begun: w.now, Err: errors.New("decisions were not committed")})
		}
		return false, 250 * time.Millisecond
	}
	for _, c := range out.Commands {
		err := w.apply(c)
		w.log("%s", summary(w, c, err))
		w.watchRejections(c, err)
	}
	for _, a := range out.Acts {
		w.act(a)
	}
	return len(out.Commands) > 0, out.Wake
}

// pure returns a check that the ledger is as it was. It is dear, and done now and
// then.
func (w *world) pure() func() bool {
	if w.steps++; w.steps%17 != 0 {
		return func() bool { return true }
	}
	text := func() string {
		data, err := json.Marshal(w.state)
		if err != nil {
			panic(err)
		}
		return string(data)
	}
	before := text()
	return func() bool { return text() == before }
}

// watchRejections finds a machine that proposes again and again what the ledger
// does not take.
func (w *world) watchRejections(c ledger.Command, err error) {
	key := ledger.Kind(c)
	if err == nil {
		delete(w.rejected, key)
		return
	}
	if w.rejected[key]++; w.rejected[key] > 25 {
		w.violation("P8: %s was proposed and rejected %d times in a row: %v", key, w.rejected[key], err)
	}
}

func (w *world) view(h *host) (v HostView) {
	v = HostView{Boot: w.bootKnown(h), Connected: h.on && h.agent && h.network && h.told, Explanation: "as the script says", Hold: h.hold, Leave: h.leave}
	v.Watchdog, v.Fired = h.watchdog, h.fired
	v.Verdict = h.verdict
	if v.Verdict == "" {
		v.Verdict = haven.VerdictHealthy
		if !v.Connected {
			v.Verdict = haven.VerdictSuspect
		}
	}
	if v.Verdict == haven.VerdictHealthy {
		h.since = time.Time{}
	} else if h.since.IsZero() {
		h.since = w.now
	}
	if !h.since.IsZero() {
		v.SuspectedFor = w.now.Sub(h.since)
	}
	if h.beat != nil {
		v.Beat = *h.beat
	}
	if !v.Connected {
		return v
	}
	v.Inventory, v.Refuses, v.Quarantine = w.inventory(h), h.refuses, h.quarantine
	v.Released, v.Hung = slices.Sorted(maps.Keys(h.released)), h.hung
	defer func() {
		if h.old != nil {
			v.Inventory, v.Load = h.old.Inventory, h.old.Load
		}
	}()
	used := uint64(0)
	for _, info := range h.vms {
		if info.State.Present() {
			used += info.MemoryMiB
		}
	}
	v.Load = haven.HostLoad{MemoryMiB: h.freeMiB, MemoryFreeMiB: h.freeMiB - min(used, h.freeMiB)}
	for _, id := range slices.Sorted(maps.Keys(h.orders)) {
		if o := h.orders[id]; o.order.TargetBoot == h.boot && o.order.TargetState == h.state && h.onOrder != "lose" {
			v.Orders = append(v.Orders, w.reportOf(h, o))
		}
	}
	return v
}

// bootKnown is the boot that the detector judges: the ledger's.
func (w *world) bootKnown(h *host) haven.BootID {
	if l := w.state.Hosts[h.id]; l != nil {
		return l.Boot
	}
	return ""
}

func (w *world) reportOf(h *host, o orderAt) haven.OrderReport {
	return haven.OrderReport{Boot: h.boot, State: h.state, Order: o.order.ID, VM: o.order.VM, Epoch: o.order.Epoch, Status: o.status, Detail: o.detail}
}

func (w *world) inventory(h *host) haven.Inventory {
	inv := haven.Inventory{Host: h.id, Boot: h.boot, Complete: !h.partial}
	for _, id := range slices.Sorted(maps.Keys(h.vms)) {
		info := h.vms[id]
		if h.starting[id] {
			info.State = haven.VMUnknown // a start is in the VM manager's hands
		}
		inv.VMs = append(inv.VMs, info)
	}
	return inv
}

func vmID(name string) haven.VMID {
	sum := sha256.Sum256([]byte(name))
	s := hex.EncodeToString(sum[:16])
	return haven.VMID(strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-"))
}

func definition(name string) ledger.Definition {
	d, err := ledger.Pack([]byte("<domain>" + name + "</domain>"))
	if err != nil {
		panic(err)
	}
	return d
}

// addVM is a user who makes a VM and starts it.
func (w *world) addVM(name string, h *host, mib uint64) haven.VMID {
	id := vmID(name)
	w.names[id], w.users[id] = name, true
	h.vms[id] = haven.VMInfo{ID: id, Name: name, State: haven.VMRunning, Persistent: true, MemoryMiB: mib, DefinitionSHA: definition(name).SHA}
	return id
}

// set changes a VM on a host.
func (w *world) set(h *host, id haven.VMID, state haven.VMState, reason string) {
	info := h.vms[id]
	info.State, info.Reason = state, reason
	h.vms[id] = info
	if state == haven.VMRunning {
		delete(h.released, id) // it was started since
	}
}

// start is the VM manager that carries out a start, or a user's hand.
func (w *world) start(h *host, id haven.VMID) {
	for _, other := range w.sorted() {
		if s := other.vms[id].State; other != h && other.on && s.Present() && s != "" {
			w.violation("P1: %s starts on %s while it is %s on %s", w.names[id], h.id, s, other.id)
		}
	}
	delete(h.released, id)
	mib := uint64(0)
	if vm := w.state.VMs[id]; vm != nil {
		mib = vm.MemoryMiB
	}
	h.vms[id] = haven.VMInfo{ID: id, Name: w.names[id], State: haven.VMRunning, Persistent: true, MemoryMiB: mib, DefinitionSHA: definition(w.names[id]).SHA}
	w.log("       %s runs on %s", w.names[id], h.id)
}

// act begins an act.
func (w *world) act(a Act) {
	reign, begun := w.reign, w.now
	key := fmt.Sprintf("%s of master %d", a.Key(), reign)
	if f, ok := a.(Fence); ok {
		in := w.state.Incidents[f.Incident]
		if attempt, pending := in.Pending(); !pending || attempt.N != f.N {
			w.violation("P7: fence %d of %s without its attempt in the ledger", f.N, f.Host)
		}
		w.log("act    power off %s, attempt %d", f.Host, f.N)
	}
	if o, ok := a.(Send); ok {
		if vm := w.state.VMs[o.VM]; vm == nil || vm.Order == nil || vm.Order.ID != o.Order {
			w.violation("P7: order %s is sent and was never in the ledger", o.Order)
		}
	}
	if w.flying[key]++; w.flying[key] > 1 {
		w.violation("%s is under way %d times", key, w.flying[key])
	}
	end := func(d Done) {
		w.flying[key]--
		d.Act, d.Begun = a, begun
		if reign == w.reign || w.self == "again" {
			w.done = append(w.done, d)
		}
	}
	switch a := a.(type) {
	case Fence:
		w.actFence(a, reign, end)
	case PowerOn:
		w.actOn(a, reign, end)
	case Blink:
		w.log("act    blink %s", a.Host)
		w.in(w.delay(a), func() { end(Done{Detail: "bmc: blinks"}) })
	case Ask:
		h, half := w.hosts[a.Host], w.delay(a)/2
		w.in(half, func() {
			inv, answers := w.inventory(h), h.on && h.agent && h.network && !h.mute
			w.in(half, func() {
				if !answers || !h.network {
					end(Done{Err: haven.ErrUnavailable})
					return
				}
				end(Done{Inventory: &inv})
			})
		})
	case Stop:
		w.log("act    stop %s on %s", w.names[a.VM], a.Host)
		w.in(w.delay(a), func() { w.stop(a, end) })
	case Send:
		w.in(w.delay(a), func() { w.deliver(a, end) })
	case Fetch:
		w.in(w.delay(a), func() {
			h := w.hosts[a.Host]
			info, ok := h.vms[a.VM]
			if !ok || !h.on || !h.agent || !h.network {
				end(Done{Err: haven.ErrUnavailable})
				return
			}
			end(Done{Info: info, Boot: h.boot, Definition: definition(w.names[a.VM])})
		})
	}
}

// actFence is the ladder: the permit is asked right before the command leaves.
func (w *world) actFence(a Fence, reign int, end func(Done)) {
	h := w.hosts[a.Host]
	proves, after, detail := w.fence(h)
	w.in(after, func() {
		in := w.state.Incidents[a.Incident]
		attempt, pending := in.Pending()
		if h.on && (reign != w.reign || !pending || attempt.N != a.N || !in.Open() || w.state.Hosts[a.Host].Boot != a.Boot || w.state.Stopped(in.ID) || h.verdict != haven.VerdictFailed && h.verdict != haven.VerdictDead) {
			end(Done{Err: errors.New("not permitted: it came back, or the ledger does not ask for it any more"), Detail: "not permitted"})
			return
		}
		if !proves {
			end(Done{Err: errors.New(detail)})
			return
		}
		w.off(h)
		end(Done{Detail: detail, Proof: &haven.Proof{Kind: haven.ProofPowerOff, Host: a.Host, Boot: a.Boot, By: string(w.self), At: w.now, Detail: detail}})
	})
}

// actOn is a device that switches a host on, after it was asked whether it is on.
func (w *world) actOn(a PowerOn, reign int, end func(Done)) {
	h := w.hosts[a.Host]
	if in := w.state.Incidents[a.Incident]; !in.SwitchingOn() {
		w.violation("P7: %s is switched on and the ledger does not say so", a.Host)
	}
	w.log("act    switch on %s", a.Host)
	w.in(2*time.Second, func() {
		in, l := w.state.Incidents[a.Incident], w.state.Hosts[a.Host]
		switch {
		case reign != w.reign || !in.SwitchingOn() || l.Boot != a.Boot || l.Maintenance != nil || w.state.Disarm != nil:
			end(Done{Err: errors.New("not permitted: the ledger does not ask for it any more")})
			return
		case w.onFails != "":
			end(Done{Err: errors.New(w.onFails)})
			return
		case !h.on:
			w.in(5*time.Second, func() {
				if !h.on {
					w.bootHost(h)
				}
			})
		}
		end(Done{Detail: "bmc: on"})
	})
}

// stop is an agent that is asked to end a VM.
func (w *world) stop(a Stop, end func(Done)) {
	h := w.hosts[a.Host]
	if !h.on || !h.agent || !h.network || h.mute || h.boot != a.Boot {
		end(Done{Err: haven.ErrUnavailable})
		return
	}
	h.released[a.VM] = true
	if h.onStop == "stuck" {
		w.set(h, a.VM, haven.VMStopping, "")
		end(Done{Gone: haven.No, Detail: "its process is still there"})
		return
	}
	if h.vms[a.VM].State.Present() {
		w.set(h, a.VM, haven.VMShutOff, "destroyed")
		w.log("       %s ends on %s", w.names[a.VM], a.Host)
	}
	if h.onStop == "forget" {
		end(Done{Err: haven.ErrUnavailable})
		return
	}
	if h.hung != "" {
		end(Done{Gone: haven.Unknown, Detail: "its process is gone, but store " + h.hung + " hangs"})
		return
	}
	end(Done{Gone: haven.Yes, Detail: "shut off, and no process of it"})
}

// deliver is an agent that takes an order.
func (w *world) deliver(a Send, end func(Done)) {
	h := w.hosts[a.Host]
	vm := w.state.VMs[a.VM]
	if !h.on || !h.agent || !h.network || h.mute || vm == nil || vm.Phase != ledger.PhaseOrdered || vm.Order.ID != a.Order {
		end(Done{Err: haven.ErrUnavailable})
		return
	}
	o := vm.Order.Order
	if o.TargetBoot != h.boot || o.TargetState != h.state {
		end(Done{Err: haven.ErrNotFound})
		return
	}
	at, known := h.orders[a.VM]
	if !known || at.order != o {
		at = orderAt{order: o, status: haven.OrderAccepted}
		switch h.onOrder {
		case "refuse":
			at.status, at.detail = haven.OrderRefused, "its disk cannot be read"
		case "fail":
			at.status, at.detail = haven.OrderFailed, "no such network"
		case "unknown":
			at.status, at.detail = haven.OrderUnknown, "start was not answered"
			h.starting[a.VM] = true
		default:
			h.starting[a.VM] = true
			w.in(h.takes, func() { w.carryOut(h, o) })
		}
		h.orders[a.VM] = at
	}
	if h.onOrder == "lose" {
		end(Done{Err: haven.ErrUnavailable})
		return
	}
	r := w.reportOf(h, at)
	end(Done{Report: &r})
}

// carryOut starts the VM of an order, when the machine is still in its boot.
func (w *world) carryOut(h *host, o haven.Order) {
	if !h.on || h.boot != o.TargetBoot || !h.starting[o.VM] {
		return
	}
	delete(h.starting, o.VM)
	w.start(h, o.VM)
	if at := h.orders[o.VM]; at.order == o {
		at.status, at.detail = haven.OrderStarted, ""
		h.orders[o.VM] = at
	}
}

// running lists where a VM really is.
func (w *world) running(id haven.VMID) []haven.HostID {
	var at []haven.HostID
	for _, h := range w.sorted() {
		if h.on && h.vms[id].State == haven.VMRunning {
			at = append(at, h.id)
		}
	}
	return at
}

// summary is a command as a line of a transcript.
func summary(w *world, c ledger.Command, err error) string {
	var s string
	name := func(id haven.VMID) string { return cmp.Or(w.names[id], string(id)) }
	switch c := c.(type) {
	case ledger.OpenIncident:
		s = fmt.Sprintf("open %s: %s", c.ID, c.Verdict)
	case ledger.NoteIncident:
		s = "note " + string(c.ID)
		if c.Step != "" {
			s += " → " + string(c.Step)
		}
		if c.Verdict != "" {
			s += ", " + string(c.Verdict)
		}
		if c.Hold != nil {
			s += ", held: " + cmp.Or(c.Hold.Reason, "no more")
		}
		if c.Response != "" {
			s += ", response: " + c.Response
		}
	case ledger.BeginFence:
		s = fmt.Sprintf("fence %s, attempt %d", c.ID, c.Attempt.N)
	case ledger.EndFence:
		s = fmt.Sprintf("fence %s, attempt %d is over, proved %t: %s", c.ID, c.N, c.Proved, c.Detail)
	case ledger.BeginOn:
		s = fmt.Sprintf("switch on %s", c.ID)
	case ledger.EndOn:
		s = fmt.Sprintf("switching on %s is over, failed %t: %s", c.ID, c.Failed, c.Detail)
	case ledger.ProveDead:
		s = fmt.Sprintf("%s is proved dead (%s)", c.Proof.Boot, c.Proof.Kind)
	case ledger.CloseIncident:
		s = fmt.Sprintf("close %s: %s", c.ID, c.Outcome)
	case ledger.ProtectVM:
		s = fmt.Sprintf("protect %s on %s", name(c.VM), c.Host)
	case ledger.ForgetVM:
		s = "forget " + name(c.VM)
	case ledger.ObserveVM:
		s = fmt.Sprintf("observe %s on %s: %s, migrating %t", name(c.VM), c.Host, c.Desired, c.Migrating)
	case ledger.MoveVM:
		s = fmt.Sprintf("move %s to %s, absent from %s", name(c.VM), c.Host, absentees(c.Absent))
	case ledger.FreeVM:
		s = fmt.Sprintf("free %s: gone from %s (%s)", name(c.VM), c.Host, c.Detail)
		if c.By != "" {
			s = fmt.Sprintf("free %s: %s, %s", name(c.VM), c.By, c.Host)
		}
	case ledger.RecordDecisions:
		for i, d := range c.Decisions {
			if i > 0 {
				s += "; "
			}
			s += fmt.Sprintf("decision %s: %s → %s", d.Host, cmp.Or(string(d.From), "-"), d.To)
			if d.LeftOut > 0 {
				s += fmt.Sprintf(" (%d left out)", d.LeftOut)
			}
		}
	case ledger.HoldVM:
		s = fmt.Sprintf("hold %s: %s", name(c.VM), cmp.Or(c.Hold.Reason, "no more"))
	case ledger.CommitOrder:
		s = fmt.Sprintf("order %s.%d to %s, absent from %s", name(c.Order.VM), c.Order.Epoch, c.Order.Target, absentees(c.Absent))
	case ledger.ReportOrder:
		s = fmt.Sprintf("order %s.%d on %s: %s %s", name(c.Report.VM), c.Report.Epoch, c.Host, c.Report.Status, c.Report.Detail)
	default:
		s = ledger.Kind(c)
	}
	s = strings.TrimSpace("ledger " + s)
	if err != nil {
		s += "  ← REJECTED: " + err.Error()
	}
	return s
}

func absentees(absent []ledger.Absence) string {
	var all []string
	for _, a := range absent {
		s := string(a.Host)
		if a.Via != "inventory" {
			s += " (" + a.Via + ")"
		}
		all = append(all, s)
	}
	return strings.Join(all, " ")
}

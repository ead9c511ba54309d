package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
)

// The twin knows nothing of phases. It reads the history of commands that the
// ledger took, from the beginning, each time, and says who may run each VM.

type place struct {
	host haven.HostID
	boot haven.BootID
}

type happened struct {
	c  Command
	at Position
}

// now is what the twin makes of a history.
type now struct {
	boot    map[haven.HostID]haven.BootID
	state   map[haven.HostID]haven.StateID
	witness map[haven.HostID]bool
	over    map[place]bool // ended by a newer boot
	dead    map[place]bool // proved, in this generation
	may     map[haven.VMID]map[place]bool
	stopped map[haven.VMID]bool
	epoch   map[haven.VMID]haven.Epoch // the highest ever, over all lives of the VM
	orders  map[haven.OrderID]haven.Order
	out     map[haven.VMID]place // that were told to start a VM, and have not said how it went

	disarmed bool
	exempt   map[haven.IncidentID]bool // goes on although recovery is disarmed
	about    map[haven.IncidentID]place
	fencing  map[haven.IncidentID]int // the attempt that is at work
	proof    map[haven.IncidentID]bool
	closed   map[haven.IncidentID]bool
	cause    map[haven.VMID]haven.IncidentID  // that freed the VM
	care     map[haven.HostID]bool            // in maintenance
	tried    map[haven.IncidentID]bool        // a power-off was decided
	on       map[haven.IncidentID]bool        // a power-on was decided
	dogs     map[haven.HostID]DeclareWatchdog // the latest, of the present boot
	lives    map[haven.HostID]RegisterHost
	manual   map[haven.IncidentID]bool // ends with an operator's release
	waits    map[haven.HostID]bool     // for that
}

func recount(history []happened) *now {
	n := &now{
		boot: map[haven.HostID]haven.BootID{}, state: map[haven.HostID]haven.StateID{}, witness: map[haven.HostID]bool{},
		over: map[place]bool{}, dead: map[place]bool{}, may: map[haven.VMID]map[place]bool{}, stopped: map[haven.VMID]bool{},
		epoch: map[haven.VMID]haven.Epoch{}, orders: map[haven.OrderID]haven.Order{}, out: map[haven.VMID]place{},
		exempt: map[haven.IncidentID]bool{}, about: map[haven.IncidentID]place{}, fencing: map[haven.IncidentID]int{}, proof: map[haven.IncidentID]bool{},
		closed: map[haven.IncidentID]bool{}, cause: map[haven.VMID]haven.IncidentID{}, care: map[haven.HostID]bool{},
		tried: map[haven.IncidentID]bool{}, on: map[haven.IncidentID]bool{},
		dogs: map[haven.HostID]DeclareWatchdog{}, lives: map[haven.HostID]RegisterHost{},
		manual: map[haven.IncidentID]bool{}, waits: map[haven.HostID]bool{},
	}
	for _, h := range history {
		n.take(h.c)
	}
	return n
}

func (n *now) take(c Command) {
	n.takeRelease(c)
	n.takeBrakes(c)
	switch c := c.(type) {
	case Found:
		clear(n.dead)
		clear(n.dogs)
	case DeclareWatchdog:
		n.dogs[c.Host] = c
	case RegisterHost:
		if n.boot[c.Host] != c.Boot || c.Role == haven.RoleWitness {
			delete(n.dogs, c.Host)
		}
		n.lives[c.Host] = c
		if old := n.boot[c.Host]; old != "" && old != c.Boot {
			n.over[place{c.Host, old}] = true
			why := n.trouble(place{c.Host, old})
			n.end(place{c.Host, old}, why)
			if why != "" {
				n.proof[why] = true
			}
		}
		n.boot[c.Host], n.state[c.Host], n.witness[c.Host] = c.Boot, c.State, c.Role == haven.RoleWitness
	case ProveDead:
		n.dead[place{c.Proof.Host, c.Proof.Boot}] = true
		n.end(place{c.Proof.Host, c.Proof.Boot}, c.ID)
	case ProtectVM:
		if n.may[c.VM] == nil {
			n.may[c.VM] = map[place]bool{{c.Host, c.Boot}: true}
			n.epoch[c.VM]++
		}
	case ForgetVM:
		delete(n.cause, c.VM)
		delete(n.may, c.VM)
		delete(n.stopped, c.VM)
	case ObserveVM:
		if n.stopped[c.VM] && c.Desired == DesiredRunning {
			n.epoch[c.VM] = max(n.epoch[c.VM], c.Epoch+1)
			n.may[c.VM][place{c.Host, c.Boot}] = true // its user started it
		}
		n.stopped[c.VM] = c.Desired == DesiredStopped
	case MoveVM:
		n.may[c.VM] = map[place]bool{{c.Host, c.Boot}: true}
		if p, ok := n.out[c.VM]; ok {
			n.may[c.VM][p] = true // what it says now is no word about later
		}
		n.epoch[c.VM] = c.Epoch + 1
		n.stopped[c.VM] = false
		delete(n.cause, c.VM)
	case FreeVM:
		if p := (place{c.Host, c.Boot}); n.out[c.VM] != p {
			delete(n.may[c.VM], p)
		}
		if c.By == FreedByBeat || c.By == FreedByStop {
			n.cause[c.VM] = n.trouble(place{c.Host, c.Boot})
		}
	case CommitOrder:
		n.may[c.Order.VM][place{c.Order.Target, c.Order.TargetBoot}] = true
		n.epoch[c.Order.VM] = c.Order.Epoch
		n.orders[c.Order.ID] = c.Order
		n.out[c.Order.VM] = place{c.Order.Target, c.Order.TargetBoot}
	case ReportOrder:
		took := n.orders[c.Report.Order].TargetState // only the agent state that took the order knows
		switch s := c.Report.Status; {
		case s == haven.OrderStarted:
			delete(n.out, c.Report.VM)
			delete(n.cause, c.Report.VM)
		case took == c.Report.State && (s == haven.OrderRefused || s == haven.OrderFailed):
			delete(n.out, c.Report.VM)
			delete(n.may[c.Report.VM], place{c.Host, c.Report.Boot})
		}
	}
}

// takeRelease follows who waits for an operator's release: whoever was powered
// down, or proved dead, while the configuration wanted that.
func (n *now) takeRelease(c Command) {
	switch c := c.(type) {
	case OpenIncident:
		n.manual[c.ID] = false
	case BeginFence:
		n.manual[c.ID] = n.manual[c.ID] || c.Manual
	case ProveDead:
		n.manual[c.ID] = n.manual[c.ID] || c.Manual
		if n.manual[c.ID] {
			n.waits[c.Proof.Host] = true
		}
	case RegisterHost:
		old := place{c.Host, n.boot[c.Host]}
		if why := n.trouble(old); old.boot != c.Boot && !n.proof[why] && n.tried[why] && n.manual[why] {
			n.waits[c.Host] = true
		}
	case ReleaseFenced:
		delete(n.waits, c.Host)
	}
}

// takeBrakes follows what an operator holds back.
func (n *now) takeBrakes(c Command) {
	switch c := c.(type) {
	case SetArmed:
		switch {
		case c.Armed:
			n.disarmed = false
			clear(n.exempt)
		case c.Now:
			n.disarmed = true
			clear(n.exempt)
		case !n.disarmed:
			n.disarmed = true
			for id := range n.about {
				n.exempt[id] = !n.closed[id] && (n.fencing[id] > 0 || n.proof[id])
			}
		}
	case SetMaintenance:
		if !c.LetGo {
			n.care[c.Host] = c.On
		}
	case OpenIncident:
		n.about[c.ID] = place{c.Host, c.Boot}
		n.fencing[c.ID], n.proof[c.ID], n.closed[c.ID] = 0, false, false
		delete(n.exempt, c.ID)
		n.tried[c.ID], n.on[c.ID] = false, false
	case BeginOn:
		n.on[c.ID] = true
	case BeginFence:
		n.fencing[c.ID] = c.Attempt.N
		n.tried[c.ID] = true
	case EndFence:
		if n.fencing[c.ID] == c.N {
			n.fencing[c.ID] = 0
			n.exempt[c.ID] = n.exempt[c.ID] && n.proof[c.ID]
		}
	case ProveDead:
		if !n.dead[place{c.Proof.Host, c.Proof.Boot}] {
			n.proof[c.ID] = true
		}
	case CloseIncident:
		n.closed[c.ID] = true
		delete(n.exempt, c.ID)
	}
}

// checkDeclared holds what a host promises about its watchdog, as the ledger took
// it, against P2: it is the host of the present boot that speaks, alive, and in
// the order in which it spoke.
func (n *now) checkDeclared(c DeclareWatchdog) error {
	life, old := n.lives[c.Host], n.dogs[c.Host]
	switch {
	case n.witness[c.Host] || n.boot[c.Host] != c.Boot || n.dead[place{c.Host, c.Boot}]:
		return fmt.Errorf("boot %s of %s declares a watchdog and is a witness, over or unknown", c.Boot, c.Host)
	case life.State != c.State || life.Incarnation != c.Incarnation:
		return fmt.Errorf("an agent of %s declares a watchdog that is not the present one", c.Host)
	case old.State == c.State && old.Incarnation == c.Incarnation && c.Number <= old.Number:
		return fmt.Errorf("report %d of %s undoes what report %d asked for", c.Number, c.Host, old.Number)
	case c.Watchdog.Armed() != (len(c.Watchdog.Stores) > 0):
		return fmt.Errorf("%s declares %+v", c.Host, c.Watchdog)
	}
	return nil
}

// checkProof holds a proof by time against P2: what was never armed does not fire.
func (n *now) checkProof(c ProveDead) error {
	at := place{c.Proof.Host, c.Proof.Boot}
	if c.Proof.Kind == haven.ProofWatchdog && !n.dead[at] && (n.boot[at.host] != at.boot || !n.dogs[at.host].Watchdog.Armed()) {
		return fmt.Errorf("boot %s of %s is proved dead by a watchdog that is not armed", at.boot, at.host)
	}
	return nil
}

// trouble returns the incident about a place that is open and has no proof of an
// earlier generation.
func (n *now) trouble(p place) haven.IncidentID {
	for id, at := range n.about {
		if at == p && !n.closed[id] && (!n.proof[id] || n.dead[p]) {
			return id
		}
	}
	return ""
}

// checkFence holds a power command that the ledger took against P6.
func (n *now) checkFence(c BeginFence) error {
	switch {
	case n.disarmed:
		return fmt.Errorf("%s is fenced while recovery is disarmed", c.ID)
	case n.care[n.about[c.ID].host]:
		return fmt.Errorf("%s is fenced in maintenance", n.about[c.ID].host)
	case n.proof[c.ID] || n.closed[c.ID]:
		return fmt.Errorf("%s is fenced, and it is over", c.ID)
	}
	return nil
}

// checkOn holds a power-on that the ledger took against P6 and P2: only what
// Haven powered off, and what is proved off, is switched on, and once.
func (n *now) checkOn(c BeginOn) error {
	at := n.about[c.ID]
	switch {
	case n.disarmed:
		return fmt.Errorf("%s is switched on while recovery is disarmed", c.ID)
	case n.care[at.host]:
		return fmt.Errorf("%s is switched on in maintenance", at.host)
	case !n.dead[at] || n.boot[at.host] != at.boot || n.closed[c.ID] || !n.proof[c.ID]:
		return fmt.Errorf("%s is switched on, and it is not proved off", at.host)
	case !n.tried[c.ID] || n.fencing[c.ID] > 0 || n.on[c.ID]:
		return fmt.Errorf("%s is switched on and was not powered off, or it is for the second time", at.host)
	}
	return nil
}

// end takes a place, and all that ran there, out of the count.
func (n *now) end(p place, why haven.IncidentID) {
	for vm, places := range n.may {
		if places[p] && !n.stopped[vm] && why != "" {
			n.cause[vm] = why
		}
		delete(places, p)
		if n.out[vm] == p {
			delete(n.out, vm)
		}
	}
}

// checkOrder holds an order that the ledger took against P1, in the words of
// the promise.
func (n *now) checkOrder(c CommitOrder) error {
	o := c.Order
	if n.disarmed && !n.exempt[n.cause[o.VM]] {
		return fmt.Errorf("order %s while recovery is disarmed, for incident %q", o.ID, n.cause[o.VM])
	}
	if n.care[o.Target] {
		return fmt.Errorf("order %s for a host in maintenance", o.ID)
	}
	if n.waits[o.Target] {
		return fmt.Errorf("order %s for a host that was fenced and not released", o.ID)
	}
	if places := n.may[o.VM]; len(places) > 0 {
		return fmt.Errorf("order %s while %v may run the VM", o.ID, places)
	}
	if o.Epoch <= n.epoch[o.VM] {
		return fmt.Errorf("order %s at epoch %d, %d was used", o.ID, o.Epoch, n.epoch[o.VM])
	}
	if n.stopped[o.VM] {
		return fmt.Errorf("order %s of a VM that its user stopped", o.ID)
	}
	if before, ok := n.orders[o.ID]; ok {
		return fmt.Errorf("order %s exists: %+v", o.ID, before)
	}
	if n.boot[o.Target] != o.TargetBoot || n.state[o.Target] != o.TargetState || n.dead[place{o.Target, o.TargetBoot}] {
		return fmt.Errorf("order %s for a boot or state that is not there", o.ID)
	}
	for host, boot := range n.boot {
		if n.witness[host] || n.dead[place{host, boot}] {
			continue
		}
		if !slices.ContainsFunc(c.Absent, func(a Absence) bool { return a.Host == host && a.Boot == boot }) {
			return fmt.Errorf("order %s without the word of %s in boot %s", o.ID, host, boot)
		}
	}
	return nil
}

// agree holds the ledger's state against the twin's count.
func (n *now) agree(s *State) error {
	for _, p := range slices.SortedFunc(maps.Keys(n.over), func(a, b place) int { return bytes.Compare([]byte(a.boot), []byte(b.boot)) }) {
		if n.boot[p.host] == p.boot {
			return fmt.Errorf("boot %s of %s was over and came back", p.boot, p.host)
		}
	}
	for id, vm := range s.VMs {
		places := n.may[id]
		if len(places) > 1 {
			return fmt.Errorf("VM %s may run at %v", id, places)
		}
		owner := place{vm.Owner, vm.OwnerBoot}
		switch {
		case vm.Phase == PhaseFreed && len(places) > 0:
			return fmt.Errorf("VM %s is free and may run at %v", id, places)
		case vm.Phase != PhaseFreed && vm.Desired == DesiredRunning && !places[owner]:
			return fmt.Errorf("VM %s is %s at %v and may run at %v", id, vm.Phase, owner, places)
		case vm.Epoch < n.epoch[id]:
			return fmt.Errorf("VM %s is at epoch %d, %d was used", id, vm.Epoch, n.epoch[id])
		case vm.Phase != PhaseFreed && vm.Desired == DesiredRunning && (s.Hosts[vm.Owner].Boot != vm.OwnerBoot || s.Hosts[vm.Owner].ProvedDead()):
			return fmt.Errorf("VM %s is %s in a boot that is over", id, vm.Phase)
		}
	}
	for id, h := range s.Hosts {
		if !h.Watchdog.Equal(n.dogs[id].Watchdog) {
			return fmt.Errorf("host %s in boot %s has watchdog %+v, it declared %+v", id, h.Boot, h.Watchdog, n.dogs[id].Watchdog)
		}
		if (h.Fenced != nil) != n.waits[id] {
			return fmt.Errorf("host %s waits for a release: %v, want %v", id, h.Fenced, n.waits[id])
		}
		if in := s.Incidents[h.Incident]; h.Incident != "" && (!in.Open() || in.Host != id || in.Boot != h.Boot) {
			return fmt.Errorf("host %s in boot %s has incident %+v", id, h.Boot, in)
		}
	}
	for _, in := range s.OpenIncidents() {
		if !needsProof(in.Step) && s.Hosts[in.Host].Incident != in.ID {
			return fmt.Errorf("incident %s is %s and nobody's", in.ID, in.Step)
		}
		if needsProof(in.Step) && in.Proof == nil {
			return fmt.Errorf("incident %s is %s without a proof", in.ID, in.Step)
		}
	}
	return nil
}

// outside is the world that commands come from: hosts that boot, lose their
// directories and repeat themselves, and masters that see an old ledger.
type outside struct {
	t     *rapid.T
	s     *State
	seen  *State // the ledger as a master saw it some time ago
	term  uint64
	tick  int
	boots int
	hosts []haven.HostID
	boot  map[haven.HostID]haven.BootID
	state map[haven.HostID]haven.StateID
	inc   map[haven.HostID]haven.Incarnation
	said  []Command // everything that was ever proposed

	reports uint64
}

func newOutside(t *rapid.T, s *State) *outside {
	w := &outside{
		t: t, s: s, seen: s, term: 1, hosts: []haven.HostID{"a", "b", "c", "w"},
		boot: map[haven.HostID]haven.BootID{}, state: map[haven.HostID]haven.StateID{}, inc: map[haven.HostID]haven.Incarnation{},
	}
	for _, h := range w.hosts {
		w.state[h] = haven.StateID("s0" + h)
		w.reboot(h)
	}
	return w
}

func (w *outside) now() time.Time {
	w.tick++
	return stamp.Add(time.Duration(w.tick) * time.Second)
}

func (w *outside) reboot(h haven.HostID) {
	w.boots++
	w.boot[h] = haven.BootID(fmt.Sprintf("%s-%d", h, w.boots))
	w.inc[h]++
}

func (w *outside) chance(percent int, what string) bool {
	return rapid.IntRange(1, 100).Draw(w.t, what) <= percent
}

func pick[T any](w *outside, from []T, what string) T {
	return from[rapid.IntRange(0, len(from)-1).Draw(w.t, what)]
}

// next draws a command: mostly one that a correct master or agent would send
// for the ledger that it knows, which may be old.
func (w *outside) next() Command {
	if w.chance(15, "again") && len(w.said) > 0 {
		return pick(w, w.said, "earlier")
	}
	if w.chance(70, "fresh view") {
		w.seen = copyOf(w.s)
	}
	draw := []func() Command{w.register, w.register, w.vm, w.vm, w.vm, w.vm, w.vm, w.vm, w.vm, w.vm, w.vm, w.trouble, w.trouble, w.trouble, w.trouble, w.trouble, w.rare, w.watchdog, w.release}
	c := pick(w, draw, "kind")()
	w.said = append(w.said, c)
	return c
}

func (w *outside) register() Command {
	h := pick(w, w.hosts, "host")
	switch rapid.IntRange(0, 9).Draw(w.t, "registration") {
	case 0, 1:
		w.reboot(h)
	case 2:
		w.inc[h]++
	case 3: // loses its directory
		w.boots++
		w.state[h], w.inc[h] = haven.StateID(fmt.Sprintf("s%d%s", w.boots, h)), 1
	case 4:
		w.reboot(h)
		w.reboot(h) // one that never registered
	}
	c := RegisterHost{Host: h, Role: haven.RoleHypervisor, Boot: w.boot[h], State: w.state[h], Incarnation: w.inc[h], At: w.now()}
	if h == "w" && w.chance(80, "witness") {
		c.Role = haven.RoleWitness
	}
	return c
}

func (w *outside) words() []Absence {
	var all []Absence
	for _, h := range w.hosts {
		if w.chance(97, "says") {
			all = append(all, Absence{Host: h, Boot: w.boot[h], Via: "inventory"})
		}
	}
	return all
}

func (w *outside) vm() Command {
	id := pick(w, []haven.VMID{vm1, vm2}, "VM")
	h := pick(w, w.hosts, "host")
	vm := w.seen.VMs[id]
	if vm == nil {
		return ProtectVM{VM: id, Name: "n", Host: h, Boot: w.boot[h], MemoryMiB: 1, Definition: def("x")}
	}
	if w.chance(85, "by the owner") {
		h = vm.Owner
	}
	boot := w.boot[h]
	if w.chance(10, "from an old boot") {
		boot = vm.OwnerBoot
	}
	switch vm.Phase {
	case PhaseFreed:
		if w.chance(10, "runs already") {
			return MoveVM{VM: id, Epoch: vm.Epoch, Host: h, Boot: boot, Absent: w.words()}
		}
		h = pick(w, w.hosts, "target")
		return CommitOrder{At: w.now(), Absent: w.words(), Order: haven.Order{
			ID: OrderID(id, vm.Epoch+1), VM: id, Epoch: vm.Epoch + 1, Target: h, TargetBoot: w.boot[h], TargetState: w.state[h],
			Term: haven.Term{Generation: w.seen.Generation, Term: w.term}, DefinitionSHA: vm.Definition.SHA,
		}}
	case PhaseOrdered:
		status := pick(w, []haven.OrderStatus{haven.OrderAccepted, haven.OrderStarted, haven.OrderRefused, haven.OrderFailed, haven.OrderUnknown}, "status")
		state := w.state[h]
		switch rapid.IntRange(0, 9).Draw(w.t, "speaks as") {
		case 0:
			state = vm.Order.TargetState
		case 1:
			state = "a stranger"
		}
		return ReportOrder{Host: h, At: w.now(), Report: haven.OrderReport{
			Boot: boot, State: state, Order: vm.Order.ID, VM: id, Epoch: vm.Epoch, Status: status,
		}}
	case PhaseOwned:
	}
	switch rapid.IntRange(0, 6).Draw(w.t, "owned") {
	case 0:
		return FreeVM{VM: id, Epoch: vm.Epoch, Host: h, Boot: boot, At: w.now(), By: pick(w, []FreedBy{"", FreedByGone, FreedByBeat, FreedByStop, FreedByProof}, "by")}
	case 1:
		return ForgetVM{VM: id, Epoch: vm.Epoch}
	case 2:
		to := pick(w, w.hosts, "moves to")
		return MoveVM{VM: id, Epoch: vm.Epoch, Host: to, Boot: w.boot[to], Absent: w.words()}
	case 3:
		return HoldVM{VM: id, Epoch: vm.Epoch, Hold: haven.Hold{Reason: haven.HoldCap}}
	case 4:
		return ProtectVM{VM: id, Name: "n", Host: h, Boot: boot, MemoryMiB: 2, Definition: def("x")}
	}
	desired := pick(w, []Desired{DesiredRunning, DesiredStopped}, "desired")
	return ObserveVM{VM: id, Epoch: vm.Epoch, Host: h, Boot: boot, Desired: desired, Migrating: w.chance(30, "migrating")}
}

func (w *outside) trouble() Command {
	open := w.seen.OpenIncidents()
	if len(open) == 0 || w.chance(15, "new trouble") {
		h := pick(w, w.hosts, "host in trouble")
		return OpenIncident{ID: haven.IncidentID(fmt.Sprintf("i%d", rapid.IntRange(0, 30).Draw(w.t, "id"))), Host: h, Boot: w.boot[h], Verdict: haven.VerdictFailed, Entry: Entry{At: w.now(), What: "opened"}}
	}
	in := pick(w, open, "incident")
	for _, o := range open { // what was powered off is rare; it is gone on with
		if len(o.Attempts) > 0 && w.chance(50, "go on") {
			in = o
		}
	}
	entry := Entry{At: w.now(), What: "line"}
	_, pending := in.Pending()
	switch {
	case in.SwitchingOn() && w.chance(60, "on is over"):
		return EndOn{ID: in.ID, Failed: w.chance(30, "failed"), At: w.now()}
	case in.Proof != nil && len(in.Attempts) > 0 && !pending && w.chance(60, "on"):
		return BeginOn{ID: in.ID, On: PowerOn{Term: haven.Term{Generation: w.seen.Generation, Term: w.term}, By: "m", BegunAt: w.now()}}
	case pending && in.Proof == nil && w.chance(50, "proved"):
		return ProveDead{ID: in.ID, Entry: entry, Proof: haven.Proof{Kind: w.proofKind(), Host: in.Host, Boot: in.Boot, By: "m", At: entry.At}}
	case pending && w.chance(60, "ends"):
		return EndFence{ID: in.ID, N: in.NextAttempt() - 1, At: w.now()}
	case needsProof(in.Step) && w.chance(60, "closed"):
		return CloseIncident{ID: in.ID, Entry: entry}
	case in.Step == haven.StepConfirmed && w.chance(50, "fenced"):
		return BeginFence{ID: in.ID, Attempt: FenceAttempt{N: in.NextAttempt(), Action: haven.ActionOff, Term: haven.Term{Generation: w.seen.Generation, Term: w.term}, By: "m", BegunAt: w.now()}, Manual: w.chance(50, "manual")}
	case in.Step == haven.StepSuspected && w.chance(60, "confirmed"):
		return NoteIncident{ID: in.ID, Step: haven.StepConfirmed, Entry: entry}
	}
	switch rapid.IntRange(0, 9).Draw(w.t, "step") {
	case 0, 1, 2:
		return ProveDead{ID: in.ID, Entry: entry, Manual: w.chance(30, "manual"), Proof: haven.Proof{Kind: w.proofKind(), Host: in.Host, Boot: in.Boot, By: "m", At: entry.At}}
	case 3, 4:
		return BeginFence{ID: in.ID, Attempt: FenceAttempt{N: in.NextAttempt(), Action: haven.ActionOff, Term: haven.Term{Generation: w.seen.Generation, Term: w.term}, By: "m", BegunAt: w.now()}, Manual: w.chance(50, "manual")}
	case 5:
		return EndFence{ID: in.ID, N: in.NextAttempt() - 1, At: w.now()}
	case 6:
		return CloseIncident{ID: in.ID, Entry: entry}
	case 7:
		return BeginOn{ID: in.ID, On: PowerOn{Term: haven.Term{Generation: w.seen.Generation, Term: w.term}, By: "m", BegunAt: w.now()}}
	}
	return NoteIncident{ID: in.ID, Step: pick(w, append(slices.Clone(stepOrder), ""), "to"), Entry: entry}
}

// cycle is one step of a power cycle of host b.
func (w *outside) cycle(n int) Command {
	entry, term := Entry{At: w.now(), What: "line"}, haven.Term{Generation: w.seen.Generation, Term: w.term}
	const id = "cycle"
	return []Command{
		OpenIncident{ID: id, Host: "b", Boot: w.boot["b"], Verdict: haven.VerdictFailed, Entry: entry},
		NoteIncident{ID: id, Step: haven.StepConfirmed, Entry: entry},
		BeginFence{ID: id, Attempt: FenceAttempt{N: 1, Action: haven.ActionOff, Term: term, By: "m", BegunAt: w.now()}, Manual: w.chance(50, "manual")},
		ProveDead{ID: id, Entry: entry, Proof: haven.Proof{Kind: w.proofKind(), Host: "b", Boot: w.boot["b"], By: "m", At: entry.At}},
		EndFence{ID: id, N: 1, Proved: true, At: w.now()},
		BeginOn{ID: id, On: PowerOn{Term: term, By: "m", BegunAt: w.now()}},
		EndOn{ID: id, Failed: w.chance(30, "failed"), At: w.now()},
	}[n]
}

// release is an operator's word about a host that was fenced, or something rare.
func (w *outside) release() Command {
	for _, id := range w.hosts {
		if h := w.seen.Hosts[id]; h != nil && h.Fenced != nil && w.chance(50, "released") {
			return ReleaseFenced{Host: id, Incident: h.Fenced.Incident, By: "op", At: w.now()}
		}
	}
	h := pick(w, w.hosts, "host")
	if w.chance(50, "device") {
		c := DoubtDevices{Host: h}
		if known := w.seen.Hosts[h]; known != nil {
			c.Cleared = known.Power.Cleared
		}
		if w.chance(60, "doubted") {
			c.Doubts = []DeviceDoubt{{Device: "bmc", GUID: "g", Why: "its GUID is that of another host"}}
		}
		return c
	}
	if known := w.seen.Hosts[h]; known != nil && w.chance(50, "cleared") {
		return LearnPower{Host: h, By: "op", Clears: known.Power.Cleared + 1, At: w.now()}
	}
	return w.rare()
}

func (w *outside) rare() Command {
	switch rapid.IntRange(0, 9).Draw(w.t, "rare") {
	case 0:
		if w.chance(50, "restore") {
			return Found{Cluster: "c", Generation: w.seen.Generation + 1, By: "op", At: w.now()}
		}
	case 1:
		return ReleaseHost{Host: pick(w, w.hosts, "host"), By: "op", At: w.now()}
	case 2:
		return SetArmed{Armed: w.chance(60, "armed"), Now: w.chance(20, "now"), By: "op", At: w.now()}
	case 3:
		return LearnPower{Host: pick(w, w.hosts, "host"), GUID: "g", Distrust: pick(w, []string{"", "liar"}, "distrust")}
	case 4:
		w.term++
	case 5:
		return SetMaintenance{Host: pick(w, w.hosts, "host"), On: w.chance(40, "on"), LetGo: w.chance(20, "let go"), By: "op", At: w.now()}
	case 7:
		return RecordAct{Act{Action: pick(w, []haven.FenceAction{haven.ActionOn, ActCapReset, haven.ActionStatus}, "act"), Host: pick(w, w.hosts, "host"), By: "op", At: w.now()}}
	case 6:
		return RecordDecisions{Decisions: []Decision{{At: w.now(), By: "m", Host: pick(w, w.hosts, "host"), To: haven.VerdictSuspect}}}
	}
	return Found{Cluster: "c", Generation: 1, By: "op", At: stamp}
}

// watchdog is what a host's agent asks for, or one of its past lives did.
func (w *outside) watchdog() Command {
	h := pick(w, w.hosts, "host")
	w.reports++
	c := DeclareWatchdog{Host: h, Boot: w.boot[h], State: w.state[h], Incarnation: w.inc[h], Number: w.reports}
	if l := w.s.Hosts[h]; l != nil && w.chance(60, "as it registered") {
		c.Boot, c.State, c.Incarnation = l.Boot, l.State, l.Incarnation
	}
	if w.chance(20, "an old report") {
		c.Number = uint64(rapid.IntRange(0, int(w.reports)).Draw(w.t, "number"))
	}
	if w.chance(80, "armed") {
		c.Watchdog.Bound = time.Duration(rapid.IntRange(1, 60).Draw(w.t, "bound")) * time.Second
	}
	if c.Watchdog.Armed() != w.chance(3, "nonsense") {
		c.Watchdog.Stores = pick(w, [][]string{{"s1"}, {"s1", "s2"}, {"s2", "s1"}, {""}}, "stores")
	}
	return c
}

// proofKind is mostly by a device.
func (w *outside) proofKind() haven.ProofKind {
	return pick(w, []haven.ProofKind{haven.ProofPowerOff, haven.ProofPowerOff, haven.ProofWatchdog}, "proof by")
}

func copyOf(s *State) *State {
	st := &Store{state: s}
	c, err := st.Clone()
	if err != nil {
		panic(err)
	}
	return c
}

// P1 and P7: whatever is proposed, in whatever order and how often, the ledger
// never lets two boots run one VM, and everybody who replays it gets the same.
func TestTwin(t *testing.T) {
	taken := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		s := New("")
		w := newOutside(t, s)
		var all, history []happened
		step := func(c Command) {
			data, err := Encode(c)
			if err != nil {
				t.Fatal(err)
			}
			cmds, err := Decode(data)
			if err != nil {
				t.Fatal(err)
			}
			h := happened{cmds[0], Position{Index: uint64(len(all) + 1), Term: w.term}}
			all = append(all, h)
			before := snapshotOf(t, s)
			err = s.Apply(h.c, h.at)
			after := snapshotOf(t, s)
			if err != nil {
				if !errors.Is(err, ErrRejected) || !bytes.Equal(before, after) {
					t.Fatalf("%s was rejected (%v) and changed the state:\n%s\n%s", Kind(h.c), err, before, after)
				}
				return
			}
			taken[Kind(h.c)]++
			if err := s.Apply(h.c, h.at); err != nil {
				t.Fatalf("%+v again: %v", h.c, err)
			}
			if !bytes.Equal(after, snapshotOf(t, s)) {
				t.Fatalf("%+v again changed the state:\n%s\n%s", h.c, after, snapshotOf(t, s))
			}
			if bytes.Equal(before, after) {
				return // nothing new: the twin need not know
			}
			if c, ok := h.c.(CommitOrder); ok {
				if err := recount(history).checkOrder(c); err != nil {
					t.Fatalf("P1: %v", err)
				}
				taken["an order"]++
				if s.Disarm != nil {
					taken["an order of what was under way"]++
				}
			}
			if c, ok := h.c.(BeginFence); ok {
				if err := recount(history).checkFence(c); err != nil {
					t.Fatalf("P6: %v", err)
				}
			}
			if c, ok := h.c.(DeclareWatchdog); ok {
				if err := recount(history).checkDeclared(c); err != nil {
					t.Fatalf("P2: %v", err)
				}
			}
			if c, ok := h.c.(ProveDead); ok {
				if err := recount(history).checkProof(c); err != nil {
					t.Fatalf("P2: %v", err)
				}
				taken["a proof by "+string(c.Proof.Kind)]++
			}
			if c, ok := h.c.(BeginOn); ok {
				if err := recount(history).checkOn(c); err != nil {
					t.Fatalf("P6: %v", err)
				}
			}
			history = append(history, h)
			if err := agreeSlots(history, s); err != nil {
				t.Fatalf("after %+v: %v", h.c, err)
			}
			if err := recount(history).agree(s); err != nil {
				t.Fatalf("P1: after %+v: %v", h.c, err)
			}
			if err := s.check(); err != nil {
				t.Fatalf("its snapshot would be refused: %v", err)
			}
		}
		step(Found{Cluster: "c", Generation: 1, By: "op", At: stamp})
		for _, h := range w.hosts {
			role := haven.RoleHypervisor
			if h == "w" {
				role = haven.RoleWitness
			}
			step(RegisterHost{Host: h, Role: role, Boot: w.boot[h], State: w.state[h], Incarnation: w.inc[h], At: stamp})
		}
		if w.chance(40, "a power cycle") { // chance alone hardly ever comes so far
			if w.chance(60, "an armed watchdog") {
				w.reports++
				step(DeclareWatchdog{
					Host: "b", Boot: w.boot["b"], State: w.state["b"], Incarnation: w.inc["b"], Number: w.reports,
					Watchdog: haven.Watchdog{Bound: time.Second, Stores: []string{"s1"}},
				})
			}
			for n := range 7 {
				step(w.cycle(n))
				if w.chance(20, "something between") {
					step(w.next())
				}
			}
		}
		for range rapid.IntRange(20, 160).Draw(t, "steps") {
			step(w.next())
		}
		replayed(t, s, all)
	})
	if t.Failed() || testing.Short() {
		return
	}
	// A test that only rejects proves nothing.
	for _, c := range everyCommand() {
		if taken[Kind(c)] == 0 {
			t.Errorf("%s was never taken", Kind(c))
		}
	}
	if taken["an order"] < 20 {
		t.Errorf("only %d orders were committed", taken["an order"])
	}
	if taken["a proof by "+string(haven.ProofWatchdog)] == 0 {
		t.Error("no watchdog proved anything")
	}
	t.Logf("taken: %v", taken)
}

func snapshotOf(t *rapid.T, s *State) []byte {
	t.Helper()
	data, err := json.Marshal(snapshot{snapshotVersion, Position{}, s})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// replayed applies the whole log again: as it was, with every entry twice, and
// from a snapshot in the middle.
func replayed(t *rapid.T, want *State, log []happened) {
	t.Helper()
	middle := rapid.IntRange(0, len(log)).Draw(t, "snapshot after")
	once, twice, restored := New(""), New(""), New("")
	for i, h := range log {
		if i == middle {
			restored = copyOf(restored)
		}
		_ = once.Apply(h.c, h.at)
		_ = restored.Apply(h.c, h.at)
		_, _ = twice.Apply(h.c, h.at), twice.Apply(h.c, h.at)
	}
	for name, s := range map[string]*State{"once": once, "with every entry twice": twice, "from a snapshot": restored} {
		if !bytes.Equal(snapshotOf(t, s), snapshotOf(t, want)) {
			t.Fatalf("replayed %s, the log leads to another state", name)
		}
	}
}

package recovery

import (
	"fmt"
	"slices"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/vmrestart"
)

// place finds hosts for the VMs that nobody may run.
func (m *Machine) place(s *ledger.State) {
	var vms []vmrestart.PlanVM
	absences := map[haven.VMID][]ledger.Absence{}
	for _, id := range s.VMIDs() {
		vm := s.VMs[id]
		if vm.Phase != ledger.PhaseFreed || vm.Desired != ledger.DesiredRunning || m.twice[id] {
			continue
		}
		absent, ok := m.ready(s, vm)
		if !ok {
			continue
		}
		absences[id] = absent
		vms = append(vms, vmrestart.PlanVM{
			ID: id, Name: vm.Name, MemoryMiB: vm.MemoryMiB, VCPUs: vm.VCPUs, Last: vm.Owner, Failed: m.failures(vm),
		})
	}
	if len(vms) == 0 {
		return
	}
	for _, p := range vmrestart.Plan(vms, m.candidates(s), m.cfg.Limits) {
		vm := s.VMs[p.VM]
		if p.Host == "" {
			if p.Hold != "" {
				m.holdVM(vm, haven.Hold{Reason: p.Hold, Detail: p.Why})
			}
			m.wake(200 * time.Millisecond)
			continue
		}
		m.order(s, vm, p, absences[p.VM])
	}
}

// ready says whether a freed VM may be given to a host now, and on whose word.
func (m *Machine) ready(s *ledger.State, vm *ledger.VM) ([]ledger.Absence, bool) {
	if s.Stopped(vm.Incident) {
		m.holdVM(vm, disarmed(s))
		return nil, false
	}
	if hold := generation(s); hold.Reason != "" {
		m.holdVM(vm, hold)
		return nil, false
	}
	if s.Kept(vm) {
		// An operator who powers a host off on purpose does not ask for its VMs to
		// be started elsewhere; he says so when he does.
		m.holdVM(vm, maintenance(s.Hosts[vm.Freed.Host]))
		return nil, false
	}
	if hold := m.contradicted(s, vm); hold.Reason != "" {
		m.holdVM(vm, hold)
		return nil, false
	}
	left := m.pause(vm)
	if left > 0 {
		m.wake(left)
		return nil, false
	}
	said := m.words(s, vm)
	switch {
	case len(said.silent) > 0 && -left > 2*m.cfg.AbsenceAge:
		// A host that goes silent for a moment is not worth a hold.
		m.holdVM(vm, haven.Hold{Reason: haven.HoldMaybeElsewhere, Detail: fmt.Sprintf("no word that it is not there from %v", said.silent)})
		return nil, false
	case !said.all():
		return nil, false
	case len(said.present) == 1:
		to := said.present[0]
		m.propose(ledger.MoveVM{VM: vm.ID, Epoch: vm.Epoch, Host: to, Boot: s.Hosts[to].Boot, Absent: said.absent})
		m.notice(Notice{Kind: "vm-moved", Host: to, VM: vm.ID, Text: fmt.Sprintf("%s runs on %s already", vm.Name, to)})
		return nil, false
	case len(said.present) > 1, vm.Migrating && m.holdHidden(s, vm):
		return nil, false
	}
	return said.absent, true
}

// contradicted is the hold of a VM that was freed by a proof, while the host shows
// life of the very boot that is proved over (P1). An order that is out already
// cannot be called back.
func (m *Machine) contradicted(s *ledger.State, vm *ledger.VM) haven.Hold {
	hosts := []haven.HostID{vm.Freed.Host}
	if in := s.Incidents[vm.Incident]; in != nil {
		hosts = append(hosts, in.Host) // another host may have had it since, and failed
	}
	for _, id := range hosts {
		h, view := s.Hosts[id], m.in.Hosts[id]
		if h != nil && h.ProvedDead() && view.Boot == h.Boot && view.Hold.Reason == haven.HoldContradiction {
			return view.Hold
		}
	}
	return haven.Hold{}
}

// retryDelays are the pauses after the first, second … start that failed. The
// first retry is at once, on another host.
var retryDelays = [...]time.Duration{0, 15 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute, 15 * time.Minute}

// lockRetry is the pause after a start that met a lock on the VM's disks: the
// lock of a dead host goes away by itself within a lease of the storage.
const lockRetry = 2 * time.Second

// refusalPause is the pause after a refusal. Nothing was begun, so that it is
// short; when refusals follow one another, nobody can start the VM, and each one
// is two entries in the log.
func refusalPause(vm *ledger.VM) time.Duration {
	n := 0
	for _, a := range vm.Attempts {
		if n++; a.Status != haven.OrderRefused {
			n = 0
		}
	}
	return min(30*time.Second, time.Second<<min(max(n-1, 0), 5))
}

// attemptsCount is how many attempts back are looked at.
const attemptsWindow = time.Hour

// pause returns how long a VM must still wait after attempts that failed; below
// zero, for how long it has waited for other things.
func (m *Machine) pause(vm *ledger.VM) time.Duration {
	since := m.now.Sub(m.seen[vm.ID].at)
	switch vm.Freed.By {
	case ledger.FreedByProof, ledger.FreedByReboot, ledger.FreedByBeat, ledger.FreedByStop:
		return -since
	case ledger.FreedByRefusal:
		return refusalPause(vm) - since
	case ledger.FreedByGone, ledger.FreedByFailure:
	}
	failed := 0
	for _, a := range vm.Attempts {
		if a.Status == haven.OrderFailed && m.now.Sub(a.At) < attemptsWindow {
			failed++
		}
	}
	if n := len(vm.Attempts); n > 0 && vm.Attempts[n-1].Locked {
		return lockRetry - since
	}
	return retryDelays[min(max(failed-1, 0), len(retryDelays)-1)] - since
}

// inPlace is how often within attemptsWindow a VM that ended by itself is started
// again where it was, before it is given to another host.
const inPlace = 2

// failures says on which hosts a VM failed lately, in the order of the last time
// on each.
func (m *Machine) failures(vm *ledger.VM) map[haven.HostID]int {
	failed := map[haven.HostID]int{}
	n := 0
	for i, a := range vm.Attempts {
		if m.now.Sub(a.At) < attemptsWindow {
			failed[a.Host] = i + 1
			n++
		}
	}
	if vm.Freed.By == ledger.FreedByGone && len(failed) == 1 && n <= inPlace {
		return nil
	}
	return failed
}

// candidates describes the hosts for the planner.
func (m *Machine) candidates(s *ledger.State) []vmrestart.PlanHost {
	promised := map[haven.HostID]uint64{}
	starting := map[haven.HostID]int{}
	for _, vm := range s.VMs {
		switch {
		case vm.Phase == ledger.PhaseOrdered:
			starting[vm.Owner]++
			promised[vm.Owner] += vm.MemoryMiB
		case vm.Phase == ledger.PhaseOwned && vm.Desired == ledger.DesiredRunning && m.in.Hosts[vm.Owner].Inventory.Has(vm.ID) == haven.No:
			promised[vm.Owner] += vm.MemoryMiB // its host's report is older than its start
		}
	}
	var hosts []vmrestart.PlanHost
	for _, id := range s.HostIDs() {
		h := s.Hosts[id]
		if h.Role == haven.RoleWitness {
			continue
		}
		view := m.in.Hosts[id]
		used := promised[id] + m.cfg.ReserveMiB
		free := uint64(0)
		if view.Load.MemoryFreeMiB > used {
			free = view.Load.MemoryFreeMiB - used
		}
		running := 0
		for _, info := range view.Inventory.VMs {
			if info.State.Present() {
				running++
			}
		}
		hosts = append(hosts, vmrestart.PlanHost{
			ID: id, Refuses: m.refuses(s, h, view), FreeMiB: free, Starting: starting[id], Running: running,
		})
	}
	return hosts
}

// refuses says why a host takes no VMs now, or nothing.
func (m *Machine) refuses(s *ledger.State, h *ledger.Host, view HostView) string {
	in := s.Incidents[h.Incident]
	switch {
	case h.ProvedDead():
		return "it is proved dead"
	case in != nil && in.Step != haven.StepSuspected && in.Boot == h.Boot:
		return "it is in incident " + string(in.ID)
	case !view.Connected:
		return "its agent does not report"
	case view.Verdict != haven.VerdictHealthy && view.Verdict != haven.VerdictUnknown:
		// A master that cannot trust its own paths knows no verdict; that stops
		// fencing, not the restart of VMs whose host is proved dead (P6). A host
		// that reports and takes orders is good enough for them.
		return fmt.Sprintf("it is %s", view.Verdict)
	case h.Maintenance != nil:
		return "it is in maintenance by " + h.Maintenance.By
	case h.Fenced != nil:
		return fmt.Sprintf("it was fenced in incident %s and is not released: haven fence release %s", h.Fenced.Incident, h.ID)
	case view.Quarantine != "":
		return "it is quarantined: " + view.Quarantine
	case view.Leave != haven.LeaveNone:
		return fmt.Sprintf("it is leaving: %s", view.Leave)
	case view.Refuses != "":
		return view.Refuses
	}
	return ""
}

// order gives a VM to a host.
func (m *Machine) order(s *ledger.State, vm *ledger.VM, p vmrestart.Placement, absent []ledger.Absence) {
	h := s.Hosts[p.Host]
	epoch := vm.Epoch + 1
	o := haven.Order{
		ID: ledger.OrderID(vm.ID, epoch), VM: vm.ID, Name: vm.Name, Epoch: epoch, Incident: vm.Incident,
		Target: h.ID, TargetBoot: h.Boot, TargetState: h.State, Term: m.in.Term,
		DefinitionSHA: vm.Definition.SHA, MemoryMiB: vm.MemoryMiB,
	}
	m.propose(ledger.CommitOrder{Order: o, Absent: absent, At: m.now})
	m.notice(Notice{Kind: "vm-ordered", Host: h.ID, VM: vm.ID, Incident: vm.Incident, About: fmt.Sprint(epoch), Text: fmt.Sprintf("%s goes to %s: %s", vm.Name, h.ID, p.Why)})
	m.wake(time.Millisecond)
}

// sendEvery is how often an order that is out is sent, which also asks how it
// stands.
const sendEvery = time.Second

// ordered follows an order until it is settled. The order stays with its target
// until the target says what became of it, or is proved dead.
func (m *Machine) ordered(s *ledger.State, vm *ledger.VM) {
	o := vm.Order
	h := s.Hosts[o.Target]
	if h == nil || h.ProvedDead() || h.Boot != o.TargetBoot || m.reported(o.ID) {
		return
	}
	view := m.in.Hosts[o.Target]
	for _, r := range view.Orders {
		if r.Order == o.ID && view.Connected && m.report(s, vm, r) {
			return
		}
	}
	if view.Connected && view.Inventory.Has(vm.ID) == haven.Yes {
		m.foundRunning(s, vm)
	}
	late := m.now.Sub(m.seen[vm.ID].at) > m.cfg.UnknownAfter
	switch why := outOfSight(h, o, view); {
	case why != "" && (late || h.State != o.TargetState):
		m.holdVM(vm, haven.Hold{Reason: haven.HoldOrderUnknown, Detail: fmt.Sprintf("order %s is at %s, %s", o.ID, o.Target, why)})
	case why == "" && vm.Hold.Reason == haven.HoldOrderUnknown:
		m.holdVM(vm, haven.Hold{})
	}
	if h.State != o.TargetState {
		return // nobody is there who could take it
	}
	if last, ok := m.sent[o.ID]; ok && m.now.Sub(last) < sendEvery {
		m.wake(sendEvery - m.now.Sub(last))
		return
	}
	if m.begin(Send{Order: o.ID, VM: vm.ID, Host: o.Target}) {
		m.sent[o.ID] = m.now
	}
}

// outOfSight says why nobody knows how an order stands, or nothing.
func outOfSight(h *ledger.Host, o *ledger.OrderRecord, view HostView) string {
	switch {
	case h.State != o.TargetState:
		// Nobody knows what the agent that had the order began, and a start that
		// waits in the VM manager shows nowhere.
		return "whose agent lost its data directory since; a start of the VM there by hand, or a reboot of the host, ends this"
	case !view.Connected:
		return "which does not answer; it stays there until the host answers or is proved dead"
	case o.Status == haven.OrderNone:
		return "which answers, but has not taken it"
	case o.Status == haven.OrderUnknown:
		return "which does not know what became of it: " + o.Detail
	}
	return ""
}

// foundRunning settles an order whose report was lost, by what the target says
// when it is asked after the order went out.
func (m *Machine) foundRunning(s *ledger.State, vm *ledger.VM) {
	inv, ok := m.ask(vm.Order.Target, m.seen[vm.ID].at)
	if !ok || inv.Boot != vm.Order.TargetBoot {
		return
	}
	if info, listed := inv.Find(vm.ID); listed && info.State == haven.VMRunning {
		m.report(s, vm, haven.OrderReport{Boot: inv.Boot, State: vm.Order.TargetState, Order: vm.Order.ID, VM: vm.ID, Epoch: vm.Epoch, Status: haven.OrderStarted, Detail: "found running"})
	}
}

// delivered takes in what a target answered to an order.
func (m *Machine) delivered(s *ledger.State, act Send, d Done) {
	vm := s.VMs[act.VM]
	if d.Err != nil || d.Report == nil || vm == nil || vm.Phase != ledger.PhaseOrdered || vm.Order.ID != act.Order {
		return
	}
	m.report(s, vm, *d.Report)
}

// reported says whether this step has recorded already how an order stands.
func (m *Machine) reported(id haven.OrderID) bool {
	return slices.ContainsFunc(m.out.Commands, func(c ledger.Command) bool {
		earlier, ok := c.(ledger.ReportOrder)
		return ok && earlier.Report.Order == id
	})
}

// report records what became of an order, and says whether that ends it.
func (m *Machine) report(s *ledger.State, vm *ledger.VM, r haven.OrderReport) bool {
	o := vm.Order
	mayFree := r.State == o.TargetState || (r.Status != haven.OrderRefused && r.Status != haven.OrderFailed)
	if r.Order != o.ID || r.Boot != o.TargetBoot || !mayFree || r.Status == haven.OrderNone || (r.Status == o.Status && r.Detail == o.Detail) {
		return false
	}
	if m.reported(o.ID) {
		return true
	}
	h := s.Hosts[o.Target]
	m.propose(ledger.ReportOrder{Report: r, Host: h.ID, At: m.now})
	if r.Status.Final() {
		m.notice(Notice{Kind: "vm-" + string(r.Status), Alarm: r.Status != haven.OrderStarted, Host: h.ID, VM: vm.ID, Incident: vm.Incident, About: fmt.Sprint(r.Epoch), Text: vm.Name + " on " + string(h.ID) + ": " + string(r.Status) + " " + r.Detail})
		m.wake(time.Millisecond)
	}
	return r.Status.Final()
}

package recovery

import (
	"fmt"
	"slices"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/ledger"
)

// protect fetches the definitions of VMs that are to be protected, or that
// changed. What reports say is a hint; the fetch brings the truth.
func (m *Machine) protect(s *ledger.State) {
	for _, host := range s.HostIDs() {
		view := m.in.Hosts[host]
		if !view.Connected {
			continue
		}
		for _, info := range view.Inventory.VMs {
			if m.wantsFetch(s, host, info) {
				m.fetch(host, info)
			}
		}
	}
}

func (m *Machine) wantsFetch(s *ledger.State, host haven.HostID, info haven.VMInfo) bool {
	if !info.Persistent || info.DefinitionSHA == "" {
		return false
	}
	vm := s.VMs[info.ID]
	if vm == nil {
		return m.cfg.ProtectAll && info.State == haven.VMRunning
	}
	return vm.Phase == ledger.PhaseOwned && vm.Owner == host && vm.Definition.SHA != info.DefinitionSHA
}

// fetchesPerHost bounds the definitions asked of one host at once.
const fetchesPerHost = 4

func (m *Machine) fetch(host haven.HostID, info haven.VMInfo) {
	act := Fetch{Host: host, VM: info.ID}
	tried := act.Key() + info.DefinitionSHA
	if at, ok := m.fetched[tried]; ok && m.now.Sub(at) < 5*time.Second {
		return
	}
	flying := 0
	for key := range m.flying {
		if len(key) > len("fetch/") && key[:len("fetch/")] == "fetch/" && hasHost(key, host) {
			flying++
		}
	}
	if flying < fetchesPerHost && m.begin(act) {
		m.fetched[tried] = m.now
	}
}

func hasHost(key string, host haven.HostID) bool {
	prefix := "fetch/" + string(host) + "/"
	return len(key) > len(prefix) && key[:len(prefix)] == prefix
}

// protected takes in a definition. A VM is protected only from the moment the
// ledger has it.
func (m *Machine) protected(s *ledger.State, act Fetch, d Done) {
	if d.Err != nil || d.Definition.SHA == "" {
		return
	}
	if vm := s.VMs[act.VM]; vm == nil && d.Info.State != haven.VMRunning {
		return
	}
	m.propose(ledger.ProtectVM{
		VM: act.VM, Name: d.Info.Name, Host: act.Host, Boot: d.Boot,
		MemoryMiB: d.Info.MemoryMiB, VCPUs: d.Info.VCPUs, Definition: d.Definition,
	})
}

// vm takes one VM a step further.
func (m *Machine) vm(s *ledger.State, vm *ledger.VM) {
	if m.runsTwice(s, vm) {
		return
	}
	switch vm.Phase {
	case ledger.PhaseOwned:
		m.owned(s, vm)
	case ledger.PhaseOrdered:
		m.ordered(s, vm)
	case ledger.PhaseFreed: // place looks at all of them at once
	}
}

// runsTwice looks for a VM that runs on two hosts. That is an alarm and a hold,
// never a kill: nobody can know which copy is the right one.
func (m *Machine) runsTwice(s *ledger.State, vm *ledger.VM) bool {
	var at []haven.HostID
	for _, host := range s.HostIDs() {
		view := m.in.Hosts[host]
		info, ok := view.Inventory.Find(vm.ID)
		if view.Connected && ok && (info.State == haven.VMRunning || info.State == haven.VMPaused && !migration(info)) {
			at = append(at, host)
		}
	}
	held := vm.Hold.Reason == haven.HoldRunsTwice
	if len(at) > 1 && !held {
		hold := haven.Hold{Reason: haven.HoldRunsTwice, Since: m.now, Detail: fmt.Sprintf("seen running on %v; stop the wrong one by hand", at)}
		m.propose(ledger.HoldVM{VM: vm.ID, Epoch: vm.Epoch, Hold: hold})
		m.notice(Notice{Kind: "runs-twice", Alarm: true, VM: vm.ID, Host: at[0], Text: hold.Detail})
	}
	// A host that does not answer now may still have one of the two.
	m.twice[vm.ID] = len(at) > 1 || held && !m.allConnected(s)
	if held && !m.twice[vm.ID] {
		m.holdVM(vm, haven.Hold{})
	}
	return m.twice[vm.ID]
}

// allConnected says whether every host that may have VMs reports.
func (m *Machine) allConnected(s *ledger.State) bool {
	return !slices.ContainsFunc(s.MayHave(), func(id haven.HostID) bool { return !m.in.Hosts[id].Connected })
}

// migration says whether a paused VM is one that is on its way.
func migration(info haven.VMInfo) bool { return info.Reason == "migration" }

// owned compares what the owner says with what the ledger says.
func (m *Machine) owned(s *ledger.State, vm *ledger.VM) {
	h := s.Hosts[vm.Owner]
	if h == nil || h.Boot != vm.OwnerBoot || h.ProvedDead() {
		return
	}
	view := m.in.Hosts[vm.Owner]
	if !view.Connected {
		return
	}
	info, listed := view.Inventory.Find(vm.ID)
	present := view.Inventory.Has(vm.ID)
	if present == haven.Yes {
		m.there[vm.ID] = m.now
	}
	switch {
	case present == haven.Yes && listed:
		// After the switch-over the source still has it for a moment, paused.
		migrating := info.State == haven.VMMigrating || info.State == haven.VMIncoming || info.State == haven.VMPaused && migration(info)
		if vm.Desired != ledger.DesiredRunning || vm.Migrating != migrating {
			m.propose(ledger.ObserveVM{VM: vm.ID, Epoch: vm.Epoch, Host: vm.Owner, Boot: vm.OwnerBoot, Desired: ledger.DesiredRunning, Migrating: migrating})
		} else if vm.Hold.Reason != haven.HoldRunsTwice && !m.stopping(s, vm) {
			m.holdVM(vm, haven.Hold{}) // what held it is over
		}
	case present == haven.No && (vm.Desired == ledger.DesiredRunning || m.elsewhere(s, vm) != ""):
		m.vanished(s, vm, view)
	}
}

// vanished deals with a VM that its owner may not have any more. The hint is
// old; only what the owner says after it was asked counts.
func (m *Machine) vanished(s *ledger.State, vm *ledger.VM, view HostView) {
	since := m.seen[vm.ID].at
	inv, ok := m.ask(vm.Owner, since)
	if !ok || inv.Boot != vm.OwnerBoot || inv.Has(vm.ID) != haven.No {
		return
	}
	info, listed := inv.Find(vm.ID)
	if vm.Migrating || info.Reason == "migrated" || m.elsewhere(s, vm) != "" {
		m.moved(s, vm)
		return
	}
	switch {
	case view.Leave == haven.LeaveShutdown:
		// The host takes its VMs down with it. Their users did not stop them.
	case !listed && !m.nowhere(s, vm):
	case !listed:
		m.propose(ledger.ForgetVM{VM: vm.ID, Epoch: vm.Epoch})
		m.notice(Notice{Kind: "vm-undefined", Host: vm.Owner, VM: vm.ID, About: fmt.Sprint(vm.Epoch), Text: vm.Name + " was undefined by its user and is not protected any more"})
	case stoppedByUser(info) && !m.wasReleased(s, vm, view):
		m.propose(ledger.ObserveVM{VM: vm.ID, Epoch: vm.Epoch, Host: vm.Owner, Boot: vm.OwnerBoot, Desired: ledger.DesiredStopped})
		m.notice(Notice{Kind: "vm-stopped", Host: vm.Owner, VM: vm.ID, About: fmt.Sprint(vm.Epoch), Text: vm.Name + " was stopped by its user (" + info.Reason + ")"})
	case view.Hung != "":
		// That its process is gone proves nothing on storage that hangs, whatever
		// the verdict is at this moment (P1).
		m.holdVM(vm, mayWrite(view.Hung))
	case stoppedByUser(info):
		// The process is gone by its host's own word; while the storage is lost the
		// answer to a stop is waited for.
		if view.Verdict == haven.VerdictStorageLost {
			m.holdVM(vm, unproved("its host's storage is lost"))
			return
		}
		m.propose(ledger.FreeVM{VM: vm.ID, Epoch: vm.Epoch, Host: vm.Owner, Boot: vm.OwnerBoot, By: ledger.FreedByStop, At: m.now, Detail: "it was stopped by a response on its host"})
		m.notice(Notice{Kind: "vm-released", Host: vm.Owner, VM: vm.ID, About: fmt.Sprint(vm.Epoch), Text: vm.Name + " was stopped by a response on its host, as configured"})
		m.wake(time.Millisecond)
	default:
		m.propose(ledger.FreeVM{VM: vm.ID, Epoch: vm.Epoch, Host: vm.Owner, Boot: vm.OwnerBoot, At: m.now, Detail: info.Reason})
		m.notice(Notice{Kind: "vm-ended", Alarm: true, Host: vm.Owner, VM: vm.ID, About: fmt.Sprint(vm.Epoch), Text: vm.Name + " ended by itself (" + info.Reason + ")"})
		m.wake(time.Millisecond)
	}
}

// mayWrite is the hold of a VM that ended on a host with a store that hangs.
func mayWrite(store string) haven.Hold {
	return haven.Hold{Reason: haven.HoldStoppedRunning, Detail: fmt.Sprintf(
		"its process is gone from its host, but store %s hangs there: a write of it may still be under way; it goes on when the store answers again; when the host is off, say so: haven fence confirm", store)}
}

// nowhere says whether every host says that it does not have a VM which its owner
// does not even list. A migration may have taken the definition along.
func (m *Machine) nowhere(s *ledger.State, vm *ledger.VM) bool {
	said := m.words(s, vm)
	if len(said.present) > 0 {
		m.moved(s, vm)
	}
	return said.all() && len(said.present) == 0
}

// stoppedByUser says whether a VM that is shut off is so because somebody
// wanted it: a shutdown from inside or outside, a destroy, a save.
func stoppedByUser(info haven.VMInfo) bool {
	switch info.Reason {
	case "shutdown", "destroyed", "saved", "snapshot":
		return info.State == haven.VMShutOff
	}
	return false
}

// elsewhere returns another host whose report shows the VM.
func (m *Machine) elsewhere(s *ledger.State, vm *ledger.VM) haven.HostID {
	for _, host := range s.HostIDs() {
		view := m.in.Hosts[host]
		if host == vm.Owner && vm.Phase != ledger.PhaseFreed {
			continue
		}
		if info, ok := view.Inventory.Find(vm.ID); ok && view.Connected && info.State == haven.VMRunning {
			return host
		}
	}
	return ""
}

// moved follows a VM to the host on which it runs now, once every other host
// says that it does not have it. A VM that nobody has is free.
func (m *Machine) moved(s *ledger.State, vm *ledger.VM) {
	said := m.words(s, vm)
	if !said.all() {
		if len(said.silent) > 0 {
			m.holdVM(vm, haven.Hold{Reason: haven.HoldMigrating, Detail: fmt.Sprintf("it was on the move; no word from %v", said.silent)})
		}
		return
	}
	switch len(said.present) {
	case 0:
		if vm.Desired != ledger.DesiredRunning {
			return
		}
		if m.holdHidden(s, vm) {
			return
		}
		if hung := m.in.Hosts[vm.Owner].Hung; hung != "" {
			m.holdVM(vm, mayWrite(hung))
			return
		}
		m.propose(ledger.FreeVM{VM: vm.ID, Epoch: vm.Epoch, Host: vm.Owner, Boot: vm.OwnerBoot, At: m.now, Detail: "lost in migration: no host has it"})
		m.wake(time.Millisecond)
	case 1:
		to := said.present[0]
		m.propose(ledger.MoveVM{VM: vm.ID, Epoch: vm.Epoch, Host: to, Boot: s.Hosts[to].Boot, Absent: said.absent})
		m.notice(Notice{Kind: "vm-moved", Host: to, VM: vm.ID, Text: fmt.Sprintf("%s runs on %s now", vm.Name, to)})
	}
}

// holdHidden holds a VM that was on the move while it may be on a host that
// cannot be asked: one that was proved dead before the VM left its owner may have
// booted since, and takes a migration before its agent has registered.
func (m *Machine) holdHidden(s *ledger.State, vm *ledger.VM) bool {
	last, seen := m.there[vm.ID]
	var hidden []haven.HostID
	for _, id := range s.HostIDs() {
		h := s.Hosts[id]
		if id == vm.Owner || h.Role == haven.RoleWitness || !h.ProvedDead() {
			continue
		}
		if !seen || !m.dead[id].After(last) {
			hidden = append(hidden, id)
		}
	}
	if len(hidden) == 0 {
		return false
	}
	m.holdVM(vm, haven.Hold{Reason: haven.HoldMigrating, Detail: fmt.Sprintf("it was on the move, no host has it, and %v may have booted without a word so far; it goes on when they report, or start it by hand", hidden)})
	return true
}

// words is what the hosts that may have a VM say about it.
type words struct {
	absent  []ledger.Absence
	present []haven.HostID
	// asked may answer yet; silent do not answer, or cannot tell.
	asked, silent []haven.HostID
}

// all says whether every host has given its word.
func (w words) all() bool { return len(w.asked)+len(w.silent) == 0 }

// words gathers what every host that may have a VM says about it, asked after
// the VM came into its present phase. A host that does not answer counts as
// absent only through a complete beat that is newer than that (P1).
func (m *Machine) words(s *ledger.State, vm *ledger.VM) words {
	var said words
	since := m.seen[vm.ID].at
	for _, host := range s.MayHave() {
		boot, view := s.Hosts[host].Boot, m.in.Hosts[host]
		via, has, answered := "inventory", haven.Unknown, false
		if view.Connected {
			var inv haven.Inventory
			if inv, answered = m.ask(host, since); answered && inv.Boot == boot {
				has = inv.Has(vm.ID)
			}
		} else if beatSaysAbsent(view.Beat, vm.ID, boot, since) && !vm.Migrating {
			via, has = "beat", haven.No
		}
		// A host that answered a moment ago may answer again in a moment.
		patience := m.now.Add(-2 * m.cfg.AbsenceAge)
		waiting := !answered && (since.After(patience) || m.answers[host].asked.After(patience) || m.healthy[host].After(patience))
		switch {
		case has == haven.No:
			said.absent = append(said.absent, ledger.Absence{Host: host, Boot: boot, Via: via})
		case has == haven.Yes:
			said.present = append(said.present, host)
		case waiting:
			said.asked = append(said.asked, host)
		default:
			said.silent = append(said.silent, host)
		}
	}
	return said
}

func beatSaysAbsent(b BeatList, id haven.VMID, boot haven.BootID, since time.Time) bool {
	if !b.Complete || b.Boot != boot || b.Since.IsZero() || !b.Since.After(since) {
		return false
	}
	return !slices.Contains(b.VMs, id)
}

// holdVM records why a VM waits, once for each reason.
func (m *Machine) holdVM(vm *ledger.VM, hold haven.Hold) {
	if vm.Hold.Reason == hold.Reason {
		return
	}
	if hold.Reason != "" {
		hold.Since = m.now
		m.notice(Notice{Kind: "vm-held", Alarm: true, VM: vm.ID, Host: vm.Owner, About: hold.Reason, Text: vm.Name + ": " + hold.Reason + ": " + hold.Detail})
	}
	m.propose(ledger.HoldVM{VM: vm.ID, Epoch: vm.Epoch, Hold: hold})
}

// Instruction is what a host is told about the VMs that it has defined.
type Instruction struct {
	// Protected are its own protected VMs: the host's VM manager must not start
	// them by itself.
	Protected []haven.VMID `json:"protected,omitempty"`
	// SetAside are definitions of VMs that run elsewhere now.
	SetAside []haven.VMID `json:"set_aside,omitempty"`
}

// Instruct tells a registered host what to do with the VMs in its inventory.
func Instruct(s *ledger.State, host haven.HostID, inv haven.Inventory) Instruction {
	var to Instruction
	for _, info := range inv.VMs {
		vm := s.VMs[info.ID]
		if vm == nil {
			continue
		}
		to.Protected = append(to.Protected, vm.ID)
		moved := vm.Phase == ledger.PhaseOwned && vm.Owner != host
		if moved && inv.Has(vm.ID) == haven.No {
			to.SetAside = append(to.SetAside, vm.ID)
		}
	}
	return to
}

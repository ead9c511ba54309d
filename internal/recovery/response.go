package recovery

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/ledger"
)

// The responses that an incident may carry. Each is off unless it is configured.
const (
	ResponseIsolation   = "isolation"    // the host stops its own VMs, and says so on a store
	ResponseStorageLost = "storage-lost" // the master asks the host to stop them
)

// Stop asks a host's agent to end a VM and to prove that it is gone.
type Stop struct {
	Host  haven.HostID
	Boot  haven.BootID
	VM    haven.VMID
	Epoch haven.Epoch
}

// Key of a stop: one VM is stopped once at a time.
func (a Stop) Key() string { return "stop/" + string(a.Host) + "/" + string(a.VM) }

// Bounds of stopping VMs on one host.
const (
	stopsPerHost = 4
	stopEvery    = 5 * time.Second
)

// respond carries out what the operator configured for a host that is alive and
// in trouble. Without that nothing is ever stopped (P4).
func (m *Machine) respond(s *ledger.State, h *ledger.Host, in *ledger.Incident, view HostView) {
	switch {
	case view.Verdict == haven.VerdictIsolated && m.cfg.StopsIsolated[h.ID]:
		m.takeReleased(s, h, in, view)
	case view.Verdict == haven.VerdictStorageLost && m.cfg.StopsStorageLost[h.ID]:
		m.stopAll(s, h, in, view)
	}
}

// responds says whether a response decides what is written of a host's hold.
func (m *Machine) responds(h *ledger.Host, view HostView) bool {
	return view.Verdict == haven.VerdictStorageLost && m.cfg.StopsStorageLost[h.ID] && m.now.Sub(m.lost[h.ID]) >= m.cfg.StorageLostDelay
}

// takeReleased frees the VMs that an isolated host stopped, by the word of its
// own beat: a complete list, newer than anything that this master knows of the
// VM, in which it is not. The host leaves a VM out only when it is gone (P1).
func (m *Machine) takeReleased(s *ledger.State, h *ledger.Host, in *ledger.Incident, view HostView) {
	if !view.Beat.Releasing || view.Beat.Boot != h.Boot {
		return
	}
	if in.Response != ResponseIsolation {
		m.beginResponse(h, in, ResponseIsolation, "response to isolation: its beat says that it stops its VMs, so that they may be started elsewhere")
		return
	}
	for _, vm := range runsAt(s, h) {
		if vm.Migrating || !beatSaysAbsent(view.Beat, vm.ID, h.Boot, m.seen[vm.ID].at) {
			continue
		}
		m.propose(ledger.FreeVM{VM: vm.ID, Epoch: vm.Epoch, Host: h.ID, Boot: h.Boot, By: ledger.FreedByBeat, At: m.now, Detail: "the isolated host's beat says that it stopped it"})
		m.notice(Notice{Kind: "vm-released", Host: h.ID, VM: vm.ID, Incident: in.ID, Text: vm.Name + " was stopped by its isolated host, as configured"})
		m.wake(time.Millisecond)
	}
}

// runsAt lists the VMs that a host owns in its present boot and that are to run.
func runsAt(s *ledger.State, h *ledger.Host) []*ledger.VM {
	var all []*ledger.VM
	for _, id := range s.VMIDs() {
		vm := s.VMs[id]
		if vm.Phase == ledger.PhaseOwned && vm.Owner == h.ID && vm.OwnerBoot == h.Boot && vm.Desired == ledger.DesiredRunning {
			all = append(all, vm)
		}
	}
	return all
}

// beginResponse writes a response down before anything is done (P7). Which VMs end
// on the host from here on were not stopped by their users.
func (m *Machine) beginResponse(h *ledger.Host, in *ledger.Incident, response, what string) {
	m.propose(ledger.NoteIncident{ID: in.ID, Response: response, Entry: m.entry(nil, "%s", what)})
	m.notice(Notice{Kind: "response", Alarm: true, Host: h.ID, Incident: in.ID, Text: what})
	m.wake(time.Millisecond)
}

// stopAll stops the VMs of a host that lost its storage, one by one, when there is
// a host for each.
func (m *Machine) stopAll(s *ledger.State, h *ledger.Host, in *ledger.Incident, view HostView) {
	if left := m.cfg.StorageLostDelay - m.now.Sub(m.lost[h.ID]); left > 0 {
		m.wake(left)
		return
	}
	if hold := m.noResponse(s, h, view); hold.Reason != "" {
		m.hold(in, hold)
		return
	}
	m.hold(in, haven.Hold{})
	vms := runsAt(s, h)
	if in.Response != ResponseStorageLost {
		if len(vms) > 0 {
			m.beginResponse(h, in, ResponseStorageLost, fmt.Sprintf("response to lost storage after %s: its %d VMs are stopped there, to be started elsewhere", m.cfg.StorageLostDelay, len(vms)))
		}
		return
	}
	// Those that were asked to stop keep the room that was found for them.
	slices.SortStableFunc(vms, func(x, y *ledger.VM) int { return cmp.Compare(m.asks(y), m.asks(x)) })
	left := m.room(s, h)
	for _, vm := range vms {
		switch {
		case vm.Migrating:
		case left.take(vm.MemoryMiB):
			m.stop(h, vm)
		default:
			m.holdVM(vm, haven.Hold{Reason: haven.HoldCapacity, Detail: "its host lost its storage, and no other host has room for it; it is left where it is"})
		}
	}
}

// noResponse says what forbids a response now.
func (m *Machine) noResponse(s *ledger.State, h *ledger.Host, view HostView) haven.Hold {
	switch {
	case s.Disarm != nil:
		return disarmed(s)
	case h.Maintenance != nil:
		return maintenance(h)
	case len(m.in.Brakes) > 0:
		return m.in.Brakes[0]
	case view.Hold.Reason != "":
		return view.Hold
	case !view.Connected:
		return haven.Hold{Reason: haven.HoldStoppedRunning, Detail: "its agent does not report: nobody can stop its VMs and prove them gone"}
	}
	return haven.Hold{}
}

// room is the memory that is left on each host that takes VMs.
type room map[haven.HostID]uint64

// take takes room for one VM where most is left, if there is enough.
func (r room) take(mib uint64) bool {
	best := haven.HostID("")
	for id, free := range r {
		if free >= mib && (best == "" || cmp.Or(cmp.Compare(free, r[best]), cmp.Compare(best, id)) > 0) {
			best = id
		}
	}
	if best == "" {
		return false
	}
	r[best] -= mib
	return true
}

// room is what is left for the VMs of a host: a VM that is stopped for nothing is
// worse off than before. VMs that wait for a host, and those that are being
// stopped on others, come first.
func (m *Machine) room(s *ledger.State, h *ledger.Host) room {
	left := room{}
	for _, c := range m.candidates(s) {
		if c.ID != h.ID && c.Refuses == "" {
			left[c.ID] = c.FreeMiB
		}
	}
	for _, id := range s.VMIDs() {
		vm := s.VMs[id]
		waits := vm.Phase == ledger.PhaseFreed && vm.Desired == ledger.DesiredRunning
		if waits || vm.Phase == ledger.PhaseOwned && vm.Owner != h.ID && m.asks(vm) > 0 {
			left.take(vm.MemoryMiB)
		}
	}
	return left
}

// asks is 1 for a VM that is being stopped, else 0.
func (m *Machine) asks(vm *ledger.VM) int {
	if _, asked := m.stops[stopOf(vm).Key()]; asked {
		return 1
	}
	return 0
}

func stopOf(vm *ledger.VM) Stop {
	return Stop{Host: vm.Owner, Boot: vm.OwnerBoot, VM: vm.ID, Epoch: vm.Epoch}
}

func (m *Machine) stop(h *ledger.Host, vm *ledger.VM) {
	act := stopOf(vm)
	if last, ok := m.stops[act.Key()]; ok && m.now.Sub(last) < stopEvery {
		m.wake(stopEvery - m.now.Sub(last))
		return
	}
	flying := 0
	for key := range m.flying {
		if prefix := "stop/" + string(h.ID) + "/"; len(key) > len(prefix) && key[:len(prefix)] == prefix {
			flying++
		}
	}
	if flying < stopsPerHost && m.begin(act) {
		m.stops[act.Key()] = m.now
	}
}

// stopped takes in what became of a stop. Only the proof that the VM is gone frees
// it; on storage that hangs that is not to be had (P1).
func (m *Machine) stopped(s *ledger.State, act Stop, d Done) {
	vm, h := s.VMs[act.VM], s.Hosts[act.Host]
	if vm == nil || h == nil || vm.Phase != ledger.PhaseOwned || vm.Epoch != act.Epoch || vm.Owner != act.Host || h.Boot != act.Boot {
		return
	}
	if d.Err == nil && d.Gone == haven.Yes {
		m.propose(ledger.FreeVM{VM: vm.ID, Epoch: vm.Epoch, Host: h.ID, Boot: h.Boot, By: ledger.FreedByStop, At: m.now, Detail: d.Detail})
		m.notice(Notice{Kind: "vm-released", Host: h.ID, VM: vm.ID, Incident: h.Incident, Text: vm.Name + " was stopped on its host, as configured: " + d.Detail})
		m.wake(time.Millisecond)
		return
	}
	why := d.Detail
	if d.Err != nil {
		why = d.Err.Error()
	}
	m.holdVM(vm, unproved(why))
}

func unproved(why string) haven.Hold {
	return haven.Hold{Reason: haven.HoldStoppedRunning, Detail: fmt.Sprintf("it was to be stopped on its host, and is not proved gone: %s; it is asked again; when the host is off, say so: haven fence confirm", why)}
}

// stopping says whether a VM's owner is being asked to stop it.
func (m *Machine) stopping(s *ledger.State, vm *ledger.VM) bool {
	h := s.Hosts[vm.Owner]
	in := s.Incidents[h.Incident]
	return in != nil && in.Response == ResponseStorageLost && m.in.Hosts[h.ID].Verdict == haven.VerdictStorageLost && m.cfg.StopsStorageLost[h.ID]
}

// wasReleased says whether a VM that is shut off on its owner was stopped by a
// response there, and not by its user: the agent remembers it, and so does the
// incident.
func (m *Machine) wasReleased(s *ledger.State, vm *ledger.VM, view HostView) bool {
	if slices.Contains(view.Released, vm.ID) {
		return true
	}
	in := s.Incidents[s.Hosts[vm.Owner].Incident]
	return in != nil && in.Response != ""
}

// maintenance is the hold of a host that an operator has in maintenance.
func maintenance(h *ledger.Host) haven.Hold {
	detail := "host is in maintenance by " + h.Maintenance.By
	if h.Maintenance.Reason != "" {
		detail += " (" + h.Maintenance.Reason + ")"
	}
	return haven.Hold{Reason: haven.HoldMaintenance, Detail: fmt.Sprintf("%s; 'haven maintenance off %s' or 'haven fence confirm %s' releases its VMs", detail, h.ID, h.ID)}
}

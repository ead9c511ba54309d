// Package ledger is the replicated state of a cluster: hosts, VMs with owner
// and epoch, incidents, orders and the history of fences. Its transition is a
// pure function; whoever replicates commands in the same order gets the same
// state. The guards of the transition are the last line of promise P1: a start
// that the rules do not allow cannot be committed, whoever proposes it.
package ledger

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/haven-ha/haven"
)

// Apply changes the state by one command. It returns an error that wraps
// ErrRejected when the command does not fit; then the state is as before.
// Applying a command again changes nothing and is no error.
func (s *State) Apply(c Command, at Position) error {
	if err := c.apply(s, at); err != nil {
		return fmt.Errorf("%s: %w", c.kind(), err)
	}
	return nil
}

func (c Found) apply(s *State, _ Position) error {
	if s.Generation == c.Generation && s.Cluster == c.Cluster {
		return nil
	}
	if c.Generation <= s.Generation {
		return reject("generation %d is not newer than %d", c.Generation, s.Generation)
	}
	if s.Cluster != "" && s.Cluster != c.Cluster {
		return reject("this is the ledger of cluster %q, not of %q", s.Cluster, c.Cluster)
	}
	s.Cluster, s.Generation = c.Cluster, c.Generation
	for _, h := range s.Hosts {
		h.Released = ""
		// A restored copy may be older than a disarm.
		h.Watchdog, h.WatchdogAsked = haven.Watchdog{}, 0
		s.doubt(h)
	}
	return nil
}

// doubt drops a proof of an earlier generation. A ledger that was restored from
// an old copy does not know of the boots that came after it: such a host must
// report, or be proved dead again (P1).
func (s *State) doubt(h *Host) {
	if h.Proof == nil {
		return
	}
	h.Proof = nil
	if in := s.Incidents[h.Incident]; in != nil && in.Proof != nil {
		h.Incident = "" // it goes on for its VMs; another one may be opened
	}
}

func (c RegisterHost) apply(s *State, _ Position) error {
	h := s.Hosts[c.Host]
	if h == nil {
		h = &Host{ID: c.Host}
	}
	switch {
	case c.Boot == "" || c.State == "":
		return reject("host %s gives no boot id or no agent-state id", c.Host)
	case s.Hosts[c.Host] == nil && len(s.Hosts) >= MaxHosts:
		return reject("%d hosts are registered, the limit", MaxHosts)
	case slices.Contains(h.PastBoots, c.Boot):
		return reject("boot %s of host %s is over", c.Boot, c.Host)
	case h.Boot == c.Boot && h.ProvedDead():
		return reject("boot %s of host %s is proved dead (%s)", c.Boot, c.Host, h.Proof.Kind)
	case h.State == c.State && c.Incarnation < h.Incarnation:
		return reject("host %s registered as incarnation %d already, not %d", c.Host, h.Incarnation, c.Incarnation)
	case h.State == c.State && c.Incarnation == h.Incarnation && c.Boot != h.Boot:
		return reject("host %s registered incarnation %d in boot %s already: is its data directory a copy?", c.Host, c.Incarnation, h.Boot)
	case h.Boot == c.Boot && slices.Contains(h.PastStates, c.State):
		return reject("agent state %s of host %s was given up in this boot", c.State, c.Host)
	case h.Boot == c.Boot && h.Role != haven.RoleWitness && c.Role == haven.RoleWitness:
		return reject("host %s may have VMs until it boots anew: it cannot be a witness now", c.Host)
	}
	s.Hosts[c.Host] = h
	switch {
	case h.Boot == "":
	case h.Boot != c.Boot:
		s.endBoot(h, c)
		h.letGo()
		h.PastStates = nil
	case h.State != c.State:
		h.PastStates = keepLast(append(h.PastStates, h.State), MaxPastBoots)
	}
	h.unwatch(c)
	h.Role, h.Address, h.Boot, h.State, h.Incarnation = c.Role, c.Address, c.Boot, c.State, c.Incarnation
	h.Generation, h.RegisteredAt, h.Released = s.Generation, c.At, ""
	if c.UUID != "" {
		h.UUID = c.UUID
	}
	s.giveSlot(h)
	for _, vm := range s.VMs {
		if vm.Owner == c.Host && vm.Phase == PhaseOwned && vm.Desired == DesiredStopped {
			vm.OwnerBoot = c.Boot
		}
	}
	return nil
}

// endBoot does what follows from a newer boot of a host: the old one is over,
// and with it every VM that ran in it.
func (s *State) endBoot(h *Host, c RegisterHost) {
	h.PastBoots = keepLast(append(h.PastBoots, h.Boot), MaxPastBoots)
	proved := h.ProvedDead()
	proof := haven.Proof{
		Kind: haven.ProofReboot, Host: h.ID, Boot: h.Boot, By: string(h.ID), At: c.At,
		Detail: fmt.Sprintf("boot %s registered", c.Boot),
	}
	freed := s.freeOwned(h.ID, h.Boot, Freed{By: FreedByReboot, Host: h.ID, Boot: h.Boot, At: c.At, Detail: proof.Detail}, h.Incident)
	in := s.Incidents[h.Incident]
	h.Incident = "" // it is about the old boot; the new one may get into trouble too
	if in == nil || proved {
		return
	}
	in.Proof = &proof
	if len(in.Attempts) > 0 {
		h.fenced(in, proof) // that it was not read off makes it no better
	}
	in.VMs = freed
	s.setHold(in, haven.Hold{}, Entry{At: c.At, By: h.ID})
	in.Step = haven.StepProved
	s.note(in, Entry{At: c.At, By: h.ID, What: "host came back with a new boot: the old one is over"})
}

// freeOwned frees the VMs that a host ran, or was told to run, in one boot.
func (s *State) freeOwned(host haven.HostID, boot haven.BootID, why Freed, incident haven.IncidentID) []haven.VMID {
	var ids []haven.VMID
	for _, id := range s.VMIDs() {
		vm := s.VMs[id]
		if vm.Owner != host || vm.OwnerBoot != boot || vm.Phase == PhaseFreed {
			continue
		}
		if vm.Desired != DesiredRunning {
			continue
		}
		vm.free(why)
		if incident != "" {
			vm.Incident = incident
		}
		ids = append(ids, id)
	}
	return ids
}

func (vm *VM) free(why Freed) {
	vm.Phase = PhaseFreed
	vm.Freed = &why
	vm.Hold = haven.Hold{}
}

func (c ReleaseHost) apply(s *State, _ Position) error {
	h := s.Hosts[c.Host]
	if h == nil {
		return reject("host %s is not registered", c.Host)
	}
	if c.By == "" {
		return reject("no operator is named")
	}
	h.Released = c.By
	return nil
}

func (c LearnPower) apply(s *State, _ Position) error {
	h := s.Hosts[c.Host]
	if h == nil {
		return reject("host %s is not registered", c.Host)
	}
	if h.Power.Distrust != "" && c.Distrust == "" && c.By == "" {
		return reject("the BMC of %s is distrusted and no operator is named", c.Host)
	}
	if c.By != "" {
		switch c.Clears {
		case h.Power.Cleared:
			return nil
		case h.Power.Cleared + 1:
			// The board may have been replaced: what it is gets learnt anew.
			h.Power = h.Power.accept(c.GUID)
			if !c.At.IsZero() {
				s.act(Act{Action: ActTrust, Host: c.Host, By: c.By, Reason: c.Reason, At: c.At})
			}
			return nil
		}
		return reject("the BMC of %s was cleared %d times, this would be the %dth", c.Host, h.Power.Cleared, c.Clears)
	}
	if c.GUID != "" {
		h.Power.GUID = c.GUID
	}
	h.Power.Distrust = c.Distrust
	return nil
}

// present checks that a host speaks in the boot that the ledger knows, and that
// this boot is not proved dead.
func (s *State) present(host haven.HostID, boot haven.BootID) error {
	h := s.Hosts[host]
	switch {
	case h == nil:
		return reject("host %s is not registered", host)
	case h.Boot != boot:
		return reject("host %s is registered with boot %s, not %s", host, h.Boot, boot)
	case h.ProvedDead():
		return reject("boot %s of host %s is proved dead", boot, host)
	}
	return nil
}

// covered checks that every host that may have a VM said that it does not,
// in its present boot; except is a host whose word is not needed.
func (s *State) covered(absent []Absence, except haven.HostID) error {
	for _, id := range s.MayHave() {
		if id == except {
			continue
		}
		said := slices.ContainsFunc(absent, func(a Absence) bool {
			return a.Host == id && a.Boot == s.Hosts[id].Boot
		})
		if !said {
			return reject("host %s has not said that it does not have the VM", id)
		}
	}
	return nil
}

func (c ProtectVM) apply(s *State, _ Position) error {
	if err := s.present(c.Host, c.Boot); err != nil {
		return err
	}
	if c.Definition.SHA == "" || len(c.Definition.GZ) == 0 || len(c.Definition.GZ) > MaxDefinitionBytes {
		return reject("definition of VM %s has %d bytes and digest %q", c.VM, len(c.Definition.GZ), c.Definition.SHA)
	}
	vm := s.VMs[c.VM]
	if vm == nil {
		if len(s.VMs) >= MaxVMs {
			return reject("%d VMs are protected, the limit", MaxVMs)
		}
		epoch := s.Forgotten + 1
		s.VMs[c.VM] = &VM{
			ID: c.VM, Name: c.Name, MemoryMiB: c.MemoryMiB, VCPUs: c.VCPUs, Definition: c.Definition,
			Desired: DesiredRunning, Phase: PhaseOwned, Owner: c.Host, OwnerBoot: c.Boot, Epoch: epoch,
		}
		return nil
	}
	if vm.Phase != PhaseOwned || vm.Owner != c.Host || vm.OwnerBoot != c.Boot {
		return reject("VM %s is not owned by host %s in boot %s", c.VM, c.Host, c.Boot)
	}
	vm.Name, vm.MemoryMiB, vm.VCPUs, vm.Definition = c.Name, c.MemoryMiB, c.VCPUs, c.Definition
	return nil
}

func (c ForgetVM) apply(s *State, _ Position) error {
	vm := s.VMs[c.VM]
	if vm == nil {
		return nil
	}
	if vm.Epoch != c.Epoch || vm.Phase != PhaseOwned {
		return reject("VM %s is at epoch %d and %s", c.VM, vm.Epoch, vm.Phase)
	}
	s.Forgotten = max(s.Forgotten, vm.Epoch)
	delete(s.VMs, c.VM)
	return nil
}

func (c ObserveVM) apply(s *State, _ Position) error {
	if c.Desired != DesiredRunning && c.Desired != DesiredStopped {
		return reject("VM %s: %q is no desired state", c.VM, c.Desired)
	}
	vm, err := s.ownedBy(c.VM, c.Epoch, c.Host, c.Boot)
	if err != nil {
		if vm, err := s.ownedBy(c.VM, c.Epoch+1, c.Host, c.Boot); err == nil && vm.Desired == c.Desired && vm.Migrating == c.Migrating {
			return nil // applied before: a start made the epoch the next
		}
		return err
	}
	if vm.Desired == DesiredStopped && c.Desired == DesiredRunning {
		vm.Epoch++ // its user started it: a start has a new epoch
	}
	vm.Desired, vm.Migrating = c.Desired, c.Migrating
	return nil
}

// ownedBy finds a VM that a host owns in its present boot and at an epoch.
func (s *State) ownedBy(id haven.VMID, epoch haven.Epoch, host haven.HostID, boot haven.BootID) (*VM, error) {
	if err := s.present(host, boot); err != nil {
		return nil, err
	}
	vm := s.VMs[id]
	switch {
	case vm == nil:
		return nil, reject("VM %s is not protected", id)
	case vm.Phase != PhaseOwned || vm.Owner != host || vm.OwnerBoot != boot || vm.Epoch != epoch:
		return nil, reject("VM %s is %s at %s, epoch %d", id, vm.Phase, vm.Owner, vm.Epoch)
	}
	return vm, nil
}

func (c MoveVM) apply(s *State, _ Position) error {
	if err := s.present(c.Host, c.Boot); err != nil {
		return err
	}
	vm := s.VMs[c.VM]
	switch {
	case vm == nil:
		return reject("VM %s is not protected", c.VM)
	case vm.Phase == PhaseOwned && vm.Owner == c.Host && vm.OwnerBoot == c.Boot && vm.Epoch == c.Epoch+1:
		return nil
	case vm.Epoch != c.Epoch || vm.Phase == PhaseOrdered:
		return reject("VM %s is %s, epoch %d", c.VM, vm.Phase, vm.Epoch)
	}
	if err := s.covered(c.Absent, c.Host); err != nil {
		return err
	}
	vm.Phase, vm.Owner, vm.OwnerBoot, vm.Epoch = PhaseOwned, c.Host, c.Boot, c.Epoch+1
	vm.Desired, vm.Migrating, vm.Freed, vm.Hold, vm.Incident = DesiredRunning, false, nil, haven.Hold{}, ""
	return nil
}

func (c FreeVM) apply(s *State, _ Position) error {
	vm, err := s.ownedBy(c.VM, c.Epoch, c.Host, c.Boot)
	if err != nil {
		if vm := s.VMs[c.VM]; vm != nil && vm.Phase == PhaseFreed && vm.Epoch == c.Epoch && vm.Owner == c.Host {
			return nil
		}
		return err
	}
	if vm.Desired != DesiredRunning {
		return reject("VM %s was stopped by its user", c.VM)
	}
	by := cmp.Or(c.By, FreedByGone)
	switch by {
	case FreedByGone:
		vm.Attempts = keepLast(append(vm.Attempts, Attempt{
			Epoch: vm.Epoch, Host: c.Host, Status: haven.OrderFailed, At: c.At, Detail: "ended by itself: " + c.Detail,
		}), MaxAttempts)
	case FreedByBeat, FreedByStop:
		vm.Incident = s.Hosts[c.Host].Incident
	case FreedByProof, FreedByReboot, FreedByRefusal, FreedByFailure:
		fallthrough
	default:
		return reject("VM %s is not freed by %q with this command", c.VM, by)
	}
	vm.free(Freed{By: by, Host: c.Host, Boot: c.Boot, At: c.At, Detail: c.Detail})
	return nil
}

func (c HoldVM) apply(s *State, _ Position) error {
	vm := s.VMs[c.VM]
	if vm == nil || vm.Epoch != c.Epoch {
		return reject("VM %s is not at epoch %d", c.VM, c.Epoch)
	}
	vm.Hold = c.Hold
	return nil
}

func (c CommitOrder) apply(s *State, at Position) error {
	o := c.Order
	vm := s.VMs[o.VM]
	if vm == nil {
		return reject("VM %s is not protected", o.VM)
	}
	if vm.Order != nil && vm.Order.ID == o.ID && vm.Epoch == o.Epoch {
		if vm.Order.Order == o {
			return nil
		}
		return reject("order %s exists and differs", o.ID)
	}
	if err := s.orderFits(vm, o, at); err != nil {
		return err
	}
	if err := s.covered(c.Absent, ""); err != nil {
		return err
	}
	vm.Phase, vm.Owner, vm.OwnerBoot, vm.Epoch = PhaseOrdered, o.Target, o.TargetBoot, o.Epoch
	vm.Hold, vm.Migrating = haven.Hold{}, false
	vm.Order = &OrderRecord{Order: o, CommittedAt: c.At, Absent: c.Absent}
	return nil
}

// orderFits checks all of an order but the word of the other hosts.
func (s *State) orderFits(vm *VM, o haven.Order, at Position) error {
	h := s.Hosts[o.Target]
	if err := s.present(o.Target, o.TargetBoot); err != nil {
		return err
	}
	if in := s.Incidents[h.Incident]; in != nil && in.Open() && in.Step != haven.StepSuspected && in.Boot == h.Boot {
		return reject("target %s is in incident %s", o.Target, in.ID)
	}
	awaited := s.AwaitedHosts()
	switch {
	case s.Stopped(vm.Incident):
		return reject("recovery is disarmed by %s", s.Disarm.By)
	case s.Kept(vm):
		return reject("host %s of VM %s was powered off in maintenance", vm.Freed.Host, vm.ID)
	case h.Maintenance != nil:
		return reject("target %s is in maintenance by %s", o.Target, h.Maintenance.By)
	case h.Fenced != nil:
		return reject("target %s was fenced in incident %s, and no operator has released it", o.Target, h.Fenced.Incident)
	case len(awaited) > 0:
		return reject("host %s has not reported in generation %d", awaited[0], s.Generation)
	case vm.Phase != PhaseFreed || vm.Freed == nil || vm.Desired != DesiredRunning:
		return reject("VM %s is not free: %s, desired %s", vm.ID, vm.Phase, vm.Desired)
	case o.Epoch != vm.Epoch+1 || o.ID != OrderID(vm.ID, o.Epoch):
		return reject("order %s has epoch %d, VM is at %d", o.ID, o.Epoch, vm.Epoch)
	case o.Term != haven.Term{Generation: s.Generation, Term: at.Term}:
		return reject("order of term %s in a log entry of term %d.%d", o.Term, s.Generation, at.Term)
	case h.State != o.TargetState:
		return reject("target %s has agent state %s, not %s", o.Target, h.State, o.TargetState)
	case h.Role == haven.RoleWitness:
		return reject("target %s is a witness", o.Target)
	case o.DefinitionSHA != vm.Definition.SHA:
		return reject("order names another definition than the ledger's")
	}
	return nil
}

// OrderID names the one order that can exist for a start.
func OrderID(vm haven.VMID, epoch haven.Epoch) haven.OrderID {
	return haven.OrderID(fmt.Sprintf("%s.%d", vm, epoch))
}

func (c ReportOrder) apply(s *State, _ Position) error {
	r := c.Report
	vm := s.VMs[r.VM]
	if vm == nil || vm.Order == nil || vm.Order.ID != r.Order || vm.Epoch < r.Epoch {
		return reject("order %s is not the one that is out", r.Order)
	}
	if vm.Order.Status == r.Status && vm.Order.Status.Final() {
		return nil
	}
	o := vm.Order
	switch r.Status {
	case haven.OrderAccepted, haven.OrderStarted, haven.OrderRefused, haven.OrderFailed, haven.OrderUnknown:
	case haven.OrderNone:
		fallthrough
	default:
		return reject("%q is not what becomes of an order", r.Status)
	}
	if vm.Phase != PhaseOrdered || o.Target != c.Host || o.TargetBoot != r.Boot {
		return reject("order %s is for %s in boot %s and %s", r.Order, o.Target, o.TargetBoot, vm.Phase)
	}
	// A refusal or failure frees the VM for another start. It counts only from
	// the agent state that took the order: one that lost its directory does not
	// know what its predecessor began.
	if (r.Status == haven.OrderRefused || r.Status == haven.OrderFailed) && o.TargetState != r.State {
		return reject("agent state %s never had order %s", r.State, r.Order)
	}
	o.Status, o.Detail, o.ReportedAt = r.Status, r.Detail, c.At
	switch r.Status {
	case haven.OrderStarted:
		vm.Phase, vm.Freed, vm.Hold, vm.Incident = PhaseOwned, nil, haven.Hold{}, ""
	case haven.OrderRefused, haven.OrderFailed:
		vm.Attempts = keepLast(append(vm.Attempts, Attempt{
			Epoch: vm.Epoch, Host: c.Host, Status: r.Status, At: c.At, Detail: r.Detail, Locked: r.Locked,
		}), MaxAttempts)
		by := FreedByRefusal
		if r.Status == haven.OrderFailed {
			by = FreedByFailure
		}
		vm.free(Freed{By: by, Host: c.Host, Boot: r.Boot, At: c.At, Detail: r.Detail})
	case haven.OrderNone, haven.OrderAccepted, haven.OrderUnknown:
	}
	return nil
}

func keepLast[T any](list []T, n int) []T {
	if len(list) > n {
		return slices.Clone(list[len(list)-n:])
	}
	return list
}

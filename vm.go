package haven

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// VMID is a VM's libvirt UUID in canonical lower-case form.
type VMID string

var vmIDPattern = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// ParseVMID accepts a UUID with hyphens, in either case.
func ParseVMID(s string) (VMID, error) {
	l := strings.ToLower(s)
	if !vmIDPattern.MatchString(l) {
		return "", fmt.Errorf("VM id %q: want a UUID such as 11111111-2222-4333-8444-555555555555", s)
	}
	return VMID(l), nil
}

// Epoch counts the changes of a VM's owner. Every start has a new epoch.
type Epoch uint64

// VMState is the state of a VM as its host's VM manager tells it.
type VMState string

// The states of a VM.
const (
	VMUnknown   VMState = "unknown"   // the VM manager did not say
	VMRunning   VMState = "running"   //
	VMPaused    VMState = "paused"    // in memory, not executing; the reason is in VMInfo.Reason
	VMIncoming  VMState = "incoming"  // being migrated to this host
	VMMigrating VMState = "migrating" // being migrated away from this host
	VMStopping  VMState = "stopping"  // asked to shut down, still there
	VMShutOff   VMState = "shutoff"   // not there; VMInfo.Reason tells how that came to be
	VMCrashed   VMState = "crashed"   // not there, because it failed
)

// Present says whether a VM in this state has, or may have, a process that
// can write to its disks. Unknown counts as present (P5).
func (s VMState) Present() bool {
	return s != VMShutOff && s != VMCrashed
}

// VMInfo is one VM as its host's VM manager describes it.
type VMInfo struct {
	ID         VMID    `json:"id"`
	Name       string  `json:"name"`
	State      VMState `json:"state"`
	Reason     string  `json:"reason,omitempty"` // the VM manager's word, e.g. "destroyed", "shutdown", "io-error"
	Persistent bool    `json:"persistent"`       // its definition outlives it
	Autostart  bool    `json:"autostart,omitempty"`
	MemoryMiB  uint64  `json:"memory_mib"`
	VCPUs      int     `json:"vcpus"`
	// DefinitionSHA is the hex SHA-256 of the inactive definition, or empty
	// when it could not be read.
	DefinitionSHA string `json:"definition_sha,omitempty"`
	// ManagedSave says that a managed-save image exists for it.
	ManagedSave bool `json:"managed_save,omitempty"`
}

// Inventory is what one host says about all VMs on it at one moment.
type Inventory struct {
	Host HostID   `json:"host"`
	Boot BootID   `json:"boot"`
	VMs  []VMInfo `json:"vms"`
	// Processes are the UUIDs of all VM processes found in the process table,
	// whether or not the VM manager knows them. A VM is gone only when its
	// state is shut off and its UUID is not here (P1).
	Processes []VMID `json:"processes"`
	// Complete says that both the VM manager and the process table were read
	// whole. An incomplete inventory is never evidence that a VM is absent.
	Complete bool `json:"complete"`
	// Why tells what is missing when Complete is false.
	Why string `json:"why,omitempty"`
}

// Find returns the VM manager's entry for id.
func (inv Inventory) Find(id VMID) (VMInfo, bool) {
	for _, vm := range inv.VMs {
		if vm.ID == id {
			return vm, true
		}
	}
	return VMInfo{}, false
}

// Has tells whether the VM is present on the host: Yes when the VM manager or
// the process table shows it, No only when both were read whole and neither
// does, Unknown otherwise.
func (inv Inventory) Has(id VMID) Tri {
	if vm, ok := inv.Find(id); ok && vm.State.Present() && vm.State != VMUnknown {
		return Yes
	}
	if slices.Contains(inv.Processes, id) {
		return Yes
	}
	if vm, ok := inv.Find(id); ok && vm.State == VMUnknown {
		return Unknown
	}
	if !inv.Complete {
		return Unknown
	}
	return No
}

package haven

import (
	"fmt"
	"regexp"
)

// HostID is the configured name of a host: a key of the hosts section of the
// configuration file. It never changes while the host is in the cluster.
type HostID string

var hostIDPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// ParseHostID checks that s is a lower-case DNS name of at most 63 octets.
func ParseHostID(s string) (HostID, error) {
	if !hostIDPattern.MatchString(s) {
		return "", fmt.Errorf("host name %q: want 1 to 63 of a-z, 0-9, '.' and '-', starting and ending with a letter or digit", s)
	}
	return HostID(s), nil
}

// BootID names one boot of one host's kernel (/proc/sys/kernel/random/boot_id).
// A proof of death is bound to a boot: it says nothing about the next one.
type BootID string

// StateID is drawn at random when an agent's data directory is created. An
// agent that lost its directory comes back with another one and is a stranger.
type StateID string

// Incarnation counts the starts of an agent process on one data directory.
type Incarnation uint64

// Role says what a host is for.
type Role string

// The roles of a host.
const (
	RoleHypervisor Role = "hypervisor" // runs VMs
	RoleWitness    Role = "witness"    // runs no VMs; votes and observes
)

// Term orders masters. Raft terms compare within a generation; a generation is
// raised only by a named operator who bootstraps or restores the ledger.
type Term struct {
	Generation uint64 `json:"generation"`
	Term       uint64 `json:"term"`
}

// Compare returns -1, 0 or +1 when t is older than, the same as, or newer than u.
func (t Term) Compare(u Term) int {
	switch {
	case t.Generation != u.Generation:
		if t.Generation < u.Generation {
			return -1
		}
		return 1
	case t.Term != u.Term:
		if t.Term < u.Term {
			return -1
		}
		return 1
	}
	return 0
}

// Older says whether t was superseded by u.
func (t Term) Older(u Term) bool { return t.Compare(u) < 0 }

// IsZero says whether t is no term at all.
func (t Term) IsZero() bool { return t == Term{} }

func (t Term) String() string { return fmt.Sprintf("%d.%d", t.Generation, t.Term) }

// LeaveReason is what an agent said when it left on purpose.
type LeaveReason string

// The reasons to leave.
const (
	LeaveNone      LeaveReason = ""              // it did not say; perhaps it did not leave
	LeaveStopped   LeaveReason = "agent-stopped" // the agent was stopped; the host and its VMs run on
	LeaveShutdown  LeaveReason = "host-shutdown" // the whole host is going down in good order
	LeaveUninstall LeaveReason = "uninstalled"   // the agent was removed from the host
)

// HostLoad is what a host has and uses, for placement.
type HostLoad struct {
	MemoryMiB     uint64 `json:"memory_mib"`      // physical memory
	MemoryFreeMiB uint64 `json:"memory_free_mib"` // not promised to any defined and running VM
	CPUs          int    `json:"cpus"`            // logical processors
	VCPUsRunning  int    `json:"vcpus_running"`   // virtual processors of running VMs
}

package haven

import "time"

// IncidentID names an incident. It is chosen by the master that opened it and
// is short enough to be typed.
type IncidentID string

// Step is where an incident stands. Each step is in the ledger before it is
// acted on (P7).
type Step string

// The steps of an incident, in order.
const (
	StepSuspected  Step = "suspected"  // one path fell silent; nothing is done but looking
	StepConfirmed  Step = "confirmed"  // the verdict is actionable; the host takes no VMs from now on
	StepFencing    Step = "fencing"    // a power-off was decided
	StepProved     Step = "proved"     // its boot is proved dead; its VMs are free
	StepPlacing    Step = "placing"    // its VMs are waiting for, or being given, new owners
	StepRestarting Step = "restarting" // every VM has an order
	StepClosed     Step = "closed"     // nothing is left to do
)

// Hold says why an incident, or a VM, does not go on. It is empty when nothing
// holds it back.
type Hold struct {
	Reason string    `json:"reason,omitempty"` // one of the Hold… words
	Detail string    `json:"detail,omitempty"` // for people: what, and what can be done
	Since  time.Time `json:"since,omitzero"`
}

// The reasons of a hold.
const (
	HoldDisarmed       = "disarmed"        // an operator switched recovery off
	HoldGrace          = "start-up-grace"  // the cluster came up a moment ago
	HoldObserver       = "observer"        // the master cannot trust its own paths
	HoldMassFailure    = "mass-failure"    // too many hosts are bad at once
	HoldStorageOutage  = "storage-outage"  // everybody's beats stopped at once
	HoldCap            = "power-down-cap"  // too many power-downs in the window
	HoldFenceBlocked   = "fence-blocked"   // no device gave a proof
	HoldNoDevice       = "no-fence-device" // the host has no fence device
	HoldContradiction  = "contradiction"   // a power-off reading and a moving beat
	HoldActionNone     = "action-none"     // the configured action is to do nothing
	HoldMigrating      = "migrating"       // the VM was last seen in migration
	HoldMaybeElsewhere = "maybe-elsewhere" // a live host has not said that it does not have the VM
	HoldCapacity       = "capacity"        // no host has room
	HoldNoHost         = "no-host"         // no host may run it
	HoldOrderUnknown   = "order-unknown"   // an order went out and its fate is not known
	HoldRunsTwice      = "runs-twice"      // the VM was seen on two hosts
	HoldNeedsOperator  = "needs-operator"  // attempts are used up
	HoldNoDefinition   = "no-definition"   // the ledger has no definition of the VM
	HoldGeneration     = "generation"      // after a restore: the host has not reported yet
	HoldMaintenance    = "maintenance"     // an operator has the host in maintenance
	HoldStoppedRunning = "owner-unproved"  // the owner is neither proved dead nor says that the VM is gone
	HoldNoQuorum       = "no-quorum"       // an agent sees half of the hosts or more, and no master
	HoldFlapping       = "flapping"        // the host fell from health too often: it is given no VMs
	HoldIdentity       = "wrong-device"    // a fence device seems to be another host's, or is distrusted
	HoldRelease        = "awaits-release"  // the host was fenced: it is given no VMs until it is released
)

// ProofKind says what a proof of death rests on (P2).
type ProofKind string

// The kinds of proof.
const (
	ProofPowerOff ProofKind = "power-off" // a trusted BMC reported chassis power off, freshly and repeatedly
	ProofWatchdog ProofKind = "watchdog"  // the host's armed watchdog must have fired
	ProofDevice   ProofKind = "device"    // an external fence device verified it by its own status
	ProofOperator ProofKind = "operator"  // a named operator said so
	ProofReboot   ProofKind = "reboot"    // a newer boot of the host registered: the old one is over
)

// Proof says that one boot of one host is over.
type Proof struct {
	Kind     ProofKind  `json:"kind"`
	Host     HostID     `json:"host"`
	Boot     BootID     `json:"boot"`
	By       string     `json:"by"` // host or operator who gave it
	At       time.Time  `json:"at"` // for people
	Detail   string     `json:"detail,omitempty"`
	Evidence []Evidence `json:"evidence,omitempty"`
}

// PowerState is what a fence device says about a chassis.
type PowerState string

// The power states.
const (
	PowerUnknown PowerState = "unknown"
	PowerOn      PowerState = "on"
	PowerOff     PowerState = "off"
)

// FenceAction is what is done to a failed host.
type FenceAction string

// The fence actions.
const (
	ActionNone   FenceAction = "none"   // notify only
	ActionOff    FenceAction = "off"    // power off, verify
	ActionReboot FenceAction = "reboot" // off, verify, hand the VMs over, then on
	ActionBlink  FenceAction = "blink"  // identify LED; no restart
	ActionOn     FenceAction = "on"
	ActionStatus FenceAction = "status"
	ActionTest   FenceAction = "test"
)

package notify

import (
	"cmp"
	"slices"
	"strings"
)

// Class groups kinds, for receivers that sort by it; SNMP has a notification
// type for each.
type Class string

// The classes.
const (
	ClassIncident Class = "incident" // a host is in trouble, or out of it
	ClassFence    Class = "fence"    // what is done about it, and what came of it
	ClassHold     Class = "hold"     // recovery does not go on
	ClassVM       Class = "vm"
	ClassHost     Class = "host"     // what an agent tells about its own host or side
	ClassDecision Class = "decision" // what an operator did
	ClassDevice   Class = "device"   // a fence device
	ClassSummary  Class = "summary"
	ClassTest     Class = "test"
)

// Classes lists all classes, in the order of their numbers in the MIB.
func Classes() []Class {
	return []Class{ClassIncident, ClassFence, ClassHold, ClassVM, ClassHost, ClassDecision, ClassDevice, ClassSummary, ClassTest}
}

// Kind is what is known of all events of one kind.
type Kind struct {
	Name     string
	Class    Class
	Severity Severity
	// Standing says that it is a state that lasts: when it is told again it is a
	// reminder. Others are happenings: told again after a while, they happened again.
	Standing bool
	// Do is what to do; {host} and {incident} stand for those of the event.
	Do string
}

const (
	lookIncident = "Look: haven explain {incident}"
	confirmOff   = "If {host} is off for certain: haven fence confirm {host} --reason \"how you know\" --by NAME. Look first: haven explain {incident}"
	lookHolds    = "Look what is held and what releases it: haven status"
)

// The kinds of events that are no notices of the recovery.
const (
	KindTest       = "test"
	KindSummary    = "summary"
	KindOperator   = "operator-acted"
	KindIsolated   = "isolated"
	KindCutOff     = "cut-off"
	KindRejoined   = "not-isolated"
	KindNoQuorum   = "no-quorum"
	KindQuorum     = "quorum-again"
	KindReleases   = "stops-its-vms"
	KindReleased   = "stops-no-vms"
	KindHoldAlarm  = "hold-alarm"
	KindDeviceBad  = "fence-device-failed"
	KindDeviceGood = "fence-device-works"

	KindWatchdogTrouble = "watchdog-trouble"
	KindWatchdogWorks   = "watchdog-works"
	KindReloadBad       = "reload-failed"
)

// catalogue lists every kind that is told.
func catalogue() []Kind {
	return []Kind{
		{"incident-opened", ClassIncident, Critical, true, lookIncident},
		{"verdict-changed", ClassIncident, Info, false, lookIncident},
		{"host-proved-dead", ClassIncident, Critical, true, "Nothing: its VMs are started elsewhere. Look: haven explain {incident}"},
		{"incident-closed", ClassIncident, Info, false, ""},
		{"response", ClassIncident, Critical, true, lookIncident},

		{"fencing", ClassFence, Critical, false, lookIncident},
		{"fence-blocked", ClassFence, Critical, true, confirmOff},

		{"awaits-release", ClassFence, Warning, true, "Look at {host}, then: haven fence release {host}"},
		{"fence-device-mismatch", ClassFence, Critical, true, "{host} is not fenced while this lasts. Look at the device's address; haven fence blink {host} shows whose light it is. If the device is its own: haven host trust-bmc {host}"},

		{"power-on", ClassFence, Info, false, ""},
		{"power-on-over", ClassFence, Info, false, ""},
		{"power-on-withheld", ClassFence, Info, true, lookIncident},
		{"power-on-failed", ClassFence, Warning, true, "Its VMs run elsewhere. Try again: haven fence on {host}"},
		{"blink", ClassFence, Critical, true, confirmOff},

		{"held", ClassHold, Warning, true, lookIncident},
		{"brake-holds", ClassHold, Critical, true, lookHolds},
		{"hold-lasts", ClassHold, Critical, true, lookHolds},
		{KindHoldAlarm, ClassHold, Critical, true, lookHolds},
		{"hold-over", ClassHold, Info, false, ""},
		{"vm-held", ClassHold, Warning, true, lookHolds},
		{"disarm-pending", ClassHold, Warning, true, "When the work is done: haven arm"},
		{"disarmed", ClassHold, Warning, true, "When the work is done: haven arm"},

		{"vm-ordered", ClassVM, Info, false, ""},
		{"vm-started", ClassVM, Info, false, ""},
		{"vm-failed", ClassVM, Warning, false, "It is tried again by itself. Look: haven vms"},
		{"vm-refused", ClassVM, Warning, false, "Another host is tried by itself. Look: haven vms"},
		{"vm-moved", ClassVM, Info, false, ""},
		{"vm-released", ClassVM, Warning, false, ""},
		{"vm-stopped", ClassVM, Info, false, ""},
		{"vm-undefined", ClassVM, Info, false, ""},
		{"vm-ended", ClassVM, Warning, false, "Look: haven vms"},
		{"runs-twice", ClassVM, Critical, true, "Stop the wrong one NOW, by hand, with virsh on its host; Haven never kills one. Then check the VM's file systems"},

		{KindIsolated, ClassHost, Critical, true, "Look at the network of {host}; its VMs keep running. On it: haven status"},
		{KindCutOff, ClassHost, Critical, true, "Look at the network between {host} and the other hosts. On it: haven status"},
		{KindRejoined, ClassHost, Info, false, ""},
		{KindNoQuorum, ClassHost, Critical, true, "Nothing is fenced or restarted on this side. Bring voters or the network back. Look: haven raft"},
		{KindQuorum, ClassHost, Info, false, ""},

		{KindReleases, ClassHost, Critical, false, "Nothing: they are started elsewhere when they are proved gone. Look at the network of {host}"},
		{KindReleased, ClassHost, Info, false, ""},

		{KindReloadBad, ClassHost, Warning, false, "Mend what is named; what was read before stays in use. Then, on {host}: systemctl reload havend"},
		{KindWatchdogTrouble, ClassHost, Critical, true, "Look on {host}: haven status, journalctl -u havend. A host that shows no life is reset by its watchdog"},
		{KindWatchdogWorks, ClassHost, Info, false, ""},

		{KindOperator, ClassDecision, Warning, false, ""},

		{KindDeviceBad, ClassDevice, Warning, true, "Look at the board of {host}, its address, user and password before it is needed: haven hosts {host}"},
		{KindDeviceGood, ClassDevice, Info, false, ""},

		{KindSummary, ClassSummary, Warning, false, "Look: haven status, haven incidents"},
		{KindTest, ClassTest, Info, false, ""},
	}
}

// Kinds lists every kind that is told, by name.
func Kinds() []Kind {
	all := catalogue()
	slices.SortFunc(all, func(a, b Kind) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Catalogue finds kinds by name.
type Catalogue map[string]Kind

// NewCatalogue returns the catalogue of all kinds.
func NewCatalogue() Catalogue {
	c := Catalogue{}
	for _, k := range catalogue() {
		c[k.Name] = k
	}
	return c
}

// Lookup returns what is known of a kind. What it does not know is told too: as
// an incident's warning that may be repeated.
func (c Catalogue) Lookup(name string) Kind {
	if k, ok := c[name]; ok {
		return k
	}
	return Kind{Name: name, Class: ClassIncident, Severity: Warning, Do: "Look: haven status"}
}

// Advise puts an event's own names into what its kind says to do. What needs a
// name that the event does not have is said without it.
func (k Kind) Advise(e Event) string {
	do := k.Do
	if e.Incident == "" {
		do = strings.ReplaceAll(do, "haven explain {incident}", "haven incidents")
	}
	if e.Host == "" {
		do = strings.ReplaceAll(do, "haven hosts {host}", "haven hosts")
	}
	return strings.NewReplacer("{host}", cmp.Or(string(e.Host), "the host"), "{incident}", string(e.Incident)).Replace(do)
}

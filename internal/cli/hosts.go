package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
)

func (a *app) hosts() *cobra.Command {
	cmd := &cobra.Command{
		Use: "hosts [HOST]", Short: "What the master concludes about each host, and why", Args: cobra.MaximumNArgs(1),
		Long: `What the master concludes about each host. With a name: everything that this
rests on, path by path, with every piece of evidence.`,
		Example: "  haven hosts\n  haven hosts kvm-03\n  haven hosts kvm-03 -o json",
	}
	to := a.target(cmd)
	cmd.ValidArgsFunction = a.completeHosts(to)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var is func(client.Host) bool
		if len(args) > 0 {
			is = func(h client.Host) bool { return string(h.Host) == args[0] }
		}
		return listed(a, cmd, to, "/v1/hosts", "host", is, a.showHosts, a.showHost)
	}
	return cmd
}

func (a *app) showHosts(hosts []client.Host) {
	head := []string{"HOST", "VERDICT", "FOR", "NETWORK", "STORAGE", "HELPER", "POWER", "VMS", "FREE"}
	if a.wide {
		head = append(head, "WATCHDOG", "ROLE", "ZONE", "ADDRESS")
	}
	t := newTable(head...)
	for _, h := range hosts {
		vms, free := "", ""
		if h.Role != haven.RoleWitness {
			vms = fmt.Sprint(h.VMs)
			if h.Connected {
				free = memory(h.Load.MemoryFreeMiB)
			}
		}
		cells := []string{
			string(h.Host), string(h.Verdict), age(h.VerdictAge), h.Network.State, h.Storage.State, h.Helper.State, h.Power.State, vms, free,
		}
		if a.wide {
			cells = append(cells, promisedCell(h.Watchdog), string(h.Role), h.Zone, h.Address)
		}
		t.row(cells, append(a.hostNotes(h), a.deviceNotes(h)...)...)
	}
	a.show(t)
}

// promisedCell is how long after its last life a host's watchdog resets it.
func promisedCell(w *client.HostWatchdog) string {
	if w == nil {
		return "-"
	}
	return w.State + " " + age(w.Bound)
}

func promisedText(w client.HostWatchdog) string {
	text := fmt.Sprintf("armed with %s: it resets the host so long after its last life, on the network or on %s", age(w.Bound), strings.Join(w.Stores, ", "))
	if w.Why != "" {
		text += "; " + w.Why
	}
	if w.Left > 0 {
		text += fmt.Sprintf(" (%s left at least)", age(w.Left))
	}
	return text
}

// hostNotes are what is worth a line under a host: nothing, when all is well.
func (a *app) hostNotes(h client.Host) []string {
	var notes []string
	if !h.Registered {
		notes = append(notes, "it never took part in the cluster")
	}
	if h.Verdict != haven.VerdictHealthy {
		notes = append(notes, h.Explanation)
	}
	if m := h.Maintenance; m != nil {
		notes = append(notes, a.maintenanceText(*m))
	}
	notes = append(notes, labelled("quarantined", h.Quarantine))
	notes = append(notes, labelled("not fenced, "+haven.HoldIdentity, h.WrongDevice))
	notes = append(notes, labelled("held", a.hold(h.Hold)), labelled("takes no VMs now", h.Refuses))
	if h.Incident != "" {
		notes = append(notes, fmt.Sprintf("incident: 'haven explain %s'", h.Incident))
	}
	return notes
}

// deviceNotes are the latest tests of a host's fence devices: of those that failed,
// or with --wide of all of them.
func (a *app) deviceNotes(h client.Host) []string {
	var notes []string
	for _, d := range h.Devices {
		switch {
		case d.Failed != "":
			notes = append(notes, "fence device "+deviceText(d))
		case a.wide:
			notes = append(notes, "fence device "+deviceText(d)+proofText(d))
		}
	}
	return notes
}

// deviceText says how the latest test of a fence device ended.
func deviceText(d client.DeviceWord) string {
	text := d.Device
	switch {
	case d.Failed != "":
		text += " fails, " + d.Failed + ": " + d.Detail
	case d.Tested.IsZero():
		return text + " was not tested yet"
	default:
		text += ": power " + string(d.Power)
	}
	if !d.Tested.IsZero() {
		text += fmt.Sprintf(" (%s ago, in %s", age(d.Age), precise(d.Took.Duration()))
		if d.Via != "" {
			text += ", through " + string(d.Via)
		}
		text += ")"
	}
	if d.GUID != "" {
		text += ", GUID " + d.GUID
	}
	return text
}

// proofText says whether an off of a fence device would be a proof.
func proofText(d client.DeviceWord) string {
	text := map[bool]string{true: "; an off would be a proof", false: "; an off would be no proof"}[d.Trusted]
	if d.Why != "" {
		text += ": " + d.Why
	}
	return text
}

// hold says why something waits, and since when.
func (a *app) hold(h haven.Hold) string {
	if h.Reason == "" {
		return ""
	}
	text := h.Reason
	if h.Detail != "" {
		text += ": " + h.Detail
	}
	if !h.Since.IsZero() {
		text += fmt.Sprintf(" (for %s)", ago(a.Now().Sub(h.Since)))
	}
	return text
}

func (a *app) showHost(h client.Host) {
	a.wrapped("", fmt.Sprintf("%s is %s, for %s", h.Host, h.Verdict, age(h.VerdictAge)))
	a.printf("\n")
	a.field("Because", h.Explanation)
	a.field("Network", pathText(h.Network))
	a.field("Storage", pathText(h.Storage))
	a.field("Helper", pathText(h.Helper))
	a.field("Power", pathText(h.Power))
	if h.Watchdog != nil {
		a.field("Watchdog", promisedText(*h.Watchdog))
	}
	if len(h.Missing) > 0 {
		a.field("Missing", strings.Join(h.Missing, "; "))
	}
	if h.Hold.Reason != "" {
		a.field("Held", a.hold(h.Hold))
	}
	if h.Maintenance != nil {
		a.field("Operator", a.maintenanceText(*h.Maintenance))
	}
	if h.Quarantine != "" {
		a.field("Quarantine", h.Quarantine)
	}
	if h.Left != "" {
		a.field("Left", string(h.Left))
	}
	if h.Refuses != "" {
		a.field("Refuses", h.Refuses)
	}
	if h.Incident != "" {
		a.field("Incident", string(h.Incident))
	}
	a.field("Host", fmt.Sprintf("%s at %s, zone %s", h.Role, h.Address, orDash(h.Zone)))
	a.field("Boot", orDash(string(h.Boot)))
	if h.UUID != "" {
		a.field("UUID", h.UUID)
	}
	if h.WrongDevice != "" {
		a.field("Not fenced", h.WrongDevice)
	}
	if h.Role != haven.RoleWitness {
		a.field("VMs", fmt.Sprintf("%d protected", h.VMs))
		a.field("Memory", fmt.Sprintf("%s free of %s", memory(h.Load.MemoryFreeMiB), memory(h.Load.MemoryMiB)))
	}
	if h.Proof != nil {
		a.printf("\nProved dead\n")
		a.showProof(*h.Proof)
	}
	if len(h.Devices) > 0 {
		a.printf("\nFence devices\n")
		for _, d := range h.Devices {
			a.wrapped("  ", fmt.Sprintf("level %d, %s%s", d.Level, deviceText(d), proofText(d)))
			if d.Advice != "" {
				a.wrapped("    ", d.Advice)
			}
		}
	}
	if len(h.Evidence) > 0 {
		a.printf("\nEvidence\n")
		a.evidence("  ", h.Evidence)
	}
}

// maintenanceText says who has a host in maintenance, and what of its VMs.
func (a *app) maintenanceText(m client.Maintenance) string {
	text := fmt.Sprintf("in maintenance by %s, for %s", m.By, ago(a.Now().Sub(m.At)))
	if m.Reason != "" {
		text += ": " + m.Reason
	}
	if m.Keeps {
		text += "; it is off, and its VMs wait for 'haven maintenance off' or 'haven fence confirm'"
	}
	return text
}

func pathText(p client.PathView) string {
	s := p.State
	if p.Age > 0 {
		s += ", " + age(p.Age) + " ago"
	}
	if p.Why != "" {
		s += " (" + p.Why + ")"
	}
	return s
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// evidence lists observations, one a line.
func (a *app) evidence(indent string, es []haven.Evidence) {
	for _, e := range es {
		a.wrapped(indent, e.String())
	}
}

// completeHosts offers the names of the hosts.
func (a *app) completeHosts(to *target) cobra.CompletionFunc {
	return complete(to, "/v1/hosts", func(h client.Host) (string, string) { return string(h.Host), string(h.Verdict) })
}

// completeTimeout is how long a person waits for a shell without wondering.
const completeTimeout = 2 * time.Second

// complete offers what a list of the API holds. A shell waits for it, so it gives
// up soon and offers nothing rather than an error.
func complete[T any](to *target, path string, word func(T) (word, help string)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		to.timeout = min(to.timeout, completeTimeout)
		s, err := to.dial(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer s.close()
		var all []T
		if doc, err := s.get(path); err == nil {
			all, err = decode[[]T](doc)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
		}
		var out []cobra.Completion
		for _, v := range all {
			w, help := word(v)
			out = append(out, cobra.CompletionWithDesc(oneLine(w), oneLine(help)))
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

package cli

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
)

func (a *app) status() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "How the cluster is, in one sentence and a few numbers", Args: cobra.NoArgs,
		Example: "  haven status\n  haven status --check || echo \"exit code $?: 5 is not healthy\"",
	}
	to := a.target(cmd)
	check := cmd.Flags().Bool("check", false, "exit with 5 when the cluster is not healthy")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := to.dial(cmd.Context())
		if err != nil {
			return err
		}
		defer s.close()
		doc, err := s.get("/v1/status")
		if err != nil {
			return err
		}
		st, err := decode[client.Status](doc)
		if err != nil {
			return err
		}
		if a.json() {
			a.printRaw(doc)
		} else {
			a.showStatus(st)
		}
		if *check && !st.Healthy {
			return exitError{ExitUnhealthy, errors.New("the cluster is not healthy")}
		}
		return nil
	}
	return cmd
}

func (a *app) showStatus(st client.Status) {
	a.wrapped("", st.Sentence)
	a.printf("\n")
	recovery := "armed"
	if !st.Armed {
		recovery = disarmedText(st)
	}
	master := "none"
	if st.Master != "" {
		master = fmt.Sprintf("%s, term %s", st.Master, st.Term)
	}
	incidents := "none open"
	if st.Incidents > 0 {
		incidents = fmt.Sprintf("%d open ('haven incidents')", st.Incidents)
	}
	a.field("Cluster", st.Cluster)
	a.field("Master", master)
	a.field("Recovery", recovery)
	a.field("Hosts", fmt.Sprintf("%d of %d healthy", st.HostsUp, st.Hosts))
	a.field("VMs", fmt.Sprintf("%d of %d protected ones run", st.VMsUp, st.VMs))
	a.field("Incidents", incidents)
	for _, h := range heldOf(st) {
		a.field("Held", a.held(h))
	}
	if l := st.Local; l.State != "" {
		part := "a majority"
		if l.Majority != haven.Yes {
			part = "no majority"
		}
		a.field("Reached", fmt.Sprintf("%d of %d hosts from %s, %s (%s)", l.Reached, l.Hosts, st.Self, part, l.State))
	}
	if w := st.Local.Watchdog; w != nil {
		a.field("Watchdog", watchdogText(st.Self, *w))
	}
	a.field("Asked", fmt.Sprintf("%s, version %s", st.Self, st.Version))
}

// disarmedText says that recovery is switched off, by whom, why, and what is
// finished before.
func disarmedText(st client.Status) string {
	text := "DISARMED by " + st.DisarmedBy
	if st.DisarmReason != "" {
		text += " (" + st.DisarmReason + ")"
	}
	if st.DisarmPending != "" {
		return text + "; pending: " + st.DisarmPending
	}
	return text + ": nothing is fenced or started ('haven arm')"
}

// heldOf lists what is held. An older agent tells the cluster's holds only.
func heldOf(st client.Status) []client.Held {
	if len(st.Held) > 0 {
		return st.Held
	}
	var all []client.Held
	for _, h := range st.Holds {
		all = append(all, client.Held{Hold: h})
	}
	return all
}

// held says what is held, why, for how long, and what ends it.
func (a *app) held(h client.Held) string {
	what := ""
	switch {
	case h.Incident != "":
		what = fmt.Sprintf("incident %s: ", h.Incident)
	case h.Of == "host":
		what = string(h.Host) + ": "
	case h.Count > len(h.VMs):
		what = fmt.Sprintf("%s and %d more: ", strings.Join(h.VMs, ", "), h.Count-len(h.VMs))
	case len(h.VMs) > 0:
		what = strings.Join(h.VMs, ", ") + ": "
	}
	text := what + a.hold(h.Hold)
	if h.Release != "" {
		text += "; released by " + h.Release
	}
	return text
}

// watchdogText says how the answering host's watchdog stands.
func watchdogText(host haven.HostID, w client.WatchdogView) string {
	text := fmt.Sprintf("%s on %s", w.State, host)
	if w.Device != "" {
		text = fmt.Sprintf("%s (%s) on %s", w.State, w.Device, host)
	}
	if w.Declared.Armed() {
		text += fmt.Sprintf(", promises a reset within %s of the last life", w.Declared.Bound)
	}
	if w.LifeAge > 0 {
		text += fmt.Sprintf(", which was %s ago", w.LifeAge.Duration().Round(100*time.Millisecond))
	}
	if w.ResetsIn > 0 {
		text += fmt.Sprintf("; RESETS in %s", w.ResetsIn.Duration().Round(time.Second))
	}
	if w.Why != "" {
		text += ": " + w.Why
	}
	return text
}

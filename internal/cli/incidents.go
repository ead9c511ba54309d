package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
)

func (a *app) incidents() *cobra.Command {
	cmd := &cobra.Command{
		Use: "incidents", Short: "What happened, and what is going on, the newest first", Args: cobra.NoArgs,
		Example: "  haven incidents\n  haven incidents -o json",
	}
	to := a.target(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return listed(a, cmd, to, "/v1/incidents", "incident", nil, a.showIncidents, nil)
	}
	return cmd
}

func (a *app) showIncidents(all []client.Incident) {
	if len(all) == 0 {
		a.printf("Nothing has happened yet.\n")
		return
	}
	t := newTable("INCIDENT", "HOST", "VERDICT", "STEP", "PROOF", "OPENED", "TOOK", "VMS")
	for _, in := range all {
		t.row([]string{
			string(in.ID), string(in.Host), string(in.Verdict), string(in.Step), proofKind(in), ago(a.Now().Sub(in.OpenedAt)) + " ago", took(in), fmt.Sprint(len(in.VMs)),
		}, labelled("held", a.hold(in.Hold)), in.Outcome, recorded(a, in))
	}
	a.show(t)
}

// proofKind is what a proof of death rests on.
func proofKind(in client.Incident) string {
	if in.Proof == nil {
		return ""
	}
	return string(in.Proof.Kind)
}

// recorded says where an incident's recording is; it takes room that not everybody
// has.
func recorded(a *app, in client.Incident) string {
	if in.Recording == nil || !a.wide {
		return ""
	}
	return fmt.Sprintf("recorded on %s: %s", in.Recording.Host, in.Recording.Path)
}

// took says how long a closed incident took, from the first suspicion.
func took(in client.Incident) string {
	if in.Step != haven.StepClosed || in.ClosedAt.IsZero() {
		return ""
	}
	return precise(in.ClosedAt.Sub(begin(in)))
}

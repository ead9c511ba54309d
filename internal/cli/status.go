package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven"
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
		recovery = "DISARMED by " + st.DisarmedBy + ": nothing is fenced or started ('haven arm')"
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
	for _, h := range st.Holds {
		a.field("Held", a.hold(h))
	}
	if l := st.Local; l.State != "" {
		part := "a majority"
		if l.Majority != haven.Yes {
			part = "no majority"
		}
		a.field("Reached", fmt.Sprintf("%d of %d hosts from %s, %s (%s)", l.Reached, l.Hosts, st.Self, part, l.State))
	}
	a.field("Asked", fmt.Sprintf("%s, version %s", st.Self, st.Version))
}

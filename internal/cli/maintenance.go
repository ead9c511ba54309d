package cli

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven/internal/client"
)

func (a *app) maintenance() *cobra.Command {
	return group("maintenance", "Take a host out of the planner's hands, and give it back",
		"  haven maintenance on kvm-03 --reason \"new fans\"\n  haven maintenance off kvm-03", a.maintenanceOn(), a.maintenanceOff())
}

func (a *app) maintenanceOn() *cobra.Command {
	cmd := &cobra.Command{
		Use: "on HOST --reason WHY", Short: "Give a host no VMs and no power command", Args: cobra.ExactArgs(1),
		Long: `Put a host into maintenance. It is given no VMs and gets no power command, and
it does not count when many hosts are bad at once. The VMs that run on it stay
there: move them away first when it is to be powered off.

When it is powered off in maintenance, its VMs are not started elsewhere but
held, until 'haven maintenance off HOST' or 'haven fence confirm HOST'. When it
boots anew in maintenance, they are started on other hosts.`,
		Example: "  haven maintenance on kvm-03 --reason \"new fans\"",
	}
	f := a.act(cmd, "why, for the record (required)")
	must(cmd.MarkFlagRequired("reason"))
	cmd.ValidArgsFunction = a.completeHosts(f.target)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.reason == "" {
			return usagef("--reason is empty: others will want to know what is done to %s", args[0])
		}
		path, err := hostPath(args[0], "maintenance")
		if err != nil {
			return err
		}
		return f.do(cmd.Context(), path, client.Act{}, fmt.Sprintf("%s is in maintenance: it is given no VMs and gets no power command. Its own VMs stay there.", args[0]))
	}
	return cmd
}

func (a *app) maintenanceOff() *cobra.Command {
	cmd := &cobra.Command{
		Use: "off HOST", Short: "End a host's maintenance", Args: cobra.ExactArgs(1),
		Long: `End a host's maintenance. It is judged, fenced and given VMs again as any other.
If it is off now, its VMs are started elsewhere.`,
		Example: "  haven maintenance off kvm-03",
	}
	f := a.act(cmd, "why, for the record")
	cmd.ValidArgsFunction = a.completeHosts(f.target)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path, err := hostPath(args[0], "maintenance/end")
		if err != nil {
			return err
		}
		return f.do(cmd.Context(), path, client.Act{}, fmt.Sprintf("The maintenance of %s is over.", args[0]))
	}
	return cmd
}

// decisionsPath is where the latest changes of a host's verdict are.
func decisionsPath(host string) string { return "/v1/hosts/" + url.PathEscape(host) + "/decisions" }

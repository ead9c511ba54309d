package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven/internal/client"
)

func (a *app) host() *cobra.Command {
	return group("host", "Decide about one host", "  haven host release kvm-03\n  haven host trust-bmc kvm-03", a.hostRelease(), a.hostTrustBMC())
}

func (a *app) hostRelease() *cobra.Command {
	cmd := &cobra.Command{
		Use: "release HOST", Short: "After a restore of the ledger: do not wait for this host", Args: cobra.ExactArgs(1),
		Long: `After the ledger was restored, nothing is started until each host has reported
what runs on it, is proved dead, or is released by name. Release a host only
when you know that none of the cluster's VMs runs on it: Haven will take your
word. It is for admins.`,
		Example: "  haven host release kvm-03 --reason \"scrapped last month\"",
	}
	f := a.act(cmd, "why, for the record")
	cmd.ValidArgsFunction = a.completeHosts(f.target)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path, err := hostPath(args[0], "release")
		if err != nil {
			return err
		}
		return f.do(cmd.Context(), path, client.Act{}, fmt.Sprintf("%s is released.", args[0]))
	}
	return cmd
}

func (a *app) hostTrustBMC() *cobra.Command {
	cmd := &cobra.Command{
		Use: "trust-bmc HOST", Short: "Trust a host's BMC again after it was caught lying", Args: cobra.ExactArgs(1),
		Long: `A BMC that said "off" about a live host, or that answers for two hosts, proves
nothing any more. When its cause is found and mended, trust it again with this.
A host of which a device says another identity than the host itself is not
fenced: with this you say that the device is its own all the same. It is for
admins, and recorded.`,
		Example: "  haven host trust-bmc kvm-03 --reason \"address was that of kvm-04; corrected\"",
	}
	f := a.act(cmd, "why, for the record")
	cmd.ValidArgsFunction = a.completeHosts(f.target)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path, err := hostPath(args[0], "trust-bmc")
		if err != nil {
			return err
		}
		return f.do(cmd.Context(), path, client.Act{}, fmt.Sprintf("The BMC of %s is trusted again.", args[0]))
	}
	return cmd
}

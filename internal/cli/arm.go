package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven/internal/client"
)

// actFlags are what every act of an operator can carry.
type actFlags struct {
	*target
	by, reason string
}

func (a *app) act(cmd *cobra.Command, reason string) *actFlags {
	f := &actFlags{target: a.target(cmd)}
	cmd.Flags().StringVar(&f.by, "by", "", "your `name` for the record, when you act as root or with an admin's certificate; under sudo, your own is taken")
	cmd.Flags().StringVar(&f.reason, "reason", "", reason)
	return f
}

// do asks for the act and says that it is done.
func (f *actFlags) do(ctx context.Context, path string, act client.Act, done string) error {
	s, err := f.dial(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	doc, err := s.post(path, f.signed(act))
	if err != nil {
		return err
	}
	if f.a.json() {
		f.a.printRaw(doc)
		return nil
	}
	f.a.wrapped("", done)
	return nil
}

// signed puts the name and the reason of who acts under an act.
func (f *actFlags) signed(act client.Act) client.Act {
	if act.By = f.by; act.By == "" {
		act.By = f.a.Getenv("SUDO_USER")
	}
	act.Reason = f.reason
	return act
}

func (a *app) arm() *cobra.Command {
	cmd := &cobra.Command{
		Use: "arm", Short: "Switch recovery on again", Args: cobra.NoArgs,
		Long: `Switch recovery on again after 'haven disarm'. What was held meanwhile goes on
at once: hosts that are failed now will be fenced, and their VMs started
elsewhere.`,
		Example: "  haven hosts\n  haven arm --reason \"switch replaced\"",
	}
	f := a.act(cmd, "why, for the record")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return f.do(cmd.Context(), "/v1/arm", client.Act{}, "Recovery is armed.")
	}
	return cmd
}

func (a *app) disarm() *cobra.Command {
	cmd := &cobra.Command{
		Use: "disarm --reason WHY", Short: "Switch recovery off: nothing is fenced or started until 'haven arm'", Args: cobra.NoArgs,
		Long: `Switch recovery off in the whole cluster. Hosts are watched on and verdicts are
given, but nothing is fenced and nothing is started until 'haven arm'.

What is under way is finished first: an incident in which a power-off has
begun, or whose host is proved dead, goes on until its VMs run. 'haven status'
shows what is pending. With --now that stops as well, before its next step.`,
		Example: "  haven disarm --reason \"work on the core switch until 14:00\"\n  haven disarm --now --reason \"stop it\"",
	}
	f := a.act(cmd, "why, for the record (required)")
	now := cmd.Flags().Bool("now", false, "finish nothing first: stop what is under way before its next step")
	must(cmd.MarkFlagRequired("reason"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f.reason == "" {
			return usagef("--reason is empty: others will want to know why nothing is recovered")
		}
		if err := f.do(cmd.Context(), "/v1/disarm", client.Act{Now: *now}, "Recovery is disarmed: nothing is fenced or started until 'haven arm'."); err != nil {
			return err
		}
		a.showPending(cmd.Context(), f.target)
		return nil
	}
	return cmd
}

// showPending says what is finished before a disarm takes effect. The disarm
// itself is done; when this cannot be told, 'haven status' will.
func (a *app) showPending(ctx context.Context, to *target) {
	if a.json() {
		return
	}
	s, err := to.dial(ctx)
	if err != nil {
		return
	}
	defer s.close()
	doc, err := s.get("/v1/status")
	if err != nil {
		return
	}
	if st, err := decode[client.Status](doc); err == nil && st.DisarmPending != "" {
		a.wrapped("", "Pending: "+st.DisarmPending+". After that it takes effect; --now stops it.")
	}
}

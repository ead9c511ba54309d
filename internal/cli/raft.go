package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven/internal/client"
)

func (a *app) raft() *cobra.Command {
	cmd := &cobra.Command{
		Use: "raft", Short: "The replicated log as the agent asked sees it", Args: cobra.NoArgs,
		Example: "  haven raft\n  haven raft --server kvm-02 --ca ca.pem --cert me.pem --key me.key",
	}
	to := a.target(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return view(a, cmd, to, "/v1/raft", a.showRaft) }
	return cmd
}

func (a *app) showRaft(r client.Raft) {
	a.wrapped("", fmt.Sprintf("%s is %s; leader is %s", r.Self, orDash(r.State), orDash(string(r.Leader))))
	a.printf("\n")
	a.field("Term", fmt.Sprintf("%d of generation %d", r.Term, r.Generation))
	a.field("Log", fmt.Sprintf("last %d, committed %d, applied %d, snapshot %d", r.LastIndex, r.CommitIndex, r.AppliedIndex, r.Snapshot))
	a.printf("\n")
	head := []string{"HOST", "VOTE", "LEADER", "HEARD", "ADDRESS", "SERVER"}
	t := newTable(head...)
	for _, s := range r.Servers {
		heard := ""
		if s.LastContact != nil {
			heard = fmt.Sprintf("%d ms", *s.LastContact)
		}
		t.row([]string{string(s.Host), yesNo(s.Voter), yesNo(s.Leader), heard, s.Address, s.ID})
	}
	a.show(t)
}

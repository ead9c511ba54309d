package cli

import (
	"github.com/spf13/cobra"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
)

func (a *app) members() *cobra.Command {
	cmd := &cobra.Command{
		Use: "members", Short: "Who is there, as the agent asked sees it by gossip", Args: cobra.NoArgs,
		Long: `Who is there, as the agent that is asked sees it by gossip. This is the one
agent's own view: another one may see it differently, and gossip alone never
has a host fenced. See 'haven hosts' for what the master concludes.`,
		Example: "  haven members\n  haven members -o json",
	}
	to := a.target(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return view(a, cmd, to, "/v1/members", a.showMembers)
	}
	return cmd
}

func (a *app) showMembers(m client.Members) {
	a.wrapped("", "Cluster "+m.Cluster+" as "+string(m.Self)+" sees it. "+masterSentence(m.Master, m.Term))
	if m.HealthScore > 0 {
		a.wrapped("", "This agent is slow itself: what it says of others is less certain.")
	}
	a.printf("\n")
	head := []string{"HOST", "STATE", "FOR", "RAFT", "ROLE", "ZONE", "ADDRESS"}
	if a.wide {
		head = append(head, "BOOT")
	}
	t := newTable(head...)
	for _, h := range m.Members {
		vote := ""
		switch {
		case h.Master:
			vote = "master"
		case h.Voter:
			vote = "voter"
		}
		cells := []string{string(h.Host), h.State, age(h.Since), vote, string(h.Role), h.Zone, h.Address}
		if a.wide {
			cells = append(cells, string(h.Boot))
		}
		t.row(cells, labelled("left", string(h.Left)), labelled("does not belong here", h.Stranger))
	}
	a.show(t)
}

func masterSentence(master haven.HostID, term haven.Term) string {
	if master == "" {
		return "There is no master; the term is " + term.String() + "."
	}
	return "Master is " + string(master) + ", term " + term.String() + "."
}

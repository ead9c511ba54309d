package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
)

func (a *app) fence() *cobra.Command {
	verbs := []*cobra.Command{a.fenceConfirm(), a.fenceRelease(), a.fenceCap(), a.fenceLog()}
	for _, v := range powerVerbs() {
		verbs = append(verbs, a.fencePower(v))
	}
	return group("fence", "Look after the power of hosts, and take part in fencing",
		"  haven fence test --all\n  haven fence confirm kvm-03 --reason \"I pulled both plugs\"", verbs...)
}

func hostPath(name, verb string) (string, error) {
	host, err := haven.ParseHostID(name)
	if err != nil {
		return "", usageError{err}
	}
	return "/v1/hosts/" + string(host) + "/" + verb, nil
}

func (a *app) fenceConfirm() *cobra.Command {
	cmd := &cobra.Command{
		Use: "confirm HOST --reason WHY", Short: "Say by name that a host is off, when no device can prove it", Args: cobra.ExactArgs(1),
		Long: `Say that a host is off. This is a proof like that of a BMC: its VMs are started
elsewhere at once. Look at the machine first. If it still runs, its VMs run
twice and destroy their disks.

It is refused while anything shows that the host lives; --force overrules that.
It shows what the cluster knows of the host and asks for the host's name before
it goes on, unless --yes is given.`,
		Example: "  haven fence confirm kvm-03 --reason \"I pulled both plugs\"\n  haven fence confirm kvm-03 --reason \"rack burnt\" --yes --by maria",
	}
	f := a.act(cmd, "how you know that it is off, for the record (required)")
	must(cmd.MarkFlagRequired("reason"))
	force := cmd.Flags().Bool("force", false, "even though something shows that the host lives")
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	cmd.ValidArgsFunction = a.completeHosts(f.target)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path, err := hostPath(args[0], "confirm-dead")
		if err != nil {
			return err
		}
		if strings.TrimSpace(f.reason) == "" {
			return usagef("--reason is empty: say how you know that %s is off", args[0])
		}
		if !*yes {
			if err := a.askToConfirm(cmd, f, args[0], *force); err != nil {
				return err
			}
		}
		return f.do(cmd.Context(), path, client.Act{Force: *force},
			fmt.Sprintf("%s is proved dead by your word; its VMs are started elsewhere. 'haven incidents' shows how it goes.", args[0]))
	}
	return cmd
}

func (a *app) fenceRelease() *cobra.Command {
	cmd := &cobra.Command{
		Use: "release HOST --reason WHY", Short: "Let a host that was fenced be given VMs again", Args: cobra.ExactArgs(1),
		Long: `With fencing.release: manual, a host that was fenced is given no VMs, even when
it is back and healthy, until somebody has looked at it and says so with this.
A host that is still away is released for its return. It is recorded.`,
		Example: "  haven fence release kvm-03 --reason \"new power supply, memory tested\"",
	}
	f := a.act(cmd, "what you found, for the record (required)")
	must(cmd.MarkFlagRequired("reason"))
	cmd.ValidArgsFunction = a.completeHosts(f.target)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path, err := hostPath(args[0], "fence/release")
		if err != nil {
			return err
		}
		if strings.TrimSpace(f.reason) == "" {
			return usagef("--reason is empty: others will want to know what was wrong with %s", args[0])
		}
		return f.do(cmd.Context(), path, client.Act{}, fmt.Sprintf("%s may be given VMs again.", args[0]))
	}
	return cmd
}

func (a *app) fenceLog() *cobra.Command {
	cmd := &cobra.Command{
		Use: "log", Short: "What operators did about power: who, what and why, the newest first", Args: cobra.NoArgs,
		Long: `What operators did about the power of hosts and about fencing, the newest first:
on, off, blink, confirm, release, trust-bmc and cap-reset. Power-offs that Haven
decided itself are in 'haven incidents'. The latest 256 are kept.`,
		Example: "  haven fence log\n  haven fence log -o json",
	}
	to := a.target(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return listed(a, cmd, to, client.PathActs, "act", nil, a.showActs, nil)
	}
	return cmd
}

func (a *app) showActs(all []client.FenceAct) {
	if len(all) == 0 {
		a.printf("Nobody did anything about power yet.\n")
		return
	}
	t := newTable("WHEN", "ACTION", "HOST", "BY")
	for _, act := range all {
		action := string(act.Action)
		if act.Force {
			action += " --force"
		}
		t.row([]string{act.At.UTC().Format(clock), action, orDash(string(act.Host)), act.By}, labelled("why", act.Reason))
	}
	a.show(t)
}

// askToConfirm shows what the cluster knows and what will follow, and wants the
// host's name. It writes to the error output, which stays on the terminal.
func (a *app) askToConfirm(cmd *cobra.Command, f *actFlags, name string, force bool) error {
	h, err := f.hostNow(cmd, name)
	if err != nil {
		return err
	}
	say := func(format string, args ...any) {
		writeWrapped(a.Stderr, "", oneLine(fmt.Sprintf(format, args...)), lineWidth)
	}
	say("%s is %s: %s", h.Host, h.Verdict, h.Explanation)
	say("network %s; storage %s; helper %s; power %s", pathText(h.Network), pathText(h.Storage), pathText(h.Helper), pathText(h.Power))
	if h.VMs > 0 {
		say("If you go on, %s of it will be started on other hosts at once. If %s still runs, they run twice and destroy their disks.", count(h.VMs, "protected VM"), h.Host)
	} else {
		say("It has no protected VM; if you go on, it counts as dead until it boots again.")
	}
	if force {
		say("--force: signs of life will not stop this.")
	}
	fmt.Fprintf(a.Stderr, "Type the host's name to go on: ")
	line, err := bufio.NewReader(io.LimitReader(a.Stdin, 256)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	if strings.TrimSpace(line) != name {
		fmt.Fprintln(a.Stderr)
		return errors.New("not confirmed: nothing was done (--yes skips the question)")
	}
	return nil
}

// hostNow asks what the master knows of a host.
func (f *actFlags) hostNow(cmd *cobra.Command, name string) (client.Host, error) {
	s, err := f.dial(cmd.Context())
	if err != nil {
		return client.Host{}, err
	}
	defer s.close()
	doc, err := s.get("/v1/hosts")
	if err != nil {
		return client.Host{}, err
	}
	hosts, err := decode[[]client.Host](doc)
	if err != nil {
		return client.Host{}, err
	}
	for _, h := range hosts {
		if string(h.Host) == name {
			return h, nil
		}
	}
	return client.Host{}, fmt.Errorf("there is no host %s in the cluster", name)
}

package cli

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
)

func (a *app) explain() *cobra.Command {
	cmd := &cobra.Command{
		Use: "explain INCIDENT|HOST", Short: "One incident, or what was concluded about one host lately, with all evidence", Args: cobra.ExactArgs(1),
		Long: `One incident from the first suspicion to the end: each step with the evidence
that it rested on, what held it back, the proof, the power-offs, and every VM
with its phases. Times in the time line count from the first suspicion; they are
taken by the clocks of the masters.

With a host's name: what is concluded about it now, and the latest changes of
its verdict, each with the evidence that it rested on. A host that changes all
the time is recorded less often, and then the number left out is told.`,
		Example: "  haven incidents\n  haven explain 1122-045449-kvm-03\n  haven explain kvm-03",
	}
	to := a.target(cmd)
	cmd.ValidArgsFunction = complete(to, "/v1/incidents", func(in client.Incident) (string, string) {
		return string(in.ID), string(in.Step)
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := view(a, cmd, to, "/v1/incidents/"+url.PathEscape(args[0]), a.showIncident)
		if errors.Is(err, haven.ErrNotFound) {
			err = a.explainHost(cmd, to, args[0])
		}
		if errors.Is(err, haven.ErrNotFound) {
			return fmt.Errorf("there is no incident and no host %s: 'haven incidents' and 'haven hosts' list them", args[0])
		}
		return err
	}
	return cmd
}

// explainHost shows what was concluded about a host.
func (a *app) explainHost(cmd *cobra.Command, to *target, host string) error {
	s, err := to.dial(cmd.Context())
	if err != nil {
		return err
	}
	defer s.close()
	doc, err := s.get(decisionsPath(host))
	if err != nil {
		return err
	}
	if a.json() {
		a.printRaw(doc)
		return nil
	}
	decisions, err := decode[[]client.Decision](doc)
	if err != nil {
		return err
	}
	if doc, err = s.get("/v1/hosts"); err != nil {
		return err
	}
	hosts, err := decode[[]client.Host](doc)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		if string(h.Host) == host {
			a.showHost(h)
		}
	}
	a.showDecisions(decisions)
	a.warnStale(s)
	return nil
}

// showDecisions lists changes of a verdict, the latest first.
func (a *app) showDecisions(decisions []client.Decision) {
	a.printf("\nDecisions, the latest first\n")
	if len(decisions) == 0 {
		a.wrapped("  ", "none was recorded")
	}
	for _, d := range decisions {
		from := "nothing recorded"
		if d.From != "" {
			from = string(d.From)
		}
		a.hanging("  "+d.At.UTC().Format(clock)+"  ", fmt.Sprintf("%s → %s, by %s in term %s: %s", from, d.To, d.By, d.Term, orDash(d.Why)))
		if d.LeftOut > 0 {
			a.wrapped("      ", fmt.Sprintf("%d changes before it were left out", d.LeftOut))
		}
		a.evidence("      ", d.Evidence)
	}
}

const clock = "2006-01-02 15:04:05.000 MST"

func (a *app) showIncident(in client.Incident) {
	a.wrapped("", fmt.Sprintf("Incident %s: %s is %s", in.ID, in.Host, in.Verdict))
	a.printf("\n")
	zero := begin(in)
	a.field("Step", string(in.Step))
	if in.Hold.Reason != "" {
		a.field("Held", a.hold(in.Hold))
	}
	if !in.SuspectedAt.IsZero() {
		a.field("Suspected", in.SuspectedAt.UTC().Format(clock))
	}
	a.field("Opened", fmt.Sprintf("%s, %s ago", in.OpenedAt.UTC().Format(clock), ago(a.Now().Sub(in.OpenedAt))))
	if !in.ClosedAt.IsZero() {
		a.field("Closed", fmt.Sprintf("%s, after %s", in.ClosedAt.UTC().Format(clock), precise(in.ClosedAt.Sub(zero))))
	}
	if in.Response != "" {
		a.field("Response", in.Response)
	}
	if in.Outcome != "" {
		a.field("Outcome", in.Outcome)
	}
	a.field("Boot", orDash(string(in.Boot)))
	if in.Recording != nil {
		a.field("Recording", fmt.Sprintf("%s on %s", in.Recording.Path, in.Recording.Host))
	}
	a.showFencing(in, zero)
	a.showIncidentVMs(in, zero)
	a.printf("\nTime line from %s\n", zero.UTC().Format(clock))
	var shown [][]haven.Evidence
	if in.Proof != nil {
		shown = append(shown, in.Proof.Evidence)
	}
	for _, e := range in.Timeline {
		a.hanging(fmt.Sprintf("%9s  %-10s  ", since(zero, e.At), e.Step), fmt.Sprintf("%s: %s", e.By, e.What))
		indent := strings.Repeat(" ", evidenceIndent)
		// One judgement often leads to several steps; its evidence is shown once.
		if len(e.Evidence) > 0 && slices.ContainsFunc(shown, func(s []haven.Evidence) bool { return slices.Equal(s, e.Evidence) }) {
			a.wrapped(indent, "on the same evidence as above")
			continue
		}
		a.evidence(indent, e.Evidence)
		shown = append(shown, e.Evidence)
	}
	if in.Dropped > 0 {
		a.wrapped("", fmt.Sprintf("%d lines from the middle are not kept.", in.Dropped))
	}
}

// evidenceIndent puts evidence a little to the right of what rests on it.
const evidenceIndent = 25

// begin is the moment from which times count.
func begin(in client.Incident) time.Time {
	zero := in.OpenedAt
	if !in.SuspectedAt.IsZero() && in.SuspectedAt.Before(zero) {
		zero = in.SuspectedAt
	}
	if len(in.Timeline) > 0 && in.Timeline[0].At.Before(zero) {
		zero = in.Timeline[0].At
	}
	return zero
}

func (a *app) showFencing(in client.Incident, zero time.Time) {
	a.printf("\nProof\n")
	if in.Proof == nil {
		a.wrapped("  ", "none yet: the host is not proved dead, so nothing of it is started elsewhere")
	} else {
		a.showProof(*in.Proof)
	}
	if len(in.Attempts) == 0 {
		return
	}
	a.printf("\nPower-downs\n")
	t := newTable("#", "ACTION", "BY", "BEGUN", "TOOK", "PROVED")
	for _, f := range in.Attempts {
		end := "under way"
		if !f.EndedAt.IsZero() {
			end = precise(f.EndedAt.Sub(f.BegunAt))
		}
		t.row([]string{fmt.Sprint(f.N), string(f.Action), string(f.By), since(zero, f.BegunAt), end, yesNo(f.Proved)}, f.Detail)
	}
	a.show(t)
}

func (a *app) showProof(p haven.Proof) {
	a.wrapped("  ", fmt.Sprintf("%s by %s, %s: %s", p.Kind, p.By, p.At.UTC().Format(clock), orDash(p.Detail)))
	a.wrapped("  ", "it holds for boot "+string(p.Boot)+" only")
	a.evidence("    ", p.Evidence)
}

func (a *app) showIncidentVMs(in client.Incident, zero time.Time) {
	if len(in.VMs) == 0 {
		return
	}
	a.printf("\nVMs\n")
	head := []string{"NAME", "PHASE", "HOST", "EPOCH", "ORDERED", "ANSWERED", "ANSWER"}
	if a.wide {
		head = append(head, "UUID")
	}
	t := newTable(head...)
	for _, v := range in.VMs {
		cells := []string{
			v.Name, v.Phase, string(v.Owner), fmt.Sprint(v.Epoch), since(zero, v.OrderedAt), since(zero, v.ReportedAt), string(v.Status),
		}
		if a.wide {
			cells = append(cells, string(v.VM))
		}
		t.row(cells, labelled("held", a.hold(v.Hold)), v.Explanation)
	}
	a.show(t)
}

// since says a moment as a distance from another.
func since(zero, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf("%+.3fs", t.Sub(zero).Seconds())
}

// precise says how long something took.
func precise(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.2fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/world"
)

// recovering watches one power cut: what the API tells of it, and the truth.
type recovering struct {
	*player
	victim   haven.HostID
	cut      time.Time
	verdicts []line
	latest   haven.Verdict
	incident client.Incident
}

// line is one line of a time line.
type line struct {
	at       time.Time
	who      string
	what     string
	evidence []haven.Evidence
}

// over says why the recovery is not over yet.
func (r *recovering) over(ctx context.Context) (string, error) {
	r.watchVerdict(ctx)
	if why := r.findIncident(ctx); why != "" {
		return why, nil
	}
	if r.incident.Step != haven.StepClosed {
		return fmt.Sprintf("incident %s is %s; %s", r.incident.ID, r.incident.Step, r.incident.Hold.Detail), nil
	}
	if why := r.notOnce(); why != "" {
		return why, nil
	}
	var vms []client.VM
	if err := r.get(ctx, "/v1/vms", &vms); err != nil {
		return err.Error(), nil
	}
	n := 0
	for _, vm := range vms {
		if !vm.Protected {
			continue
		}
		n++
		if vm.Phase != "owned" || vm.State != haven.VMRunning || vm.Owner == r.victim {
			return fmt.Sprintf("%s is %s by %s and %s", vm.Name, vm.Phase, vm.Owner, vm.State), nil
		}
	}
	if n != len(r.vms) {
		return fmt.Sprintf("%d of %d VMs are protected", n, len(r.vms)), nil
	}
	return "", nil
}

// watchVerdict notes each new verdict about the victim.
func (r *recovering) watchVerdict(ctx context.Context) {
	var hosts []client.Host
	if st, err := r.status(ctx); err != nil || st.Stale || r.get(ctx, "/v1/hosts", &hosts) != nil {
		return
	}
	i := slices.IndexFunc(hosts, func(h client.Host) bool { return h.Host == r.victim })
	if i < 0 {
		return
	}
	h := hosts[i]
	at := time.Now().Add(-h.VerdictAge.Duration())
	if h.Verdict == r.latest || at.Before(r.cut) {
		return
	}
	r.latest = h.Verdict
	r.verdicts = append(r.verdicts, line{at: at, who: "verdict", what: fmt.Sprintf("%s: %s", h.Verdict, h.Explanation)})
}

// findIncident reads the incident that the cut led to, or says why there is none.
func (r *recovering) findIncident(ctx context.Context) string {
	id := r.incident.ID
	if id == "" {
		var all []client.Incident
		if err := r.get(ctx, "/v1/incidents", &all); err != nil {
			return err.Error()
		}
		for _, in := range all {
			if in.Host == r.victim && in.OpenedAt.After(r.cut) {
				id = in.ID
			}
		}
	}
	if id == "" {
		return "no incident is open"
	}
	var in client.Incident
	if err := r.get(ctx, "/v1/incidents/"+string(id), &in); err != nil {
		return err.Error()
	}
	r.incident = in
	return ""
}

// timeline is what happened after a moment.
type timeline struct {
	origin time.Time
	lines  []line
}

func (r *recovering) timeline() timeline {
	t := timeline{origin: r.cut, lines: slices.Clone(r.verdicts)}
	for _, e := range r.truth.since(r.cut) {
		switch e.Kind {
		case world.PowerOff, world.PowerOn, world.VMRuns, world.VMEnds, world.Broken:
			t.lines = append(t.lines, line{at: e.at, who: "truth", what: e.Text})
		default: // no part of the story
		}
	}
	if in := r.incident; in.ID != "" {
		t.lines = append(t.lines, line{at: in.SuspectedAt, who: "suspected", what: "a path of " + string(in.Host) + " showed no life"})
		for _, e := range in.Timeline {
			t.lines = append(t.lines, entryLine(in, e))
		}
		for _, vm := range in.VMs {
			t.lines = append(t.lines,
				line{at: vm.OrderedAt, who: "order", what: fmt.Sprintf("%s to %s, epoch %d", vm.Name, vm.Owner, vm.Epoch)},
				line{at: vm.ReportedAt, who: "report", what: fmt.Sprintf("%s by %s: %s %s", vm.Name, vm.Owner, vm.Status, vm.Explanation)})
		}
	}
	t.lines = slices.DeleteFunc(t.lines, func(l line) bool { return l.at.IsZero() })
	slices.SortStableFunc(t.lines, func(a, b line) int { return a.at.Compare(b.at) })
	return t
}

// entryLine is one entry of an incident's time line. What proved the death is
// shown with all that was known then.
func entryLine(in client.Incident, e client.TimelineEntry) line {
	l := line{at: e.At, who: string(e.Step), what: fmt.Sprintf("%s (%s)", strings.TrimPrefix(e.What, string(e.Step)+": "), e.By)}
	if p := in.Proof; p != nil && e.Step == haven.StepProved {
		l.who, l.evidence = "proof", e.Evidence
		l.what = fmt.Sprintf("%s by %s: %s", p.Kind, p.By, p.Detail)
	}
	return l
}

// print writes the time line, milliseconds first.
func (t timeline) print(out io.Writer) {
	for _, l := range t.lines {
		fmt.Fprintf(out, "%8d ms  %-10s  %s\n", l.at.Sub(t.origin).Milliseconds(), l.who, strings.TrimSpace(l.what))
		for _, s := range grouped(l.evidence) {
			fmt.Fprintf(out, "%25s- %s\n", "", s)
		}
	}
}

// grouped renders evidence with one line for each question and answer.
func grouped(all []haven.Evidence) []string {
	var lines []string
	index := map[string]int{}
	for _, e := range all {
		head := fmt.Sprintf("%s: %s", e.Kind, e.Value)
		if e.Store != "" {
			head = fmt.Sprintf("%s on %s: %s", e.Kind, e.Store, e.Value)
		}
		word := fmt.Sprintf("%s, %s old", e.Observer, e.Age.Round(time.Millisecond))
		if e.Detail != "" {
			word += " (" + e.Detail + ")"
		}
		if i, ok := index[head]; ok {
			lines[i] += "; " + word
			continue
		}
		index[head] = len(lines)
		lines = append(lines, head+", by "+word)
	}
	return lines
}

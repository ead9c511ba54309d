package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/flight"
	"github.com/haven-ha/haven/internal/numbers"
)

// replayFlags are what a replay can be asked for.
type replayFlags struct {
	host    string
	all     bool
	profile string
	sets    []string
}

func (a *app) replay() *cobra.Command {
	cmd := &cobra.Command{
		Use: "replay FILE|INCIDENT", Short: "Judge a recorded incident again, also with other settings", Args: cobra.ExactArgs(1),
		Long: `Judge a recorded incident again: run what the master saw through the code that
judges, step by step, and show each change with its evidence. With a file no
cluster is needed; 'haven explain' tells where the recording of an incident is.
What is no file is an incident, whose recording the master is asked for, or else
the agent that answers. Masters before and after may have one, too.

Without --set and --profile the outcome is held against what was recorded. Exit
code 6 says that it is not the same, as when this tool is of another version
than the agent. With them, a table shows when each verdict would have come. What
neighbours and BMCs were asked, and when, is as it was recorded, and so is what
followed: the times of other settings are estimates. A suspicion that would have
come earlier finds answers only from when they were asked for.

With --output json each line is one document: the steps, then a summary.`,
		Example: "  haven replay 1122-045449-kvm-03\n  haven replay /var/lib/haven/flight/1122-045449-kvm-03.1.7.jsonl.gz\n" +
			"  haven replay FILE --set detection.suspect_after=2s --set detection.rounds=5\n  haven replay FILE --profile fast --host kvm-03",
	}
	f := &replayFlags{}
	to := a.target(cmd)
	cmd.Flags().StringVar(&f.host, "host", "", "only what concerns this `host`")
	cmd.Flags().BoolVar(&f.all, "all", false, "every step, not only changes; with --output json the evidence, too")
	cmd.Flags().StringVar(&f.profile, "profile", "", "what if the `profile` had been this one: fast, normal or calm")
	cmd.Flags().StringArrayVar(&f.sets, "set", nil, "what if a `key=value` of the configuration had been this; may be repeated")
	must(cmd.RegisterFlagCompletionFunc("profile", cobra.FixedCompletions([]string{"fast", "normal", "calm"}, cobra.ShellCompDirectiveNoFileComp)))
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return a.runReplay(cmd.Context(), to, args[0], f) }
	return cmd
}

func (a *app) runReplay(ctx context.Context, to *target, path string, f *replayFlags) (err error) {
	file, err := findRecording(ctx, to, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	r, err := flight.NewReader(file)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	other, err := f.other(r.Header.Judge)
	if err != nil {
		return err
	}
	v := &replayView{a: a, f: f, head: r.Header, other: other, diff: newDifference()}
	v.begin(r)
	sum, err := flight.Replay(r, other, v.step)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return v.end(path, sum)
}

// findRecording opens a file, or asks for the recording of an incident.
func findRecording(ctx context.Context, to *target, arg string) (io.ReadCloser, error) {
	f, err := openRecording(arg)
	if err == nil {
		return f, nil
	}
	if !errors.Is(err, fs.ErrNotExist) || strings.Contains(arg, "/") || strings.HasSuffix(arg, ".gz") || strings.HasSuffix(arg, ".part") {
		return nil, err
	}
	got := &fetched{ctx: ctx, to: to, id: haven.IncidentID(arg)}
	return got, got.next()
}

// fetched is a recording that is fetched piece by piece, as it is read. Each piece
// has the time of one question.
type fetched struct {
	ctx  context.Context //nolint:containedctx // a Reader is given none
	to   *target
	id   haven.IncidentID
	at   int64
	rest []byte
	from haven.HostID
}

// Read implements io.Reader.
func (f *fetched) Read(p []byte) (int, error) {
	if len(f.rest) == 0 {
		if err := f.next(); err != nil {
			return 0, err
		}
		if len(f.rest) == 0 {
			return 0, io.EOF
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// next fetches a piece; it is empty at the end.
func (f *fetched) next() error {
	s, err := f.to.dial(f.ctx)
	if err != nil {
		return err
	}
	defer s.close()
	doc, err := s.get(client.PathRecording(f.id, f.at))
	if errors.Is(err, haven.ErrNotFound) {
		return fmt.Errorf("there is no file %s, and no recording of such an incident: %w; 'haven explain' tells who has one", f.id, err)
	}
	if err != nil {
		return err
	}
	piece, err := decode[client.RecordingPiece](doc)
	switch {
	case err != nil:
		return err
	case f.from != "" && f.from != piece.Host:
		return fmt.Errorf("the recording of %s was being read, and now %s answers: try again", f.from, piece.Host)
	}
	f.from, f.rest, f.at = piece.Host, piece.Data, f.at+int64(len(piece.Data))
	return nil
}

// Close implements io.Closer.
func (f *fetched) Close() error { return nil }

// openRecording opens a file, or the same while it is being written.
func openRecording(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if part, partErr := os.Open(path + ".part"); partErr == nil {
			return part, nil
		}
	}
	return f, err
}

// other is what the judge is asked to judge by besides, or nil.
func (f *replayFlags) other(was detector.Config) (*detector.Config, error) {
	if f.profile == "" && len(f.sets) == 0 {
		return nil, nil //nolint:nilnil // no other settings is what nil says
	}
	c := was
	if f.profile != "" {
		var err error
		if c, err = profiled(was, f.profile); err != nil {
			return nil, err
		}
	}
	for _, s := range f.sets {
		if err := set(&c, s); err != nil {
			return nil, err
		}
	}
	numbers.Fit(&c)
	if err := c.Validate(); err != nil {
		return nil, usagef("these settings do not fit together: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return &c, nil
}

// replayView shows a replay while it goes on.
type replayView struct {
	a     *app
	f     *replayFlags
	head  flight.Header
	other *detector.Config
	diff  *difference

	begun bool
	zero  time.Duration // of the first change that was shown
	last  map[haven.HostID]shown
}

// shown is what was shown of a host last.
type shown struct {
	verdict   haven.Verdict
	hold      string
	suspected bool
	rounds    int
}

func (v *replayView) begin(r *flight.Reader) {
	v.last = map[haven.HostID]shown{}
	if v.a.json() {
		return
	}
	h := r.Header
	v.a.wrapped("", fmt.Sprintf("Incident %s: %s, recorded by %s as master of term %s (%s)", h.Subject.Incident, h.Subject.Host, h.Host, h.Subject.Term, orDash(h.Version)))
	for _, what := range r.Unknown {
		v.a.warnf("this version knows nothing of %s and leaves it out", what)
	}
	if v.other != nil {
		v.a.wrapped("", "What if: "+orDash(strings.Join(changedSettings(h.Judge, *v.other), ", ")))
	}
	v.a.printf("\n")
}

func (v *replayView) wanted(id haven.HostID) bool { return v.f.host == "" || v.f.host == string(id) }

// step shows one round.
func (v *replayView) step(r flight.Round) error {
	if v.other != nil {
		v.diff.take(r, v.wanted)
	}
	var news []*detector.Judgement
	for i := range r.Output.Hosts {
		j := &r.Output.Hosts[i]
		is := shown{j.Verdict, j.Hold.Reason, j.Suspected, j.Rounds}
		was, known := v.last[j.Host]
		v.last[j.Host] = is
		if v.wanted(j.Host) && (known && is != was || v.f.all && (v.f.host != "" || j.Verdict != haven.VerdictHealthy)) {
			news = append(news, j)
		}
	}
	if !v.begun && len(news) > 0 {
		v.begun, v.zero = true, r.At
		if !v.a.json() && v.other == nil {
			v.a.wrapped("", fmt.Sprintf("Times count from %s, by the clock of %s.", r.Wall.UTC().Format(clock), v.head.Host))
		}
	}
	switch {
	case v.a.json():
		return v.stepJSON(r, news)
	case v.other == nil:
		for _, j := range news {
			v.show(r, j)
		}
	}
	return nil
}

// show is one judgement for people.
func (v *replayView) show(r flight.Round, j *detector.Judgement) {
	a, at := v.a, r.At
	what := string(j.Verdict)
	if j.Changed && j.Was != "" {
		what = fmt.Sprintf("%s → %s", j.Was, j.Verdict)
	}
	if j.Suspected {
		what += fmt.Sprintf(", suspected, round %d of %d", j.Rounds, j.RoundsNeeded)
	}
	if j.MayFence() {
		what += ", " + fencePermit
	}
	a.hanging(fmt.Sprintf("%10s  ", offset(v.zero, &at)), fmt.Sprintf("%s: %s", j.Host, what))
	const indent = "            "
	a.wrapped(indent, j.Why)
	if len(j.Missing) > 0 {
		a.wrapped(indent, "missing: "+strings.Join(j.Missing, "; "))
	}
	if j.Hold.Held() {
		a.wrapped(indent, "held: "+j.Hold.Reason+": "+j.Hold.Detail)
	}
	if j.Changed || v.f.all {
		a.evidence(indent+"  ", j.Evidence)
	}
	if r.Differs != "" {
		a.wrapped(indent, "not as recorded: "+r.Differs)
	}
}

// stepDoc is a step for programs.
type stepDoc struct {
	Step    uint64                `json:"step"`
	Time    time.Time             `json:"time"`
	At      time.Duration         `json:"at"` // on the agent's own clock, in ns
	Hosts   []*detector.Judgement `json:"hosts,omitempty"`
	Differs string                `json:"differs,omitempty"`
	Input   *detector.Input       `json:"input,omitempty"`
	Output  *detector.Output      `json:"output,omitempty"`
	Other   *detector.Output      `json:"other,omitempty"`
}

func (v *replayView) stepJSON(r flight.Round, news []*detector.Judgement) error {
	if !v.f.all && len(news) == 0 && r.Differs == "" {
		return nil
	}
	d := stepDoc{Step: r.N, Time: r.Wall, At: r.At, Hosts: news, Differs: r.Differs}
	if v.f.all {
		d.Input, d.Output, d.Other, d.Hosts = &r.Input, r.Output, r.Other, nil
	}
	return v.line(d)
}

func (v *replayView) line(doc any) error {
	data, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	v.a.printf("%s\n", data)
	return nil
}

// summaryDoc is the last line for programs.
type summaryDoc struct {
	Incident haven.IncidentID `json:"incident"`
	Steps    uint64           `json:"steps"`
	Differ   uint64           `json:"differ"`
	First    string           `json:"first_difference,omitempty"`
	Whole    bool             `json:"whole_outputs_compared"`
	Missing  uint64           `json:"missing_steps,omitempty"`
	Ended    string           `json:"ended,omitempty"`
	Stopped  string           `json:"stopped,omitempty"`
	Settings []string         `json:"other_settings,omitempty"`
	Changes  []changeDoc      `json:"changes,omitempty"`
}

type changeDoc struct {
	Host     haven.HostID   `json:"host"`
	Becomes  string         `json:"becomes"`
	Recorded *time.Duration `json:"recorded_at,omitempty"`
	Other    *time.Duration `json:"other_at,omitempty"`
}

// end shows what came of it, and is an error if it is not what was recorded.
func (v *replayView) end(path string, sum flight.Summary) error {
	if v.a.json() {
		if err := v.line(v.summary(sum)); err != nil {
			return err
		}
	} else {
		v.conclude(sum)
	}
	if sum.Stopped != nil && !errors.Is(sum.Stopped, flight.ErrCut) {
		return fmt.Errorf("%s: %w; what came before it was replayed", path, sum.Stopped)
	}
	if sum.Differ > 0 {
		return exitError{ExitDiffers, fmt.Errorf("%d of %d steps are not as they were recorded, first at %s", sum.Differ, sum.Steps, sum.Where)}
	}
	return nil
}

func (v *replayView) summary(sum flight.Summary) summaryDoc {
	d := summaryDoc{
		Incident: v.head.Subject.Incident, Steps: sum.Steps, Differ: sum.Differ, First: sum.Where, Whole: sum.Checked, Ended: sum.End,
	}
	for _, g := range sum.Gaps {
		d.Missing += g.Steps
	}
	if sum.Stopped != nil {
		d.Stopped = sum.Stopped.Error()
	}
	if v.other != nil {
		d.Settings = changedSettings(v.head.Judge, *v.other)
		slices.SortStableFunc(v.diff.rows, func(a, b *differenceRow) int { return int(a.first() - b.first()) })
		for _, r := range v.diff.rows {
			d.Changes = append(d.Changes, changeDoc{r.host, r.what, r.times[0], r.times[1]})
		}
	}
	return d
}

func (v *replayView) conclude(sum flight.Summary) {
	a := v.a
	switch {
	case v.other != nil && len(v.diff.rows) > 0:
		a.show(v.diff.table(v.zero))
		if v.diff.more {
			a.warnf("there are more changes than are shown")
		}
	case !v.begun:
		a.printf("No verdict changed.\n")
	}
	a.printf("\n")
	if sum.Differ == 0 && sum.Steps > 0 {
		same := "verdict and hold"
		if sum.Checked {
			same = "word"
		}
		a.wrapped("", fmt.Sprintf("%s in %s, the same as recorded in every %s.", count(int(sum.Steps), "step"), count(sum.Blocks, "block"), same))
	}
	for _, g := range sum.Gaps {
		a.wrapped("", fmt.Sprintf("Missing before line %d: %s (%s).", g.Line, count(int(g.Steps), "step"), g.Why))
	}
	if sum.End != "" {
		a.wrapped("", "The recording ended: "+sum.End+".")
	}
	if errors.Is(sum.Stopped, flight.ErrCut) {
		a.warnf("%v; what is there was replayed", sum.Stopped)
	}
}

package flight

import (
	"errors"
	"fmt"
	"io"
	"reflect"

	"github.com/haven-ha/haven/detector"
)

// Round is one recorded step, judged again.
type Round struct {
	*Step
	Line int
	// Output is what the judge concludes with the recorded settings.
	Output *detector.Output
	// Other is what it concludes with other settings, if any were given.
	Other *detector.Output
	// Differs says where the output is not the recorded one; empty if it is.
	Differs string
}

// Summary is what came of a replay.
type Summary struct {
	Steps   uint64
	Blocks  int
	Differ  uint64 // steps whose output is not the recorded one, or memory at the start of a block
	Where   string // the first of them
	Checked bool   // whole outputs were compared; else verdicts and holds only
	Gaps    []GapAt
	End     string // why the recording ended; empty if nobody said so
	// Stopped is why the rest of the recording could not be read: ErrCut or a
	// LineError. All that came before it was replayed.
	Stopped error
}

// GapAt is a stretch that is missing before a line.
type GapAt struct {
	Line int
	Gap
}

// Replay judges a recording again, with its own settings, and with others beside
// if other is not nil. It calls visit with each step and stops when that fails.
func Replay(r *Reader, other *detector.Config, visit func(Round) error) (Summary, error) {
	p := player{r: r, other: other, sum: Summary{Checked: r.Header.Output == shape() && len(r.Unknown) == 0}}
	for {
		ev, err := r.Next()
		if errors.Is(err, io.EOF) {
			if p.sum.End == "" {
				p.sum.Stopped = ErrCut
			}
			return p.sum, nil
		}
		if err != nil {
			p.sum.Stopped = err
			return p.sum, nil
		}
		if err := p.take(ev, visit); err != nil {
			return p.sum, err
		}
	}
}

type player struct {
	r       *Reader
	other   *detector.Config
	sum     Summary
	m, what *detector.Machine
	next    uint64
}

func (p *player) take(ev Event, visit func(Round) error) error {
	switch {
	case ev.Block != nil:
		return p.start(ev)
	case ev.Gap != nil:
		p.sum.Gaps = appendGap(p.sum.Gaps, GapAt{ev.Line, *ev.Gap})
	case ev.Lost != nil:
		p.sum.Gaps = appendGap(p.sum.Gaps, GapAt{ev.Line, Gap{uint64(max(0, ev.Lost.Steps)), "could not be written: " + ev.Lost.Why}})
	case ev.End != nil:
		p.sum.End = ev.End.Why
	case ev.Step != nil:
		return visit(p.step(ev))
	}
	return nil
}

// maxGaps bounds what is remembered of a recording.
const maxGaps = 1000

func appendGap(all []GapAt, g GapAt) []GapAt {
	if len(all) < maxGaps {
		all = append(all, g)
	}
	return all
}

// start goes on from what the judge remembered. Where nothing is missing, that
// must be what this judge remembers, too. The other judge goes on with its own.
func (p *player) start(ev Event) error {
	p.sum.Blocks++
	if p.m == nil || ev.Block.First != p.next {
		m, err := detector.Restore(p.r.Header.Judge, ev.Block.State)
		if err != nil {
			return &LineError{1, fmt.Errorf("the recorded settings cannot be used: %w", err)}
		}
		p.m = m
	} else if p.sum.Checked && !reflect.DeepEqual(p.m.Snapshot(), normal(ev.Block.State)) {
		p.differs(fmt.Sprintf("line %d: what the judge remembered before step %d", ev.Line, ev.Block.First))
	}
	if p.other != nil && p.what == nil {
		m, err := detector.Restore(*p.other, ev.Block.State)
		if err != nil {
			return fmt.Errorf("the other settings cannot be used: %w", err)
		}
		p.what = m
	}
	p.next = ev.Block.First
	return nil
}

// normal gives a snapshot that was read the form of one that was taken: a file
// does not tell an empty list from none.
func normal(s detector.Snapshot) detector.Snapshot {
	m, err := detector.Restore(detector.Normal(), s)
	if err != nil {
		return s
	}
	return m.Snapshot()
}

func (p *player) differs(where string) {
	p.sum.Differ++
	if p.sum.Where == "" {
		p.sum.Where = where
	}
}

func (p *player) step(ev Event) Round {
	s := ev.Step
	out := p.m.Step(s.At, s.Input)
	round := Round{Step: s, Line: ev.Line, Output: &out}
	if p.what != nil {
		other := p.what.Step(s.At, s.Input)
		round.Other = &other
	}
	p.sum.Steps++
	p.next = s.N + 1
	round.Differs = compare(s, &out, p.sum.Checked)
	if round.Differs != "" {
		p.differs(fmt.Sprintf("line %d, step %d: %s", ev.Line, s.N, round.Differs))
	}
	return round
}

// compare says how an output differs from the recorded one.
func compare(s *Step, out *detector.Output, whole bool) string {
	for i := range out.Hosts {
		got := markOf(&out.Hosts[i])
		want, known := s.marks[string(got.Host)]
		if !known || got != want {
			return fmt.Sprintf("%s is %s, was recorded as %s", got.Host, got, want)
		}
	}
	if got := fmt.Sprintf("%016x", sum(out)); whole && got != s.sum {
		return fmt.Sprintf("the verdicts are the same, but some reason or number is not (%s, was %s)", got, s.sum)
	}
	return ""
}

func (m mark) String() string {
	s := string(m.Verdict)
	if s == "" {
		s = "not judged"
	}
	if m.Hold != "" {
		s += " held by " + m.Hold
	}
	if m.Suspected {
		s += ", suspected"
	}
	if m.Fence {
		s += ", to be fenced"
	}
	return s
}

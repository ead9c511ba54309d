package recovery

import (
	"slices"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/ledger"
)

// Bounds of what is recorded of one host: a host that changes its face all the
// time must not fill the log of the whole cluster.
const (
	decisionsPer    = 8
	decisionsWindow = 5 * time.Minute
)

// face is what this master has seen of one host's verdicts.
type face struct {
	seen     haven.Verdict
	since    time.Time   // since when it has been as it is
	changes  int         // since the last one that was recorded
	at       []time.Time // of the latest that were recorded
	recorded haven.Verdict
}

// decide records changes of verdicts (P9). What stands in the ledger is compared
// with what is so now, so that a new master goes on where the old one ended, and
// a record that was lost is made again.
func (m *Machine) decide(s *ledger.State) {
	last := map[haven.HostID]haven.Verdict{}
	for _, d := range s.Decisions {
		last[d.Host] = d.To
	}
	var all []ledger.Decision
	for _, id := range s.HostIDs() {
		view, judged := m.in.Hosts[id]
		if !judged || view.Verdict == "" {
			continue
		}
		f := m.faces[id]
		if f == nil {
			f = &face{}
			m.faces[id] = f
		}
		if was, ok := last[id]; ok {
			f.recorded = was
		}
		if d, ok := m.changed(f, view); ok {
			d.Host, d.Boot = id, s.Hosts[id].Boot
			all = append(all, d)
		}
	}
	if len(all) > 0 {
		m.propose(ledger.RecordDecisions{Decisions: all})
	}
	for id := range m.faces {
		if s.Hosts[id] == nil {
			delete(m.faces, id)
		}
	}
}

// changed says whether a verdict is another one than the recorded one, for long
// enough and not too often.
func (m *Machine) changed(f *face, view HostView) (ledger.Decision, bool) {
	if view.Verdict != f.seen {
		f.seen, f.since = view.Verdict, m.now
		f.changes++
	}
	if view.Verdict == f.recorded {
		return ledger.Decision{}, false
	}
	// A master that is new, or cannot trust itself for a moment, knows nothing of
	// anybody; that is no news of each of them.
	if left := m.cfg.ReportAfter - m.now.Sub(f.since); view.Verdict == haven.VerdictUnknown && left > 0 {
		m.wake(left)
		return ledger.Decision{}, false
	}
	f.at = slices.DeleteFunc(f.at, func(t time.Time) bool { return m.now.Sub(t) >= decisionsWindow })
	if len(f.at) >= decisionsPer {
		return ledger.Decision{}, false
	}
	d := ledger.Decision{
		At: m.now, Term: m.in.Term, By: m.in.Self, From: f.recorded, To: view.Verdict, Why: view.Explanation,
		Evidence: view.Evidence[:min(len(view.Evidence), ledger.MaxDecisionEvidence)], LeftOut: max(0, f.changes-1),
	}
	f.at = append(f.at, m.now)
	f.recorded, f.changes = view.Verdict, 0
	return d, true
}

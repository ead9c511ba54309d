package ledger

import (
	"slices"
	"strings"
	"time"

	"github.com/haven-ha/haven"
)

// Limits of the record of decisions.
const (
	MaxDecisions        = 256 // the latest, of all hosts
	MaxDecisionEvidence = 16  // of one decision
	MaxDecisionWhy      = 400 // octets
)

// Decision is one change of a verdict, as the master concluded it (P9).
type Decision struct {
	At       time.Time        `json:"at"`
	Term     haven.Term       `json:"term"`
	By       haven.HostID     `json:"by"`
	Host     haven.HostID     `json:"host"`
	Boot     haven.BootID     `json:"boot,omitempty"`
	From     haven.Verdict    `json:"from,omitempty"` // empty: nothing was recorded before
	To       haven.Verdict    `json:"to"`
	Why      string           `json:"why,omitempty"`
	Evidence []haven.Evidence `json:"evidence,omitempty"`
	// LeftOut counts the changes since the decision before that were not recorded,
	// because the host changed its face too often.
	LeftOut int `json:"left_out,omitempty"`
}

// RecordDecisions records changes of verdicts.
type RecordDecisions struct {
	Decisions []Decision `json:"decisions"`
}

func (c RecordDecisions) apply(s *State, _ Position) error {
	for _, d := range c.Decisions {
		if d.Host == "" || d.To == "" {
			return reject("a decision without host or verdict")
		}
	}
	for _, d := range c.Decisions {
		if slices.ContainsFunc(s.Decisions, d.same) {
			continue // a command may be in the log twice
		}
		if len(d.Evidence) > MaxDecisionEvidence {
			d.Evidence = d.Evidence[:MaxDecisionEvidence]
		}
		if len(d.Why) > MaxDecisionWhy {
			d.Why = strings.ToValidUTF8(d.Why[:MaxDecisionWhy], "") // it may be cut within a character
		}
		s.Decisions = append(s.Decisions, d)
	}
	s.Decisions = keepLast(s.Decisions, MaxDecisions)
	return nil
}

func (d Decision) same(o Decision) bool {
	return d.At.Equal(o.At) && d.Term == o.Term && d.By == o.By && d.Host == o.Host && d.To == o.To
}

// LastDecision returns the latest decision about a host.
func (s *State) LastDecision(host haven.HostID) (Decision, bool) {
	for _, d := range slices.Backward(s.Decisions) {
		if d.Host == host {
			return d, true
		}
	}
	return Decision{}, false
}

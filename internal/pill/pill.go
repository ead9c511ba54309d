// Package pill decides what a host does about the poison pills in its mailboxes.
//
// Deciding is pure: what was read, and what a master answered, goes in; whether to
// ask and whether to obey comes out.
package pill

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/storagebeat"
)

// The defaults of Config.
const (
	// DefaultPatience is for how long a host tries to reach a master before it
	// obeys: several questions of a second each.
	DefaultPatience = 5 * time.Second
	// DefaultFresh is how old the reading may be that still shows a pill: some beats.
	DefaultFresh = 4 * time.Second
	// DefaultGap is how far apart two steps may be: a process that stood still for
	// longer has not tried to reach a master meanwhile.
	DefaultGap = time.Second
)

// maxVoid bounds the pills that are remembered as void.
const maxVoid = 32

// Config is about one host in one boot. Zero times mean the defaults.
type Config struct {
	Boot haven.BootID
	// Enabled says that the host obeys at all.
	Enabled              bool
	Patience, Fresh, Gap time.Duration
}

// Letter is what one mailbox held when it was last read.
type Letter struct {
	Store  string
	Read   time.Time // start of that reading
	Pill   storagebeat.Pill
	Sealed bool // with the cluster's key
}

// Name tells one pill from others: the attempt that it is about, and in which term
// it was written.
type Name struct {
	Incident haven.IncidentID
	Attempt  uint32
	Term     haven.Term
}

func nameOf(p storagebeat.Pill) Name { return Name{p.Incident, p.Attempt, p.Term} }

// until says whether n was written, about the same incident, not after m.
func (n Name) until(m Name) bool {
	return n.Incident == m.Incident && cmp.Or(n.Term.Compare(m.Term), cmp.Compare(n.Attempt, m.Attempt)) <= 0
}

// Answer is what a master that had just verified that it leads said about a pill.
type Answer struct {
	Name
	Stands bool
	Why    string
}

// Input is what is known at one moment.
type Input struct {
	Letters []Letter
	// Highest is the newest term that this host knows.
	Highest haven.Term
	// Heard is when a master last took a report of this host; zero: never.
	Heard   time.Time
	Answers []Answer // since the last step
	// Slept says that the machine was suspended since the last step, which now does
	// not show.
	Slept bool
}

// Output is what follows.
type Output struct {
	// Ask is the pill to ask a master about; nil for none.
	Ask *storagebeat.Pill
	// Obey is the pill to obey now, Why tells what speaks for that.
	Obey *storagebeat.Pill
	Why  string
	// Ignored tells, of each pill that is not obeyed whatever a master says, why.
	Ignored []Ignored
}

// Ignored is a pill that is not obeyed.
type Ignored struct {
	Store string
	Pill  storagebeat.Pill
	Why   string
}

// Machine remembers which pill is considered, and which were settled. It is not
// safe for concurrent use.
type Machine struct {
	cfg    Config
	void   []Name // taken back, or refused by a master
	last   time.Time
	name   Name      // of the pill that is considered
	since  time.Time // from when on its patience counts; zero when none is considered
	stands bool      // a master said that it stands
}

// New returns a machine that knows of no pill.
func New(cfg Config) *Machine {
	cfg.Patience = cmp.Or(cfg.Patience, DefaultPatience)
	cfg.Fresh = cmp.Or(cfg.Fresh, DefaultFresh)
	cfg.Gap = cmp.Or(cfg.Gap, DefaultGap)
	return &Machine{cfg: cfg}
}

// Step takes what is known at the moment now, which never goes back.
func (m *Machine) Step(now time.Time, in Input) (out Output) {
	stood := in.Slept || !m.last.IsZero() && now.Sub(m.last) > m.cfg.Gap
	m.last = now
	m.settle(in)
	var best *storagebeat.Pill
	for _, l := range in.Letters {
		if l.Pill.Withdrawn || l.Read.IsZero() || now.Sub(l.Read) > m.cfg.Fresh {
			continue // What is not read now may have been taken back.
		}
		if why := m.ignores(l, in.Highest); why != "" {
			out.Ignored = append(out.Ignored, Ignored{l.Store, l.Pill, why})
			continue
		}
		if p := l.Pill; best == nil || newer(p, *best) {
			best = &p
		}
	}
	if best == nil {
		m.since = time.Time{}
		return out
	}
	if name := nameOf(*best); m.since.IsZero() || name != m.name {
		m.name, m.since, m.stands = name, now, false
	} else if stood {
		m.since = now
	}
	for _, a := range in.Answers {
		m.stands = m.stands || a.Name == m.name && a.Stands
	}
	silent := now.Sub(m.since)
	if in.Heard.After(m.since) {
		silent = now.Sub(in.Heard)
	}
	switch {
	case m.stands:
		out.Obey, out.Why = best, "the master says that it stands"
	case silent >= m.cfg.Patience:
		out.Obey, out.Why = best, fmt.Sprintf("no master was reached for %s", silent.Round(time.Millisecond))
	default:
		out.Ask = best
	}
	return out
}

// settle remembers what was taken back or refused. It stays so, also when an older
// state of a store comes back.
func (m *Machine) settle(in Input) {
	for _, l := range in.Letters {
		if l.Sealed && l.Pill.Withdrawn {
			m.forget(nameOf(l.Pill))
		}
	}
	for _, a := range in.Answers {
		if !a.Stands {
			m.forget(a.Name)
		}
	}
}

func (m *Machine) forget(n Name) {
	if slices.ContainsFunc(m.void, n.until) {
		return
	}
	m.void = append(slices.DeleteFunc(m.void, func(o Name) bool { return o.until(n) }), n)
	if len(m.void) > maxVoid {
		m.void = slices.Delete(m.void, 0, 1)
	}
}

// ignores says why a pill is not obeyed whatever a master says. The order is that
// of what tells most.
func (m *Machine) ignores(l Letter, highest haven.Term) string {
	p := l.Pill
	switch {
	case !l.Sealed:
		return "it does not bear the seal of this cluster's gossip key"
	case p.Boot != m.cfg.Boot:
		return "it is for boot " + string(p.Boot)
	case p.Term.Older(highest):
		return fmt.Sprintf("it is of term %s, and %s was seen", p.Term, highest)
	case slices.ContainsFunc(m.void, nameOf(p).until):
		return "it was taken back, or a master said that it does not stand"
	case !m.cfg.Enabled:
		return "fencing.poison_pill is off for this host"
	}
	return ""
}

// newer says whether p was written after q, as far as that can be told.
func newer(p, q storagebeat.Pill) bool {
	return cmp.Or(p.Term.Compare(q.Term), cmp.Compare(p.Incident, q.Incident), cmp.Compare(p.Attempt, q.Attempt)) > 0
}

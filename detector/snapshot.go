package detector

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/haven-ha/haven"
)

// Snapshot is all that a Machine remembers between two steps. A Machine that is
// given it back judges what comes next exactly as the first one does. It is for
// recordings of the past: an agent never begins with one (see Machine).
type Snapshot struct {
	Now          time.Duration            `json:"now"`
	Trusted      bool                     `json:"trusted,omitempty"`
	TrustedSince time.Duration            `json:"trusted_since,omitempty"`
	Holds        []Hold                   `json:"holds,omitempty"` // the cluster's
	Mass         MassSnapshot             `json:"mass,omitzero"`
	StoreSince   map[string]time.Duration `json:"store_since,omitempty"`
	Hosts        []HostSnapshot           `json:"hosts,omitempty"` // in order of their names
}

// MassSnapshot is what a Machine remembers of its mass-failure brake.
type MassSnapshot struct {
	Closed bool           `json:"closed,omitempty"`
	Shown  bool           `json:"shown,omitempty"` // it has held something back
	Calm   *time.Duration `json:"calm,omitempty"`
}

// HostSnapshot is what a Machine remembers of one host. An instant that has not
// come yet is nil.
type HostSnapshot struct {
	Host           haven.HostID      `json:"host"`
	Writer         bool              `json:"writer,omitempty"`
	First          time.Duration     `json:"first"`
	Net            *time.Duration    `json:"net,omitempty"`
	Helper         *time.Duration    `json:"helper,omitempty"`
	Life           *time.Duration    `json:"life,omitempty"`
	Boot           haven.BootID      `json:"boot,omitempty"`
	BootAt         *time.Duration    `json:"boot_at,omitempty"`
	ProvedAt       *time.Duration    `json:"proved_at,omitempty"`
	Expected       bool              `json:"expected,omitempty"`
	Due            time.Duration     `json:"due,omitempty"`
	Alive          *time.Duration    `json:"alive,omitempty"`
	Suspected      bool              `json:"suspected,omitempty"`
	SuspectedSince time.Duration     `json:"suspected_since,omitempty"`
	Rounds         int               `json:"rounds,omitempty"`
	RoundStart     time.Duration     `json:"round_start,omitempty"`
	Left           haven.LeaveReason `json:"left,omitempty"`
	LeftAt         time.Duration     `json:"left_at,omitempty"`
	Verdict        haven.Verdict     `json:"verdict,omitempty"`
	Since          time.Duration     `json:"since,omitempty"`
	Hold           Hold              `json:"hold,omitzero"`
	Failed         bool              `json:"failed,omitempty"` // found failed, and no life since
	Wrote          bool              `json:"wrote,omitempty"`  // found unreachable, and not idle since
	Quarantine     Hold              `json:"quarantine,omitzero"`
	Calm           *time.Duration    `json:"calm,omitempty"`
	Falls          []time.Duration   `json:"falls,omitempty"`
	Fallen         int               `json:"fallen,omitempty"`
	Probed         *time.Duration    `json:"probed,omitempty"`
	Read           *time.Duration    `json:"read,omitempty"`
	OffAt          *time.Duration    `json:"off_at,omitempty"`
}

// Snapshot copies what m remembers.
func (m *Machine) Snapshot() Snapshot {
	s := Snapshot{
		Now: m.now, Trusted: m.trusted, TrustedSince: m.trustedSince,
		Holds: slices.Clone(m.holds), Mass: MassSnapshot{m.mass.closed, m.mass.shown, m.mass.calm.copied()}, StoreSince: maps.Clone(m.storeSince),
		Hosts: make([]HostSnapshot, 0, len(m.hosts)),
	}
	for id, st := range m.hosts {
		h := HostSnapshot{
			Host: id, Writer: st.writer, First: st.since0,
			Net: st.net.copied(), Helper: st.helper.copied(), Life: st.life.copied(), Boot: st.boot, BootAt: st.bootAt.copied(), ProvedAt: st.provedAt.copied(),
			Expected: st.expected, Due: st.due, Alive: st.alive.copied(), Suspected: st.suspected, SuspectedSince: st.suspectedSince,
			Rounds: st.rounds, RoundStart: st.roundStart, Left: st.left, LeftAt: st.leftAt, Verdict: st.verdict, Since: st.since,
			Hold: st.hold, Failed: st.failed, Wrote: st.wrote, Quarantine: st.quarantine, Calm: st.calm.copied(), Fallen: st.fallen, Probed: st.probed.copied(), Read: st.read.copied(), OffAt: st.offAt.copied(),
		}
		if st.fallen > 0 {
			h.Falls = slices.Clone(st.falls[:min(st.fallen, maxFlapCount)])
		}
		s.Hosts = append(s.Hosts, h)
	}
	slices.SortFunc(s.Hosts, func(a, b HostSnapshot) int { return cmp.Compare(a.Host, b.Host) })
	return s
}

// Restore returns a Machine that judges by cfg and remembers s, or the faults of
// cfg.
func Restore(cfg Config, s Snapshot) (*Machine, error) {
	m, err := New(cfg)
	if err != nil {
		return nil, err
	}
	m.now, m.trusted, m.trustedSince = s.Now, s.Trusted, s.TrustedSince
	m.holds = slices.Clone(s.Holds)
	m.mass = massBrake{closed: s.Mass.Closed, shown: s.Mass.Shown, calm: momentOf(s.Mass.Calm)}
	maps.Copy(m.storeSince, s.StoreSince)
	for _, h := range s.Hosts {
		st := &hostState{
			writer: h.Writer, since0: h.First,
			net: momentOf(h.Net), helper: momentOf(h.Helper), life: momentOf(h.Life), boot: h.Boot, bootAt: momentOf(h.BootAt), provedAt: momentOf(h.ProvedAt),
			expected: h.Expected, due: h.Due, alive: momentOf(h.Alive), suspected: h.Suspected, suspectedSince: h.SuspectedSince,
			rounds: h.Rounds, roundStart: h.RoundStart, left: h.Left, leftAt: h.LeftAt, verdict: h.Verdict, since: h.Since,
			hold: h.Hold, failed: h.Failed, wrote: h.Wrote, quarantine: h.Quarantine, calm: momentOf(h.Calm), fallen: max(0, h.Fallen), probed: momentOf(h.Probed), read: momentOf(h.Read), offAt: momentOf(h.OffAt),
		}
		copy(st.falls[:], h.Falls)
		m.hosts[h.Host] = st
	}
	return m, nil
}

func (m moment) copied() *time.Duration {
	if !m.ok {
		return nil
	}
	return &m.at
}

func momentOf(at *time.Duration) moment {
	if at == nil {
		return moment{}
	}
	return moment{ok: true, at: *at}
}

package fencing

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/haven-ha/haven"
)

// Margins of a proof by time.
const (
	// timeMargin comes on top of what a host promised: 2 s, and 2 % for two clocks
	// of which each may be wrong by one.
	timeMargin = 2 * time.Second
	clockShare = 50
	clockTold  = 40 // for what two other clocks measured of each other: 2.5 %
)

// TimeState says how far a proof by time is.
type TimeState string

// The states of a count.
const (
	TimeUnarmed TimeState = "not-armed" // nothing is promised, or the host says that it disarmed
	TimeUnknown TimeState = "unknown"   // it cannot be counted now
	TimeWaiting TimeState = "waiting"   // the time is not over yet
	TimeProved  TimeState = "proved"    // the watchdog must have fired
)

// TimeCount is what follows from the watchdog of a host.
type TimeCount struct {
	State TimeState
	// Left is how long it takes yet at least, while it is waiting.
	Left time.Duration
	// Why says it to people; the host is "it".
	Why string
	// Boot is the one that was counted.
	Boot haven.BootID
	// Base is the latest moment at which the host may have had life, Bound what it
	// promised. Both are zero without a promise.
	Base  time.Time
	Bound time.Duration
}

// BeatSight is the record of a host's agent on one store, as one reader saw it.
type BeatSight struct {
	Reader haven.HostID
	Store  string // its identity; empty when that is not known
	Name   string // of the store, for people
	// Vouched says that the record was read whole, in a read in which the reader
	// found its own beat as well. Of any other sight only the life that it shows
	// counts.
	Vouched bool
	Moving  bool
	// Changed says that the reader saw the record change: ChangedAt is not just when
	// it read it for the first time.
	Changed bool
	Boot    haven.BootID // empty when no record was ever seen
	// Watchdog is the bound that the record says, 0 when it says that none is armed.
	Watchdog time.Duration
	// ReadAt is no later than the start of that read, ChangedAt no earlier than the
	// start of the read that saw the record's last change; both by the caller's
	// clock. Zero when there was none.
	ReadAt, ChangedAt time.Time
}

// TimeInput is what a count rests on at one moment.
type TimeInput struct {
	Now  time.Time
	Boot haven.BootID // that the ledger knows
	// Promised is what the ledger holds of that boot.
	Promised haven.Watchdog
	// Acked is no earlier than any report of that boot that was answered by this
	// master, and than the moment at which it became the master: what earlier
	// masters answered they answered before.
	Acked time.Time
	// ReadTimeout bounds one read of a store.
	ReadTimeout time.Duration
	Sights      []BeatSight
}

// ByTime counts down the watchdog of one host, for one master in one term.
//
// To outlive its promise after a moment, a host needs an answer to a report sent
// after it, which this master would have given, or the completed write of a beat
// to a declared store begun after it and completed within the promise; any read
// of that store that begins later shows that write. So the host is over when
// every declared store was read after the promise, and its record there was the
// one of before. What was read is not seen again: a read counts for ever, and
// later signs of life move the base beyond it.
type ByTime struct {
	boot  haven.BootID
	base  time.Time
	reads map[string]time.Time // the latest start of a read that vouches for a record of this boot, by store
	names map[string]string
}

// Step takes in what is known now and counts.
func (b *ByTime) Step(in TimeInput) TimeCount {
	if b.boot != in.Boot || b.reads == nil {
		*b = ByTime{boot: in.Boot, reads: map[string]time.Time{}, names: map[string]string{}}
	}
	b.base = later(b.base, in.Acked)
	bound := in.Promised.Bound
	for _, s := range in.Sights {
		if s.Store != "" && s.Name != "" {
			b.names[s.Store] = s.Name
		}
		if s.Boot != in.Boot || s.Boot == "" {
			continue
		}
		// Its last write began before the read that saw it ended.
		b.base = later(b.base, s.ChangedAt.Add(in.ReadTimeout))
		if !s.Vouched {
			continue // It may be what a reader that lost the store remembers.
		}
		bound = max(bound, s.Watchdog)
		if s.Watchdog > 0 && s.Store != "" {
			b.reads[s.Store] = later(b.reads[s.Store], s.ReadAt)
		}
	}
	if !in.Promised.Armed() || in.Boot == "" {
		return TimeCount{State: TimeUnarmed, Boot: in.Boot, Why: "its watchdog is not armed"}
	}
	c := TimeCount{Boot: in.Boot, Base: b.base, Bound: bound}
	if why := contradicts(in); why != "" {
		c.State, c.Why = TimeUnarmed, why
		return c
	}
	b.count(in, &c)
	return c
}

// contradicts says what a host's records tell that does not go with a promise. What
// a record says counts only from a reader that vouches for it: one that lost its
// way to the store remembers what was long ago. Where nothing was declared the
// record may be of before the arming, unless it was seen to change after all others.
func contradicts(in TimeInput) string {
	var newest BeatSight
	for _, s := range in.Sights {
		declared := slices.Contains(in.Promised.Stores, s.Store)
		switch {
		case s.Boot == in.Boot && s.Boot != "" && s.Moving:
			return fmt.Sprintf("its watchdog is fed: its beat on store %s moves, as %s reads it", s.called(), s.Reader)
		case s.Boot == "" || !s.Vouched:
			continue
		case s.Boot != in.Boot && declared:
			return fmt.Sprintf("its watchdog cannot be counted: its beat on store %s is of another boot, as %s reads it", s.called(), s.Reader)
		case s.Boot != in.Boot:
			continue
		case declared && s.Watchdog <= 0:
			return fmt.Sprintf("its watchdog is disarmed, by its beat on store %s as %s reads it", s.called(), s.Reader)
		}
		if (declared || s.Changed) && s.ChangedAt.After(newest.ChangedAt) {
			newest = s
		}
	}
	if newest.Boot != "" && newest.Watchdog <= 0 {
		return fmt.Sprintf("its watchdog is disarmed, by its latest beat, on store %s as %s reads it", newest.called(), newest.Reader)
	}
	return ""
}

// count holds the reads of the declared stores against the promise.
func (b *ByTime) count(in TimeInput, c *TimeCount) {
	if b.base.IsZero() {
		c.State, c.Why = TimeUnknown, "its watchdog cannot be counted: nothing says since when"
		return
	}
	over := b.base.Add(c.Bound + c.Bound/clockShare + timeMargin)
	if left := over.Sub(in.Now); left > 0 {
		c.Left = left
	}
	c.State = TimeProved
	for _, store := range in.Promised.Stores {
		read, ever := b.reads[store]
		switch {
		case ever && !read.Before(over):
		// A store that is read counts as one that will be read again in time.
		case ever && c.Left > 0 && in.Now.Sub(read) <= 2*in.ReadTimeout+timeMargin:
			c.State = TimeWaiting
		case ever && c.Left == 0 && in.Now.Sub(over) <= 2*in.ReadTimeout+timeMargin:
			c.State, c.Left = TimeWaiting, time.Second
		default:
			c.State, c.Left = TimeUnknown, 0
			c.Why = fmt.Sprintf("its watchdog, armed with %s, cannot be counted: store %s is not read by anybody who can vouch for it", c.Bound, b.called(store))
			return
		}
	}
	if c.State == TimeWaiting {
		// Without the time that is left: this stands in holds for longer.
		c.Why = fmt.Sprintf("its watchdog is armed with %s, and the proof by time is awaited", c.Bound)
		return
	}
	c.Left = 0
	c.Why = fmt.Sprintf("its armed watchdog must have fired: it promised to reset the host %s after its last life, which was %s ago or longer, and every store that it declared (%s) was read since and shows no newer beat",
		c.Bound, in.Now.Sub(b.base).Round(100*time.Millisecond), b.list(in.Promised.Stores))
}

func (b *ByTime) called(store string) string { return cmp.Or(b.names[store], store) }

func (b *ByTime) list(stores []string) string {
	names := make([]string, len(stores))
	for i, s := range stores {
		names[i] = b.called(s)
	}
	return strings.Join(names, ", ")
}

func (s BeatSight) called() string { return cmp.Or(s.Name, s.Store, "?") }

// Told sets when a record was read and changed by what its reader told: how long
// ago both were, by the reader's clock, when it answered. That was between the
// two moments, which are of the caller's clock; neither clock is wrong by more
// than one percent.
func (s BeatSight) Told(asked, received time.Time, readAge, changedAge time.Duration) BeatSight {
	const whole = time.Millisecond // of which ages are told
	s.ReadAt = asked.Add(-readAge - readAge/clockTold)
	s.ChangedAt = received.Add(-changedAge + changedAge/clockTold + whole)
	return s
}

package fencing

import (
	"fmt"
	"slices"
	"time"

	"github.com/haven-ha/haven"
)

// FenceRecord is one power-down in the ledger's history. It is written before
// the command is sent, so it counts whether or not the command worked.
type FenceRecord struct {
	Host     haven.HostID     `json:"host"`
	Incident haven.IncidentID `json:"incident"`
	At       time.Time        `json:"at"` // wall clock of the master that wrote it
}

// Limit is the power-down cap of the whole cluster (P6). It stops power
// commands only; a host that is proved dead without one is none of its business.
type Limit struct {
	// Count is how many power-downs are allowed in a window. 0 means that
	// nothing is ever powered down; there is no value for "no limit".
	Count int `json:"count"`
	// Window is how long each of them counts.
	Window time.Duration `json:"window"`
}

// DefaultLimit is 3 power-downs in 1 hour.
func DefaultLimit() Limit { return Limit{Count: 3, Window: time.Hour} }

// Validate checks the values.
func (l Limit) Validate() error {
	if l.Count < 0 {
		return fmt.Errorf("limit count %d: want 0 or more", l.Count)
	}
	if l.Window < time.Minute {
		return fmt.Errorf("limit window %s: want at least 1m", l.Window)
	}
	return nil
}

// Allowance is what the limit says about one more power-down.
type Allowance struct {
	Allowed bool
	Used    int
	// Until is when it is allowed again if no other comes first. It is zero
	// when it is allowed, and when it never will be.
	Until time.Time
	Why   string
}

// Allow judges one more power-down of host in incident at now, by the wall
// clock. The history is in the order of the ledger.
//
// A power-down that is already in the history and still counts is allowed to
// go on: a new master resumes it, and it is not counted twice. Clocks of
// masters differ: a record dated in the future counts, and a record counts as
// no older than one that the ledger holds before it.
func (l Limit) Allow(now time.Time, history []FenceRecord, incident haven.IncidentID, host haven.HostID) Allowance {
	used, resumed := l.counting(now.Round(0), history, incident, host)
	a := Allowance{Used: len(used)}
	switch {
	case l.Count <= 0:
		a.Why = "the power-down limit is 0: nothing is ever powered down"
	case resumed:
		a.Allowed = true
		a.Why = "this power-down is already counted"
	case len(used) < l.Count:
		a.Allowed = true
		a.Why = fmt.Sprintf("%d of %d power-downs in %s are used", len(used), l.Count, l.Window)
	default:
		slices.SortFunc(used, time.Time.Compare)
		a.Until = used[len(used)-l.Count].Add(l.Window)
		a.Why = fmt.Sprintf("%d of %d power-downs in %s are used; the next is allowed at %s",
			len(used), l.Count, l.Window, a.Until.Format(time.DateTime))
	}
	return a
}

// counting returns the times of the records that still count, and whether one
// of them is for this incident and host.
func (l Limit) counting(now time.Time, history []FenceRecord, incident haven.IncidentID, host haven.HostID) ([]time.Time, bool) {
	type key struct {
		incident haven.IncidentID
		host     haven.HostID
	}
	var (
		times   []time.Time
		floor   time.Time
		resumed bool
		at      = map[key]int{}
	)
	for _, rec := range history {
		t := later(rec.At.Round(0), floor)
		if !rec.At.After(now) {
			floor = t
		}
		if !t.Add(l.Window).After(now) {
			continue
		}
		k := key{rec.Incident, rec.Host}
		if i, dup := at[k]; dup && rec.Incident != "" {
			times[i] = later(times[i], t)
		} else {
			at[k] = len(times)
			times = append(times, t)
		}
		resumed = resumed || (incident != "" && k == key{incident, host})
	}
	return times, resumed
}

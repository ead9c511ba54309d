package storagebeat

import (
	"fmt"
	"time"

	haven "github.com/haven-ha/haven"
)

// Snapshot is what one reader holds of one store at one moment. Ages are by the
// reader's own monotonic clock and count to the moment of the snapshot.
type Snapshot struct {
	Store  string     `json:"store"` // the store's configured name
	Health Health     `json:"health"`
	Hosts  []HostView `json:"hosts"` // configured hosts and all others found, sorted by name
}

// Host returns what is known of one host. The zero view is unknown.
func (s Snapshot) Host(id haven.HostID) HostView {
	for _, h := range s.Hosts {
		if h.Host == id {
			return h
		}
	}
	return HostView{Host: id, Agent: View{Why: whyNever}, Helper: View{Why: whyNever}}
}

// HostView is one host on one store.
type HostView struct {
	Host   haven.HostID `json:"host"`
	Agent  View         `json:"agent"`
	Helper View         `json:"helper"`
}

// View is one beat as this reader sees it.
type View struct {
	// Moving answers: does this beat move? Yes when its sequence was seen to
	// change within the stale time; No when it stood still for the stale time
	// while beats of other hosts moved; Unknown otherwise.
	Moving haven.Tri `json:"moving"`
	// Why explains Moving to people.
	Why string `json:"why"`
	// Age is the time since the start of the read that last saw a new
	// sequence: the host's last known sign of life here is at least this old.
	// Without one it counts from the first read of the record. 0 when !Seen.
	Age time.Duration `json:"age_ns"`
	// Silent is the time for which it is certain that no new beat arrived
	// while the store took beats from other hosts: it counts from the end of
	// the read that last saw a new sequence to the start of the last one that
	// saw another host's. Any doubt sets it back to 0.
	Silent time.Duration `json:"silent_ns"`
	// Lively says that other hosts' beats move on this store right now, so
	// that silence means something here.
	Lively bool `json:"lively"`
	// Seen says that a valid record was read; Beat is the newest one.
	Seen bool `json:"seen"`
	// Whole says that the last good read showed a valid record, and it is Beat.
	Whole bool `json:"whole,omitempty"`
	// Missing says that there is no record at all: this writer never wrote here.
	Missing bool `json:"missing"`
	Beat    Beat `json:"beat"`
	// Left is the reason in the last beat, if it was a farewell and still
	// stands. Such a beat is not expected to move.
	Left haven.LeaveReason `json:"left,omitempty"`
}

// OlderThan says that no new beat arrived for at least d, for certain, while
// the store took the beats of others. False means no or not known.
func (v View) OlderThan(d time.Duration) bool { return v.Seen && v.Lively && v.Silent >= d }

// AllOlder says whether both beats of a host are older than d on every store
// on which silence means something, and on how many stores that rests. It is true
// with 0 stores when there is none. A record that cannot be judged counts
// as young; one that was never written does not count.
func AllOlder(stores []Snapshot, host haven.HostID, d time.Duration) (older bool, basis int) {
	older = true
	for _, s := range stores {
		hv := s.Host(host)
		counts := false
		for _, v := range []View{hv.Agent, hv.Helper} {
			if !v.Lively || v.Missing {
				continue
			}
			counts = true
			older = older && v.OlderThan(d)
		}
		if counts {
			basis++
		}
	}
	return older, basis
}

// Health is what the reader knows of the store and of its own way to it.
type Health struct {
	ID StoreID `json:"id"` // zero while the identity is not known
	// Readable answers: did the last read succeed, and lately?
	Readable haven.Tri `json:"readable"`
	// OwnReadBack answers: did the last read show the beat that this reader
	// wrote last?
	OwnReadBack haven.Tri `json:"own_read_back"`
	// Problem says what is wrong, for people; empty when nothing is.
	Problem string `json:"problem,omitempty"`
	// Outage says why this looks like a failure of the store and not of a
	// host: it cannot be read, or all other hosts' beats stopped. Empty
	// when it does not.
	Outage string `json:"outage,omitempty"`
	// OthersMoving and OthersStopped count the other configured hosts with a
	// moving beat, and those with beats that moved once, stand still now and
	// did not say farewell.
	OthersMoving  int `json:"others_moving"`
	OthersStopped int `json:"others_stopped"`
	// Alone says that at most one other host is configured here. Nobody is
	// left to vouch for the store when that one is judged, so the own beat
	// read back does.
	Alone bool `json:"alone,omitempty"`

	ReadAge      time.Duration `json:"read_age_ns"`      // since the start of the last good read, suspension included; 0 when none
	ReadLatency  time.Duration `json:"read_latency_ns"`  // of the last good read
	WriteAge     time.Duration `json:"write_age_ns"`     // since the *start* of the last write that completed; 0 when none
	WriteLatency time.Duration `json:"write_latency_ns"` // of the last write that completed
	WriteError   string        `json:"write_error,omitempty"`
	// HungFor is how long the store has not completed an operation that was
	// asked of it; 0 while it answers, be it with an error.
	HungFor time.Duration `json:"hung_ns"`
}

// Trusted says whether the reader may judge others by this store: it reads
// back its own beat and sees another host's move (P6, observer rule).
func (h Health) Trusted() bool {
	return h.Readable == haven.Yes && h.OwnReadBack == haven.Yes && (h.OthersMoving > 0 || h.Alone)
}

// Evidence renders what the snapshot says about all hosts but the observer.
// A moving beat is as old as its last seen change; that a beat stands still, or
// is not known, is as old as the last read.
func (s Snapshot) Evidence(observer haven.HostID) []haven.Evidence {
	var out []haven.Evidence
	for _, h := range s.Hosts {
		if h.Host == observer {
			continue
		}
		out = append(out,
			s.evidence(haven.EvidenceAgentBeat, observer, h.Host, h.Agent),
			s.evidence(haven.EvidenceHelperBeat, observer, h.Host, h.Helper))
		left := haven.Evidence{
			Kind: haven.EvidenceLeft, Subject: h.Host, Observer: observer, Store: s.Store, Age: s.Health.ReadAge,
		}
		isolated := left
		isolated.Kind = haven.EvidenceIsolated
		if h.Agent.Left != haven.LeaveNone {
			left.Value, left.Detail = haven.Yes, string(h.Agent.Left)
		} else if h.Agent.Moving == haven.Yes {
			left.Value = haven.No
		}
		if h.Agent.Moving == haven.Yes {
			isolated.Value = haven.TriOf(h.Agent.Beat.Isolated)
			isolated.Age = h.Agent.Age
		}
		out = append(out, left, isolated)
	}
	return out
}

func (s Snapshot) evidence(kind haven.EvidenceKind, observer, host haven.HostID, v View) haven.Evidence {
	age := s.Health.ReadAge
	if v.Moving == haven.Yes {
		age = v.Age
	}
	return haven.Evidence{
		Kind: kind, Subject: host, Observer: observer, Store: s.Store, Value: v.Moving, Age: age, Detail: v.Why,
	}
}

const (
	whyNever     = "never read here"
	whyUnwritten = "own writes do not complete"
	whyMissing   = "there is no such record"
	// A damaged record that names nobody may be anybody's.
	whyNameless = "there is a damaged record that names no host, which may be this one"
)

func whyStill(silent time.Duration) string {
	return fmt.Sprintf("stood still for %s while other hosts' beats moved", silent.Round(time.Millisecond))
}

package detector

import (
	"fmt"
	"slices"
	"time"

	"github.com/haven-ha/haven"
)

// view is what one Step knows before it looks at any single host.
type view struct {
	m            *Machine
	cfg          *Config
	in           *Input
	now          time.Duration
	trusted      bool
	trustedSince time.Duration
	distrust     Hold // why the observer is not trusted
	outage       Hold // why the storage counts as failed for everybody
	grace        Hold // how long the start-up grace lasts
	writers      int  // hosts due to write beats
	// stores are those at least one observer can vouch for while other hosts
	// write; see usableStores.
	stores []string
}

// survey learns who can vouch for what.
func (m *Machine) survey(in *Input) view {
	v := view{m: m, cfg: &m.cfg, in: in, now: m.now}
	for i := range in.Hosts {
		h := &in.Hosts[i]
		st := m.hosts[h.ID]
		if st == nil {
			st = &hostState{since0: m.now}
			m.hosts[h.ID] = st
		}
		st.seenAt = m.steps
		st.writer = h.Configured && !h.Storeless && !h.Proved && !h.Maintenance && st.left == haven.LeaveNone
		if st.writer {
			v.writers++
		}
	}
	clear(m.vouching)
	m.stores = m.stores[:0]
	for i := range in.Observers {
		o := &in.Observers[i]
		if !v.recent(o.At) || o.Majority != haven.Yes || o.LoopOK != haven.Yes {
			continue
		}
		m.vouching[o.Host] = o
		for k := range o.Stores {
			s := &o.Stores[k]
			if s.usableFor(true) && !slices.Contains(m.stores, s.Store) {
				m.stores = append(m.stores, s.Store)
			}
		}
	}
	v.stores = m.stores
	v.dateStores()
	v.outage, v.distrust = v.judgeSelf()
	v.trusted = !v.distrust.Held()
	if v.trusted && !m.trusted {
		m.trustedSince = m.now
	}
	m.trusted, v.trustedSince = v.trusted, m.trustedSince
	v.grace = v.judgeGrace()
	return v
}

// recent says whether words of the instant at are still worth something.
func (v *view) recent(at time.Duration) bool {
	return at <= v.now && v.now-at <= v.cfg.StaleAfter
}

// judgeSelf applies the observer rule: the master judges only through paths it
// can vouch for, its own or those of live agents. If every reader's stores are
// dead, it is the storage that failed, and not this observer.
func (v *view) judgeSelf() (outage, distrust Hold) {
	self := v.in.Self.Host
	var own *Observer
	for i := range v.in.Observers {
		if v.in.Observers[i].Host == self {
			own = &v.in.Observers[i]
		}
	}
	switch {
	case own == nil || !v.recent(own.At):
		return Hold{}, newHold(haven.HoldObserver, "nothing is known about this agent's own paths",
			fmt.Sprintf("its own word must be no older than %s", v.cfg.StaleAfter), "it tells of them again")
	case own.Majority != haven.Yes:
		return Hold{}, newHold(haven.HoldObserver, fmt.Sprintf("this agent reaches a majority of the configured hosts: %s", own.Majority),
			fmt.Sprintf("it must reach more than half of those that are not proved dead, %d of %d", v.majority(), v.living()), "it does")
	case own.LoopOK != haven.Yes:
		return Hold{}, newHold(haven.HoldObserver, fmt.Sprintf("this agent's own loop is in time: %s", own.LoopOK),
			"it must be, or it takes its own deafness for the silence of others", "it has been in time for a while")
	case v.cfg.Stores == 0:
		return Hold{}, Hold{}
	}
	dead, readers := 0, 0
	for _, o := range v.m.vouching {
		if len(o.Stores) == 0 {
			continue
		}
		readers++
		allDead := true
		for k := range o.Stores {
			if o.Stores[k].usableFor(v.severalDue(o.Host)) {
				return Hold{}, Hold{}
			}
			allDead = allDead && o.Stores[k].dead()
		}
		if allDead {
			dead++
		}
	}
	if dead >= 2 || dead >= 1 && len(own.Stores) == 0 {
		return newHold(haven.HoldStorageOutage, fmt.Sprintf("no store works for any reader (%d of %d say that theirs are dead)", dead, readers),
			"one reader must see its own beat and another host's move", "one does again"), Hold{}
	}
	return Hold{}, newHold(haven.HoldObserver, fmt.Sprintf("this agent cannot vouch for any store, and no live agent can do it for it (of %d readers, %d say that theirs are dead)", readers, dead),
		"one reader must see its own beat and another host's move", "one does")
}

// living and majority count the configured hosts that are not proved dead, and
// how many of them are more than half.
func (v *view) living() (n int) {
	for i := range v.in.Hosts {
		if h := &v.in.Hosts[i]; h.Configured && !h.Proved {
			n++
		}
	}
	return n
}

func (v *view) majority() int { return v.living()/2 + 1 }

// severalDue says whether several hosts other than reader are to write beats.
// With one other writer at most, its silence is not everybody's.
func (v *view) severalDue(reader haven.HostID) bool {
	n := v.writers
	if st := v.m.hosts[reader]; st != nil && st.writer {
		n--
	}
	return n > 1
}

// dateStores keeps since when each store has been usable without a break. When
// a store comes back, its writers need time to come back as well.
func (v *view) dateStores() {
	usable := func(name string) bool {
		for _, o := range v.m.vouching {
			for k := range o.Stores {
				if s := &o.Stores[k]; s.Store == name && s.usableFor(v.severalDue(o.Host)) {
					return true
				}
			}
		}
		return false
	}
	for name := range v.m.storeSince {
		if !usable(name) {
			delete(v.m.storeSince, name)
		}
	}
	for _, o := range v.m.vouching {
		for k := range o.Stores {
			s := &o.Stores[k]
			if _, dated := v.m.storeSince[s.Store]; !dated && s.usableFor(v.severalDue(o.Host)) {
				v.m.storeSince[s.Store] = v.now
			}
		}
	}
}

// judgeGrace tells whether the start-up grace lasts. A change of master begins
// none: the new master has watched all along.
func (v *view) judgeGrace() Hold {
	from := v.in.Self.Started
	if v.in.Self.ColdStart {
		from = max(from, v.in.Self.ColdStarted)
	}
	if left := from + v.cfg.StartupGrace - v.now; left > 0 {
		return newHold(haven.HoldGrace, fmt.Sprintf("the start was %s ago", round(v.now-from)),
			fmt.Sprintf("no action for the first %s, which is another %s", v.cfg.StartupGrace, round(left)), "that time is over")
	}
	return Hold{}
}

// usableStores are the stores on which stillness of subject's beats means
// something, as somebody who is not the subject can vouch.
func (v *view) usableStores(subject *Host, buf []string) []string {
	if v.writers > 2 {
		return v.stores // Somebody else is always due to write.
	}
	for _, o := range v.m.vouching {
		for k := range o.Stores {
			if s := &o.Stores[k]; o.Host != subject.ID && s.usableFor(v.othersDue(o.Host, subject)) && !slices.Contains(buf, s.Store) {
				buf = append(buf, s.Store)
			}
		}
	}
	slices.Sort(buf)
	return buf
}

// othersDue says whether any host but reader and subject is to write beats.
func (v *view) othersDue(reader haven.HostID, subject *Host) bool {
	n := v.writers
	if st := v.m.hosts[subject.ID]; st.writer {
		n--
	}
	if st := v.m.hosts[reader]; st != nil && st.writer && reader != subject.ID {
		n--
	}
	return n > 0
}

// vouches says whether reader can vouch for what it does not see on store.
func (v *view) vouches(reader haven.HostID, store string, subject *Host) bool {
	o := v.m.vouching[reader]
	if o == nil || reader == subject.ID {
		return false
	}
	for k := range o.Stores {
		if o.Stores[k].Store == store {
			return o.Stores[k].usableFor(v.othersDue(reader, subject))
		}
	}
	return false
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

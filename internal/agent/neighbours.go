package agent

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
)

// neighbour is an agent that could be asked about a suspect.
type neighbour struct {
	id   haven.HostID
	zone string
	// sound says that it is healthy, not suspected itself, and vouches for its
	// own paths: the words of others do not count for a verdict.
	sound bool
	// deaf says that it gave no answer when it was last asked.
	deaf bool
	// turn is when it was last asked, counted in questions; 0 for never.
	turn uint64
}

func (n neighbour) rank() int {
	switch {
	case n.deaf:
		return 2 // An answer that stays out keeps a verdict open for a whole window.
	case !n.sound:
		return 1
	}
	return 0
}

// chooseNeighbours picks at most n of the candidates: sound ones first, spread
// over zones, of which the asking agent's own has one observer already, and
// those first that were not asked for longest.
func chooseNeighbours(candidates []neighbour, ownZone string, n int) []haven.HostID {
	left := slices.Clone(candidates)
	taken := map[string]int{ownZone: 1}
	var chosen []haven.HostID
	for len(chosen) < n && len(left) > 0 {
		best := slices.MinFunc(left, func(a, b neighbour) int {
			return cmp.Or(
				cmp.Compare(a.rank(), b.rank()), cmp.Compare(taken[a.zone], taken[b.zone]),
				cmp.Compare(a.turn, b.turn), cmp.Compare(a.id, b.id))
		})
		chosen = append(chosen, best.id)
		taken[best.zone]++
		left = slices.DeleteFunc(left, func(c neighbour) bool { return c.id == best.id })
	}
	return chosen
}

// deafFor is for how long a neighbour that gave no answer is asked after all
// others.
const deafFor = time.Minute

// asked remembers who was asked about suspects, and who did not answer. It is
// bounded by the number of hosts.
type asked struct {
	mu    sync.Mutex
	count uint64
	turns map[haven.HostID]uint64
	deaf  map[haven.HostID]time.Time
}

// took notes who is asked now.
func (q *asked) took(ids []haven.HostID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.count++
	if q.turns == nil {
		q.turns = map[haven.HostID]uint64{}
	}
	for _, id := range ids {
		q.turns[id] = q.count
	}
}

// answered notes whether a neighbour told anything.
func (q *asked) answered(id haven.HostID, ok bool, at time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if ok {
		delete(q.deaf, id)
		return
	}
	if q.deaf == nil {
		q.deaf = map[haven.HostID]time.Time{}
	}
	q.deaf[id] = at
}

func (q *asked) of(id haven.HostID, now time.Time) (turn uint64, deaf bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	at, was := q.deaf[id]
	return q.turns[id], was && now.Sub(at) < deafFor
}

// neighboursFor chooses whom to ask about a suspect. Only agents that report to
// this one are asked, and never the suspect.
func (a *Agent) neighboursFor(suspect haven.HostID, n int) []haven.HostID {
	now := time.Now()
	last := a.judgement.Load()
	var candidates []neighbour
	for _, id := range a.ev.connected(now.Add(-2 * a.cfg.Detection.SuspectAfter)) {
		conf, ok := a.cfg.Host(id)
		if id == suspect || id == a.d.Host || !ok {
			continue
		}
		c := neighbour{id: id, zone: conf.Zone, sound: a.isSound(last, id)}
		c.turn, c.deaf = a.asked.of(id, now)
		candidates = append(candidates, c)
	}
	own, _ := a.cfg.Host(a.d.Host)
	chosen := chooseNeighbours(candidates, own.Zone, n)
	a.asked.took(chosen)
	return chosen
}

func (a *Agent) isSound(last *judged, id haven.HostID) bool {
	j, known := last.host(id)
	rep, _ := a.ev.view(id)
	return known && rep != nil && !j.Suspected && goodNeighbour(j) &&
		rep.Observer.Majority != haven.No && rep.Observer.LoopOK != haven.No
}

// goodNeighbour says whether a verdict speaks for a host's network. One that
// lost a store still can probe.
func goodNeighbour(j detector.Judgement) bool {
	return j.Verdict == haven.VerdictHealthy || j.Verdict == haven.VerdictStorageLost
}

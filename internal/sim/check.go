package sim

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/world"
)

// checker compares what happens with the promises. It looks at the world and at
// what was committed, and shares nothing with the rules of the agents: where
// they weigh evidence, it knows the truth.
type checker struct {
	c *Cluster

	mu    sync.Mutex
	bad   []string
	boots map[haven.HostID]haven.BootID // of machines with power

	// What was committed.
	applied map[uint64]ledger.Position
	terms   map[uint64]time.Duration // when the first entry of a Raft term was applied
	ordered map[haven.VMID]haven.Order
	starts  map[haven.OrderID]int // how often an order made a VM run
	downs   []powerDown
	about   map[haven.IncidentID]haven.HostID
	ons     map[haven.HostID]bool // a power-on is in the ledger

	// What the world was like, by samples.
	quorate  map[haven.HostID]time.Duration    // when it last reached a majority of the hosts with power
	led      map[haven.HostID]reign            // when it was last master
	near     map[[2]haven.HostID]time.Duration // when two agents last could talk
	alive    map[[2]haven.HostID]time.Duration // since when the first could have seen the second live by network
	beating  map[haven.HostID]time.Duration    // since when its beats have landed without a break
	bad4     map[haven.HostID]time.Duration    // since when it has been in trouble
	allStore time.Duration                     // since when no store has worked for anybody; -1: one does
}

// reign is when somebody was master, and in what Raft term.
type reign struct {
	at   time.Duration
	term uint64
}

// powerDown is one host that was told to go off in one boot.
type powerDown struct {
	host haven.HostID
	boot haven.BootID
	at   time.Duration
}

// Margins of the checks. They are wide: the checker must never accuse wrongly,
// and what it looks for is far beyond them.
const (
	sampleEvery = 200 * time.Millisecond
	// seenFor is how long a host must have been visibly alive before a power-off
	// of it is a crime. The shortest verdict needs 8 s of silence.
	seenFor = 6 * time.Second
	// actAge is how long ago a master may have been in place, and may have
	// reached a majority, when something is done: a verification, a lease and one
	// slow session.
	actAge = 4 * time.Second
	// reignOverlap is how long after the first commit of a new term an act of an
	// older one is still tolerated: what was verified right before it.
	reignOverlap = 1500 * time.Millisecond
	// troubleFor is how long a host must be in trouble to count as bad at once
	// with others.
	troubleFor = 15 * time.Second

	capCount  = 3
	capWindow = time.Hour
)

func newChecker(c *Cluster) *checker {
	return &checker{
		c: c, boots: map[haven.HostID]haven.BootID{}, applied: map[uint64]ledger.Position{}, terms: map[uint64]time.Duration{},
		ordered: map[haven.VMID]haven.Order{}, starts: map[haven.OrderID]int{},
		quorate: map[haven.HostID]time.Duration{}, led: map[haven.HostID]reign{}, near: map[[2]haven.HostID]time.Duration{},
		alive: map[[2]haven.HostID]time.Duration{}, beating: map[haven.HostID]time.Duration{}, bad4: map[haven.HostID]time.Duration{},
		allStore: -1, about: map[haven.IncidentID]haven.HostID{}, ons: map[haven.HostID]bool{},
	}
}

// violate records a broken promise.
func (k *checker) violate(promise, format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.broken(promise, format, args...)
}

func (k *checker) broken(promise, format string, args ...any) {
	k.bad = append(k.bad, fmt.Sprintf("%s at %.3f s: %s", promise, k.c.Now().Seconds(), fmt.Sprintf(format, args...)))
}

func (k *checker) found() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.bad)
}

// first says whether a log entry is applied for the first time anywhere. An
// entry that differs from what another agent applied there is the end of P7.
func (k *checker) first(at ledger.Position, host haven.HostID, _ []ledger.Command) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	old, known := k.applied[at.Index]
	if known && old != at {
		k.broken("P7", "%s applied entry %d of term %d, another agent one of term %d", host, at.Index, at.Term, old.Term)
	}
	k.applied[at.Index] = at
	if _, ok := k.terms[at.Term]; !ok {
		k.terms[at.Term] = k.c.Now()
	}
	return !known
}

// see checks one event and returns what it breaks.
func (k *checker) see(e Event) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	before := len(k.bad)
	switch e.What {
	case What(world.PowerOn):
		k.boots[e.Host] = e.Boot
	case What(world.PowerOff):
		delete(k.boots, e.Host)
	case What(world.Broken):
		k.broken("P1", "%s", e.Text)
	case What(world.VMRuns):
		k.vmRuns(e)
	case StartCall:
		k.startCall(e)
	case BMCOff:
		k.powerDown(e)
	case BMCOn:
		k.powerUp(e)
	case Commit:
		k.commit(e)
	case DogFired, PillObeyed, BMCBlinks, Fault, Heal, User, AgentUp, AgentDown, BMCReadOff, OrderSaved, Said, Violated: // they break nothing by themselves
	}
	return slices.Clone(k.bad[before:])
}

// commit checks what the ledger took in against the world.
func (k *checker) commit(e Event) {
	if e.Refused != nil {
		return
	}
	switch cmd := e.Command.(type) {
	case ledger.ProveDead:
		p := cmd.Proof
		if k.boots[p.Host] == p.Boot && p.Boot != "" {
			k.broken("P2", "boot %s of %s was proved dead (%s: %s) while it lives", p.Boot, p.Host, p.Kind, p.Detail)
		}
	case ledger.OpenIncident:
		k.about[cmd.ID] = cmd.Host
	case ledger.RecordAct:
		k.ons[cmd.Host] = k.ons[cmd.Host] || cmd.Action == haven.ActionOn
	case ledger.BeginOn:
		k.ons[k.about[cmd.ID]] = true
	case ledger.RegisterHost:
		// It ends every older boot; none of them may still have power.
		if now, on := k.boots[cmd.Host]; on && now != cmd.Boot {
			k.broken("P2", "boot %s of %s was registered while it runs in %s", cmd.Boot, cmd.Host, now)
		}
	case ledger.CommitOrder:
		if old, ok := k.ordered[cmd.Order.VM]; ok && old.Epoch >= cmd.Order.Epoch && old != cmd.Order {
			k.broken("P1", "order %s came after order %s", cmd.Order.ID, old.ID)
		}
		k.ordered[cmd.Order.VM] = cmd.Order
	}
}

// vmRuns checks who made a VM run. That it runs twice the world tells itself.
func (k *checker) vmRuns(e Event) {
	if e.Order.Name != string(world.ByOrder) {
		return
	}
	o, ok := k.ordered[e.VM]
	if !ok || o.Target != e.Host || o.TargetBoot != e.Boot {
		k.broken("P1", "%s was started on %s in %s; the last order is %s for %s in %s", shortVM(e.VM), e.Host, e.Boot, o.ID, o.Target, o.TargetBoot)
	}
	if k.starts[o.ID]++; k.starts[o.ID] > 1 {
		k.broken("P7", "order %s started its VM %d times", o.ID, k.starts[o.ID])
	}
}

// startCall checks a start at the moment at which an agent asks for it (P3): a
// master must have been at hand, and none newer may have begun.
func (k *checker) startCall(e Event) {
	now := k.c.Now()
	why := "no master is near"
	for _, m := range k.c.hosts {
		r, led := k.led[m.ID]
		if term, leads := m.leads(); leads {
			r, led = reign{now, term.Term}, true
		}
		met, talked := k.near[[2]haven.HostID{e.Host, m.ID}]
		if k.c.net.Talks(k.c.Host(e.Host).Addr, m.Addr) {
			met, talked = now, true
		}
		if !led || now-r.at > actAge || m.ID != e.Host && (!talked || now-met > actAge) {
			continue
		}
		newer := k.newer(r.term, now)
		if newer == 0 {
			return
		}
		why = fmt.Sprintf("%s near by leads in term %d, term %d has begun", m.ID, r.term, newer)
	}
	k.broken("P3", "%s asks for a start of %s: %s", e.Host, shortVM(e.VM), why)
}

// reachesMost says whether a host talks right now to a majority of the hosts
// that have power.
func (k *checker) reachesMost(a *Host) bool {
	n := 0
	for _, b := range k.c.hosts {
		if k.c.net.Talks(a.Addr, b.Addr) {
			n++
		}
	}
	return n > len(k.boots)/2
}

// newer returns a term that began, for certain, before now and after the given
// one; 0 when there is none.
func (k *checker) newer(term uint64, now time.Duration) uint64 {
	for t, began := range k.terms {
		if t > term && now-began > reignOverlap {
			return t
		}
	}
	return 0
}

// powerDown checks a power-off command at the moment at which the board has it.
func (k *checker) powerDown(e Event) {
	now := k.c.Now()
	e.By = k.decider(e)
	if at, ok := k.quorate[e.By]; (!ok || now-at > actAge) && !k.reachesMost(k.c.Host(e.By)) {
		k.broken("P3", "%s sent a power-off to %s without having reached a majority", e.By, e.Host)
	}
	k.superseded(e, now)
	k.innocent(e, now)
	k.brakes(e, now)
}

// powerUp checks a power-on command: the ledger must have had a decision of it
// before (P7).
func (k *checker) powerUp(e Event) {
	if !k.ons[e.Host] {
		k.broken("P7", "%s switched %s on, and no ledger says so", e.By, e.Host)
	}
}

// decider is who answers for a power command. An agent may send one for a master
// that cannot reach the board; then that master's paths and term are what counts.
// A command that nobody's ledger asks for stays with its sender.
func (k *checker) decider(e Event) haven.HostID {
	if _, leads := k.c.Host(e.By).leads(); leads {
		return e.By
	}
	by, newest := e.By, haven.Term{}
	for _, h := range k.c.hosts {
		term, leads := h.leads()
		if leads && h.fencing(e.Host) && newest.Older(term) {
			by, newest = h.ID, term
		}
	}
	return by
}

// superseded checks that no master acts when a newer one has begun.
func (k *checker) superseded(e Event, now time.Duration) {
	term, leads := k.c.Host(e.By).leads()
	if !leads {
		k.broken("P3", "%s sent a power-off to %s and is no master", e.By, e.Host)
		return
	}
	if t := k.newer(term.Term, now); t != 0 {
		k.broken("P3", "%s sent a power-off to %s in term %d; term %d has begun", e.By, e.Host, term.Term, t)
	}
}

// innocent checks that the host did not live where its fencer could see it (P4,
// P5).
func (k *checker) innocent(e Event, now time.Duration) {
	if k.boots[e.Host] == "" {
		return // It has no power: nothing can happen to it.
	}
	for _, o := range k.c.hosts {
		since, seen := k.alive[[2]haven.HostID{o.ID, e.Host}]
		_, near := k.near[[2]haven.HostID{e.By, o.ID}]
		if seen && now-since >= seenFor && (o.ID == e.By || near && now-k.near[[2]haven.HostID{e.By, o.ID}] <= sampleEvery) {
			k.broken("P4", "%s sent a power-off to %s, which %s could have seen live for %s by network", e.By, e.Host, o.ID, now-since)
			return
		}
	}
	if since, ok := k.beating[e.Host]; ok && now-since >= seenFor && k.storeWorks(e.By) {
		k.broken("P4", "%s sent a power-off to %s, whose beats have landed for %s", e.By, e.Host, now-since)
	}
}

func (k *checker) storeWorks(id haven.HostID) bool {
	for _, s := range k.c.stores {
		if s.works(id) {
			return true
		}
	}
	return false
}

// brakes checks what must hold power commands back (P6).
func (k *checker) brakes(e Event, now time.Duration) {
	if k.allStore >= 0 && now-k.allStore > troubleFor {
		k.broken("P6", "%s sent a power-off to %s while no store has worked for anybody for %s", e.By, e.Host, now-k.allStore)
	}
	if !slices.ContainsFunc(k.downs, func(d powerDown) bool { return d.host == e.Host && d.boot == e.Boot }) {
		k.downs = append(k.downs, powerDown{e.Host, e.Boot, now})
	}
	recent := 0
	for _, d := range k.downs {
		if now-d.at < capWindow {
			recent++
		}
	}
	if recent > capCount {
		k.broken("P6", "%d power-downs in %s", recent, capWindow)
	}
	bad, all := 0, 0
	for _, h := range k.c.hosts {
		if h.Witness {
			continue
		}
		all++
		if since, ok := k.bad4[h.ID]; ok && now-since > troubleFor {
			bad++
		}
	}
	if bad > max(1, all/2) {
		k.broken("P6", "%s sent a power-off to %s while %d of %d hosts are in trouble", e.By, e.Host, bad, all)
	}
}

// sampling looks at the world again and again.
func (c *Cluster) sampling() {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c.check.sample()
		case <-c.quit:
			return
		}
	}
}

// sample notes who can reach whom.
func (k *checker) sample() {
	type state struct{ power, agent, helper, frozen bool }
	states := map[haven.HostID]state{}
	for _, h := range k.c.hosts {
		states[h.ID] = state{h.Boot() != "", h.Up(), h.helperUp(), h.frozen()}
	}
	talks := map[[2]haven.HostID]bool{}
	for _, a := range k.c.hosts {
		for _, b := range k.c.hosts {
			talks[[2]haven.HostID{a.ID, b.ID}] = k.c.net.Talks(a.Addr, b.Addr)
		}
	}
	lossy := k.c.lossy()
	reigns := map[haven.HostID]haven.Term{}
	for _, h := range k.c.hosts {
		if term, leads := h.leads(); leads && !h.frozen() {
			reigns[h.ID] = term
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.c.Now()
	anyStore := false
	for _, a := range k.c.hosts {
		sa := states[a.ID]
		reached := 0
		for _, b := range k.c.hosts {
			sb := states[b.ID]
			pair := [2]haven.HostID{a.ID, b.ID}
			if talks[pair] && sa.agent && sb.agent {
				k.near[pair] = now
			}
			if talks[pair] && sa.agent {
				reached++
			}
			visible := talks[pair] && sa.agent && sb.power && !sb.frozen && !lossy && a != b
			since(k.alive, pair, visible, now)
		}
		if term, leads := reigns[a.ID]; leads {
			k.led[a.ID] = reign{now, term.Term}
		}
		if reached > len(k.boots)/2 {
			k.quorate[a.ID] = now
		}
		lands := false
		for _, s := range k.c.stores {
			lands = lands || s.works(a.ID)
		}
		anyStore = anyStore || lands
		since(k.beating, a.ID, lands && sa.power && !sa.frozen && (sa.agent || sa.helper), now)
		since(k.bad4, a.ID, !sa.power || sa.frozen || !k.reachable(a, talks), now)
	}
	switch {
	case anyStore:
		k.allStore = -1
	case k.allStore < 0:
		k.allStore = now
	}
}

// reachable says whether a host talks to most of those that have power.
func (k *checker) reachable(a *Host, talks map[[2]haven.HostID]bool) bool {
	n := 0
	for _, b := range k.c.hosts {
		if talks[[2]haven.HostID{a.ID, b.ID}] {
			n++
		}
	}
	return n > len(k.boots)/2
}

// lossy says whether any fault makes links lose packets now.
func (c *Cluster) lossy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.cuts {
		if f.loss > 0 {
			return true
		}
	}
	return c.s.Link.Loss > 0.05
}

// since keeps since when something has been so without a break.
func since[K comparable](m map[K]time.Duration, key K, is bool, now time.Duration) {
	_, was := m[key]
	switch {
	case !is:
		delete(m, key)
	case !was:
		m[key] = now
	}
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/cluster"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/pill"
	"github.com/haven-ha/haven/internal/recovery"
	"github.com/haven-ha/haven/storagebeat"
)

// The pace of a host that looks for pills, and its bounds.
const (
	pillEvery = 500 * time.Millisecond
	// pillAskTimeout bounds one question to a master: several fit into the patience.
	pillAskTimeout = time.Second
	// pillAskedFor is how long a host has to ask, and not to be heard otherwise, before
	// a master says yes: some reports, and less than the host's own patience.
	pillAskedFor = 3 * time.Second
	// lastWord is how long a host that obeys waits for its last beat to be written.
	lastWord = time.Second
	// resetAgain is after how long a reset that did not happen is tried again.
	resetAgain = 5 * time.Second
)

// pills is what this agent knows of poison pills: those that were left for this
// host, and those that it left for others as master.
type pills struct {
	keys    pillKeys
	resets  atomic.Bool // this host obeys a pill now
	answers chan pill.Answer

	mu     sync.Mutex
	left   map[haven.HostID]leftPill
	askers map[haven.HostID]asker // bounded by the number of hosts
}

// pillKeys make and know the seals of pills.
type pillKeys struct {
	mu   sync.Mutex
	keys [][]byte // the first one seals
}

func newPills(cluster string, secrets []cluster.Key) (*pills, error) {
	p := &pills{answers: make(chan pill.Answer, 8), left: map[haven.HostID]leftPill{}, askers: map[haven.HostID]asker{}}
	return p, p.keys.set(cluster, secrets)
}

// set takes the gossip keys: every agent has them, and nobody else.
func (k *pillKeys) set(cluster string, secrets []cluster.Key) error {
	var keys [][]byte
	for _, s := range secrets {
		key, err := storagebeat.PillKey(s, cluster)
		if err != nil {
			return err
		}
		keys = append(keys, key)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = keys
	return nil
}

func (k *pillKeys) all() [][]byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys
}

// resetting says whether this host obeys a pill now. It shows no life any more on
// purpose: a watchdog is not petted.
func (a *Agent) resetting() bool { return a.pills.resets.Load() }

// errResetting is why a watchdog is not petted by a host that obeys a pill.
var errResetting = errors.New("this host obeys a poison pill and resets itself")

func (a *Agent) setResetting(now bool) {
	a.pills.resets.Store(now)
	if a.dog != nil {
		a.dog.held.Store(now)
	}
}

// obeysPills says whether a host is configured to.
func (a *Agent) obeysPills(id haven.HostID) bool {
	h, ok := a.cfg.Host(id)
	return ok && h.Fencing.PoisonPill
}

// pillLoop looks into this host's mailboxes, until ctx ends.
func (a *Agent) pillLoop(ctx context.Context) {
	w := pillWatch{a: a, machine: pill.New(pill.Config{
		Boot: a.d.Boot, Enabled: a.obeysPills(a.d.Host),
		// A slow store is read every so often only.
		Fresh: max(pill.DefaultFresh, 2*(a.cfg.Heartbeat.Interval+a.cfg.Heartbeat.IOTimeout)),
		Gap:   2 * pillEvery,
	})}
	tick := time.NewTicker(pillEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.look(ctx, time.Now())
		}
	}
}

// pillWatch is the loop's own memory.
type pillWatch struct {
	a       *Agent
	machine *pill.Machine
	asking  atomic.Bool
	ending  atomic.Bool // a reset is under way
	ended   time.Time   // when the last one was begun
	told    map[pill.Ignored]bool
	looked  time.Time     // when it last looked
	boot    time.Duration // the same, by the clock that goes on in a suspension
}

// slept says whether this machine was suspended since the last look.
func (w *pillWatch) slept(now time.Time) bool {
	boot := w.a.d.Boottime()
	asleep := boot - w.boot - now.Sub(w.looked)
	first := w.looked.IsZero()
	w.looked, w.boot = now, boot
	return !first && asleep > pillEvery
}

// maxTold bounds what is remembered of what was logged.
const maxTold = 256

func (w *pillWatch) look(ctx context.Context, now time.Time) {
	in := w.input()
	in.Slept = w.slept(now)
	out := w.machine.Step(now, in)
	for _, i := range out.Ignored {
		w.ignored(i)
	}
	w.a.setResetting(out.Obey != nil)
	switch {
	case out.Obey != nil:
		w.obey(now, *out.Obey, out.Why)
	case out.Ask != nil:
		w.ask(ctx, *out.Ask)
	}
}

// ignored tells once of each pill that is not obeyed. Most of them are what a master
// left before this host was powered off.
func (w *pillWatch) ignored(i pill.Ignored) {
	if w.told[i] {
		return
	}
	if w.told == nil || len(w.told) >= maxTold {
		w.told = map[pill.Ignored]bool{}
	}
	w.told[i] = true
	w.a.log.Warn("a poison pill is not obeyed", "why", i.Why, "store", i.Store,
		"incident", i.Pill.Incident, "attempt", i.Pill.Attempt, "term", i.Pill.Term.String(), "by", i.Pill.By)
}

func (w *pillWatch) input() pill.Input {
	a := w.a
	in := pill.Input{Highest: a.executor.Highest(), Heard: a.ev.lastAck().at}
	keys := a.pills.keys.all()
	for _, m := range a.monitors {
		box := m.Mailbox()
		if box.Pill != nil {
			in.Letters = append(in.Letters, pill.Letter{Store: box.Store, Read: box.Read, Pill: *box.Pill, Sealed: box.Pill.SealedBy(keys...)})
		}
	}
	for {
		select {
		case ans := <-a.pills.answers:
			in.Answers = append(in.Answers, ans)
			continue
		default:
		}
		return in
	}
}

// ask asks the master, one question at a time.
func (w *pillWatch) ask(ctx context.Context, p storagebeat.Pill) {
	if !w.asking.CompareAndSwap(false, true) {
		return
	}
	a := w.a
	a.log.Log(ctx, a.quiet.level("pill/ask"), "a poison pill for this host was found; a master is asked", "incident", p.Incident, "attempt", p.Attempt, "term", p.Term.String(), "by", p.By)
	a.owned.Go(func() {
		defer w.asking.Store(false)
		ctx, cancel := context.WithTimeout(ctx, pillAskTimeout)
		defer cancel()
		ans, err := a.askAboutPill(ctx, p)
		if err != nil {
			a.log.Debug("no master answers about the poison pill", "error", err)
			return
		}
		if !ans.Stands {
			a.log.Info("the master says that the poison pill does not stand", "why", ans.Why, "incident", p.Incident, "attempt", p.Attempt)
		}
		select {
		case a.pills.answers <- pill.Answer{
			Name: pill.Name{Incident: p.Incident, Attempt: p.Attempt, Term: p.Term}, Stands: ans.Stands, Why: ans.Why,
		}:
		default: // The loop stands still; it asks again.
		}
	})
}

func (a *Agent) askAboutPill(ctx context.Context, p storagebeat.Pill) (ans client.PillAnswer, err error) {
	master, ok := a.master()
	if !ok {
		return ans, haven.ErrNotMaster
	}
	q := client.PillRequest{Boot: a.d.Boot, Incident: p.Incident, Attempt: int(p.Attempt)}
	if master == a.d.Host {
		ans, err = a.PillStands(ctx, a.d.Host, q)
	} else {
		err = a.client.Post(ctx, master, client.PathPill, q, &ans)
	}
	if err == nil && ans.Term.Older(a.executor.Highest()) {
		err = fmt.Errorf("answer of %s: %w", master, haven.ErrStaleTerm)
	}
	return ans, err
}

// PillStands says whether a pill for the asking host stands, after this agent
// verified that it leads. A host whose agent reports again is not to be fenced.
func (a *Agent) PillStands(ctx context.Context, from haven.HostID, q client.PillRequest) (client.PillAnswer, error) {
	m := a.reign.Load()
	if m == nil {
		return client.PillAnswer{}, haven.ErrNotMaster
	}
	if err := a.verified(ctx, m); err != nil {
		return client.PillAnswer{}, err
	}
	ans, err := a.pillStands(from, q, time.Now())
	ans.Term = m.term
	return ans, err
}

// pillStands is PillStands of an agent that leads. An agent that was just started, or
// that woke up, may ask before its first report is taken: it is not told to reset a
// host that is back (P4). A yes is only for one that goes on asking while its reports
// are not taken.
func (a *Agent) pillStands(from haven.HostID, q client.PillRequest, now time.Time) (ans client.PillAnswer, err error) {
	asking := a.pills.asking(from, q.Boot, now)
	rep, _ := a.ev.view(from)
	if rep != nil && rep.Boot == q.Boot && now.Sub(rep.at) <= a.connectedFor() {
		ans.Why = "the host's agent reports to the master"
	} else if err := a.fenceStands(recovery.Fence{Incident: q.Incident, N: q.Attempt, Host: from, Boot: q.Boot}); err != nil {
		ans.Why = err.Error()
	} else if asking < pillAskedFor {
		return ans, fmt.Errorf("%s reaches its master, so its report is waited for: %w", from, haven.ErrUnavailable)
	} else {
		ans.Stands = true
	}
	return ans, nil
}

// asker is a host that asks about its pill again and again.
type asker struct {
	boot        haven.BootID
	first, last time.Time
}

// asking notes a question, and says for how long the host has been asking without a
// pause.
func (p *pills) asking(host haven.HostID, boot haven.BootID, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	k, known := p.askers[host]
	if !known || k.boot != boot || now.Sub(k.last) > pillAskTimeout+2*pillEvery {
		k = asker{boot: boot, first: now}
	}
	k.last = now
	p.askers[host] = k
	return now.Sub(k.first)
}

// obey says a last word and resets the machine. From here on nothing is waited for
// that may hang.
func (w *pillWatch) obey(now time.Time, p storagebeat.Pill, why string) {
	if !w.ended.IsZero() && now.Sub(w.ended) < resetAgain || !w.ending.CompareAndSwap(false, true) {
		return
	}
	w.ended = now
	a := w.a
	a.log.Error("a poison pill is obeyed: this machine is reset now", "why", why,
		"incident", p.Incident, "attempt", p.Attempt, "term", p.Term.String(), "by", p.By, "boot", p.Boot)
	a.owned.Go(func() {
		defer w.ending.Store(false)
		a.sayLast(now)
		if a.d.Reset == nil {
			a.log.Error("this agent has no means to reset the machine; an armed watchdog does it")
			return
		}
		if err := a.d.Reset(); err != nil {
			a.log.Error("the machine could not be reset; an armed watchdog does it, and it is tried again", "error", err)
		}
	})
}

// sayLast gives the stores a moment to take one more beat, which says what this
// host does. It is for people: nobody concludes anything from it.
func (a *Agent) sayLast(since time.Time) {
	end := time.NewTimer(lastWord)
	defer end.Stop()
	tick := time.NewTicker(lastWord / 20)
	defer tick.Stop()
	for _, m := range a.monitors {
		m.BeatNow()
	}
	for {
		missing := false
		for _, m := range a.monitors {
			h := m.Snapshot().Health
			missing = missing || h.WriteAge == 0 || time.Now().Add(-h.WriteAge).Before(since)
		}
		if !missing {
			return
		}
		select {
		case <-tick.C:
		case <-end.C:
			return
		}
	}
}

package agent

import (
	"context"
	"slices"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/cluster"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/recovery"
	"github.com/haven-ha/haven/storagebeat"
)

// The pace of judgement. While somebody is suspected, time is worth more.
const (
	judgeIdle    = 200 * time.Millisecond
	judgeSuspect = 50 * time.Millisecond
)

// judged is one conclusion, for everybody else to read.
type judged struct {
	at    time.Time
	out   detector.Output
	hosts map[haven.HostID]int // index into out.Hosts
	// boots are those that the ledger knew when this was concluded. A verdict
	// is about one boot; by the time that it is used the ledger may know the next.
	boots map[haven.HostID]haven.BootID
	// lists are the VMs of each host as its beats tell them.
	lists map[haven.HostID]recovery.BeatList
	// dogs are what follows from the hosts' watchdogs, for one mastery.
	reign *mastery
	dogs  map[haven.HostID]fencing.TimeCount
	// index is that of a log entry that the ledger had by then.
	index uint64
}

func (j *judged) host(id haven.HostID) (detector.Judgement, bool) {
	if j == nil {
		return detector.Judgement{}, false
	}
	i, ok := j.hosts[id]
	if !ok {
		return detector.Judgement{}, false
	}
	return j.out.Hosts[i], true
}

// troubled lists the hosts about which every word counts.
func (j *judged) troubled() []haven.HostID {
	var ids []haven.HostID
	if j == nil {
		return nil
	}
	for i := range j.out.Hosts {
		if h := &j.out.Hosts[i]; h.Suspected || h.Verdict != haven.VerdictHealthy {
			ids = append(ids, h.Host)
		}
	}
	return ids
}

// judgeLoop judges all hosts, again and again. It waits for nobody: an agent
// whose loop is late is not trusted, and a slow disk or peer must not do that.
func (a *Agent) judgeLoop(ctx context.Context) {
	timer := time.NewTimer(judgeIdle)
	defer timer.Stop()
	for {
		begun := time.Now()
		next := a.judge(ctx, begun)
		a.loop.turned(begun, time.Now())
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-a.kicked:
		}
		a.loop.due(begun.Add(next))
	}
}

// judge takes one look at everything and returns when to look again.
func (a *Agent) judge(ctx context.Context, now time.Time) time.Duration {
	a.expectBeats()
	index := a.ledgerIndex()
	snaps := a.snapshots()
	in := a.detectorInput(now, snaps)
	out := a.step(now, in)
	j := &judged{at: now, index: index, out: out, hosts: make(map[haven.HostID]int, len(out.Hosts)), boots: make(map[haven.HostID]haven.BootID, len(out.Hosts))}
	j.lists = a.lists.look(now, snaps)
	j.reign, j.dogs = a.countDogs(now, snaps)
	for i := range in.Hosts {
		j.boots[in.Hosts[i].ID] = in.Hosts[i].Boot
	}
	next := judgeIdle
	for i, h := range out.Hosts {
		j.hosts[h.Host] = i
		if h.Changed {
			a.log.Info("verdict", "host", h.Host, "verdict", h.Verdict, "was", h.Was, "why", h.Why)
			a.metrics.verdicts.Inc(string(h.Verdict))
		}
		if h.Suspected {
			next = judgeSuspect
			a.readBeats()
		}
		if a.isMaster() {
			a.inquire(ctx, h)
		}
	}
	a.tellHolds(a.judgement.Load(), &out)
	a.judgement.Store(j)
	select {
	case a.judged <- struct{}{}:
	default:
	}
	return next
}

// readBeats reads the stores again at once: while somebody is suspected, a part
// of an interval matters.
func (a *Agent) readBeats() {
	for _, m := range a.monitors {
		m.ReadNow()
	}
}

// expectBeats leaves hosts that are proved dead out of those whose beats show
// that a store works: else the last pair could not judge each other.
func (a *Agent) expectBeats() {
	var hosts []haven.HostID
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		for _, id := range a.cfg.Hypervisors() {
			if h := s.Hosts[id]; h == nil || !h.ProvedDead() {
				hosts = append(hosts, id)
			}
		}
	})
	if slices.Equal(hosts, a.expected) {
		return
	}
	a.expected = hosts
	for _, m := range a.monitors {
		m.SetHosts(hosts)
	}
}

// probeAfterOff bounds the probes of a host whose BMC said off. They only have to
// find a live host that the BMC is wrong about, and such a host answers at once;
// one that does not is looked at again before anything follows.
const probeAfterOff = 400 * time.Millisecond

// inquire asks for the evidence that a judgement wants.
func (a *Agent) inquire(ctx context.Context, h detector.Judgement) {
	if len(h.WantProbes) > 0 {
		limit := a.cfg.Detection.ProbeTimeout
		if a.power.saysOff(h.Host) {
			limit = min(limit, probeAfterOff)
		}
		a.probeAround(ctx, h.Host, h.WantProbes, h.WantNeighbours, limit)
		if h.Suspected {
			a.askDisks(ctx, h.Host)
		}
	}
	if h.WantPower || a.power.unread(h.Host) {
		a.readPower(ctx, h.Host)
	}
}

// at turns a time into the detector's: since the start of this agent.
func (a *Agent) at(t time.Time) time.Duration { return t.Sub(a.origin) }

// ago turns an age that counts to now into the detector's time.
func ago(now, age time.Duration) time.Duration { return now - age }

func (a *Agent) detectorInput(now time.Time, snaps []storagebeat.Snapshot) detector.Input {
	at := a.at(now)
	a.learnPower(now, snaps)
	members := a.memberTable()
	master, masterKnown := a.master()
	in := detector.Input{Self: detector.Self{Host: a.d.Host}}
	in.Self.Master, in.Self.MasterSince = a.masterSince()
	in.Self.ColdStart, in.Self.ColdStarted = a.coldStart()
	in.Observers = append(in.Observers, a.observer(a.d.Host, a.observerView(snaps), at))
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		for _, id := range a.cfg.HostIDs() {
			h := a.detectorHost(s, id, at, members[id], snaps)
			h.Report.Expected = id == a.d.Host || in.Self.Master || (masterKnown && id == master)
			in.Hosts = append(in.Hosts, h)
		}
	})
	if in.Self.Master {
		a.addNeighbours(&in, now)
	}
	return in
}

func (a *Agent) observer(host haven.HostID, v client.ObserverView, at time.Duration) detector.Observer {
	o := detector.Observer{Host: host, At: at, Majority: v.Majority, LoopOK: v.LoopOK}
	for _, s := range v.Stores {
		o.Stores = append(o.Stores, detector.StoreView{Store: s.Store, OwnBack: s.OwnBack, Others: s.Others, Hung: s.Hung})
	}
	return o
}

// learnPower tells what is known of each host's BMC what the ledger has, and
// when the host itself last showed life. Every agent with a vote does this, so
// that a new master knows which BMC said on while its host lived.
func (a *Agent) learnPower(now time.Time, snaps []storagebeat.Snapshot) {
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		for _, id := range s.HostIDs() {
			if keys := a.deviceKeys(id); len(keys) > 0 {
				a.power.record(id, keys, s.Hosts[id].Power)
			}
		}
	})
	for _, snap := range snaps {
		for _, h := range snap.Hosts {
			for _, v := range []storagebeat.View{h.Agent, h.Helper} {
				if v.Moving == haven.Yes {
					a.power.alive(h.Host, a.deviceKeys(h.Host), v.Beat.Boot, now.Add(-v.Age))
				}
			}
		}
	}
	if ack := a.ev.lastAck(); ack.boot != "" {
		a.power.alive(ack.from, a.deviceKeys(ack.from), ack.boot, ack.at)
	}
}

// detectorHost gathers what this agent itself knows of one host.
func (a *Agent) detectorHost(s *ledger.State, id haven.HostID, at time.Duration, m cluster.Member, snaps []storagebeat.Snapshot) detector.Host {
	conf, _ := a.cfg.Host(id)
	h := detector.Host{
		ID: id, Configured: true, Role: conf.Role,
		Storeless: len(a.cfg.Heartbeat.Stores) == 0 || conf.Role == haven.RoleWitness,
	}
	var trust ledger.PowerTrust
	if reg := s.Hosts[id]; reg != nil {
		h.Boot, h.Proved, trust = reg.Boot, reg.ProvedDead(), reg.Power
		h.Maintenance = reg.Maintenance != nil
	}
	h.Report, h.Probes = a.hostReport(id, at)
	h.Gossip = gossipOf(m, at)
	for _, snap := range snaps {
		hv := snap.Host(id)
		h.Beats = append(h.Beats,
			a.detectorBeat(snap, detector.WriterAgent, hv.Agent, at),
			a.detectorBeat(snap, detector.WriterHelper, hv.Helper, at))
	}
	since := a.origin.Add(at - 30*time.Second)
	a.power.booted(id, h.Boot, a.origin.Add(at))
	h.Power = a.power.detectorReadings(id, a.d.Host, since, trust, a.at)
	return h
}

// hostReport is the direct word of a host: its reports to this master, or what
// the master answered to this agent's own.
func (a *Agent) hostReport(id haven.HostID, at time.Duration) (detector.Report, []detector.Probe) {
	rep, probes := a.ev.view(id)
	var out detector.Report
	if id == a.d.Host {
		return detector.Report{Heard: true, At: at, Boot: a.d.Boot}, probes
	}
	if rep != nil {
		out = detector.Report{Heard: true, At: a.at(rep.at), Boot: rep.Boot}
	}
	if ack := a.ev.lastAck(); ack.from == id && (!out.Heard || a.at(ack.at) > out.At) {
		out = detector.Report{Heard: true, At: a.at(ack.at), Boot: ack.boot}
	}
	return out, probes
}

func gossipOf(m cluster.Member, at time.Duration) detector.Gossip {
	g := detector.Gossip{Since: ago(at, m.Age), Left: m.Leave}
	if m.Stranger != "" {
		return detector.Gossip{Since: g.Since}
	}
	switch m.State {
	case cluster.StateAlive:
		g.State = detector.GossipAlive
	case cluster.StateDead:
		g.State = detector.GossipDead
	case cluster.StateLeft:
		g.State = detector.GossipLeft
	case cluster.StateUnknown:
	}
	return g
}

func (a *Agent) detectorBeat(s storagebeat.Snapshot, w detector.Writer, v storagebeat.View, at time.Duration) detector.Beat {
	b := detector.Beat{
		Store: s.Store, Writer: w, Reader: a.d.Host, Absent: v.Missing, Moving: v.Moving,
		ReadAt: ago(at, s.Health.ReadAge), Changed: v.Moving != haven.Unknown, ChangedAt: ago(at, v.Age), Left: v.Left,
	}
	if v.Seen {
		b.Boot, b.Interval = v.Beat.Boot, v.Beat.Interval
		b.Isolated, b.SeesOthers = haven.TriOf(v.Beat.Isolated), haven.TriOf(v.Beat.Master != "")
	}
	return b
}

// addNeighbours adds what the reporting agents say of their own paths, and what
// they read of the beats of hosts that are not healthy.
func (a *Agent) addNeighbours(in *detector.Input, now time.Time) {
	index := map[haven.HostID]int{}
	for i, h := range in.Hosts {
		index[h.ID] = i
		in.Hosts[i].Disks = a.diskEvidence.view(h.ID)
	}
	for _, id := range a.ev.connected(now.Add(-a.cfg.Detection.Silence)) {
		rep, _ := a.ev.view(id)
		if id == a.d.Host || rep == nil {
			continue
		}
		in.Observers = append(in.Observers, a.observer(id, rep.Observer, a.at(rep.at)))
		a.addBeats(in, index, id, rep.Beats, rep.at)
	}
	for _, w := range a.ev.told(now.Add(-a.cfg.Detection.Silence)) {
		a.addBeats(in, index, w.observer, w.beats, w.at)
	}
}

// addBeats adds what a neighbour reads of the beats of hosts in trouble.
func (a *Agent) addBeats(in *detector.Input, index map[haven.HostID]int, reader haven.HostID, beats []client.BeatView, at time.Time) {
	last, arrived := a.judgement.Load(), a.at(at)
	for _, b := range beats {
		i, ok := index[b.Host]
		if !ok || b.Host == reader {
			continue
		}
		if j, judgedBefore := last.host(b.Host); judgedBefore && (j.Verdict != haven.VerdictHealthy || j.Suspected) {
			in.Hosts[i].Beats = append(in.Hosts[i].Beats, neighbourBeat(reader, b, arrived))
		}
	}
}

func neighbourBeat(reader haven.HostID, b client.BeatView, arrived time.Duration) detector.Beat {
	w := detector.WriterAgent
	if b.Helper {
		w = detector.WriterHelper
	}
	return detector.Beat{
		Store: b.Store, Writer: w, Reader: reader, Absent: b.Absent, Moving: b.Moving,
		ReadAt: ago(arrived, b.ReadAge.Duration()), Changed: b.Moving != haven.Unknown, ChangedAt: ago(arrived, b.ChangedAge.Duration()),
		Boot: b.Boot, Interval: b.Interval.Duration(), Isolated: b.Isolated, SeesOthers: b.SeesOthers, Left: b.Left,
	}
}

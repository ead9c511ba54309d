package detector

import (
	"fmt"
	"slices"
	"time"

	"github.com/haven-ha/haven"
)

// tick is how often the world moves and the machine looks.
const tick = 100 * time.Millisecond

// world is an honest model of a cluster as one agent, self, sees it: hosts with
// power, agents, helpers, VMs, network and stores that can fail, and collectors
// that turn this into evidence at the pace and with the delays of the real ones.
type world struct {
	cfg     Config
	m       *Machine
	now     time.Duration
	self    haven.HostID
	master  bool
	since   time.Duration
	cold    bool
	leader  haven.HostID
	lag     bool
	hosts   []*worldHost
	stores  []*worldStore
	session uint64
	out     Output
	trace   []rec // what the machine was told, for the dumb one
	forgets bool  // it keeps no trace
	twin    *dumb // if there is one, it checks each step
	differs string
	tamper  func(*Input)
	stalled bool // self's process does not run: nobody judges
	mumbles bool // self does not tell of its own paths
	probes  int
	reads   int
}

type worldHost struct {
	id        haven.HostID
	role      haven.Role
	storeless bool
	maint     bool
	power     bool
	hung      bool
	agent     bool
	helper    bool
	writing   bool // its VMs write to their disks
	isolated  bool
	group     int // hosts reach each other within a group
	boot      int
	known     int // the newest boot that registered
	proved    bool
	bmc       string // "", dead, off, on
	distrust  bool
	guid      haven.Tri
	mute      bool // answers probes, but reports do not arrive
	deaf      bool // no packet reaches it
	unheard   bool // no packet of it reaches anybody
	silent    bool // its helper runs and does not answer, as libvirtd hangs
	left      haven.LeaveReason

	report Report
	gossip Gossip
	probes []Probe
	powers []PowerReading
	due    []func() // what answers later
	dueAt  []time.Duration
	active time.Duration // its disks last changed
	beats  map[string]*worldBeat
	seen   map[string]Beat // by reader, store and writer
}

type worldStore struct {
	name string
	hung map[haven.HostID]bool // "" for everybody
}

type worldBeat struct {
	seq  int
	at   time.Duration
	left haven.LeaveReason
	boot int
}

func newWorld(cfg Config, self haven.HostID, ids ...haven.HostID) *world {
	w := &world{cfg: cfg, self: self, master: true, leader: self}
	for _, id := range ids {
		w.hosts = append(w.hosts, &worldHost{
			id: id, role: haven.RoleHypervisor, power: true, agent: true, helper: true, writing: true,
			boot: 1, known: 1, guid: haven.Yes, gossip: Gossip{State: GossipAlive}, beats: map[string]*worldBeat{}, seen: map[string]Beat{},
		})
	}
	return w
}

// reaches says whether two hosts can speak with one another.
func (h *worldHost) reaches(o *worldHost) bool {
	return h == o || h.group == o.group && !h.oneWay() && !o.oneWay()
}

func (w *world) host(id haven.HostID) *worldHost {
	for _, h := range w.hosts {
		if h.id == id {
			return h
		}
	}
	return nil
}

func (h *worldHost) runs() bool                 { return h.power && !h.hung }
func (h *worldHost) agentRuns() bool            { return h.runs() && h.agent }
func (h *worldHost) oneWay() bool               { return h.deaf || h.unheard }
func (s *worldStore) works(h haven.HostID) bool { return !s.hung[""] && !s.hung[h] }
func bootID(n int) haven.BootID                 { return haven.BootID(fmt.Sprintf("boot-%d", n)) }

// step moves the world by one tick and lets the machine judge it.
func (w *world) step() {
	w.now += tick
	self := w.host(w.self)
	for i, h := range w.hosts {
		w.deliver(h)
		w.writeBeats(i, h)
		if h.agentRuns() && h.left == "" && h.reaches(self) && !h.mute && (w.now+time.Duration(i)*tick)%(500*time.Millisecond) == 0 {
			h.known, h.proved = h.boot, h.proved && h.known == h.boot
			if w.master || w.leader == h.id {
				h.report = Report{Heard: true, At: w.now, Boot: bootID(h.boot)}
			}
		}
		w.gossip(self, h)
		if h.runs() && h.writing && w.storageWorks(h.id) {
			h.active = w.now
		}
	}
	for _, r := range w.hosts {
		w.readBeats(r)
	}
	if w.stalled {
		return
	}
	in := w.input()
	if w.tamper != nil {
		w.tamper(&in)
	}
	w.out = w.m.Step(w.now, in)
	switch {
	case w.twin != nil:
		if complaint := w.twin.disagrees(rec{w.now, in}, &w.out); w.differs == "" {
			w.differs = complaint
		}
	case !w.forgets:
		w.trace = append(w.trace, rec{w.now, in})
	}
	for i := range w.out.Hosts {
		w.serve(self, w.hosts[i], &w.out.Hosts[i])
	}
}

func (w *world) storageWorks(h haven.HostID) bool {
	for _, s := range w.stores {
		if s.works(h) {
			return true
		}
	}
	return len(w.stores) == 0
}

func (w *world) deliver(h *worldHost) {
	for i := 0; i < len(h.due); {
		if h.dueAt[i] > w.now {
			i++
			continue
		}
		f := h.due[i]
		h.due, h.dueAt = slices.Delete(h.due, i, i+1), slices.Delete(h.dueAt, i, i+1)
		f()
	}
}

func (w *world) writeBeats(i int, h *worldHost) {
	if (w.now+time.Duration(i)*tick)%w.cfg.BeatInterval != 0 || h.storeless {
		return
	}
	for _, s := range w.stores {
		if !s.works(h.id) {
			continue
		}
		if h.agentRuns() && h.left == "" {
			w.beat(h, s.name+"/agent", "")
		}
		if h.runs() && h.helper {
			w.beat(h, s.name+"/helper", "")
		}
	}
}

func (w *world) beat(h *worldHost, slot string, left haven.LeaveReason) {
	b := h.beats[slot]
	if b == nil {
		b = &worldBeat{}
		h.beats[slot] = b
	}
	b.seq, b.at, b.left, b.boot = b.seq+1, w.now, left, h.boot
}

// gossip notices silence after six seconds, and a return at once.
func (w *world) gossip(self, h *worldHost) {
	if h == self || h.left != "" {
		return
	}
	state := GossipDead
	if h.agentRuns() && h.reaches(self) {
		state = GossipAlive
	}
	switch {
	case state == GossipAlive:
		if h.gossip.State != GossipAlive {
			h.gossip = Gossip{State: GossipAlive, Since: w.now}
		}
		h.gossip.Left = ""
		h.seenAlive(w.now)
	case h.gossip.State == GossipAlive && w.now-h.lastAlive() >= 6*time.Second:
		h.gossip = Gossip{State: GossipDead, Since: w.now}
	}
}

func (h *worldHost) seenAlive(t time.Duration) { h.seen["gossip"] = Beat{ChangedAt: t} }
func (h *worldHost) lastAlive() time.Duration  { return h.seen["gossip"].ChangedAt }
func (h *worldHost) slot(st, wr string) string { return string(h.id) + "/" + st + "/" + wr }
func (w *world) readsStores(r *worldHost) bool { return r.agentRuns() && !r.storeless }

// readBeats lets reader r look at every slot of every store that works for it.
func (w *world) readBeats(r *worldHost) {
	if !w.readsStores(r) {
		return
	}
	for _, s := range w.stores {
		if !s.works(r.id) {
			continue
		}
		for _, h := range w.hosts {
			for writer, name := range []string{"agent", "helper"} {
				key, rec := r.slot(s.name, name), h.beats[s.name+"/"+name]
				b, ok := h.seen[key]
				if !ok {
					b = Beat{Store: s.name, Writer: Writer(writer), Reader: r.id, ChangedAt: w.now, Absent: true}
				}
				b.ReadAt = w.now
				if rec != nil {
					if n := rec.seq; b.Absent || haven.BootID(fmt.Sprint(n)) != b.seq() {
						b.Changed = ok
						b.ChangedAt, b.Absent = w.now, false
						b.Boot, b.Left = bootID(rec.boot), rec.left
						b.setSeq(n)
					}
					b.Isolated, b.SeesOthers = haven.TriOf(h.isolated), haven.TriOf(!h.isolated)
				}
				h.seen[key] = b
			}
		}
	}
}

// The sequence last seen is kept beside what the machine is told.
func (b *Beat) seq() haven.BootID { return haven.BootID(fmt.Sprint(int64(b.Interval))) }
func (b *Beat) setSeq(n int)      { b.Interval = time.Duration(n) }

func (w *world) input() Input {
	in := Input{Self: Self{Host: w.self, Master: w.master, MasterSince: w.since, ColdStart: w.cold}}
	self := w.host(w.self)
	reached, living := 0, 0
	for _, h := range w.hosts {
		if h.proved {
			continue // It is on nobody's side.
		}
		living++
		if h.agentRuns() && h.left == "" && h.reaches(self) {
			reached++
		}
	}
	delegate := haven.HostID("")
	for _, h := range w.hosts {
		if h == self && w.mumbles {
			continue
		}
		if h == self || h.agentRuns() && h.left == "" && h.reaches(self) && !h.mute {
			in.Observers = append(in.Observers, w.observer(h, haven.TriOf(2*reached > living)))
			if h != self && !h.storeless && delegate == "" {
				delegate = h.id
			}
		}
	}
	for _, h := range w.hosts {
		e := Host{
			ID: h.id, Configured: true, Role: h.role, Storeless: h.storeless, Maintenance: h.maint,
			Boot: bootID(h.known), Proved: h.proved, Report: h.report, Gossip: h.gossip,
		}
		e.Report.Expected = w.leader == h.id
		for _, p := range h.probes {
			if w.now-p.Finished < 12*time.Second {
				e.Probes = append(e.Probes, p)
			}
		}
		for _, p := range h.powers {
			if w.now-p.Finished < 12*time.Second {
				p.Trusted = !h.distrust
				e.Power = append(e.Power, p)
			}
		}
		h.probes, h.powers = slices.Clone(e.Probes), slices.Clone(e.Power)
		for _, s := range w.stores {
			for _, reader := range []haven.HostID{w.self, delegate} {
				for _, name := range []string{"agent", "helper"} {
					if b, ok := h.seen[string(reader)+"/"+s.name+"/"+name]; ok {
						b.Interval = 0
						b.Moving = w.moving(&b)
						e.Beats = append(e.Beats, b)
					}
				}
			}
		}
		if delegate != "" && h != self && !h.agentAnswers(self) {
			e.Disks = append(e.Disks, w.disk(h, delegate))
		}
		in.Hosts = append(in.Hosts, e)
	}
	return in
}

func (h *worldHost) agentAnswers(self *worldHost) bool { return h.agentRuns() && h.reaches(self) }

func (w *world) moving(b *Beat) haven.Tri {
	switch age := w.now - b.ChangedAt; {
	case b.Absent:
		return haven.Unknown
	case age > w.cfg.StaleAfter:
		return haven.No
	case b.Changed:
		return haven.Yes
	}
	return haven.Unknown
}

func (w *world) observer(r *worldHost, majority haven.Tri) Observer {
	o := Observer{Host: r.id, At: w.now, Majority: majority, LoopOK: haven.TriOf(!w.lag || r.id != w.self)}
	if r.storeless {
		return o
	}
	for _, s := range w.stores {
		v := StoreView{Store: s.name, Hung: !s.works(r.id)}
		for _, h := range w.hosts {
			b := h.seen[r.slot(s.name, "agent")]
			t := w.moving(&b)
			switch {
			case h == r:
				v.OwnBack = t
			case t == haven.Yes || v.Others == haven.Unknown:
				v.Others = t
			}
		}
		o.Stores = append(o.Stores, v)
	}
	return o
}

// disk tells what neighbour by sees: change within 3 s, idle after 35 s.
func (w *world) disk(h *worldHost, by haven.HostID) Disk {
	d := Disk{Observer: by, At: w.now, Span: w.now - h.active}
	switch {
	case !w.storageWorks(by):
	case d.Span <= 3*time.Second && h.runs() && h.writing:
		d.Active = haven.Yes
	case d.Span >= 35*time.Second:
		d.Active = haven.No
	}
	return d
}

// serve does what the machine wants: probes by live neighbours, BMC readings.
func (w *world) serve(self, h *worldHost, j *Judgement) {
	later := func(d time.Duration, f func()) {
		h.due, h.dueAt = append(h.due, f), append(h.dueAt, w.now+d)
	}
	asked := 0
	for _, n := range w.hosts {
		if len(j.WantProbes) == 0 || asked == j.WantNeighbours || n == h || n == self || !n.agentRuns() || n.left != "" || !n.reaches(self) {
			continue
		}
		asked++
		for _, kind := range j.WantProbes {
			w.probes++
			p := Probe{Observer: n.id, Kind: kind, Started: w.now, Result: haven.No}
			delay := 800 * time.Millisecond
			if h.runs() && h.reaches(n) {
				delay = tick
				p.Result = haven.TriOf(kind == haven.EvidenceProbeTCP || kind == haven.EvidenceProbeAgent && h.agent && h.left == "" || kind == haven.EvidenceProbeHelper && h.helper && !h.silent)
			}
			later(delay, func() { p.Finished = w.now; h.probes = append(h.probes, p) })
		}
	}
	if j.WantPower {
		w.reads++
		w.session++
		r := PowerReading{Device: "bmc", Session: w.session, By: w.self, Started: w.now, State: haven.PowerOff, GUID: h.guid}
		if h.power {
			r.State = haven.PowerOn
		}
		delay := tick
		switch h.bmc {
		case "dead":
			r.State, delay = haven.PowerUnknown, time.Second
		case "off", "on":
			r.State = haven.PowerState(h.bmc)
		}
		later(delay, func() { r.Finished = w.now; h.powers = append(h.powers, r) })
	}
}

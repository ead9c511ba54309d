package detector

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

// rec is one step of a raw history.
type rec struct {
	now time.Duration
	in  Input
}

// MarshalJSON writes a step for people.
func (r rec) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Now time.Duration `json:"now"`
		In  Input         `json:"in"`
	}{r.now, r.in})
}

// dumb is the second implementation: slow, obvious, written from the verdict
// table over the raw history. It looks back over everything it was ever told
// at every step, and keeps only what the rules themselves count.
type dumb struct {
	cfg    Config
	hist   []rec
	hosts  map[haven.HostID]*dumbHost
	trust  []bool // per step
	over   []bool // per step: more hosts were bad than may be
	stores map[string][]bool
}

type dumbHost struct {
	first     int                      // the step it first appeared in
	last      map[string]time.Duration // its last sign of life by path, "" for any
	suspect   bool
	suspectAt time.Duration
	dueAt     time.Duration
	due       bool
	roundAt   time.Duration
	rounds    int
	left      haven.LeaveReason
	leftAt    time.Duration
	aliveAt   time.Duration
	alive     bool
	verdict   haven.Verdict
	story     []dumbMoment // since it first appeared
}

// dumbMoment is what a step came to for one host.
type dumbMoment struct {
	now     time.Duration
	raw     haven.Verdict // by this step's evidence alone
	told    haven.Verdict // … and by what stands from before
	newLife bool
	keeps   bool // suspected by a trusted observer, configured, same boot, no proof in the ledger
	boot    haven.BootID
	idle    bool // its disks were found idle
	suspect bool
}

// dumbVerdict is what the dumb one concludes, and a claim to be checked.
type dumbVerdict struct {
	verdict  haven.Verdict
	fresh    bool // this very step's evidence says so
	proof    bool
	fence    bool
	flapping bool
}

func newDumb(cfg Config) *dumb {
	return &dumb{cfg: cfg, hosts: map[haven.HostID]*dumbHost{}, stores: map[string][]bool{}}
}

// step judges one more step.
func (d *dumb) step(r rec) []dumbVerdict {
	k := len(d.hist)
	d.hist = append(d.hist, r)
	for i := range r.in.Hosts {
		if d.hosts[r.in.Hosts[i].ID] == nil {
			d.hosts[r.in.Hosts[i].ID] = &dumbHost{first: k, last: map[string]time.Duration{}}
		}
	}
	due := d.writersDue(r) // before this step's leaves are known
	d.trust = append(d.trust, d.trusted(r, due))
	for _, o := range r.in.Observers {
		for _, v := range o.Stores {
			if d.stores[v.Store] == nil {
				d.stores[v.Store] = make([]bool, k)
			}
		}
	}
	for name := range d.stores {
		d.stores[name] = append(d.stores[name], d.storeWorks(r, name, due))
	}
	out := make([]dumbVerdict, len(r.in.Hosts))
	for i := range r.in.Hosts {
		out[i] = d.judge(k, &r.in.Hosts[i], due)
	}
	d.fences(k, r, out)
	return out
}

func (d *dumb) writersDue(r rec) map[haven.HostID]bool {
	due := map[haven.HostID]bool{}
	for _, h := range r.in.Hosts {
		if h.Configured && !h.Storeless && !h.Proved && !h.Maintenance && d.hosts[h.ID].left == "" {
			due[h.ID] = true
		}
	}
	return due
}

func without(due map[haven.HostID]bool, ids ...haven.HostID) int {
	n := len(due)
	for i, id := range ids {
		if due[id] && (i == 0 || ids[0] != id) {
			n--
		}
	}
	return n
}

func (d *dumb) sane(r rec, o *Observer) bool {
	age := r.now - o.At
	return age >= 0 && age <= d.cfg.StaleAfter && o.Majority == haven.Yes && o.LoopOK == haven.Yes
}

func (d *dumb) saneBy(r rec, id haven.HostID) *Observer {
	for i := range r.in.Observers {
		if o := &r.in.Observers[i]; o.Host == id && d.sane(r, o) {
			return o
		}
	}
	return nil
}

func seen(v StoreView, others int, limit int) bool {
	return v.OwnBack == haven.Yes && !v.Hung && (others <= limit || v.Others == haven.Yes)
}

func (d *dumb) storeWorks(r rec, name string, due map[haven.HostID]bool) bool {
	for i := range r.in.Observers {
		o := &r.in.Observers[i]
		for _, v := range o.Stores {
			if v.Store == name && d.sane(r, o) && seen(v, without(due, o.Host), 1) {
				return true
			}
		}
	}
	return false
}

// trusted is the observer rule; a storage outage is not the observer's fault.
func (d *dumb) trusted(r rec, due map[haven.HostID]bool) bool {
	self := d.saneBy(r, r.in.Self.Host)
	if self == nil {
		return false
	}
	if d.cfg.Stores == 0 {
		return true
	}
	dead := 0
	for i := range r.in.Observers {
		o := &r.in.Observers[i]
		if !d.sane(r, o) {
			continue
		}
		works, broken := false, 0
		for _, v := range o.Stores {
			works = works || seen(v, without(due, o.Host), 1)
			if v.OwnBack == haven.No || v.Others == haven.No || v.Hung {
				broken++
			}
		}
		if works {
			return true
		}
		if len(o.Stores) > 0 && broken == len(o.Stores) {
			dead++
		}
	}
	return dead >= 2 || dead == 1 && len(self.Stores) == 0
}

// life is one instant at which a host was seen to live, and on which path.
type life struct {
	at   time.Duration
	path string // net, helper or other
}

// lives lists every sign of life of a host in one step's evidence.
func lives(r rec, h *Host) []life {
	var all []life
	add := func(at time.Duration, path string) { all = append(all, life{min(at, r.now), path}) }
	if h.ID == r.in.Self.Host {
		add(r.now, "net")
	} else if h.Report.Heard {
		add(h.Report.At, "net")
	}
	for _, p := range h.Probes {
		if p.Result == haven.Yes && p.Finished <= r.now {
			if p.Kind == haven.EvidenceProbeAgent {
				add(p.Finished, "net")
			} else {
				add(p.Finished, "helper")
			}
		}
	}
	for _, b := range h.Beats {
		if b.Changed && !b.Absent && b.ChangedAt <= r.now {
			if b.Writer == WriterHelper {
				add(b.ChangedAt, "helper")
			} else {
				add(b.ChangedAt, "other")
			}
		}
	}
	for _, x := range h.Disks {
		if x.Active == haven.Yes && x.At <= r.now {
			add(x.At-max(x.Quiet, 0), "other")
		}
	}
	if h.Gossip.State == GossipAlive && h.Gossip.Since <= r.now {
		add(h.Gossip.Since, "net")
	}
	return all
}

// lastLife is the last sign of life on a path ("" for any) told so far.
func (d *dumb) lastLife(id haven.HostID, path string) (time.Duration, bool) {
	last, ever := d.hosts[id].last[path]
	return last, ever
}

// note keeps a sign of life.
func (st *dumbHost) note(l life) {
	for _, path := range []string{l.path, ""} {
		if last, ever := st.last[path]; !ever || l.at > last {
			st.last[path] = l.at
		}
	}
}

// silence is how long a path has been silent while a trusted observer watched.
func (d *dumb) silence(k int, id haven.HostID, path string) time.Duration {
	now := d.hist[k].now
	since := d.hist[d.hosts[id].first].now
	if at, ok := d.lastLife(id, path); ok {
		since = max(since, at)
	}
	return now - max(since, d.trustedAt(k))
}

// trustedAt is when the present (or else the last) run of trust began.
func (d *dumb) trustedAt(k int) time.Duration {
	for k >= 0 && !d.trust[k] {
		k--
	}
	if k < 0 {
		return 0
	}
	for k > 0 && d.trust[k-1] {
		k--
	}
	return d.hist[k].now
}

func (d *dumb) workingSince(k int, store string) (time.Duration, bool) {
	if !d.stores[store][k] {
		return 0, false
	}
	for k > 0 && d.stores[store][k-1] {
		k--
	}
	return d.hist[k].now, true
}

// asked sums up the latest answers of neighbours.
func (d *dumb) asked(k int, h *Host, kind haven.EvidenceKind, pick func(p Probe) bool) haven.Tri {
	r := d.hist[k]
	type answer struct {
		p     Probe
		index int
	}
	latest := map[haven.HostID]answer{}
	for i, p := range h.Probes {
		if p.Kind != kind || p.Finished > r.now {
			continue
		}
		if pick(p) && p.Result == haven.Yes {
			return haven.Yes
		}
		if a, ok := latest[p.Observer]; !ok || p.Finished >= a.p.Finished {
			latest[p.Observer] = answer{p, i}
		}
	}
	no, unknown := 0, 0
	for id, a := range latest {
		if !pick(a.p) || d.saneBy(r, id) == nil || id == h.ID {
			continue
		}
		switch {
		case a.p.Result == haven.Unknown:
			unknown++
		case a.p.Result == haven.No && id != r.in.Self.Host:
			no++
		}
	}
	if no > 0 && unknown == 0 {
		return haven.No
	}
	return haven.Unknown
}

// goodStores are those whose stillness means something for the host.
func (d *dumb) goodStores(k int, h *Host, due map[haven.HostID]bool) []string {
	var names []string
	for name := range d.stores {
		for i := range d.hist[k].in.Observers {
			o := &d.hist[k].in.Observers[i]
			if d.readerGood(k, h, o.Host, name, due) && (o.Host != h.ID || len(due) > 2) {
				names = append(names, name)
				break
			}
		}
	}
	return names
}

func (d *dumb) readerGood(k int, h *Host, reader haven.HostID, store string, due map[haven.HostID]bool) bool {
	o := d.saneBy(d.hist[k], reader)
	if o == nil {
		return false
	}
	for _, v := range o.Stores {
		if v.Store == store {
			return seen(v, without(due, h.ID, reader), 0)
		}
	}
	return false
}

func (d *dumb) fresh(k int, at time.Duration) bool {
	age := d.hist[k].now - at
	return age >= 0 && age <= d.cfg.StaleAfter
}

// still says whether somebody good saw the beat stand still on the store.
func (d *dumb) still(k int, h *Host, store string, w Writer, age time.Duration, stale bool, due map[haven.HostID]bool) bool {
	for _, b := range h.Beats {
		if b.Store != store || b.Writer != w || b.Reader == h.ID || !d.fresh(k, b.ReadAt) || !d.readerGood(k, h, b.Reader, store, due) {
			continue
		}
		switch {
		case b.Absent && (w == WriterHelper || !stale):
			return true
		case !b.Absent && b.ChangedAt <= d.hist[k].now && d.hist[k].now-b.ChangedAt > age && (b.Moving == haven.No || !stale):
			return true
		}
	}
	return false
}

func (d *dumb) beat(k int, h *Host, w Writer, due map[haven.HostID]bool) haven.Tri {
	for _, b := range h.Beats {
		if b.Writer == w && b.Moving == haven.Yes && !b.Absent && b.Left == "" && d.fresh(k, b.ReadAt) {
			return haven.Yes
		}
	}
	good := d.goodStores(k, h, due)
	for _, store := range good {
		since, ok := d.workingSince(k, store)
		if !ok || d.hist[k].now-since <= d.cfg.StaleAfter || !d.still(k, h, store, w, d.cfg.StaleAfter, true, due) {
			return haven.Unknown
		}
	}
	if len(good) == 0 {
		return haven.Unknown
	}
	return haven.No
}

func (d *dumb) disk(k int, h *Host) haven.Tri {
	r, t := d.hist[k], haven.Unknown
	for _, x := range h.Disks {
		if x.At > r.now || r.now-x.At >= d.cfg.Silence {
			continue
		}
		if x.Active == haven.Yes {
			return haven.Yes
		}
		if x.Active == haven.No && d.saneBy(r, x.Observer) != nil {
			t = haven.No
		}
	}
	return t
}

// leave applies what the host said about leaving on purpose.
func (d *dumb) leave(k int, h *Host) {
	r, st := d.hist[k], d.hosts[h.ID]
	said := func(reason haven.LeaveReason, at time.Duration) {
		if reason != "" && at <= r.now && (st.left == "" || at > st.leftAt) {
			st.left, st.leftAt = reason, at
		}
	}
	if h.Gossip.State == GossipLeft {
		said(h.Gossip.Left, h.Gossip.Since)
	}
	for _, b := range h.Beats {
		if b.Writer == WriterAgent && !b.Absent && d.fresh(k, b.ReadAt) && (b.Boot == "" || h.Boot == "" || b.Boot == h.Boot) {
			said(b.Left, b.ChangedAt)
		}
	}
	back := func(at time.Duration) bool { return at > st.leftAt+d.cfg.SuspectAfter }
	returned := h.ID == r.in.Self.Host && back(r.now) || h.ID != r.in.Self.Host && h.Report.Heard && back(min(h.Report.At, r.now))
	for _, p := range h.Probes {
		returned = returned || p.Kind == haven.EvidenceProbeAgent && p.Result == haven.Yes && p.Finished <= r.now && back(p.Finished)
	}
	for _, b := range h.Beats {
		returned = returned || b.Writer == WriterAgent && !b.Absent && b.Changed && b.Moving == haven.Yes && b.Left == "" && b.ChangedAt <= r.now && back(b.ChangedAt)
	}
	if returned || h.Gossip.State == GossipAlive && h.Gossip.Since > st.leftAt && h.Gossip.Since <= r.now {
		st.left = ""
	}
}

// netAlive says whether the agent lives on the network at this step.
func (d *dumb) netAlive(k int, h *Host, due bool) (alive, reported bool) {
	r, st := d.hist[k], d.hosts[h.ID]
	if h.ID == r.in.Self.Host {
		return true, true
	}
	reported = h.Report.Heard && r.now-min(h.Report.At, r.now) <= d.cfg.SuspectAfter
	alive = reported
	heard := d.hist[st.first].now
	if h.Report.Heard {
		heard = max(heard, min(h.Report.At, r.now))
	}
	for _, p := range h.Probes {
		if p.Kind == haven.EvidenceProbeAgent && p.Result == haven.Yes && p.Finished <= r.now {
			heard = max(heard, p.Finished)
			alive = alive || r.now-p.Finished <= d.cfg.ProbeFresh
		}
	}
	if h.Gossip.State == GossipAlive && h.Gossip.Since <= r.now {
		heard = max(heard, h.Gossip.Since)
		if st.suspect {
			heard = max(heard, st.suspectAt)
		}
		if r.now-heard >= d.cfg.GossipLag || !due && !st.suspect {
			alive = true
			st.note(life{r.now, "net"})
		}
	}
	return alive, reported
}

func (d *dumb) judge(k int, h *Host, due map[haven.HostID]bool) dumbVerdict {
	r, st := d.hist[k], d.hosts[h.ID]
	c := d.cfg
	before, had := time.Duration(0), false
	if k > st.first {
		before, had = d.lastLife(h.ID, "")
	}
	for _, l := range lives(r, h) {
		st.note(l)
	}
	expected := r.in.Self.Master || h.Report.Expected
	if expected && !st.due {
		st.dueAt = r.now
		if r.in.Self.Master {
			st.dueAt = min(r.now, r.in.Self.MasterSince)
		}
	}
	st.due = expected
	d.leave(k, h)
	alive, reported := d.netAlive(k, h, expected)
	after, has := d.lastLife(h.ID, "")
	newLife := has && (!had || after > before)
	if alive && !st.alive {
		st.aliveAt = r.now
	}
	st.alive = alive

	noStore := c.Stores == 0 || h.Storeless
	agent, helper := haven.Unknown, haven.Unknown
	if !noStore {
		agent, helper = d.beat(k, h, WriterAgent, due), d.beat(k, h, WriterHelper, due)
	}
	disk := d.disk(k, h)

	// Suspicion.
	heard := d.hist[st.first].now
	if h.Report.Heard {
		heard = min(h.Report.At, r.now)
	}
	silent := expected && r.now-max(heard, st.dueAt) > c.SuspectAfter
	gone := !reported && (h.Gossip.State == GossipDead || agent == haven.No)
	switch {
	case !h.Configured || h.ID == r.in.Self.Host || st.left != "":
		st.suspect = false
	case !st.suspect && (silent || gone):
		st.suspect, st.suspectAt, st.roundAt, st.rounds = true, r.now, r.now, 0
	case st.suspect && (reported || !expected && alive && !gone):
		st.suspect = false
	}

	// Rounds.
	wrote := st.suspect && disk != haven.No && st.wrote()
	pathsDead := agent == haven.No && helper == haven.No && disk != haven.Yes && !wrote
	if noStore {
		pathsDead = disk == haven.No || disk == haven.Unknown && c.FenceWithoutStore && c.Stores == 0 && !wrote
	}
	inRound := func(p Probe) bool { return p.Finished > st.roundAt }
	allDead := !alive && pathsDead && d.asked(k, h, haven.EvidenceProbeAgent, inRound) == haven.No &&
		d.asked(k, h, haven.EvidenceProbeHelper, inRound) == haven.No && d.asked(k, h, haven.EvidenceProbeTCP, inRound) != haven.Yes
	switch {
	case !st.suspect:
		st.rounds = 0
	case newLife || !d.trust[k]:
		st.rounds, st.roundAt = 0, r.now
	case r.now-st.roundAt >= c.Round && allDead:
		st.rounds, st.roundAt = st.rounds+1, r.now
	case r.now-st.roundAt >= 2*c.Round:
		st.rounds, st.roundAt = 0, r.now
	}

	grace := r.in.Self.Started + c.StartupGrace
	if r.in.Self.ColdStart {
		grace = max(grace, r.in.Self.ColdStarted+c.StartupGrace)
	}
	out := dumbVerdict{}
	out.proof = d.trust[k] && r.now >= grace && !alive && h.Boot != "" && d.proof(k, h, noStore, after, has, due)
	out.verdict = d.verdict(k, h, situation{alive, expected, noStore, agent, helper, disk, out.proof, grace, pathsDead, wrote, due})
	out.fresh = true
	st.story = append(st.story, dumbMoment{
		now: r.now, raw: out.verdict, newLife: newLife, boot: h.Boot, idle: disk == haven.No, suspect: st.suspect,
		keeps: st.suspect && d.trust[k] && h.Configured && !h.Proved && agent != haven.Yes && helper != haven.Yes && disk != haven.Yes,
	})
	if out.verdict != haven.VerdictFailed && st.standsFailed() {
		out.verdict, out.fresh = haven.VerdictFailed, false
	}
	st.story[len(st.story)-1].told = out.verdict
	out.flapping = st.flaps(c)
	st.verdict = out.verdict
	return out
}

// wrote says whether the host was unreachable in the course of this suspicion,
// and not idle since.
func (st *dumbHost) wrote() bool {
	for _, m := range slices.Backward(st.story) {
		switch {
		case m.told == haven.VerdictUnreachable:
			return true
		case !m.suspect, m.idle:
			return false
		}
	}
	return false
}

// standsFailed says whether an earlier step found the host failed, and all steps
// since then, this one included, only failed to see anything.
func (st *dumbHost) standsFailed() bool {
	boot := st.story[len(st.story)-1].boot
	for _, m := range slices.Backward(st.story) {
		switch {
		case m.boot != boot:
			return false
		case m.raw == haven.VerdictFailed:
			return true
		case m.newLife, !m.keeps, m.raw != haven.VerdictSuspect && m.raw != haven.VerdictUnknown:
			return false
		}
	}
	return false
}

// flaps says whether there was a step at which the host had fallen from health
// too often, with no long enough time of health after it.
func (st *dumbHost) flaps(c Config) bool {
	var falls []time.Duration
	flaps, healthy := false, 0 // healthy: the step since which it is
	for i, m := range st.story {
		if i > 0 && st.story[i-1].told == haven.VerdictHealthy && isFall(m.told) {
			falls = append(falls, m.now)
			if n := len(falls) - c.FlapCount; n >= 0 && m.now-falls[n] < c.FlapWindow {
				flaps = true
			}
		}
		switch {
		case m.told != haven.VerdictHealthy:
			healthy = i + 1
		case m.now-st.story[healthy].now >= c.FlapCalm:
			flaps = false
		}
	}
	return flaps
}

type situation struct {
	alive, expected, noStore bool
	agent, helper, disk      haven.Tri
	proof                    bool
	grace                    time.Duration
	pathsDead                bool
	wrote                    bool
	due                      map[haven.HostID]bool
}

// provedSince walks back to the first of the steps in a row that knew the proof.
func (d *dumb) provedSince(k int, h *Host) time.Duration {
	since := d.hist[k].now
	for i := k - 1; i >= d.hosts[h.ID].first; i-- {
		var before *Host
		for n := range d.hist[i].in.Hosts {
			if e := &d.hist[i].in.Hosts[n]; e.ID == h.ID {
				before = e
			}
		}
		if before == nil || !before.Proved || before.Boot != h.Boot {
			break
		}
		since = d.hist[i].now
	}
	return since
}

// verdict goes down the table.
func (d *dumb) verdict(k int, h *Host, s situation) haven.Verdict {
	r, st, c := d.hist[k], d.hosts[h.ID], d.cfg
	window := func(p Probe) bool { return p.Finished > r.now-c.Silence }
	if !h.Configured || !d.trust[k] {
		return haven.VerdictUnknown
	}
	if h.Proved {
		same := h.ID == r.in.Self.Host || h.Report.Heard && r.now-min(h.Report.At, r.now) <= c.SuspectAfter
		over := d.provedSince(k, h) + 2*c.BeatInterval
		at := min(h.Report.At, r.now)
		if h.ID == r.in.Self.Host {
			at = r.now
		}
		same = same && h.Report.Heard && h.Report.Boot == h.Boot && at > over
		for _, b := range h.Beats {
			same = same || !b.Absent && b.Moving == haven.Yes && d.fresh(k, b.ReadAt) && b.ChangedAt > over && b.Boot != "" && b.Boot == h.Boot
		}
		if !same {
			return haven.VerdictDead
		}
	}
	switch {
	case st.left == haven.LeaveShutdown:
		return haven.VerdictShutdown
	case s.proof:
		return haven.VerdictDead
	case st.left != "":
		return haven.VerdictStopped
	case s.alive:
		return d.aliveVerdict(k, h, s)
	case !st.suspect && s.expected && (st.verdict == haven.VerdictHealthy || st.verdict == haven.VerdictStorageLost):
		return st.verdict
	case !st.suspect:
		return haven.VerdictUnknown
	case d.silence(k, h.ID, "net") < c.Silence, d.asked(k, h, haven.EvidenceProbeAgent, window) != haven.No:
		return haven.VerdictSuspect
	case s.agent == haven.Yes:
		newest, isolated := time.Duration(-1<<62), haven.Unknown
		for _, b := range h.Beats {
			if b.Writer == WriterAgent && b.Moving == haven.Yes && !b.Absent && b.ChangedAt > newest {
				newest, isolated = b.ChangedAt, b.Isolated
			}
		}
		if isolated == haven.Yes {
			return haven.VerdictIsolated
		}
		return haven.VerdictPartitioned
	case !s.noStore && s.agent == haven.Unknown:
		return haven.VerdictUnknown
	}

	// The agent is dead on every path. Does anything else live?
	helperLives := s.helper == haven.Yes
	for i, p := range h.Probes {
		if p.Kind != haven.EvidenceProbeAgent && p.Result == haven.Yes && p.Finished <= r.now && r.now-p.Finished <= c.Silence/2 {
			later := false
			for n, q := range h.Probes {
				later = later || q.Kind == p.Kind && q.Observer == p.Observer && q.Finished <= r.now && (q.Finished > p.Finished || q.Finished == p.Finished && n > i)
			}
			helperLives = helperLives || !later
		}
	}
	last, ever := d.lastLife(h.ID, "helper")
	recently := ever && r.now-last < c.Silence
	helperDead := !recently && d.asked(k, h, haven.EvidenceProbeHelper, window) == haven.No && (s.noStore || s.helper == haven.No)
	silence := d.silence(k, h.ID, "")
	if !s.noStore {
		for _, store := range d.goodStores(k, h, s.due) {
			since, _ := d.workingSince(k, store)
			silence = min(silence, r.now-since)
		}
	}
	switch {
	case helperLives:
		return haven.VerdictAgentDown
	case s.disk == haven.Yes, s.wrote:
		return haven.VerdictUnreachable
	case !helperDead && recently:
		return haven.VerdictSuspect
	case !helperDead:
		return haven.VerdictUnknown
	case s.noStore && !s.pathsDead:
		return haven.VerdictUnknown
	case st.rounds < c.Rounds, silence < c.Silence, h.Boot == "", r.now < s.grace,
		c.WaitForGossip && h.Gossip.State == GossipAlive:
		return haven.VerdictSuspect
	}
	return haven.VerdictFailed
}

func (d *dumb) aliveVerdict(k int, h *Host, s situation) haven.Verdict {
	r, st := d.hist[k], d.hosts[h.ID]
	switch {
	case s.noStore, s.agent == haven.Yes:
		return haven.VerdictHealthy
	case s.agent == haven.No:
		if r.now-st.aliveAt < d.cfg.StaleAfter {
			return haven.VerdictHealthy
		}
		return haven.VerdictStorageLost
	}
	for _, o := range r.in.Observers {
		if o.Host != h.ID || !d.fresh(k, o.At) || len(o.Stores) == 0 {
			continue
		}
		lost := 0
		for _, v := range o.Stores {
			if v.OwnBack == haven.No || v.Hung {
				lost++
			}
		}
		if lost == len(o.Stores) {
			return haven.VerdictStorageLost
		}
		break
	}
	if st.verdict == haven.VerdictStorageLost {
		return haven.VerdictStorageLost
	}
	return haven.VerdictHealthy
}

// proof looks for offs enough, each followed by the next after the gap.
func (d *dumb) proof(k int, h *Host, noStore bool, life time.Duration, lived bool, due map[haven.HostID]bool) bool {
	r := d.hist[k]
	var chains [][]PowerReading
	for _, p := range h.Power {
		good := p.State == haven.PowerOff && p.Trusted && p.GUID != haven.No && p.Started <= p.Finished &&
			p.Finished <= r.now && r.now-p.Started <= d.cfg.OffFresh && (!lived || p.Started > life)
		for _, q := range h.Power {
			good = good && (q.State != haven.PowerOn || q.Finished > r.now || q.Finished < p.Started)
		}
		if good {
			chains = append(chains, []PowerReading{p})
		}
	}
	singles := chains
	for range d.cfg.OffReadings - 1 {
		var longer [][]PowerReading
		for _, c := range chains {
			tail := c[len(c)-1]
			for _, s := range singles {
				if p := s[0]; p.Device == tail.Device && p.Session != tail.Session && p.Started-tail.Finished >= d.cfg.OffGap {
					longer = append(longer, append(append([]PowerReading{}, c...), p))
				}
			}
		}
		chains = longer
	}
	for _, c := range chains {
		if d.chainProves(k, h, c, noStore, due) {
			return true
		}
	}
	return false
}

func (d *dumb) chainProves(k int, h *Host, chain []PowerReading, noStore bool, due map[haven.HostID]bool) bool {
	r := d.hist[k]
	from := max(chain[0].Finished, d.trustedAt(k))
	after := func(p Probe) bool { return p.Started >= from }
	if d.asked(k, h, haven.EvidenceProbeAgent, after) != haven.No {
		return false
	}
	if d.hosts[h.ID].left != "" && d.asked(k, h, haven.EvidenceProbeHelper, after) != haven.No {
		return false
	}
	if noStore {
		return true
	}
	good := d.goodStores(k, h, due)
	if len(good) == 0 {
		for _, p := range chain {
			if p.GUID != haven.Yes {
				return false
			}
		}
		return true
	}
	interval := d.cfg.BeatInterval
	for _, b := range h.Beats {
		if !b.Absent {
			interval = max(interval, b.Interval)
		}
	}
	margin := time.Duration(d.cfg.OffBeatAge * float64(interval))
	for _, b := range h.Beats {
		if b.Changed && !b.Absent && r.now-b.ChangedAt <= margin {
			return false
		}
	}
	for _, store := range good {
		if !d.still(k, h, store, WriterAgent, margin, false, due) || !d.still(k, h, store, WriterHelper, margin, false, due) {
			return false
		}
	}
	return true
}

// fences works out which failed hosts may be fenced.
func (d *dumb) fences(k int, r rec, out []dumbVerdict) {
	n, down := 0, 0
	for i, h := range r.in.Hosts {
		if !h.Configured || h.Role == haven.RoleWitness || h.Maintenance {
			continue
		}
		n++
		switch out[i].verdict {
		case haven.VerdictHealthy, haven.VerdictStorageLost, haven.VerdictStopped, haven.VerdictShutdown, haven.VerdictAgentDown:
		case haven.VerdictUnknown:
			if d.hosts[h.ID].suspect || h.Proved {
				down++
			}
		default:
			down++
		}
	}
	allowed := max(1, int(d.cfg.MassFailureShare*float64(n)+1e-9))
	d.over = append(d.over, down > allowed)
	held := d.massHolds(k)
	for i, h := range r.in.Hosts {
		out[i].fence = out[i].verdict == haven.VerdictFailed && out[i].fresh && !held && r.in.Self.Master && h.Role != haven.RoleWitness && !h.Maintenance
	}
}

// massHolds says whether more hosts were ever bad than may be, and no long enough
// time in which a trusted observer saw no more than that has passed since.
func (d *dumb) massHolds(k int) bool {
	last := -1
	for i := range k + 1 {
		if d.over[i] {
			last = i
		}
	}
	if last < 0 {
		return false
	}
	from := last + 1
	for i := from; i <= k; i++ {
		switch {
		case !d.trust[i]:
			from = i + 1
		case d.hist[i].now-d.hist[from].now >= d.cfg.MassFailureCalm:
			return false
		}
	}
	return true
}

// fataler is what both testing and rapid give.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// disagrees takes one more step and compares every conclusion. The two agree
// exactly: there is no granularity in which they may differ.
func (d *dumb) disagrees(r rec, out *Output) string {
	k := len(d.hist)
	want := d.step(r)
	if out.Trusted != d.trust[k] {
		return fmt.Sprintf("step %d at %v: trusted %t, the dumb one says %t", k, r.now, out.Trusted, d.trust[k])
	}
	for i := range want {
		j := &out.Hosts[i]
		if j.Verdict != want[i].verdict {
			return fmt.Sprintf("step %d at %v: %s is %s (%s, missing %v), the dumb one says %s", k, r.now, j.Host, j.Verdict, j.Why, j.Missing, want[i].verdict)
		}
		if j.PowerOff && !want[i].proof {
			return fmt.Sprintf("step %d at %v: power off of %s proved, the dumb one disagrees", k, r.now, j.Host)
		}
		if j.Flapping != want[i].flapping {
			return fmt.Sprintf("step %d at %v: %s flapping: %t, the dumb one says %t", k, r.now, j.Host, j.Flapping, want[i].flapping)
		}
		// A contradiction may hold the real one back, never urge it on.
		if j.MayFence() && !want[i].fence || want[i].fence && !j.MayFence() && j.Hold.Reason != haven.HoldContradiction {
			return fmt.Sprintf("step %d at %v: %s may be fenced: %t (%v, %s), the dumb one says %t", k, r.now, j.Host, j.MayFence(), j.Hold, j.NoFence, want[i].fence)
		}
	}
	return ""
}

// checkDumb runs the history through both machines and compares them.
func checkDumb(t fataler, cfg Config, hist []rec) {
	t.Helper()
	m, err := New(cfg)
	if err != nil {
		t.Fatalf("config: %v", err)
	}
	d := newDumb(cfg)
	for _, r := range hist {
		out := m.Step(r.now, r.in)
		if complaint := d.disagrees(r, &out); complaint != "" {
			t.Fatalf("%s", complaint)
		}
	}
}

var _ fataler = (*testing.T)(nil)

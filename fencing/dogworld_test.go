package fencing_test

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/haven-ha/haven/fencing"
)

// dogWorld is a host with a watchdog, the stores that it writes to, those who
// read them, a master that is superseded and the one that counts. It goes on in
// steps; times are true ones unless they are called somebody's.
type dogWorld struct {
	rng *rand.Rand
	m   mutant
	now time.Duration

	// The host.
	rate             float64 // of its clock
	t, d             time.Duration
	life, petted     time.Duration // by its clock
	petLands         time.Duration // a pet that was decided and is late; 0: none
	stalledTo        time.Duration
	firedAt          time.Duration
	reports          []*dogReport
	ignoresVerified  bool
	stalls           int // one pet in so many is late
	toOld, toNew     dogLink
	stores           []*dogStore
	elected, readyAt time.Duration

	// The counting master.
	master  float64 // rate of its clock
	readers []*dogReader
	acked   time.Time // by the master's clock
	ready   time.Time
	proved  bool
}

// dogLink is up, but for two spans at most.
type dogLink [2][2]time.Duration

func (l dogLink) up(at time.Duration) bool {
	for _, span := range l {
		if at >= span[0] && at < span[1] {
			return false
		}
	}
	return true
}

type dogStore struct {
	link    dogLink // the host's way to it
	seq     int     // what a read sees now
	images  []int   // what it was, by steps
	started time.Duration
	lands   time.Duration
	ends    time.Duration // 0: no write is under way
	writes  int
}

type dogReader struct {
	rate  float64
	own   bool // it is the master's
	sees  []*dogSees
	told  []fencing.BeatSight
	asked time.Duration
	hears time.Duration // when what it is asked arrives
	heard time.Duration // when its answer arrives
	says  []dogAges
}

// dogSees is what one reader has of one store.
type dogSees struct {
	link, stale     dogLink
	begun, at, ends time.Duration // of the read under way
	seq             int
	vouched         bool
	read, changed   time.Duration // starts, by the reader's clock
	ever, underWay  bool
	value           int
	valueIsStale    bool
	lastTry         time.Duration
}

type dogAges struct {
	read, changed time.Duration
	vouched, ever bool
}

type dogReport struct {
	sent, arrives, back time.Duration
	toNew, answered     bool
	verified            time.Duration // age that the answer tells
}

const (
	dogStep    = 100 * time.Millisecond
	dogTimeout = 2 * time.Second
	dogEnd     = 150 * time.Second
)

func newDogWorld(seed uint64, m mutant) *dogWorld {
	w := &dogWorld{rng: rand.New(rand.NewPCG(seed, 77)), m: m, now: time.Second}
	w.rate, w.master, w.stalls = w.clock(), w.clock(), 80
	w.t = w.span(8, 16)
	w.d = w.span(4, 10)
	w.toOld, w.toNew = w.link(), w.link()
	w.elected = w.span(3, 60)
	w.readyAt = w.elected + w.span(0, 2)
	for range 1 + w.rng.IntN(3) {
		w.stores = append(w.stores, &dogStore{link: w.link()})
	}
	for i := range 1 + w.rng.IntN(3) {
		r := &dogReader{rate: w.clock()}
		if i == 0 && w.rng.IntN(3) > 0 {
			r.own, r.rate = true, w.master
		}
		for range w.stores {
			s := &dogSees{}
			if w.rng.IntN(3) == 0 {
				s.link = w.outage()
			}
			if w.rng.IntN(4) == 0 {
				s.stale = w.outage()
			}
			r.sees = append(r.sees, s)
		}
		w.readers = append(w.readers, r)
	}
	w.life, w.petted = w.host(w.now), w.host(w.now)
	if m.stage != nil {
		m.stage(w)
	}
	if m.host != nil {
		m.host(w)
	}
	return w
}

// Stages are worlds in which one thing matters most.

func down(from, to time.Duration) dogLink { return dogLink{{from, to}} }

// oldMaster answers to the end, and longer; the host reaches nothing else.
func oldMaster(w *dogWorld) {
	for _, s := range w.stores {
		s.link = down(w.span(2, 5), dogEnd)
	}
	w.elected = w.span(30, 60)
	w.readyAt = w.elected + w.span(0, 2)
	w.toOld, w.toNew = down(w.elected+w.span(-1, 30), dogEnd), down(0, dogEnd)
}

// newMaster answers for long; the host reaches nothing else.
func newMaster(w *dogWorld) {
	oldMaster(w)
	w.elected, w.readyAt = 2*time.Second, w.span(2, 3)
	w.toNew = down(w.span(30, 60), dogEnd)
}

// lateBeat is one that comes when the promise is nearly over; the neighbours take
// their time to answer.
func lateBeat(w *dogWorld) {
	w.toOld, w.toNew = down(w.span(2, 3), dogEnd), down(w.span(2, 3), dogEnd)
	w.elected, w.readyAt = 2*time.Second, 2*time.Second
	back := w.span(0.3, 1.1)
	for _, s := range w.stores {
		s.link = down(2500*time.Millisecond, 2500*time.Millisecond+time.Duration(float64(w.t+w.d)*back.Seconds()))
	}
	for _, r := range w.readers {
		r.own = false
	}
}

// hungReads is when readers lose the stores and the host does not.
func hungReads(w *dogWorld) {
	w.toOld, w.toNew = down(w.span(2, 3), dogEnd), down(w.span(2, 3), dogEnd)
	w.elected, w.readyAt = 2*time.Second, 2*time.Second
	for _, s := range w.stores {
		s.link = dogLink{}
	}
	for _, r := range w.readers {
		for _, s := range r.sees {
			s.link, s.stale = down(w.span(3, 20), w.span(25, 140)), dogLink{}
		}
	}
}

// latePets come as late as they can.
func latePets(w *dogWorld) {
	w.stalls, w.d = 4, w.span(10, 20)
	w.toOld, w.toNew = down(w.span(2, 20), dogEnd), down(w.span(2, 20), dogEnd)
	for _, s := range w.stores {
		s.link = down(w.span(2, 20), dogEnd)
	}
}

func (w *dogWorld) clock() float64 { return 0.99 + 0.02*w.rng.Float64() }

func (w *dogWorld) span(least, most float64) time.Duration {
	return time.Duration((least + (most-least)*w.rng.Float64()) * float64(time.Second))
}

// link is a way of the host: most end for good, some come back for a while.
func (w *dogWorld) link() (l dogLink) {
	if w.rng.IntN(5) == 0 {
		return l
	}
	down := w.span(2, 70)
	l[0] = [2]time.Duration{down, dogEnd}
	if w.rng.IntN(3) == 0 {
		l[0][1] = down + w.span(5, 40)
		l[1] = [2]time.Duration{l[0][1] + w.span(1, 40), dogEnd}
	}
	return l
}

// outage is a fault of a reader: it begins and ends.
func (w *dogWorld) outage() (l dogLink) {
	for i := range l {
		begin := w.span(0, 100)
		l[i] = [2]time.Duration{begin, begin + w.span(1, 60)}
	}
	return l
}

func (w *dogWorld) host(t time.Duration) time.Duration { return time.Duration(float64(t) * w.rate) }

func (w *dogWorld) mine(t time.Duration) time.Time {
	return t0.Add(time.Duration(float64(t) * w.master))
}

// play goes through the whole story, and tells of a proof about a host that lives.
func (w *dogWorld) play(fail func(format string, args ...any)) {
	var b fencing.ByTime
	var twin timeTwin
	for w.ready = w.mine(w.readyAt); w.now < dogEnd; w.now += dogStep {
		for _, s := range w.stores {
			s.images = append(s.images, s.seq)
		}
		if w.firedAt == 0 {
			w.dog()
		}
		w.write()
		if w.firedAt == 0 && w.now >= w.stalledTo {
			w.report()
		}
		w.deliver()
		w.read()
		if w.now < w.readyAt {
			continue
		}
		w.ask()
		if w.now%(5*dogStep) != 0 {
			continue
		}
		in := w.input()
		if w.m.count != nil {
			w.m.count(w, &in)
		}
		c := b.Step(in)
		switch {
		case w.m.name == "" && twin.proved(in) != (c.State == fencing.TimeProved):
			fail("%s: %s, the twin says %v", c.State, c.Why, c.State != fencing.TimeProved)
			return
		case c.State != fencing.TimeProved:
			continue
		case w.firedAt == 0:
			fail("P2: at %s, host's life %s, petted %s: %s", w.now, w.life, w.petted, c.Why)
			return
		}
		w.proved = true
		return
	}
}

// dog is the keeper and the device: it fires when it was not petted for d.
func (w *dogWorld) dog() {
	now := w.host(w.now)
	if now-w.petted >= w.d {
		w.firedAt = w.now
		return
	}
	if w.petLands > 0 { // decided before the stall
		if w.now >= w.petLands {
			w.petted, w.petLands = now, 0
		}
		return
	}
	if now-w.life >= w.t || w.now < w.stalledTo {
		return
	}
	if w.rng.IntN(w.stalls) == 0 { // between the look and the pet
		w.stalledTo = w.now + w.span(0, w.d.Seconds()*0.97)
		w.petLands = w.stalledTo
		return
	}
	w.petted = now
}

func (w *dogWorld) alive(at time.Duration) bool { return w.firedAt == 0 && at >= w.stalledTo }

// write lets the host write beats: a write is seen some time before it is
// confirmed, may be lost on the way back, and may land when nobody waits for it.
func (w *dogWorld) write() {
	for _, s := range w.stores {
		if s.ends > 0 {
			if s.lands > 0 && w.now >= s.lands && s.link.up(w.now) {
				s.seq, s.lands = max(s.seq, s.writes), 0
			}
			switch {
			case s.lands == 0 && w.now >= s.ends && w.now-s.started <= dogTimeout && w.alive(w.now) && s.link.up(w.now):
				w.lives(s.started)
				s.ends = 0
			case w.now-s.started > dogTimeout:
				s.ends, s.lands = 0, 0
				if s.link.up(s.started) && w.rng.IntN(2) == 0 {
					s.seq = s.writes // it landed all the same
				}
			}
			continue
		}
		if w.alive(w.now) && w.now-s.started >= time.Second {
			s.writes++
			s.started = w.now
			s.lands = w.now + w.slow()
			s.ends = s.lands + w.slow()
		}
	}
}

// slow is how long something takes: mostly nothing.
func (w *dogWorld) slow() time.Duration {
	if w.rng.IntN(6) == 0 {
		return w.span(0, 1.8)
	}
	return w.span(0, 0.1)
}

// lives gives the host life for something that began and ended.
func (w *dogWorld) lives(begun time.Duration) { w.life = max(w.life, w.host(begun)) }

// report lets the host send reports, to whom it holds for the master.
func (w *dogWorld) report() {
	if len(w.reports) > 0 && w.now-w.reports[len(w.reports)-1].sent < 500*time.Millisecond {
		return
	}
	r := &dogReport{sent: w.now, toNew: w.now > w.readyAt && (w.toNew.up(w.now) || w.rng.IntN(2) == 0)}
	r.arrives = w.now + w.slow()
	w.reports = append(w.reports, r)
}

// deliver lets masters answer reports, and the host hear it. The old one may go
// on answering when it is superseded; it says how old its majority's word is.
func (w *dogWorld) deliver() {
	for _, r := range w.reports[max(0, len(w.reports)-20):] {
		link := w.toOld
		if r.toNew {
			link = w.toNew
		}
		switch {
		case !r.answered && r.back == 0 && w.now >= r.arrives && link.up(w.now) && w.now-r.arrives < 10*time.Second:
			r.answered, r.back = true, w.now+w.slow()
			at := w.now - w.span(0, 1)
			if !r.toNew {
				at = min(at, w.elected)
			} else {
				at = max(at, w.elected)
				w.acked = w.mine(w.now)
			}
			r.verified = time.Duration(float64(w.now-at)*w.clock()) + time.Millisecond
		case r.answered && r.back > 0 && w.now >= r.back && w.alive(w.now):
			r.back = 0
			begun := w.host(r.sent)
			if !w.ignoresVerified {
				begun -= r.verified
			}
			w.life = max(w.life, begun)
		}
	}
}

// read lets everybody read the stores.
func (w *dogWorld) read() {
	for _, r := range w.readers {
		for i, s := range r.sees {
			if !s.underWay && w.now-s.lastTry >= time.Second {
				s.underWay, s.begun, s.lastTry = true, w.now, w.now
				s.at = w.now + w.slow()
				s.ends = s.at + w.slow()
				s.value = -1
			}
			if !s.underWay {
				continue
			}
			if s.value < 0 && w.now >= s.at && s.link.up(w.now) {
				s.value, s.valueIsStale = w.stores[i].seq, false
				for _, span := range s.stale {
					if w.now >= span[0] && w.now < span[1] { // a cache of when this began
						step := int((span[0] - time.Second) / dogStep)
						s.value, s.valueIsStale = w.stores[i].images[min(max(step, 0), len(w.stores[i].images)-1)], true
					}
				}
			}
			switch {
			case w.now-s.begun > dogTimeout:
				s.underWay = false // What was read last still stands; it only gets older.
			case s.value >= 0 && w.now >= s.ends:
				s.took(time.Duration(float64(s.begun) * r.rate))
			}
		}
	}
}

// took ends a read.
func (s *dogSees) took(begun time.Duration) {
	s.underWay = false
	s.vouched = !s.valueIsStale && s.value > 0 && s.value >= s.seq
	if s.value > s.seq {
		s.seq, s.changed, s.ever = s.value, begun, true
	}
	s.read = begun
}

// ask lets the master ask its neighbours.
func (w *dogWorld) ask() {
	for _, r := range w.readers {
		switch {
		case r.own:
		case r.asked == 0 || w.now-r.asked > 4*time.Second:
			r.asked, r.hears = w.now, w.now+w.slow()
			r.heard = 0
		case r.heard == 0 && w.now >= r.hears:
			r.says = r.ages(w.now)
			r.heard = w.now + w.slow()
		case r.heard > 0 && w.now >= r.heard:
			r.told = nil
			for i, a := range r.says {
				if a.ever {
					s := w.sight(r, i, a)
					r.told = append(r.told, s.Told(w.mine(r.asked), w.mine(w.now), millis(a.read), millis(a.changed)))
				}
			}
			r.asked = 0
		}
	}
}

func millis(d time.Duration) time.Duration {
	return (d + time.Millisecond - 1).Truncate(time.Millisecond)
}

func (r *dogReader) ages(now time.Duration) (all []dogAges) {
	mine := time.Duration(float64(now) * r.rate)
	for _, s := range r.sees {
		all = append(all, dogAges{mine - s.read, mine - s.changed, s.vouched, s.ever})
	}
	return all
}

func (w *dogWorld) sight(r *dogReader, store int, a dogAges) fencing.BeatSight {
	name := fmt.Sprintf("s%d", store+1)
	return fencing.BeatSight{
		Reader: "r", Store: name, Name: name, Vouched: a.vouched, Boot: boot1, Watchdog: w.t + 2*w.d,
		Moving: a.vouched && a.changed < 4*time.Second,
	}
}

// input is what the master knows.
func (w *dogWorld) input() fencing.TimeInput {
	in := fencing.TimeInput{Now: w.mine(w.now), Boot: boot1, Acked: w.ready, ReadTimeout: dogTimeout}
	if w.acked.After(in.Acked) {
		in.Acked = w.acked
	}
	in.Promised.Bound = w.t + 2*w.d
	for i := range w.stores {
		in.Promised.Stores = append(in.Promised.Stores, fmt.Sprintf("s%d", i+1))
	}
	for _, r := range w.readers {
		if !r.own {
			in.Sights = append(in.Sights, r.told...)
			continue
		}
		for i, a := range r.ages(w.now) {
			if a.ever {
				s := w.sight(r, i, a)
				s.ReadAt, s.ChangedAt = in.Now.Add(-a.read), in.Now.Add(-a.changed)
				in.Sights = append(in.Sights, s)
			}
		}
	}
	return in
}

package storagebeat

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	haven "github.com/haven-ha/haven"
)

// The twin judges from the whole history of readings by the definitions, with
// nothing carried from one reading to the next. It is slow and plain.

type twin struct {
	cfg      TrackerConfig
	readings []Reading
	decoded  map[*byte]decoded // decoding is the same on both sides, and slow
}

type decoded struct {
	beat Beat
	err  error
}

func (w twin) decode(store StoreID, raw RawBeat) (Beat, error) {
	if raw.Data == nil {
		return DecodeAt(store, raw)
	}
	d, ok := w.decoded[&raw.Data[0]]
	if !ok {
		d.beat, d.err = DecodeAt(store, raw)
		w.decoded[&raw.Data[0]] = d
	}
	return d.beat, d.err
}

// record is what one reading showed of one beat.
type record struct {
	ok      bool // valid, and not older than what was there before
	fresh   bool // the first of its life, or a later one than before
	changed bool // a later one of the same life than before
	beat    Beat
}

// good returns the good readings since the store last had another identity, and
// for each whether it follows the one before without a gap or a failure between.
func (w twin) good() (rs []Reading, follows []bool) {
	broken := true
	for _, r := range w.readings {
		if r.Err != nil {
			broken = true
			continue
		}
		if len(rs) > 0 && rs[0].Store != r.Store {
			rs, follows, broken = nil, nil, true
		}
		near := len(rs) > 0 && r.Start.Sub(rs[len(rs)-1].Start) <= w.cfg.Interval*5/2
		rs, follows = append(rs, r), append(follows, near && !broken)
		broken = false
	}
	return rs, follows
}

// records says what each reading showed of one beat.
func (w twin) records(rs []Reading, k key) []record {
	var out []record
	var accepted []Beat
	for _, r := range rs {
		i := slices.IndexFunc(r.Beats, func(b RawBeat) bool { return b.Host == k.host && b.Writer == k.writer })
		if i < 0 {
			out = append(out, record{})
			continue
		}
		b, err := w.decode(r.Store, r.Beats[i])
		if err != nil || obsolete(accepted, b) {
			out = append(out, record{})
			continue
		}
		rec := record{ok: true, beat: b}
		if len(accepted) == 0 || accepted[len(accepted)-1].life() != b.life() {
			rec.fresh = true
		} else {
			rec.changed = b.Sequence > accepted[len(accepted)-1].Sequence
			rec.fresh = rec.changed
		}
		accepted = append(accepted, b)
		out = append(out, rec)
	}
	return out
}

// obsolete says whether a record is older than any that was accepted before.
func obsolete(accepted []Beat, b Beat) bool {
	for i, a := range accepted {
		if a.life() == b.life() && a.Sequence > b.Sequence || a.State == b.State && a.Incarnation > b.Incarnation {
			return true
		}
		for _, later := range accepted[i:] {
			if a.Boot == b.Boot && later.Boot != b.Boot || a.State == b.State && later.State != b.State {
				return true
			}
		}
	}
	return false
}

// lastFresh is the start of the last reading up to the i-th that showed something
// new, and whether movement was seen in the life that this one belongs to.
func lastFresh(rs []Reading, recs []record, upTo int) (start time.Time, moved, ok bool) {
	for i := upTo; i >= 0; i-- {
		if !recs[i].fresh {
			continue
		}
		if !ok {
			start, ok = rs[i].Start, true
		}
		if recs[i].changed {
			return start, true, true
		}
		return start, moved, ok // The first record of the life: nothing before it counts.
	}
	return start, moved, ok
}

// othersMoved is the start of the last reading up to the i-th that showed
// movement of a host that vouches for the store.
func (w twin) othersMoved(rs []Reading, subject haven.HostID, i int) (last time.Time, ok bool) {
	vouching := slices.DeleteFunc(slices.Clone(w.cfg.Hosts), func(h haven.HostID) bool { return h == w.cfg.Self || h == subject })
	if len(vouching) == 0 && subject != w.cfg.Self {
		vouching = []haven.HostID{w.cfg.Self}
	}
	for _, h := range vouching {
		for _, wr := range []Writer{WriterAgent, WriterHelper} {
			start, moved, _ := lastFresh(rs, w.records(rs, key{h, wr}), i)
			if moved && (!ok || start.After(last)) {
				last, ok = start, true
			}
		}
	}
	return last, ok
}

func (w twin) lively(rs []Reading, subject haven.HostID, i int) bool {
	last, ok := w.othersMoved(rs, subject, i)
	return ok && rs[i].Start.Sub(last) <= w.cfg.Interval*5/2
}

// judge returns what View shows as Moving, Silent and Lively.
func (w twin) judge(now time.Time, k key) (haven.Tri, time.Duration, bool) {
	if len(w.readings) == 0 || w.readings[len(w.readings)-1].Err != nil {
		return haven.Unknown, 0, false
	}
	rs, follows := w.good()
	n := len(rs) - 1
	if now.Sub(rs[n].Start) > w.cfg.Interval*5/2 {
		return haven.Unknown, 0, false
	}
	recs := w.records(rs, k)
	lively := w.lively(rs, k.host, n)
	if !recs[n].ok {
		return haven.Unknown, 0, lively
	}
	var quiet time.Time
	for i := n; i >= 0; i-- {
		if recs[i].fresh || !recs[i].ok || !follows[i] || !w.lively(rs, k.host, i) {
			quiet = rs[i].End
			break
		}
	}
	var silent time.Duration
	if last, ok := w.othersMoved(rs, k.host, n); ok && lively && last.After(quiet) {
		silent = last.Sub(quiet)
	}
	start, moved, _ := lastFresh(rs, recs, n)
	// Two records of one sequence cannot both be the writer's: the first counts.
	i := n
	for !recs[i].fresh {
		i--
	}
	stale := max(w.cfg.StaleAfter, 3*min(recs[i].beat.Interval, time.Hour))
	switch {
	case moved && now.Sub(start) < stale:
		return haven.Yes, silent, lively
	case moved && silent >= stale-w.cfg.Interval/4:
		return haven.No, silent, lively
	}
	return haven.Unknown, silent, lively
}

// TestTrackerAgreesWithItsTwin guards P5 on the storage path: both judge alike
// whatever is read.
func TestTrackerAgreesWithItsTwin(t *testing.T) {
	seen := map[haven.Tri]int{}
	story := func(t *rapid.T) {
		cfg := TrackerConfig{
			Self: "a", Writer: WriterAgent, Hosts: testHosts[:rapid.IntRange(2, 3).Draw(t, "hosts")],
			Interval: time.Second, StaleAfter: 4 * time.Second,
		}
		tr, w := NewTracker(cfg), twin{cfg: cfg, decoded: map[*byte]decoded{}}
		world := newDrawnWorld(cfg.Hosts)
		now := time.Unix(1000, 0)
		for range rapid.IntRange(5, 40).Draw(t, "readings") {
			now = now.Add(drawPause(t))
			r := world.draw(t, now)
			tr.Step(r)
			w.readings = append(w.readings, r)
			now = r.End
			at := now.Add(rapid.SampledFrom([]time.Duration{0, time.Second, 2 * time.Second, 5 * time.Second}).Draw(t, "ask after"))
			snap := tr.Snapshot(at)
			for _, k := range world.keys {
				v := snap.Host(k.host).Agent
				if k.writer == WriterHelper {
					v = snap.Host(k.host).Helper
				}
				moving, silent, lively := w.judge(at, k)
				seen[moving]++
				if v.Moving != moving || v.Silent != silent || v.Lively != lively {
					t.Fatalf("%s of %s: tracker says %s, silent %s, lively %v (%s); twin says %s, %s, %v",
						k.writer, k.host, v.Moving, v.Silent, v.Lively, v.Why, moving, silent, lively)
				}
			}
		}
	}
	for range 10 { // One check of a short run has too few to see everything.
		rapid.Check(t, story)
	}
	for _, tri := range []haven.Tri{haven.Yes, haven.No, haven.Unknown} {
		if seen[tri] == 0 {
			t.Errorf("no case was judged %s: the test shows nothing about it", tri)
		}
	}
}

func drawPause(t *rapid.T) time.Duration {
	return rapid.SampledFrom([]time.Duration{
		time.Second, time.Second, time.Second, time.Second, time.Second, time.Second, 250 * time.Millisecond, 1900 * time.Millisecond, 2500 * time.Millisecond, 6 * time.Second,
	}).Draw(t, "pause")
}

// drawnWorld holds what writers put on a store, with everything that can go wrong.
type drawnWorld struct {
	store StoreID
	keys  []key
	beats map[key]Beat
	lives int
	bad   map[key]string // how a record is spoilt, for as long as it is
	still map[key]bool   // writers that do not write
}

func newDrawnWorld(hosts []haven.HostID) *drawnWorld {
	w := &drawnWorld{store: testStore(1), beats: map[key]Beat{}, bad: map[key]string{}, still: map[key]bool{}}
	for _, h := range hosts {
		for _, wr := range []Writer{WriterAgent, WriterHelper} {
			k := key{h, wr}
			w.keys = append(w.keys, k)
			w.beats[k] = Beat{Host: h, Writer: wr, Boot: "b0", State: "s0", Incarnation: 5, Sequence: 10, Interval: time.Second}
		}
	}
	return w
}

func (w *drawnWorld) draw(t *rapid.T, start time.Time) Reading {
	r := Reading{Start: start, End: start.Add(rapid.SampledFrom([]time.Duration{0, 10 * time.Millisecond, time.Second}).Draw(t, "read takes"))}
	switch rapid.IntRange(0, 60).Draw(t, "store") {
	case 33:
		r.Err = errors.New("input/output error")
		return r
	case 44:
		w.store = testStore(w.store[0] + 1)
	}
	r.Store = w.store
	for _, k := range w.keys {
		w.change(t, k)
		if raw, ok := w.show(t, k); ok {
			r.Beats = append(r.Beats, raw)
		}
	}
	return r
}

// change lets a writer do something, mostly what it did before.
func (w *drawnWorld) change(t *rapid.T, k key) {
	b := w.beats[k]
	if !w.still[k] {
		b.Sequence++
	}
	switch act := rapid.IntRange(0, 150).Draw(t, "act of "+string(k.host)+"."+k.writer.String()); act {
	case 0:
		w.bad[k] = rapid.SampledFrom([]string{"torn", "missing", "store", "host", "error", "blank"}).Draw(t, "spoilt")
	case 1, 2, 3:
		delete(w.bad, k)
	case 4:
		b.Sequence -= 3
	case 5:
		b.Incarnation++
	case 6:
		b.Incarnation--
	case 7:
		w.lives++
		b.Boot, b.Sequence = haven.BootID(fmt.Sprint("b", w.lives%7)), 1
	case 8:
		w.lives++
		b.State = haven.StateID(fmt.Sprint("s", w.lives%7))
	case 9:
		b.Interval = rapid.SampledFrom([]time.Duration{0, time.Second, 2 * time.Second, 1 << 62}).Draw(t, "interval")
	case 10, 11, 12, 13, 14:
		w.still[k] = true
	case 15, 16:
		w.still[k] = false
	}
	w.beats[k] = b
}

func (w *drawnWorld) show(t *rapid.T, k key) (RawBeat, bool) {
	raw := RawBeat{Host: k.host, Writer: k.writer}
	b := w.beats[k]
	b.Store = w.store
	switch w.bad[k] {
	case "missing":
		return raw, false
	case "error":
		raw.Err = errors.New("permission denied")
		return raw, true
	case "store":
		b.Store = testStore(0xff)
	case "host":
		b.Host = "z"
	}
	data, err := Encode(b)
	if err != nil {
		t.Fatal(err)
	}
	raw.Data = data
	switch w.bad[k] {
	case "torn":
		data[offVMs]++
	case "blank":
		raw.Data = make([]byte, RecordSize)
	}
	return raw, true
}

// TestSilenceIsNeverClaimedWrongly guards P5 and P6 against the truth. Writers
// write and stall, the whole store stalls, reads are slow. The reader never claims a
// longer silence than there was up to its last read, and never calls a beat stale
// because the store stalled.
func TestSilenceIsNeverClaimedWrongly(t *testing.T) {
	stale, outages := 0, 0
	life := func(t *rapid.T) {
		w := newStallingWorld(rapid.Bool().Draw(t, "hosts stall too"))
		for range rapid.IntRange(400, 1500).Draw(t, "ticks") {
			if !w.tick(t) {
				continue
			}
			snap := w.tr.Snapshot(w.now)
			if snap.Health.Outage != "" {
				outages++
			}
			for _, hv := range snap.Hosts {
				silence := w.read.Start.Sub(w.hosts[hv.Host].wroteBefore(w.read.Start))
				if hv.Agent.Silent > silence {
					t.Fatalf("%s: silence of %s claimed, truly %s", hv.Host, hv.Agent.Silent, silence)
				}
				if hv.Agent.Moving != haven.No {
					continue
				}
				stale++
				if !w.hostsStall || silence < w.tr.cfg.StaleAfter-w.tr.cfg.Interval/4 {
					t.Fatalf("%s: called stale; it wrote %s before, hosts stall: %v", hv.Host, silence, w.hostsStall)
				}
			}
		}
	}
	for range 10 { // One check of a short run has a few dozen lives only.
		rapid.Check(t, life)
	}
	t.Logf("%d beats were called stale, %d outages seen", stale, outages)
	if stale == 0 || outages == 0 {
		t.Errorf("%d beats were called stale, %d outages seen: the test shows nothing", stale, outages)
	}
}

const worldTick = 50 * time.Millisecond

// stallingWorld is three hosts that beat about once a second on one store, and a reader.
type stallingWorld struct {
	tr         *Tracker
	now        time.Time
	hosts      map[haven.HostID]*stallingHost
	hostsStall bool
	storeStall time.Time // until when nothing is written or read
	nextRead   time.Time
	readEnds   time.Time // zero when no read is under way
	read       Reading
}

type stallingHost struct {
	next  time.Time // when its next beat is due
	stall time.Time // until when it does nothing
	wrote []time.Time
}

func newStallingWorld(hostsStall bool) *stallingWorld {
	w := &stallingWorld{
		tr: NewTracker(TrackerConfig{
			Self: "a", Writer: WriterAgent, Hosts: testHosts, Interval: time.Second, StaleAfter: 4 * time.Second,
		}),
		now: time.Unix(1000, 0), hosts: map[haven.HostID]*stallingHost{}, hostsStall: hostsStall,
	}
	for i, h := range testHosts {
		w.hosts[h] = &stallingHost{next: w.now.Add(time.Duration(i) * 300 * time.Millisecond), wrote: []time.Time{w.now}}
	}
	return w
}

func (h *stallingHost) wroteBefore(at time.Time) time.Time {
	for _, t := range slices.Backward(h.wrote) {
		if t.Before(at) {
			return t
		}
	}
	return h.wrote[0]
}

// tick passes some time and says whether a read ended in it.
func (w *stallingWorld) tick(t *rapid.T) bool {
	w.now = w.now.Add(worldTick)
	ticks := func(from, to int, what string) time.Duration {
		return time.Duration(rapid.IntRange(from, to).Draw(t, what)) * worldTick
	}
	// The extremes of a range are drawn far more often than its middle.
	switch n := rapid.IntRange(0, 200).Draw(t, "fault"); {
	case n >= 111 && n <= 114:
		w.storeStall = w.now.Add(ticks(20, 160, "store stalls for"))
	case n >= 77 && n <= 80 && w.hostsStall:
		w.hosts[rapid.SampledFrom(testHosts).Draw(t, "host")].stall = w.now.Add(ticks(20, 240, "host stalls for"))
	}
	if w.now.Before(w.storeStall) {
		return false
	}
	for _, id := range testHosts {
		if h := w.hosts[id]; !w.now.Before(h.next) && !w.now.Before(h.stall) {
			h.wrote = append(h.wrote, w.now)
			h.next = w.now.Add(ticks(18, 23, "beat after"))
		}
	}
	switch {
	case w.readEnds.IsZero() && !w.now.Before(w.nextRead):
		w.read = Reading{Start: w.now, Store: testStore(1), Beats: w.look(t)}
		w.readEnds, w.nextRead = w.now.Add(ticks(0, 10, "read takes")), w.now.Add(20*worldTick)
	case !w.readEnds.IsZero() && !w.now.Before(w.readEnds):
		if rapid.Bool().Draw(t, "it looked late") {
			w.read.Beats = w.look(t)
		}
		w.read.End, w.readEnds = w.now, time.Time{}
		w.tr.Step(w.read)
		return true
	}
	return false
}

func (w *stallingWorld) look(t *rapid.T) (beats []RawBeat) {
	for _, id := range testHosts {
		data, err := Encode(Beat{
			Store: testStore(1), Host: id, Writer: WriterAgent, Boot: "b", State: "s", Incarnation: 1,
			Sequence: uint64(len(w.hosts[id].wrote)), Interval: time.Second,
		})
		if err != nil {
			t.Fatal(err)
		}
		beats = append(beats, RawBeat{Host: id, Writer: WriterAgent, Data: data})
	}
	return beats
}

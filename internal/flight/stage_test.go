package flight

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
)

// stage plays evidence about some hosts to a judge, as an agent would gather it:
// every instant trembles a little, probes and readings come and fall away.
type stage struct {
	r      *rand.Rand
	now    time.Duration
	hosts  []haven.HostID
	dies   map[haven.HostID]time.Duration
	probes map[haven.HostID][]detector.Probe
	power  map[haven.HostID][]detector.PowerReading
	noise  float64 // share of values that are wrong
	cfg    detector.Config
	m      *detector.Machine
	outs   []detector.Output
}

func newStage(t testing.TB, seed uint64, hosts int) *stage {
	s := &stage{
		r: rand.New(rand.NewPCG(seed, 9)), now: 10 * time.Minute, dies: map[haven.HostID]time.Duration{}, cfg: detector.Normal(),
		probes: map[haven.HostID][]detector.Probe{}, power: map[haven.HostID][]detector.PowerReading{},
	}
	for i := range hosts {
		s.hosts = append(s.hosts, haven.HostID(fmt.Sprintf("kvm-%02d", i+1)))
	}
	var err error
	if s.m, err = detector.New(s.cfg); err != nil {
		t.Fatal(err)
	}
	return s
}

// shake is an instant a little off, as clocks are read one after the other.
func (s *stage) shake(at time.Duration) time.Duration {
	if s.noise > 0 && s.r.Float64() < s.noise {
		at += time.Duration(s.r.IntN(4000)-3500) * time.Millisecond
	}
	return at + time.Duration(s.r.IntN(9000))
}

func (s *stage) lives(id haven.HostID) bool {
	at, dies := s.dies[id]
	return !dies || s.now < at
}

// last is when id last did what it does each interval.
func (s *stage) last(id haven.HostID, every time.Duration) time.Duration {
	at := s.now
	if !s.lives(id) {
		at = s.dies[id]
	}
	return at.Truncate(every)
}

func (s *stage) input() detector.Input {
	in := detector.Input{Self: detector.Self{Host: s.hosts[0], Master: true}}
	stores := []detector.StoreView{{Store: "nfs1", OwnBack: haven.Yes, Others: haven.Yes}}
	for _, id := range s.hosts {
		if s.lives(id) {
			in.Observers = append(in.Observers, detector.Observer{Host: id, At: s.shake(s.last(id, 500*time.Millisecond)), Majority: haven.Yes, LoopOK: haven.Yes, Stores: stores})
		}
		in.Hosts = append(in.Hosts, s.host(id))
	}
	return in
}

func (s *stage) host(id haven.HostID) detector.Host {
	boot := haven.BootID("boot-" + id)
	h := detector.Host{
		ID: id, Configured: true, Role: haven.RoleHypervisor, Boot: boot, Probes: slices.Clone(s.probes[id]), Power: slices.Clone(s.power[id]),
		Report: detector.Report{Heard: true, At: s.shake(s.last(id, 500*time.Millisecond)), Boot: boot, Expected: true},
		Gossip: detector.Gossip{State: detector.GossipAlive, Since: s.shake(0)},
	}
	changed := s.last(id, time.Second)
	for _, w := range []detector.Writer{detector.WriterAgent, detector.WriterHelper} {
		h.Beats = append(h.Beats, detector.Beat{
			Store: "nfs1", Writer: w, Reader: s.hosts[0], Moving: haven.TriOf(s.now-changed <= s.cfg.StaleAfter), ReadAt: s.shake(s.now.Truncate(time.Second)),
			Changed: true, ChangedAt: s.shake(changed), Boot: boot, Interval: time.Second, SeesOthers: haven.Yes,
		})
	}
	if !s.lives(id) && s.now-s.dies[id] > 5*time.Second {
		h.Gossip = detector.Gossip{State: detector.GossipDead, Since: s.shake(s.dies[id] + 5*time.Second)}
	}
	return h
}

// step judges once, with the tape running, and does what the judge asks for.
func (s *stage) step(tape *Tape, open []Subject) {
	in := s.input()
	tape.Before(s.m)
	out := s.m.Step(s.now, in)
	tape.After(s.now, time.Unix(0, 0).Add(s.now), &in, &out, open)
	s.outs = append(s.outs, out)
	wait := 200 * time.Millisecond
	for i := range out.Hosts {
		j := &out.Hosts[i]
		if j.Suspected {
			wait = 50 * time.Millisecond
		}
		answer := haven.TriOf(s.lives(j.Host))
		for _, kind := range j.WantProbes {
			for _, by := range s.hosts[:min(3, len(s.hosts))] {
				if by != j.Host {
					s.probes[j.Host] = append(s.probes[j.Host], detector.Probe{Observer: by, Kind: kind, Result: answer, Started: s.now, Finished: s.shake(s.now)})
				}
			}
		}
		if j.WantPower {
			r := detector.PowerReading{Device: "bmc-" + string(j.Host), Session: s.r.Uint64(), By: s.hosts[0], State: haven.PowerOn, Started: s.now, Finished: s.now + time.Millisecond, Trusted: true, GUID: haven.Yes}
			if !s.lives(j.Host) {
				r.State = haven.PowerOff
			}
			s.power[j.Host] = append(s.power[j.Host], r)
		}
		s.probes[j.Host] = lastOf(s.probes[j.Host], 64)
		s.power[j.Host] = lastOf(s.power[j.Host], 16)
	}
	s.now += wait + time.Duration(s.r.IntN(1e6))
}

func lastOf[T any](all []T, n int) []T { return slices.Clone(all[max(0, len(all)-n):]) }

// memDisk is a Disk in memory that can be told to fail.
type memDisk struct {
	mu    sync.Mutex
	files map[string]*memFile
	order int64
	fail  func(op, name string) error // called before each operation
}

type memFile struct {
	d     *memDisk
	name  string
	order int64
	data  []byte
}

func newMemDisk() *memDisk { return &memDisk{files: map[string]*memFile{}} }

func (d *memDisk) before(op, name string) error {
	d.mu.Lock()
	fail := d.fail
	d.mu.Unlock()
	if fail == nil {
		return nil
	}
	return fail(op, name)
}

func (d *memDisk) List() (all []Entry, err error) {
	if err := d.before("list", ""); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, f := range d.files {
		all = append(all, Entry{name, int64(len(f.data)), f.order})
	}
	return all, nil
}

func (d *memDisk) Create(name string) (File, error) {
	if err := d.before("create", name); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files[name] != nil {
		return nil, errors.New("exists")
	}
	d.order++
	f := &memFile{d: d, name: name, order: d.order}
	d.files[name] = f
	return f, nil
}

func (d *memDisk) Rename(from, to string) error {
	if err := d.before("rename", from); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files[to] = d.files[from]
	delete(d.files, from)
	return nil
}

func (d *memDisk) ReadAt(name string, p []byte, off int64) (int, int64, error) {
	if err := d.before("read", name); err != nil {
		return 0, 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.files[name]
	if f == nil {
		return 0, 0, fs.ErrNotExist
	}
	return copy(p, f.data[min(off, int64(len(f.data))):]), int64(len(f.data)), nil
}

func (d *memDisk) Path(name string) string { return name }

func (d *memDisk) Remove(name string) error {
	if err := d.before("remove", name); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files, name)
	return nil
}

// names lists the files, sorted.
func (d *memDisk) names() (all []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.files {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func (d *memDisk) read(t testing.TB, name string) []byte {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.files[name]
	if f == nil {
		t.Fatalf("no file %s", name)
	}
	return slices.Clone(f.data)
}

func (f *memFile) Write(p []byte) (int, error) {
	err := f.d.before("write", f.name)
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err != nil { // A disk that is full takes a part.
		f.data = append(f.data, p[:len(p)/2]...)
		return len(p) / 2, err
	}
	f.data = append(f.data, p...)
	return len(p), nil
}

func (f *memFile) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.data = f.data[:size]
	return nil
}

func (f *memFile) Sync() error  { return f.d.before("sync", f.name) }
func (f *memFile) Close() error { return nil }

func newRecorder(t testing.TB, s *stage, d Disk) *Recorder {
	t.Helper()
	r, err := NewRecorder(Config{
		Disk: d, Keep: 50, MaxBytes: 64 << 20, Cluster: "demo", Host: s.hosts[0], Version: "v1", Judge: s.cfg, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var subject = Subject{Incident: "1122-045449-kvm-02", Host: "kvm-02", Term: haven.Term{Generation: 1, Term: 7}}

const file1 = "1122-045449-kvm-02.1.7.jsonl.gz"

// playLoss plays the loss of kvm-02 with a recorder at hand whose parts are called in
// turn, so that nothing depends on who comes first: a minute and a half of peace,
// the loss, an incident 4 s after it, and its end 20 s later.
func playLoss(t testing.TB, s *stage, r *Recorder) (died time.Duration) {
	t.Helper()
	died = s.now + 90*time.Second
	s.dies["kvm-02"] = died
	w := &writer{r: r, disk: r.cfg.Disk, log: r.cfg.Log, files: map[string]*openFile{}}
	if err := w.adopt(); err != nil {
		t.Fatal(err)
	}
	for s.now < died+100*time.Second {
		var open []Subject
		if s.now > died+4*time.Second && s.now < died+24*time.Second {
			open = []Subject{subject}
		}
		s.step(r.Tape(), open)
		drain(r, w)
	}
	return died
}

// drain does at once what the recorder's goroutines would do.
func drain(r *Recorder, w *writer) {
	for {
		select {
		case b := <-r.sealed:
			r.record(b)
		case j := <-r.jobs:
			w.do(j)
			r.queued.Add(-int64(len(j.data)))
		default:
			return
		}
	}
}

// end does what the end of the recorder would do.
func end(r *Recorder, w *writer) {
	drain(r, w)
	r.finishAll()
	drain(r, w)
}

// replayed runs a recording and fails if it cannot be begun.
func replayed(t testing.TB, data []byte, other *detector.Config) (Summary, []Round) {
	t.Helper()
	r, err := NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	var rounds []Round
	sum, err := Replay(r, other, func(round Round) error {
		rounds = append(rounds, round)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum, rounds
}

// first finds the first step at which a host has a verdict.
func first(rounds []Round, host haven.HostID, v haven.Verdict, other bool) (time.Duration, bool) {
	for _, r := range rounds {
		out := r.Output
		if other {
			out = r.Other
		}
		for _, j := range out.Hosts {
			if j.Host == host && j.Verdict == v {
				return r.At, true
			}
		}
	}
	return 0, false
}

var errFull = fmt.Errorf("no space left on device: %w", io.ErrShortWrite)

// finish ends the block that is being written.
func (t *Tape) finish() {
	if b := t.cur; b != nil && b.steps > 0 {
		t.cur = nil
		t.emit(b)
	}
}

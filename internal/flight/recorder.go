package flight

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
)

// What is recorded, and how much may wait.
const (
	// Around is how much is recorded before and after each change, and after the
	// end: what other settings would have made of it comes later.
	Around = time.Minute
	// ringBytes is what the past may take in memory. A minute of 50 hosts at
	// the pace of a suspicion takes about half of it.
	ringBytes = 4 << 20
	// maxOpen is how many incidents are recorded at a time. A file has all hosts
	// in it, so that more of them say little more.
	maxOpen    = 8
	sealedWait = 16  // blocks on their way from the judge
	diskWait   = 256 // jobs on their way to the disk
	// diskBytes bounds what these may hold.
	diskBytes = 8 << 20
	// endWait is how long the end of a Recorder waits for a disk.
	endWait = 3 * time.Second
)

// Config says what a Recorder writes, and where.
type Config struct {
	Disk Disk
	// Keep and MaxBytes bound all recordings together. One recording may take a
	// quarter of MaxBytes.
	Keep     int
	MaxBytes int64

	Cluster string
	Host    haven.HostID
	Version string
	Judge   detector.Config
	Log     *slog.Logger
}

// Recorder keeps the last minute of a Tape and writes recordings. Run must be
// called once.
type Recorder struct {
	cfg    Config
	tape   *Tape
	sealed chan *block
	jobs   chan job
	queued atomic.Int64 // bytes in jobs
	lost   atomic.Uint64

	reading chan struct{} // holds one token while a piece is read

	// The keeper's own.
	zip  *gzip.Writer
	ring []packed
	size int
	runs map[haven.IncidentID]*run

	mu    sync.Mutex
	files map[haven.IncidentID]string // the latest recording of each
}

// packed is a block as it stands in a file.
type packed struct {
	first      uint64
	steps      int
	begin, end time.Duration
	data       []byte
}

// run is a recording, as the keeper sees it.
type run struct {
	Subject
	name    string
	next    uint64        // first step that is not written yet
	until   time.Duration // record until then, whatever happens
	started bool          // any block was written
	calm    bool          // a block was left out because nothing happened in it
	closed  bool          // the incident is, or this agent is not the master any more
	bytes   int64
	ending  string // why it ends; nothing more is written
}

// NewRecorder makes a Recorder, or says why evidence cannot be recorded.
func NewRecorder(cfg Config) (*Recorder, error) {
	r := &Recorder{
		cfg: cfg, sealed: make(chan *block, sealedWait), jobs: make(chan job, diskWait), reading: make(chan struct{}, 1),
		runs: map[haven.IncidentID]*run{}, files: map[haven.IncidentID]string{},
	}
	zip, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	r.zip = zip
	r.tape, err = newTape(r.take)
	return r, err
}

// Tape is what the judge writes to.
func (r *Recorder) Tape() *Tape { return r.tape }

// take takes a block from the judge, or drops it: the next has a greater number,
// so that the gap shows.
func (r *Recorder) take(b *block) {
	select {
	case r.sealed <- b:
	default:
		r.lost.Add(uint64(b.steps))
	}
}

// File returns where the newest recording of an incident is that this agent
// wrote, or is writing, since it started or before. While it is being written its
// name ends in .part.
func (r *Recorder) File(id haven.IncidentID) (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name, ok := r.files[id]
	return r.cfg.Disk.Path(name), ok
}

// PieceBytes is how much of a recording Read returns at most.
const PieceBytes = 512 << 10

// Read returns a piece of the recording that File names, and how long it is by
// now. It returns an error that wraps fs.ErrNotExist when there is none, and
// ErrBusy while another piece is being read. A disk that hangs keeps that one
// read, and costs no more.
func (r *Recorder) Read(ctx context.Context, id haven.IncidentID, off int64) (data []byte, size int64, err error) {
	r.mu.Lock()
	name, ok := r.files[id]
	r.mu.Unlock()
	if !ok || off < 0 {
		return nil, 0, fmt.Errorf("read recording of %q: %w", id, fs.ErrNotExist)
	}
	select {
	case r.reading <- struct{}{}:
	default:
		return nil, 0, fmt.Errorf("read recording of %q: %w", id, ErrBusy)
	}
	type piece struct {
		data []byte
		size int64
		err  error
	}
	done := make(chan piece, 1)
	go func() {
		data, size, err := readPiece(r.cfg.Disk, name, off)
		<-r.reading
		done <- piece{data, size, err}
	}()
	select {
	case p := <-done:
		return p.data, p.size, p.err
	case <-ctx.Done():
		return nil, 0, fmt.Errorf("read recording of %q: %w", id, ctx.Err())
	}
}

// ErrBusy is returned when another piece of a recording is being read.
var ErrBusy = errors.New("another recording is being read")

// readPiece reads a recording, whether it is still being written or not.
func readPiece(d Disk, name string, off int64) ([]byte, int64, error) {
	p := make([]byte, PieceBytes)
	n, size, err := d.ReadAt(name+part, p, off)
	if errors.Is(err, fs.ErrNotExist) {
		n, size, err = d.ReadAt(name, p, off)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read recording: %w", err)
	}
	return p[:n], size, nil
}

// Run records until the context ends. It returns when everything is written, or
// when a disk that hangs has had its time.
func (r *Recorder) Run(ctx context.Context) {
	written := make(chan struct{})
	w := &writer{r: r, disk: r.cfg.Disk, log: r.cfg.Log, files: map[string]*openFile{}}
	go func() { defer close(written); w.run() }()
	r.keep(ctx)
	r.finishAll()
	close(r.jobs)
	t := time.NewTimer(endWait)
	defer t.Stop()
	select {
	case <-written:
	case <-t.C:
		r.cfg.Log.Warn("the disk of the recordings hangs; its writer is left behind")
	}
}

func (r *Recorder) keep(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			for len(r.sealed) > 0 {
				r.record(<-r.sealed)
			}
			return
		case b := <-r.sealed:
			if n := r.lost.Swap(0); n > 0 {
				r.cfg.Log.Warn("judgements were not recorded: the recorder was too slow", "steps", n)
			}
			r.record(b)
		}
	}
}

// record puts a block into the ring and, if an incident is open, in a file.
func (r *Recorder) record(b *block) {
	r.remember(packed{b.first, b.steps, b.begin, b.end, r.pack(b)})
	for _, s := range b.open {
		r.follow(s, b)
	}
	for id, run := range r.runs {
		_, taken := b.open[id]
		switch open := slices.Contains(b.now, run.Subject); {
		case open:
		case !run.closed:
			run.closed, run.until = true, b.end+Around
		case !taken:
			r.advance(run, b)
		}
		if run.closed && b.end >= run.until && r.finish(run, "a minute after the incident closed, or another became the master") {
			delete(r.runs, id)
		}
	}
}

// finishAll ends what is being recorded.
func (r *Recorder) finishAll() {
	for _, run := range r.runs {
		r.finish(run, "the agent ended")
	}
}

// pack makes a block a part of a file.
func (r *Recorder) pack(b *block) []byte {
	head := line{Block: &blockLine{First: b.first, Wall: b.wall, State: b.state}}
	return r.compress(append(append(quoted(head), '\n'), b.body...))
}

func (r *Recorder) compress(text []byte) []byte {
	var buf bytes.Buffer
	r.zip.Reset(&buf)
	_, _ = r.zip.Write(text) // a Buffer takes everything
	_ = r.zip.Close()
	return buf.Bytes()
}

func (r *Recorder) remember(p packed) {
	r.ring = append(r.ring, p)
	r.size += len(p.data)
	for len(r.ring) > 1 && (r.size > ringBytes || r.ring[0].end < p.end-Around-blockTime) {
		r.size -= len(r.ring[0].data)
		r.ring[0].data = nil
		r.ring = r.ring[1:]
	}
}

// follow records an incident as far as it is worth it: the minute before, and a
// minute from each change on. What is left out shows as a gap.
func (r *Recorder) follow(s Subject, b *block) {
	run := r.runs[s.Incident]
	if run != nil && run.Term != s.Term {
		if !r.finish(run, "the term ended") {
			return
		}
		run = nil
	}
	if run == nil {
		if run = r.begin(s, b); run == nil {
			return
		}
	}
	if b.stirred && !run.closed {
		run.until = b.end + Around
	}
	r.advance(run, b)
}

// advance writes what is in the ring and not in the file yet.
func (r *Recorder) advance(run *run, b *block) {
	if run.ending != "" {
		return
	}
	if b.begin > run.until {
		run.calm = true
		return
	}
	for _, p := range r.ring {
		if p.first >= run.next && p.end >= run.until-2*Around-blockTime && !r.write(run, p) {
			return // It stays in the ring; the next block tries again.
		}
	}
}

// room makes room for one more recording, if one can be spared.
func (r *Recorder) room() bool {
	for id, run := range r.runs {
		if len(r.runs) < maxOpen {
			break
		}
		if run.closed && r.finish(run, "the incident closed, and another one opened") {
			delete(r.runs, id)
		}
	}
	return len(r.runs) < maxOpen
}

// begin opens the recording of an incident.
func (r *Recorder) begin(s Subject, b *block) *run {
	name, err := fileName(s)
	if err == nil && !r.room() {
		return nil
	}
	if err != nil {
		r.cfg.Log.Warn("an incident is not recorded", "incident", s.Incident, "error", err)
		return nil
	}
	head := Header{
		Format: Format, Version: r.cfg.Version, Cluster: r.cfg.Cluster, Host: r.cfg.Host, Subject: s, Begun: b.wall.Add(b.end - b.begin),
		Judge: r.cfg.Judge, Output: shape(), Input: r.tape.plan,
	}
	data := r.compress(append(quoted(line{Header: &head}), '\n'))
	if !r.send(job{do: doOpen, name: name, data: data}) {
		return nil
	}
	run := &run{Subject: s, name: name, until: b.end + Around}
	r.runs[s.Incident] = run
	return run
}

// write sends one block of the ring to the disk, with a word on what is missing
// before it. It says whether the run goes on.
func (r *Recorder) write(run *run, p packed) bool {
	data := p.data
	if run.started && p.first > run.next {
		why := "the recorder or its disk was too slow"
		if run.calm {
			why = "nothing changed for " + Around.String()
		}
		gap := quoted(line{Gap: &Gap{Steps: p.first - run.next, Why: why}})
		data = append(r.compress(append(gap, '\n')), data...)
	}
	if run.bytes+int64(len(data)) > r.cfg.MaxBytes/4 {
		r.finish(run, "truncated: the recording is as large as it may be")
		return false
	}
	if !r.send(job{do: doWrite, name: run.name, data: data, steps: p.steps}) {
		return false
	}
	run.bytes += int64(len(data))
	run.started, run.calm, run.next = true, false, p.first+uint64(p.steps)
	return true
}

// finish ends a recording, and says whether that is on its way.
func (r *Recorder) finish(run *run, why string) bool {
	if run.ending == "" {
		run.ending = why
	}
	if run.name == "" {
		return true
	}
	if !r.send(job{do: doEnd, name: run.name, data: r.compress(append(quoted(line{End: &End{Why: run.ending}}), '\n'))}) {
		return false
	}
	run.name = "" // once
	return true
}

// send gives the disk something to do, unless too much waits for it already.
func (r *Recorder) send(j job) bool {
	if r.queued.Load()+int64(len(j.data)) > diskBytes {
		return false
	}
	r.queued.Add(int64(len(j.data)))
	select {
	case r.jobs <- j:
		return true
	default:
		r.queued.Add(-int64(len(j.data)))
		return false
	}
}

// found takes note of a recording that is on the disk.
func (r *Recorder) found(name string) {
	if id, ok := incidentOf(name); ok {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.files[id] = name
	}
}

// forget drops the names of recordings that are not there any more.
func (r *Recorder) forget(exists func(name string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, name := range r.files {
		if !exists(name) {
			delete(r.files, id)
		}
	}
}

// line is a line of a recording that is no step: it has one of these.
type line struct {
	Header *Header    `json:"haven_flight,omitempty"`
	Block  *blockLine `json:"block,omitempty"`
	Gap    *Gap       `json:"gap,omitempty"`
	Lost   *Lost      `json:"lost,omitempty"`
	End    *End       `json:"end,omitempty"`
}

// Format is the version of the file format that this package writes and reads.
const Format = 1

// Header is the first line of a recording.
type Header struct {
	Format  int             `json:"format"`
	Version string          `json:"version"` // of the agent
	Cluster string          `json:"cluster"`
	Host    haven.HostID    `json:"recorded_by"`
	Subject Subject         `json:"subject"`
	Begun   time.Time       `json:"begun"` // when the incident was seen to be open
	Judge   detector.Config `json:"judge"`
	Output  string          `json:"output"` // shape of what the sums are of
	Input   *plan           `json:"input"`
}

type blockLine struct {
	First uint64            `json:"first"`
	Wall  time.Time         `json:"wall"`
	State detector.Snapshot `json:"state"`
}

// Gap is a stretch that was not recorded.
type Gap struct {
	Steps uint64 `json:"steps"`
	Why   string `json:"why"`
}

// Lost is a stretch that could not be written.
type Lost struct {
	Blocks int    `json:"blocks"`
	Steps  int    `json:"steps"`
	Why    string `json:"why"`
}

// End is the last line of a recording that ended in good order.
type End struct {
	Why string `json:"why"`
}

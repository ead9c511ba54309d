package flight

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"time"

	"github.com/haven-ha/haven/detector"
)

// Errors of a recording.
var (
	// ErrNotRecording is returned when a file is none.
	ErrNotRecording = errors.New("not a recording of Haven's flight recorder")
	// ErrNewer is returned when a recording has a later format than this version
	// reads.
	ErrNewer = errors.New("the recording is of a newer version of Haven")
	// ErrCut is returned when a recording ends in the middle of something. What
	// came before it is good.
	ErrCut = errors.New("the recording ends in the middle: its writer was killed, its disk was full, or it is still being written")
)

// LineError is returned when a line of a recording cannot be read.
type LineError struct {
	Line int // from 1, of the text inside
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }

// Unwrap returns what is wrong with the line.
func (e *LineError) Unwrap() error { return e.Err }

// Reader reads a recording, one event after the other, in bounded memory.
type Reader struct {
	Header Header
	// Unknown is evidence that this version knows nothing of and leaves out.
	Unknown []string

	lines *bufio.Reader
	line  int

	inBlock bool
	next    uint64 // number of the next step
	wall    time.Time
	zero    time.Duration // of the block's first step, once there was one
	begun   bool
	prev    *node
	table   []string
	text    int // octets in table
	marks   map[string]mark
}

// Bounds of a file that may be damaged.
const (
	maxLine  = 16 << 20
	maxTable = 1 << 17
	maxText  = 64 << 20 // octets in the table
	maxHosts = 1024     // as many as the ledger has
	// maxPairs bounds hosts times observers: the judge looks at each pair.
	maxPairs = 1 << 17
)

// Event is one thing in a recording: exactly one of its parts.
type Event struct {
	Line  int
	Block *Start
	Step  *Step
	Gap   *Gap
	Lost  *Lost
	End   *End
}

// Start is where recording begins, or begins again: what the judge remembered.
type Start struct {
	First uint64
	State detector.Snapshot
}

// Step is one step of the judge.
type Step struct {
	N     uint64
	At    time.Duration
	Wall  time.Time
	Input detector.Input
	sum   string
	marks map[string]mark // of all hosts
}

// entry is a line as it is read.
type entry struct {
	line
	stepLine
}

// NewReader reads the head of a recording.
func NewReader(from io.Reader) (*Reader, error) {
	zip, err := gzip.NewReader(from)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("%w: it is empty, or ends in its first line", ErrCut)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotRecording, err)
	}
	r := &Reader{lines: bufio.NewReaderSize(zip, 64<<10)}
	text, err := r.readLine()
	if err != nil {
		return nil, err
	}
	var head struct {
		Header *struct {
			Format int `json:"format"`
		} `json:"haven_flight"`
	}
	if err := json.Unmarshal(text, &head); err != nil || head.Header == nil || head.Header.Format < 1 {
		return nil, r.fault(ErrNotRecording)
	}
	if head.Header.Format > Format {
		return nil, fmt.Errorf("%w: its format is %d, this version reads up to %d", ErrNewer, head.Header.Format, Format)
	}
	var l line
	if err := json.Unmarshal(text, &l); err != nil {
		return nil, r.fault(err)
	}
	r.Header = *l.Header
	if r.Header.Input == nil {
		return nil, r.fault(fmt.Errorf("%w: it does not describe the evidence", ErrNotRecording))
	}
	if err := r.Header.Input.check(0); err != nil {
		return nil, r.fault(err)
	}
	own, err := planOf(reflect.TypeFor[detector.Input]())
	if err != nil {
		return nil, err
	}
	r.Unknown = r.Header.Input.bind(own, "")
	return r, nil
}

func (r *Reader) fault(err error) error { return &LineError{r.line, err} }

// readLine reads the next line.
func (r *Reader) readLine() ([]byte, error) {
	var text []byte
	r.line++
	for {
		chunk, err := r.lines.ReadSlice('\n')
		text = append(text, chunk...)
		switch {
		case err == nil:
			return text, nil
		case errors.Is(err, bufio.ErrBufferFull) && len(text) <= maxLine:
			continue
		case errors.Is(err, bufio.ErrBufferFull):
			return nil, r.fault(errHuge)
		case errors.Is(err, io.EOF) && len(text) == 0:
			return nil, io.EOF
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, r.fault(ErrCut)
		}
		return nil, r.fault(err)
	}
}

// Next returns the next event. It returns io.EOF at the end of the file, ErrCut
// where it ends too soon, and a LineError for a line that cannot be read, after
// which nothing can be read.
func (r *Reader) Next() (Event, error) {
	text, err := r.readLine()
	if err != nil {
		return Event{}, err
	}
	var e entry
	if err := json.Unmarshal(text, &e); err != nil {
		return Event{}, r.fault(err)
	}
	ev := Event{Line: r.line, Gap: e.Gap, Lost: e.Lost, End: e.End}
	switch {
	case e.Block != nil:
		ev.Block = &Start{e.Block.First, e.Block.State}
		r.next, r.wall, r.begun, r.inBlock = e.Block.First, e.Block.Wall, false, true
		r.prev, r.table, r.text, r.marks = nil, nil, 0, map[string]mark{}
	case e.Gap != nil, e.Lost != nil, e.End != nil:
	case !r.inBlock:
		return Event{}, r.fault(errors.New("a step before the first block"))
	default:
		if ev.Step, err = r.step(&e.stepLine); err != nil {
			return Event{}, r.fault(err)
		}
	}
	return ev, nil
}

func (r *Reader) step(l *stepLine) (*Step, error) {
	for _, s := range l.Strings {
		r.text += len(s)
	}
	if len(r.table)+len(l.Strings) > maxTable || r.text > maxText {
		return nil, errHuge
	}
	r.table = append(r.table, l.Strings...)
	in := numbers{rest: l.In}
	cur, err := r.Header.Input.apply(r.prev, &in)
	if err != nil {
		return nil, err
	}
	if len(in.rest) > 0 {
		return nil, errOrder
	}
	r.prev = &cur
	s := &Step{N: r.next, At: l.At, sum: l.Sum, marks: r.marks}
	if err := r.Header.Input.build(&cur, reflect.ValueOf(&s.Input).Elem(), r.table); err != nil {
		return nil, err
	}
	if n := len(s.Input.Hosts); n > maxHosts || n*len(s.Input.Observers) > maxPairs || len(r.marks)+len(l.Out) > 2*maxHosts {
		return nil, errHuge
	}
	for _, m := range l.Out {
		r.marks[string(m.Host)] = m
	}
	if !r.begun {
		r.begun, r.zero = true, l.At
	}
	s.Wall = r.wall.Add(l.At - r.zero)
	r.next++
	return s, nil
}

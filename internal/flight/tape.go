package flight

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"reflect"
	"slices"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
)

// Bounds of one block. A block is what can be lost at once, and what is kept or
// left out as a whole.
const (
	blockTime  = 5 * time.Second
	blockSteps = 512
	blockBytes = 512 << 10
	stirGap    = 500 * time.Millisecond // the least length of a block that ends early
)

// block is a run of steps that can be replayed by itself.
type block struct {
	first      uint64 // number of its first step
	steps      int
	begin, end time.Duration
	wall       time.Time // of begin
	state      detector.Snapshot
	body       []byte                       // a line for each step
	stirred    bool                         // something changed in it that people are told of
	open       map[haven.IncidentID]Subject // open at any of its steps
	now        []Subject                    // open at its last step
}

// Subject is an incident that is to be recorded.
type Subject struct {
	Incident haven.IncidentID `json:"incident"`
	Host     haven.HostID     `json:"host"`
	Term     haven.Term       `json:"term"` // of the master that records
}

// mark is a conclusion, as short as it can be held against another.
type mark struct {
	Host      haven.HostID  `json:"host"`
	Verdict   haven.Verdict `json:"verdict"`
	Hold      string        `json:"hold,omitempty"`
	Suspected bool          `json:"suspected,omitempty"`
	Fence     bool          `json:"fence,omitempty"`
}

func markOf(j *detector.Judgement) mark {
	return mark{j.Host, j.Verdict, j.Hold.Reason, j.Suspected, j.MayFence()}
}

// Tape takes down the steps of one Machine. It belongs to the loop that judges and
// never waits.
type Tape struct {
	plan   *plan
	emit   func(*block) // takes a block that has ended; must not wait
	budget int          // of bytes in a block, for tests

	steps    uint64
	cur      *block
	old, new node
	table    map[string]int64
	added    []string
	marks    []mark
	open     []Subject
}

func newTape(emit func(*block)) (*Tape, error) {
	p, err := planOf(reflect.TypeFor[detector.Input]())
	if err != nil {
		return nil, fmt.Errorf("describe evidence: %w", err)
	}
	return &Tape{plan: p, emit: emit, budget: blockBytes}, nil
}

// Before is called right before a step. A nil Tape does nothing.
func (t *Tape) Before(m *detector.Machine) {
	if t == nil || t.cur != nil {
		return
	}
	t.cur = &block{first: t.steps, state: m.Snapshot(), open: map[haven.IncidentID]Subject{}}
	t.old, t.table, t.marks = node{}, map[string]int64{}, nil
}

// After is called right after the step, with what went in and came out, and with
// the incidents that are open. It keeps nothing of in and out.
func (t *Tape) After(at time.Duration, wall time.Time, in *detector.Input, out *detector.Output, open []Subject) {
	if t == nil || t.cur == nil {
		return
	}
	b := t.cur
	if b.steps == 0 {
		b.begin, b.wall = at, wall
	}
	b.end = at
	b.steps++
	t.steps++
	first := b.steps == 1
	stirred := t.line(b, at, in, out, first)
	news := !slices.Equal(open, t.open)
	t.open, b.now = open, open
	for _, s := range open {
		b.open[s.Incident] = s
	}
	b.stirred = b.stirred || stirred
	full := b.steps >= blockSteps || len(b.body) >= t.budget || at-b.begin >= blockTime
	soon := b.stirred && len(b.open) > 0 && at-b.begin >= stirGap
	if full || news || soon {
		t.cur = nil
		t.emit(b)
	}
}

// stepLine is one step as it stands in a file. The evidence is written by hand:
// most of it is numbers.
type stepLine struct {
	At      time.Duration `json:"at"`
	In      []int64       `json:"in"`
	Strings []string      `json:"strings,omitempty"` // new ones, in order
	Out     []mark        `json:"out,omitempty"`     // of the hosts whose mark changed
	Sum     string        `json:"sum"`               // of the whole output
}

// line appends a step to the block, and says whether anything changed that people
// are told of.
func (t *Tape) line(b *block, at time.Duration, in *detector.Input, out *detector.Output, first bool) bool {
	t.added = t.added[:0]
	t.plan.fill(reflect.ValueOf(in).Elem(), &t.new, t.intern)
	body := fmt.Appendf(b.body, `{"at":%d,"in":[`, int64(at))
	old := &t.old
	if first {
		old = nil
	}
	body = append(t.plan.diff(old, &t.new, body), ']')
	t.old, t.new = t.new, t.old
	if len(t.added) > 0 {
		body = append(append(body, `,"strings":`...), quoted(t.added)...)
	}
	changed := t.compare(out)
	if len(changed) > 0 {
		body = append(append(body, `,"out":`...), quoted(changed)...)
	}
	b.body = fmt.Appendf(body, `,"sum":"%016x"}`+"\n", sum(out))
	return len(changed) > 0 && !first || slices.ContainsFunc(out.Hosts, func(j detector.Judgement) bool { return j.Changed })
}

// compare finds the hosts whose mark changed since the step before.
func (t *Tape) compare(out *detector.Output) []mark {
	var changed []mark
	for i := range out.Hosts {
		m := markOf(&out.Hosts[i])
		if i < len(t.marks) && t.marks[i] == m {
			continue
		}
		changed = append(changed, m)
		if i < len(t.marks) {
			t.marks[i] = m
		} else {
			t.marks = append(t.marks, m)
		}
	}
	t.marks = t.marks[:len(out.Hosts)]
	return changed
}

func (t *Tape) intern(s string) int64 {
	id, ok := t.table[s]
	if !ok {
		id = int64(len(t.table))
		t.table[s] = id
		t.added = append(t.added, s)
	}
	return id
}

// quoted is for what cannot fail to be encoded.
func quoted(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

// sum is a checksum of a whole output, whatever it is made of.
func sum(out *detector.Output) uint64 {
	h := fnv.New64a()
	var buf [8]byte
	word := func(x uint64) {
		for i := range buf {
			buf[i] = byte(x >> (8 * i))
		}
		_, _ = h.Write(buf[:]) // it never fails
	}
	var walk func(reflect.Value)
	walk = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Bool:
			if v.Bool() {
				word(1)
			} else {
				word(0)
			}
		case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
			word(uint64(v.Int()))
		case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
			word(v.Uint())
		case reflect.Float32, reflect.Float64:
			word(math.Float64bits(v.Float()))
		case reflect.String:
			word(uint64(v.Len()))
			_, _ = h.Write([]byte(v.String())) // it never fails
		case reflect.Slice:
			word(uint64(v.Len()))
			for i := range v.Len() {
				walk(v.Index(i))
			}
		case reflect.Struct:
			for i := range v.NumField() { //nolint:modernize // the iterator allocates for each struct
				walk(v.Field(i))
			}
		default:
			word(uint64(v.Kind())) // checked by a test: the output has none
		}
	}
	walk(reflect.ValueOf(out).Elem())
	return h.Sum64()
}

// shape is a checksum of what an output is made of. Sums of outputs of different
// shapes cannot be held against each other.
func shape() string {
	h := fnv.New64a()
	var walk func(reflect.Type)
	walk = func(t reflect.Type) {
		fmt.Fprintf(h, "%s;", t.Kind())
		switch t.Kind() {
		case reflect.Slice:
			walk(t.Elem())
		case reflect.Struct:
			for f := range t.Fields() {
				fmt.Fprintf(h, "%s:", f.Name)
				walk(f.Type)
			}
		default:
		}
	}
	walk(reflect.TypeFor[detector.Output]())
	return fmt.Sprintf("%016x", h.Sum64())
}

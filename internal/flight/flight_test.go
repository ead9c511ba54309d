package flight

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
)

// TestLossIsReplayed guards P9: the recording of a loss has the minute before it,
// says the same again at the same instants, and tells what other settings would
// have said.
func TestLossIsReplayed(t *testing.T) {
	s, d := newStage(t, 1, 5), newMemDisk()
	died := playLoss(t, s, newRecorder(t, s, d))
	data := d.read(t, file1)
	slow := s.cfg
	slow.SuspectAfter = 2 * time.Second
	sum, rounds := replayed(t, data, &slow)
	if sum.Differ != 0 || !sum.Checked || sum.Stopped != nil || sum.End == "" || len(sum.Gaps) != 0 {
		t.Errorf("summary %+v", sum)
	}
	if last := rounds[len(rounds)-1].At; last < died+84*time.Second || last > died+95*time.Second {
		t.Errorf("it ends %s after the loss and %s after the incident closed, want a minute", last-died, last-died-24*time.Second)
	}
	if rounds[0].At > died-50*time.Second || rounds[0].At < died-80*time.Second {
		t.Errorf("it begins %s before the loss, want about a minute", died-rounds[0].At)
	}
	dead, ok := first(rounds, "kvm-02", haven.VerdictDead, false)
	later, okLater := first(rounds, "kvm-02", haven.VerdictDead, true)
	if !ok || !okLater || later-dead < 500*time.Millisecond || later-dead > 3*time.Second {
		t.Errorf("dead %s after the loss, with a later suspicion %s after it", dead-died, later-died)
	}
	for _, r := range rounds {
		if !reflect.DeepEqual(*r.Output, s.outs[r.N]) {
			t.Fatalf("step %d\n got %+v\nwant %+v", r.N, *r.Output, s.outs[r.N])
		}
	}
}

// TestAnyHistoryReplays guards P9 with evidence at random: whatever went in, the
// recording gives it back exactly and the outputs are the same.
func TestAnyHistoryReplays(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newStage(t, rapid.Uint64().Draw(rt, "seed"), rapid.IntRange(1, 6).Draw(rt, "hosts"))
		s.noise = rapid.SampledFrom([]float64{0, 0.01, 0.3}).Draw(rt, "noise")
		for _, id := range s.hosts[1:] {
			if rapid.Bool().Draw(rt, "dies") {
				s.dies[id] = s.now + time.Duration(rapid.IntRange(0, 5000).Draw(rt, "at"))*time.Millisecond
			}
		}
		d := newMemDisk()
		r := newRecorder(t, s, d)
		r.tape.budget = rapid.SampledFrom([]int{1, 3000, blockBytes}).Draw(rt, "budget")
		w := &writer{r: r, disk: d, log: r.cfg.Log, files: map[string]*openFile{}}
		steps := rapid.IntRange(1, 80).Draw(rt, "steps")
		for range steps {
			s.step(r.tape, []Subject{subject})
			drain(r, w)
		}
		r.tape.finish()
		end(r, w)
		sum, rounds := replayed(t, d.read(t, file1), &s.cfg)
		if sum.Differ != 0 || int(sum.Steps) != steps || sum.Stopped != nil {
			rt.Fatalf("%d steps were recorded: %+v", steps, sum)
		}
		for i, round := range rounds {
			if !reflect.DeepEqual(*round.Output, s.outs[i]) || !reflect.DeepEqual(*round.Other, s.outs[i]) {
				rt.Fatalf("step %d\n got %+v\nwant %+v", i, *round.Output, s.outs[i])
			}
		}
	})
}

// text unpacks a recording.
func text(t testing.TB, data []byte) string {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(zip)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func packText(s string) []byte {
	var buf bytes.Buffer
	zip := gzip.NewWriter(&buf)
	_, _ = zip.Write([]byte(s))
	_ = zip.Close()
	return buf.Bytes()
}

// TestReplayFindsDifferences shows that the check can fail.
func TestReplayFindsDifferences(t *testing.T) {
	notUnderRace(t)
	s, d := newStage(t, 2, 4), newMemDisk()
	playLoss(t, s, newRecorder(t, s, d))
	whole := text(t, d.read(t, file1))
	for _, tt := range []struct{ name, from, to, want string }{
		{"other settings", `"suspect_after":1000000000`, `"suspect_after":3000000000`, "kvm-02"},
		{"another verdict", `"verdict":"dead"`, `"verdict":"failed"`, "was recorded as failed"},
		{"another sum", `"sum":"`, `"sum":"0`, "some reason or number"},
		{"another memory", `"first":600000`, `"first":600001`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			changed := strings.Replace(whole, tt.from, tt.to, 1)
			if tt.name == "another memory" {
				// The second block: the first is where the judge begins.
				at := strings.LastIndex(whole, `"trusted_since":`) + len(`"trusted_since":`)
				changed = whole[:at] + "1" + whole[at:]
				tt.want = "what the judge remembered"
			}
			if changed == whole {
				t.Fatalf("the recording has no %s", tt.from)
			}
			sum, _ := replayed(t, packText(changed), nil)
			if sum.Differ == 0 || !strings.Contains(sum.Where, tt.want) {
				t.Errorf("differs %d times, first at %q, want %q", sum.Differ, sum.Where, tt.want)
			}
		})
	}
}

// TestCutAnywhere guards P7 for recordings: an agent that dies while it writes
// leaves what it has written, readable, and what is read is right.
func TestCutAnywhere(t *testing.T) {
	notUnderRace(t)
	s, d := newStage(t, 3, 3), newMemDisk()
	playLoss(t, s, newRecorder(t, s, d))
	data := d.read(t, file1)
	most := uint64(0)
	for n := 0; n < len(data); n += 1 + len(data)/25 {
		r, err := NewReader(bytes.NewReader(data[:n]))
		if err != nil {
			if !errors.Is(err, ErrCut) {
				t.Fatalf("the first %d octets: %v", n, err)
			}
			continue
		}
		sum, err := Replay(r, nil, func(Round) error { return nil })
		if err != nil || sum.Differ != 0 || !errors.Is(sum.Stopped, ErrCut) {
			t.Fatalf("the first %d octets: %+v, %v", n, sum, err)
		}
		if sum.Steps < most {
			t.Fatalf("%d octets give %d steps, fewer give %d", n, sum.Steps, most)
		}
		most = sum.Steps
	}
	if whole, _ := replayed(t, data, nil); whole.Steps-most > blockSteps || whole.Stopped != nil {
		t.Errorf("whole: %+v; nearly whole: %d steps", whole, most)
	}
}

// TestDamagedFiles: what is wrong is named, by its line where there is one.
func TestDamagedFiles(t *testing.T) {
	notUnderRace(t)
	s, d := newStage(t, 4, 3), newMemDisk()
	playLoss(t, s, newRecorder(t, s, d))
	whole := text(t, d.read(t, file1))
	lines := strings.SplitAfter(whole, "\n")
	with := func(at int, l string) []byte {
		out := append([]string{}, lines...)
		out[at] = l
		return packText(strings.Join(out, ""))
	}
	for _, tt := range []struct {
		name string
		data []byte
		is   error
		want string
	}{
		{"empty", nil, ErrCut, "empty"},
		{"text", []byte("hello, this is no recording"), ErrNotRecording, ""},
		{"other lines", packText("{}\n"), ErrNotRecording, "line 1"},
		{"newer", packText(strings.Replace(whole, `"format":1`, `"format":2`, 1)), ErrNewer, "its format is 2, this version reads up to 1"},
		{"no description", packText(`{"haven_flight":{"format":1}}` + "\n"), ErrNotRecording, "line 1"},
		{"no JSON", with(4, "{oops\n"), nil, "line 5"},
		{"too few numbers", with(4, `{"at":1,"in":[1]}`+"\n"), errShort, "line 5"},
		{"too many numbers", with(4, strings.Replace(lines[4], `],"`, `,0,0],"`, 1)), errOrder, "line 5"},
		{"no block", packText(lines[0] + lines[2]), nil, "before the first block"},
		{"long line", packText(lines[0] + strings.Repeat("x", maxLine+1<<20)), errHuge, "line 2"},
		{"bad settings", packText(strings.Replace(whole, `"suspect_after":1000000000`, `"suspect_after":0`, 1)), nil, "the recorded settings cannot be used"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := NewReader(bytes.NewReader(tt.data))
			if err == nil {
				var sum Summary
				sum, err = Replay(r, nil, func(Round) error { return nil })
				err = errors.Join(err, sum.Stopped)
			}
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %v with %q", err, tt.is, tt.want)
			}
		})
	}
}

// TestEvidenceOfAnotherVersion: a recording tells by name what it holds.
func TestEvidenceOfAnotherVersion(t *testing.T) {
	s, d := newStage(t, 5, 3), newMemDisk()
	playLoss(t, s, newRecorder(t, s, d))
	whole := text(t, d.read(t, file1))
	renamed := strings.Replace(whole, `"name":"Gossip.State"`, `"name":"Gossip.Mood"`, 1)
	r, err := NewReader(bytes.NewReader(packText(renamed)))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(r.Unknown, " "); got != "Hosts.Gossip.Mood" {
		t.Errorf("unknown is %q", got)
	}
	sum, err := Replay(r, nil, func(Round) error { return nil })
	if err != nil || sum.Checked || sum.Steps == 0 || sum.Stopped != nil {
		t.Errorf("%+v, %v", sum, err)
	}
}

// TestDiskFull guards P8 and P9: what a full disk did not take is missing, is
// counted in the file, and the rest replays.
func TestDiskFull(t *testing.T) {
	s, d := newStage(t, 6, 3), newMemDisk()
	writes := 0
	d.fail = func(op, _ string) error {
		if op == "write" {
			if writes++; writes >= 6 && writes <= 9 {
				return errFull
			}
		}
		return nil
	}
	playLoss(t, s, newRecorder(t, s, d))
	sum, _ := replayed(t, d.read(t, file1), nil)
	if sum.Differ != 0 || sum.Stopped != nil || sum.End == "" || len(sum.Gaps) != 1 || sum.Gaps[0].Steps == 0 ||
		!strings.Contains(sum.Gaps[0].Why, "no space left") {
		t.Errorf("%+v", sum)
	}
}

// TestDiskHangs guards P8: a disk that takes nothing and never answers makes the
// judge wait for nothing, and the end of the recorder neither.
func TestDiskHangs(t *testing.T) {
	for _, op := range []string{"list", "create", "write", "rename"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, d := newStage(t, 7, 3), newMemDisk()
				free := make(chan struct{})
				d.fail = func(o, _ string) error {
					if o == op {
						<-free
					}
					return nil
				}
				r := newRecorder(t, s, d)
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() { defer close(ended); r.Run(ctx) }()
				s.dies["kvm-02"] = s.now + 5*time.Second
				for range 4000 {
					s.step(r.Tape(), []Subject{subject})
					if b := r.queued.Load(); b > diskBytes {
						t.Fatalf("%d octets wait for the disk", b)
					}
				}
				synctest.Wait()
				cancel()
				begun := time.Now()
				<-ended
				if took := time.Since(begun); took > endWait {
					t.Errorf("the end took %s", took)
				}
				close(free)
				synctest.Wait()
			})
		})
	}
}

// TestRecorderTooSlow: blocks that nobody takes are dropped, and leave a gap.
func TestRecorderTooSlow(t *testing.T) {
	s, d := newStage(t, 8, 3), newMemDisk()
	r := newRecorder(t, s, d)
	r.tape.budget = 1 // each step is a block
	w := &writer{r: r, disk: d, log: r.cfg.Log, files: map[string]*openFile{}}
	open := []Subject{subject}
	for range 5 {
		s.step(r.tape, open)
		drain(r, w)
	}
	for range 3 * sealedWait {
		s.step(r.tape, open) // Nobody takes them.
	}
	if got := r.lost.Load(); got != 2*sealedWait {
		t.Errorf("%d steps were dropped, want %d", got, 2*sealedWait)
	}
	drain(r, w)
	s.step(r.tape, open)
	drain(r, w)
	end(r, w)
	sum, _ := replayed(t, d.read(t, file1), nil)
	if sum.Differ != 0 || len(sum.Gaps) != 1 || sum.Gaps[0].Steps != 2*sealedWait || !strings.Contains(sum.Gaps[0].Why, "too slow") {
		t.Errorf("%+v", sum)
	}
}

// TestCalmIsLeftOut: of a long incident the minute after each change is kept, and
// the minute before the next; the file says what is missing.
func TestCalmIsLeftOut(t *testing.T) {
	notUnderRace(t)
	s, d := newStage(t, 9, 3), newMemDisk()
	r := newRecorder(t, s, d)
	w := &writer{r: r, disk: d, log: r.cfg.Log, files: map[string]*openFile{}}
	begun := s.now
	s.dies["kvm-03"] = begun + 10*time.Minute
	for s.now < begun+13*time.Minute {
		s.step(r.tape, []Subject{subject})
		drain(r, w)
	}
	end(r, w)
	sum, rounds := replayed(t, d.read(t, file1), nil)
	if sum.Differ != 0 || sum.Stopped != nil || len(sum.Gaps) == 0 || !strings.Contains(sum.Gaps[0].Why, "nothing changed") {
		t.Errorf("%+v", sum)
	}
	early, before := false, false
	for _, round := range rounds {
		at := round.At - begun
		early = early || at > 3*time.Minute && at < 8*time.Minute
		before = before || at > 9*time.Minute+10*time.Second && at < 9*time.Minute+20*time.Second
	}
	if early || !before {
		t.Errorf("calm was kept: %v; the minute before the second loss was kept: %v", early, before)
	}
}

// TestBounds: one recording, all of them, and the memory for the past are bounded.
func TestBounds(t *testing.T) {
	s, d := newStage(t, 10, 8), newMemDisk()
	r := newRecorder(t, s, d)
	r.cfg.MaxBytes, r.cfg.Keep = 200<<10, 3
	playLoss(t, s, r)
	data := d.read(t, file1)
	sum, _ := replayed(t, data, nil)
	if len(data) > 55<<10 || !strings.Contains(sum.End, "truncated") || sum.Differ != 0 {
		t.Errorf("%d octets, %+v", len(data), sum)
	}
	if r.size > ringBytes {
		t.Errorf("the past takes %d octets", r.size)
	}
	w := &writer{r: r, disk: d, log: r.cfg.Log, files: map[string]*openFile{}}
	for i := range 10 {
		term := subject
		term.Term.Term += uint64(i + 1)
		s.step(r.tape, []Subject{term})
		drain(r, w)
		s.step(r.tape, nil)
		end(r, w)
		clear(r.runs)
	}
	bytes := int64(0)
	for _, name := range d.names() {
		bytes += int64(len(d.read(t, name)))
	}
	if n := len(d.names()); n > 3 || bytes > r.cfg.MaxBytes {
		t.Errorf("%d recordings of %d octets are kept", n, bytes)
	}
	if name, ok := r.File(subject.Incident); !ok || name != "1122-045449-kvm-02.1.17.jsonl.gz" {
		t.Errorf("the latest is %q", name)
	}
}

// TestRingFitsMemory: a minute of 50 hosts, all of it under suspicion, stays
// within the budget.
func TestRingFitsMemory(t *testing.T) {
	notUnderRace(t)
	s, d := newStage(t, 11, 50), newMemDisk()
	r := newRecorder(t, s, d)
	w := &writer{r: r, disk: d, log: r.cfg.Log, files: map[string]*openFile{}}
	measure := func(what string, d time.Duration) {
		for end := s.now + d; s.now < end; {
			s.step(r.tape, nil)
			drain(r, w)
		}
		t.Logf("%s: %d KiB of memory for the last %s", what, r.size>>10, s.now-r.ring[0].begin)
		if r.size > ringBytes {
			t.Errorf("%s: the past takes %d octets", what, r.size)
		}
	}
	measure("healthy", 70*time.Second)
	s.dies["kvm-07"] = s.now
	measure("one suspected", 70*time.Second)
}

// TestTermsAndLives: each master has its own file, and an agent that comes back
// knows its recordings; one that a crash left is given its name.
func TestTermsAndLives(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "flight")
	s := newStage(t, 12, 3)
	r := newRecorder(t, s, Dir(dir))
	w := &writer{r: r, disk: Dir(dir), log: r.cfg.Log, files: map[string]*openFile{}}
	next := subject
	next.Term.Term++
	for _, sub := range []Subject{subject, next} {
		for range 20 {
			s.step(r.tape, []Subject{sub})
			drain(r, w)
		}
	}
	r.tape.finish()
	drain(r, w) // and now the agent is killed
	if err := os.WriteFile(filepath.Join(dir, "README"), []byte("not ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	again := newRecorder(t, s, Dir(dir))
	w = &writer{r: again, disk: Dir(dir), log: r.cfg.Log, files: map[string]*openFile{}}
	if err := w.adopt(); err != nil {
		t.Fatal(err)
	}
	if name, ok := again.File(subject.Incident); !ok || filepath.Base(name) != "1122-045449-kvm-02.1.8.jsonl.gz" {
		t.Errorf("after a restart the recording is %q", name)
	}
	for name, end := range map[string]bool{file1: true, "1122-045449-kvm-02.1.8.jsonl.gz": false} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode() != 0o600 {
			t.Fatalf("%v, mode %v", err, info.Mode())
		}
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		sum, _ := replayed(t, data, nil)
		if sum.Steps == 0 || sum.Differ != 0 || (sum.End != "") != end {
			t.Errorf("%s: %+v", name, sum)
		}
	}
}

// TestManyIncidents: a power loss of a whole rack does not fill the disk with the
// same evidence again and again.
func TestManyIncidents(t *testing.T) {
	s, d := newStage(t, 13, 3), newMemDisk()
	r := newRecorder(t, s, d)
	w := &writer{r: r, disk: d, log: r.cfg.Log, files: map[string]*openFile{}}
	var open []Subject
	for i := range 3 * maxOpen {
		sub := subject
		sub.Incident += haven.IncidentID(rune('a' + i))
		open = append(open, sub)
	}
	open = append(open, Subject{Incident: "../../etc/passwd"})
	s.step(r.tape, open)
	drain(r, w)
	if n := len(d.names()); n != maxOpen || len(r.runs) != maxOpen {
		t.Errorf("%d recordings at a time", n)
	}
	s.step(r.tape, nil) // They close, and others open: these are worth more.
	drain(r, w)
	next := subject
	next.Incident += "-later"
	s.step(r.tape, []Subject{next})
	drain(r, w)
	if _, ok := r.File(next.Incident); !ok || len(r.runs) > maxOpen {
		t.Errorf("a later incident is not recorded beside %d that closed", len(r.runs)-1)
	}
}

// TestOutputIsSummed: nothing in an output is of a kind that its sum leaves out.
func TestOutputIsSummed(t *testing.T) {
	var walk func(path string, ty reflect.Type)
	walk = func(path string, ty reflect.Type) {
		switch ty.Kind() {
		case reflect.Struct:
			for f := range ty.Fields() {
				walk(path+"."+f.Name, f.Type)
			}
		case reflect.Slice:
			walk(path, ty.Elem())
		case reflect.Map, reflect.Pointer, reflect.Interface, reflect.Chan, reflect.Func, reflect.Array, reflect.Complex64, reflect.Complex128, reflect.Uintptr, reflect.UnsafePointer, reflect.Invalid:
			t.Errorf("%s is a %s: teach sum about it", path, ty)
		default:
		}
	}
	walk("Output", reflect.TypeFor[detector.Output]())
}

// TestReaderBounds guards P8 for the tool: a file of a kilobyte may not ask for a
// judgement that takes minutes, nor for memory without end.
func TestReaderBounds(t *testing.T) {
	own, err := planOf(reflect.TypeFor[detector.Input]())
	if err != nil {
		t.Fatal(err)
	}
	wide := `{"leaves":[` + strings.Repeat(`{"name":"x","kind":"int"},`, 999) + `{"name":"y","kind":"int"}]}`
	tests := []struct{ name, plan, step string }{
		{"hosts times observers", string(quoted(own)), `{"at":1,"in":[0,0,1000,0,0,1000,0],"strings":["a"]}`},
		{"hosts", string(quoted(own)), `{"at":1,"in":[0,0,0,0,0,2000,0],"strings":["a"]}`},
		{"list", string(quoted(own)), `{"at":1,"in":[0,0,16385,0,0,0,0]}`},
		{"numbers", `{"lists":[{"name":"Hosts","of":` + wide + `}]}`, `{"at":1,"in":[0,0,16384,0]}`},
		{"marks", string(quoted(own)), `{"at":1,"strings":["a"],"in":[0,0,0,0,0,0,0],"out":[` + strings.Repeat(`{"host":"a"},`, 3000) + `{"host":"b"}]}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := `{"haven_flight":{"format":1,"judge":` + string(quoted(detector.Normal())) + `,"input":` + tt.plan + "}}\n" + `{"block":{"first":1,"state":{}}}` + "\n" + tt.step + "\n"
			r, err := NewReader(bytes.NewReader(packText(text)))
			if err != nil {
				t.Fatal(err)
			}
			sum, err := Replay(r, nil, func(Round) error { return nil })
			if err != nil || sum.Steps != 0 || !errors.Is(sum.Stopped, errHuge) && !errors.Is(sum.Stopped, errOrder) {
				t.Errorf("%d steps, %v, stopped: %v", sum.Steps, err, sum.Stopped)
			}
		})
	}
}

// TestRead: a recording can be read in pieces while it is written and when it has
// ended; a disk that hangs keeps one read, and no other waits for it (P8).
func TestRead(t *testing.T) {
	s, d := newStage(t, 16, 3), newMemDisk()
	r := newRecorder(t, s, d)
	w := &writer{r: r, disk: d, log: r.cfg.Log, files: map[string]*openFile{}}
	s.step(r.tape, []Subject{subject})
	s.step(r.tape, nil)
	drain(r, w)
	whole := func() (all []byte) {
		for {
			p, size, err := r.Read(t.Context(), subject.Incident, int64(len(all)))
			if err != nil {
				t.Fatal(err)
			}
			if len(p) == 0 {
				if size != int64(len(all)) {
					t.Errorf("%d of %d octets", len(all), size)
				}
				return all
			}
			all = append(all, p...)
		}
	}
	if got, want := whole(), d.read(t, file1+part); len(got) == 0 || !bytes.Equal(got, want) {
		t.Errorf("while it is written: %d octets, want %d", len(got), len(want))
	}
	end(r, w)
	if got, want := whole(), d.read(t, file1); !bytes.Equal(got, want) {
		t.Errorf("when it has ended: %d octets, want %d", len(got), len(want))
	}
	if _, _, err := r.Read(t.Context(), "../../etc/passwd", 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of no incident: %v", err)
	}
	hang, hung := make(chan struct{}), make(chan struct{}, 1)
	d.mu.Lock()
	d.fail = func(string, string) error { hung <- struct{}{}; <-hang; return nil }
	d.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { _, _, err := r.Read(ctx, subject.Incident, 0); first <- err }()
	<-hung
	if _, _, err := r.Read(t.Context(), subject.Incident, 0); !errors.Is(err, ErrBusy) {
		t.Errorf("beside one that hangs: %v", err)
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("one that hangs: %v", err)
	}
	d.mu.Lock()
	d.fail = nil
	d.mu.Unlock()
	close(hang)
}

// fuzzed is a short recording for mutation: its head, and all that follows.
func fuzzed(f *testing.F) (head, rest string) {
	s, d := newStage(f, 14, 1), newMemDisk()
	r := newRecorder(f, s, d)
	w := &writer{r: r, disk: d, log: r.cfg.Log, files: map[string]*openFile{}}
	for range 3 {
		s.step(r.tape, []Subject{subject})
	}
	s.step(r.tape, nil)
	end(r, w)
	head, rest, _ = strings.Cut(text(f, d.read(f, file1)), "\n")
	return head, rest
}

// FuzzReader guards P8 for the tool: no file makes it panic or grow.
func FuzzReader(f *testing.F) {
	head, rest := fuzzed(f)
	f.Add(head, rest)
	f.Add(head, `{"block":{"first":1,"state":{"hosts":[{"host":"a","fallen":-5}]}}}`+"\n"+`{"at":1,"in":[0,0,0,0,0,16384,16384]}`)
	f.Add(`{"haven_flight":{"format":1,"input":{"lists":[{"name":"Hosts","of":{"lists":[{"name":"x","of":{}}]}}]}}}`, rest)
	f.Fuzz(func(t *testing.T, head, rest string) {
		r, err := NewReader(bytes.NewReader(packText(head + "\n" + rest)))
		if err != nil {
			return
		}
		other := detector.Fast()
		_, _ = Replay(r, &other, func(Round) error { return nil })
	})
}

// FuzzEvidence: whatever numbers make evidence, the tape takes it down so that the
// reader makes the same of it.
func FuzzEvidence(f *testing.F) {
	own, err := planOf(reflect.TypeFor[detector.Input]())
	if err != nil {
		f.Fatal(err)
	}
	_, rest := fuzzed(f)
	for l := range strings.Lines(rest) {
		var step stepLine
		if err := json.Unmarshal([]byte(l), &step); err != nil || step.In == nil {
			continue
		}
		var data []byte
		for _, x := range step.In {
			data = binary.AppendVarint(data, x)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var in []int64
		for len(data) > 0 && len(in) < 4096 {
			x, n := binary.Varint(data)
			if n <= 0 {
				return
			}
			in, data = append(in, x), data[n:]
		}
		var prev *node
		for r := (numbers{rest: in}); len(r.rest) > 0; {
			r.nodes, r.cells = 1<<17, 1<<21 // smaller bounds, for speed
			cur, err := own.apply(prev, &r)
			if err != nil {
				return
			}
			var again []int64
			if err := json.Unmarshal(append(own.diff(prev, &cur, []byte{'['}), ']'), &again); err != nil {
				t.Fatal(err)
			}
			back := numbers{rest: again}
			if got, err := own.apply(prev, &back); err != nil || len(back.rest) > 0 || !same(&got, &cur) {
				t.Fatalf("%v: evidence does not come back as it was", err)
			}
			var v detector.Input
			_ = own.build(&cur, reflect.ValueOf(&v).Elem(), []string{"a", "b"})
			prev = &cur
		}
	})
}

// BenchmarkTape is what recording costs each step of the judge with 50 hosts.
func BenchmarkTape(b *testing.B) {
	s := newStage(b, 15, 50)
	tape, err := newTape(func(*block) {})
	if err != nil {
		b.Fatal(err)
	}
	type one struct {
		at  time.Duration
		in  detector.Input
		out detector.Output
	}
	var all []one
	for range 50 {
		in := s.input()
		all = append(all, one{s.now, in, s.m.Step(s.now, in)})
		s.now += 200 * time.Millisecond
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		o := &all[i%len(all)]
		tape.Before(s.m)
		tape.After(o.at, time.Time{}, &o.in, &o.out, nil)
	}
}

// BenchmarkPack is what the keeper does with a block of five seconds.
func BenchmarkPack(b *testing.B) {
	s, d := newStage(b, 16, 50), newMemDisk()
	r := newRecorder(b, s, d)
	for len(r.sealed) == 0 {
		s.step(r.tape, nil)
	}
	blk := <-r.sealed
	b.ReportMetric(float64(len(blk.body)), "B/block")
	b.ReportMetric(float64(len(r.pack(blk))), "B/packed")
	for b.Loop() {
		r.pack(blk)
	}
}

// notUnderRace leaves out what runs in one goroutine and takes ten times as long
// under the race detector. "make test" runs it without.
func notUnderRace(t *testing.T) {
	if underRace {
		t.Skip("there is nothing here that could race")
	}
}

package diskwatch

import (
	"fmt"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/blockio"
)

// Config holds the numbers of a Tracker.
type Config struct {
	// Idle is for how long a disk must have been found the same to be idle. A
	// guest's own kernel keeps writes back for up to 35 s (30 s of age and 5 s
	// between two rounds of write-back, by default), whatever cache mode its
	// host gives it; so there is no shorter time for any disk.
	Idle time.Duration
	// Repeats is how many readings must repeat the first one.
	Repeats int
	// Gap is the longest time between two readings that can be compared, and the
	// greatest age of the last one.
	Gap time.Duration
}

// Tracker compares one observer's readings of the disks of one host. It is pure
// and not safe for concurrent use.
type Tracker struct {
	cfg     Config
	disks   []Disk
	partial bool
	files   map[string]*file
}

// file is what is known of one path.
type file struct {
	tried time.Duration // end of the last reading, good or not; meaningful if any
	any   bool
	err   string // why the last reading told nothing

	seen           bool // the rest but changed is of the last good reading
	attr           blockio.Attr
	started, ended time.Duration
	// same is the number of readings in a row that repeated the one that ended
	// at from, with none in between that told nothing.
	same int
	from time.Duration

	changed   bool
	changedAt time.Duration // end of the reading that last found a change
}

// NewTracker makes a Tracker without disks.
func NewTracker(cfg Config) *Tracker { return &Tracker{cfg: cfg, files: map[string]*file{}} }

// Watch says what the host's disks are. What was read of those that stay is kept.
// A list that is partial leaves some out.
func (t *Tracker) Watch(disks []Disk, partial bool) {
	t.disks, t.partial = disks, partial
	files := make(map[string]*file, len(disks))
	for _, d := range disks {
		if d.Path == "" || files[d.Path] != nil {
			continue
		}
		if files[d.Path] = t.files[d.Path]; files[d.Path] == nil {
			files[d.Path] = &file{}
		}
	}
	t.files = files
}

// Paths lists the files to read, each once.
func (t *Tracker) Paths() []string {
	paths := make([]string, 0, len(t.files))
	listed := make(map[string]bool, len(t.files))
	for _, d := range t.disks {
		if d.Path != "" && !listed[d.Path] {
			listed[d.Path] = true
			paths = append(paths, d.Path)
		}
	}
	return paths
}

// Read takes a reading in. One that began before the last one ended comes too
// late and is dropped.
func (t *Tracker) Read(r Reading) {
	f := t.files[r.Path]
	if f == nil || r.Ended < r.Started || f.any && r.Started < f.tried {
		return
	}
	f.tried, f.any = r.Ended, true
	whole := f.err == ""
	if f.err = r.bad(); f.err != "" {
		return
	}
	related := f.seen && f.attr.SameFile(r.Attr) && r.Started-f.ended <= t.cfg.Gap
	switch {
	case related && f.attr == r.Attr && whole:
		f.same++
	case related && f.attr != r.Attr:
		f.changed, f.changedAt = true, r.Ended
		fallthrough
	default:
		f.same, f.from = 0, r.Ended
	}
	f.seen, f.attr, f.started, f.ended = true, r.Attr, r.Started, r.Ended
}

// Sight is what an observer concludes.
type Sight struct {
	// Active is Yes if a disk changed between two readings not longer ago than
	// Config.Idle. It is No only if there is a disk and all of them were found the
	// same for that long, in enough readings. Everything else is Unknown.
	Active haven.Tri
	// At is when the latest of the readings ended; with No, the earliest of the
	// disks' latest ones.
	At time.Duration
	// Quiet is how long before At the last change was found, with Yes.
	Quiet time.Duration
	// Span is, with No, for how long every disk was found the same.
	Span time.Duration
	// Seen is how many of the files the last look could tell of.
	Seen int
	// Why explains it in one line.
	Why string
}

// Look concludes what is known at an instant.
func (t *Tracker) Look(now time.Duration) Sight {
	var last, changed *file
	seen := 0
	for _, f := range t.files {
		if !f.any || f.tried > now {
			continue
		}
		if f.err == "" {
			seen++
		}
		if last == nil || f.tried > last.tried {
			last = f
		}
		if t.active(f, now) && (changed == nil || f.changedAt > changed.changedAt) {
			changed = f
		}
	}
	if changed != nil {
		return t.sawChange(last.tried, seen, changed)
	}
	s := Sight{At: now, Seen: seen}
	if last != nil {
		s.At = last.tried
	}
	if s.Why = t.lacks(now); s.Why != "" {
		return s
	}
	// From here on every disk that counts is idle, and there is one.
	s.Active, s.At, s.Span = haven.No, now, now
	files := 0
	for _, d := range t.disks {
		if d.Layer {
			continue
		}
		f := t.files[d.Path]
		s.At, s.Span = min(s.At, f.tried), min(s.Span, f.started-f.from)
		files++
	}
	s.Why = fmt.Sprintf("all %d disks idle for %s", files, s.Span.Round(time.Second))
	return s
}

// active says whether a change was found lately.
func (t *Tracker) active(f *file, now time.Duration) bool {
	return f.changed && now-f.changedAt < t.cfg.Idle
}

func (t *Tracker) sawChange(at time.Duration, seen int, f *file) Sight {
	s := Sight{Active: haven.Yes, At: at, Quiet: at - f.changedAt, Seen: seen}
	for _, d := range t.disks {
		if t.files[d.Path] == f {
			s.Why = fmt.Sprintf("disk %s of VM %s changed", d.Path, d.VM)
			break
		}
	}
	return s
}

// lacks names the first thing that keeps the disks from being idle.
func (t *Tracker) lacks(now time.Duration) string {
	counted := 0
	for _, d := range t.disks {
		if d.Layer {
			continue
		}
		counted++
		if why := t.diskLacks(d, now); why != "" {
			name := d.Path
			if name == "" {
				name = "a disk"
			}
			return fmt.Sprintf("%s of VM %s: %s", name, d.VM, why)
		}
	}
	switch {
	case counted == 0:
		return "it has no disks that anybody could look at"
	case t.partial:
		return "it has more disks than are looked at"
	}
	return ""
}

func (t *Tracker) diskLacks(d Disk, now time.Duration) string {
	f := t.files[d.Path]
	switch {
	case d.Blind != "":
		return d.Blind
	case f == nil || !f.any:
		return "not read yet"
	case f.err != "":
		return f.err
	case f.tried > now || now-f.ended > t.cfg.Gap:
		return "not read lately"
	case f.same < t.cfg.Repeats || f.started-f.from < t.cfg.Idle:
		return fmt.Sprintf("the same for %s of %s, repeated %d of %d times", (f.started - f.from).Round(100*time.Millisecond), t.cfg.Idle, f.same, t.cfg.Repeats)
	}
	return ""
}

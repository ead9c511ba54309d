package diskwatch

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/blockio"
)

// twin is a second, dumb Tracker: it keeps every reading and looks through all of
// them each time.
type twin struct {
	cfg  Config
	all  map[string][]Reading
	want []Disk
	part bool
}

func (d *twin) read(r Reading) {
	old := d.all[r.Path]
	if r.Started > r.Ended || len(old) > 0 && old[len(old)-1].Ended > r.Started {
		return
	}
	d.all[r.Path] = append(old, r)
}

func tells(r Reading) bool { return r.Err == "" && r.Attr.Regular && r.Attr.Shared }

// look says yes, no or unknown by the words of Sight.
func (d *twin) look(now time.Duration) haven.Tri {
	needed, idle := 0, 0
	for _, disk := range d.want {
		if d.changedLately(d.all[disk.Path], now) {
			return haven.Yes
		}
		if disk.Layer {
			continue
		}
		needed++
		if disk.Blind == "" && d.idle(d.all[disk.Path], now) {
			idle++
		}
	}
	if needed > 0 && idle == needed && !d.part {
		return haven.No
	}
	return haven.Unknown
}

func (d *twin) changedLately(all []Reading, now time.Duration) bool {
	if len(all) == 0 || all[len(all)-1].Ended > now {
		return false
	}
	good := slices.DeleteFunc(slices.Clone(all), func(r Reading) bool { return !tells(r) })
	for i := 1; i < len(good); i++ {
		p, r := good[i-1], good[i]
		if p.Attr.Dev == r.Attr.Dev && p.Attr.Ino == r.Attr.Ino && p.Attr != r.Attr && r.Started-p.Ended <= d.cfg.Gap && r.Ended <= now && r.Ended > now-d.cfg.Idle {
			return true
		}
	}
	return false
}

func (d *twin) idle(all []Reading, now time.Duration) bool {
	if len(all) == 0 {
		return false
	}
	last := all[len(all)-1]
	if last.Ended > now || last.Ended < now-d.cfg.Gap {
		return false
	}
	row := 0
	for row < len(all) {
		r := all[len(all)-1-row]
		if !tells(r) || r.Attr != last.Attr || row > 0 && all[len(all)-row].Started-r.Ended > d.cfg.Gap {
			break
		}
		row++
	}
	return row > d.cfg.Repeats && last.Started-all[len(all)-row].Ended >= d.cfg.Idle
}

// shop is storage with files that really change at known instants.
type shop struct {
	writes map[string][]time.Duration
	odd    map[string]uint64 // another file took the place
}

func (s *shop) attr(path string, at time.Duration) blockio.Attr {
	n := 0
	for _, w := range s.writes[path] {
		if w <= at {
			n++
		}
	}
	return blockio.Attr{Dev: 1, Ino: s.odd[path], Size: 4096, MTime: int64(n), CTime: int64(n), Regular: true, FileSystem: "nfs", Shared: true}
}

// TestTwin guards P5 with readings that fail, come late, come twice or stay out,
// of files that are written at random: the Tracker concludes what its dumb twin
// does, and no host is ever idle one of whose disks was written within the span,
// or was not read whole at both of its ends.
func TestTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{
			Idle:    time.Duration(rapid.IntRange(3, 12).Draw(t, "idle")) * time.Second,
			Repeats: rapid.IntRange(1, 5).Draw(t, "repeats"),
			Gap:     time.Duration(rapid.IntRange(1, 6).Draw(t, "gap")) * time.Second,
		}
		var disks []Disk
		s := &shop{writes: map[string][]time.Duration{}, odd: map[string]uint64{}}
		for i := range rapid.IntRange(0, 3).Draw(t, "disks") {
			d := Disk{VM: vmA, Path: fmt.Sprintf("/pool%d/disk", rapid.IntRange(0, 2).Draw(t, "pool"))}
			switch rapid.IntRange(0, 11).Draw(t, fmt.Sprint("kind ", i)) {
			case 0:
				d.Layer = true
			case 1:
				d.Blind, d.Path = "no file", ""
			}
			disks = append(disks, d)
		}
		partial := rapid.IntRange(0, 9).Draw(t, "partial") == 0
		tr := NewTracker(cfg)
		tr.Watch(disks, partial)
		tw := &twin{cfg: cfg, all: map[string][]Reading{}, want: disks, part: partial}
		quiet := rapid.IntRange(0, 60).Draw(t, "quiet from") // most runs end with a stretch of peace
		faulty := rapid.IntRange(0, 2).Draw(t, "faulty") > 0
		now := time.Duration(0)
		seen := map[haven.Tri]int{}
		for step := range 80 {
			now += time.Duration(rapid.IntRange(200, 1500).Draw(t, "pass")) * time.Millisecond
			for _, p := range tr.Paths() {
				if step < quiet && rapid.IntRange(0, 12).Draw(t, "write") == 0 {
					s.writes[p] = append(s.writes[p], now-time.Duration(rapid.IntRange(0, 150).Draw(t, "before"))*time.Millisecond)
				}
				r := Reading{Path: p, Started: now - 100*time.Millisecond, Ended: now, Attr: s.attr(p, now-50*time.Millisecond)}
				if faulty {
					switch rapid.IntRange(0, 40).Draw(t, "fault") {
					case 0:
						r.Err, r.Attr = "hangs", blockio.Attr{}
					case 1:
						continue
					case 2:
						r.Started -= 700 * time.Millisecond // it may have begun before the last one ended
					case 3:
						r.Attr.Shared = false
					case 4:
						r.Attr.Regular = false
					case 5:
						now += 3 * time.Second
						r.Started, r.Ended, r.Attr = now, now, s.attr(p, now)
					case 6:
						s.odd[p]++
					case 7:
						r.Started, r.Ended = r.Ended, r.Started
					}
				}
				tr.Read(r)
				tw.read(r)
			}
			at := now + time.Duration(rapid.IntRange(-1000, 4000).Draw(t, "look"))*time.Millisecond
			sight, want := tr.Look(at), tw.look(at)
			if sight.Active != want {
				t.Fatalf("at %s: the Tracker says %+v, the twin %s", at, sight, want)
			}
			seen[want]++
			if sight.Active == haven.No {
				provedIdle(t, s, tw, sight, cfg)
			}
			if sight.Active == haven.Yes && (sight.Quiet < 0 || sight.At > at) {
				t.Fatalf("dates of %+v", sight)
			}
		}
	})
}

// provedIdle holds a conclusion of idle against what really happened.
func provedIdle(t *rapid.T, s *shop, tw *twin, sight Sight, cfg Config) {
	needed := 0
	if sight.Span < cfg.Idle {
		t.Fatalf("idle for %s only", sight.Span)
	}
	for _, d := range tw.want {
		if d.Layer {
			continue
		}
		needed++
		if d.Blind != "" {
			t.Fatalf("idle with a disk that nobody can see")
		}
		all := tw.all[d.Path]
		last := all[len(all)-1]
		if !tells(last) || last.Ended < sight.At {
			t.Fatalf("idle by %+v, and the last reading of %s is %+v", sight, d.Path, last)
		}
		for _, w := range s.writes[d.Path] {
			if w > last.Ended-sight.Span && w <= last.Started {
				t.Fatalf("idle by %+v, and %s was written at %s; last reading %+v", sight, d.Path, w, last)
			}
		}
	}
	if needed == 0 || tw.part {
		t.Fatalf("idle without all disks: %+v", sight)
	}
}

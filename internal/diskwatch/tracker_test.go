package diskwatch

import (
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/blockio"
)

const (
	vmA = haven.VMID("11111111-1111-4111-8111-111111111111")
	vmB = haven.VMID("22222222-2222-4222-8222-222222222222")
)

func normal() Config { return Config{Idle: 35 * time.Second, Repeats: 3, Gap: 5 * time.Second} }

// watched feeds a Tracker: readings of every path, one second apart.
type watched struct {
	*Tracker
	now   time.Duration
	attrs map[string]blockio.Attr
	errs  map[string]string
}

func watch(cfg Config, disks ...Disk) *watched {
	w := &watched{Tracker: NewTracker(cfg), attrs: map[string]blockio.Attr{}, errs: map[string]string{}}
	w.Watch(disks, false)
	for i, p := range w.Paths() {
		w.attrs[p] = blockio.Attr{Dev: 7, Ino: uint64(i + 1), Size: 1 << 20, MTime: 1, CTime: 1, Regular: true, FileSystem: "nfs", Shared: true}
	}
	return w
}

// write is a write to a file at the storage.
func (w *watched) write(path string) {
	a := w.attrs[path]
	a.MTime++
	w.attrs[path] = a
}

func (w *watched) read() {
	for _, p := range w.Paths() {
		w.Read(Reading{Path: p, Started: w.now, Ended: w.now + 10*time.Millisecond, Attr: w.attrs[p], Err: w.errs[p]})
	}
}

func (w *watched) run(d time.Duration) {
	for end := w.now + d; w.now < end; {
		w.now += time.Second
		w.read()
	}
}

func (w *watched) look() Sight { return w.Look(w.now + 20*time.Millisecond) }

// TestTracker guards P4 and P5: one changing disk is life, idle needs all of them
// for long enough, and whatever was not seen is unknown.
func TestTracker(t *testing.T) {
	a, b := Disk{VM: vmA, Path: "/pool1/a.qcow2"}, Disk{VM: vmB, Path: "/pool2/b.raw"}
	layer := Disk{VM: vmA, Path: "/pool1/base.qcow2", Layer: true}
	for _, tt := range []struct {
		name  string
		disks []Disk
		do    func(*watched)
		want  haven.Tri
		why   string
	}{
		{name: "no disks", do: func(w *watched) { w.run(time.Minute) }, why: "no disks"},
		{name: "a lower layer alone", disks: []Disk{layer}, do: func(w *watched) { w.run(time.Minute) }, why: "no disks"},
		{name: "never read", disks: []Disk{a}, do: func(*watched) {}, why: "not read yet"},
		{name: "one reading", disks: []Disk{a}, do: func(w *watched) { w.run(time.Second) }, why: "the same for 0s"},
		{name: "almost long enough", disks: []Disk{a}, do: func(w *watched) { w.run(35 * time.Second) }, why: "the same for 34s"},
		{name: "idle", disks: []Disk{a, b}, do: func(w *watched) { w.run(37 * time.Second) }, want: haven.No, why: "all 2 disks idle for 36s"},
		{name: "long enough and too few readings", disks: []Disk{a}, do: func(w *watched) {
			w.cfg.Gap = time.Minute
			w.run(time.Second)
			w.now += 40 * time.Second
			w.read()
		}, why: "repeated 1 of 3"},
		{name: "a write", disks: []Disk{a, b}, do: func(w *watched) { w.run(5 * time.Second); w.write(b.Path); w.run(time.Second) }, want: haven.Yes, why: "/pool2/b.raw of VM " + string(vmB)},
		{name: "a write within the time of write-back", disks: []Disk{a, b}, do: func(w *watched) { w.run(5 * time.Second); w.write(b.Path); w.run(34 * time.Second) }, want: haven.Yes},
		{name: "a write, and idle since", disks: []Disk{a, b}, do: func(w *watched) { w.run(5 * time.Second); w.write(b.Path); w.run(38 * time.Second) }, want: haven.No},
		{name: "a write to a lower layer", disks: []Disk{a, layer}, do: func(w *watched) { w.run(5 * time.Second); w.write(layer.Path); w.run(time.Second) }, want: haven.Yes},
		{name: "a lower layer that cannot be read", disks: []Disk{a, layer}, do: func(w *watched) { w.errs[layer.Path] = "gone"; w.run(40 * time.Second) }, want: haven.No},
		{name: "one of two cannot be read", disks: []Disk{a, b}, do: func(w *watched) { w.errs[b.Path] = "hangs"; w.run(time.Minute) }, why: "hangs"},
		{name: "activity beside a disk that cannot be read", disks: []Disk{a, b}, do: func(w *watched) {
			w.errs[b.Path] = "hangs"
			w.run(5 * time.Second)
			w.write(a.Path)
			w.run(time.Second)
		}, want: haven.Yes},
		{name: "a failed reading in between", disks: []Disk{a}, do: func(w *watched) {
			w.run(30 * time.Second)
			w.errs[a.Path] = "late"
			w.run(time.Second)
			w.errs[a.Path] = ""
			w.run(30 * time.Second)
		}, why: "the same for 29s"},
		{name: "a pause in the readings", disks: []Disk{a}, do: func(w *watched) { w.run(30 * time.Second); w.now += 8 * time.Second; w.run(30 * time.Second) }, why: "the same for 29s"},
		{name: "a change that a pause hides", disks: []Disk{a}, do: func(w *watched) { w.run(5 * time.Second); w.write(a.Path); w.now += time.Minute; w.run(time.Second) }, why: "the same for 0s"},
		{name: "not read lately", disks: []Disk{a}, do: func(w *watched) { w.run(40 * time.Second); w.now += 6 * time.Second }, why: "not read lately"},
		{name: "another file under the name", disks: []Disk{a}, do: func(w *watched) {
			w.run(40 * time.Second)
			other := w.attrs[a.Path]
			other.Ino = 99
			w.attrs[a.Path] = other
			w.run(time.Second)
		}, why: "the same for 0s"},
		{name: "a file system of this host", disks: []Disk{a}, do: func(w *watched) {
			own := w.attrs[a.Path]
			own.Shared, own.FileSystem = false, "ext4"
			w.attrs[a.Path] = own
			w.run(time.Minute)
		}, why: "on ext4 here"},
		{name: "not a file", disks: []Disk{a}, do: func(w *watched) {
			dev := w.attrs[a.Path]
			dev.Regular = false
			w.attrs[a.Path] = dev
			w.run(time.Minute)
		}, why: "not a regular file"},
		{name: "a block device beside an idle file", disks: []Disk{a, {VM: vmB, Path: "/dev/sdb", Blind: "a block device"}}, do: func(w *watched) { w.run(time.Minute) }, why: "a block device"},
		{name: "a network disk beside an idle file", disks: []Disk{a, {VM: vmB, Blind: "on the network"}}, do: func(w *watched) { w.run(time.Minute) }, why: "on the network"},
		{name: "a network disk beside an active file", disks: []Disk{a, {VM: vmB, Blind: "on the network"}}, do: func(w *watched) { w.run(5 * time.Second); w.write(a.Path); w.run(time.Second) }, want: haven.Yes},
		{name: "more disks than are watched", disks: []Disk{a}, do: func(w *watched) { w.Watch([]Disk{a}, true); w.run(time.Minute) }, why: "more disks"},
		{name: "a new disk among idle ones", disks: []Disk{a}, do: func(w *watched) { w.run(time.Minute); w.Watch([]Disk{a, b}, false) }, why: "/pool2/b.raw of VM " + string(vmB) + ": not read yet"},
		{name: "readings that arrive out of order", disks: []Disk{a}, do: func(w *watched) {
			w.run(40 * time.Second)
			old := w.attrs[a.Path]
			old.MTime--
			w.Read(Reading{Path: a.Path, Started: w.now - 5*time.Second, Ended: w.now + time.Millisecond, Attr: old})
		}, want: haven.No},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := watch(normal(), tt.disks...)
			tt.do(w)
			if s := w.look(); s.Active != tt.want || !strings.Contains(s.Why, tt.why) {
				t.Errorf("got %+v, want %s because of %q", s, tt.want, tt.why)
			}
		})
	}
}

// TestSightDates guards P5: a change is dated by the reading that found it, and
// idleness by the oldest of the latest readings.
func TestSightDates(t *testing.T) {
	a, b := Disk{VM: vmA, Path: "/pool1/a"}, Disk{VM: vmB, Path: "/pool2/b"}
	w := watch(normal(), a, b)
	w.run(5 * time.Second)
	w.write(a.Path)
	w.run(10 * time.Second)
	if s := w.look(); s.At != 15010*time.Millisecond || s.Quiet != 9*time.Second {
		t.Errorf("active: got %+v, want a change 9s before 15.01s", s)
	}
	w.run(40 * time.Second)
	w.Read(Reading{Path: b.Path, Started: w.now + 2*time.Second, Ended: w.now + 3*time.Second, Attr: w.attrs[b.Path]})
	if s := w.Look(w.now + 3*time.Second); s.Active != haven.No || s.At != 55010*time.Millisecond || s.Span != 48990*time.Millisecond {
		t.Errorf("idle: got %+v, want at 55.01s for 48.99s", s)
	}
	if s := w.Look(w.now - 10*time.Second); s.Active == haven.No {
		t.Errorf("readings of the future are believed: %+v", s)
	}
}

// TestCheckList guards the list that comes over the network.
func TestCheckList(t *testing.T) {
	long := make([]Disk, MaxDisks+1)
	for i := range long {
		long[i] = Disk{VM: vmA, Path: "/a"}
	}
	for _, tt := range []struct {
		name  string
		disks []Disk
		ok    bool
	}{
		{"empty", nil, true},
		{"a file", []Disk{{VM: vmA, Path: "/pool/a.qcow2"}}, true},
		{"a blind one", []Disk{{VM: vmA, Blind: "a network disk"}}, true},
		{"as many as may be", long[1:], true},
		{"too many", long, false},
		{"no VM", []Disk{{Path: "/pool/a"}}, false},
		{"neither path nor reason", []Disk{{VM: vmA}}, false},
		{"relative", []Disk{{VM: vmA, Path: "pool/a"}}, false},
		{"around", []Disk{{VM: vmA, Path: "/pool/../etc/shadow"}}, false},
		{"twice a slash", []Disk{{VM: vmA, Path: "//pool/a"}}, false},
		{"zero", []Disk{{VM: vmA, Path: "/pool/a\x00b"}}, false},
		{"endless", []Disk{{VM: vmA, Path: "/" + strings.Repeat("x", maxPath)}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := CheckList(tt.disks); (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

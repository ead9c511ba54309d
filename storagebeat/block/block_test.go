package block

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	haven "github.com/haven-ha/haven"
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/storagebeat/storetest"
)

const testSize = 8 << 20

// newDevice makes a file that stands for a device.
func newDevice(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lun")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string) *store {
	t.Helper()
	b, err := Type().Open(storagebeat.OpenOptions{Path: path, Cluster: "prod", Options: map[string]string{OptionFile: "yes"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	s, ok := b.(*store)
	if !ok {
		t.Fatalf("%T", b)
	}
	return s
}

func made(t testing.TB, path string) storagebeat.Identity {
	t.Helper()
	id, err := open(t, path).Init(t.Context(), storagebeat.InitOptions{Cluster: "prod"})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func put(t testing.TB, path string, at int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(data, at)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// find returns where a record is on the device.
func find(t testing.TB, s *store, host haven.HostID, w storagebeat.Writer) int64 {
	t.Helper()
	c, err := s.ReadAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range c.Beats {
		if r.Host == host && r.Slot > 0 {
			return s.head.at(int(r.Slot), w)
		}
	}
	t.Fatalf("no record of %s", host)
	return 0
}

func TestBlockConforms(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Place { return placeOn(newDevice(t, testSize), true) })
}

// placeOn is a place for the conformance test on a device or, for it, a file.
func placeOn(path string, file bool) storetest.Place {
	options := map[string]string{}
	if file {
		options[OptionFile] = "yes"
	}
	opened := func(t testing.TB, cluster string) storagebeat.Backend {
		t.Helper()
		b, err := Type().Open(storagebeat.OpenOptions{Path: path, Cluster: cluster, Options: options})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	p := storetest.Place{
		Open: opened,
		Occupy: func(t testing.TB) {
			t.Helper()
			put(t, path, 1080, []byte{0x53, 0xef})
		},
		Seize: storagebeat.InitOptions{Erase: storagebeat.EraseName(path, storetest.Cluster)},
		Damage: func(t testing.TB, host haven.HostID, w storagebeat.Writer, data []byte) {
			t.Helper()
			s, ok := opened(t, storetest.Cluster).(*store)
			if !ok {
				t.Fatal("no block store")
			}
			defer func() { _ = s.Close() }()
			put(t, path, find(t, s, host, w), data)
		},
		Spoil: func(t testing.TB, host haven.HostID, data []byte) {
			t.Helper()
			s, ok := opened(t, storetest.Cluster).(*store)
			if !ok {
				t.Fatal("no block store")
			}
			defer func() { _ = s.Close() }()
			slot := 1 + (find(t, s, host, storagebeat.WriterAgent)-slotsAt)/s.head.slot()
			off, ok := s.head.mailbox(int(slot))
			if !ok {
				t.Fatal("no mailbox")
			}
			put(t, path, off, data)
		},
	}
	if file {
		p.Vanish = func(t testing.TB) func() {
			t.Helper()
			if err := os.Rename(path, path+".away"); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := os.Rename(path+".away", path); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return p
}

func beat(t testing.TB, id storagebeat.Identity, host haven.HostID, w storagebeat.Writer, slot uint16, seq uint64) storagebeat.RawBeat {
	t.Helper()
	data, err := storagebeat.Encode(storagebeat.Beat{
		Store: id.ID, Host: host, Writer: w, Boot: "boot", State: "state", Incarnation: 1, Sequence: seq, Interval: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return storagebeat.RawBeat{Host: host, Writer: w, Slot: slot, Data: data}
}

func write(t testing.TB, s *store, raw storagebeat.RawBeat) {
	t.Helper()
	if err := s.Write(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
}

// slotsOf reads all: host.writer → slot and sequence of each sound record.
func slotsOf(t testing.TB, s *store) map[string][2]uint64 {
	t.Helper()
	c, err := s.ReadAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][2]uint64{}
	for _, r := range c.Beats {
		if b, err := storagebeat.DecodeAt(c.Identity.ID, r); err == nil {
			got[string(r.Host)+"."+r.Writer.String()] = [2]uint64{uint64(r.Slot), b.Sequence}
		}
	}
	return got
}

func TestSlotIsFoundAgainWithoutALedger(t *testing.T) {
	path := newDevice(t, testSize)
	id := made(t, path)
	agent, helper := open(t, path), open(t, path)
	a, h := storagebeat.WriterAgent, storagebeat.WriterHelper
	if err := agent.Write(t.Context(), beat(t, id, "kvm-01", a, 0, 1)); !errors.Is(err, storagebeat.ErrNoSlot) {
		t.Fatalf("before the ledger said anything: %v", err)
	}
	for _, slot := range []uint16{0, 5} { // A helper never takes a slot, whatever it is told.
		if err := helper.Write(t.Context(), beat(t, id, "kvm-01", h, slot, 1)); !errors.Is(err, storagebeat.ErrNoSlot) {
			t.Fatalf("helper before the agent: %v", err)
		}
	}
	if got := slotsOf(t, agent); len(got) != 0 {
		t.Fatalf("written: %v", got)
	}
	write(t, agent, beat(t, id, "kvm-01", a, 5, 2))
	write(t, helper, beat(t, id, "kvm-01", h, 0, 3))
	// A cold start: new processes, and no master.
	write(t, open(t, path), beat(t, id, "kvm-01", a, 0, 4))
	write(t, open(t, path), beat(t, id, "kvm-01", h, 0, 5))
	// What a ledger that was begun anew says does not move a host that has a slot.
	write(t, open(t, path), beat(t, id, "kvm-01", a, 9, 6))
	if got := slotsOf(t, open(t, path)); len(got) != 2 || got["kvm-01.agent"] != [2]uint64{5, 6} || got["kvm-01.helper"] != [2]uint64{5, 5} {
		t.Fatal(got)
	}
}

func TestSlotIsFoundInATornRecord(t *testing.T) {
	path := newDevice(t, testSize)
	id := made(t, path)
	write(t, open(t, path), beat(t, id, "kvm-01", storagebeat.WriterAgent, 3, 7))
	s := open(t, path)
	put(t, path, find(t, s, "kvm-01", storagebeat.WriterAgent)+2048, []byte("the old half"))
	write(t, open(t, path), beat(t, id, "kvm-01", storagebeat.WriterAgent, 0, 8))
	if got := slotsOf(t, s); got["kvm-01.agent"] != [2]uint64{3, 8} {
		t.Fatal(got)
	}
}

// TestAnotherHostsSlot: two ledgers, or two clusters of one name, gave one slot to
// two hosts. The one whose record moves keeps it.
func TestAnotherHostsSlot(t *testing.T) {
	path := newDevice(t, testSize)
	id := made(t, path)
	there, s := open(t, path), open(t, path)
	clock := time.Now()
	s.now = func() time.Time { return clock }
	refused := func(what, says string) {
		t.Helper()
		err := s.Write(t.Context(), beat(t, id, "kvm-02", storagebeat.WriterAgent, 1, 1))
		if !errors.Is(err, storagebeat.ErrSlotTaken) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "kvm-01") {
			t.Fatalf("%s: %v", what, err)
		}
	}
	write(t, there, beat(t, id, "kvm-01", storagebeat.WriterAgent, 1, 1))
	refused("first look", "stood still")
	for seq := uint64(2); seq < 5; seq++ {
		clock = clock.Add(2 * takeAfter)
		write(t, there, beat(t, id, "kvm-01", storagebeat.WriterAgent, 1, seq))
		refused("it moves", "writes there")
	}
	clock = clock.Add(takeAfter - time.Second)
	refused("it stands still, not for long enough", "so far 59s")
	write(t, there, beat(t, id, "kvm-01", storagebeat.WriterHelper, 0, 1))
	refused("its helper moves", "writes there")
	clock = clock.Add(takeAfter)
	write(t, s, beat(t, id, "kvm-02", storagebeat.WriterAgent, 1, 2))
	if got := slotsOf(t, open(t, path)); len(got) != 1 || got["kvm-02.agent"] != [2]uint64{1, 2} {
		t.Fatalf("after it stood still: %v", got)
	}
	// The one that was taken for gone comes back: it does not write over the new one.
	if err := there.Write(t.Context(), beat(t, id, "kvm-01", storagebeat.WriterAgent, 1, 5)); !errors.Is(err, storagebeat.ErrSlotTaken) {
		t.Fatalf("the old holder: %v", err)
	}
	write(t, there, beat(t, id, "kvm-01", storagebeat.WriterAgent, 2, 6))
	if got := slotsOf(t, s); got["kvm-01.agent"] != [2]uint64{2, 6} || got["kvm-02.agent"] != [2]uint64{1, 2} {
		t.Fatal(got)
	}
}

func TestSlotBeyondTheStore(t *testing.T) {
	path := newDevice(t, testSize)
	id := made(t, path)
	s := open(t, path)
	err := s.Write(t.Context(), beat(t, id, "kvm-65", storagebeat.WriterAgent, DefaultSlots+1, 1))
	if !errors.Is(err, storagebeat.ErrNoSlot) || !strings.Contains(err.Error(), "--slots") {
		t.Fatal(err)
	}
	write(t, s, beat(t, id, "kvm-64", storagebeat.WriterAgent, DefaultSlots, 1))
}

// TestTwoSlotsOfOneHost: a device that was put back from a copy shows a host twice.
// Until its agent has tidied up, nobody can say which of the two is meant (P5).
func TestTwoSlotsOfOneHost(t *testing.T) {
	path := newDevice(t, testSize)
	id := made(t, path)
	s := open(t, path)
	write(t, s, beat(t, id, "kvm-01", storagebeat.WriterAgent, 1, 1))
	write(t, s, beat(t, id, "kvm-02", storagebeat.WriterAgent, 2, 1))
	put(t, path, s.head.at(7, storagebeat.WriterAgent), beat(t, id, "kvm-01", storagebeat.WriterAgent, 7, 9).Data)
	reader := open(t, path)
	if got := slotsOf(t, reader); len(got) != 1 || got["kvm-02.agent"] != [2]uint64{2, 1} {
		t.Fatalf("with two: %v", got)
	}
	if err := open(t, path).Write(t.Context(), beat(t, id, "kvm-01", storagebeat.WriterHelper, 0, 1)); err == nil {
		t.Error("a helper chose one")
	}
	write(t, open(t, path), beat(t, id, "kvm-01", storagebeat.WriterAgent, 7, 10))
	if got := slotsOf(t, open(t, path)); len(got) != 2 || got["kvm-01.agent"] != [2]uint64{7, 10} {
		t.Fatalf("tidied: %v", got)
	}
}

// TestNamelessRecord: damage that names nobody is shown, for it may be anybody's.
func TestNamelessRecord(t *testing.T) {
	path := newDevice(t, testSize)
	id := made(t, path)
	s := open(t, path)
	write(t, s, beat(t, id, "kvm-01", storagebeat.WriterAgent, 1, 1))
	put(t, path, s.head.at(4, storagebeat.WriterAgent), []byte("rubbish"))
	c, err := s.ReadAll(t.Context())
	if err != nil || len(c.Beats) != 2 || c.Beats[1].Host != "" || c.Beats[1].Err == nil || c.Beats[1].Slot != 4 {
		t.Fatalf("%+v, %v", c, err)
	}
}

func TestDeviceFaults(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, path string, h header)
		want  error
		says  string
	}{
		{"P5: vanished", func(t *testing.T, path string, _ header) { remove(t, path) }, os.ErrNotExist, "open store"},
		{"P5: another device of the same cluster at the path", func(t *testing.T, path string, _ header) {
			next := newDevice(t, testSize)
			made(t, next)
			rename(t, next, path)
		}, nil, ""},
		{"P5: a blank device at the path", func(t *testing.T, path string, _ header) { rename(t, newDevice(t, testSize), path) }, storagebeat.ErrNoIdentity, "zeros"},
		{"the header is damaged", func(t *testing.T, path string, _ header) { put(t, path, 100, []byte("x")) }, storagebeat.ErrForeign, "damaged"},
		{"a file system was made on it", func(t *testing.T, path string, _ header) { put(t, path, 0, []byte("XFSB")) }, storagebeat.ErrForeign, "begins with"},
		{"it shrank", func(t *testing.T, path string, _ header) {
			if err := os.Truncate(path, 1<<20); err != nil {
				t.Fatal(err)
			}
		}, storagebeat.ErrForeign, "needs"},
		{"other sectors", func(t *testing.T, path string, h header) {
			h.logical = 4096
			p := make([]byte, headerSize)
			if err := h.put(p); err != nil {
				t.Fatal(err)
			}
			put(t, path, 0, p)
		}, storagebeat.ErrForeign, "sectors of 512 octets, the store was made with 4096"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := newDevice(t, testSize)
			id := made(t, path)
			s := open(t, path)
			write(t, s, beat(t, id, "kvm-01", storagebeat.WriterAgent, 1, 1))
			slotsOf(t, s)
			tc.spoil(t, path, s.head)
			err := s.Write(t.Context(), beat(t, id, "kvm-01", storagebeat.WriterAgent, 1, 2))
			if tc.want == nil && !errors.Is(err, storagebeat.ErrForeign) || tc.want != nil && (!errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("write: %v", err)
			}
			c, err := s.ReadAll(t.Context())
			if tc.want == nil && (err != nil || c.Identity == id || len(c.Beats) != 0) || tc.want != nil && (!errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("read: %+v, %v", c, err)
			}
		})
	}
}

func TestInitLooksFirst(t *testing.T) {
	seize := func(path string) storagebeat.InitOptions {
		return storagebeat.InitOptions{Cluster: "prod", Erase: storagebeat.EraseName(path, "prod")}
	}
	for _, tc := range []struct {
		name string
		at   int64
		data string
		says string
	}{
		{"ext4", 1080, "\x53\xef", "ext4"},
		{"LUKS", 0, "LUKS\xba\xbe", "LUKS"},
		{"LVM", 512, "LABELONE", "LVM"},
		{"GPT", 512, "EFI PART", "GPT"},
		{"MBR", 510, "\x55\xaa", "partition table"},
		{"XFS", 0, "XFSB", "XFS"},
		{"RAID", 4096, "\xfc\x4e\x2b\xa9", "RAID"},
		{"Btrfs", 0x10040, "_BHRfS_M", "Btrfs"},
		{"anything in the first MiB", 1<<20 - 1, "x", "octet 1048575"},
		{"anything in the slots", 1<<20 + 3, "x", "octet 1048579"},
		{"the last octet of the slots", slotsAt + DefaultSlots*8192 - 1, "x", "octet"},
		{"a copy of a partition table at the end", testSize - 512, "EFI PART", "last MiB"},
		{"a store with a damaged header", 0, "HAVENBLK", "damaged header"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := newDevice(t, testSize)
			put(t, path, tc.at, []byte(tc.data))
			for _, o := range []storagebeat.InitOptions{
				{Cluster: "prod"},
				{Cluster: "prod", Replace: "prod"},
				{Cluster: "prod", Replace: path},
				{Cluster: "prod", Erase: path},
				{Cluster: "prod", Erase: storagebeat.EraseName(path, "lab")},
				{Cluster: "lab", Erase: storagebeat.EraseName(path, "prod")},
			} {
				if id, err := open(t, path).Init(t.Context(), o); !errors.Is(err, storagebeat.ErrNotEmpty) || !strings.Contains(err.Error(), tc.says) {
					t.Fatalf("%+v: %v, %v", o, id, err)
				}
			}
			left := make([]byte, len(tc.data))
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			if _, err := f.ReadAt(left, tc.at); err != nil || string(left) != tc.data {
				t.Fatalf("refused, and yet it was spoilt: %q, %v", left, err)
			}
			if _, err := open(t, path).Init(t.Context(), seize(path)); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("data behind the store is nobody's business", func(t *testing.T) {
		path := newDevice(t, testSize)
		put(t, path, 4<<20, []byte("x"))
		made(t, path)
	})
	t.Run("another cluster's store is not foreign data", func(t *testing.T) {
		path := newDevice(t, testSize)
		if _, err := open(t, path).Init(t.Context(), storagebeat.InitOptions{Cluster: "lab"}); err != nil {
			t.Fatal(err)
		}
		if id, err := open(t, path).Init(t.Context(), seize(path)); !errors.Is(err, storagebeat.ErrNotEmpty) || id.Cluster != "lab" {
			t.Fatalf("%v, %v", id, err)
		}
	})
	t.Run("a larger store looks at what is new", func(t *testing.T) {
		path := newDevice(t, testSize)
		made(t, path)
		put(t, path, slotsAt+DefaultSlots*8192+5, []byte("x"))
		o := storagebeat.InitOptions{Cluster: "prod", Replace: "prod", Slots: 4 * DefaultSlots}
		if _, err := open(t, path).Init(t.Context(), o); !errors.Is(err, storagebeat.ErrNotEmpty) {
			t.Fatal(err)
		}
		o.Erase = storagebeat.EraseName(path, "prod")
		if _, err := open(t, path).Init(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("too small", func(t *testing.T) {
		path := newDevice(t, slotsAt+DefaultSlots*8192-1)
		if _, err := open(t, path).Init(t.Context(), storagebeat.InitOptions{Cluster: "prod"}); err == nil || !strings.Contains(err.Error(), "too small") {
			t.Fatal(err)
		}
		if _, err := open(t, path).Init(t.Context(), storagebeat.InitOptions{Cluster: "prod", Slots: DefaultSlots - 1}); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("too many slots", func(t *testing.T) {
		if _, err := open(t, newDevice(t, 64<<20)).Init(t.Context(), storagebeat.InitOptions{Cluster: "prod", Slots: MaxSlots + 1}); err == nil {
			t.Fatal("made")
		}
	})
	t.Run("a regular file", func(t *testing.T) {
		b, err := Type().Open(storagebeat.OpenOptions{Path: newDevice(t, testSize)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Init(t.Context(), storagebeat.InitOptions{Cluster: "prod"}); err == nil || !strings.Contains(err.Error(), "not a block device") {
			t.Fatal(err)
		}
	})
}

// TestInitThatDies leaves no store, whatever was done by then.
func TestInitThatDies(t *testing.T) {
	path := newDevice(t, testSize)
	made(t, path)
	ctx := &diesAfter{Context: t.Context(), left: 2}
	if id, err := open(t, path).Init(ctx, storagebeat.InitOptions{Cluster: "prod", Replace: "prod"}); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, %v", id, err)
	}
	if c, err := open(t, path).ReadAll(t.Context()); !errors.Is(err, storagebeat.ErrNoIdentity) {
		t.Fatalf("%+v, %v", c, err)
	}
}

// diesAfter is a context that ends after it was asked a number of times.
type diesAfter struct {
	context.Context
	left int
}

func (d *diesAfter) Err() error {
	d.left--
	if d.left < 0 {
		return context.Canceled
	}
	return nil
}

func remove(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func rename(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func FuzzHeader(f *testing.F) {
	h := header{id: storagebeat.Identity{ID: storagebeat.StoreID{1}, Cluster: "prod"}, slots: 64, block: 4096, logical: 512}
	p := make([]byte, headerSize)
	if err := h.put(p); err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.Clone(p))
	f.Add(make([]byte, headerSize))
	h.slots, h.behind = 1000, true
	if err := h.put(p); err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) != headerSize {
			return
		}
		h, err := parse(p)
		if err != nil {
			if !errors.Is(err, storagebeat.ErrForeign) && !errors.Is(err, storagebeat.ErrNoIdentity) {
				t.Fatal(err)
			}
			return
		}
		again := make([]byte, headerSize)
		if err := h.put(again); err != nil || string(again) != string(p) {
			t.Fatalf("%+v: %v", h, err)
		}
	})
}

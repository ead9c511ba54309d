package storagebeat

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	haven "github.com/haven-ha/haven"
)

var update = flag.Bool("update", false, "rewrite golden files")

func testStore(n byte) StoreID { return StoreID{0: n, 15: 0xee} }

func fullBeat() Beat {
	return Beat{
		Store: testStore(7), Host: "kvm-01", Writer: WriterAgent,
		Boot: "11111111-2222-4333-8444-555555555555", State: "state-1", Incarnation: 3, Sequence: 99,
		Interval: time.Second, Term: haven.Term{Generation: 2, Term: 17}, Master: "kvm-02",
		KnowsLedger: true, Isolated: true, Left: haven.LeaveShutdown, Watchdog: 10 * time.Second,
		VMs:      []haven.VMID{"00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"},
		Complete: true,
	}
}

func mustEncode(t testing.TB, b Beat) []byte {
	t.Helper()
	r, err := Encode(b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// resum makes the checksum right again after a record was changed on purpose.
func resum(r []byte) []byte {
	binary.LittleEndian.PutUint32(r[offSum:], checksum(r))
	return r
}

func TestRecordLayout(t *testing.T) {
	if RecordSize != 4096 || MaxVMs != 231 {
		t.Fatalf("record of %d octets with room for %d VMs: a change needs a new version", RecordSize, MaxVMs)
	}
	for name, ends := range map[string][2]int{
		"numbers end before names": {offNumbers + 6*8, offNames},
		"names end before VMs":     {offNames + 4*nameSize, offVMs},
		"VMs end at the tail":      {offVMs + 16*MaxVMs, offTail},
		"sequence ends the record": {offSequence + 8, RecordSize},
		"store ends at numbers":    {offStore + 16, offNumbers},
	} {
		if ends[0] > ends[1] {
			t.Errorf("%s: %d > %d", name, ends[0], ends[1])
		}
	}
}

// TestGoldenRecord holds the format still: hosts of two releases read each other.
func TestGoldenRecord(t *testing.T) {
	path := filepath.Join("testdata", "record-v1.hex")
	got := mustEncode(t, fullBeat())
	if *update {
		if err := os.WriteFile(path, []byte(hex.Dump(got)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if hex.Dump(got) != string(want) {
		t.Fatal("the record differs from the golden file: the format changed")
	}
	back, err := Decode(got)
	if err != nil || !reflect.DeepEqual(back, fullBeat()) {
		t.Fatalf("decoded %+v, %v", back, err)
	}
}

func TestEncodeVMList(t *testing.T) {
	id := func(n int) haven.VMID { return haven.VMID(fmt.Sprintf("00000000-0000-4000-8000-%012x", n)) }
	ids := func(n int) (l []haven.VMID) {
		for i := n; i > 0; i-- {
			l = append(l, id(i))
		}
		return l
	}
	for _, tc := range []struct {
		name     string
		vms      []haven.VMID
		said     bool // the writer says that the list is complete
		count    int
		complete bool
	}{
		{"none", nil, true, 0, true},
		{"as many as fit", ids(MaxVMs), true, MaxVMs, true},
		{"P5: one too many is incomplete", ids(MaxVMs + 1), true, MaxVMs, false},
		{"P5: the VM manager did not answer", ids(2), false, 2, false},
		{"P5: an id that is no UUID", []haven.VMID{id(1), "web"}, true, 1, false},
		{"a double counts once", []haven.VMID{id(1), id(1)}, true, 1, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := fullBeat()
			b.VMs, b.Complete = tc.vms, tc.said
			got, err := Decode(mustEncode(t, b))
			if err != nil {
				t.Fatal(err)
			}
			if len(got.VMs) != tc.count || got.Complete != tc.complete {
				t.Fatalf("%d VMs, complete %v", len(got.VMs), got.Complete)
			}
			for i := 1; i < len(got.VMs); i++ {
				if got.VMs[i-1] >= got.VMs[i] {
					t.Fatalf("not sorted: %s before %s", got.VMs[i-1], got.VMs[i])
				}
			}
		})
	}
}

func TestEncodeRefusesFaultsOfTheCaller(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  func(*Beat)
	}{
		{"no host", func(b *Beat) { b.Host = "" }},
		{"a host that is no name", func(b *Beat) { b.Host = "../etc" }},
		{"no writer", func(b *Beat) { b.Writer = 0 }},
		{"a boot id that is too long", func(b *Beat) { b.Boot = haven.BootID(strings.Repeat("x", nameSize)) }},
		{"an unknown leave reason", func(b *Beat) { b.Left = "bored" }},
		{"a negative interval", func(b *Beat) { b.Interval = -1 }},
		{"a negative watchdog", func(b *Beat) { b.Watchdog = -1 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := fullBeat()
			tc.set(&b)
			if _, err := Encode(b); err == nil {
				t.Fatal("accepted")
			}
		})
	}
}

func TestDecodeRefusals(t *testing.T) {
	older, newer := fullBeat(), fullBeat()
	newer.Sequence++
	newer.VMs = nil
	change := func(f func(r []byte)) []byte {
		r := mustEncode(t, fullBeat())
		f(r)
		return r
	}
	for _, tc := range []struct {
		name string
		r    []byte
		want error
	}{
		{"empty", nil, ErrTorn},
		{"short", make([]byte, 512), ErrTorn},
		{"never written", make([]byte, RecordSize), ErrBlank},
		{"something else", bytes.Repeat([]byte("x"), RecordSize), ErrForeign},
		{"torn after one sector", append(bytes.Clone(mustEncode(t, newer)[:512]), mustEncode(t, older)[512:]...), ErrTorn},
		{"a half that was never written", append(bytes.Clone(mustEncode(t, newer)[:2048]), make([]byte, 2048)...), ErrTorn},
		{"two sequences under one checksum", resum(change(func(r []byte) { r[offSequence]++ })), ErrTorn},
		{"next version", resum(change(func(r []byte) { r[offVersion]++ })), ErrVersion},
		{"unknown flag", resum(change(func(r []byte) { r[offFlags+3] = 0x80 })), ErrForeign},
		{"unknown leave reason", resum(change(func(r []byte) { r[offLeave] = 9 })), ErrForeign},
		{"unknown writer", resum(change(func(r []byte) { r[offWriter] = 9 })), ErrForeign},
		{"too many VMs", resum(change(func(r []byte) { binary.LittleEndian.PutUint32(r[offCount:], MaxVMs+1) })), ErrForeign},
		{"name longer than its field", resum(change(func(r []byte) { r[offNames] = nameSize })), ErrForeign},
		{"reserved octet set", resum(change(func(r []byte) { r[352] = 1 })), ErrForeign},
		{"interval beyond all bounds", resum(change(func(r []byte) { r[offNumbers+23] = 0xff })), ErrForeign},
		{"VMs out of order", resum(change(func(r []byte) { r[offVMs] = 0xff })), ErrForeign},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if b, err := Decode(tc.r); !errors.Is(err, tc.want) {
				t.Fatalf("got %+v, %v; want %v", b, err, tc.want)
			}
		})
	}
}

func TestDecodeAtWantsItsPlace(t *testing.T) {
	data := mustEncode(t, fullBeat())
	for _, tc := range []struct {
		name  string
		store StoreID
		raw   RawBeat
		want  error
	}{
		{"its place", testStore(7), RawBeat{Host: "kvm-01", Writer: WriterAgent, Data: data}, nil},
		{"another store", testStore(8), RawBeat{Host: "kvm-01", Writer: WriterAgent, Data: data}, ErrForeign},
		{"another host's file", testStore(7), RawBeat{Host: "kvm-02", Writer: WriterAgent, Data: data}, ErrForeign},
		{"another writer's file", testStore(7), RawBeat{Host: "kvm-01", Writer: WriterHelper, Data: data}, ErrForeign},
		{"not read", testStore(7), RawBeat{Host: "kvm-01", Writer: WriterAgent, Err: os.ErrPermission}, os.ErrPermission},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := DecodeAt(tc.store, tc.raw); !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func drawBeat(t *rapid.T) Beat {
	uuid := func(s string) [16]byte { return [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, s)) }
	b := Beat{
		Store:       uuid("store"),
		Host:        haven.HostID(rapid.StringMatching(`[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?`).Draw(t, "host")),
		Writer:      rapid.SampledFrom([]Writer{WriterAgent, WriterHelper}).Draw(t, "writer"),
		Boot:        haven.BootID(rapid.StringN(0, 15, 63).Draw(t, "boot")),
		State:       haven.StateID(rapid.StringN(0, 15, 63).Draw(t, "state")),
		Master:      haven.HostID(rapid.StringN(0, 15, 63).Draw(t, "master")),
		Incarnation: haven.Incarnation(rapid.Uint64().Draw(t, "incarnation")),
		Sequence:    rapid.Uint64().Draw(t, "sequence"),
		Interval:    time.Duration(rapid.Int64Min(0).Draw(t, "interval")),
		Watchdog:    time.Duration(rapid.Int64Min(0).Draw(t, "watchdog")),
		Term:        haven.Term{Generation: rapid.Uint64().Draw(t, "generation"), Term: rapid.Uint64().Draw(t, "term")},
		Left:        rapid.SampledFrom(leaveReasons()).Draw(t, "left"),
		Isolated:    rapid.Bool().Draw(t, "isolated"),
		KnowsLedger: rapid.Bool().Draw(t, "ledger"),
		Complete:    rapid.Bool().Draw(t, "complete"),
		Releasing:   rapid.Bool().Draw(t, "releasing"),
		Resetting:   rapid.Bool().Draw(t, "resetting"),
	}
	for range rapid.IntRange(0, 5).Draw(t, "vms") {
		b.VMs = append(b.VMs, haven.VMID(formatUUID(uuid("vm"))))
	}
	return b
}

func TestRecordKeepsEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawBeat(t)
		r, err := Encode(b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(r)
		if err != nil {
			t.Fatal(err)
		}
		// The list comes back sorted and without doubles.
		ids, _ := packVMs(b.VMs)
		b.VMs = nil
		for _, id := range ids {
			b.VMs = append(b.VMs, haven.VMID(formatUUID(id)))
		}
		if !reflect.DeepEqual(got, b) {
			t.Fatalf("got  %+v\nwant %+v", got, b)
		}
	})
}

// TestDamageIsSeen: no damaged record is ever taken for a beat (P5).
func TestDamageIsSeen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := drawBeat(t)
		ra, err := Encode(a)
		if err != nil {
			t.Fatal(err)
		}
		if rapid.Bool().Draw(t, "flip") {
			i := rapid.IntRange(0, RecordSize-1).Draw(t, "octet")
			ra[i] ^= byte(1 << rapid.IntRange(0, 7).Draw(t, "bit"))
		} else {
			b := drawBeat(t)
			rb, err := Encode(b)
			if err != nil {
				t.Fatal(err)
			}
			cut := rapid.IntRange(0, RecordSize).Draw(t, "cut")
			mixed := append(bytes.Clone(ra[:cut]), rb[cut:]...)
			if bytes.Equal(mixed, ra) || bytes.Equal(mixed, rb) {
				return
			}
			ra = mixed
		}
		if got, err := Decode(ra); err == nil {
			t.Fatalf("damaged record taken for %+v", got)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add(mustEncode(f, fullBeat()))
	f.Add(mustEncode(f, Beat{Host: "a", Writer: WriterHelper}))
	f.Add(make([]byte, RecordSize))
	f.Add([]byte("HAVENBT\n"))
	f.Fuzz(func(t *testing.T, r []byte) {
		// The fuzzer cannot find a checksum: it may have the right one.
		for _, r := range [][]byte{r, withSum(r)} {
			b, err := Decode(r)
			if err != nil {
				continue
			}
			if again := mustEncode(t, b); !bytes.Equal(again, r) {
				t.Fatal("a decoded record does not encode to itself")
			}
		}
	})
}

func withSum(r []byte) []byte {
	full := make([]byte, RecordSize)
	copy(full, r)
	copy(full, recordMagic[:])
	copy(full[offSequence:], full[offNumbers+8:offNumbers+16])
	return resum(full)
}

func TestWriterAndStoreIDText(t *testing.T) {
	for _, w := range []Writer{WriterAgent, WriterHelper} {
		if got, err := ParseWriter(w.String()); got != w || err != nil {
			t.Errorf("%s: %v, %v", w, got, err)
		}
	}
	if _, err := ParseWriter("writer-3"); err == nil {
		t.Error("an unknown writer was parsed")
	}
	var id StoreID
	text, _ := testStore(9).MarshalText()
	if err := id.UnmarshalText(text); err != nil || id != testStore(9) {
		t.Errorf("%s: %v, %v", text, id, err)
	}
	for _, bad := range []string{"", "x", strings.ToUpper(testStore(9).String()), testStore(9).String() + "0"} {
		if err := id.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was parsed", bad)
		}
	}
}

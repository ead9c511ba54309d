package guestos

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// TestBinariesMatchSource guards the committed boot sectors: what the lab boots
// is what guest.S says.
func TestBinariesMatchSource(t *testing.T) {
	for _, tc := range []struct {
		name   string
		period string
		want   []byte
	}{
		{"fast", "2", Fast},
		{"slow", "18", Slow},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if len(tc.want) != SectorSize || !bytes.HasSuffix(tc.want, []byte{0x55, 0xaa}) {
				t.Fatalf("not a boot sector: %d bytes", len(tc.want))
			}
			if _, err := exec.LookPath("as"); err != nil {
				t.Skip("no assembler on this machine")
			}
			dir := t.TempDir()
			object, image := filepath.Join(dir, "guest.o"), filepath.Join(dir, "guest.bin")
			run(t, "as", "--32", "--defsym", "PERIOD="+tc.period, "guest.S", "-o", object)
			run(t, "ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", image, object)
			got, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, tc.want) {
				t.Errorf("%s.bin is not what guest.S assembles to", tc.name)
			}
		})
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// disk writes as the guest does, so that the reader is checked against a second
// idea of the layout.
type disk []byte

func (d disk) put(sector int, magic string, words ...uint32) {
	at := sector * SectorSize
	copy(d[at:], magic)
	for i, w := range words {
		binary.LittleEndian.PutUint32(d[at+4+4*i:], w)
	}
}

func (d disk) write(nonce, seq, conflicts uint32, boots ...uint32) {
	d.put(2+int(seq%RingSize), "VMHJ", nonce, seq, 7)
	d.put(1, "VMHB", nonce, seq, conflicts, uint32(len(boots)))
	for i, b := range boots {
		binary.LittleEndian.PutUint32(d[SectorSize+64+4*(i%WriterSize):], b)
	}
}

func TestJournal(t *testing.T) {
	type write struct {
		nonce, seq, conflicts uint32
		boots                 []uint32
	}
	one, two := []uint32{1}, []uint32{1, 2}
	for _, tc := range []struct {
		name   string
		writes []write
		runs   []Run
		second int
	}{
		{"one boot", []write{{1, 1, 0, one}, {1, 2, 0, one}}, []Run{{1, 1, 2}}, 0},
		{"failover", []write{{1, 1, 0, one}, {1, 2, 0, one}, {2, 3, 0, two}, {2, 4, 0, two}}, []Run{{1, 1, 2}, {2, 3, 4}}, 0},
		{"late write of the dead", []write{{1, 1, 0, one}, {2, 2, 0, two}, {1, 3, 0, two}}, []Run{{1, 1, 1}, {2, 2, 2}, {1, 3, 3}}, 1},
		{"conflict seen by the guest", []write{{1, 1, 0, one}, {2, 2, 1, two}}, []Run{{1, 1, 1}, {2, 2, 2}}, 1},
		{"ring wraps", []write{{1, RingSize - 1, 0, one}, {1, RingSize, 0, one}, {1, RingSize + 1, 0, one}}, []Run{{1, RingSize - 1, RingSize + 1}}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := make(disk, DiskSize)
			if _, err := ReadJournal(bytes.NewReader(d)); !errors.Is(err, ErrNeverWrote) {
				t.Fatalf("fresh disk: %v", err)
			}
			for _, w := range tc.writes {
				d.write(w.nonce, w.seq, w.conflicts, w.boots...)
			}
			j, err := ReadJournal(bytes.NewReader(d))
			if err != nil {
				t.Fatal(err)
			}
			if got := j.Runs(); !slices.Equal(got, tc.runs) {
				t.Errorf("runs %v, want %v", got, tc.runs)
			}
			if got := j.SecondWriters(); got != tc.second {
				t.Errorf("second writers %d, want %d", got, tc.second)
			}
			last := tc.writes[len(tc.writes)-1]
			if j.Seq != last.seq || j.Nonce != last.nonce || !slices.Equal(j.Writers, last.boots) {
				t.Errorf("header %+v, want %+v", j.Header, last)
			}
		})
	}
}

func TestHeaderKeepsLastWriters(t *testing.T) {
	d := make(disk, DiskSize)
	boots := make([]uint32, WriterSize+5)
	for i := range boots {
		boots[i] = uint32(i + 100)
	}
	d.write(boots[len(boots)-1], 9, 0, boots...)
	h, err := ReadHeader(bytes.NewReader(d))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(h.Writers, boots[5:]) {
		t.Errorf("writers %v", h.Writers)
	}
}

func TestHeaderRefusesForeignDisk(t *testing.T) {
	d := make(disk, DiskSize)
	copy(d[SectorSize:], "NTFS")
	if _, err := ReadHeader(bytes.NewReader(d)); err == nil || errors.Is(err, ErrNeverWrote) {
		t.Errorf("foreign disk: %v", err)
	}
}

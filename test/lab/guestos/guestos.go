// Package guestos is the operating system of the lab's VMs: a boot sector that
// keeps a journal on its own disk and notices a second copy of itself, and the
// reader of that journal.
package guestos

import (
	"bytes"
	_ "embed" // the two boot sectors
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Layout of a guest's disk, see guest.S.
const (
	SectorSize = 512
	RingSize   = 8192                            // journal entries kept
	DiskSize   = (2 + RingSize + 6) * SectorSize // bytes; QEMU wants whole blocks of 4096
	WriterSize = 64                              // boots remembered in the header
)

// Fast is the boot sector that writes about nine times a second: ten per cent of
// a core under emulation.
//
//go:embed fast.bin
var Fast []byte

// Slow is the boot sector that writes once a second, for labs with many VMs.
//
//go:embed slow.bin
var Slow []byte

// ErrNeverWrote is returned when no guest has written to the disk yet.
var ErrNeverWrote = errors.New("no guest has written to this disk")

// Header is what the last write left in the disk's second sector.
type Header struct {
	Nonce     uint32 // of the last writer; drawn at each boot
	Seq       uint32 // of the last write; continues over boots
	Conflicts uint32 // how often a guest found a header that another one had written
	Boots     uint32 // boots that wrote at least once
	// Writers holds the nonces of the boots that wrote, oldest first, at most
	// the last [WriterSize] of them.
	Writers []uint32
}

// Entry is one write in the journal.
type Entry struct {
	Nonce uint32
	Seq   uint32
	Ticks uint32 // the guest's BIOS clock, 18.2 Hz
}

// Run is an unbroken row of writes by one boot.
type Run struct {
	Nonce       uint32
	First, Last uint32 // sequence numbers, inclusive
}

// Journal is all that a disk tells about its writers.
type Journal struct {
	Header
	Entries []Entry // by sequence, oldest first, at most [RingSize]
}

// ReadHeader reads the header from a guest's disk. It returns [ErrNeverWrote]
// for a fresh disk.
func ReadHeader(disk io.ReaderAt) (Header, error) {
	var sector [SectorSize]byte
	if _, err := disk.ReadAt(sector[:], SectorSize); err != nil {
		return Header{}, fmt.Errorf("read guest header: %w", err)
	}
	if sector == [SectorSize]byte{} {
		return Header{}, ErrNeverWrote
	}
	if !bytes.HasPrefix(sector[:], []byte("VMHB")) {
		return Header{}, fmt.Errorf("read guest header: bad magic %q", sector[:4])
	}
	word := func(at int) uint32 { return binary.LittleEndian.Uint32(sector[at:]) }
	h := Header{Nonce: word(4), Seq: word(8), Conflicts: word(12), Boots: word(16)}
	first := uint32(0)
	if h.Boots > WriterSize {
		first = h.Boots - WriterSize
	}
	for i := first; i < h.Boots; i++ {
		h.Writers = append(h.Writers, word(64+4*int(i%WriterSize)))
	}
	return h, nil
}

// ReadJournal reads the header and all journal entries from a guest's disk.
func ReadJournal(disk io.ReaderAt) (Journal, error) {
	h, err := ReadHeader(disk)
	if err != nil {
		return Journal{}, err
	}
	ring := make([]byte, RingSize*SectorSize)
	if _, err := disk.ReadAt(ring, 2*SectorSize); err != nil {
		return Journal{}, fmt.Errorf("read guest journal: %w", err)
	}
	j := Journal{Header: h}
	for ; len(ring) > 0; ring = ring[SectorSize:] {
		if !bytes.HasPrefix(ring, []byte("VMHJ")) {
			continue
		}
		j.Entries = append(j.Entries, Entry{
			Nonce: binary.LittleEndian.Uint32(ring[4:]),
			Seq:   binary.LittleEndian.Uint32(ring[8:]),
			Ticks: binary.LittleEndian.Uint32(ring[12:]),
		})
	}
	slices.SortFunc(j.Entries, func(a, b Entry) int { return int(int64(a.Seq) - int64(b.Seq)) })
	return j, nil
}

// Runs groups the entries by writer, in the order of their sequence.
func (j Journal) Runs() []Run {
	var runs []Run
	for _, e := range j.Entries {
		if n := len(runs); n > 0 && runs[n-1].Nonce == e.Nonce {
			runs[n-1].Last = e.Seq
			continue
		}
		runs = append(runs, Run{Nonce: e.Nonce, First: e.Seq, Last: e.Seq})
	}
	return runs
}

// SecondWriters counts the signs that two guests wrote to the disk at once: the
// conflicts that the guests saw themselves, and each return of a writer after
// another one had taken over. Zero means that every boot wrote alone.
func (j Journal) SecondWriters() int {
	count := int(j.Conflicts)
	seen := map[uint32]bool{}
	for _, r := range j.Runs() {
		if seen[r.Nonce] {
			count++
		}
		seen[r.Nonce] = true
	}
	return count
}

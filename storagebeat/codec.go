package storagebeat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	haven "github.com/haven-ha/haven"
)

// RecordSize is the size of a record in octets: one page, and a multiple of
// every sector size in use, so that most storage writes it whole or not at all.
const RecordSize = 4096

// MaxVMs is how many VM ids fit into a record. With more, the list is cut and
// marked incomplete.
const MaxVMs = (offTail - offVMs) / 16

// The layout of a record; numbers are little-endian. What is not used is zero.
//
//	   0  magic             8 octets
//	   8  version           u16
//	  10  writer, leave     u8, u8
//	  12  checksum          u32, CRC-32C of the record with this field zero
//	  16  flags             u32
//	  20  number of VM ids  u32
//	  24  store id          16 octets
//	  40  incarnation, sequence, interval (ns), generation, term, watchdog (ns)   u64 each
//	  96  host, boot, state, master   64 octets each: length u8, then text
//	 352  reserved
//	 384  VM ids            16 octets each
//	4080  reserved
//	4088  sequence again: a record of two halves does not depend on the checksum alone
const (
	offVersion  = 8
	offWriter   = 10
	offLeave    = 11
	offSum      = 12
	offFlags    = 16
	offCount    = 20
	offStore    = 24
	offNumbers  = 40
	offNames    = 96
	offVMs      = 384
	offTail     = 4080
	offSequence = 4088

	nameSize      = 64
	recordVersion = 1
)

const (
	flagIsolated uint32 = 1 << iota
	flagKnowsLedger
	flagComplete
	flagReleasing
	flagResetting
)

var recordMagic = [8]byte{'H', 'A', 'V', 'E', 'N', 'B', 'T', '\n'}

// Reasons why a record is no beat. None of them says anything about its host.
var (
	// ErrBlank is returned when nothing was written yet.
	ErrBlank = errors.New("nothing was written here yet")
	// ErrTorn is returned when the checksum does not fit: the record is damaged,
	// or was read in the middle of a write.
	ErrTorn = errors.New("torn or damaged record")
	// ErrForeign is returned when a record, or an identity, is not of this
	// store, this cluster, this place or this format.
	ErrForeign = errors.New("foreign data")
	// ErrVersion is returned when a record is of another format version.
	ErrVersion = errors.New("unknown record version")
)

// The places of leave reasons are their numbers in the record.
func leaveReasons() []haven.LeaveReason {
	return []haven.LeaveReason{haven.LeaveNone, haven.LeaveStopped, haven.LeaveShutdown, haven.LeaveUninstall}
}

// Encode writes a beat into a record of RecordSize octets. VM ids are sorted;
// those that do not fit, or are no UUID, are left out and the record says that
// it is not complete. It fails for names that are too long and values that
// cannot be, which are faults of the caller.
func Encode(b Beat) ([]byte, error) {
	if _, err := haven.ParseHostID(string(b.Host)); err != nil {
		return nil, fmt.Errorf("encode beat: %w", err)
	}
	if b.Writer != WriterAgent && b.Writer != WriterHelper {
		return nil, fmt.Errorf("encode beat: unknown %s", b.Writer)
	}
	leave := slices.Index(leaveReasons(), b.Left)
	if leave < 0 {
		return nil, fmt.Errorf("encode beat: unknown leave reason %q", b.Left)
	}
	if b.Interval < 0 || b.Watchdog < 0 {
		return nil, fmt.Errorf("encode beat: interval %s and watchdog %s must not be negative", b.Interval, b.Watchdog)
	}
	r := make([]byte, RecordSize)
	copy(r, recordMagic[:])
	binary.LittleEndian.PutUint16(r[offVersion:], recordVersion)
	r[offWriter], r[offLeave] = byte(b.Writer), byte(leave)
	copy(r[offStore:], b.Store[:])
	for i, n := range []uint64{
		uint64(b.Incarnation), b.Sequence, uint64(b.Interval), b.Term.Generation, b.Term.Term, uint64(b.Watchdog),
	} {
		binary.LittleEndian.PutUint64(r[offNumbers+8*i:], n)
	}
	for i, s := range []string{string(b.Host), string(b.Boot), string(b.State), string(b.Master)} {
		if len(s) >= nameSize {
			return nil, fmt.Errorf("encode beat: name %q is longer than %d octets", s, nameSize-1)
		}
		at := offNames + nameSize*i
		r[at] = byte(len(s))
		copy(r[at+1:], s)
	}
	ids, all := packVMs(b.VMs)
	for i, id := range ids {
		copy(r[offVMs+16*i:], id[:])
	}
	binary.LittleEndian.PutUint32(r[offCount:], uint32(len(ids)))
	binary.LittleEndian.PutUint32(r[offFlags:], flagsOf(b, all))
	binary.LittleEndian.PutUint64(r[offSequence:], b.Sequence)
	binary.LittleEndian.PutUint32(r[offSum:], checksum(r))
	return r, nil
}

func flagsOf(b Beat, all bool) uint32 {
	var f uint32
	if b.Isolated {
		f |= flagIsolated
	}
	if b.KnowsLedger {
		f |= flagKnowsLedger
	}
	if b.Releasing {
		f |= flagReleasing
	}
	if b.Resetting {
		f |= flagResetting
	}
	if b.Complete && all {
		f |= flagComplete
	}
	return f
}

// packVMs sorts the ids, drops doubles, and says whether it kept all others.
func packVMs(vms []haven.VMID) (ids [][16]byte, all bool) {
	all = true
	for _, vm := range vms {
		id, ok := parseUUID(string(vm))
		if !ok {
			all = false
			continue
		}
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) })
	ids = slices.Compact(ids)
	if len(ids) > MaxVMs {
		return ids[:MaxVMs], false
	}
	return ids, all
}

// Decode reads a record. It accepts exactly what Encode makes: its errors are
// ErrBlank, ErrTorn, ErrForeign and ErrVersion, wrapped with what was found.
func Decode(r []byte) (Beat, error) {
	if len(r) != RecordSize {
		return Beat{}, fmt.Errorf("%d octets instead of %d: %w", len(r), RecordSize, ErrTorn)
	}
	if blank(r) {
		return Beat{}, ErrBlank
	}
	if [8]byte(r) != recordMagic {
		return Beat{}, fmt.Errorf("starts with % x: %w", r[:8], ErrForeign)
	}
	if !whole(r) {
		return Beat{}, ErrTorn
	}
	if v := binary.LittleEndian.Uint16(r[offVersion:]); v != recordVersion {
		return Beat{}, fmt.Errorf("version %d, this program knows %d: %w", v, recordVersion, ErrVersion)
	}
	b, err := unpack(r)
	if err != nil {
		return Beat{}, err
	}
	// A record with a right checksum that Encode would not write so was written
	// by something else, and what it means is a guess.
	if again, err := Encode(b); err != nil || !bytes.Equal(again, r) {
		return Beat{}, fmt.Errorf("not in canonical form: %w", ErrForeign)
	}
	return b, nil
}

func unpack(r []byte) (Beat, error) {
	var numbers [6]uint64
	for i := range numbers {
		numbers[i] = binary.LittleEndian.Uint64(r[offNumbers+8*i:])
	}
	var names [4]string
	for i := range names {
		at := offNames + nameSize*i
		n := int(r[at])
		if n >= nameSize {
			return Beat{}, fmt.Errorf("name of %d octets: %w", n, ErrForeign)
		}
		names[i] = string(r[at+1 : at+1+n])
	}
	leaves := leaveReasons()
	leave, count := int(r[offLeave]), binary.LittleEndian.Uint32(r[offCount:])
	if leave >= len(leaves) || count > MaxVMs {
		return Beat{}, fmt.Errorf("leave reason %d, %d VMs: %w", leave, count, ErrForeign)
	}
	flags := binary.LittleEndian.Uint32(r[offFlags:])
	b := Beat{
		Store:       StoreID(r[offStore : offStore+16]),
		Writer:      Writer(r[offWriter]),
		Host:        haven.HostID(names[0]),
		Boot:        haven.BootID(names[1]),
		State:       haven.StateID(names[2]),
		Master:      haven.HostID(names[3]),
		Incarnation: haven.Incarnation(numbers[0]),
		Sequence:    numbers[1],
		Interval:    time.Duration(numbers[2]),
		Term:        haven.Term{Generation: numbers[3], Term: numbers[4]},
		Watchdog:    time.Duration(numbers[5]),
		Left:        leaves[leave],
		Isolated:    flags&flagIsolated != 0,
		KnowsLedger: flags&flagKnowsLedger != 0,
		Complete:    flags&flagComplete != 0,
		Releasing:   flags&flagReleasing != 0,
		Resetting:   flags&flagResetting != 0,
	}
	for i := range int(count) {
		b.VMs = append(b.VMs, haven.VMID(formatUUID([16]byte(r[offVMs+16*i:]))))
	}
	return b, nil
}

// DecodeAt reads a record that must belong to a place on a store. Its errors are
// those of Decode; one that the record already has is returned as it is.
func DecodeAt(store StoreID, raw RawBeat) (Beat, error) {
	if raw.Err != nil {
		return Beat{}, raw.Err
	}
	b, err := Decode(raw.Data)
	if err != nil {
		return Beat{}, err
	}
	if b.Store != store {
		return Beat{}, fmt.Errorf("written for store %s: %w", b.Store, ErrForeign)
	}
	if b.Host != raw.Host || b.Writer != raw.Writer {
		return Beat{}, fmt.Errorf("written by %s of %s: %w", b.Writer, b.Host, ErrForeign)
	}
	return b, nil
}

// whole says whether the record, a beat or a pill, is what one single write left.
func whole(r []byte) bool {
	return binary.LittleEndian.Uint32(r[offSum:]) == checksum(r) &&
		([8]byte(r) == pillMagic || bytes.Equal(r[offSequence:offSequence+8], r[offNumbers+8:offNumbers+16]))
}

func checksum(r []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(0, table, r[:offSum])
	sum = crc32.Update(sum, table, make([]byte, 4))
	return crc32.Update(sum, table, r[offSum+4:RecordSize])
}

func blank(r []byte) bool { return !slices.ContainsFunc(r, func(c byte) bool { return c != 0 }) }

// Claims says whose record this seems to be, sound or not: it begins as a record of
// the store does and names a host. A write that was torn leaves as much, because
// all of that lies in one sector.
func Claims(store StoreID, r []byte) (haven.HostID, bool) {
	if len(r) != RecordSize || [8]byte(r) != recordMagic || StoreID(r[offStore:offStore+16]) != store {
		return "", false
	}
	n := int(r[offNames])
	if n >= nameSize {
		return "", false
	}
	host, err := haven.ParseHostID(string(r[offNames+1 : offNames+1+n]))
	return host, err == nil
}

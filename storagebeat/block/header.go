package block

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"regexp"

	"github.com/haven-ha/haven/internal/blockio"
	"github.com/haven-ha/haven/storagebeat"
)

const (
	// mailAt is where the mailboxes are when they have room there, checkAt where
	// checks write, and slotsAt where the slots begin.
	mailAt  = 64 << 10
	checkAt = 512 << 10
	slotsAt = 1 << 20
	// maxBlock is the largest physical sector that this format takes.
	maxBlock = 64 << 10
	// MaxSlots is how many hosts a store can have at most, as the ledger can.
	MaxSlots = 1024
	// DefaultSlots is how many a new store has unless something else is said. Every
	// host reads all slots in each interval: 512 KiB with this many.
	DefaultSlots = 64
)

// The layout of the header; numbers are little-endian. What is not used is zero.
//
//	 0  magic            8 octets
//	 8  version          u16
//	12  checksum         u32, CRC-32C of the header with this field zero
//	16  slots            u32
//	20  block            u32, octets from record to record
//	24  logical sector   u32
//	32  store id         16 octets
//	48  cluster          64 octets: length u8, then text
const (
	headerSize = blockio.Align
	// headerVersion is that of stores without room for mailboxes before the slots,
	// or made by versions that had no mailboxes; in stores of mailVersion they follow
	// the slots. Mailboxes before the slots need no version of their own: that place
	// was always the store's, zero and unused.
	headerVersion = 1
	mailVersion   = 2

	offVersion = 8
	offSum     = 12
	offSlots   = 16
	offBlock   = 20
	offLogical = 24
	offStore   = 32
	offCluster = 48
	nameSize   = 64
)

var headerMagic = [8]byte{'H', 'A', 'V', 'E', 'N', 'B', 'L', 'K'}

// clusterPattern is that of identities of other kinds of stores.
var clusterPattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

// header says which store this is and how it lies on the device.
type header struct {
	id      storagebeat.Identity
	slots   int
	block   int  // octets from one record to the next
	logical int  // sector size that the device had
	behind  bool // mailboxes follow the slots
}

// area is how much of the device the store takes.
func (h header) area() int64 {
	area := slotsAt + int64(h.slots)*h.slot()
	if h.behind {
		area += int64(h.slots) * int64(h.block)
	}
	return area
}

// before says whether the mailboxes have room before the slots.
func (h header) before() bool { return mailAt+int64(h.slots)*int64(h.block) <= checkAt }

// mailbox is where the mailbox of a slot lies, if there is one.
func (h header) mailbox(slot int) (int64, bool) {
	off := int64(slot-1) * int64(h.block)
	switch {
	case h.behind:
		return slotsAt + int64(h.slots)*h.slot() + off, true
	case h.before():
		return mailAt + off, true
	}
	return 0, false
}

// slot is how long one slot is.
func (h header) slot() int64 { return 2 * int64(h.block) }

// at is where a record lies. Slots count from 1.
func (h header) at(slot int, w storagebeat.Writer) int64 {
	off := slotsAt + int64(slot-1)*h.slot()
	if w == storagebeat.WriterHelper {
		off += int64(h.block)
	}
	return off
}

func (h header) check() error {
	switch {
	case h.id.ID.IsZero() || !clusterPattern.MatchString(h.id.Cluster):
		return fmt.Errorf("identity %s of cluster %q is not valid", h.id.ID, h.id.Cluster)
	case h.slots < 1 || h.slots > MaxSlots:
		return fmt.Errorf("%d slots: want 1 to %d", h.slots, MaxSlots)
	case h.block < blockio.Align || h.block > maxBlock || h.block%blockio.Align != 0:
		return fmt.Errorf("blocks of %d octets", h.block)
	case h.behind && h.before():
		return fmt.Errorf("mailboxes behind %d slots, which have room before them", h.slots)
	case h.logical < 512 || h.logical > blockio.Align || blockio.Align%h.logical != 0:
		return fmt.Errorf("sectors of %d octets", h.logical)
	}
	return nil
}

// put writes the header into p, which is as long as one.
func (h header) put(p []byte) error {
	if err := h.check(); err != nil {
		return err
	}
	clear(p)
	copy(p, headerMagic[:])
	version := uint16(headerVersion)
	if h.behind {
		version = mailVersion
	}
	binary.LittleEndian.PutUint16(p[offVersion:], version)
	binary.LittleEndian.PutUint32(p[offSlots:], uint32(h.slots))
	binary.LittleEndian.PutUint32(p[offBlock:], uint32(h.block))
	binary.LittleEndian.PutUint32(p[offLogical:], uint32(h.logical))
	copy(p[offStore:], h.id.ID[:])
	p[offCluster] = byte(len(h.id.Cluster))
	copy(p[offCluster+1:], h.id.Cluster)
	binary.LittleEndian.PutUint32(p[offSum:], sumOf(p))
	return nil
}

// parse accepts exactly what put writes.
func parse(p []byte) (header, error) {
	switch {
	case blank(p):
		return header{}, fmt.Errorf("the device begins with zeros: %w", storagebeat.ErrNoIdentity)
	case [8]byte(p) != headerMagic:
		return header{}, fmt.Errorf("the device begins with % x: %w", p[:8], storagebeat.ErrForeign)
	case binary.LittleEndian.Uint32(p[offSum:]) != sumOf(p):
		return header{}, fmt.Errorf("the store's header is damaged: %w", storagebeat.ErrForeign)
	}
	v := binary.LittleEndian.Uint16(p[offVersion:])
	if v != headerVersion && v != mailVersion {
		return header{}, fmt.Errorf("store format %d, this program knows %d and %d: %w", v, headerVersion, mailVersion, storagebeat.ErrForeign)
	}
	n := int(p[offCluster])
	if n >= nameSize {
		return header{}, fmt.Errorf("cluster name of %d octets: %w", n, storagebeat.ErrForeign)
	}
	h := header{
		behind:  v == mailVersion,
		slots:   int(binary.LittleEndian.Uint32(p[offSlots:])),
		block:   int(binary.LittleEndian.Uint32(p[offBlock:])),
		logical: int(binary.LittleEndian.Uint32(p[offLogical:])),
		id:      storagebeat.Identity{ID: storagebeat.StoreID(p[offStore : offStore+16]), Cluster: string(p[offCluster+1 : offCluster+1+n])},
	}
	again := make([]byte, headerSize)
	if err := h.put(again); err != nil {
		return header{}, fmt.Errorf("%w: %w", err, storagebeat.ErrForeign)
	}
	if !bytes.Equal(again, p) {
		return header{}, fmt.Errorf("the header is not in canonical form: %w", storagebeat.ErrForeign)
	}
	return h, nil
}

// fits says whether the device is still as the store was made for it.
func (h header) fits(g blockio.Geometry) error {
	switch {
	case g.Logical != h.logical:
		return fmt.Errorf("the device has sectors of %d octets, the store was made with %d: %w", g.Logical, h.logical, storagebeat.ErrForeign)
	case g.Physical > h.block:
		return fmt.Errorf("the device has physical sectors of %d octets, the store was made for %d: %w", g.Physical, h.block, storagebeat.ErrForeign)
	case g.Size < h.area():
		return fmt.Errorf("the device has %d octets, the store needs %d: %w", g.Size, h.area(), storagebeat.ErrForeign)
	}
	return nil
}

func sumOf(p []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(0, table, p[:offSum])
	sum = crc32.Update(sum, table, make([]byte, 4))
	return crc32.Update(sum, table, p[offSum+4:headerSize])
}

func blank(p []byte) bool { return len(bytes.TrimLeft(p, "\x00")) == 0 }

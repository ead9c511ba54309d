package block

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/haven-ha/haven/internal/blockio"
	"github.com/haven-ha/haven/storagebeat"
)

// Init implements storagebeat.Backend. It uses a device that holds zeros wherever
// the store will be, in its first and in its last MiB. All else must be named: the
// cluster of the store that is there, or the device and the new cluster
// (storagebeat.EraseName). The header is taken away first and written last: of an
// init that dies in the middle no store is left.
func (s *store) Init(ctx context.Context, o storagebeat.InitOptions) (storagebeat.Identity, error) {
	if err := ctx.Err(); err != nil {
		return storagebeat.Identity{}, err
	}
	s.drop()
	d, err := blockio.OpenDevice(s.path, blockio.DeviceMode{Write: true, Exclusive: true, File: s.file})
	if errors.Is(err, blockio.ErrInUse) {
		err = fmt.Errorf("%w: %w", err, storagebeat.ErrNotEmpty)
	}
	if err != nil {
		return storagebeat.Identity{}, fmt.Errorf("make store: %w", err)
	}
	id, err := s.initOn(ctx, d, o)
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return id, err
}

func (s *store) initOn(ctx context.Context, d *blockio.Device, o storagebeat.InitOptions) (storagebeat.Identity, error) {
	g, err := d.Geometry()
	if err != nil {
		return storagebeat.Identity{}, fmt.Errorf("make store: %w", err)
	}
	h, err := newHeader(g, o)
	if err != nil {
		return storagebeat.Identity{}, fmt.Errorf("make store: %w", err)
	}
	if old, err := s.mayInit(ctx, d, h, g, o); err != nil {
		return old, err
	}
	if err := wipe(ctx, d, h.area(), g); err != nil {
		return storagebeat.Identity{}, fmt.Errorf("make store: %w", err)
	}
	p := blockio.Buffer(headerSize)
	if err := h.put(p); err != nil {
		return storagebeat.Identity{}, fmt.Errorf("make store: %w", err)
	}
	if err := d.WriteAt(p, 0); err != nil {
		return storagebeat.Identity{}, fmt.Errorf("make store: write header: %w", err)
	}
	back, err := readHeader(d)
	if err != nil {
		return storagebeat.Identity{}, fmt.Errorf("make store: read back: %w", err)
	}
	if back != h {
		return back.id, fmt.Errorf("make store: somebody else makes a store here: %w", storagebeat.ErrNotEmpty)
	}
	return h.id, nil
}

func newHeader(g blockio.Geometry, o storagebeat.InitOptions) (header, error) {
	h := header{
		id: storagebeat.Identity{Cluster: o.Cluster}, slots: cmp.Or(o.Slots, DefaultSlots),
		block: max(blockio.Align, g.Physical), logical: g.Logical,
	}
	if _, err := rand.Read(h.id.ID[:]); err != nil {
		return header{}, err
	}
	h.behind = !h.before()
	if err := h.check(); err != nil {
		return header{}, err
	}
	if g.Size < h.area() {
		return header{}, fmt.Errorf("the device is too small: it has %d octets, %d slots need %d", g.Size, h.slots, h.area())
	}
	return h, nil
}

// mayInit says whether what is on the device may be given up.
func (s *store) mayInit(ctx context.Context, d *blockio.Device, h header, g blockio.Geometry, o storagebeat.InitOptions) (storagebeat.Identity, error) {
	old, err := readHeader(d)
	ours := err == nil
	switch {
	case ours && o.Replace != old.id.Cluster:
		return old.id, fmt.Errorf("store %s of cluster %q is there; only its name given as the one to replace makes a new one: %w",
			old.id.ID, old.id.Cluster, storagebeat.ErrNotEmpty)
	case err != nil && !errors.Is(err, storagebeat.ErrNoIdentity) && !errors.Is(err, storagebeat.ErrForeign):
		return storagebeat.Identity{}, fmt.Errorf("look at the device: %w", err)
	case !ours && o.Erase == storagebeat.EraseName(s.path, o.Cluster):
		return storagebeat.Identity{}, nil
	}
	from := int64(0)
	if ours {
		from = min(old.area(), h.area()) // What lies before is the old store's.
	}
	what, err := foreign(ctx, d, from, h.area(), g)
	if err != nil {
		return storagebeat.Identity{}, fmt.Errorf("look at the device: %w", err)
	}
	if what == "" || ours && o.Erase == storagebeat.EraseName(s.path, o.Cluster) {
		return storagebeat.Identity{}, nil
	}
	return storagebeat.Identity{}, fmt.Errorf("the device holds %s; only %q given as what to erase uses it: %w",
		what, storagebeat.EraseName(s.path, o.Cluster), storagebeat.ErrNotEmpty)
}

// foreign says what is in the way between two places and in the last MiB, where
// some keep their marks. It is empty when there are only zeros.
func foreign(ctx context.Context, d *blockio.Device, from, to int64, g blockio.Geometry) (string, error) {
	p := blockio.Buffer(chunk)
	for at := from - from%chunk; at < to; at += chunk {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n := min(chunk, to-at, g.Size-at)
		if err := d.ReadAt(p[:n], at); err != nil {
			return "", err
		}
		if from <= at {
			if i := slices.IndexFunc(p[:n], func(c byte) bool { return c != 0 }); i >= 0 {
				return describe(p[:n], at, i), nil
			}
		} else if !blank(p[from-at : max(n, from-at)]) {
			return fmt.Sprintf("data behind the store, between octets %d and %d", from, at+n), nil
		}
	}
	last := lastMiB(to, g)
	if last == g.Size {
		return "", nil
	}
	n := alignDown(g.Size) - last
	if err := d.ReadAt(p[:n], last); err != nil {
		return "", err
	}
	if !blank(p[:n]) {
		return "data in its last MiB, where partition tables and RAID keep a copy", nil
	}
	return "", nil
}

// lastMiB is where the last MiB of the device begins that is not the store's.
func lastMiB(area int64, g blockio.Geometry) int64 {
	end := alignDown(g.Size)
	if start := max(area, end-chunk); start < end {
		return start
	}
	return g.Size
}

func alignDown(n int64) int64 { return n - n%blockio.Align }

// describe names what the first MiB holds, where it can be told.
func describe(p []byte, at int64, i int) string {
	if at > 0 {
		return fmt.Sprintf("data at octet %d", at+int64(i))
	}
	for _, known := range []struct {
		name string
		at   int
		mark string
	}{
		{"a store with a damaged header, or of a later version", 0, string(headerMagic[:])},
		{"LUKS", 0, "LUKS\xba\xbe"},
		{"an XFS file system", 0, "XFSB"},
		{"an LVM volume", 512, "LABELONE"},
		{"a partition table (GPT)", 512, "EFI PART"},
		{"a partition table (GPT)", 4096, "EFI PART"},
		{"an ext2, ext3 or ext4 file system", 1080, "\x53\xef"},
		{"a RAID member", 4096, "\xfc\x4e\x2b\xa9"},
		{"swap space", 4086, "SWAPSPACE2"},
		{"a Btrfs file system", 0x10040, "_BHRfS_M"},
		{"a GFS2 file system", 0x10000, "\x01\x16\x19\x70"},
		{"an OCFS2 file system", 8192, "OCFSV2"},
		{"a sanlock lockspace", 0, "\x04\x13\x22\x06"},
		{"a partition table or boot sector", 510, "\x55\xaa"},
	} {
		if len(p) >= known.at+len(known.mark) && bytes.Equal(p[known.at:known.at+len(known.mark)], []byte(known.mark)) {
			return known.name
		}
	}
	return fmt.Sprintf("data at octet %d", i)
}

// wipe writes zeros over the header, then over the rest of the area, then over the
// last MiB.
func wipe(ctx context.Context, d *blockio.Device, area int64, g blockio.Geometry) error {
	zeros := blockio.Buffer(chunk)
	if err := d.WriteAt(zeros[:headerSize], 0); err != nil {
		return fmt.Errorf("clear header: %w", err)
	}
	for at := int64(0); at < area; at += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := d.WriteAt(zeros[:min(chunk, area-at)], at); err != nil {
			return fmt.Errorf("clear at %d: %w", at, err)
		}
	}
	if last := lastMiB(area, g); last < g.Size {
		if err := d.WriteAt(zeros[:alignDown(g.Size)-last], last); err != nil {
			return fmt.Errorf("clear the last MiB: %w", err)
		}
	}
	return nil
}

// Check implements storagebeat.Backend. It writes into a block of its own, before
// the slots, and takes it back.
func (s *store) Check(ctx context.Context) (storagebeat.CheckReport, error) {
	started := s.now()
	c, err := s.ReadAll(ctx)
	if err != nil {
		return storagebeat.CheckReport{}, err
	}
	r := storagebeat.CheckReport{
		Identity: c.Identity, Records: len(c.Beats), Slots: s.head.slots, Local: s.reading.Local(), Direct: true,
		FileSystem:  fmt.Sprintf("block device %s, sectors of %d octets, records %d apart", s.reading.Number(), s.head.logical, s.head.block),
		ReadLatency: s.now().Sub(started) / time.Duration(max(1, len(c.Beats))),
	}
	for _, raw := range c.Beats {
		if _, err := storagebeat.DecodeAt(c.Identity.ID, raw); err == nil {
			r.Valid++
		}
	}
	d, err := s.device(ctx, true)
	if err != nil {
		return r, fmt.Errorf("try a write: %w", err)
	}
	r.WriteLatency, err = tryWrite(d, s.head, s.now)
	if err != nil {
		s.drop()
	}
	return r, err
}

func tryWrite(d *blockio.Device, h header, now func() time.Time) (took time.Duration, err error) {
	blocks := int64((slotsAt - checkAt) / h.block)
	n, err := rand.Int(rand.Reader, big.NewInt(blocks))
	if err != nil {
		return 0, err
	}
	at := checkAt + n.Int64()*int64(h.block)
	data, back := blockio.Buffer(storagebeat.RecordSize), blockio.Buffer(storagebeat.RecordSize)
	if _, err := rand.Read(data); err != nil {
		return 0, err
	}
	started := now()
	if err := d.WriteAt(data, at); err != nil {
		return 0, fmt.Errorf("try a write: %w", err)
	}
	took = now().Sub(started)
	defer func() {
		if werr := d.WriteAt(make0(), at); err == nil && werr != nil {
			err = fmt.Errorf("take the write back: %w", werr)
		}
	}()
	if err := d.ReadAt(back, at); err != nil {
		return took, fmt.Errorf("read back: %w", err)
	}
	if !bytes.Equal(back, data) {
		return took, fmt.Errorf("read back: %w", storagebeat.ErrTorn)
	}
	return took, nil
}

func make0() []byte { return blockio.Buffer(storagebeat.RecordSize) }

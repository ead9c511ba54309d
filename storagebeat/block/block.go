package block

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	haven "github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/blockio"
	"github.com/haven-ha/haven/storagebeat"
)

// OptionFile takes a regular file for a device when it is "yes". It is for tests:
// nothing but the hosts of one test sees such a file.
const OptionFile = "regular-file"

// Type returns the type of stores on block devices.
func Type() storagebeat.Type {
	return storagebeat.Type{Name: storagebeat.TypeBlock, Open: func(o storagebeat.OpenOptions) (storagebeat.Backend, error) {
		if err := o.Known(OptionFile); err != nil {
			return nil, err
		}
		if !filepath.IsAbs(o.Path) {
			return nil, fmt.Errorf("open store: path %q is not absolute", o.Path)
		}
		return &store{path: o.Path, cluster: o.Cluster, file: o.Options[OptionFile] == "yes", now: time.Now}, nil
	}}
}

// store is one device. It is not safe for concurrent use.
type store struct {
	path    string
	cluster string // the store must be of this cluster; empty takes any
	file    bool
	now     func() time.Time

	// reading and writing stay open from beat to beat. Opening a device for writing
	// anew each time would make the system look at it for file systems each time.
	reading, writing *blockio.Device

	head   header // of the store that was there last; all below is about that one
	owners map[int]haven.HostID
	own    map[haven.HostID]int
	watch  watch
	buf    []byte
}

const chunk = 1 << 20

// rereads is how often a torn record is read again at once: a write that was in
// the middle is done by then.
const rereads = 2

// ReadAll implements storagebeat.Backend.
func (s *store) ReadAll(ctx context.Context) (storagebeat.Contents, error) {
	d, err := s.device(ctx, false)
	if err != nil {
		return storagebeat.Contents{}, err
	}
	c := storagebeat.Contents{Identity: s.head.id}
	slots, err := s.scan(ctx, d)
	if err != nil {
		s.drop()
		return storagebeat.Contents{}, err
	}
	for _, at := range slots {
		c.Beats = append(c.Beats, at.records(s.head.id.ID)...)
	}
	single(c.Beats)
	if err := s.readPills(ctx, d, slots, &c); err != nil {
		s.drop()
		return storagebeat.Contents{}, err
	}
	return c, nil
}

// single makes sure that no record comes twice: of a host that seems to have two
// slots nobody can say which of them is meant.
func single(all []storagebeat.RawBeat) {
	type key struct {
		host   haven.HostID
		writer storagebeat.Writer
	}
	first := map[key]int{}
	for i, r := range all {
		k := key{r.Host, r.Writer}
		j, twice := first[k]
		if !twice || r.Host == "" {
			first[k] = i
			continue
		}
		all[j].Data, all[j].Err = nil, fmt.Errorf("slots %d and %d: %w", all[j].Slot, r.Slot, errTwoSlots)
		all[i].Host = "" // It is not another one's either.
		all[i].Data, all[i].Err = nil, all[j].Err
	}
}

var errTwoSlots = errors.New("two slots hold records of this host")

// Write implements storagebeat.Backend.
func (s *store) Write(ctx context.Context, raw storagebeat.RawBeat) error {
	d, err := s.device(ctx, true)
	if err != nil {
		return err
	}
	b, err := storagebeat.DecodeAt(s.head.id.ID, raw)
	if err != nil {
		return fmt.Errorf("beat for store %s: %w", s.head.id.ID, err)
	}
	slot, err := s.place(ctx, d, raw)
	if err != nil {
		return s.failed(fmt.Errorf("find a slot for beat %d: %w", b.Sequence, err))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	p := s.buffer(storagebeat.RecordSize)
	copy(p, raw.Data)
	if err := d.WriteAt(p, s.head.at(slot, raw.Writer)); err != nil {
		return s.failed(fmt.Errorf("write beat %d: %w", b.Sequence, err))
	}
	s.own[raw.Host], s.owners[slot] = slot, raw.Host
	return nil
}

// failed drops the open devices after an error of theirs.
func (s *store) failed(err error) error {
	if !errors.Is(err, storagebeat.ErrNoSlot) && !errors.Is(err, storagebeat.ErrSlotTaken) {
		s.drop()
	}
	return err
}

// device returns the open device, after it made sure that the path still leads to
// it and that the store on it is the right one.
func (s *store) device(ctx context.Context, write bool) (*blockio.Device, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	kept := &s.reading
	if write {
		kept = &s.writing
	}
	if *kept != nil && !(*kept).Is(s.path) {
		s.drop() // The name leads to another device now, or nowhere.
	}
	if *kept == nil {
		d, err := blockio.OpenDevice(s.path, blockio.DeviceMode{Write: write, File: s.file})
		if err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
		*kept = d
	}
	h, err := s.identify(*kept, write)
	if err != nil {
		s.drop()
		return nil, err
	}
	if h != s.head {
		s.head = h
		s.owners, s.own, s.watch = map[int]haven.HostID{}, map[haven.HostID]int{}, watch{}
	}
	return *kept, nil
}

// identify reads the header, every time: this is what tells a device from another
// one that was put in its place.
func (s *store) identify(d *blockio.Device, write bool) (header, error) {
	h, err := readHeader(d)
	if err != nil {
		return header{}, err
	}
	if s.cluster != "" && h.id.Cluster != s.cluster {
		return header{}, fmt.Errorf("store %s of cluster %q, want cluster %q: %w", h.id.ID, h.id.Cluster, s.cluster, storagebeat.ErrForeign)
	}
	g, err := d.Geometry()
	if err != nil {
		return header{}, err
	}
	if write && g.ReadOnly { // The kernel may take writes to a device that was made so, and lose them.
		return header{}, blockio.ErrReadOnly
	}
	return h, h.fits(g)
}

func readHeader(d *blockio.Device) (header, error) {
	p := blockio.Buffer(headerSize)
	if err := d.ReadAt(p, 0); err != nil {
		return header{}, fmt.Errorf("read header: %w", err)
	}
	return parse(p)
}

// buffer returns n octets for one transfer.
func (s *store) buffer(n int) []byte {
	if len(s.buf) < n {
		s.buf = blockio.Buffer(n)
	}
	clear(s.buf[:n])
	return s.buf[:n]
}

// drop closes the device; the next operation opens it anew. What a closed device
// says is nobody's business: every write was waited for.
func (s *store) drop() {
	for _, d := range []**blockio.Device{&s.reading, &s.writing} {
		if *d != nil {
			_ = (*d).Close()
			*d = nil
		}
	}
}

// Close implements storagebeat.Backend.
func (s *store) Close() error {
	s.drop()
	return nil
}

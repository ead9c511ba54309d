package storagebeat

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	haven "github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/blockio"
)

const (
	identityName = "identity.json"
	beatsName    = "beats"
	// maxFiles bounds what is read from a directory that somebody filled.
	maxFiles = 3072
	// mailboxSuffix is that of no writer, so that versions without mailboxes pass
	// such files by.
	mailboxSuffix = ".mailbox"
	// rereads is how often a torn record is read again at once: a write that
	// was in the middle is done by then.
	rereads = 2
)

// dirStore is a store in a directory of anything that all hosts mount:
//
//	identity.json          the identity
//	beats/HOST.agent       one record
//	beats/HOST.helper      one record
//	beats/HOST.mailbox     a pill for the host, once there was one
//
// It lives in the child process, because every call in it may block for ever. It
// is not safe for concurrent use.
//
// Files stay open from beat to beat, for speed and so that a beat needs no name
// lookup. But a handle may outlive its file: so each record that did not
// change since the last time is read again through a fresh one, which is also when
// network file systems ask the server. Silence is never an old handle's.
type dirStore struct {
	path    string
	cluster string // the store must be of this cluster; empty takes any
	fs      files
	id      Identity
	reading map[string]*openBeat
	writing map[string]file
	written map[string][]byte // what was last written, to notice that it went elsewhere
	buf     []byte
}

type openBeat struct {
	f    file
	last [RecordSize]byte
}

func newDirStore(path, cluster string) *dirStore {
	return &dirStore{
		path: path, cluster: cluster, fs: osFiles{},
		reading: make(map[string]*openBeat), writing: make(map[string]file), written: make(map[string][]byte),
		buf: blockio.Buffer(RecordSize),
	}
}

// readAll reads all records. Errors of single records are in the records.
func (d *dirStore) readAll() (Contents, error) {
	id, err := d.identify()
	if err != nil {
		return Contents{}, err
	}
	names, err := d.list()
	if err != nil {
		d.drop()
		return Contents{}, err
	}
	c := Contents{Identity: id}
	for _, name := range names {
		host, writer, beats := parseBeatName(name)
		owner, mail := parseMailboxName(name)
		if !beats && !mail {
			continue
		}
		data, err := d.readBeat(name)
		if beats {
			c.Beats = append(c.Beats, RawBeat{Host: host, Writer: writer, Data: data, Err: err})
		} else {
			c.Pills = append(c.Pills, RawPill{Host: owner, Data: data, Err: err})
		}
		if want := d.written[name]; want != nil && !bytes.Equal(want, data) {
			d.dropWriting(name)
		}
	}
	for name := range d.reading {
		if !slices.Contains(names, name) {
			d.dropReading(name)
		}
	}
	return c, nil
}

// identify reads the identity through its name, every time: this is what tells
// a mount that went away from the mount itself.
func (d *dirStore) identify() (Identity, error) {
	var id Identity
	err := again(func() error {
		text, err := d.fs.identity(d.path)
		if err == nil {
			id, err = DecodeIdentity(text)
		}
		return err
	})
	if err == nil && d.cluster != "" && id.Cluster != d.cluster {
		err = fmt.Errorf("store %s of cluster %q, want cluster %q: %w", id.ID, id.Cluster, d.cluster, ErrForeign)
	}
	if err != nil {
		d.drop()
		return Identity{}, err
	}
	if id != d.id {
		d.drop()
		d.id = id
	}
	return id, nil
}

// list returns the names in the directory of beats, sorted.
func (d *dirStore) list() (names []string, err error) {
	err = again(func() error {
		names, err = d.fs.names(filepath.Join(d.path, beatsName), maxFiles+1)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list beats: %w", err)
	}
	if len(names) > maxFiles {
		return nil, fmt.Errorf("list beats: more than %d files: %w", maxFiles, ErrForeign)
	}
	slices.Sort(names)
	return names, nil
}

// readBeat reads one record.
func (d *dirStore) readBeat(name string) ([]byte, error) {
	h, kept := d.reading[name]
	if kept {
		if err := d.readInto(h); err == nil && whole(d.buf) && !bytes.Equal(d.buf, h.last[:]) {
			h.last = [RecordSize]byte(d.buf)
			return bytes.Clone(d.buf), nil
		}
		// It failed, was torn or did not change: see whether the name still
		// means the same file.
		d.dropReading(name)
	}
	if err := again(func() (err error) { h, err = d.readFresh(name); return err }); err != nil {
		return nil, err
	}
	h.last = [RecordSize]byte(d.buf)
	d.reading[name] = h
	return bytes.Clone(d.buf), nil
}

// readFresh reads a record through a handle of its own.
func (d *dirStore) readFresh(name string) (*openBeat, error) {
	f, err := d.fs.open(d.beatPath(name), blockio.Read)
	if err != nil {
		return nil, fmt.Errorf("open beat: %w", err)
	}
	h := &openBeat{f: f}
	err = d.readInto(h)
	for i := 0; i < rereads && err == nil && !whole(d.buf) && !blank(d.buf); i++ {
		err = d.readInto(h)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("read beat: %w", err)
	}
	return h, nil
}

func (d *dirStore) readInto(h *openBeat) error {
	clear(d.buf)
	_, err := h.f.ReadAt(d.buf, 0) // A short file reads as zeros: blank or torn, never a beat.
	return err
}

// write writes one record in place. It returns when the storage has it.
func (d *dirStore) write(raw RawBeat) error {
	id, err := d.identify()
	if err != nil {
		return err
	}
	name := beatName(raw.Host, raw.Writer)
	b, err := DecodeAt(id.ID, raw)
	if err != nil {
		return fmt.Errorf("beat for store %s: %w", id.ID, err)
	}
	if err = again(func() error { return d.writeBeat(name, raw.Data) }); err != nil {
		return fmt.Errorf("write beat %d: %w", b.Sequence, err)
	}
	d.written[name] = bytes.Clone(raw.Data)
	return nil
}

// writePill puts a pill into a mailbox, unless that of a newer term is there.
func (d *dirStore) writePill(raw RawPill) error {
	id, err := d.identify()
	if err != nil {
		return err
	}
	name := mailboxName(raw.Host)
	p, err := DecodePillAt(id.ID, raw)
	if err != nil {
		return fmt.Errorf("pill for store %s: %w", id.ID, err)
	}
	there, err := d.readBeat(name)
	if err == nil {
		err = p.MayReplace(there)
	} else if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = again(func() error { return d.writeBeat(name, raw.Data) })
	}
	if err != nil {
		return fmt.Errorf("write pill: %w", err)
	}
	return nil
}

func (d *dirStore) writeBeat(name string, data []byte) (err error) {
	defer func() {
		if err != nil {
			d.dropWriting(name)
		}
	}()
	if f := d.writing[name]; f != nil && !f.Is(d.beatPath(name)) {
		d.dropWriting(name)
	}
	f := d.writing[name]
	if f == nil {
		if f, err = d.openForWriting(name); err != nil {
			return err
		}
		d.writing[name] = f
	}
	copy(d.buf, data)
	return f.WriteAt(d.buf, 0)
}

// openForWriting opens a record's file, and makes it when it is not there. The
// first record gives it its full size, and all others go to the same place, so a
// store that fills up later cannot stop the beats.
func (d *dirStore) openForWriting(name string) (file, error) {
	f, err := d.fs.open(d.beatPath(name), blockio.Create)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err == nil && size < RecordSize {
		err = d.fs.syncDir(filepath.Join(d.path, beatsName))
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// drop closes everything; the next operation opens anew.
func (d *dirStore) drop() {
	for name := range d.reading {
		d.dropReading(name)
	}
	for name := range d.writing {
		d.dropWriting(name)
	}
	d.id = Identity{}
}

func (d *dirStore) dropReading(name string) {
	if h := d.reading[name]; h != nil {
		_ = h.f.Close()
		delete(d.reading, name)
	}
}

func (d *dirStore) dropWriting(name string) {
	if f := d.writing[name]; f != nil {
		_ = f.Close() // Nothing is lost: every write was waited for.
		delete(d.writing, name)
	}
	delete(d.written, name)
}

func (d *dirStore) beatPath(name string) string { return filepath.Join(d.path, beatsName, name) }

func beatName(h haven.HostID, w Writer) string { return string(h) + "." + w.String() }

func mailboxName(h haven.HostID) string { return string(h) + mailboxSuffix }

func parseMailboxName(name string) (haven.HostID, bool) {
	host, ok := strings.CutSuffix(name, mailboxSuffix)
	if !ok {
		return "", false
	}
	h, err := haven.ParseHostID(host)
	return h, err == nil
}

func parseBeatName(name string) (haven.HostID, Writer, bool) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return "", 0, false
	}
	h, err := haven.ParseHostID(name[:i])
	if err != nil {
		return "", 0, false
	}
	w, err := ParseWriter(name[i+1:])
	return h, w, err == nil
}

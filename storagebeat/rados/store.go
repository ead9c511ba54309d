//go:build ceph

package rados

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	ceph "github.com/ceph/go-ceph/rados"

	haven "github.com/haven-ha/haven"
	"github.com/haven-ha/haven/storagebeat"
)

const (
	identityObject = "haven.identity"
	beatPrefix     = "haven.beat."
	checkPrefix    = "haven.check."

	// formatKey is in the omap of every identity, so that a pool without omaps
	// is refused at once and not at the first beat.
	formatKey = "haven-format"

	identityLimit = 4096
	mailboxSuffix = ".mailbox"
	maxRecords    = 3072 // bounds what is read from an omap that somebody filled
	// readers is how many records are read at once. Each is a thread that waits.
	readers = 16
)

// Type returns the type of stores in a Ceph pool. Their path is POOL or
// POOL/NAMESPACE.
func Type() storagebeat.Type {
	return storagebeat.Type{Name: storagebeat.TypeRados, Open: func(o storagebeat.OpenOptions) (storagebeat.Backend, error) {
		if err := o.Known(OptionConf, OptionUser); err != nil {
			return nil, err
		}
		place, err := ParsePlace(o.Path)
		if err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
		conf := o.Options[OptionConf]
		if conf != "" && !filepath.IsAbs(conf) {
			return nil, fmt.Errorf("open store: %s %q is not absolute", OptionConf, conf)
		}
		s := &store{session: session{place: place, conf: conf, user: o.Options[OptionUser]}, cluster: o.Cluster}
		return newPatient(s), nil
	}}
}

// store is one store in a pool. It is not safe for concurrent use. Its methods may
// take longer than their contexts; see patient.
type store struct {
	session session
	cluster string // the store must be of this cluster; empty takes any
}

// head is what the identity's object says.
type head struct {
	text  []byte // as it is there
	id    storagebeat.Identity
	names []string // of the records, sorted
}

func (s *store) readAll(ctx context.Context) (storagebeat.Contents, error) {
	h, err := s.identify(ctx)
	if err != nil {
		return storagebeat.Contents{}, err
	}
	all, err := s.readRecords(ctx, h.names)
	if err != nil {
		return storagebeat.Contents{}, err
	}
	c := storagebeat.Contents{Identity: h.id}
	for _, raw := range all {
		if raw.Writer == mailbox {
			c.Pills = append(c.Pills, storagebeat.RawPill{Host: raw.Host, Data: raw.Data, Err: raw.Err})
		} else {
			c.Beats = append(c.Beats, raw)
		}
	}
	return c, nil
}

// mailbox stands for a writer in the name of a mailbox, which has none.
const mailbox storagebeat.Writer = 0

// identify reads the identity and the names of the records.
func (s *store) identify(ctx context.Context) (head, error) {
	h, err := s.readHead(ctx)
	if err == nil && s.cluster != "" && h.id.Cluster != s.cluster {
		err = fmt.Errorf("store %s of cluster %q, want cluster %q: %w", h.id.ID, h.id.Cluster, s.cluster, storagebeat.ErrForeign)
	}
	return h, err
}

// readHead reads the identity's object. With ErrForeign comes the text that is no
// identity.
func (s *store) readHead(ctx context.Context) (head, error) {
	var h head
	after := ""
	for first := true; ; first = false {
		pool, err := s.session.ready(ctx)
		if err != nil {
			return head{}, err
		}
		text, names, last, err := readPage(pool, after)
		if errors.Is(err, ceph.ErrNotFound) {
			s.session.reopen()
			return head{}, fmt.Errorf("there is no %s in %s: %w", identityObject, s.session.place, storagebeat.ErrNoIdentity)
		}
		if err != nil {
			return head{}, fmt.Errorf("read identity: %w", s.session.verdict(err))
		}
		s.session.quiet = time.Time{}
		if !first && !bytes.Equal(text, h.text) {
			return head{}, errors.New("read identity: it changed meanwhile")
		}
		h.text, h.names = text, append(h.names, names...)
		if len(h.names) > maxRecords {
			return h, fmt.Errorf("read identity: more than %d records: %w", maxRecords, storagebeat.ErrForeign)
		}
		if last == "" {
			break
		}
		after = last
	}
	var err error
	h.id, err = storagebeat.DecodeIdentity(h.text)
	slices.Sort(h.names)
	return h, err
}

// pageSize is less than what OSDs are configured to give at once.
const pageSize = 512

// readPage reads the identity and some of its omap's keys in one operation. Last
// is where the next page goes on; it is empty after the last one.
func readPage(pool *ceph.IOContext, after string) (text []byte, names []string, last string, err error) {
	op := ceph.CreateReadOp()
	defer op.Release()
	op.AssertExists()
	buf := make([]byte, identityLimit)
	read := op.Read(0, buf)
	keys := op.GetOmapValues(after, "", pageSize)
	if err := op.Operate(pool, identityObject, ceph.OperationNoFlag); err != nil {
		return nil, nil, "", err
	}
	for {
		kv, err := keys.Next()
		if err != nil {
			return nil, nil, "", err
		}
		if kv == nil {
			break
		}
		last = kv.Key
		if _, _, ok := parseName(kv.Key); ok {
			names = append(names, kv.Key)
		}
	}
	if !keys.More() {
		last = ""
	}
	return buf[:read.BytesRead], names, last, nil
}

// readRecords reads beats and pills, several at once. What is wrong with one is in it: a
// part of a pool may be down and the rest not. Only when nothing could be read
// for lack of an answer, that is the error of all.
func (s *store) readRecords(ctx context.Context, names []string) ([]storagebeat.RawBeat, error) {
	pool, err := s.session.ready(ctx)
	if err != nil {
		return nil, err
	}
	found := make([]storagebeat.RawBeat, len(names))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(readers, len(names)) {
		wg.Go(func() {
			for i := range next {
				found[i] = readBeat(ctx, pool, names[i])
			}
		})
	}
	for i := range names {
		next <- i
	}
	close(next)
	wg.Wait()
	silent, answered := error(nil), 0
	beats := found[:0]
	for _, b := range found {
		if errors.Is(b.Err, ceph.ErrNotFound) {
			answered++
			continue // It is named before it is first written.
		}
		if b.Err != nil {
			b.Err = fmt.Errorf("read beat: %w", s.session.verdict(b.Err))
		}
		if errors.Is(b.Err, storagebeat.ErrTimeout) || errors.Is(b.Err, context.DeadlineExceeded) {
			silent = b.Err
		} else {
			answered++
		}
		beats = append(beats, b)
	}
	if silent != nil && answered == 0 {
		return nil, silent
	}
	return beats, ctx.Err()
}

func readBeat(ctx context.Context, pool *ceph.IOContext, name string) storagebeat.RawBeat {
	host, writer, _ := parseName(name)
	raw := storagebeat.RawBeat{Host: host, Writer: writer}
	if raw.Err = ctx.Err(); raw.Err != nil {
		return raw
	}
	data := make([]byte, storagebeat.RecordSize) // A short object reads as zeros: blank or torn, never a beat.
	if _, raw.Err = pool.Read(beatPrefix+name, data, 0); raw.Err == nil {
		raw.Data = data
	}
	return raw
}

func (s *store) write(ctx context.Context, raw storagebeat.RawBeat) error {
	h, err := s.identify(ctx)
	if err != nil {
		return err
	}
	b, err := storagebeat.DecodeAt(h.id.ID, raw)
	if err != nil {
		return fmt.Errorf("beat for store %s: %w", h.id.ID, err)
	}
	name := nameOf(raw.Host, raw.Writer)
	if _, there := slices.BinarySearch(h.names, name); !there {
		if err := s.announce(ctx, h, name); err != nil {
			return fmt.Errorf("name beat: %w", err)
		}
	}
	pool, err := s.session.ready(ctx)
	if err != nil {
		return err
	}
	if err := put(pool, beatPrefix+name, raw.Data); err != nil {
		return fmt.Errorf("write beat %d: %w", b.Sequence, s.session.verdict(err))
	}
	return nil
}

// writePill puts a pill into a mailbox, unless that of a newer term is there; also
// when that comes between the look and the write.
func (s *store) writePill(ctx context.Context, raw storagebeat.RawPill) error {
	h, err := s.identify(ctx)
	if err != nil {
		return err
	}
	p, err := storagebeat.DecodePillAt(h.id.ID, raw)
	if err != nil {
		return fmt.Errorf("pill for store %s: %w", h.id.ID, err)
	}
	name := nameOf(raw.Host, mailbox)
	if _, there := slices.BinarySearch(h.names, name); !there {
		if err := s.announce(ctx, h, name); err != nil {
			return fmt.Errorf("name mailbox: %w", err)
		}
	}
	pool, err := s.session.ready(ctx)
	if err != nil {
		return err
	}
	op := ceph.CreateWriteOp()
	defer op.Release()
	old := readBeat(ctx, pool, name)
	switch {
	case errors.Is(old.Err, ceph.ErrNotFound):
		op.Create(ceph.CreateExclusive)
	case old.Err != nil:
		return fmt.Errorf("read mailbox: %w", s.session.verdict(old.Err))
	default:
		if err := p.MayReplace(old.Data); err != nil {
			return fmt.Errorf("write pill: %w", err)
		}
		op.CmpExt(old.Data, 0)
	}
	op.WriteFull(raw.Data)
	err = op.Operate(pool, beatPrefix+name, ceph.OperationFullTry)
	if errors.Is(err, ceph.ErrObjectExists) || code(err) == compareFailed {
		return fmt.Errorf("write pill: another one came meanwhile: %w", storagebeat.ErrNewerPill)
	}
	if err != nil {
		return fmt.Errorf("write pill: %w", s.session.verdict(err))
	}
	return nil
}

// announce puts a record's name where readers look, if the store is still the
// same.
func (s *store) announce(ctx context.Context, h head, name string) error {
	if len(h.names) >= maxRecords {
		return fmt.Errorf("the store holds %d records, which is as many as it can", len(h.names))
	}
	pool, err := s.session.ready(ctx)
	if err != nil {
		return err
	}
	op := ceph.CreateWriteOp()
	defer op.Release()
	op.CmpExt(h.text, 0)
	op.SetOmap(map[string][]byte{name: []byte("beat")})
	err = op.Operate(pool, identityObject, ceph.OperationFullTry)
	if code(err) == compareFailed {
		return fmt.Errorf("the store was made anew meanwhile: %w", storagebeat.ErrForeign)
	}
	return s.session.verdict(err)
}

// put writes an object whole. On a full pool it still overwrites what has the
// same size already, instead of waiting for room: beats go on.
func put(pool *ceph.IOContext, object string, data []byte) error {
	op := ceph.CreateWriteOp()
	defer op.Release()
	op.WriteFull(data)
	return op.Operate(pool, object, ceph.OperationFullTry)
}

func (s *store) check(ctx context.Context) (storagebeat.CheckReport, error) {
	started := time.Now()
	c, err := s.readAll(ctx)
	if err != nil {
		return storagebeat.CheckReport{}, err
	}
	r := storagebeat.CheckReport{Identity: c.Identity, Direct: true, Records: len(c.Beats)}
	if len(c.Beats) > 0 {
		r.ReadLatency = time.Since(started) / time.Duration(len(c.Beats))
	}
	for _, raw := range c.Beats {
		if _, err := storagebeat.DecodeAt(c.Identity.ID, raw); err == nil {
			r.Valid++
		}
	}
	pool, err := s.session.ready(ctx)
	if err != nil {
		return r, err
	}
	fsid, err := s.session.conn.GetFSID()
	if err != nil {
		return r, fmt.Errorf("ask for the cluster's id: %w", s.session.verdict(err))
	}
	r.FileSystem = "pool of Ceph cluster " + fsid
	err = s.tryWrite(ctx, pool, &r)
	return r, err
}

func (s *store) tryWrite(ctx context.Context, pool *ceph.IOContext, r *storagebeat.CheckReport) (err error) {
	data, back := make([]byte, storagebeat.RecordSize), make([]byte, storagebeat.RecordSize)
	if _, err := rand.Read(data); err != nil {
		return err
	}
	object := fmt.Sprintf("%s%x", checkPrefix, data[:8])
	started := time.Now()
	if err := put(pool, object, data); err != nil {
		return fmt.Errorf("try a write: %w", s.session.verdict(err))
	}
	r.WriteLatency = time.Since(started)
	defer func() {
		if rerr := pool.Delete(object); err == nil && rerr != nil {
			err = fmt.Errorf("remove what was tried: %w", s.session.verdict(rerr))
		}
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := pool.Read(object, back, 0); err != nil {
		return fmt.Errorf("read back: %w", s.session.verdict(err))
	}
	if !bytes.Equal(back, data) {
		return fmt.Errorf("read back: %w", storagebeat.ErrTorn)
	}
	return nil
}

// unsupported says whether Ceph cannot do this in a pool of this kind.
func unsupported(err error) bool { return code(err) == int(syscall.EOPNOTSUPP) }

func nameOf(h haven.HostID, w storagebeat.Writer) string {
	if w == mailbox {
		return string(h) + mailboxSuffix
	}
	return string(h) + "." + w.String()
}

func parseName(name string) (haven.HostID, storagebeat.Writer, bool) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return "", 0, false
	}
	h, err := haven.ParseHostID(name[:i])
	if err != nil {
		return "", 0, false
	}
	if name[i:] == mailboxSuffix {
		return h, mailbox, true
	}
	w, err := storagebeat.ParseWriter(name[i+1:])
	return h, w, err == nil
}

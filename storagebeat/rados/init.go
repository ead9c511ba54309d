//go:build ceph

package rados

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	ceph "github.com/ceph/go-ceph/rados"

	"github.com/haven-ha/haven/storagebeat"
)

// makeStore is Init. Of two that make a store at once, one wins
// and the other fails. Foreign objects are not removed; to name the place, as
// POOL or POOL/NAMESPACE, puts the store beside them.
func (s *store) makeStore(ctx context.Context, o storagebeat.InitOptions) (storagebeat.Identity, error) {
	if o.Erase != "" || o.Slots != 0 {
		return storagebeat.Identity{}, errors.New("make store: a pool takes neither a device to erase nor a number of slots")
	}
	id := storagebeat.Identity{Cluster: o.Cluster}
	if _, err := rand.Read(id.ID[:]); err != nil {
		return storagebeat.Identity{}, err
	}
	text, err := storagebeat.EncodeIdentity(id)
	if err != nil {
		return storagebeat.Identity{}, err
	}
	if err := s.replicated(ctx); err != nil {
		return storagebeat.Identity{}, err
	}
	old, err := s.readHead(ctx)
	switch {
	case err == nil && o.Replace == old.id.Cluster:
	case err == nil:
		return old.id, fmt.Errorf("store %s of cluster %q is there; only its name given as the one to replace makes a new one: %w",
			old.id.ID, old.id.Cluster, storagebeat.ErrNotEmpty)
	case errors.Is(err, storagebeat.ErrForeign) && o.Replace == s.session.place.String():
	case errors.Is(err, storagebeat.ErrForeign):
		return storagebeat.Identity{}, s.notEmpty(identityObject)
	case errors.Is(err, storagebeat.ErrNoIdentity):
		if err := s.mayInit(ctx, o); err != nil {
			return storagebeat.Identity{}, err
		}
	default:
		return storagebeat.Identity{}, err
	}
	if err := s.putIdentity(ctx, text, old.text); err != nil {
		return storagebeat.Identity{}, fmt.Errorf("write identity: %w", err)
	}
	return id, s.removeBeats(ctx, old.names)
}

// errCoded is the reason for which a pool cannot be a store.
var errCoded = errors.New("the pool is erasure-coded and has no omaps; a store needs a replicated one")

// replicated refuses a pool whose kind is known not to do. Of one with erasure
// coding and overwrites Ceph tells only when the omap is written.
func (s *store) replicated(ctx context.Context) error {
	pool, err := s.session.ready(ctx)
	if err != nil {
		return err
	}
	aligned, err := pool.RequiresAlignment()
	if err != nil {
		return fmt.Errorf("ask what pool it is: %w", s.session.verdict(err))
	}
	if aligned {
		return fmt.Errorf("pool %s: %w", s.session.place.Pool, errCoded)
	}
	return nil
}

func (s *store) notEmpty(object string) error {
	return fmt.Errorf("pool %s holds %q; only that pool given as the one to replace uses it: %w", s.session.place, object, storagebeat.ErrNotEmpty)
}

// mayInit says whether there is nothing else where the store is to be.
func (s *store) mayInit(ctx context.Context, o storagebeat.InitOptions) error {
	pool, err := s.session.ready(ctx)
	if err != nil {
		return err
	}
	if o.Replace == s.session.place.String() {
		return nil
	}
	list, err := pool.Iter()
	if err != nil {
		return fmt.Errorf("look into pool: %w", s.session.verdict(err))
	}
	defer list.Close()
	if list.Next() {
		return s.notEmpty(list.Value())
	}
	if err := list.Err(); err != nil {
		return fmt.Errorf("look into pool: %w", s.session.verdict(err))
	}
	return nil
}

// putIdentity writes the identity in the place of the one that was read, or of
// none, and only of that.
func (s *store) putIdentity(ctx context.Context, text, old []byte) error {
	pool, err := s.session.ready(ctx)
	if err != nil {
		return err
	}
	op := ceph.CreateWriteOp()
	defer op.Release()
	switch {
	case old == nil:
		op.Create(ceph.CreateExclusive)
	case len(old) == 0:
		op.AssertExists() // Nothing to compare with.
	default:
		op.CmpExt(old, 0)
	}
	op.WriteFull(text)
	op.CleanOmap()
	op.SetOmap(map[string][]byte{formatKey: []byte("1")})
	err = op.Operate(pool, identityObject, ceph.OperationNoFlag)
	switch {
	case errors.Is(err, ceph.ErrObjectExists), code(err) == compareFailed, errors.Is(err, ceph.ErrNotFound):
		return fmt.Errorf("somebody else makes a store here: %w", storagebeat.ErrNotEmpty)
	case unsupported(err):
		return fmt.Errorf("pool %s: %w: %w", s.session.place.Pool, errCoded, err)
	}
	return s.session.verdict(err)
}

// removeBeats removes records that nothing names any more.
func (s *store) removeBeats(ctx context.Context, names []string) error {
	for _, name := range names {
		pool, err := s.session.ready(ctx)
		if err != nil {
			return fmt.Errorf("remove old beat: %w", err)
		}
		if err := pool.Delete(beatPrefix + name); err != nil && !errors.Is(err, ceph.ErrNotFound) {
			return fmt.Errorf("remove old beat: %w", s.session.verdict(err))
		}
	}
	return nil
}

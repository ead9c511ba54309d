package storagebeat

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
)

// Reasons why a store is not used at all.
var (
	// ErrNoIdentity is returned when there is no identity at the path: nobody
	// ran haven store init, or what should be mounted there is not.
	ErrNoIdentity = errors.New("no store identity")
	// ErrNotEmpty is returned when a store should be made where something else is.
	ErrNotEmpty = errors.New("something else is there")
	// ErrNoSlot is returned when a host has no place yet on a store with numbered
	// places: its agent has not learnt from a master which one it is.
	ErrNoSlot = errors.New("no slot yet")
	// ErrSlotTaken is returned when another host's record is in the place that the
	// ledger assigned. It is not written over.
	ErrSlotTaken = errors.New("the slot is another host's")
)

const (
	identityMagic   = "haven-store"
	identityVersion = 1
	identityLimit   = 4096
)

// Identity says which store this is. It is written once, by haven store init;
// without it nothing is read or written.
type Identity struct {
	ID      StoreID `json:"id"`
	Cluster string  `json:"cluster"` // the cluster's configured name
}

type identityFile struct {
	Magic  string `json:"magic"`
	Format int    `json:"format"`
	Identity
}

var clusterPattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

func (id Identity) check() error {
	if id.ID.IsZero() || !clusterPattern.MatchString(id.Cluster) {
		return fmt.Errorf("identity %s of cluster %q is not valid", id.ID, id.Cluster)
	}
	return nil
}

// EncodeIdentity writes an identity as text, of at most 4096 octets.
func EncodeIdentity(id Identity) ([]byte, error) {
	if err := id.check(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(identityFile{identityMagic, identityVersion, id}, "", "  ")
	return append(b, '\n'), err
}

// DecodeIdentity reads what EncodeIdentity wrote. It returns ErrForeign for anything
// that it would not have written.
func DecodeIdentity(b []byte) (Identity, error) {
	var f identityFile
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return Identity{}, fmt.Errorf("decode identity: %w: %w", err, ErrForeign)
	}
	if f.Magic != identityMagic {
		return Identity{}, fmt.Errorf("identity of a %q: %w", f.Magic, ErrForeign)
	}
	if f.Format != identityVersion {
		return Identity{}, fmt.Errorf("store format %d, this program knows %d: %w", f.Format, identityVersion, ErrForeign)
	}
	if err := f.check(); err != nil {
		return Identity{}, fmt.Errorf("%w: %w", err, ErrForeign)
	}
	return f.Identity, nil
}

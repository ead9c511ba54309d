package storagebeat

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	haven "github.com/haven-ha/haven"
)

// A mailbox is a host's place on a store in which a master leaves it a word: the
// poison pill. It is no beat, and no reader of beats looks at it.

var (
	// ErrNoMailbox is returned for a store that has no place for a host's pill.
	ErrNoMailbox = errors.New("no mailbox")
	// ErrNewerPill is returned when a pill of a newer term is there, which is not
	// written over.
	ErrNewerPill = errors.New("a pill of a newer term is there")
)

// Pill asks a host to reset itself at once. That it was written proves nothing.
type Pill struct {
	Store StoreID      `json:"store"`
	Host  haven.HostID `json:"host"` // whose mailbox it is in
	Boot  haven.BootID `json:"boot"` // the boot that is to end
	// Incident and Attempt name the fence attempt in the ledger, and Term and By
	// the master that wrote this.
	Incident haven.IncidentID `json:"incident"`
	Attempt  uint32           `json:"attempt"`
	Term     haven.Term       `json:"term"`
	By       haven.HostID     `json:"by"`
	// Withdrawn says that the pill was taken back: nothing is asked any more.
	Withdrawn bool `json:"withdrawn,omitempty"`
	// Seal shows who wrote it: one who has the cluster's key. See Pill.Sealed.
	Seal [sha256.Size]byte `json:"-"`
}

// RawPill is what one mailbox holds, as it is on a store.
type RawPill struct {
	Host haven.HostID // whose mailbox it is
	Data []byte       // RecordSize octets, or nil when Err says why not
	Err  error        // of reading this one
}

// Mailer is a Device that has mailboxes.
type Mailer interface {
	// WritePill puts a pill into a host's mailbox and returns when the storage has
	// it. It returns ErrNoMailbox where the host has none, ErrNewerPill where the
	// pill of a newer term is, and else what Device.Write returns.
	WritePill(ctx context.Context, pill RawPill) error
}

// The layout of a pill; numbers are little-endian. What is not used is zero. All
// that is used lies in one sector, so that a write is never seen by halves.
//
//	  0  magic              8 octets
//	  8  version            u16
//	 12  checksum           u32, CRC-32C of the record with this field zero
//	 16  flags              u32
//	 20  attempt            u32
//	 24  store id           16 octets
//	 40  generation, term   u64 each
//	 64  host, boot, by     64 octets each: length u8, then text
//	256  incident           128 octets: length u8, then text
//	384  seal               32 octets
//	416  reserved
const (
	offPillAttempt  = 20
	offPillTerm     = 40
	offPillNames    = 64
	offPillIncident = 256
	incidentSize    = 128
	offPillSeal     = 384

	pillVersion = 1

	flagWithdrawn uint32 = 1
)

var pillMagic = [8]byte{'H', 'A', 'V', 'E', 'N', 'P', 'L', '\n'}

// EncodePill writes a pill into a record of RecordSize octets. It fails for names
// that are missing or too long, which are faults of the caller.
func EncodePill(p Pill) ([]byte, error) {
	if _, err := haven.ParseHostID(string(p.Host)); err != nil {
		return nil, fmt.Errorf("encode pill: %w", err)
	}
	if p.Boot == "" || p.Incident == "" || p.By == "" || p.Term.IsZero() {
		return nil, fmt.Errorf("encode pill: boot %q, incident %q, term %s and writer %q must all be given", p.Boot, p.Incident, p.Term, p.By)
	}
	r := make([]byte, RecordSize)
	copy(r, pillMagic[:])
	binary.LittleEndian.PutUint16(r[offVersion:], pillVersion)
	if p.Withdrawn {
		binary.LittleEndian.PutUint32(r[offFlags:], flagWithdrawn)
	}
	binary.LittleEndian.PutUint32(r[offPillAttempt:], p.Attempt)
	copy(r[offStore:], p.Store[:])
	binary.LittleEndian.PutUint64(r[offPillTerm:], p.Term.Generation)
	binary.LittleEndian.PutUint64(r[offPillTerm+8:], p.Term.Term)
	for i, s := range []string{string(p.Host), string(p.Boot), string(p.By)} {
		if err := putName(r[offPillNames+nameSize*i:][:nameSize], s); err != nil {
			return nil, fmt.Errorf("encode pill: %w", err)
		}
	}
	if err := putName(r[offPillIncident:][:incidentSize], string(p.Incident)); err != nil {
		return nil, fmt.Errorf("encode pill: %w", err)
	}
	copy(r[offPillSeal:], p.Seal[:])
	binary.LittleEndian.PutUint32(r[offSum:], checksum(r))
	return r, nil
}

func putName(to []byte, s string) error {
	if len(s) >= len(to) {
		return fmt.Errorf("name %q is longer than %d octets", s, len(to)-1)
	}
	to[0] = byte(len(s))
	copy(to[1:], s)
	return nil
}

// DecodePill reads a record. It accepts exactly what EncodePill makes, whoever
// sealed it; see Pill.SealedBy. Its errors are those of Decode: ErrBlank says that
// the mailbox was never used.
func DecodePill(r []byte) (Pill, error) {
	if len(r) != RecordSize {
		return Pill{}, fmt.Errorf("%d octets instead of %d: %w", len(r), RecordSize, ErrTorn)
	}
	switch {
	case blank(r):
		return Pill{}, ErrBlank
	case [8]byte(r) != pillMagic:
		return Pill{}, fmt.Errorf("starts with % x: %w", r[:8], ErrForeign)
	case !whole(r):
		return Pill{}, ErrTorn
	}
	if v := binary.LittleEndian.Uint16(r[offVersion:]); v != pillVersion {
		return Pill{}, fmt.Errorf("version %d of a pill, this program knows %d: %w", v, pillVersion, ErrVersion)
	}
	p := Pill{
		Store: StoreID(r[offStore : offStore+16]), Attempt: binary.LittleEndian.Uint32(r[offPillAttempt:]),
		Term: haven.Term{
			Generation: binary.LittleEndian.Uint64(r[offPillTerm:]), Term: binary.LittleEndian.Uint64(r[offPillTerm+8:]),
		},
		Withdrawn: binary.LittleEndian.Uint32(r[offFlags:])&flagWithdrawn != 0,
		Seal:      [sha256.Size]byte(r[offPillSeal:]),
	}
	var names [4]string
	for i := range names {
		at, size := offPillNames+nameSize*i, nameSize
		if i == 3 {
			at, size = offPillIncident, incidentSize
		}
		n := int(r[at])
		if n >= size {
			return Pill{}, fmt.Errorf("name of %d octets: %w", n, ErrForeign)
		}
		names[i] = string(r[at+1 : at+1+n])
	}
	p.Host, p.Boot, p.By, p.Incident = haven.HostID(names[0]), haven.BootID(names[1]), haven.HostID(names[2]), haven.IncidentID(names[3])
	if again, err := EncodePill(p); err != nil || !bytes.Equal(again, r) {
		return Pill{}, fmt.Errorf("not in canonical form: %w", ErrForeign)
	}
	return p, nil
}

// DecodePillAt reads what a host's mailbox on a store holds. Its errors are those
// of DecodePill; one that the record already has is returned as it is.
func DecodePillAt(store StoreID, raw RawPill) (Pill, error) {
	if raw.Err != nil {
		return Pill{}, raw.Err
	}
	p, err := DecodePill(raw.Data)
	if err != nil {
		return Pill{}, err
	}
	if p.Store != store {
		return Pill{}, fmt.Errorf("written for store %s: %w", p.Store, ErrForeign)
	}
	if p.Host != raw.Host {
		return Pill{}, fmt.Errorf("written for host %s: %w", p.Host, ErrForeign)
	}
	return p, nil
}

// MayReplace says whether a pill may be written over what a mailbox holds. What
// is no pill of this host and store is no reason against it.
func (p Pill) MayReplace(there []byte) error {
	old, err := DecodePillAt(p.Store, RawPill{Host: p.Host, Data: there})
	if err == nil && p.Term.Older(old.Term) {
		return fmt.Errorf("term %s, written by %s, and this one is of term %s: %w", old.Term, old.By, p.Term, ErrNewerPill)
	}
	return nil
}

// PillKey makes the key that seals a cluster's pills out of a secret that all its
// agents share. It serves for nothing else.
func PillKey(secret []byte, cluster string) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, secret, []byte(cluster), "haven poison pill", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("make key for pills: %w", err)
	}
	return key, nil
}

// Sealed returns the pill with the seal of a key: for this store, this host, this
// boot, this attempt and this term only.
func (p Pill) Sealed(key []byte) (Pill, error) {
	p.Seal = [sha256.Size]byte{}
	r, err := EncodePill(p)
	if err != nil {
		return Pill{}, err
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(r)
	copy(p.Seal[:], mac.Sum(nil))
	return p, nil
}

// SealedBy says whether the pill bears the seal of one of the keys. All others may
// come from anybody who can write to the store.
func (p Pill) SealedBy(keys ...[]byte) bool {
	ok := false
	for _, key := range keys {
		want, err := p.Sealed(key)
		ok = err == nil && hmac.Equal(want.Seal[:], p.Seal[:]) || ok
	}
	return ok
}

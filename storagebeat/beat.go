package storagebeat

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	haven "github.com/haven-ha/haven"
)

// Writer says which of a host's two processes writes a beat. They write
// separate records, so that a dead agent on a live host shows.
type Writer uint8

// The writers of a host. The numbers are those in the record.
const (
	WriterAgent  Writer = 1
	WriterHelper Writer = 2
)

func (w Writer) String() string {
	switch w {
	case WriterAgent:
		return "agent"
	case WriterHelper:
		return "helper"
	}
	return fmt.Sprintf("writer-%d", uint8(w))
}

// ParseWriter reads what Writer.String wrote.
func ParseWriter(s string) (Writer, error) {
	switch s {
	case "agent":
		return WriterAgent, nil
	case "helper":
		return WriterHelper, nil
	}
	return 0, fmt.Errorf("writer %q: want agent or helper", s)
}

// StoreID is a store's identity, drawn at random by haven store init. Every
// record names the store it was written for.
type StoreID [16]byte

// IsZero says whether there is no identity.
func (id StoreID) IsZero() bool { return id == StoreID{} }

func (id StoreID) String() string { return formatUUID(id) }

// MarshalText writes the identity as a UUID.
func (id StoreID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (id *StoreID) UnmarshalText(b []byte) error {
	u, ok := parseUUID(string(b))
	if !ok {
		return fmt.Errorf("store id %q: want a UUID", b)
	}
	*id = u
	return nil
}

// Beat is what one writer says about its host.
type Beat struct {
	Store  StoreID      `json:"store"`
	Host   haven.HostID `json:"host"`
	Writer Writer       `json:"writer"`

	// Boot, State and Incarnation name the life of the writer. Incarnation
	// only ever grows for one State.
	Boot        haven.BootID      `json:"boot"`
	State       haven.StateID     `json:"state"`
	Incarnation haven.Incarnation `json:"incarnation"`
	// Sequence counts the writes that were tried in this life, from 1.
	Sequence uint64 `json:"sequence"`
	// Interval is the time the writer means to leave between two beats.
	Interval time.Duration `json:"interval_ns"`

	Term        haven.Term   `json:"term"`             // the highest it has seen
	Master      haven.HostID `json:"master,omitempty"` // which master it sees; empty when none
	KnowsLedger bool         `json:"knows_ledger"`     // it is, or was, part of a cluster that has a ledger
	Isolated    bool         `json:"isolated"`         // it sees nobody on the network
	// Releasing says that it is isolated and stops its VMs, as configured: those
	// that are not among VMs are gone, and it does not start them again by itself.
	Releasing bool `json:"releasing,omitempty"`
	// Resetting says that it obeys a pill and resets the machine now. It proves
	// nothing: a host that says so lived when it said it, and the reset may fail.
	Resetting bool              `json:"resetting,omitempty"`
	Left      haven.LeaveReason `json:"left,omitempty"` // set in the last beat before a stop on purpose
	// Watchdog is the timeout of the armed watchdog, or 0 when none is armed.
	Watchdog time.Duration `json:"watchdog_ns,omitempty"`

	// VMs are the VMs that run, sorted by id. Complete says that these are
	// all: the VM manager answered and the ids fit. An absent id means
	// nothing otherwise.
	VMs      []haven.VMID `json:"vms"`
	Complete bool         `json:"complete"`
}

// life is what a sequence counts within.
type life struct {
	boot        haven.BootID
	state       haven.StateID
	incarnation haven.Incarnation
}

func (b *Beat) life() life { return life{b.Boot, b.State, b.Incarnation} }

// RawBeat is one record as it is on a store.
type RawBeat struct {
	Host   haven.HostID // whose place it was read from, or is written to
	Writer Writer
	// Slot is the host's numbered place, from 1, on a store that has such: where
	// the record was read, or what the ledger assigned to its writer. 0 is
	// unknown.
	Slot uint16
	Data []byte // RecordSize octets, or nil when Err says why not
	Err  error  // of reading this one record
}

func formatUUID(b [16]byte) string {
	h := hex.EncodeToString(b[:])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

// parseUUID takes the canonical lower-case form only.
func parseUUID(s string) (u [16]byte, ok bool) {
	if id, err := haven.ParseVMID(s); err != nil || string(id) != s {
		return u, false
	}
	if _, err := hex.Decode(u[:], []byte(strings.ReplaceAll(s, "-", ""))); err != nil {
		return u, false
	}
	return u, true
}

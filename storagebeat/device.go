package storagebeat

import (
	"context"
	"errors"

	"github.com/haven-ha/haven/internal/blockio"
)

// Device is one store as a Monitor uses it. Child is the real one; the simulator
// has its own. Calls come one at a time and must return soon after their
// context ends, whatever the storage does.
type Device interface {
	// ReadAll reads the identity and every record. It fails as a whole when
	// the identity is missing (ErrNoIdentity) or foreign (ErrForeign), or
	// when records cannot be listed.
	ReadAll(ctx context.Context) (Contents, error)
	// Write writes one record in place and returns when the storage has it.
	// A record that is not for the store's present identity is refused with
	// ErrForeign. After an error the record may still arrive, even much later.
	Write(ctx context.Context, beat RawBeat) error
}

// Contents is what a store holds.
type Contents struct {
	Identity Identity
	Beats    []RawBeat
	// Pills are what is in the mailboxes that were ever used. A store that many
	// hosts read at a cost may show a reader only those of the hosts it writes for.
	Pills []RawPill
	// NoMailbox says why the store has no mailboxes; empty when it has.
	NoMailbox string
}

// Entry is one record decoded for people.
type Entry struct {
	Host   string `json:"host"`
	Writer string `json:"writer"`
	Slot   uint16 `json:"slot,omitempty"`
	Beat   *Beat  `json:"beat,omitempty"`
	Error  string `json:"error,omitempty"` // why there is no beat
}

// PillEntry is one mailbox that was used, decoded for people.
type PillEntry struct {
	Host  string `json:"host"`
	Pill  *Pill  `json:"pill,omitempty"`
	Error string `json:"error,omitempty"` // why there is no pill
}

// DumpPills decodes all mailboxes that hold something.
func DumpPills(c Contents) []PillEntry {
	var entries []PillEntry
	for _, raw := range c.Pills {
		e := PillEntry{Host: string(raw.Host)}
		p, err := DecodePillAt(c.Identity.ID, raw)
		switch {
		case errors.Is(err, ErrBlank):
			continue
		case err != nil:
			e.Error = err.Error()
		default:
			e.Pill = &p
		}
		entries = append(entries, e)
	}
	return entries
}

// Dump decodes all records of a store.
func Dump(c Contents) []Entry {
	entries := make([]Entry, 0, len(c.Beats))
	for _, raw := range c.Beats {
		e := Entry{Host: string(raw.Host), Writer: raw.Writer.String(), Slot: raw.Slot}
		if b, err := DecodeAt(c.Identity.ID, raw); err != nil {
			e.Error = err.Error()
		} else {
			e.Beat = &b
		}
		entries = append(entries, e)
	}
	return entries
}

// codeError carries an error from the child over the pipe: its text, and which
// of the errors that callers look for it is.
type codeError struct {
	text string
	is   error
}

func (e *codeError) Error() string { return e.text }
func (e *codeError) Unwrap() error { return e.is }

// coded are the errors that survive the pipe, by name.
func coded() map[string]error {
	return map[string]error{
		"blank": ErrBlank, "torn": ErrTorn, "foreign": ErrForeign, "version": ErrVersion,
		"no-identity": ErrNoIdentity, "not-empty": ErrNotEmpty, "not-plain": blockio.ErrNotPlain, "timeout": ErrTimeout,
		"no-slot": ErrNoSlot, "slot-taken": ErrSlotTaken, "no-mailbox": ErrNoMailbox, "newer-pill": ErrNewerPill,
	}
}

type wireError struct {
	Code string `json:"code,omitempty"`
	Text string `json:"text"`
}

func toWire(err error) *wireError {
	if err == nil {
		return nil
	}
	w := &wireError{Text: err.Error()}
	for code, is := range coded() {
		// ErrNoIdentity and its kind are more telling than what they wrap.
		if errors.Is(err, is) && (w.Code == "" || code < w.Code) {
			w.Code = code
		}
	}
	return w
}

func fromWire(w *wireError) error {
	if w == nil {
		return nil
	}
	if is := coded()[w.Code]; is != nil {
		return &codeError{w.Text, is}
	}
	return errors.New(w.Text)
}

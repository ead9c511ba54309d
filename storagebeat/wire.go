package storagebeat

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	haven "github.com/haven-ha/haven"
)

// A message on the pipes between a process and its child is
//
//	length of the header u32, length of the records u32, header as JSON, records
//
// with little-endian lengths. The child answers each request with one message of
// the same id.
const (
	maxHeader  = 1 << 20
	maxRecords = maxFiles * RecordSize
)

type op string

const (
	opRead  op = "read"
	opWrite op = "write"
	opPill  op = "pill"
	opProbe op = "probe"
	opInit  op = "init"
	opCheck op = "check"
	opStat  op = "stat"
)

type request struct {
	ID     uint64       `json:"id"`
	Op     op           `json:"op"`
	Host   haven.HostID `json:"host,omitempty"`   // of a write or a pill; the record follows
	Writer Writer       `json:"writer,omitempty"` // of a write
	Slot   uint16       `json:"slot,omitempty"`   // of a write
	Path   string       `json:"path,omitempty"`   // of a probe or a stat
	Init   *InitOptions `json:"init,omitempty"`
	// Within is what is left of the deadline.
	Within time.Duration `json:"within_ns"`

	record []byte
}

type response struct {
	ID       uint64       `json:"id"`
	Error    *wireError   `json:"error,omitempty"`
	Identity *Identity    `json:"identity,omitempty"`
	Beats    []wireBeat   `json:"beats,omitempty"`
	Pills    []wirePill   `json:"pills,omitempty"`
	NoMail   string       `json:"no_mailbox,omitempty"`
	Check    *CheckReport `json:"check,omitempty"`
	Probe    *Probe       `json:"probe,omitempty"`
	Attr     *FileAttr    `json:"attr,omitempty"`

	records []byte
}

// wireBeat announces one of the records, unless it has an error.
type wireBeat struct {
	Host   haven.HostID `json:"h"`
	Writer Writer       `json:"w"`
	Slot   uint16       `json:"s,omitempty"`
	Error  *wireError   `json:"e,omitempty"`
}

// wirePill announces one of the records that follow those of the beats, unless it
// has an error.
type wirePill struct {
	Host  haven.HostID `json:"h"`
	Error *wireError   `json:"e,omitempty"`
}

func (r *response) setContents(c Contents) {
	r.Identity, r.NoMail = &c.Identity, c.NoMailbox
	r.records = make([]byte, 0, (len(c.Beats)+len(c.Pills))*RecordSize)
	for _, raw := range c.Beats {
		r.Beats = append(r.Beats, wireBeat{raw.Host, raw.Writer, raw.Slot, toWire(raw.Err)})
		if raw.Err == nil {
			r.records = append(r.records, raw.Data...)
		}
	}
	for _, raw := range c.Pills {
		r.Pills = append(r.Pills, wirePill{raw.Host, toWire(raw.Err)})
		if raw.Err == nil {
			r.records = append(r.records, raw.Data...)
		}
	}
}

func (r *response) contents() (Contents, error) {
	if r.Identity == nil {
		return Contents{}, errors.New("answer without an identity")
	}
	c := Contents{Identity: *r.Identity, NoMailbox: r.NoMail}
	rest := r.records
	next := func(err error) ([]byte, error) {
		if err != nil {
			return nil, nil
		}
		if len(rest) < RecordSize {
			return nil, errors.New("answer with too few records")
		}
		var data []byte
		data, rest = rest[:RecordSize:RecordSize], rest[RecordSize:]
		return data, nil
	}
	for _, w := range r.Beats {
		raw := RawBeat{Host: w.Host, Writer: w.Writer, Slot: w.Slot, Err: fromWire(w.Error)}
		var err error
		if raw.Data, err = next(raw.Err); err != nil {
			return Contents{}, err
		}
		c.Beats = append(c.Beats, raw)
	}
	for _, w := range r.Pills {
		raw := RawPill{Host: w.Host, Err: fromWire(w.Error)}
		var err error
		if raw.Data, err = next(raw.Err); err != nil {
			return Contents{}, err
		}
		c.Pills = append(c.Pills, raw)
	}
	if len(rest) > 0 {
		return Contents{}, errors.New("answer with too many records")
	}
	return c, nil
}

func sendMessage(w io.Writer, header any, records []byte) error {
	h, err := json.Marshal(header)
	if err != nil {
		return err
	}
	if len(h) > maxHeader || len(records) > maxRecords {
		return fmt.Errorf("message of %d and %d octets is too long", len(h), len(records))
	}
	m := make([]byte, 8, 8+len(h)+len(records))
	binary.LittleEndian.PutUint32(m, uint32(len(h)))
	binary.LittleEndian.PutUint32(m[4:], uint32(len(records)))
	_, err = w.Write(append(append(m, h...), records...))
	return err
}

func receiveMessage(r io.Reader, header any) (records []byte, err error) {
	var lengths [8]byte
	if _, err := io.ReadFull(r, lengths[:]); err != nil {
		return nil, err
	}
	h, n := binary.LittleEndian.Uint32(lengths[:]), binary.LittleEndian.Uint32(lengths[4:])
	if h > maxHeader || n > maxRecords {
		return nil, fmt.Errorf("message of %d and %d octets is too long", h, n)
	}
	text, records := make([]byte, h), make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(r, records); err != nil {
		return nil, err
	}
	return records, json.Unmarshal(text, header)
}

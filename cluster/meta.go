package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/haven-ha/haven"
)

// Meta is what a member tells about itself through gossip. It is a hint: the
// key to the gossip is shared by all members, so any of them could have
// written it. Whoever acts on it asks the host or the ledger first.
type Meta struct {
	// Boot names the running boot of the host's kernel, at most 64 octets.
	Boot haven.BootID
	// Session is drawn at random at each start of the agent. This package
	// sets it; a value given to SetMeta is not used.
	Session uint64
	// Server is the agent's Raft server id, at most 64 octets; empty if it has none.
	Server string
	// APIPort is the TCP port of the agent's API; 0 while it has none.
	APIPort uint16
	// Role is hypervisor or witness; empty counts as hypervisor.
	Role haven.Role
	// Voter says that the agent believes itself to be a Raft voter.
	Voter bool
	// Ledger says that the agent knows a ledger; Generation is that ledger's.
	Ledger     bool
	Generation uint64
	// Master is the host that the agent last saw as master, in MasterTerm; empty
	// if it saw none.
	Master     haven.HostID
	MasterTerm haven.Term
	// Leave is set by an agent that is about to leave. This package sets it; a
	// value given to SetMeta is not used.
	Leave haven.LeaveReason
}

// The encoding, version 1:
//
//	version 1 | flags 1 | leave 1 | API port 2 | session 8 | generation uvarint |
//	master term: generation uvarint, term uvarint | boot, server, master: length 1, octets
//
// Exactly one encoding stands for each value, and nothing may follow it.
const (
	metaVersion   = 1
	metaFixed     = 13
	maxMetaString = 64
)

const (
	flagVoter = 1 << iota
	flagLedger
	flagWitness
	flagsKnown = 1<<iota - 1
)

var errMeta = errors.New("malformed meta")

func leaveCode(r haven.LeaveReason) (byte, error) {
	switch r {
	case haven.LeaveNone:
		return 0, nil
	case haven.LeaveStopped:
		return 1, nil
	case haven.LeaveShutdown:
		return 2, nil
	case haven.LeaveUninstall:
		return 3, nil
	}
	return 0, fmt.Errorf("leave reason %q is not one that can be told", r)
}

func leaveReason(code byte) (haven.LeaveReason, bool) {
	switch code {
	case 0:
		return haven.LeaveNone, true
	case 1:
		return haven.LeaveStopped, true
	case 2:
		return haven.LeaveShutdown, true
	case 3:
		return haven.LeaveUninstall, true
	}
	return haven.LeaveNone, false
}

// encode checks and encodes m. The result is at most 250 octets, well below the
// 512 that gossip carries.
func (m Meta) encode() ([]byte, error) {
	leave, err := leaveCode(m.Leave)
	if err != nil {
		return nil, err
	}
	var flags byte
	if m.Voter {
		flags |= flagVoter
	}
	if m.Ledger {
		flags |= flagLedger
	}
	switch m.Role {
	case haven.RoleWitness:
		flags |= flagWitness
	case haven.RoleHypervisor, "":
	default:
		return nil, fmt.Errorf("role %q is not one that can be told", m.Role)
	}
	b := make([]byte, 0, 128)
	b = append(b, metaVersion, flags, leave)
	b = binary.BigEndian.AppendUint16(b, m.APIPort)
	b = binary.BigEndian.AppendUint64(b, m.Session)
	b = binary.AppendUvarint(b, m.Generation)
	b = binary.AppendUvarint(b, m.MasterTerm.Generation)
	b = binary.AppendUvarint(b, m.MasterTerm.Term)
	for _, s := range []string{string(m.Boot), m.Server, string(m.Master)} {
		if !plain(s) {
			return nil, fmt.Errorf("%q: want at most %d printable ASCII octets without spaces", s, maxMetaString)
		}
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	return b, nil
}

// decodeMeta reads what encode wrote, and refuses everything else.
func decodeMeta(b []byte) (Meta, error) {
	if len(b) == 0 {
		return Meta{}, fmt.Errorf("%w: empty", errMeta)
	}
	if b[0] != metaVersion {
		return Meta{}, fmt.Errorf("%w: version %d is not known here", errMeta, b[0])
	}
	if len(b) < metaFixed {
		return Meta{}, fmt.Errorf("%w: too short", errMeta)
	}
	flags := b[1]
	leave, ok := leaveReason(b[2])
	if !ok || flags&^flagsKnown != 0 {
		return Meta{}, fmt.Errorf("%w: unknown flag or leave reason", errMeta)
	}
	m := Meta{
		Role:    haven.RoleHypervisor,
		Voter:   flags&flagVoter != 0,
		Ledger:  flags&flagLedger != 0,
		Leave:   leave,
		APIPort: binary.BigEndian.Uint16(b[3:5]),
		Session: binary.BigEndian.Uint64(b[5:13]),
	}
	if flags&flagWitness != 0 {
		m.Role = haven.RoleWitness
	}
	d := metaReader{rest: b[metaFixed:]}
	m.Generation = d.uvarint()
	m.MasterTerm = haven.Term{Generation: d.uvarint(), Term: d.uvarint()}
	m.Boot = haven.BootID(d.string())
	m.Server = d.string()
	m.Master = haven.HostID(d.string())
	if d.bad || len(d.rest) > 0 {
		return Meta{}, fmt.Errorf("%w: cut off, too long or not in plain form", errMeta)
	}
	return m, nil
}

// metaReader takes fields off the front of rest until one is bad.
type metaReader struct {
	rest []byte
	bad  bool
}

func (d *metaReader) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	// A last octet of zero pads the number, a second form of the same value.
	if n <= 0 || (n > 1 && d.rest[n-1] == 0) {
		d.bad, d.rest = true, nil
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *metaReader) string() string {
	if d.bad || len(d.rest) == 0 || len(d.rest)-1 < int(d.rest[0]) {
		d.bad, d.rest = true, nil
		return ""
	}
	s := string(d.rest[1 : 1+int(d.rest[0])])
	d.rest = d.rest[1+len(s):]
	if !plain(s) {
		d.bad = true
		return ""
	}
	return s
}

// plain says whether s is short and printable, so that it can be shown in a
// log or a table whoever wrote it.
func plain(s string) bool {
	if len(s) > maxMetaString {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// A notice is a member's word, sent straight to every other, that it is about to
// leave. Gossip alone may bring the leave to a member before the reason, and a
// reason that comes second is dropped with the old incarnation.
//
//	'L' 1 | version 1 | leave 1 | session 8 | host: length 1, octets
type notice struct {
	host    string
	session uint64
	reason  haven.LeaveReason
}

const noticeKind = 'L'

func (n notice) encode() ([]byte, error) {
	code, err := leaveCode(n.reason)
	if err != nil {
		return nil, err
	}
	if n.host == "" || !plain(n.host) {
		return nil, fmt.Errorf("host %q cannot be told", n.host)
	}
	b := []byte{noticeKind, metaVersion, code}
	b = binary.BigEndian.AppendUint64(b, n.session)
	b = append(b, byte(len(n.host)))
	return append(b, n.host...), nil
}

func decodeNotice(b []byte) (notice, error) {
	if len(b) < 12 || b[0] != noticeKind || b[1] != metaVersion {
		return notice{}, errors.New("not a known message")
	}
	reason, ok := leaveReason(b[2])
	d := metaReader{rest: b[11:]}
	n := notice{host: d.string(), session: binary.BigEndian.Uint64(b[3:11]), reason: reason}
	if !ok || reason == haven.LeaveNone || d.bad || len(d.rest) > 0 || n.host == "" {
		return notice{}, errors.New("malformed leave notice")
	}
	return n, nil
}

// Package snmp sends notifications as SNMP traps or informs, of version 2c or 3,
// as packaging/HAVEN-MIB.txt describes them.
package snmp

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gosnmp/gosnmp"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/notify"
	"github.com/haven-ha/haven/internal/redact"
)

// Base is the OID of HAVEN-MIB: a placeholder under the experimental arc, until
// an enterprise number is assigned.
const Base = ".1.3.6.1.3.7463"

// Version is that of the protocol.
type Version string

// The versions.
const (
	V2c Version = "v2c"
	V3  Version = "v3" // with authentication and privacy, always
)

// Config is one manager.
type Config struct {
	Addr    string // host:port
	Version Version
	// Inform says to send informs, which the manager acknowledges. A trap is sent
	// and never heard of again.
	Inform bool
	// Community is read for each message of version 2c.
	Community func() (string, error)
	// Username, Auth and Privacy are of version 3. Auth is sha256, sha384 or
	// sha512; Privacy aes128, aes192 or aes256.
	Username                string
	Auth, Privacy           string
	AuthSecret, PrivacyPass func() (string, error)
	// Host names this agent's engine, and Boots counts its starts: a manager takes
	// no trap of version 3 from an engine whose time seems to run backwards.
	Host  haven.HostID
	Boots uint32
	// Started is when this agent started.
	Started time.Time
}

// Sender sends traps. It keeps no socket.
type Sender struct {
	cfg   Config
	host  string
	port  uint16
	kinds notify.Catalogue
}

// New checks the configuration.
func New(cfg Config) (*Sender, error) {
	host, port, err := net.SplitHostPort(cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("SNMP manager: %w", err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("SNMP manager: port: %w", err)
	}
	switch cfg.Version {
	case V2c:
		if cfg.Community == nil {
			return nil, errors.New("SNMP v2c needs a community")
		}
	case V3:
		if cfg.Username == "" || cfg.AuthSecret == nil || cfg.PrivacyPass == nil {
			return nil, errors.New("SNMP v3 needs a user name and two secrets")
		}
		if _, ok := authProtocol(cfg.Auth); !ok {
			return nil, fmt.Errorf("SNMP v3: unknown authentication %q", cfg.Auth)
		}
		if _, ok := privacyProtocol(cfg.Privacy); !ok {
			return nil, fmt.Errorf("SNMP v3: unknown privacy %q", cfg.Privacy)
		}
	default:
		return nil, fmt.Errorf("SNMP version %q: want v2c or v3", cfg.Version)
	}
	return &Sender{cfg: cfg, host: host, port: uint16(n), kinds: notify.NewCatalogue()}, nil
}

func authProtocol(word string) (gosnmp.SnmpV3AuthProtocol, bool) {
	p, ok := map[string]gosnmp.SnmpV3AuthProtocol{"sha256": gosnmp.SHA256, "sha384": gosnmp.SHA384, "sha512": gosnmp.SHA512}[word]
	return p, ok
}

func privacyProtocol(word string) (gosnmp.SnmpV3PrivProtocol, bool) {
	p, ok := map[string]gosnmp.SnmpV3PrivProtocol{"aes128": gosnmp.AES, "aes192": gosnmp.AES192C, "aes256": gosnmp.AES256C}[word]
	return p, ok
}

// EngineID is that of a host's agent (RFC 3411): of no enterprise, in the form of
// text the host's name, or octets of its hash when that is longer than 27.
func EngineID(host haven.HostID) []byte {
	if len(host) <= 27 {
		return append([]byte{0x80, 0, 0, 0, 4}, host...)
	}
	sum := sha256.Sum256([]byte(host))
	return append([]byte{0x80, 0, 0, 0, 5}, sum[:16]...)
}

// answerTimeout bounds the wait for one answer to an inform. An inform of version
// 3 asks three times: for the engine, for its time, and the question itself.
const answerTimeout = 3 * time.Second

// Send sends one notification. A trap that left this host is a success; an inform
// is one when it was acknowledged.
func (s *Sender) Send(ctx context.Context, m notify.Message) error {
	g := &gosnmp.GoSNMP{
		Target: s.host, Port: s.port, Transport: "udp", Timeout: answerTimeout, Retries: 0, MaxOids: gosnmp.MaxOids, Context: ctx,
	}
	var secrets []string
	read := func(what string, from func() (string, error)) (string, error) {
		secret, err := from()
		if err != nil {
			return "", fmt.Errorf("read %s: %w", what, err)
		}
		secrets = append(secrets, secret)
		return secret, nil
	}
	var err error
	switch s.cfg.Version {
	case V3:
		err = s.version3(g, read)
	case V2c:
		g.Version = gosnmp.Version2c
		g.Community, err = read("community", s.cfg.Community)
	}
	if err != nil {
		return err
	}
	return blotted(s.exchange(ctx, g, m), secrets)
}

func (s *Sender) exchange(ctx context.Context, g *gosnmp.GoSNMP, m notify.Message) error {
	if err := g.Connect(); err != nil {
		return fmt.Errorf("open SNMP session with %s: %w", s.cfg.Addr, err)
	}
	defer func() { _ = g.Conn.Close() }() // A socket of ours; nothing was to come any more.
	// The library looks at its context between packets only.
	defer context.AfterFunc(ctx, func() { _ = g.Conn.SetDeadline(time.Unix(1, 0)) })()
	answer, err := g.SendTrap(gosnmp.SnmpTrap{Variables: s.variables(m), IsInform: s.cfg.Inform})
	switch {
	case err != nil:
		return fmt.Errorf("send to SNMP manager %s: %w", s.cfg.Addr, err)
	case s.cfg.Inform && (answer == nil || answer.PDUType != gosnmp.GetResponse || answer.Error != gosnmp.NoError):
		return fmt.Errorf("send to SNMP manager %s: the inform was not acknowledged", s.cfg.Addr)
	}
	return nil
}

// version3 sets up the user. The engine of a trap is this agent; that of an inform
// is the manager, which the library asks.
func (s *Sender) version3(g *gosnmp.GoSNMP, read func(string, func() (string, error)) (string, error)) error {
	auth, err := read("authentication password", s.cfg.AuthSecret)
	if err != nil {
		return err
	}
	privacy, err := read("privacy password", s.cfg.PrivacyPass)
	if err != nil {
		return err
	}
	// RFC 3414 section 11.2: shorter ones are refused by every manager.
	if len(auth) < 8 || len(privacy) < 8 {
		return errors.New("SNMP v3 passwords have at least 8 characters")
	}
	usm := &gosnmp.UsmSecurityParameters{
		UserName: s.cfg.Username, AuthenticationPassphrase: auth, PrivacyPassphrase: privacy,
	}
	usm.AuthenticationProtocol, _ = authProtocol(s.cfg.Auth)
	usm.PrivacyProtocol, _ = privacyProtocol(s.cfg.Privacy)
	if !s.cfg.Inform {
		usm.AuthoritativeEngineID = string(EngineID(s.cfg.Host))
		usm.AuthoritativeEngineBoots = max(1, min(s.cfg.Boots, math.MaxInt32))
		usm.AuthoritativeEngineTime = uint32(min(max(time.Since(s.cfg.Started)/time.Second, 1), math.MaxInt32))
		g.ContextEngineID = string(EngineID(s.cfg.Host))
	}
	g.Version, g.SecurityModel, g.MsgFlags, g.SecurityParameters = gosnmp.Version3, gosnmp.UserSecurityModel, gosnmp.AuthPriv, usm
	return nil
}

// Bounds that keep a notification within one datagram, in octets.
const (
	maxShort = 128
	maxDo    = 200
	maxText  = 500
)

// variables are what the MIB's notification types carry, in its order.
func (s *Sender) variables(m notify.Message) []gosnmp.SnmpPDU {
	class := slices.Index(notify.Classes(), s.kinds.Lookup(m.Kind).Class) + 1
	vars := []gosnmp.SnmpPDU{
		// In hundredths of a second; it wraps after 497 days, as it must.
		{Name: ".1.3.6.1.2.1.1.3.0", Type: gosnmp.TimeTicks, Value: uint32(time.Since(s.cfg.Started) / (10 * time.Millisecond))},
		{Name: ".1.3.6.1.6.3.1.1.4.1.0", Type: gosnmp.ObjectIdentifier, Value: Base + ".0." + strconv.Itoa(class)},
	}
	add := func(kind gosnmp.Asn1BER, value any) {
		vars = append(vars, gosnmp.SnmpPDU{Name: fmt.Sprintf("%s.1.%d.0", Base, len(vars)-1), Type: kind, Value: value})
	}
	text := func(value string, limit int) { add(gosnmp.OctetString, cut(value, limit)) }
	text(m.ID, maxShort)
	text(m.Kind, maxShort)
	add(gosnmp.Integer, int(m.Severity))
	text(m.Cluster, maxShort)
	text(string(m.By), maxShort)
	text(string(m.Host), maxShort)
	text(string(m.VM), maxShort)
	text(string(m.Incident), maxShort)
	text(m.Text, maxText)
	text(m.Do, maxDo)
	text(m.Time.UTC().Format(time.RFC3339), maxShort)
	add(gosnmp.Gauge32, uint32(m.Count))
	add(gosnmp.Gauge32, uint32(m.Dropped))
	return vars
}

func cut(s string, limit int) string {
	const more = "…"
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit-len(more)], "") + more
}

// blotted takes secrets out of an error; the library's are not known to hold any.
func blotted(err error, secrets []string) error {
	if err == nil {
		return nil
	}
	text := redact.Text(err.Error(), secrets...)
	if text == err.Error() {
		return err
	}
	return errors.New(text)
}

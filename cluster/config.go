package cluster

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/netx"
)

// Config says who this agent is and whom it looks for.
type Config struct {
	// Cluster is the cluster's name, 1 to 64 printable octets. It labels all
	// gossip and is bound into its encryption: agents of another cluster, even
	// with the same key, are not heard.
	Cluster string
	// Host is this agent's configured name.
	Host haven.HostID
	// Bind is the literal address and port of the sockets, TCP and UDP.
	Bind netip.AddrPort
	// Advertise is what others are told to send to. Its zero value means Bind,
	// which must then be a specific address.
	Advertise netip.AddrPort
	// Keys are the gossip keys. The first encrypts; every one decrypts. There is
	// at least one and there are at most MaxKeys.
	Keys []Key
	// Peers are the configured hosts with their gossip addresses. This agent
	// itself may be among them.
	Peers map[haven.HostID]netip.AddrPort
	// Meta is what is told about this agent at first.
	Meta Meta
	// Timing has the protocol's times. Its zero value means DefaultTiming.
	Timing Timing
	// Net opens the sockets.
	Net netx.Stack
	// Log is where this package and memberlist write.
	Log *slog.Logger
	// OnDrop is told of each thing that was thrown away, by kind: one of the
	// Drop… words. It is called from inside the protocol and must not block. It
	// may be nil.
	OnDrop func(kind string)
}

// The kinds of what is thrown away.
const (
	DropPacket  = "packet"  // a datagram too long for gossip
	DropStream  = "stream"  // a connection above the bound of open ones, or one that sent too much
	DropSocket  = "socket"  // a read or accept that failed
	DropSecret  = "secret"  // a message with another key, or none
	DropLabel   = "label"   // a message of another cluster
	DropMember  = "member"  // an announcement of a member that cannot be one
	DropMessage = "message" // a malformed message of an authenticated peer
	DropEvent   = "event"   // events replaced by one EventResync
	DropLog     = "log"     // lines of memberlist's log
)

// MaxKeys bounds the gossip keys: one in use, one coming, one going.
const MaxKeys = 3

// Timing has the times of the gossip protocol. The defaults are memberlist's LAN
// profile with a quicker full exchange, as measured in the simulations that
// docs/architecture.md tells of.
type Timing struct {
	ProbeInterval time.Duration // between probes of one member each
	ProbeTimeout  time.Duration // of a direct probe; shorter than ProbeInterval
	// SuspicionMult times max(1, log10 members) times ProbeInterval is how long a
	// suspect may answer before it is called dead.
	SuspicionMult    int
	GossipInterval   time.Duration // between rounds of gossip
	PushPullInterval time.Duration // between full exchanges with one member
	GossipToTheDead  time.Duration // how long memberlist remembers a dead member
	// ReclaimAfter is how long a member must be dead before its name may come
	// back from another address.
	ReclaimAfter  time.Duration
	StreamTimeout time.Duration // of a connection attempt, and of each side's turn on it
	// RejoinMin to RejoinMax is the time between attempts to join configured
	// hosts that are not alive; RejoinAlone while nobody else is.
	RejoinMin, RejoinMax, RejoinAlone time.Duration
	MetaInterval                      time.Duration // least time between two announcements of changed meta
}

// DefaultTiming returns the times for a local network.
func DefaultTiming() Timing {
	return Timing{
		ProbeInterval:    time.Second,
		ProbeTimeout:     500 * time.Millisecond,
		SuspicionMult:    4,
		GossipInterval:   200 * time.Millisecond,
		PushPullInterval: 10 * time.Second,
		GossipToTheDead:  30 * time.Second,
		ReclaimAfter:     30 * time.Second,
		StreamTimeout:    3 * time.Second,
		RejoinMin:        5 * time.Second,
		RejoinMax:        10 * time.Second,
		RejoinAlone:      time.Second,
		MetaInterval:     500 * time.Millisecond,
	}
}

func (t Timing) check() error {
	var errs []error
	for _, d := range []struct {
		name string
		d    time.Duration
	}{
		{"probe interval", t.ProbeInterval},
		{"probe timeout", t.ProbeTimeout},
		{"gossip interval", t.GossipInterval},
		{"push-pull interval", t.PushPullInterval},
		{"gossip to the dead", t.GossipToTheDead},
		{"reclaim after", t.ReclaimAfter},
		{"stream timeout", t.StreamTimeout},
		{"rejoin minimum", t.RejoinMin},
		{"rejoin alone", t.RejoinAlone},
		{"meta interval", t.MetaInterval},
	} {
		if d.d < time.Millisecond {
			errs = append(errs, fmt.Errorf("%s %v: want at least 1ms", d.name, d.d))
		}
	}
	if t.ProbeTimeout >= t.ProbeInterval {
		errs = append(errs, fmt.Errorf("probe timeout %v: want less than the probe interval %v", t.ProbeTimeout, t.ProbeInterval))
	}
	if t.SuspicionMult < 2 {
		errs = append(errs, fmt.Errorf("suspicion multiplier %d: want at least 2", t.SuspicionMult))
	}
	if t.RejoinMax < t.RejoinMin {
		errs = append(errs, fmt.Errorf("rejoin maximum %v: want at least the minimum %v", t.RejoinMax, t.RejoinMin))
	}
	return errors.Join(errs...)
}

// prepare returns a checked copy of the configuration with defaults filled in.
func (c Config) prepare() (Config, error) {
	if c.Timing == (Timing{}) {
		c.Timing = DefaultTiming()
	}
	if !c.Advertise.IsValid() {
		c.Advertise = c.Bind
	}
	if c.OnDrop == nil {
		c.OnDrop = func(string) {}
	}
	c.Bind, c.Advertise = unmap(c.Bind), unmap(c.Advertise)
	var errs []error
	if c.Cluster == "" || !plain(c.Cluster) {
		errs = append(errs, fmt.Errorf("cluster name %q: want 1 to %d printable ASCII octets without spaces", c.Cluster, maxMetaString))
	}
	if _, err := haven.ParseHostID(string(c.Host)); err != nil {
		errs = append(errs, err)
	}
	if c.Net == nil || c.Log == nil {
		errs = append(errs, errors.New("a network and a logger are needed"))
	}
	if !c.Bind.IsValid() || c.Bind.Port() == 0 || c.Bind.Addr().Zone() != "" {
		errs = append(errs, fmt.Errorf("bind address %v: want a literal IP address without a zone, and a port", c.Bind))
	}
	if err := checkAddr(c.Advertise); err != nil {
		errs = append(errs, fmt.Errorf("advertised address: %w", err))
	}
	keys, err := checkKeys(c.Keys)
	errs = append(errs, err, c.Timing.check())
	c.Keys = keys
	peers, err := checkPeers(c.Peers, c.Host, c.Advertise)
	c.Peers = peers
	return c, errors.Join(append(errs, err)...)
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func checkAddr(a netip.AddrPort) error {
	if !a.IsValid() || a.Port() == 0 || a.Addr().Zone() != "" || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
		return fmt.Errorf("%v: want a specific literal IP address without a zone, and a port", a)
	}
	return nil
}

// checkPeers returns a copy of peers that has self in it.
func checkPeers(peers map[haven.HostID]netip.AddrPort, self haven.HostID, own netip.AddrPort) (map[haven.HostID]netip.AddrPort, error) {
	out := maps.Clone(peers)
	if out == nil {
		out = make(map[haven.HostID]netip.AddrPort)
	}
	if a, ok := out[self]; ok && unmap(a) != own {
		return nil, fmt.Errorf("host %s is configured at %v but advertises %v", self, a, own)
	}
	out[self] = own
	at := make(map[netip.AddrPort]haven.HostID)
	for id, a := range out {
		if _, err := haven.ParseHostID(string(id)); err != nil {
			return nil, err
		}
		a = unmap(a)
		out[id] = a
		if err := checkAddr(a); err != nil && id != self {
			return nil, fmt.Errorf("address of host %s: %w", id, err)
		}
		if other, ok := at[a]; ok {
			return nil, fmt.Errorf("hosts %s and %s have one address, %v", min(id, other), max(id, other), a)
		}
		at[a] = id
	}
	return out, nil
}

// Key is one symmetric gossip key of 16, 24 or 32 octets. It prints as its id
// only.
type Key []byte

// ID names the key without telling it: the first 8 octets of a SHA-256 in hex.
func (k Key) ID() string {
	sum := sha256.Sum256(append([]byte("haven gossip key\x00"), k...))
	return hex.EncodeToString(sum[:8])
}

func (k Key) String() string { return "key " + k.ID() }

// GoString keeps the key out of %#v.
func (k Key) GoString() string { return k.String() }

// LogValue keeps the key out of logs.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText keeps the key out of JSON.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

func (k Key) check() error {
	switch len(k) {
	case 16, 24, 32:
		return nil
	}
	return fmt.Errorf("gossip key has %d octets: want 16, 24 or 32", len(k))
}

func checkKeys(keys []Key) ([]Key, error) {
	if len(keys) == 0 {
		return nil, errors.New("no gossip key: gossip is always encrypted")
	}
	var out []Key
	seen := make(map[string]bool)
	for _, k := range keys {
		if err := k.check(); err != nil {
			return nil, err
		}
		if !seen[string(k)] {
			seen[string(k)] = true
			out = append(out, bytes.Clone(k))
		}
	}
	if len(out) > MaxKeys {
		return nil, fmt.Errorf("%d gossip keys: want at most %d", len(out), MaxKeys)
	}
	return out, nil
}

package election

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/haven-ha/haven"
)

// Stream carries Raft's connections. Both ends know the host at the other end
// for certain, by its certificate.
type Stream interface {
	// Accept waits for a connection and tells which host made it.
	Accept() (net.Conn, haven.HostID, error)
	// Dial connects to addr and fails unless host is there.
	Dial(ctx context.Context, host haven.HostID, addr string) (net.Conn, error)
	// Close ends Accept.
	Close() error
}

// helloTimeout bounds the first message on a connection.
const helloTimeout = 3 * time.Second

const (
	helloMagic = "HVN1"
	maxHello   = 1 << 10
)

var errMisdirected = errors.New("raft connection is not meant for this server")

// hello is the first message on every Raft connection. Raft's own messages say
// who sends them and not to whom: without it, a host that lost its disk would
// answer for the server it once was, and entries and votes would be counted
// that no disk holds.
type hello struct {
	Cluster string   `json:"cluster"`
	From    ServerID `json:"from"`
	To      ServerID `json:"to"`
}

func (h hello) encode() ([]byte, error) {
	body, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	out := binary.BigEndian.AppendUint16([]byte(helloMagic), uint16(len(body)))
	return append(out, body...), nil
}

func readHello(r io.Reader) (hello, error) {
	var head [len(helloMagic) + 2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return hello{}, err
	}
	size := binary.BigEndian.Uint16(head[len(helloMagic):])
	if string(head[:len(helloMagic)]) != helloMagic || size > maxHello {
		return hello{}, errors.New("not a haven raft stream")
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return hello{}, err
	}
	var h hello
	if err := json.Unmarshal(body, &h); err != nil {
		return hello{}, fmt.Errorf("decode: %w", err)
	}
	return h, nil
}

// streamLayer makes a raft.StreamLayer of a Stream. It keeps all open
// connections, so that closing it ends every request that is under way.
type streamLayer struct {
	stream    Stream
	cluster   string
	self      ServerID
	address   string // this server's own, ip:port
	addressOf func(haven.HostID) (string, bool)
	log       *slog.Logger

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

// raftAddr is a net.Addr of the form that the Raft configuration has.
type raftAddr string

func (a raftAddr) Network() string { return "tcp" }
func (a raftAddr) String() string  { return string(a) }

func (l *streamLayer) Addr() net.Addr { return raftAddr(joinAddress(l.self, l.address)) }

func (l *streamLayer) Accept() (net.Conn, error) {
	conn, host, err := l.stream.Accept()
	if err != nil {
		return nil, err
	}
	in := &inbound{ownedConn: ownedConn{Conn: conn, layer: l}, peer: host}
	if !l.own(conn) {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	return in, nil
}

// Dial connects to a server named as ID@ip:port. The host's configured address
// goes before the one in Raft's configuration, which may be older.
func (l *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, addr, err := splitAddress(string(address))
	if err != nil {
		return nil, err
	}
	if l.addressOf != nil {
		if a, ok := l.addressOf(id.Host()); ok {
			addr = a
		}
	}
	first, err := hello{Cluster: l.cluster, From: l.self, To: id}.encode()
	if err != nil {
		return nil, fmt.Errorf("encode greeting: %w", err)
	}
	if l.isClosed() {
		return nil, net.ErrClosed
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := l.stream.Dial(ctx, id.Host(), addr)
	if err != nil {
		return nil, fmt.Errorf("dial raft server %s: %w", id, err)
	}
	if !l.own(conn) {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	out := &ownedConn{Conn: conn, layer: l}
	_ = conn.SetWriteDeadline(time.Now().Add(helloTimeout))
	if _, err := conn.Write(first); err != nil {
		_ = out.Close()
		return nil, fmt.Errorf("greet raft server %s: %w", id, err)
	}
	_ = conn.SetWriteDeadline(time.Time{})
	return out, nil
}

func (l *streamLayer) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

func (l *streamLayer) own(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.conns[conn] = struct{}{}
	return true
}

func (l *streamLayer) disown(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, conn)
}

// Close cuts all connections. It may be called again.
func (l *streamLayer) Close() error {
	l.mu.Lock()
	l.closed = true
	conns := make([]net.Conn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	clear(l.conns)
	l.mu.Unlock()
	err := l.stream.Close()
	for _, c := range conns {
		cut(c)
	}
	return err
}

// cut closes a connection without the goodbye of TLS, which may wait.
func cut(conn net.Conn) {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn()
	}
	_ = conn.Close()
}

// ownedConn is forgotten by its layer when it is closed.
type ownedConn struct {
	net.Conn
	layer *streamLayer
}

func (c *ownedConn) Close() error {
	c.layer.disown(c.Conn)
	cut(c.Conn)
	return nil
}

// inbound reads and checks the greeting with its first Read, which Raft does
// in a goroutine of the connection's own: a silent peer holds nobody up.
type inbound struct {
	ownedConn
	peer    haven.HostID
	greeted bool // only one goroutine reads
}

func (c *inbound) Read(p []byte) (int, error) {
	if !c.greeted {
		if err := c.greet(); err != nil {
			c.layer.log.Warn("raft connection refused", "peer", c.peer, "err", err)
			_ = c.Close()
			return 0, io.EOF
		}
		c.greeted = true
	}
	return c.Conn.Read(p)
}

func (c *inbound) greet() error {
	_ = c.SetReadDeadline(time.Now().Add(helloTimeout))
	h, err := readHello(c.Conn)
	if err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	switch {
	case h.Cluster != c.layer.cluster:
		return fmt.Errorf("%w: it is for cluster %q", errMisdirected, h.Cluster)
	case h.To != c.layer.self:
		return fmt.Errorf("%w: it is for server %s, this is %s", errMisdirected, h.To, c.layer.self)
	case h.From.Host() != c.peer:
		return fmt.Errorf("server %s is not on host %s, which the connection came from", h.From, c.peer)
	}
	return c.SetReadDeadline(time.Time{})
}

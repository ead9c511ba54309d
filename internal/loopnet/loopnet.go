// Package loopnet lets several machines live on one machine's loopback: each has
// an address of its own in 127.0.0.0/8 and real sockets, and can be cut off from
// the others as if its cable had been pulled. It is for the demo and for tests.
//
// A connection over a cut path behaves as one over a dead network does: what is
// written vanishes, nothing arrives, and no connection can be made. When the
// path heals, connections that lost something are reset.
package loopnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/haven-ha/haven/internal/netx"
)

// Net knows all machines and which of them can hear which.
type Net struct {
	mu      sync.Mutex
	cut     map[netip.Addr]bool // machine is off the network
	oneWay  map[[2]netip.Addr]bool
	changed chan struct{}
}

// New makes a network in which everybody hears everybody.
func New() *Net {
	return &Net{cut: map[netip.Addr]bool{}, oneWay: map[[2]netip.Addr]bool{}, changed: make(chan struct{})}
}

// Cut takes a machine off the network, or puts it back.
func (n *Net) Cut(addr netip.Addr, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[addr] = cut
	close(n.changed)
	n.changed = make(chan struct{})
}

// CutOneWay lets nothing pass from one machine to another, or again.
func (n *Net) CutOneWay(from, to netip.Addr, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.oneWay[[2]netip.Addr{from, to}] = cut
	close(n.changed)
	n.changed = make(chan struct{})
}

// hears says whether what from sends reaches to, and gives a channel that is
// closed at the next change.
func (n *Net) hears(from, to netip.Addr) (bool, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ok := from == to || (!n.cut[from] && !n.cut[to] && !n.oneWay[[2]netip.Addr{from, to}])
	return ok, n.changed
}

// Stack returns the network as one machine has it.
func (n *Net) Stack(addr netip.Addr) netx.Stack { return stack{n, addr} }

type stack struct {
	n    *Net
	addr netip.Addr
}

func (s stack) Listen(network, addr string) (net.Listener, error) {
	l, err := net.Listen(network, addr) //nolint:forbidigo // this is such a stack
	if err != nil {
		return nil, err
	}
	return &listener{l, s}, nil
}

func (s stack) ListenPacket(network, addr string) (net.PacketConn, error) {
	pc, err := net.ListenPacket(network, addr) //nolint:forbidigo // this is such a stack
	if err != nil {
		return nil, err
	}
	return &packetConn{pc, s}, nil
}

func (s stack) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	for {
		there, changed := s.n.hears(s.addr, to.Addr())
		back, _ := s.n.hears(to.Addr(), s.addr)
		if there && back {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, &net.OpError{Op: "dial", Net: network, Err: os.ErrDeadlineExceeded}
		}
	}
	d := net.Dialer{ //nolint:forbidigo // this is such a stack
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.addr, 0)),
	}
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, n: s.n, self: s.addr, peer: to.Addr()}, nil
}

type listener struct {
	net.Listener
	s stack
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, n: l.s.n, self: l.s.addr, peer: addrOf(c.RemoteAddr())}, nil
}

func addrOf(a net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr()
}

type packetConn struct {
	net.PacketConn
	s stack
}

func (p *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	if ok, _ := p.s.n.hears(p.s.addr, addrOf(to)); !ok {
		return len(b), nil
	}
	return p.PacketConn.WriteTo(b, to)
}

func (p *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := p.PacketConn.ReadFrom(b)
		if err != nil {
			return n, from, err
		}
		if ok, _ := p.s.n.hears(addrOf(from), p.s.addr); ok {
			return n, from, nil
		}
	}
}

// conn is a stream that a cut path silences. Once something was lost on it, it
// is broken for good, and shows that when the path heals.
type conn struct {
	net.Conn
	n          *Net
	self, peer netip.Addr

	mu      sync.Mutex
	lost    bool
	readEnd time.Time
}

func (c *conn) Write(b []byte) (int, error) {
	ok, _ := c.n.hears(c.self, c.peer)
	c.mu.Lock()
	if !ok {
		c.lost = true
	}
	lost := c.lost
	c.mu.Unlock()
	switch {
	case !ok:
		return len(b), nil
	case lost:
		return 0, c.reset("write")
	}
	return c.Conn.Write(b)
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	for {
		ok, changed := c.n.hears(c.peer, c.self)
		c.mu.Lock()
		lost := c.lost
		if !ok && n > 0 {
			c.lost = true
		}
		end := c.readEnd
		c.mu.Unlock()
		if ok {
			if lost {
				return 0, c.reset("read")
			}
			return n, err
		}
		// Over a dead network not even the end of the stream arrives.
		if err := c.wait(changed, end); err != nil {
			return 0, err
		}
	}
}

// wait waits for a change of the network, or for the read deadline. A closed
// connection is noticed by looking now and then.
func (c *conn) wait(changed <-chan struct{}, end time.Time) error {
	look := 100 * time.Millisecond
	if !end.IsZero() {
		look = min(look, time.Until(end))
	}
	t := time.NewTimer(max(look, 0))
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	}
	if !end.IsZero() && !time.Now().Before(end) {
		return &net.OpError{Op: "read", Net: "tcp", Err: os.ErrDeadlineExceeded}
	}
	if err := c.Conn.SetReadDeadline(end); err != nil {
		return err // closed
	}
	return nil
}

func (c *conn) SetDeadline(t time.Time) error {
	c.noteReadEnd(t)
	return c.Conn.SetDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.noteReadEnd(t)
	return c.Conn.SetReadDeadline(t)
}

func (c *conn) noteReadEnd(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readEnd = t
}

func (c *conn) reset(op string) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: syscall.ECONNRESET}
}

package cluster

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// simNet is a lossy network in memory for use in a synctest bubble. Nothing in
// it waits but the reads, accepts and refused dials, all of them on channels.
type simNet struct {
	mu      sync.Mutex
	sockets map[string]*simSocket           // "udp 10.0.0.1:7946"
	cut     func(from, to netip.Addr) bool  // true: nothing gets from there to there
	lose    func(from, to netip.Addr) bool  // true: this packet is lost
	tap     func(from netip.Addr, b []byte) // sees each packet that is sent
}

type simHost struct {
	net  *simNet
	addr netip.Addr
}

func newSimNet() *simNet { return &simNet{sockets: make(map[string]*simSocket)} }

func (n *simNet) host(addr string) simHost { return simHost{n, netip.MustParseAddr(addr)} }

func (n *simNet) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

func (n *simNet) blocked(from, to netip.Addr) bool { return n.cut != nil && n.cut(from, to) }

// simSocket is a bound datagram socket or listener.
type simSocket struct {
	net.PacketConn // nil: the deadlines of packet sockets are not used
	net            *simNet
	key            string
	addr           netip.AddrPort
	packets        chan simPacket
	conns          chan net.Conn
	closed         chan struct{}
	once           sync.Once
}

type simPacket struct {
	b    []byte
	from netip.AddrPort
}

func (h simHost) bind(network, addr string) (*simSocket, error) {
	s := &simSocket{
		net: h.net, key: network + " " + addr, addr: netip.MustParseAddrPort(addr),
		packets: make(chan simPacket, 512), conns: make(chan net.Conn, 128), closed: make(chan struct{}),
	}
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.net.sockets[s.key] != nil || s.addr.Addr() != h.addr {
		return nil, syscall.EADDRINUSE
	}
	h.net.sockets[s.key] = s
	return s, nil
}

func (h simHost) Listen(network, addr string) (net.Listener, error) {
	s, err := h.bind(network, addr)
	return simListener{s}, err
}

func (h simHost) ListenPacket(network, addr string) (net.PacketConn, error) {
	return h.bind(network, addr)
}

func (s *simSocket) Close() error {
	s.once.Do(func() {
		s.net.set(func() { delete(s.net.sockets, s.key) })
		close(s.closed)
	})
	return nil
}

func (s *simSocket) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(s.addr) }

func (s *simSocket) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case p := <-s.packets:
		return copy(b, p.b), net.UDPAddrFromAddrPort(p.from), nil
	case <-s.closed:
		return 0, nil, net.ErrClosed
	}
}

func (s *simSocket) WriteTo(b []byte, to net.Addr) (int, error) {
	dst := to.(*net.UDPAddr).AddrPort()
	p := simPacket{bytes.Clone(b), s.addr}
	s.net.set(func() {
		if s.net.tap != nil {
			s.net.tap(s.addr.Addr(), p.b)
		}
		if s.net.lose != nil && s.net.lose(s.addr.Addr(), dst.Addr()) {
			p.b = nil
		}
	})
	time.AfterFunc(time.Millisecond, func() {
		s.net.mu.Lock()
		defer s.net.mu.Unlock()
		if d := s.net.sockets["udp "+dst.String()]; d != nil && p.b != nil && !s.net.blocked(s.addr.Addr(), dst.Addr()) {
			select {
			case d.packets <- p:
			default:
			}
		}
	})
	return len(b), nil
}

type simListener struct{ *simSocket }

func (l simListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }
func (l simListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (h simHost) DialContext(ctx context.Context, _, addr string) (net.Conn, error) {
	to := netip.MustParseAddrPort(addr)
	from := netip.AddrPortFrom(h.addr, 40000)
	a, b := newSimPipe(h.net, h.addr, to.Addr()), newSimPipe(h.net, to.Addr(), h.addr)
	near := &simConn{in: b, out: a, local: from, remote: to}
	far := &simConn{in: a, out: b, local: to, remote: from}
	refused := false
	h.net.mu.Lock()
	l := h.net.sockets["tcp "+addr]
	blocked := h.net.blocked(h.addr, to.Addr()) || h.net.blocked(to.Addr(), h.addr)
	h.net.mu.Unlock()
	if !blocked && l == nil {
		refused = true
	}
	if !blocked && !refused {
		select {
		case l.conns <- far:
			return near, nil
		default:
		}
	}
	if refused {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	<-ctx.Done()
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
}

// simPipe is one direction of a connection. What is written while the
// direction is cut is lost, and everything after it.
type simPipe struct {
	net      *simNet
	from, to netip.Addr
	mu       sync.Mutex
	buf      bytes.Buffer
	broken   bool
	eof      bool
	more     chan struct{}
}

func newSimPipe(n *simNet, from, to netip.Addr) *simPipe {
	return &simPipe{net: n, from: from, to: to, more: make(chan struct{}, 1)}
}

func (p *simPipe) put(b []byte, eof bool) {
	p.net.mu.Lock()
	blocked := p.net.blocked(p.from, p.to)
	p.net.mu.Unlock()
	p.mu.Lock()
	p.broken = p.broken || blocked
	if !p.broken {
		p.buf.Write(b)
		p.eof = p.eof || eof
	}
	p.mu.Unlock()
	poke(p.more)
}

type simConn struct {
	in, out       *simPipe
	local, remote netip.AddrPort
	mu            sync.Mutex
	deadline      time.Time
	closed        bool
}

func (c *simConn) Read(b []byte) (int, error) {
	for {
		c.in.mu.Lock()
		n, _ := c.in.buf.Read(b)
		eof := c.in.eof
		c.in.mu.Unlock()
		c.mu.Lock()
		closed, deadline := c.closed, c.deadline
		c.mu.Unlock()
		switch {
		case closed:
			return 0, net.ErrClosed
		case n > 0:
			return n, nil
		case eof:
			return 0, io.EOF
		case deadline.IsZero():
			return 0, errors.New("simulated connection read without a deadline")
		case !time.Now().Before(deadline):
			return 0, os.ErrDeadlineExceeded
		}
		timer := time.NewTimer(time.Until(deadline))
		select {
		case <-c.in.more:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (c *simConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	closed, deadline := c.closed, c.deadline
	c.mu.Unlock()
	if closed {
		return 0, net.ErrClosed
	}
	if deadline.IsZero() {
		return 0, errors.New("simulated connection written without a deadline")
	}
	c.out.put(b, false)
	return len(b), nil
}

func (c *simConn) Close() error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if !closed {
		c.out.put(nil, true)
		poke(c.in.more)
	}
	return nil
}

func (c *simConn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.local) }
func (c *simConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }
func (c *simConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadline = t
	c.mu.Unlock()
	return nil
}
func (c *simConn) SetReadDeadline(t time.Time) error  { return c.SetDeadline(t) }
func (c *simConn) SetWriteDeadline(t time.Time) error { return c.SetDeadline(t) }

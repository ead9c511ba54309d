package election

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/haven-ha/haven/internal/netx"
)

// memNet is a network in memory for tests in a bubble: streams with a latency,
// one-way cuts and power-off. Writes never block. What is written into a cut
// is lost, and the connection with it; it is reset when the cut heals.
type memNet struct {
	latency time.Duration

	mu        sync.Mutex
	listeners map[string]*memListener
	conns     map[*memConn]struct{}
	cuts      map[[2]string]bool
	port      uint16
}

func newMemNet() *memNet {
	return &memNet{
		latency: time.Millisecond, listeners: map[string]*memListener{},
		conns: map[*memConn]struct{}{}, cuts: map[[2]string]bool{}, port: 40000,
	}
}

// cut makes nothing pass from one address to another, or again.
func (n *memNet) cut(from, to string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts[[2]string{from, to}] = cut
	if cut {
		return
	}
	for c := range n.conns {
		if c.broken && !n.cuts[[2]string{c.local, c.remote}] {
			n.resetLocked(c)
		}
	}
}

func (n *memNet) resetLocked(c *memConn) {
	for _, e := range []*memConn{c, c.peer} {
		e.in.end(errReset)
		delete(n.conns, e)
	}
}

var errReset = errors.New("connection reset by peer")

// powerOff ends everything of a machine; its peers hear nothing.
func (n *memNet) powerOff(ip string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for addr, l := range n.listeners {
		if l.ip == ip {
			l.closeOnce.Do(func() { close(l.done) })
			delete(n.listeners, addr)
		}
	}
	for c := range n.conns {
		if c.local == ip {
			c.broken, c.peer.broken = true, true
			c.in.end(net.ErrClosed)
			delete(n.conns, c)
		}
	}
}

// stack is the network as one machine has it.
func (n *memNet) stack(ip string) netx.Stack { return memStack{n, ip} }

type memStack struct {
	net *memNet
	ip  string
}

func (s memStack) ListenPacket(string, string) (net.PacketConn, error) {
	return nil, errors.New("no datagrams here")
}

func (s memStack) Listen(_, addr string) (net.Listener, error) {
	n := s.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		return nil, errors.New("address in use: " + addr)
	}
	l := &memListener{net: n, ip: s.ip, addr: addr, queue: make(chan *memConn, 64), done: make(chan struct{})}
	n.listeners[addr] = l
	return l, nil
}

func (s memStack) DialContext(ctx context.Context, _, addr string) (net.Conn, error) {
	n := s.net
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	silent := n.cuts[[2]string{s.ip, host}] || n.cuts[[2]string{host, s.ip}]
	l := n.listeners[addr]
	n.mu.Unlock()
	if silent || l == nil { // Nobody answers: a dead machine looks the same.
		<-ctx.Done()
		return nil, ctx.Err()
	}
	n.mu.Lock()
	n.port++
	a := &memConn{net: n, local: s.ip, remote: host, lport: n.port, rport: 7947, in: newHalf()}
	b := &memConn{net: n, local: host, remote: s.ip, lport: 7947, rport: n.port, in: newHalf()}
	a.peer, b.peer = b, a
	n.conns[a], n.conns[b] = struct{}{}, struct{}{}
	n.mu.Unlock()
	time.Sleep(2 * n.latency)
	select {
	case l.queue <- b:
		return a, nil
	case <-l.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type memListener struct {
	net       *memNet
	ip, addr  string
	queue     chan *memConn
	done      chan struct{}
	closeOnce sync.Once
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	l.closeOnce.Do(func() { close(l.done) })
	if l.net.listeners[l.addr] == l {
		delete(l.net.listeners, l.addr)
	}
	return nil
}

func (l *memListener) Addr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(l.addr))
}

// half is one direction, as its reader has it.
type half struct {
	mu       sync.Mutex
	segments []segment
	err      error // after the segments
	deadline time.Time
	wake     chan struct{}
}

type segment struct {
	at   time.Time
	data []byte
}

func newHalf() *half { return &half{wake: make(chan struct{}, 1)} }

func (h *half) notify() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *half) push(at time.Time, data []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.segments = append(h.segments, segment{at, append([]byte(nil), data...)})
	h.notify()
}

func (h *half) finish(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.err = err
	}
	h.notify()
}

// end drops what is in flight too.
func (h *half) end(err error) {
	h.mu.Lock()
	h.segments = nil
	h.mu.Unlock()
	h.finish(err)
}

func (h *half) setDeadline(t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deadline = t
	h.notify()
}

// take reads what has arrived, or says how long to wait; below zero is for ever.
func (h *half) take(p []byte) (n int, wait time.Duration, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	wait = -1
	if !h.deadline.IsZero() {
		if wait = h.deadline.Sub(now); wait <= 0 {
			return 0, 0, os.ErrDeadlineExceeded
		}
	}
	if len(h.segments) == 0 {
		return 0, wait, h.err
	}
	first := &h.segments[0]
	if d := first.at.Sub(now); d > 0 {
		if wait < 0 || d < wait {
			wait = d
		}
		return 0, wait, nil
	}
	n = copy(p, first.data)
	if first.data = first.data[n:]; len(first.data) == 0 {
		h.segments = h.segments[1:]
	}
	return n, 0, nil
}

type memConn struct {
	net           *memNet
	peer          *memConn
	local, remote string
	lport, rport  uint16
	in            *half
	broken        bool // what this end writes is lost
}

func (c *memConn) Read(p []byte) (int, error) {
	for {
		n, wait, err := c.in.take(p)
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		if wait < 0 {
			<-c.in.wake
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-c.in.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

func (c *memConn) Write(p []byte) (int, error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if _, ok := c.net.conns[c]; !ok {
		return 0, net.ErrClosed
	}
	if c.net.cuts[[2]string{c.local, c.remote}] {
		c.broken = true
	}
	if !c.broken {
		c.peer.in.push(time.Now().Add(c.net.latency), p)
	}
	return len(p), nil
}

func (c *memConn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if _, ok := c.net.conns[c]; !ok {
		return nil
	}
	delete(c.net.conns, c)
	c.in.end(net.ErrClosed)
	if !c.broken && !c.net.cuts[[2]string{c.local, c.remote}] {
		c.peer.in.finish(io.EOF)
	}
	return nil
}

func (c *memConn) LocalAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.local), c.lport))
}

func (c *memConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.remote), c.rport))
}

func (c *memConn) SetDeadline(t time.Time) error     { return c.SetReadDeadline(t) }
func (c *memConn) SetReadDeadline(t time.Time) error { c.in.setDeadline(t); return nil }
func (c *memConn) SetWriteDeadline(time.Time) error  { return nil }

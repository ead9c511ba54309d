package simnet

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// PacketConn is a datagram socket.
type PacketConn struct {
	p        *Process
	port     int
	in       chan packet
	closed   chan struct{}
	isClosed bool
	deadline deadline
}

type packet struct {
	data []byte
	from net.Addr
}

func newPacketConn(p *Process, port int) *PacketConn {
	return &PacketConn{p: p, port: port, in: make(chan packet, maxQueued), closed: make(chan struct{}), deadline: newDeadline()}
}

// ReadFrom waits for a packet.
func (s *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case <-s.closed:
		return 0, nil, net.ErrClosed
	default:
	}
	select {
	case x := <-s.in:
		return copy(b, x.data), x.from, nil
	case <-s.closed:
		return 0, nil, net.ErrClosed
	case <-s.deadline.passed():
		return 0, nil, os.ErrDeadlineExceeded
	}
}

// WriteTo sends a packet. It never waits, and never tells that it was lost.
func (s *PacketConn) WriteTo(b []byte, to net.Addr) (int, error) {
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, fmt.Errorf("simulated network: %v is not a UDP address", to)
	}
	dest := u.AddrPort()
	dest = netip.AddrPortFrom(dest.Addr().Unmap(), dest.Port())
	data := append([]byte(nil), b...)
	n := s.p.m.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.isClosed {
		return 0, net.ErrClosed
	}
	s.p.m.gatePacket(func() { n.send(s, dest, data) })
	return len(b), nil
}

func (n *Net) send(s *PacketConn, to netip.AddrPort, data []byte) {
	from := s.p.m.addr
	delay, ok := n.transmit(from, to.Addr())
	if !ok || s.p.dead {
		return
	}
	sender := s.LocalAddr()
	n.later(delay, func() {
		m := n.machines[to.Addr()]
		if m == nil || !m.power {
			return
		}
		m.gatePacket(func() {
			if r := m.packets[int(to.Port())]; r != nil {
				select {
				case r.in <- packet{data, sender}:
				default: // Its buffer is full.
				}
			}
		})
	})
}

func (s *PacketConn) close() {
	if s.isClosed {
		return
	}
	s.isClosed = true
	close(s.closed)
	s.deadline.set(time.Time{})
	delete(s.p.socks, s)
	if s.p.m.packets[s.port] == s {
		delete(s.p.m.packets, s.port)
	}
}

// Close ends the socket.
func (s *PacketConn) Close() error {
	s.p.m.n.mu.Lock()
	defer s.p.m.n.mu.Unlock()
	s.close()
	return nil
}

// LocalAddr is the address of the socket.
func (s *PacketConn) LocalAddr() net.Addr {
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.p.m.addr, uint16(s.port)))
}

// SetDeadline bounds reads; writes never wait.
func (s *PacketConn) SetDeadline(t time.Time) error { s.deadline.set(t); return nil }

// SetReadDeadline bounds reads.
func (s *PacketConn) SetReadDeadline(t time.Time) error { s.deadline.set(t); return nil }

// SetWriteDeadline does nothing: writes never wait.
func (s *PacketConn) SetWriteDeadline(time.Time) error { return nil }

// deadline is a channel that is closed when a time has come, and may be set anew.
type deadline struct{ *deadlineState }

type deadlineState struct {
	mu    sync.Mutex
	timer *time.Timer
	ch    chan struct{}
	done  bool
}

func newDeadline() deadline { return deadline{&deadlineState{ch: make(chan struct{})}} }

func (d deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ch
}

func (d deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if d.done {
		d.ch, d.done = make(chan struct{}), false
	}
	if t.IsZero() {
		return
	}
	ch := d.ch
	d.timer = time.AfterFunc(time.Until(t), func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.ch == ch && !d.done {
			d.done = true
			close(ch)
		}
	})
}

package simnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
)

// Machine is one computer with one address.
type Machine struct {
	n       *Net
	addr    netip.Addr
	power   bool
	frozen  bool
	held    []func() // what waits for the machine to go on
	procs   map[*Process]struct{}
	streams map[int]*Listener
	packets map[int]*PacketConn
	port    int // last one given to somebody who did not ask for any
}

// Process is one program on a machine, as one run of it reaches the network. It
// is a netx.Stack. After Kill, or when the power went, it can do nothing any
// more.
type Process struct {
	m     *Machine
	dead  bool
	conns map[*Conn]struct{}
	lists map[*Listener]struct{}
	socks map[*PacketConn]struct{}
}

// PowerOn lets a machine take part.
func (m *Machine) PowerOn() {
	m.n.mu.Lock()
	defer m.n.mu.Unlock()
	m.power, m.frozen = true, false
}

// PowerOff ends all processes at once. The others hear nothing of it.
func (m *Machine) PowerOff() {
	m.n.mu.Lock()
	defer m.n.mu.Unlock()
	m.power, m.frozen, m.held = false, false, nil
	for p := range m.procs {
		p.end(false)
	}
}

// Freeze stops a machine or lets it go on. Meanwhile all that it sends and all
// that arrives is held. What its programs compute is not: from outside nobody
// can tell.
func (m *Machine) Freeze(frozen bool) {
	m.n.mu.Lock()
	defer m.n.mu.Unlock()
	if m.frozen == frozen {
		return
	}
	m.frozen = frozen
	if !frozen {
		for _, f := range m.held {
			m.n.later(0, f)
		}
		m.held = nil
	}
}

// gate does f now, or when the frozen machine goes on.
func (m *Machine) gate(f func()) {
	if !m.frozen {
		f()
		return
	}
	m.held = append(m.held, f)
}

// gatePacket is gate for what may be lost when there is too much of it.
func (m *Machine) gatePacket(f func()) {
	if !m.frozen || len(m.held) < maxQueued {
		m.gate(f)
	}
}

// Process starts a program.
func (m *Machine) Process() *Process {
	m.n.mu.Lock()
	defer m.n.mu.Unlock()
	p := &Process{m: m, dead: !m.power, conns: map[*Conn]struct{}{}, lists: map[*Listener]struct{}{}, socks: map[*PacketConn]struct{}{}}
	m.procs[p] = struct{}{}
	return p
}

// Kill ends a process as SIGKILL does: its peers get a reset, its ports refuse.
func (p *Process) Kill() {
	p.m.n.mu.Lock()
	defer p.m.n.mu.Unlock()
	p.end(true)
}

func (p *Process) end(reset bool) {
	if p.dead {
		return
	}
	p.dead = true
	delete(p.m.procs, p)
	for c := range p.conns {
		if reset {
			c.sendReset()
		}
		c.fail(syscall.ENETDOWN)
	}
	for l := range p.lists {
		l.close()
	}
	for s := range p.socks {
		s.close()
	}
}

var errForeignAddress = errors.New("not an address of this machine")

// bind checks an address to listen on and finds a port.
func (p *Process) bind(addr string) (int, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return 0, err
	}
	switch {
	case p.dead:
		return 0, syscall.ENETDOWN
	case ap.Addr() != p.m.addr && !ap.Addr().IsUnspecified():
		return 0, errForeignAddress
	case ap.Port() != 0:
		return int(ap.Port()), nil
	}
	return p.m.anyPort(), nil
}

func (m *Machine) anyPort() int {
	m.port++
	if m.port > 65535 {
		m.port = 32768
	}
	return m.port
}

// Listen opens a stream listener.
func (p *Process) Listen(network, addr string) (net.Listener, error) {
	p.m.n.mu.Lock()
	defer p.m.n.mu.Unlock()
	port, err := p.bind(addr)
	if err == nil && p.m.streams[port] != nil {
		err = syscall.EADDRINUSE
	}
	if err != nil {
		return nil, opError("listen", network, addr, err)
	}
	l := &Listener{p: p, port: port, backlog: make(chan *Conn, 128), closed: make(chan struct{})}
	p.m.streams[port] = l
	p.lists[l] = struct{}{}
	return l, nil
}

// ListenPacket opens a datagram socket.
func (p *Process) ListenPacket(network, addr string) (net.PacketConn, error) {
	p.m.n.mu.Lock()
	defer p.m.n.mu.Unlock()
	port, err := p.bind(addr)
	if err == nil && p.m.packets[port] != nil {
		err = syscall.EADDRINUSE
	}
	if err != nil {
		return nil, opError("listen", network, addr, err)
	}
	s := newPacketConn(p, port)
	p.m.packets[port] = s
	p.socks[s] = struct{}{}
	return s, nil
}

// DialContext connects a stream. A refusal comes at once; where nobody answers,
// it is tried again until the context ends.
func (p *Process) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, opError("dial", network, addr, err)
	}
	n := p.m.n
	n.mu.Lock()
	if p.dead {
		n.mu.Unlock()
		return nil, opError("dial", network, addr, syscall.ENETDOWN)
	}
	c := newConn(p, netip.AddrPortFrom(p.m.addr, uint16(p.m.anyPort())), to)
	c.knock(0)
	n.mu.Unlock()
	select {
	case <-c.opened:
		n.mu.Lock()
		err = c.err
		n.mu.Unlock()
		if err != nil {
			return nil, opError("dial", network, addr, err)
		}
		return c, nil
	case <-ctx.Done():
	}
	n.mu.Lock()
	c.fail(os.ErrDeadlineExceeded)
	n.mu.Unlock()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, opError("dial", network, addr, os.ErrDeadlineExceeded)
	}
	return nil, opError("dial", network, addr, ctx.Err())
}

// opError dresses an error as the operating system's network does.
func opError(op, network, addr string, err error) error {
	var at net.Addr
	if ap, perr := netip.ParseAddrPort(addr); perr == nil {
		at = net.TCPAddrFromAddrPort(ap)
	}
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		err = os.NewSyscallError(op, no)
	} else if !errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("simulated network: %w", err)
	}
	return &net.OpError{Op: op, Net: network, Addr: at, Err: err}
}

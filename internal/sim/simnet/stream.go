package simnet

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// Listener accepts streams.
type Listener struct {
	p        *Process
	port     int
	backlog  chan *Conn
	closed   chan struct{}
	isClosed bool
}

// Accept waits for a stream.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.backlog:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *Listener) close() {
	if l.isClosed {
		return
	}
	l.isClosed = true
	close(l.closed)
	delete(l.p.lists, l)
	if l.p.m.streams[l.port] == l {
		delete(l.p.m.streams, l.port)
	}
	for {
		select { // Nobody will accept these any more.
		case c := <-l.backlog:
			c.sendReset()
			c.fail(syscall.ECONNRESET)
		default:
			return
		}
	}
}

// Close ends the listener.
func (l *Listener) Close() error {
	l.p.m.n.mu.Lock()
	defer l.p.m.n.mu.Unlock()
	l.close()
	return nil
}

// Addr is the address of the listener.
func (l *Listener) Addr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.p.m.addr, uint16(l.port)))
}

// Conn is one end of a stream. The network's mutex guards all of it.
type Conn struct {
	p             *Process
	local, remote netip.AddrPort
	peer          *Conn // nil until the stream is open
	opened        chan struct{}
	isOpened      bool
	err           error // the stream is broken
	closed        bool  // by its own side

	arrived []byte
	ended   bool // the peer sends no more
	wakeup  *sync.Cond

	queue    [][]byte // not sent yet; nil is the end of what is sent
	queued   int
	finished bool          // nothing may be written any more
	waiting  bool          // for a retransmission
	retry    time.Duration // of the next one
	unacked  int           // sent while no acknowledgement could come back
	silent   time.Duration // since when there is none; negative: there is
	last     time.Duration // when the last segment arrives: order is kept

	readBy, writeBy time.Time
	readTimer       *time.Timer
}

func newConn(p *Process, local, remote netip.AddrPort) *Conn {
	c := &Conn{p: p, local: local, remote: remote, opened: make(chan struct{}), silent: -1}
	c.wakeup = sync.NewCond(&p.m.n.mu)
	p.conns[c] = struct{}{}
	return c
}

func (c *Conn) open() {
	if !c.isOpened {
		c.isOpened = true
		close(c.opened)
	}
}

// knock asks for a stream, again and again until somebody answers.
func (c *Conn) knock(try int) {
	if c.isOpened || c.p.dead {
		return
	}
	n := c.p.m.n
	c.p.m.gate(func() {
		if delay, ok := n.transmit(c.local.Addr(), c.remote.Addr()); ok {
			n.later(delay, c.knocked)
		}
	})
	n.later(time.Second<<min(try, 5), func() { c.knock(try + 1) })
}

// knocked happens at the other machine.
func (c *Conn) knocked() {
	n := c.p.m.n
	r := n.machines[c.remote.Addr()]
	if r == nil || !r.power {
		return
	}
	r.gate(func() {
		if c.isOpened {
			return
		}
		delay, ok := n.transmit(c.remote.Addr(), c.local.Addr())
		if !ok {
			return
		}
		l := r.streams[int(c.remote.Port())]
		n.later(delay, func() { c.p.m.gate(func() { c.answered(l) }) })
	})
}

// answered happens at home: the stream is open, or refused.
func (c *Conn) answered(l *Listener) {
	if c.isOpened || c.p.dead {
		return
	}
	if l == nil || l.isClosed || len(l.backlog) == cap(l.backlog) {
		c.fail(syscall.ECONNREFUSED)
		return
	}
	s := newConn(l.p, c.remote, c.local)
	s.peer, c.peer = c, s
	s.open()
	c.open()
	l.backlog <- s // There is room, and only the dispatcher fills it.
}

// fail breaks this end.
func (c *Conn) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.queue, c.queued = nil, 0
	c.forget()
	c.open()
}

func (c *Conn) forget() {
	delete(c.p.conns, c)
	if c.readTimer != nil {
		c.readTimer.Stop()
	}
	c.wakeup.Broadcast()
}

// sendReset tells the peer, once, that the stream is broken.
func (c *Conn) sendReset() {
	if c.peer == nil {
		return
	}
	n, peer := c.p.m.n, c.peer
	c.p.m.gate(func() {
		if delay, ok := n.transmit(c.local.Addr(), c.remote.Addr()); ok {
			n.later(delay, func() {
				peer.p.m.gate(func() {
					if !peer.p.dead {
						peer.fail(syscall.ECONNRESET)
					}
				})
			})
		}
	})
}

// push sends what is queued, as one segment.
func (c *Conn) push() {
	m, n := c.p.m, c.p.m.n
	if c.waiting || len(c.queue) == 0 || c.p.dead || c.peer == nil {
		return
	}
	if m.frozen {
		c.waiting = true
		m.gate(func() { c.waiting = false; c.push() })
		return
	}
	if c.silent >= 0 && c.unacked > window {
		c.again(n.acknowledged(c))
		return
	}
	delay, ok := n.transmit(c.local.Addr(), c.remote.Addr())
	if r := n.machines[c.remote.Addr()]; !ok || !r.power {
		c.again(false)
		return
	}
	if n.acknowledged(c) {
		c.silent, c.unacked, c.retry = -1, 0, 0
	} else {
		c.unacked += c.queued + 1
		if c.silent < 0 {
			c.silent = n.Now()
		}
	}
	segment := c.queue
	c.queue, c.queued = nil, 0
	c.last = max(n.Now()+delay, c.last)
	n.push(c.last, true, func() { c.peer.p.m.gate(func() { c.peer.receive(segment) }) })
}

// acknowledged says whether acknowledgements come back.
func (n *Net) acknowledged(c *Conn) bool {
	return c.local.Addr() == c.remote.Addr() || !n.linkOf(n.direction(c.remote.Addr(), c.local.Addr())).Cut
}

// again waits for a retransmission; when it was in vain for too long, the
// stream is given up.
func (c *Conn) again(acknowledged bool) {
	n := c.p.m.n
	if acknowledged {
		c.silent, c.unacked = -1, 0
	} else if c.silent < 0 {
		c.silent = n.Now()
	}
	if c.silent >= 0 && n.Now()-c.silent > giveUpAfter {
		c.fail(syscall.ETIMEDOUT)
		return
	}
	c.retry = min(max(2*c.retry, retransmitFirst), retransmitLast)
	c.waiting = true
	n.later(c.retry, func() { c.waiting = false; c.push() })
}

// receive takes in a segment.
func (c *Conn) receive(segment [][]byte) {
	if !c.p.m.power {
		return
	}
	if c.p.dead || c.closed || c.err != nil {
		c.sendReset() // The kernel answers for a socket that is no more.
		return
	}
	for _, data := range segment {
		if data == nil {
			c.ended = true
			continue
		}
		c.arrived = append(c.arrived, data...)
	}
	if len(c.arrived) > maxBuffered {
		c.sendReset()
		c.fail(syscall.ENOBUFS)
	}
	c.wakeup.Broadcast()
}

// Read waits for data.
func (c *Conn) Read(b []byte) (int, error) {
	n := c.p.m.n
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case !c.readBy.IsZero() && !time.Now().Before(c.readBy):
			return 0, c.wrap("read", os.ErrDeadlineExceeded)
		case len(c.arrived) > 0:
			k := copy(b, c.arrived)
			if c.arrived = c.arrived[k:]; len(c.arrived) == 0 {
				c.arrived = nil
			}
			return k, nil
		case c.err != nil:
			return 0, c.wrap("read", c.err)
		case c.ended:
			return 0, io.EOF
		case len(b) == 0:
			return 0, nil
		}
		c.wakeup.Wait()
	}
}

// Write queues data. It never waits: in a bubble a write that waits while its
// caller holds a mutex would stop time for ever.
func (c *Conn) Write(b []byte) (int, error) {
	c.p.m.n.mu.Lock()
	defer c.p.m.n.mu.Unlock()
	switch {
	case c.closed || c.finished:
		return 0, net.ErrClosed
	case c.err != nil:
		return 0, c.wrap("write", c.err)
	case !c.writeBy.IsZero() && !time.Now().Before(c.writeBy):
		return 0, c.wrap("write", os.ErrDeadlineExceeded)
	case c.queued+len(b) > maxBuffered:
		c.sendReset()
		c.fail(syscall.ENOBUFS)
		return 0, c.wrap("write", c.err)
	case len(b) == 0:
		return 0, nil
	}
	c.queue = append(c.queue, append([]byte(nil), b...))
	c.queued += len(b)
	c.push()
	return len(b), nil
}

// CloseWrite says that nothing more is sent.
func (c *Conn) CloseWrite() error {
	c.p.m.n.mu.Lock()
	defer c.p.m.n.mu.Unlock()
	c.finish()
	return nil
}

func (c *Conn) finish() {
	if c.finished || c.err != nil {
		return
	}
	c.finished = true
	c.queue = append(c.queue, nil)
	c.push()
}

// Close ends this end. What was written still goes out.
func (c *Conn) Close() error {
	c.p.m.n.mu.Lock()
	defer c.p.m.n.mu.Unlock()
	if c.closed {
		return nil
	}
	c.finish()
	c.closed = true
	c.forget()
	return nil
}

func (c *Conn) wrap(op string, err error) error {
	return opError(op, "tcp", c.remote.String(), err)
}

// LocalAddr is this end's address.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr is the other end's address.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// SetDeadline bounds reads and writes.
func (c *Conn) SetDeadline(t time.Time) error {
	_ = c.SetWriteDeadline(t)
	return c.SetReadDeadline(t)
}

// SetWriteDeadline bounds writes: after it they fail.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.p.m.n.mu.Lock()
	defer c.p.m.n.mu.Unlock()
	c.writeBy = t
	return nil
}

// SetReadDeadline bounds reads.
func (c *Conn) SetReadDeadline(t time.Time) error {
	n := c.p.m.n
	n.mu.Lock()
	defer n.mu.Unlock()
	c.readBy = t
	switch {
	case t.IsZero() || c.closed || c.err != nil:
		if c.readTimer != nil {
			c.readTimer.Stop()
		}
	case c.readTimer == nil:
		c.readTimer = time.AfterFunc(time.Until(t), func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			c.wakeup.Broadcast()
		})
	default:
		c.readTimer.Reset(time.Until(t))
	}
	if !t.IsZero() && !time.Now().Before(t) {
		c.wakeup.Broadcast()
	}
	return nil
}

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/haven-ha/haven/internal/netx"
)

const (
	// maxPacket is the longest datagram of gossip: memberlist fills 1,400 octets
	// and adds less than 150 for label, checksum and encryption.
	maxPacket = 2048
	// maxStreams bounds the open connections that others have made.
	maxStreams = 64
	// maxStreamBytes bounds what one connection brings. A full exchange has
	// less than 1 KiB for each member.
	maxStreamBytes = 4 << 20
	// maxRetryDelay bounds the pause after a socket failed to read or accept.
	maxRetryDelay = time.Second
)

var (
	errTransportClosed = errors.New("gossip transport is closed")
	errStreamTooLong   = errors.New("gossip stream is too long")
)

// transport carries memberlist's packets and streams over a netx.Stack. Its two
// goroutines and all its connections end with Shutdown.
type transport struct {
	net       netx.Stack
	advertise netip.AddrPort
	drop      func(kind string)

	packets net.PacketConn
	streams net.Listener
	in      chan *memberlist.Packet
	inConn  chan net.Conn

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.Mutex
	open   map[*stream]struct{}
	inward int // open streams that others made
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

func newTransport(cfg Config) (*transport, error) {
	pc, err := cfg.Net.ListenPacket("udp", cfg.Bind.String())
	if err != nil {
		return nil, fmt.Errorf("listen for gossip packets: %w", err)
	}
	ln, err := cfg.Net.Listen("tcp", cfg.Bind.String())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for gossip streams: %w", err), pc.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	t := &transport{
		net: cfg.Net, advertise: cfg.Advertise, drop: cfg.OnDrop,
		packets: pc, streams: ln,
		in: make(chan *memberlist.Packet), inConn: make(chan net.Conn),
		ctx: ctx, stop: stop, open: make(map[*stream]struct{}),
	}
	t.wg.Go(t.readPackets)
	t.wg.Go(t.acceptStreams)
	return t, nil
}

// readPackets hands packets over one by one. While memberlist is busy they wait
// in the socket's own bounded buffer.
func (t *transport) readPackets() {
	// memberlist keeps slices of what it is given, so each packet gets memory
	// of its own, of its own size.
	buf := make([]byte, maxPacket+1)
	delay := retryDelay{}
	for {
		n, from, err := t.packets.ReadFrom(buf)
		now := time.Now()
		if err != nil {
			if !t.failed(err, &delay) {
				return
			}
			continue
		}
		delay = retryDelay{}
		if n == 0 || n > maxPacket {
			t.drop(DropPacket)
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: from, Timestamp: now}
		select {
		case t.in <- p:
		case <-t.ctx.Done():
			return
		}
	}
}

func (t *transport) acceptStreams() {
	delay := retryDelay{}
	for {
		conn, err := t.streams.Accept()
		if err != nil {
			if !t.failed(err, &delay) {
				return
			}
			continue
		}
		delay = retryDelay{}
		s := t.track(conn, true)
		if s == nil {
			t.drop(DropStream)
			continue
		}
		select {
		case t.inConn <- s:
		case <-t.ctx.Done():
			_ = s.Close()
			return
		}
	}
}

// failed counts a socket's error and waits a little. It returns false when the
// socket is closed. Any other error may pass: one of these loops must not end
// because descriptors or memory were short for a moment.
func (t *transport) failed(err error, delay *retryDelay) bool {
	if t.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return false
	}
	t.drop(DropSocket)
	timer := time.NewTimer(delay.next())
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-t.ctx.Done():
		return false
	}
}

// retryDelay grows from 5 ms to maxRetryDelay.
type retryDelay struct{ d time.Duration }

func (r *retryDelay) next() time.Duration {
	r.d = min(max(2*r.d, 5*time.Millisecond), maxRetryDelay)
	return r.d
}

func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return net.IP(t.advertise.Addr().AsSlice()), int(t.advertise.Port()), nil
}

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (t *transport) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	if t.ctx.Err() != nil {
		return time.Time{}, errTransportClosed
	}
	addr, err := netx.UDPAddr(to.Addr)
	if err != nil {
		return time.Time{}, err
	}
	_, err = t.packets.WriteTo(b, addr)
	return time.Now(), err
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.in }
func (t *transport) StreamCh() <-chan net.Conn           { return t.inConn }

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (t *transport) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	conn, err := t.net.DialContext(ctx, "tcp", to.Addr)
	if err != nil {
		return nil, err
	}
	// memberlist writes the label, and whole user messages, without a deadline.
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	s := t.track(conn, false)
	if s == nil {
		return nil, errTransportClosed
	}
	return s, nil
}

// Shutdown closes everything. Reads and writes that are under way fail at once.
func (t *transport) Shutdown() error {
	t.stop()
	err := errors.Join(ignoreClosed(t.packets.Close()), ignoreClosed(t.streams.Close()))
	for _, s := range t.takeAll() {
		_ = s.Close()
	}
	t.wg.Wait()
	return err
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (t *transport) takeAll() []*stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*stream
	for s := range t.open {
		all = append(all, s)
	}
	return all
}

// track makes conn one of the transport's own, or closes it and returns nil
// when the transport is closed or has enough of its kind.
func (t *transport) track(conn net.Conn, inward bool) *stream {
	s := &stream{Conn: conn, owner: t, inward: inward, left: maxStreamBytes}
	t.mu.Lock()
	refused := t.ctx.Err() != nil || (inward && t.inward >= maxStreams)
	if !refused {
		t.open[s] = struct{}{}
		if inward {
			t.inward++
		}
	}
	t.mu.Unlock()
	if refused {
		_ = conn.Close()
		return nil
	}
	return s
}

func (t *transport) forget(s *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.open[s]; !ok {
		return
	}
	delete(t.open, s)
	if s.inward {
		t.inward--
	}
}

// stream is one connection: counted, limited in what it brings, and closed
// when a write fails, because memberlist forgets to when it is the first one.
type stream struct {
	net.Conn
	owner  *transport
	inward bool
	left   int // octets that may still come; used by the one reader only
}

func (s *stream) Read(p []byte) (int, error) {
	if s.left <= 0 {
		s.owner.drop(DropStream)
		return 0, errStreamTooLong
	}
	n, err := s.Conn.Read(p[:min(len(p), s.left)])
	s.left -= n
	return n, err
}

func (s *stream) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	if err != nil {
		_ = s.Close()
	}
	return n, err
}

func (s *stream) Close() error {
	s.owner.forget(s)
	return s.Conn.Close()
}

package libvirt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	lv "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
)

// The RPC's framing: a length that counts itself, then six words of header, all
// big-endian (libvirt's src/rpc/virnetprotocol.x).
const (
	headerLen = 28
	maxPacket = 32<<20 + headerLen // VIR_NET_MESSAGE_MAX

	remoteProgram   = 0x20008086
	typeMessage     = 2
	procLifecycleEv = 318 // REMOTE_PROC_DOMAIN_EVENT_CALLBACK_LIFECYCLE
)

// guard is the net.Conn given to the client library. The library would crash on
// a packet shorter than its header and would spin on an error that calls itself
// temporary; the guard lets neither through. It also sees lifecycle events go
// by, which makes the library's event streams, and their deadlock, unnecessary.
type guard struct {
	net.Conn
	onEvent func()

	head []byte // of the packet being read, what the library has not taken yet
	left int    // payload of that packet still to come

	dead     chan struct{} // closed when nothing will be read any more
	deadOnce sync.Once
}

func newGuard(conn net.Conn, onEvent func()) *guard {
	return &guard{Conn: conn, onEvent: onEvent, dead: make(chan struct{})}
}

// Read is called by the library's one reading goroutine.
func (g *guard) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(g.head) == 0 && g.left == 0 {
		if err := g.next(); err != nil {
			return 0, g.end()
		}
	}
	if len(g.head) > 0 {
		n := copy(p, g.head)
		g.head = g.head[n:]
		return n, nil
	}
	n, err := g.Conn.Read(p[:min(len(p), g.left)])
	g.left -= n
	if err != nil {
		return n, g.end()
	}
	return n, nil
}

// next reads and judges the header of the next packet.
func (g *guard) next() error {
	var head [headerLen]byte
	if _, err := io.ReadFull(g.Conn, head[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size < headerLen || size > maxPacket {
		return fmt.Errorf("packet of %d bytes", size)
	}
	word := func(i int) uint32 { return binary.BigEndian.Uint32(head[4*i:]) }
	if g.onEvent != nil && word(1) == remoteProgram && word(3) == procLifecycleEv && word(4) == typeMessage {
		g.onEvent()
	}
	g.head, g.left = head[:], int(size)-headerLen
	return nil
}

// end closes the connection. The library is told io.EOF whatever happened: it
// retries for ever on errors that call themselves temporary.
func (g *guard) end() error {
	_ = g.Close()
	g.deadOnce.Do(func() { close(g.dead) })
	return io.EOF
}

// session is one connection with libvirtd, opened and ready. When it is over it
// is thrown away: the library's objects do not survive a reconnect.
type session struct {
	l *lv.Libvirt
	g *guard
}

func (s *session) close() { _ = s.g.Close() }

func (s *session) alive() bool {
	select {
	case <-s.g.dead:
		return false
	default:
		return true
	}
}

// connect dials and opens within limit, whatever libvirtd does.
func (o *Options) connect(ctx context.Context, limit time.Duration, onEvent func()) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := o.Net.DialContext(ctx, "unix", o.Socket)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", o.Socket, err)
	}
	g := newGuard(conn, onEvent)
	stop := context.AfterFunc(ctx, func() { _ = g.Close() })
	l := lv.NewWithDialer(dialers.NewAlreadyConnected(g))
	err = l.ConnectToURI(lv.ConnectURI(o.URI))
	if !stop() {
		err = errors.Join(fmt.Errorf("no answer within %v", limit), err)
	}
	if err != nil {
		_ = g.Close()
		return nil, fmt.Errorf("open %s at %s: %w", o.URI, o.Socket, err)
	}
	return &session{l: l, g: g}, nil
}

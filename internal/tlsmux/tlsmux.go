// Package tlsmux serves Raft and the HTTPS API on one port. Every connection
// is mutual TLS 1.3; the protocol agreed on in the handshake (ALPN) says
// where it goes:
//
//	haven-raft/1   to the Raft stream; certificates of hosts only
//	h2, http/1.1   to the HTTP server; hosts and operators
//
// A peer is known by its certificate, not by its address. Handshakes are
// bounded in time and number, in all and per address, so that a peer that
// connects and says nothing costs little and keeps nobody else out.
package tlsmux

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/pki"
)

// The protocols spoken on the port.
const (
	ProtoRaft  = "haven-raft/1"
	protoH2    = "h2"
	protoHTTP1 = "http/1.1"
)

// Config configures a Mux. Zero bounds take the defaults named beside them.
type Config struct {
	Stack       netx.Stack
	Addr        string // address to listen on, host:port
	Credentials *pki.Credentials
	Log         *slog.Logger

	// HandshakeTimeout bounds one handshake: 5 s. It is far more than any
	// host in one data centre needs, and short enough to free the slot.
	HandshakeTimeout time.Duration
	// MaxHandshakes and MaxHandshakesPerIP bound how many are under way at
	// once: 64 and 8. Further connections are closed at once. A host opens
	// fewer than 8 connections to another at the same moment.
	MaxHandshakes      int
	MaxHandshakesPerIP int
	// MaxConns bounds all open connections: 1024.
	MaxConns int
}

func (c Config) withDefaults() Config {
	if c.HandshakeTimeout == 0 {
		c.HandshakeTimeout = 5 * time.Second
	}
	if c.MaxHandshakes == 0 {
		c.MaxHandshakes = 64
	}
	if c.MaxHandshakesPerIP == 0 {
		c.MaxHandshakesPerIP = 8
	}
	if c.MaxConns == 0 {
		c.MaxConns = 1024
	}
	return c
}

// Mux is the one listening port of an agent.
type Mux struct {
	cfg  Config
	ln   net.Listener
	tls  *tls.Config
	raft *queue
	http *queue

	mu      sync.Mutex
	conns   int            // open connections
	shaking int            // handshakes under way
	perIP   map[string]int // the same by address
}

// Listen opens the port. Nothing is accepted before Run.
func Listen(cfg Config) (*Mux, error) {
	cfg = cfg.withDefaults()
	ln, err := cfg.Stack.Listen("tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", cfg.Addr, err)
	}
	return &Mux{
		cfg:   cfg,
		ln:    ln,
		tls:   cfg.Credentials.ServerConfig([]string{ProtoRaft, protoH2, protoHTTP1}, allow),
		raft:  newQueue(ln.Addr()),
		http:  newQueue(ln.Addr()),
		perIP: map[string]int{},
	}, nil
}

// allow keeps everybody but hosts off the Raft stream. It is part of the
// handshake, so that the peer learns of it.
func allow(proto string, peer pki.Identity) error {
	if proto == ProtoRaft && !peer.IsHost() {
		return fmt.Errorf("%w: only hosts may use %s, not %s", pki.ErrWrongIdentity, ProtoRaft, peer)
	}
	return nil
}

// Addr is the address the port listens on.
func (m *Mux) Addr() net.Addr { return m.ln.Addr() }

// HTTP is the listener for an http.Server: its connections are *tls.Conn with
// the handshake done, which the server then reads the protocol from. Give
// that server a ReadHeaderTimeout and an IdleTimeout.
func (m *Mux) HTTP() net.Listener { return m.http }

// Raft is the stream for Raft.
func (m *Mux) Raft() *Stream { return &Stream{mux: m} }

// Run accepts connections until ctx ends or the listener fails for good. It
// returns when all its goroutines have ended; connections that were handed
// over live on and belong to whom they were given to.
func (m *Mux) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		<-ctx.Done()
		_ = m.ln.Close()
		_ = m.raft.Close()
		_ = m.http.Close()
	})
	delay := time.Duration(0)
	for {
		conn, err := m.ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept on %s: %w", m.Addr(), err)
			}
			// Out of file descriptors, most likely: it passes.
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			m.cfg.Log.Warn("connection not accepted", "err", err, "retry_after", delay)
			if !sleep(ctx, delay) {
				return nil
			}
			continue
		}
		delay = 0
		if !m.admit(conn) {
			_ = conn.Close()
			continue
		}
		wg.Go(func() {
			defer m.release(conn)
			m.handshake(ctx, conn)
		})
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func remoteIP(conn net.Conn) string {
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		return conn.RemoteAddr().String()
	}
	return host
}

// admit takes a slot for a connection and its handshake, if the bounds allow
// one more.
func (m *Mux) admit(conn net.Conn) bool {
	ip := remoteIP(conn)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.shaking >= m.cfg.MaxHandshakes || m.perIP[ip] >= m.cfg.MaxHandshakesPerIP || m.conns >= m.cfg.MaxConns {
		return false
	}
	m.conns++
	m.shaking++
	m.perIP[ip]++
	return true
}

// release gives the handshake's slot back.
func (m *Mux) release(conn net.Conn) {
	ip := remoteIP(conn)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shaking--
	if m.perIP[ip]--; m.perIP[ip] == 0 {
		delete(m.perIP, ip)
	}
}

// gone gives the connection's slot back.
func (m *Mux) gone() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conns--
}

// handshake proves who the peer is and hands the connection over. When ctx
// ends in the middle, the connection is closed.
func (m *Mux) handshake(ctx context.Context, raw net.Conn) {
	conn := tls.Server(&countedConn{Conn: raw, gone: m.gone}, m.tls)
	ctx, cancel := context.WithTimeout(ctx, m.cfg.HandshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		m.cfg.Log.Debug("connection refused", "remote", raw.RemoteAddr().String(), "err", err)
		_ = conn.NetConn().Close()
		return
	}
	target := m.http
	if conn.ConnectionState().NegotiatedProtocol == ProtoRaft {
		target = m.raft
	}
	if !target.put(ctx, conn) {
		m.cfg.Log.Warn("connection dropped, nobody takes it", "remote", raw.RemoteAddr().String())
		_ = conn.NetConn().Close()
	}
}

// countedConn tells once when it is closed.
type countedConn struct {
	net.Conn
	once sync.Once
	gone func()
}

func (c *countedConn) Close() error {
	c.once.Do(c.gone)
	return c.Conn.Close()
}

// queue is a listener that is fed with connections.
type queue struct {
	addr  net.Addr
	conns chan *tls.Conn
	done  chan struct{}
	once  sync.Once
}

func newQueue(addr net.Addr) *queue {
	return &queue{addr: addr, conns: make(chan *tls.Conn), done: make(chan struct{})}
}

// put hands conn over; it gives up when ctx ends.
func (q *queue) put(ctx context.Context, conn *tls.Conn) bool {
	select {
	case q.conns <- conn:
		return true
	case <-q.done:
	case <-ctx.Done():
	}
	return false
}

// Accept waits for the next connection.
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept. It does not close the port.
func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Addr is the address of the port.
func (q *queue) Addr() net.Addr { return q.addr }

// Stream carries Raft between hosts.
type Stream struct {
	mux *Mux
}

// Accept waits for the next connection and tells which host is at its other
// end, by its certificate.
func (s *Stream) Accept() (net.Conn, haven.HostID, error) {
	for {
		conn, err := s.mux.raft.Accept()
		if err != nil {
			return nil, "", err
		}
		peer, err := pki.PeerIdentity(conn.(*tls.Conn).ConnectionState())
		if err != nil || !peer.IsHost() { // The handshake saw to it; trust nothing twice.
			_ = conn.(*tls.Conn).NetConn().Close()
			continue
		}
		return conn, peer.Host, nil
	}
}

// Dial connects to a host's Raft at addr and makes sure that it is that host.
func (s *Stream) Dial(ctx context.Context, host haven.HostID, addr string) (net.Conn, error) {
	return dial(ctx, s.mux.cfg.Stack, s.mux.cfg.Credentials, host, addr, []string{ProtoRaft})
}

// Close ends Accept. Connections and the port stay as they are.
func (s *Stream) Close() error { return s.mux.raft.Close() }

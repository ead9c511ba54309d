package tlsmux

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/pki"
)

// Bounds of the client side.
const (
	// dialTimeout bounds connecting and the handshake together.
	dialTimeout = 5 * time.Second
	// A kept HTTP/2 connection is tested with a ping after sendPingTimeout
	// without a frame, and given up when pingTimeout passes without an answer.
	// Without it a request to a host that lost its power in mid-call hangs
	// until its context ends, and the connection stays in the pool.
	sendPingTimeout = 5 * time.Second
	pingTimeout     = 3 * time.Second

	idleTimeout     = 90 * time.Second
	maxHeaderBytes  = 64 << 10
	maxIdlePerHost  = 4
	maxConnsPerHost = 16 // HTTP/1.1 only; HTTP/2 needs one
)

// Resolver tells the API address (ip:port) of a host. It returns false for a
// host it does not know.
type Resolver func(haven.HostID) (addr string, ok bool)

// NewTransport makes the HTTP client side: URLs name hosts
// (https://kvm-01/v1/...), resolve gives the addresses, and the server must
// prove to be the host named. Any port in the URL is ignored. Calls still
// need contexts with deadlines. Call CloseIdleConnections at the end.
func NewTransport(stack netx.Stack, creds *pki.Credentials, resolve Resolver) *http.Transport {
	return &http.Transport{
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			name, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, fmt.Errorf("split address: %w", err)
			}
			host, err := haven.ParseHostID(name)
			if err != nil {
				return nil, err
			}
			target, ok := resolve(host)
			if !ok {
				return nil, fmt.Errorf("address of host %s: %w", host, haven.ErrNotFound)
			}
			return dial(ctx, stack, creds, host, target, []string{protoH2, protoHTTP1})
		},
		// Plain connections never leave this host.
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return nil, fmt.Errorf("connect without TLS: %w", haven.ErrUnavailable)
		},
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: sendPingTimeout, PingTimeout: pingTimeout},
		IdleConnTimeout:        idleTimeout,
		MaxIdleConnsPerHost:    maxIdlePerHost,
		MaxConnsPerHost:        maxConnsPerHost,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
}

// dial connects and completes the handshake within dialTimeout.
func dial(ctx context.Context, stack netx.Stack, creds *pki.Credentials, host haven.HostID, addr string, protos []string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := stack.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect to host %s: %w", host, err)
	}
	conn := tls.Client(raw, creds.ClientConfig(host, protos))
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("handshake with host %s at %s: %w", host, addr, err)
	}
	return conn, nil
}

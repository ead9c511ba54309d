// Package netx is the only door to the network for the agent's own code.
// Production passes Real, the simulator a simulated machine.
package netx

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// Stack opens sockets on one machine.
type Stack interface {
	// Listen opens a stream listener. The network is "tcp"; the address is
	// host:port with a literal IP address or an empty host.
	Listen(network, addr string) (net.Listener, error)
	// ListenPacket opens a datagram socket. The network is "udp".
	ListenPacket(network, addr string) (net.PacketConn, error)
	// DialContext connects a stream; it gives up when the context ends.
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
}

// Real is the operating system's network.
type Real struct{}

// Listen opens a TCP listener.
func (Real) Listen(network, addr string) (net.Listener, error) { return net.Listen(network, addr) }

// ListenPacket opens a UDP socket.
func (Real) ListenPacket(network, addr string) (net.PacketConn, error) {
	return net.ListenPacket(network, addr)
}

// DialContext opens a TCP connection.
func (Real) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, addr)
}

// UDPAddr parses a literal ip:port. Names are not resolved: DNS is one more
// thing that can hang, so addresses in Haven are literals.
func UDPAddr(addr string) (*net.UDPAddr, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("parse address %q: %w", addr, err)
	}
	return net.UDPAddrFromAddrPort(ap), nil
}

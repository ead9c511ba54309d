// Package icmp pings addresses and finds this host's gateways. It is for one
// question: does anything on this host's network answer? Linux only.
package icmp

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/haven-ha/haven"
)

// Pinger sends ICMP echo requests. The zero value is ready.
type Pinger struct{}

const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
	headerLen                = 8
	nonceLen                 = 8
)

// Ping asks addr for an echo until the context ends, which must have a deadline.
// Yes: it answered. No: it did not, or nothing can be sent there, as with a link
// that is down. Unknown: this process may not ask, or the question itself
// failed. The words are for people.
func (Pinger) Ping(ctx context.Context, addr netip.Addr) (haven.Tri, string) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return haven.Unknown, "no time limit was given"
	}
	addr = addr.Unmap()
	conn, raw, err := open(addr)
	if err != nil {
		return outcome(err), err.Error()
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // A read ends at once then.
	defer stop()
	if err := conn.SetDeadline(deadline); err != nil {
		return haven.Unknown, err.Error()
	}
	var key [2 + nonceLen]byte // id, and what tells our echo from another's
	_, _ = rand.Read(key[:])   // It never fails.
	begun := time.Now()
	if _, err := conn.Write(request(addr, key)); err != nil {
		return outcome(err), err.Error()
	}
	for buf := make([]byte, 1500); ; {
		n, err := conn.Read(buf)
		switch {
		case err == nil && isReply(addr, raw, buf[:n], key):
			return haven.Yes, fmt.Sprintf("answered after %s", time.Since(begun).Round(10*time.Microsecond))
		case err != nil && ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded):
			return haven.Unknown, "not waited for"
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, net.ErrClosed):
			return haven.No, fmt.Sprintf("no answer within %s", time.Since(begun).Round(time.Millisecond))
		case err != nil:
			return outcome(err), err.Error()
		}
	}
}

// outcome says what a failure tells: that nothing gets through, or only that
// this process could not ask (P5).
func outcome(err error) haven.Tri {
	for _, cut := range []error{syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.EHOSTDOWN, syscall.ECONNREFUSED} {
		if errors.Is(err, cut) {
			return haven.No
		}
	}
	return haven.Unknown
}

// open makes a socket that is connected to addr: an unprivileged one where
// net.ipv4.ping_group_range allows it, else a raw one, which needs CAP_NET_RAW.
func open(addr netip.Addr) (conn net.Conn, raw bool, err error) {
	if conn, err = socket(addr, syscall.SOCK_DGRAM); err == nil || !forbidden(err) {
		return conn, false, err
	}
	conn, rawErr := socket(addr, syscall.SOCK_RAW)
	if rawErr != nil && forbidden(rawErr) {
		rawErr = fmt.Errorf("pings are not allowed: %w, and net.ipv4.ping_group_range leaves this group out", rawErr)
	}
	return conn, true, rawErr
}

func forbidden(err error) bool {
	return errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EPROTONOSUPPORT)
}

func socket(addr netip.Addr, kind int) (net.Conn, error) {
	family, proto := syscall.AF_INET, syscall.IPPROTO_ICMP
	var to syscall.Sockaddr = &syscall.SockaddrInet4{Addr: four(addr)}
	if addr.Is6() {
		family, proto = syscall.AF_INET6, syscall.IPPROTO_ICMPV6
		to6 := &syscall.SockaddrInet6{Addr: addr.As16()}
		if zone := addr.Zone(); zone != "" {
			dev, err := net.InterfaceByName(zone)
			if err != nil {
				return nil, fmt.Errorf("find the link of %s: %w", addr, err)
			}
			to6.ZoneId = uint32(dev.Index)
		}
		to = to6
	}
	fd, err := syscall.Socket(family, kind|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), "icmp")
	defer func() { _ = file.Close() }() // The connection has a copy.
	if err := syscall.Connect(fd, to); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("use ICMP socket: %w", err)
	}
	return conn, nil
}

// four is an IPv4 address, or zero for one that is none.
func four(addr netip.Addr) [4]byte {
	if !addr.Is4() {
		return [4]byte{}
	}
	return addr.As4()
}

// request is an echo request. The id is the kernel's business on an unprivileged
// socket, so replies are known by the nonce.
func request(addr netip.Addr, key [2 + nonceLen]byte) []byte {
	b := make([]byte, headerLen, headerLen+nonceLen)
	b[0] = echoRequest4
	if addr.Is6() {
		b[0] = echoRequest6 // The kernel sets its checksum: it is over addresses too.
	}
	copy(b[4:6], key[:2])
	b[7] = 1
	b = append(b, key[2:]...)
	if addr.Is4() {
		binary.BigEndian.PutUint16(b[2:4], checksum(b))
	}
	return b
}

// checksum is the internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func isReply(addr netip.Addr, raw bool, b []byte, key [2 + nonceLen]byte) bool {
	want := byte(echoReply6)
	if addr.Is4() {
		want = echoReply4
		if raw { // It comes with the IPv4 header.
			if len(b) < 20 || b[0]>>4 != 4 {
				return false
			}
			header := int(b[0]&15) * 4
			if header < 20 || len(b) < header {
				return false
			}
			b = b[header:]
		}
	}
	return len(b) == headerLen+nonceLen && b[0] == want && b[1] == 0 && string(b[headerLen:]) == string(key[2:])
}

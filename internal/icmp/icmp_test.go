package icmp

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

// TestPingLoopback pings this machine for real, in both kinds of sockets that are
// allowed here.
func TestPingLoopback(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "127.0.0.77", "::1"} {
		t.Run(addr, func(t *testing.T) {
			to := netip.MustParseAddr(addr)
			if conn, _, err := open(to); err != nil {
				t.Skipf("pings are not possible here: %v", err)
			} else {
				_ = conn.Close()
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if got, why := (Pinger{}).Ping(ctx, to); got != haven.Yes {
				t.Errorf("%s: %s", got, why)
			}
		})
	}
}

// TestRawSocket is for hosts where ping_group_range leaves root out.
func TestRawSocket(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		t.Run(addr, func(t *testing.T) {
			to := netip.MustParseAddr(addr)
			conn, err := socket(to, syscall.SOCK_RAW)
			if err != nil {
				t.Skipf("raw sockets are not possible here: %v", err)
			}
			defer conn.Close()
			key := [10]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
			if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(request(to, key)); err != nil {
				t.Fatal(err)
			}
			for buf := make([]byte, 1500); ; {
				n, err := conn.Read(buf)
				if err != nil {
					t.Fatalf("no reply: %v", err)
				}
				if isReply(to, true, buf[:n], key) {
					return
				}
			}
		})
	}
}

// TestPingEndsWithItsContext (P8): also when nobody answers, and with no file left.
func TestPingEndsWithItsContext(t *testing.T) {
	nowhere := netip.MustParseAddr("127.0.0.1")
	if conn, _, err := open(nowhere); err != nil {
		t.Skipf("pings are not possible here: %v", err)
	} else {
		_ = conn.Close()
	}
	before := files(t)
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		deadline, done := context.WithTimeout(ctx, time.Minute)
		cancel()
		if got, why := (Pinger{}).Ping(deadline, nowhere); got == haven.No {
			t.Errorf("what was not waited for is %s: %s", got, why)
		}
		done()
	}
	if got, why := (Pinger{}).Ping(t.Context(), nowhere); got != haven.Unknown {
		t.Errorf("without a deadline: %s, %s", got, why)
	}
	for range 100 {
		if files(t) <= before {
			return
		}
		runtime.Gosched()
		time.Sleep(time.Millisecond)
	}
	t.Errorf("%d files are open, before %d", files(t), before)
}

func files(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestOutcome guards P5: what went wrong here says nothing about the network.
func TestOutcome(t *testing.T) {
	for err, want := range map[error]haven.Tri{
		syscall.ENETUNREACH: haven.No, syscall.EHOSTUNREACH: haven.No, syscall.ENETDOWN: haven.No,
		syscall.EPERM: haven.Unknown, syscall.EACCES: haven.Unknown, syscall.EMFILE: haven.Unknown, syscall.ENOBUFS: haven.Unknown,
		errors.New("else"): haven.Unknown,
	} {
		if got := outcome(os.NewSyscallError("send", err)); got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}

func TestIsReply(t *testing.T) {
	four, six := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fe80::1")
	key := [10]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	reply := func(addr netip.Addr) []byte {
		b := request(addr, key)
		b[0] = echoReply4
		if addr.Is6() {
			b[0] = echoReply6
		}
		return b
	}
	header := append([]byte{0x46}, make([]byte, 23)...) // with one option
	other := reply(four)
	other[headerLen]++
	tests := []struct {
		name string
		addr netip.Addr
		raw  bool
		b    []byte
		want bool
	}{
		{"datagram", four, false, reply(four), true},
		{"datagram, IPv6", six, false, reply(six), true},
		{"raw, with a header", four, true, append(slices.Clone(header), reply(four)...), true},
		{"raw, IPv6 has none", six, true, reply(six), true},
		{"our own request on the loopback", four, false, request(four, key), false},
		{"somebody else's", four, false, other, false},
		{"cut off", four, false, reply(four)[:10], false},
		{"a header and no more", four, true, header[:20], false},
		{"a header that lies", four, true, []byte{0x4f, 0, 0}, false},
		{"nothing", four, true, nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := isReply(tt.addr, tt.raw, tt.b, key); got != tt.want {
				t.Errorf("got %t", got)
			}
		})
	}
	if b := request(four, key); checksum(b) != 0 {
		t.Errorf("the checksum over a whole request is %#x, want 0", checksum(b))
	}
}

func TestGateways(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	four := write("route", strings.Join([]string{
		"Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT",
		"eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0",
		"eth1\t00000000\t0100000A\t0003\t0\t0\t200\t00000000\t0\t0\t0", // the same once more
		"eth1\t00000000\tFE01A8C0\t0003\t0\t0\t300\t00000000\t0\t0\t0",
		"eth2\t00000000\t00000000\t0001\t0\t0\t300\t00000000\t0\t0\t0", // a default route without a gateway
		"eth0\t0000000A\t0200000A\t0003\t0\t0\t100\t00FFFFFF\t0\t0\t0", // not a default route
		"eth0\t00000000\t0300000A\t0203\t0\t0\t100\t00000000\t0\t0\t0", // unreachable
		"eth0\t00000000\tXYZ", "",
	}, "\n"))
	six := write("ipv6_route", strings.Join([]string{
		"00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0",
		"00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo",
		"fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0",
	}, "\n"))
	got, err := gateways(four, six)
	want := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.168.1.254"), netip.MustParseAddr("fe80::1%eth0")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if got, err := gateways(filepath.Join(dir, "none"), filepath.Join(dir, "none")); err != nil || len(got) != 0 {
		t.Errorf("without the files: %v, %v", got, err)
	}
	if _, err := gateways(dir, six); err == nil {
		t.Error("a file that cannot be read is no error")
	}
	if _, err := (Pinger{}).Gateways(); err != nil { // this machine's own
		t.Error(err)
	}
}

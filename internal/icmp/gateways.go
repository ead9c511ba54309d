package icmp

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Where Linux shows its routes.
const (
	routes4 = "/proc/net/route"
	routes6 = "/proc/net/ipv6_route"
)

// Gateways returns the gateways of this host's default routes, IPv4 first,
// without repetition.
func (Pinger) Gateways() ([]netip.Addr, error) { return gateways(routes4, routes6) }

func gateways(file4, file6 string) ([]netip.Addr, error) {
	var all []netip.Addr
	var errs []error
	for _, f := range []struct {
		path  string
		parse func(fields []string) (netip.Addr, bool)
	}{{file4, route4}, {file6, route6}} {
		text, err := os.ReadFile(f.path)
		if errors.Is(err, os.ErrNotExist) {
			continue // The kernel lacks that protocol.
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("read routes: %w", err))
			continue
		}
		for line := range strings.Lines(string(text)) {
			if gw, ok := f.parse(strings.Fields(line)); ok && !slices.Contains(all, gw) {
				all = append(all, gw)
			}
		}
	}
	return all, errors.Join(errs...)
}

// Flags of a route, from linux/route.h.
const (
	routeUp      = 1
	routeGateway = 2
	routeReject  = 0x200
)

// route4 finds the gateway in a line of /proc/net/route, whose addresses are
// words as a little-endian machine writes them, the only kind that Haven is
// built for:
//
//	Iface Destination Gateway Flags RefCnt Use Metric Mask …
func route4(f []string) (netip.Addr, bool) {
	if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" || !usable(f[3]) {
		return netip.Addr{}, false
	}
	b, err := hex.DecodeString(f[2])
	if err != nil || len(b) != 4 {
		return netip.Addr{}, false
	}
	slices.Reverse(b)
	addr, ok := netip.AddrFromSlice(b)
	return addr, ok && !addr.IsUnspecified()
}

// route6 does so in a line of /proc/net/ipv6_route:
//
//	destination length source length gateway metric refcnt use flags iface
func route6(f []string) (netip.Addr, bool) {
	if len(f) < 10 || f[0] != strings.Repeat("0", 32) || f[1] != "00" || !usable(f[8]) {
		return netip.Addr{}, false
	}
	b, err := hex.DecodeString(f[4])
	if err != nil || len(b) != 16 {
		return netip.Addr{}, false
	}
	addr, ok := netip.AddrFromSlice(b)
	if !ok || addr.IsUnspecified() {
		return netip.Addr{}, false
	}
	if addr.IsLinkLocalUnicast() {
		addr = addr.WithZone(f[9])
	}
	return addr, true
}

func usable(flags string) bool {
	n, err := strconv.ParseUint(flags, 16, 32)
	return err == nil && n&routeUp != 0 && n&routeGateway != 0 && n&routeReject == 0
}

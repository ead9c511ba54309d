package helper

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/haven-ha/haven/internal/netx"
)

// maxList bounds a neighbour's answer: a thousand VMs with long names need a
// quarter of it.
const maxList = 1 << 20

// Client asks helpers on other hosts for their lists.
type Client struct {
	http     *http.Client
	scheme   string
	username string
	password atomic.Pointer[string]
}

// NewClient makes a client. A nil config means HTTP without TLS; otherwise it
// holds the authorities that helpers' certificates must come from. With an
// empty user name no credentials are sent.
func NewClient(stack netx.Stack, config *tls.Config, username, password string) *Client {
	c := &Client{scheme: "http", username: username}
	c.password.Store(&password)
	if config != nil {
		c.scheme = "https"
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext:            stack.DialContext,
			TLSClientConfig:        config,
			DisableKeepAlives:      true, // Each answer shows that the host takes new connections.
			MaxResponseHeaderBytes: 16 << 10,
			Protocols:              http1(),
		},
		// A helper has no reason to send us elsewhere, with our password.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// http1 switches HTTP/2 off: one connection, one request, one bound.
func http1() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return p
}

// List returns the names that the helper at addr gives. Any error means that
// it gave no list before ctx ended.
func (c *Client) List(ctx context.Context, addr netip.AddrPort) ([]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.scheme+"://"+addr.String()+"/", nil)
	if err != nil {
		return nil, fmt.Errorf("ask helper: %w", err)
	}
	if c.username != "" {
		req.SetBasicAuth(c.username, *c.password.Load())
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask helper: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxList+1))
	if err != nil {
		return nil, fmt.Errorf("read helper's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("helper answered %s%s", resp.Status, reason(body))
	}
	var list vmList
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("read helper's answer: %w", err)
	}
	if list.VMs == nil || list.Count != len(list.VMs) {
		return nil, fmt.Errorf("read helper's answer: it counts %d VMs and names %d", list.Count, len(list.VMs))
	}
	return list.VMs, nil
}

// reason finds the words of an error body.
func reason(body []byte) string {
	var e struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &e) != nil || e.Error == "" {
		return ""
	}
	return ": " + e.Error[:min(len(e.Error), 200)]
}

// neighbours answers for other hosts, and for no others than are configured.
type neighbours struct {
	client  *Client
	allowed map[netip.AddrPort]bool
	slots   chan struct{}
}

var (
	errStranger = errors.New("not a configured neighbour")
	errBusy     = errors.New("too many neighbours are being checked")
)

const (
	// checkLimit bounds the check of one neighbour.
	checkLimit = 2 * time.Second
	maxChecks  = 8
)

// check says whether the helper at HOST:PORT gives its list.
func (n *neighbours) check(ctx context.Context, hostPort string) (up bool, why, err error) {
	addr, err := parseAddr(hostPort)
	if err != nil || !n.allowed[addr] {
		return false, nil, errStranger
	}
	select {
	case n.slots <- struct{}{}:
		defer func() { <-n.slots }()
	default:
		return false, nil, errBusy
	}
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	_, why = n.client.List(ctx, addr)
	return why == nil, why, nil
}

// parseAddr reads HOST:PORT with a literal address. CloudStack's client writes
// an IPv6 address without brackets. Names are not looked up.
func parseAddr(s string) (netip.AddrPort, error) {
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		host, port = s[:i], s[i+1:]
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	addr, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
	if err != nil || addr.Addr().Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("address %q: want a literal IP address and a port", s)
	}
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), nil
}

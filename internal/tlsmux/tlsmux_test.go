package tlsmux

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/pki"
)

const patience = 10 * time.Second // bounds waits that end at once when all is well

func credentials(t *testing.T, ca *pki.CA, host haven.HostID, operator string) *pki.Credentials {
	t.Helper()
	var pair pki.Pair
	var err error
	if operator != "" {
		pair, err = ca.IssueOperator(operator, pki.RoleAdmin, time.Hour)
	} else {
		pair, err = ca.IssueHost(host, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, time.Hour)
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := pki.NewCredentials(ca.Cluster(), ca.Pair().Cert, pair)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newCA(t *testing.T) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA("prod-a", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// start runs a mux until the test ends, and checks that Run returns then.
func start(t *testing.T, cfg Config) *Mux {
	t.Helper()
	cfg.Stack, cfg.Addr, cfg.Log = netx.Real{}, "127.0.0.1:0", slog.New(slog.DiscardHandler)
	m, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run did not return")
		}
	})
	return m
}

// serve answers every request with the peer's identity and the protocol.
func serve(t *testing.T, m *Mux) {
	t.Helper()
	srv := &http.Server{
		ReadHeaderTimeout: patience,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			id, err := pki.PeerIdentity(*r.TLS)
			if err != nil {
				http.Error(w, err.Error(), http.StatusForbidden)
				return
			}
			_, _ = io.WriteString(w, id.String()+" "+r.Proto)
		}),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(m.HTTP()) }()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
}

func get(t *testing.T, tr *http.Transport, url string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func transport(t *testing.T, creds *pki.Credentials, m *Mux) *http.Transport {
	t.Helper()
	tr := NewTransport(netx.Real{}, creds, func(h haven.HostID) (string, bool) {
		return m.Addr().String(), h != "unknown"
	})
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// One real port carries HTTP/2, HTTP/1.1 and Raft at the same time.
func TestOnePort(t *testing.T) {
	ca := newCA(t)
	m := start(t, Config{Credentials: credentials(t, ca, "kvm-01", "")})
	serve(t, m)
	peer := credentials(t, ca, "kvm-02", "")
	tr := transport(t, peer, m)
	if got, err := get(t, tr, "https://kvm-01/v1/x"); err != nil || got != "host kvm-02 HTTP/2.0" {
		t.Fatalf("host over HTTP/2: %q, %v", got, err)
	}
	if got, err := get(t, transport(t, credentials(t, ca, "", "ann"), m), "https://kvm-01/"); err != nil || got != "admin ann HTTP/2.0" {
		t.Fatalf("operator: %q, %v", got, err)
	}
	old := &http.Transport{TLSClientConfig: peer.ClientConfig("kvm-01", nil)}
	t.Cleanup(old.CloseIdleConnections)
	if got, err := get(t, old, "https://"+m.Addr().String()+"/"); err != nil || got != "host kvm-02 HTTP/1.1" {
		t.Fatalf("HTTP/1.1: %q, %v", got, err)
	}

	m2 := start(t, Config{Credentials: peer})
	accepted := make(chan haven.HostID, 1)
	go func() {
		conn, host, err := m.Raft().Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.Copy(conn, conn)
		accepted <- host
	}()
	conn, err := m2.Raft().Dial(t.Context(), "kvm-01", m.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte("append entries")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 14)
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "append entries" {
		t.Fatalf("echo: %q, %v", buf, err)
	}
	_ = conn.Close()
	if host := <-accepted; host != "kvm-02" {
		t.Fatalf("stream from %q", host)
	}
}

// Who is not the expected host, or no host, or of another CA, is refused.
func TestRefused(t *testing.T) {
	ca := newCA(t)
	m := start(t, Config{Credentials: credentials(t, ca, "kvm-01", "")})
	serve(t, m)
	reached := make(chan haven.HostID, 16)
	go func() {
		for {
			conn, host, err := m.Raft().Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
			reached <- host
		}
	}()
	for name, creds := range map[string]*pki.Credentials{
		"operator on the raft stream": credentials(t, ca, "", "ann"),
		"another CA":                  credentials(t, newCA(t), "kvm-02", ""),
	} {
		conn, err := dial(t.Context(), netx.Real{}, creds, "kvm-01", m.Addr().String(), []string{ProtoRaft})
		if err == nil {
			// The server's refusal comes after the client's part is done.
			_ = conn.SetDeadline(time.Now().Add(patience))
			_, err = conn.Read(make([]byte, 1))
			_ = conn.Close()
			if err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%s: accepted (%v)", name, err)
			}
		}
	}
	select {
	case host := <-reached:
		t.Errorf("raft saw a connection of %q", host)
	default:
	}
	tr := transport(t, credentials(t, ca, "kvm-02", ""), m)
	if _, err := get(t, tr, "https://kvm-03/"); err == nil || !strings.Contains(err.Error(), "kvm-03") {
		t.Errorf("host kvm-01 answered for kvm-03: %v", err)
	}
	if _, err := get(t, tr, "https://unknown/"); !errors.Is(err, haven.ErrNotFound) {
		t.Errorf("unknown host: %v", err)
	}
	if _, err := get(t, tr, "http://kvm-01/"); err == nil {
		t.Error("a plain connection was made")
	}
}

// P8: connections that say nothing take a bounded number of slots for a
// bounded time, and those of one address do not keep another address out.
func TestSilentPeers(t *testing.T) {
	ca := newCA(t)
	m := start(t, Config{
		Credentials: credentials(t, ca, "kvm-01", ""), HandshakeTimeout: time.Second, MaxHandshakesPerIP: 2,
	})
	serve(t, m)
	silent := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", m.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetReadDeadline(time.Now().Add(patience))
		return c
	}
	conns := []net.Conn{silent(), silent(), silent()}
	from, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).Dial("tcp", m.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	other := tls.Client(from, credentials(t, ca, "kvm-02", "").ClientConfig("kvm-01", []string{protoHTTP1}))
	if err := other.HandshakeContext(t.Context()); err != nil {
		t.Fatalf("another address was kept out: %v", err)
	}
	for i, c := range conns {
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("connection %d was not cut: %v", i, err)
		} else if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
			t.Errorf("connection %d was not cut: %v", i, err)
		}
	}
	if _, err := get(t, transport(t, credentials(t, ca, "kvm-02", ""), m), "https://kvm-01/"); err != nil {
		t.Fatalf("the port did not recover: %v", err)
	}
}

func TestMaxConns(t *testing.T) {
	ca := newCA(t)
	m := start(t, Config{Credentials: credentials(t, ca, "kvm-01", ""), MaxConns: 1})
	serve(t, m)
	peer := credentials(t, ca, "kvm-02", "")
	first := transport(t, peer, m)
	if _, err := get(t, first, "https://kvm-01/"); err != nil {
		t.Fatal(err)
	}
	if _, err := get(t, transport(t, peer, m), "https://kvm-01/"); err == nil {
		t.Fatal("a second connection was accepted")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conns != 1 {
		t.Fatalf("%d connections are counted, want 1", m.conns)
	}
}

package api_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/api"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/pki"
	"github.com/haven-ha/haven/internal/tlsmux"
)

const cluster = "prod-a"

// server is an API on loopback, with certificates of its own.
type server struct {
	ca    *pki.CA
	addr  string
	local string // of the plain listener that counts as the local socket
}

func serve(t *testing.T, routes []api.Route) server {
	t.Helper()
	ca, err := pki.NewCA(cluster, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s := server{ca: ca}
	mux, err := tlsmux.Listen(tlsmux.Config{
		Stack: netx.Real{}, Addr: "127.0.0.1:0", Credentials: s.host(t, "kvm-01"), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	plain, err := netx.Real{}.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr, s.local = mux.Addr().String(), plain.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	log := slog.New(slog.DiscardHandler)
	h := api.Handler(cluster, routes, map[string]http.Handler{"GET /metrics": http.NotFoundHandler()}, log)
	var wg sync.WaitGroup
	wg.Go(func() { _ = mux.Run(ctx) })
	wg.Go(func() { _ = api.Serve(ctx, mux.HTTP(), h, false, log) })
	wg.Go(func() { _ = api.Serve(ctx, plain, h, true, log) })
	t.Cleanup(func() { stop(); wg.Wait() })
	return s
}

func (s server) host(t *testing.T, id haven.HostID) *pki.Credentials {
	t.Helper()
	pair, err := s.ca.IssueHost(id, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, time.Hour)
	return credentials(t, s.ca, pair, err)
}

func (s server) operator(t *testing.T, role pki.Role) *pki.Credentials {
	t.Helper()
	pair, err := s.ca.IssueOperator("alice", role, time.Hour)
	return credentials(t, s.ca, pair, err)
}

func credentials(t *testing.T, ca *pki.CA, pair pki.Pair, err error) *pki.Credentials {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	c, err := pki.NewCredentials(cluster, ca.Pair().Cert, pair)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ask sends one request and returns the status and the body.
func (s server) ask(t *testing.T, creds *pki.Credentials, method, path, behalf string, body []byte) (int, []byte) {
	t.Helper()
	tr := tlsmux.NewTransport(netx.Real{}, creds, func(haven.HostID) (string, bool) { return s.addr, true })
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://kvm-01"+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if behalf != "" {
		req.Header.Set(client.HeaderOnBehalf, behalf)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, data
}

// caller is a route that tells who asked.
func caller(pattern string, need api.Need) api.Route {
	return api.Route{Pattern: pattern, Need: need, MaxBytes: 64, Serve: func(_ context.Context, c *api.Call) (any, error) {
		return map[string]string{"from": string(c.From), "by": c.By, "role": string(c.Role)}, nil
	}}
}

// TestWhoMayAsk guards the rights: only hosts speak to the routes of hosts, and
// an operator's word counts as much as the certificate says. A host may pass an
// operator's request on; an operator may not speak for another.
func TestWhoMayAsk(t *testing.T) {
	s := serve(t, []api.Route{
		caller("POST /host", api.NeedHost), caller("POST /view", api.NeedViewer),
		caller("POST /operate", api.NeedOperator), caller("POST /admin", api.NeedAdmin),
	})
	host, viewer := s.host(t, "kvm-02"), s.operator(t, pki.RoleViewer)
	operator, admin := s.operator(t, pki.RoleOperator), s.operator(t, pki.RoleAdmin)
	const no = http.StatusForbidden
	tests := []struct {
		name   string
		creds  *pki.Credentials
		behalf string
		want   [4]int // host, view, operate, admin
		by     string
	}{
		{"host", host, "", [4]int{200, 200, no, no}, "host kvm-02"},
		{"viewer", viewer, "", [4]int{no, 200, no, no}, "viewer alice"},
		{"operator", operator, "", [4]int{no, 200, 200, no}, "operator alice"},
		{"admin", admin, "", [4]int{no, 200, 200, 200}, "admin alice"},
		{"host for an operator", host, "operator bob;operator", [4]int{200, 200, 200, no}, "operator bob"},
		{"host for an admin", host, "admin bob;admin", [4]int{200, 200, 200, 200}, "admin bob"},
		{"host for a name with a semicolon", host, "a;admin;viewer", [4]int{200, 200, no, no}, "a;admin"},
		{"host for a role that does not exist", host, "bob;root", [4]int{200, 400, 400, 400}, ""},
		{"host for a role alone", host, ";admin", [4]int{200, 400, 400, 400}, ""},
		{"host without a role", host, "bob", [4]int{200, 400, 400, 400}, ""},
		{"host for a very long name", host, strings.Repeat("x", 5000) + ";admin", [4]int{200, 400, 400, 400}, ""},
		{"viewer who says to be another", viewer, "admin bob;admin", [4]int{no, 200, no, no}, "viewer alice"},
		{"operator who says to be another", operator, "admin bob;admin", [4]int{no, 200, 200, no}, "operator alice"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for i, path := range []string{"/host", "/view", "/operate", "/admin"} {
				status, body := s.ask(t, tt.creds, http.MethodPost, path, tt.behalf, nil)
				if status != tt.want[i] {
					t.Errorf("%s: %d, want %d: %s", path, status, tt.want[i], body)
				}
				if status != http.StatusOK {
					var p client.Problem
					if err := json.Unmarshal(body, &p); err != nil || p.Status != status || p.Title == "" {
						t.Errorf("%s: not a problem document: %s", path, body)
					}
					continue
				}
				var who map[string]string
				if err := json.Unmarshal(body, &who); err != nil {
					t.Fatal(err)
				}
				if path != "/host" && who["by"] != tt.by {
					t.Errorf("%s: by %q, want %q", path, who["by"], tt.by)
				}
				if isHost := tt.creds == host; (who["from"] == "kvm-02") != isHost {
					t.Errorf("%s: from %q", path, who["from"])
				}
			}
		})
	}
}

// TestStrangers guards the door: without a certificate of this cluster's CA and
// of this cluster's name nobody gets as far as HTTP.
func TestStrangers(t *testing.T) {
	s := serve(t, []api.Route{caller("GET /view", api.NeedViewer)})
	otherCA, err := pki.NewCA(cluster, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := otherCA.IssueOperator("alice", pki.RoleAdmin, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(foreign.Cert, foreign.Key)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		certs []tls.Certificate
	}{
		{"no certificate", nil},
		{"a certificate of another CA with the same names", []tls.Certificate{pair}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := netx.Real{}.DialContext(t.Context(), "tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, Certificates: tt.certs, NextProtos: []string{"http/1.1"}}) //nolint:gosec // the server is what is tested
			_, werr := c.Write([]byte("GET /view HTTP/1.1\r\nHost: kvm-01\r\n\r\n"))
			answer, rerr := io.ReadAll(c)
			if len(answer) > 0 || (werr == nil && rerr == nil) {
				t.Fatalf("got %q, errors %v and %v", answer, werr, rerr)
			}
		})
	}
}

// TestLocalSocketIsRoot: whoever could open the local listener is an admin, but
// not a host.
func TestLocalSocketIsRoot(t *testing.T) {
	s := serve(t, []api.Route{caller("GET /admin", api.NeedAdmin), caller("GET /host", api.NeedHost)})
	for path, want := range map[string]int{"/admin": 200, "/host": 403} {
		resp, err := http.Get("http://" + s.local + path) //nolint:noctx // loopback, in a test
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
}

// TestBodies guards the bounds of what a caller may send.
func TestBodies(t *testing.T) {
	decode := func(_ context.Context, c *api.Call) (any, error) {
		var q struct {
			Name string `json:"name"`
		}
		return q.Name, c.Decode(&q)
	}
	s := serve(t, []api.Route{
		{Pattern: "POST /small", Need: api.NeedViewer, MaxBytes: 64, Serve: decode},
		{Pattern: "GET /none", Need: api.NeedViewer, Serve: func(context.Context, *api.Call) (any, error) { return "ok", nil }},
	})
	admin := s.operator(t, pki.RoleAdmin)
	tests := []struct {
		name, method, path, body string
		want                     int
	}{
		{"well formed", "POST", "/small", `{"name":"x"}`, 200},
		{"as long as may be", "POST", "/small", `{"name":"` + strings.Repeat("x", 53) + `"}`, 200},
		{"one too long", "POST", "/small", `{"name":"` + strings.Repeat("x", 54) + `"}`, 413},
		{"far too long", "POST", "/small", strings.Repeat("x", 1<<20), 413},
		{"empty", "POST", "/small", "", 400},
		{"cut off", "POST", "/small", `{"name":"x`, 400},
		{"wrong type", "POST", "/small", `{"name":1}`, 400},
		{"unknown field", "POST", "/small", `{"nme":"x"}`, 400},
		{"two values", "POST", "/small", `{"name":"x"}{"name":"y"}`, 400},
		{"a brace too many", "POST", "/small", `{"name":"x"}}`, 400},
		{"space after it", "POST", "/small", "{\"name\":\"x\"} \n", 200},
		{"a body where none belongs", "GET", "/none", "x", 413},
		{"no such path", "GET", "/nothing", "", 404},
		{"a path out of the tree", "GET", "/v1/../../etc/passwd", "", 404},
		{"another method", "DELETE", "/small", "", 405},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, body := s.ask(t, admin, tt.method, tt.path, "", []byte(tt.body))
			if status != tt.want && (tt.want != 404 || status/100 != 3) {
				t.Errorf("%d, want %d: %s", status, tt.want, body)
			}
		})
	}
}

// TestSlowCallerIsCut: a caller that never ends its headers loses its connection.
func TestSlowCallerIsCut(t *testing.T) {
	t.Parallel()
	s := serve(t, []api.Route{caller("GET /view", api.NeedViewer)})
	conn, err := netx.Real{}.DialContext(t.Context(), "tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	c := tls.Client(conn, s.operator(t, pki.RoleViewer).ClientConfig("kvm-01", []string{"http/1.1"}))
	if _, err := c.Write([]byte("GET /view HTTP/1.1\r\nHost: kvm-01\r\nX-Slow: ")); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(c)
	if nerr, ok := errors.AsType[net.Error](err); ok && nerr.Timeout() {
		t.Fatal("the connection is still open")
	}
}

// TestHangingRouteDoesNotHoldTheEnd (P8): Serve ends soon after its context,
// also while a route hangs, and such a route's context has ended.
func TestHangingRouteDoesNotHoldTheEnd(t *testing.T) {
	entered, left := make(chan struct{}), make(chan struct{})
	l, err := netx.Real{}.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	h := api.Handler(cluster, []api.Route{{Pattern: "GET /hang", Serve: func(ctx context.Context, _ *api.Call) (any, error) {
		close(entered)
		<-ctx.Done()
		close(left)
		return nil, ctx.Err()
	}}}, nil, log)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- api.Serve(ctx, l, h, true, log) }()
	go func() {
		resp, err := http.Get("http://" + l.Addr().String() + "/hang") //nolint:noctx // the server ends it
		if err == nil {
			_ = resp.Body.Close()
		}
	}()
	<-entered
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	select {
	case <-left:
	default:
		t.Fatal("Serve came back before its route did")
	}
}

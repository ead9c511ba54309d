package helper

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/haven-ha/haven/internal/netx"
)

// vms is a Lister that says what it is told to, and counts.
type vms struct {
	mu     sync.Mutex
	names  []string
	err    error
	hang   chan struct{} // not nil: wait for this, or for the context
	deaf   bool          // hang on, whatever the context says
	asked  atomic.Int32
	at     atomic.Int32 // questions under way
	atMost atomic.Int32
}

func (v *vms) Running(ctx context.Context) ([]string, error) {
	v.asked.Add(1)
	v.atMost.Store(max(v.atMost.Load(), v.at.Add(1)))
	defer v.at.Add(-1)
	v.mu.Lock()
	names, err, hang, deaf := v.names, v.err, v.hang, v.deaf
	v.mu.Unlock()
	if hang != nil {
		done := ctx.Done()
		if deaf {
			done = nil
		}
		select {
		case <-hang:
		case <-done:
			return nil, ctx.Err()
		}
	}
	return names, err
}

func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

func options(v *vms, change ...func(*Options)) Options {
	o := Options{
		Address: "127.0.0.1:0", VMs: v, Net: netx.Real{}, Log: quietLog(),
		Client: NewClient(netx.Real{}, nil, "", ""),
	}
	for _, c := range change {
		c(&o)
	}
	return o
}

// serve runs a server until the test ends and returns its address.
func serve(t *testing.T, o Options) netip.AddrPort {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	addr, over := make(chan string, 1), make(chan error, 1)
	go func() { over <- s.Run(ctx, func(a string) { addr <- a }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	select {
	case a := <-addr:
		return netip.MustParseAddrPort(a)
	case err := <-over:
		over <- err
		t.Fatal(err)
		return netip.AddrPort{}
	}
}

// ask sends a request straight to the handler.
func ask(t *testing.T, o Options, method, path string, auth ...string) (code int, body string, h http.Header) {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(t.Context(), method, "http://helper"+path, nil)
	if len(auth) == 2 {
		r.SetBasicAuth(auth[0], auth[1])
	} else if len(auth) == 1 {
		r.Header.Set("Authorization", auth[0])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w.Code, w.Body.String(), w.Header()
}

func TestWireFormat(t *testing.T) {
	tests := []struct {
		name  string
		names []string
		err   error
		code  int
		want  string
	}{
		{"three", []string{"a", "b", "c"}, nil, 200, `{"count":3,"virtualmachines":["a","b","c"]}`},
		{"none", nil, nil, 200, `{"count":0,"virtualmachines":[]}`},
		{"odd names", []string{"a\nb", `"`}, nil, 200, `{"count":2,"virtualmachines":["a\nb","\""]}`},
		{"failure", nil, errors.New("no socket"), 503, `{"count":-1,"virtualmachines":[],"error":"no socket"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, body, h := ask(t, options(&vms{names: tt.names, err: tt.err}), "GET", "/")
			if code != tt.code || body != tt.want+"\n" || h.Get("Content-Type") != "application/json" {
				t.Errorf("got %d %q %v, want %d %q", code, body, h, tt.code, tt.want)
			}
		})
	}
}

// cloudStack does what CloudStack's client does with an answer: it reads the
// first line, parses it, and looks at the count before it looks at the status.
func cloudStack(t *testing.T, c *http.Client, url, user, password string) (count int) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		r.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal([]byte(line), &object); err != nil {
		t.Fatalf("%q is no object: %v", line, err)
	}
	if err := json.Unmarshal(object["count"], &count); err != nil {
		t.Fatalf("%q has no count: %v", line, err)
	}
	return count
}

// The client of CloudStack works unchanged, over TLS with a password and in the
// clear without, and every failure is its own -1.
func TestCloudStackClient(t *testing.T) {
	cert, pool := certificate(t)
	v := &vms{names: []string{"r-123-VM", "v-134-VM", "s-111-VM"}}
	secure := serve(t, options(v, func(o *Options) {
		o.TLS, o.Username, o.Password = &tls.Config{Certificates: []tls.Certificate{cert}}, "cloud", "pw"
	}))
	plain := serve(t, options(v))
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	// It asks for host:port without a path.
	if n := cloudStack(t, c, "https://"+secure.String(), "cloud", "pw"); n != 3 {
		t.Errorf("over TLS: %d VMs", n)
	}
	if n := cloudStack(t, c, "http://"+plain.String(), "", ""); n != 3 {
		t.Errorf("in the clear: %d VMs", n)
	}
	if n := cloudStack(t, c, "http://"+plain.String(), "ignored", "ignored"); n != 3 {
		t.Errorf("in the clear with credentials: %d VMs", n)
	}
	if n := cloudStack(t, c, "https://"+secure.String(), "cloud", "wrong"); n != -1 {
		t.Errorf("with a wrong password: %d VMs", n)
	}
	blind := serve(t, options(&vms{err: errors.New("gone")}))
	if n := cloudStack(t, c, "http://"+blind.String(), "", ""); n != -1 {
		t.Errorf("without libvirtd: %d VMs", n)
	}
}

func TestRefusals(t *testing.T) {
	withAuth := func(o *Options) { o.Username, o.Password = "u", "pass:word" }
	tests := []struct {
		name, method, path string
		auth               []string
		code               int
		body               string
	}{
		{"right", "GET", "/", []string{"u", "pass:word"}, 200, `{"count":1,"virtualmachines":["a"]}`},
		{"none", "GET", "/", nil, 401, `{"count":-1,"virtualmachines":[],"error":"wrong user name or password"}`},
		{"wrong user", "GET", "/", []string{"v", "pass:word"}, 401, ""},
		{"wrong password", "GET", "/", []string{"u", "pass:wor"}, 401, ""},
		{"empty", "GET", "/", []string{"", ""}, 401, ""},
		{"no base64", "GET", "/", []string{"Basic %%%"}, 401, ""},
		{"other scheme", "GET", "/", []string{"Bearer dTpwYXNzOndvcmQ="}, 401, ""},
		{"scheme in lower case", "GET", "/", []string{"basic " + base64.StdEncoding.EncodeToString([]byte("u:pass:word"))}, 200, ""},
		{"neighbour without", "GET", "/check-neighbour/127.0.0.1:1", nil, 401, ""},
		{"unknown path without", "GET", "/x", nil, 401, ""},
		{"unknown path", "GET", "/x", []string{"u", "pass:word"}, 404, `{"error":"no such path"}`},
		{"POST", "POST", "/", []string{"u", "pass:word"}, 405, ""},
		{"health needs none", "GET", "/healthz", nil, 200, `{"status":"ok"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, body, h := ask(t, options(&vms{names: []string{"a"}}, withAuth), tt.method, tt.path, tt.auth...)
			if code != tt.code || tt.body != "" && body != tt.body+"\n" || !json.Valid([]byte(body)) {
				t.Errorf("got %d %q, want %d %q", code, body, tt.code, tt.body)
			}
			if (h.Get("WWW-Authenticate") != "") != (code == 401) {
				t.Errorf("got %d with headers %v", code, h)
			}
		})
	}
}

// Only what is configured is ever asked (no address is reached on anybody's
// word), and Up means that a list came.
func TestCheckNeighbour(t *testing.T) {
	reply := func(code int, body string) netip.AddrPort {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/" {
				t.Errorf("was asked for %s", r.URL.Path)
			}
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}))
		t.Cleanup(s.Close)
		return netip.MustParseAddrPort(s.Listener.Addr().String())
	}
	genuine := serve(t, options(&vms{names: []string{"a"}}))
	broken := serve(t, options(&vms{err: errors.New("no libvirtd")}))
	closed := netip.MustParseAddrPort("127.0.0.1:1")
	tests := []struct {
		name string
		addr netip.AddrPort
		want string
	}{
		{"a helper", genuine, `{"status":"Up"}`},
		{"CloudStack's own words", reply(200, `{"count": 3, "virtualmachines": ["r-123-VM", "v-134-VM", "s-111-VM"]}`), `{"status":"Up"}`},
		{"an empty host", reply(200, `{"count": 0, "virtualmachines": []}`), `{"status":"Up"}`},
		{"a helper without libvirtd", broken, `{"status":"Down"}`},
		{"nobody", closed, `{"status":"Down"}`},
		{"something else", reply(200, "<html>welcome"), `{"status":"Down"}`},
		{"another JSON", reply(200, "{}"), `{"status":"Down"}`},
		{"a wrong count", reply(200, `{"count":2,"virtualmachines":["a"]}`), `{"status":"Down"}`},
		{"a list with an error", reply(500, `{"count":0,"virtualmachines":[]}`), `{"status":"Down"}`},
		{"a redirect", reply(302, `{"count":0,"virtualmachines":[]}`), `{"status":"Down"}`},
		{"endless", reply(200, `{"count":0,"virtualmachines":[`+strings.Repeat(" ", maxList)+`]}`), `{"status":"Down"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := options(&vms{}, func(o *Options) { o.Neighbours = []netip.AddrPort{tt.addr} })
			if code, body, _ := ask(t, o, "GET", "/check-neighbour/"+tt.addr.String()); code != 200 || body != tt.want+"\n" {
				t.Errorf("got %d %q, want %q", code, body, tt.want)
			}
		})
	}
	for _, path := range []string{
		genuine.String(), "localhost:80", "127.0.0.1", "127.0.0.1:", "", ":80", "169.254.169.254:80", "127.0.0.1:7/../x",
		"user@127.0.0.1:7", "127.0.0.1:99999", "[fe80::1%25eth0]:7",
	} {
		o := options(&vms{}, func(o *Options) { o.Neighbours = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:7")} })
		if code, body, _ := ask(t, o, "GET", "/check-neighbour/"+path); code != 403 || !json.Valid([]byte(body)) {
			t.Errorf("for %q got %d %q, want 403", path, code, body)
		}
	}
}

func TestParseAddr(t *testing.T) {
	for s, want := range map[string]string{
		"10.0.0.1:8443":        "10.0.0.1:8443",
		"[fd00::1]:8443":       "[fd00::1]:8443",
		"fd00::1:8443":         "[fd00::1]:8443",
		"::ffff:10.0.0.1:8443": "10.0.0.1:8443",
	} {
		if got, err := parseAddr(s); err != nil || got.String() != want {
			t.Errorf("parseAddr(%q) = %v, %v, want %s", s, got, err, want)
		}
	}
}

// The password goes to a neighbour that proves who it is, and to nobody else.
func TestNeighbourMustBeGenuine(t *testing.T) {
	cert, pool := certificate(t)
	_, otherPool := certificate(t)
	addr := serve(t, options(&vms{}, func(o *Options) {
		o.TLS, o.Username, o.Password = &tls.Config{Certificates: []tls.Certificate{cert}}, "u", "p"
	}))
	for name, tt := range map[string]struct {
		pool     *x509.CertPool
		password string
		ok       bool
	}{
		"genuine":        {pool, "p", true},
		"wrong password": {pool, "q", false},
		"impostor":       {otherPool, "p", false},
	} {
		c := NewClient(netx.Real{}, &tls.Config{RootCAs: tt.pool}, "u", tt.password)
		if _, err := c.List(t.Context(), addr); (err == nil) != tt.ok {
			t.Errorf("%s: List() = %v", name, err)
		}
	}
}

// P8: while libvirtd hangs, every request is answered within 2 s, and there is
// one question to libvirtd, however many ask.
func TestHungLibvirtd(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			v := &vms{hang: make(chan struct{}), deaf: deaf, names: []string{"a"}}
			s, err := New(options(v))
			if err != nil {
				t.Fatal(err)
			}
			get := func() (int, time.Duration) {
				began := time.Now()
				w := httptest.NewRecorder()
				s.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
				return w.Code, time.Since(began)
			}
			for range 3 {
				var wg sync.WaitGroup
				for range 100 {
					wg.Go(func() {
						if code, took := get(); code != 503 || took > 2*time.Second {
							t.Errorf("got %d after %v", code, took)
						}
					})
				}
				wg.Wait()
			}
			if n := v.atMost.Load(); n != 1 {
				t.Errorf("%d questions at once, want 1", n)
			}
			if n := v.asked.Load(); deaf && n != 1 || n > 3 {
				t.Errorf("%d questions", n)
			}
			close(v.hang)
			synctest.Wait()
			if code, took := get(); code != 200 || took > 0 {
				t.Errorf("afterwards got %d after %v", code, took)
			}
		})
	}
}

// An answer serves for half a second from when its question began; an error
// serves nobody else.
func TestListAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &vms{names: []string{"a"}}
		l := &lists{from: v, log: quietLog()}
		get := func(want int32) {
			t.Helper()
			if _, err := l.get(t.Context()); (err != nil) != (v.err != nil) {
				t.Errorf("get() = %v", err)
			}
			if n := v.asked.Load(); n != want {
				t.Errorf("%d questions, want %d", n, want)
			}
		}
		get(1)
		get(1)
		time.Sleep(listAge)
		get(1)
		time.Sleep(time.Millisecond)
		get(2)
		v.err = errors.New("no")
		time.Sleep(listAge + 1)
		get(3)
		get(4)
	})
}

// The list is lost and found in the log once each, not at every request.
func TestLogIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		v := &vms{err: errors.New("no socket")}
		l := &lists{from: v, log: slog.New(slog.NewTextHandler(&log, nil))}
		for range 10 {
			_, _ = l.get(t.Context())
		}
		v.err = nil
		_, _ = l.get(t.Context())
		synctest.Wait()
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("%d lines: %s", n, log.String())
		}
	})
}

// Slow and silent clients neither pile up nor keep others out.
func TestSlowClients(t *testing.T) {
	addr := serve(t, options(&vms{names: []string{"a"}}))
	before := runtime.NumGoroutine()
	var conns []net.Conn
	for range 3 * maxConnsPerHost {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	}
	if n := runtime.NumGoroutine(); n > before+2*maxConnsPerHost+10 {
		t.Errorf("%d goroutines, %d before", n, before)
	}
	for _, c := range conns {
		// Each one is closed by the server: most at once, the rest at the limit.
		_ = c.SetReadDeadline(time.Now().Add(4 * headerLimit))
		if _, err := io.Copy(io.Discard, c); err != nil && errors.Is(err, context.DeadlineExceeded) {
			t.Error("a silent client was kept")
		}
		_ = c.Close()
	}
	if _, err := NewClient(netx.Real{}, nil, "", "").List(t.Context(), addr); err != nil {
		t.Errorf("afterwards List() = %v", err)
	}
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\nX-Big: %s\r\n\r\n", strings.Repeat("x", 4*maxHeader))
	line, _ := bufio.NewReader(c).ReadString('\n')
	if !strings.Contains(line, "431") {
		t.Errorf("a large header was answered with %q", line)
	}
}

func TestCrowd(t *testing.T) {
	c := newCrowd(nil)
	for range maxConnsPerHost {
		if !c.enter("a") {
			t.Fatal("no room for one host")
		}
	}
	if c.enter("a") || !c.enter("b") {
		t.Error("one host took the place of another")
	}
	c.leave("a")
	if !c.enter("a") {
		t.Error("no room after one has left")
	}
	for i := range 2 * maxConns {
		c.enter(fmt.Sprint(i))
	}
	if c.all != maxConns || c.enter("z") {
		t.Errorf("%d connections, want at most %d", c.all, maxConns)
	}
}

// Neighbour checks are bounded in number and in time.
func TestChecksAreBounded(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	addr := netip.MustParseAddrPort(silent.Addr().String())
	s, err := New(options(&vms{}, func(o *Options) { o.Neighbours = []netip.AddrPort{addr} }))
	if err != nil {
		t.Fatal(err)
	}
	for range maxChecks {
		s.neighbours.slots <- struct{}{}
	}
	if _, _, err := s.neighbours.check(t.Context(), addr.String()); !errors.Is(err, errBusy) {
		t.Errorf("check() = %v, want busy", err)
	}
	<-s.neighbours.slots
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if up, why, err := s.neighbours.check(ctx, addr.String()); up || why == nil || err != nil {
		t.Errorf("check() of a silent host = %v, %v, %v", up, why, err)
	}
	if n := len(s.neighbours.slots); n != maxChecks-1 {
		t.Errorf("%d places are taken, want %d", n, maxChecks-1)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"user without password": func(o *Options) { o.Username = "u" },
		"TLS without user":      func(o *Options) { o.TLS = &tls.Config{} },
		"colon in user":         func(o *Options) { o.Username, o.Password = "a:b", "c" },
		"no lister":             func(o *Options) { o.VMs = nil },
		"no log":                func(o *Options) { o.Log = nil },
	} {
		if _, err := New(options(&vms{}, change)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestListenFails(t *testing.T) {
	busy := serve(t, options(&vms{}))
	s, err := New(options(&vms{}, func(o *Options) { o.Address = busy.String() }))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), nil); err == nil {
		t.Error("Run() on a taken port succeeded")
	}
}

// Neither side's credentials are ever logged.
func TestCredentialsAreNotLogged(t *testing.T) {
	var log bytes.Buffer
	o := options(&vms{}, func(o *Options) {
		o.Username, o.Password = "u", "s3cret"
		o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	_, _, _ = ask(t, o, "GET", "/", "u", "gue55")
	if s := log.String(); strings.Contains(s, "s3cret") || strings.Contains(s, "gue55") || !strings.Contains(s, "wrong credentials") {
		t.Errorf("logged: %s", s)
	}
}

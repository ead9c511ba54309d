package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/pki"
	"github.com/haven-ha/haven/storagebeat"
)

// TestMain lets the test program be the child process of a store.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == storeChild {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// site is a cluster's files in one directory, and one store.
type site struct {
	t      *testing.T
	dir    string
	port   int
	socket string
	log    *lockedBuffer
	file   string
	hup    chan os.Signal
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newSite(t *testing.T, socket string) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), socket: socket, port: freePort(t), log: new(lockedBuffer), hup: make(chan os.Signal, 1)}
	ca, err := pki.NewCA("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.IssueHost("h1", []netip.Addr{netip.MustParseAddr("127.0.0.1")}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.write("ca.pem", string(ca.Pair().Cert))
	s.write("host.pem", string(pair.Cert))
	s.write("host.key", string(pair.Key))
	s.write("password", "s3cret\n")
	s.write("boot", "boot-1\n")
	s.file = s.write("haven.yaml", strings.NewReplacer("DIR", s.dir, "SOCKET", socket, "PORT", fmt.Sprint(s.port)).Replace(`
cluster: test
data_dir: DIR/data
bootstrap_expect: 2
gossip: {key_file: DIR/gossip.key}
api: {ca_file: DIR/ca.pem, cert_file: DIR/host.pem, key_file: DIR/host.key, socket: DIR/api.sock}
libvirt: {socket: SOCKET}
helper: {port: PORT, cert_file: DIR/host.pem, key_file: DIR/host.key, username: haven, password_file: DIR/password}
heartbeat:
  interval: 200ms
  stale_after: 1s
  io_timeout: 500ms
  stores: [{name: one, type: dir, path: DIR/store}]
detection: {profile: calm}
fencing: {action: none}
hosts:
  h1: {address: 127.0.0.1}
  h2: {address: 127.0.0.2}
  v1: {address: 127.0.0.3, role: witness}
`))
	return s
}

func (s *site) write(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// store prepares the store and returns a reader of it.
func (s *site) store() *storagebeat.Child {
	s.t.Helper()
	c, err := storagebeat.NewChild(storagebeat.ChildConfig{
		Command: []string{"/proc/self/exe", storeChild}, Path: filepath.Join(s.dir, "store"), Cluster: "test", Timeout: 5 * time.Second,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	if _, err := c.Init(s.t.Context(), storagebeat.InitOptions{Cluster: "test"}); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// start runs the helper; the returned function stops it and waits.
func (s *site) start(uri string) (stop func()) {
	s.t.Helper()
	cfg, err := config.Load(s.file)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	go func() { over <- serve(ctx, cfg, place{"h1", filepath.Join(s.dir, "boot"), uri}, s.hup, log) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-over; err != nil {
			s.t.Errorf("serve() = %v", err)
		}
	})
	s.t.Cleanup(stop)
	for limit := time.Now().Add(10 * time.Second); ; {
		if code, _, _ := s.get("/healthz"); code == 200 {
			return stop
		}
		if time.Now().After(limit) {
			s.t.Fatalf("it does not answer: %s", s.log)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *site) get(path string) (code int, body string, took time.Duration) {
	s.t.Helper()
	roots, err := pki.Roots(filepath.Join(s.dir, "ca.pem"))
	if err != nil {
		s.t.Fatal(err)
	}
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	req, err := http.NewRequestWithContext(s.t.Context(), "GET", fmt.Sprintf("https://127.0.0.1:%d%s", s.port, path), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	password, err := os.ReadFile(filepath.Join(s.dir, "password.of.client"))
	if err != nil {
		password = []byte("s3cret")
	}
	req.SetBasicAuth("haven", string(password))
	began := time.Now()
	resp, err := c.Do(req)
	if err != nil {
		return 0, err.Error(), time.Since(began)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b), time.Since(began)
}

// beat waits for a beat of the helper that pleases.
func (s *site) beat(c *storagebeat.Child, pleases func(storagebeat.Beat) bool) storagebeat.Beat {
	s.t.Helper()
	for limit := time.Now().Add(10 * time.Second); time.Now().Before(limit); time.Sleep(50 * time.Millisecond) {
		contents, err := c.ReadAll(s.t.Context())
		if err != nil {
			continue
		}
		for _, e := range storagebeat.Dump(contents) {
			if e.Beat != nil && e.Writer == "helper" && e.Host == "h1" && pleases(*e.Beat) {
				return *e.Beat
			}
		}
	}
	s.t.Fatalf("no such beat: %s", s.log)
	return storagebeat.Beat{}
}

// The whole helper without a libvirtd: it says so, its beat moves all the same
// and claims to know nothing, and it says farewell.
func TestWithoutLibvirtd(t *testing.T) {
	s := newSite(t, filepath.Join(t.TempDir(), "none"))
	store := s.store()
	stop := s.start("")
	code, body, _ := s.get("/")
	var list struct {
		Count int    `json:"count"`
		Error string `json:"error"`
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil || code != 503 || list.Count != -1 || list.Error == "" {
		t.Errorf("GET / = %d %q", code, body)
	}
	if code, body, _ := s.get(fmt.Sprintf("/check-neighbour/127.0.0.1:%d", s.port)); code != 200 || body != "{\"status\":\"Down\"}\n" {
		t.Errorf("check of a helper without a list = %d %q", code, body)
	}
	for _, other := range []string{"127.0.0.3", "127.0.0.9"} { // A witness, and a stranger.
		if code, _, _ := s.get(fmt.Sprintf("/check-neighbour/%s:%d", other, s.port)); code != 403 {
			t.Errorf("check of %s = %d, want 403", other, code)
		}
	}
	first := s.beat(store, func(b storagebeat.Beat) bool { return true })
	if first.Boot != "boot-1" || first.Complete || first.Left != haven.LeaveNone {
		t.Errorf("beat %+v", first)
	}
	s.beat(store, func(b storagebeat.Beat) bool { return b.Sequence > first.Sequence && b.State == first.State })
	stop()
	s.beat(store, func(b storagebeat.Beat) bool { return b.Left == haven.LeaveStopped })
	if strings.Contains(s.log.String(), "s3cret") {
		t.Errorf("the password is in the log: %s", s.log)
	}
}

func TestCommandLine(t *testing.T) {
	s := newSite(t, "/nonexistent")
	tests := []struct {
		name   string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"help", []string{"-h"}, exitOK, "", "-config"},
		{"version", []string{"--version"}, exitOK, version, ""},
		{"argument", []string{"run"}, exitUsage, "", "no arguments"},
		{"unknown flag", []string{"--nothing"}, exitUsage, "", "not defined"},
		{"no file", []string{"--config", "/nonexistent.yaml"}, exitFailed, "", "nonexistent.yaml"},
		{"unknown host", []string{"--config", s.file, "--host", "h9"}, exitFailed, "", "h9"},
		{"witness", []string{"--config", s.file, "--host", "v1"}, exitFailed, "", "witness"},
		{"no boot id", []string{"--config", s.file, "--host", "h1", "--boot-id", "/nonexistent"}, exitFailed, "", "boot id"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			if code := run(tt.args, &out, &errs); code != tt.code || !strings.Contains(out.String(), tt.stdout) || !strings.Contains(errs.String(), tt.stderr) {
				t.Errorf("run() = %d, %q, %q", code, out.String(), errs.String())
			}
		})
	}
}

// P5: a list that may not be whole never says so.
func TestPresent(t *testing.T) {
	const a, b, c = haven.VMID("a"), haven.VMID("b"), haven.VMID("c")
	tests := []struct {
		name     string
		inv      haven.Inventory
		want     string
		complete bool
	}{
		{"nothing", haven.Inventory{Complete: true}, "[]", true},
		{"running, shut off, a process", haven.Inventory{
			Complete: true, Processes: []haven.VMID{a, c},
			VMs: []haven.VMInfo{{ID: a, State: haven.VMRunning}, {ID: b, State: haven.VMShutOff}},
		}, "[a c]", true},
		{"incoming counts", haven.Inventory{Complete: true, VMs: []haven.VMInfo{{ID: a, State: haven.VMIncoming}}}, "[a]", true},
		{"an unknown state", haven.Inventory{Complete: true, VMs: []haven.VMInfo{{ID: a, State: haven.VMUnknown}}}, "[a]", false},
		{"not whole", haven.Inventory{VMs: []haven.VMInfo{{ID: a, State: haven.VMRunning}, {ID: b, State: haven.VMShutOff}}}, "[a]", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if ids, complete := present(tt.inv); fmt.Sprint(ids) != tt.want || complete != tt.complete {
				t.Errorf("present() = %v, %v, want %s, %v", ids, complete, tt.want, tt.complete)
			}
		})
	}
}

// A certificate that was renewed on disk is taken up, and a broken one is not.
func TestRenewal(t *testing.T) {
	s := newSite(t, "/nonexistent")
	cfg, err := config.Load(s.file)
	if err != nil {
		t.Fatal(err)
	}
	c, err := loadCertificates(cfg, slog.New(slog.NewTextHandler(s.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	first := c.own.Load()
	c.reload()
	if c.own.Load() != first {
		t.Error("the same certificate was taken for a new one")
	}
	s.write("host.pem", "broken")
	c.reload()
	if c.own.Load() != first {
		t.Error("a broken certificate was taken up")
	}
	other := newSite(t, "/nonexistent")
	for _, name := range []string{"host.pem", "host.key"} {
		b, err := os.ReadFile(filepath.Join(other.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		s.write(name, string(b))
	}
	c.reload()
	if c.own.Load() == first {
		t.Error("a renewed certificate was not taken up")
	}
}

// A reload takes up a new password without a restart, from clients and towards
// neighbours; a bad file keeps the old one.
func TestReload(t *testing.T) {
	s := newSite(t, filepath.Join(t.TempDir(), "none"))
	s.store()
	s.start("")
	answers := func(password string) int {
		t.Helper()
		s.write("password.of.client", password)
		code, _, _ := s.get("/")
		return code
	}
	reload := func(line string) {
		t.Helper()
		before := strings.Count(s.log.String(), line)
		s.hup <- syscall.SIGHUP
		for limit := time.Now().Add(10 * time.Second); strings.Count(s.log.String(), line) == before; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("no %q: %s", line, s.log)
			}
		}
	}
	s.write("password", "new-secret\n")
	if answers("s3cret") != 503 || answers("new-secret") != 401 {
		t.Error("a new password was taken up without a reload")
	}
	reload("reloaded")
	if answers("s3cret") != 401 || answers("new-secret") != 503 {
		t.Error("the new password was not taken up")
	}
	if code, body, _ := s.get(fmt.Sprintf("/check-neighbour/127.0.0.1:%d", s.port)); code != 200 || strings.Contains(body, "401") {
		t.Errorf("check with the new password = %d %q", code, body)
	}
	s.write("password", "")
	reload("the old one stays")
	if answers("new-secret") != 503 {
		t.Error("a bad file took the old password away")
	}
	if strings.Contains(s.log.String(), "new-secret") {
		t.Errorf("the password is in the log: %s", s.log)
	}
}

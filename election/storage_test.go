package election

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/pki"
	"github.com/haven-ha/haven/internal/tlsmux"
)

// realHost is an agent's Raft and API on one real port and a real disk.
type realHost struct {
	id   haven.HostID
	dir  string
	mux  *tlsmux.Mux
	node *Node
	fsm  *listFSM
	tr   *http.Transport
	stop func()
}

// startReal opens a port and a node for a host; addrs collects the ports.
func startReal(t *testing.T, ca *pki.CA, id haven.HostID, dir string, addrs map[haven.HostID]string) *realHost {
	t.Helper()
	pair, err := ca.IssueHost(id, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	creds, err := pki.NewCredentials("test", ca.Pair().Cert, pair)
	if err != nil {
		t.Fatal(err)
	}
	h := &realHost{id: id, dir: dir, fsm: &listFSM{}}
	addr := addrs[id]
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	if h.mux, err = tlsmux.Listen(tlsmux.Config{Stack: netx.Real{}, Addr: addr, Credentials: creds, Log: testLog()}); err != nil {
		t.Fatal(err)
	}
	addrs[id] = h.mux.Addr().String()
	h.node, err = Open(Config{Cluster: "test", Host: id, Address: addrs[id], Log: testLog()}, h.fsm, h.mux.Raft(), DirStorage(dir))
	if err != nil {
		t.Fatal(err)
	}
	h.tr = tlsmux.NewTransport(netx.Real{}, creds, func(id haven.HostID) (string, bool) { a, ok := addrs[id]; return a, ok })
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, string(h.node.Leader().Host)+" over "+r.Proto)
	})}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { _ = h.mux.Run(ctx); done <- struct{}{} }()
	go func() { _ = srv.Serve(h.mux.HTTP()); done <- struct{}{} }()
	h.stop = func() {
		h.tr.CloseIdleConnections()
		if err := h.node.Close(); err != nil {
			t.Errorf("close %s: %v", id, err)
		}
		_ = srv.Close()
		cancel()
		<-done
		<-done
	}
	return h
}

// Raft and the HTTPS API share a real port, with bbolt on a real disk; a host
// restarts and finds its log again.
func TestRealPortAndDisk(t *testing.T) {
	ca, err := pki.NewCA("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	addrs := map[haven.HostID]string{}
	var hosts []*realHost
	for _, id := range []haven.HostID{"kvm-01", "kvm-02", "kvm-03"} {
		h := startReal(t, ca, id, t.TempDir(), addrs)
		hosts = append(hosts, h)
	}
	t.Cleanup(func() {
		for _, h := range hosts {
			h.stop()
		}
	})
	first := hosts[0]
	var voters []Server
	for _, h := range hosts {
		voters = append(voters, Server{ID: h.node.ServerID(), Address: addrs[h.id]})
		want := Promise{Proposer: first.node.ServerID(), Round: 1}
		if h == first {
			err = h.node.Promises().propose(t.Context())
		} else {
			_, err = h.node.Promises().grant(t.Context(), want)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := first.node.begin(t.Context(), Promise{Proposer: first.node.ServerID(), Round: 1}, voters); err != nil {
		t.Fatal(err)
	}
	wait := func(what string, cond func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !cond(); {
			if time.Now().After(end) {
				t.Fatal("not in time: " + what)
			}
			<-time.After(20 * time.Millisecond)
		}
	}
	wait("leader", first.node.IsLeader)
	if _, err := first.node.Apply(t.Context(), []byte("one")); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://kvm-01/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := hosts[1].tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || string(body) != "kvm-01 over HTTP/2.0" {
		t.Fatalf("%q, %v", body, err)
	}
	last := hosts[2]
	id := last.node.ServerID()
	last.stop()
	if _, err := first.node.Apply(t.Context(), []byte("two")); err != nil {
		t.Fatal(err)
	}
	hosts[2] = startReal(t, ca, last.id, last.dir, addrs)
	if hosts[2].node.ServerID() != id {
		t.Fatal("another server after a restart")
	}
	wait("the restarted host has both", func() bool { return slices.Equal(hosts[2].fsm.list(), []string{"one", "two"}) })
	if st := first.node.Status(); st.State != "leader" || len(st.Servers) != 3 || st.Servers[1].ContactMS < 0 {
		t.Errorf("status %+v", st)
	}
}

// A data directory is refused when it is another host's or cluster's, in use,
// or damaged; what a crash left of a snapshot goes away.
func TestDirStorage(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Cluster: "test", Host: "kvm-01", Address: "10.0.0.1:7947", Log: testLog()}
	open := func(change func(*Config)) (*Node, error) {
		c := cfg
		if change != nil {
			change(&c)
		}
		return Open(c, &listFSM{}, deafStream{make(chan struct{})}, DirStorage(dir))
	}
	closed := func(n *Node, err error) error {
		if n != nil {
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
		}
		return err
	}
	if err := closed(open(nil)); err != nil {
		t.Fatal(err)
	}
	if err := closed(open(func(c *Config) { c.Host = "kvm-02" })); err == nil || !strings.Contains(err.Error(), "copied") {
		t.Errorf("another host's directory: %v", err)
	}
	if err := closed(open(func(c *Config) { c.Cluster = "other" })); err == nil || !strings.Contains(err.Error(), "cluster") {
		t.Errorf("another cluster's directory: %v", err)
	}
	if err := closed(open(func(c *Config) { c.CheckDeadline = time.Second })); err == nil {
		t.Error("a deadline shorter than two leases was accepted")
	}
	torn := filepath.Join(dir, "snapshots", "1-2-3.tmp")
	if err := os.MkdirAll(torn, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := closed(open(nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(torn); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a torn snapshot is left: %v", err)
	}

	s, err := DirStorage(dir).open(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.log.StoreLog(&raft.Log{Index: 500, Term: 3, Type: raft.LogNoop}); err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if err := closed(open(nil)); err == nil || !strings.Contains(err.Error(), "no snapshot") {
		t.Errorf("a log without its snapshot: %v", err)
	}
	db, err := bbolt.Open(filepath.Join(dir, "log.db"), 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatalf("a failed opening keeps the lock: %v", err)
	}
	_ = db.Close()
}

// deafStream is a network on which nobody is.
type deafStream struct{ done chan struct{} }

func (s deafStream) Accept() (net.Conn, haven.HostID, error) {
	<-s.done
	return nil, "", net.ErrClosed
}

func (s deafStream) Dial(context.Context, haven.HostID, string) (net.Conn, error) {
	return nil, errors.New("nobody is here")
}

func (s deafStream) Close() error {
	select {
	case <-s.done:
	default:
		close(s.done)
	}
	return nil
}

// What is left of a dead agent cannot write any more, and a snapshot that was
// cut off is not seen.
func TestMemStorage(t *testing.T) {
	m := NewMemStorage()
	old, err := m.open(nil)
	if err != nil {
		t.Fatal(err)
	}
	sink, err := old.snaps.Create(1, 5, 2, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	if err := old.stable.Set(keyServerID, []byte("x")); err != nil {
		t.Fatal(err)
	}
	m.Crash()
	for what, err := range map[string]error{
		"log":      old.log.StoreLog(&raft.Log{Index: 1}),
		"state":    old.stable.SetUint64(keyCurrentTerm, 9),
		"snapshot": sink.Close(),
	} {
		if !errors.Is(err, errRevoked) {
			t.Errorf("%s of a dead agent: %v", what, err)
		}
	}
	s, err := m.open(nil)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := s.snaps.List(); err != nil || len(list) != 0 {
		t.Errorf("torn snapshot: %v, %v", list, err)
	}
	if v, err := getStable(s.stable, keyServerID); err != nil || string(v) != "x" {
		t.Errorf("what was written is lost: %q, %v", v, err)
	}
	m.Wipe()
	if s, err = m.open(nil); err != nil {
		t.Fatal(err)
	}
	if v, err := getStable(s.stable, keyServerID); err != nil || v != nil {
		t.Errorf("after the loss of the disk: %q, %v", v, err)
	}
}

func TestHello(t *testing.T) {
	good, err := hello{Cluster: "test", From: server("a", 1), To: server("b", 2)}.encode()
	if err != nil {
		t.Fatal(err)
	}
	layer := func() *streamLayer {
		return &streamLayer{cluster: "test", self: server("b", 2), log: testLog(), conns: map[net.Conn]struct{}{}}
	}
	edit := func(from, to string) []byte { return bytes.Replace(good, []byte(from), []byte(to), 1) }
	tests := []struct {
		name string
		sent []byte
		peer haven.HostID
		ok   bool
	}{
		{"good", good, "a", true},
		{"another server of this host", edit("b/0000000000000002", "b/0000000000000003"), "a", false},
		{"another cluster", edit(`"test"`, `"tset"`), "a", false},
		{"another host's name", good, "c", false},
		{"another magic", edit("HVN1", "HVN2"), "a", false},
		{"cut off", good[:20], "a", false},
		{"too long", append([]byte(helloMagic), 0xff, 0xff), "a", false},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			left, right := net.Pipe()
			defer left.Close()
			go func() {
				_, _ = right.Write(append(slices.Clone(tc.sent), "raft"...))
				_ = right.Close()
			}()
			l := layer()
			l.own(left)
			in := &inbound{ownedConn: ownedConn{Conn: left, layer: l}, peer: tc.peer}
			buf := make([]byte, 4)
			_, err := io.ReadFull(in, buf)
			if ok := err == nil && string(buf) == "raft"; ok != tc.ok {
				t.Fatalf("got %q, %v", buf, err)
			}
			if !tc.ok && len(l.conns) != 0 {
				t.Fatal("the refused connection is kept")
			}
		})
	}
}

func TestServerID(t *testing.T) {
	id := newServerID("kvm-01.example")
	if id.Host() != "kvm-01.example" || id == newServerID("kvm-01.example") {
		t.Fatalf("%s", id)
	}
	got, addr, err := splitAddress(joinAddress(id, "[fd00::1]:7947"))
	if err != nil || got != id || addr != "[fd00::1]:7947" {
		t.Fatalf("%s %s %v", got, addr, err)
	}
	for _, bad := range []string{"", "10.0.0.1:7947", "x@10.0.0.1:7947", string(id) + "@"} {
		if _, _, err := splitAddress(bad); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

func TestApplyErrors(t *testing.T) {
	for _, tc := range []struct {
		err              error
		ambiguous, isNot bool
	}{
		{raft.ErrNotLeader, false, true},
		{raft.ErrLeadershipLost, true, false},
		{raft.ErrAbortedByRestore, true, false},
		{raft.ErrRaftShutdown, true, false},
		{raft.ErrEnqueueTimeout, false, false},
		{errBusy, false, false},
		{errWaitEnded, true, false},
		{errors.New("input/output error"), true, false},
	} {
		err := applyError("apply", tc.err)
		if errors.Is(err, ErrAmbiguous) != tc.ambiguous || errors.Is(err, haven.ErrNotMaster) != tc.isNot {
			t.Errorf("%v: got %v", tc.err, err)
		}
	}
}

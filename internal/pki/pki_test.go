package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
)

func newCA(t *testing.T, cluster string) *CA {
	t.Helper()
	ca, err := NewCA(cluster, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func hostCredentials(t *testing.T, ca *CA, host haven.HostID) *Credentials {
	t.Helper()
	pair, err := ca.IssueHost(host, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewCredentials(ca.Cluster(), ca.Pair().Cert, pair)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func operatorCredentials(t *testing.T, ca *CA, name string, role Role) *Credentials {
	t.Helper()
	pair, err := ca.IssueOperator(name, role, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewCredentials(ca.Cluster(), ca.Pair().Cert, pair)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// handshake runs a TLS handshake between two configurations and returns what
// each end says about it, and whom the server saw.
func handshake(t *testing.T, server, client *tls.Config) (peer Identity, serverErr, clientErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	type result struct {
		err  error
		peer Identity
	}
	done := make(chan result, 1)
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			done <- result{err: err}
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, server)
		if err := conn.HandshakeContext(ctx); err != nil {
			done <- result{err: err}
			return
		}
		id, err := PeerIdentity(conn.ConnectionState())
		_, _ = conn.Write([]byte("x"))
		done <- result{err, id}
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, client)
	clientErr = conn.HandshakeContext(ctx)
	if clientErr == nil {
		// With TLS 1.3 the server's refusal of the client's certificate
		// arrives after the client's handshake is done.
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, clientErr = conn.Read(make([]byte, 1))
	}
	if clientErr != nil {
		_ = raw.Close()
	}
	r := <-done
	return r.peer, r.err, clientErr
}

func TestHandshake(t *testing.T) {
	ca, other := newCA(t, "prod-a"), newCA(t, "prod-a")
	elsewhere := newCA(t, "prod-b")
	protos := []string{"p/1"}
	refuseOperators := func(proto string, peer Identity) error {
		if proto == "p/1" && !peer.IsHost() {
			return errors.New("hosts only")
		}
		return nil
	}
	server := hostCredentials(t, ca, "kvm-01")
	tests := []struct {
		name   string
		client *tls.Config
		want   string // identity seen, or empty when the connection must fail
	}{
		{"host to host", hostCredentials(t, ca, "kvm-02").ClientConfig("kvm-01", protos), "host kvm-02"},
		{"server is not the expected host", hostCredentials(t, ca, "kvm-02").ClientConfig("kvm-03", protos), ""},
		{"operator refused by rule", operatorCredentials(t, ca, "ann", RoleAdmin).ClientConfig("kvm-01", protos), ""},
		{"operator on a protocol for everybody", operatorCredentials(t, ca, "ann", RoleAdmin).ClientConfig("kvm-01", []string{"q/1"}), "admin ann"},
		{"CA of the same name", hostCredentials(t, other, "kvm-02").ClientConfig("kvm-01", protos), ""},
		{"another cluster", hostCredentials(t, elsewhere, "kvm-02").ClientConfig("kvm-01", protos), ""},
		{"no certificate", &tls.Config{RootCAs: server.now.Load().roots, ServerName: "kvm-01", NextProtos: protos}, ""},
		{"TLS 1.2", func() *tls.Config {
			c := hostCredentials(t, ca, "kvm-02").ClientConfig("kvm-01", protos)
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return c
		}(), ""},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			peer, serverErr, clientErr := handshake(t, server.ServerConfig([]string{"p/1", "q/1"}, refuseOperators), tc.client)
			if tc.want == "" {
				if serverErr == nil && clientErr == nil {
					t.Fatalf("connection accepted from %v", peer)
				}
				return
			}
			if serverErr != nil || clientErr != nil {
				t.Fatalf("server: %v, client: %v", serverErr, clientErr)
			}
			if peer.String() != tc.want {
				t.Fatalf("server saw %q, want %q", peer, tc.want)
			}
		})
	}
}

// An operator's certificate must not pass for a server, and a certificate of
// the same CA for another cluster name must not pass at all.
func TestWrongServer(t *testing.T) {
	ca := newCA(t, "prod-a")
	client := hostCredentials(t, ca, "kvm-02")
	operator := operatorCredentials(t, ca, "kvm-01", RoleAdmin)
	_, serverErr, clientErr := handshake(t, operator.ServerConfig([]string{"p/1"}, nil), client.ClientConfig("kvm-01", []string{"p/1"}))
	if clientErr == nil {
		t.Fatalf("an operator's certificate passed for host kvm-01 (server: %v)", serverErr)
	}
	foreign := *ca
	foreign.cluster = "prod-b"
	pair, err := foreign.IssueHost("kvm-01", nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewCredentials("prod-a", ca.Pair().Cert, pair); err == nil {
		t.Fatal("credentials for another cluster accepted")
	}
	b, err := NewCredentials("prod-b", ca.Pair().Cert, pair)
	if err != nil {
		t.Fatal(err)
	}
	_, _, clientErr = handshake(t, b.ServerConfig([]string{"p/1"}, nil), client.ClientConfig("kvm-01", []string{"p/1"}))
	if !errors.Is(clientErr, ErrWrongIdentity) {
		t.Fatalf("got %v, want ErrWrongIdentity", clientErr)
	}
}

func TestParseURI(t *testing.T) {
	tests := []struct {
		uri  string
		want Identity
		ok   bool
	}{
		{"haven://prod-a/host/kvm-01", Identity{Cluster: "prod-a", Host: "kvm-01"}, true},
		{"haven://prod-a/role/viewer/ann@example.org", Identity{Cluster: "prod-a", Role: RoleViewer, Name: "ann@example.org"}, true},
		{"haven://prod-a/host/KVM", Identity{}, false},
		{"haven://prod-a/host/", Identity{}, false},
		{"haven://prod-a/host/a/b", Identity{}, false},
		{"haven:///host/a", Identity{}, false},
		{"haven://prod-a/role/root/ann", Identity{}, false},
		{"haven://prod-a/role/admin/", Identity{}, false},
		{"haven://prod-a/role/admin/a%2Fb", Identity{}, false},
		{"haven://prod-a/host/kvm-01?x=1", Identity{}, false},
		{"haven://u@prod-a/host/kvm-01", Identity{}, false},
		{"haven://prod-a//host/kvm-01", Identity{}, false},
		{"haven://prod-a/host/kvm%2D01", Identity{}, false},
	}
	for _, tc := range tests {
		t.Run(tc.uri, func(t *testing.T) {
			u, err := url.Parse(tc.uri)
			if err != nil {
				t.Fatal(err)
			}
			got, err := CertificateIdentity(&x509.Certificate{URIs: []*url.URL{u}})
			if (err == nil) != tc.ok || got != tc.want {
				t.Fatalf("got %+v, %v", got, err)
			}
			if err != nil && !errors.Is(err, ErrNoIdentity) {
				t.Fatalf("got %v, want ErrNoIdentity", err)
			}
		})
	}
	two := &x509.Certificate{URIs: []*url.URL{
		Identity{Cluster: "c", Host: "a"}.uri(), Identity{Cluster: "c", Role: RoleAdmin, Name: "b"}.uri(),
	}}
	if _, err := CertificateIdentity(two); !errors.Is(err, ErrNoIdentity) {
		t.Fatalf("two identities in one certificate: got %v", err)
	}
}

// Whatever identity is issued, exactly it is read back.
func TestIdentityRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?`)
		id := Identity{Cluster: name.Draw(t, "cluster")}
		if rapid.Bool().Draw(t, "host") {
			id.Host = haven.HostID(name.Draw(t, "name"))
		} else {
			id.Role = rapid.SampledFrom([]Role{RoleViewer, RoleOperator, RoleAdmin}).Draw(t, "role")
			id.Name = rapid.StringMatching(`[a-zA-Z0-9]([a-zA-Z0-9._@-]{0,20}[a-zA-Z0-9])?`).Draw(t, "name")
		}
		u, err := url.Parse(id.uri().String())
		if err != nil {
			t.Fatal(err)
		}
		got, err := CertificateIdentity(&x509.Certificate{URIs: []*url.URL{u}})
		if err != nil || got != id {
			t.Fatalf("got %+v, %v, want %+v", got, err, id)
		}
	})
}

func TestRoleIncludes(t *testing.T) {
	for _, tc := range []struct {
		have, need Role
		want       bool
	}{
		{RoleAdmin, RoleViewer, true},
		{RoleOperator, RoleOperator, true},
		{RoleViewer, RoleOperator, false},
		{"", RoleViewer, false},
		{RoleAdmin, "", false},
	} {
		if got := tc.have.Includes(tc.need); got != tc.want {
			t.Errorf("%q includes %q: got %v", tc.have, tc.need, got)
		}
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	ca := newCA(t, "prod-a")
	if err := SavePair(ca.Pair(), cert, key, false); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("key mode %v, %v", info.Mode(), err)
	}
	if err := SavePair(newCA(t, "prod-a").Pair(), cert, key, false); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("an existing CA was overwritten: %v", err)
	}
	loaded, err := LoadCA(cert, key)
	if err != nil || loaded.Cluster() != "prod-a" || !loaded.cert.Equal(ca.cert) {
		t.Fatalf("load: %v", err)
	}
	if err := os.Chmod(key, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCA(cert, key); err == nil {
		t.Fatal("a key that others can read was accepted")
	}
	left, err := filepath.Glob(filepath.Join(dir, ".haven-pki-*"))
	if err != nil || len(left) > 0 {
		t.Fatalf("temporary files left: %v, %v", left, err)
	}
}

// Reload takes good files, keeps the old credentials when they are bad, and
// never turns into somebody else.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	ca := newCA(t, "prod-a")
	files := Files{CA: filepath.Join(dir, "ca"), Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
	save := func(host haven.HostID) Pair {
		t.Helper()
		pair, err := ca.IssueHost(host, nil, time.Hour)
		if err == nil {
			err = SavePair(pair, files.Cert, files.Key, true)
		}
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	if err := os.WriteFile(files.CA, ca.Pair().Cert, 0o644); err != nil {
		t.Fatal(err)
	}
	save("kvm-01")
	c, err := LoadCredentials("prod-a", files, newLog())
	if err != nil {
		t.Fatal(err)
	}
	serial := func() string { return c.now.Load().cert.Leaf.SerialNumber.String() }
	first := serial()

	pair := save("kvm-01")
	if err := c.Reload(); err != nil || serial() == first {
		t.Fatalf("new certificate not taken: %v", err)
	}
	second := serial()
	// The server configuration that was handed out before shows the new one.
	conf, err := c.ServerConfig(nil, nil).GetConfigForClient(nil)
	if err != nil || string(conf.Certificates[0].Certificate[0]) != string(c.now.Load().cert.Certificate[0]) {
		t.Fatalf("server shows an old certificate: %v", err)
	}
	if err := os.WriteFile(files.Cert, []byte("torn"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.Reload(); err == nil || serial() != second {
		t.Fatalf("bad file: err %v", err)
	}
	save("kvm-02")
	if err := c.Reload(); !errors.Is(err, ErrWrongIdentity) || serial() != second {
		t.Fatalf("another host's certificate: err %v", err)
	}
	if err := SavePair(pair, files.Cert, files.Key, true); err != nil {
		t.Fatal(err)
	}
	if err := c.Reload(); err != nil {
		t.Fatal(err)
	}
}

func TestCheckAndShow(t *testing.T) {
	ca := newCA(t, "prod-a")
	pair, err := ca.IssueHost("kvm-01", []netip.Addr{netip.MustParseAddr("10.0.0.11")}, 48*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	infos, err := Show(pair.Cert)
	if err != nil || len(infos) != 1 {
		t.Fatal(infos, err)
	}
	info := infos[0]
	if info.Kind != "host" || info.Subject != "kvm-01" || strings.Join(info.Names, " ") != "kvm-01 10.0.0.11" {
		t.Fatalf("got %+v", info)
	}
	if info.NotAfter.After(ca.cert.NotAfter) {
		t.Fatal("certificate outlives its CA")
	}
	now := time.Now()
	if err := Check("prod-a", ca.Pair().Cert, pair, now); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"expired":       Check("prod-a", ca.Pair().Cert, pair, now.Add(2*time.Hour)),
		"other cluster": Check("prod-b", ca.Pair().Cert, pair, now),
		"other CA":      Check("prod-a", newCA(t, "prod-a").Pair().Cert, pair, now),
		"other key":     Check("prod-a", ca.Pair().Cert, Pair{pair.Cert, ca.Pair().Key}, now),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if got := info.Expiry(info.NotAfter.Add(-72*time.Hour + time.Minute)); !strings.HasPrefix(got, "expires in 2 days") && !strings.HasPrefix(got, "not valid") {
		t.Errorf("got %q", got)
	}
	if got := info.Expiry(info.NotAfter.Add(24 * time.Hour)); !strings.HasPrefix(got, "EXPIRED 1 days ago") {
		t.Errorf("got %q", got)
	}
}

func newLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

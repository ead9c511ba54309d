package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/haven-ha/haven"
)

// reloadEvery is how often Run looks whether the files changed. Certificates
// are replaced weeks before they expire, so the number is about an operator's
// patience, not about safety.
const reloadEvery = 10 * time.Second

// Files names the three files of an end of a connection.
type Files struct {
	CA   string // one or more CA certificates
	Cert string
	Key  string
}

// Credentials are what one end of a connection shows and whom it trusts. The
// handshakes take them from memory; files are read again by Reload and Run
// only, so that a hung file system never holds a connection up.
type Credentials struct {
	cluster string
	files   Files
	log     *slog.Logger
	now     atomic.Pointer[material]
}

type material struct {
	caPEM []byte
	pair  Pair
	cert  tls.Certificate
	roots *x509.CertPool
	id    Identity
}

// NewCredentials makes credentials from PEM in memory. They are never reloaded.
func NewCredentials(cluster string, caCerts []byte, pair Pair) (*Credentials, error) {
	m, err := newMaterial(cluster, caCerts, pair)
	if err != nil {
		return nil, err
	}
	c := &Credentials{cluster: cluster, log: slog.New(slog.DiscardHandler)}
	c.now.Store(m)
	return c, nil
}

// LoadCredentials reads credentials from files. Call Run to keep them fresh.
func LoadCredentials(cluster string, files Files, log *slog.Logger) (*Credentials, error) {
	c := &Credentials{cluster: cluster, files: files, log: log}
	if err := c.Reload(); err != nil {
		return nil, err
	}
	return c, nil
}

func newMaterial(cluster string, caCerts []byte, pair Pair) (*material, error) {
	if err := Check(cluster, caCerts, pair, time.Now()); err != nil {
		return nil, fmt.Errorf("check credentials: %w", err)
	}
	cas, err := parseCertificates(caCerts)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		return nil, fmt.Errorf("load key pair: %w", err)
	}
	id, err := CertificateIdentity(cert.Leaf)
	if err != nil {
		return nil, err
	}
	m := &material{caPEM: caCerts, pair: pair, cert: cert, roots: x509.NewCertPool(), id: id}
	for _, ca := range cas {
		m.roots.AddCert(ca)
	}
	return m, nil
}

// Reload reads the files again. When they are not good, the old credentials
// stay in use and the error tells why.
func (c *Credentials) Reload() error {
	if c.files == (Files{}) {
		return nil
	}
	pair, err := LoadPair(c.files.Cert, c.files.Key)
	if err != nil {
		return err
	}
	ca, err := readFile(c.files.CA)
	if err != nil {
		return fmt.Errorf("load CA: %w", err)
	}
	old := c.now.Load()
	if old != nil && string(old.caPEM) == string(ca) && string(old.pair.Cert) == string(pair.Cert) && string(old.pair.Key) == string(pair.Key) {
		return nil
	}
	m, err := newMaterial(c.cluster, ca, pair)
	if err != nil {
		return err
	}
	if old != nil && m.id != old.id {
		return fmt.Errorf("%w: the files were for %s and are now for %s", ErrWrongIdentity, old.id, m.id)
	}
	c.now.Store(m)
	if old != nil {
		c.log.Info("certificates reloaded", "identity", m.id.String(), "not_after", m.cert.Leaf.NotAfter)
	}
	return nil
}

// Run reloads the files every ten seconds until ctx ends. A failure is logged
// once until it changes.
func (c *Credentials) Run(ctx context.Context) {
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		text := ""
		if err := c.Reload(); err != nil {
			text = err.Error()
		}
		if text != "" && text != last {
			c.log.Error("certificates not reloaded, the old ones stay in use", "err", text)
		}
		last = text
	}
}

// Identity is who these credentials stand for.
func (c *Credentials) Identity() Identity { return c.now.Load().id }

// NotAfter is when the certificate expires.
func (c *Credentials) NotAfter() time.Time { return c.now.Load().cert.Leaf.NotAfter }

// ServerConfig is for accepting connections: TLS 1.3, a client certificate of
// this cluster is required. Reloaded credentials hold from the next handshake
// on. Allow, if not nil, may refuse a peer that was verified; it sees the
// negotiated protocol too.
func (c *Credentials) ServerConfig(protos []string, allow func(proto string, peer Identity) error) *tls.Config {
	base := func(m *material) *tls.Config {
		return &tls.Config{
			MinVersion:             tls.VersionTLS13,
			Certificates:           []tls.Certificate{m.cert},
			ClientAuth:             tls.RequireAndVerifyClientCert,
			ClientCAs:              m.roots,
			NextProtos:             protos,
			SessionTicketsDisabled: true, // Every connection proves its identity anew.
			VerifyConnection: func(state tls.ConnectionState) error {
				peer, err := c.verifyPeer(state)
				if err != nil || allow == nil {
					return err
				}
				return allow(state.NegotiatedProtocol, peer)
			},
		}
	}
	conf := base(c.now.Load())
	conf.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return base(c.now.Load()), nil
	}
	return conf
}

// ClientConfig is for connecting to the given host, whatever its address: the
// server must prove to be that host of this cluster. It is meant for one
// connection; take a new one for the next, so that reloads take effect.
func (c *Credentials) ClientConfig(host haven.HostID, protos []string) *tls.Config {
	m := c.now.Load()
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{m.cert},
		RootCAs:                m.roots,
		ServerName:             string(host),
		NextProtos:             protos,
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			peer, err := c.verifyPeer(state)
			if err != nil {
				return err
			}
			if peer.Host != host {
				return fmt.Errorf("%w: want host %s, got %s", ErrWrongIdentity, host, peer)
			}
			return nil
		},
	}
}

func (c *Credentials) verifyPeer(state tls.ConnectionState) (Identity, error) {
	peer, err := PeerIdentity(state)
	if err != nil {
		return Identity{}, err
	}
	if peer.Cluster != c.cluster {
		return Identity{}, fmt.Errorf("%w: of cluster %q, want %q", ErrWrongIdentity, peer.Cluster, c.cluster)
	}
	return peer, nil
}

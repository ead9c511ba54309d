package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/pki"
)

// certAge is how often the certificate's files are looked at for a new one.
const certAge = time.Minute

// certificates are what both sides of TLS need. Handshakes take them from
// memory, so that a file system that hangs stops no handshake.
type certificates struct {
	plain             bool // there is no TLS
	certFile, keyFile string
	own               atomic.Pointer[tls.Certificate]
	roots             *x509.CertPool
	log               *slog.Logger
}

// loadCertificates reads the files. A neighbour is genuine when its certificate
// comes from the cluster's CA, or from a certificate that stands in
// helper.cert_file: that is how helpers trust each other whose certificates
// come from elsewhere.
func loadCertificates(cfg *config.Config, log *slog.Logger) (*certificates, error) {
	c := &certificates{plain: cfg.Helper.Plain, certFile: cfg.Helper.CertFile, keyFile: cfg.Helper.KeyFile, log: log}
	if c.plain {
		return c, nil
	}
	var err error
	if c.roots, err = pki.Roots(cfg.API.CAFile); err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(c.certFile)
	if err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	c.roots.AppendCertsFromPEM(pem)
	own, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	c.own.Store(&own)
	return c, nil
}

func (c *certificates) server() *tls.Config {
	if c.plain {
		return nil
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.own.Load(), nil },
	}
}

func (c *certificates) client() *tls.Config {
	if c.plain {
		return nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.roots}
}

// renew takes up a renewed certificate, until ctx ends.
func (c *certificates) renew(ctx context.Context) {
	if c.plain {
		return
	}
	tick := time.NewTicker(certAge)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.reload()
		}
	}
}

func (c *certificates) reload() {
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	switch {
	case err != nil:
		c.log.Warn("certificate cannot be read again; the old one stays", "error", err)
	case !sameLeaf(&cert, c.own.Load()):
		c.own.Store(&cert)
		c.log.Info("certificate was renewed")
	}
}

func sameLeaf(a, b *tls.Certificate) bool {
	x, errX := x509.ParseCertificate(a.Certificate[0])
	y, errY := x509.ParseCertificate(b.Certificate[0])
	return errX == nil && errY == nil && x.Equal(y)
}

func addrPort(addr netip.Addr, port int) netip.AddrPort {
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)) // config keeps ports below 65536.
}

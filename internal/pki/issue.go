package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/haven-ha/haven"
)

// Default lifetimes. A CA outlives many generations of host certificates;
// hosts' certificates are long-lived because an expired one takes a host's
// control plane away, and are watched by an alarm.
const (
	DefaultCALifetime       = 20 * 365 * 24 * time.Hour
	DefaultHostLifetime     = 3 * 365 * 24 * time.Hour
	DefaultOperatorLifetime = 365 * 24 * time.Hour
)

// backdate makes a new certificate valid for hosts whose clocks are behind.
const backdate = time.Hour

// Pair is a certificate and its private key, both PEM.
type Pair struct {
	Cert []byte
	Key  []byte
}

// CA signs certificates for one cluster.
type CA struct {
	cluster string
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	pair    Pair
}

// NewCA makes a new CA (ECDSA P-256) for a cluster, valid for the lifetime
// given.
func NewCA(cluster string, lifetime time.Duration) (*CA, error) {
	if err := CheckCluster(cluster); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate CA key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "haven CA of " + cluster, Organization: []string{cluster}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	pair, err := sign(template, template, key, key)
	if err != nil {
		return nil, fmt.Errorf("sign CA: %w", err)
	}
	return ParseCA(pair)
}

// ParseCA reads a CA that NewCA made.
func ParseCA(pair Pair) (*CA, error) {
	cert, key, err := parsePair(pair)
	if err != nil {
		return nil, err
	}
	if !cert.IsCA {
		return nil, errors.New("certificate is not a CA")
	}
	if len(cert.Subject.Organization) != 1 {
		return nil, errors.New("CA certificate does not name its cluster")
	}
	return &CA{cluster: cert.Subject.Organization[0], cert: cert, key: key, pair: pair}, nil
}

// Cluster is the name of the cluster that the CA belongs to.
func (ca *CA) Cluster() string { return ca.cluster }

// Pair gives the CA's certificate and key.
func (ca *CA) Pair() Pair { return ca.pair }

// IssueHost makes the certificate of a host: both ends of a connection, its
// name as DNS name, and its addresses.
func (ca *CA) IssueHost(host haven.HostID, addrs []netip.Addr, lifetime time.Duration) (Pair, error) {
	if _, err := haven.ParseHostID(string(host)); err != nil {
		return Pair{}, err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: string(host), Organization: []string{ca.cluster}},
		DNSNames:    []string{string(host)},
		URIs:        []*url.URL{Identity{Cluster: ca.cluster, Host: host}.uri()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, a := range addrs {
		template.IPAddresses = append(template.IPAddresses, net.IP(a.AsSlice()))
	}
	return ca.issue(template, lifetime)
}

// IssueOperator makes the certificate of an operator: the client end only.
// The name is 1 to 64 of a-z, A-Z, 0-9 and "._@-".
func (ca *CA) IssueOperator(name string, role Role, lifetime time.Duration) (Pair, error) {
	if _, err := ParseRole(string(role)); err != nil {
		return Pair{}, err
	}
	if !namePattern.MatchString(name) {
		return Pair{}, fmt.Errorf("operator name %q: want 1 to 64 of a-z, A-Z, 0-9 and ._@-, starting and ending with a letter or digit", name)
	}
	return ca.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: name, Organization: []string{ca.cluster}, OrganizationalUnit: []string{string(role)}},
		URIs:        []*url.URL{Identity{Cluster: ca.cluster, Role: role, Name: name}.uri()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, lifetime)
}

func (ca *CA) issue(template *x509.Certificate, lifetime time.Duration) (Pair, error) {
	now := time.Now()
	if now.After(ca.cert.NotAfter) {
		return Pair{}, fmt.Errorf("the CA expired on %s", ca.cert.NotAfter.Format(time.DateOnly))
	}
	template.NotBefore = now.Add(-backdate)
	template.NotAfter = now.Add(lifetime)
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("generate key: %w", err)
	}
	pair, err := sign(template, ca.cert, key, ca.key)
	if err != nil {
		return Pair{}, fmt.Errorf("sign certificate: %w", err)
	}
	return pair, nil
}

func sign(template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) (Pair, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return Pair{}, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		return Pair{}, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}, nil
}

func parsePair(pair Pair) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	certs, err := parseCertificates(pair.Cert)
	if err != nil {
		return nil, nil, err
	}
	block, _ := pem.Decode(pair.Key)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, nil, errors.New("no private key (PKCS #8, PEM) found")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("parse private key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("private key is a %T, want ECDSA", parsed)
	}
	if !key.PublicKey.Equal(certs[0].PublicKey) {
		return nil, nil, errors.New("private key does not belong to the certificate")
	}
	return certs[0], key, nil
}

// maxCertificates bounds a PEM file: a bundle holds the old and the new CA
// while one is rolled over, never many.
const maxCertificates = 16

func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate: %w", err)
		}
		if certs = append(certs, cert); len(certs) > maxCertificates {
			return nil, fmt.Errorf("more than %d certificates", maxCertificates)
		}
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate (PEM) found")
	}
	return certs, nil
}

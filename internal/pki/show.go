package pki

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Info is a certificate as people want to see it.
type Info struct {
	Kind        string    `json:"kind"`    // "ca", "host" or "operator"
	Subject     string    `json:"subject"` // cluster, host id, or role and name
	Cluster     string    `json:"cluster"`
	Names       []string  `json:"names,omitempty"` // DNS names and addresses
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Serial      string    `json:"serial"`
	Fingerprint string    `json:"fingerprint"` // hex SHA-256 of the certificate
}

// Show reads every certificate of a PEM file.
func Show(data []byte) ([]Info, error) {
	certs, err := parseCertificates(data)
	if err != nil {
		return nil, err
	}
	infos := make([]Info, 0, len(certs))
	for _, c := range certs {
		info, err := describe(c)
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

func describe(c *x509.Certificate) (Info, error) {
	sum := sha256.Sum256(c.Raw)
	info := Info{
		NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		Serial: c.SerialNumber.Text(16), Fingerprint: hex.EncodeToString(sum[:]),
	}
	info.Names = append(info.Names, c.DNSNames...)
	for _, ip := range c.IPAddresses {
		info.Names = append(info.Names, ip.String())
	}
	if c.IsCA {
		info.Kind, info.Subject = "ca", c.Subject.CommonName
		if len(c.Subject.Organization) == 1 {
			info.Cluster = c.Subject.Organization[0]
		}
		return info, nil
	}
	id, err := CertificateIdentity(c)
	if err != nil {
		return Info{}, err
	}
	info.Kind, info.Subject, info.Cluster = "operator", id.String(), id.Cluster
	if id.IsHost() {
		info.Kind, info.Subject = "host", string(id.Host)
	}
	return info, nil
}

// Expiry says in words how long the certificate is still valid.
func (i Info) Expiry(now time.Time) string {
	const day = 24 * time.Hour
	date := i.NotAfter.UTC().Format(time.DateOnly)
	switch left := i.NotAfter.Sub(now); {
	case now.Before(i.NotBefore):
		return "not valid before " + i.NotBefore.UTC().Format(time.RFC3339)
	case left <= 0:
		return fmt.Sprintf("EXPIRED %d days ago (%s)", -left/day, date)
	case left < 2*day:
		return fmt.Sprintf("expires in %d hours (%s)", left/time.Hour, date)
	default:
		return fmt.Sprintf("expires in %d days (%s)", left/day, date)
	}
}

// String is one paragraph for a terminal.
func (i Info) String() string {
	s := fmt.Sprintf("%s: %s\n  cluster      %s\n  valid        %s to %s\n  serial       %s\n  fingerprint  %s",
		i.Kind, i.Subject, i.Cluster, i.NotBefore.UTC().Format(time.RFC3339), i.NotAfter.UTC().Format(time.RFC3339),
		i.Serial, i.Fingerprint)
	if len(i.Names) > 0 {
		s += "\n  names        " + strings.Join(i.Names, ", ")
	}
	return s
}

// Check tells everything that is wrong with a certificate, its key and the CA
// that is to have signed it, at the given time; nil when nothing is. What it
// accepts, the other hosts of the cluster accept too.
func Check(cluster string, caCerts []byte, pair Pair, now time.Time) error {
	var problems []error
	cas, err := parseCertificates(caCerts)
	if err != nil {
		problems = append(problems, fmt.Errorf("CA file: %w", err))
	}
	cert, _, err := parsePair(pair)
	if err != nil {
		return errors.Join(append(problems, err)...)
	}
	id, err := CertificateIdentity(cert)
	switch {
	case err != nil:
		problems = append(problems, err)
	case id.Cluster != cluster:
		problems = append(problems, fmt.Errorf("certificate is for cluster %q, not %q", id.Cluster, cluster))
	}
	roots := x509.NewCertPool()
	for _, c := range cas {
		roots.AddCert(c)
	}
	usages := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if id.IsHost() {
		usages = append(usages, x509.ExtKeyUsageServerAuth)
	}
	for _, u := range usages {
		opts := x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{u}}
		if _, err := cert.Verify(opts); err != nil {
			problems = append(problems, fmt.Errorf("verify certificate: %w", err))
			break
		}
	}
	return errors.Join(problems...)
}

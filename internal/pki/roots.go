package pki

import (
	"crypto/x509"
	"fmt"
	"os"
)

// Roots reads the CA certificates of a file, for clients of servers whose
// certificates the cluster's CA signed and that are no agents, such as the
// host helper.
func Roots(caPath string) (*x509.CertPool, error) {
	data, err := os.ReadFile(caPath)
	if err != nil {
		return nil, fmt.Errorf("read CA certificates: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("read CA certificates: %s holds none", caPath)
	}
	return roots, nil
}

// Package pki makes and checks the certificates of a Haven cluster, and turns
// them into TLS configurations.
//
// A cluster has one private CA. Every host has a certificate for both ends of
// a connection, every operator one for the client end only. Who a certificate
// stands for is written in exactly one URI in it:
//
//	haven://CLUSTER/host/HOST-ID
//	haven://CLUSTER/role/ROLE/NAME
//
// Only that URI gives rights. The DNS name and the IP addresses in a host's
// certificate are there so that other TLS clients can connect too.
package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/haven-ha/haven"
)

// Role is what an operator may do.
type Role string

// The roles of operators. Each includes the ones before it.
const (
	RoleViewer   Role = "viewer"   // may read
	RoleOperator Role = "operator" // may also fence, restart and maintain
	RoleAdmin    Role = "admin"    // may also change the cluster itself
)

// ParseRole checks that s is one of the roles.
func ParseRole(s string) (Role, error) {
	switch r := Role(s); r {
	case RoleViewer, RoleOperator, RoleAdmin:
		return r, nil
	}
	return "", fmt.Errorf("role %q: want viewer, operator or admin", s)
}

func (r Role) rank() int {
	switch r {
	case RoleViewer:
		return 1
	case RoleOperator:
		return 2
	case RoleAdmin:
		return 3
	}
	return 0
}

// Includes says whether somebody with role r may do what needs role need.
// An unknown role includes nothing and is included by nothing.
func (r Role) Includes(need Role) bool {
	return need.rank() > 0 && r.rank() >= need.rank()
}

// Identity is who a certificate stands for: a host (Host is set) or an
// operator (Role and Name are set), never both.
type Identity struct {
	Cluster string
	Host    haven.HostID
	Role    Role
	Name    string
}

// IsHost says whether the identity is that of a host.
func (id Identity) IsHost() bool { return id.Host != "" }

// String names the identity for logs and for the record of who did what.
func (id Identity) String() string {
	if id.IsHost() {
		return "host " + string(id.Host)
	}
	return string(id.Role) + " " + id.Name
}

func (id Identity) uri() *url.URL {
	path := "/role/" + string(id.Role) + "/" + id.Name
	if id.IsHost() {
		path = "/host/" + string(id.Host)
	}
	return &url.URL{Scheme: "haven", Host: id.Cluster, Path: path}
}

var (
	// ErrNoIdentity is returned when a certificate does not say in exactly one
	// well-formed haven URI who it stands for.
	ErrNoIdentity = errors.New("certificate has no haven identity")
	// ErrWrongIdentity is returned when a peer proved to be somebody else than
	// the one that was expected.
	ErrWrongIdentity = errors.New("peer has another identity")
)

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._@-]{0,62}[a-zA-Z0-9])?$`)

// CheckCluster checks that name can be the name of a cluster in a
// certificate: the rules for a host's name hold.
func CheckCluster(name string) error {
	if _, err := haven.ParseHostID(name); err != nil {
		return fmt.Errorf("cluster name: %w", err)
	}
	return nil
}

// CertificateIdentity reads the identity from a certificate. It does not
// check who signed it.
func CertificateIdentity(cert *x509.Certificate) (Identity, error) {
	var found *url.URL
	for _, u := range cert.URIs {
		if u.Scheme != "haven" {
			continue
		}
		if found != nil {
			return Identity{}, fmt.Errorf("%w: it has more than one haven URI", ErrNoIdentity)
		}
		found = u
	}
	if found == nil {
		return Identity{}, ErrNoIdentity
	}
	id, err := parseURI(found)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %q: %w", ErrNoIdentity, found, err)
	}
	return id, nil
}

func parseURI(u *url.URL) (Identity, error) {
	id := Identity{Cluster: u.Host}
	if err := CheckCluster(id.Cluster); err != nil {
		return Identity{}, err
	}
	parts := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	var err error
	switch {
	case len(parts) == 2 && parts[0] == "host":
		id.Host, err = haven.ParseHostID(parts[1])
	case len(parts) == 3 && parts[0] == "role":
		if id.Role, err = ParseRole(parts[1]); err == nil && !namePattern.MatchString(parts[2]) {
			err = fmt.Errorf("operator name %q", parts[2])
		}
		id.Name = parts[2]
	default:
		err = errors.New("want /host/ID or /role/ROLE/NAME")
	}
	if err != nil {
		return Identity{}, err
	}
	// What parses must also be written the one way it is issued: no query,
	// no user, no second spelling of the same identity.
	if u.String() != id.uri().String() {
		return Identity{}, errors.New("not in canonical form")
	}
	return id, nil
}

// PeerIdentity reads the identity of the other end of a connection whose
// handshake verified the certificate chain. It fails when the chain was not
// verified.
func PeerIdentity(state tls.ConnectionState) (Identity, error) {
	if len(state.VerifiedChains) == 0 || len(state.PeerCertificates) == 0 {
		return Identity{}, fmt.Errorf("%w: no verified certificate", ErrNoIdentity)
	}
	return CertificateIdentity(state.PeerCertificates[0])
}

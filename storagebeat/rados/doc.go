// Package rados keeps a store of beats in a pool of a Ceph cluster, without a
// mount, through librados. The store itself is built with the tag ceph, which needs
// cgo and librados; without the tag there is only the name of a place.
//
// A pool, or one namespace of it, holds
//
//	haven.identity            the identity; its omap names the records
//	haven.beat.HOST.agent     one record
//	haven.beat.HOST.helper    one record
//	haven.beat.HOST.mailbox   a pill for the host, once there was one
//	haven.check.RANDOM        while a check tries a write
//
// Each object is written whole by one atomic operation, so no record is ever torn.
// Records are found by the omap of the identity and not by listing the pool,
// which would cost as much as all that is in it, and take as long. The omap and
// the identity change in one operation: a store that is made anew has no old
// records. Pools with erasure coding have no omap and are refused.
//
// Librados by itself waits for ever. Each touch of the storage is given what is
// left of the operation's time, in whole seconds, which is all that librados knows.
// An operation that is over time is answered for and goes on behind that until
// librados gives up; the next one waits for it. So the process and its connection
// stay: a connection that takes longer than one beat would never be made otherwise.
// Should even that hang, the child process is ended as with any other store.
package rados

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// The options of a store of this type; see storagebeat.OpenOptions.
const (
	// OptionConf is the path of Ceph's configuration file; without it the usual
	// places are searched.
	OptionConf = "ceph_conf"
	// OptionUser is the Ceph user without "client."; without it admin.
	OptionUser = "ceph_user"
)

// Place is where a store is.
type Place struct {
	Pool      string
	Namespace string // empty is the pool's own
}

// Ceph allows more in names; these are what can be typed and shown.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// ParsePlace reads POOL or POOL/NAMESPACE.
func ParsePlace(s string) (Place, error) {
	pool, namespace, named := strings.Cut(s, "/")
	if !namePattern.MatchString(pool) {
		return Place{}, fmt.Errorf("pool %q: want letters, digits, dots, dashes and underscores", pool)
	}
	if named && !namePattern.MatchString(namespace) {
		return Place{}, fmt.Errorf("namespace %q: want letters, digits, dots, dashes and underscores", namespace)
	}
	return Place{pool, namespace}, nil
}

// String writes what ParsePlace reads.
func (p Place) String() string {
	if p.Namespace == "" {
		return p.Pool
	}
	return p.Pool + "/" + p.Namespace
}

// ErrNotBuilt is returned when this program was built without Ceph.
var ErrNotBuilt = errors.New("this build has no Ceph support; build with -tags ceph")

//go:build ceph

package stores

import (
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/storagebeat/rados"
)

// withCeph says whether this build can use pools of Ceph.
const withCeph = true

// tagged returns the kinds that need a build tag.
func tagged() []storagebeat.Type { return []storagebeat.Type{rados.Type()} }

//go:build ceph

package stores

import (
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/storagebeat/rados"
)

// tagged returns the kinds that need a build tag.
func tagged() []storagebeat.Type { return []storagebeat.Type{rados.Type()} }

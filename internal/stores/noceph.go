//go:build !ceph

package stores

import (
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/storagebeat/rados"
)

// withCeph says whether this build can use pools of Ceph.
const withCeph = false

// tagged returns the kinds that need a build tag, which say so when they are opened.
func tagged() []storagebeat.Type {
	return []storagebeat.Type{{
		Name: storagebeat.TypeRados,
		Open: func(storagebeat.OpenOptions) (storagebeat.Backend, error) { return nil, rados.ErrNotBuilt },
	}}
}

//go:build !ceph

package stores

import "github.com/haven-ha/haven/storagebeat"

// tagged returns the kinds that need a build tag; this build has none of them.
func tagged() []storagebeat.Type { return nil }

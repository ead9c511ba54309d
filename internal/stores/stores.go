// Package stores lists the kinds of stores that a program is built with. Each
// program gives the list to the child processes that do its storage I/O.
package stores

import (
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/storagebeat/block"
)

// Types returns the kinds of stores that this build has, besides the one that
// every build has: directories.
func Types() []storagebeat.Type {
	return append([]storagebeat.Type{block.Type()}, tagged()...)
}

// Package stores lists the kinds of stores that a program is built with. Each
// program gives the list to the child processes that do its storage I/O.
package stores

import (
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/storagebeat/block"
)

// Types returns the kinds of stores that there are, besides the one that a child
// has anyway: directories. One that this build cannot use says so when it is opened.
func Types() []storagebeat.Type {
	return append([]storagebeat.Type{block.Type()}, tagged()...)
}

// Usable returns the names of the kinds that this build can use.
func Usable() []string {
	names := []string{storagebeat.TypeDir, storagebeat.TypeBlock}
	if withCeph {
		names = append(names, storagebeat.TypeRados)
	}
	return names
}

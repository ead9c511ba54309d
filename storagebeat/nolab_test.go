//go:build !lab

package storagebeat

// serveLabfs is part of the tests on a file system that fails for real.
func serveLabfs([]string) int { return 2 }

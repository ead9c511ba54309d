// Package block is the kind of store that is a shared block device: a LUN, a mapped
// RBD, anything that every host sees and that has no file system.
//
//	0      header: the identity, how many slots there are and how they lie
//	512 KiB  blocks in which a check tries a write
//	1 MiB  slot 1: the agent's record, the helper's record; slot 2; …
//
// Each record lies in a block of its own, as long as the device's physical sector
// and at least 4 KiB, so that no write of one touches another. All transfers pass
// the page cache by.
//
// The ledger says which slot is a host's, and says it once. From then on the host's
// own record on the device tells: so a host finds its slot again in a cold start,
// before there is a master, and its helper, which knows no ledger, finds it too.
package block

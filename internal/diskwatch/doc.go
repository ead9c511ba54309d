// Package diskwatch tells whether the VMs of a host still write to their disks, as
// a neighbour sees it through its own mounts. A suspect that nobody reaches and
// that still writes is alive.
//
// A Tracker is pure: it takes the readings of one observer and concludes. What it
// compares are attributes that the storage told at two moments; a time of the
// storage is never compared with a clock of the observer. The disconnect, by the
// storage's own clock, is what it told at the first reading after the suspicion:
// whatever is newer is a write after it.
//
// A Reader gets the attributes, in child processes that a hung mount may keep.
package diskwatch

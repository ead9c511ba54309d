// Package storagebeat is the second way to know that a host lives: each host
// writes a beat to shared storage every interval, and every host reads all beats.
//
// A beat is one record of RecordSize octets, written in place. A Monitor writes
// its own host's beat to one store and reads everybody's; a Tracker, which is
// pure, judges from the readings which beats move. A beat moves when its
// sequence changes, aged by the reader's own monotonic clock; no clock of
// another host is ever looked at. A beat is stale only for as long as the
// reader sees the beats of other hosts move on the same store; all else is
// unknown (P5): a torn, foreign, damaged or older record, a store that cannot
// be read or has another identity than before, a beat that was never seen to move.
//
// All I/O happens in a child process for each store (Child, ChildMain), because
// a call on hung storage cannot be stopped. A child that misses its deadline is
// killed and left; there is no other one for the store until the kernel has
// let it go. So a hung store costs one process and one pending operation,
// however long it hangs, and the agent goes on (P8).
package storagebeat

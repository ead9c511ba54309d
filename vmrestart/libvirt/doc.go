// Package libvirt speaks to one host's libvirtd for Haven: what is there, what
// is its definition, start this one, set that one aside. It decides nothing.
//
// A libvirtd can hang for minutes (it is stopped, its storage is dead, a domain
// is locked by a stuck job), and each call it is stuck in costs it one of its
// 20 workers. The package is built around that:
//
//   - Every call belongs to one of a few connections, and a connection carries
//     one call at a time. A caller leaves at its context's deadline, but the
//     call keeps its connection until libvirtd answers or a hold limit has
//     passed. So Haven never has more than a handful of calls inside libvirtd,
//     however often it asks, and it hears from libvirtd the moment it is back.
//   - Inventory, single probes, control and events have connections of their
//     own: a start that hangs does not blind the inventory's connection.
//   - The net.Conn is ours, with a guard on it that checks the framing and sees
//     events go by. Closing it is the only way to end a call of the client
//     library, which knows no deadlines. A library object is used for one
//     connection only.
//   - Events are hints; polling is the truth.
//
// A start whose fate was not heard is ErrOutcomeUnknown, never a failure: on
// hung storage a start was seen to succeed minutes after its client gave up.
package libvirt

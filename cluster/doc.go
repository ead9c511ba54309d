// Package cluster tells who is there: it runs memberlist, a gossip protocol with
// failure detection, over the agent's network stack.
//
// Gossip is one voice among several, and only a hint. All members share one
// symmetric key, so whoever has it can say anything about anyone; and a host that
// is stalled, or cut off, looks dead. Nothing that harms may follow from what
// this package says alone.
//
// What it adds to memberlist:
//
//   - encryption is mandatory, and the cluster's name is bound into it;
//   - a table of all configured hosts that remembers the dead and how long each
//     has been in its state, by the monotonic clock;
//   - strangers (a name or an address that is not configured) and conflicts (one
//     name claimed from two addresses) are shown as such;
//   - a leave that says why, and is never shown with a reason of an earlier session;
//   - a permanent rejoin loop, because memberlist forgets dead members and
//     halves of a healed partition would never find each other again;
//   - bounded queues throughout: a consumer that does not read makes no
//     callback wait, but gets EventResync.
//
// What it does not do: memberlist does not tell its delegates a leave from a death.
// A member is shown as left when it announced it, in its meta and by a
// message straight to every live member, and then went. If all of these are lost
// it is shown as dead, which is the careful way to be wrong. A member that
// announces its leave and is killed in the following second is shown as left.
package cluster

// Package election decides who is master and carries the replicated log.
//
// It wraps hashicorp/raft, which nothing else imports, and adds what a cluster
// of hypervisors needs around it:
//
//   - A server is a disk. Its random id is kept in the log store itself, so
//     that an id never comes back without its log, and every Raft connection
//     names the server it is meant for. A host that lost its disk is a new
//     server and can never answer for the old one.
//   - A cluster is begun once (bootstrap.go, promises.go): the proposer needs a
//     durable, exclusive promise of more than half of the configured hosts, and
//     a server without a log votes only for whom it gave its promise to.
//   - At most five hosts vote (voters.go, keeper.go). All others have an open
//     but idle Raft node; the leader takes one in when a voter died.
//   - Leadership can be verified, with a bound on how old the verification is
//     (leadership.go). Only answers to requests that were sent after the
//     verification began are counted.
//   - A leader whose disk hangs notices and fails (selfcheck.go). Raft alone
//     would go on sending heartbeats for ever.
//
// Not guaranteed: a host that restores an old copy of its data directory (a
// rolled-back virtual disk, say) breaks Raft's promises; remove its data
// directory instead. A partition during the very first bootstrap, together
// with the loss of a disk that held a promise, can begin two clusters when
// nothing else (a store, a reachable peer) shows that a ledger exists.
package election

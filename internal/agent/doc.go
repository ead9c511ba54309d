// Package agent joins Haven's parts into the agent that runs on every host, and
// is the only place where they meet. It has three loops:
//
//   - report: tells the master about this host, several times a second;
//   - judge: gathers evidence and lets the detector judge, on every agent, so
//     that a new master starts with a view of its own;
//   - duty: on the master alone, lets the recovery machine decide and carries
//     out what it decided.
//
// The rest answers questions: of the master, of neighbours and of operators.
package agent

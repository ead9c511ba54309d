// Package sim runs whole clusters of production agents in virtual time: each
// cluster in one testing/synctest bubble, over a simulated network, stores,
// BMCs, disks and machines, with faults from a seed or a script. Everything
// above the interfaces of agent.Deps is the real thing: gossip, Raft, TLS,
// HTTP, judgement, recovery, orders.
//
// The world knows the truth. A checker that knows nothing of the agents' rules
// compares what happens in the world with the promises (P1 to P7) at every
// event; at the end everything is healed and every VM must run exactly once.
//
//	go test ./internal/sim/                           scripts and a few seeds
//	go test ./internal/sim/ -run TestSeeds -args -seeds 500
//	go test ./internal/sim/ -run TestSeeds -args -seed 17 -trace
//
// A seed gives the same faults at the same times, but Go's scheduler and maps
// draw their own luck, so that a failure may need several runs of a seed to
// come back; -repeat N does that.
//
// A bubble whose goroutines wait for each other under a mutex, or for something
// outside, stands still without a word. Each run is watched from outside: after
// a time by the real clock all goroutines are written out and the test ends.
package sim

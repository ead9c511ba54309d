// Package scenarios runs the binaries as they are shipped on a lab of real parts
// (see test/lab) and breaks things: power, kernels, agents, networks, storage.
// Every scenario says which promise it guards and reads the truth from the
// guests' own journals, the table of processes and the BMCs' own logs, not from
// Haven.
//
// What must end in a recovery has a cluster of its own. What must lead to nothing
// and heals is a trial on a cluster that is shared by many, and that is wholly
// well before and after each; what no trial may ever see is looked for twice a
// second while it lasts. Only the wall clock needs other builds of the binaries:
// all hosts have the one of the machine.
//
// The tests need root and carry the build tag lab.
package scenarios

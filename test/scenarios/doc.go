// Package scenarios runs the binaries as they are shipped on a lab of real parts
// (see test/lab) and breaks things: power, kernels, agents, networks, storage.
// Every scenario says which promise it guards and reads the truth from the
// guests' own journals and the BMCs' own logs, not from Haven.
//
// The tests need root and carry the build tag lab.
package scenarios

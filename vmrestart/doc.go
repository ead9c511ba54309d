// Package vmrestart plans where VMs start and carries out orders to start them.
// Plan is pure. Executor is the agent's side of an order: it writes what it
// takes on to disk before it answers, asks the verified master right before a
// start, and never starts a VM that may run already.
package vmrestart

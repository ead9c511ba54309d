// Package helper answers, in a process of its own, what a host's VMs are, so
// that a dead agent is not taken for a dead host.
//
// It speaks the wire format of CloudStack's KVM HA helper, whose client must
// work with it unchanged. Every answer is one line of JSON:
//
//	GET /                            {"count":2,"virtualmachines":["a","b"]}
//	GET /check-neighbour/HOST:PORT   {"status":"Up"} or {"status":"Down"}
//	GET /healthz                     {"status":"ok"}, without a password
//
// The list names running and paused domains. When libvirtd does not say, the
// answer to GET / is 503 within 2 s with the reason and a count of -1: that
// client reads the count without looking at the status first, and -1 is its own
// word for "not known". Down is said of a neighbour only when its helper was
// asked and gave no list.
//
// A libvirtd that hangs costs one question at a time: requests share the answer
// that is under way, or one that is at most half a second old.
package helper

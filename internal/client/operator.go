package client

import (
	"time"

	"github.com/haven-ha/haven"
)

// PathStop is where the master asks an agent to stop a VM; see StopRequest.
const PathStop = "/v1/agent/stop"

// StopRequest asks an agent to end a VM and to prove that it is gone. Only the
// configured response to lost storage sends it.
type StopRequest struct {
	VM    haven.VMID   `json:"vm"`
	Epoch haven.Epoch  `json:"epoch"`
	Boot  haven.BootID `json:"boot"`
	Term  haven.Term   `json:"term"`
}

// StopAnswer says whether the VM is proved gone.
type StopAnswer struct {
	Gone   haven.Tri `json:"gone"`
	Detail string    `json:"detail"`
}

// Maintenance says who has a host in maintenance, since when and why.
type Maintenance struct {
	By     string    `json:"by"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason,omitempty"`
	// Keeps says that the host was powered off in it, and that its VMs wait.
	Keeps bool `json:"keeps,omitempty"`
}

// Held is one thing that is held, or several VMs that are held for one reason.
type Held struct {
	Of       string           `json:"of"` // cluster, incident, vm or host
	Incident haven.IncidentID `json:"incident,omitempty"`
	Host     haven.HostID     `json:"host,omitempty"`
	VMs      []string         `json:"vms,omitempty"` // names, at most 5
	Count    int              `json:"count,omitempty"`
	Hold     haven.Hold       `json:"hold"`
	Age      Millis           `json:"age_ms"`
	Release  string           `json:"release,omitempty"` // what ends it
}

// Decision is one change of a host's verdict, as the master of then concluded it.
type Decision struct {
	At       time.Time        `json:"at"`
	Term     haven.Term       `json:"term"`
	By       haven.HostID     `json:"by"`
	Host     haven.HostID     `json:"host"`
	Boot     haven.BootID     `json:"boot,omitempty"`
	From     haven.Verdict    `json:"from,omitempty"`
	To       haven.Verdict    `json:"to"`
	Why      string           `json:"why,omitempty"`
	Evidence []haven.Evidence `json:"evidence,omitempty"`
	LeftOut  int              `json:"left_out,omitempty"`
}

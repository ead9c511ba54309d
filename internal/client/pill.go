package client

import "github.com/haven-ha/haven"

// The paths of poison pills. Only certificates of hosts may use them.
const (
	// PathPill is where a host asks the master whether the pill that it found stands.
	PathPill = "/v1/agent/pill"
	// PathPillLeave is where the master has a host leave a pill on its stores.
	PathPillLeave = "/v1/agent/pill/leave"
)

// PillRequest asks the master about a pill for the asking host.
type PillRequest struct {
	Boot     haven.BootID     `json:"boot"`
	Incident haven.IncidentID `json:"incident"`
	Attempt  int              `json:"attempt"`
}

// PillAnswer is given after the master verified that it leads.
type PillAnswer struct {
	Stands bool       `json:"stands"`
	Why    string     `json:"why,omitempty"`
	Term   haven.Term `json:"term"`
}

// LeavePillRequest has an agent leave a pill on its stores for a master that has
// none, or reaches none.
type LeavePillRequest struct {
	Host     haven.HostID     `json:"host"`
	Boot     haven.BootID     `json:"boot"`
	Incident haven.IncidentID `json:"incident"`
	Attempt  int              `json:"attempt"`
	Term     haven.Term       `json:"term"`
	// Withdrawn takes the pill back. Otherwise Permit names what is asked back at
	// PathPermit right before the pill is written.
	Withdrawn bool   `json:"withdrawn,omitempty"`
	Permit    string `json:"permit,omitempty"`
}

// LeavePillAnswer says where the pill lies now. A store on which the write failed
// may have it all the same, or get it later.
type LeavePillAnswer struct {
	Stores []string `json:"stores,omitempty"`
	Failed []string `json:"failed,omitempty"` // one sentence for each store that has it not
	// Open says that on some store it is not known what lies there.
	Open bool `json:"open,omitempty"`
}

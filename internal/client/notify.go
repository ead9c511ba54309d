package client

import "github.com/haven-ha/haven"

// PathNotifyTest is where an operator has an agent test its notifications.
const PathNotifyTest = "/v1/notify/test"

// NotifyTest asks the agent itself to send a test.
type NotifyTest struct {
	Target string `json:"target,omitempty"` // empty: all
}

// NotifyTested says what became of a test.
type NotifyTested struct {
	By      haven.HostID    `json:"by"` // whose agent sent it
	Targets []NotifyOutcome `json:"targets"`
}

// NotifyOutcome is what became of it at one target.
type NotifyOutcome struct {
	Target string `json:"target"`
	Type   string `json:"type"`
	Took   Millis `json:"took_ms"`
	Error  string `json:"error,omitempty"` // empty: the target took it
}

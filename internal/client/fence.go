package client

import (
	"time"

	"github.com/haven-ha/haven"
)

// FencePath is where an operator asks for an action on a host's power: on, off,
// status, blink or test.
func FencePath(host haven.HostID, action haven.FenceAction) string {
	return "/v1/hosts/" + string(host) + "/fence/" + string(action)
}

// PathCapReset lets the power-downs so far count no more.
const PathCapReset = "/v1/fence/cap/reset"

// FenceAnswer is what became of an operator's action on a host's power.
type FenceAnswer struct {
	Host   haven.HostID      `json:"host"`
	Action haven.FenceAction `json:"action"`
	// Status is done, failed, or begun for what takes longer than an answer may.
	Status  string       `json:"status"`
	Detail  string       `json:"detail,omitempty"`
	Devices []DeviceWord `json:"devices,omitempty"` // of status and test
}

// PathActs is the record of what operators did about power, the latest first.
const PathActs = "/v1/fence/log"

// FenceAct is what an operator did about the power of a host: on, off, blink,
// confirm, release or trust-bmc; or about the limit: cap-reset.
type FenceAct struct {
	At     time.Time         `json:"at"`
	Action haven.FenceAction `json:"action"`
	Host   haven.HostID      `json:"host,omitempty"`
	By     string            `json:"by"`
	Reason string            `json:"reason,omitempty"`
	Force  bool              `json:"force,omitempty"`
}

// Fenced says in which incident a host was fenced that waits for its release.
type Fenced struct {
	Incident haven.IncidentID `json:"incident"`
	Proof    haven.ProofKind  `json:"proof"`
	At       time.Time        `json:"at"`
}

// DeviceWord is what one fence device said.
type DeviceWord struct {
	Device string           `json:"device"`
	Level  int              `json:"level"` // from 1
	Power  haven.PowerState `json:"power"`
	GUID   string           `json:"guid,omitempty"`
	// Failed is what is wrong: auth (wrong user or password), privilege (the account
	// may not switch power), unreachable, busy (no session to be had, or it is
	// starting), unsupported, rejected, identity (it seems to be another host's) or
	// other; empty when nothing is. Advice is what can be done about it.
	Failed string `json:"failed,omitempty"`
	Detail string `json:"detail,omitempty"`
	Advice string `json:"advice,omitempty"`
	// Tested is when it was asked last, by the answering agent's clock, zero when
	// it was not yet; Age how long ago that was, Took how long it took, Via through
	// whom it was reached if not directly. Since is when it began to be so.
	Tested time.Time    `json:"tested,omitzero"`
	Age    Millis       `json:"age_ms,omitempty"`
	Took   Millis       `json:"took_ms,omitempty"`
	Via    haven.HostID `json:"via,omitempty"`
	Since  time.Time    `json:"since,omitzero"`
	// Trusted says that an off of this device would be a proof now; Why why.
	Trusted bool   `json:"trusted"`
	Why     string `json:"why,omitempty"`
}

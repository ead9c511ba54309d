package client

import "github.com/haven-ha/haven"

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

// DeviceWord is what one fence device said.
type DeviceWord struct {
	Device string           `json:"device"`
	Level  int              `json:"level"` // from 1
	Power  haven.PowerState `json:"power"`
	GUID   string           `json:"guid,omitempty"`
	// Failed is the kind of error: auth, unreachable, busy, unsupported, rejected or
	// other; empty when the device answered.
	Failed string `json:"failed,omitempty"`
	Detail string `json:"detail,omitempty"`
	// Trusted says that an off of this device would be a proof now; Why why.
	Trusted bool   `json:"trusted"`
	Why     string `json:"why,omitempty"`
}

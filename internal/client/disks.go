package client

import (
	"context"
	"net/http"

	"github.com/haven-ha/haven"
)

// PathDisks is where a neighbour is asked whether a suspect's VMs write.
const PathDisks = "/v1/agent/disks"

// MaxDisksBytes is the limit of that question.
const MaxDisksBytes = 4 << 20

// DiskRequest asks a neighbour whether a suspect's VMs write to their disks. Only
// the master may ask. It is asked again and again: the neighbour reads on its own
// for a while, and tells what it knows by now.
type DiskRequest struct {
	Host  haven.HostID  `json:"host"`
	Disks []WatchedDisk `json:"disks"`
	// Partial says that the host has more disks than are listed.
	Partial bool       `json:"partial,omitempty"`
	Term    haven.Term `json:"term"`
}

// WatchedDisk is one place that a VM of the suspect may write to.
type WatchedDisk struct {
	VM    haven.VMID `json:"vm"`
	Path  string     `json:"path,omitempty"`
	Layer bool       `json:"layer,omitempty"` // a lower layer of a chain
	Blind string     `json:"blind,omitempty"` // why it is never idle
}

// DiskAnswer is what the neighbour knows.
type DiskAnswer struct {
	Active haven.Tri `json:"active"`
	Age    Millis    `json:"age_ms"`             // of its latest reading
	Quiet  Millis    `json:"quiet_ms,omitempty"` // from the last change that it found to that reading
	Span   Millis    `json:"span_ms,omitempty"`  // for how long all were found the same
	Seen   int       `json:"seen"`               // files that it could read about
	Why    string    `json:"why,omitempty"`
}

// Disks asks a neighbour whether a suspect's VMs write to their disks.
func (c *Client) Disks(ctx context.Context, neighbour haven.HostID, q DiskRequest) (DiskAnswer, error) {
	var a DiskAnswer
	return a, c.call(ctx, neighbour, http.MethodPost, PathDisks, q, &a, MaxSmallBytes)
}

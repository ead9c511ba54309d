package client

import (
	"context"
	"fmt"
	"net/url"

	"github.com/haven-ha/haven"
)

// RecordingPiece is a piece of the recording of an incident.
type RecordingPiece struct {
	Host haven.HostID `json:"host"` // whose recording it is
	Size int64        `json:"size"` // of the whole, by now
	Data []byte       `json:"data"` // empty at its end
}

// PathRecording is where a piece of the recording of an incident is.
func PathRecording(id haven.IncidentID, offset int64) string {
	return fmt.Sprintf("/v1/incidents/%s/recording?offset=%d", url.PathEscape(string(id)), offset)
}

// RecordingPiece asks for a piece of the recording that the master has, or else
// the host that is asked.
func (c *Client) RecordingPiece(ctx context.Context, host haven.HostID, id haven.IncidentID, offset int64) (p RecordingPiece, err error) {
	err = c.Get(ctx, host, PathRecording(id, offset), &p)
	return p, err
}

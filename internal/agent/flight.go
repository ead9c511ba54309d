package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/flight"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/numbers"
)

// openRecorder makes the flight recorder, if there is to be one. Nothing is read
// or written yet.
func (a *Agent) openRecorder() (err error) {
	rc := a.cfg.Recorder
	if a.d.Recordings == nil || rc.Keep == 0 {
		return nil
	}
	a.recorder, err = flight.NewRecorder(flight.Config{
		Disk: a.d.Recordings, Keep: rc.Keep, MaxBytes: int64(rc.MaxMiB) << 20,
		Cluster: a.cfg.Cluster, Host: a.d.Host, Version: a.d.Version, Judge: numbers.Of(a.cfg), Log: a.log,
	})
	if err != nil {
		return fmt.Errorf("set up flight recorder: %w", err)
	}
	return nil
}

// record is the recorder's life beside the judge.
func (a *Agent) record(ctx context.Context) {
	if a.recorder != nil {
		a.recorder.Run(ctx)
	}
}

// step judges once and takes it down. Every agent that judges does, so that a new
// master has the minute before it became one.
func (a *Agent) step(now time.Time, in detector.Input) detector.Output {
	if a.recorder == nil {
		return a.detector.Step(a.at(now), in)
	}
	tape := a.recorder.Tape()
	tape.Before(a.detector)
	out := a.detector.Step(a.at(now), in)
	tape.After(a.at(now), now, &in, &out, a.subjects())
	return out
}

// subjects are the incidents that this agent records: as master, all open ones.
func (a *Agent) subjects() (all []flight.Subject) {
	m := a.reign.Load()
	if m == nil {
		return nil
	}
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		for _, in := range s.OpenIncidents() {
			all = append(all, flight.Subject{Incident: in.ID, Host: in.Host, Term: m.term})
		}
	})
	return all
}

// readRecording returns a piece of the recording that this agent has.
func (a *Agent) readRecording(ctx context.Context, id haven.IncidentID, offset string) (any, error) {
	off, err := strconv.ParseInt(cmp.Or(offset, "0"), 10, 64)
	if err != nil || off < 0 {
		return nil, badRequest(fmt.Errorf("offset %.30q: want a number of bytes", offset))
	}
	if a.recorder == nil {
		return nil, fmt.Errorf("%s records nothing: %w", a.d.Host, haven.ErrNotFound)
	}
	data, size, err := a.recorder.Read(ctx, id, off)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s has no recording of incident %.200q: %w", a.d.Host, id, haven.ErrNotFound)
	case errors.Is(err, flight.ErrBusy):
		return nil, fmt.Errorf("%w: %w", err, haven.ErrUnavailable)
	case err != nil:
		return nil, err
	}
	return client.RecordingPiece{Host: a.d.Host, Size: size, Data: data}, nil
}

// recording says where this agent recorded an incident.
func (a *Agent) recording(id haven.IncidentID) *client.Recording {
	if a.recorder == nil {
		return nil
	}
	path, ok := a.recorder.File(id)
	if !ok {
		return nil
	}
	return &client.Recording{Host: a.d.Host, Path: path}
}

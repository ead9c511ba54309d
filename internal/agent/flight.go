package agent

import (
	"context"
	"fmt"
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

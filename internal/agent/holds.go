package agent

import (
	"context"
	"log/slog"

	"github.com/haven-ha/haven/detector"
)

// tellHolds logs what the detector holds, once when a hold begins, once when it
// becomes an alarm, and once when it ends, with its numbers and what released it:
// no hold ends silently. was is the conclusion before; it may be nil.
func (a *Agent) tellHolds(was *judged, out *detector.Output) {
	before := func(hold detector.Hold, told []detector.Hold) detector.Hold {
		for _, h := range told {
			if h.Reason == hold.Reason {
				return h
			}
		}
		return detector.Hold{}
	}
	for _, h := range out.Holds {
		var told []detector.Hold
		if was != nil {
			told = was.out.Holds
		}
		a.tellHold("cluster", before(h, told), h)
	}
	for i := range out.Hosts {
		j := &out.Hosts[i]
		last, _ := was.host(j.Host)
		a.tellHold(string(j.Host), last.Hold, j.Hold)
		a.tellHold(string(j.Host), last.Quarantine, j.Quarantine)
	}
	for _, e := range out.Ended {
		host := string(e.Host)
		if host == "" {
			host = "cluster"
		}
		a.log.Info("hold ended", "of", host, "hold", e.Hold.Reason, "held_ms", (e.At - e.Hold.Since).Milliseconds(), "why", e.Why, "was", e.Hold.Detail)
	}
}

func (a *Agent) tellHold(of string, was, is detector.Hold) {
	if !is.Held() || is.Reason == was.Reason && is.Alarm == was.Alarm {
		return
	}
	level := slog.LevelInfo
	if is.Alarm {
		level = slog.LevelWarn
		a.notifyHold(of, is)
	}
	a.log.Log(context.Background(), level, "hold", "of", of, "hold", is.Reason, "alarm", is.Alarm, "age_ms", is.Age.Milliseconds(), "detail", is.Detail)
}

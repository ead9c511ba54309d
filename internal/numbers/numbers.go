// Package numbers makes the detector's numbers from a configuration. It is the
// only place that knows which key is which number: the agent judges by it, and
// "haven replay --set" takes the same keys.
package numbers

import (
	"time"

	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/internal/config"
)

// number is one that has a key: where it is in a configuration and in the
// detector's, as pointers of the same type.
type number struct {
	key string
	in  func(*config.Config) any
	to  func(*detector.Config) any
}

// all returns every number that has a key.
func all() []number {
	return []number{
		{"detection.suspect_after", func(c *config.Config) any { return &c.Detection.SuspectAfter }, func(d *detector.Config) any { return &d.SuspectAfter }},
		{"detection.silence", func(c *config.Config) any { return &c.Detection.Silence }, func(d *detector.Config) any { return &d.Silence }},
		{"detection.rounds", func(c *config.Config) any { return &c.Detection.Rounds }, func(d *detector.Config) any { return &d.Rounds }},
		{"detection.round_interval", func(c *config.Config) any { return &c.Detection.RoundInterval }, func(d *detector.Config) any { return &d.Round }},
		{"detection.probe_count", func(c *config.Config) any { return &c.Detection.ProbeCount }, func(d *detector.Config) any { return &d.ProbeCount }},
		{"detection.off_readings", func(c *config.Config) any { return &c.Detection.OffReadings }, func(d *detector.Config) any { return &d.OffReadings }},
		{"detection.off_reading_gap", func(c *config.Config) any { return &c.Detection.OffReadingGap }, func(d *detector.Config) any { return &d.OffGap }},
		{"detection.start_up_grace", func(c *config.Config) any { return &c.Detection.StartUpGrace }, func(d *detector.Config) any { return &d.StartupGrace }},
		{"detection.mass_failure_share", func(c *config.Config) any { return &c.Detection.MassFailureShare }, func(d *detector.Config) any { return &d.MassFailureShare }},
		{"detection.mass_failure_calm", func(c *config.Config) any { return &c.Detection.MassFailureCalm }, func(d *detector.Config) any { return &d.MassFailureCalm }},
		{"detection.flap_count", func(c *config.Config) any { return &c.Detection.FlapCount }, func(d *detector.Config) any { return &d.FlapCount }},
		{"detection.flap_window", func(c *config.Config) any { return &c.Detection.FlapWindow }, func(d *detector.Config) any { return &d.FlapWindow }},
		{"detection.flap_calm", func(c *config.Config) any { return &c.Detection.FlapCalm }, func(d *detector.Config) any { return &d.FlapCalm }},
		{"heartbeat.interval", func(c *config.Config) any { return &c.Heartbeat.Interval }, func(d *detector.Config) any { return &d.BeatInterval }},
		{"heartbeat.stale_after", func(c *config.Config) any { return &c.Heartbeat.StaleAfter }, func(d *detector.Config) any { return &d.StaleAfter }},
		{"holds.alarm_after", func(c *config.Config) any { return &c.Holds.AlarmAfter }, func(d *detector.Config) any { return &d.HoldAlarm }},
		{"fence_without_store", func(c *config.Config) any { return &c.FenceWithoutStore }, func(d *detector.Config) any { return &d.FenceWithoutStore }},
	}
}

// Of returns the numbers that a checked configuration asks for. They are valid.
func Of(c *config.Config) detector.Config {
	d := base(c.Detection.Profile)
	for _, n := range all() {
		put(n.to(&d), n.in(c))
	}
	d.Stores = len(c.Heartbeat.Stores)
	Fit(&d)
	return d
}

// base is the detector's own idea of a profile, with the numbers that have no key.
func base(p config.Profile) detector.Config {
	switch p {
	case config.ProfileFast:
		return detector.Fast()
	case config.ProfileCalm:
		return detector.Calm()
	case config.ProfileNormal:
	}
	return detector.Normal()
}

// Fit raises the numbers without a key to what those with one need. It never
// lowers any.
func Fit(d *detector.Config) {
	d.PowerEvery = max(d.PowerEvery, d.OffGap)
	d.OffFresh = max(d.OffFresh, time.Duration(d.OffReadings)*(d.OffGap+d.PowerEvery))
	d.ProbeFresh = max(d.ProbeFresh, d.Round)
	d.GossipLag = max(d.GossipLag, d.Silence)
}

// Profiled returns what the numbers would have been under another profile. Those
// that no profile sets stay as they were.
func Profiled(was detector.Config, p config.Profile) detector.Config {
	d := base(p)
	is, fast, normal, calm := config.Default(p), config.Default(config.ProfileFast), config.Default(config.ProfileNormal), config.Default(config.ProfileCalm)
	for _, n := range all() {
		if same(n.in(fast), n.in(normal)) && same(n.in(normal), n.in(calm)) {
			put(n.to(&d), n.to(&was))
		} else {
			put(n.to(&d), n.in(is))
		}
	}
	d.Stores = was.Stores
	Fit(&d)
	return d
}

// Keys returns where the value of each key is in d: a *time.Duration, *int,
// *float64 or *bool.
func Keys(d *detector.Config) map[string]any {
	m := map[string]any{}
	for _, n := range all() {
		m[n.key] = n.to(d)
	}
	return m
}

func put(to, from any) {
	switch to := to.(type) {
	case *time.Duration:
		*to = *from.(*time.Duration)
	case *int:
		*to = *from.(*int)
	case *float64:
		*to = *from.(*float64)
	case *bool:
		*to = *from.(*bool)
	}
}

func same(a, b any) bool {
	switch a := a.(type) {
	case *time.Duration:
		return *a == *b.(*time.Duration)
	case *int:
		return *a == *b.(*int)
	case *float64:
		return *a == *b.(*float64)
	case *bool:
		return *a == *b.(*bool)
	}
	return false
}

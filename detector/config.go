package detector

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Config holds the numbers of judgement. Normal, Fast and Calm give whole sets
// that fit together; Validate checks the relations between them. In JSON, every
// time is in nanoseconds.
type Config struct {
	// SuspectAfter is how long a host's reports may be missing before it is
	// looked at. A wrong suspicion costs a few probes and one BMC reading.
	SuspectAfter time.Duration `json:"suspect_after"`
	// Silence is how long a path must have been silent before it counts as
	// dead, and how long all of them must have been before a host is failed.
	Silence time.Duration `json:"silence"`
	// Rounds is how many rounds in a row must find every path dead before a
	// host is failed.
	Rounds int `json:"rounds"`
	// Round is the least length of a round. Probes should end within it.
	Round time.Duration `json:"round"`
	// BeatInterval is the time between two beats of one writer. A beat that
	// carries a longer interval of its own is judged by that one.
	BeatInterval time.Duration `json:"beat_interval"`
	// StaleAfter is how long a beat may stand still before it is stale, and
	// how old another observer's words may be before they are unknown.
	StaleAfter time.Duration `json:"stale_after"`
	// OffReadings is how many power-off readings, each in a session of its
	// own, make a proof. At least 2.
	OffReadings int `json:"off_readings"`
	// OffGap is the least time from the end of one such reading to the start
	// of the next.
	OffGap time.Duration `json:"off_gap"`
	// OffBeatAge is how many beat intervals the newest beat of a host must be
	// old before a power-off reading is believed. At least 1.
	OffBeatAge float64 `json:"off_beat_age"`
	// OffFresh is how old a power-off reading may be and still count.
	OffFresh time.Duration `json:"off_fresh"`
	// PowerEvery is the least time between two BMC readings of a suspect, but
	// for the second reading after an off. It grows to 5 s after half a
	// minute of suspicion and to 30 s after five.
	PowerEvery time.Duration `json:"power_every"`
	// ProbeCount is how many neighbours are asked at a time.
	ProbeCount int `json:"probe_count"`
	// ProbeFresh is how long an agent's answer to a probe stands for a live
	// network path.
	ProbeFresh time.Duration `json:"probe_fresh"`
	// GossipLag is how long gossip may go on holding a dead host for alive.
	// Within it, its word is merely late; after it, its word is a sign of life.
	GossipLag time.Duration `json:"gossip_lag"`
	// WaitForGossip makes a host failed only once gossip no longer holds it
	// for alive. Off, a late word of gossip is not waited for.
	WaitForGossip bool `json:"wait_for_gossip"`
	// Stores is the number of configured stores; 0 means that there are none.
	Stores int `json:"stores"`
	// FenceWithoutStore lets a host be failed without any store and without
	// evidence of its disks.
	FenceWithoutStore bool `json:"fence_without_store"`
	// StartupGrace is how long after the start of the process, or a cold
	// start of the cluster, no verdict leads to action.
	StartupGrace time.Duration `json:"startup_grace"`
	// MassFailureShare is the share of the hypervisors that may be bad at
	// once, above 0 and at most 1. One host always may be.
	MassFailureShare float64 `json:"mass_failure_share"`
	// MassFailureCalm is how long the number of bad hypervisors must have stayed
	// within the share before the mass-failure brake, once closed, opens again.
	MassFailureCalm time.Duration `json:"mass_failure_calm"`
	// FlapCount falls from health within FlapWindow put a host in quarantine.
	FlapCount  int           `json:"flap_count"`
	FlapWindow time.Duration `json:"flap_window"`
	// FlapCalm is how long a host in quarantine must be healthy without a break
	// before the quarantine ends.
	FlapCalm time.Duration `json:"flap_calm"`
	// HoldAlarm is how long a hold may last before it is marked as an alarm.
	HoldAlarm time.Duration `json:"hold_alarm"`
}

// maxFlapCount bounds what is kept per host to tell that it flaps.
const maxFlapCount = 16

// Normal returns the default numbers, for one or more stores. They follow from
// measurements: a stall of a host longer than 4 s looks dead to gossip alone,
// gossip may need up to 13 s to tell, and an agent reports every 500 ms.
func Normal() Config {
	return Config{
		SuspectAfter: time.Second, Silence: 8 * time.Second, Rounds: 3, Round: time.Second,
		BeatInterval: time.Second, StaleAfter: 4 * time.Second,
		OffReadings: 2, OffGap: 300 * time.Millisecond, OffBeatAge: 1.25, OffFresh: 10 * time.Second,
		PowerEvery: 2 * time.Second, ProbeCount: 3, ProbeFresh: 2 * time.Second,
		GossipLag: 15 * time.Second, WaitForGossip: true, Stores: 1,
		StartupGrace: 2 * time.Minute, MassFailureShare: 0.5, MassFailureCalm: 10 * time.Second,
		FlapCount: 3, FlapWindow: 10 * time.Minute, FlapCalm: 10 * time.Minute, HoldAlarm: time.Minute,
	}
}

// Fast returns numbers for sites that accept more false suspicions. Beats
// must be written every 500 ms and probes end within 500 ms.
func Fast() Config {
	c := Normal()
	c.SuspectAfter = 600 * time.Millisecond
	c.Silence, c.Round = 2500*time.Millisecond, 500*time.Millisecond
	c.BeatInterval, c.StaleAfter = 500*time.Millisecond, 2*time.Second
	c.PowerEvery, c.ProbeFresh = time.Second, time.Second
	c.WaitForGossip = false
	c.StartupGrace = time.Minute
	return c
}

// Calm returns numbers for slow or overloaded networks and storage.
func Calm() Config {
	c := Normal()
	c.SuspectAfter = 3 * time.Second
	c.Silence, c.Rounds, c.Round = 20*time.Second, 5, 2*time.Second
	c.BeatInterval, c.StaleAfter = 2*time.Second, 10*time.Second
	c.PowerEvery, c.ProbeFresh = 5*time.Second, 4*time.Second
	c.GossipLag, c.OffFresh, c.OffGap = 30*time.Second, 20*time.Second, time.Second
	c.StartupGrace, c.MassFailureCalm = 5*time.Minute, 30*time.Second
	return c
}

// Validate checks every number and the relations between them, and returns all
// faults at once.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.SuspectAfter > 0, "suspect after %v: must be above 0", c.SuspectAfter)
	check(c.Rounds >= 1, "rounds %d: must be at least 1", c.Rounds)
	check(c.Round > 0, "round %v: must be above 0", c.Round)
	check(c.BeatInterval > 0, "beat interval %v: must be above 0", c.BeatInterval)
	check(c.StaleAfter >= 2*c.BeatInterval, "beat stale after %v: must be at least two intervals of %v", c.StaleAfter, c.BeatInterval)
	check(c.Silence > c.SuspectAfter, "silence %v: must exceed suspect after %v", c.Silence, c.SuspectAfter)
	check(c.Silence >= c.StaleAfter+c.BeatInterval, "silence %v: must be at least a stale beat (%v) and one interval (%v)", c.Silence, c.StaleAfter, c.BeatInterval)
	check(c.Rounds < 1 || c.Silence/time.Duration(c.Rounds) >= c.Round, "silence %v: must hold %d rounds of %v", c.Silence, c.Rounds, c.Round)
	check(c.OffReadings >= 2, "off readings %d: a proof needs at least 2", c.OffReadings)
	check(c.OffGap >= 300*time.Millisecond, "off gap %v: must be at least 300ms", c.OffGap)
	check(c.OffBeatAge >= 1 && c.OffBeatAge <= 100, "off beat age %v: must be from 1 to 100 intervals", c.OffBeatAge)
	check(c.OffFresh >= time.Duration(max(c.OffReadings, 1))*(c.OffGap+c.PowerEvery), "off fresh %v: must hold %d readings, %v and %v apart", c.OffFresh, c.OffReadings, c.OffGap, c.PowerEvery)
	check(c.PowerEvery >= c.OffGap, "power every %v: must be at least the off gap %v", c.PowerEvery, c.OffGap)
	check(c.ProbeCount >= 1, "probe count %d: must be at least 1", c.ProbeCount)
	check(c.ProbeFresh >= c.Round && c.ProbeFresh < c.Silence, "probe fresh %v: must be at least a round (%v) and below silence (%v)", c.ProbeFresh, c.Round, c.Silence)
	check(c.GossipLag >= c.Silence, "gossip lag %v: must be at least silence %v", c.GossipLag, c.Silence)
	check(c.Stores >= 0, "stores %d: must not be negative", c.Stores)
	check(c.StartupGrace >= 0, "start-up grace %v: must not be negative", c.StartupGrace)
	check(c.MassFailureShare > 0 && c.MassFailureShare <= 1, "mass-failure share %v: must be above 0 and at most 1", c.MassFailureShare)
	check(c.FlapCount >= 1 && c.FlapCount <= maxFlapCount, "flap count %d: must be from 1 to %d", c.FlapCount, maxFlapCount)
	check(c.MassFailureCalm >= 0, "mass-failure calm %v: must not be negative", c.MassFailureCalm)
	check(c.FlapCalm >= 0, "flap calm %v: must not be negative", c.FlapCalm)
	check(c.HoldAlarm > 0, "hold alarm %v: must be above 0", c.HoldAlarm)
	check(c.FlapWindow > 0, "flap window %v: must be above 0", c.FlapWindow)
	return errors.Join(errs...)
}

// MassFailureAllowed returns how many of n hypervisors may be bad at once
// before the mass-failure brake holds.
func (c Config) MassFailureAllowed(n int) int {
	return max(1, int(math.Floor(c.MassFailureShare*float64(n)+1e-9)))
}

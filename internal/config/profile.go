package config

import (
	"time"

	"github.com/haven-ha/haven"
)

// Profile names a set of times that fit together.
type Profile string

// The profiles.
const (
	// ProfileFast is for quiet, dedicated networks and stores.
	ProfileFast Profile = "fast"
	// ProfileNormal stands stalls of a second or two without a change of master
	// that matters, and of less than four without a false suspicion by gossip.
	ProfileNormal Profile = "normal"
	// ProfileCalm is for loaded hosts and slow stores.
	ProfileCalm Profile = "calm"
)

// Default returns the configuration that an empty file would have under the
// profile. It lacks what has no default: names, addresses, files and hosts.
func Default(p Profile) *Config {
	c := &Config{
		DataDir: "/var/lib/haven",
		Log:     Log{Level: "info", Format: "text"},
		Gossip:  Gossip{Port: 7946, PushPullInterval: 10 * time.Second, RejoinInterval: 5 * time.Second},
		API:     API{Port: 7947, Socket: "/run/haven/havend.sock"},
		Libvirt: Libvirt{Socket: "/run/libvirt/libvirt-sock"},
		Helper:  Helper{Port: helperPort},
		Detection: Detection{
			Profile: p, ProbeCount: 3, OffReadings: 2, MassFailureShare: 0.5, MassFailureCalm: 10 * time.Second,
			FlapCount: 3, FlapWindow: 10 * time.Minute, FlapCalm: 10 * time.Minute,
			DiskIdle: diskIdle, DiskRepeats: 3,
		},
		Fencing: Fencing{
			Action:        haven.ActionOff,
			Release:       ReleaseAuto,
			Limit:         Limit{Count: 3, Window: time.Hour, PerHost: HostLimit{Window: time.Hour}},
			CheckInterval: time.Minute,
			VerifyTimeout: time.Minute,
			Devices:       map[string]Device{},
			Watchdog:      defaultWatchdog(),
		},
		Restart: Restart{Protect: "all", MaxStartsInFlight: 4, MemoryReserveMiB: 512},

		Response: defaultResponse(), Holds: Holds{AlarmAfter: time.Minute, RepeatEvery: 10 * time.Minute},

		Recorder: Recorder{Keep: 50, MaxMiB: 64},
		Notify:   defaultNotify(),
		Hosts:    map[haven.HostID]Host{},
	}
	c.setTimes(p)
	return c
}

// diskIdle is the most that a Linux guest keeps a write to itself: 30 s of age and
// 5 s between two rounds of write-back. That is so whatever the cache mode of the
// disk is.
const diskIdle = 35 * time.Second

const (
	helperPort      = 8443 // of CloudStack's KVM HA helper, with TLS
	helperPortPlain = 8080 // the same without
)

func defaultDevice() Device {
	return Device{Port: 623, Timeout: 2 * time.Second, CipherSuite: "auto", Redfish: Redfish{Session: "session"}, Command: Command{
		Style: "arguments", ExitOff: 2, RunTimeout: 20 * time.Second, Proves: ProvesPower,
		Words: Words{Off: "off", On: "on", Status: "status"},
	}}
}

// setTimes sets every time that belongs to a profile. Gossip and Raft values
// were chosen by simulating stalls and losses: gossip takes a host for dead
// after about multiplier × log10(hosts) × probe interval, and a leader that
// stalls longer than its lease costs a change of master, which is harmless.
func (c *Config) setTimes(p Profile) {
	const ms, s = time.Millisecond, time.Second
	g, r, b, d := &c.Gossip, &c.Raft, &c.Heartbeat, &c.Detection
	switch p {
	case ProfileFast:
		g.ProbeInterval, g.ProbeTimeout, g.SuspicionMultiplier, g.Interval = 500*ms, 250*ms, 5, 100*ms
		r.Heartbeat, r.Election, r.Lease, r.Commit = 500*ms, 500*ms, 500*ms, 100*ms
		b.Interval, b.StaleAfter, b.IOTimeout = 500*ms, 2*s, 1*s
		d.ReportInterval, d.SuspectAfter, d.Silence = 250*ms, 600*ms, 2500*ms
		d.Rounds, d.RoundInterval, d.ProbeTimeout = 3, 500*ms, 500*ms
		d.OffReadingGap, d.StartUpGrace = 300*ms, time.Minute
	case ProfileCalm:
		g.ProbeInterval, g.ProbeTimeout, g.SuspicionMultiplier, g.Interval = 1*s, 500*ms, 6, 200*ms
		r.Heartbeat, r.Election, r.Lease, r.Commit = 2*s, 2*s, 1500*ms, 500*ms
		b.Interval, b.StaleAfter, b.IOTimeout = 2*s, 10*s, 5*s
		d.ReportInterval, d.SuspectAfter, d.Silence = 1*s, 3*s, 20*s
		d.Rounds, d.RoundInterval, d.ProbeTimeout = 5, 2*s, 2*s
		d.OffReadingGap, d.StartUpGrace, d.MassFailureCalm = 1*s, 5*time.Minute, 30*s
		c.Fencing.Watchdog.Silence = 20 * s
	case ProfileNormal:
		g.ProbeInterval, g.ProbeTimeout, g.SuspicionMultiplier, g.Interval = 1*s, 500*ms, 4, 200*ms
		r.Heartbeat, r.Election, r.Lease, r.Commit = 1*s, 1*s, 1*s, 200*ms
		b.Interval, b.StaleAfter, b.IOTimeout = 1*s, 4*s, 2*s
		d.ReportInterval, d.SuspectAfter, d.Silence = 500*ms, 1*s, 8*s
		d.Rounds, d.RoundInterval, d.ProbeTimeout = 3, 1*s, 1*s
		d.OffReadingGap, d.StartUpGrace = 300*ms, 2*time.Minute
	}
}

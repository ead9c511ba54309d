package docs

import (
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/election"
	"github.com/haven-ha/haven/internal/config"
)

var updateNumbers = flag.Bool("update", false, "rewrite the tables of docs/numbers.md")

// profile is one set of numbers, of the configuration and of the detector.
type profile struct {
	name config.Profile
	c    *config.Config
	d    detector.Config
}

// profiles returns all of them, and makes sure that both agree where both have a
// number: the agent takes the configuration's.
func profiles(t *testing.T) []profile {
	t.Helper()
	all := []profile{
		{config.ProfileFast, config.Default(config.ProfileFast), detector.Fast()},
		{config.ProfileNormal, config.Default(config.ProfileNormal), detector.Normal()},
		{config.ProfileCalm, config.Default(config.ProfileCalm), detector.Calm()},
	}
	for _, p := range all {
		c, d := p.c.Detection, p.d
		for _, n := range []struct {
			name             string
			config, detector any
		}{
			{"suspect_after", c.SuspectAfter, d.SuspectAfter},
			{"silence", c.Silence, d.Silence},
			{"rounds", c.Rounds, d.Rounds},
			{"round_interval", c.RoundInterval, d.Round},
			{"interval", p.c.Heartbeat.Interval, d.BeatInterval},
			{"stale_after", p.c.Heartbeat.StaleAfter, d.StaleAfter},
			{"off_readings", c.OffReadings, d.OffReadings},
			{"off_reading_gap", c.OffReadingGap, d.OffGap},
			{"probe_count", c.ProbeCount, d.ProbeCount},
			{"start_up_grace", c.StartUpGrace, d.StartupGrace},
			{"alarm_after", p.c.Holds.AlarmAfter, d.HoldAlarm},
			{"mass_failure_share", c.MassFailureShare, d.MassFailureShare},
		} {
			if n.config != n.detector {
				t.Errorf("%s, %s: the configuration says %v, the detector %v", p.name, n.name, n.config, n.detector)
			}
		}
		if err := d.Validate(); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
	}
	return all
}

// short writes a time as people do.
func short(d time.Duration) string {
	switch {
	case d >= time.Minute && d%time.Minute == 0:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + " s"
}

// grid writes a table.
type grid struct{ lines []string }

func (g *grid) row(cells ...string) {
	g.lines = append(g.lines, "| "+strings.Join(cells, " | ")+" |")
	if len(g.lines) == 1 {
		g.lines = append(g.lines, "|"+strings.Repeat("---|", len(cells)))
	}
}

// bySize is the table of what words mean in clusters of different sizes.
func bySize(t *testing.T, all []profile) string {
	t.Helper()
	sizes := []struct {
		name    string
		hosts   int
		witness bool
	}{{"2 + witness", 3, true}, {"3", 3, false}, {"5", 5, false}, {"16", 16, false}, {"50", 50, false}}
	var confs []*config.Config
	head := []string{""}
	for _, s := range sizes {
		head = append(head, s.name)
		confs = append(confs, configured(t, s.hosts, s.witness))
	}
	g := grid{}
	g.row(head...)
	row := func(name string, f func(c *config.Config) string) {
		cells := []string{name}
		for _, c := range confs {
			cells = append(cells, f(c))
		}
		g.row(cells...)
	}
	number := func(name string, f func(c *config.Config) int) {
		row(name, func(c *config.Config) string { return strconv.Itoa(f(c)) })
	}
	number("configured hosts", func(c *config.Config) int { return len(c.Hosts) })
	number("hypervisors", func(c *config.Config) int { return len(c.Hypervisors()) })
	number("*majority*: hosts an observer must reach, itself included", (*config.Config).Majority)
	number("… with one host proved dead, which is then on nobody's side", func(c *config.Config) int { return (len(c.Hosts)-1)/2 + 1 })
	number("voters when all are there at the beginning", func(c *config.Config) int { return voters(t, c) })
	number("voters that must answer a master", func(c *config.Config) int { return voters(t, c)/2 + 1 })
	asked := func(c *config.Config) int { return min(c.Detection.ProbeCount, len(c.Hosts)-2) }
	number("*several*: neighbours asked about a suspect, beside the master", asked)
	number("neighbours that must have failed to get an answer (none may keep silent about it)", func(*config.Config) int { return 1 })
	number("probes of one round: agent, helper and network stack", func(c *config.Config) int { return 3 * asked(c) })
	number("*share*: hypervisors that may be bad at once", func(c *config.Config) int {
		d := detector.Normal()
		d.MassFailureShare = c.Detection.MassFailureShare
		return d.MassFailureAllowed(len(c.Hypervisors()))
	})
	number("readers whose stores must be dead for a storage outage (1 if the master has no store)", func(*config.Config) int { return 2 })
	for _, p := range all {
		row(fmt.Sprintf("gossip calls a silent member dead after about, `%s`", p.name), func(c *config.Config) string {
			g := p.c.Gossip
			dead := float64(g.SuspicionMultiplier) * max(1, math.Log10(float64(len(c.Hosts)))) * g.ProbeInterval.Seconds()
			return strconv.FormatFloat(math.Round(dead*10)/10, 'f', -1, 64) + " s"
		})
	}
	if election.MaxVoters != 5 {
		t.Errorf("at most %d voters", election.MaxVoters)
	}
	return strings.Join(g.lines, "\n")
}

// byProfile is the table of what words mean in each profile.
func byProfile(all []profile) string {
	g := grid{}
	head := []string{""}
	for _, p := range all {
		head = append(head, "`"+string(p.name)+"`")
	}
	g.row(head...)
	row := func(name string, f func(p profile) string) {
		cells := []string{name}
		for _, p := range all {
			cells = append(cells, f(p))
		}
		g.row(cells...)
	}
	span := func(name string, f func(d detector.Config) time.Duration) {
		row(name, func(p profile) string { return short(f(p.d)) })
	}
	row("an agent reports every", func(p profile) string { return short(p.c.Detection.ReportInterval) })
	span("*suspect*: no report for", func(d detector.Config) time.Duration { return d.SuspectAfter })
	span("*dead* network, and all paths for `failed`: silent for", func(d detector.Config) time.Duration { return d.Silence })
	row("*rounds* in a row that find every path dead", func(p profile) string { return strconv.Itoa(p.d.Rounds) })
	span("a round lasts at least, and twice that at most", func(d detector.Config) time.Duration { return d.Round })
	row("a probe may take", func(p profile) string { return short(p.c.Detection.ProbeTimeout) })
	span("*fresh* answer of an agent to a probe, as life", func(d detector.Config) time.Duration { return d.ProbeFresh })
	span("an answer of the helper or of the network stack, as life", func(d detector.Config) time.Duration { return d.Silence / 2 })
	span("an active disk, as life", func(d detector.Config) time.Duration { return d.Silence })
	span("a beat is written every", func(d detector.Config) time.Duration { return d.BeatInterval })
	span("*stale*: a beat that stood still for, and an observer's words after", func(d detector.Config) time.Duration { return d.StaleAfter })
	row("*off*: readings of one BMC, each in a session of its own", func(p profile) string { return strconv.Itoa(p.d.OffReadings) })
	span("… and at least so far apart", func(d detector.Config) time.Duration { return d.OffGap })
	span("… and no older than", func(d detector.Config) time.Duration { return d.OffFresh })
	span("… with no beat younger than", func(d detector.Config) time.Duration {
		return time.Duration(d.OffBeatAge * float64(d.BeatInterval))
	})
	span("a suspect's BMC is read every", func(d detector.Config) time.Duration { return d.PowerEvery })
	span("… after 30 s of suspicion", func(d detector.Config) time.Duration { return max(d.PowerEvery, 5*time.Second) })
	span("… after 5 min", func(d detector.Config) time.Duration { return max(d.PowerEvery, 30*time.Second) })
	span("gossip's \"alive\" may be late by", func(d detector.Config) time.Duration { return d.GossipLag })
	row("`failed` waits for gossip to notice", func(p profile) string { return map[bool]string{true: "yes", false: "no"}[p.d.WaitForGossip] })
	span("start-up grace", func(d detector.Config) time.Duration { return d.StartupGrace })
	span("the mass-failure brake opens after a calm of", func(d detector.Config) time.Duration { return d.MassFailureCalm })
	row("a host is quarantined after so many falls from health", func(p profile) string { return strconv.Itoa(p.d.FlapCount) })
	span("… within", func(d detector.Config) time.Duration { return d.FlapWindow })
	span("… until it has been healthy for", func(d detector.Config) time.Duration { return d.FlapCalm })
	span("a hold becomes an alarm after", func(d detector.Config) time.Duration { return d.HoldAlarm })
	return strings.Join(g.lines, "\n")
}

// TestNumbersPage holds docs/numbers.md against the code. With -update it
// rewrites the page's tables.
func TestNumbersPage(t *testing.T) {
	const path = "docs/numbers.md"
	all := profiles(t)
	page := read(t, path)
	for name, text := range map[string]string{"by size": bySize(t, all), "by profile": byProfile(all)} {
		before, rest, ok := strings.Cut(page, "<!-- begin "+name+" -->\n")
		body, after, ended := strings.Cut(rest, "\n<!-- end "+name+" -->")
		if !ok || !ended {
			t.Fatalf("%s has no table %q", path, name)
		}
		if body == text {
			continue
		}
		if !*updateNumbers {
			t.Errorf("%s: the table %q is not what the code says; go test ./test/docs -run TestNumbersPage -update", path, name)
		}
		page = before + "<!-- begin " + name + " -->\n" + text + "\n<!-- end " + name + " -->" + after
	}
	if *updateNumbers {
		if err := os.WriteFile(filepath.Join(root, path), []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/flight"
	"github.com/haven-ha/haven/internal/numbers"
)

// set takes one key=value of the command line.
func set(c *detector.Config, arg string) error {
	key, text, ok := strings.Cut(arg, "=")
	known := numbers.Keys(c)
	dst := known[key]
	if !ok || dst == nil {
		return usagef("--set %s: want KEY=VALUE; keys are %s", arg, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
	}
	var err error
	switch dst := dst.(type) {
	case *time.Duration:
		*dst, err = time.ParseDuration(text)
	case *int:
		*dst, err = strconv.Atoi(text)
	case *float64:
		*dst, err = strconv.ParseFloat(text, 64)
	case *bool:
		*dst, err = strconv.ParseBool(text)
	}
	if err != nil {
		return usagef("--set %s: %q is not a possible value", key, text)
	}
	return nil
}

// profiled is what the judge would have had with another profile.
func profiled(was detector.Config, name string) (detector.Config, error) {
	switch p := config.Profile(name); p {
	case config.ProfileFast, config.ProfileNormal, config.ProfileCalm:
		return numbers.Profiled(was, p), nil
	}
	return was, usagef("--profile %s: want fast, normal or calm", name)
}

// changedSettings says in words what is different.
func changedSettings(was, is detector.Config) []string {
	var out []string
	a, b := numbers.Keys(&was), numbers.Keys(&is)
	for _, key := range slices.Sorted(maps.Keys(a)) {
		if x, y := settingText(a[key]), settingText(b[key]); x != y {
			out = append(out, fmt.Sprintf("%s %s instead of %s", key, y, x))
		}
	}
	return out
}

func settingText(p any) string {
	switch p := p.(type) {
	case *time.Duration:
		return p.String()
	case *int:
		return strconv.Itoa(*p)
	case *float64:
		return strconv.FormatFloat(*p, 'g', -1, 64)
	case *bool:
		return strconv.FormatBool(*p)
	}
	return ""
}

// difference compares when each verdict comes with two settings.
type difference struct {
	limit int
	rows  []*differenceRow
	last  map[diffHost]string
	nth   map[diffKey]int
	more  bool // there are more rows than are kept
}

type diffHost struct {
	host  haven.HostID
	other bool
}

type diffKey struct {
	diffHost
	what string
}

type differenceRow struct {
	host  haven.HostID
	what  string
	n     int
	times [2]*time.Duration // with the recorded settings, and with the others
}

// maxDifferences bounds what is remembered of a recording of a flapping host.
const maxDifferences = 2000

func newDifference() *difference {
	return &difference{limit: maxDifferences, last: map[diffHost]string{}, nth: map[diffKey]int{}}
}

// fencePermit is shown like a verdict: it is what a host is shot for.
const fencePermit = "to be fenced"

func (d *difference) take(r flight.Round, wanted func(haven.HostID) bool) {
	for which, out := range []*detector.Output{r.Output, r.Other} {
		for i := range out.Hosts {
			j := &out.Hosts[i]
			if !wanted(j.Host) {
				continue
			}
			at := diffHost{j.Host, which == 1}
			is := string(j.Verdict)
			if j.MayFence() {
				is += ", " + fencePermit
			}
			if was, known := d.last[at]; known && was != is {
				d.note(at, is, which, r.At)
			}
			d.last[at] = is
		}
	}
}

func (d *difference) note(at diffHost, what string, which int, when time.Duration) {
	key := diffKey{at, what}
	d.nth[key]++
	for _, row := range d.rows {
		if row.host == at.host && row.what == what && row.n == d.nth[key] {
			row.times[which] = &when
			return
		}
	}
	if len(d.rows) >= d.limit {
		d.more = true
		return
	}
	row := &differenceRow{host: at.host, what: what, n: d.nth[key]}
	row.times[which] = &when
	d.rows = append(d.rows, row)
}

// table shows the rows in the order of the recorded times.
func (d *difference) table(zero time.Duration) *table {
	slices.SortStableFunc(d.rows, func(a, b *differenceRow) int { return cmp.Compare(a.first(), b.first()) })
	t := newTable("HOST", "BECOMES", "RECORDED", "OTHER", "DIFFERENCE")
	for _, r := range d.rows {
		t.row([]string{string(r.host), r.what, offset(zero, r.times[0]), offset(zero, r.times[1]), r.says()})
	}
	return t
}

func (r *differenceRow) first() time.Duration {
	if r.times[0] != nil {
		return *r.times[0]
	}
	return *r.times[1]
}

func (r *differenceRow) says() string {
	was, is := r.times[0], r.times[1]
	switch {
	case is == nil:
		return "does not come"
	case was == nil:
		return "comes as well"
	case *is > *was:
		return fmt.Sprintf("%.3fs later", (*is - *was).Seconds())
	case *is < *was:
		return fmt.Sprintf("%.3fs earlier", (*was - *is).Seconds())
	}
	return "none"
}

// offset says an instant as a distance from another.
func offset(zero time.Duration, at *time.Duration) string {
	if at == nil {
		return ""
	}
	return fmt.Sprintf("%+.3fs", (*at - zero).Seconds())
}

//go:build lab

package lab_test

import (
	"slices"
	"testing"
	"time"

	"github.com/haven-ha/haven/test/lab"
)

// BenchmarkBoot builds a lab of three hosts, each with a guest that has written,
// and takes it down: the medians in milliseconds.
func BenchmarkBoot(b *testing.B) {
	var up, first, down []time.Duration
	for b.Loop() {
		start := time.Now()
		l, err := lab.New(b.Context(), lab.Config{})
		if err != nil {
			b.Fatal(err)
		}
		up = append(up, time.Since(start))
		start = time.Now()
		if err := l.Each(func(h *lab.Host) error { return startGuest(b, l, h) }); err != nil {
			b.Error(err)
		}
		first = append(first, time.Since(start))
		start = time.Now()
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
		down = append(down, time.Since(start))
		if left := leftovers(l.Prefix(), l.Dir()); len(left) > 0 {
			b.Fatalf("left behind: %q", left)
		}
	}
	for name, all := range map[string][]time.Duration{"up": up, "guests": first, "down": down} {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Milliseconds()), name+"-ms")
		b.ReportMetric(float64(all[len(all)-1].Milliseconds()), name+"-max-ms")
	}
}

func startGuest(b *testing.B, l *lab.Lab, h *lab.Host) error {
	b.Helper()
	g, err := l.NewGuest(lab.GuestConfig{Name: "vm-" + h.Name})
	if err != nil {
		return err
	}
	if err := g.Define(b.Context(), h); err != nil {
		return err
	}
	if err := g.Start(b.Context(), h); err != nil {
		return err
	}
	_, err = g.WaitWrite(b.Context(), 0)
	return err
}

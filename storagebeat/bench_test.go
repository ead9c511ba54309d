package storagebeat

import (
	"fmt"
	"testing"
	"time"

	haven "github.com/haven-ha/haven"
)

// BenchmarkInterval is what a store costs an agent each interval: one write and
// one read of everybody's two beats, through a real child, and judging them.
func BenchmarkInterval(b *testing.B) {
	for _, n := range []int{3, 16, 50} {
		b.Run(fmt.Sprintf("hosts=%d", n), func(b *testing.B) {
			path, id := makeStore(b, "prod")
			c, _ := startChild(b, path, longTimeout)
			d := newDirStore(path, "prod")
			var hosts []haven.HostID
			for i := range n {
				h := haven.HostID(fmt.Sprintf("kvm-%02d", i))
				hosts = append(hosts, h)
				for _, w := range []Writer{WriterAgent, WriterHelper} {
					put(b, d, beatOf(id.ID, h, w, 1))
				}
			}
			tr := NewTracker(TrackerConfig{
				Self: "kvm-00", Writer: WriterAgent, Hosts: hosts, Interval: time.Second, StaleAfter: 4 * time.Second,
			})
			seq := uint64(1)
			b.ReportAllocs()
			for b.Loop() {
				seq++
				if err := c.Write(b.Context(), rawOf(b, beatOf(id.ID, "kvm-00", WriterAgent, seq))); err != nil {
					b.Fatal(err)
				}
				start := time.Now()
				got, err := c.ReadAll(b.Context())
				if err != nil || len(got.Beats) != 2*n {
					b.Fatalf("%d beats, %v", len(got.Beats), err)
				}
				tr.Step(Reading{Start: start, End: time.Now(), Store: id.ID, Beats: got.Beats})
				if s := tr.Snapshot(time.Now()); len(s.Hosts) != n {
					b.Fatalf("%d hosts", len(s.Hosts))
				}
			}
		})
	}
}

// BenchmarkJudge is the pure part of it.
func BenchmarkJudge(b *testing.B) {
	for _, n := range []int{3, 16, 50} {
		b.Run(fmt.Sprintf("hosts=%d", n), func(b *testing.B) {
			s := newShelf(b)
			var hosts []haven.HostID
			for i := range n {
				h := haven.HostID(fmt.Sprintf("kvm-%02d", i))
				hosts = append(hosts, h)
				s.beats[key{h, WriterAgent}] = Beat{Host: h, Writer: WriterAgent, Sequence: 1}
			}
			s.tr.SetHosts(hosts)
			r := s.reading()
			b.ReportAllocs()
			for b.Loop() {
				r.Start, r.End = r.Start.Add(time.Second), r.End.Add(time.Second)
				s.tr.Step(r)
				_ = s.tr.Snapshot(r.End)
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	r := mustEncode(b, fullBeat())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(r); err != nil {
			b.Fatal(err)
		}
	}
}

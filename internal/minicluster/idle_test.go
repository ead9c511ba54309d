package minicluster_test

import (
	"log/slog"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/minicluster"
	"github.com/haven-ha/haven/internal/world"
)

// BenchmarkIdle prints what an agent costs that has nothing to do: the CPU time
// of this process, in percent of one core, for each of three agents with their
// helpers and BMCs. The children that do the storage's I/O are not in it.
// Run it with -benchtime 1x; each round takes 20 seconds.
func BenchmarkIdle(b *testing.B) {
	benchmark(b, func(*minicluster.Cluster) {}, func(s client.Status) bool { return s.HostsUp == 3 })
}

// BenchmarkOneDown is the same with one host dead for good.
func BenchmarkOneDown(b *testing.B) {
	benchmark(b, func(c *minicluster.Cluster) { c.Hosts()[2].PowerOff() }, func(s client.Status) bool { return s.HostsUp == 2 && s.Incidents == 0 })
}

func benchmark(b *testing.B, prepare func(*minicluster.Cluster), settled func(client.Status) bool) {
	c, err := minicluster.New(minicluster.Options{
		Hosts: 3, Dir: b.TempDir(), StoreChild: []string{"/proc/self/exe", "store-child"},
		Net: [2]byte{byte(os.Getpid() >> 8), byte(os.Getpid())}, MemoryMiB: 8192, OnEvent: func(world.Event) {},
		Log: func(haven.HostID) *slog.Logger { return slog.New(slog.DiscardHandler) },
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	until(b, c, "/v1/status", "a master", func(s client.Status) bool { return s.Master != "" && !s.Stale && s.HostsUp == 3 && len(s.Holds) == 0 })
	prepare(c)
	until(b, c, "/v1/status", "calm", settled)
	time.Sleep(10 * time.Second) // the grace and the first tests of devices
	for b.Loop() {
		begun, spent := time.Now(), cpu(b)
		time.Sleep(20 * time.Second)
		b.ReportMetric(100*(cpu(b)-spent).Seconds()/time.Since(begun).Seconds()/3, "%core/agent")
	}
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

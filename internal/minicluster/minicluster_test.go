package minicluster_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing/command"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/minicluster"
	"github.com/haven-ha/haven/internal/world"
	"github.com/haven-ha/haven/storagebeat"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "store-child" {
		os.Exit(storagebeat.ChildMain(os.Args[2:], os.Stdin, os.Stdout))
	}
	if len(os.Args) > 1 && os.Args[1] == "fence-program" {
		os.Exit(command.Launch(os.Args[2:], os.Environ(), os.Stderr))
	}
	os.Exit(m.Run())
}

func start(t *testing.T, hosts int) *minicluster.Cluster {
	t.Helper()
	return startWith(t, hosts, func(*minicluster.Options) {})
}

// startWith starts a cluster of which something is changed.
func startWith(t *testing.T, hosts int, change func(*minicluster.Options)) *minicluster.Cluster {
	t.Helper()
	begun := time.Now()
	w := t.Output()
	opts := minicluster.Options{
		Hosts: hosts, Dir: t.TempDir(), StoreChild: []string{"/proc/self/exe", "store-child"},
		Net: [2]byte{byte(os.Getpid() >> 8), byte(os.Getpid())}, MemoryMiB: 8192,
		OnEvent: func(e world.Event) { fmt.Fprintf(w, "%7.3f WORLD %s\n", time.Since(begun).Seconds(), e.Text) },
		Log: func(host haven.HostID) *slog.Logger {
			return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelInfo})).With("self", host)
		},
	}
	change(&opts)
	c, err := minicluster.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// until polls the API of any live host until the answer is as wanted.
func until[T any](t testing.TB, c *minicluster.Cluster, path string, what string, ok func(T) bool) T {
	t.Helper()
	api, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last T
	var lastErr error
	for {
		for _, h := range c.Hosts() {
			if !h.AgentRuns() {
				continue
			}
			var v T
			ask, cancel := context.WithTimeout(ctx, 2*time.Second)
			lastErr = api.Get(ask, h.ID, path, &v)
			cancel()
			if lastErr == nil {
				if last = v; ok(v) {
					return v
				}
				break
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waiting for %s: last answer %+v, last error %v", what, last, lastErr)
		}
	}
}

func vmID(i int) haven.VMID {
	return haven.VMID(fmt.Sprintf("00000000-0000-4000-8000-%012d", i))
}

// TestPowerCut guards the main job (P1, P2, P7): a host loses its power, its
// BMC says so, and its VMs run elsewhere, each exactly once.
func TestPowerCut(t *testing.T) {
	c := start(t, 3)
	until(t, c, "/v1/status", "a master", func(s client.Status) bool { return s.Master != "" && !s.Stale && s.HostsUp == 3 })
	victim := c.Hosts()[2]
	for i := 1; i <= 3; i++ {
		if _, err := victim.Machine.UserStart(world.XML(vmID(i), fmt.Sprintf("vm%d", i), 512)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, c, "/v1/vms", "three protected VMs", func(vms []client.VM) bool {
		n := 0
		for _, v := range vms {
			if v.Protected && v.Owner == victim.ID {
				n++
			}
		}
		return n == 3
	})
	until(t, c, "/v1/hosts", "boards that were read", func(hosts []client.Host) bool {
		for _, h := range hosts {
			if h.Power.State != "on" || h.PowerGUID == "" {
				return false
			}
		}
		return len(hosts) == 3
	})
	until(t, c, "/v1/status", "no hold", func(s client.Status) bool { return len(s.Holds) == 0 })
	cut := time.Now()
	victim.PowerOff()
	until(t, c, "/v1/vms", "all VMs elsewhere", func(vms []client.VM) bool {
		for _, v := range vms {
			if v.Phase != "owned" || v.Owner == victim.ID || v.State != haven.VMRunning {
				return false
			}
		}
		return len(vms) == 3
	})
	t.Logf("recovered in %s", time.Since(cut))
	for i := 1; i <= 3; i++ {
		if at := c.World.RunsOn(vmID(i)); len(at) != 1 {
			t.Errorf("vm%d runs on %v", i, at)
		}
	}
	if v := c.World.Violations(); len(v) > 0 {
		t.Error(v)
	}
	if cmds := victim.BMC.Commands(); len(cmds) > 0 {
		t.Errorf("the BMC of a host that was off already got %v", cmds)
	}
}

package minicluster_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/minicluster"
	"github.com/haven-ha/haven/internal/world"
)

// trouble is a cluster of three with three VMs on one host, with all that a power
// cut needs to be recovered from.
func trouble(t *testing.T) (c *minicluster.Cluster, owner *minicluster.Host) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes a quarter of a minute in real time")
	}
	c = start(t, 3)
	calm(t, c)
	owner = c.Hosts()[2]
	for i := 1; i <= 3; i++ {
		if _, err := owner.Machine.UserStart(world.XML(vmID(i), fmt.Sprintf("vm%d", i), 512)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, c, "/v1/vms", "three protected VMs", func(vms []client.VM) bool {
		return len(vms) == 3 && !slices.ContainsFunc(vms, func(v client.VM) bool { return !v.Protected || v.Owner != owner.ID })
	})
	until(t, c, "/v1/hosts", "boards that were read", func(hosts []client.Host) bool {
		return len(hosts) == 3 && !slices.ContainsFunc(hosts, func(h client.Host) bool { return h.Power.State != "on" || h.PowerGUID == "" })
	})
	calm(t, c)
	return c, owner
}

// calm waits until all is well.
func calm(t *testing.T, c *minicluster.Cluster) {
	t.Helper()
	until(t, c, "/v1/status", "calm", func(s client.Status) bool {
		return s.Master != "" && !s.Stale && s.HostsUp == 3 && len(s.Holds) == 0 && s.VMsUp == s.VMs && s.Incidents == 0
	})
}

func masterOf(t *testing.T, c *minicluster.Cluster) *minicluster.Host {
	t.Helper()
	s := until(t, c, "/v1/status", "a master", func(s client.Status) bool { return s.Master != "" && !s.Stale })
	return c.Host(s.Master)
}

// once checks that every VM runs exactly once, wherever (P1).
func once(t *testing.T, c *minicluster.Cluster, running bool) {
	t.Helper()
	for i := 1; i <= 3; i++ {
		if at := c.World.RunsOn(vmID(i)); len(at) > 1 || running && len(at) != 1 {
			t.Errorf("vm%d runs on %v", i, at)
		}
	}
	if v := c.World.Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// untouched checks that nobody was powered off and no VM was started again (P4).
func untouched(t *testing.T, c *minicluster.Cluster, owner *minicluster.Host) {
	t.Helper()
	for _, h := range c.Hosts() {
		if cmds := h.BMC.Commands(); len(cmds) > 0 {
			t.Errorf("the BMC of %s got %v", h.ID, cmds)
		}
	}
	for i := 1; i <= 3; i++ {
		if at := c.World.RunsOn(vmID(i)); !slices.Equal(at, []haven.HostID{owner.ID}) || c.World.Starts(vmID(i)) != 1 {
			t.Errorf("vm%d runs on %v after %d starts", i, at, c.World.Starts(vmID(i)))
		}
	}
	once(t, c, true)
}

func verdict(t *testing.T, c *minicluster.Cluster, id haven.HostID, want ...haven.Verdict) {
	t.Helper()
	until(t, c, "/v1/hosts", fmt.Sprintf("%s to be %v", id, want), func(hosts []client.Host) bool {
		return slices.ContainsFunc(hosts, func(h client.Host) bool { return h.Host == id && slices.Contains(want, h.Verdict) })
	})
}

// TestLeaveRunning guards P4: an agent that dies or stops, a cable that is pulled,
// storage that hangs and a data directory that is lost never touch a VM.
func TestLeaveRunning(t *testing.T) {
	c, owner := trouble(t)

	owner.KillAgent()
	verdict(t, c, owner.ID, haven.VerdictAgentDown)
	untouched(t, c, owner)
	if err := owner.StartAgent(); err != nil {
		t.Fatal(err)
	}
	calm(t, c)

	bye, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	if err := owner.StopAgent(bye); err != nil {
		t.Error(err)
	}
	cancel()
	verdict(t, c, owner.ID, haven.VerdictStopped)
	untouched(t, c, owner)
	if err := owner.StartAgent(); err != nil {
		t.Fatal(err)
	}
	calm(t, c)

	owner.CutNetwork(true)
	other := c.Hosts()[0]
	until(t, c, "/v1/hosts", "a verdict on a host without network, as the others see it", func(hosts []client.Host) bool {
		return other.AgentRuns() && slices.ContainsFunc(hosts, func(h client.Host) bool {
			return h.Host == owner.ID && (h.Verdict == haven.VerdictIsolated || h.Verdict == haven.VerdictPartitioned)
		})
	})
	untouched(t, c, owner)
	owner.CutNetwork(false)
	calm(t, c)

	owner.HangStore(true)
	verdict(t, c, owner.ID, haven.VerdictStorageLost)
	untouched(t, c, owner)
	owner.HangStore(false)
	calm(t, c)

	owner.KillAgent()
	if err := os.RemoveAll(c.DataDir(owner.ID)); err != nil {
		t.Fatal(err)
	}
	if err := owner.StartAgent(); err != nil {
		t.Fatal(err)
	}
	calm(t, c)
	untouched(t, c, owner)
}

// TestMasterDiesWithTheHost guards P7: the master's agent is killed at the moment
// at which the host with the VMs loses its power; the next master finishes it.
func TestMasterDiesWithTheHost(t *testing.T) {
	c, owner := trouble(t)
	master := masterOf(t, c)
	if master == owner {
		t.Log("the master is the host that dies")
	}
	owner.PowerOff()
	master.KillAgent()
	if master != owner {
		// Two of three must live.
		if err := master.StartAgent(); err != nil {
			t.Fatal(err)
		}
	}
	elsewhere(t, c, owner)
	once(t, c, true)
}

// TestPowerCycles guards P1 and P2: a host whose power goes and comes twice within
// moments boots anew each time, and its VMs run once, wherever.
func TestPowerCycles(t *testing.T) {
	c, owner := trouble(t)
	for range 2 {
		owner.PowerOff()
		if err := owner.PowerOn(); err != nil {
			t.Fatal(err)
		}
	}
	until(t, c, "/v1/vms", "all VMs running", func(vms []client.VM) bool {
		once(t, c, false)
		for i := 1; i <= 3; i++ {
			// The master's view may be from before the power went: it was away for a second.
			if len(c.World.RunsOn(vmID(i))) == 0 {
				return false
			}
		}
		return len(vms) == 3 && !slices.ContainsFunc(vms, func(v client.VM) bool { return v.Phase != "owned" || v.State != haven.VMRunning })
	})
	calm(t, c)
	once(t, c, true)
}

func elsewhere(t *testing.T, c *minicluster.Cluster, dead *minicluster.Host) {
	t.Helper()
	until(t, c, "/v1/vms", "all VMs elsewhere", func(vms []client.VM) bool {
		return len(vms) == 3 && !slices.ContainsFunc(vms, func(v client.VM) bool {
			return v.Phase != "owned" || v.Owner == dead.ID || v.State != haven.VMRunning
		})
	})
}

// TestOperatorsWord guards P1 and P2 over the real API: nobody calls a living host
// dead by a slip, and a host's certificate is not an operator's.
func TestOperatorsWord(t *testing.T) {
	c, owner := trouble(t)
	api, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range c.Hosts() { // through the master and through the others
		err := api.Post(t.Context(), h.ID, "/v1/hosts/"+string(owner.ID)+"/confirm-dead", client.Act{By: "alice", Reason: "I believe so"}, nil)
		var e *client.Error
		if !errors.As(err, &e) || e.Status != 409 {
			t.Errorf("through %s: %v, want a refusal", h.ID, err)
		}
	}
	untouched(t, c, owner)
}

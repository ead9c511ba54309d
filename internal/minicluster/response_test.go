package minicluster_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/minicluster"
	"github.com/haven-ha/haven/internal/world"
)

// responding is a cluster of three with a response configured, and three VMs on one
// host.
func responding(t *testing.T, response string) (c *minicluster.Cluster, owner *minicluster.Host) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes half a minute in real time")
	}
	begun := time.Now()
	w := t.Output()
	c, err := minicluster.New(minicluster.Options{
		Hosts: 3, Dir: t.TempDir(), StoreChild: []string{"/proc/self/exe", "store-child"},
		Net: [2]byte{byte(os.Getpid() >> 8), byte(os.Getpid())}, MemoryMiB: 8192,
		OnEvent: func(e world.Event) { fmt.Fprintf(w, "%7.3f WORLD %s\n", time.Since(begun).Seconds(), e.Text) },
		Log: func(host haven.HostID) *slog.Logger {
			return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelInfo})).With("self", host)
		},
		Config: func(yaml string) string {
			return strings.Replace(yaml, "\nhosts:", "\nresponse: "+response+"\nhosts:", 1)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
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
	calm(t, c)
	caughtUp(t, c, owner)
	return c, owner
}

// caughtUp waits until a host's own ledger shows what the master's does. A host that
// is cut off before leaves running what it does not know as protected.
func caughtUp(t *testing.T, c *minicluster.Cluster, h *minicluster.Host) {
	t.Helper()
	api, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	master := masterOf(t, c)
	until(t, c, "/v1/status", "an owner that knows what is protected", func(client.Status) bool {
		var mine, its client.Raft
		err := errors.Join(api.Get(t.Context(), master.ID, "/v1/raft", &its), api.Get(t.Context(), h.ID, "/v1/raft", &mine))
		return err == nil && mine.AppliedIndex >= its.CommitIndex
	})
}

// TestIsolationPowerOff guards P1 and P4: an isolated host whose configured response
// is to power its VMs off does so, says it on the store, and they run elsewhere, once
// each; no BMC is asked for anything. The host comes back without them.
func TestIsolationPowerOff(t *testing.T) {
	c, owner := responding(t, "{isolation: {action: power-off, delay: 10s}}")
	owner.CutNetwork(true)
	other := c.Hosts()[0]
	api, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	moved := func() bool {
		var vms []client.VM
		if api.Get(t.Context(), other.ID, "/v1/vms", &vms) != nil {
			return false
		}
		once(t, c, false)
		return len(vms) == 3 && !slices.ContainsFunc(vms, func(v client.VM) bool {
			return v.Phase != "owned" || v.Owner == owner.ID || v.State != haven.VMRunning
		})
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(60 * time.Second); !moved(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("the VMs of the isolated host do not run elsewhere")
		}
	}
	for _, h := range c.Hosts() {
		if cmds := h.BMC.Commands(); len(cmds) > 0 {
			t.Errorf("the BMC of %s got %v", h.ID, cmds)
		}
	}
	var incidents []client.Incident
	if err := api.Get(t.Context(), other.ID, "/v1/incidents", &incidents); err != nil || len(incidents) != 1 || incidents[0].Response != "isolation" {
		t.Errorf("%+v, %v: want one incident with its response", incidents, err)
	}
	owner.CutNetwork(false)
	calm(t, c)
	once(t, c, true)
	if at := c.World.RunsOn(vmID(1)); slices.Contains(at, owner.ID) {
		t.Errorf("vm1 runs on %v", at)
	}
}

// TestMaintenanceAndDecisions guards P6 and P9 over the real API: a host that is
// powered off in maintenance keeps its VMs until an operator says otherwise, and every
// change of its verdict is told with its evidence.
func TestMaintenanceAndDecisions(t *testing.T) {
	c, owner := responding(t, "{isolation: {action: leave}}")
	api, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	until(t, c, "/v1/hosts", "boards that were read", func(hosts []client.Host) bool {
		return len(hosts) == 3 && !slices.ContainsFunc(hosts, func(h client.Host) bool { return h.Power.State != "on" || h.PowerGUID == "" })
	})
	path := "/v1/hosts/" + string(owner.ID) + "/maintenance"
	if err := api.Post(t.Context(), c.Hosts()[0].ID, path, client.Act{Reason: "new fans"}, nil); err != nil {
		t.Fatal(err)
	}
	owner.PowerOff()
	until(t, c, "/v1/vms", "VMs that are held by the maintenance", func(vms []client.VM) bool {
		return len(vms) == 3 && !slices.ContainsFunc(vms, func(v client.VM) bool { return v.Hold.Reason != haven.HoldMaintenance })
	})
	st := until(t, c, "/v1/status", "a status", func(s client.Status) bool { return !s.Stale })
	if !slices.ContainsFunc(st.Held, func(h client.Held) bool { return h.Of == "vm" && h.Count == 3 && h.Release != "" }) {
		t.Errorf("status does not show three held VMs with what releases them: %+v", st.Held)
	}
	for i := 1; i <= 3; i++ {
		if at := c.World.RunsOn(vmID(i)); len(at) > 0 {
			t.Errorf("vm%d runs on %v", i, at)
		}
	}
	until(t, c, "/v1/hosts/"+string(owner.ID)+"/decisions", "the decision that it is dead, with its evidence", func(all []client.Decision) bool {
		return len(all) > 1 && slices.ContainsFunc(all, func(d client.Decision) bool { return d.To == haven.VerdictDead && len(d.Evidence) > 0 })
	})
	// An operator's word lets them go; the maintenance goes on.
	if err := api.Post(t.Context(), c.Hosts()[0].ID, "/v1/hosts/"+string(owner.ID)+"/confirm-dead", client.Act{By: "alice", Reason: "it is off"}, nil); err != nil {
		t.Fatal(err)
	}
	elsewhere(t, c, owner)
	once(t, c, true)
	hosts := until(t, c, "/v1/hosts", "hosts", func(all []client.Host) bool { return len(all) == 3 })
	for _, h := range hosts {
		if h.Host == owner.ID && (h.Maintenance == nil || h.Maintenance.Keeps) {
			t.Errorf("maintenance is %+v", h.Maintenance)
		}
	}
}

package minicluster_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/minicluster"
	"github.com/haven-ha/haven/internal/world"
)

// P2, before it is needed: a board that says another identity than its host is told
// of while all is well; the host is not powered off by it, not by an operator
// either, until somebody with a name says that the board is its own. And with a
// release by hand the host gets no VM before somebody looked at it.
func TestWrongBoardBlocksFencing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute in real time")
	}
	const odd = "ffeeddcc-bbaa-9988-7766-554433221100"
	c := startWith(t, 3, func(o *minicluster.Options) {
		o.UUID = func(id haven.HostID) string { return map[haven.HostID]string{"kvm-03": odd}[id] }
		o.Config = func(yaml string) string {
			return strings.Replace(yaml, "fencing:\n", "fencing:\n  release: manual\n", 1)
		}
	})
	calm(t, c)
	owner := c.Hosts()[2]
	if _, err := owner.Machine.UserStart(world.XML(vmID(1), "vm1", 512)); err != nil {
		t.Fatal(err)
	}
	until(t, c, "/v1/vms", "a protected VM", func(vms []client.VM) bool { return len(vms) == 1 && vms[0].Protected })
	until(t, c, "/v1/hosts", "the wrong board to be found", func(hosts []client.Host) bool {
		return slices.ContainsFunc(hosts, func(h client.Host) bool {
			return h.Host == owner.ID && strings.Contains(h.WrongDevice, odd) && h.UUID == odd && len(h.Devices) == 1 && h.Devices[0].Failed == "identity" && !h.PowerTrusted
		})
	})
	s, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	post := func(path string, q client.Act) error { return s.Post(t.Context(), masterOf(t, c).ID, path, q, nil) }
	if err := post(client.FencePath(owner.ID, haven.ActionOff), client.Act{By: "maria", Force: true, Reason: "to see"}); err == nil || !strings.Contains(err.Error(), "trust-bmc") {
		t.Errorf("an operator's off: %v", err)
	}
	if err := post(client.FencePath(owner.ID, haven.ActionBlink), client.Act{By: "maria"}); err != nil {
		t.Errorf("blink: %v", err)
	}
	for _, seconds := range []int{30, 0} {
		if err := post(client.FencePath(owner.ID, haven.ActionBlink), client.Act{By: "maria", Light: &seconds}); err != nil {
			t.Errorf("a light for %d s: %v", seconds, err)
		}
	}
	if got := strings.Join(owner.BMC.Commands(), ", "); got != "blink 255 s, blink 30 s, dark" {
		t.Errorf("the BMC got %q", got)
	}

	owner.PowerOff() // its board says off, which proves nothing now
	until(t, c, "/v1/status", "the fence to be held", func(s client.Status) bool {
		return slices.ContainsFunc(s.Held, func(h client.Held) bool { return h.Of == "incident" && h.Hold.Reason == haven.HoldIdentity })
	})
	if slices.Contains(owner.BMC.Commands(), "off") {
		t.Fatalf("the BMC got %v", owner.BMC.Commands())
	}
	if err := post("/v1/hosts/"+string(owner.ID)+"/trust-bmc", client.Act{By: "maria", Reason: "the maker wrote another one into it"}); err != nil {
		t.Fatal(err)
	}
	until(t, c, "/v1/vms", "the VM elsewhere", func(vms []client.VM) bool {
		return len(vms) == 1 && vms[0].Owner != owner.ID && vms[0].State == haven.VMRunning
	})
	if err := owner.PowerOn(); err != nil {
		t.Fatal(err)
	}
	until(t, c, "/v1/status", "the host back, and waiting for its release", func(s client.Status) bool {
		return slices.ContainsFunc(s.Held, func(h client.Held) bool { return h.Host == owner.ID && h.Hold.Reason == haven.HoldRelease })
	})
	if err := post(client.FencePath(owner.ID, "release"), client.Act{By: "maria", Reason: "looked at"}); err != nil {
		t.Fatal(err)
	}
	until(t, c, "/v1/hosts", "the release", func(hosts []client.Host) bool {
		return slices.ContainsFunc(hosts, func(h client.Host) bool { return h.Host == owner.ID && h.Fenced == nil && h.Quarantine == "" })
	})
	until(t, c, client.PathActs, "the record of it all", func(acts []client.FenceAct) bool {
		var all []string
		for _, a := range acts {
			all = append(all, string(a.Action)+" "+a.By)
		}
		return len(all) == 5 && strings.HasPrefix(all[0], "release maria") && strings.HasPrefix(all[1], "trust-bmc maria") && strings.HasPrefix(all[2], "blink maria")
	})
	once(t, c, false)
}

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing/ipmi/ipmitest"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/minicluster"
)

// hostParts is what of one host works, in truth.
type hostParts struct {
	Host    haven.HostID `json:"host"`
	Power   bool         `json:"power"`
	Network bool         `json:"network"`
	Storage bool         `json:"storage"`
	Agent   bool         `json:"agent"`
	BMC     bool         `json:"bmc"`
}

func (d *demo) parts(h *minicluster.Host) hostParts {
	on, _ := h.Machine.On()
	bmc := true
	h.BMC.SetFaults(func(f *ipmitest.Faults) { bmc = !f.Dead })
	return hostParts{h.ID, on, !h.NetworkCut(), !h.StoreHangs(), h.AgentRuns(), bmc}
}

// errNoSuch is returned when a host or a part of it does not exist.
var errNoSuch = errors.New("no such host or part")

// setPart takes a part of a host away, or gives it back. It may be called
// again.
func (d *demo) setPart(id haven.HostID, part string, works bool) error {
	h := d.cluster.Host(id)
	if h == nil {
		return fmt.Errorf("host %q: %w", id, errNoSuch)
	}
	switch part {
	case "power":
		if works {
			return h.PowerOn()
		}
		h.PowerOff()
	case "network":
		h.CutNetwork(!works)
	case "storage":
		h.HangStore(!works)
	case "agent":
		if works {
			return h.StartAgent()
		}
		h.KillAgent()
	case "bmc":
		h.BMC.SetFaults(func(f *ipmitest.Faults) { f.Dead = !works })
	default:
		return fmt.Errorf("part %q: %w", part, errNoSuch)
	}
	return nil
}

// errHasPower is returned instead of telling the cluster a lie that could make
// a VM run twice.
var errHasPower = errors.New("the host has power: an operator who says that it is off would be lying")

// sayDead tells the cluster, as an operator who looked, that a host is off.
func (d *demo) sayDead(ctx context.Context, id haven.HostID) error {
	h := d.cluster.Host(id)
	if h == nil {
		return fmt.Errorf("host %q: %w", id, errNoSuch)
	}
	if on, _ := h.Machine.On(); on {
		return errHasPower
	}
	st, err := d.status(ctx)
	if err != nil {
		return err
	}
	act := client.Act{By: "demo", Reason: "somebody looked: it has no power"}
	return d.client.Post(ctx, cmp.Or(st.Master, st.Self), "/v1/hosts/"+string(id)+"/confirm-dead", act, nil)
}

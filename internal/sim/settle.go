package sim

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/ledger"
)

// settleWithin is how long a healed cluster may take until every VM runs. A VM
// whose starts failed several times waits for up to a quarter of an hour.
const settleWithin = 40 * time.Minute

// settle heals everything and checks that nothing was forgotten (P7).
func (c *Cluster) settle() {
	c.HealAll()
	c.Sleep(c.s.BootTakes + Grace)
	end := time.Now().Add(settleWithin)
	missing := ""
	for time.Now().Before(end) {
		if missing = c.missing(); missing == "" {
			break
		}
		c.operator1()
		c.Sleep(500 * time.Millisecond)
	}
	if missing != "" {
		c.check.violate("P7", "%s after everything was healed: %s", settleWithin, missing)
		return
	}
	// It must stay so, and the ledgers must be one.
	c.Sleep(5 * time.Second)
	if m := c.missing(); m != "" {
		c.check.violate("P7", "the healed cluster did not stay well: %s", m)
	}
	c.compareLedgers()
}

// operator1 does what an operator would after the faults are over: a board that
// was distrusted while it lied is looked at and trusted again.
func (c *Cluster) operator1() {
	var distrusted []haven.HostID
	c.Ledger(func(s *ledger.State) {
		for _, id := range s.HostIDs() {
			if s.Hosts[id].Power.Distrust != "" {
				distrusted = append(distrusted, id)
			}
		}
	})
	c.rebootForgetful()
	for _, id := range distrusted {
		_ = c.Operate("/v1/hosts/"+string(id)+"/trust-bmc", client.Act{Reason: "the board is the right one"})
	}
}

// rebootForgetful reboots hosts whose agent lost its data directory with an order
// in it: the hold on such a VM asks for that.
func (c *Cluster) rebootForgetful() {
	var hosts []haven.HostID
	c.Ledger(func(s *ledger.State) {
		for _, vm := range s.VMs {
			if vm.Phase != ledger.PhaseOrdered || vm.Hold.Reason != haven.HoldOrderUnknown {
				continue
			}
			if h := s.Hosts[vm.Order.Target]; h != nil && h.State != vm.Order.TargetState && h.Boot == vm.Order.TargetBoot {
				hosts = append(hosts, h.ID)
			}
		}
	})
	for _, id := range hosts {
		h := c.Host(id)
		c.tell(true, h, "is rebooted by an operator")
		h.powerLost("rebooted")
		c.Sleep(time.Second)
		h.PowerOn()
		c.Sleep(c.s.BootTakes + Grace)
	}
}

// missing says what keeps the cluster from being well; empty when it is.
func (c *Cluster) missing() string {
	if c.Master() == nil {
		return "no master"
	}
	for _, h := range c.hosts {
		if !h.Up() {
			return fmt.Sprintf("the agent of %s is down", h.ID)
		}
	}
	why := ""
	say := func(format string, args ...any) {
		if why == "" {
			why = fmt.Sprintf(format, args...)
		}
	}
	type claim struct {
		vm      haven.VMID
		owner   haven.HostID
		desired ledger.Desired
	}
	var claims []claim
	c.Ledger(func(s *ledger.State) {
		for _, h := range c.hosts {
			reg := s.Hosts[h.ID]
			if reg == nil || reg.Boot != h.Boot() {
				say("%s is not registered in its present boot", h.ID)
			} else if reg.ProvedDead() {
				say("%s lives and is proved dead", h.ID)
			}
		}
		for _, in := range s.OpenIncidents() {
			say("incident %s is open, %s, hold %q %s", in.ID, in.Step, in.Hold.Reason, in.Hold.Detail)
		}
		for _, id := range s.VMIDs() {
			vm := s.VMs[id]
			if vm.Desired == ledger.DesiredRunning && vm.Phase != ledger.PhaseOwned {
				say("%s is %s, hold %q %s, freed %+v, order %+v", vm.Name, vm.Phase, vm.Hold.Reason, vm.Hold.Detail, vm.Freed, vm.Order)
			}
			claims = append(claims, claim{id, vm.Owner, vm.Desired})
		}
	})
	for _, cl := range claims {
		at := c.World.RunsOn(cl.vm)
		switch {
		case cl.desired == ledger.DesiredRunning && len(at) != 1:
			say("%s runs on %v, the ledger says on %s", shortVM(cl.vm), at, cl.owner)
		case cl.desired == ledger.DesiredRunning && at[0] != cl.owner:
			say("%s runs on %s, the ledger says on %s", shortVM(cl.vm), at[0], cl.owner)
		case cl.desired == ledger.DesiredStopped && len(at) > 0:
			say("%s was stopped by its user and runs on %v", shortVM(cl.vm), at)
		}
	}
	return why
}

// compareLedgers checks that all agents that applied the same entries have the
// same state.
func (c *Cluster) compareLedgers() {
	byIndex := map[uint64]string{}
	who := map[uint64]haven.HostID{}
	for _, h := range c.hosts {
		a := h.Agent()
		if a == nil {
			continue
		}
		var text string
		var index uint64
		a.Ledger().View(func(s *ledger.State, at ledger.Position) {
			data, err := json.Marshal(s)
			if err != nil {
				data = []byte(err.Error())
			}
			text, index = string(data), at.Index
		})
		if old, ok := byIndex[index]; ok && old != text {
			c.check.violate("P7", "the ledgers of %s and %s differ at entry %d", who[index], h.ID, index)
		}
		byIndex[index], who[index] = text, h.ID
	}
}

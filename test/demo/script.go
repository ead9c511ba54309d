package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/minicluster"
	"github.com/haven-ha/haven/internal/world"
)

// patience bounds each wait of the script: many times what it takes, so that
// only something that never comes is missed.
const patience = 2 * time.Minute

// lookEvery is how often the script looks.
const lookEvery = 50 * time.Millisecond

// player plays the script and holds the truth against what it should be.
type player struct {
	*demo
	out io.Writer
	// starts is how often each VM should have been started, by now.
	starts map[haven.VMID]int
}

// script plays two power cuts: of a slave's host and, when that is back, of the
// master's own.
func (d *demo) script(ctx context.Context, out io.Writer) error {
	p := &player{demo: d, out: out, starts: map[haven.VMID]int{}}
	for _, id := range d.vms {
		p.starts[id] = 1
	}
	if err := p.play(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nOK: all %d VMs run again, each exactly once.\n", len(d.vms))
	return nil
}

func (p *player) play(ctx context.Context) error {
	begun := time.Now()
	if err := p.until(ctx, "the cluster is whole", p.whole); err != nil {
		return err
	}
	st, err := p.status(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.out, "whole after %s: %s The master is %s.\n", round(time.Since(begun)), st.Sentence, st.Master)
	victim, err := p.slaveWithVMs(st.Master)
	if err != nil {
		return err
	}
	if err := p.cutPower(ctx, victim, "a slave"); err != nil {
		return err
	}
	if err := p.giveBack(ctx, victim); err != nil {
		return err
	}
	if st, err = p.status(ctx); err != nil {
		return err
	}
	master := p.cluster.Host(st.Master)
	if master == nil {
		return fmt.Errorf("the master, %q, is none of the hosts", st.Master)
	}
	return p.cutPower(ctx, master, "the master itself")
}

// giveBack gives a host its power back and waits until it has its place again,
// and until the definitions of the VMs that moved away are off it.
func (p *player) giveBack(ctx context.Context, h *minicluster.Host) error {
	begun := time.Now()
	if err := h.PowerOn(); err != nil {
		return err
	}
	if err := p.until(ctx, "the cluster is whole again with "+string(h.ID), p.whole); err != nil {
		return err
	}
	moved := 0
	for _, id := range p.vms {
		if p.starts[id] > 1 {
			moved++
		}
	}
	err := p.until(ctx, fmt.Sprintf("%s sets the definitions of %d VMs aside", h.ID, moved), func(context.Context) (string, error) {
		n := 0
		for _, e := range p.truth.since(begun) {
			if e.Kind == world.SetAside && e.Machine == h.ID {
				n++
			}
		}
		if n < moved {
			return fmt.Sprintf("it did so with %d", n), nil
		}
		return "", nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(p.out, "\n%s has power again, and its place after %s. It started nothing, and set the definitions of %d VMs aside.\n",
		h.ID, round(time.Since(begun)), moved)
	return nil
}

// slaveWithVMs picks the host with most VMs that is not the master.
func (p *player) slaveWithVMs(master haven.HostID) (*minicluster.Host, error) {
	var best *minicluster.Host
	most := 0
	for _, h := range p.cluster.Hosts() {
		if n := len(p.vmsOn(h.ID)); h.ID != master && n > most {
			best, most = h, n
		}
	}
	if best == nil {
		return nil, fmt.Errorf("no host but the master, %s, has VMs", master)
	}
	return best, nil
}

// vmsOn lists the VMs that really run on a host.
func (p *player) vmsOn(host haven.HostID) []haven.VMID {
	var all []haven.VMID
	for _, id := range p.vms {
		for _, at := range p.cluster.World.RunsOn(id) {
			if at == host {
				all = append(all, id)
			}
		}
	}
	return all
}

// cutPower cuts a host's power, waits until all is well, and prints how that
// came to be.
func (p *player) cutPower(ctx context.Context, victim *minicluster.Host, whose string) error {
	lost := p.vmsOn(victim.ID)
	for _, id := range lost {
		p.starts[id]++
	}
	fmt.Fprintf(p.out, "\nThe power of %s, %s with %d VMs, is cut.\n", victim.ID, whose, len(lost))
	r := &recovering{player: p, victim: victim.ID, cut: time.Now()}
	victim.PowerOff()
	err := p.until(ctx, fmt.Sprintf("the %d VMs of %s run elsewhere and its incident is closed", len(lost), victim.ID), r.over)
	r.timeline().print(p.out)
	return err
}

// until looks until it is so. The look returns why it is not so yet; an error
// ends the wait at once.
func (p *player) until(ctx context.Context, what string, look func(context.Context) (string, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	why := ""
	for {
		if err := p.truthHolds(); err != nil {
			return err
		}
		now, err := look(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("waiting until %s: %w", what, err)
		case now == "":
			return p.truthHolds()
		case ctx.Err() == nil: // The last look was cut short otherwise.
			why = now
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("waited %s in vain until %s: %s", patience, what, why)
			}
			return errors.New("interrupted")
		}
	}
}

// truthHolds says what must never be: a VM that runs twice, or was started more
// often than was right.
func (p *player) truthHolds() error {
	var errs []error
	for _, v := range p.cluster.World.Violations() {
		errs = append(errs, errors.New(v))
	}
	for _, id := range p.vms {
		if n := p.cluster.World.Starts(id); n > p.starts[id] {
			errs = append(errs, fmt.Errorf("VM %s was started %d times; %d would be right", id, n, p.starts[id]))
		}
	}
	return errors.Join(errs...)
}

// notOnce says which VM does not run exactly once, as it should by now.
func (p *player) notOnce() string {
	for _, id := range p.vms {
		if at := p.cluster.World.RunsOn(id); len(at) != 1 || p.cluster.World.Starts(id) != p.starts[id] {
			return fmt.Sprintf("VM %s runs on %v and was started %d times of %d", id, at, p.cluster.World.Starts(id), p.starts[id])
		}
	}
	return ""
}

// whole says why the cluster is not whole yet: every path of every host is
// alive, every VM is protected and runs, and nothing is held.
func (p *player) whole(ctx context.Context) (string, error) {
	st, err := p.status(ctx)
	switch {
	case err != nil:
		return err.Error(), nil
	case st.Stale || st.Master == "":
		return "no master", nil
	case !st.Healthy || st.Incidents > 0 || st.VMs != len(p.vms):
		return fmt.Sprintf("%s (%d incidents, %d protected VMs)", st.Sentence, st.Incidents, st.VMs), nil
	}
	var hosts []client.Host
	var raft client.Raft
	var vms []client.VM
	if err := errors.Join(p.get(ctx, "/v1/hosts", &hosts), p.get(ctx, "/v1/raft", &raft), p.get(ctx, "/v1/vms", &vms)); err != nil {
		return err.Error(), nil
	}
	for _, h := range hosts {
		for name, path := range map[string]client.PathView{"network": h.Network, "storage": h.Storage, "helper": h.Helper} {
			if path.State != "alive" {
				return fmt.Sprintf("the %s path of %s is %s: %s", name, h.Host, path.State, path.Why), nil
			}
		}
		if h.Verdict != haven.VerdictHealthy || !h.Connected || h.Refuses != "" || h.Hold.Reason != "" || h.Power.State != "on" || !h.PowerTrusted || h.PowerGUID == "" {
			return fmt.Sprintf("%s is %s, power %s (%s) %s %s", h.Host, h.Verdict, h.Power.State, h.Power.Why, h.Refuses, h.Hold.Detail), nil
		}
	}
	for _, vm := range vms {
		if vm.Phase != "owned" || vm.State != haven.VMRunning || vm.Hold.Reason != "" {
			return fmt.Sprintf("%s is %s, %s, %s", vm.Name, vm.Phase, vm.State, vm.Hold.Detail), nil
		}
	}
	voters := 0
	for _, s := range raft.Servers {
		if s.Voter {
			voters++
		}
	}
	if want := min(5, (len(hosts)-1)|1); voters < want {
		return fmt.Sprintf("%d of %d Raft voters", voters, want), nil
	}
	return p.notOnce(), nil
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }

package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/recovery"
)

// errNoDevice is returned for a host that has no fence device.
var errNoDevice = errors.New("no fence device is configured")

// performFence takes a host's ladder once: all devices of one level must prove
// the host off.
func (a *Agent) performFence(ctx context.Context, m *mastery, act recovery.Fence, d *recovery.Done) {
	ladder := a.rungs(act.Host)
	if len(ladder) == 0 {
		d.Err = errNoDevice
		return
	}
	leave, err := a.power.enter(act.Host)
	if err != nil {
		d.Err = err
		return
	}
	defer leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.owned.Go(func() { a.untilProved(ctx, act); cancel() })
	out, err := fencing.ExecuteClimb(ctx, fencing.DefaultClimbPolicy(), ladder, func(ctx context.Context) error { return a.mayFence(ctx, m, act) })
	if d.Detail = out.Detail; err != nil {
		d.Err = err
		return
	}
	if !out.Proved {
		d.Err = &unproved{out}
		return
	}
	d.Proof = &haven.Proof{
		Kind: proofOf(a.d.Fences[act.Host][out.Level]), Host: act.Host, Boot: act.Boot, By: string(a.d.Host), At: time.Now(), Detail: out.Detail,
	}
}

// proofOf is what an off of all devices of a level proves: that the host is off, or
// that it is cut off its storage, and may run on.
func proofOf(level []FenceDevice) haven.ProofKind {
	if slices.ContainsFunc(level, func(dev FenceDevice) bool { return !dev.Storage }) {
		return haven.ProofPowerOff
	}
	return haven.ProofDevice
}

// unproved is the end of a climb that proved nothing: what each device said.
type unproved struct{ fencing.ClimbOutcome }

func (e *unproved) Error() string { return e.Detail }
func (e *unproved) Unwrap() error { return e.Err }

// rungs is the ladder of a host as it is climbed.
func (a *Agent) rungs(host haven.HostID) [][]fencing.Rung {
	var ladder [][]fencing.Rung
	for _, level := range a.d.Fences[host] {
		var rungs []fencing.Rung
		for _, dev := range level {
			rungs = append(rungs, fencing.Rung{
				Name: dev.Name, Policy: a.fencePolicy(dev),
				Driver: meeting{a.power.gate.Fence(dev.Key, dev.Driver), func(g fencing.GUID) { a.power.meet(dev.Key, g) }},
				Trusted: func(first fencing.Reading) (bool, string) {
					return a.power.trusted(dev.Key, first, a.ledgerDistrust(host))
				},
				Read: func(r fencing.Reading) { a.power.take(host, dev.Key, r) },
				Log:  a.log.With("host", host, "device", dev.Name),
			})
		}
		ladder = append(ladder, rungs)
	}
	return ladder
}

// levelMates finds the other devices of each device's level.
func levelMates(fences map[haven.HostID][][]FenceDevice) map[string][]string {
	mates := map[string][]string{}
	for _, ladder := range fences {
		for _, level := range ladder {
			for _, d := range level {
				for _, o := range level {
					if o.Key != d.Key && !o.Storage {
						mates[d.Key] = append(mates[d.Key], o.Key)
					}
				}
			}
		}
	}
	return mates
}

// matesOff finds, for an off of one device, those of the other devices of its
// level that were read at the same time, in sessions that overlap. It returns the
// first device of which there is none.
func (p *power) matesOff(all []reading, off reading) (mates []reading, missing string) {
	for _, mate := range p.mates[off.device] {
		i := slices.IndexFunc(all, func(r reading) bool {
			return r.device == mate && r.State == haven.PowerOff && !r.Start.After(off.Finish) && !r.Finish.Before(off.Start)
		})
		if i < 0 {
			return nil, mate
		}
		mates = append(mates, all[i])
	}
	return mates, ""
}

func (p *power) missingMate(all []reading, off reading) string {
	_, missing := p.matesOff(all, off)
	return missing
}

// withMates says whether an off counts for the host: of a host with two power
// supplies the one may be off while it lives by the other (P2). Each other device
// of the level must have been read off at the same time, and be trusted as well.
func (p *power) withMates(all []reading, off reading, ledgerDistrust string) (bool, string) {
	mates, missing := p.matesOff(all, off)
	if missing != "" {
		return false, "the other device of its level, " + missing + ", does not say off at the same time"
	}
	for _, r := range mates {
		if ok, why := p.trusted(r.device, r.Reading, ledgerDistrust); !ok {
			return false, "the other device of its level, " + r.device + ": " + why
		}
	}
	return true, "all devices of its level say off"
}

// turnOnLimit bounds a power-on: a board behind a power strip needs a minute and
// more to start.
const turnOnLimit = 3 * time.Minute

// performPowerOn switches a host on whose boot is proved dead.
func (a *Agent) performPowerOn(ctx context.Context, m *mastery, act recovery.PowerOn, d *recovery.Done) {
	ladder := a.rungs(act.Host)
	if len(ladder) == 0 {
		d.Err = errNoDevice
		return
	}
	leave, err := a.power.enter(act.Host)
	if err != nil {
		d.Err = err
		return
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, turnOnLimit)
	defer cancel()
	d.Detail, d.Err = fencing.TurnOn(ctx, ladder, func(ctx context.Context) error { return a.mayTurnOn(ctx, m, act) })
}

// mayTurnOn is asked right before a power-on leaves: this agent must lead, the
// ledger must still ask for it, and nobody may hold it back.
func (a *Agent) mayTurnOn(ctx context.Context, m *mastery, act recovery.PowerOn) error {
	if err := a.verified(ctx, m); err != nil {
		return err
	}
	stands := false
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		in, h := s.Incidents[act.Incident], s.Hosts[act.Host]
		stands = in != nil && in.Open() && in.SwitchingOn() && h != nil && h.Boot == act.Boot && h.ProvedDead() &&
			h.Maintenance == nil && s.Disarm == nil
	})
	if !stands {
		return errors.New("the ledger does not ask for it any more")
	}
	if why := a.wrongDevice(act.Host); why != "" {
		return errors.New("a device seems to be another host's: " + why)
	}
	return nil
}

// performBlink makes a host's identify light blink.
func (a *Agent) performBlink(ctx context.Context, m *mastery, act recovery.Blink, d *recovery.Done) {
	ladder := a.rungs(act.Host)
	if len(ladder) == 0 {
		d.Err = errNoDevice
		return
	}
	leave, err := a.power.enter(act.Host)
	if err != nil {
		d.Err = err
		return
	}
	defer leave()
	d.Detail, d.Err = fencing.Blink(ctx, ladder, nil, func(ctx context.Context) error { return a.verified(ctx, m) })
}

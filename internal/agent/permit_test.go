package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/notify"
	"github.com/haven-ha/haven/internal/recovery"
)

// supply is a device that is on, until it is told to be off.
type supply struct {
	guid fencing.GUID
	off  bool
	sent int
}

func (b *supply) Power(context.Context) (fencing.Reading, error) {
	state := haven.PowerOn
	if b.off {
		state = haven.PowerOff
	}
	return fencing.Reading{State: state, GUID: b.guid, Start: time.Now(), Finish: time.Now()}, nil
}

func (b *supply) Set(ctx context.Context, _ haven.FenceAction, permit fencing.Permit) error {
	if err := permit.Check(ctx); err != nil {
		return err
	}
	b.sent++
	b.off = true
	return nil
}

func (b *supply) Identity(context.Context) (fencing.GUID, error) { return b.guid, nil }

// Right before a power command what stands against it is looked at once more: that
// another host's board answers, which shows in this very fence (P2), and that an
// operator put the host into maintenance while it was going on.
func TestFenceIsAskedOnceMore(t *testing.T) {
	const uuidA, uuidB = "a1234567-89ab-cdef-a123-456789abcd01", "b1234567-89ab-cdef-a123-456789abcd02"
	for _, tt := range []struct {
		name string
		guid fencing.GUID
		then ledger.Command
		want string // in the refusal; empty when it goes out
	}{
		{name: "its own board", guid: "a123456789abcdefa123456789abcd01"},
		{name: "another host's board", guid: "b123456789abcdefa123456789abcd02", want: "is the UUID " + uuidB},
		{name: "maintenance", guid: "a123456789abcdefa123456789abcd01", then: ledger.SetMaintenance{Host: "a", On: true, By: "maria", At: time.Now()}, want: "does not ask for it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := &supply{guid: tt.guid}
			fences := map[haven.HostID][][]FenceDevice{"a": {{{Name: "bmc", Key: "ka", Address: "ka", Driver: b}}}}
			a := &Agent{d: Deps{Fences: fences}, cfg: config.Default(config.ProfileNormal), power: newPower(fences), ledger: ledger.NewStore(), log: slog.New(slog.DiscardHandler)}
			index := uint64(0)
			apply := func(cmds ...ledger.Command) {
				t.Helper()
				data, err := ledger.Encode(cmds...)
				if err != nil {
					t.Fatal(err)
				}
				index++
				errs, ok := a.ledger.Apply(index, 1, data).([]error)
				if err := errors.Join(errs...); err != nil || !ok {
					t.Fatal(err)
				}
			}
			now := time.Now()
			entry := ledger.Entry{At: now, Term: haven.Term{Generation: 1, Term: 1}, By: "m"}
			apply(ledger.Found{Cluster: "c", Generation: 1, By: "m", At: now},
				ledger.RegisterHost{Host: "a", Boot: "a1", State: "s", Incarnation: 1, UUID: uuidA},
				ledger.RegisterHost{Host: "b", Boot: "b1", State: "s", Incarnation: 1, UUID: uuidB},
				ledger.OpenIncident{ID: "i", Host: "a", Boot: "a1", Verdict: haven.VerdictFailed, Entry: entry},
				ledger.NoteIncident{ID: "i", Step: haven.StepConfirmed, Verdict: haven.VerdictFailed, Entry: entry},
				ledger.BeginFence{ID: "i", Attempt: ledger.FenceAttempt{N: 1, Action: haven.ActionOff, Term: entry.Term, By: "m", BegunAt: now}})
			if tt.then != nil {
				apply(tt.then)
			}
			j := &judged{at: now, hosts: map[haven.HostID]int{"a": 0}, boots: map[haven.HostID]haven.BootID{"a": "a1"}}
			j.out.Hosts = []detector.Judgement{{Host: "a", Verdict: haven.VerdictFailed, FenceAllowed: true}}
			a.judgement.Store(j)
			act := recovery.Fence{Incident: "i", N: 1, Host: "a", Boot: "a1"}
			out, err := fencing.ExecuteClimb(t.Context(), fencing.DefaultClimbPolicy(), a.rungs("a"), func(context.Context) error { return a.fenceStands(act) })
			if err != nil {
				t.Fatal(err)
			}
			if tt.want == "" {
				if b.sent != 1 {
					t.Errorf("%d commands: %s", b.sent, out.Detail)
				}
				return
			}
			if b.sent > 0 || !errors.Is(out.Err, fencing.ErrNotPermitted) || !strings.Contains(out.Detail, tt.want) {
				t.Errorf("%d commands, %v, want %q: %s", b.sent, out.Err, tt.want, out.Detail)
			}
		})
	}
}

// A device that cuts a host off its storage proves just that: what it says is no
// reading of the power, and no lie while the host lives on (P2); the proof is named
// for what it is; and no operator gives the host its disks back before it booted (P1).
func TestStorageIsNoPower(t *testing.T) {
	b, bmc := &supply{}, &supply{}
	fences := map[haven.HostID][][]FenceDevice{"a": {{{Name: "scsi", Key: "ks", Address: "ks", Driver: b, Storage: true}, {Name: "bmc", Key: "kb", Address: "kb", Driver: bmc}}}}
	p := newPower(fences)
	at := time.Now().Add(-time.Minute)
	p.alive("a", []string{"ks", "kb"}, "a1", at)
	for _, key := range []string{"ks", "kb"} {
		p.take("a", key, fencing.Reading{State: haven.PowerOn, Start: at, Finish: at})
	}
	for i := range 3 {
		now := at.Add(time.Duration(10+i) * time.Second)
		p.take("a", "ks", fencing.Reading{State: haven.PowerOff, Start: now, Finish: now})
		p.alive("a", []string{"ks", "kb"}, "a1", now.Add(time.Duration(5*i)*time.Second))
	}
	if _, why := p.learned([]string{"ks", "kb"}); why != "" {
		t.Errorf("it is taken for a liar: %s", why)
	}
	for _, r := range p.detectorReadings("a", "m", at.Add(-time.Hour), ledger.PowerTrust{}, func(at time.Time) time.Duration { return 0 }) {
		if r.Device == "ks" {
			t.Errorf("the detector is told of its storage: %+v", r)
		}
	}
	if ok, why := p.trusted("ks", fencing.Reading{Start: time.Now()}, ""); !ok {
		t.Errorf("it is not trusted: %s", why)
	}
	if off := (reading{fencing.Reading{State: haven.PowerOff}, "kb", 1}); p.missingMate(nil, off) != "" {
		t.Error("an off of the board waits for a word of the storage")
	}
	scsi, power := FenceDevice{Storage: true}, FenceDevice{}
	for want, level := range map[haven.ProofKind][]FenceDevice{haven.ProofDevice: {scsi, scsi}, haven.ProofPowerOff: {scsi, power}} {
		if got := proofOf(level); got != want {
			t.Errorf("%d devices prove %s, want %s", len(level), got, want)
		}
	}
	for _, kind := range []haven.ProofKind{haven.ProofDevice, haven.ProofPowerOff} {
		a := &Agent{d: Deps{Fences: fences, Host: "m"}, power: newPower(fences), ledger: ledger.NewStore()}
		entry := ledger.Entry{At: at, Term: haven.Term{Generation: 1, Term: 1}, By: "m"}
		data, err := ledger.Encode(ledger.Found{Cluster: "c", Generation: 1, By: "m", At: at}, ledger.RegisterHost{Host: "a", Boot: "a1", State: "s", Incarnation: 1},
			ledger.OpenIncident{ID: "i", Host: "a", Boot: "a1", Verdict: haven.VerdictFailed, Entry: entry},
			ledger.ProveDead{ID: "i", Entry: entry, Proof: haven.Proof{Kind: kind, Host: "a", Boot: "a1", By: "m", At: at}})
		if err != nil {
			t.Fatal(err)
		}
		if errs, ok := a.ledger.Apply(1, 1, data).([]error); !ok || errors.Join(errs...) != nil {
			t.Fatal(errs)
		}
		if err := a.mayOperate("a", haven.ActionOn, client.Act{By: "maria"}); (err != nil) != (kind == haven.ProofDevice) {
			t.Errorf("on after a proof of kind %s: %v", kind, err)
		}
	}
}

// What an operator only looks at is told as well, to those who want to know.
func TestLooksAreTold(t *testing.T) {
	e := looked(client.FenceAnswer{Host: "a", Action: haven.ActionTest, Devices: []client.DeviceWord{{Device: "bmc", Power: haven.PowerOn}, {Device: "strip", Failed: "auth"}}}, "maria")
	if e.Severity != notify.Info || e.Kind != notify.KindOperator || e.Host != "a" || e.Text != "test of a, for maria: bmc: on, strip: auth" {
		t.Errorf("%+v", e)
	}
}

// slow is a device that takes its time.
type slow struct {
	*supply
	takes time.Duration
}

func (d slow) Power(ctx context.Context) (fencing.Reading, error) {
	t := time.NewTimer(d.takes)
	defer t.Stop()
	select {
	case <-t.C:
		return d.supply.Power(ctx)
	case <-ctx.Done():
		return fencing.Reading{State: haven.PowerUnknown}, fmt.Errorf("%w: no answer", fencing.ErrUnreachable)
	}
}

// Nobody is told that a device failed because an operator's question ended before
// the device's own time, or because a fence came first.
func TestWhatSaysNothingAboutADevice(t *testing.T) {
	for _, tt := range []struct {
		name  string
		takes time.Duration
		fence bool
	}{
		{name: "it is slow, and within its time", takes: 12 * time.Second},
		{name: "a fence comes first", takes: 4 * time.Second, fence: true},
		{name: "it answers", takes: time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dev := FenceDevice{Name: "bmc", Key: "ka", Address: "ka", Driver: slow{&supply{}, tt.takes}, Session: 25 * time.Second}
				a, n := telling()
				a.cfg = &config.Config{Hosts: map[haven.HostID]config.Host{"a": {ID: "a"}}}
				a.d.Fences = map[haven.HostID][][]FenceDevice{"a": {{dev}}}
				a.power, a.ledger = newPower(a.d.Fences), ledger.NewStore()
				a.reign.Store(&mastery{})
				if tt.fence {
					go func() {
						time.Sleep(time.Second)
						_, _ = a.power.gate.Fence(dev.Key, dev.Driver).Power(t.Context())
					}()
				}
				w := a.readDevices(t.Context(), "a")[0]
				synctest.Wait()
				if len(n.events) > 0 {
					t.Errorf("told: %+v", n.events)
				}
				if (w.Failed == "") != (tt.takes == time.Second) {
					t.Errorf("the operator is told %+v", w)
				}
				time.Sleep(time.Minute) // The fence's reading ends.
			})
		})
	}
}

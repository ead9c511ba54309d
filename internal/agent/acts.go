package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/api"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/ledger"
)

func (a *Agent) arm(armed bool) func(context.Context, *api.Call, client.Act) error {
	return func(ctx context.Context, _ *api.Call, q client.Act) error {
		return a.commitOne(ctx, ledger.SetArmed{Armed: armed, Now: !armed && q.Now, By: q.By, Reason: q.Reason, At: time.Now()})
	}
}

// maintenance puts a host into maintenance, or ends that.
func (a *Agent) maintenance(on bool) func(context.Context, *api.Call, client.Act) error {
	return func(ctx context.Context, c *api.Call, q client.Act) error {
		id, err := a.namedHost(c)
		if err != nil {
			return err
		}
		return a.commitOne(ctx, ledger.SetMaintenance{Host: id, On: on, By: q.By, Reason: q.Reason, At: time.Now()})
	}
}

// commitOne commits a command for an operator, who wants to know why when the
// ledger does not take it.
func (a *Agent) commitOne(ctx context.Context, cmds ...ledger.Command) error {
	errs, err := a.commit(ctx, cmds...)
	if err != nil {
		return err
	}
	a.kick()
	for _, e := range errs {
		if e != nil {
			return &client.Error{Problem: client.Problem{Title: "refused", Status: http.StatusConflict, Detail: e.Error()}}
		}
	}
	return nil
}

func refused(format string, args ...any) error {
	return &client.Error{Problem: client.Problem{Title: "refused", Status: http.StatusConflict, Detail: fmt.Sprintf(format, args...)}}
}

func (a *Agent) namedHost(c *api.Call) (haven.HostID, error) {
	id := haven.HostID(c.Path("host"))
	if _, ok := a.cfg.Host(id); !ok {
		return "", fmt.Errorf("host %q: %w", id, haven.ErrNotFound)
	}
	return id, nil
}

// confirmDead takes an operator's word that a host is off (P2). While anything
// shows life it is refused, unless it is forced.
func (a *Agent) confirmDead(ctx context.Context, c *api.Call, q client.Act) error {
	id, err := a.namedHost(c)
	if err != nil {
		return err
	}
	if q.By == api.ByLocal {
		return badRequest(errors.New("an operator's word is a proof by name, and root is nobody's name: use --by NAME"))
	}
	j, _ := a.judgement.Load().host(id)
	var incident haven.IncidentID
	var boot haven.BootID
	open, kept := false, false
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		if h := s.Hosts[id]; h != nil {
			boot, incident = h.Boot, h.Incident
			open = incident != ""
			kept = h.ProvedDead() && h.Maintenance != nil && h.Maintenance.Keeps == h.Boot
		}
	})
	if kept {
		// It is proved dead already; what is missing is the word that this was not on
		// purpose, or that its VMs need not wait.
		return a.commitOne(ctx, ledger.SetMaintenance{Host: id, LetGo: true, By: q.By, Reason: q.Reason, At: time.Now()})
	}
	if !q.Force {
		if err := a.mayCallDead(id); err != nil {
			return err
		}
	}
	if boot == "" {
		return refused("host %s never took part in the cluster", id)
	}
	m := a.reign.Load()
	if m == nil {
		return haven.ErrNotMaster
	}
	now := time.Now()
	entry := ledger.Entry{At: now, Term: m.term, By: a.d.Host, What: fmt.Sprintf("%s says%s that the host is off: %s", q.By, map[bool]string{true: ", and forces it,"}[q.Force], q.Reason), Evidence: j.Evidence}
	var cmds []ledger.Command
	if !open {
		incident = haven.IncidentID(fmt.Sprintf("%s-%s-confirm", now.UTC().Format("0102-150405"), id))
		cmds = append(cmds, ledger.OpenIncident{ID: incident, Host: id, Boot: boot, Verdict: j.Verdict, Entry: entry})
	}
	cmds = append(cmds, ledger.ProveDead{
		ID: incident, Entry: entry, Manual: a.manualRelease(id), Force: q.Force,
		Proof: haven.Proof{Kind: haven.ProofOperator, Host: id, Boot: boot, By: q.By, At: now, Detail: q.Reason, Evidence: j.Evidence},
	})
	return a.commitOne(ctx, cmds...)
}

// mayCallDead refuses while anything shows life of a host. The verdict alone is
// not enough: it is unknown, too, when this master does not trust itself.
func (a *Agent) mayCallDead(id haven.HostID) error {
	if j, judgedBefore := a.judgement.Load().host(id); judgedBefore {
		switch j.Verdict {
		case haven.VerdictFailed, haven.VerdictDead, haven.VerdictUnknown, haven.VerdictSuspect:
		default:
			return refused("host %s is %s: %s; when you are certain that it is off, use --force", id, j.Verdict, j.Why)
		}
	}
	if rep, _ := a.ev.view(id); rep != nil && time.Since(rep.at) <= a.connectedFor() {
		return refused("the agent of host %s reports; when you are certain that the host is off, use --force", id)
	}
	for _, snap := range a.snapshots() {
		if hv := snap.Host(id); hv.Agent.Moving == haven.Yes || hv.Helper.Moving == haven.Yes {
			return refused("host %s writes beats on store %s; when you are certain that it is off, use --force", id, snap.Store)
		}
	}
	return nil
}

// releaseFenced lets a host that was fenced be given VMs again.
func (a *Agent) releaseFenced(ctx context.Context, c *api.Call, q client.Act) error {
	id, err := a.namedHost(c)
	if err != nil {
		return err
	}
	var fenced *ledger.Fenced
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		if h := s.Hosts[id]; h != nil {
			fenced = h.Fenced
		}
	})
	if fenced == nil {
		return refused("host %s does not wait for a release", id)
	}
	return a.commitOne(ctx, ledger.ReleaseFenced{Host: id, Incident: fenced.Incident, By: q.By, Reason: q.Reason, At: time.Now()})
}

// viewActs lists what operators did about power, the latest first.
func (a *Agent) viewActs(bool) (any, error) {
	out := []client.FenceAct{}
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		for _, act := range slices.Backward(s.Acts) {
			out = append(out, client.FenceAct{At: act.At, Action: act.Action, Host: act.Host, By: act.By, Reason: act.Reason, Force: act.Force})
		}
	})
	return out, nil
}

// releaseHost says that a host need not be waited for after a restore.
func (a *Agent) releaseHost(ctx context.Context, c *api.Call, q client.Act) error {
	id, err := a.namedHost(c)
	if err != nil {
		return err
	}
	return a.commitOne(ctx, ledger.ReleaseHost{Host: id, By: q.By, At: time.Now()})
}

// trustPower clears the distrust of a host's BMC.
func (a *Agent) trustPower(ctx context.Context, c *api.Call, q client.Act) error {
	id, err := a.namedHost(c)
	if err != nil {
		return err
	}
	var clears uint64
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		if h := s.Hosts[id]; h != nil {
			clears = h.Power.Cleared + 1
		}
	})
	return a.commitOne(ctx, ledger.LearnPower{Host: id, By: q.By, Reason: q.Reason, At: time.Now(), Clears: clears})
}

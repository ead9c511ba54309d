package agent

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/cluster"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/recovery"
)

func (a *Agent) viewMembers() client.Members {
	master, _ := a.master()
	out := client.Members{Cluster: a.cfg.Cluster, Self: a.d.Host, Master: master, Term: a.term(), HealthScore: a.cluster.Health().Score}
	for _, m := range a.cluster.Members() {
		conf, _ := a.cfg.Host(m.Host)
		v := client.Member{
			Host: m.Host, State: string(m.State), Since: client.MillisOf(m.Age), Left: m.Leave, Role: conf.Role, Zone: conf.Zone,
			Master: m.Host == master, Voter: m.Meta.Voter, Boot: m.Meta.Boot, Stranger: string(m.Stranger),
		}
		if m.Addr.IsValid() {
			v.Address = m.Addr.String()
		} else if conf.Address.IsValid() {
			v.Address = hostPort(conf.Address, a.cfg.Gossip.Port)
		}
		out.Members = append(out.Members, v)
	}
	return out
}

func (a *Agent) viewRaft() client.Raft {
	st := a.election.Status()
	out := client.Raft{
		Self: a.d.Host, State: st.State, Leader: st.Leader.Host, Term: st.Term, Generation: a.ledger.Generation(),
		LastIndex: st.LastIndex, CommitIndex: st.CommitIndex, AppliedIndex: st.AppliedIndex, Snapshot: st.SnapshotIndex,
		Servers: []client.RaftServer{},
	}
	for _, s := range st.Servers {
		v := client.RaftServer{ID: string(s.ID), Host: s.Host, Address: s.Address, Voter: s.Voter, Leader: s.ID == st.Leader.Server}
		if s.ContactMS >= 0 {
			ms := client.Millis(s.ContactMS)
			v.LastContact = &ms
		}
		out.Servers = append(out.Servers, v)
	}
	return out
}

func (a *Agent) viewReady() (any, error) {
	master, ok := a.master()
	switch {
	case !ok:
		return nil, fmt.Errorf("no master is known: %w", haven.ErrUnavailable)
	case a.d.Hypervisor != nil && !a.told():
		return nil, fmt.Errorf("the master has not taken this host yet: %w", haven.ErrUnavailable)
	}
	return map[string]string{"status": "ready", "master": string(master)}, nil
}

func (a *Agent) viewStatus() client.Status {
	master, _ := a.master()
	st := client.Status{
		Cluster: a.cfg.Cluster, Self: a.d.Host, Master: master, Term: a.term(), Version: a.d.Version, Armed: true,
		Hosts: len(a.cfg.Hosts), Stale: !a.isMaster(),
	}
	j := a.judgement.Load()
	if j != nil {
		for _, h := range j.out.Holds {
			st.Holds = append(st.Holds, a.holdOf(h))
		}
		for _, h := range j.out.Hosts {
			if h.Verdict == haven.VerdictHealthy {
				st.HostsUp++
			}
		}
	}
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		if d := s.Disarm; d != nil {
			st.Armed, st.DisarmedBy, st.DisarmedAt, st.DisarmReason = false, d.By, d.At, d.Reason
			st.DisarmPending = recovery.Finishing(s.DisarmPending())
		}
		st.Held = append(heldViews(recovery.Holds(s, st.Holds), time.Now()), a.heldHosts(s, j)...)
		st.Incidents = len(s.OpenIncidents())
		for _, vm := range s.VMs {
			if vm.Desired != ledger.DesiredRunning {
				continue
			}
			st.VMs++
			if vm.Phase == ledger.PhaseOwned && a.stateOf(vm) == haven.VMRunning {
				st.VMsUp++
			}
		}
	})
	if h, ok := a.selfHold(); ok {
		st.Holds = append([]haven.Hold{h}, st.Holds...)
	}
	st.Sentence, st.Healthy = sentence(st)
	st.Local = a.viewSelf()
	if own := a.selfSentence(st.Local); own != "" {
		st.Sentence, st.Healthy = own, false
	}
	return st
}

// heldViews lists holds for people: VMs that are held for one reason are one.
func heldViews(all []recovery.Held, now time.Time) []client.Held {
	var out []client.Held
	vms := map[string]int{}
	for _, h := range all {
		age := client.Millis(0)
		if !h.Hold.Since.IsZero() {
			age = client.MillisOf(max(0, now.Sub(h.Hold.Since)))
		}
		if i, seen := vms[h.Hold.Reason]; seen && h.Of == recovery.HeldVM {
			v := &out[i]
			v.Count++
			v.Age = max(v.Age, age)
			if len(v.VMs) < 5 {
				v.VMs = append(v.VMs, h.Name)
			}
			continue
		}
		v := client.Held{Of: h.Of, Host: h.Host, Hold: h.Hold, Age: age, Release: recovery.Releases(h.Hold.Reason)}
		switch h.Of {
		case recovery.HeldVM:
			vms[h.Hold.Reason] = len(out)
			v.VMs, v.Count, v.Host = []string{h.Name}, 1, ""
		case recovery.HeldIncident:
			v.Incident = haven.IncidentID(h.ID)
		}
		out = append(out, v)
	}
	return out
}

// heldHosts lists the hosts that are given no VMs by an operator's word, or because
// they flap.
func (a *Agent) heldHosts(s *ledger.State, j *judged) (out []client.Held) {
	now := time.Now()
	held := func(host haven.HostID, hold haven.Hold) {
		out = append(out, client.Held{
			Of: "host", Host: host, Hold: hold, Age: client.MillisOf(max(0, now.Sub(hold.Since))), Release: recovery.Releases(hold.Reason),
		})
	}
	for _, id := range s.HostIDs() {
		if m := s.Hosts[id].Maintenance; m != nil {
			held(id, haven.Hold{Reason: haven.HoldMaintenance, Detail: "by " + m.By + " " + m.Reason, Since: m.At})
		}
		if h, ok := j.host(id); ok && h.Flapping && h.Quarantine.Held() {
			held(id, a.holdOf(h.Quarantine))
		}
	}
	return out
}

// viewBrakes shows what the ledger has that holds a host back.
func viewBrakes(v *client.Host, s *ledger.State, h *ledger.Host) {
	if m := h.Maintenance; m != nil {
		v.Maintenance = &client.Maintenance{By: m.By, At: m.At, Reason: m.Reason, Keeps: m.Keeps != ""}
	}
	if f := h.Fenced; f != nil {
		v.Fenced = &client.Fenced{Incident: f.Incident, Proof: f.Proof, At: f.At}
		v.Quarantine = fmt.Sprintf("it was fenced in incident %s; it is given no VMs until 'haven fence release %s'", f.Incident, h.ID)
	}
	v.UUID, v.WrongDevice = h.UUID, h.Power.Blocked()
	if in := s.Incidents[h.Incident]; in != nil && v.Hold.Reason == "" {
		v.Hold = in.Hold
	}
}

// viewDecisions lists the latest changes of a host's verdict, the latest first.
func (a *Agent) viewDecisions(id haven.HostID) (any, error) {
	if _, ok := a.cfg.Host(id); !ok {
		return nil, fmt.Errorf("host %q: %w", id, haven.ErrNotFound)
	}
	out := []client.Decision{}
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		for _, d := range slices.Backward(s.Decisions) {
			if d.Host == id {
				out = append(out, client.Decision{
					At: d.At, Term: d.Term, By: d.By, Host: d.Host, Boot: d.Boot, From: d.From, To: d.To, Why: d.Why, Evidence: d.Evidence, LeftOut: d.LeftOut,
				})
			}
		}
	})
	return out, nil
}

// sentence says how the cluster is, the worst first.
func sentence(st client.Status) (string, bool) {
	switch {
	case st.Stale:
		return "The master cannot be reached from here; what follows may be old.", false
	case !st.Armed && st.DisarmPending != "":
		return fmt.Sprintf("Recovery is disarmed by %s; pending: %s.", st.DisarmedBy, st.DisarmPending), false
	case !st.Armed:
		return fmt.Sprintf("Recovery is disarmed by %s: nothing will be fenced or started.", st.DisarmedBy), false
	case len(st.Holds) > 0:
		return fmt.Sprintf("Nothing will be fenced now: %s.", st.Holds[0].Detail), false
	case st.VMsUp < st.VMs:
		return fmt.Sprintf("%d of %d protected VMs run; %d of %d hosts are healthy.", st.VMsUp, st.VMs, st.HostsUp, st.Hosts), false
	case st.HostsUp < st.Hosts:
		return fmt.Sprintf("All %d protected VMs run; %d of %d hosts are healthy.", st.VMs, st.HostsUp, st.Hosts), false
	}
	return fmt.Sprintf("All %d hosts are healthy and all %d protected VMs run.", st.Hosts, st.VMs), true
}

// stateOf is what the owner's latest report says of a VM.
func (a *Agent) stateOf(vm *ledger.VM) haven.VMState {
	rep, _ := a.ev.view(vm.Owner)
	if rep == nil || rep.Boot != vm.OwnerBoot || time.Since(rep.at) > a.connectedFor() {
		return haven.VMUnknown
	}
	if info, ok := rep.inventory.Find(vm.ID); ok {
		return info.State
	}
	if rep.inventory.Complete {
		return haven.VMShutOff
	}
	return haven.VMUnknown
}

func (a *Agent) viewHosts() []client.Host {
	out := []client.Host{}
	now := time.Now()
	j := a.judgement.Load()
	members := a.memberTable()
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		owned := map[haven.HostID]int{}
		for _, vm := range s.VMs {
			if vm.Phase != ledger.PhaseFreed && vm.Desired == ledger.DesiredRunning {
				owned[vm.Owner]++
			}
		}
		for _, id := range a.cfg.HostIDs() {
			conf, _ := a.cfg.Host(id)
			distrust := ""
			v := client.Host{Host: id, Role: conf.Role, Zone: conf.Zone, Address: conf.Address.String(), Verdict: haven.VerdictUnknown, VMs: owned[id]}
			if jh, ok := j.host(id); ok {
				v.Verdict, v.VerdictAge, v.Explanation = jh.Verdict, client.MillisOf(a.at(now)-jh.Since), jh.Why
				v.Missing, v.Hold, v.Evidence, v.Left = jh.Missing, a.holdOf(jh.Hold), jh.Evidence, jh.Left
				if jh.Flapping {
					v.Quarantine = cmp.Or(jh.Quarantine.Detail, haven.HoldFlapping)
				}
			}
			if h := s.Hosts[id]; h != nil {
				v.Registered, v.Boot, v.Incident, distrust = true, h.Boot, h.Incident, h.Power.Doubted()
				viewBrakes(&v, s, h)
				v.Devices = a.viewDevices(id, h.Power, now)
				v.PowerGUID = h.Power.GUID
				v.Watchdog = a.hostWatchdog(j, h)
				if h.ProvedDead() {
					v.Proof = h.Proof
				}
				if rep, _ := a.ev.view(id); rep != nil {
					v.Connected = now.Sub(rep.at) <= a.connectedFor() && s.Knows(id, rep.Boot, rep.State)
					v.Load, v.Refuses = rep.Load, rep.Refuses
				}
			}
			a.viewPaths(&v, members[id], distrust, now)
			out = append(out, v)
		}
	})
	return out
}

// viewPaths shows each path of evidence of a host by itself.
func (a *Agent) viewPaths(v *client.Host, m cluster.Member, distrust string, now time.Time) {
	v.Network = client.PathView{State: string(m.State), Age: client.MillisOf(m.Age), Why: "by gossip"}
	if rep, _ := a.ev.view(v.Host); rep != nil {
		age := now.Sub(rep.at)
		v.Network = client.PathView{State: "alive", Age: client.MillisOf(age), Why: "it reports"}
		if age > a.cfg.Detection.SuspectAfter {
			v.Network.State, v.Network.Why = "silent", "its reports stopped"
		}
	}
	if v.Host == a.d.Host {
		v.Network = client.PathView{State: "alive", Why: "it is the one that answers"}
	}
	v.Storage, v.Helper = client.PathView{State: "none"}, client.PathView{State: "none"}
	for _, snap := range a.snapshots() {
		hv := snap.Host(v.Host)
		v.Storage = betterPath(v.Storage, beatPath(hv.Agent.Moving, hv.Agent.Age, hv.Agent.Why, snap.Store))
		v.Helper = betterPath(v.Helper, beatPath(hv.Helper.Moving, hv.Helper.Age, hv.Helper.Why, snap.Store))
	}
	v.Power = client.PathView{State: "none", Why: "no fence device is configured"}
	if len(a.d.Fences[v.Host]) > 0 {
		v.Power = a.power.path(v.Host, now)
		a.viewTrust(v, distrust, now)
	}
}

// viewTrust shows whether an off of a host's devices would be a proof.
func (a *Agent) viewTrust(v *client.Host, distrust string, now time.Time) {
	v.PowerTrusted = true
	for _, key := range a.deviceKeys(v.Host) {
		if ok, why := a.power.vouches(v.Host, key, distrust, now); !ok {
			v.PowerTrusted = false
			v.Power.Why += "; an off would be no proof now: " + why
		}
	}
}

func beatPath(moving haven.Tri, age time.Duration, why, store string) client.PathView {
	p := client.PathView{State: "unknown", Age: client.MillisOf(age), Why: store + ": " + why}
	switch moving {
	case haven.Yes:
		p.State = "alive"
	case haven.No:
		p.State = "stale"
	case haven.Unknown:
	}
	return p
}

// betterPath prefers the path that shows more life.
func betterPath(a, b client.PathView) client.PathView {
	rank := []string{"none", "unknown", "stale", "alive"}
	if slices.Index(rank, b.State) > slices.Index(rank, a.State) {
		return b
	}
	return a
}

func (a *Agent) viewVMs() []client.VM {
	out := []client.VM{}
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		for _, id := range s.VMIDs() {
			vm := s.VMs[id]
			v := client.VM{
				VM: id, Name: vm.Name, Protected: true, Desired: string(vm.Desired), Phase: string(vm.Phase), Owner: vm.Owner,
				Epoch: vm.Epoch, State: a.stateOf(vm), MemoryMiB: vm.MemoryMiB, VCPUs: vm.VCPUs, Hold: vm.Hold, Incident: vm.Incident,
			}
			if vm.Order != nil {
				v.Order = vm.Order.Status
			}
			if vm.Freed != nil && vm.Phase == ledger.PhaseFreed {
				v.Why = fmt.Sprintf("waits for a host: %s (%s)", vm.Freed.By, vm.Freed.Detail)
			}
			out = append(out, v)
		}
		out = append(out, a.unprotected(s)...)
	})
	return out
}

// unprotected lists the VMs that hosts report and the ledger does not have.
func (a *Agent) unprotected(s *ledger.State) []client.VM {
	var out []client.VM
	for _, host := range s.HostIDs() {
		rep, _ := a.ev.view(host)
		if rep == nil {
			continue
		}
		for _, info := range rep.inventory.VMs {
			if s.VMs[info.ID] != nil {
				continue
			}
			v := client.VM{VM: info.ID, Name: info.Name, Owner: host, State: info.State, MemoryMiB: info.MemoryMiB, VCPUs: info.VCPUs}
			switch {
			case !info.Persistent:
				v.Why = "it is transient: nothing is left of its definition when its host dies"
			case info.State != haven.VMRunning:
				v.Why = "it does not run"
			default:
				v.Why = "its definition is not in the ledger yet"
			}
			out = append(out, v)
		}
	}
	return out
}

func (a *Agent) viewIncidents() []client.Incident {
	out := []client.Incident{}
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		for _, in := range s.Incidents {
			v := incidentView(s, in)
			v.Timeline, v.Recording = nil, a.recording(in.ID)
			out = append(out, v)
		}
	})
	slices.SortFunc(out, func(x, y client.Incident) int { return y.OpenedAt.Compare(x.OpenedAt) })
	return out
}

func (a *Agent) viewIncident(id haven.IncidentID) (v client.Incident, err error) {
	err = fmt.Errorf("incident %q: %w", id, haven.ErrNotFound)
	a.ledger.View(func(s *ledger.State, _ ledger.Position) {
		if in := s.Incidents[id]; in != nil {
			v, err = incidentView(s, in), nil
			v.Recording = a.recording(id)
		}
	})
	return v, err
}

func incidentView(s *ledger.State, in *ledger.Incident) client.Incident {
	v := client.Incident{
		ID: in.ID, Host: in.Host, Boot: in.Boot, Step: in.Step, Verdict: in.Verdict, Hold: in.Hold,
		SuspectedAt: in.SuspectedAt, OpenedAt: in.OpenedAt, ClosedAt: in.ClosedAt, Outcome: in.Outcome, Proof: in.Proof,
		Dropped: in.Dropped, Response: in.Response,
	}
	for _, f := range in.Attempts {
		v.Attempts = append(v.Attempts, client.FenceAttempt{
			N: f.N, Action: f.Action, By: f.By, BegunAt: f.BegunAt, EndedAt: f.EndedAt, Proved: f.Proved, Detail: f.Detail,
		})
	}
	for _, e := range in.Timeline {
		v.Timeline = append(v.Timeline, client.TimelineEntry{At: e.At, Term: e.Term, By: e.By, Step: e.Step, What: e.What, Evidence: e.Evidence})
	}
	for _, id := range in.VMs {
		vm := s.VMs[id]
		if vm == nil {
			continue
		}
		iv := client.IncidentVM{VM: id, Name: vm.Name, Phase: string(vm.Phase), Owner: vm.Owner, Epoch: vm.Epoch, Hold: vm.Hold}
		if o := vm.Order; o != nil && o.Incident == in.ID {
			iv.OrderedAt, iv.Status, iv.ReportedAt, iv.Explanation = o.CommittedAt, o.Status, o.ReportedAt, o.Detail
		}
		v.VMs = append(v.VMs, iv)
	}
	return v
}

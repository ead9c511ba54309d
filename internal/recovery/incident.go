package recovery

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/ledger"
)

// host takes one host's trouble a step further.
func (m *Machine) host(s *ledger.State, h *ledger.Host) {
	view, judged := m.in.Hosts[h.ID]
	judged = judged && view.Boot == h.Boot
	if view.Verdict != haven.VerdictHealthy {
		delete(m.healthy, h.ID)
	} else if m.healthy[h.ID].IsZero() {
		m.healthy[h.ID] = m.now
	}
	if !trouble(view.Verdict) {
		delete(m.troubled, h.ID)
	} else if m.troubled[h.ID].IsZero() {
		m.troubled[h.ID] = m.now
	}
	if view.Verdict != haven.VerdictStorageLost {
		delete(m.lost, h.ID)
	} else if m.lost[h.ID].IsZero() {
		m.lost[h.ID] = m.now
	}
	in := s.Incidents[h.Incident]
	if in == nil {
		if judged && !h.ProvedDead() {
			m.openIncident(s, h, view)
		}
		return
	}
	switch in.Step {
	case haven.StepSuspected, haven.StepConfirmed, haven.StepFencing:
		if judged {
			m.pursue(s, h, in, view)
		}
	case haven.StepProved, haven.StepPlacing, haven.StepRestarting, haven.StepClosed: // see settleAll
	}
}

// settleAll takes the incidents with a proof further. A host that came back may
// have several: its old ones are open until the VMs they freed run again.
func (m *Machine) settleAll(s *ledger.State) {
	for _, in := range s.OpenIncidents() {
		switch in.Step {
		case haven.StepProved, haven.StepPlacing, haven.StepRestarting:
			m.settle(s, in)
		case haven.StepSuspected, haven.StepConfirmed, haven.StepFencing, haven.StepClosed:
		}
	}
}

// openIncident begins an incident when the verdict deserves one.
func (m *Machine) openIncident(s *ledger.State, h *ledger.Host, view HostView) {
	if !trouble(view.Verdict) {
		return
	}
	// It counts from the first verdict that this master saw: a new master may have
	// been the one that was cut off before, and a host that lost its storage only
	// is never suspected.
	lasted := m.now.Sub(m.troubled[h.ID])
	if !view.Verdict.Actionable() && lasted < m.cfg.ReportAfter {
		m.wake(m.cfg.ReportAfter - lasted)
		return
	}
	id := m.incidentID(s, h)
	m.propose(ledger.OpenIncident{
		ID: id, Host: h.ID, Boot: h.Boot, Verdict: view.Verdict, SuspectedAt: m.now.Add(-view.SuspectedFor),
		Entry: m.entry(view.Evidence, "%s after %s of suspicion: %s", view.Verdict, round(view.SuspectedFor), view.Explanation),
	})
	m.notice(Notice{Kind: "incident-opened", Alarm: true, Host: h.ID, Incident: id, Text: fmt.Sprintf("%s: %s", view.Verdict, view.Explanation)})
	m.judge(h, &ledger.Incident{ID: id, Host: h.ID, Boot: h.Boot, Step: haven.StepSuspected, Verdict: view.Verdict}, view)
}

// trouble says whether a verdict is worth an incident.
func trouble(v haven.Verdict) bool {
	switch v {
	case haven.VerdictHealthy, haven.VerdictUnknown, haven.VerdictStopped, haven.VerdictShutdown:
		return false
	case haven.VerdictSuspect, haven.VerdictStorageLost, haven.VerdictIsolated, haven.VerdictPartitioned,
		haven.VerdictAgentDown, haven.VerdictUnreachable, haven.VerdictFailed, haven.VerdictDead:
	}
	return true
}

// incidentID makes a name that is short enough to be typed: day, time, host.
func (m *Machine) incidentID(s *ledger.State, h *ledger.Host) haven.IncidentID {
	base := haven.IncidentID(fmt.Sprintf("%s-%s", m.now.UTC().Format("0102-150405"), h.ID))
	id := base
	for n := 2; s.Incidents[id] != nil; n++ {
		id = haven.IncidentID(fmt.Sprintf("%s-%d", base, n))
	}
	return id
}

// pursue takes an incident without proof further.
func (m *Machine) pursue(s *ledger.State, h *ledger.Host, in *ledger.Incident, view HostView) {
	m.recount(in, view)
	proof, proved := m.proofs[in.ID]
	if proved {
		m.propose(proof)
		m.wake(time.Millisecond)
	}
	if attempt, pending := in.Pending(); pending {
		if end, ok := m.ended[in.ID]; ok && end.N == attempt.N {
			m.end(end)
			return
		}
		if view.Verdict == haven.VerdictDead {
			m.prove(h, in, view)
			return
		}
		if m.proveByTime(h, in, view) {
			return
		}
		// An attempt that this master did not begin was its predecessor's. Fencing
		// reads the power state first, so that beginning again repeats nothing.
		m.begin(Fence{Incident: in.ID, N: attempt.N, Host: in.Host, Boot: in.Boot})
		return
	}
	if proved {
		return
	}
	if view.Verdict == haven.VerdictHealthy {
		m.returned(h, in)
		return
	}
	if view.Verdict != in.Verdict {
		m.propose(ledger.NoteIncident{
			ID: in.ID, Verdict: view.Verdict, Step: m.backTo(in, view),
			Entry: m.entry(view.Evidence, "now %s: %s", view.Verdict, view.Explanation),
		})
		m.notice(Notice{Kind: "verdict-changed", Host: h.ID, Incident: in.ID, About: string(view.Verdict), Text: fmt.Sprintf("%s: %s", view.Verdict, view.Explanation)})
	}
	if m.proveByTime(h, in, view) {
		return
	}
	m.judge(h, in, view)
	m.respond(s, h, in, view)
	if view.Verdict == haven.VerdictFailed && in.Step != haven.StepSuspected {
		m.fence(s, h, in, view)
	}
}

// backTo says whether a change of verdict takes an incident back: a host that
// shows life before anything was done to it is only suspected.
func (m *Machine) backTo(in *ledger.Incident, view HostView) haven.Step {
	if in.Step == haven.StepConfirmed && !view.Verdict.Actionable() {
		return haven.StepSuspected
	}
	return ""
}

// judge confirms an incident whose verdict is actionable, or says what holds it.
func (m *Machine) judge(h *ledger.Host, in *ledger.Incident, view HostView) {
	switch view.Verdict {
	case haven.VerdictDead:
		m.prove(h, in, view)
	case haven.VerdictFailed:
		if in.Step == haven.StepSuspected {
			m.propose(ledger.NoteIncident{
				ID: in.ID, Step: haven.StepConfirmed, Verdict: view.Verdict,
				Entry: m.entry(view.Evidence, "confirmed: %s", view.Explanation),
			})
			m.wake(time.Millisecond)
		}
	default:
		if !m.responds(h, view) {
			m.hold(in, view.Hold)
		}
	}
}

// prove records that the BMC's readings prove the host off.
func (m *Machine) prove(h *ledger.Host, in *ledger.Incident, view HostView) {
	if in.Step == haven.StepSuspected {
		m.propose(ledger.NoteIncident{ID: in.ID, Step: haven.StepConfirmed, Verdict: view.Verdict})
	}
	m.propose(ledger.ProveDead{
		ID: in.ID,
		Proof: haven.Proof{
			Kind: haven.ProofPowerOff, Host: h.ID, Boot: h.Boot, By: string(m.in.Self), At: m.now,
			Detail: view.Explanation, Evidence: view.Evidence,
		},
		Entry: m.entry(view.Evidence, "proved dead: %s", view.Explanation), Manual: m.cfg.ManualRelease[h.ID],
	})
	m.notice(Notice{Kind: "host-proved-dead", Alarm: true, Host: h.ID, Incident: in.ID, Text: view.Explanation})
	m.wake(time.Millisecond)
}

// proveByTime records that the host's watchdog must have reset it, beside whatever
// its devices say meanwhile: the first proof wins. Only a host that is dead on
// every path is taken for reset: any sign of life says that the count is wrong.
func (m *Machine) proveByTime(h *ledger.Host, in *ledger.Incident, view HostView) bool {
	if _, proved := m.proofs[in.ID]; proved || view.Fired == nil || view.Fired.Boot != h.Boot || view.Fired.Host != h.ID || view.Verdict != haven.VerdictFailed {
		return false
	}
	if in.Step == haven.StepSuspected {
		m.propose(ledger.NoteIncident{ID: in.ID, Step: haven.StepConfirmed, Verdict: view.Verdict})
	}
	proof := *view.Fired
	m.propose(ledger.ProveDead{ID: in.ID, Proof: proof, Entry: m.entry(proof.Evidence, "proved dead: %s", proof.Detail), Manual: m.cfg.ManualRelease[in.Host]})
	m.notice(Notice{Kind: "host-proved-dead", Alarm: true, Host: h.ID, Incident: in.ID, Text: proof.Detail})
	m.wake(time.Millisecond)
	return true
}

// orConfirm ends what a hold says with what may still come, and what an operator
// can do.
func orConfirm(host haven.HostID, view HostView) string {
	return fmt.Sprintf("%s%s haven fence confirm %s --reason \"how you know\" --by NAME", cmp.Or(view.Watchdog, "its watchdog is not armed"), ifOff, host)
}

// ifOff follows what a hold says of the watchdog, and aboutDog begins that.
const (
	ifOff    = "; if it is off, say so:"
	aboutDog = "its watchdog"
)

// recountEvery is the least time between two corrections of a hold: each is an entry
// in the log.
const recountEvery = 5 * time.Second

// recount corrects what a hold says of the watchdog when that is so no more: nobody
// is to wait for a proof that cannot come, or to confirm what proves itself soon (P9).
func (m *Machine) recount(in *ledger.Incident, view HostView) {
	head, tail, found := strings.Cut(in.Hold.Detail, ifOff)
	at := strings.LastIndex(head, aboutDog)
	if !found || at < 0 || !strings.HasPrefix(view.Watchdog, aboutDog) || head[at:] == view.Watchdog {
		return
	}
	if last, ok := m.recounted[in.ID]; ok && m.now.Sub(last) < recountEvery {
		m.wake(recountEvery - m.now.Sub(last))
		return
	}
	m.recounted[in.ID] = m.now
	hold := in.Hold
	hold.Detail = head[:at] + view.Watchdog + ifOff + tail
	m.propose(ledger.NoteIncident{ID: in.ID, Hold: &hold, Entry: m.entry(nil, "")})
}

// returned ends the incident of a host that has been healthy for long enough.
func (m *Machine) returned(h *ledger.Host, in *ledger.Incident) {
	if left := m.cfg.ReturnAfter - m.now.Sub(m.healthy[h.ID]); left > 0 {
		m.wake(left)
		return
	}
	outcome := "host is healthy again"
	if len(in.Attempts) > 0 {
		outcome = "host is healthy again; fencing was given up"
	}
	m.propose(ledger.CloseIncident{ID: in.ID, Outcome: outcome, Entry: m.entry(nil, "closed: %s", outcome)})
	m.notice(Notice{Kind: "incident-closed", Host: h.ID, Incident: in.ID, Text: outcome})
}

// hold records why an incident does not go on, once for each reason.
func (m *Machine) hold(in *ledger.Incident, hold haven.Hold) {
	if in.Hold.Reason == hold.Reason {
		return
	}
	if hold.Reason != "" {
		hold.Since = m.now
	}
	note := ledger.NoteIncident{ID: in.ID, Hold: &hold, Entry: m.entry(nil, "")}
	if hold.Reason != "" {
		note.Entry = m.entry(nil, "held, %s: %s", hold.Reason, hold.Detail)
		m.notice(Notice{Kind: "held", Alarm: true, Host: in.Host, Incident: in.ID, About: hold.Reason, Text: hold.Reason + ": " + hold.Detail})
	}
	m.propose(note)
}

// end says that an attempt is over.
func (m *Machine) end(e ledger.EndFence) {
	m.propose(e)
	m.wake(time.Millisecond)
}

// fence decides a power-off, unless something forbids it.
func (m *Machine) fence(s *ledger.State, h *ledger.Host, in *ledger.Incident, view HostView) {
	if hold := m.brake(s, h, in, view); hold.Reason != "" {
		m.hold(in, hold)
		if hold.Reason == haven.HoldActionNone && h.Role != haven.RoleWitness {
			m.blink(in)
		}
		return
	}
	if r, ok := m.blocked[in.ID]; ok && m.now.Before(r.after) {
		m.wake(r.after.Sub(m.now))
		return
	}
	m.propose(ledger.BeginFence{ID: in.ID, Attempt: ledger.FenceAttempt{
		N: in.NextAttempt(), Action: haven.ActionOff, Term: m.in.Term, By: m.in.Self, BegunAt: m.now,
	}, Manual: m.cfg.ManualRelease[h.ID]})
	m.notice(Notice{Kind: "fencing", Alarm: true, Host: h.ID, Incident: in.ID, About: fmt.Sprint(in.NextAttempt()), Text: "power-off decided: " + view.Explanation})
	m.wake(time.Millisecond)
}

// brake returns what forbids a power command about this host now (P6).
func (m *Machine) brake(s *ledger.State, h *ledger.Host, in *ledger.Incident, view HostView) haven.Hold {
	if s.Disarm != nil {
		return disarmed(s)
	}
	if h.Maintenance != nil {
		return maintenance(h)
	}
	if len(m.in.Brakes) > 0 {
		return m.in.Brakes[0]
	}
	if view.Hold.Reason != "" {
		return view.Hold
	}
	if view.NoFence != "" {
		return haven.Hold{Reason: haven.HoldObserver, Detail: view.NoFence}
	}
	if h.Role == haven.RoleWitness {
		return haven.Hold{Reason: haven.HoldActionNone, Detail: "it is a witness: it runs no VMs, and nothing is won by powering it off"}
	}
	switch m.action(h.ID) {
	case haven.ActionOff, haven.ActionReboot:
	case haven.ActionBlink:
		return haven.Hold{Reason: haven.HoldActionNone, Detail: fmt.Sprintf("fencing.action is blink for this host: its identify light is made to blink, and nothing else; %s", orConfirm(h.ID, view))}
	case haven.ActionNone, haven.ActionOn, haven.ActionStatus, haven.ActionTest:
		fallthrough
	default:
		return haven.Hold{Reason: haven.HoldActionNone, Detail: fmt.Sprintf("fencing.action is none for this host; %s", orConfirm(h.ID, view))}
	}
	if hold := wrongDevice(h); hold.Reason != "" {
		return hold
	}
	if !m.cfg.Devices[h.ID] {
		return haven.Hold{Reason: haven.HoldNoDevice, Detail: fmt.Sprintf("no fence device is configured; %s", orConfirm(h.ID, view))}
	}
	return m.capped(s, in, view)
}

// capped asks the limit on power-downs. Going on with a host that was counted
// already is not another power-down.
func (m *Machine) capped(s *ledger.State, in *ledger.Incident, view HostView) haven.Hold {
	may, whose := m.cfg.Cap.Allow(m.now, m.fences(s, ""), in.ID, in.Host), ""
	if limit := m.hostCap(in.Host); may.Allowed && limit.Count > 0 {
		may, whose = limit.Allow(m.now, m.fences(s, in.Host), in.ID, in.Host), "of this host, "
	}
	if may.Allowed {
		return haven.Hold{}
	}
	if !may.Until.IsZero() {
		m.wake(may.Until.Sub(m.now))
	}
	return haven.Hold{Reason: haven.HoldCap, Detail: fmt.Sprintf(
		"%s%s; it goes on by itself when the limit allows; %s", whose, may.Why, orConfirm(in.Host, view))}
}

// hostCap is the limit on power-downs of one host.
func (m *Machine) hostCap(host haven.HostID) fencing.Limit {
	if limit, ok := m.cfg.HostCaps[host]; ok {
		return limit
	}
	return m.cfg.HostCap
}

// fences is the history of power-downs, of all hosts or of one.
func (m *Machine) fences(s *ledger.State, of haven.HostID) []fencing.FenceRecord {
	history := make([]fencing.FenceRecord, 0, len(s.Fences))
	add := func(r fencing.FenceRecord) {
		if of == "" || of == r.Host {
			history = append(history, r)
		}
	}
	for _, f := range s.Fences {
		add(fencing.FenceRecord{Host: f.Host, Incident: f.Incident, At: f.At})
	}
	for _, c := range m.out.Commands { // decided a moment ago
		if b, ok := c.(ledger.BeginFence); ok {
			add(fencing.FenceRecord{Host: s.Incidents[b.ID].Host, Incident: b.ID, At: b.Attempt.BegunAt})
		}
	}
	return history
}

// provedFirst is how an attempt ends whose host was proved dead otherwise.
const provedFirst = "another proof came first"

// fenced takes in the end of a fence attempt.
func (m *Machine) fenced(s *ledger.State, act Fence, d Done) {
	in := s.Incidents[act.Incident]
	if in == nil || !in.Open() {
		return
	}
	detail := d.Detail
	if d.Err != nil {
		detail = d.Err.Error()
	}
	if in.Proof != nil && !proves(in, d) {
		detail = provedFirst
	}
	m.ended[in.ID] = ledger.EndFence{ID: in.ID, N: act.N, Proved: proves(in, d), Detail: detail, At: m.now}
	if in.Proof != nil || m.keepProof(s, act, d) {
		return
	}
	r := m.blocked[in.ID]
	r.n++
	r.after = m.now.Add(fencePause(r.n))
	m.blocked[in.ID] = r
	hold := haven.Hold{Reason: haven.HoldFenceBlocked, Since: m.now, Detail: fmt.Sprintf(
		"%s; next attempt in %s; %s", detail, fencePause(r.n), orConfirm(in.Host, m.in.Hosts[in.Host]))}
	m.propose(ledger.NoteIncident{ID: in.ID, Hold: &hold, Entry: m.entry(nil, "held, %s: %s", hold.Reason, hold.Detail)})
	m.notice(Notice{Kind: "fence-blocked", Alarm: true, Host: in.Host, Incident: in.ID, Text: hold.Detail})
}

// proves says whether a fence brought a proof about the boot of an incident.
func proves(in *ledger.Incident, d Done) bool {
	return d.Proof != nil && d.Proof.Boot == in.Boot && d.Proof.Host == in.Host
}

// keepProof takes what a fence proved, if it did, and keeps it until the ledger
// has it. A proof is about a boot, not about an attempt: it counts whoever began
// the fence.
func (m *Machine) keepProof(s *ledger.State, act Fence, d Done) bool {
	in := s.Incidents[act.Incident]
	if in == nil || !in.Open() || in.Proof != nil || !proves(in, d) {
		return false
	}
	m.proofs[in.ID] = ledger.ProveDead{
		ID: in.ID, Proof: *d.Proof, Entry: m.entry(d.Proof.Evidence, "proved dead: %s", d.Proof.Detail), Manual: m.cfg.ManualRelease[in.Host],
	}
	m.notice(Notice{Kind: "host-proved-dead", Alarm: true, Host: in.Host, Incident: in.ID, Text: d.Proof.Detail})
	return true
}

// fencePause grows from 10 s to 5 minutes: long enough for a BMC that restarts,
// short enough for an operator who is watching.
func fencePause(n int) time.Duration {
	return min(5*time.Minute, 10*time.Second<<min(n-1, 5))
}

// settle follows the VMs of a proved incident until each runs again.
func (m *Machine) settle(s *ledger.State, in *ledger.Incident) {
	if attempt, pending := in.Pending(); pending {
		// While it is at work its end is awaited.
		if _, flies := m.flying[Fence{Host: in.Host}.Key()]; !flies {
			end, ok := m.ended[in.ID]
			if !ok || end.N != attempt.N {
				end = ledger.EndFence{ID: in.ID, N: attempt.N, Detail: provedFirst, At: m.now}
			}
			m.end(end)
		}
		return
	}
	waiting, ordered, running := 0, 0, 0
	for _, id := range in.VMs {
		vm := s.VMs[id]
		switch {
		case vm == nil:
		case vm.Phase == ledger.PhaseOwned:
			running++
		case vm.Incident != in.ID || vm.Desired != ledger.DesiredRunning: // it is another incident's, or nobody's
		case vm.Phase == ledger.PhaseFreed:
			waiting++
		default:
			ordered++
		}
	}
	switchesOn := m.powerOn(s, in, waiting, ordered)
	switch {
	case waiting+ordered == 0 && switchesOn:
	case waiting+ordered == 0:
		outcome := fmt.Sprintf("all %d VMs run again", len(in.VMs))
		switch {
		case len(in.VMs) == 0:
			outcome = "it ran no protected VMs"
		case running < len(in.VMs):
			outcome = fmt.Sprintf("%d of %d VMs run again; the others were lost once more, or given up by their users", running, len(in.VMs))
		}
		m.propose(ledger.CloseIncident{ID: in.ID, Outcome: outcome, Entry: m.entry(nil, "closed: %s", outcome)})
		m.notice(Notice{Kind: "incident-closed", Host: in.Host, Incident: in.ID, Text: outcome})
	case waiting > 0 && in.Step != haven.StepPlacing:
		m.propose(ledger.NoteIncident{ID: in.ID, Step: haven.StepPlacing, Entry: m.entry(nil, "%d VMs want a host", waiting)})
	case waiting == 0 && in.Step != haven.StepRestarting:
		m.propose(ledger.NoteIncident{ID: in.ID, Step: haven.StepRestarting, Entry: m.entry(nil, "%d VMs are being started", ordered)})
	}
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }

package recovery

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/ledger"
)

// What a hold can be of.
const (
	HeldCluster  = "cluster"
	HeldIncident = "incident"
	HeldVM       = "vm"
	HeldHost     = "host" // that was fenced: it is given no VMs
)

// Held is one hold, of whatever.
type Held struct {
	Of   string // HeldCluster, HeldIncident, HeldVM or HeldHost
	ID   string // of the incident, VM or host
	Host haven.HostID
	Name string // of the VM
	Hold haven.Hold
}

// Holds lists everything that is held: by the brakes and the operator in the
// whole cluster, and each incident and VM.
func Holds(s *ledger.State, brakes []haven.Hold) []Held {
	var all []Held
	if d := s.Disarm; d != nil {
		all = append(all, Held{Of: HeldCluster, Hold: disarmed(s)})
	}
	if hold := generation(s); hold.Reason != "" {
		all = append(all, Held{Of: HeldCluster, Hold: hold})
	}
	for _, b := range brakes {
		all = append(all, Held{Of: HeldCluster, Hold: b})
	}
	for _, in := range s.OpenIncidents() {
		if in.Hold.Reason != "" {
			all = append(all, Held{Of: HeldIncident, ID: string(in.ID), Host: in.Host, Hold: in.Hold})
		}
	}
	for _, id := range s.HostIDs() {
		for _, hold := range []haven.Hold{AwaitsRelease(s.Hosts[id]), wrongDevice(s.Hosts[id])} {
			if hold.Reason != "" {
				all = append(all, Held{Of: HeldHost, ID: string(id), Host: id, Hold: hold})
			}
		}
	}
	for _, id := range s.VMIDs() {
		if vm := s.VMs[id]; vm.Hold.Reason != "" {
			all = append(all, Held{Of: HeldVM, ID: string(id), Host: vm.Owner, Name: vm.Name, Hold: vm.Hold})
		}
	}
	return all
}

// AwaitsRelease is the hold of a host that was fenced and not released. While it
// is away there is nothing to be released.
func AwaitsRelease(h *ledger.Host) haven.Hold {
	if h.Fenced == nil || h.ProvedDead() {
		return haven.Hold{}
	}
	return haven.Hold{
		Reason: haven.HoldRelease, Since: h.RegisteredAt,
		Detail: fmt.Sprintf("it is back after it was fenced in incident %s (%s); it is given no VMs until 'haven fence release %s'", h.Fenced.Incident, h.Fenced.Proof, h.ID),
	}
}

// wrongDevice is the hold of a host of which a fence device seems to be another
// host's: nothing is powered off on a guess (P2).
func wrongDevice(h *ledger.Host) haven.Hold {
	why := h.Power.Blocked()
	if why == "" {
		return haven.Hold{}
	}
	return haven.Hold{Reason: haven.HoldIdentity, Detail: fmt.Sprintf(
		"%s; nothing is powered off on a guess: 'haven host trust-bmc %s' when the device is its own, 'haven fence confirm %s' when the host is off", why, h.ID, h.ID)}
}

// disarmed is the hold that an operator's disarm makes.
func disarmed(s *ledger.State) haven.Hold {
	d := s.Disarm
	detail := d.By + " disarmed recovery"
	if d.Reason != "" {
		detail += " (" + d.Reason + ")"
	}
	if incidents, orders := s.DisarmPending(); len(incidents)+len(orders) > 0 {
		detail += "; pending: " + Finishing(incidents, orders)
	}
	return haven.Hold{Reason: haven.HoldDisarmed, Detail: detail + "; 'haven arm' ends it", Since: d.At}
}

// Finishing says what is being finished before a disarm takes effect.
func Finishing(incidents []haven.IncidentID, orders []haven.VMID) string {
	var parts []string
	if len(incidents) > 0 {
		parts = append(parts, fmt.Sprintf("incident %s is being finished", joined(incidents)))
	}
	if len(orders) > 0 {
		parts = append(parts, fmt.Sprintf("%d VMs are being started", len(orders)))
	}
	return strings.Join(parts, ", ")
}

func joined[T ~string](ids []T) string {
	words := make([]string, len(ids))
	for i, id := range ids {
		words[i] = string(id)
	}
	return strings.Join(words, ", ")
}

// generation is the hold after a restore of the ledger.
func generation(s *ledger.State) haven.Hold {
	awaited := s.AwaitedHosts()
	if len(awaited) == 0 {
		return haven.Hold{}
	}
	return haven.Hold{Reason: haven.HoldGeneration, Detail: fmt.Sprintf("after the restore of the ledger no word yet from %v; 'haven host release' lets one go", awaited)}
}

// Releases says what ends a hold, for people.
func Releases(reason string) string {
	switch reason {
	case haven.HoldDisarmed:
		return "'haven arm'"
	case haven.HoldMaintenance:
		return "'haven maintenance off', or 'haven fence confirm' when the host is off"
	case haven.HoldGrace:
		return "the end of the start-up grace"
	case haven.HoldObserver:
		return "a master that reaches a majority, reads its own beat back and keeps its own time"
	case haven.HoldMassFailure:
		return "fewer hosts that are bad at once; 'haven maintenance on' for those that are known to be down"
	case haven.HoldStorageOutage:
		return "a reader that sees its own and another host's beat again"
	case haven.HoldCap:
		return "the window of fencing.limit; 'haven fence confirm' when the host is off"
	case haven.HoldFenceBlocked, haven.HoldNoDevice, haven.HoldActionNone:
		return "a proof that the host is off: by a device, or by 'haven fence confirm'; or the host's return"
	case haven.HoldContradiction:
		return "beats that stop, or a BMC that says on; 'haven host trust-bmc' when the board is the right one"
	case haven.HoldMigrating:
		return "word from both ends of the migration"
	case haven.HoldMaybeElsewhere:
		return "word from every host named, or the proof that it is dead"
	case haven.HoldCapacity:
		return "memory that becomes free on a host"
	case haven.HoldNoHost:
		return "a host that may run it and takes VMs"
	case haven.HoldOrderUnknown:
		return "word from the target, or the proof that it is dead"
	case haven.HoldRunsTwice:
		return "an operator who stops the wrong copy"
	case haven.HoldNeedsOperator:
		return "an operator"
	case haven.HoldNoDefinition:
		return "the VM's host, which has the definition"
	case haven.HoldGeneration:
		return "word from every host named, or 'haven host release'"
	case haven.HoldFlapping:
		return "the host's calm"
	case haven.HoldIdentity:
		return "a device that says who it is and fits, or 'haven host trust-bmc'; 'haven fence confirm' when the host is off"
	case haven.HoldRelease:
		return "'haven fence release'"
	case haven.HoldStoppedRunning:
		return "the owner's word that the VM is gone, or the proof that the owner is dead"
	}
	return ""
}

// holdKey names a hold across steps.
type holdKey struct{ of, id, reason string }

// heldFor is what this master remembers of a hold.
type heldFor struct {
	held    Held
	since   time.Time
	alarmed time.Time
}

// watchHolds tells people of holds that begin, end and last. What begins and ends
// is in the time lines of incidents as well; this is for the log, and for the
// holds that have no time line.
func (m *Machine) watchHolds(s *ledger.State) {
	now := map[holdKey]bool{}
	for _, h := range Holds(s, m.in.Brakes) {
		key := holdKey{h.Of, h.ID, h.Hold.Reason}
		now[key] = true
		memo := m.held[key]
		if memo == nil {
			// The stamp is of whoever was master then; it only ever makes a hold older.
			since := m.now
			if at := h.Hold.Since; !at.IsZero() && at.Before(since) {
				since = at
			}
			memo = &heldFor{since: since}
			m.held[key] = memo
			m.holdBegins(h, memo.since)
		}
		memo.held = h
	}
	for _, key := range slices.SortedFunc(maps.Keys(m.held), compareKeys) {
		if !now[key] {
			m.holdOver(m.held[key])
			delete(m.held, key)
		}
	}
	m.alarmHolds()
}

// holdBegins tells of a hold that has no time line.
func (m *Machine) holdBegins(h Held, since time.Time) {
	switch {
	case h.Of == HeldHost && h.Hold.Reason == haven.HoldIdentity:
		m.notice(Notice{Kind: "fence-device-mismatch", Alarm: true, Host: h.Host, About: begun("", since), Text: h.Hold.Detail})
	case h.Of == HeldHost:
		m.notice(Notice{Kind: "awaits-release", Alarm: true, Host: h.Host, About: begun("", since), Text: h.Hold.Detail})
	case h.Of == HeldCluster:
		m.notice(Notice{Kind: "brake-holds", Alarm: h.Hold.Reason != haven.HoldGrace, About: begun(h.Hold.Reason, since), Text: h.Hold.Reason + ": " + h.Hold.Detail})
	}
}

func compareKeys(a, b holdKey) int {
	return cmp.Or(strings.Compare(a.of, b.of), strings.Compare(a.id, b.id), strings.Compare(a.reason, b.reason))
}

// holdOver tells that a hold ended.
func (m *Machine) holdOver(memo *heldFor) {
	h := memo.held
	m.notice(Notice{
		Kind: "hold-over", Host: h.Host, VM: vmOf(h), Incident: incidentOf(h), About: begun(h.Hold.Reason, memo.since),
		Text: fmt.Sprintf("%sno longer held, %s: after %s", called(h), h.Hold.Reason, m.now.Sub(memo.since).Round(time.Second)),
	})
}

// begun names a hold and the minute in which it began: when it comes again it is
// another one.
func begun(reason string, since time.Time) string {
	return strings.TrimPrefix(reason+"/"+since.UTC().Format("20060102T1504Z"), "/")
}

func vmOf(h Held) haven.VMID {
	if h.Of == HeldVM {
		return haven.VMID(h.ID)
	}
	return ""
}

func incidentOf(h Held) haven.IncidentID {
	if h.Of == HeldIncident {
		return haven.IncidentID(h.ID)
	}
	return ""
}

func called(h Held) string {
	if h.Name != "" {
		return h.Name + " is "
	}
	return ""
}

// namedHolds is how many VMs one alarm names.
const namedHolds = 5

// alarmHolds raises an alarm for every hold that lasts, again and again. Holds
// of VMs of one reason are one alarm: a rack that waits for capacity is one
// thing to look at.
func (m *Machine) alarmHolds() {
	if m.cfg.HoldAlarmAfter <= 0 {
		return
	}
	vms := map[string][]*heldFor{}
	for _, key := range slices.SortedFunc(maps.Keys(m.held), compareKeys) {
		memo := m.held[key]
		switch {
		case key.reason == haven.HoldGrace || !m.alarmDue(memo):
		case key.of == HeldVM:
			vms[key.reason] = append(vms[key.reason], memo)
		default:
			memo.alarmed = m.now
			h := memo.held
			m.notice(Notice{
				Kind: "hold-lasts", Alarm: true, Host: h.Host, Incident: incidentOf(h), About: begun(key.reason, memo.since),
				Text: fmt.Sprintf("held for %s, %s: %s; released by %s", m.now.Sub(memo.since).Round(time.Second), key.reason, h.Hold.Detail, Releases(key.reason)),
			})
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(vms)) {
		m.alarmVMs(reason, vms[reason])
	}
}

func (m *Machine) alarmVMs(reason string, memos []*heldFor) {
	var names []string
	longest := m.now
	for _, memo := range memos {
		memo.alarmed = m.now
		if memo.since.Before(longest) {
			longest = memo.since
		}
		if len(names) < namedHolds {
			names = append(names, memo.held.Name)
		}
	}
	more := ""
	if len(memos) > len(names) {
		more = fmt.Sprintf(" and %d more", len(memos)-len(names))
	}
	m.notice(Notice{
		Kind: "hold-lasts", Alarm: true, About: "vms/" + reason,
		Text: fmt.Sprintf("held VMs: %d, %s, the longest for %s: %s%s; released by %s",
			len(memos), reason, m.now.Sub(longest).Round(time.Second), strings.Join(names, ", "), more, Releases(reason)),
	})
}

func (m *Machine) alarmDue(memo *heldFor) bool {
	if memo.alarmed.IsZero() {
		return m.now.Sub(memo.since) >= m.cfg.HoldAlarmAfter
	}
	return m.now.Sub(memo.alarmed) >= m.cfg.HoldAlarmEvery
}

// watchDisarm tells when a disarm that waited for what was under way takes
// effect.
func (m *Machine) watchDisarm(s *ledger.State) {
	pending := ""
	if s.Disarm != nil {
		pending = Finishing(s.DisarmPending())
	}
	switch {
	case pending != "" && m.finishing == "":
		m.notice(Notice{Kind: "disarm-pending", About: begun("", s.Disarm.At), Text: "disarmed by " + s.Disarm.By + "; pending: " + pending})
	case pending == "" && m.finishing != "" && s.Disarm != nil:
		m.notice(Notice{Kind: "disarmed", About: begun("", s.Disarm.At), Text: "what was under way is finished: nothing is fenced or started until 'haven arm'"})
	}
	m.finishing = pending
}

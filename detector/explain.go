package detector

import (
	"fmt"
	"time"

	"github.com/haven-ha/haven"
)

// powerListed is how many power readings are listed: the last ones.
const powerListed = 4

// evidence lists what is known of the host, path by path (P9).
func (s *sight) evidence() []haven.Evidence {
	return evidenceOf(s.now, s.in.Self.Host, s.expected, s.h, s.in.Observers)
}

// EvidenceOf lists what the input says about one of its hosts at the instant
// now, for people.
func EvidenceOf(now time.Duration, in *Input, h *Host) []haven.Evidence {
	return evidenceOf(now, in.Self.Host, in.Self.Master || h.Report.Expected, h, in.Observers)
}

func evidenceOf(now time.Duration, self haven.HostID, expected bool, h *Host, observers []Observer) []haven.Evidence {
	list := make([]haven.Evidence, 0, 4+len(h.Probes)+2*len(h.Beats)+len(h.Disks)+powerListed)
	add := func(e haven.Evidence, at time.Duration) {
		e.Subject, e.Age = h.ID, max(0, now-at)
		list = append(list, e)
	}
	switch {
	case h.Report.Heard:
		add(haven.Evidence{Kind: haven.EvidenceReport, Observer: self, Value: haven.Yes}, h.Report.At)
	case expected && h.ID != self:
		add(haven.Evidence{Kind: haven.EvidenceReport, Observer: self, Detail: "never heard"}, now)
	}
	alive := haven.Unknown
	switch h.Gossip.State {
	case GossipAlive:
		alive = haven.Yes
	case GossipDead, GossipLeft:
		alive = haven.No
	case GossipUnknown:
	}
	add(haven.Evidence{Kind: haven.EvidenceGossip, Observer: self, Value: alive, Detail: h.Gossip.State.String()}, h.Gossip.Since)
	if h.Gossip.Left != haven.LeaveNone {
		add(haven.Evidence{Kind: haven.EvidenceLeft, Observer: self, Value: haven.Yes, Detail: string(h.Gossip.Left)}, h.Gossip.Since)
	}
	for i := range h.Probes {
		p := &h.Probes[i]
		if h.superseded(i, now) {
			continue
		}
		add(haven.Evidence{Kind: p.Kind, Observer: p.Observer, Value: p.Result, Detail: p.Detail}, p.Finished)
	}
	for i := range h.Beats {
		list = appendBeat(list, now, h.ID, &h.Beats[i])
	}
	for i := range h.Disks {
		d := &h.Disks[i]
		add(haven.Evidence{Kind: haven.EvidenceDisk, Observer: d.Observer, Value: d.Active, Detail: d.detail()}, d.At-max(0, d.Quiet))
	}
	for i := max(0, len(h.Power)-powerListed); i < len(h.Power); i++ {
		add(powerEvidence(&h.Power[i]), h.Power[i].Finished)
	}
	for i := range observers {
		o := &observers[i]
		if o.Host == h.ID || o.Host == self && (o.Majority != haven.Yes || o.LoopOK != haven.Yes) {
			v := haven.TriOf(o.Majority == haven.Yes && o.LoopOK == haven.Yes)
			add(haven.Evidence{
				Kind: haven.EvidenceObserver, Observer: o.Host, Value: v,
				Detail: fmt.Sprintf("majority %s, loop in time %s", o.Majority, o.LoopOK),
			}, o.At)
		}
	}
	return list
}

// detail is the observer's reason, or at least how long it looked.
func (d *Disk) detail() string {
	if d.Why != "" {
		return d.Why
	}
	return fmt.Sprintf("over %s", round(d.Span))
}

// appendBeat dates a beat by its last change: that is what its age means.
func appendBeat(list []haven.Evidence, now time.Duration, subject haven.HostID, b *Beat) []haven.Evidence {
	e := haven.Evidence{Subject: subject, Observer: b.Reader, Store: b.Store, Kind: b.Writer.kind(), Value: b.Moving, Age: max(0, now-b.ChangedAt)}
	if b.Absent {
		e.Value, e.Age, e.Detail = haven.Unknown, max(0, now-b.ReadAt), "never written"
	}
	list = append(list, e)
	if b.Absent || b.Writer != WriterAgent {
		return list
	}
	if b.Isolated != haven.Unknown && b.Moving == haven.Yes {
		e.Kind, e.Value, e.Detail = haven.EvidenceIsolated, b.Isolated, ""
		list = append(list, e)
	}
	if b.Left != haven.LeaveNone {
		e.Kind, e.Value, e.Detail = haven.EvidenceLeft, haven.Yes, string(b.Left)
		list = append(list, e)
	}
	return list
}

func powerEvidence(r *PowerReading) haven.Evidence {
	e := haven.Evidence{Kind: haven.EvidencePower, Observer: r.By, Detail: fmt.Sprintf("%s %s", r.Device, r.State)}
	switch r.State {
	case haven.PowerOn:
		e.Value = haven.Yes
	case haven.PowerOff:
		e.Value = haven.No
	case haven.PowerUnknown:
	}
	if !r.Trusted {
		e.Detail += ", not trusted"
	}
	if r.Why != "" {
		e.Detail += ": " + r.Why
	}
	return e
}

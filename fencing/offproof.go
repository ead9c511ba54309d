package fencing

import (
	"fmt"
	"time"
)

// OffProof judges the readings taken of a host that is suspected and that
// nobody has fenced: "suspect early, act on proof". It is pure.
//
// It answers for the device only. Whether the host's neighbours, its beats and
// the state of the cluster agree is the detector's to judge; the verdict tells
// it when the first and the last "off" were read, so that it can compare.
type OffProof struct {
	policy Policy
	since  time.Time
	offs   streak
	last   string // why there is no proof yet
}

// OffVerdict is what the readings so far come to.
type OffVerdict struct {
	// Proved says that a trusted device said off often enough, freshly, and
	// nothing contradicts it.
	Proved bool
	// Off says that the last readings said off, whether or not they prove it.
	Off bool
	// First and Last are the first and last "off" since the last contradiction.
	// Probes that are to confirm the proof must begin after First.Finish.
	First, Last Reading
	// Why says what is missing, or what the proof rests on.
	Why string
}

// NewOffProof starts to collect at the moment of suspicion. Readings that were
// begun before it do not count. Confirmations, Gap and Window of the policy
// are used.
func NewOffProof(since time.Time, p Policy) *OffProof {
	return &OffProof{policy: p, since: since, offs: streak{gap: p.Gap, window: p.Window}, last: "power was not read yet"}
}

// Step takes one reading, or the error that came instead of one.
func (o *OffProof) Step(r Reading, err error) {
	switch {
	case err != nil:
		o.last = "last reading failed: " + err.Error()
		return
	case r.Start.Before(o.since):
		return
	}
	o.offs.push(r)
	o.last = r.String()
}

// NextReading says when it makes sense to read again: at once, or when the gap
// after the last "off" is over.
func (o *OffProof) NextReading(now time.Time) time.Time {
	if o.offs.count == 0 {
		return now
	}
	return later(now, o.offs.last.Finish.Add(o.policy.Gap))
}

// Verdict judges at now, with what Trust says about the device.
func (o *OffProof) Verdict(now time.Time, t *Trust) OffVerdict {
	if o.offs.count == 0 {
		return OffVerdict{Why: o.last}
	}
	v := OffVerdict{Off: true, First: o.offs.first, Last: o.offs.last}
	if age := now.Sub(v.Last.Finish); age > o.policy.Window {
		v.Why = fmt.Sprintf("last off is %s old", age.Round(time.Millisecond))
		return v
	}
	trusted, why := t.Judge(v.First.Start, o.offs.guid)
	switch {
	case !trusted:
		v.Why = "device says off but is not trusted: " + why
	case o.offs.count < o.policy.Confirmations:
		v.Why = fmt.Sprintf("%d of %d readings say off", o.offs.count, o.policy.Confirmations)
	default:
		v.Proved = true
		v.Why = fmt.Sprintf("%d readings in %s say off; device is trusted: %s",
			o.offs.count, v.Last.Finish.Sub(v.First.Start).Round(time.Millisecond), why)
	}
	return v
}

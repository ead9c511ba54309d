package haven

import (
	"encoding/json"
	"fmt"
	"time"
)

// Tri is a three-valued truth. Its zero value is Unknown, so that what nobody
// filled in is never taken for an answer (P5).
type Tri uint8

// The three values.
const (
	Unknown Tri = iota
	No
	Yes
)

// TriOf turns an answer that was really given into a Tri.
func TriOf(b bool) Tri {
	if b {
		return Yes
	}
	return No
}

func (t Tri) String() string {
	switch t {
	case No:
		return "no"
	case Yes:
		return "yes"
	case Unknown:
	}
	return "unknown"
}

// MarshalText writes "yes", "no" or "unknown".
func (t Tri) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (t *Tri) UnmarshalText(b []byte) error {
	switch string(b) {
	case "yes":
		*t = Yes
	case "no":
		*t = No
	case "unknown":
		*t = Unknown
	default:
		return fmt.Errorf("truth value %q: want yes, no or unknown", b)
	}
	return nil
}

// EvidenceKind names a path on which something was observed.
type EvidenceKind string

// The kinds of evidence. The value of each is an answer to the question beside it.
const (
	EvidenceReport      EvidenceKind = "report"       // did its agent report to the master lately?
	EvidenceGossip      EvidenceKind = "gossip"       // does the gossip layer hold it for alive?
	EvidenceProbeAgent  EvidenceKind = "probe-agent"  // does its agent answer this observer?
	EvidenceProbeHelper EvidenceKind = "probe-helper" // does its helper answer this observer?
	EvidenceProbeTCP    EvidenceKind = "probe-tcp"    // does its network stack answer this observer?
	EvidenceAgentBeat   EvidenceKind = "agent-beat"   // does its agent's beat move on a store?
	EvidenceHelperBeat  EvidenceKind = "helper-beat"  // does its helper's beat move on a store?
	EvidenceDisk        EvidenceKind = "disk"         // do its VMs' disks change?
	EvidencePower       EvidenceKind = "power"        // is its chassis power on?
	EvidenceLeft        EvidenceKind = "left"         // did its agent leave on purpose?
	EvidenceIsolated    EvidenceKind = "isolated"     // does its own beat say it is isolated?
	EvidenceObserver    EvidenceKind = "observer"     // can the observer trust its own paths?
)

// Evidence is one dated observation of a host.
type Evidence struct {
	Kind     EvidenceKind  `json:"kind"`
	Subject  HostID        `json:"subject"`
	Observer HostID        `json:"observer"`
	Store    string        `json:"store,omitempty"` // of a beat: where it was read
	Value    Tri           `json:"value"`
	Age      time.Duration `json:"-"` // by the observer's own monotonic clock
	Detail   string        `json:"detail,omitempty"`
}

// String renders the observation as a line for people (P9).
func (e Evidence) String() string {
	s := fmt.Sprintf("%s=%s by %s, %s old", e.Kind, e.Value, e.Observer, e.Age.Round(time.Millisecond))
	if e.Store != "" {
		s = fmt.Sprintf("%s[%s]=%s by %s, %s old", e.Kind, e.Store, e.Value, e.Observer, e.Age.Round(time.Millisecond))
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

type evidenceJSON struct {
	evidenceAlias
	AgeMS int64 `json:"age_ms"`
}
type evidenceAlias Evidence

// MarshalJSON writes the age in milliseconds as age_ms.
func (e Evidence) MarshalJSON() ([]byte, error) {
	return json.Marshal(evidenceJSON{evidenceAlias(e), e.Age.Milliseconds()})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (e *Evidence) UnmarshalJSON(b []byte) error {
	var j evidenceJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*e = Evidence(j.evidenceAlias)
	e.Age = time.Duration(j.AgeMS) * time.Millisecond
	return nil
}

// Verdict is what the detector concludes about a host.
type Verdict string

// The verdicts, as in the table of docs/architecture.md.
const (
	VerdictUnknown     Verdict = "unknown"      // no conclusion; the reason is given beside it
	VerdictHealthy     Verdict = "healthy"      // both paths alive
	VerdictSuspect     Verdict = "suspect"      // silent, and being looked at
	VerdictStorageLost Verdict = "storage-lost" // agent answers, its beats stopped
	VerdictStopped     Verdict = "stopped"      // agent was stopped on purpose
	VerdictShutdown    Verdict = "shutdown"     // host is shutting down in good order
	VerdictIsolated    Verdict = "isolated"     // no network, beats move and say isolated
	VerdictPartitioned Verdict = "partitioned"  // no network to us, beats move and see others
	VerdictAgentDown   Verdict = "agent-down"   // helper lives, agent does not
	VerdictUnreachable Verdict = "unreachable"  // no network, no beat, but its VMs write
	VerdictFailed      Verdict = "failed"       // all paths silent, long enough: fence it
	VerdictDead        Verdict = "dead"         // proved: a trusted BMC says off
)

// Actionable says whether the verdict alone may lead to fencing or restart.
func (v Verdict) Actionable() bool { return v == VerdictFailed || v == VerdictDead }

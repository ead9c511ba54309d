package notify

import (
	"strings"
	"time"

	"github.com/haven-ha/haven"
)

// Severity says how urgent an event is.
type Severity int

// The severities, from the least.
const (
	Info     Severity = iota + 1 // to know; nothing has to be done
	Warning                      // something is not as it should be
	Critical                     // VMs are down, or protection is
)

// String is the severity's stable word.
func (s Severity) String() string {
	switch s {
	case Info:
		return "info"
	case Warning:
		return "warning"
	case Critical:
		return "critical"
	}
	return "unknown"
}

// ParseSeverity reads a severity's word; false for any other.
func ParseSeverity(word string) (Severity, bool) {
	for _, s := range []Severity{Info, Warning, Critical} {
		if s.String() == word {
			return s, true
		}
	}
	return 0, false
}

// Event is one thing that people should hear of.
type Event struct {
	// ID is stable: whoever tells of the same thing again, this agent or the next
	// master, gives it the same id, so that receivers can tell repetitions.
	ID       string           `json:"id"`
	Kind     string           `json:"kind"` // a stable word; see Lookup
	Severity Severity         `json:"-"`
	Cluster  string           `json:"cluster"`
	By       haven.HostID     `json:"by"` // whose agent tells
	Host     haven.HostID     `json:"host,omitempty"`
	VM       haven.VMID       `json:"vm,omitempty"`
	Incident haven.IncidentID `json:"incident,omitempty"`
	Time     time.Time        `json:"time"`
	Text     string           `json:"text"`
	// Do is what to do about it, with the exact command; empty for nothing.
	Do string `json:"do,omitempty"`
	// Reminder says that it was told before, perhaps by another agent.
	Reminder bool `json:"reminder,omitempty"`
}

// NewID makes the id of an event. The parts are what tells it from all other
// events of its kind: incident, host, VM, and whatever else; empty ones are left
// out.
func NewID(kind string, parts ...string) string {
	id := []string{kind}
	for _, p := range parts {
		if p != "" {
			id = append(id, p)
		}
	}
	return clean(strings.Join(id, "/"), maxID)
}

// Bounds of what a target is sent, in octets.
const (
	maxID   = 256
	maxText = 4096
)

// Thread names what belongs together: the incident, else the event itself.
func (e Event) Thread() string {
	if e.Incident != "" {
		return NewID("incident", string(e.Incident))
	}
	return e.ID
}

// tidy makes an event fit to be sent: text on one line and bounded, no control
// characters anywhere.
func (e Event) tidy() Event {
	e.ID, e.Kind, e.Cluster = clean(e.ID, maxID), clean(e.Kind, maxID), clean(e.Cluster, maxID)
	e.Host, e.By = haven.HostID(clean(string(e.Host), maxID)), haven.HostID(clean(string(e.By), maxID))
	e.VM, e.Incident = haven.VMID(clean(string(e.VM), maxID)), haven.IncidentID(clean(string(e.Incident), maxID))
	e.Text, e.Do = clean(e.Text, maxText), clean(e.Do, maxText)
	if e.Severity < Info || e.Severity > Critical {
		e.Severity = Warning
	}
	return e
}

// clean replaces control characters, line breaks among them, and what is not
// UTF-8, and cuts what is too long.
func clean(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) <= limit {
		return s
	}
	const more = "…"
	return strings.ToValidUTF8(s[:limit-len(more)], "") + more
}

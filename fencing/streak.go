package fencing

import (
	"time"

	"github.com/haven-ha/haven"
)

// streak counts readings of "off" that belong together. It is the one place
// that says what "fresh and repeated" means (P2):
//
//   - each reading that counts began at least gap after the one before it was
//     finished, in a session of its own;
//   - no two neighbours are further apart than window;
//   - an "on" starts the count again, and so does another GUID: then it was
//     not one device that spoke;
//   - an unknown is neither: it does not count and it does not contradict (P5).
type streak struct {
	gap, window time.Duration

	count       int
	first, last Reading
	guid        GUID
}

func (s *streak) push(r Reading) {
	switch r.State {
	case haven.PowerOn:
		s.reset()
		return
	case haven.PowerOff:
	case haven.PowerUnknown:
		return
	default:
		return
	}
	stranger := s.guid != "" && r.GUID != "" && s.guid != r.GUID
	if s.count > 0 && (stranger || r.Start.Sub(s.last.Finish) > s.window) {
		s.reset()
	}
	if s.count > 0 && r.Start.Before(s.last.Finish.Add(s.gap)) {
		return // too close to the one before to be a second opinion
	}
	if s.count == 0 {
		s.first = r
	}
	s.last = r
	s.count++
	if r.GUID != "" {
		s.guid = r.GUID
	}
}

func (s *streak) reset() { *s = streak{gap: s.gap, window: s.window} }

package cluster

import (
	"context"
	"maps"
	"strings"
	"sync"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/obs"
)

// Health is what this agent can tell about its own part in the gossip.
type Health struct {
	// Score is memberlist's local health: 0 is well, up to 7 the more its own
	// probes fail in ways that point at this host. An agent with a score is a
	// poor witness of others' deaths.
	Score int `json:"score"`
	// Suspected and CalledDead count how often others held this agent for
	// suspect, or dead, and it refuted them.
	Suspected  uint64 `json:"suspected"`
	CalledDead uint64 `json:"called_dead"`
	// Configured and Alive count the configured hosts, this one included. Alone
	// says that no other one is alive at its address.
	Configured int  `json:"configured"`
	Alive      int  `json:"alive"`
	Alone      bool `json:"alone"`
	// Unjoined has the configured hosts that are not alive at their address,
	// each with the error of the last attempt to join it, if one failed.
	Unjoined map[haven.HostID]string `json:"unjoined,omitempty"`
	// Drops counts what was thrown away since the start, by Drop… word.
	Drops map[string]uint64 `json:"drops,omitempty"`
}

// Health returns the agent's view of itself. It never waits.
func (c *Cluster) Health() Health {
	h := Health{Score: c.list.GetHealthScore()}
	c.stats.read(&h)
	c.mu.Lock()
	defer c.mu.Unlock()
	missing, alone := c.table.missing()
	h.Configured = len(c.table.peers)
	h.Alive, h.Alone = h.Configured-len(missing), alone
	h.Unjoined = make(map[haven.HostID]string, len(missing))
	for _, id := range missing {
		h.Unjoined[id] = c.joinErr[id]
	}
	return h
}

// stats counts. Its lock is taken under any other and covers nothing else.
type stats struct {
	tell       func(kind string)
	mu         sync.Mutex
	suspected  uint64
	calledDead uint64
	drops      map[string]uint64
}

func (s *stats) drop(kind string) {
	s.mu.Lock()
	if s.drops == nil {
		s.drops = make(map[string]uint64)
	}
	s.drops[kind]++
	s.mu.Unlock()
	s.tell(kind)
}

func (s *stats) refuted(dead bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if dead {
		s.calledDead++
	} else {
		s.suspected++
	}
}

func (s *stats) read(h *Health) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.Suspected, h.CalledDead, h.Drops = s.suspected, s.calledDead, maps.Clone(s.drops)
}

// lineSink takes memberlist's log. memberlist has no callback for what happens to
// this agent itself, or to messages that it refuses, so those are counted
// by their text; a test holds the texts against the library.
type lineSink struct{ c *Cluster }

func (s *lineSink) Write(p []byte) (int, error) {
	level, text := obs.ParseLine(string(p))
	s.count(text)
	if s.c.log.Enabled(context.Background(), level) {
		select {
		case s.c.lines <- string(p):
		default:
			s.c.stats.drop(DropLog)
		}
	}
	return len(p), nil
}

func (s *lineSink) count(text string) {
	switch {
	case strings.HasPrefix(text, "Refuting a suspect message"):
		s.c.stats.refuted(false)
	case strings.HasPrefix(text, "Refuting a dead message"):
		s.c.stats.refuted(true)
	case strings.HasPrefix(text, "Decrypt packet failed"):
		s.c.stats.drop(DropSecret)
	case strings.HasPrefix(text, "discarding packet with unacceptable label"),
		strings.HasPrefix(text, "discarding stream with unacceptable label"):
		s.c.stats.drop(DropLabel)
	case strings.HasPrefix(text, "failed to receive:") &&
		(strings.Contains(text, "could decrypt") || strings.Contains(text, "is not encrypted")):
		s.c.stats.drop(DropSecret)
	}
}

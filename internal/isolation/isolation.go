// Package isolation decides whether an agent that sees nobody is cut off itself,
// or whether only the others are out of its sight.
//
// Deciding is pure: what is seen and what pings found goes in, a state comes out.
package isolation

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/haven-ha/haven"
)

// State is what an agent knows about its own network.
type State string

// The states.
const (
	// Connected: somebody is seen, or nobody else is needed.
	Connected State = "connected"
	// Alone: nobody is seen, and it is not known yet why.
	Alone State = "alone"
	// Partitioned: nobody is seen, and an isolation address answers. The network
	// of this host works, as far as that address.
	Partitioned State = "partitioned"
	// Isolated: nobody is seen and no isolation address answers; or of those
	// addresses nothing is known.
	Isolated State = "isolated"
)

// DefaultWindow is for how long every isolation address must have been asked
// without an answer: three pings of a second each.
const DefaultWindow = 3 * time.Second

// Input is what an agent sees of others, at one moment.
type Input struct {
	// Majority says whether this agent reaches more than half of the hosts.
	Majority haven.Tri
	// Gossip says that another configured host is alive in gossip. Direct says
	// that the master took a report, a host sent one, or a probe was answered,
	// lately.
	Gossip, Direct bool
	// Addresses are the isolation addresses, without repetition. Unusable says
	// why they cannot be asked; empty if they can.
	Addresses []string
	Unusable  string
	// Pings ended since the last step.
	Pings []Ping
}

// Ping is one question to one isolation address.
type Ping struct {
	Address        string
	Started, Ended time.Time
	Result         haven.Tri // Unknown: it could not be asked
	Why            string
}

// Output is what follows.
type Output struct {
	State State
	Since time.Time // of this state
	Why   string
	// Ask says that the isolation addresses should be pinged now.
	Ask bool
}

// Machine remembers what pings found since nobody was heard. The zero value is
// ready. It is not safe for concurrent use.
type Machine struct {
	Window time.Duration // the zero value means DefaultWindow

	out   Output
	doubt time.Time // since when nobody has been heard directly; zero: somebody is
	asked map[string]*asked
}

// asked is what is known of one address since the doubt began.
type asked struct {
	since    time.Time // from when on it has been asked without a gap
	latest   Ping
	answered time.Time // the end of the newest answer
}

// Step takes what is seen at the moment now, which never goes back.
func (m *Machine) Step(now time.Time, in Input) Output {
	m.take(now, in)
	state, why := m.decide(now, in)
	if state != m.out.State {
		m.out.Since = now
	}
	m.out.State, m.out.Why = state, why
	m.out.Ask = !m.doubt.IsZero() && in.Unusable == "" && len(in.Addresses) > 0
	return m.out
}

func (m *Machine) window() time.Duration { return cmp.Or(m.Window, DefaultWindow) }

// take keeps the pings that began after the doubt. Pings are made from the first
// doubt on, long before gossip gives everybody up, so that the window has
// passed by then.
func (m *Machine) take(now time.Time, in Input) {
	if in.Direct || in.Majority == haven.Yes {
		m.doubt, m.asked = time.Time{}, nil
		return
	}
	if m.doubt.IsZero() {
		m.doubt, m.asked = now, map[string]*asked{}
	}
	maps.DeleteFunc(m.asked, func(addr string, _ *asked) bool { return !slices.Contains(in.Addresses, addr) })
	for _, p := range in.Pings {
		if p.Started.Before(m.doubt) || !slices.Contains(in.Addresses, p.Address) {
			continue
		}
		a := m.asked[p.Address]
		if a == nil {
			a = &asked{since: p.Started}
			m.asked[p.Address] = a
		}
		a.latest = p
		switch p.Result {
		case haven.Yes:
			a.answered = p.Ended
		case haven.Unknown:
			a.since = p.Ended
		case haven.No:
		}
	}
}

func (m *Machine) decide(now time.Time, in Input) (State, string) {
	switch {
	case in.Majority == haven.Yes:
		return Connected, "it reaches a majority of the hosts"
	case in.Direct:
		return Connected, "others answer, though no majority"
	case in.Gossip:
		// Gossip gives the last one up after some seconds.
		return Connected, "gossip still has others, though no majority"
	case (in.Unusable != "" || len(in.Addresses) == 0) && now.Sub(m.doubt) < m.window():
		// An agent that has just started has not had the time to see anybody.
		return Alone, "nobody is seen, not for long; there is nothing else to ask"
	case in.Unusable != "":
		return Isolated, "nobody is seen; isolation addresses cannot be asked: " + in.Unusable
	case len(in.Addresses) == 0:
		return Isolated, "nobody is seen; there is no isolation address to ask"
	}
	return m.askAddresses(now, in.Addresses)
}

// askAddresses sums up what the isolation addresses say. An answer within the window
// tells that this host's network works. All of them must have been silent for
// the whole window to tell the opposite. What could not be asked tells nothing:
// then nobody being seen is all there is.
func (m *Machine) askAddresses(now time.Time, addresses []string) (State, string) {
	var open, unknown string
	for _, addr := range addresses {
		a := m.asked[addr]
		switch {
		case a == nil || now.Sub(a.latest.Ended) >= m.window():
			open = addr
		case !a.answered.IsZero() && now.Sub(a.answered) < m.window():
			return Partitioned, "nobody is seen, but isolation address " + addr + " answers"
		case a.latest.Result == haven.Unknown:
			unknown = addr + ": " + a.latest.Why
		case now.Sub(a.since) < m.window():
			open = addr
		}
	}
	switch {
	case unknown != "":
		return Isolated, "nobody is seen; an isolation address cannot be asked: " + unknown
	case open != "" && now.Sub(m.doubt) < 2*m.window():
		return Alone, "nobody is seen; isolation addresses are being asked"
	case open != "":
		return Isolated, "nobody is seen; asking isolation address " + open + " does not end"
	}
	return Isolated, fmt.Sprintf("nobody is seen, and no isolation address answered for %s: %s", m.window(), strings.Join(addresses, ", "))
}

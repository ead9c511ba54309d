package agent

import (
	"context"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/isolation"
)

// gateway is a network that answers pings as it is told to.
type gateway struct {
	says  atomic.Pointer[haven.Tri]
	asked atomic.Int64
}

func (g *gateway) Ping(context.Context, netip.Addr) (haven.Tri, string) {
	g.asked.Add(1)
	return *g.says.Load(), "as told"
}

func (g *gateway) Gateways() ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
}

// until waits until an agent that sees nobody is in a state.
func until(t *testing.T, a *Agent, want isolation.State) client.Status {
	t.Helper()
	for range 3000 {
		if v := a.self.Load(); v != nil && v.State == want {
			return a.viewStatus()
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("it is %+v, want %s", a.self.Load(), want)
	return client.Status{}
}

// TestAgentKnowsThatItIsIsolated (P4): an agent that sees nobody asks its gateway
// before it calls itself isolated, in its beat and to whoever asks on this host;
// and takes it back when the gateway answers.
func TestAgentKnowsThatItIsIsolated(t *testing.T) {
	d := partsWith(t, 70, 2)
	g := new(gateway)
	no, yes := haven.No, haven.Yes
	g.says.Store(&no)
	d.Echo = g
	a := run(t, d)
	st := until(t, a, isolation.Isolated)
	if !a.beat().Isolated || st.Healthy || !strings.Contains(st.Sentence, "isolated since") || !strings.Contains(st.Sentence, "192.0.2.1") ||
		!strings.Contains(st.Sentence, "VMs keep running") {
		t.Errorf("beat says isolated: %t; status: %s", a.beat().Isolated, st.Sentence)
	}
	if l := st.Local; l.Majority != haven.No || l.Reached != 1 || l.Hosts != 2 {
		t.Errorf("it reaches %d of %d, majority %s", l.Reached, l.Hosts, l.Majority)
	}
	g.says.Store(&yes)
	st = until(t, a, isolation.Partitioned)
	if a.beat().Isolated || strings.Contains(st.Sentence, "isolated since") || !strings.Contains(st.Sentence, "cut off") {
		t.Errorf("beat says isolated: %t; status: %s", a.beat().Isolated, st.Sentence)
	}
}

// TestNoMeansToPing (P5): without them the old rule stands, and it is told why.
func TestNoMeansToPing(t *testing.T) {
	a := run(t, partsWith(t, 71, 2))
	if st := until(t, a, isolation.Isolated); !strings.Contains(st.Sentence, "no means") {
		t.Errorf("status: %s", st.Sentence)
	}
}

// TestAloneByConfiguration: who needs nobody is not isolated.
func TestAloneByConfiguration(t *testing.T) {
	d := partsWith(t, 72, 1)
	g := new(gateway)
	no := haven.No
	g.says.Store(&no)
	d.Echo = g
	a := run(t, d)
	until(t, a, isolation.Connected)
	if a.beat().Isolated || g.asked.Load() != 0 {
		t.Errorf("isolated: %t after %d pings", a.beat().Isolated, g.asked.Load())
	}
}

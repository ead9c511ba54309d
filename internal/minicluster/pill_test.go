package minicluster_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing/ipmi/ipmitest"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/minicluster"
	"github.com/haven-ha/haven/internal/pill"
	"github.com/haven-ha/haven/internal/world"
	"github.com/haven-ha/haven/storagebeat"
)

// lines keeps what agents log, and passes it on.
type lines struct {
	mu  sync.Mutex
	all bytes.Buffer
	t   testing.TB
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	l.all.Write(p)
	l.mu.Unlock()
	return l.t.Output().Write(p)
}

func (l *lines) has(all ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.all.String()) {
		if !slices.ContainsFunc(all, func(s string) bool { return !strings.Contains(line, s) }) {
			return true
		}
	}
	return false
}

// soon polls for something that takes seconds.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(60 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// pillCluster is a cluster of three in which all but the second host obey pills,
// with three VMs on the third.
func pillCluster(t *testing.T) (*minicluster.Cluster, *lines) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes a minute in real time")
	}
	begun, log := time.Now(), &lines{t: t}
	c, err := minicluster.New(minicluster.Options{
		Hosts: 3, Dir: t.TempDir(), StoreChild: []string{"/proc/self/exe", "store-child"},
		Net: [2]byte{byte(os.Getpid() >> 8), byte(os.Getpid())}, MemoryMiB: 8192,
		OnEvent: func(e world.Event) { fmt.Fprintf(log, "%7.3f WORLD %s\n", time.Since(begun).Seconds(), e.Text) },
		Log: func(host haven.HostID) *slog.Logger {
			return slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelInfo})).With("self", host)
		},
		Config: func(yaml string) string {
			yaml = strings.Replace(yaml, "\nfencing:", "\nfencing:\n  poison_pill: true\n  watchdog: {device: /dev/watchdog}", 1) // nobody opens that here
			i := strings.Index(yaml, "  kvm-02: ")
			return yaml[:i] + strings.Replace(yaml[i:], "fencing: {", "fencing: {poison_pill: false, ", 1)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	calm(t, c)
	owner := c.Hosts()[2]
	for i := 1; i <= 3; i++ {
		if _, err := owner.Machine.UserStart(world.XML(vmID(i), fmt.Sprintf("vm%d", i), 512)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, c, "/v1/vms", "three protected VMs", func(vms []client.VM) bool {
		return len(vms) == 3 && !slices.ContainsFunc(vms, func(v client.VM) bool { return !v.Protected || v.Owner != owner.ID })
	})
	calm(t, c)
	return c, log
}

// TestPoisonPill (P1, P2, P4): a host that can only read its store, whose network is
// cut and whose BMC is dead, resets itself because of the pill that the master left.
// The pill proves nothing: no VM is started elsewhere before a new boot registers.
// Then it is taken back, and the new boot does not obey the old one's.
func TestPoisonPill(t *testing.T) {
	c, log := pillCluster(t)
	owner := c.Hosts()[2]
	_, boot := owner.Machine.On()
	owner.BMC.SetFaults(func(f *ipmitest.Faults) { f.Dead = true })
	owner.RefuseWrites(true)
	owner.CutNetwork(true)
	soon(t, "the reset of a host that is cut off", func() bool { return owner.Resets() > 0 })
	if !log.has("self="+string(owner.ID), "a poison pill is obeyed", "no master was reached") {
		t.Error("the host does not say why it reset itself")
	}
	pills, err := c.Pills(t.Context())
	if p := pills[owner.ID]; err != nil || len(pills) != 1 || p.Boot != boot || p.Withdrawn {
		t.Errorf("mailboxes %+v, %v", pills, err)
	}
	// The new boot comes up as cut off as the old one was. What was written about
	// that one proves nothing to the master, and means nothing to this one.
	soon(t, "its next boot", func() bool { on, now := owner.Machine.On(); return on && now != boot && owner.AgentRuns() })
	soon(t, "a line about the old pill", func() bool {
		return log.has("self="+string(owner.ID), "a poison pill is not obeyed", "it is for boot "+string(boot))
	})
	time.Sleep(pill.DefaultPatience + 2*time.Second)
	incidents := until(t, c, "/v1/incidents", "the incident", func(all []client.Incident) bool { return len(all) == 1 })
	if in := incidents[0]; in.Proof != nil || owner.Resets() != 1 {
		t.Errorf("before the new boot registers: proof %+v, %d resets", in.Proof, owner.Resets())
	}
	for i := 1; i <= 3; i++ {
		if n := c.World.Starts(vmID(i)); n != 1 {
			t.Errorf("vm%d was started %d times before anything was proved", i, n)
		}
	}
	owner.RefuseWrites(false)
	owner.CutNetwork(false)
	owner.BMC.SetFaults(func(f *ipmitest.Faults) { f.Dead = false })
	calm(t, c)
	once(t, c, true)
	soon(t, "the pill to be taken back", func() bool {
		pills, err := c.Pills(t.Context())
		return err == nil && pills[owner.ID].Withdrawn
	})
	if owner.Resets() != 1 {
		t.Errorf("%d resets", owner.Resets())
	}
}

// TestPillOfAHealthyHost (P3, P4): a host that finds a pill for its present boot and
// reaches the master asks, and does not obey: the incident does not want it. Nor does
// one obey that is not configured to. A pill that a stranger could have written is
// not even asked about.
func TestPillOfAHealthyHost(t *testing.T) {
	c, log := pillCluster(t)
	st := until(t, c, "/v1/status", "a master", func(s client.Status) bool { return s.Master != "" && !s.Stale })
	leave := func(h *minicluster.Host, term haven.Term) {
		t.Helper()
		_, boot := h.Machine.On()
		if err := c.LeavePill(t.Context(), storagebeat.Pill{
			Host: h.ID, Boot: boot, Incident: "i1", Attempt: 1, Term: term, By: st.Master,
		}); err != nil {
			t.Fatal(err)
		}
	}
	first, off, owner := c.Hosts()[0], c.Hosts()[1], c.Hosts()[2]
	leave(first, st.Term)
	leave(off, st.Term)
	leave(owner, haven.Term{Generation: st.Term.Generation})
	soon(t, "a question and its answer", func() bool {
		return log.has("self="+string(first.ID), "the poison pill does not stand", "reports to the master")
	})
	soon(t, "a host on which it is off", func() bool {
		return log.has("self="+string(off.ID), "a poison pill is not obeyed", "is off for this host")
	})
	soon(t, "a host that knows a newer term", func() bool {
		return log.has("self="+string(owner.ID), "a poison pill is not obeyed", "was seen")
	})
	// What a master said holds, also when it is not reached any more.
	first.CutNetwork(true)
	time.Sleep(pill.DefaultPatience + 3*time.Second)
	first.CutNetwork(false)
	calm(t, c)
	for _, h := range c.Hosts() {
		if h.Resets() != 0 {
			t.Errorf("%s reset itself %d times", h.ID, h.Resets())
		}
	}
	untouched(t, c, owner)
	// A master that is older than what lies there writes nothing over it.
	if err := c.LeavePill(t.Context(), storagebeat.Pill{
		Host: first.ID, Boot: "b", Incident: "i1", Attempt: 9, Term: haven.Term{Generation: st.Term.Generation}, By: st.Master,
	}); !errors.Is(err, storagebeat.ErrNewerPill) {
		t.Errorf("an older term: %v", err)
	}
}

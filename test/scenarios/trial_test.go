//go:build lab

package scenarios

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/test/lab"
)

// ground is one running cluster for many faults that heal, each a trial of its
// own. Every host has a guest that writes once a second.
type ground struct {
	*site
	guests    []*lab.Guest
	twoStores bool
	boots     map[*lab.Guest]uint32 // that each should have had by now
	struck    map[*lab.Host]int     // how often each was the victim
	// seconds is how often each guest noticed a second copy of itself so far.
	seconds map[*lab.Guest]int
	spoilt  string // who left the cluster broken; empty for nobody
}

func newGround(t *testing.T, o options) *ground {
	t.Helper()
	g := &ground{site: newSite(t, o), twoStores: o.twoStores, boots: map[*lab.Guest]uint32{}, struck: map[*lab.Host]int{}, seconds: map[*lab.Guest]int{}}
	g.whole()
	for _, h := range g.lab.Hosts() {
		g.add(g.site, h, lab.GuestConfig{Name: "on-" + h.Name, Slow: true, Thick: true})
	}
	return g
}

// add gives a host one more guest.
func (g *ground) add(s *site, h *lab.Host, c lab.GuestConfig) *lab.Guest {
	s.t.Helper()
	guest := s.guest(h, c)
	g.guests, g.boots[guest] = append(g.guests, guest), 1
	s.protected(h, guest)
	return guest
}

// trial is one fault. What a trial must not see, it sees all the time.
type trial struct {
	*site
	ground *ground
	watch  *watch
}

// trial breaks something, mends it, and makes sure that the cluster was wholly
// well before and is so after it, that no BMC got a command, no guest's process
// was stopped or doubled, and nobody was judged failed or dead who was not
// excused for it.
func (g *ground) trial(t *testing.T, name string, fault func(*trial)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		if g.spoilt != "" {
			t.Fatalf("the cluster was not well after %s", g.spoilt)
		}
		here := *g.site
		here.t = t
		tr := &trial{site: &here, ground: g}
		defer func() {
			if t.Failed() {
				tr.showLogs()
			}
		}()
		g.spoilt = "the trial before " + name
		tr.well()
		g.spoilt = ""
		known, commands := tr.incidentIDs(), tr.powerCommands()
		tr.watch = tr.startWatch()
		defer tr.watch.end(t)
		func() {
			defer tr.mend()
			fault(tr)
		}()
		tr.well()
		for h, cmds := range tr.powerCommands() {
			if n := len(commands[h]); len(cmds) > n {
				t.Errorf("P4: the BMC of %s got %v", h.Name, cmds[n:])
			}
		}
		tr.noFences(known)
	})
}

// well waits until the whole cluster is, and reads every guest's journal.
func (tr *trial) well() {
	tr.t.Helper()
	tr.whole()
	tr.settled(90 * time.Second)
	tr.writing(tr.ground.guests...)
	for _, g := range tr.ground.guests {
		j, err := g.Journal()
		tr.ok(err)
		// What is wrong is told once, in the trial that did it.
		if n := j.SecondWriters(); n != tr.ground.seconds[g] {
			tr.t.Errorf("P1: %s noticed %d times that another copy writes its disk", g.Name, n-tr.ground.seconds[g])
			tr.ground.seconds[g] = n
		}
		if j.Boots != tr.ground.boots[g] {
			tr.t.Errorf("%s was booted %d times, want %d", g.Name, j.Boots, tr.ground.boots[g])
			tr.ground.boots[g] = j.Boots
		}
	}
}

// mend ends every fault there is, also of a trial that failed half-way.
func (tr *trial) mend() {
	tr.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tr.t.Context()), time.Minute)
	defer cancel()
	if err := tr.lab.SwitchOn(ctx); err != nil {
		tr.t.Error(err)
	}
	if err := tr.lab.HealCuts(ctx); err != nil {
		tr.t.Error(err)
	}
	if err := tr.lab.Each(func(h *lab.Host) error { return tr.mendHost(ctx, h) }); err != nil {
		tr.t.Error(err)
	}
}

func (tr *trial) mendHost(ctx context.Context, h *lab.Host) error {
	errs := []error{h.Undeafen(ctx), h.Unmute(ctx), h.Lose(ctx, 0), h.HealMgmt(ctx), h.Storage(ctx, lab.StorageOK)}
	if tr.ground.twoStores {
		errs = append(errs, h.SecondStorage(ctx, lab.StorageOK))
	}
	on, err := h.PowerIsOn()
	if err != nil || !on {
		return errors.Join(append(errs, err, h.PowerOn(ctx), h.WaitReady(ctx))...)
	}
	programs, err := h.Programs(ctx)
	errs = append(errs, err)
	for _, p := range programs {
		switch p.State {
		case lab.ProgramHeld:
			errs = append(errs, h.Start(ctx, p.Name))
		case lab.ProgramRunning:
			errs = append(errs, h.Resume(ctx, p.Name))
		case lab.ProgramWaiting, lab.ProgramEnded:
		}
	}
	return errors.Join(append(errs, h.WaitReady(ctx))...)
}

// victim is a host that has guests and does not lead, each in its turn: one that
// was struck too often would be held for one that flaps.
func (tr *trial) victim() *lab.Host {
	tr.t.Helper()
	master := tr.master()
	var v *lab.Host
	for _, h := range slices.Backward(tr.lab.Hosts()) {
		if h != master && len(tr.on(h)) > 0 && (v == nil || tr.ground.struck[h] < tr.ground.struck[v]) {
			v = h
		}
	}
	if v == nil {
		tr.t.Fatal("all guests are on the master's host")
	}
	tr.ground.struck[v]++
	return v
}

// on are the guests that a host owns, as any agent but those named tells.
func (tr *trial) on(h *lab.Host, but ...*lab.Host) []*lab.Guest {
	tr.t.Helper()
	vms := ask(tr.site, 10*time.Second, "/v1/vms", "the VMs", func([]client.VM) bool { return true }, but...)
	var all []*lab.Guest
	for _, g := range tr.ground.guests {
		for _, v := range vms {
			if v.Name == g.Name && string(v.Owner) == h.Name {
				all = append(all, g)
			}
		}
	}
	return all
}

// writing waits until each guest has written again.
func (tr *trial) writing(guests ...*lab.Guest) {
	tr.t.Helper()
	ctx, cancel := context.WithTimeout(tr.t.Context(), 30*time.Second)
	defer cancel()
	for _, g := range guests {
		h, err := g.Header()
		tr.ok(err)
		if _, err := g.WaitWrite(ctx, h.Seq); err != nil {
			tr.t.Fatalf("P4: %s does not write: %v", g.Name, err)
		}
	}
}

// leftAlone looks on for a while, and sees the guests write all the time.
func (tr *trial) leftAlone(during time.Duration, writers ...*lab.Guest) {
	tr.t.Helper()
	for end := time.Now().Add(during); time.Now().Before(end); {
		tr.writing(writers...)
		select {
		case <-tr.t.Context().Done():
			tr.t.Fatal("out of time")
		case <-time.After(time.Second):
		}
	}
}

// startElsewhere waits until guests of a host were started on another one, and
// sees that they are no more on theirs.
func (tr *trial) startElsewhere(limit time.Duration, from *lab.Host, before map[*lab.Guest]uint32) {
	tr.t.Helper()
	if len(before) == 0 {
		tr.t.Fatalf("%s has no guests", from.Name)
	}
	for g, nonce := range before {
		tr.elsewhere(limit, g, nonce)
	}
	if still := tr.on(from, from); len(still) > 0 {
		tr.t.Errorf("%s still owns %d guests", from.Name, len(still))
	}
}

// nonces are the boots of guests that write now.
func (tr *trial) nonces(guests []*lab.Guest) map[*lab.Guest]uint32 {
	tr.t.Helper()
	all := map[*lab.Guest]uint32{}
	for _, g := range guests {
		all[g] = tr.nonce(g)
	}
	return all
}

// rebooted says that guests will be started once more, with leave to be gone
// until then.
func (tr *trial) rebooted(guests ...*lab.Guest) {
	for _, g := range guests {
		tr.ground.boots[g]++
	}
	tr.watch.excuseGuests(guests)
}

func (tr *trial) incidentIDs() map[haven.IncidentID]bool {
	tr.t.Helper()
	known := map[haven.IncidentID]bool{}
	for _, in := range ask(tr.site, 10*time.Second, "/v1/incidents", "the incidents", func([]client.Incident) bool { return true }) {
		known[in.ID] = true
	}
	return known
}

// noFences checks that no incident since then led to a power command, and none to
// a proof about a host that was not excused.
func (tr *trial) noFences(known map[haven.IncidentID]bool) {
	tr.t.Helper()
	for _, in := range ask(tr.site, 10*time.Second, "/v1/incidents", "the incidents", func([]client.Incident) bool { return true }) {
		if known[in.ID] {
			continue
		}
		if len(in.Attempts) > 0 {
			tr.t.Errorf("P4: incident %s of %s decided %d power commands", in.ID, in.Host, len(in.Attempts))
		}
		if in.Proof != nil && in.Proof.Kind != haven.ProofReboot && !tr.watch.excused(in.Host) {
			tr.t.Errorf("P2: %s was proved dead: %+v", in.Host, in.Proof)
		}
		tr.t.Logf("incident of %s: %s, %s, %s", in.Host, in.Verdict, in.Step, in.Outcome)
	}
}

// local asks a host's agent through its own socket, which no fault of a network
// cuts off.
func (s *site) local(h *lab.Host) (c *client.Client, idle func()) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", h.Path(lab.HostRunDir+"/havend.sock"))
	}}
	return client.NewAt(transport, "http://local"), transport.CloseIdleConnections
}

// watch looks at everything twice a second while something is broken.
type watch struct {
	stop context.CancelFunc
	over sync.WaitGroup

	mu       sync.Mutex
	guests   map[*lab.Guest]int    // the process of each; 0 is excused
	hosts    map[haven.HostID]bool // may be judged dead
	verdicts map[string]int        // how often each host was judged how
	holds    map[string]int
	wrong    []string
}

func (tr *trial) startWatch() *watch {
	tr.t.Helper()
	ctx, cancel := context.WithCancel(tr.t.Context())
	w := &watch{stop: cancel, guests: map[*lab.Guest]int{}, hosts: map[haven.HostID]bool{}, verdicts: map[string]int{}, holds: map[string]int{}}
	for _, g := range tr.ground.guests {
		w.add(tr.t, g)
	}
	w.over.Go(func() { w.processLoop(ctx) })
	w.over.Go(func() { w.verdictLoop(ctx, tr.site) })
	return w
}

// add looks at one more guest.
func (w *watch) add(t testing.TB, g *lab.Guest) {
	t.Helper()
	pids := processes(g)
	if len(pids) != 1 {
		t.Fatalf("%s has the processes %v", g.Name, pids)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.guests[g] = pids[0]
}

// processes are the QEMUs of a guest on the whole machine, and so on all hosts.
func processes(g *lab.Guest) []int {
	var pids []int
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range all {
		line, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(line, []byte("\x00-uuid\x00"+g.UUID+"\x00")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func every(ctx context.Context, period time.Duration, look func()) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		look()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (w *watch) processLoop(ctx context.Context) {
	every(ctx, 500*time.Millisecond, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for g, pid := range w.guests {
			pids := processes(g)
			switch {
			case len(pids) > 1:
				w.complain("P1: %s has the processes %v", g.Name, pids)
			case pid != 0 && !slices.Equal(pids, []int{pid}):
				w.complain("P4: %s had the process %d and has %v", g.Name, pid, pids)
				w.guests[g] = 0
			}
		}
	})
}

// complain notes what must not be, once.
func (w *watch) complain(format string, args ...any) {
	if what := fmt.Sprintf(format, args...); !slices.Contains(w.wrong, what) {
		w.wrong = append(w.wrong, what)
	}
}

// verdictLoop asks every agent, each by itself: one that leads without a majority
// would be the one to err.
func (w *watch) verdictLoop(ctx context.Context, s *site) {
	for _, h := range s.lab.Hosts() {
		w.over.Go(func() {
			every(ctx, 500*time.Millisecond, func() { w.look(ctx, s, h) })
		})
	}
}

func (w *watch) look(ctx context.Context, s *site, h *lab.Host) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, idle := s.local(h)
	defer idle()
	var hosts []client.Host
	var status client.Status
	if c.Get(ctx, haven.HostID(h.Name), "/v1/hosts", &hosts) != nil || c.Get(ctx, haven.HostID(h.Name), "/v1/status", &status) != nil {
		return // it is what is broken
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, hold := range status.Holds {
		w.holds[hold.Reason]++
	}
	for _, v := range hosts {
		w.verdicts[fmt.Sprintf("%s %s", v.Host, v.Verdict)]++
		wrong := v.Verdict == haven.VerdictFailed || v.Verdict == haven.VerdictDead
		if wrong && !w.hosts[v.Host] {
			w.complain("P4: %s judged %s, which lives, %s: %s", h.Name, v.Host, v.Verdict, v.Explanation)
		}
	}
}

// excuse says that a host does die.
func (w *watch) excuse(h *lab.Host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hosts[haven.HostID(h.Name)] = true
}

func (w *watch) excused(id haven.HostID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hosts[id]
}

func (w *watch) excuseGuests(guests []*lab.Guest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range guests {
		w.guests[g] = 0
	}
}

// held says whether a hold was seen.
func (w *watch) held(reason string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.holds[reason] > 0
}

func (w *watch) end(t *testing.T) {
	t.Helper()
	w.stop()
	w.over.Wait()
	t.Logf("verdicts seen: %s", told(w.verdicts))
	t.Logf("holds seen: %s", told(w.holds))
	for _, what := range w.wrong {
		t.Error(what)
	}
}

func told(counts map[string]int) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		all = append(all, fmt.Sprintf("%s ×%d", k, counts[k]))
	}
	return strings.Join(all, ", ")
}

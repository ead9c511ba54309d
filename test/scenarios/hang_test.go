//go:build lab

package scenarios

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/pki"
	"github.com/haven-ha/haven/internal/tlsmux"
	"github.com/haven-ha/haven/test/lab"
)

// hangLength is how long the storage hangs. HAVEN_LAB_HANG changes it.
func hangLength(t *testing.T) time.Duration {
	t.Helper()
	v := os.Getenv("HAVEN_LAB_HANG")
	if v == "" {
		return 30 * time.Second
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 10*time.Second {
		t.Fatalf("HAVEN_LAB_HANG=%q: want a time of at least 10s", v)
	}
	return d
}

// slack is by how much a count may differ for reasons that have nothing to do
// with storage: connections that come and go, threads that the runtime makes
// when the machine is busy. A leak for each beat would be at least one a second.
const slack = 16

// sample is what one program had at one moment.
type sample struct {
	lab.Census
	Goroutines int // of the agent only
}

// columns are what the table shows of samples.
var columns = []struct {
	name string
	of   func(sample) int
}{
	{"processes", func(s sample) int { return len(s.Children) }},
	{"of them stuck", func(s sample) int { return len(s.Stuck()) }},
	{"threads", func(s sample) int { return s.Threads }},
	{"descriptors", func(s sample) int { return s.Files }},
	{"goroutines", func(s sample) int { return s.Goroutines }},
	{"MiB", func(s sample) int { return int(s.Resident >> 20) }},
}

// TestHungStoreCost: the storage of all hosts hangs for long, with requests that
// the kernel does not let go. It costs each agent and each helper one process
// and one pending request, from the first second to the last, and nothing else
// grows; the agents answer meanwhile, nobody is fenced, and afterwards all is as
// it was (P8, P4).
//
//	HAVEN_LAB_HANG=20m go test -tags lab -count=1 -v -timeout 40m -run '^TestHungStoreCost$' ./test/scenarios
func TestHungStoreCost(t *testing.T) {
	length := hangLength(t)
	s := newSite(t, options{})
	s.guests(s.slave(), "a") // it hangs too; that is the guest's business
	s.whole()
	g := newGauge(s)

	before := g.collect(10, time.Second)
	s.ok(s.lab.StorageAll(t.Context(), lab.StorageHang))
	g.eachStuck()
	early := g.collect(10, 500*time.Millisecond)
	stuck, held := g.stuckPIDs(), g.held()
	slowest := g.watch(length, stuck, held, before)
	late := g.collect(10, 500*time.Millisecond)
	s.noPowerCommands()

	s.ok(s.lab.StorageAll(t.Context(), lab.StorageOK))
	s.whole()
	s.settled(60 * time.Second)
	after := g.collect(10, time.Second)
	s.noPowerCommands()

	for who, b := range before {
		for _, c := range columns {
			// The least of several: what comes and goes is no leak.
			for when, now := range map[string][]sample{"after seconds of hang": early[who], "at its end": late[who], "afterwards": after[who]} {
				limit := slices.MaxFunc(b, by(c.of))
				least := slices.MinFunc(now, by(c.of))
				if c.name != "of them stuck" && c.of(least) > c.of(limit)+slack {
					t.Errorf("P8: %s had %d %s before, %d %s", who, c.of(limit), c.name, c.of(least), when)
				}
			}
		}
		if n := len(after[who][len(after[who])-1].Stuck()); n > 0 {
			t.Errorf("%s still has %d stuck processes", who, n)
		}
	}
	t.Logf("HANG TABLE, %s of hang; least–most of three hosts\n%s", length, g.table(before, early, late, after))
	t.Logf("requests of each host that waited in the storage, early and late: %v, %v", held, g.heldLast)
	t.Logf("slowest answer of an agent meanwhile: %s", slowest.Round(10*time.Microsecond))
}

func by(of func(sample) int) func(a, b sample) int {
	return func(a, b sample) int { return of(a) - of(b) }
}

// gauge counts what the programs of a site have.
type gauge struct {
	*site
	web      *http.Client
	heldLast map[string]int
}

func newGauge(s *site) *gauge {
	s.t.Helper()
	pair, err := s.ca.IssueOperator("gauge", pki.RoleViewer, pki.DefaultOperatorLifetime)
	s.ok(err)
	creds, err := pki.NewCredentials("lab", s.ca.Pair().Cert, pair)
	s.ok(err)
	return &gauge{site: s, web: &http.Client{Transport: tlsmux.NewTransport(seat{s.lab}, creds, func(id haven.HostID) (string, bool) {
		h, err := s.lab.HostNamed(string(id))
		if err != nil {
			return "", false
		}
		return h.Address + ":7947", true
	})}}
}

// programs of each host that beat.
var programs = []string{"havend", "haven-helper"}

// collect takes n samples of every program of every host.
func (g *gauge) collect(n int, pause time.Duration) map[string][]sample {
	g.t.Helper()
	all := map[string][]sample{}
	for i := range n {
		if i > 0 {
			g.sleep(pause)
		}
		for who, v := range g.look() {
			all[who] = append(all[who], v)
		}
	}
	return all
}

// look takes one sample of every program.
func (g *gauge) look() map[string]sample {
	g.t.Helper()
	all := map[string]sample{}
	for _, h := range g.lab.Hosts() {
		for _, program := range programs {
			c, err := h.Census(g.t.Context(), program)
			g.ok(err)
			v := sample{Census: c}
			if program == "havend" {
				v.Goroutines = g.goroutines(h)
			}
			all[h.Name+" "+program] = v
		}
	}
	return all
}

// goroutines asks an agent for its count.
func (g *gauge) goroutines(h *lab.Host) int {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+h.Name+"/metrics", nil)
	g.ok(err)
	resp, err := g.web.Do(req)
	g.ok(err)
	defer func() { _ = resp.Body.Close() }()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), "go_goroutines "); ok {
			n, err := strconv.Atoi(v)
			g.ok(err)
			return n
		}
	}
	g.t.Fatalf("the metrics of %s name no goroutines (status %s)", h.Name, resp.Status)
	return 0
}

// eachStuck waits until a child of every program waits in the kernel.
func (g *gauge) eachStuck() {
	g.t.Helper()
	for range 120 {
		if slices.Index(mapCounts(g.look()), 0) < 0 {
			return
		}
		g.sleep(500 * time.Millisecond)
	}
	g.t.Fatal("the storage hangs, and still there is a program without a stuck process")
}

func mapCounts(all map[string]sample) (counts []int) {
	for _, v := range all {
		counts = append(counts, len(v.Stuck()))
	}
	return counts
}

func (g *gauge) stuckPIDs() map[string][]int {
	g.t.Helper()
	all := map[string][]int{}
	for who, v := range g.look() {
		all[who] = v.Stuck()
	}
	return all
}

// held counts the requests that wait in each host's storage.
func (g *gauge) held() map[string]int {
	g.t.Helper()
	all := map[string]int{}
	for _, h := range g.lab.Hosts() {
		st, err := h.StorageStatus(g.t.Context())
		g.ok(err)
		all[h.Name] = st.Held
	}
	return all
}

// watch checks again and again, for as long as the storage is to hang, that the
// stuck processes are still the same ones, that there is no second one, that no
// more requests wait than at first, and that every agent answers. It returns
// how long the slowest answer took.
func (g *gauge) watch(length time.Duration, stuck map[string][]int, held map[string]int, before map[string][]sample) (slowest time.Duration) {
	g.t.Helper()
	for end := time.Now().Add(length); time.Now().Before(end); g.sleep(min(5*time.Second, length/10)) {
		for who, v := range g.look() {
			// The one extra is a child that probes a disk, should an agent want to.
			if most := len(slices.MaxFunc(before[who], by(columns[0].of)).Children); len(v.Children) > most+1 {
				g.t.Fatalf("P8: %s has %d child processes, %d before: %v", who, len(v.Children), most, v.Children)
			}
			if got := v.Stuck(); !slices.Equal(got, stuck[who]) {
				g.t.Fatalf("P8: the stuck processes of %s were %v, now %v", who, stuck[who], got)
			}
		}
		g.heldLast = g.held()
		for host, n := range g.heldLast {
			if n > held[host] {
				g.t.Fatalf("P8: %d requests of %s wait in the storage, %d at first", n, host, held[host])
			}
		}
		for _, h := range g.lab.Hosts() {
			asked := time.Now()
			ctx, cancel := context.WithTimeout(g.t.Context(), 10*time.Second)
			var st client.Status
			err := g.api.Get(ctx, haven.HostID(h.Name), "/v1/status", &st)
			cancel()
			g.ok(err)
			slowest = max(slowest, time.Since(asked))
		}
	}
	return slowest
}

// table shows, for agents and for helpers, each count before, early and late in
// the hang, and afterwards.
func (g *gauge) table(times ...map[string][]sample) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-14s %-14s %10s %10s %10s %10s\n", "program", "count", "before", "early", "late", "after")
	for _, program := range programs {
		for _, c := range columns {
			if c.name == "goroutines" && program != "havend" {
				continue
			}
			fmt.Fprintf(&b, "%-14s %-14s", program, c.name)
			for _, at := range times {
				var all []sample
				for who, v := range at {
					if strings.HasSuffix(who, " "+program) {
						all = append(all, v...)
					}
				}
				fmt.Fprintf(&b, " %10s", fmt.Sprintf("%d–%d", c.of(slices.MinFunc(all, by(c.of))), c.of(slices.MaxFunc(all, by(c.of)))))
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

func (g *gauge) sleep(d time.Duration) {
	g.t.Helper()
	select {
	case <-time.After(d):
	case <-g.t.Context().Done():
		g.t.Fatal("out of time")
	}
}

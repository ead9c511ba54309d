package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/cluster"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/election"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/ledger"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/obs"
	"github.com/haven-ha/haven/internal/pki"
	"github.com/haven-ha/haven/internal/recovery"
	"github.com/haven-ha/haven/internal/world"
	"github.com/haven-ha/haven/vmrestart"
)

// parts are what one agent on loopback needs, without a store and a BMC.
func parts(t *testing.T, last byte) Deps {
	t.Helper()
	return partsWith(t, last, 2)
}

// partsWith are those of one of several configured hosts, of which the others
// do not exist.
func partsWith(t *testing.T, last byte, hosts int) Deps {
	t.Helper()
	dir := t.TempDir()
	addr := netip.AddrFrom4([4]byte{127, byte(os.Getpid()>>8) | 1, byte(os.Getpid()), last})
	cfg, err := config.Parse("test.yaml", fmt.Appendf(nil, `
cluster: prod-a
data_dir: %[1]s
bootstrap_expect: %[3]d
gossip: {port: 7946, key_file: %[1]s/gossip.key}
api: {port: 7947, ca_file: %[1]s/ca.pem, cert_file: %[1]s/host.pem, key_file: %[1]s/host.key}
helper: {port: 8443, cert_file: %[1]s/host.pem, key_file: %[1]s/host.key, username: haven, password_file: %[1]s/helper.password}
fencing: {action: none}
hosts:
  kvm-01: {address: %[2]s}
%[4]s
`, dir, addr, hosts/2+1, strings.Repeat("  kvm-02: {address: 127.0.0.99}\n", hosts-1)))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.NewCA("prod-a", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.IssueHost("kvm-01", []netip.Addr{addr}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	creds, err := pki.NewCredentials("prod-a", ca.Pair().Cert, pair)
	if err != nil {
		t.Fatal(err)
	}
	machine := world.New(func(string) {}).Add("kvm-01", 4096)
	machine.PowerOn()
	_, boot := machine.On()
	d := Deps{
		Config: cfg, Host: "kvm-01", Boot: boot, Version: "test", Net: netx.Real{}, Credentials: creds,
		GossipKeys: []cluster.Key{make([]byte, 32)}, Raft: election.DirStorage(filepath.Join(dir, "raft")),
		Journal: vmrestart.FileJournal{Path: filepath.Join(dir, "orders.json")}, Hypervisor: machine.Hypervisor(),
		Probe: noProbe{}, Boottime: boottime, Metrics: obs.NewMetrics(), Log: slog.New(slog.DiscardHandler),
	}
	if d.State, d.Incarnation, err = OpenIdentity(dir); err != nil {
		t.Fatal(err)
	}
	return d
}

type noProbe struct{}

func (noProbe) ReadProbe(context.Context, string) error { return nil }

// settled waits until no more goroutines and files are open than before: the
// runtime takes a moment to forget those that ended.
func settled(t *testing.T, goroutines, files int) {
	t.Helper()
	var g, f int
	for range 200 {
		runtime.Gosched()
		g, f = runtime.NumGoroutine(), openFiles(t)
		if g <= goroutines && f <= files {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	buf := make([]byte, 1<<20)
	t.Fatalf("%d goroutines and %d files before, %d and %d after:\n%s", goroutines, files, g, f, buf[:runtime.Stack(buf, true)])
}

func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestNewThatFailsLeavesNothing: whatever New opened before it failed is closed,
// the port above all: the next try must find it free.
func TestNewThatFailsLeavesNothing(t *testing.T) {
	tests := []struct {
		name   string
		damage func(t *testing.T, d *Deps)
	}{
		{"a host that is not configured", func(_ *testing.T, d *Deps) { d.Host = "kvm-09" }},
		{"a damaged order journal", func(t *testing.T, d *Deps) {
			path := filepath.Join(t.TempDir(), "orders.json")
			if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			d.Journal = vmrestart.FileJournal{Path: path}
		}},
		{"no gossip key", func(_ *testing.T, d *Deps) { d.GossipKeys = nil }},
		{"a gossip port in use", func(t *testing.T, d *Deps) {
			self, _ := d.Config.Host(d.Host)
			l, err := net.Listen("tcp", hostPort(self.Address, d.Config.Gossip.Port))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
		}},
		{"a store without a name", func(_ *testing.T, d *Deps) { d.Stores = []Store{{}} }},
		{"a Raft directory that is a file", func(t *testing.T, d *Deps) {
			path := filepath.Join(t.TempDir(), "raft")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			d.Raft = election.DirStorage(path)
		}},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			good := parts(t, byte(10+i))
			goroutines, files := runtime.NumGoroutine(), openFiles(t)
			bad := good
			bad.Metrics = obs.NewMetrics()
			t.Run("broken", func(t *testing.T) {
				tt.damage(t, &bad)
				if _, err := New(bad); err == nil {
					t.Fatal("New did not fail")
				}
			})
			settled(t, goroutines, files)
			a, err := New(good)
			if err != nil {
				t.Fatalf("the next try: %v", err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := a.Run(ctx); err != nil {
				t.Errorf("Run with a context that has ended: %v", err)
			}
			settled(t, goroutines, files)
		})
	}
}

// TestAgentLeavesNothingBehind (P8): an agent that is started and stopped again
// and again leaves no goroutine and no file open.
func TestAgentLeavesNothingBehind(t *testing.T) {
	d := parts(t, 50)
	var goroutines, files int
	for i := range 20 {
		d.Metrics = obs.NewMetrics()
		a, err := New(d)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.Run(ctx) }()
		for a.judgement.Load() == nil { // it lives
			time.Sleep(time.Millisecond)
		}
		if i%3 == 0 { // nobody is there to be told, and no master
			bye, cancel := context.WithTimeout(ctx, 6*time.Second)
			if err := a.Leave(bye, haven.LeaveStopped); err != nil {
				t.Errorf("leave: %v", err)
			}
			cancel()
		}
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			goroutines, files = runtime.NumGoroutine(), openFiles(t)
		}
	}
	settled(t, goroutines, files)
}

// run runs an agent until the test ends.
func run(t *testing.T, d Deps) *Agent {
	t.Helper()
	a, err := New(d)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return a
}

// TestJudgementDoesNotWaitForCommits (P6, P8): while the ledger takes its time, a
// master goes on judging, and its loop stays in time. Else every slow commit
// would make it an observer that trusts nobody, and undo what was confirmed.
func TestJudgementDoesNotWaitForCommits(t *testing.T) {
	d := partsWith(t, 60, 1)
	blocked, free := make(chan struct{}), make(chan struct{})
	var once sync.Once
	d.Applied = func(ledger.Position, []ledger.Command, []error) {
		once.Do(func() {
			close(blocked)
			<-free
		})
	}
	a := run(t, d)
	defer close(free)
	<-blocked                            // the founding of the ledger, which the master's duty waits for
	guard := time.After(4 * time.Second) // a commit is waited for for five
	seen := map[*judged]bool{}
	for len(seen) < 10 {
		seen[a.judgement.Load()] = true
		select {
		case <-guard:
			t.Fatalf("%d judgements while a commit was under way", len(seen))
		case <-time.After(10 * time.Millisecond):
		}
	}
	if ok := a.loop.ok(); ok != haven.Yes {
		t.Errorf("the loop is in time: %s", ok)
	}
}

// TestActsOfAnEarlierMastery: what was begun in one term does not end in the
// next, and an act that could not be begun has an end all the same.

func TestActsOfAnEarlierMastery(t *testing.T) {
	a := &Agent{done: make(chan ended, 8), kicked: make(chan struct{}, 1)}
	first, second := new(mastery), new(mastery)
	fence := recovery.Fence{Host: "kvm-02", N: 1}
	a.reign.Store(first)
	a.tellDone(t.Context(), first, recovery.Done{Act: fence})
	a.reign.Store(second)
	a.tellDone(t.Context(), first, recovery.Done{Act: fence})
	if got := a.takeDone(second); len(got) != 0 {
		t.Errorf("the second mastery was told of %v", got)
	}
	a.giveUp(t.Context(), second, []recovery.Act{fence, recovery.Ask{Host: "kvm-03"}}, errors.New("not committed"))
	a.owned.Wait()
	got := a.takeDone(second)
	if len(got) != 2 || got[0].Err == nil || got[1].Err == nil {
		t.Errorf("of two acts that were given up the machine is told %v", got)
	}
}

// TestStillDead guards P4 right before a power command: only a fresh judgement
// of this very boot is for it.
func TestStillDead(t *testing.T) {
	now := time.Now()
	act := recovery.Fence{Host: "kvm-02", Boot: "b2"}
	tests := []struct {
		name    string
		verdict haven.Verdict
		boot    haven.BootID
		host    haven.HostID
		age     time.Duration
		want    bool
	}{
		{"dead by its BMC", haven.VerdictDead, "b2", "kvm-02", 0, true},
		{"failed, but the detector withholds it", haven.VerdictFailed, "b2", "kvm-02", 0, false},
		{"came back", haven.VerdictHealthy, "b2", "kvm-02", 0, false},
		{"nobody knows", haven.VerdictUnknown, "b2", "kvm-02", 0, false},
		{"in another boot", haven.VerdictDead, "b1", "kvm-02", 0, false},
		{"another host", haven.VerdictDead, "b2", "kvm-03", 0, false},
		{"a judgement of long ago", haven.VerdictDead, "b2", "kvm-02", 2 * time.Second, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			j := &judged{
				at: now.Add(-tt.age), boots: map[haven.HostID]haven.BootID{tt.host: tt.boot}, hosts: map[haven.HostID]int{tt.host: 0},
				out: detector.Output{Hosts: []detector.Judgement{{Host: tt.host, Verdict: tt.verdict}}},
			}
			if err := j.stillDead(now, act); (err == nil) != tt.want {
				t.Errorf("%v, want it allowed: %t", err, tt.want)
			}
		})
	}
	if (*judged)(nil).stillDead(now, act) == nil {
		t.Error("allowed without a judgement")
	}
}

// TestEndIsBounded (P8): a part that never ends does not keep the process.
func TestEndIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, stuck := time.Now(), make(chan struct{})
		if within(endLimit, func() { <-stuck }) {
			t.Error("it waited for what never ended")
		}
		if took := time.Since(begun); took != endLimit {
			t.Errorf("it took %s", took)
		}
		close(stuck)
		if !within(endLimit, func() {}) {
			t.Error("it did not wait for what ended")
		}
	})
}

// awaitReign waits until an agent is a master that is ready.
func awaitReign(t *testing.T, a *Agent) {
	t.Helper()
	for limit := time.Now().Add(time.Minute); !a.isMaster(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("the agent does not become the master")
		}
	}
}

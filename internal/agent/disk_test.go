package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/blockio"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/diskwatch"
	"github.com/haven-ha/haven/internal/ledger"
)

const diskVM = haven.VMID("11111111-1111-4111-8111-111111111111")

// pool is storage whose files change when told to.
type pool struct {
	mu    sync.Mutex
	times map[string]int64
	reads int
	rests int
	hung  bool
}

func (p *pool) Rest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rests++
}

func (p *pool) Written(xml []byte) ([]diskwatch.Disk, error) {
	if len(xml) == 0 {
		return nil, errors.New("empty")
	}
	return []diskwatch.Disk{{Path: string(xml)}}, nil
}

func (p *pool) Stat(ctx context.Context, paths []string) (found []diskwatch.Found) {
	p.mu.Lock()
	hung := p.hung
	p.reads++
	p.mu.Unlock()
	begun := time.Now()
	if hung {
		<-ctx.Done()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, path := range paths {
		f := diskwatch.Found{Path: path, Started: begun, Ended: time.Now(), Err: ctx.Err()}
		if f.Err == nil {
			f.Attr = blockio.Attr{Dev: 1, Ino: 1, MTime: p.times[path], Regular: true, FileSystem: "nfs", Shared: true}
		}
		found = append(found, f)
	}
	return found
}

func (p *pool) write(path string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.times[path]++
}

// watching is an agent that does nothing but watch disks.
func watching(t *testing.T, p *pool) *Agent {
	t.Helper()
	a := &Agent{d: Deps{Disks: p}, origin: time.Now(), disks: newDiskWatches(35*time.Second, 3)}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); a.watchDisks(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	return a
}

func (a *Agent) askedDisks(t *testing.T, host haven.HostID, paths ...string) client.DiskAnswer {
	t.Helper()
	q := client.DiskRequest{Host: host}
	for _, p := range paths {
		q.Disks = append(q.Disks, client.WatchedDisk{VM: diskVM, Path: p})
	}
	answer, err := a.diskActivity(q)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// TestDiskWatch guards P5 and P8: a neighbour reads on by itself between two
// questions, tells activity at once and idleness late, lets a hung turn hold
// nobody else up, and ends a watch that nobody asks about.
func TestDiskWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pool{times: map[string]int64{}}
		a := watching(t, p)
		if s := a.askedDisks(t, "kvm-02", "/pool/a", "/pool/b"); s.Active != haven.Unknown || s.Seen != 0 {
			t.Errorf("before the first reading: %+v", s)
		}
		time.Sleep(3500 * time.Millisecond)
		p.write("/pool/b")
		time.Sleep(time.Second)
		if s := a.askedDisks(t, "kvm-02", "/pool/a", "/pool/b"); s.Active != haven.Yes || s.Seen != 2 || s.Age.Duration() > 2*time.Second {
			t.Errorf("after a write: %+v", s)
		}
		time.Sleep(34 * time.Second)
		if s := a.askedDisks(t, "kvm-02", "/pool/a", "/pool/b"); s.Active != haven.Yes || s.Quiet.Duration() < 32*time.Second {
			t.Errorf("34s after a write: %+v", s)
		}
		time.Sleep(4 * time.Second)
		if s := a.askedDisks(t, "kvm-02", "/pool/a", "/pool/b"); s.Active != haven.No || s.Span.Duration() < 35*time.Second {
			t.Errorf("38s after a write: %+v", s)
		}

		p.mu.Lock()
		p.hung = true
		p.mu.Unlock()
		time.Sleep(20 * time.Second)
		if s := a.askedDisks(t, "kvm-02", "/pool/a", "/pool/b"); s.Active != haven.Unknown {
			t.Errorf("while the pool hangs: %+v", s)
		}
		p.mu.Lock()
		p.hung = false
		p.mu.Unlock()
		time.Sleep(2 * diskKept)
		p.mu.Lock()
		reads := p.reads
		p.mu.Unlock()
		time.Sleep(time.Minute)
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.reads != reads || len(a.disks.all) != 0 || p.rests != 1 {
			t.Errorf("%d readings, %d watches and %d rests after nobody asked for long", p.reads-reads, len(a.disks.all), p.rests)
		}
	})
}

// TestDiskWatchBounded guards P8: there is a limit to what a master can make a
// neighbour do.
func TestDiskWatchBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pool{times: map[string]int64{}, hung: true}
		a := watching(t, p)
		for i := range maxWatched {
			a.askedDisks(t, haven.HostID(fmt.Sprintf("kvm-%02d", i)), "/pool/a")
		}
		if _, err := a.diskActivity(client.DiskRequest{Host: "kvm-99"}); !errors.Is(err, haven.ErrUnavailable) {
			t.Errorf("one host too many: %v", err)
		}
		time.Sleep(diskTurn / 2)
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.reads != maxWatched {
			t.Errorf("%d turns are under way, want one for each of %d hosts", p.reads, maxWatched)
		}
	})
}

// TestDiskListBad: what is not a list of disks is refused as a whole.
func TestDiskListBad(t *testing.T) {
	a := &Agent{origin: time.Now(), disks: newDiskWatches(time.Second, 1)}
	_, err := a.diskActivity(client.DiskRequest{Host: "kvm-02", Disks: []client.WatchedDisk{{VM: diskVM, Path: "/pool/../etc/shadow"}}})
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != 400 || len(a.disks.all) != 0 {
		t.Errorf("got %v, and %d watches", err, len(a.disks.all))
	}
}

// TestDiskObservers guards the comparison of readings: the same neighbours are
// asked again as long as they see something, and others in place of the blind.
func TestDiskObservers(t *testing.T) {
	e := newDiskEvidence()
	now := time.Now()
	if !e.begin("kvm-05", now) || e.begin("kvm-05", now) {
		t.Fatal("one question at a time is begun")
	}
	is := func(what string, want []haven.HostID, candidates ...haven.HostID) {
		t.Helper()
		got := e.observers("kvm-05", candidates, now)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	is("at first", []haven.HostID{"kvm-01", "kvm-02"}, "kvm-01", "kvm-02", "kvm-03")
	is("in another order", []haven.HostID{"kvm-01", "kvm-02"}, "kvm-03", "kvm-02", "kvm-01")
	now = now.Add(diskBlindAfter - time.Second)
	e.told("kvm-05", "kvm-01", client.DiskAnswer{Seen: 1, Age: 100, Active: haven.Yes, Quiet: 50, Why: "it writes"}, now, time.Minute)
	e.told("kvm-05", "kvm-02", client.DiskAnswer{}, now, time.Minute)
	now = now.Add(2 * time.Second)
	is("one is blind", []haven.HostID{"kvm-01", "kvm-03"}, "kvm-01", "kvm-02", "kvm-03")
	is("nobody is better than the blind one", []haven.HostID{"kvm-01", "kvm-02"}, "kvm-01", "kvm-02")
	is("one is gone", []haven.HostID{"kvm-02", "kvm-03"}, "kvm-02", "kvm-03")

	d := e.view("kvm-05")
	if len(d) != 2 || d[0].Observer != "kvm-01" || d[0].Active != haven.Yes || d[0].At != time.Minute-100*time.Millisecond || d[0].Quiet != 50*time.Millisecond || d[0].Why != "it writes" {
		t.Errorf("what was told: %+v", d)
	}
	e.end("kvm-05")
	if !e.begin("kvm-06", now.Add(2*diskKept)) || e.view("kvm-05") != nil {
		t.Error("what is long over is not forgotten")
	}
}

// TestDiskActivityRights guards a neighbour's files: only the master that it
// knows, in a term that is not over, may ask, and never about this host.
func TestDiskActivityRights(t *testing.T) {
	d := partsWith(t, 7, 2)
	d.Disks = &pool{times: map[string]int64{}}
	a, err := New(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(a.election.Close(), a.cluster.Close(), a.closePort()); err != nil {
			t.Log(err)
		}
	})
	for _, tt := range []struct {
		name string
		from haven.HostID
		host haven.HostID
		want error
	}{
		{"about itself", "kvm-02", "kvm-01", haven.ErrNotFound},
		{"about a stranger", "kvm-02", "kvm-77", haven.ErrNotFound},
		{"by who does not lead", "kvm-02", "kvm-02", haven.ErrNotMaster},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := a.DiskActivity(t.Context(), tt.from, client.DiskRequest{Host: tt.host, Disks: []client.WatchedDisk{{VM: diskVM, Path: "/etc/shadow"}}})
			if !errors.Is(err, tt.want) || len(a.disks.all) != 0 {
				t.Errorf("got %v and %d watches, want %v", err, len(a.disks.all), tt.want)
			}
		})
	}
	if got := a.cfg.Detection.DiskIdle; got != config.Default(config.ProfileNormal).Detection.DiskIdle {
		t.Errorf("disk_idle is %s", got)
	}
}

func TestLeads(t *testing.T) {
	older, newer := haven.Term{Generation: 1, Term: 4}, haven.Term{Generation: 1, Term: 5}
	for _, tt := range []struct {
		name          string
		from, master  haven.HostID
		term, highest haven.Term
		want          error
	}{
		{"the master", "kvm-01", "kvm-01", newer, newer, nil},
		{"a new master", "kvm-01", "kvm-01", newer, older, nil},
		{"an old master", "kvm-01", "kvm-01", older, newer, haven.ErrStaleTerm},
		{"another host", "kvm-02", "kvm-01", newer, newer, haven.ErrNotMaster},
		{"no master is known", "kvm-02", "", newer, newer, haven.ErrNotMaster},
		{"nobody, and no master is known", "", "", newer, newer, haven.ErrNotMaster},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := leads(tt.from, tt.master, tt.term, tt.highest); !errors.Is(err, tt.want) || tt.want == nil && err != nil {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// TestListDisks guards P5: the list is that of the VMs that the host may run, and
// whatever of it nobody can see is in it as that.
func TestListDisks(t *testing.T) {
	a := &Agent{
		d: Deps{Disks: &pool{}}, cfg: config.Default(config.ProfileNormal), ledger: ledger.NewStore(), ev: newEvidence(), diskEvidence: newDiskEvidence(),
	}
	id := func(n int) haven.VMID { return haven.VMID(fmt.Sprintf("00000000-0000-4000-8000-%012d", n)) }
	add := func(n int, owner haven.HostID, phase ledger.Phase, want ledger.Desired, xml string) {
		d, err := ledger.Pack([]byte(xml))
		if err != nil {
			t.Fatal(err)
		}
		a.ledger.View(func(s *ledger.State, _ ledger.Position) {
			s.VMs[id(n)] = &ledger.VM{ID: id(n), Owner: owner, Phase: phase, Desired: want, Definition: d}
		})
	}
	add(1, "kvm-02", ledger.PhaseOwned, ledger.DesiredRunning, "/pool/1")
	add(2, "kvm-02", ledger.PhaseOwned, ledger.DesiredStopped, "/pool/2")
	add(3, "kvm-02", ledger.PhaseOrdered, ledger.DesiredRunning, "/pool/3")
	add(4, "kvm-02", ledger.PhaseFreed, ledger.DesiredRunning, "/pool/4")
	add(5, "kvm-01", ledger.PhaseOwned, ledger.DesiredRunning, "/pool/5")
	add(6, "kvm-02", ledger.PhaseOwned, ledger.DesiredRunning, "")
	add(7, "kvm-02", ledger.PhaseOwned, ledger.DesiredRunning, "/pool/7")
	report := func(host haven.HostID, vms ...haven.VMInfo) {
		a.ev.report(&client.Report{Identity: client.Identity{Host: host, Boot: "boot"}, Inventory: &haven.Inventory{VMs: vms, Complete: true}, InventorySHA: "sha"}, time.Now())
	}
	report("kvm-02", haven.VMInfo{ID: id(1), State: haven.VMRunning}, haven.VMInfo{ID: id(2), State: haven.VMShutOff}, haven.VMInfo{ID: id(8), State: haven.VMRunning})
	report("kvm-03", haven.VMInfo{ID: id(7), State: haven.VMRunning})

	got, partial := a.listDisks("kvm-02")
	want := []client.WatchedDisk{
		{VM: id(1), Path: "/pool/1"},
		{VM: id(3), Path: "/pool/3"},
		{VM: id(6), Blind: "its definition cannot be read: empty"},
		{VM: id(7), Blind: "host kvm-03 says that it has this VM"},
		{VM: id(8), Blind: "it ran there, and by the ledger it is not that host's to run"},
	}
	if partial || !slices.Equal(got, want) {
		t.Errorf("got %+v, %t\nwant %+v", got, partial, want)
	}
	for n := 100; n < 100+diskwatch.MaxDisks; n++ {
		add(n, "kvm-02", ledger.PhaseOwned, ledger.DesiredRunning, fmt.Sprintf("/pool/%d", n))
	}
	if got, partial := a.listDisks("kvm-02"); len(got) != diskwatch.MaxDisks || !partial {
		t.Errorf("%d of too many disks, partial %t", len(got), partial)
	}
}

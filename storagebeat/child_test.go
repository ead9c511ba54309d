package storagebeat

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	haven "github.com/haven-ha/haven"
)

// TestMain makes the test program its own store child, one that can be told to
// hang or die by files in a directory.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "store-child" {
		faults := os.Args[2]
		os.Exit(childMain(os.Args[3:], os.Stdin, os.Stdout, func(o op) {
			for exists(filepath.Join(faults, "hang-"+string(o))) {
				time.Sleep(time.Millisecond)
			}
			if exists(filepath.Join(faults, "die-"+string(o))) {
				os.Exit(9)
			}
		}))
	}
	if len(os.Args) > 2 && os.Args[1] == "real-store-child" {
		os.Exit(ChildMain(os.Args[2:], os.Stdin, os.Stdout))
	}
	if len(os.Args) > 1 && os.Args[1] == "labfs" {
		os.Exit(serveLabfs(os.Args[2:]))
	}
	if len(os.Args) > 3 && os.Args[1] == "parent-of-child" {
		os.Exit(parentOfChild(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// startChild returns a Child for a store whose faults are switched by set.
func startChild(t testing.TB, path string, timeout time.Duration) (c *Child, set func(fault string, on bool)) {
	t.Helper()
	faults := t.TempDir()
	c, err := NewChild(ChildConfig{
		Command: []string{"/proc/self/exe", "store-child", faults}, Path: path, Cluster: "prod", Timeout: timeout, Stderr: os.Stderr,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, func(fault string, on bool) {
		t.Helper()
		if on {
			overwrite(t, filepath.Join(faults, fault), "")
		} else {
			remove(t, filepath.Join(faults, fault))
		}
	}
}

// longTimeout is for operations that must not run into it on a busy machine.
const longTimeout = time.Minute

// until asks again until ask is content. The kernel tells nobody when it is
// done with a process.
func until(t testing.TB, what string, ask func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = ask(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func TestChildReadsAndWrites(t *testing.T) {
	path, id := makeStore(t, "prod")
	agent, _ := startChild(t, path, longTimeout)
	helper, _ := startChild(t, path, longTimeout)
	for seq := uint64(1); seq <= 3; seq++ {
		if err := agent.Write(t.Context(), rawOf(t, beatOf(id.ID, "kvm-01", WriterAgent, seq))); err != nil {
			t.Fatal(err)
		}
		if err := helper.Write(t.Context(), rawOf(t, beatOf(id.ID, "kvm-01", WriterHelper, 10*seq))); err != nil {
			t.Fatal(err)
		}
		c, err := agent.ReadAll(t.Context())
		if err != nil || c.Identity != id || len(c.Beats) != 2 {
			t.Fatalf("%+v, %v", c, err)
		}
		for i, want := range []uint64{seq, 10 * seq} {
			if b, err := DecodeAt(id.ID, c.Beats[i]); err != nil || b.Sequence != want {
				t.Fatalf("record %d: %+v, %v", i, b, err)
			}
		}
	}
	if s := agent.Stats(); s.Started != 1 || s.Abandoned != 0 || s.PID == 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestChildCarriesErrors(t *testing.T) {
	path, id := makeStore(t, "prod")
	c, _ := startChild(t, path, longTimeout)
	overwrite(t, filepath.Join(path, beatsName, "kvm-02.agent"), "")
	mkdir(t, filepath.Join(path, beatsName, "kvm-03.agent"))
	contents, err := c.ReadAll(t.Context())
	if err != nil || len(contents.Beats) != 2 || contents.Beats[0].Err != nil || contents.Beats[1].Err == nil {
		t.Fatalf("%+v, %v", contents, err)
	}
	if err := c.Write(t.Context(), rawOf(t, beatOf(testStore(9), "kvm-01", WriterAgent, 1))); !errors.Is(err, ErrForeign) {
		t.Errorf("a beat for another store: %v", err)
	}
	if got, err := c.Init(t.Context(), InitOptions{Cluster: "prod"}); !errors.Is(err, ErrNotEmpty) || got != id {
		t.Errorf("init over a store: %v, %v", got, err)
	}
	if r, err := c.Check(t.Context()); err != nil || r.Identity != id || r.Records != 2 {
		t.Errorf("check: %+v, %v", r, err)
	}
	remove(t, filepath.Join(path, identityName))
	if _, err := c.ReadAll(t.Context()); !errors.Is(err, ErrNoIdentity) || !strings.Contains(err.Error(), path) {
		t.Errorf("no identity: %v", err)
	}
	if s := c.Stats(); s.Started != 1 {
		t.Errorf("an error cost a process: %+v", s)
	}
}

func TestChildInits(t *testing.T) {
	path := filepath.Join(t.TempDir(), ".haven")
	c, _ := startChild(t, path, longTimeout)
	if _, err := c.ReadAll(t.Context()); !errors.Is(err, ErrNoIdentity) {
		t.Fatalf("before: %v", err)
	}
	id, err := c.Init(t.Context(), InitOptions{Cluster: "prod"})
	if err != nil || id.Cluster != "prod" {
		t.Fatalf("%v, %v", id, err)
	}
	if got, err := c.ReadAll(t.Context()); err != nil || got.Identity != id {
		t.Fatalf("%v, %v", got, err)
	}
}

func TestReadProbe(t *testing.T) {
	c, set := startChild(t, "", longTimeout)
	dir := t.TempDir()
	disk, small, fifo := filepath.Join(dir, "disk"), filepath.Join(dir, "small"), filepath.Join(dir, "fifo")
	overwrite(t, disk, strings.Repeat("x", 8192))
	overwrite(t, small, "x")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, path string
		octets     int
		fails      bool
	}{
		{"a disk", disk, 4096, false},
		{"a small file", small, 1, false},
		{"not there", filepath.Join(dir, "none"), 0, true},
		{"a FIFO", fifo, 0, true},
		{"a directory", dir, 0, true},
		{"a relative path", "disk", 0, true},
		{"no path", "", 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := c.ReadProbe(t.Context(), tc.path)
			if (err != nil) != tc.fails || p.Octets != tc.octets {
				t.Fatalf("%+v, %v", p, err)
			}
		})
	}
	t.Run("P8: hung", func(t *testing.T) {
		set("hang-probe", true)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := c.ReadProbe(ctx, disk); !errors.Is(err, ErrTimeout) {
			t.Fatal(err)
		}
	})
	if _, err := c.ReadAll(t.Context()); err == nil {
		t.Error("a child without a store read one")
	}
}

// hangMany lets a store hang for many operations and returns the most
// processes and goroutines that were seen.
func hangMany(t *testing.T, c *Child, n int) (processes, goroutines int) {
	t.Helper()
	for range n {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		_, err := c.ReadAll(ctx)
		cancel()
		if !errors.Is(err, ErrTimeout) && !errors.Is(err, ErrStuck) {
			t.Fatalf("a hung store: %v", err)
		}
		processes = max(processes, len(childrenOf(t, os.Getpid())))
		goroutines = max(goroutines, runtime.NumGoroutine())
	}
	return processes, goroutines
}

func childrenOf(t testing.TB, pid int) (pids []string) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tasks {
		b, _ := os.ReadFile(f) // A thread may end while we look.
		pids = append(pids, strings.Fields(string(b))...)
	}
	return pids
}

func TestHungStoreCostsOneProcess(t *testing.T) {
	path, _ := makeStore(t, "prod")
	c, set := startChild(t, path, longTimeout)
	if _, err := c.ReadAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	set("hang-read", true)
	processes, goroutines := hangMany(t, c, 30)
	if processes > 1 || goroutines > before+1 {
		t.Errorf("P8: %d processes, %d goroutines; before %d goroutines", processes, goroutines, before)
	}
	if s := c.Stats(); s.Abandoned == 0 || s.Started > s.Abandoned+1 {
		t.Errorf("stats %+v", s)
	}
	set("hang-read", false)
	until(t, "the store comes back", func() error { _, err := c.ReadAll(t.Context()); return err })
}

// TestUnkillableChildIsTheOnlyOne hangs a store in the kernel, where a kill has
// no effect until the storage answers, as on a dead disk.
func TestUnkillableChildIsTheOnlyOne(t *testing.T) {
	path, id := makeStore(t, "prod")
	release := mountHung(t, path)
	c, _ := startChild(t, path, longTimeout)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := c.ReadAll(ctx); !errors.Is(err, ErrTimeout) {
		t.Fatalf("first: %v", err)
	}
	pid := c.Stats().PID
	until(t, "the child hangs in the kernel", func() error {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if !slices.ContainsFunc(tasks, func(f string) bool { return stateOf(f) == "D" }) {
			return fmt.Errorf("no thread of process %d is in state D", pid)
		}
		return nil
	})
	before := runtime.NumGoroutine()
	for range 100 {
		started := time.Now()
		if _, err := c.ReadAll(t.Context()); !errors.Is(err, ErrStuck) {
			t.Fatalf("while it hangs: %v after %s", err, time.Since(started))
		}
		if err := c.Write(t.Context(), rawOf(t, beatOf(id.ID, "a", WriterAgent, 1))); !errors.Is(err, ErrStuck) {
			t.Fatalf("while it hangs: %v", err)
		}
	}
	s := c.Stats()
	if s.Started != 1 || s.Abandoned != 1 || !s.Stuck || s.PID != pid || len(childrenOf(t, os.Getpid())) != 1 {
		t.Errorf("P8: stats %+v, children %v", s, childrenOf(t, os.Getpid()))
	}
	if now := runtime.NumGoroutine(); now > before {
		t.Errorf("P8: %d goroutines, before %d", now, before)
	}
	release()
	until(t, "the store comes back", func() error { _, err := c.ReadAll(t.Context()); return err })
	if s := c.Stats(); s.Started != 2 || s.Stuck {
		t.Errorf("stats %+v", s)
	}
}

func TestCloseLeavesAnUnkillableChild(t *testing.T) {
	path, _ := makeStore(t, "prod")
	release := mountHung(t, path)
	c, err := NewChild(ChildConfig{
		Command: []string{"/proc/self/exe", "store-child", t.TempDir()}, Path: path, Cluster: "prod", Timeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadAll(t.Context()); !errors.Is(err, ErrTimeout) {
		t.Fatal(err)
	}
	if err := c.Close(); !errors.Is(err, ErrStuck) {
		t.Errorf("close: %v", err)
	}
	release()
	until(t, "the child ends", c.Close)
}

// stateOf reads the state from a stat file of a process or thread; it is empty
// when that is gone.
func stateOf(stat string) string {
	b, err := os.ReadFile(stat)
	if err != nil {
		return ""
	}
	_, after, _ := bytes.Cut(b, []byte(") "))
	return string(after[:min(1, len(after))])
}

// mountHung mounts a file system over a directory that takes requests and never
// answers them, until it is released. It needs to be root.
func mountHung(t *testing.T, path string) (release func()) {
	t.Helper()
	fd, err := syscall.Open("/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("open /dev/fuse: %v", err)
	}
	if err := syscall.Mount("haven-hung", path, "fuse.haven-hung", syscall.MS_NOSUID|syscall.MS_NODEV,
		fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		_ = syscall.Close(fd)
		t.Skipf("mount: %v", err)
	}
	// Only now: a poller that watches the device from before the mount is
	// never woken.
	f := os.NewFile(uintptr(fd), "fuse")
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1<<17)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			if n >= 40 && binary.LittleEndian.Uint32(buf[4:]) == 26 { // FUSE_INIT
				answer := make([]byte, 16+64)
				binary.LittleEndian.PutUint32(answer, uint32(len(answer)))
				copy(answer[8:16], buf[8:16])
				binary.LittleEndian.PutUint32(answer[16:], 7)
				binary.LittleEndian.PutUint32(answer[20:], 31)
				binary.LittleEndian.PutUint32(answer[36:], 4096) // the longest write
				if _, err := f.Write(answer); err != nil {
					return
				}
			}
		}
	})
	release = sync.OnceFunc(func() {
		// Without its server the kernel ends all requests of the file system.
		_ = syscall.Unmount(path, syscall.MNT_DETACH)
		_ = f.Close()
		wg.Wait()
	})
	t.Cleanup(release)
	return release
}

func TestChildThatDiesIsReplaced(t *testing.T) {
	path, id := makeStore(t, "prod")
	c, set := startChild(t, path, longTimeout)
	set("die-write", true)
	for range 3 {
		if err := c.Write(t.Context(), rawOf(t, beatOf(id.ID, "a", WriterAgent, 1))); err == nil || errors.Is(err, ErrTimeout) {
			t.Fatalf("a dying child: %v", err)
		}
	}
	if s := c.Stats(); s.Abandoned != 0 {
		t.Errorf("stats %+v: it was not abandoned, it died", s)
	}
	set("die-write", false)
	until(t, "a new child", func() error { return c.Write(t.Context(), rawOf(t, beatOf(id.ID, "a", WriterAgent, 2))) })
}

func TestChildKilledInTheMiddle(t *testing.T) {
	path, _ := makeStore(t, "prod")
	c, set := startChild(t, path, longTimeout)
	if _, err := c.ReadAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	set("hang-read", true)
	done := make(chan error)
	go func() { _, err := c.ReadAll(t.Context()); done <- err }()
	// Whether the kill comes before, in or after the request: it fails at once.
	if err := syscall.Kill(c.Stats().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil || errors.Is(err, ErrTimeout) {
		t.Fatalf("got %v", err)
	}
	set("hang-read", false)
	until(t, "a new child", func() error { _, err := c.ReadAll(t.Context()); return err })
}

func TestOneOperationAtATime(t *testing.T) {
	path, _ := makeStore(t, "prod")
	c, set := startChild(t, path, longTimeout)
	if _, err := c.ReadAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	set("hang-read", true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { _, err := c.ReadAll(ctx); done <- err }()
	until(t, "the first operation has the turn", func() error {
		if len(c.turn) == 0 {
			return errors.New("nobody has it")
		}
		return nil
	})
	short, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer stop()
	if _, err := c.Check(short); !errors.Is(err, ErrBusy) {
		t.Errorf("the second: %v", err)
	}
	if s := c.Stats(); s.Abandoned != 0 {
		t.Error("waiting for its turn cost somebody else's child")
	}
	cancel()
	if err := <-done; !errors.Is(err, ErrTimeout) {
		t.Errorf("the first: %v", err)
	}
	set("hang-read", false)
	until(t, "a new child", func() error { _, err := c.ReadAll(t.Context()); return err })
}

func TestCloseEndsTheOperation(t *testing.T) {
	path, _ := makeStore(t, "prod")
	c, set := startChild(t, path, longTimeout)
	if _, err := c.ReadAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	set("hang-read", true)
	done := make(chan error)
	go func() { _, err := c.ReadAll(t.Context()); done <- err }()
	until(t, "the operation has the turn", func() error {
		if len(c.turn) == 0 {
			return errors.New("nobody has it")
		}
		return nil
	})
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("the operation: %v", err)
	}
	if _, err := c.ReadAll(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after close: %v", err)
	}
	if s := c.Stats(); s.PID != 0 || s.Stuck {
		t.Errorf("stats %+v", s)
	}
}

func TestNewChildRefusals(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  ChildConfig
	}{
		{"no command", ChildConfig{Path: "/x", Timeout: 1}},
		{"a command without a path", ChildConfig{Command: []string{"havend"}, Path: "/x", Timeout: 1}},
		{"a relative store", ChildConfig{Command: []string{"/bin/true"}, Path: "x", Timeout: 1}},
		{"no timeout", ChildConfig{Command: []string{"/bin/true"}, Path: "/x"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := NewChild(tc.cfg); err == nil {
				t.Fatal("accepted")
			}
		})
	}
	for name, command := range map[string]string{"is not there": "/nonexistent/havend", "says nothing": "/bin/true"} {
		t.Run("a program that "+name, func(t *testing.T) {
			c, err := NewChild(ChildConfig{Command: []string{command}, Path: "/x", Timeout: longTimeout})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.ReadAll(t.Context()); err == nil || errors.Is(err, ErrTimeout) {
				t.Errorf("got %v", err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestChildOutlivesTheStopOfItsParentAndNotItsEnd: SIGTERM to the whole unit must
// not take the child before the farewell is written; the end of the parent must.
func TestChildOutlivesTheStopOfItsParentAndNotItsEnd(t *testing.T) {
	path, id := makeStore(t, "prod")
	c, err := NewChild(ChildConfig{
		Command: []string{"/proc/self/exe", "real-store-child"}, Path: path, Cluster: "prod", Timeout: longTimeout,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid := c.Stats().PID
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		if err := syscall.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Write(t.Context(), rawOf(t, beatOf(id.ID, "a", WriterAgent, 1))); err != nil {
		t.Fatal(err)
	}
	if s := c.Stats(); s.PID != pid {
		t.Errorf("the child was replaced: %+v", s)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}

	t.Run("killed parent", func(t *testing.T) {
		faults := t.TempDir()
		overwrite(t, filepath.Join(faults, "hang-read"), "")
		pr, pw, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		parent, err := os.StartProcess("/proc/self/exe", []string{"parent", "parent-of-child", faults, path},
			&os.ProcAttr{Files: []*os.File{nil, pw, os.Stderr}})
		_ = pw.Close()
		if err != nil {
			t.Fatal(err)
		}
		var child int
		if _, err := fmt.Fscanln(pr, &child); err != nil {
			t.Fatal(err)
		}
		if err := parent.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := parent.Wait(); err != nil {
			t.Fatal(err)
		}
		until(t, "the child dies with its parent", func() error {
			if s := stateOf(fmt.Sprintf("/proc/%d/stat", child)); s != "" && s != "Z" && s != "X" {
				return fmt.Errorf("process %d is in state %q", child, s)
			}
			return nil
		})
	})
}

// parentOfChild starts a child that hangs, tells its number, and waits to be killed.
func parentOfChild(faults, path string) int {
	c, err := NewChild(ChildConfig{
		Command: []string{"/proc/self/exe", "store-child", faults}, Path: path, Cluster: "prod", Timeout: longTimeout,
	})
	if err != nil {
		return 1
	}
	go func() {
		for c.Stats().PID == 0 {
			time.Sleep(time.Millisecond)
		}
		fmt.Println(c.Stats().PID)
	}()
	_, _ = c.ReadAll(context.Background())
	return 0
}

// TestChildEndsWithItsInput: a closed pipe ends the child, also one that hangs
// in an operation.
func TestChildEndsWithItsInput(t *testing.T) {
	in, feed := io.Pipe()
	hang := make(chan struct{})
	defer close(hang)
	entered := make(chan struct{})
	code := make(chan int)
	go func() {
		code <- childMain([]string{"", "/nonexistent", "", ""}, in, io.Discard, func(op) { close(entered); <-hang })
	}()
	if err := sendMessage(feed, request{ID: 1, Op: opRead}, nil); err != nil {
		t.Fatal(err)
	}
	<-entered
	if err := feed.Close(); err != nil {
		t.Fatal(err)
	}
	if c := <-code; c != 0 {
		t.Errorf("code %d", c)
	}
	if c := childMain([]string{"one"}, strings.NewReader(""), io.Discard, nil); c != 2 {
		t.Errorf("wrong arguments: code %d", c)
	}
}

func TestMessagesAreBounded(t *testing.T) {
	huge := make([]byte, 8)
	binary.LittleEndian.PutUint32(huge[4:], maxRecords+1)
	var r response
	if _, err := receiveMessage(bytes.NewReader(huge), &r); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("got %v", err)
	}
	if err := sendMessage(io.Discard, r, make([]byte, maxRecords+1)); err == nil {
		t.Error("sent")
	}
	for name, r := range map[string]response{
		"no identity":      {},
		"too few records":  {Identity: &Identity{}, Beats: []wireBeat{{Host: "a"}}},
		"too many records": {Identity: &Identity{}, records: make([]byte, RecordSize)},
	} {
		if _, err := r.contents(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestMonitorsOnARealStore runs it all as one: three hosts, a directory, children.
func TestMonitorsOnARealStore(t *testing.T) {
	path, _ := makeStore(t, "prod")
	monitors := map[haven.HostID]*Monitor{}
	stops := map[haven.HostID]func(){}
	for _, h := range testHosts {
		c, _ := startChild(t, path, longTimeout)
		m, err := NewMonitor(MonitorConfig{
			Store: "dir", Cluster: "prod", Self: h, Writer: WriterAgent, Boot: "boot", State: "state", Incarnation: 1, Hosts: testHosts,
			Interval: 200 * time.Millisecond, StaleAfter: 800 * time.Millisecond, Timeout: 600 * time.Millisecond,
		}, c, func() Beat { return Beat{Complete: true} }, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = m.Run(ctx) }()
		stops[h] = sync.OnceFunc(func() { cancel(); <-done })
		defer stops[h]()
		monitors[h] = m
	}
	sees := func(h haven.HostID, want haven.Tri) {
		t.Helper()
		until(t, fmt.Sprintf("a sees %s of %s", want, h), func() error {
			if v := monitors["a"].Snapshot().Host(h).Agent; v.Moving != want {
				return fmt.Errorf("%s because %q", v.Moving, v.Why)
			}
			return nil
		})
	}
	sees("b", haven.Yes)
	sees("c", haven.Yes)
	until(t, "a trusts itself", func() error {
		if h := monitors["a"].Snapshot().Health; !h.Trusted() {
			return fmt.Errorf("%+v", h)
		}
		return nil
	})
	stops["b"]()
	sees("b", haven.No)
	sees("c", haven.Yes)
	// The store is not there any more, as when nobody mounted it.
	rename(t, path, path+".away")
	sees("b", haven.Unknown)
	sees("c", haven.Unknown)
	rename(t, path+".away", path)
	sees("c", haven.Yes)
	sees("b", haven.No)
}

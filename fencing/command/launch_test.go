package command

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
)

// TestMain lets the test program be the launcher.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "launch" {
		os.Exit(Launch(os.Args[2:], os.Environ(), os.Stderr))
	}
	os.Exit(m.Run())
}

func launcher() []string { return []string{"/proc/self/exe", "launch"} }

// marking makes a driver whose program leaves a line for each of its runs.
func marking(t *testing.T) (d *Driver, runs func() string) {
	t.Helper()
	mark := filepath.Join(t.TempDir(), "mark")
	d = shell(t, `echo "$1" >>`+mark, func(c *Config) { c.Timeout = time.Second })
	return d, func() string {
		data, _ := os.ReadFile(mark)
		return string(data)
	}
}

// A start that hangs, as that of a program on dead storage does, ends with its
// time (P8); the device is busy until it comes back, so that there is never a
// second one; and when it comes back, minutes after its permit, nothing runs (P3).
func TestStartThatHangs(t *testing.T) {
	d, runs := marking(t)
	hang := make(chan struct{})
	var starts atomic.Int32
	d.parts.start = func(cmd *exec.Cmd) error {
		starts.Add(1)
		<-hang
		return cmd.Start()
	}
	permits := 0
	permit := func(context.Context) error { permits++; return nil }
	if err := d.Set(t.Context(), haven.ActionOff, permit); !errors.Is(err, fencing.ErrUnreachable) || !strings.Contains(err.Error(), "does not go") {
		t.Errorf("a start that hangs: %v", err)
	}
	for range 3 {
		if err := d.Set(t.Context(), haven.ActionOff, permit); !errors.Is(err, fencing.ErrBusy) {
			t.Errorf("while the first one hangs: %v", err)
		}
	}
	if _, err := d.Power(t.Context()); !errors.Is(err, fencing.ErrBusy) {
		t.Errorf("a reading while the start hangs: %v", err)
	}
	if n := starts.Load(); n != 1 {
		t.Errorf("%d starts at once", n)
	}
	close(hang)
	d.slot <- struct{}{} // The first one is gone for good.
	<-d.slot
	if got := runs(); got != "" {
		t.Errorf("P3: it ran late: %q", got)
	}
	if err := d.Set(t.Context(), haven.ActionOff, permit); err != nil || runs() != "off\n" {
		t.Errorf("afterwards: %v, %q", err, runs())
	}
}

// A program that cannot be killed, as one in a system call on dead storage, is
// left behind once, and counted.
func TestProgramThatDoesNotGo(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "end")
	d := shell(t, `read x <`+fifo, func(c *Config) { c.Timeout = time.Second })
	if err := exec.CommandContext(t.Context(), "mkfifo", fifo).Run(); err != nil {
		t.Fatal(err)
	}
	kill := d.parts.kill
	d.parts.kill = func(int) {}
	if _, err := d.Power(t.Context()); !errors.Is(err, fencing.ErrUnreachable) || !strings.Contains(err.Error(), "does not go") {
		t.Errorf("a program that does not go: %v", err)
	}
	if _, err := d.Power(t.Context()); !errors.Is(err, fencing.ErrBusy) {
		t.Errorf("the next one: %v", err)
	}
	if err := os.WriteFile(fifo, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.slot <- struct{}{}
	<-d.slot
	d.parts.kill = kill
	if _, err := d.Power(t.Context()); !errors.Is(err, fencing.ErrUnreachable) {
		t.Errorf("afterwards: %v", err)
	}
}

// What cannot be started says so, with a code that is no status: neither 0 nor 2,
// which would be on and off (P2).
func TestWhatCannotBeStarted(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct{ name, program, want string }{
		{"missing", filepath.Join(dir, "none"), "no such file"},
		{"not executable", write("plain", "#!/bin/sh\nexit 2\n", 0o600), "permission denied"},
		{"a directory", dir, "permission denied"},
		{"empty", write("empty", "", 0o700), "exec format error"},
		// A shell would be asked to read it, and 2 is what it says of what it cannot.
		{"rubbish", write("rubbish", "(((\x00\x01", 0o700), "exec format error"},
		{"its interpreter is missing", write("script", "#!/nonexistent/python\n", 0o700), "no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := shell(t, "", func(c *Config) { c.Program = tt.program })
			r, err := d.Power(t.Context())
			if r.State != haven.PowerUnknown || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s, %v; want an error with %q", r.State, err, tt.want)
			}
		})
	}
	t.Run("the launcher itself", func(t *testing.T) {
		d := shell(t, "exit 2", func(c *Config) { c.Launcher = []string{"/nonexistent/launcher"} })
		if r, err := d.Power(t.Context()); r.State != haven.PowerUnknown || err == nil || len(d.slot) != 0 {
			t.Errorf("%s, %v", r.State, err)
		}
	})
}

// P2: a launcher that ends before it turns into the program, as one that gets no
// thread, ends with 2. That is no word of the program's, least of all "off".
func TestLauncherThatDies(t *testing.T) {
	for _, code := range []string{"0", "2"} {
		d := shell(t, "exit 2", func(c *Config) {
			c.Launcher = []string{"/bin/sh", "-c", "echo failed to create new OS thread >&2; exit " + code, "sh"}
		})
		if r, err := d.Power(t.Context()); r.State != haven.PowerUnknown || err == nil || !strings.Contains(err.Error(), "new OS thread") {
			t.Errorf("exit %s: %s, %v", code, r.State, err)
		}
		if err := d.Set(t.Context(), haven.ActionOff, nil); err == nil {
			t.Errorf("exit %s: nothing was sent, and off is a success", code)
		}
	}
}

// The launcher leaves nothing of its own to the program: neither its descriptor
// nor another environment.
func TestProgramInheritsNothing(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HAVEN_TEST_SECRET", "tru5tno1")
	script := "{ ls /proc/self/fd; env | sort; } >" + dir
	if err := shell(t, script+"/launched", nil).Set(t.Context(), haven.ActionOff, nil); err != nil {
		t.Fatal(err)
	}
	direct := exec.CommandContext(t.Context(), "/bin/sh", "-c", script+"/direct")
	direct.Dir, direct.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if err := direct.Run(); err != nil {
		t.Fatal(err)
	}
	launched, err := os.ReadFile(filepath.Join(dir, "launched"))
	want, err2 := os.ReadFile(filepath.Join(dir, "direct"))
	if err := errors.Join(err, err2); err != nil || string(launched) != string(want) || !strings.Contains(string(want), "LC_ALL=C") {
		t.Errorf("%v: started by the launcher\n%s\nand directly\n%s", err, launched, want)
	}
}

// What a program leaves running is ended with it, whether it was asked for its
// time or not (P8). One that leaves its process group lives on, as a daemon would,
// and holds nobody up although it keeps the output open.
func TestProgramThatForks(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	d := shell(t, `sleep 600 & echo $! >`+pids+`; exit 2`, nil)
	if r, err := d.Power(t.Context()); err != nil || r.State != haven.PowerOff {
		t.Errorf("%s, %v", r.State, err)
	}
	data, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	for alive(pid) {
		time.Sleep(time.Millisecond) // The kernel takes its time to end it; the test's own limit bounds this.
	}
	daemon := filepath.Join(t.TempDir(), "daemon")
	d = shell(t, `setsid sh -c 'echo $$ >`+daemon+`; exec sleep 600' & while ! [ -s `+daemon+` ]; do sleep 0.01; done; exit 2`, nil)
	r, err := d.Power(t.Context())
	if err != nil || r.State != haven.PowerOff || len(d.slot) != 0 {
		t.Errorf("with a daemon: %s, %v, slot %d", r.State, err, len(d.slot))
	}
	data, err = os.ReadFile(daemon)
	if err != nil {
		t.Fatal(err)
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(string(data))); err != nil || !alive(pid) {
		t.Fatalf("daemon %d, %v", pid, err)
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

//go:build lab

package lab_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven/test/lab"
)

func TestMain(m *testing.M) {
	lab.RunChild()
	if len(os.Args) > 2 && os.Args[1] == "listen" {
		listen(os.Args[2])
	}
	if len(os.Args) > 2 && os.Args[1] == "sit" {
		sit(os.Args[2])
	}
	if len(os.Args) > 3 && os.Args[1] == "own-a-lab" {
		ownLab(os.Args[2], os.Args[3] == "persist")
	}
	os.Exit(m.Run())
}

// listen takes connections until it is killed.
func listen(address string) {
	l, err := net.Listen("tcp", address)
	for err == nil {
		var c net.Conn
		if c, err = l.Accept(); err == nil {
			err = c.Close()
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

// ownLab builds a lab, says so and then waits to be killed.
func ownLab(dir string, persist bool) {
	if _, err := lab.New(context.Background(), lab.Config{Dir: dir, Hosts: 1, Persist: persist}); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("up")
	select {}
}

// newLab builds a lab that ends with the test, and checks that nothing is left of
// it then.
func newLab(t *testing.T, c lab.Config) *lab.Lab {
	t.Helper()
	start := time.Now()
	l, err := lab.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d hosts up in %d ms", len(l.Hosts()), time.Since(start).Milliseconds())
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, l)
		}
		start := time.Now()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		t.Logf("down in %d ms", time.Since(start).Milliseconds())
		for _, left := range leftovers(l.Prefix(), l.Dir()) {
			t.Errorf("left behind: %s", left)
		}
	})
	return l
}

func showLogs(t *testing.T, l *lab.Lab) {
	t.Helper()
	logs, _ := filepath.Glob(l.Dir() + "/hosts/*/log/*.log")
	more, _ := filepath.Glob(l.Dir() + "/log/*.log")
	for _, log := range append(logs, more...) {
		if b, err := os.ReadFile(log); err == nil && len(b) > 0 {
			t.Logf("%s:\n%s", log, b[max(0, len(b)-2000):])
		}
	}
}

// leftovers lists what is left of a lab on this machine.
func leftovers(prefix, dir string) []string {
	var left []string
	for _, pattern := range []string{"/run/netns/" + prefix + "-*", "/sys/fs/cgroup/unified/" + prefix, "/sys/fs/cgroup/" + prefix, dir + "/lab.json"} {
		found, _ := filepath.Glob(pattern)
		left = append(left, found...)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir+"/mnt/") {
			left = append(left, line)
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range processes {
		if b, _ := os.ReadFile(p); strings.Contains(string(b), dir+"/") && strings.Contains(string(b), "haven-lab:") {
			left = append(left, p+" "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return left
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// must returns a value or ends the test.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		ok(t, err)
		return v
	}
}

// eventually waits until a state is reached; the time limit only ends a test that
// fails anyway.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came true: %s", what)
		}
	}
}

// running makes a guest that runs and has written on a host.
func running(t *testing.T, l *lab.Lab, h *lab.Host, name string) *lab.Guest {
	t.Helper()
	g := must(l.NewGuest(lab.GuestConfig{Name: name}))(t)
	ok(t, g.Define(t.Context(), h))
	ok(t, g.Start(t.Context(), h))
	must(g.WaitWrite(within(t, 20*time.Second), 0))(t)
	return g
}

// writes says whether the guest writes within two seconds, twenty of its periods.
func writes(t *testing.T, g *lab.Guest) bool {
	t.Helper()
	before := must(g.Header())(t)
	_, err := g.WaitWrite(within(t, 2*time.Second), before.Seq)
	return err == nil
}

// ipmi runs ipmitool on one host against the BMC of another.
func ipmi(t *testing.T, from, to *lab.Host, suite int, words ...string) (string, error) {
	t.Helper()
	args := []string{
		"ipmitool", "-I", "lanplus", "-C", fmt.Sprint(suite), "-H", to.BMCAddress, "-N", "1", "-R", "1",
		"-U", to.BMCUser, "-P", to.BMCPassword, "-L", "OPERATOR",
	}
	out, err := from.Exec(within(t, 20*time.Second), append(args, words...)...)
	return strings.TrimSpace(out), err
}

func expectPower(t *testing.T, from, to *lab.Host, want string) {
	t.Helper()
	suite := to.BMCCipherSuites[len(to.BMCCipherSuites)-1]
	if got := must(ipmi(t, from, to, suite, "chassis", "power", "status"))(t); got != "Chassis Power is "+want {
		t.Fatalf("BMC of %s says %q, want %q", to.Name, got, want)
	}
}

func pings(t *testing.T, from *lab.Host, address string) bool {
	t.Helper()
	_, err := from.Exec(within(t, 20*time.Second), "sh", "-c", "ping -q -n -c 1 -W 1 $0 || ping -q -n -c 1 -W 1 $0", address)
	return err == nil
}

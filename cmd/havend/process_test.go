package main

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/haven-ha/haven/internal/pki"
)

// TestMain lets the test program be havend itself.
func TestMain(m *testing.M) {
	if os.Getenv("HAVEND_TEST_PROCESS") != "" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// TestReloadOfTheProcess: the agent as systemd runs it, with credentials, reloads at
// SIGHUP, says so as Type=notify wants it, lives on, and ends well. Without its
// credentials it does not begin.
func TestReloadOfTheProcess(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca, err := pki.NewCA("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrFrom4([4]byte{127, byte(os.Getpid() >> 8), byte(os.Getpid()), 77})
	pair, err := ca.IssueHost("h1", []netip.Addr{addr}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	write("ca.pem", string(ca.Pair().Cert))
	write("host.pem", string(pair.Cert))
	write("host.key", string(pair.Key))
	write("gossip", base64.StdEncoding.EncodeToString(make([]byte, 32)))
	write("bmc", "first-secret")
	write("boot", "boot-1")
	path := write("haven.yaml", strings.NewReplacer("DIR", dir, "ADDR", addr.String()).Replace(`
cluster: test
data_dir: DIR/data
gossip: {key_file: "credential:gossip"}
api: {ca_file: DIR/ca.pem, cert_file: DIR/host.pem, key_file: "credential:host.key", socket: DIR/api.sock}
libvirt: {socket: DIR/none}
helper: {plain: true}
heartbeat: {stores: []}
fencing: {levels: [[bmc]], devices: {bmc: {driver: ipmi, username: haven, password_file: "credential:bmc"}}}
hosts: {h1: {address: ADDR, fencing: {devices: {bmc: {address: 127.0.0.254}}}}}
`))
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = notify.Close() }()
	args := []string{"--config", path, "--host", "h1", "--boot-id", filepath.Join(dir, "boot")}
	env := append(os.Environ(), "HAVEND_TEST_PROCESS=1", "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))

	alone := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	alone.Env = append(env, "CREDENTIALS_DIRECTORY=")
	if out, err := alone.CombinedOutput(); err == nil || !strings.Contains(string(out), "LoadCredential=") {
		t.Errorf("without credentials: %v, %s", err, out)
	}

	// A file, and no pipe: what the agent wrote before it told systemd is in it then.
	out, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	log := func() string {
		text, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	agent := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	agent.Env, agent.Stdout, agent.Stderr = append(env, "CREDENTIALS_DIRECTORY="+dir), out, out
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	hears := func(want string) {
		t.Helper()
		buf := make([]byte, 1024)
		if err := notify.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := notify.Read(buf)
		if err != nil || !strings.HasPrefix(string(buf[:n]), want) {
			t.Fatalf("systemd hears %q, %v, want %s: %s", buf[:n], err, want, log())
		}
	}
	reload := func() {
		t.Helper()
		if err := agent.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		hears("RELOADING=1\nMONOTONIC_USEC=")
		hears("READY=1")
	}
	hears("READY=1")
	write("bmc", "second-secret")
	reload()
	if !strings.Contains(log(), "is another one now") || !strings.Contains(log(), fmt.Sprintf("file=%s/bmc", dir)) {
		t.Error("the new password was not taken up:", log())
	}
	write("bmc", "")
	reload()
	if !strings.Contains(log(), "what was read before stays in use") {
		t.Error("a bad file passes:", log())
	}
	if err := agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	hears("STOPPING=1")
	if err := agent.Wait(); err != nil {
		t.Errorf("it ended with %v: %s", err, log())
	}
	if strings.Contains(log(), "-secret") {
		t.Error("a secret is in the log:", log())
	}
}

package snmp

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/notify"
)

const (
	mib       = "../../../packaging/HAVEN-MIB.txt"
	community = "not-public-at-all"
	authPass  = "authenticate-me-9"
	privPass  = "keep-it-quiet-9"
)

func secret(s string) func() (string, error) { return func() (string, error) { return s, nil } }

func blocked() notify.Message {
	return notify.Message{Count: 3, Dropped: 2, Event: notify.Event{
		ID: "fence-blocked/1122-045800-kvm-03/kvm-03", Kind: "fence-blocked", Severity: notify.Critical, Cluster: "prod-a", By: "kvm-01",
		Host: "kvm-03", VM: "5f1b7d5e-0000-4000-8000-000000000001", Incident: "1122-045800-kvm-03", Time: time.Date(2026, 11, 22, 4, 58, 0, 0, time.UTC),
		Text: "no device proved the host off: über", Do: "haven fence confirm kvm-03",
	}}
}

// tool finds a program of Debian's packages snmp, snmptrapd and smitools.
func tool(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"/usr/sbin", "/usr/bin"} {
		if path := filepath.Join(dir, name); exec.Command(path, "--version").Err == nil {
			if _, err := os.Stat(path); err == nil {
				return path
			}
		}
	}
	if inLab {
		t.Fatalf("%s is not installed, and this is the lab", name)
	}
	t.Skipf("%s is not installed: it comes with the packages of test/lab/packages.txt", name)
	return ""
}

// mibs is a search path with our MIB and what it imports.
func mibs(t *testing.T) string {
	t.Helper()
	smi, err := filepath.Abs("testdata/smi")
	if err != nil {
		t.Fatal(err)
	}
	ours, err := filepath.Abs(filepath.Dir(mib))
	if err != nil {
		t.Fatal(err)
	}
	return smi + ":" + ours
}

// trapd is a real snmptrapd.
type trapd struct {
	addr  string
	lines chan string
}

func startTrapd(t *testing.T, conf string) *trapd {
	t.Helper()
	program := tool(t, "snmptrapd")
	dir := t.TempDir()
	file := filepath.Join(dir, "snmptrapd.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	probe, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := probe.LocalAddr().String()
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-f", "-C", "-c", file, "-M", mibs(t), "-m", "HAVEN-MIB", "-Lo", "-n", "-t",
		"-F", "TRAP %W | %v\\n", "-OQ", "-x", "unix:"+filepath.Join(dir, "agentx"), "udp:"+addr)
	cmd.Env = append(os.Environ(), "SNMP_PERSISTENT_DIR="+dir, "SNMPCONFPATH="+dir)
	cmd.Cancel = func() error { return cmd.Process.Kill() }
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d := &trapd{addr: addr, lines: make(chan string, 1000)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s := bufio.NewScanner(out)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			select {
			case d.lines <- s.Text():
			default:
			}
		}
		_, _ = io.Copy(io.Discard, out)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = cmd.Wait() // It was killed.
	})
	d.await(t, "NET-SNMP version")
	return d
}

// await returns the first line that holds the text.
func (d *trapd) await(t *testing.T, text string) string {
	t.Helper()
	limit := time.After(20 * time.Second)
	var seen []string
	for {
		select {
		case l := <-d.lines:
			if strings.Contains(l, text) {
				return l
			}
			seen = append(seen, l)
		case <-limit:
			t.Fatalf("snmptrapd never wrote %q, but\n%s", text, strings.Join(seen, "\n"))
		}
	}
}

func v3(addr string, inform bool) Config {
	return Config{
		Addr: addr, Version: V3, Inform: inform, Username: "haven", Auth: "sha256", Privacy: "aes128",
		AuthSecret: secret(authPass), PrivacyPass: secret(privPass), Host: "kvm-01", Boots: 7, Started: time.Now().Add(-time.Minute),
	}
}

func user(engine string) string {
	return fmt.Sprintf("createUser %s haven SHA-256 %s AES %s\nauthUser log haven priv\n", engine, authPass, privPass)
}

func engine(host haven.HostID) string { return "-e 0x" + hex.EncodeToString(EngineID(host)) }

// A real snmptrapd takes what is sent in each of the ways, and decodes it with
// our MIB (row 19). What is not authenticated, it does not even show.
func TestRealTrapdDecodes(t *testing.T) {
	for _, tt := range []struct {
		name   string
		conf   string
		config func(addr string) Config
	}{
		{"v2c trap", "authCommunity log " + community + "\n", func(addr string) Config {
			return Config{Addr: addr, Version: V2c, Community: secret(community), Started: time.Now()}
		}},
		{"v2c inform", "authCommunity log " + community + "\n", func(addr string) Config {
			return Config{Addr: addr, Version: V2c, Inform: true, Community: secret(community), Started: time.Now()}
		}},
		{"v3 trap", user(engine("kvm-01")), func(addr string) Config { return v3(addr, false) }},
		{"v3 inform", user(""), func(addr string) Config { return v3(addr, true) }},
		{"v3 trap sha512 aes256", strings.NewReplacer("SHA-256", "SHA-512", "AES", "AES-256").Replace(user(engine("kvm-01"))), func(addr string) Config {
			c := v3(addr, false)
			c.Auth, c.Privacy = "sha512", "aes256"
			return c
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := startTrapd(t, tt.conf)
			s, err := New(tt.config(d.addr))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Send(t.Context(), blocked()); err != nil {
				t.Fatal(err)
			}
			got := d.await(t, "TRAP")
			_, got, _ = strings.Cut(got, " | ")
			objects := map[string]string{}
			for object := range strings.SplitSeq(got, "\t") {
				name, value, _ := strings.Cut(object, " = ")
				objects[strings.TrimPrefix(name, "HAVEN-MIB::")] = value
			}
			for name, want := range map[string]string{
				"SNMPv2-SMI::snmpModules.1.1.4.1.0": "HAVEN-MIB::havenFenceEvent",
				"havenEventId.0":                    "fence-blocked/1122-045800-kvm-03/kvm-03",
				"havenEventKind.0":                  "fence-blocked", "havenSeverity.0": "critical",
				"havenCluster.0": "prod-a", "havenReporter.0": "kvm-01", "havenHost.0": "kvm-03",
				"havenVM.0": "5f1b7d5e-0000-4000-8000-000000000001", "havenIncident.0": "1122-045800-kvm-03",
				"havenText.0": "no device proved the host off: über", "havenWhatToDo.0": "haven fence confirm kvm-03",
				"havenTime.0": "2026-11-22T04:58:00Z", "havenCount.0": "3", "havenDropped.0": "2",
			} {
				if objects[name] != want {
					t.Errorf("%s is %q, want %q", name, objects[name], want)
				}
			}
		})
	}
}

// A manager that remembers an engine takes the traps of an agent that was
// restarted: its time began anew, and its boots grew.
func TestTrapsAfterARestart(t *testing.T) {
	d := startTrapd(t, user(engine("kvm-01")))
	for boots := uint32(7); boots < 9; boots++ {
		c := v3(d.addr, false)
		c.Boots, c.Started = boots, time.Now().Add(-time.Hour/time.Duration(boots))
		s, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		m := blocked()
		m.ID = fmt.Sprint("boot-", boots)
		if err := s.Send(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		d.await(t, m.ID)
	}
}

// An inform that nobody can have understood is a failure: wrong secrets, nobody
// there. No secret is in the error.
func TestInformsFail(t *testing.T) {
	d := startTrapd(t, user("")+"authCommunity log "+community+"\n")
	wrong := v3(d.addr, true)
	wrong.AuthSecret = secret("this-is-not-it-9")
	stranger := v3(d.addr, true)
	stranger.Username = "nobody"
	deaf, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = deaf.Close() }()
	for name, c := range map[string]Config{
		"wrong password": wrong, "unknown user": stranger,
		"wrong community": {Addr: d.addr, Version: V2c, Inform: true, Community: secret("guessed"), Started: time.Now()},
		"no answer":       {Addr: deaf.LocalAddr().String(), Version: V2c, Inform: true, Community: secret(community), Started: time.Now()},
		"short password":  func() Config { c := v3(d.addr, true); c.PrivacyPass = secret("short"); return c }(),
		"no secret":       {Addr: d.addr, Version: V2c, Community: func() (string, error) { return "", errors.New("no such file") }},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			err = s.Send(ctx, blocked())
			if err == nil {
				t.Fatal("it was taken for sent")
			}
			if regexp.MustCompile("this-is-not-it-9|guessed|" + community + "|" + privPass).MatchString(err.Error()) {
				t.Errorf("a secret is in %q", err)
			}
		})
	}
}

// The end of the context ends the wait for an answer (P8).
func TestEndsWithItsContext(t *testing.T) {
	deaf, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = deaf.Close() }()
	s, err := New(Config{Addr: deaf.LocalAddr().String(), Version: V2c, Inform: true, Community: secret(community), Started: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Send(ctx, blocked()) }()
	if _, _, err := deaf.ReadFrom(make([]byte, 2000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("it was taken for sent")
	}
}

// The longest notification still fits a datagram of an Ethernet.
func TestFitsADatagram(t *testing.T) {
	there, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = there.Close() }()
	s, err := New(v3(there.LocalAddr().String(), false))
	if err != nil {
		t.Fatal(err)
	}
	m := blocked()
	long := strings.Repeat("ä", 4000)
	m.ID, m.Text, m.Do, m.Host = long, long, long, haven.HostID(long[:200])
	if err := s.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 65536)
	n, _, err := there.ReadFrom(buf)
	if err != nil || n > 1472 {
		t.Errorf("%d octets, %v", n, err)
	}
}

// The MIB is what its language wants, to a checker that is not ours, and has the
// numbers that the code sends.
func TestMIB(t *testing.T) {
	lint := tool(t, "smilint")
	conf := filepath.Join(t.TempDir(), "smi.conf")
	if err := os.WriteFile(conf, []byte("path "+strings.Split(mibs(t), ":")[0]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), lint, "-c", conf, "-l", "6", mib).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("smilint: %v\n%s", err, out)
	}
	translate := tool(t, "snmptranslate")
	for i, class := range notify.Classes() {
		oid := fmt.Sprintf("%s.0.%d", Base, i+1)
		out, err := exec.CommandContext(t.Context(), translate, "-M", mibs(t), "-m", "HAVEN-MIB", oid).CombinedOutput()
		want := fmt.Sprintf("HAVEN-MIB::haven%sEvent", name(class))
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%s is %s (%v), want %s", oid, got, err, want)
		}
	}
	text, err := os.ReadFile(mib)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "PLACEHOLDER and MUST BE REPLACED") || !strings.Contains(string(text), "::= { experimental 7463 }") {
		t.Error("the MIB does not say that its number is a placeholder")
	}
}

func name(c notify.Class) string {
	if c == notify.ClassVM {
		return "VM"
	}
	return strings.ToUpper(string(c[:1])) + string(c[1:])
}

func TestEngineID(t *testing.T) {
	for _, tt := range []struct {
		name string
		host haven.HostID
		want string
	}{
		{"short", "kvm-01", "80000000046b766d2d3031"},
		{"long", "a-host-with-a-name-that-is-quite-long", "80000000055b5a3dbae8eb7a92d82a5ba4c65f40ed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := hex.EncodeToString(EngineID(tt.host))
			if len(got) > 64 || tt.name == "short" && got != tt.want || tt.name == "long" && (len(got) != len(tt.want) || got[:10] != tt.want[:10]) {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

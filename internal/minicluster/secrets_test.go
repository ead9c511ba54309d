package minicluster_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/helper"
	"github.com/haven-ha/haven/internal/minicluster"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/world"
)

// finder looks for secrets in everything that somebody may read. It is a plain
// search and knows nothing of how the agent blots secrets out.
type finder struct {
	forms map[string][]byte // by what it is called
	found []string
	bytes int // that were looked at
}

func newFinder(secrets map[string]string) *finder {
	f := &finder{forms: map[string][]byte{}}
	for name, s := range secrets {
		inJSON, _ := json.Marshal(s)
		for way, form := range map[string]string{
			"plain": s, "base64": base64.StdEncoding.EncodeToString([]byte(s)), "base64 for URLs": base64.RawURLEncoding.EncodeToString([]byte(s)),
			"base64 behind one octet":  base64.StdEncoding.EncodeToString([]byte("x" + s))[2:],
			"base64 behind two octets": base64.StdEncoding.EncodeToString([]byte("xx" + s))[3:],
			"hex":                      hex.EncodeToString([]byte(s)), "HEX": strings.ToUpper(hex.EncodeToString([]byte(s))),
			"query": url.QueryEscape(s), "path": url.PathEscape(s), "JSON": string(inJSON[1 : len(inJSON)-1]),
			"quoted": quoted(s), "quoted twice": quoted(quoted(s)), "JSON, quoted": quoted(string(inJSON[1 : len(inJSON)-1])),
		} {
			// What stands behind may share the last digits of base64.
			if strings.HasPrefix(way, "base64") {
				form = strings.TrimRight(form, "=")
				form = form[:len(form)-2]
			}
			f.forms[name+", "+way] = []byte(form)
		}
	}
	return f
}

// quoted is how the log writes what needs quotes.
func quoted(s string) string { q := strconv.Quote(s); return q[1 : len(q)-1] }

func (f *finder) search(where string, data []byte) {
	f.bytes += len(data)
	for name, form := range f.forms {
		if at := bytes.Index(data, form); at >= 0 {
			f.found = append(f.found, fmt.Sprintf("%s is in %s: %q", name, where, data[max(0, at-80):min(len(data), at+40)]))
		}
	}
}

func (f *finder) searchFiles(t *testing.T, dir string) (files int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil //nolint:nilerr // it went away while it was looked for
		}
		if data, err := os.ReadFile(path); err == nil {
			files++
			f.search(path, data)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// draw makes a secret of up to 20 octets, which IPMI takes, that is written in
// another way in URLs, JSON and base64 for URLs.
func draw(prefix string) string { return prefix + "/+?\"&" + rand.Text()[:12] }

// keepers are all secrets of one cluster, each another, drawn anew in each run.
type keepers struct {
	secrets map[string]string
	dir     string // of their files
	yaml    string
	hook    *lockedBuffer // what the web hook heard
}

func newKeepers(t *testing.T) *keepers {
	k := &keepers{secrets: map[string]string{}, dir: t.TempDir(), hook: &lockedBuffer{}}
	for _, name := range []string{"bmc", "kg", "strip", "helper", "mail", "auth", "priv", "hook"} {
		k.secrets[name] = draw(name[:2])
	}
	k.secrets["community"] = "com-" + rand.Text()
	k.secrets["token"] = "token-" + rand.Text() // part of a URL
	k.secrets["gossip"] = string(randomKey(t))
	return k
}

func randomKey(t *testing.T) []byte {
	t.Helper()
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		t.Fatal(err)
	}
	return key
}

func (k *keepers) file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(k.dir, name)
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// targets makes notification targets that fail: a mail server that repeats what it
// is told, an SNMP manager that says nothing, and a web hook that refuses tests and
// repeats its request in the answer.
func (k *keepers) targets(t *testing.T) {
	t.Helper()
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(k.hook, "%s %s %s\n", r.Method, r.URL, body)
		if strings.Contains(string(body), `"kind":"test"`) {
			w.Header().Set("Location", r.URL.String())
			w.WriteHeader(http.StatusTemporaryRedirect)
			_, _ = fmt.Fprintln(w, r.URL, r.Header)
		}
	}))
	t.Cleanup(hook.Close)
	deaf, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = deaf.Close() })
	port, ca := echoingMailServer(t)
	udp := deaf.LocalAddr().(*net.UDPAddr).Port
	k.yaml = fmt.Sprintf(`
notify:
  messages_per_minute: 600
  email: [{name: ops, server: 127.0.0.1, port: %d, username: haven, password_file: %s, ca_file: %s, from: a@example.org, to: [b@example.org]}]
  snmp:
    - {name: nms, address: 127.0.0.1, port: %d, inform: true, username: haven, auth_password_file: %s, privacy_password_file: %s}
    - {name: old, address: 127.0.0.1, port: %d, inform: true, version: v2c, community_file: %s}
  webhook: [{name: chat, url_file: %s, secret_file: %s}]
`, port, k.file(t, "mail", k.secrets["mail"]), k.file(t, "ca", ca), udp, k.file(t, "auth", k.secrets["auth"]), k.file(t, "priv", k.secrets["priv"]),
		udp, k.file(t, "community", k.secrets["community"]), k.file(t, "url", hook.URL+"/"+k.secrets["token"]), k.file(t, "hook", k.secrets["hook"]))
}

// echoingMailServer says STARTTLS, and repeats each line of the conversation and
// what it means when it refuses the password.
func echoingMailServer(t *testing.T) (port int, ca string) {
	t.Helper()
	self := httptest.NewUnstartedServer(nil)
	self.StartTLS()
	t.Cleanup(self.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go converse(conn, self.TLS)
		}
	}()
	return l.Addr().(*net.TCPAddr).Port, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: self.Certificate().Raw}))
}

func converse(conn net.Conn, secure *tls.Config) {
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReader(conn)
	_, _ = io.WriteString(conn, "220 here\r\n")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSpace(line)
		switch verb, rest, _ := strings.Cut(line, " "); verb {
		case "EHLO":
			_, _ = io.WriteString(conn, "250-here\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n")
		case "STARTTLS":
			_, _ = io.WriteString(conn, "220 go\r\n")
			conn = tls.Server(conn, &tls.Config{Certificates: secure.Certificates})
			r = bufio.NewReader(conn)
		case "AUTH":
			plain, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(rest, "PLAIN "))
			_, _ = fmt.Fprintf(conn, "535 5.7.8 you said %s, that is %x, %s\r\n", line, plain, strings.ReplaceAll(string(plain), "\x00", " "))
		default:
			_, _ = io.WriteString(conn, "221 bye\r\n")
			return
		}
	}
}

// cluster starts three hosts whose ladder has a program that fails and prints all
// it was told. The configuration's file is the one that havend would read.
func (k *keepers) cluster(t *testing.T, dir string, log io.Writer) *minicluster.Cluster {
	t.Helper()
	path := k.file(t, "strip", k.secrets["strip"])
	script := k.file(t, "strip.sh", `#!/bin/sh
told=$(cat)
password=${told##*passwd=}
echo "asked: $told $0 $*"
printf %s "$password" | base64 -w0; printf %s "$password" | od -An -tx1 -v | tr -d ' \n'
exit 1`)
	if err := os.Chmod(script, 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := minicluster.New(minicluster.Options{
		Hosts: 3, Dir: dir, StoreChild: []string{"/proc/self/exe", "store-child"},
		Net: [2]byte{byte(os.Getpid()>>8) ^ 0x2a, byte(os.Getpid())}, MemoryMiB: 8192, OnEvent: func(world.Event) {},
		Secrets: &minicluster.Secrets{
			BMC: k.secrets["bmc"], KG: k.secrets["kg"], Gossip: []byte(k.secrets["gossip"]), Launcher: []string{"/proc/self/exe", "fence-program"},
		},
		Config: func(yaml string) string {
			ladder := "levels: [[strip], [bmc]]"
			if testing.Short() { // The first level takes its 40 seconds to fail.
				ladder = "levels: [[bmc], [strip]]"
			}
			yaml = strings.Replace(yaml, "levels: [[bmc]]", ladder, 1)
			yaml = strings.Replace(yaml, "devices: {bmc: {", fmt.Sprintf(
				"devices: {strip: {driver: command, username: apc, password_file: %s, command: {program: PROGRAM, style: fence-agents, options: {plug: \"1\"}}}, bmc: {kg_file: %s/bmc.kg, ", path, dir), 1)
			// Each host has a strip of its own: one that two hosts share fences neither.
			yaml = regexp.MustCompile(`devices: \{bmc: \{address: ([0-9.]+)\}\}`).ReplaceAllString(yaml, "devices: {bmc: {address: $1}, strip: {address: $1}}")
			yaml += k.yaml
			yaml = strings.Replace(yaml, "PROGRAM", script, 1)
			k.file(t, "haven.yaml", yaml)
			return yaml
		},
		Log: func(host haven.HostID) *slog.Logger {
			return slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug - 4})).With("self", host)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// TestSecretsStayWhereTheyBelong: no password and no key is, in any form, in the log
// of any agent at its most talkative, in any answer of any route, on the page, in
// metrics, in what havend --check says, in the ledger, its log and its snapshot, in
// recordings, in what else agents write to their data directories, or on the
// stores: while devices, targets and logins fail, and a host is fenced.
func TestSecretsStayWhereTheyBelong(t *testing.T) {
	var log lockedBuffer
	dir := t.TempDir()
	k := newKeepers(t)
	k.targets(t)
	c := k.cluster(t, dir, &log)
	api, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range c.Hosts() {
		for name, key := range privateKeys(t, h.PrivateKey()) {
			k.secrets[fmt.Sprintf("%s of %s", name, h.ID)] = key
		}
	}
	k.incident(t, c)
	k.askHelper(t, c, &log)

	f := newFinder(k.secrets)
	k.collect(t, f, c, api, dir, &log)
	for _, found := range f.found {
		t.Error(found)
	}
	if f.bytes < 256<<10 {
		t.Errorf("only %d bytes were looked at", f.bytes)
	}
	// It must be able to find each of them, in each form: planted in the log, it is.
	for name, s := range k.secrets {
		for way, text := range map[string]string{
			"plain": s, "base64": base64.StdEncoding.EncodeToString([]byte("haven:" + s)), "hex": hex.EncodeToString([]byte(s)), "query": url.QueryEscape(s),
		} {
			f := newFinder(map[string]string{name: s})
			var log bytes.Buffer
			slog.New(slog.NewTextHandler(&log, nil)).Info("planted", "text", "<"+text+">")
			if f.search("a log", log.Bytes()); len(f.found) == 0 {
				t.Errorf("%s, %s: not found in %q", name, way, log.String())
			}
		}
	}
	// And where it looks: one is planted in a file of each kind and in the log.
	if err := os.WriteFile(filepath.Join(c.DataDir("kvm-01"), "raft", "planted"), []byte(k.secrets["bmc"]), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _ = log.Write([]byte(k.secrets["auth"]))
	f = newFinder(k.secrets)
	k.collect(t, f, c, api, dir, &log)
	if !slices.ContainsFunc(f.found, func(s string) bool { return strings.HasPrefix(s, "bmc, plain") }) ||
		!slices.ContainsFunc(f.found, func(s string) bool { return strings.HasPrefix(s, "auth, plain") }) {
		t.Errorf("what was planted is not found: %q", f.found)
	}
}

// privateKeys are the parts of a key's file that must be nowhere: its lines, and the
// number itself.
func privateKeys(t *testing.T, text []byte) map[string]string {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("no key")
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{"a private key": string(block.Bytes), "a line of a private key's file": lines[1]}
	if e, ok := key.(interface{ Bytes() ([]byte, error) }); ok {
		if raw, err := e.Bytes(); err == nil {
			all["a private number"] = string(raw)
		}
	}
	return all
}

// incident has a host fenced: its program fails, its board works. Before and after,
// everything that can fail does.
func (k *keepers) incident(t *testing.T, c *minicluster.Cluster) {
	t.Helper()
	if _, err := c.Hosts()[2].Machine.UserStart(world.XML(vmID(1), "vm1", 512)); err != nil {
		t.Fatal(err)
	}
	until(t, c, "/v1/vms", "a protected VM", func(vms []client.VM) bool { return len(vms) == 1 && vms[0].Protected })
	until(t, c, "/v1/status", "no hold", func(s client.Status) bool { return s.HostsUp == 3 })
	api, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	var tested client.NotifyTested
	if err := api.Post(t.Context(), "kvm-01", client.PathNotifyTest, client.NotifyTest{}, &tested); err != nil || len(tested.Targets) != 4 {
		t.Errorf("%+v, %v", tested, err)
	}
	f := newFinder(k.secrets)
	for _, o := range tested.Targets {
		if o.Error == "" {
			t.Errorf("%s took a test that it cannot have taken", o.Target)
		}
		if o.Target == "ops" && !strings.Contains(o.Error, "you said") {
			t.Errorf("the mail server was not heard: %s", o.Error)
		}
		f.search("the outcome of a test", []byte(o.Error))
	}
	for _, found := range f.found {
		t.Error(found)
	}
	c.Hosts()[2].CutNetwork(true)
	c.Hosts()[2].HangStore(true)
	begun := time.Now()
	until(t, c, "/v1/incidents", "an incident, and time for the first level", func(all []client.Incident) bool {
		return len(all) == 1 && (testing.Short() || time.Since(begun) > 40*time.Second)
	})
	until(t, c, "/v1/vms", "the VM elsewhere", func(vms []client.VM) bool { return vms[0].Owner != "kvm-03" && vms[0].State == haven.VMRunning })
	if on := c.Hosts()[2].BMC.On(); on {
		t.Error("the host was not fenced")
	}
	until(t, c, "/v1/vms", "the web hook's word", func([]client.VM) bool {
		heard := string(k.hook.Bytes())
		return strings.Contains(heard, "POST /token-") && strings.Contains(heard, "host-proved-dead")
	})
}

// askHelper runs a helper that is asked with the right password and with a wrong one.
func (k *keepers) askHelper(t *testing.T, c *minicluster.Cluster, log io.Writer) {
	t.Helper()
	addr := netip.AddrPortFrom(c.Hosts()[0].Addr, 18080)
	logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	right := helper.NewClient(netx.Real{}, nil, "haven", k.secrets["helper"])
	s, err := helper.New(helper.Options{
		Address: addr.String(), Username: "haven", Password: k.secrets["helper"], VMs: noList{}, Client: right, Net: netx.Real{}, Log: logger,
		Neighbours: []netip.AddrPort{addr},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	ready := make(chan struct{})
	running.Go(func() {
		if err := s.Run(ctx, func(string) { close(ready) }); err != nil {
			t.Error(err)
		}
	})
	<-ready
	for _, c := range []*helper.Client{right, helper.NewClient(netx.Real{}, nil, "haven", "x"+k.secrets["helper"])} {
		if _, err := c.List(t.Context(), addr); err != nil {
			_, _ = fmt.Fprintln(log, err)
		} else {
			t.Error("a list that cannot be")
		}
	}
}

type noList struct{}

func (noList) Running(context.Context) ([]string, error) { return nil, errors.New("there is none") }

// routes are those of the agent's own table of rights, so that a new route is asked
// too: paths with places, which are filled here.
func routes(t *testing.T, incident string) []string {
	t.Helper()
	text, err := os.ReadFile("../agent/routes_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, m := range regexp.MustCompile(`"GET (/[^"]*)"`).FindAllStringSubmatch(string(text), -1) {
		all = append(all, strings.NewReplacer("{id}", incident, "{host}", "kvm-03", "{vm}", string(vmID(1))).Replace(m[1]))
	}
	if len(all) < 12 || strings.Contains(fmt.Sprint(all), "{") {
		t.Fatalf("routes %q", all)
	}
	return append(all, "/", "/web/app.js", "/web/style.css")
}

// collect looks everywhere.
func (k *keepers) collect(t *testing.T, f *finder, c *minicluster.Cluster, api *client.Client, dir string, log *lockedBuffer) {
	t.Helper()
	f.search("the log", log.Bytes())
	for _, want := range []string{"level=DEBUG", "fence device test failed", "asked:", "notification was not sent", "you said", "[redacted]"} {
		if !bytes.Contains(log.Bytes(), []byte(want)) {
			t.Errorf("the log says nothing of %q, so it tells nothing", want)
		}
	}
	var incidents []client.Incident
	if err := api.Get(t.Context(), "kvm-01", "/v1/incidents", &incidents); err != nil || len(incidents) == 0 {
		t.Fatalf("%d incidents, %v", len(incidents), err)
	}
	transport := c.AsHost("kvm-02")
	defer transport.CloseIdleConnections()
	asHost := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	answered := 0
	for _, path := range routes(t, string(incidents[0].ID)) {
		for _, host := range []string{"kvm-01", "kvm-02"} {
			resp, err := asHost.Get("https://" + host + path)
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode == http.StatusForbidden {
				t.Errorf("%s: %s, %v", path, resp.Status, err)
			}
			if resp.StatusCode == http.StatusOK {
				answered++
			}
			f.search(host+path, append(body, fmt.Sprint(resp.Header)...))
		}
	}
	if answered < 24 {
		t.Errorf("only %d answers", answered)
	}
	for _, h := range c.Hosts()[:2] {
		snapshot, err := h.Ledger().Snapshot()
		if err != nil || len(snapshot) == 0 {
			t.Errorf("snapshot: %v", err)
		}
		f.search("a snapshot of the ledger", snapshot)
	}
	// The files with the secrets are beside, but for these of the cluster itself.
	for _, name := range []string{"bmc.password", "bmc.kg", "gossip.key"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if n := f.searchFiles(t, dir); n < 10 {
		t.Errorf("only %d files", n)
	}
	var out bytes.Buffer
	file := filepath.Join(k.dir, "haven.yaml")
	config.Check(file, &out)
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	dump, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f.search("havend --check", out.Bytes())
	f.search("the configuration, dumped", append(dump, fmt.Sprintf("%+v %#v", cfg, cfg)...))
}

// lockedBuffer is a buffer that several loggers write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) Bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}

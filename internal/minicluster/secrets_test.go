package minicluster_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/minicluster"
	"github.com/haven-ha/haven/internal/world"
)

// TestSecretsStayWhereTheyBelong: no password and no key is in the log of any
// agent at its most talkative, in any answer of the API, in what agents write to
// their data directories, or on the stores.
func TestSecretsStayWhereTheyBelong(t *testing.T) {
	var log lockedBuffer
	dir := t.TempDir()
	targets := notifyTargets(t)
	c, err := minicluster.New(minicluster.Options{
		Hosts: 3, Dir: dir, StoreChild: []string{"/proc/self/exe", "store-child"},
		Net: [2]byte{byte(os.Getpid() >> 8), byte(os.Getpid())}, MemoryMiB: 8192, OnEvent: func(world.Event) {},
		Config: func(yaml string) string { return yaml + targets.yaml },
		Log: func(host haven.HostID) *slog.Logger {
			return slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug - 4})).With("self", host)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Hosts()[2].Machine.UserStart(world.XML(vmID(1), "vm1", 512)); err != nil {
		t.Fatal(err)
	}
	until(t, c, "/v1/vms", "a protected VM", func(vms []client.VM) bool { return len(vms) == 1 && vms[0].Protected })
	until(t, c, "/v1/hosts", "boards that were read", func(hosts []client.Host) bool {
		for _, h := range hosts {
			if h.Power.State != "on" || h.PowerGUID == "" {
				return false
			}
		}
		return len(hosts) == 3
	})
	until(t, c, "/v1/status", "no hold", func(s client.Status) bool { return len(s.Holds) == 0 && s.HostsUp == 3 })
	c.Hosts()[2].PowerOff()
	until(t, c, "/v1/vms", "the VM elsewhere", func(vms []client.VM) bool { return vms[0].Owner != "kvm-03" && vms[0].State == haven.VMRunning })

	key := sha256.Sum256([]byte("gossip in one process needs no secret"))
	secrets := map[string][]byte{
		"the BMCs' password":        []byte("knock-knock-bmc"),
		"the password in base64":    []byte(base64.StdEncoding.EncodeToString([]byte("knock-knock-bmc"))),
		"the gossip key":            key[:],
		"the gossip key in base64":  []byte(base64.StdEncoding.EncodeToString(key[:])),
		"the gossip key in hex":     []byte(hex.EncodeToString(key[:])),
		"a private key":             []byte("PRIVATE KEY"),
		"the Authorization of HTTP": []byte("Authorization"),
	}
	for _, secret := range targets.secrets {
		secrets["a secret of a notification target"+secret] = []byte(secret)
	}
	search := func(where string, data []byte) {
		for what, secret := range secrets {
			if at := bytes.Index(data, secret); at >= 0 {
				t.Errorf("%s is in %s: %q", what, where, data[max(0, at-80):min(len(data), at+40)])
			}
		}
	}
	search("the log", log.Bytes())
	if !bytes.Contains(log.Bytes(), []byte("level=DEBUG")) {
		t.Error("the log is not talkative enough to tell anything")
	}
	api, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/v1/members", "/v1/raft", "/v1/status", "/v1/hosts", "/v1/vms", "/v1/incidents"} {
		var answer json.RawMessage
		if err := api.Get(t.Context(), "kvm-01", path, &answer); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		search(path, answer)
	}
	var tested client.NotifyTested
	if err := api.Post(t.Context(), "kvm-01", client.PathNotifyTest, client.NotifyTest{}, &tested); err != nil || len(tested.Targets) != 3 {
		t.Errorf("%+v, %v", tested, err)
	}
	for _, o := range tested.Targets {
		if o.Error == "" {
			t.Errorf("%s took a test that it cannot have taken", o.Target)
		}
		search("the outcome of a test", []byte(o.Error))
	}
	if got := targets.heard(); !strings.Contains(got, "POST /hook-token-") || !strings.Contains(got, "host-proved-dead") {
		t.Errorf("the web hook heard %q", got)
	}
	search("the log, once targets failed", log.Bytes())
	var incidents []client.Incident
	if err := api.Get(t.Context(), "kvm-01", "/v1/incidents", &incidents); err != nil || len(incidents) == 0 {
		t.Fatalf("%d incidents, %v", len(incidents), err)
	}
	var incident json.RawMessage
	if err := api.Get(t.Context(), "kvm-01", "/v1/incidents/"+string(incidents[0].ID), &incident); err != nil {
		t.Error(err)
	}
	search("an incident", incident)
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil //nolint:nilerr // it went away while it was looked for
		}
		data, err := os.ReadFile(path)
		if err == nil {
			search(path, data)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// told are notification targets that all fail a test, and what one of them heard.
type told struct {
	yaml    string
	secrets []string
	buffer  *lockedBuffer
}

func (n told) heard() string { return string(n.buffer.Bytes()) }

// notifyTargets makes a mail server that is not there, an SNMP manager that says
// nothing and a web hook that refuses tests.
func notifyTargets(t *testing.T) told {
	t.Helper()
	n := told{secrets: []string{"mail-password-31", "snmp-auth-secret-32", "snmp-priv-secret-33", "hook-token-34", "hook-key-35"}, buffer: &lockedBuffer{}}
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(n.buffer, "%s %s %s\n", r.Method, r.URL, body)
		if strings.Contains(string(body), `"kind":"test"`) {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(hook.Close)
	deaf, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = deaf.Close() })
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	n.yaml = fmt.Sprintf(`
notify:
  messages_per_minute: 600
  email: [{name: ops, server: 127.0.0.1, port: 1, username: haven, password_file: %s, from: a@example.org, to: [b@example.org]}]
  snmp: [{name: nms, address: 127.0.0.1, port: %d, inform: true, username: haven, auth_password_file: %s, privacy_password_file: %s}]
  webhook: [{name: chat, url_file: %s, secret_file: %s}]
`, file("mail", n.secrets[0]), deaf.LocalAddr().(*net.UDPAddr).Port, file("auth", n.secrets[1]), file("priv", n.secrets[2]),
		file("url", hook.URL+"/"+n.secrets[3]), file("key", n.secrets[4]))
	return n
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

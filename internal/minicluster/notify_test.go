package minicluster_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/minicluster"
	"github.com/haven-ha/haven/internal/notify/webhook"
	"github.com/haven-ha/haven/internal/world"
)

// posts are what a web hook was sent.
type posts struct {
	mu  sync.Mutex
	all []webhook.Document
}

func (p *posts) take(t *testing.T, secret string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var d webhook.Document
		if err != nil || json.Unmarshal(body, &d) != nil {
			t.Errorf("posted: %q, %v", body, err)
		}
		if r.Header.Get(webhook.HeaderSignature) != webhook.Sign(secret, r.Header.Get(webhook.HeaderTimestamp), body) {
			t.Error("a wrong signature")
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.all = append(p.all, d)
	})
}

func (p *posts) of(kind string) (found []webhook.Document) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range p.all {
		if d.Kind == kind {
			found = append(found, d)
		}
	}
	return found
}

// The power of the master's host is cut. The new master tells each step, under
// ids that are the incident's, and nobody tells one twice; a mail server that
// hangs delays nothing (row 19, P8). What an operator does is told as well.
func TestPeopleAreTold(t *testing.T) {
	hung, err := net.Listen("tcp", "127.0.0.1:0") // it takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hung.Close() }()
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte("hook-key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	told := &posts{}
	hook := httptest.NewServer(told.take(t, "hook-key"))
	defer hook.Close()
	c, err := minicluster.New(minicluster.Options{
		Hosts: 3, Dir: t.TempDir(), StoreChild: []string{"/proc/self/exe", "store-child"},
		Net: [2]byte{byte(os.Getpid()>>8) ^ 0x55, byte(os.Getpid())}, MemoryMiB: 8192, OnEvent: func(world.Event) {},
		Log: func(host haven.HostID) *slog.Logger {
			return slog.New(slog.NewTextHandler(t.Output(), nil)).With("self", host)
		},
		Config: func(yaml string) string {
			return yaml + fmt.Sprintf(`
notify:
  messages_per_minute: 600
  email: [{name: hung, server: 127.0.0.1, port: %d, from: a@example.org, to: [b@example.org]}]
  webhook: [{name: chat, url: %q, secret_file: %s}]
`, hung.Addr().(*net.TCPAddr).Port, hook.URL, key)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	until(t, c, "/v1/status", "no hold", func(s client.Status) bool { return len(s.Holds) == 0 && s.HostsUp == 3 })
	api, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	var status client.Status
	if err := api.Get(t.Context(), "kvm-01", "/v1/status", &status); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(c.Hosts(), func(h *minicluster.Host) bool { return h.ID == status.Master })
	if _, err := c.Hosts()[i].Machine.UserStart(world.XML(vmID(1), "vm1", 512)); err != nil {
		t.Fatal(err)
	}
	until(t, c, "/v1/vms", "a protected VM", func(vms []client.VM) bool { return len(vms) == 1 && vms[0].Protected })
	until(t, c, "/v1/hosts", "boards that were read", func(hosts []client.Host) bool {
		return !slices.ContainsFunc(hosts, func(h client.Host) bool { return h.Power.State != "on" || h.PowerGUID == "" })
	})
	c.Hosts()[i].PowerOff()
	until(t, c, "/v1/vms", "the VM elsewhere", func(vms []client.VM) bool { return vms[0].Owner != status.Master && vms[0].State == haven.VMRunning })
	asked := c.Hosts()[(i+1)%3].ID
	if err := api.Post(t.Context(), asked, "/v1/disarm", client.Act{By: "maria", Reason: "core switch"}, nil); err != nil {
		t.Fatal(err)
	}
	// The ledger knows that the VM runs a moment before people do.
	until(t, c, "/v1/vms", "all notifications", func([]client.VM) bool {
		return len(told.of("vm-started")) > 0 && len(told.of("operator-acted")) > 0 && len(told.of("host-proved-dead")) > 0
	})

	told.mu.Lock()
	defer told.mu.Unlock()
	first := map[string]webhook.Document{}
	for _, d := range told.all {
		before, twice := first[d.ID]
		if twice && d.Number == 0 && !d.Reminder {
			t.Errorf("%s was told by %s and by %s", d.ID, before.By, d.By)
		}
		first[d.ID] = d
		if d.Cluster != "demo" || d.Text == "" || d.Severity == "" || d.Time.IsZero() {
			t.Errorf("%+v", d)
		}
	}
	for _, d := range told.all {
		switch d.Kind {
		case "host-proved-dead":
			if d.Host != status.Master || d.By == status.Master || d.Severity != "critical" || d.ID != "host-proved-dead/"+string(d.Incident)+"/"+string(status.Master) {
				t.Errorf("%+v", d)
			}
		case "operator-acted":
			if !strings.Contains(d.Text, "maria") || !strings.Contains(d.Text, "disarm") || !strings.Contains(d.Text, "core switch") {
				t.Errorf("%+v", d)
			}
		}
	}
}

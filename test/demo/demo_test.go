package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
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
	"github.com/haven-ha/haven/storagebeat"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == storeChild {
		os.Exit(storagebeat.ChildMain(os.Args[2:], os.Stdin, os.Stdout))
	}
	os.Exit(m.Run())
}

// TestScript guards the main job on real parts (P1, P2, P3, P7, P9): power cuts
// of a slave's and of the master's host, each recovered exactly once.
func TestScript(t *testing.T) {
	var out, complaints bytes.Buffer
	dir := t.TempDir()
	code := run(t.Context(), []string{"--script", "--dir", dir}, &out, &complaints)
	t.Logf("\n%s%s", out.String(), complaints.String())
	if code != exitOK {
		if logs, err := os.ReadFile(filepath.Join(dir, "agents.log")); err == nil {
			t.Logf("the agents' logs:\n%s", logs)
		}
		t.Fatalf("exit code %d", code)
	}
	for _, want := range []string{`suspect`, `proof +power-off by kvm-`, `power: no, by kvm-`, `order +vm-`, `truth +vm-\d\d runs on kvm-\d\d, by order`, `closed`, `OK: all 10 VMs run again, each exactly once`} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("the output lacks %q", want)
		}
	}
	if n := strings.Count(out.String(), "loses its power\n"); n != 2 {
		t.Errorf("%d hosts lost their power, want 2", n)
	}
}

// The script's eyes are open: a VM that runs twice, or was started once too
// often, or not at all, is no success.
func TestScriptSeesWhatIsWrong(t *testing.T) {
	tests := []struct {
		name string
		harm func(t *testing.T, d *demo)
		want string
	}{
		{"runs twice", func(t *testing.T, d *demo) {
			d.userStartsAt(t, 0, 1)
		}, "P1 broken"},
		{"started once too often", func(_ *testing.T, d *demo) {
			m := d.cluster.Hosts()[0].Machine
			m.UserStop(d.vms[0], false)
			xml, err := m.Hypervisor().Definition(t.Context(), d.vms[0])
			if err == nil {
				_, err = m.UserStart(xml)
			}
			if err != nil {
				t.Error(err)
			}
		}, "started 2 times; 1 would be right"},
		{"runs nowhere", func(_ *testing.T, d *demo) {
			d.cluster.Hosts()[0].Machine.UserStop(d.vms[0], false)
		}, "runs on [] and was started 1 times of 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := startDemo(t, options{hosts: 3, vms: 3})
			p := &player{demo: d, out: io.Discard, starts: map[haven.VMID]int{d.vms[0]: 1, d.vms[1]: 1, d.vms[2]: 1}}
			if err := p.truthHolds(); err != nil || p.notOnce() != "" {
				t.Fatalf("before any harm: %v, %s", err, p.notOnce())
			}
			tt.harm(t, d)
			got := p.notOnce()
			if err := p.truthHolds(); err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, tt.want) {
				t.Errorf("the script sees %q, want %q", got, tt.want)
			}
		})
	}
}

func (d *demo) userStartsAt(t *testing.T, vm, host int) {
	t.Helper()
	xml, err := d.cluster.Hosts()[vm].Machine.Hypervisor().Definition(t.Context(), d.vms[vm])
	if err == nil {
		_, err = d.cluster.Hosts()[host].Machine.UserStart(xml)
	}
	if err != nil {
		t.Error(err)
	}
}

func startDemo(t *testing.T, o options) *demo {
	t.Helper()
	d, err := newDemo(o, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

const testAddr = "127.0.0.1:7980"

// do sends a request to the page's handler, as a browser would that has it open,
// but for the headers that are given.
func do(t *testing.T, h http.Handler, method, path string, header map[string]string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "http://"+testAddr+path, nil)
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	for k, v := range header {
		if r.Header.Set(k, v); k == "Host" {
			r.Host = v
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestFaults(t *testing.T) {
	d := startDemo(t, options{hosts: 3, vms: 3})
	h := d.handler(testAddr)
	whole := hostParts{Host: "kvm-02", Power: true, Network: true, Storage: true, Agent: true, BMC: true}
	with := func(change func(*hostParts)) hostParts {
		p := whole
		change(&p)
		return p
	}
	tests := []struct {
		name, path string
		status     int
		want       hostParts
	}{
		{"network", "kvm-02/network/off", 200, with(func(p *hostParts) { p.Network = false })},
		{"network twice", "kvm-02/network/off", 200, with(func(p *hostParts) { p.Network = false })},
		{"network back", "kvm-02/network/on", 200, whole},
		{"storage", "kvm-02/storage/off", 200, with(func(p *hostParts) { p.Storage = false })},
		{"storage back", "kvm-02/storage/on", 200, whole},
		{"BMC", "kvm-02/bmc/off", 200, with(func(p *hostParts) { p.BMC = false })},
		{"BMC back", "kvm-02/bmc/on", 200, whole},
		{"agent", "kvm-02/agent/off", 200, with(func(p *hostParts) { p.Agent = false })},
		{"agent back", "kvm-02/agent/on", 200, whole},
		{"a lie", "kvm-02/confirm-dead", 409, whole},
		{"no such host", "kvm-09/power/off", 404, whole},
		{"no such part", "kvm-02/roof/off", 404, whole},
		{"no such state", "kvm-02/power/maybe", 404, whole},
		{"power", "kvm-02/power/off", 200, with(func(p *hostParts) { p.Power, p.Agent = false, false })},
		{"agent without power", "kvm-02/agent/on", 200, with(func(p *hostParts) { p.Power, p.Agent = false, false })},
		{"power back", "kvm-02/power/on", 200, whole},
	}
	for _, tt := range tests { // Each goes on where the last one ended.
		w := do(t, h, http.MethodPost, "/demo/hosts/"+tt.path, nil)
		if w.Code != tt.status {
			t.Errorf("%s: %d %s, want %d", tt.name, w.Code, w.Body, tt.status)
		}
		var view truthView
		decode(t, do(t, h, http.MethodGet, "/demo/hosts", nil), &view)
		i := slices.IndexFunc(view.Hosts, func(p hostParts) bool { return p.Host == "kvm-02" })
		if i < 0 || view.Hosts[i] != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, view.Hosts, tt.want)
		}
		if len(view.VMs) != 3 || len(view.Violations) > 0 {
			t.Errorf("%s: %d VMs, violations %v", tt.name, len(view.VMs), view.Violations)
		}
	}
}

func decode(t *testing.T, w *httptest.ResponseRecorder, into any) {
	t.Helper()
	if w.Code != http.StatusOK {
		t.Fatalf("answer %d: %s", w.Code, w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
		t.Fatal(err)
	}
}

// A page elsewhere that a browser on this machine shows cannot cut power, nor
// read what is here.
func TestForeignPagesAreRefused(t *testing.T) {
	d := startDemo(t, options{hosts: 3, vms: 3})
	h := d.handler(testAddr)
	const cut = "/demo/hosts/kvm-01/power/off"
	tests := []struct {
		name, method, path string
		header             map[string]string
		want               int
	}{
		{"a page of another site", "POST", cut, map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"a page on another port", "POST", cut, map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		{"an old browser", "POST", cut, map[string]string{"Sec-Fetch-Site": "", "Origin": "http://evil.example"}, 403},
		{"a sandboxed page", "POST", cut, map[string]string{"Sec-Fetch-Site": "", "Origin": "null"}, 403},
		{"a name that was pointed here", "POST", cut, map[string]string{"Host": "evil.example:7980"}, 421},
		{"a name that was pointed here reads", "GET", "/demo/hosts", map[string]string{"Host": "evil.example:7980"}, 421},
		{"another port of this machine", "POST", cut, map[string]string{"Host": "127.0.0.1:80"}, 421},
		{"by a GET", "GET", cut, nil, 405},
		{"by its other name", "GET", "/demo/hosts", map[string]string{"Host": "localhost:7980"}, 200},
		{"an act of an operator is not passed on", "POST", "/v1/disarm", nil, 404},
		{"nor are the agents' own calls", "GET", "/v1/agent/hello", nil, 404},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if w := do(t, h, tt.method, tt.path, tt.header); w.Code != tt.want {
				t.Errorf("%d %s, want %d", w.Code, w.Body, tt.want)
			}
			if on, _ := d.cluster.Hosts()[0].Machine.On(); !on {
				t.Error("kvm-01 lost its power")
			}
		})
	}
}

// The page shows what the agents say, whichever of them lives.
func TestPassesTheAPIOn(t *testing.T) {
	d := startDemo(t, options{hosts: 3, vms: 3})
	h := d.handler(testAddr)
	p := &player{demo: d, out: io.Discard, starts: map[haven.VMID]int{d.vms[0]: 1, d.vms[1]: 1, d.vms[2]: 1}}
	if err := p.until(t.Context(), "the cluster is whole", p.whole); err != nil {
		t.Fatal(err)
	}
	var st client.Status
	decode(t, do(t, h, http.MethodGet, "/v1/status", nil), &st)
	if st.Hosts != 3 || st.VMs != 3 || !st.Healthy {
		t.Errorf("status %+v", st)
	}
	for _, path := range []string{"/v1/hosts", "/v1/vms", "/v1/incidents", "/v1/raft", "/v1/members", "/", "/web/app.js"} {
		if w := do(t, h, http.MethodGet, path, nil); w.Code != http.StatusOK {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if w := do(t, h, http.MethodGet, "/v1/incidents/none", nil); w.Code != http.StatusNotFound {
		t.Errorf("an incident that does not exist: %d %s", w.Code, w.Body)
	}
	if err := d.setPart(st.Master, "agent", false); err != nil {
		t.Fatal(err)
	}
	err := p.until(t.Context(), "another master answers", func(context.Context) (string, error) {
		w := do(t, h, http.MethodGet, "/v1/status", nil)
		var now client.Status
		if w.Code != http.StatusOK || json.Unmarshal(w.Body.Bytes(), &now) != nil || now.Stale || now.Master == st.Master {
			return w.Body.String(), nil
		}
		return "", nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestArguments(t *testing.T) {
	tests := []struct {
		name, args, want string
	}{
		{"two hosts", "--hosts 2", "3 to 16"},
		{"one VM", "--vms 1", "2 to 200"},
		{"all addresses", "--listen 0.0.0.0:7980", "loopback"},
		{"no address", "--listen :7980", "loopback"},
		{"a name", "--listen example.com:80", "loopback"},
		{"something more", "--script now", "no arguments"},
		{"an unknown flag", "--fast", "not defined"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out, complaint bytes.Buffer
			if code := run(t.Context(), strings.Fields(tt.args), &out, &complaint); code != exitUsage {
				t.Errorf("exit code %d, want %d", code, exitUsage)
			}
			if !strings.Contains(complaint.String(), tt.want) {
				t.Errorf("it says %q, want %q", complaint.String(), tt.want)
			}
		})
	}
}

// Ctrl-C ends the page and everything else, and leaves nothing behind.
func TestInterrupted(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	ctx, stop := context.WithCancel(t.Context())
	out := &firstWrite{written: make(chan struct{}), mark: "Open http://"}
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"--hosts", "3", "--vms", "3", "--listen", "127.0.0.1:0"}, out, io.Discard)
	}()
	select {
	case <-out.written:
	case code := <-ended:
		t.Fatalf("it ended with %d", code)
	case <-time.After(patience):
		t.Fatal("no page")
	}
	stop()
	select {
	case code := <-ended:
		if code != exitOK {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if left := childrenOf(t); len(left) > 0 {
		t.Errorf("processes left behind: %v", left)
	}
}

// firstWrite tells when a mark was written.
type firstWrite struct {
	once    sync.Once
	written chan struct{}
	mark    string
}

func (f *firstWrite) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(f.mark)) {
		f.once.Do(func() { close(f.written) })
	}
	return len(b), nil
}

// childrenOf lists the store children of this process.
func childrenOf(t *testing.T) []string {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // It ended meanwhile.
		}
		_, after, _ := strings.Cut(string(stat), ") ")
		if f := strings.Fields(after); len(f) > 1 && f[1] == strconv.Itoa(os.Getpid()) {
			all = append(all, string(stat))
		}
	}
	return all
}

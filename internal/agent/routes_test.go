package agent

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/detector"
	"github.com/haven-ha/haven/internal/api"
	"github.com/haven-ha/haven/internal/client"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/pki"
	"github.com/haven-ha/haven/internal/tlsmux"
)

// rights says who may use each route. It is written by hand, and not taken from
// the routes: a new route must be added here, by somebody who thinks about it.
var rights = map[string]string{
	"GET /v1/agent/hello":                   "host",
	"POST /v1/agent/report":                 "host",
	"GET /v1/agent/inventory":               "host",
	"GET /v1/agent/vms/{vm}/definition":     "host",
	"POST /v1/agent/orders":                 "host",
	"POST /v1/agent/probe":                  "host",
	"POST /v1/agent/disks":                  "host",
	"POST /v1/agent/stop":                   "host",
	"POST /v1/agent/confirm":                "host",
	"POST /v1/agent/power":                  "host",
	"POST /v1/agent/power/permit":           "host",
	"POST /v1/agent/pill":                   "host",
	"POST /v1/agent/pill/leave":             "host",
	"POST /v1/agent/promise":                "host",
	"POST /v1/agent/withdrawn":              "host",
	"GET /v1/members":                       "host viewer operator admin local",
	"GET /v1/raft":                          "host viewer operator admin local",
	"GET /v1/status":                        "host viewer operator admin local",
	"GET /v1/hosts":                         "host viewer operator admin local",
	"GET /v1/vms":                           "host viewer operator admin local",
	"GET /v1/incidents":                     "host viewer operator admin local",
	"GET /v1/incidents/{id}":                "host viewer operator admin local",
	"GET /v1/incidents/{id}/recording":      "host viewer operator admin local",
	"GET /healthz":                          "host viewer operator admin local",
	"GET /readyz":                           "host viewer operator admin local",
	"POST /v1/arm":                          "operator admin local",
	"POST /v1/disarm":                       "operator admin local",
	"POST /v1/notify/test":                  "operator admin local",
	"POST /v1/hosts/{host}/confirm-dead":    "operator admin local",
	"POST /v1/hosts/{host}/maintenance":     "operator admin local",
	"POST /v1/hosts/{host}/maintenance/end": "operator admin local",
	"GET /v1/hosts/{host}/decisions":        "host viewer operator admin local",
	"POST /v1/hosts/{host}/fence/{action}":  "operator admin local",
	"POST /v1/hosts/{host}/fence/release":   "operator admin local",
	"GET /v1/fence/log":                     "host viewer operator admin local",
	"POST /v1/fence/cap/reset":              "operator admin local",
	"POST /v1/hosts/{host}/release":         "admin local",
	"POST /v1/hosts/{host}/trust-bmc":       "admin local",
	"GET /metrics":                          "host viewer operator admin local",
	"POST /v1/agent/nobody-made-this-route": "",
}

// TestRights asks every route, over real TLS, as everybody.
func TestRights(t *testing.T) {
	a := &Agent{log: slog.New(slog.DiscardHandler)}
	routes := a.routes()
	for i, r := range routes {
		if _, listed := rights[r.Pattern]; !listed {
			t.Errorf("route %q is not in the table of rights", r.Pattern)
		}
		if strings.HasPrefix(r.Pattern, "GET ") != (r.MaxBytes == 0) {
			t.Errorf("route %q takes %d bytes", r.Pattern, r.MaxBytes)
		}
		routes[i].Serve = func(context.Context, *api.Call) (any, error) { return "ok", nil }
	}
	ca, err := pki.NewCA("prod-a", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr("127.0.0.1")
	creds := map[string]*pki.Credentials{}
	issue := func(name string, pair pki.Pair, err error) {
		if err == nil {
			creds[name], err = pki.NewCredentials("prod-a", ca.Pair().Cert, pair)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	self, err := ca.IssueHost("kvm-01", []netip.Addr{addr}, time.Hour)
	issue("self", self, err)
	host, err := ca.IssueHost("kvm-02", []netip.Addr{addr}, time.Hour)
	issue("host", host, err)
	for _, role := range []pki.Role{pki.RoleViewer, pki.RoleOperator, pki.RoleAdmin} {
		pair, err := ca.IssueOperator("alice", role, time.Hour)
		issue(string(role), pair, err)
	}
	mux, err := tlsmux.Listen(tlsmux.Config{Stack: netx.Real{}, Addr: "127.0.0.1:0", Credentials: creds["self"], Log: a.log})
	if err != nil {
		t.Fatal(err)
	}
	local, err := netx.Real{}.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	metrics := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	h := api.Handler("prod-a", routes, map[string]http.Handler{"GET /metrics": metrics}, a.log)
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = mux.Run(ctx) })
	wg.Go(func() { _ = api.Serve(ctx, mux.HTTP(), h, false, a.log) })
	wg.Go(func() { _ = api.Serve(ctx, local, h, true, a.log) })
	defer wg.Wait()
	defer stop()

	for _, who := range []string{"host", "viewer", "operator", "admin", "local"} {
		t.Run(who, func(t *testing.T) {
			c, base := http.DefaultClient, "http://"+local.Addr().String()
			if who != "local" {
				tr := tlsmux.NewTransport(netx.Real{}, creds[who], func(haven.HostID) (string, bool) { return mux.Addr().String(), true })
				defer tr.CloseIdleConnections()
				c, base = &http.Client{Transport: tr}, "https://kvm-01"
			}
			for pattern, allowed := range rights {
				method, path, _ := strings.Cut(pattern, " ")
				path = strings.NewReplacer("{vm}", "x", "{id}", "x", "{host}", "x").Replace(path)
				req, err := http.NewRequestWithContext(t.Context(), method, base+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				if who != "host" {
					req.Header.Set(client.HeaderOnBehalf, "admin mallory;admin") // only hosts may speak for others
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				want := http.StatusForbidden
				switch {
				case allowed == "":
					want = http.StatusNotFound
				case strings.Contains(" "+allowed+" ", " "+who+" "):
					want = http.StatusOK
				}
				if resp.StatusCode != want {
					t.Errorf("%s: %d, want %d", pattern, resp.StatusCode, want)
				}
			}
		})
	}
}

// TestHostsSpeakForThemselves: a host cannot report about another.
func TestHostsSpeakForThemselves(t *testing.T) {
	a := &Agent{log: slog.New(slog.DiscardHandler)}
	_, err := a.TakeReport(t.Context(), "kvm-02", &client.Report{Identity: client.Identity{Host: "kvm-03"}})
	if err == nil {
		t.Fatal("kvm-02 reported about kvm-03")
	}
}

// TestSign guards who an act is recorded to be by (P2: "an operator said so by
// name"), also when it comes through an agent that is not the master.
func TestSign(t *testing.T) {
	tests := []struct {
		name   string
		call   api.Call
		by     string
		reason string
		want   string // empty: refused
	}{
		{name: "an operator", call: api.Call{By: "operator alice", Role: pki.RoleOperator}, want: "operator alice"},
		{name: "an operator in another name", call: api.Call{By: "operator alice", Role: pki.RoleOperator}, by: "bob", want: "operator alice"},
		{name: "an admin", call: api.Call{By: "admin alice", Role: pki.RoleAdmin}, want: "admin alice"},
		{name: "an admin in another name", call: api.Call{By: "admin alice", Role: pki.RoleAdmin}, by: "bob", want: "bob as admin alice"},
		{name: "root without a name", call: api.Call{By: api.ByLocal, Role: pki.RoleAdmin}, want: api.ByLocal},
		{name: "root with a name", call: api.Call{By: api.ByLocal, Role: pki.RoleAdmin}, by: "bob", want: "bob as " + api.ByLocal},
		{name: "root without a name, passed on", call: api.Call{From: "kvm-02", By: api.ByLocal, Role: pki.RoleAdmin}, by: api.ByLocal, want: api.ByLocal},
		{name: "root with a name, passed on", call: api.Call{From: "kvm-02", By: api.ByLocal, Role: pki.RoleAdmin}, by: "bob as " + api.ByLocal, want: "bob as " + api.ByLocal},
		{name: "passed on without a name", call: api.Call{From: "kvm-02", By: "operator alice", Role: pki.RoleOperator}, want: "operator alice"},
		{name: "a name with a terminal's escape", call: api.Call{By: "admin alice", Role: pki.RoleAdmin}, by: "bob\x1b[2J"},
		{name: "a very long name", call: api.Call{By: "admin alice", Role: pki.RoleAdmin}, by: strings.Repeat("x", 1000)},
		{name: "a very long reason", call: api.Call{By: "admin alice", Role: pki.RoleAdmin}, reason: strings.Repeat("x", 60000)},
		{name: "a reason of two lines", call: api.Call{By: "admin alice", Role: pki.RoleAdmin}, reason: "a\nb"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q := client.Act{By: tt.by, Reason: tt.reason}
			err := sign(&q, &tt.call)
			if (err == nil) != (tt.want != "") || err == nil && q.By != tt.want {
				t.Errorf("by %q, error %v, want %q", q.By, err, tt.want)
			}
		})
	}
}

// TestConfirmDeadOfTheLiving guards P1 against a slip of an operator: a host that
// shows life is only called dead by force, also while the verdict is unknown
// because the master does not trust its own paths.
func TestConfirmDeadOfTheLiving(t *testing.T) {
	for _, verdict := range []haven.Verdict{
		haven.VerdictHealthy, haven.VerdictSuspect, haven.VerdictStorageLost, haven.VerdictStopped, haven.VerdictShutdown,
		haven.VerdictIsolated, haven.VerdictPartitioned, haven.VerdictAgentDown, haven.VerdictUnreachable,
		haven.VerdictFailed, haven.VerdictDead, haven.VerdictUnknown,
	} {
		for _, reports := range []bool{false, true} {
			a := &Agent{cfg: &config.Config{}, ev: newEvidence()}
			if reports {
				a.ev.report(&client.Report{Identity: client.Identity{Host: "kvm-02"}}, time.Now())
			}
			a.judgement.Store(&judged{
				out:   detector.Output{Hosts: []detector.Judgement{{Host: "kvm-02", Verdict: verdict}}},
				hosts: map[haven.HostID]int{"kvm-02": 0},
			})
			silent := map[haven.Verdict]bool{
				haven.VerdictFailed: true, haven.VerdictDead: true, haven.VerdictUnknown: true, haven.VerdictSuspect: true,
			}
			if got, want := a.mayCallDead("kvm-02") == nil, silent[verdict] && !reports; got != want {
				t.Errorf("%s, reports %t: may be called dead: %t, want %t", verdict, reports, got, want)
			}
		}
	}
}

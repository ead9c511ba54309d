package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/isolation"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/notify"
	"github.com/haven-ha/haven/internal/notify/email"
	"github.com/haven-ha/haven/internal/obs"
	"github.com/haven-ha/haven/internal/recovery"
)

// Every kind of notice that the recovery gives is in the catalogue, with a
// severity and what to do (row 19).
func TestEveryNoticeIsInTheCatalogue(t *testing.T) {
	paths, err := filepath.Glob("../recovery/*.go")
	if err != nil {
		t.Fatal(err)
	}
	known, given, found := notify.NewCatalogue(), map[string]bool{}, 0
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`Kind:\s*"([a-z-]+)"(\s*\+)?`).FindAllStringSubmatch(string(text), -1) {
			kinds := []string{m[1]}
			if m[2] != "" { // "vm-" + the status of an order
				kinds = []string{m[1] + "started", m[1] + "refused", m[1] + "failed"}
			}
			for _, k := range kinds {
				found++
				given[k] = true
				if _, ok := known[k]; !ok {
					t.Errorf("%s gives notices of kind %q: add it to internal/notify/kinds.go", path, k)
				}
			}
		}
	}
	own := []string{
		notify.KindTest, notify.KindSummary, notify.KindOperator, notify.KindIsolated, notify.KindCutOff, notify.KindRejoined,
		notify.KindNoQuorum, notify.KindQuorum, notify.KindReleases, notify.KindReleased, notify.KindHoldAlarm, notify.KindDeviceBad, notify.KindDeviceGood,
		notify.KindReloadBad, notify.KindWatchdogTrouble, notify.KindWatchdogWorks,
	}
	for name := range known {
		if !given[name] && !slices.Contains(own, name) {
			t.Errorf("nobody gives notices of kind %q", name)
		}
	}
	if found < 20 {
		t.Errorf("only %d kinds were found", found)
	}
}

// What the configuration promises of templates is what mails have.
func TestMailFieldsAgree(t *testing.T) {
	have := slices.Sorted(maps.Keys(email.Fields(notify.Message{})))
	promised := slices.Sorted(slices.Values(config.MailFields()))
	if !slices.Equal(have, promised) {
		t.Errorf("mails have %v, the configuration promises %v", have, promised)
	}
}

// recorder remembers what people are told.
type noted struct{ events []notify.Event }

func (n *noted) Notify(e notify.Event) { n.events = append(n.events, e) }
func (n *noted) Test(context.Context, string, string) ([]notify.Outcome, error) {
	return nil, notify.ErrNoTarget
}
func (n *noted) Run(ctx context.Context) { <-ctx.Done() }

func (n *noted) take() (ids []string) {
	for _, e := range n.events {
		ids = append(ids, e.ID)
	}
	n.events = nil
	return ids
}

func telling() (*Agent, *noted) {
	n := &noted{}
	return &Agent{
		d: Deps{Host: "kvm-01", Notifier: n}, log: slog.New(slog.DiscardHandler), metrics: newMetrics(nil), kinds: notify.NewCatalogue(),
		power: newPower(nil), quiet: newQuiet(),
	}, n
}

// The same notice has the same id from whichever master; only what a new master
// finds held already is marked as a reminder.
func TestNoticesHaveStableIDs(t *testing.T) {
	fence := recovery.Notice{Kind: "fence-blocked", Alarm: true, Host: "kvm-03", Incident: "i1", Text: "the board does not answer"}
	hold := recovery.Notice{Kind: "hold-lasts", Alarm: true, Host: "kvm-03", Incident: "i1", About: "power-down-cap/20261122T0458Z", Text: "held for 1m"}
	var ids [2][]string
	for i, since := range []time.Duration{time.Hour, time.Second} {
		a, n := telling()
		a.reign.Store(&mastery{since: time.Now().Add(-since)})
		a.tellPeople(fence)
		a.tellPeople(hold)
		if n.events[0].Reminder || n.events[1].Reminder != (i == 1) || n.events[0].Severity != notify.Critical {
			t.Errorf("master for %s: %+v", since, n.events)
		}
		ids[i] = n.take()
	}
	want := []string{"fence-blocked/i1/kvm-03", "hold-lasts/i1/kvm-03/power-down-cap/20261122T0458Z"}
	if !slices.Equal(ids[0], want) || !slices.Equal(ids[1], want) {
		t.Errorf("%q", ids)
	}
	a, n := telling()
	a.tellPeople(recovery.Notice{Kind: "brake-holds", About: "start-up-grace", Text: "a moment"})
	a.tellPeople(recovery.Notice{Kind: "news-of-tomorrow", Alarm: true})
	a.tellPeople(recovery.Notice{Kind: "held", Alarm: true, Incident: "i1", About: haven.HoldCap})
	a.tellPeople(recovery.Notice{Kind: "held", Alarm: true, Incident: "i1", About: haven.HoldMigrating})
	for i, want := range []notify.Severity{notify.Info, notify.Warning, notify.Critical, notify.Warning} {
		if n.events[i].Severity != want {
			t.Errorf("%+v, want %s", n.events[i], want)
		}
	}
	if want := "Released by the window of fencing.limit; 'haven fence confirm' when the host is off. Look: haven explain i1"; n.events[2].Do != want {
		t.Errorf("%q, want %q", n.events[2].Do, want)
	}
}

// An agent without a master tells of its own host and side (row 19, P3), once what
// it found has lasted: at a cold start the others come a moment later.
func TestAgentTellsOfItself(t *testing.T) {
	a, n := telling()
	start := time.Date(2026, 11, 22, 5, 0, 0, 0, time.UTC)
	last := &selfView{}
	for i, tt := range []struct {
		name     string
		state    isolation.State
		since    time.Duration // before the look
		noQuorum bool
		want     []string
	}{
		{"nobody yet", isolation.Isolated, 2 * time.Second, false, nil},
		{"they came", isolation.Connected, 0, false, nil},
		{"a moment alone", isolation.Alone, 0, false, nil},
		{"isolated for a moment", isolation.Isolated, 9 * time.Second, false, nil},
		{"isolated", isolation.Isolated, 10 * time.Second, false, []string{notify.KindIsolated}},
		{"still", isolation.Isolated, time.Minute, false, nil},
		{"its network works again", isolation.Partitioned, time.Minute, false, []string{notify.KindCutOff}},
		{"still", isolation.Partitioned, time.Hour, false, nil},
		{"back", isolation.Connected, 0, false, []string{notify.KindRejoined}},
		{"still", isolation.Connected, time.Minute, false, nil},
		{"no quorum", isolation.Connected, time.Minute, true, []string{notify.KindNoQuorum}},
		{"still", isolation.Connected, time.Minute, true, nil},
		{"quorum again", isolation.Connected, time.Minute, false, []string{notify.KindQuorum}},
	} {
		now := start.Add(time.Duration(i) * time.Hour)
		v := &selfView{Output: isolation.Output{State: tt.state, Since: now.Add(-tt.since), Why: "no answer"}}
		if tt.noQuorum {
			v.noQuorum, v.votes = start, "1 of 3 voters"
		}
		a.notifySelf(now, v, last)
		last = v
		var kinds []string
		for _, e := range n.events {
			kinds = append(kinds, e.Kind)
			if e.Host != "kvm-01" || e.Text == "" || e.ID == "" {
				t.Errorf("%s: %+v", tt.name, e)
			}
		}
		n.events = nil
		if !slices.Equal(kinds, tt.want) {
			t.Errorf("%d, %s: %v, want %v", i, tt.name, kinds, tt.want)
		}
	}
}

// The master tells of a board that fails and of one that works again; no other
// voter does.
func TestFenceDevicesAreTold(t *testing.T) {
	a, n := telling()
	bad := errors.New("wrong password")
	tested := func(host haven.HostID, key string, err error) {
		a.tested(t.Context(), fencing.TestResult{Host: host, Key: key, Err: err})
	}
	tested("kvm-03", "10.1.0.13:623", bad)
	if len(n.events) != 0 {
		t.Errorf("a voter told: %+v", n.events)
	}
	a.reign.Store(&mastery{})
	tested("kvm-02", "10.1.0.12:623", nil) // it always worked
	tested("kvm-03", "10.1.0.13:623", bad)
	tested("kvm-03", "10.1.0.13:623", bad)
	tested("kvm-03", "10.1.0.13:623", nil)
	if len(n.events) != 3 || n.events[0].ID != n.events[1].ID || n.events[0].Kind != notify.KindDeviceBad || n.events[2].Kind != notify.KindDeviceGood || !strings.Contains(n.events[0].Text, "wrong password") {
		t.Errorf("%+v", n.events)
	}
}

// What becomes of notifications is counted by target; drops only ever grow.
func TestNotificationsAreCounted(t *testing.T) {
	m := obs.NewMetrics()
	n := newNotifyMeter(m)
	n.Sent("ops")
	n.Failed("ops")
	n.Queued("ops", 3, 2)
	n.Queued("ops", 1, 5)
	n.Queued("nms", 0, 0)
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	for _, want := range []string{
		`haven_notifications_sent_total{target="ops"} 1`, `haven_notifications_failed_total{target="ops"} 1`,
		`haven_notifications_dropped_total{target="ops"} 5`, `haven_notifications_queued{target="ops"} 1`, `haven_notifications_queued{target="nms"} 0`,
	} {
		if !strings.Contains(w.Body.String(), want+"\n") {
			t.Errorf("%s is not shown", want)
		}
	}
}

// A configuration makes a target for each entry, and none makes no notifier.
func TestNewNotifier(t *testing.T) {
	cfg := config.Default(config.ProfileNormal)
	made := func() (Notifier, error) {
		return NewNotifier(cfg, "kvm-01", 7, netx.Real{}, config.NewSecrets(slog.New(slog.DiscardHandler)), obs.NewMetrics(), slog.New(slog.DiscardHandler))
	}
	if n, err := made(); n != nil || err != nil {
		t.Errorf("%v, %v", n, err)
	}
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("long-enough-secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Notify.Email = []config.Email{{Name: "ops", Server: "127.0.0.1", Port: 1, TLS: "starttls", Auth: "auto", From: "a@example.org", To: []string{"b@example.org"}, Username: "haven", PasswordFile: secret}}
	cfg.Notify.SNMP = []config.SNMP{{Name: "nms", Address: "127.0.0.1", Port: 1, Version: "v3", Auth: "sha256", Privacy: "aes128", Username: "haven", AuthPasswordFile: secret, PrivacyPasswordFile: secret}}
	cfg.Notify.Webhook = []config.Webhook{{Name: "chat", URL: "http://127.0.0.1:1/"}}
	n, err := made()
	if err != nil {
		t.Fatal(err)
	}
	out, err := n.Test(t.Context(), "", "maria")
	if err != nil || len(out) != 3 || out[0].Error == "" || out[2].Error == "" {
		t.Errorf("%+v, %v", out, err)
	}
	cfg.Notify.Webhook[0].CAFile = filepath.Join(dir, "absent")
	if _, err := made(); err == nil || !strings.Contains(err.Error(), "notification target chat") {
		t.Errorf("%v", err)
	}
}

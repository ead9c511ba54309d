package agent

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/cluster"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/fencing/ipmi/ipmitest"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/notify"
)

// listener is a notifier that only listens.
type listener struct {
	mu     sync.Mutex
	events []notify.Event
}

func (h *listener) Notify(e notify.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
}

func (h *listener) Test(context.Context, string, string) ([]notify.Outcome, error) { return nil, nil }
func (h *listener) Run(ctx context.Context)                                        { <-ctx.Done() }

// TestReload: a reload takes up new secrets and gossip keys without a restart, and
// what is bad leaves the old in use, with an error in the log and a notice that
// holds no secret.
func TestReload(t *testing.T) {
	d := parts(t, 61)
	var log bytes.Buffer
	people := &listener{}
	d.Log, d.Notifier = slog.New(slog.NewTextHandler(&log, nil)), people
	dir := t.TempDir()
	write := func(name string, lines ...string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	one, two := d.GossipKeys[0], cluster.Key(bytes.Repeat([]byte{7}, 32))
	text := func(k cluster.Key) string { return base64.StdEncoding.EncodeToString(k) }
	password, keys := write("bmc", "first-secret"), write("gossip", text(one))
	d.Secrets = config.NewSecrets(d.Log)
	d.RereadGossipKeys = func() ([]cluster.Key, error) { return LoadGossipKeys(keys) }
	a, err := New(d)
	if err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	defer func() { _ = a.Run(ended) }()

	bmc := d.Secrets.File(password)
	if got := a.Reload(nil); len(got) != 0 {
		t.Fatal(got)
	}
	write("bmc", "second-secret")
	write("gossip", text(one), text(two))
	if got := a.Reload(nil); len(got) != 0 {
		t.Fatal(got)
	}
	if got, err := bmc.Text(); got != "second-secret" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if len(a.reloaded) != 1 {
		t.Error("devices are not tested anew")
	}
	<-a.reloaded
	if got, want := fmt.Sprint(a.cluster.Keys()), fmt.Sprint([]cluster.KeyInfo{{ID: one.ID(), Primary: true}, {ID: two.ID()}}); got != want {
		t.Errorf("keys %s, want %s", got, want)
	}
	if len(people.events) != 0 {
		t.Errorf("people were told of good reloads: %+v", people.events)
	}

	write("bmc", "third-secret", "and a second line")
	write("gossip", text(bytes.Repeat([]byte{8}, 32)))
	if len(a.reloaded) != 0 {
		t.Error("devices are tested anew although nothing changed")
	}
	got := a.Reload(errors.New("haven.yaml:3: is not a known key"))
	if len(got) != 3 || !errors.Is(got[1], config.ErrSecret) || !errors.Is(got[2], cluster.ErrKeyTooNew) {
		t.Errorf("%q", got)
	}
	if got, err := bmc.Text(); got != "second-secret" || err != nil {
		t.Errorf("a bad file took the old secret away: %q, %v", got, err)
	}
	if len(a.cluster.Keys()) != 2 {
		t.Errorf("keys %v", a.cluster.Keys())
	}
	if len(people.events) != 1 || people.events[0].Kind != notify.KindReloadBad || people.events[0].Host != d.Host || !strings.Contains(people.events[0].Text, "bmc") {
		t.Errorf("%+v", people.events)
	}
	all := log.String() + fmt.Sprint(people.events)
	for _, s := range []string{"first-secret", "second-secret", "third-secret", text(one), text(two)} {
		if strings.Contains(all, s) {
			t.Errorf("%s was told: %s", s, all)
		}
	}
	if strings.Count(log.String(), "level=ERROR") != 3 {
		t.Error(log.String())
	}
}

// TestPasswordChangedUnderUs: a board whose password was changed is read again with
// what its file holds now, in the same call, and a wrong password is sent no oftener
// than without that (accounts get locked). Power commands keep to their permit.
func TestPasswordChangedUnderUs(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "bmc")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var b *ipmitest.BMC
	at := "127.0.0.1:0"
	// board starts the board with another password, at the same place.
	board := func(password string) {
		t.Helper()
		if b != nil {
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		if b, err = ipmitest.Start(at, ipmitest.Config{Accounts: []ipmitest.Account{{Name: "haven", Password: password, Privilege: ipmitest.Operator}}}); err != nil {
			t.Fatal(err)
		}
		at = b.Addr()
	}
	board("new-one")
	defer func() { _ = b.Close() }()
	addr := netip.MustParseAddrPort(at)
	all, err := fencesOf(t, fmt.Sprintf("{driver: ipmi, username: haven, port: %d, password_file: %s}", addr.Port(), file), "{address: 127.0.0.1}", "{address: 127.0.0.9}")
	if err != nil {
		t.Fatal(err)
	}
	driver := all["kvm-01"][0][0].Driver
	write("old-one")
	if _, err := driver.Power(t.Context()); !errors.Is(err, fencing.ErrAuth) {
		t.Fatal(err)
	}
	if n := b.Logins(); n != 1 {
		t.Errorf("one wrong password was tried %d times", n)
	}
	write("new-one")
	if r, err := driver.Power(t.Context()); err != nil || r.State != haven.PowerOn {
		t.Errorf("%v, %v", r, err)
	}
	write("newest-one") // The board has the one before: what works is kept.
	if _, err := driver.Identity(t.Context()); err != nil {
		t.Error(err)
	}
	board("newest-one")
	asked := 0
	permit := func(context.Context) error { asked++; return nil }
	if err := driver.Set(t.Context(), haven.ActionOff, permit); err != nil || asked != 1 {
		t.Errorf("%v; the permit was asked %d times", err, asked)
	}
	write("newest-one-of-all")
	board("newest-one-of-all")
	if err := driver.(fencing.Lamp).Light(t.Context(), 0, nil); err != nil {
		t.Error(err)
	}
	write("the-latest")
	board("the-latest")
	b.SetPower(false)
	no := func(context.Context) error { return errors.New("somebody else is master") }
	if err := driver.Set(t.Context(), haven.ActionOn, no); !errors.Is(err, fencing.ErrNotPermitted) || b.On() {
		t.Errorf("%v, on %v", err, b.On())
	}
}

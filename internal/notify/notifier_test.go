package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// sender is a target in memory.
type sender struct {
	mu   sync.Mutex
	got  []Message
	fail func() error // nil: it takes everything
}

func (s *sender) Send(ctx context.Context, m Message) error {
	s.mu.Lock()
	fail := s.fail
	s.mu.Unlock()
	if fail != nil {
		if err := fail(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, m)
	return ctx.Err()
}

func (s *sender) set(fail func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

func (s *sender) ids() (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.got {
		ids = append(ids, m.ID)
	}
	return ids
}

// hung takes a message and answers only when it must.
type hung struct{}

func (hung) Send(ctx context.Context, _ Message) error { <-ctx.Done(); return ctx.Err() }

type meter struct {
	mu           sync.Mutex
	sent, failed map[string]int
	waiting      map[string]int
	dropped      map[string]uint64
}

func newMeter() *meter {
	return &meter{sent: map[string]int{}, failed: map[string]int{}, waiting: map[string]int{}, dropped: map[string]uint64{}}
}

func (m *meter) Sent(t string)   { m.mu.Lock(); defer m.mu.Unlock(); m.sent[t]++ }
func (m *meter) Failed(t string) { m.mu.Lock(); defer m.mu.Unlock(); m.failed[t]++ }
func (m *meter) Queued(t string, waiting int, dropped uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting[t], m.dropped[t] = waiting, dropped
}

func running(t *testing.T, cfg Config) *Notifier {
	cfg.Cluster, cfg.Self, cfg.Log = "prod-a", "kvm-01", slog.New(slog.DiscardHandler)
	if cfg.Limits == (Limits{}) {
		cfg.Limits = DefaultLimits()
	}
	n := New(cfg)
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { n.Run(ctx) })
	t.Cleanup(func() { stop(); all.Wait() })
	return n
}

// A target that hangs delays neither the others nor whoever has something to
// tell (P8): Notify takes no time at all.
func TestHungTargetDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, m := &sender{}, newMeter()
		n := running(t, Config{Meter: m, Targets: []Target{{Name: "dead", Sender: hung{}}, {Name: "good", Sender: good}}})
		begun := time.Now()
		for i := range 1000 {
			n.Notify(Event{Kind: "vm-started", Incident: "i1", Text: fmt.Sprint(i), ID: fmt.Sprint("vm/", i)})
		}
		n.Notify(Event{Kind: "fence-blocked", Host: "kvm-03", Incident: "i1", Text: "no answer"})
		if took := time.Since(begun); took != 0 {
			t.Errorf("it took %s to tell", took)
		}
		synctest.Wait()
		if got := good.ids(); len(got) != DefaultLimits().PerMinute || !strings.HasPrefix(got[len(got)-1], "summary/kvm-01/") {
			t.Errorf("got %v", got)
		}
		time.Sleep(sendTimeout + time.Second)
		synctest.Wait()
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.failed["dead"] == 0 || m.sent["good"] == 0 || m.waiting["dead"] == 0 || m.dropped["dead"] == 0 {
			t.Errorf("%+v", m)
		}
	})
}

// A server that is down for ten minutes gets everything afterwards, the most
// severe first, and is not hammered meanwhile.
func TestDownForTenMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, tries := &sender{}, 0
		s.fail = func() error { tries++; return errors.New("connection refused") }
		n := running(t, Config{Targets: []Target{{Name: "mail", Sender: s}}})
		n.Notify(Event{Kind: "vm-ordered", VM: "v1", Incident: "i1"})
		time.Sleep(time.Minute)
		n.Notify(Event{Kind: "host-proved-dead", Host: "kvm-03", Incident: "i1"})
		time.Sleep(9 * time.Minute)
		synctest.Wait()
		if tries < 4 || tries > 10 {
			t.Errorf("%d tries in ten minutes", tries)
		}
		s.set(nil)
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		if got := s.ids(); len(got) != 2 || got[0] != "host-proved-dead/i1/kvm-03" {
			t.Errorf("got %v", got)
		}
	})
}

func TestLeastSeverityAndWhatIsFilledIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all, urgent := &sender{}, &sender{}
		n := running(t, Config{Targets: []Target{{Name: "all", Sender: all}, {Name: "urgent", Least: Critical, Sender: urgent}}})
		n.Notify(Event{Kind: "vm-started", Host: "kvm-02", VM: "v1"})
		n.Notify(Event{Kind: "fence-blocked", Host: "kvm-03", Incident: "i1", Text: "a\r\nBcc: x\x00"})
		synctest.Wait()
		if len(all.ids()) != 2 || len(urgent.ids()) != 1 {
			t.Fatalf("all %v, urgent %v", all.ids(), urgent.ids())
		}
		e := urgent.got[0].Event
		if e.Cluster != "prod-a" || e.By != "kvm-01" || !e.Time.Equal(time.Now()) || e.Text != "a  Bcc: x " ||
			e.Do != `If kvm-03 is off for certain: haven fence confirm kvm-03 --reason "how you know" --by NAME. Look first: haven explain i1` {
			t.Errorf("%+v", e)
		}
	})
}

func TestTestOfTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good := &sender{}
		n := running(t, Config{Targets: []Target{{Name: "mail", Type: "email", Sender: good}, {Name: "dead", Type: "webhook", Sender: hung{}}}})
		out, err := n.Test(t.Context(), "", "maria")
		if err != nil || len(out) != 2 || out[0].Error != "" || out[1].Error == "" || out[1].Took != testTimeout {
			t.Errorf("%+v, %v", out, err)
		}
		if len(good.got) != 1 || good.got[0].Kind != KindTest || !strings.Contains(good.got[0].Text, "maria") {
			t.Errorf("%+v", good.got)
		}
		if _, err := n.Test(t.Context(), "nms", "maria"); !errors.Is(err, ErrNoTarget) || !strings.Contains(err.Error(), "mail, dead") {
			t.Errorf("%v", err)
		}
	})
}

// Every kind has a class of the MIB, a severity and, when something may have to
// be done, words on it; no placeholder is left.
func TestKinds(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Kinds() {
		if seen[k.Name] || k.Severity < Info || k.Severity > Critical {
			t.Errorf("%+v", k)
		}
		seen[k.Name] = true
		found := false
		for _, c := range Classes() {
			found = found || c == k.Class
		}
		if !found {
			t.Errorf("%s: class %s", k.Name, k.Class)
		}
		if k.Severity == Critical && k.Do == "" {
			t.Errorf("%s is critical, and nothing says what to do", k.Name)
		}
		for _, e := range []Event{{}, {Host: "kvm-03", Incident: "i1", VM: "v1"}} {
			if do := k.Advise(e); strings.ContainsAny(do, "{}") || strings.Contains(do, "explain  ") || strings.HasSuffix(do, "explain ") {
				t.Errorf("%s: %q", k.Name, do)
			}
		}
	}
}

func TestClean(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"plain", "kvm-03 is off", "kvm-03 is off"},
		{"line breaks", "a\r\nb\u2028c", "a  b c"},
		{"controls", "\x1b[31mred\x7f", " [31mred "},
		{"not UTF-8", "a\xffb", "a?b"},
		{"long", strings.Repeat("ä", 20), "ä" + strings.Repeat("ä", 7) + "…"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := clean(tt.in, 20); got != tt.want || len(got) > 20 {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

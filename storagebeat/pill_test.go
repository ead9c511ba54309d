package storagebeat

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	haven "github.com/haven-ha/haven"
)

func onePill() Pill {
	return Pill{
		Store: testStore(7), Host: "kvm-01", Boot: "11111111-2222-4333-8444-555555555555", Incident: "0102-150405-kvm-01",
		Attempt: 2, Term: haven.Term{Generation: 2, Term: 17}, By: "kvm-02",
	}
}

func mustEncodePill(t testing.TB, p Pill) []byte {
	t.Helper()
	r, err := EncodePill(p)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func sealed(t testing.TB, p Pill, secret string) Pill {
	t.Helper()
	key, err := PillKey([]byte(secret), "prod")
	if err == nil {
		p, err = p.Sealed(key)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestGoldenPill holds the format and the seal still: hosts of two releases obey
// each other's masters.
func TestGoldenPill(t *testing.T) {
	path := filepath.Join("testdata", "pill-v1.hex")
	p := sealed(t, onePill(), "a secret of all agents")
	got := mustEncodePill(t, p)
	if *update {
		if err := os.WriteFile(path, []byte(hex.Dump(got)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if hex.Dump(got) != string(want) {
		t.Fatal("the pill differs from the golden file: the format changed")
	}
	if back, err := DecodePill(got); err != nil || back != p {
		t.Fatalf("decoded %+v, %v", back, err)
	}
	if !blank(got[512:]) {
		t.Fatal("a pill takes more than one sector: it could be seen by halves")
	}
}

func drawPill(t *rapid.T) Pill {
	name := func(s string, most int) string { return rapid.StringN(1, 15, most).Draw(t, s) }
	p := Pill{
		Store: StoreID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "store")),
		Host:  haven.HostID(rapid.StringMatching(`[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?`).Draw(t, "host")),
		Boot:  haven.BootID(name("boot", 63)), By: haven.HostID(name("by", 63)), Incident: haven.IncidentID(name("incident", 127)),
		Attempt: rapid.Uint32().Draw(t, "attempt"), Withdrawn: rapid.Bool().Draw(t, "withdrawn"),
		Term: haven.Term{Generation: rapid.Uint64Min(1).Draw(t, "generation"), Term: rapid.Uint64().Draw(t, "term")},
	}
	copy(p.Seal[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "seal"))
	return p
}

func TestPillKeepsEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPill(t)
		r, err := EncodePill(p)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodePill(r); err != nil || back != p {
			t.Fatalf("%+v came back as %+v, %v", p, back, err)
		}
		if b, err := Decode(r); !errors.Is(err, ErrForeign) {
			t.Fatalf("P5: a pill was taken for a beat: %+v, %v", b, err)
		}
	})
}

// A torn, mixed or changed pill is none (P5), whatever of two pills it is made of.
func TestTornPillIsNone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, q := drawPill(t), drawPill(t)
		ra, err := EncodePill(p)
		if err != nil {
			t.Fatal(err)
		}
		rb, err := EncodePill(q)
		if err != nil {
			t.Fatal(err)
		}
		mixed := bytes.Clone(ra)
		if rapid.Bool().Draw(t, "flip") {
			i := rapid.IntRange(0, RecordSize-1).Draw(t, "octet")
			mixed[i] ^= byte(1 << rapid.IntRange(0, 7).Draw(t, "bit"))
		} else {
			cut := rapid.IntRange(0, RecordSize).Draw(t, "cut")
			copy(mixed[cut:], rb[cut:])
		}
		if bytes.Equal(mixed, ra) || bytes.Equal(mixed, rb) {
			return
		}
		if got, err := DecodePill(mixed); err == nil {
			t.Fatalf("taken for a pill: %+v", got)
		}
	})
}

// The seal is about everything that the pill says, and of one key: who can only
// write to the store cannot make one, nor make another one of a pill that he read.
func TestSealCoversEverything(t *testing.T) {
	good := sealed(t, onePill(), "s1")
	key := func(secret, cluster string) []byte {
		k, err := PillKey([]byte(secret), cluster)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	if !good.SealedBy(key("s2", "prod"), key("s1", "prod")) {
		t.Error("not taken with the right key among others")
	}
	if good.SealedBy(key("s2", "prod")) || good.SealedBy(key("s1", "lab")) || good.SealedBy() || onePill().SealedBy(key("s1", "prod")) {
		t.Error("taken with a wrong key or without one")
	}
	for name, change := range map[string]func(*Pill){
		"store":     func(p *Pill) { p.Store = testStore(8) },
		"host":      func(p *Pill) { p.Host = "kvm-03" },
		"boot":      func(p *Pill) { p.Boot = "another" },
		"incident":  func(p *Pill) { p.Incident += "2" },
		"attempt":   func(p *Pill) { p.Attempt++ },
		"term":      func(p *Pill) { p.Term.Term++ },
		"by":        func(p *Pill) { p.By = "kvm-01" },
		"withdrawn": func(p *Pill) { p.Withdrawn = true },
		"seal":      func(p *Pill) { p.Seal[31] ^= 1 },
	} {
		p := good
		if change(&p); p.SealedBy(key("s1", "prod")) {
			t.Errorf("another %s is not seen", name)
		}
	}
}

func TestEncodePillRefusals(t *testing.T) {
	for name, change := range map[string]func(*Pill){
		"no host":       func(p *Pill) { p.Host = "" },
		"no boot":       func(p *Pill) { p.Boot = "" },
		"no incident":   func(p *Pill) { p.Incident = "" },
		"no term":       func(p *Pill) { p.Term = haven.Term{} },
		"nobody":        func(p *Pill) { p.By = "" },
		"long boot":     func(p *Pill) { p.Boot = haven.BootID(bytes.Repeat([]byte("x"), nameSize)) },
		"long incident": func(p *Pill) { p.Incident = haven.IncidentID(bytes.Repeat([]byte("x"), incidentSize)) },
	} {
		p := onePill()
		if change(&p); name != "" {
			if _, err := EncodePill(p); err == nil {
				t.Errorf("%s: encoded", name)
			}
		}
	}
}

func FuzzDecodePill(f *testing.F) {
	f.Add(mustEncodePill(f, onePill()))
	f.Add(mustEncode(f, fullBeat()))
	f.Add(make([]byte, RecordSize))
	f.Fuzz(func(t *testing.T, r []byte) {
		if len(r) == RecordSize {
			r = resum(bytes.Clone(r)) // else nothing gets past the checksum
		}
		p, err := DecodePill(r)
		if err != nil {
			return
		}
		if again, err := EncodePill(p); err != nil || !bytes.Equal(again, r) {
			t.Fatalf("%+v does not become what it came from: %v", p, err)
		}
		if b, err := Decode(r); err == nil {
			t.Fatalf("also taken for the beat %+v", b)
		}
	})
}

// postbox is a disk with mailboxes.
type postbox struct {
	*path
	pills map[haven.HostID]RawPill
	err   error
}

func (p *postbox) ReadAll(ctx context.Context) (Contents, error) {
	c, err := p.path.ReadAll(ctx)
	for _, raw := range p.pills {
		c.Pills = append(c.Pills, raw)
	}
	return c, err
}

func (p *postbox) WritePill(_ context.Context, raw RawPill) error {
	if p.err == nil {
		p.pills[raw.Host] = raw
	}
	return p.err
}

// What is in mailboxes changes nothing about beats: neither who is there nor
// whether a record is missing or nameless.
func TestTrackerSeesNoPills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		a, b := join(t, d, "a", nil), join(t, d, "b", nil)
		defer func() { a.wait(); b.wait() }()
		box := &postbox{path: &path{disk: d}, pills: map[haven.HostID]RawPill{"c": {Host: "c", Err: ErrTorn}, "": {Err: ErrForeign}}}
		m, err := NewMonitor(MonitorConfig{
			Store: "nfs1", Cluster: "prod", Self: "d", Writer: WriterAgent, Boot: "boot-d", State: "state", Incarnation: 1,
			Hosts: testHosts, Interval: time.Second, StaleAfter: 4 * time.Second, Timeout: 3 * time.Second,
		}, box, func() Beat { return Beat{} }, a.Monitor.log)
		if err != nil {
			t.Fatal(err)
		}
		p := onePill()
		p.Host, p.Store = "d", d.id.ID
		box.pills["d"] = RawPill{Host: "d", Data: mustEncodePill(t, p)}
		if got := m.Mailbox(); got.Pill != nil || !got.Read.IsZero() {
			t.Errorf("before any read: %+v", got)
		}
		for range 3 {
			m.read(t.Context())
			time.Sleep(time.Second)
		}
		if c := m.Snapshot().Host("c").Agent; !c.Missing {
			t.Errorf("c, which only has a mailbox: %+v", c)
		}
		if got := m.Mailbox(); got.Pill == nil || *got.Pill != p || got.Err != nil || time.Since(got.Read) > 2*time.Second {
			t.Errorf("own mailbox: %+v", got)
		}
		box.pills["d"] = RawPill{Host: "d", Data: mustEncodePill(t, p)[:100]}
		m.read(t.Context())
		if got := m.Mailbox(); got.Pill != nil || !errors.Is(got.Err, ErrTorn) {
			t.Errorf("a torn one: %+v", got)
		}
	})
}

func TestPostSealsForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		box := &postbox{path: &path{disk: d}, pills: map[haven.HostID]RawPill{}}
		a := join(t, d, "a", nil)
		defer a.wait()
		m := &Monitor{cfg: a.cfg, dev: box, tracker: NewTracker(TrackerConfig{})}
		key, p := []byte("key"), onePill()
		if err := m.Post(t.Context(), p, key); !errors.Is(err, haven.ErrUnavailable) {
			t.Errorf("of a store that was not read: %v", err)
		}
		m.tracker.store = d.id.ID
		if err := m.Post(t.Context(), p, key); err != nil {
			t.Fatal(err)
		}
		got, err := DecodePillAt(d.id.ID, box.pills[p.Host])
		if err != nil || !got.SealedBy(key) || got.Store != d.id.ID || got.Boot != p.Boot {
			t.Errorf("posted %+v, %v", got, err)
		}
		m.dev = a.path
		if err := m.Post(t.Context(), p, key); !errors.Is(err, ErrNoMailbox) {
			t.Errorf("where there are no mailboxes: %v", err)
		}
	})
}

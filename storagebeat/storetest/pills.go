package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"

	haven "github.com/haven-ha/haven"
	"github.com/haven-ha/haven/storagebeat"
)

// pill returns a pill for the n-th host, from 1.
func pill(id storagebeat.StoreID, n int, term, attempt uint64) storagebeat.Pill {
	return storagebeat.Pill{
		Store: id, Host: hosts(n)[n-1], Boot: "boot", Incident: "0102-150405-kvm", Attempt: uint32(attempt),
		Term: haven.Term{Generation: 1, Term: term}, By: "kvm-09",
	}
}

func rawPill(t testing.TB, p storagebeat.Pill) storagebeat.RawPill {
	t.Helper()
	data, err := storagebeat.EncodePill(p)
	if err != nil {
		t.Fatal(err)
	}
	return storagebeat.RawPill{Host: p.Host, Data: data}
}

func post(t testing.TB, s storagebeat.Backend, p storagebeat.Pill) {
	t.Helper()
	if err := s.WritePill(t.Context(), rawPill(t, p)); err != nil {
		t.Fatalf("write pill for %s: %v", p.Host, err)
	}
}

// pills reads everything: what is in each mailbox that holds something, "bad" for
// what is no pill.
func pills(t testing.TB, s storagebeat.Backend) map[haven.HostID]string {
	t.Helper()
	c, err := s.ReadAll(t.Context())
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	if c.NoMailbox != "" {
		t.Fatalf("no mailbox: %s", c.NoMailbox)
	}
	got := map[haven.HostID]string{}
	for _, r := range c.Pills {
		if _, twice := got[r.Host]; twice {
			t.Fatalf("mailbox of %s comes twice", r.Host)
		}
		p, err := storagebeat.DecodePillAt(c.Identity.ID, r)
		switch {
		case errors.Is(err, storagebeat.ErrBlank):
		case err != nil:
			got[r.Host] = "bad"
		default:
			got[r.Host] = fmt.Sprintf("%d/%d/%t", p.Term.Term, p.Attempt, p.Withdrawn)
		}
	}
	return got
}

func holds(t testing.TB, s storagebeat.Backend, host haven.HostID, want string) {
	t.Helper()
	if got := pills(t, s)[host]; got != want {
		t.Fatalf("mailbox of %s holds %q, want %q", host, got, want)
	}
}

// members are backends that write for two hosts, and one that only reads.
func (p Place) members(t testing.TB, id storagebeat.StoreID) (a, b, reader storagebeat.Backend) {
	t.Helper()
	a, b, reader = p.open(t), p.open(t), p.open(t)
	put(t, a, id, 1, storagebeat.WriterAgent, 1)
	put(t, b, id, 2, storagebeat.WriterAgent, 1)
	put(t, b, id, 2, storagebeat.WriterHelper, 7)
	return a, b, reader
}

// testMailboxes: each host finds its own word, and no beat is touched by it.
func testMailboxes(t *testing.T, p Place) {
	id := p.made(t)
	a, b, reader := p.members(t, id.ID)
	beats := map[key]uint64{agent(1): 1, agent(2): 1, helper(2): 7}
	for _, s := range []storagebeat.Backend{a, b, reader} {
		if got := pills(t, s); len(got) > 0 {
			t.Fatalf("before any was written: %v", got)
		}
	}
	for n := uint64(1); n <= 4; n++ {
		post(t, a, pill(id.ID, 2, 3, n))
		holds(t, b, hosts(2)[1], fmt.Sprintf("3/%d/false", n))
		if got := pills(t, reader); !maps.Equal(got, map[haven.HostID]string{hosts(2)[1]: fmt.Sprintf("3/%d/false", n)}) {
			t.Fatalf("all mailboxes: %v", got)
		}
		if got := pills(t, a)[hosts(1)[0]]; got != "" {
			t.Fatalf("the other host's mailbox holds %q", got)
		}
		same(t, sequences(t, reader), beats)
		empty := pill(id.ID, 2, 3, n)
		empty.Withdrawn = true
		post(t, a, empty)
		holds(t, b, hosts(2)[1], fmt.Sprintf("3/%d/true", n))
		// Beats go on beside it.
		put(t, b, id.ID, 2, storagebeat.WriterAgent, 1+n)
		beats[agent(2)] = 1 + n
	}
	post(t, b, pill(id.ID, 1, 3, 1))
	holds(t, a, hosts(1)[0], "3/1/false")
	holds(t, b, hosts(2)[1], "3/4/true")
	holds(t, p.open(t), hosts(2)[1], "3/4/true")
	same(t, sequences(t, p.open(t)), beats)
}

// testNewerPill: a master that was superseded, and does not know it, writes over
// nothing that its successor wrote.
func testNewerPill(t *testing.T, p Place) {
	id := p.made(t)
	a, b, _ := p.members(t, id.ID)
	host := hosts(2)[1]
	post(t, a, pill(id.ID, 2, 5, 1))
	for _, s := range []storagebeat.Backend{a, b, p.open(t)} {
		for _, withdrawn := range []bool{false, true} {
			old := pill(id.ID, 2, 4, 9)
			old.Withdrawn = withdrawn
			if err := s.WritePill(t.Context(), rawPill(t, old)); !errors.Is(err, storagebeat.ErrNewerPill) {
				t.Fatalf("an older one: %v", err)
			}
			holds(t, b, host, "5/1/false")
		}
	}
	post(t, b, pill(id.ID, 2, 5, 2))
	holds(t, b, host, "5/2/false")
	newer := pill(id.ID, 2, 1, 1)
	newer.Term.Generation = 2
	post(t, a, newer)
	holds(t, b, host, "1/1/false")
	if err := a.WritePill(t.Context(), rawPill(t, pill(id.ID, 2, 9, 1))); !errors.Is(err, storagebeat.ErrNewerPill) {
		t.Fatalf("one of an older generation: %v", err)
	}
}

func testPillsElsewhere(t *testing.T, p Place) {
	if err := p.open(t).WritePill(t.Context(), rawPill(t, pill(storagebeat.StoreID{1}, 1, 1, 1))); !errors.Is(err, storagebeat.ErrNoIdentity) {
		t.Fatalf("where there is no store: %v", err)
	}
	id := p.made(t)
	a, _, _ := p.members(t, id.ID)
	good := rawPill(t, pill(id.ID, 2, 1, 1))
	for _, tc := range []struct {
		name string
		raw  storagebeat.RawPill
		want error
	}{
		{"for another store", rawPill(t, pill(storagebeat.StoreID{9}, 2, 1, 1)), storagebeat.ErrForeign},
		{"under another name", storagebeat.RawPill{Host: "kvm-01", Data: good.Data}, storagebeat.ErrForeign},
		{"a path instead of a name", storagebeat.RawPill{Host: "../../x", Data: good.Data}, storagebeat.ErrForeign},
		{"a beat", storagebeat.RawPill{Host: "kvm-02", Data: raw(t, 2, beat(id.ID, 2, storagebeat.WriterAgent, 1)).Data}, storagebeat.ErrForeign},
		{"nothing", storagebeat.RawPill{Host: "kvm-02", Data: make([]byte, storagebeat.RecordSize)}, storagebeat.ErrBlank},
		{"no record", storagebeat.RawPill{Host: "kvm-02"}, storagebeat.ErrTorn},
	} {
		if err := a.WritePill(t.Context(), tc.raw); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
	// A pill is no beat either.
	if err := a.Write(t.Context(), storagebeat.RawBeat{Host: "kvm-02", Writer: storagebeat.WriterAgent, Slot: 2, Data: good.Data}); !errors.Is(err, storagebeat.ErrForeign) {
		t.Errorf("a pill as a beat: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.WritePill(ended, good); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
	other := p.openAs(t, "lab")
	if err := other.WritePill(t.Context(), good); !errors.Is(err, storagebeat.ErrForeign) {
		t.Errorf("of another cluster: %v", err)
	}
	if got := pills(t, p.open(t)); len(got) > 0 {
		t.Errorf("left behind: %v", got)
	}
	same(t, sequences(t, p.open(t)), map[key]uint64{agent(1): 1, agent(2): 1, helper(2): 7})
}

// testDamagedPill: what is no pill is told as that, spoils no beat, and makes room
// for the next pill.
func testDamagedPill(t *testing.T, p Place) {
	id := p.made(t)
	a, b, reader := p.members(t, id.ID)
	host := hosts(2)[1]
	newer := rawPill(t, pill(id.ID, 2, 9, 1))
	torn := bytes.Clone(newer.Data[:100]) // a part of a new one over an old rest
	for _, tc := range []struct {
		name, want string
		data       []byte
	}{
		{"torn", "bad", torn},
		{"garbage", "bad", bytes.Repeat([]byte{0xa5}, storagebeat.RecordSize)},
		{"of another store", "bad", rawPill(t, pill(storagebeat.StoreID{9}, 2, 9, 1)).Data},
		{"of another host", "bad", rawPill(t, pill(id.ID, 1, 9, 1)).Data},
		{"a beat of this host", "bad", raw(t, 2, beat(id.ID, 2, storagebeat.WriterAgent, 77)).Data},
		{"zeros", "", make([]byte, storagebeat.RecordSize)},
	} {
		first := pill(id.ID, 2, 3, 1)
		first.Incident = "0102-150405-kvm-with-another-name"
		post(t, a, first)
		holds(t, b, host, "3/1/false")
		p.Spoil(t, host, tc.data)
		for name, s := range map[string]storagebeat.Backend{"its host": b, "a reader": reader, "a new reader": p.open(t)} {
			if got := pills(t, s)[host]; got != tc.want {
				t.Errorf("%s, read by %s: %q, want %q", tc.name, name, got, tc.want)
			}
			same(t, sequences(t, s), map[key]uint64{agent(1): 1, agent(2): 1, helper(2): 7})
		}
		post(t, a, pill(id.ID, 2, 3, 2))
		holds(t, b, host, "3/2/false")
	}
}

// testPillsReinit: a store that is made anew has no old pills.
func testPillsReinit(t *testing.T, p Place) {
	old := p.made(t)
	a, b, _ := p.members(t, old.ID)
	post(t, a, pill(old.ID, 2, 3, 1))
	holds(t, b, hosts(2)[1], "3/1/false")
	id, err := p.open(t).Init(t.Context(), storagebeat.InitOptions{Cluster: Cluster, Replace: Cluster})
	if err != nil {
		t.Fatal(err)
	}
	put(t, b, id.ID, 2, storagebeat.WriterAgent, 2)
	for _, s := range []storagebeat.Backend{a, b, p.open(t)} {
		if got := pills(t, s); len(got) > 0 {
			t.Errorf("after the store was made anew: %v", got)
		}
	}
	if err := a.WritePill(t.Context(), rawPill(t, pill(old.ID, 2, 4, 1))); !errors.Is(err, storagebeat.ErrForeign) {
		t.Errorf("for the old store: %v", err)
	}
	post(t, a, pill(id.ID, 2, 1, 1))
	holds(t, b, hosts(2)[1], "1/1/false")
}

// Package storetest is the conformance test of storagebeat's backends: what each
// kind of store must do, whatever holds it.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	haven "github.com/haven-ha/haven"
	"github.com/haven-ha/haven/storagebeat"
)

// Cluster is the cluster whose store the tests make.
const Cluster = "prod"

// Place is one place for a store. Nothing is there at first.
type Place struct {
	// Open returns a new backend, as another process on another host would have
	// it. It need not touch the place. The test closes it.
	Open func(t testing.TB, cluster string) storagebeat.Backend
	// Occupy puts something there that is no store.
	Occupy func(t testing.TB)
	// Seize are the options with which Init gives up what Occupy put there.
	Seize storagebeat.InitOptions
	// Damage puts data over the first octets of a record that was written, and
	// leaves the rest of it.
	Damage func(t testing.TB, host haven.HostID, writer storagebeat.Writer, data []byte)
	// Spoil puts data over the first octets of a mailbox that was used.
	Spoil func(t testing.TB, host haven.HostID, data []byte)
	// Vanish takes the place away, as a mount or a device that goes away, and
	// returns what brings it back. It is nil where that cannot be done.
	Vanish func(t testing.TB) (back func())
}

// Factory makes a new place.
type Factory func(t *testing.T) Place

// Run runs all tests, each on a place of its own.
func Run(t *testing.T, factory Factory) {
	for _, tc := range []struct {
		name string
		run  func(*testing.T, Place)
	}{
		{"P5: nothing is no store", testNothing},
		{"init gives an identity", testInit},
		{"P5: something else is no store and stays", testForeign},
		{"a store is not made twice", testDoubleInit},
		{"P5: another cluster's store", testOtherCluster},
		{"records in place", testRecords},
		{"many hosts", testManyHosts},
		{"records for elsewhere", testElsewhere},
		{"P5: damaged records fail alone", testDamage},
		{"writers do not tear", testWriters},
		{"two writers of one name", testTwoOfOneName},
		{"a store made anew forgets", testReinit},
		{"P5: the store goes away and comes back", testVanish},
		{"P8: an ended context", testContext},
		{"check", testCheck},
		{"mailboxes", testMailboxes},
		{"a newer term's pill stays", testNewerPill},
		{"pills for elsewhere", testPillsElsewhere},
		{"P5: a damaged pill is none", testDamagedPill},
		{"pills of a store that is no more", testPillsReinit},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, factory(t)) })
	}
}

// open opens the place as a process of the right cluster.
func (p Place) open(t testing.TB) storagebeat.Backend {
	t.Helper()
	return p.openAs(t, Cluster)
}

func (p Place) openAs(t testing.TB, cluster string) storagebeat.Backend {
	t.Helper()
	b := p.Open(t, cluster)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b
}

// made makes a store at the place.
func (p Place) made(t testing.TB) storagebeat.Identity {
	t.Helper()
	id, err := p.open(t).Init(t.Context(), storagebeat.InitOptions{Cluster: Cluster})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// hosts are the names of the tests; the slot of each is its place here, from 1.
func hosts(n int) []haven.HostID {
	ids := make([]haven.HostID, n)
	for i := range ids {
		ids[i] = haven.HostID(fmt.Sprintf("kvm-%02d", i+1))
	}
	return ids
}

// beat returns a beat of the n-th host, from 1.
func beat(id storagebeat.StoreID, n int, w storagebeat.Writer, seq uint64) storagebeat.Beat {
	return storagebeat.Beat{
		Store: id, Host: hosts(n)[n-1], Writer: w, Boot: "boot", State: "state", Incarnation: 1, Sequence: seq, Interval: 1,
	}
}

func raw(t testing.TB, n int, b storagebeat.Beat) storagebeat.RawBeat {
	t.Helper()
	data, err := storagebeat.Encode(b)
	if err != nil {
		t.Fatal(err)
	}
	return storagebeat.RawBeat{Host: b.Host, Writer: b.Writer, Slot: uint16(n), Data: data}
}

func put(t testing.TB, s storagebeat.Backend, id storagebeat.StoreID, n int, w storagebeat.Writer, seq uint64) {
	t.Helper()
	if err := s.Write(t.Context(), raw(t, n, beat(id, n, w, seq))); err != nil {
		t.Fatalf("write %d of %s of host %d: %v", seq, w, n, err)
	}
}

type key struct {
	host   haven.HostID
	writer storagebeat.Writer
}

func agent(n int) key  { return key{hosts(n)[n-1], storagebeat.WriterAgent} }
func helper(n int) key { return key{hosts(n)[n-1], storagebeat.WriterHelper} }

// sequences reads everything: the sequence of each record, 0 for one that is no
// beat. A place that was never written to may be left out or blank.
func sequences(t testing.TB, s storagebeat.Backend) map[key]uint64 {
	t.Helper()
	c, err := s.ReadAll(t.Context())
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	got := map[key]uint64{}
	for _, r := range c.Beats {
		k := key{r.Host, r.Writer}
		if _, twice := got[k]; twice {
			t.Fatalf("%v comes twice", k)
		}
		b, err := storagebeat.DecodeAt(c.Identity.ID, r)
		if errors.Is(err, storagebeat.ErrBlank) {
			continue
		}
		if err == nil && len(r.Data) != storagebeat.RecordSize {
			t.Fatalf("%v has %d octets", k, len(r.Data))
		}
		got[k] = b.Sequence
	}
	return got
}

func same(t testing.TB, got, want map[key]uint64) {
	t.Helper()
	ok := len(got) == len(want)
	for k, seq := range want {
		g, there := got[k]
		ok = ok && there && g == seq
	}
	if !ok {
		t.Fatalf("got %v, want %v", got, want)
	}
}

func noStore(err error) bool {
	return errors.Is(err, storagebeat.ErrNoIdentity) || errors.Is(err, storagebeat.ErrForeign)
}

func testNothing(t *testing.T, p Place) {
	s := p.open(t)
	if c, err := s.ReadAll(t.Context()); !errors.Is(err, storagebeat.ErrNoIdentity) {
		t.Errorf("read: %+v, %v", c, err)
	}
	if err := s.Write(t.Context(), raw(t, 1, beat(storagebeat.StoreID{1}, 1, storagebeat.WriterAgent, 1))); !errors.Is(err, storagebeat.ErrNoIdentity) {
		t.Errorf("write: %v", err)
	}
	if r, err := s.Check(t.Context()); !errors.Is(err, storagebeat.ErrNoIdentity) {
		t.Errorf("check: %+v, %v", r, err)
	}
	// Nothing of that made something: a store can still be made.
	p.made(t)
}

func testInit(t *testing.T, p Place) {
	before := p.open(t)
	if _, err := before.ReadAll(t.Context()); err == nil {
		t.Fatal("read a store that is not made yet")
	}
	if id, err := p.open(t).Init(t.Context(), storagebeat.InitOptions{Cluster: "a b"}); err == nil {
		t.Fatalf("a cluster of an impossible name: %v", id)
	}
	id := p.made(t)
	if id.ID.IsZero() || id.Cluster != Cluster {
		t.Fatalf("made %+v", id)
	}
	for name, s := range map[string]storagebeat.Backend{"opened before": before, "opened after": p.open(t), "of any cluster": p.openAs(t, "")} {
		c, err := s.ReadAll(t.Context())
		if err != nil || c.Identity != id {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
		same(t, sequences(t, s), nil)
	}
}

func testForeign(t *testing.T, p Place) {
	p.Occupy(t)
	for range 2 { // What is refused the first time was not spoilt by that.
		for _, o := range []storagebeat.InitOptions{
			{Cluster: Cluster},
			{Cluster: Cluster, Replace: Cluster},
			{Cluster: Cluster, Replace: "x"},
		} {
			if id, err := p.open(t).Init(t.Context(), o); !errors.Is(err, storagebeat.ErrNotEmpty) {
				t.Fatalf("init %+v: %v, %v", o, id, err)
			}
		}
	}
	s := p.open(t)
	if c, err := s.ReadAll(t.Context()); !noStore(err) {
		t.Errorf("read: %+v, %v", c, err)
	}
	if err := s.Write(t.Context(), raw(t, 1, beat(storagebeat.StoreID{1}, 1, storagebeat.WriterAgent, 1))); !noStore(err) {
		t.Errorf("write: %v", err)
	}
	seize := p.Seize
	seize.Cluster = Cluster
	id, err := p.open(t).Init(t.Context(), seize)
	if err != nil {
		t.Fatalf("init by name: %v", err)
	}
	put(t, s, id.ID, 1, storagebeat.WriterAgent, 1)
	same(t, sequences(t, p.open(t)), map[key]uint64{agent(1): 1})
}

func testDoubleInit(t *testing.T, p Place) {
	old := p.made(t)
	for _, o := range []storagebeat.InitOptions{{Cluster: Cluster}, {Cluster: "lab"}, {Cluster: "lab", Replace: "lab"}, {Cluster: Cluster, Replace: "x"}} {
		if id, err := p.open(t).Init(t.Context(), o); !errors.Is(err, storagebeat.ErrNotEmpty) || id != old {
			t.Fatalf("init %+v: %+v, %v", o, id, err)
		}
	}
	if c, err := p.open(t).ReadAll(t.Context()); err != nil || c.Identity != old {
		t.Fatalf("%+v, %v", c, err)
	}
	id, err := p.open(t).Init(t.Context(), storagebeat.InitOptions{Cluster: Cluster, Replace: Cluster})
	if err != nil || id == old || id.Cluster != Cluster {
		t.Fatalf("init by name: %+v, %v", id, err)
	}
}

func testOtherCluster(t *testing.T, p Place) {
	id := p.made(t)
	other := p.openAs(t, "lab")
	if c, err := other.ReadAll(t.Context()); !errors.Is(err, storagebeat.ErrForeign) {
		t.Errorf("read: %+v, %v", c, err)
	}
	if err := other.Write(t.Context(), raw(t, 1, beat(id.ID, 1, storagebeat.WriterAgent, 1))); !errors.Is(err, storagebeat.ErrForeign) {
		t.Errorf("write: %v", err)
	}
	if r, err := other.Check(t.Context()); !errors.Is(err, storagebeat.ErrForeign) {
		t.Errorf("check: %+v, %v", r, err)
	}
	same(t, sequences(t, p.open(t)), nil)
}

func testRecords(t *testing.T, p Place) {
	id := p.made(t)
	a, h, reader := p.open(t), p.open(t), p.open(t)
	for seq := uint64(1); seq <= 5; seq++ {
		put(t, a, id.ID, 1, storagebeat.WriterAgent, seq)
		put(t, h, id.ID, 1, storagebeat.WriterHelper, 10*seq)
		put(t, h, id.ID, 2, storagebeat.WriterAgent, 100*seq)
		want := map[key]uint64{agent(1): seq, helper(1): 10 * seq, agent(2): 100 * seq}
		for _, s := range []storagebeat.Backend{a, h, reader, p.open(t)} {
			same(t, sequences(t, s), want)
		}
	}
	// All octets of a full record come back.
	full := beat(id.ID, 1, storagebeat.WriterAgent, 9)
	for i := range storagebeat.MaxVMs {
		full.VMs = append(full.VMs, haven.VMID(fmt.Sprintf("%08x-9dad-41d1-80b4-00c04fd430c8", i)))
	}
	full.Complete = true
	r := raw(t, 1, full)
	if err := a.Write(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	c, err := reader.ReadAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range c.Beats {
		if got.Host == r.Host && got.Writer == r.Writer && !bytes.Equal(got.Data, r.Data) {
			t.Error("the record came back changed")
		}
	}
}

func testManyHosts(t *testing.T, p Place) {
	id := p.made(t)
	s := p.open(t)
	const n = 40
	want := map[key]uint64{}
	for i := 1; i <= n; i++ {
		put(t, s, id.ID, i, storagebeat.WriterAgent, uint64(i))
		put(t, s, id.ID, i, storagebeat.WriterHelper, uint64(1000+i))
		want[agent(i)], want[helper(i)] = uint64(i), uint64(1000+i)
	}
	same(t, sequences(t, p.open(t)), want)
}

func testElsewhere(t *testing.T, p Place) {
	id := p.made(t)
	s := p.open(t)
	good := raw(t, 1, beat(id.ID, 1, storagebeat.WriterAgent, 1))
	for _, tc := range []struct {
		name string
		raw  storagebeat.RawBeat
		want error
	}{
		{"for another store", raw(t, 1, beat(storagebeat.StoreID{9}, 1, storagebeat.WriterAgent, 1)), storagebeat.ErrForeign},
		{"under another name", storagebeat.RawBeat{Host: "kvm-02", Writer: storagebeat.WriterAgent, Slot: 2, Data: good.Data}, storagebeat.ErrForeign},
		{"under another writer", storagebeat.RawBeat{Host: good.Host, Writer: storagebeat.WriterHelper, Slot: 1, Data: good.Data}, storagebeat.ErrForeign},
		{"a path instead of a name", storagebeat.RawBeat{Host: "../../x", Writer: storagebeat.WriterAgent, Slot: 1, Data: good.Data}, storagebeat.ErrForeign},
		{"no record", storagebeat.RawBeat{Host: good.Host, Writer: storagebeat.WriterAgent, Slot: 1}, storagebeat.ErrTorn},
	} {
		if err := s.Write(t.Context(), tc.raw); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
	same(t, sequences(t, p.open(t)), nil)
}

func testDamage(t *testing.T, p Place) {
	id := p.made(t)
	s, reader := p.open(t), p.open(t)
	half := raw(t, 2, beat(id.ID, 2, storagebeat.WriterAgent, 2)).Data[:512] // a new first sector over an old rest
	for _, tc := range []struct {
		name string
		data []byte
	}{
		{"torn", half},
		{"garbage", bytes.Repeat([]byte{0xa5}, storagebeat.RecordSize)},
		{"of another store", raw(t, 2, beat(storagebeat.StoreID{9}, 2, storagebeat.WriterAgent, 3)).Data},
		{"zeros", make([]byte, storagebeat.RecordSize)},
	} {
		put(t, s, id.ID, 1, storagebeat.WriterAgent, 1)
		put(t, s, id.ID, 2, storagebeat.WriterAgent, 1)
		put(t, s, id.ID, 2, storagebeat.WriterHelper, 7)
		sequences(t, reader)
		p.Damage(t, hosts(2)[1], storagebeat.WriterAgent, tc.data)
		for name, r := range map[string]storagebeat.Backend{"had read it before": reader, "is new": p.open(t)} {
			got := sequences(t, r)
			if got[agent(2)] != 0 || got[agent(1)] != 1 || got[helper(2)] != 7 {
				t.Errorf("%s, read by one that %s: %v", tc.name, name, got)
			}
		}
		put(t, s, id.ID, 2, storagebeat.WriterAgent, 4)
		same(t, sequences(t, p.open(t)), map[key]uint64{agent(1): 1, agent(2): 4, helper(2): 7})
	}
}

func testWriters(t *testing.T, p Place) {
	id := p.made(t)
	const n, beats = 3, 60
	var wg sync.WaitGroup
	for i := 1; i <= n; i++ {
		put(t, p.open(t), id.ID, i, storagebeat.WriterAgent, 1) // where slots are numbered, the helper follows the agent
		for _, w := range []storagebeat.Writer{storagebeat.WriterAgent, storagebeat.WriterHelper} {
			s := p.open(t)
			wg.Go(func() {
				for seq := uint64(2); seq <= beats; seq++ {
					data, err := storagebeat.Encode(beat(id.ID, i, w, seq))
					if err == nil {
						err = s.Write(t.Context(), storagebeat.RawBeat{Host: hosts(i)[i-1], Writer: w, Slot: uint16(i), Data: data})
					}
					if err != nil {
						t.Errorf("write %d of %s of host %d: %v", seq, w, i, err)
						return
					}
				}
			})
		}
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	s, last := p.open(t), map[key]uint64{}
	for finished := false; !finished; {
		select {
		case <-done:
			finished = true
		default:
		}
		for k, seq := range sequences(t, s) {
			if seq < last[k] {
				t.Fatalf("%v: %d after %d", k, seq, last[k])
			}
			last[k] = seq
		}
	}
	want := map[key]uint64{}
	for i := 1; i <= n; i++ {
		want[agent(i)], want[helper(i)] = beats, beats
	}
	same(t, last, want)
}

// testTwoOfOneName: two writers that use one name share one record. It is never
// torn by that, and it is the one of the two that wrote last.
func testTwoOfOneName(t *testing.T, p Place) {
	id := p.made(t)
	a, b := p.open(t), p.open(t)
	for seq := uint64(1); seq <= 10; seq++ {
		put(t, a, id.ID, 1, storagebeat.WriterAgent, seq)
		same(t, sequences(t, b), map[key]uint64{agent(1): seq})
		put(t, b, id.ID, 1, storagebeat.WriterAgent, 100+seq)
		same(t, sequences(t, a), map[key]uint64{agent(1): 100 + seq})
	}
}

func testReinit(t *testing.T, p Place) {
	old := p.made(t)
	s := p.open(t)
	put(t, s, old.ID, 1, storagebeat.WriterAgent, 1)
	sequences(t, s)
	id, err := p.open(t).Init(t.Context(), storagebeat.InitOptions{Cluster: Cluster, Replace: Cluster})
	if err != nil {
		t.Fatal(err)
	}
	same(t, sequences(t, s), nil)
	if err := s.Write(t.Context(), raw(t, 1, beat(old.ID, 1, storagebeat.WriterAgent, 2))); !errors.Is(err, storagebeat.ErrForeign) {
		t.Errorf("a beat for the old store: %v", err)
	}
	put(t, s, id.ID, 1, storagebeat.WriterAgent, 3)
	same(t, sequences(t, s), map[key]uint64{agent(1): 3})
}

func testVanish(t *testing.T, p Place) {
	if p.Vanish == nil {
		t.Skip("this place cannot be taken away")
	}
	id := p.made(t)
	s := p.open(t)
	put(t, s, id.ID, 1, storagebeat.WriterAgent, 1)
	sequences(t, s)
	back := p.Vanish(t)
	if c, err := s.ReadAll(t.Context()); err == nil {
		t.Errorf("read what is away: %+v", c)
	}
	if err := s.Write(t.Context(), raw(t, 1, beat(id.ID, 1, storagebeat.WriterAgent, 2))); err == nil {
		t.Error("written to what is away")
	}
	back()
	same(t, sequences(t, s), map[key]uint64{agent(1): 1})
	put(t, s, id.ID, 1, storagebeat.WriterAgent, 3)
	same(t, sequences(t, p.open(t)), map[key]uint64{agent(1): 3})
}

func testContext(t *testing.T, p Place) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	s := p.open(t)
	if id, err := s.Init(ended, storagebeat.InitOptions{Cluster: Cluster}); !errors.Is(err, context.Canceled) {
		t.Errorf("init: %v, %v", id, err)
	}
	id := p.made(t)
	put(t, s, id.ID, 1, storagebeat.WriterAgent, 1)
	if _, err := s.ReadAll(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
	if err := s.Write(ended, raw(t, 1, beat(id.ID, 1, storagebeat.WriterAgent, 2))); !errors.Is(err, context.Canceled) {
		t.Errorf("write: %v", err)
	}
	if _, err := s.Check(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("check: %v", err)
	}
	if _, err := s.Init(ended, storagebeat.InitOptions{Cluster: Cluster, Replace: Cluster}); !errors.Is(err, context.Canceled) {
		t.Errorf("init again: %v", err)
	}
	c, err := s.ReadAll(t.Context())
	if err != nil || c.Identity != id {
		t.Fatalf("%+v, %v", c, err)
	}
	same(t, sequences(t, s), map[key]uint64{agent(1): 1})
}

func testCheck(t *testing.T, p Place) {
	id := p.made(t)
	s := p.open(t)
	put(t, s, id.ID, 1, storagebeat.WriterAgent, 1)
	put(t, s, id.ID, 2, storagebeat.WriterAgent, 1)
	p.Damage(t, hosts(2)[1], storagebeat.WriterAgent, []byte("HAVENBT\nx"))
	r, err := s.Check(t.Context())
	if err != nil || r.Identity != id || r.Records != 2 || r.Valid != 1 || r.FileSystem == "" || r.WriteLatency <= 0 || r.ReadLatency <= 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	same(t, sequences(t, p.open(t)), map[key]uint64{agent(1): 1, agent(2): 0})
}

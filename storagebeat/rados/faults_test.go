//go:build ceph

package rados

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	ceph "github.com/ceph/go-ceph/rados"

	haven "github.com/haven-ha/haven"
	"github.com/haven-ha/haven/storagebeat"
)

// patience is how long one operation of a child may take in these tests; it is
// that of the profile normal.
const patience = 2 * time.Second

// child starts a store's child process, as an agent does.
func child(t testing.TB, place string, timeout time.Duration) *storagebeat.Child {
	t.Helper()
	o := options(place, "prod")
	c, err := storagebeat.NewChild(storagebeat.ChildConfig{
		Command: []string{"/proc/self/exe", "store-child"}, Type: storagebeat.TypeRados,
		Path: o.Path, Options: o.Options, Cluster: o.Cluster, Timeout: timeout, Stderr: os.Stderr,
	})
	ok(t, err)
	t.Cleanup(func() { ok(t, c.Close()) })
	return c
}

func record(t testing.TB, id storagebeat.Identity, host haven.HostID, seq uint64) storagebeat.RawBeat {
	t.Helper()
	data, err := storagebeat.Encode(storagebeat.Beat{
		Store: id.ID, Host: host, Writer: storagebeat.WriterAgent, Boot: "boot", State: "state", Incarnation: 1, Sequence: seq, Interval: time.Second,
	})
	ok(t, err)
	return storagebeat.RawBeat{Host: host, Writer: storagebeat.WriterAgent, Data: data}
}

// until asks again until ask is content.
func until(t testing.TB, what string, ask func(context.Context) error) {
	t.Helper()
	ok(t, cluster.WaitFor(t.Context(), 60*time.Second, what, ask))
}

// one asks for the one record of kvm-01 on a store and wants its sequence.
func one(ctx context.Context, c *storagebeat.Child, want uint64) error {
	contents, err := c.ReadAll(ctx)
	if err != nil {
		return err
	}
	own := slices.DeleteFunc(contents.Beats, func(b storagebeat.RawBeat) bool { return b.Host != "kvm-01" })
	if len(own) != 1 {
		return errors.New("not one record")
	}
	b, err := storagebeat.DecodeAt(contents.Identity.ID, own[0])
	if err == nil && b.Sequence != want {
		err = errors.New("an old record")
	}
	return err
}

// P8: whatever hangs in Ceph, an operation is back within its deadline, and when
// Ceph goes on, beats do.
func TestFaults(t *testing.T) {
	for _, tc := range []struct {
		name    string
		timeout time.Duration
		fail    func(testing.TB)
		mend    func(testing.TB)
		// serves says that who is connected notices nothing.
		serves bool
	}{
		{
			name: "OSD stopped", timeout: patience,
			fail: func(t testing.TB) { ok(t, cluster.OSD.Signal(syscall.SIGSTOP)) },
			mend: func(t testing.TB) { ok(t, cluster.OSD.Signal(syscall.SIGCONT)) },
		},
		{
			name: "OSD stopped, less patience than librados can be told", timeout: 500 * time.Millisecond,
			fail: func(t testing.TB) { ok(t, cluster.OSD.Signal(syscall.SIGSTOP)) },
			mend: func(t testing.TB) { ok(t, cluster.OSD.Signal(syscall.SIGCONT)) },
		},
		{
			name: "monitor stopped", timeout: patience, serves: true,
			fail: func(t testing.TB) { ok(t, cluster.Monitor.Signal(syscall.SIGSTOP)) },
			mend: func(t testing.TB) { ok(t, cluster.Monitor.Signal(syscall.SIGCONT)) },
		},
		{
			name: "monitor dead", timeout: patience, serves: true,
			fail: func(t testing.TB) { ok(t, cluster.Monitor.Kill()) },
			mend: func(t testing.TB) { ok(t, cluster.Monitor.Start()) },
		},
		{
			name: "all stopped", timeout: patience,
			fail: func(t testing.TB) {
				ok(t, cluster.OSD.Signal(syscall.SIGSTOP))
				ok(t, cluster.Monitor.Signal(syscall.SIGSTOP))
			},
			mend: func(t testing.TB) {
				ok(t, cluster.Monitor.Signal(syscall.SIGCONT))
				ok(t, cluster.OSD.Signal(syscall.SIGCONT))
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			place := newPlace(t)
			c := child(t, place, tc.timeout)
			// The first operations connect, which may take longer than a beat.
			setup := child(t, place, 20*time.Second)
			id, err := setup.Init(t.Context(), storagebeat.InitOptions{Cluster: "prod"})
			ok(t, err)
			until(t, "a first beat", func(ctx context.Context) error { return c.Write(ctx, record(t, id, "kvm-01", 1)) })
			started := c.Stats()

			mended := false
			mend := func() {
				if !mended {
					mended = true
					tc.mend(t)
				}
			}
			defer mend()
			tc.fail(t)
			for i := range 3 {
				seq := uint64(10 + i)
				err := c.Write(t.Context(), record(t, id, "kvm-01", seq))
				if tc.serves {
					ok(t, err)
					ok(t, one(t.Context(), c, seq))
				} else if !errors.Is(err, storagebeat.ErrTimeout) && !errors.Is(err, storagebeat.ErrStuck) {
					t.Fatalf("write %d: %v", i, err)
				}
			}
			s := c.Stats()
			if s.Abandoned != started.Abandoned {
				t.Errorf("an operation did not come back by itself: %+v, then %+v", started, s)
			}
			// Who is not connected yet cannot be without a monitor or an OSD, and
			// comes back all the same.
			late := child(t, place, tc.timeout)
			if err := one(t.Context(), late, 0); !errors.Is(err, storagebeat.ErrTimeout) && !errors.Is(err, storagebeat.ErrStuck) {
				t.Errorf("a new connection: %v", err)
			}

			mend()
			until(t, "beats again", func(ctx context.Context) error { return c.Write(ctx, record(t, id, "kvm-01", 20)) })
			until(t, "the last beat", func(ctx context.Context) error { return one(ctx, c, 20) })
			until(t, "the last beat, by the new one", func(ctx context.Context) error { return one(ctx, late, 20) })
			ok(t, cluster.WaitOSD(t.Context()))
		})
	}
}

// A pool that is deleted and made again is another one under the same name.
func TestPoolMadeAnew(t *testing.T) {
	const name = "passing"
	ok(t, cluster.MakePool(t.Context(), name))
	c := child(t, name, 20*time.Second)
	id, err := c.Init(t.Context(), storagebeat.InitOptions{Cluster: "prod"})
	ok(t, err)
	ok(t, c.Write(t.Context(), record(t, id, "kvm-01", 1)))
	_, err = cluster.Ceph(t.Context(), "config", "set", "mon", "mon_allow_pool_delete", "true")
	ok(t, err)
	until(t, "the pool's end", func(ctx context.Context) error {
		_, err := cluster.Ceph(ctx, "osd", "pool", "delete", name, name, "--yes-i-really-really-mean-it")
		return err
	})
	until(t, "no store", func(ctx context.Context) error {
		if _, err := c.ReadAll(ctx); !errors.Is(err, storagebeat.ErrNoIdentity) {
			return errors.Join(errors.New("still there"), err)
		}
		return nil
	})
	if err := c.Write(t.Context(), record(t, id, "kvm-01", 2)); !errors.Is(err, storagebeat.ErrNoIdentity) {
		t.Errorf("write: %v", err)
	}
	ok(t, cluster.MakePool(t.Context(), name))
	if _, err := c.ReadAll(t.Context()); !errors.Is(err, storagebeat.ErrNoIdentity) {
		t.Errorf("of the new pool: %v", err)
	}
	id, err = c.Init(t.Context(), storagebeat.InitOptions{Cluster: "prod"})
	ok(t, err)
	ok(t, c.Write(t.Context(), record(t, id, "kvm-01", 3)))
	ok(t, one(t.Context(), c, 3))
	if n := c.Stats().Started; n != 1 {
		t.Errorf("it took %d processes", n)
	}
}

// Beats of hosts that have beaten before go on in a full pool.
func TestFull(t *testing.T) {
	place := newPlace(t)
	c := child(t, place, 5*time.Second)
	id, err := c.Init(t.Context(), storagebeat.InitOptions{Cluster: "prod"})
	ok(t, err)
	ok(t, c.Write(t.Context(), record(t, id, "kvm-01", 1)))
	direct(t, place, func(s *store) error { return put(s.session.io, "much", make([]byte, 4<<20)) })
	ratios := func(of string) {
		for _, which := range []string{"nearfull", "backfillfull", "full"} {
			_, err := cluster.Ceph(t.Context(), "osd", "set-"+which+"-ratio", of)
			ok(t, err)
		}
	}
	defer func() {
		ratios("0.95")
		until(t, "room again", func(ctx context.Context) error { return c.Write(ctx, record(t, id, "kvm-03", 1)) })
	}()
	ratios("0.001")
	tries := 0
	until(t, "that the pool is full", func(ctx context.Context) error {
		tries++ // Each time another host: only its first record needs room.
		err := c.Write(ctx, record(t, id, haven.HostID(fmt.Sprintf("new-%d", tries)), 1))
		if err == nil {
			return errors.New("a new record is taken")
		}
		if !strings.Contains(err.Error(), "No space left") {
			return err
		}
		return nil
	})
	for seq := uint64(2); seq < 5; seq++ {
		ok(t, c.Write(t.Context(), record(t, id, "kvm-01", seq)))
		ok(t, one(t.Context(), c, seq))
	}
}

// A client that Ceph has put on its block list never gets through again on the
// same connection; the store takes a new one.
func TestBlockListed(t *testing.T) {
	s := opened(t, newPlace(t))
	id, err := s.Init(lasting(t, 20*time.Second), storagebeat.InitOptions{Cluster: "prod"})
	ok(t, err)
	ok(t, s.Write(lasting(t, 20*time.Second), record(t, id, "kvm-01", 1)))
	before := s.store.session.conn
	_, err = cluster.Ceph(t.Context(), "osd", "blocklist", "add", address(t, before))
	ok(t, err)
	until(t, "the end of the connection", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := s.Write(ctx, record(t, id, "kvm-01", 2)); err == nil && s.store.session.conn == before {
			return errors.New("it still serves")
		}
		return nil
	})
	ok(t, s.Write(lasting(t, 20*time.Second), record(t, id, "kvm-01", 3)))
	if s.store.session.conn == before {
		t.Error("the old connection is used")
	}
}

// address is how Ceph knows a connection.
func address(t testing.TB, conn *ceph.Conn) string {
	t.Helper()
	a, err := conn.GetAddrs()
	ok(t, err)
	return strings.TrimSpace(a)
}

// A pool without omaps cannot be a store, and that is said at once.
func TestErasureCoded(t *testing.T) {
	for _, command := range [][]string{
		{"osd", "erasure-code-profile", "set", "tiny", "k=2", "m=1", "crush-failure-domain=osd"},
		{"osd", "pool", "create", "coded", "1", "1", "erasure", "tiny"},
	} {
		_, err := cluster.Ceph(t.Context(), command...)
		ok(t, err)
	}
	s := opened(t, "coded")
	id, err := s.Init(lasting(t, 5*time.Second), storagebeat.InitOptions{Cluster: "prod"})
	if err == nil || !strings.Contains(err.Error(), "erasure") {
		t.Errorf("made %v, %v", id, err)
	}
}

// Two that make a store at once: one wins.
func TestInitRace(t *testing.T) {
	place := newPlace(t)
	type result struct {
		id  storagebeat.Identity
		err error
	}
	const n = 4
	results := make(chan result, n)
	for range n {
		s := opened(t, place)
		go func() {
			id, err := s.Init(t.Context(), storagebeat.InitOptions{Cluster: "prod"})
			results <- result{id, err}
		}()
	}
	var made []storagebeat.Identity
	for range n {
		r := <-results
		if r.err == nil {
			made = append(made, r.id)
		} else if !errors.Is(r.err, storagebeat.ErrNotEmpty) {
			t.Error(r.err)
		}
	}
	c, err := opened(t, place).ReadAll(t.Context())
	ok(t, err)
	if len(made) != 1 || c.Identity != made[0] {
		t.Errorf("made %v, there is %v", made, c.Identity)
	}
}

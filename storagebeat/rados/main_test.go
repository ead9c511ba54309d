//go:build ceph

package rados

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/storagebeat/rados/cephtest"
)

// ceph is the cluster of all tests of this program. Those that stop a part of it
// set it going again.
var cluster *cephtest.Cluster

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "store-child" {
		os.Exit(storagebeat.ChildMain(os.Args[2:], os.Stdin, os.Stdout, Type()))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	c, err := cephtest.Start(context.Background(), cephtest.Config{})
	if err != nil {
		fmt.Fprintln(os.Stderr, "start Ceph:", err)
		return 1
	}
	cluster = c
	code := m.Run()
	if err := c.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "end Ceph:", err)
		return 1
	}
	return code
}

const pool = "beats"

var namespaces atomic.Int64

// newPlace returns a namespace of its own in one pool.
func newPlace(t testing.TB) string {
	t.Helper()
	n := namespaces.Add(1)
	if n == 1 {
		ok(t, cluster.MakePool(t.Context(), pool))
	}
	return fmt.Sprintf("%s/test-%d", pool, n)
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func options(place, of string) storagebeat.OpenOptions {
	return storagebeat.OpenOptions{Path: place, Cluster: of, Options: map[string]string{OptionConf: cluster.Conf()}}
}

// opened opens a backend in this process.
func opened(t testing.TB, place string) *patient {
	t.Helper()
	b, err := Type().Open(options(place, "prod"))
	ok(t, err)
	t.Cleanup(func() { ok(t, b.Close()) })
	return b.(*patient)
}

// lasting is a context that lasts as long as one operation may.
func lasting(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestParsePlace(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       Place
		ok         bool
	}{
		{"a pool", "rbd", Place{"rbd", ""}, true},
		{"a namespace", "rbd/haven", Place{"rbd", "haven"}, true},
		{"pools of Ceph's own", ".mgr/haven", Place{}, false},
		{"nothing", "", Place{}, false},
		{"no pool", "/haven", Place{}, false},
		{"no namespace", "rbd/", Place{}, false},
		{"a path", "/dev/rbd0", Place{}, false},
		{"an image", "rbd/haven/image", Place{}, false},
		{"blanks", "my pool", Place{}, false},
		{"long", strings.Repeat("x", 200), Place{}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := ParsePlace(tc.text)
			if (err == nil) != tc.ok || p != tc.want {
				t.Fatalf("got %+v, %v", p, err)
			}
			if tc.ok && p.String() != tc.text {
				t.Errorf("written as %q", p)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    storagebeat.OpenOptions
	}{
		{"a path", storagebeat.OpenOptions{Path: "/x"}},
		{"an unknown option", storagebeat.OpenOptions{Path: "x", Options: map[string]string{"keyring": "/x"}}},
		{"a relative file", storagebeat.OpenOptions{Path: "x", Options: map[string]string{OptionConf: "ceph.conf"}}},
	} {
		if b, err := Type().Open(tc.o); err == nil {
			t.Errorf("%s: %v", tc.name, b)
		}
	}
}

// Nobody ran init, or the pool is away, or there is no Ceph: three things that
// are told apart.
func TestNowhere(t *testing.T) {
	for _, tc := range []struct {
		name, place, conf, says string
		is                      error
	}{
		{"no such pool", "nobody-made-this", cluster.Conf(), `no pool "nobody-made-this"`, storagebeat.ErrNoIdentity},
		{"no such namespace", newPlace(t), cluster.Conf(), "haven.identity", storagebeat.ErrNoIdentity},
		{"no configuration", "beats", "/nonexistent/ceph.conf", "/nonexistent/ceph.conf", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := Type().Open(storagebeat.OpenOptions{Path: tc.place, Options: map[string]string{OptionConf: tc.conf}})
			ok(t, err)
			defer func() { ok(t, b.Close()) }()
			_, err = b.ReadAll(lasting(t, 10*time.Second))
			if err == nil || !strings.Contains(err.Error(), tc.says) || errors.Is(err, storagebeat.ErrNoIdentity) != (tc.is != nil) {
				t.Errorf("read: %v", err)
			}
			id, err := b.Init(lasting(t, 10*time.Second), storagebeat.InitOptions{Cluster: "prod"})
			if tc.name == "no such namespace" {
				ok(t, err)
			} else if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("init: %v, %v", id, err)
			}
		})
	}
}

// The capabilities that the documentation gives to a user are enough, and end at
// its namespace.
func TestCapabilities(t *testing.T) {
	own, other := newPlace(t), newPlace(t)
	at, err := ParsePlace(own)
	ok(t, err)
	ok(t, cluster.MakeUser(t.Context(), "haven", "mon", "allow r", "osd", "allow rw pool="+at.Pool+" namespace="+at.Namespace))
	open := func(place string) storagebeat.Backend {
		b, err := Type().Open(storagebeat.OpenOptions{
			Path: place, Cluster: "prod", Options: map[string]string{OptionConf: cluster.Conf(), OptionUser: "haven"},
		})
		ok(t, err)
		t.Cleanup(func() { ok(t, b.Close()) })
		return b
	}
	s := open(own)
	id, err := s.Init(lasting(t, 10*time.Second), storagebeat.InitOptions{Cluster: "prod"})
	ok(t, err)
	ok(t, s.Write(lasting(t, 10*time.Second), record(t, id, "kvm-01", 1)))
	id, err = s.Init(lasting(t, 10*time.Second), storagebeat.InitOptions{Cluster: "prod", Replace: "prod"})
	ok(t, err)
	ok(t, s.Write(lasting(t, 10*time.Second), record(t, id, "kvm-01", 1)))
	r, err := s.Check(lasting(t, 10*time.Second))
	ok(t, err)
	if r.Records != 1 || r.Valid != 1 {
		t.Errorf("%+v", r)
	}
	if id, err := open(other).Init(lasting(t, 10*time.Second), storagebeat.InitOptions{Cluster: "prod"}); err == nil || !strings.Contains(err.Error(), "not permitted") {
		t.Errorf("in another's namespace: %v, %v", id, err)
	}
	b, err := Type().Open(storagebeat.OpenOptions{Path: own, Options: map[string]string{OptionConf: cluster.Conf(), OptionUser: "nobody"}})
	ok(t, err)
	defer func() { ok(t, b.Close()) }()
	if _, err := b.ReadAll(lasting(t, 10*time.Second)); err == nil {
		t.Error("a user without a key reads")
	}
}

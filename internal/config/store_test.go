package config

import (
	"maps"
	"strings"
	"testing"
)

// withRados is the small file with a directory and two pools.
var withRados = strings.Replace(small, "path: /mnt/nfs1/.haven}]}", `path: /mnt/nfs1/.haven},
  {name: ceph1, type: rados, pool: rbd, namespace: haven, ceph_conf: /etc/ceph/b.conf, ceph_user: haven},
  {name: ceph2, type: rados, pool: Beats}]}`, 1)

func TestStorePlaces(t *testing.T) {
	c, err := Parse("haven.yaml", []byte(withRados))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		place   string
		options map[string]string
	}{
		{"/mnt/nfs1/.haven", nil},
		{"rbd/haven", map[string]string{"ceph_conf": "/etc/ceph/b.conf", "ceph_user": "haven"}},
		{"Beats", nil},
	} {
		s := c.Heartbeat.Stores[i]
		if s.Place() != want.place || !maps.Equal(s.Options(), want.options) {
			t.Errorf("%s: at %q with %v, want %q with %v", s.Name, s.Place(), s.Options(), want.place, want.options)
		}
	}
}

// A program that was built without Ceph says at its start which store it cannot
// use; it does not run without that store.
func TestStoreTypesThatAreBuilt(t *testing.T) {
	if _, err := Parse("haven.yaml", []byte(withRados), WithStoreTypes("dir", "block", "rados")); err != nil {
		t.Error(err)
	}
	_, err := Parse("haven.yaml", []byte(withRados), WithStoreTypes("dir", "block"))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"heartbeat.stores.1.type: is not part of this program", "this build has no Ceph support; build with -tags ceph", "heartbeat.stores.2.type"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "stores.0") {
		t.Errorf("the directory is refused:\n%v", err)
	}
}

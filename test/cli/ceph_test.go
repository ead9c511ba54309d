//go:build ceph

package cli_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/storagebeat/rados/cephtest"
)

const cephConfig = `cluster: prod-a
gossip: {key_file: /etc/haven/gossip.key}
api: {ca_file: /etc/haven/ca.pem, cert_file: /etc/haven/host.pem, key_file: /etc/haven/host.key}
helper: {plain: true}
heartbeat:
  stores:
    - {name: ceph1, type: rados, pool: beats, namespace: haven, ceph_conf: %[1]s}
    - {name: ceph2, type: rados, pool: beats, namespace: other, ceph_conf: %[1]s}
    - {name: ceph3, type: rados, pool: nobody-made-this, ceph_conf: %[1]s}
hosts:
  kvm-01: {address: 10.0.0.11}
  kvm-02: {address: 10.0.0.12}
  kvm-03: {address: 10.0.0.13}
`

// TestCephScripts runs the tool against stores in pools of a real Ceph.
func TestCephScripts(t *testing.T) {
	ceph, err := cephtest.Start(t.Context(), cephtest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := ceph.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := ceph.MakePool(t.Context(), "beats"); err != nil {
		t.Fatal(err)
	}
	// Somebody else's object.
	put := exec.CommandContext(t.Context(), "rados", "-c", ceph.Conf(), "-p", "beats", "-N", "other", "put", "rbd_directory", ceph.Conf())
	if out, err := put.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// A subtest, so that all scripts have ended before the cluster does.
	t.Run("scripts", func(t *testing.T) {
		testscript.Run(t, testscript.Params{
			Dir: "testdata/ceph", RequireExplicitExec: true, RequireUniqueNames: true,
			Setup: func(env *testscript.Env) error {
				path := filepath.Join(env.WorkDir, "haven.yaml")
				env.Setenv("HAVEN_CONFIG", path)
				return os.WriteFile(path, fmt.Appendf(nil, cephConfig, ceph.Conf()), 0o600)
			},
			Cmds: map[string]func(*testscript.TestScript, bool, []string){
				"code": code,
				"beat": beat,
				"signal": func(ts *testscript.TestScript, _ bool, args []string) {
					ts.Check(ceph.OSD.Signal(map[string]syscall.Signal{"STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT}[args[0]]))
				},
			},
		})
	})
}

// beat writes a beat to a store of the configuration: beat NAME.
func beat(ts *testscript.TestScript, _ bool, args []string) {
	c, err := config.Load(ts.Getenv("HAVEN_CONFIG"))
	ts.Check(err)
	for _, s := range c.Heartbeat.Stores {
		if s.Name == args[0] {
			ts.Check(writeBeat(context.Background(), c.Cluster, s))
		}
	}
}

func writeBeat(ctx context.Context, cluster string, s config.Store) (err error) {
	child, err := storagebeat.NewChild(storagebeat.ChildConfig{
		Command: []string{"/proc/self/exe", storeChild}, Type: s.Type, Path: s.Place(), Options: s.Options(), Cluster: cluster, Timeout: 10 * time.Second,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, child.Close()) }()
	contents, err := child.ReadAll(ctx)
	if err != nil {
		return err
	}
	data, err := storagebeat.Encode(storagebeat.Beat{
		Store: contents.Identity.ID, Host: "kvm-01", Writer: storagebeat.WriterAgent, Boot: "boot", State: "state",
		Incarnation: 1, Sequence: 7, Interval: time.Second,
	})
	if err != nil {
		return err
	}
	return child.Write(ctx, storagebeat.RawBeat{Host: "kvm-01", Writer: storagebeat.WriterAgent, Data: data})
}

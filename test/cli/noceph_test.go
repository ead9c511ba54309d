//go:build !ceph

package cli_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestWithoutCeph runs the tool as it is built by default.
func TestWithoutCeph(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/noceph", RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			path := filepath.Join(env.WorkDir, "haven.yaml")
			env.Setenv("HAVEN_CONFIG", path)
			return os.WriteFile(path, fmt.Appendf(nil, `cluster: prod-a
gossip: {key_file: /etc/haven/gossip.key}
api: {ca_file: /etc/haven/ca.pem, cert_file: /etc/haven/host.pem, key_file: /etc/haven/host.key}
helper: {plain: true}
heartbeat:
  stores:
    - {name: ceph1, type: rados, pool: rbd}
    - {name: nfs1, type: dir, path: %s/nfs}
hosts: {kvm-01: {address: 10.0.0.11}}
`, env.WorkDir), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": code},
	})
}

//go:build !ceph

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A helper that was built without Ceph does not start beside a store that it
// cannot use.
func TestNoCephInThisBuild(t *testing.T) {
	path := filepath.Join(t.TempDir(), "haven.yaml")
	text := `cluster: prod-a
gossip: {key_file: /etc/haven/gossip.key}
api: {ca_file: /etc/haven/ca.pem, cert_file: /etc/haven/host.pem, key_file: /etc/haven/host.key}
helper: {plain: true}
heartbeat: {stores: [{name: ceph1, type: rados, pool: rbd}]}
hosts: {kvm-01: {address: 10.0.0.11}}
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--config", path}, {"--config", path, "--check"}} {
		var out, errOut bytes.Buffer
		code := run(args, &out, &errOut)
		said := out.String() + errOut.String()
		if code != 1 || !strings.Contains(said, "heartbeat.stores.0.type") || !strings.Contains(said, "this build has no Ceph support; build with -tags ceph") {
			t.Errorf("%v: code %d\n%s", args, code, said)
		}
	}
}

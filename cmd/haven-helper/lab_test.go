//go:build lab

package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/haven-ha/haven/storagebeat"
)

// P8: beside a real libvirtd that is stopped, every answer comes within 2 s and
// says why, the beat goes on and claims to know nothing, and all is well again
// once libvirtd is.
func TestLabStoppedLibvirtd(t *testing.T) {
	path, err := exec.LookPath("libvirtd")
	if err != nil {
		t.Skip("libvirtd is not installed")
	}
	dir, err := os.MkdirTemp("", "hv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	libvirtd := sessionDaemon(t, path, dir)
	s := newSite(t, filepath.Join(dir, "libvirt/libvirt-sock"))
	store := s.store()
	s.start("test:///default")
	const list = "{\"count\":1,\"virtualmachines\":[\"test\"]}\n"
	until := func(want string) {
		t.Helper()
		var body string
		for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); time.Sleep(20 * time.Millisecond) {
			if _, body, _ = s.get("/"); body == want {
				return
			}
		}
		t.Fatalf("GET / = %q", body)
	}
	until(list)
	if code, body, _ := s.get(fmt.Sprintf("/check-neighbour/127.0.0.1:%d", s.port)); code != 200 || body != "{\"status\":\"Up\"}\n" {
		t.Errorf("check of itself = %d %q", code, body)
	}
	s.beat(store, func(b storagebeat.Beat) bool { return b.Complete && len(b.VMs) > 0 })
	if err := libvirtd.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(600 * time.Millisecond) // The last good answer must have become too old.
	var asks sync.WaitGroup
	for range 12 {
		asks.Go(func() {
			if code, body, took := s.get("/"); code != 503 || took > 2*time.Second {
				t.Errorf("GET / = %d %q after %v", code, body, took)
			}
		})
	}
	asks.Wait()
	blind := s.beat(store, func(b storagebeat.Beat) bool { return !b.Complete })
	s.beat(store, func(b storagebeat.Beat) bool { return !b.Complete && b.Sequence > blind.Sequence+2 })
	if err := libvirtd.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	until(list)
	s.beat(store, func(b storagebeat.Beat) bool { return b.Complete })
}

// sessionDaemon starts a libvirtd that needs no root and keeps all in dir.
func sessionDaemon(t *testing.T, path, dir string) *os.Process {
	t.Helper()
	conf := filepath.Join(dir, "libvirtd.conf")
	if err := os.WriteFile(conf, []byte("auth_unix_rw = \"none\"\nunix_sock_rw_perms = \"0700\"\nkeepalive_interval = -1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--config", conf)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=" + dir, "XDG_RUNTIME_DIR=" + dir, "XDG_CONFIG_HOME=" + dir, "XDG_CACHE_HOME=" + dir, "XDG_DATA_HOME=" + dir}
	if os.Geteuid() == 0 {
		const nobody = 65534 // As root it would be the machine's one system daemon.
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		if err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(p, nobody, nobody)
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGCONT)
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	return cmd.Process
}

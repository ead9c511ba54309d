//go:build lab

package lab_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/haven-ha/haven/test/lab"
)

// TestOwnerDies guards the machine from what a killed test leaves behind.
func TestOwnerDies(t *testing.T) {
	for _, tc := range []struct {
		name, word string
		down       bool
	}{
		{"the guard cleans up", "guarded", false},
		{"a persistent lab stays until it is taken down", "persist", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, prefix, owner := startOwner(t, tc.word)
			ok(t, owner.Process.Kill())
			_ = owner.Wait()
			if tc.down {
				if len(leftovers(prefix, dir)) == 0 {
					t.Fatal("the lab did not outlive its owner")
				}
				l := must(lab.Open(dir, nil))(t)
				g := running(t, l, l.Host(1), "vm1")
				ok(t, l.Host(1).Storage(t.Context(), lab.StorageHang))
				ok(t, l.Close())
				if writes(t, g) || len(leftovers(prefix, dir)) == 0 {
					t.Error("closing somebody else's lab took it down")
				}
				ok(t, lab.Down(t.Context(), dir))
			}
			eventually(t, "nothing is left", func() bool { return len(leftovers(prefix, dir)) == 0 })
			ok(t, lab.Down(t.Context(), dir))
		})
	}
}

// startOwner starts a process that builds a lab, and waits until it stands.
func startOwner(t *testing.T, word string) (dir, prefix string, owner *exec.Cmd) {
	t.Helper()
	dir = must(os.MkdirTemp("", "lab"))(t)
	t.Cleanup(func() {
		ok(t, lab.Down(t.Context(), dir))
		ok(t, os.RemoveAll(dir))
	})
	owner = exec.Command(os.Args[0], "own-a-lab", dir, word)
	out := must(owner.StdoutPipe())(t)
	ok(t, owner.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "up\n" {
		t.Fatalf("%q: %v", line, err)
	}
	l := must(lab.Open(dir, nil))(t)
	return dir, l.Prefix(), owner
}

// TestNewLeavesNothing guards the machine from labs that could not be built.
func TestNewLeavesNothing(t *testing.T) {
	broken := errors.New("broken")
	for _, tc := range []struct {
		name     string
		programs []lab.Program
		err      error
	}{
		{"callback fails", nil, broken},
		{"name is taken", []lab.Program{{Name: "libvirtd", Args: []string{"true"}}}, nil},
		{"no command", []lab.Program{{Name: "agent"}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := must(os.MkdirTemp("", "lab"))(t)
			t.Cleanup(func() { ok(t, os.RemoveAll(dir)) })
			_, err := lab.New(t.Context(), lab.Config{Dir: dir, Prefix: "hv-broken", Hosts: 1, Programs: func(lab.HostInfo) ([]lab.Program, error) {
				return tc.programs, tc.err
			}})
			if err == nil || tc.err != nil && !errors.Is(err, tc.err) {
				t.Errorf("got %v", err)
			}
			if left := leftovers("hv-broken", dir); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	dir := must(os.MkdirTemp("", "lab"))(t)
	t.Cleanup(func() { ok(t, os.RemoveAll(dir)) })
	l := newLab(t, lab.Config{Hosts: 1, Dir: dir})
	for _, tc := range []struct {
		name   string
		config lab.Config
	}{
		{"prefix in use", lab.Config{Prefix: l.Prefix()}},
		{"directory in use", lab.Config{Dir: l.Dir()}},
		{"too many hosts", lab.Config{Hosts: 65}},
		{"no hosts", lab.Config{Hosts: -1}},
		{"bad prefix", lab.Config{Prefix: "a b"}},
		{"bad BMC", lab.Config{BMC: "other"}},
		{"hidden directory", lab.Config{Dir: "/run/lab"}},
		{"relative directory", lab.Config{Dir: "lab"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if other, err := lab.New(t.Context(), tc.config); err == nil {
				t.Error("it was taken")
				ok(t, other.Close())
			}
		})
	}
	if _, err := os.Stat(filepath.Join(dir, "lab.json")); err != nil {
		t.Errorf("the running lab lost its state: %v", err)
	}
}

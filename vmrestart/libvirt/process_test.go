package libvirt

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

// headless says that this is the child of TestHeadlessProcessIsFound. Such a
// process keeps its main goroutine on its first thread, which can be told only
// while variables are set: later the two have parted.
var headless = func() bool {
	if len(os.Args) < 2 || os.Args[1] != "headless" {
		return false
	}
	runtime.LockOSThread()
	return true
}()

// TestMain plays, when it is headless, a VM process whose first thread has gone
// while another goes on: what remains of a killed QEMU with a write stuck in
// the kernel.
func TestMain(m *testing.M) {
	if headless {
		go func() {
			for {
				time.Sleep(time.Hour)
			}
		}()
		fmt.Println("up")
		_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT, 0, 0, 0)
	}
	os.Exit(m.Run())
}

func TestProcesses(t *testing.T) {
	a, b := vmNumber(1), vmNumber(2)
	tests := []struct {
		name    string
		cmdline string
		want    haven.VMID
	}{
		{"qemu", "/usr/bin/qemu-system-x86_64\x00-name\x00guest=x\x00-uuid\x00" + string(a) + "\x00", a},
		{"upper case", "qemu-kvm\x00-uuid\x00" + strings.ToUpper(string(b)) + "\x00", b},
		{"two dashes", "qemu\x00--uuid\x00" + string(b) + "\x00-S\x00", b},
		{"no value", "qemu\x00-uuid\x00", ""},
		{"not a UUID", "qemu\x00-uuid\x00hello\x00", ""},
		{"a second one counts", "qemu\x00-uuid\x00hello\x00-uuid\x00" + string(a), a},
		{"inside an argument", "grep\x00-uuid " + string(a) + "\x00", ""},
		{"nothing", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			addProcess(t, root, 1, "init\x00")
			addProcess(t, root, 44, tt.cmdline)
			var want []haven.VMID
			if tt.want != "" {
				want = []haven.VMID{tt.want}
			}
			if got, err := vmProcesses(root); err != nil || !slices.Equal(got, want) {
				t.Errorf("vmProcesses() = %v, %v, want %v", got, err, want)
			}
		})
	}
	t.Run("sorted, each once", func(t *testing.T) {
		got, err := vmProcesses(fakeProc(t, b, a, b))
		if err != nil || !slices.Equal(got, []haven.VMID{a, b}) {
			t.Errorf("vmProcesses() = %v, %v", got, err)
		}
	})
	t.Run("one that cannot be read", func(t *testing.T) {
		root := fakeProc(t, a)
		addProcess(t, root, 200, "")
		if err := errors.Join(os.Remove(filepath.Join(root, "200", "cmdline")), os.Mkdir(filepath.Join(root, "200", "cmdline"), 0o755)); err != nil {
			t.Fatal(err)
		}
		if got, err := vmProcesses(root); err == nil || !slices.Equal(got, []haven.VMID{a}) {
			t.Errorf("vmProcesses() = %v, %v, want the other one and an error", got, err)
		}
	})
}

// P1: a killed VM process is not gone while one of its threads remains. This
// looks at a real process in the real process table.
func TestHeadlessProcessIsFound(t *testing.T) {
	id := haven.VMID("deadbeef-2222-4333-8444-555555555555")
	cmd := exec.Command(os.Args[0], "headless", "-uuid", string(id))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	dir := fmt.Sprintf("/proc/%d", cmd.Process.Pid)
	for line := []byte("x"); len(line) > 0; {
		if line, err = os.ReadFile(filepath.Join(dir, "cmdline")); err != nil {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
	ids, err := newScanner("/proc").scan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := slices.BinarySearch(ids, id); !ok {
		t.Errorf("scan() = %v, want %s among them", ids, id)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if ids, err := newScanner("/proc").scan(t.Context()); err != nil || slices.Contains(ids, id) {
		t.Errorf("after its end scan() = %v, %v", ids, err)
	}
}

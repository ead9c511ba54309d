package watchdog

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
)

func TestRecordIsOfOneBoot(t *testing.T) {
	f := File(filepath.Join(t.TempDir(), "haven", "watchdog"))
	if r, err := f.Load("b1"); err != nil || !reflect.DeepEqual(r, Record{}) {
		t.Fatalf("without a file: %+v, %v", r, err)
	}
	want := Record{
		Boot: "b1", PID: 7, Started: 9, Armed: true, Device: "/dev/watchdog", Silence: time.Second, Timeout: 2, Asked: 3, Life: 4,
		Declared: haven.Watchdog{Bound: 5, Stores: []string{"A"}}, Standing: []haven.Watchdog{{Bound: 6}},
	}
	if err := f.Save(want); err != nil {
		t.Fatal(err)
	}
	if r, err := f.Load("b1"); err != nil || !reflect.DeepEqual(r, want) {
		t.Errorf("%+v, %v; want %+v", r, err, want)
	}
	// A reset disarmed what a record of before it tells of.
	if r, err := f.Load("b2"); err != nil || !reflect.DeepEqual(r, Record{}) {
		t.Errorf("in another boot: %+v, %v", r, err)
	}
	if err := os.WriteFile(string(f), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Load("b1"); err == nil {
		t.Error("half a record was taken")
	}
}

// Who takes over waits for the end of the process before: the kernel's close of its
// device is a pet.
func TestGone(t *testing.T) {
	pid, started, err := Process()
	if err != nil {
		t.Fatal(err)
	}
	if Gone(pid, started) {
		t.Error("this process is gone")
	}
	if !Gone(pid, started+1) {
		t.Error("a process of another time with this number is not")
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, begun, _, err := processStat(cmd.Process.Pid)
	if err != nil || Gone(cmd.Process.Pid, begun) {
		t.Errorf("a process that sleeps is gone (%v)", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if !Gone(cmd.Process.Pid, begun) {
		t.Error("a process that was killed is not gone")
	}
}

// What is known without opening a device is asked before: opening starts it.
func TestCheckBeforeOpening(t *testing.T) {
	tests := []struct {
		name       string
		attributes map[string]string
		allowSoft  bool
		want       string // part of the error; empty: the open is tried, and finds no device
	}{
		{"nothing known", nil, false, "no such file"},
		{"hardware", map[string]string{"nowayout": "0", "identity": "iTCO_wdt"}, false, "no such file"},
		{"nowayout", map[string]string{"nowayout": "1", "identity": "iTCO_wdt"}, false, "nowayout"},
		{"softdog", map[string]string{"nowayout": "0", "identity": softIdentity}, false, "allow_softdog"},
		{"softdog by name", map[string]string{"nowayout": "0", "identity": softIdentity}, true, "no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sys := t.TempDir()
			dir := filepath.Join(sys, "class/watchdog/watchdog0")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for name, value := range tt.attributes {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(value+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			_, err := Finder{AllowSoft: tt.allowSoft, Sys: sys}.Open(filepath.Join(sys, "watchdog"), false)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

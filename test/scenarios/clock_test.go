//go:build lab

package scenarios

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/test/lab"
)

// TestWallClock moves the wall clocks of hosts. No clock of another host is ever
// compared with one's own to judge it, so nothing happens; and a host that really
// dies is recovered all the same (P1, P2, P4).
func TestWallClock(t *testing.T) {
	t.Parallel()
	g := newGround(t, options{programs: clockPrograms(t), env: clockEnv})

	g.trial(t, "the clock of the master's host goes an hour ahead", func(tr *trial) {
		v := tr.master()
		tr.setClock(v, time.Hour)
		tr.leftAlone(watched, g.guests...)
		tr.alwaysHealthy()
		tr.setClock(v, 0)
	})
	g.trial(t, "the clock of a host goes an hour back", func(tr *trial) {
		v := tr.victim()
		tr.setClock(v, -time.Hour)
		tr.leftAlone(watched, g.guests...)
		tr.alwaysHealthy()
		tr.setClock(v, 0)
	})
	g.trial(t, "a host dies among clocks that differ by two hours", func(tr *trial) {
		master, v := tr.master(), tr.victim()
		for _, h := range tr.lab.Hosts() {
			switch h {
			case master:
				tr.setClock(h, time.Hour)
			case v:
			default:
				tr.setClock(h, -time.Hour)
			}
		}
		lost := tr.on(v)
		tr.watch.excuse(v)
		tr.rebooted(lost...)
		before := tr.nonces(lost)
		tr.ok(v.CutPower(tr.t.Context()))
		tr.startElsewhere(90*time.Second, v, before)
		if in := tr.incident(v, v); in.Proof == nil || in.Proof.Kind != haven.ProofPowerOff {
			tr.t.Errorf("P2: the proof is %+v", in.Proof)
		}
	})
}

// clockFile is where a host's programs look how far their wall clock is off.
const clockFile = "wall"

func clockEnv(h lab.HostInfo) ([]string, error) {
	err := os.WriteFile(filepath.Join(h.ConfigDir, clockFile), make([]byte, 8), 0o600)
	return []string{"HAVEN_LAB_WALL=" + lab.HostConfigDir + "/" + clockFile}, err
}

// setClock moves a host's wall clock at once, as an operator would who sets it by
// hand; its monotonic clock goes on.
func (tr *trial) setClock(h *lab.Host, ahead time.Duration) {
	tr.t.Helper()
	tr.lab.Mark(fmt.Sprintf("%s clock %s ahead", h.Name, ahead))
	f, err := os.OpenFile(filepath.Join(h.ConfigDir, clockFile), os.O_WRONLY, 0)
	if err != nil {
		tr.t.Fatal(err)
	}
	if err := binary.Write(f, binary.NativeEndian, int64(ahead/time.Second)); err != nil {
		tr.t.Error(err)
	}
	tr.ok(f.Close())
	tr.eventually(30*time.Second, h.Name+" to have the new time", func() bool {
		at, err := lastLogged(filepath.Join(h.LogDir, "havend.log"))
		tr.ok(err)
		return (time.Until(at) - ahead).Abs() < time.Minute
	})
}

// lastLogged is the time of the last whole line of a log.
func lastLogged(file string) (time.Time, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return time.Time{}, err
	}
	at := bytes.LastIndex(data[:bytes.LastIndexByte(data, '\n')+1], []byte("\ntime="))
	stamp, _, _ := strings.Cut(string(data[at+len("\ntime="):]), " ")
	return time.Parse(time.RFC3339Nano, stamp)
}

// wallSource is the part of the standard library's clock that these builds have
// beside it: the hosts of a lab share one kernel and so one wall clock, which
// cannot be moved for one of them. All that reads the wall clock sees the move,
// certificates and libraries too.
const wallSource = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var wall = openWall()

func openWall() *int64 {
	path, ok := syscall.Getenv("HAVEN_LAB_WALL")
	if !ok {
		return nil
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	b, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	return (*int64)(unsafe.Pointer(&b[0]))
}

func wallAhead() int64 {
	if wall == nil {
		return 0
	}
	return atomic.LoadInt64(wall)
}
`

// clockPrograms builds the shipped programs with a wall clock that can be moved.
func clockPrograms(t *testing.T) string {
	t.Helper()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	ok(err)
	std := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	source, err := os.ReadFile(filepath.Join(std, "time.go"))
	ok(err)
	const reading = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(source), reading) != 1 {
		t.Fatalf("%s does not read the clock as it did in Go 1.26", std)
	}
	moved := strings.Replace(string(source), reading, reading+"\tsec += wallAhead()\n", 1)
	now, wall, overlay := filepath.Join(dir, "time.go"), filepath.Join(dir, "wall.go"), filepath.Join(dir, "overlay.json")
	ok(os.WriteFile(now, []byte(moved), 0o600))
	ok(os.WriteFile(wall, []byte(wallSource), 0o600))
	list, err := json.Marshal(map[string]any{"Replace": map[string]string{
		filepath.Join(std, "time.go"): now, filepath.Join(std, "wall.go"): wall,
	}})
	ok(err)
	ok(os.WriteFile(overlay, list, 0o600))
	bin := filepath.Join(dir, "bin")
	ok(os.Mkdir(bin, 0o755))
	build := exec.CommandContext(t.Context(), "go", "build", "-overlay", overlay, "-o", bin,
		"github.com/haven-ha/haven/cmd/havend", "github.com/haven-ha/haven/cmd/haven-helper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build with a clock that moves: %v\n%s", err, out)
	}
	return bin
}

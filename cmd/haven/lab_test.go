//go:build lab

package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/haven-ha/haven/storagebeat"
)

// TestMain makes the test program the tool itself, and its store child, when it is
// started with the tool's words.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-test.") {
		main()
	}
	os.Exit(m.Run())
}

// haven runs the tool.
func haven(t *testing.T, want int, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if code != want {
		t.Fatalf("haven %q: exit code %d, want %d\n%s%s", args, code, want, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

func says(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q does not say %q", text, p)
		}
	}
}

// TestStoreOnADevice is what an operator does with a LUN.
func TestStoreOnADevice(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	device := func() string {
		file := filepath.Join(t.TempDir(), "lun")
		if err := os.WriteFile(file, make([]byte, 8<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", "--direct-io=on", file).Output()
		if err != nil {
			t.Fatalf("make a loop device: %v", err)
		}
		name := strings.TrimSpace(string(out))
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if out, err := exec.CommandContext(ctx, "losetup", "--detach", name).CombinedOutput(); err != nil {
				t.Errorf("detach %s: %v, %s", name, err, out)
			}
		})
		return name
	}
	lun := device()
	_, why := haven(t, 1, "store", "check", lun, "--cluster", "lab")
	says(t, why, "is no store", "another device than you think")
	out, _ := haven(t, 0, "store", "init", lun, "--cluster", "lab", "--slots", "16")
	says(t, out, lun+" is now store", "of cluster lab")
	_, why = haven(t, 1, "store", "init", lun, "--cluster", "lab")
	says(t, why, `of cluster "lab" is there`, "(--replace)")
	_, why = haven(t, 1, "store", "init", lun, "--cluster", "lab", "--erase", storagebeat.EraseName(lun, "lab"))
	says(t, why, `of cluster "lab" is there`)

	child, err := storagebeat.NewChild(storagebeat.ChildConfig{
		Command: []string{"/proc/self/exe", storeChild}, Type: storagebeat.TypeBlock, Path: lun, Cluster: "lab", Timeout: 10 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	contents, err := child.ReadAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b := storagebeat.Beat{
		Store: contents.Identity.ID, Host: "kvm-07", Writer: storagebeat.WriterAgent, Boot: "b", State: "s", Incarnation: 1, Sequence: 42, Interval: time.Second,
	}
	data, err := storagebeat.Encode(b)
	if err != nil {
		t.Fatal(err)
	}
	child.SetSlot(7)
	if err := child.Write(t.Context(), storagebeat.RawBeat{Host: b.Host, Writer: b.Writer, Data: data}); err != nil {
		t.Fatal(err)
	}
	if err := child.Close(); err != nil {
		t.Fatal(err)
	}
	out, _ = haven(t, 0, "store", "dump", lun, "--cluster", "lab")
	says(t, strings.Join(strings.Fields(out), " "), "SLOT HOST WRITER SEQUENCE", "7 kvm-07 agent 42 1s")
	out, _ = haven(t, 0, "store", "dump", lun, "--cluster", "lab", "-o", "json")
	says(t, out, `"slot": 7`)
	out, why = haven(t, 0, "store", "check", lun, "--cluster", "lab")
	says(t, strings.Join(strings.Fields(out), " "), "can be read and written", "block device 7:", "Slots 16", "Records 1, of which 1 are valid")
	says(t, why, "it is no shared store") // a loop device is this host's own
	_, why = haven(t, 1, "store", "check", lun, "--cluster", "prod")
	says(t, why, `want cluster "prod"`)

	used := device()
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", used).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_, why = haven(t, 1, "store", "init", used, "--cluster", "lab")
	says(t, why, "ext4", "(--erase)", storagebeat.EraseName(used, "lab"))
	haven(t, 2, "store", "init", used, "--cluster", "lab", "--erase", used)
	haven(t, 0, "store", "init", used, "--cluster", "lab", "--erase", storagebeat.EraseName(used, "lab"))
}

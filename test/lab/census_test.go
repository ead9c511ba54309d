package lab

import (
	"os"
	"os/exec"
	"slices"
	"testing"
)

func TestCensus(t *testing.T) {
	before, err := census("/proc", os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if before.Threads < 1 || before.Files < 3 || before.Resident < 1<<20 {
		t.Errorf("of this program: %+v", before)
	}
	cmd := exec.CommandContext(t.Context(), "cat") // it waits for its input
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	with, err := census("/proc", os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	is := func(p ChildProcess) bool { return p.PID == cmd.Process.Pid }
	if slices.ContainsFunc(before.Children, is) || !slices.ContainsFunc(with.Children, is) || with.Files <= before.Files {
		t.Errorf("before %+v, with the child %d %+v", before, cmd.Process.Pid, with)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	// Dead and not buried yet: it counts as stuck.
	for {
		c, err := census("/proc", os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(c.Stuck(), cmd.Process.Pid) {
			break
		}
		if t.Context().Err() != nil {
			t.Fatal("the child does not end")
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	after, err := census("/proc", os.Getpid())
	if err != nil || slices.ContainsFunc(after.Children, is) {
		t.Errorf("after it: %+v, %v", after, err)
	}
}

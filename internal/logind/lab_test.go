//go:build lab

package logind

import (
	"os/exec"
	"testing"
)

// TestLabHasBus: in the lab no test of this package may be left out.
func TestLabHasBus(t *testing.T) {
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Errorf("%v: it is in test/lab/packages.txt", err)
	}
}

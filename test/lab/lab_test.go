//go:build lab

package lab_test

import (
	"testing"

	"github.com/haven-ha/haven/test/lab"
)

func TestSmoke(t *testing.T) {
	l := newLab(t, lab.Config{Hosts: 3})
	g := running(t, l, l.Host(1), "vm1")
	t.Log(g.Header())
}

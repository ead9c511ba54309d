//go:build lab

package lab_test

import (
	"errors"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/haven-ha/haven/test/lab"
)

// outlet runs on one host what switches an outlet of another, and returns what it
// ends with.
func outlet(t *testing.T, from, to *lab.Host, feed int, word string) int {
	t.Helper()
	f := to.Feeds[feed]
	_, err := from.Exec(within(t, 30*time.Second), f.Program, "haven-lab:outlet", f.Strip, word, to.Name)
	if err == nil {
		return 0
	}
	exit, is := errors.AsType[*exec.ExitError](err)
	if !is {
		t.Fatal(err)
	}
	return exit.ExitCode()
}

// TestFeeds guards that a host has power as long as one of its supplies has, that
// its BMC dies with the last, and that an outlet says off only about what is dead.
func TestFeeds(t *testing.T) {
	l := newLab(t, lab.Config{Hosts: 2, Feeds: 2})
	h1, h2 := l.Host(1), l.Host(2)
	expect := func(feed int, want int) {
		t.Helper()
		if got := outlet(t, h2, h1, feed, "status"); got != want {
			t.Fatalf("the status of outlet %d ends with %d, want %d", feed, got, want)
		}
	}
	expect(0, lab.OutletOn)
	if code := outlet(t, h2, h1, 0, "off"); code != 0 {
		t.Fatalf("off ends with %d", code)
	}
	expect(0, lab.OutletOff)
	expect(1, lab.OutletOn)
	expectPower(t, h2, h1, "on")
	outlet(t, h2, h1, 1, "off")
	if on := must(h1.PowerIsOn())(t); on {
		t.Fatal("the host lives without power")
	}
	expect(1, lab.OutletOff)
	if out, err := ipmi(t, h2, h1, 3, "chassis", "power", "status"); err == nil {
		t.Fatalf("a BMC without power says %q", out)
	}
	if err := h1.PowerOn(t.Context()); err == nil {
		t.Fatal("the host was powered on without power")
	}
	outlet(t, h2, h1, 1, "on")
	ok(t, h1.WaitReady(t.Context()))
	expectPower(t, h2, h1, "on")
	expect(0, lab.OutletOff)

	ok(t, h1.StickOutlet("b", true))
	if code := outlet(t, h2, h1, 1, "off"); code != 0 {
		t.Errorf("off at a stuck outlet ends with %d", code)
	}
	expect(1, lab.OutletOn)
	ok(t, h1.StickOutlet("b", false))
	ok(t, h1.SwitchOutlet(t.Context(), "a", true))
	expect(0, lab.OutletOn)
	if code := outlet(t, h2, h1, 0, "explode"); code != 1 {
		t.Errorf("an unknown word ends with %d", code)
	}
	var told []string
	for _, c := range must(h1.OutletCommands())(t) {
		told = append(told, c.Command)
	}
	if want := []string{"off a", "off b", "on b", "off b"}; !slices.Equal(told, want) {
		t.Errorf("the strips were told %q, want %q", told, want)
	}
}

// TestSulkingBMC guards that a BMC which does not do what it is told tells the
// power state as it is.
func TestSulkingBMC(t *testing.T) {
	for _, kind := range []lab.BMCKind{lab.BMCSim, lab.BMCGo} {
		t.Run(string(kind), func(t *testing.T) {
			l := newLab(t, lab.Config{Hosts: 2, BMC: kind})
			h1, h2 := l.Host(1), l.Host(2)
			ok(t, h1.SulkBMC(lab.BMCIgnores))
			if out, err := ipmi(t, h2, h1, 3, "chassis", "power", "off"); err != nil {
				t.Errorf("%q: %v", out, err)
			}
			expectPower(t, h2, h1, "on")
			ok(t, h1.SulkBMC(lab.BMCRefuses))
			if out, err := ipmi(t, h2, h1, 3, "chassis", "power", "off"); err == nil {
				t.Errorf("a BMC that refuses says %q", out)
			}
			expectPower(t, h2, h1, "on")
			ok(t, h1.HealBMC(t.Context()))
			if _, err := ipmi(t, h2, h1, 3, "chassis", "power", "off"); err != nil {
				t.Error(err)
			}
			expectPower(t, h2, h1, "off")
			if cmds := must(h1.PowerCommands())(t); len(cmds) != 3 {
				t.Errorf("the BMC got %v", cmds)
			}
		})
	}
}

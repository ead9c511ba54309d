//go:build lab

package lab_test

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/haven-ha/haven/fencing/watchdog"
	"github.com/haven-ha/haven/test/lab"
)

// sitter arms a host's watchdog for 3 s and pets it each second until it ends. Its
// stop is a magic close.
func sitter(t *testing.T) lab.Program {
	return lab.Program{Name: "sitter", Args: []string{must(os.Executable())(t), "sit", lab.HostWatchdog}}
}

// sit is the sitter.
func sit(path string) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	d, err := watchdog.Finder{}.Open(path, false)
	if err == nil {
		_, err = d.SetTimeout(3 * time.Second)
	}
	for err == nil {
		select {
		case <-time.After(time.Second):
			err = d.Pet()
		case <-stop:
			if err = d.MagicClose(); err == nil {
				os.Exit(0)
			}
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

// A host has a watchdog of its own: it is left in peace while it pets, also by the
// end of a program that closes by magic; hung, killed without one or cut from power
// it gets what a machine gets.
func TestWatchdogDevice(t *testing.T) {
	l := newLab(t, lab.Config{Hosts: 1, Watchdogs: true, Programs: func(lab.HostInfo) ([]lab.Program, error) {
		return []lab.Program{sitter(t)}, nil
	}})
	h := l.Host(1)
	armed := func() { t.Helper(); ok(t, h.WaitWatchdog(within(t, 20*time.Second), true)) }
	armed()
	ok(t, h.Stop(t.Context(), "sitter"))
	ok(t, h.WaitWatchdog(within(t, 10*time.Second), false))
	ok(t, h.Start(t.Context(), "sitter"))
	armed()
	first := must(h.BootID())(t)

	ok(t, h.Hang(t.Context()))
	must(h.WaitWatchdogFired(within(t, 20*time.Second), 1))(t)
	ok(t, h.WaitNewBoot(within(t, 20*time.Second), first))
	ok(t, h.WaitReady(t.Context()))

	armed()
	ok(t, h.CutPower(t.Context()))
	if s := must(h.WatchdogStatus(t.Context()))(t); s.Running || s.Open {
		t.Errorf("a watchdog without power: %+v", s)
	}
	ok(t, h.PowerOn(t.Context()))
	ok(t, h.WaitReady(t.Context()))
	armed()

	ok(t, h.WatchdogDoes(lab.DogPowerOff))
	ok(t, h.Hold(t.Context(), "sitter"))
	must(h.WaitWatchdogFired(within(t, 20*time.Second), 2))(t)
	eventually(t, "the host is off", func() bool { on, err := h.PowerIsOn(); return err == nil && !on })
	if got := must(h.PowerCommands())(t); len(got) != 0 {
		t.Errorf("the BMC got %v", got)
	}
}

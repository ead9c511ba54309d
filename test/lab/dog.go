package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/haven-ha/haven/test/lab/labdog"
)

// WatchdogStatus is the state of a host's watchdog device.
type WatchdogStatus = labdog.Status

// DogAction is what a watchdog does that was not petted in time.
type DogAction string

// The actions of a watchdog.
const (
	DogResets   DogAction = "reset" // the host boots again, as after power off and on
	DogPowerOff DogAction = "off"   // it stays off
)

// dogTimeout is the device's timeout until somebody sets another.
const dogTimeout = 30 * time.Second

func (s *spec) dogMount(host string) string   { return s.file("mnt", host+".dog") }
func (s *spec) dogControl(host string) string { return s.file("ctl", host+".dog") }
func (s *spec) dogAction(host string) string  { return s.file("hosts", host, "dog.action") }
func (s *spec) dogLog(host string) string     { return s.file("hosts", host, "dog.fired") }

// startDog serves the host's watchdog, if it has one.
func (h *Host) startDog(ctx context.Context) error {
	s := h.lab.spec
	if !s.Watchdogs {
		return nil
	}
	log := s.file("log", "dog-"+h.Name+".log")
	d, err := startDaemon(log, "", s.storeCgroup(h.Name), s.binary(), childDog, s.Dir, h.Name)
	h.lab.adopt(d)
	if err != nil {
		return fmt.Errorf("start watchdog of %s: %w", h.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = poll(ctx, 5*time.Millisecond, func() (bool, error) {
		_, err := h.WatchdogStatus(ctx)
		if err != nil && !d.alive() {
			return false, errors.New(lastLines(log))
		}
		return err == nil, nil
	})
	if err != nil {
		return fmt.Errorf("wait for watchdog of %s: %w", h.Name, err)
	}
	return nil
}

// runDog is the child that is a host's watchdog.
func runDog(dir, host string) error {
	s, err := loadSpec(dir)
	if err != nil {
		return err
	}
	return labdog.Serve(labdog.Options{
		Mount: s.dogMount(host), Control: s.dogControl(host), Identity: "labdog",
		Limits: labdog.Limits{Min: time.Second, Max: 10 * time.Minute}, Timeout: dogTimeout,
		Expired: func() {
			if err := (chassis{spec: s, host: host}).bitten(context.Background()); err != nil {
				fmt.Fprintf(os.Stderr, "watchdog of %s: %v\n", host, err)
			}
		},
	})
}

// bitten is the end of a host that did not pet its watchdog.
func (c chassis) bitten(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, powerTimeout)
	defer cancel()
	f, err := os.OpenFile(c.spec.dogLog(c.host), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, time.Now().UnixMilli())
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	// Somebody may have switched it off while this one waited for its turn.
	if on, err := c.power(); !on || err != nil {
		return err
	}
	if err := c.offLocked(ctx); err != nil {
		return err
	}
	if action, err := os.ReadFile(c.spec.dogAction(c.host)); err == nil && DogAction(action) == DogPowerOff {
		return nil
	}
	d, err := c.onLocked(ctx)
	if d != nil {
		go d.wait()
	}
	return err
}

// stopDog takes the power from the host's watchdog.
func (s *spec) stopDog(ctx context.Context, host string) error {
	if !s.Watchdogs {
		return nil
	}
	if err := labdog.Control(s.dogControl(host)).CutPower(ctx); err != nil {
		return fmt.Errorf("stop watchdog of %s: %w", host, err)
	}
	return nil
}

// bindDog shows the host its own watchdog.
func (s *spec) bindDog(host string) error {
	if !s.Watchdogs {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(HostWatchdog), 0o755); err != nil {
		return err
	}
	return bind(s.dogMount(host), filepath.Dir(HostWatchdog))
}

func (h *Host) dog() labdog.Control { return labdog.Control(h.lab.spec.dogControl(h.Name)) }

// WatchdogStatus reads the state of the host's watchdog.
func (h *Host) WatchdogStatus(ctx context.Context) (WatchdogStatus, error) {
	return h.dog().Status(ctx)
}

// WatchdogNoWayOut makes the watchdog one that a magic close does not stop.
func (h *Host) WatchdogNoWayOut(ctx context.Context, on bool) error {
	return h.dog().NoWayOut(ctx, on)
}

// BreakWatchdog makes the device fail each write, until on is false again; what it
// counts it goes on to count.
func (h *Host) BreakWatchdog(ctx context.Context, on bool) error {
	h.mark(fmt.Sprintf("watchdog broken %v", on))
	return h.dog().Broken(ctx, on)
}

// WatchdogDoes chooses what the host's watchdog does when it expires. Without it
// the host is reset.
func (h *Host) WatchdogDoes(action DogAction) error {
	return replaceFile(h.lab.spec.dogAction(h.Name), string(action))
}

// WatchdogFirings are the times at which the host's watchdog expired, to the
// millisecond, oldest first.
func (h *Host) WatchdogFirings() ([]time.Time, error) {
	text, err := os.ReadFile(h.lab.spec.dogLog(h.Name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []time.Time
	for line := range strings.Lines(string(text)) {
		ms, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("parse firings of %s: %w", h.Name, err)
		}
		all = append(all, time.UnixMilli(ms))
	}
	return all, nil
}

// WaitWatchdog waits until the host's watchdog runs, or does not.
func (h *Host) WaitWatchdog(ctx context.Context, running bool) error {
	return poll(ctx, 20*time.Millisecond, func() (bool, error) {
		s, err := h.WatchdogStatus(ctx)
		return err == nil && s.Running == running, err
	})
}

// WaitNewBoot waits until the host runs another boot than the one of an id.
func (h *Host) WaitNewBoot(ctx context.Context, old string) error {
	err := poll(ctx, 20*time.Millisecond, func() (bool, error) {
		id, err := h.BootID() // there is none while it is off
		return err == nil && id != "" && id != old, nil
	})
	if err != nil {
		return fmt.Errorf("wait for another boot of %s: %w", h.Name, err)
	}
	return nil
}

// WaitWatchdogFired waits until the host's watchdog has expired so often, and
// returns when it did; what it does to the host follows.
func (h *Host) WaitWatchdogFired(ctx context.Context, times int) (at time.Time, err error) {
	err = poll(ctx, 20*time.Millisecond, func() (bool, error) {
		all, err := h.WatchdogFirings()
		if len(all) < times || err != nil {
			return false, err
		}
		at = all[times-1]
		return true, nil
	})
	if err != nil {
		return at, fmt.Errorf("wait for watchdog of %s: %w", h.Name, err)
	}
	return at, nil
}

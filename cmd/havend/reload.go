package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/haven-ha/haven/internal/config"
)

// reloadable is what can read its secrets again.
type reloadable interface {
	Reload(configuration error) (problems []error)
}

// reloader reads again what may change while the agent runs, when SIGHUP asks.
type reloader struct {
	path    string
	running *config.Config
	agent   reloadable
	log     *slog.Logger
}

// run reloads at each signal, until the context ends.
func (r reloader) run(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
		tellSystemd(r.log, reloading())
		r.agent.Reload(r.compare())
		tellSystemd(r.log, daemon.SdNotifyReady)
	}
}

// reloading is what systemd wants to hear before a reload, with the time by which
// it tells this one from the one before.
func reloading() string {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return daemon.SdNotifyReloading
	}
	return fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, ts.Nano()/1000)
}

// compare checks the configuration file as it is now, and says which of its keys
// want a restart: all that changed, for the agent runs on with what it was started
// with.
func (r reloader) compare() error {
	next, err := config.Load(r.path, options()...)
	if err != nil {
		return err
	}
	for _, w := range next.Warnings {
		r.log.Warn("configuration", "warning", w.String())
	}
	if keys := r.running.Changes(next); len(keys) > 0 {
		r.log.Warn("the configuration has changed; restart this agent for these keys to take effect", "count", len(keys), "keys", some(keys))
	}
	return nil
}

// keysTold bounds the names in one line of the log.
const keysTold = 20

func some(keys []string) string {
	if len(keys) <= keysTold {
		return strings.Join(keys, " ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(keys[:keysTold], " "), len(keys)-keysTold)
}

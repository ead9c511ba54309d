package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/helper"
)

// reloadAt reads the password and the certificate again at each signal, until the
// context ends. What cannot be read stays as it was; everything else wants a
// restart, which costs a helper a second.
func reloadAt(ctx context.Context, signals <-chan os.Signal, web *helper.Server, password *config.SecretFile, certs *certificates, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
		tellSystemd(log, reloading())
		if web.Protected() {
			changed, err := password.Reload()
			if err != nil {
				log.Error("the password cannot be read again; the old one stays", "error", err)
			} else if text, err := password.Text(); err == nil {
				web.SetPassword(text)
			}
			log.Info("reloaded", "password_changed", changed)
		}
		if !certs.plain {
			certs.reload()
		}
		tellSystemd(log, daemon.SdNotifyReady)
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

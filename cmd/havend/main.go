// Havend is the agent that runs on every host of a Haven cluster.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing/command"
	"github.com/haven-ha/haven/internal/agent"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/logind"
	"github.com/haven-ha/haven/internal/stores"
	"github.com/haven-ha/haven/storagebeat"
)

// version is set by the build.
var version = "dev"

// storeChild is the hidden argument of a store's child process.
const storeChild = "store-child"

// fenceLauncher is the hidden argument of what starts fence programs.
const fenceLauncher = "fence-program"

// Exit codes, beside those of config.Check.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == storeChild {
		return storagebeat.ChildMain(args[1:], os.Stdin, os.Stdout, stores.Types()...)
	}
	if len(args) > 0 && args[0] == fenceLauncher {
		return command.Launch(args[1:], os.Environ(), stderr)
	}
	flags := flag.NewFlagSet("havend", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", "/etc/haven/haven.yaml", "configuration `file` of the cluster")
	name := flags.String("host", "", "`name` of this host in the hosts section (default: its hostname)")
	bootID := flags.String("boot-id", "", "`file` that names this boot (default: the kernel's)")
	check := flags.Bool("check", false, "check the configuration and the files that it names, and exit")
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitOK
		}
		return exitUsage
	}
	switch {
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "havend: %q: no arguments are expected\n", flags.Arg(0))
		return exitUsage
	case *showVersion:
		fmt.Fprintln(stdout, version)
		return exitOK
	case *check:
		return config.Check(*path, stdout, options()...)
	}
	cfg, err := config.Load(*path, options()...)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitFailed
	}
	log := newLog(cfg.Log, stderr)
	for _, w := range cfg.Warnings {
		log.Warn("configuration", "warning", w.String())
	}
	if err := serve(cfg, *path, *name, *bootID, log); err != nil {
		log.Error("havend failed", "error", err)
		return exitFailed
	}
	return exitOK
}

// options are how this program reads a configuration. Systemd says where it put the
// credentials of the service.
func options() []config.Option {
	return []config.Option{config.WithStoreTypes(stores.Usable()...), config.WithCredentials(os.Getenv("CREDENTIALS_DIRECTORY"))}
}

func newLog(c config.Log, w io.Writer) *slog.Logger {
	var level slog.Level
	if level.UnmarshalText([]byte(c.Level)) != nil {
		level = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// leaveTimeout bounds the good-byes.
const leaveTimeout = 6 * time.Second

// serve runs the agent until a signal asks it to stop.
func serve(cfg *config.Config, path, name, bootID string, log *slog.Logger) error {
	// A reload that is asked for too early waits; by default the signal would kill.
	reloads := make(chan os.Signal, 1)
	signal.Notify(reloads, syscall.SIGHUP)
	defer signal.Stop(reloads)
	if err := cfg.NeedsCredentials(); err != nil {
		return err
	}
	if name == "" {
		hostname, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find the host's name: %w; --host gives it", err)
		}
		name = strings.ToLower(hostname)
	}
	host, err := haven.ParseHostID(name)
	if err != nil {
		return err
	}
	parts := agent.Real{
		Config: cfg, Host: host, BootIDFile: bootID, Version: version, Log: log.With("self", host),
		StoreChild: []string{"/proc/self/exe", storeChild}, FenceLauncher: []string{"/proc/self/exe", fenceLauncher},
	}
	deps, closeParts, err := parts.Open()
	if err != nil {
		return err
	}
	defer closeParts()
	a, err := agent.New(deps)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)

	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	var watchers sync.WaitGroup
	defer watchers.Wait()
	watching, unwatch := context.WithCancel(ctx)
	defer unwatch()
	watchers.Go(func() { watchShutdown(watching, a, log.With("self", host)) })
	reload := reloader{path: path, running: cfg, agent: a, log: log.With("self", host)}
	go reload.run(watching, reloads) // It is not waited for: the file system may hang.
	tellSystemd(log, daemon.SdNotifyReady)
	select {
	case err := <-ended:
		return err
	case sig := <-signals:
		signal.Stop(signals) // who asks twice does not want to wait
		unwatch()
		reason := a.Leaving()
		if reason == haven.LeaveNone {
			reason = leaveReason()
		}
		log.Info("stopping", "signal", sig.String(), "reason", reason)
		tellSystemd(log, daemon.SdNotifyStopping)
		bye, cancel := context.WithTimeout(ctx, leaveTimeout)
		defer cancel()
		if err := a.Leave(bye, reason); err != nil {
			log.Warn("not everybody was told of the leave", "error", err)
		}
		stop()
	}
	return <-ended
}

// watchShutdown has the cluster told as soon as this host begins to shut down,
// before anything on it is stopped, and again should it be called off.
func watchShutdown(ctx context.Context, a *agent.Agent, log *slog.Logger) {
	w := logind.Watcher{Log: log, Told: func(ctx context.Context, coming bool) {
		reason := haven.LeaveNone
		if coming {
			reason = haven.LeaveShutdown
		}
		if err := a.Announce(ctx, reason); err != nil {
			log.Warn("not everybody was told of the shutdown", "coming", coming, "error", err)
		}
	}}
	w.Run(ctx)
}

func tellSystemd(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("the service manager could not be told", "state", state, "error", err)
	}
}

// leaveReason tells a stop of the agent from a shutdown of the host.
func leaveReason() haven.LeaveReason {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return haven.LeaveStopped // no systemd to ask
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	// It exits with an error unless all is well; what it prints is what counts.
	out, err := exec.CommandContext(ctx, "systemctl", "is-system-running").Output()
	if err != nil && len(out) == 0 {
		return haven.LeaveStopped
	}
	if strings.TrimSpace(string(out)) == "stopping" {
		return haven.LeaveShutdown
	}
	return haven.LeaveStopped
}

// Haven-helper tells which VMs run on its host, beside the agent and without
// it, over HTTP and in a beat of its own on every store. Its wire format is that
// of CloudStack's KVM HA helper.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/config"
	"github.com/haven-ha/haven/internal/helper"
	"github.com/haven-ha/haven/internal/netx"
	"github.com/haven-ha/haven/internal/stores"
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/vmrestart/libvirt"
)

// version is set by the build.
var version = "dev"

// storeChild is the hidden argument of a store's child process.
const storeChild = "store-child"

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
	flags := flag.NewFlagSet("haven-helper", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", "/etc/haven/haven.yaml", "configuration `file` of the cluster")
	name := flags.String("host", "", "`name` of this host in the hosts section (default: its hostname)")
	bootID := flags.String("boot-id", "/proc/sys/kernel/random/boot_id", "`file` that names this boot")
	uri := flags.String("libvirt-uri", "", "libvirt driver to open (default: qemu:///system)")
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
		fmt.Fprintf(stderr, "haven-helper: %q: no arguments are expected\n", flags.Arg(0))
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
	// A reload that is asked for too early waits; by default the signal would kill.
	reloads := make(chan os.Signal, 1)
	signal.Notify(reloads, syscall.SIGHUP)
	defer signal.Stop(reloads)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := serve(ctx, cfg, place{*name, *bootID, *uri}, reloads, log); err != nil {
		log.Error("haven-helper failed", "error", err)
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

// place is what the command line says about the host.
type place struct{ name, bootFile, uri string }

// serve runs the web server and the beats until ctx ends, or until the web
// server fails.
func serve(ctx context.Context, cfg *config.Config, at place, reloads <-chan os.Signal, log *slog.Logger) error {
	if err := cfg.NeedsCredentials(); err != nil {
		return err
	}
	host, err := self(cfg, at.name)
	if err != nil {
		return err
	}
	boot, err := readBootID(at.bootFile)
	if err != nil {
		return err
	}
	log = log.With("self", host)
	virt := libvirt.New(libvirt.Options{Socket: cfg.Libvirt.Socket, URI: at.uri, Host: host, Boot: boot, Net: netx.Real{}, Log: log})
	defer virt.Close()
	certs, err := loadCertificates(cfg, log)
	if err != nil {
		return err
	}
	password := config.NewSecrets(log).File(cfg.Helper.PasswordFile)
	web, err := newWeb(cfg, certs, virt, password, log)
	if err != nil {
		return err
	}
	beats, err := newBeats(cfg, host, boot, virt, log)
	if err != nil {
		return err
	}
	defer beats.close()

	// Parts have a context of their own, so that beats can say farewell first.
	parts, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() { certs.renew(parts) })
	running.Go(func() { beats.run(parts) })
	go reloadAt(parts, reloads, web, password, certs, log) // It is not waited for: the file system may hang.
	ended := make(chan error, 1)
	running.Go(func() {
		ended <- web.Run(parts, func(addr string) {
			log.Info("answering", "address", addr, "tls", !cfg.Helper.Plain, "stores", len(cfg.Heartbeat.Stores), "version", version)
			tellSystemd(log, daemon.SdNotifyReady)
		})
	})
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		log.Info("stopping")
		tellSystemd(log, daemon.SdNotifyStopping)
		beats.farewell()
		stop()
		return <-ended
	}
}

// self finds out which host of the configuration this is.
func self(cfg *config.Config, name string) (haven.HostID, error) {
	if name == "" {
		hostname, err := os.Hostname()
		if err != nil {
			return "", fmt.Errorf("find the host's name: %w; --host gives it", err)
		}
		name = strings.ToLower(hostname)
	}
	id, err := haven.ParseHostID(name)
	if err != nil {
		return "", err
	}
	host, ok := cfg.Host(id)
	switch {
	case !ok:
		return "", fmt.Errorf("host %q is not in the hosts section of the configuration; --host gives another name", id)
	case host.Role == haven.RoleWitness:
		return "", fmt.Errorf("host %q is a witness: it has no VMs to tell of", id)
	}
	return id, nil
}

func readBootID(path string) (haven.BootID, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	id := strings.TrimSpace(string(data))
	if id == "" || len(id) > 64 {
		return "", fmt.Errorf("read boot id: %s holds %d octets, want 1 to 64", path, len(id))
	}
	return haven.BootID(id), nil
}

func tellSystemd(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("the service manager could not be told", "state", state, "error", err)
	}
}

// newWeb makes the web server. Its neighbours are the helpers of the configured
// hosts and nobody else.
func newWeb(cfg *config.Config, certs *certificates, vms helper.Lister, password *config.SecretFile, log *slog.Logger) (*helper.Server, error) {
	o := helper.Options{
		Address: fmt.Sprintf(":%d", cfg.Helper.Port), Username: cfg.Helper.Username,
		VMs: vms, Unit: helper.ShowUnit, Net: netx.Real{}, Log: log,
	}
	if cfg.Helper.PasswordFile != "" {
		var err error
		if o.Password, err = password.Text(); err != nil {
			return nil, fmt.Errorf("load password: %w", err)
		}
	}
	for _, id := range cfg.Hypervisors() {
		h, _ := cfg.Host(id)
		o.Neighbours = append(o.Neighbours, addrPort(h.Address, cfg.Helper.Port))
	}
	o.TLS = certs.server()
	o.Client = helper.NewClient(netx.Real{}, certs.client(), o.Username, o.Password)
	return helper.New(o)
}

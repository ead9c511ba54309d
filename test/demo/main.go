// Demo is a cluster of five hosts on one machine, to be broken by hand on a
// page, or by a script. It needs no root, no KVM and no network but loopback.
//
// Everything that Haven is made of is real: agents with gossip, Raft, TLS, HTTP
// and beats on a directory, and IPMI over UDP. The machines, their VM managers
// and their boards are in this process, so that power can be cut.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"syscall"

	"github.com/haven-ha/haven/storagebeat"
)

// storeChild is the hidden argument of a store's child process.
const storeChild = "store-child"

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == storeChild {
		os.Exit(storagebeat.ChildMain(os.Args[2:], os.Stdin, os.Stdout))
	}
	// Store children ignore these signals. A second one ends this process at
	// once, and them with it.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// options are what the command line says.
type options struct {
	hosts, vms int
	dir        string
	listen     string
	script     bool
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.hosts, "hosts", 5, "`number` of hosts, 3 to 16")
	flags.IntVar(&o.vms, "vms", 10, "`number` of VMs, 2 to 200")
	flags.StringVar(&o.dir, "dir", "", "`directory` for everything that is written (default: a temporary one, removed at the end)")
	flags.StringVar(&o.listen, "listen", "", "loopback `address:port` of the page (default: "+usualListen+", or any free port)")
	flags.BoolVar(&o.script, "script", false, "play power cuts, print their time lines, and exit 0 only if every VM runs again exactly once")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	var err error
	switch {
	case flags.NArg() > 0:
		err = fmt.Errorf("%q: no arguments are expected", flags.Arg(0))
	case o.hosts < 3 || o.hosts > 16:
		err = errors.New("--hosts: want 3 to 16; with fewer, no majority is left when one dies")
	case o.vms < 2 || o.vms > 200:
		err = errors.New("--vms: want 2 to 200; so that there is one on a host that is not the master")
	case o.listen != "" && !loopback(o.listen):
		err = fmt.Errorf("--listen %s: want a loopback address and a port; the page can cut power and asks for no password", o.listen)
	}
	if err != nil {
		fmt.Fprintln(stderr, "demo:", err)
	}
	return o, err
}

func loopback(addr string) bool {
	ap, err := netip.ParseAddrPort(addr)
	return err == nil && ap.Addr().IsLoopback()
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	}
	if err := play(ctx, o, stdout); err != nil {
		fmt.Fprintln(stderr, "demo:", err)
		return exitFailed
	}
	return exitOK
}

// play runs the cluster and what was asked for, and cleans up.
func play(ctx context.Context, o options, out io.Writer) (err error) {
	dir, remove, err := workDir(o.dir)
	if err != nil {
		return err
	}
	// After a failure the logs are worth more than a tidy disk.
	defer func() {
		if err == nil || ctx.Err() != nil {
			err = errors.Join(err, remove())
		} else {
			err = fmt.Errorf("%w\nthe agents' logs are in %s", err, dir)
		}
	}()
	var listener net.Listener
	if !o.script {
		if listener, err = listen(o.listen); err != nil {
			return err
		}
	}
	d, err := newDemo(o, dir)
	if err != nil {
		if listener != nil {
			err = errors.Join(err, listener.Close())
		}
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	fmt.Fprint(out, d.whatIsReal())
	if o.script {
		return d.script(ctx, out)
	}
	return d.serve(ctx, listener, out)
}

// workDir makes the directory that everything is written to.
func workDir(dir string) (path string, remove func() error, err error) {
	if dir != "" {
		return dir, func() error { return nil }, os.MkdirAll(dir, 0o700)
	}
	if dir, err = os.MkdirTemp("", "haven-demo-"); err != nil {
		return "", nil, err
	}
	return dir, func() error { return os.RemoveAll(dir) }, nil
}

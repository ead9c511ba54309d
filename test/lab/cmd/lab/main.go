// Command lab builds a lab of real parts for people to play with, and breaks it
// on request:
//
//	lab [-dir DIR] up [-hosts 3] [-bmc sim|go] [-nolocks] [-twostores] [-watchdogs] [-feeds 0]
//	lab down | status
//	lab power HOST on|off|mains|restore|shutdown
//	lab hang HOST | unhang HOST
//	lab cut HOST mgmt|stor|oob|in|out | heal HOST mgmt|stor|oob|in|out
//	lab lose HOST PERCENT | flap HOST PERIOD DURING
//	lab partition HOST... | whole       whole ends all partitions and one-way cuts
//	lab switch off|on
//	lab oneway FROM TO cut|heal
//	lab storage|storage2 HOST|all ok|hang|eio|estale|ro|nospc|slow [DELAY]
//	lab bmc HOST kill|unplug|hang|heal|slow|ignores|refuses [DELAY]
//	lab outlet HOST a|b on|off|stick|free
//	lab guest NAME [HOST]              make it, and start it on HOST
//	lab program HOST NAME kill|pause|resume|hold|stop|start
//	lab exec HOST COMMAND...
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/haven-ha/haven/test/lab"
)

const defaultDir = "/tmp/haven-lab"

var errUsage = errors.New("see the usage with -h")

func main() {
	lab.RunChild()
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("lab", flag.ExitOnError)
	dir := flags.String("dir", defaultDir, "state directory")
	flags.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: lab [-dir DIR] up|down|status|power|hang|unhang|cut|heal|lose|flap|partition|whole|switch|oneway|storage|storage2|bmc|outlet|guest|program|exec …")
		flags.PrintDefaults()
	}
	_ = flags.Parse(os.Args[1:]) // exits on error
	if flags.NArg() == 0 {
		flags.Usage()
		return 2
	}
	err := do(ctx, *dir, flags.Arg(0), flags.Args()[1:])
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		flags.Usage()
		return 2
	default:
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
}

func do(ctx context.Context, dir, verb string, args []string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	switch verb {
	case "up":
		return up(ctx, dir, log, args)
	case "down":
		return lab.Down(ctx, dir)
	}
	l, err := lab.Open(dir, log)
	if err != nil {
		return err
	}
	switch {
	case verb == "status":
		return status(ctx, l)
	case verb == "whole":
		return l.HealCuts(ctx)
	case len(args) == 0:
		return errUsage
	case strings.HasPrefix(verb, "storage") && args[0] == "all":
		return l.Each(func(h *lab.Host) error { return breakHost(ctx, h, verb, args[1:]) })
	case verb == "switch" && args[0] == "off":
		return l.SwitchOff()
	case verb == "switch" && args[0] == "on":
		return l.SwitchOn(ctx)
	case verb == "partition":
		return partition(ctx, l, args)
	case verb == "guest":
		return guest(ctx, l, args)
	}
	h, err := l.HostNamed(args[0])
	if err != nil {
		return err
	}
	if verb == "oneway" {
		return oneWay(ctx, l, h, args[1:])
	}
	return breakHost(ctx, h, verb, args[1:])
}

func up(ctx context.Context, dir string, log *slog.Logger, args []string) error {
	flags := flag.NewFlagSet("up", flag.ExitOnError)
	hosts := flags.Int("hosts", 3, "number of hosts")
	bmc := flags.String("bmc", string(lab.BMCSim), "BMC firmware, sim or go")
	noLocks := flags.Bool("nolocks", false, "keep file locks to each host")
	twoStores := flags.Bool("twostores", false, "give hosts a second shared storage")
	watchdogs := flags.Bool("watchdogs", false, "give each host a watchdog device")
	feeds := flags.Int("feeds", 0, "number of power supplies of each host whose outlets can be switched, 0 to 2")
	_ = flags.Parse(args) // exits on error
	l, err := lab.New(ctx, lab.Config{
		Dir: dir, Hosts: *hosts, BMC: lab.BMCKind(*bmc), NoLocks: *noLocks, TwoStores: *twoStores, Watchdogs: *watchdogs, Feeds: *feeds, Persist: true, Logger: log,
	})
	if err != nil {
		return err
	}
	return status(ctx, l)
}

func status(ctx context.Context, l *lab.Lab) error {
	for _, h := range l.Hosts() {
		on, err := h.PowerIsOn()
		if err != nil {
			return err
		}
		store, err := h.StorageStatus(ctx)
		if err != nil {
			return err
		}
		fmt.Printf("%s  on=%-5v  mgmt %s  bmc %s (%s/%s)  storage %s, %d waiting\n",
			h.Name, on, h.Address, h.BMCAddress, h.BMCUser, h.BMCPassword, store.Mode, store.Held)
		programs, err := h.Programs(ctx)
		if err != nil {
			continue // off or hung
		}
		for _, p := range programs {
			fmt.Printf("    %-16s %-8s pid %-5d starts %d  %s\n", p.Name, p.State, p.PID, p.Starts, p.LastExit)
		}
	}
	guests, err := l.Guests()
	for _, g := range guests {
		j, err := g.Journal()
		fmt.Printf("%s  seq %d, boots %d, second writers %d, error %v\n", g.Name, j.Seq, j.Boots, j.SecondWriters(), err)
	}
	return err
}

func breakHost(ctx context.Context, h *lab.Host, verb string, args []string) error {
	switch verb {
	case "hang":
		return h.Hang(ctx)
	case "unhang":
		return h.Unhang(ctx)
	case "exec":
		return h.Interact(ctx, args...)
	case "storage":
		return storage(ctx, h, args)
	case "storage2":
		return h.SecondStorage(ctx, lab.StorageMode(strings.Join(args, " ")))
	case "bmc":
		return bmc(ctx, h, args)
	case "outlet":
		return outlet(ctx, h, args)
	case "lose":
		return lose(ctx, h, args)
	case "flap":
		return flap(ctx, h, args)
	}
	verbs := map[string]func() error{
		"power on":       func() error { return h.PowerOn(ctx) },
		"power off":      func() error { return h.CutPower(ctx) },
		"power mains":    func() error { return h.CutMains(ctx) },
		"power restore":  func() error { return h.RestoreMains(ctx) },
		"power shutdown": h.Shutdown,
		"cut mgmt":       h.CutMgmt, "heal mgmt": func() error { return h.HealMgmt(ctx) },
		"cut stor": h.CutStor, "heal stor": func() error { return h.HealStor(ctx) },
		"cut in": func() error { return h.Deafen(ctx) }, "heal in": func() error { return h.Undeafen(ctx) },
		"cut out": func() error { return h.Mute(ctx) }, "heal out": func() error { return h.Unmute(ctx) },
		"cut oob": h.CutOOB, "heal oob": func() error { return h.HealOOB(ctx) },
	}
	if f, ok := verbs[strings.Join(append([]string{verb}, args...), " ")]; ok {
		return f()
	}
	if verb == "program" && len(args) == 2 {
		programs := map[string]func(context.Context, string) error{
			"kill": h.Kill, "pause": h.Pause, "resume": h.Resume, "hold": h.Hold, "stop": h.Stop, "start": h.Start,
		}
		if f, ok := programs[args[1]]; ok {
			return f(ctx, args[0])
		}
	}
	return errUsage
}

func storage(ctx context.Context, h *lab.Host, args []string) error {
	return h.Storage(ctx, lab.StorageMode(strings.Join(args, " ")))
}

func bmc(ctx context.Context, h *lab.Host, args []string) error {
	switch strings.Join(args[:min(1, len(args))], "") {
	case "kill":
		return h.KillBMC(ctx)
	case "unplug":
		return h.UnplugBMC(ctx)
	case "hang":
		return h.HangBMC(ctx)
	case "heal":
		return h.HealBMC(ctx)
	case "ignores", "refuses":
		return h.SulkBMC(lab.BMCMood(args[0]))
	case "slow":
		if len(args) != 2 {
			return errUsage
		}
		d, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		return h.SlowBMC(d)
	}
	return errUsage
}

func outlet(ctx context.Context, h *lab.Host, args []string) error {
	if len(args) != 2 {
		return errUsage
	}
	switch feed := args[0]; args[1] {
	case "on", "off":
		return h.SwitchOutlet(ctx, feed, args[1] == "on")
	case "stick", "free":
		return h.StickOutlet(feed, args[1] == "stick")
	}
	return errUsage
}

func partition(ctx context.Context, l *lab.Lab, args []string) error {
	var side []*lab.Host
	for _, name := range args {
		h, err := l.HostNamed(name)
		if err != nil {
			return err
		}
		side = append(side, h)
	}
	return l.Partition(ctx, side...)
}

func lose(ctx context.Context, h *lab.Host, args []string) error {
	if len(args) != 1 {
		return errUsage
	}
	percent, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	return h.Lose(ctx, percent)
}

func flap(ctx context.Context, h *lab.Host, args []string) error {
	if len(args) != 2 {
		return errUsage
	}
	period, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	during, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	return h.Flap(ctx, period, during)
}

func oneWay(ctx context.Context, l *lab.Lab, from *lab.Host, args []string) error {
	if len(args) != 2 {
		return errUsage
	}
	to, err := l.HostNamed(args[0])
	if err != nil {
		return err
	}
	switch args[1] {
	case "cut":
		return l.CutOneWay(ctx, from, to)
	case "heal":
		return l.HealOneWay(ctx, from, to)
	}
	return errUsage
}

func guest(ctx context.Context, l *lab.Lab, args []string) error {
	g, err := l.Guest(args[0])
	if errors.Is(err, os.ErrNotExist) {
		g, err = l.NewGuest(lab.GuestConfig{Name: args[0]})
	}
	if err != nil || len(args) == 1 {
		return err
	}
	h, err := l.HostNamed(args[1])
	if err != nil {
		return err
	}
	if err := g.Define(ctx, h); err != nil {
		return err
	}
	return g.Start(ctx, h)
}

// Package command is the fence driver for everything that comes with a program:
// switched power strips, blade chassis, cloud interfaces, a script of one's own,
// and the fence agents that other cluster software has used for twenty years.
//
// A program is run once for each call, in a process group of its own that is
// killed as a whole when its time is up. Its exit code is heard; what it prints
// is kept only to explain a failure, shortened, and without the secrets that it
// was given. Success of a power command proves nothing (P2). A device whose
// program has no word for "status" can be commanded and proves nothing at all.
package command

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
)

// Style is how a program is told what to do.
type Style string

// The styles.
const (
	// StyleArguments fills in a template of arguments.
	StyleArguments Style = "arguments"
	// StyleAgent writes name=value lines to standard input, as fence agents
	// want it. Nothing secret is on the command line.
	StyleAgent Style = "fence-agents"
)

// Action is one of the words that a program may know.
type Action string

// The actions. Every word but status is a command; test must change nothing.
const (
	Off      Action = "off"
	On       Action = "on"
	Blink    Action = "blink"
	BlinkOff Action = "blink_off" // puts the light out
	Status   Action = "status"
	Test     Action = "test"
	// describe has a fence agent say what it is. It asks no device.
	describe Action = "metadata"
)

// Limits of a program's runs.
const (
	defaultTimeout = 20 * time.Second
	timeoutMax     = 2 * time.Minute
	argumentsMax   = 64
	argumentMax    = 4096 // bytes
)

// Config describes one device.
type Config struct {
	Style Style
	// Launcher starts programs: a command that ends in Launch, with the program and
	// its arguments after it.
	Launcher []string
	// Program is the absolute path of the program.
	Program string
	// Arguments is the template of StyleArguments. {action}, {address}, {host},
	// {username} and {password_file} are filled in; an argument is never split.
	// A password itself cannot be put there: every user of the machine can read
	// the arguments of all processes.
	Arguments []string
	// Options are further name=value pairs of StyleAgent, such as plug=3.
	Options map[string]string
	// Words says how the program calls each action. One that is missing cannot
	// be done. By default, fence agents are told off, on and status (and monitor
	// for test), other programs off, on and status.
	Words map[Action]string
	// ExitOn and ExitOff are the exit codes of status: 0 and 2 by default, as
	// fence agents have them. Any other code means unknown.
	ExitOn, ExitOff int

	Host         haven.HostID
	Address      string // as the program wants it; may be empty
	Username     string
	PasswordFile string
	// Password is asked for each run of StyleAgent, and to keep it out of what
	// is told; nil when the device has none.
	Password func() (string, error)
	// Storage says that off cuts the host off its storage, and proves no more.
	Storage bool
	// Timeout bounds one run, by default 20 s, at most 2 min.
	Timeout time.Duration
}

// Driver is a fencing.Driver for one device.
type Driver struct {
	cfg   Config
	parts parts
	// slot is taken while a process of this device is there: one that the kernel
	// does not let go is never joined by a second one (P8).
	slot chan struct{}
	// fabric says that the fence agent said of itself that it cuts storage, and Config
	// does not: its off is no word about power (P2).
	fabric atomic.Bool
}

var (
	_ fencing.Driver = (*Driver)(nil)
	_ fencing.Lamp   = (*Driver)(nil)
)

// New checks the configuration and makes a driver. It runs nothing.
func New(cfg Config) (*Driver, error) {
	if cfg.Style == "" {
		cfg.Style = StyleArguments
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.ExitOn == 0 && cfg.ExitOff == 0 {
		cfg.ExitOff = 2
	}
	if cfg.Words == nil {
		cfg.Words = map[Action]string{Off: "off", On: "on", Status: "status"}
		if cfg.Style == StyleAgent {
			cfg.Words[Test] = "monitor"
		}
	}
	switch {
	case cfg.Style != StyleArguments && cfg.Style != StyleAgent:
		return nil, fmt.Errorf("command: style %q: want %s or %s", cfg.Style, StyleArguments, StyleAgent)
	case len(cfg.Launcher) == 0:
		return nil, errors.New("command: a launcher is needed")
	case !filepath.IsAbs(cfg.Program):
		return nil, fmt.Errorf("command: program %q: want an absolute path", cfg.Program)
	case cfg.Timeout < time.Second || cfg.Timeout > timeoutMax:
		return nil, fmt.Errorf("command: timeout %s: want 1 s to %s", cfg.Timeout, timeoutMax)
	case cfg.ExitOn == cfg.ExitOff || min(cfg.ExitOn, cfg.ExitOff) < 0 || max(cfg.ExitOn, cfg.ExitOff) > 125:
		return nil, fmt.Errorf("command: exit codes %d for on and %d for off: want two different ones from 0 to 125", cfg.ExitOn, cfg.ExitOff)
	case cfg.Words[Off] == "" && cfg.Words[Blink] == "":
		return nil, errors.New("command: the program has no word for off: it cannot fence")
	}
	d := &Driver{cfg: cfg, parts: realParts(), slot: make(chan struct{}, 1)}
	return d, errors.Join(d.checkTemplate(), d.checkOptions())
}

// Target tells what the program is told to act on. Two devices of one target are
// one device: then a power-off meant for one host would hit another.
func (d *Driver) Target() string {
	parts := []string{d.cfg.Program}
	if d.cfg.Style == StyleAgent {
		parts = append(parts, d.cfg.Address)
		for _, name := range slices.Sorted(maps.Keys(d.cfg.Options)) {
			if !secretOption(name) { // It is told where two devices are one.
				parts = append(parts, name+"="+d.cfg.Options[name])
			}
		}
		return strings.Join(parts, " ")
	}
	for _, arg := range d.cfg.Arguments {
		filled, _ := fill(arg, d.places("")) // New has tried it
		parts = append(parts, filled)
	}
	return strings.Join(parts, " ")
}

// secretOption says whether an option of a fence agent is a secret: the password of
// SNMP's privacy, or its community.
func secretOption(name string) bool {
	return strings.Contains(name, "passw") && !strings.HasSuffix(name, "_script") || strings.Contains(name, "community")
}

// checkTemplate refuses a template that cannot tell one action from another, or
// that has a place for something unknown.
func (d *Driver) checkTemplate() error {
	if d.cfg.Style == StyleAgent {
		if len(d.cfg.Arguments) > 0 {
			return errors.New("command: a fence agent gets its options on standard input, not as arguments")
		}
		return nil
	}
	if len(d.cfg.Options) > 0 {
		return errors.New("command: options are for fence agents; other programs get arguments")
	}
	if len(d.cfg.Arguments) > argumentsMax {
		return fmt.Errorf("command: %d arguments: want at most %d", len(d.cfg.Arguments), argumentsMax)
	}
	acts := false
	for _, arg := range d.cfg.Arguments {
		acts = acts || strings.Contains(arg, "{action}")
		if _, err := fill(arg, d.places("")); err != nil {
			return fmt.Errorf("command: argument %q: %w", arg, err)
		}
		if len(arg) > argumentMax || strings.ContainsRune(arg, 0) {
			return fmt.Errorf("command: want arguments of at most %d bytes without zero bytes", argumentMax)
		}
	}
	if !acts {
		return errors.New("command: no argument has {action}: the program could not tell off from status")
	}
	return nil
}

// checkOptions refuses what would break the lines of the agents' protocol, and
// names that the driver itself sets.
func (d *Driver) checkOptions() error {
	own := []string{"action", "username", "login", "password", "passwd", "ip", "ipaddr"}
	for _, name := range slices.Sorted(maps.Keys(d.cfg.Options)) {
		switch {
		case name == "" || strings.ContainsAny(name, "=\n\x00 ") || strings.ContainsAny(d.cfg.Options[name], "\n\x00"):
			return fmt.Errorf("command: option %q: want a name without blanks, and both on one line", name)
		case slices.Contains(own, name):
			return fmt.Errorf("command: option %q is set by the driver", name)
		}
	}
	for a, w := range d.cfg.Words {
		if strings.ContainsAny(w, "\n\x00") {
			return fmt.Errorf("command: the word for %s: want one line", a)
		}
	}
	return nil
}

// Power asks for the status. What a program without a word for it controls stays
// unknown for ever.
func (d *Driver) Power(ctx context.Context) (fencing.Reading, error) {
	r := fencing.Reading{State: haven.PowerUnknown, Start: time.Now()}
	if d.cfg.Words[Status] == "" {
		r.Finish = time.Now()
		return r, fmt.Errorf("%w: %s has no word for status, so it proves nothing", fencing.ErrNoState, d.cfg.Program)
	}
	if d.fabric.Load() {
		r.Finish = time.Now()
		return r, fmt.Errorf("%w: %w", fencing.ErrUnsupported, d.cutsStorage())
	}
	code, err := d.run(ctx, Status)
	r.Finish = time.Now()
	switch {
	case err != nil && code != d.cfg.ExitOn && code != d.cfg.ExitOff:
		return r, fmt.Errorf("ask %s for the status: %w", d.cfg.Program, err)
	case code == d.cfg.ExitOn:
		r.State = haven.PowerOn
	default:
		r.State = haven.PowerOff
	}
	return r, nil
}

// Set runs the program for an action. The permit is asked right before it starts.
func (d *Driver) Set(ctx context.Context, action haven.FenceAction, permit fencing.Permit) error {
	a, known := map[haven.FenceAction]Action{haven.ActionOff: Off, haven.ActionOn: On, haven.ActionBlink: Blink}[action]
	if !known {
		return fmt.Errorf("%w: %s has no word for %s", fencing.ErrUnsupported, d.cfg.Program, action)
	}
	return d.command(ctx, a, permit)
}

// Light puts the light out when length is zero, by the word BlinkOff. Any other
// length is ErrUnsupported: there is no way to tell a program how long.
func (d *Driver) Light(ctx context.Context, length time.Duration, permit fencing.Permit) error {
	if length != 0 {
		return fmt.Errorf("%w: a light for %s: %s is not told for how long; have it blink without a time", fencing.ErrUnsupported, length, d.cfg.Program)
	}
	return d.command(ctx, BlinkOff, permit)
}

func (d *Driver) command(ctx context.Context, a Action, permit fencing.Permit) error {
	if d.cfg.Words[a] == "" {
		return fmt.Errorf("%w: %s has no word for %s", fencing.ErrUnsupported, d.cfg.Program, a)
	}
	if err := permit.Check(ctx); err != nil {
		return err
	}
	if _, err := d.run(ctx, a); err != nil {
		return fmt.Errorf("run %s for %s: %w", d.cfg.Program, a, err)
	}
	return nil
}

// cutsStorage is what is said of a fence agent that is not what it is taken for.
func (d *Driver) cutsStorage() error {
	return fmt.Errorf("%s says of itself that it cuts hosts off their storage, which leaves them running: say proves: storage", d.cfg.Program)
}

// fabricMark is how agents that cut storage, of the resource agents' interface, say so
// in their metadata: a host's access is given back to it when it starts.
var fabricMark = regexp.MustCompile(`<action\s[^>]*\bname="on"[^>]*\bautomatic="1"`)

// Examine has a fence agent say what it is, and runs the program's harmless test,
// where it has one.
func (d *Driver) Examine(ctx context.Context) error {
	if d.cfg.Style == StyleAgent && !d.cfg.Storage {
		// One that does not describe itself says nothing against it.
		if code, out, _ := d.output(ctx, describe); code == 0 {
			d.fabric.Store(fabricMark.Match(out.kept()))
		}
		if d.fabric.Load() {
			return fmt.Errorf("%w: %w", fencing.ErrUnfit, d.cutsStorage())
		}
	}
	if d.cfg.Words[Test] == "" {
		return nil
	}
	if code, err := d.run(ctx, Test); err != nil && code > 0 {
		return fmt.Errorf("%w: run %s for its test: %w", fencing.ErrUnfit, d.cfg.Program, err)
	} else if err != nil {
		return fmt.Errorf("run %s for its test: %w", d.cfg.Program, err) // it did not end by itself
	}
	return nil
}

// Identity is empty: a program cannot tell which board it talks to.
func (d *Driver) Identity(context.Context) (fencing.GUID, error) { return "", nil }

// places are what the template's places are filled with.
func (d *Driver) places(a Action) map[string]string {
	return map[string]string{
		"action": d.cfg.Words[a], "address": d.cfg.Address, "host": string(d.cfg.Host),
		"username": d.cfg.Username, "password_file": d.cfg.PasswordFile,
	}
}

// fill puts values into the places of one argument. A doubled brace is a brace.
func fill(arg string, places map[string]string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(arg); i++ {
		c := arg[i]
		if c != '{' && c != '}' {
			b.WriteByte(c)
			continue
		}
		if i+1 < len(arg) && arg[i+1] == c {
			b.WriteByte(c)
			i++
			continue
		}
		end := strings.IndexByte(arg[i:], '}')
		if c == '}' || end < 0 {
			return "", errors.New("a brace stands alone; write it twice if it is meant")
		}
		name := arg[i+1 : i+end]
		value, ok := places[name]
		if !ok {
			return "", fmt.Errorf("unknown place {%s}: want {%s}", name, strings.Join(slices.Sorted(maps.Keys(places)), "}, {"))
		}
		b.WriteString(value)
		i += end
	}
	return b.String(), nil
}

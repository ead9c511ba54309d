package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/redact"
)

// Bounds of what is kept of a program.
const (
	outputMax = 16 << 10 // bytes that are kept; the rest is thrown away
	toldMax   = 300      // bytes of it that an error tells
	// escapedMost is how many times longer a secret may be when it is escaped.
	escapedMost = 6
	// reapFor is how long a killed program is waited for. One that the kernel does
	// not let go, in a system call on dead storage, is left behind, and the device
	// is busy until it is gone.
	reapFor = 2 * time.Second
)

// run runs the program for one action and returns its exit code, and an error for
// any but zero. The code is -1 when there is none.
func (d *Driver) run(ctx context.Context, a Action) (int, error) {
	code, _, err := d.output(ctx, a)
	return code, err
}

// output is run with what the program printed.
func (d *Driver) output(ctx context.Context, a Action) (int, *tail, error) {
	out := &tail{}
	code, err := d.runInto(ctx, a, out)
	return code, out, err
}

func (d *Driver) runInto(ctx context.Context, a Action, out *tail) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	args, input, secrets, err := d.prepare(a)
	if err != nil {
		return -1, err
	}
	launcher := d.cfg.Launcher
	cmd := exec.Command(launcher[0], slices.Concat(launcher[1:], []string{d.cfg.Program}, args)...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// What the program left running in the background may hold its output open.
	cmd.WaitDelay = reapFor
	select {
	case d.slot <- struct{}{}:
	default:
		return -1, fmt.Errorf("%w: its last run does not end", fencing.ErrBusy)
	}
	p := &process{cmd: cmd, parts: d.parts}
	ended := make(chan error, 1)
	go func() {
		err := p.run()
		<-d.slot
		ended <- err
	}()
	select {
	case err = <-ended:
	case <-ctx.Done():
		p.stop()
		gone := "killed"
		select {
		case <-ended:
		case <-time.After(2 * reapFor):
			gone = "killed, and it does not go"
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return -1, fmt.Errorf("%s: %w", gone, ctx.Err())
		}
		return -1, fmt.Errorf("%w: not done in time, %s", fencing.ErrUnreachable, gone)
	}
	p.stop() // what it left behind
	var exit *exec.ExitError
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay):
		return 0, nil
	case !errors.As(err, &exit):
		return -1, fmt.Errorf("%w%s", err, out.told(secrets))
	}
	return exit.ExitCode(), fmt.Errorf("%w%s", exit, out.told(secrets))
}

// prepare makes the arguments and the standard input of one run, and lists what
// must not be told.
func (d *Driver) prepare(a Action) (args []string, input string, secrets []string, err error) {
	password := ""
	if d.cfg.Password != nil {
		if password, err = d.cfg.Password(); err != nil {
			return nil, "", nil, fmt.Errorf("get the password: %w", err)
		}
		secrets = append(secrets, password)
	}
	for name, value := range d.cfg.Options {
		if secretOption(name) {
			secrets = append(secrets, value)
		}
	}
	if d.cfg.Style == StyleAgent {
		input, err = d.lines(a, password)
		return nil, input, secrets, err
	}
	for _, arg := range d.cfg.Arguments {
		filled, err := fill(arg, d.places(a))
		if err != nil {
			return nil, "", nil, err
		}
		args = append(args, filled)
	}
	return args, "", secrets, nil
}

// lines is what a fence agent reads: name=value lines, in the names that all
// agents have understood since the first ones, beside which newer agents have
// others for the same things.
func (d *Driver) lines(a Action, password string) (string, error) {
	pairs := maps.Clone(d.cfg.Options)
	if pairs == nil {
		pairs = map[string]string{}
	}
	pairs["action"] = d.cfg.Words[a]
	if a == describe {
		return "action=" + string(describe) + "\n", nil // It needs nothing, least of all a password.
	}
	for name, value := range map[string]string{"ipaddr": d.cfg.Address, "login": d.cfg.Username, "passwd": password} {
		if strings.ContainsAny(value, "\n\x00") {
			return "", fmt.Errorf("the value of %s has more than one line", name)
		}
		if value != "" {
			pairs[name] = value
		}
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(pairs)) {
		fmt.Fprintf(&b, "%s=%s\n", name, pairs[name])
	}
	return b.String(), nil
}

// tail keeps the last part of what a program prints.
type tail struct {
	mu   sync.Mutex
	data []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, p...)
	if over := len(t.data) - outputMax; over > 0 {
		t.data = append(t.data[:0], t.data[over:]...)
	}
	return len(p), nil
}

// kept returns what was kept.
func (t *tail) kept() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.data)
}

// told returns the last lines for an error, in one line of printable text, without
// the secrets. A secret that was cut in two at the beginning of what was kept is
// not found any more, so the beginning is thrown away first: as much as the longest
// way to write one takes.
func (t *tail) told(secrets []string) string {
	data := t.kept()
	if len(data) >= outputMax {
		cut := 0
		for _, s := range secrets {
			cut = max(cut, escapedMost*len(s))
		}
		data = data[min(cut, len(data)):]
	}
	text := redact.Text(string(data), secrets...)
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '�' {
			return ' '
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > toldMax {
		text = "…" + strings.ToValidUTF8(text[len(text)-toldMax:], "")
	}
	if text == "" {
		return ""
	}
	return ": " + text
}

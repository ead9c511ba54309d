package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
)

// shell is a program of one line of shell: $1 is the action.
func shell(t *testing.T, script string, change func(*Config)) *Driver {
	t.Helper()
	cfg := Config{Launcher: launcher(), Program: "/bin/sh", Arguments: []string{"-c", strings.NewReplacer("{", "{{", "}", "}}").Replace(script), "sh", "{action}"}}
	if change != nil {
		change(&cfg)
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestStatus guards P2 and P5: only the two codes that were agreed on say
// anything; everything else is unknown.
func TestStatus(t *testing.T) {
	tests := []struct {
		name   string
		script string
		change func(*Config)
		want   haven.PowerState
		err    string
	}{
		{"on", "exit 0", nil, haven.PowerOn, ""},
		{"off", "exit 2", nil, haven.PowerOff, ""},
		{"failed", "echo cannot connect >&2; exit 1", nil, haven.PowerUnknown, "exit status 1: cannot connect"},
		{"killed", "kill -9 $$", nil, haven.PowerUnknown, "signal: killed"},
		{"own codes, on", "exit 7", func(c *Config) { c.ExitOn, c.ExitOff = 7, 0 }, haven.PowerOn, ""},
		{"own codes, off", "exit 0", func(c *Config) { c.ExitOn, c.ExitOff = 7, 0 }, haven.PowerOff, ""},
		{"own codes, failed", "exit 2", func(c *Config) { c.ExitOn, c.ExitOff = 7, 0 }, haven.PowerUnknown, "exit status 2"},
		{"own word", `[ "$1" = query ] && exit 2`, func(c *Config) { c.Words = map[Action]string{Off: "kill", Status: "query"} }, haven.PowerOff, ""},
		{"no word for it", "exit 2", func(c *Config) { c.Words = map[Action]string{Off: "off"} }, haven.PowerUnknown, "has no word for status"},
		{"no such program", "", func(c *Config) { c.Program = "/nonexistent/program" }, haven.PowerUnknown, "no such file"},
		{"a child that holds the output", "sleep 600 & exit 2", nil, haven.PowerOff, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := shell(t, tt.script, tt.change).Power(t.Context())
			if r.State != tt.want || r.Start.IsZero() || r.Finish.Before(r.Start) {
				t.Errorf("%s, read from %s to %s, want %s", r.State, r.Start, r.Finish, tt.want)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want one with %q", err, tt.err)
			}
		})
	}
}

// TestSet guards P3: nothing runs without the permit, and only what has a word.
func TestSet(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	d := shell(t, `echo "$1" >>`+mark, func(c *Config) { c.Words = map[Action]string{Off: "outlet-off", Blink: "led"} })
	no := errors.New("a newer master leads")
	if err := d.Set(t.Context(), haven.ActionOff, func(context.Context) error { return no }); !errors.Is(err, fencing.ErrNotPermitted) {
		t.Errorf("without a permit: %v", err)
	}
	if err := d.Set(t.Context(), haven.ActionOn, nil); !errors.Is(err, fencing.ErrUnsupported) {
		t.Errorf("without a word: %v", err)
	}
	if err := d.Set(t.Context(), haven.ActionReboot, nil); !errors.Is(err, fencing.ErrUnsupported) {
		t.Errorf("reboot, which is off and on with proof between: %v", err)
	}
	if got, err := os.ReadFile(mark); err == nil {
		t.Fatalf("the program ran: %q", got)
	}
	for _, a := range []haven.FenceAction{haven.ActionOff, haven.ActionBlink} {
		if err := d.Set(t.Context(), a, nil); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
	if got, _ := os.ReadFile(mark); string(got) != "outlet-off\nled\n" {
		t.Errorf("the program was told %q", got)
	}
}

// TestLight guards P3 as well. A program's light is put out by its word for that,
// and timed by nothing.
func TestLight(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	d := shell(t, `echo "$1" >>`+mark, func(c *Config) { c.Words = map[Action]string{Off: "off", Blink: "led", BlinkOff: "led-off"} })
	wordless := shell(t, `echo "$1" >>`+mark, func(c *Config) { c.Words = map[Action]string{Off: "off", Blink: "led"} })
	no := errors.New("a newer master leads")
	if err := d.Light(t.Context(), 0, func(context.Context) error { return no }); !errors.Is(err, fencing.ErrNotPermitted) {
		t.Errorf("without a permit: %v", err)
	}
	if err := wordless.Light(t.Context(), 0, nil); !errors.Is(err, fencing.ErrUnsupported) || !strings.Contains(err.Error(), "no word for blink_off") {
		t.Errorf("without a word: %v", err)
	}
	if err := d.Light(t.Context(), time.Second, nil); !errors.Is(err, fencing.ErrUnsupported) || !strings.Contains(err.Error(), "not told for how long") {
		t.Errorf("for a time: %v", err)
	}
	if got, err := os.ReadFile(mark); err == nil {
		t.Fatalf("the program ran: %q", got)
	}
	if err := d.Light(t.Context(), 0, nil); err != nil {
		t.Error(err)
	}
	if got, _ := os.ReadFile(mark); string(got) != "led-off\n" {
		t.Errorf("the program was told %q", got)
	}
}

// TestHangingProgramIsKilledWithItsChildren guards P8.
func TestHangingProgramIsKilledWithItsChildren(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	d := shell(t, `trap "" TERM; sleep 600 & echo $$ $! >`+pids+`; wait; sleep 600`, func(c *Config) { c.Timeout = time.Second })
	_, err := d.Power(t.Context())
	if !errors.Is(err, fencing.ErrUnreachable) {
		t.Errorf("a program that hangs: %v", err)
	}
	data, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	for f := range strings.FieldsSeq(string(data)) {
		pid, _ := strconv.Atoi(f)
		for alive(pid) {
			time.Sleep(time.Millisecond) // The kernel takes its time to end it; the test's own limit bounds this.
		}
	}
}

// alive says whether a process is there and is no zombie that nobody waited for.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// TestCancelledRunEnds guards P8: the caller may give up at any time.
func TestCancelledRunEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	mark := filepath.Join(t.TempDir(), "mark")
	d := shell(t, "echo >"+mark+"; sleep 600", nil)
	go func() {
		for _, err := os.Stat(mark); err != nil; _, err = os.Stat(mark) {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if _, err := d.Power(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a run that was given up: %v", err)
	}
}

// TestSecretsAreNotTold: a program may print what it was given.
func TestSecretsAreNotTold(t *testing.T) {
	const secret = "tru5tno1"
	for _, script := range []string{
		"echo login " + secret + " refused; exit 1",
		"i=0; while [ $i -lt 4000 ]; do echo " + secret + "; i=$((i+1)); done; exit 1",
		"printf '\\033[31m" + secret + "\\033[0m'; printf '\\000\\377'; exit 3",
	} {
		d := shell(t, script, func(c *Config) { c.Password = func() (string, error) { return secret, nil } })
		_, err := d.Power(t.Context())
		if err == nil || strings.Contains(err.Error(), secret) || strings.ContainsAny(err.Error(), "\x1b\x00\n") || len(err.Error()) > 500 {
			t.Errorf("the error tells %q", err)
		}
	}
	// What is kept may begin in the midst of a secret.
	var out tail
	_, _ = out.Write([]byte(strings.Repeat(secret, outputMax/len(secret)+1)[3:]))
	_, _ = out.Write([]byte("end"))
	if told := out.told([]string{secret}); strings.Contains(told, secret[3:]) {
		t.Errorf("tells %q", told)
	}
}

// TestFenceAgent speaks to an agent as the cluster software does that it was
// written for.
func TestFenceAgent(t *testing.T) {
	state := filepath.Join(t.TempDir(), "outlet")
	if err := os.WriteFile(state, []byte("on\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	agent, err := filepath.Abs("testdata/agent")
	if err != nil {
		t.Fatal(err)
	}
	password := "s3cret pass=word"
	d, err := New(Config{
		Launcher: launcher(), Style: StyleAgent, Program: agent, Options: map[string]string{"plug": "3"}, Address: state,
		Username: "admin", Password: func() (string, error) { return password, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []struct {
		set  haven.FenceAction
		want haven.PowerState
	}{{"", haven.PowerOn}, {haven.ActionOff, haven.PowerOff}, {haven.ActionOn, haven.PowerOn}} {
		if s.set != "" {
			if err := d.Set(t.Context(), s.set, nil); err != nil {
				t.Fatal(err)
			}
		}
		if r, err := d.Power(t.Context()); err != nil || r.State != s.want {
			t.Errorf("after %q: %s, %v", s.set, r.State, err)
		}
	}
	if err := d.Examine(t.Context()); err != nil {
		t.Errorf("test: %v", err)
	}
	password = "wrong"
	if _, err := d.Power(t.Context()); err == nil || !strings.Contains(err.Error(), "login denied for admin with [redacted]") {
		t.Errorf("with a wrong password: %v", err)
	}
	password = "two\nlines"
	if _, err := d.Power(t.Context()); err == nil || !strings.Contains(err.Error(), "more than one line") {
		t.Errorf("with a password that would be two lines: %v", err)
	}
}

// P2: an agent that says of itself that it cuts storage, as fence_scsi does, leaves
// the host running: its off is no word about power, unless that is what it is for.
func TestAgentThatCutsStorage(t *testing.T) {
	for _, tt := range []struct {
		name, metadata string
		storage, fit   bool
	}{
		{name: "storage, and taken for power", metadata: `<action name="on" on_target="1" automatic="1"/>`},
		{name: "storage, as declared", metadata: `<action name="on" on_target="1" automatic="1"/>`, storage: true, fit: true},
		{name: "power", metadata: `<action name="on" automatic="0"/><action name="reboot" automatic="1" />`, fit: true},
		{name: "no metadata", fit: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			agent := filepath.Join(t.TempDir(), "agent")
			script := "#!/bin/sh\nwhile read l; do case $l in action=metadata) echo '" + tt.metadata + "'; exit 0;; action=status) exit 2;; passwd=*) p=1;; esac; done\n"
			if err := os.WriteFile(agent, []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			d, err := New(Config{Launcher: launcher(), Style: StyleAgent, Program: agent, Storage: tt.storage, Options: map[string]string{"plug": "3"}})
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Examine(t.Context()); errors.Is(err, fencing.ErrUnfit) == tt.fit || !tt.fit && !strings.Contains(err.Error(), "proves: storage") {
				t.Errorf("test: %v", err)
			}
			r, err := d.Power(t.Context())
			if off := err == nil && r.State == haven.PowerOff; off != tt.fit {
				t.Errorf("its off: %s, %v", r.State, err)
			}
		})
	}
}

// Options of fence agents may be secrets, too: neither an error nor the name of what
// is told to act on tells them.
func TestSecretOptions(t *testing.T) {
	agent := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(agent, []byte("#!/bin/sh\ncat >&2\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{Launcher: launcher(), Style: StyleAgent, Program: agent, Options: map[string]string{"plug": "3", "snmp_priv_passwd": "tru5tno1", "community": "5ecret"}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Power(t.Context())
	if err == nil || !strings.Contains(err.Error(), "plug=3") {
		t.Fatalf("the agent did not get its options: %v", err)
	}
	for _, secret := range []string{"tru5tno1", "5ecret"} {
		if strings.Contains(err.Error()+d.Target(), secret) {
			t.Errorf("%s is told: %v, %s", secret, err, d.Target())
		}
	}
}

// TestExamine tells a program whose own test fails from one that has none, and from
// one that did not get to its end.
func TestExamine(t *testing.T) {
	for _, tt := range []struct {
		name, word, script string
		want               fencing.Failure
	}{
		{name: "sound", word: "check", script: "exit 0"},
		{name: "fails", word: "check", script: "echo no right to switch outlet 3; exit 1", want: fencing.FailureUnfit},
		{name: "no test", script: "exit 1"},
		{name: "hangs", word: "check", script: "sleep 60", want: fencing.FailureUnreachable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := New(Config{
				Launcher: launcher(), Program: "/bin/sh", Arguments: []string{"-c", `[ "$1" = check ] || exit 77; ` + tt.script, "sh", "{action}"},
				Words: map[Action]string{Off: "off", Test: tt.word}, ExitOn: 10, ExitOff: 11, Timeout: time.Second,
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Examine(t.Context()); fencing.FailureOf(err) != tt.want {
				t.Errorf("err = %v (%s)", err, fencing.FailureOf(err))
			}
		})
	}
}

// TestTemplate fills in what it knows, and New refuses what cannot work.
func TestTemplate(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	d, err := New(Config{
		Launcher: launcher(), Program: "/bin/sh", Arguments: []string{"-c", `printf '%s|' "$@" >` + mark, "sh", "--{action}={address}", "{host} {username}", "{password_file}", "{{x}}"},
		Host: "kvm-01", Address: "10.0.0.1", Username: "a b; $(reboot)", PasswordFile: "/etc/haven/p",
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Set(t.Context(), haven.ActionOff, nil); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(mark); string(got) != "--off=10.0.0.1|kvm-01 a b; $(reboot)|/etc/haven/p|{x}|" {
		t.Errorf("arguments %q", got)
	}
	good := Config{Launcher: launcher(), Program: "/bin/true", Arguments: []string{"{action}"}}
	bad := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no launcher", func(c *Config) { c.Launcher = nil }, "launcher"},
		{"relative path", func(c *Config) { c.Program = "true" }, "absolute path"},
		{"no action", func(c *Config) { c.Arguments = []string{"off"} }, "could not tell off from status"},
		{"password as an argument", func(c *Config) { c.Arguments = []string{"{action}", "{password}"} }, "unknown place {password}"},
		{"open brace", func(c *Config) { c.Arguments = []string{"{action}", "{x"} }, "stands alone"},
		{"options for no agent", func(c *Config) { c.Options = map[string]string{"plug": "1"} }, "options are for fence agents"},
		{"arguments for an agent", func(c *Config) { c.Style = StyleAgent }, "not as arguments"},
		{"an agent's action by hand", func(c *Config) {
			c.Style, c.Arguments, c.Options = StyleAgent, nil, map[string]string{"action": "on"}
		}, "set by the driver"},
		{"two lines in an option", func(c *Config) {
			c.Style, c.Arguments, c.Options = StyleAgent, nil, map[string]string{"plug": "1\naction=on"}
		}, "on one line"},
		{"one code for both", func(c *Config) { c.ExitOn, c.ExitOff = 3, 3 }, "two different ones"},
		{"no word for off", func(c *Config) { c.Words = map[Action]string{Status: "status"} }, "cannot fence"},
		{"too long", func(c *Config) { c.Timeout = time.Hour }, "timeout"},
		{"unknown style", func(c *Config) { c.Style = "xml" }, "style"},
	}
	for _, tt := range bad {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good
			tt.change(&cfg)
			if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// FuzzTold: whatever a program prints, an error is one short line without the
// secret.
func FuzzTold(f *testing.F) {
	f.Add([]byte("abc hunter2 def"), "hunter2")
	f.Fuzz(func(t *testing.T, data []byte, secret string) {
		if len(secret) < 4 || strings.ContainsAny(secret, " \t\r\n") || strings.Contains("[redacted]", secret) {
			t.Skip()
		}
		var out tail
		_, _ = out.Write(data)
		told := out.told([]string{secret})
		if strings.Contains(told, secret) || len(told) > toldMax+16 || strings.ContainsFunc(told, func(r rune) bool { return r < ' ' }) {
			t.Errorf("tells %q of %q", told, data)
		}
	})
}

// A program without a word for status proves nothing, and is told to cut the
// power all the same when it is its turn.
func TestProgramWithoutStatusIsCommanded(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	d := shell(t, `echo "$1" >>`+mark, func(c *Config) { c.Words = map[Action]string{Off: "off"} })
	p := fencing.DefaultPolicy()
	p.Resend, p.Sends, p.Settle, p.Total = 300*time.Millisecond, 2, 300*time.Millisecond, 10*time.Second
	out, err := fencing.Execute(t.Context(), d, p, nil, slog.New(slog.DiscardHandler))
	if err != nil || out.Proved || out.Sent != 2 || !strings.Contains(out.Reason, "has no word for status") {
		t.Errorf("%v, %v", out, err)
	}
	if got, _ := os.ReadFile(mark); string(got) != "off\noff\n" {
		t.Errorf("the program was told %q", got)
	}
}

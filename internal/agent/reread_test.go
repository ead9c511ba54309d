package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
	"github.com/haven-ha/haven/internal/config"
)

// locked is a device that takes one password.
type locked struct {
	fencing.Driver
	file  *config.SecretFile
	takes string
	then  func() // happens while a call is under way, once
	calls []string
}

func (d *locked) Power(context.Context) (fencing.Reading, error) {
	password, err := d.file.Text()
	if err != nil {
		return fencing.Reading{}, err
	}
	d.calls = append(d.calls, password)
	if then := d.then; then != nil {
		d.then = nil
		then()
	}
	if password != d.takes {
		return fencing.Reading{State: haven.PowerUnknown}, fmt.Errorf("%w: wrong password", fencing.ErrAuth)
	}
	return fencing.Reading{State: haven.PowerOn}, nil
}

// Two devices share a file. The password was changed at both and in the file, and
// both are read at once: the one that is refused second finds that the file was read
// again already, and uses what is there. The same password is never sent twice.
func TestSharedPasswordFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "password")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("old")
	f := config.NewSecrets(slog.New(slog.DiscardHandler)).File(path)
	read := func(d *locked) error {
		_, err := rereading{d, []*config.SecretFile{f}}.Power(t.Context())
		return err
	}
	a, b := &locked{file: f, takes: "old"}, &locked{file: f, takes: "old"}
	if err := read(a); err != nil || len(a.calls) != 1 {
		t.Fatalf("%v after %q", err, a.calls)
	}
	write("new")
	a.takes, b.takes = "new", "new"
	b.then = func() {
		if err := read(a); err != nil {
			t.Errorf("the first: %v", err)
		}
	}
	if err := read(b); err != nil || fmt.Sprint(b.calls) != "[old new]" {
		t.Errorf("the second: %v after %q", err, b.calls)
	}
	b.takes, b.calls = "newer", nil
	if err := read(b); err == nil || fmt.Sprint(b.calls) != "[new]" {
		t.Errorf("a password that the file does not have: %v after %q", err, b.calls)
	}
	fresh := config.NewSecrets(slog.New(slog.DiscardHandler)).File(path)
	c := &locked{file: fresh, takes: "other"}
	if _, err := (rereading{c, []*config.SecretFile{fresh}}).Power(t.Context()); err == nil || len(c.calls) != 1 {
		t.Errorf("read for the first time: %v after %q", err, c.calls)
	}
}

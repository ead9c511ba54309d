package config

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// secretsIn makes secrets over a new directory, with what they log.
func secretsIn(t *testing.T) (s *Secrets, log *bytes.Buffer, write func(name, text string, mode os.FileMode) string) {
	t.Helper()
	log = &bytes.Buffer{}
	dir := t.TempDir()
	return NewSecrets(slog.New(slog.NewTextHandler(log, nil))), log, func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		_ = os.Remove(path)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
}

func wantText(t *testing.T, f *SecretFile, want string) {
	t.Helper()
	if got, err := f.Text(); got != want || err != nil {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

// A secret stays what it was until it is read again: at a reload, or because it was
// refused. A bad file keeps the old one.
func TestSecretsReload(t *testing.T) {
	s, log, write := secretsIn(t)
	path := write("bmc", "old\n", 0o600)
	f := s.File(path)
	if s.File(path) != f {
		t.Fatal("one file twice")
	}
	wantText(t, f, "old")
	write("bmc", "new\n", 0o600)
	wantText(t, f, "old")
	if got := s.Reload(); len(got) != 1 || !got[0].Changed || got[0].Err != nil || got[0].Path != path {
		t.Errorf("%+v", got)
	}
	wantText(t, f, "new")
	if got := s.Reload(); got[0].Changed || got[0].Err != nil {
		t.Errorf("nothing changed: %+v", got)
	}
	for _, bad := range []string{"", "two\nlines\n", "nul\x00", strings.Repeat("x", maxSecret+2)} {
		write("bmc", bad, 0o600)
		if got := s.Reload(); !errors.Is(got[0].Err, ErrSecret) || got[0].Changed {
			t.Errorf("%.10q: %+v", bad, got)
		}
		wantText(t, f, "new")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := s.Reload(); !errors.Is(got[0].Err, os.ErrNotExist) {
		t.Errorf("%+v", got)
	}
	f.Refused()
	wantText(t, f, "new")
	if !strings.Contains(log.String(), "the old one stays") || strings.Contains(log.String(), "secret=new") {
		t.Error(log)
	}
	write("bmc", "newest", 0o644)
	wantText(t, f, "new") // It was read once since the refusal, and that is all.
	f.Refused()
	wantText(t, f, "newest")
	if !strings.Contains(log.String(), "is not kept well") {
		t.Error("nobody was told that others can read the file:", log)
	}
}

// A file that is missing at the start is looked for each time, and found when it
// is there: an agent starts without one device's password.
func TestSecretThatComesLater(t *testing.T) {
	s, _, write := secretsIn(t)
	path := write("x", "y", 0o600)
	f := s.File(path + ".later")
	if got, err := f.Text(); got != "" || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%q, %v", got, err)
	}
	write("x.later", "here", 0o600)
	wantText(t, f, "here")
}

// A file system that hangs costs a bounded wait and one goroutine, and the old
// secret stays (P8).
func TestSecretOnAHungFileSystem(t *testing.T) {
	s, _, write := secretsIn(t)
	path := write("bmc", "old", 0o600)
	f := s.File(path)
	wantText(t, f, "old")
	stuck := &secretReading{done: make(chan struct{})}
	f.mu.Lock()
	f.reading, f.slow = stuck, time.Millisecond // as a reading that does not come back
	f.mu.Unlock()
	for range 3 {
		if got := s.Reload(); !errors.Is(got[0].Err, ErrSlowSecret) {
			t.Errorf("%+v", got)
		}
		f.Refused()
		wantText(t, f, "old")
	}
	// What hangs in our stead here is let go; from then on it works again.
	f.mu.Lock()
	f.reading, f.slow = nil, secretPatience
	f.mu.Unlock()
	close(stuck.done)
	write("bmc", "new", 0o600)
	if got := s.Reload(); !got[0].Changed {
		t.Errorf("%+v", got)
	}
}

// A named pipe in place of a secret is refused, not waited for.
func TestSecretPipe(t *testing.T) {
	s, _, write := secretsIn(t)
	path := write("x", "", 0o600) + ".pipe"
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Skip(err)
	}
	if _, err := s.File(path).Text(); !errors.Is(err, ErrSecret) {
		t.Error(err)
	}
}

func TestCredentials(t *testing.T) {
	sample, err := os.ReadFile("../../packaging/haven.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(sample), "/etc/haven/bmc.password", "credential:bmc.password")
	if text == string(sample) {
		t.Fatal("the sample has no password of a BMC any more")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "bmc.password"), []byte("x"), 0o400); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		opts []Option
		want string
	}{
		{"in the service", []Option{WithCredentials(dir)}, filepath.Join(dir, "bmc.password")},
		{"outside", nil, "credential:bmc.password"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse("haven.yaml", []byte(text), tt.opts...)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range c.Hosts {
				for _, d := range h.Fencing.Devices {
					if d.PasswordFile != tt.want {
						t.Errorf("%s: %s, want %s", h.ID, d.PasswordFile, tt.want)
					}
				}
			}
			if err := c.NeedsCredentials(); (err != nil) != (tt.opts == nil) {
				t.Error(err)
			}
			problems, warnings := c.CheckFiles()
			told := slices.ContainsFunc(warnings, func(p Problem) bool { return strings.Contains(p.Message, "systemd") })
			wrong := slices.ContainsFunc(problems, func(p Problem) bool { return strings.Contains(p.Message, "bmc.password") })
			if told != (tt.opts == nil) || wrong {
				t.Errorf("problems %v, warnings %v", problems, warnings)
			}
		})
	}
	if _, _, err := LoadSecret("credential:bmc.password"); err == nil || !strings.Contains(err.Error(), "LoadCredential=") {
		t.Error(err)
	}
	for _, bad := range []string{"credential:", "credential:..", "credential:a/b", "credential:a b", "bmc.password"} {
		text := strings.ReplaceAll(string(sample), "/etc/haven/bmc.password", "\""+bad+"\"")
		if _, err := Parse("haven.yaml", []byte(text), WithCredentials(dir)); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

func TestChanges(t *testing.T) {
	sample, err := os.ReadFile("../../packaging/haven.yaml")
	if err != nil {
		t.Fatal(err)
	}
	old, err := Parse("a", sample)
	if err != nil {
		t.Fatal(err)
	}
	if same := old.Changes(old); len(same) != 0 {
		t.Errorf("%q", same)
	}
	text := strings.ReplaceAll(string(sample), "password_file: /etc/haven/bmc.password", "password_file: /etc/haven/other")
	text = strings.Replace(text, "\ngossip:\n", "\ngossip:\n  gossip_interval: 300ms\n", 1) + "\n# a remark changes nothing\n"
	other, err := Parse("b", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"fencing.devices.bmc.password_file", "gossip.gossip_interval"}
	for _, got := range [][]string{old.Changes(other), other.Changes(old)} {
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

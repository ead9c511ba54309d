package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestLoadSecret(t *testing.T) {
	tests := []struct {
		name, text, want string
		mode             os.FileMode
		warn, fail       bool
	}{
		{name: "one line break is trimmed", text: "hunter2\n", want: "hunter2", mode: 0o600},
		{name: "none is needed", text: "hunter2", want: "hunter2", mode: 0o400},
		{name: "of Windows", text: "hunter2\r\n", want: "hunter2", mode: 0o600},
		{name: "spaces belong to it", text: " hunter2 \n", want: " hunter2 ", mode: 0o600},
		{name: "group may read", text: "hunter2", want: "hunter2", mode: 0o640, warn: true},
		{name: "world may read", text: "hunter2", want: "hunter2", mode: 0o604, warn: true},
		{name: "group may write", text: "hunter2", want: "hunter2", mode: 0o620, warn: true},
		{name: "empty", text: "\n", mode: 0o600, fail: true},
		{name: "two lines", text: "hunter2\n\n", mode: 0o600, fail: true},
		{name: "binary", text: "hunter\x002", mode: 0o600, fail: true},
		{name: "longest", text: strings.Repeat("x", maxSecret), want: strings.Repeat("x", maxSecret), mode: 0o600},
		{name: "too long", text: strings.Repeat("x", maxSecret+1), mode: 0o600, fail: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(path, []byte(tt.text), tt.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, tt.mode); err != nil {
				t.Fatal(err)
			}
			s, warning, err := LoadSecret(path)
			if tt.fail {
				if !errors.Is(err, ErrSecret) || strings.Contains(err.Error(), "hunter") || !s.IsZero() {
					t.Fatalf("got %q, %v; want ErrSecret", s.Reveal(), err)
				}
				return
			}
			if err != nil || s.Reveal() != tt.want || (warning != "") != tt.warn || strings.Contains(warning, "hunter") {
				t.Errorf("got %q, warning %q, %v", s.Reveal(), warning, err)
			}
		})
	}
}

// P8: what is not a regular file is refused at once, and never waited for.
func TestLoadSecretNeverWaits(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, t.TempDir(), "/dev/zero"} {
		if _, _, err := LoadSecret(path); !errors.Is(err, ErrSecret) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, _, err := LoadSecret("/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func TestLoadSecrets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, []byte("# keys\nfirst\n\n  second \r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ss, warning, err := LoadSecrets(path)
	if err != nil || warning != "" || len(ss) != 2 || ss[0].Reveal() != "first" || ss[1].Reveal() != "second" {
		t.Errorf("got %d secrets, %q, %v", len(ss), warning, err)
	}
	if err := os.WriteFile(path, []byte("# nothing\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadSecrets(path); !errors.Is(err, ErrSecret) {
		t.Errorf("empty: %v", err)
	}
}

// A secret is not to be had by printing, logging or marshalling what holds it.
func TestSecretIsNeverShown(t *testing.T) {
	s := NewSecret("hunter2")
	holder := struct {
		Shown  Secret
		hidden Secret
		Many   []Secret
		Map    map[string]Secret
		Ptr    *Secret
	}{s, s, []Secret{s}, map[string]Secret{"a": s}, &s}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%t"} {
		fmt.Fprintf(&out, verb+"\n", s)
		fmt.Fprintf(&out, verb+"\n", &s)
		fmt.Fprintf(&out, verb+"\n", holder)
		fmt.Fprintf(&out, verb+"\n", &holder)
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("secret", "secret", s, "holder", holder, "pointer", &s)
	}
	data, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(data)
	hex := fmt.Sprintf("%x", "hunter2")
	if got := out.String(); strings.Contains(got, "hunter2") || strings.Contains(got, hex) || !strings.Contains(got, blot) {
		t.Errorf("shown:\n%s", got)
	}
}

func TestExcerpt(t *testing.T) {
	tests := []struct{ name, line, want string }{
		{"plain", "  interval: 1s", "  interval: 1s"},
		{"path", "  password_file: /etc/p", "  password_file: /etc/p"},
		{"quoted path", `key_file: "/etc/p"`, `key_file: "/etc/p"`},
		{"secret", "password: hunter2", "password: [redacted]"},
		{"with comma and brace", "{user: u, password: hun,ter2}, b: c", "{user: u, password: [redacted]"},
		{"quoted", `passwd: "hunter2 # x"`, "passwd: [redacted]"},
		{"quoted key", `{"token": hunter2}`, `{"token": [redacted]`},
		{"behind a path", "{key_file: /k, secret: hunter2}", "{key_file: /k, secret: [redacted]"},
		{"section", "tokens: {a: b}", "tokens: {a: b}"},
		{"misspelt", "pasword: hunter2", "pasword: [redacted]"},
		{"control characters", "a: \x1b[31mred\x00", "a: \ufffd[31mred\ufffd"},
		{"line end", "a: b  \r", "a: b"},
		{"long", strings.Repeat("é", 200), strings.Repeat("é", maxExcerpt) + "…"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := excerpt(tt.line); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

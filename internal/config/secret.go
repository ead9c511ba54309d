package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"syscall"
)

// maxSecret bounds a secret's size in octets. IPMI takes 20, HTTP hardly more.
const maxSecret = 4096

// Secret is a password or key. It prints, logs and marshals as "[redacted]";
// only Reveal gives it away. The zero value is the empty secret.
type Secret struct {
	text *string // a pointer, since fmt follows none inside of other values
}

// ErrSecret is returned when a file does not hold a usable secret.
var ErrSecret = errors.New("not a usable secret")

// NewSecret makes a secret of a text.
func NewSecret(text string) Secret { return Secret{&text} }

// LoadSecret reads a secret from a regular file of at most 4096 octets, less
// one line break at its end. It gives a warning beside the secret when others
// than the file's owner can use the file.
func LoadSecret(path string) (s Secret, warning string, err error) {
	text, warning, err := readSecret(path)
	switch {
	case err != nil:
		return Secret{}, "", err
	case text == "":
		return Secret{}, "", fmt.Errorf("%w: %s is empty", ErrSecret, path)
	case strings.ContainsAny(text, "\n\r"):
		return Secret{}, "", fmt.Errorf("%w: %s has more than one line", ErrSecret, path)
	}
	return NewSecret(text), warning, nil
}

// LoadSecrets reads a file with one secret on each line, as LoadSecret does.
// Empty lines and lines that begin with "#" are passed over.
func LoadSecrets(path string) (ss []Secret, warning string, err error) {
	text, warning, err := readSecret(path)
	if err != nil {
		return nil, "", err
	}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			ss = append(ss, NewSecret(line))
		}
	}
	if len(ss) == 0 {
		return nil, "", fmt.Errorf("%w: %s is empty", ErrSecret, path)
	}
	return ss, warning, nil
}

func readSecret(path string) (text, warning string, err error) {
	f, mode, err := openRegular(path)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = f.Close() }() // opened for reading
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	switch {
	case err != nil:
		return "", "", fmt.Errorf("read secret: %w", err)
	case len(data) > maxSecret:
		return "", "", fmt.Errorf("%w: %s is larger than %d octets", ErrSecret, path, maxSecret)
	case bytes.IndexByte(data, 0) >= 0:
		return "", "", fmt.Errorf("%w: %s is not text", ErrSecret, path)
	}
	text = strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	return text, looseMode(path, mode), nil
}

// openRegular opens a regular file and nothing else: a named pipe or a device
// could wait for ever.
func openRegular(path string) (*os.File, fs.FileMode, error) {
	if IsCredential(path) {
		return nil, 0, fmt.Errorf("%w: %s is given by systemd to the service only (LoadCredential= in its unit)", ErrSecret, path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("open file: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is not a regular file", ErrSecret, path)
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, fmt.Errorf("look at file: %w", err)
	}
	return f, info.Mode(), nil
}

func looseMode(path string, mode fs.FileMode) string {
	if mode.Perm()&0o077 == 0 {
		return ""
	}
	return fmt.Sprintf("others than its owner may use %s (mode %04o)", path, mode.Perm())
}

// Reveal returns the secret itself. Its result must not be logged or stored.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero says whether there is no secret.
func (s Secret) IsZero() bool { return s.Reveal() == "" }

// String returns "[redacted]".
func (Secret) String() string { return blot }

// Format writes "[redacted]", whatever the verb.
func (Secret) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, blot)
}

// LogValue returns "[redacted]".
func (Secret) LogValue() slog.Value { return slog.StringValue(blot) }

// MarshalText returns "[redacted]".
func (Secret) MarshalText() ([]byte, error) { return []byte(blot), nil }

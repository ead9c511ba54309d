package redact_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven/internal/redact"
)

// writers are ways to write a secret, each found elsewhere than in the package.
func writers() map[string]func(string) string {
	return map[string]func(string) string{
		"plain":      func(s string) string { return s },
		"in JSON":    func(s string) string { b, _ := json.Marshal(map[string]string{"p": s}); return string(b) },
		"in a query": func(s string) string { return url.Values{"p": {s}}.Encode() },
		"in a path":  func(s string) string { return (&url.URL{Scheme: "https", Host: "h", Path: "/" + s}).String() },
		"in a user's part": func(s string) string {
			return (&url.URL{Scheme: "https", Host: "h", User: url.UserPassword("u", s)}).String()
		},
		"hex":             func(s string) string { return hex.EncodeToString([]byte(s)) },
		"HEX":             func(s string) string { return fmt.Sprintf("%X", s) },
		"base64":          func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		"basic auth":      func(s string) string { return base64.StdEncoding.EncodeToString([]byte("haven:" + s)) },
		"AUTH PLAIN":      func(s string) string { return base64.StdEncoding.EncodeToString([]byte("\x00haven\x00" + s)) },
		"AUTH PLAIN, two": func(s string) string { return base64.URLEncoding.EncodeToString([]byte("\x00haven1\x00" + s + "more")) },
		"go":              strconv.Quote,
		"HTML":            html.EscapeString,
		"shell":           func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" },
	}
}

// TestText: whatever way a text repeats a random secret, nothing from which the
// secret could be read is left of it.
func TestText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.StringMatching(`[ -~é]{8,24}`).Draw(t, "secret")
		before, behind := rapid.StringMatching(`[a-z =:"]{0,10}`).Draw(t, "before"), rapid.StringMatching(`[a-z "]{0,10}`).Draw(t, "behind")
		for name, write := range writers() {
			text := before + write(secret) + behind
			got := redact.Text(text, "", secret)
			if !strings.Contains(got, redact.Blot) || !redact.Holds(text, secret) {
				t.Fatalf("%s: %q is left of a text with %q", name, got, secret)
			}
			for _, f := range redact.Forms(secret) {
				if strings.Contains(got, f) && !strings.Contains(redact.Blot, f) {
					t.Fatalf("%s: %q holds %q", name, got, f)
				}
			}
		}
	})
}

func TestTextWithoutSecrets(t *testing.T) {
	const text = "535 5.7.8 authentication failed"
	for name, secrets := range map[string][]string{"none": nil, "empty": {""}, "another": {"knock-knock"}} {
		t.Run(name, func(t *testing.T) {
			if got := redact.Text(text, secrets...); got != text || redact.Holds(text, secrets...) {
				t.Errorf("%q", got)
			}
		})
	}
}

// A secret that is part of another leaves nothing of the longer one.
func TestLongerFirst(t *testing.T) {
	if got := redact.Text("<open-sesame-now>", "sesame", "open-sesame-now"); got != "<"+redact.Blot+">" {
		t.Error(got)
	}
}

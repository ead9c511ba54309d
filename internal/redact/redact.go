// Package redact takes secrets out of text that somebody else wrote: a server's
// reply, a program's output. Such text may repeat what was sent, and not always
// letter by letter.
package redact

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Blot stands where a secret was.
const Blot = "[redacted]"

// Text returns the text without the secrets, in any of their Forms, or with any of
// their characters escaped. Empty secrets are passed over.
func Text(text string, secrets ...string) string {
	var forms []string
	for _, s := range secrets {
		forms = append(forms, Forms(s)...)
	}
	// Where two forms begin at one place, the longer one is what was meant.
	slices.SortStableFunc(forms, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	pairs := make([]string, 0, 2*len(forms))
	for _, f := range forms {
		pairs = append(pairs, f, Blot)
	}
	text = strings.NewReplacer(pairs...).Replace(text)
	for _, s := range secrets {
		if e := escaped(s); e != nil {
			text = e.ReplaceAllLiteralString(text, Blot)
		}
	}
	return text
}

// escaped finds a secret of which each character may be escaped or not: what must
// be escaped is another thing in each place, and to each program. It is nil when
// there is nothing to look for.
func escaped(secret string) *regexp.Regexp {
	if secret == "" || !utf8.ValidString(secret) {
		return nil
	}
	var b strings.Builder
	for _, r := range secret {
		literal := regexp.QuoteMeta(string(r))
		fmt.Fprintf(&b, `(?:\\*%s|(?i:%s|\\u%04x|\\x%02x|&#0*%d;|&#x0*%x;)`, literal, percent(string(r)), r, r, r, r)
		if name, ok := entities[r]; ok {
			b.WriteString("|&" + name + ";")
		}
		if r == ' ' {
			b.WriteString(`|\+`)
		}
		if r == '\'' {
			b.WriteString(`|'\\''|'"'"'`)
		}
		b.WriteString(")")
	}
	e, err := regexp.Compile(b.String())
	if err != nil {
		return nil // It is made of quoted characters only.
	}
	return e
}

var entities = map[rune]string{'&': "amp", '<': "lt", '>': "gt", '"': "quot", '\'': "apos"}

// Holds says whether a form of one of the secrets is in the text.
func Holds(text string, secrets ...string) bool { return Text(text, secrets...) != text }

// Forms lists how a secret may be written, itself first: escaped for a URL, JSON,
// HTML, a shell or Go, in hexadecimal digits, and in base64, alone or within
// something longer. The empty secret has none.
func Forms(secret string) []string {
	if secret == "" {
		return nil
	}
	forms := []string{secret}
	add := func(more ...string) {
		for _, f := range more {
			if f != "" && !slices.Contains(forms, f) {
				forms = append(forms, f)
			}
		}
	}
	for _, f := range []string{url.QueryEscape(secret), url.PathEscape(secret), percent(secret)} {
		add(f, lowerPercent(f))
	}
	digits := hex.EncodeToString([]byte(secret))
	add(digits, strings.ToUpper(digits))
	add(inJSON(secret, true), inJSON(secret, false))
	add(inner(strconv.Quote(secret)), inner(strconv.QuoteToASCII(secret)))
	add(html.EscapeString(secret), strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;").Replace(secret))
	add(strings.ReplaceAll(secret, "'", `'\''`), strings.ReplaceAll(secret, "'", `'"'"'`), inShell(secret))
	add(strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`").Replace(secret))
	add(inBase64(secret)...)
	return forms
}

func percent(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "%%%02X", s[i])
	}
	return b.String()
}

// lowerPercent writes the digits of escapes in small letters.
func lowerPercent(s string) string {
	out := []byte(s)
	for i := 0; i+2 < len(out); i++ {
		if out[i] == '%' {
			copy(out[i+1:], bytes.ToLower(out[i+1:i+3]))
		}
	}
	return string(out)
}

func inJSON(s string, forHTML bool) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(forHTML)
	if e.Encode(s) != nil {
		return "" // A text can always be encoded.
	}
	return inner(strings.TrimSuffix(b.String(), "\n"))
}

func inner(quoted string) string { return quoted[1 : len(quoted)-1] }

// inShell escapes as printf %q of a shell does.
func inShell(s string) string {
	var b strings.Builder
	for _, r := range s {
		plain := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:=@%+,", r)
		if r < 0x80 && !plain {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// base64Least is the shortest text in base64 that is looked for: three octets of
// a secret. Less is found in any text.
const base64Least = 4

// inBase64 lists the secret in base64: whole, and the part that does not depend on
// what stands before and behind it, for each place in a group of three octets
// where it may begin.
func inBase64(secret string) []string {
	var forms []string
	for before := range 3 {
		data := append(make([]byte, before), secret...)
		from, to := (8*before+5)/6, 8*len(data)/6
		for _, e := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
			text := e.EncodeToString(data)
			if before == 0 {
				forms = append(forms, text)
			}
			if to-from >= base64Least {
				forms = append(forms, text[from:to])
			}
		}
	}
	return forms
}

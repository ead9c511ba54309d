package config

import (
	"cmp"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Problem is one thing that is wrong with a file, or worth a warning.
type Problem struct {
	File    string
	Line    int    // counted from 1
	Column  int    // counted from 1, in characters
	Key     string // dotted path of the key, e.g. "heartbeat.interval"; empty for the file as a whole
	Message string // what is wrong
	Advice  string // what to do about it
	Excerpt string // the line itself, with anything that may be a secret blotted out
}

// String renders the problem on up to four lines, without a line break at the end.
func (p Problem) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: ", p.File, p.Line, p.Column)
	if p.Key != "" {
		fmt.Fprintf(&b, "%s: ", p.Key)
	}
	b.WriteString(p.Message)
	if p.Excerpt != "" {
		number := fmt.Sprintf("%5d", p.Line)
		fmt.Fprintf(&b, "\n%s | %s", number, p.Excerpt)
		if before := firstRunes(p.Excerpt, p.Column-1); !strings.Contains(p.Excerpt, blot) {
			fmt.Fprintf(&b, "\n%s | %s^", strings.Repeat(" ", len(number)), blank(before))
		}
	}
	if p.Advice != "" {
		fmt.Fprintf(&b, "\n      → %s", p.Advice)
	}
	return b.String()
}

func firstRunes(s string, n int) string {
	for i := range s {
		if n <= 0 {
			return s[:i]
		}
		n--
	}
	return s
}

// blank replaces all but tabs, so that the mark stands under its character.
func blank(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return r
		}
		return ' '
	}, s)
}

// Error is returned when a file cannot be used. It holds every problem that
// was found, in the order of the file, and the warnings beside them.
type Error struct {
	Problems []Problem
	Warnings []Problem
}

func (e *Error) Error() string {
	lines := make([]string, 0, len(e.Problems))
	for _, p := range e.Problems {
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

func sortProblems(ps []Problem) {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Key, b.Key))
	})
}

// writeProblems prints problems one after the other, each after the word, which
// is "error" or "warning".
func writeProblems(w io.Writer, word string, ps []Problem) {
	for _, p := range ps {
		fmt.Fprintf(w, "%s: %s\n", word, p)
	}
}

// source is the text of a file and where in it each key stands.
type source struct {
	name  string
	lines []string
	at    map[string]pos
}

type pos struct{ line, column int }

func newSource(name string, data []byte) *source {
	text := strings.TrimPrefix(string(data), "\ufeff")
	return &source{name: name, lines: strings.Split(text, "\n"), at: map[string]pos{}}
}

// where finds the best place to show for something about the given keys: the
// first of them that is in the file, else the nearest section around the first,
// else none.
func (s *source) where(keys ...string) pos {
	for _, k := range keys {
		if p, ok := s.at[k]; ok {
			return p
		}
	}
	if len(keys) > 0 {
		for k := keys[0]; strings.Contains(k, "."); {
			k = k[:strings.LastIndexByte(k, '.')]
			if p, ok := s.at[k]; ok {
				return p
			}
		}
	}
	return pos{}
}

// problem makes a Problem. Without a place it is about the file as a whole.
func (s *source) problem(at pos, key, message, advice string) Problem {
	p := Problem{File: s.name, Line: 1, Column: 1, Key: key, Message: message, Advice: advice}
	if at.line > 0 {
		p.Line, p.Column = min(at.line, len(s.lines)), max(at.column, 1)
		p.Excerpt = excerpt(s.lines[p.Line-1])
	}
	return p
}

const (
	blot       = "[redacted]"
	maxExcerpt = 160 // characters; a longer line is cut
)

// secretKey finds keys behind which a secret could stand by mistake, in some
// spelling of password, secret, token, community, key or URL.
var secretKey = regexp.MustCompile(`(?i)[\w-]*(?:pas|pwd|pw|secret|token|community|private|key|url)[\w-]*["']?\s*:\s*`)

// excerpt makes a line fit to be shown and logged. Behind a key that may mean a
// secret only absolute paths and sections are shown; from anything else on the
// rest of the line is blotted out, since where a secret ends is anybody's guess.
func excerpt(line string) string {
	line = strings.ToValidUTF8(strings.TrimRight(line, " \t\r"), "\ufffd")
	for _, m := range secretKey.FindAllStringIndex(line, -1) {
		value := strings.TrimLeft(line[m[1]:], `"'`)
		if value != "" && !strings.ContainsRune("/{[#", rune(value[0])) {
			line = line[:m[1]] + blot
			break
		}
	}
	line = strings.Map(func(r rune) rune {
		if r != '\t' && (r < ' ' || r == 0x7f) {
			return '\ufffd'
		}
		return r
	}, line)
	if utf8.RuneCountInString(line) > maxExcerpt {
		line = firstRunes(line, maxExcerpt) + "…"
	}
	return line
}

// secondDocument finds the line that begins a second document.
func (s *source) secondDocument() pos {
	content := false
	for i, line := range s.lines {
		if strings.HasPrefix(line, "---") {
			if content {
				return pos{i + 1, 1}
			}
			continue
		}
		trimmed := strings.TrimSpace(line)
		content = content || (trimmed != "" && !strings.HasPrefix(trimmed, "#"))
	}
	return pos{1, 1}
}

// firstInvalid finds the first line that is not UTF-8 text.
func (s *source) firstInvalid() pos {
	for i, line := range s.lines {
		if !utf8.ValidString(line) {
			return pos{i + 1, 1}
		}
	}
	return pos{1, 1}
}

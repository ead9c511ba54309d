package cli

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/haven-ha/haven/internal/client"
)

// lineWidth is what every terminal shows.
const lineWidth = 80

// table lines up columns. What does not fit is cut, the widest column first;
// remarks stand under their row and are wrapped.
type table struct {
	head []string
	rows []tableRow
}

type tableRow struct {
	cells []string
	notes []string
}

func newTable(head ...string) *table { return &table{head: head} }

// row adds a row with remarks; empty remarks are dropped.
func (t *table) row(cells []string, notes ...string) {
	r := tableRow{}
	for _, c := range cells {
		if c = oneLine(c); c == "" {
			c = "-"
		}
		r.cells = append(r.cells, c)
	}
	for _, n := range notes {
		if n != "" {
			r.notes = append(r.notes, oneLine(n))
		}
	}
	t.rows = append(t.rows, r)
}

const (
	columnGap = "  "
	leastCut  = 4 // no column is cut to less
)

// widths fits the columns into the limit; 0 means that there is none.
func (t *table) widths(limit int) []int {
	w := make([]int, len(t.head))
	for i, h := range t.head {
		w[i] = utf8.RuneCountInString(h)
	}
	for _, r := range t.rows {
		for i, c := range r.cells {
			w[i] = max(w[i], utf8.RuneCountInString(c))
		}
	}
	total := len(columnGap) * (len(w) - 1)
	for _, n := range w {
		total += n
	}
	for limit > 0 && total > limit {
		widest := 0
		for i := range w {
			if w[i] > w[widest] {
				widest = i
			}
		}
		if w[widest] <= leastCut {
			break
		}
		w[widest]--
		total--
	}
	return w
}

func (t *table) write(to io.Writer, limit int) {
	w := t.widths(limit)
	line := func(cells []string) {
		var b strings.Builder
		for i, c := range cells {
			if i > 0 {
				b.WriteString(columnGap)
			}
			c = cut(c, w[i])
			b.WriteString(c)
			b.WriteString(strings.Repeat(" ", w[i]-utf8.RuneCountInString(c)))
		}
		fmt.Fprintln(to, strings.TrimRight(b.String(), " "))
	}
	line(t.head)
	for _, r := range t.rows {
		line(r.cells)
		for _, n := range r.notes {
			writeWrapped(to, "  ", n, limit)
		}
	}
}

// show writes the table as the operator wants it.
func (a *app) show(t *table) { t.write(a.Stdout, a.limit()) }

func (a *app) limit() int {
	if a.wide {
		return 0
	}
	return lineWidth
}

// wrapped writes a paragraph with every line behind the indent.
func (a *app) wrapped(indent, text string) { writeWrapped(a.Stdout, indent, oneLine(text), a.limit()) }

// field writes a label and its text, which is wrapped beside it.
func (a *app) field(label, text string) {
	a.hanging(fmt.Sprintf("%-*s", fieldIndent, "  "+label), text)
}

// hanging writes a prefix and a text, whose further lines begin below its first.
func (a *app) hanging(prefix, text string) {
	prefix = clean(prefix)
	indent := strings.Repeat(" ", utf8.RuneCountInString(prefix))
	var b strings.Builder
	writeWrapped(&b, indent, oneLine(text), a.limit())
	a.printf("%s", strings.TrimRight(prefix+strings.TrimPrefix(b.String(), indent), " \n")+"\n")
}

const fieldIndent = 13

func writeWrapped(to io.Writer, indent, text string, limit int) {
	for line := range strings.SplitSeq(wrap(text, limit-len(indent), limit > 0), "\n") {
		fmt.Fprintf(to, "%s%s\n", indent, line)
	}
}

// wrap breaks a text into lines of at most n characters.
func wrap(text string, n int, on bool) string {
	if !on {
		return text
	}
	var b strings.Builder
	at := 0
	for word := range strings.FieldsSeq(text) {
		for {
			size := utf8.RuneCountInString(word)
			if at > 0 && at+1+size <= n {
				b.WriteString(" " + word)
				at += 1 + size
				break
			}
			if at > 0 {
				b.WriteByte('\n')
			}
			if size <= n {
				b.WriteString(word)
				at = size
				break
			}
			// A word longer than a line is broken.
			runes := []rune(word)
			b.WriteString(string(runes[:n]))
			at, word = n, string(runes[n:])
		}
	}
	return b.String()
}

// cut shortens a text to n characters, with an ellipsis for what is lost.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// clean takes out what would steer a terminal: names and reasons come from other
// people and machines.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case unicode.IsControl(r) || unicode.Is(unicode.Cf, r):
			return '?'
		}
		return r
	}, s)
}

// oneLine is clean for a text that stands in a table.
func oneLine(s string) string { return clean(strings.Join(strings.Fields(s), " ")) }

// age says a duration in at most four characters or so.
func age(ms client.Millis) string { return ago(ms.Duration()) }

func ago(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return "-"
	case d < time.Second:
		return "<1s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/day)
}

// memory says MiB for people.
func memory(mib uint64) string {
	switch {
	case mib < 1024:
		return fmt.Sprintf("%d MiB", mib)
	}
	return fmt.Sprintf("%.1f GiB", float64(mib)/1024)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// labelled puts a label before a text, and says nothing without one.
func labelled(label, text string) string {
	if text == "" {
		return ""
	}
	return label + ": " + text
}

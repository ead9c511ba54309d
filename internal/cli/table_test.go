package cli

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// Whatever stands in a table, no line is longer than a terminal is wide, every row
// keeps its columns, and nothing in it steers the terminal.
func TestTableFits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		columns := rapid.IntRange(1, 9).Draw(t, "columns")
		text := rapid.StringN(0, 90, -1)
		table := newTable(strings.Split(strings.Repeat("HEAD ", columns-1)+"HEAD", " ")...)
		rows := rapid.IntRange(0, 5).Draw(t, "rows")
		for range rows {
			cells := rapid.SliceOfN(text, columns, columns).Draw(t, "cells")
			table.row(cells, text.Draw(t, "note"))
		}
		var b strings.Builder
		table.write(&b, lineWidth)
		lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
		if len(lines) < rows+1 {
			t.Fatalf("%d lines for %d rows", len(lines), rows)
		}
		for _, line := range lines {
			if utf8.RuneCountInString(line) > lineWidth {
				t.Errorf("%d characters: %q", utf8.RuneCountInString(line), line)
			}
			if line != clean(line) {
				t.Errorf("%q steers the terminal", line)
			}
		}
	})
}

// Wrapping loses no word and adds none.
func TestWrapKeepsTheText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[a-z ]{0,200}`).Draw(t, "text")
		n := rapid.IntRange(1, 40).Draw(t, "n")
		got := wrap(text, n, true)
		for line := range strings.SplitSeq(got, "\n") {
			if len(line) > n {
				t.Errorf("line %q is longer than %d", line, n)
			}
		}
		squeeze := func(s string) string { return strings.Join(strings.Fields(s), "") }
		if squeeze(got) != squeeze(text) {
			t.Errorf("%q became %q", text, got)
		}
	})
}

func TestAges(t *testing.T) {
	tests := []struct {
		name string
		d    time.Duration
		want string
	}{
		{"none", 0, "<1s"},
		{"clock that went back", -time.Second, "-"},
		{"just under", 999 * time.Millisecond, "<1s"},
		{"seconds", 119 * time.Second, "119s"},
		{"minutes", 2 * time.Minute, "2m"},
		{"hours", 2 * time.Hour, "2h"},
		{"days", 48 * time.Hour, "2d"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := ago(tt.d); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

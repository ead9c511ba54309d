package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzParse: whatever the file holds, Parse answers with a configuration that
// keeps the rules, or with problems that have a place and an advice. It never
// panics, and says the same thing twice.
func FuzzParse(f *testing.F) {
	paths, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no files: %v", err)
	}
	for _, path := range append(paths, sample) {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(small))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("fuzz.yaml", data)
		_, again := Parse("fuzz.yaml", data)
		if (err == nil) != (again == nil) || err != nil && err.Error() != again.Error() {
			t.Fatalf("two answers:\n%v\n%v", err, again)
		}
		if err != nil {
			checkProblems(t, data, c, err)
			return
		}
		n := len(c.Hosts)
		if 2*c.BootstrapExpect <= n || c.BootstrapExpect > n || n == 0 {
			t.Errorf("P3: bootstrap_expect %d of %d hosts", c.BootstrapExpect, n)
		}
		if b := c.Heartbeat; b.StaleAfter < 2*b.Interval+b.IOTimeout || c.Detection.Silence < b.StaleAfter {
			t.Errorf("P2: %+v, silence %s", b, c.Detection.Silence)
		}
		bmcs := map[any]bool{}
		for id, h := range c.Hosts {
			if h.ID != id || !h.Address.IsValid() {
				t.Errorf("host %s: %+v", id, h)
			}
			for _, level := range h.Ladder() {
				for _, v := range level {
					seat := [2]any{v.Address, v.Port}
					if v.Driver == "" || v.Username == "" || v.PasswordFile == "" || !v.Address.IsValid() || bmcs[seat] {
						t.Errorf("P2: device of %s is not whole or not its own: %+v", id, v)
					}
					bmcs[seat] = true
				}
			}
		}
	})
}

func checkProblems(t *testing.T, data []byte, c *Config, err error) {
	t.Helper()
	var e *Error
	if c != nil || !errors.As(err, &e) || len(e.Problems) == 0 {
		t.Fatalf("got %v and %v", c, err)
	}
	lines := strings.Count(string(data), "\n") + 1
	seen := map[Problem]bool{}
	for _, p := range append(e.Problems, e.Warnings...) {
		if p.Line < 1 || p.Line > lines || p.Column < 1 || p.Message == "" || p.Advice == "" || !utf8.ValidString(p.Excerpt) {
			t.Errorf("problem without a place or an advice: %+v", p)
		}
		if strings.ContainsAny(p.Excerpt, "\x00\x1b\n\r") {
			t.Errorf("control characters reach the terminal: %q", p.Excerpt)
		}
		if seen[p] {
			t.Errorf("said twice: %+v", p)
		}
		seen[p] = true
	}
	if !reflect.DeepEqual(sortedCopy(e.Problems), e.Problems) {
		t.Error("problems are not in the order of the file")
	}
}

func sortedCopy(ps []Problem) []Problem {
	out := append([]Problem(nil), ps...)
	sortProblems(out)
	return out
}

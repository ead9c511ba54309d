package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// update rewrites golden files and the generated part of the documentation.
// Read the difference before it is committed.
var update = flag.Bool("update", false, "rewrite golden files and docs/configuration.md")

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s; -update rewrites it. Got:\n%s", path, got)
	}
}

// goWords are what an operator must never read: the names of our types and libraries.
var goWords = []string{"go-yaml", "yaml:", "config.", "yaml.", "time.", "netip", "strconv", "struct", "haven.Fence", "unmarshal", "!!"}

func TestBadFiles(t *testing.T) {
	paths, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			c, err := Parse(filepath.Base(path), data)
			var e *Error
			if c != nil || !errors.As(err, &e) || len(e.Problems) == 0 {
				t.Fatalf("Parse gave %v, %v; want problems", c, err)
			}
			var b strings.Builder
			writeProblems(&b, "error", e.Problems)
			writeProblems(&b, "warning", e.Warnings)
			if strings.Contains(b.String(), "hunter2") {
				t.Errorf("a secret is shown:\n%s", b.String())
			}
			for _, p := range append(e.Problems, e.Warnings...) {
				if p.Advice == "" {
					t.Errorf("%s: %s: no advice", p.Key, p.Message)
				}
				for _, w := range goWords {
					if strings.Contains(p.Message+p.Advice, w) {
						t.Errorf("%s: %s → %s: contains %q", p.Key, p.Message, p.Advice, w)
					}
				}
			}
			golden(t, strings.TrimSuffix(path, ".yaml")+".golden", b.String())
		})
	}
}

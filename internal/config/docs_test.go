package config

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

const (
	docsPath  = "../../docs/configuration.md"
	docsBegin = "<!-- begin generated: go test ./internal/config -update -->\n"
	docsEnd   = "<!-- end generated -->\n"
)

// The documentation of the keys is what the code says.
func TestDocumentation(t *testing.T) {
	data, err := os.ReadFile(docsPath)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(data), docsBegin)
	_, tail, ok2 := strings.Cut(rest, docsEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no generated part", docsPath)
	}
	golden(t, docsPath, head+docsBegin+reference()+docsEnd+tail)
}

// Every key has a meaning and, unless it is required, a default or a word on it.
func TestEveryKeyIsExplained(t *testing.T) {
	walk(Default(ProfileNormal).keys(), "", func(path string, f field) {
		if f.doc == "" || !strings.HasSuffix(f.doc, ".") || f.kind == "" {
			t.Errorf("%s: %q is not an explanation", path, f.doc)
		}
		if f.inner == nil && f.limits == "" {
			t.Errorf("%s has no stated range", path)
		}
	})
}

func walk(fields []field, path string, visit func(path string, f field)) {
	for _, f := range fields {
		at := join(path, f.name)
		visit(at, f)
		if f.inner != nil {
			if f.kind != "section" {
				at += ".NAME"
			}
			walk(f.inner(), at, visit)
		}
	}
}

func reference() string {
	var b strings.Builder
	all := Default(ProfileNormal).keys()
	b.WriteString("### Top level\n\n")
	keyTable(&b, all)
	var sections func(path string, fields []field)
	sections = func(path string, fields []field) {
		for _, f := range fields {
			if f.inner == nil {
				continue
			}
			at := join(path, f.name)
			switch {
			case f.kind == "section":
			case strings.HasPrefix(f.kind, "list of"):
				at += "[]"
			default:
				at += ".NAME"
			}
			fmt.Fprintf(&b, "### `%s`\n\n%s\n\n", at, f.doc)
			keyTable(&b, f.inner())
			sections(at, f.inner())
		}
	}
	sections("", all)
	b.WriteString("### Times set by `detection.profile`\n\n")
	profileTable(&b)
	return b.String()
}

func keyTable(b *strings.Builder, fields []field) {
	b.WriteString("| key | type | default | range | meaning |\n|---|---|---|---|---|\n")
	for _, f := range fields {
		preset := "–"
		switch {
		case f.required:
			preset = "**required**"
		case f.preset != "":
			preset = "`" + f.preset + "`"
		}
		limits := f.limits
		if limits == "" {
			limits = "–"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", f.name, f.kind, preset, limits, f.doc)
	}
	b.WriteString("\n")
}

// profileTable lists every duration and count in which the profiles differ.
func profileTable(b *strings.Builder) {
	presets := map[string][]string{}
	var order []string
	for _, p := range []Profile{ProfileFast, ProfileNormal, ProfileCalm} {
		walk(Default(p).keys(), "", func(path string, f field) {
			if f.inner == nil && path != "detection.profile" {
				if presets[path] == nil {
					order = append(order, path)
				}
				presets[path] = append(presets[path], f.preset)
			}
		})
	}
	b.WriteString("| key | fast | normal | calm |\n|---|---|---|---|\n")
	for _, path := range order {
		v := presets[path]
		if v[0] != v[1] || v[1] != v[2] {
			fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", path, v[0], v[1], v[2])
		}
	}
	b.WriteString("\n")
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", time.Hour: "1h", 90 * time.Minute: "1h30m", time.Minute: "1m", 10 * time.Second: "10s",
		90 * time.Second: "1m30s", 300 * time.Millisecond: "300ms", 168 * time.Hour: "168h", time.Hour + time.Second: "1h0m1s",
	} {
		if got := short(d); got != want {
			t.Errorf("%d: %q, want %q", d, got, want)
		}
		if back, err := time.ParseDuration(short(d)); err != nil || back != d {
			t.Errorf("%s does not read back", short(d))
		}
	}
}

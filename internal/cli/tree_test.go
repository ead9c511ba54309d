package cli

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func testTree() *cobra.Command {
	a := &app{Env: Env{
		Stdin: strings.NewReader(""), Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}, Getenv: func(string) string { return "" }, Now: time.Now,
	}}
	root := a.tree()
	root.InitDefaultHelpCmd()
	return root
}

func walk(c *cobra.Command, visit func(*cobra.Command)) {
	if c.Name() == "help" {
		return
	}
	visit(c)
	for _, sub := range c.Commands() {
		walk(sub, visit)
	}
}

// Every verb says what it is for, shows how it is used, and fits a terminal.
func TestEveryVerbIsExplained(t *testing.T) {
	n := 0
	walk(testTree(), func(c *cobra.Command) {
		n++
		if c.Short == "" || c.Example == "" || !strings.Contains(c.Example, "haven") {
			t.Errorf("%s lacks a summary or an example", c.CommandPath())
		}
		for line := range strings.SplitSeq(c.Long+"\n"+c.Example+"\n  completion  "+c.Short, "\n") {
			if utf8.RuneCountInString(line) > 100 || utf8.RuneCountInString(line) > lineWidth && !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: %q is too long", c.CommandPath(), line)
			}
		}
	})
	if n < 25 {
		t.Errorf("only %d verbs were found", n)
	}
}

// The examples are command lines that the tool understands.
func TestExamplesParse(t *testing.T) {
	root := testTree()
	walk(root, func(c *cobra.Command) {
		for line := range strings.SplitSeq(c.Example, "\n") {
			line, _, _ = strings.Cut(strings.TrimSpace(line), " || ")
			words := regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(line, -1)
			found, rest, err := testTree().Find(words[1:])
			if err != nil {
				t.Errorf("%s: example %q: %v", c.CommandPath(), line, err)
				continue
			}
			if err := found.ParseFlags(rest); err != nil {
				t.Errorf("%s: example %q: %v", c.CommandPath(), line, err)
				continue
			}
			if err := found.ValidateArgs(found.Flags().Args()); err != nil {
				t.Errorf("%s: example %q: %v", c.CommandPath(), line, err)
			}
			if err := found.ValidateRequiredFlags(); err != nil {
				t.Errorf("%s: example %q: %v", c.CommandPath(), line, err)
			}
		}
	})
}

// docs/cli.md has every verb with its summary, every flag and every exit code,
// and none that does not exist.
func TestDocumentation(t *testing.T) {
	data, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	var rows []string
	flags := map[string]bool{}
	walk(testTree(), func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) { flags[f.Name] = true })
		c.PersistentFlags().VisitAll(func(f *pflag.Flag) { flags[f.Name] = true })
		if c.HasSubCommands() {
			return
		}
		use := strings.TrimPrefix(c.Parent().CommandPath()+" "+c.Use, "haven ")
		rows = append(rows, "| `"+strings.ReplaceAll(use, "|", `\|`)+"` | "+c.Short+" |")
	})
	rows = append(rows, "| `completion SHELL` | Completion for bash, zsh, fish or powershell |")
	for _, row := range rows {
		if !strings.Contains(text, row+"\n") {
			t.Errorf("docs/cli.md lacks this row:\n%s", row)
		}
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `[a-z][^`]*` \\| .*\\|$").FindAllString(text, -1) {
		if !slices.Contains(rows, row) {
			t.Errorf("docs/cli.md has a verb that is not there:\n%s", row)
		}
	}
	for name := range flags {
		if !strings.Contains(text, "`--"+name) && name != "help" {
			t.Errorf("docs/cli.md says nothing of --%s", name)
		}
	}
	for _, m := range regexp.MustCompile("`--([a-z]+)").FindAllStringSubmatch(text, -1) {
		if !flags[m[1]] {
			t.Errorf("docs/cli.md tells of --%s, which is not there", m[1])
		}
	}
	for _, code := range []string{"| 0 |", "| 1 |", "| 2 |", "| 3 |", "| 4 |", "| 5 |", "| 6 |"} {
		if !strings.Contains(text, code) {
			t.Errorf("docs/cli.md lacks exit code %s", code)
		}
	}
}

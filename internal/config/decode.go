package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// decoder walks a parsed file along the fields and collects what is wrong.
type decoder struct {
	src      *source
	root     []field // of the whole file, to find keys that stand in the wrong section
	problems []Problem
	// credentials is the directory that credentials are in; empty when it is unknown.
	credentials string
}

func (d *decoder) bad(n *yaml.Node, key, message, advice string) {
	d.problems = append(d.problems, d.src.problem(pos{n.Line, n.Column}, key, message, advice))
}

// section reads a mapping whose keys are the given fields. They are read in
// the order of the fields, so that a default is complete before what builds upon it.
func (d *decoder) section(path string, n *yaml.Node, fields []field) {
	values := map[string]*yaml.Node{}
	ok := d.mapping(path, n, func(k, v *yaml.Node) {
		if !slices.ContainsFunc(fields, func(f field) bool { return f.name == k.Value }) {
			d.unknown(path, k, fields)
			return
		}
		values[k.Value] = v
	})
	if !ok {
		return
	}
	for _, f := range fields {
		key := join(path, f.name)
		v, there := values[f.name]
		switch {
		case there && empty(v) && f.inner == nil:
			d.bad(v, key, "has no value", "give it one, or remove the key to get the default")
		case there:
			f.set(d, key, v)
		case f.kind == "section": // its defaults stand, and what it must have is missing
			d.section(key, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"}, f.inner())
		case f.required:
			d.problems = append(d.problems, d.src.problem(d.src.where(key), key, "is missing", "add it. "+firstSentence(f.doc)))
		}
	}
}

// mapping calls visit for each key of a mapping that is text and unique. It
// returns false when the node is not a mapping.
func (d *decoder) mapping(path string, n *yaml.Node, visit func(k, v *yaml.Node)) bool {
	if empty(n) {
		return true
	}
	if !d.isKind(path, n, yaml.MappingNode, "a section", "write keys and values, such as {key: value} or indented lines") {
		return false
	}
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		switch line, twice := first[k.Value]; {
		case k.Kind == yaml.ScalarNode && k.Value == "<<":
			d.bad(k, path, "merge keys are not supported", "write the values out")
		case k.Kind != yaml.ScalarNode || empty(k):
			d.bad(k, path, "a key must be a word", "write key: value")
		case twice:
			d.bad(k, join(path, k.Value), fmt.Sprintf("is there already, in line %d", line), "keep one of the two")
		default:
			first[k.Value] = k.Line
			// A key without a value is where the value is missing.
			at := v
			if empty(v) && v.Value == "" || v.Kind == yaml.MappingNode {
				at = k
			}
			d.src.at[join(path, k.Value)] = pos{at.Line, at.Column}
			visit(k, v)
		}
	}
	return true
}

func (d *decoder) isKind(path string, n *yaml.Node, kind yaml.Kind, want, advice string) bool {
	if n.Kind == yaml.AliasNode {
		d.bad(n, path, "aliases are not supported", "write the value out")
		return false
	}
	if n.Kind != kind {
		d.bad(n, path, "must be "+want, advice)
		return false
	}
	return true
}

// scalar returns the text of a plain or quoted value on one line.
func (d *decoder) scalar(path string, n *yaml.Node) (string, bool) {
	if n.Kind != yaml.ScalarNode {
		d.isKind(path, n, yaml.ScalarNode, "a single value", "write one value, without braces, brackets or dashes")
		return "", false
	}
	switch {
	case n.Style&yaml.TaggedStyle != 0:
		d.bad(n, path, "tags are not supported", "remove the word that starts with an exclamation mark")
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 || strings.ContainsAny(n.Value, "\n\r"):
		d.bad(n, path, "must be a value on one line", "write the value behind the key")
	case empty(n) || n.Value == "":
		d.bad(n, path, "has no value", "give it one, or remove the key to get the default")
	default:
		return n.Value, true
	}
	return "", false
}

func empty(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func quoted(n *yaml.Node) bool { return n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 }

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func firstSentence(doc string) string {
	if s, _, more := strings.Cut(doc, ". "); more {
		return s + "."
	}
	return doc
}

// unknown reports a key that does not exist, with the best guess at what was meant.
func (d *decoder) unknown(path string, k *yaml.Node, fields []field) {
	var siblings []string
	for _, f := range fields {
		siblings = append(siblings, f.name)
	}
	here := "at the top level"
	if path != "" {
		here = "in " + path
	}
	advice := fmt.Sprintf("remove it; possible %s are %s", here, strings.Join(siblings, ", "))
	near := nearest(k.Value, siblings)
	elsewhere := findKey(d.root, "", k.Value)
	lower := strings.ToLower(k.Value)
	switch {
	case near != "":
		advice = fmt.Sprintf("did you mean %s?", near)
	case slices.ContainsFunc([]string{"pas", "secret", "token"}, func(w string) bool { return strings.Contains(lower, w) }):
		advice = "secrets do not belong here: put it into a file that only root can read, and name the file in a key that ends in _file"
	case len(elsewhere) > 0:
		advice = fmt.Sprintf("did you mean %s?", strings.Join(elsewhere, " or "))
	}
	d.bad(k, join(path, k.Value), "is not a known key", advice)
}

// findKey lists the paths of all keys of that name below the fields.
func findKey(fields []field, path, key string) []string {
	var found []string
	for _, f := range fields {
		at := join(path, f.name)
		if f.name == key {
			found = append(found, at)
		}
		if f.inner != nil {
			if f.kind != "section" {
				at += ".NAME"
			}
			found = append(found, findKey(f.inner(), at, key)...)
		}
	}
	return found
}

// nearest returns the candidate that is at most a third of its letters away
// from what was written, or nothing.
func nearest(written string, candidates []string) string {
	best, least := "", 0
	for _, c := range candidates {
		far := distance(strings.ToLower(strings.ReplaceAll(written, "-", "_")), c)
		if far <= len(c)/3 && (best == "" || far < least) {
			best, least = c, far
		}
	}
	return best
}

// distance counts the letters to insert, delete, replace or swap with their
// neighbour to come from a to b (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 64 { // no key is that long; the work stays bounded
		return len(a)
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			differ := 1
			if a[i-1] == b[j-1] {
				differ = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+differ)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// parseYAML returns the file's one mapping, or what is wrong with its syntax.
func parseYAML(src *source, data []byte) (*yaml.Node, *Problem) {
	var doc yaml.Node
	err := yaml.Load(data, &doc)
	var problem Problem
	switch {
	case err != nil:
		problem = syntaxProblem(src, err)
	case doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 || empty(doc.Content[0]):
		problem = noContent(src)
	case doc.Content[0].Kind != yaml.MappingNode:
		problem = src.problem(pos{doc.Content[0].Line, doc.Content[0].Column}, "", "does not begin with a key", "write keys and values; start from the commented sample, haven.yaml")
	default:
		return doc.Content[0], nil
	}
	return nil, &problem
}

func noContent(src *source) Problem {
	return src.problem(pos{}, "", "has no content", "start from the commented sample, haven.yaml")
}

func syntaxProblem(src *source, err error) Problem {
	var e *yaml.LoadError
	if !errors.As(err, &e) {
		return src.problem(pos{}, "", "cannot be read as YAML", "check indentation, quotes and brackets")
	}
	message, advice := strings.TrimPrefix(e.Message, "yaml: "), "check indentation, quotes and brackets here and in the line before"
	at := pos{e.Mark.Line, e.Mark.Column}
	switch {
	case strings.Contains(message, "no documents"):
		return noContent(src)
	case strings.Contains(message, "multiple"):
		return src.problem(src.secondDocument(), "", "holds more than one document", "remove the line --- and what does not belong here")
	case strings.Contains(message, "cannot start any token"):
		advice = "indent with spaces, not tabs, and put values that start with @, ` or % in quotes"
	case strings.Contains(message, "mapping values are not allowed"):
		advice = "put a value that contains a colon in quotes, and check the indentation"
	case e.Mark.Line == 0:
		at, advice = src.firstInvalid(), "save the file as UTF-8 text"
	}
	if began := e.ContextMark; began.Line > 0 && began.Line < at.line {
		if at.line > len(src.lines) || strings.TrimSpace(src.lines[at.line-1]) == "" {
			message += " before the end of the file"
			at = pos{began.Line, began.Column}
		} else {
			message += fmt.Sprintf(" (it began in line %d)", began.Line)
		}
	}
	return src.problem(at, "", "is not YAML: "+message, advice)
}

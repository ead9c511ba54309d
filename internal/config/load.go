package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"go.yaml.in/yaml/v4"
)

// maxFile bounds a file's size in octets: 200 hosts with all their keys need a
// tenth of it.
const maxFile = 1 << 20

// Option changes what Load and Parse accept.
type Option func(*options)

type options struct {
	storeTypes  []string
	credentials string
}

// WithCredentials names the directory in which systemd put the credentials of this
// service. With it, and only with it, the names of credentials become paths.
func WithCredentials(dir string) Option {
	return func(o *options) { o.credentials = dir }
}

// Load reads and checks the file at path. The error is an *Error when the file
// was read and something in it is wrong.
func Load(path string, opts ...Option) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open configuration: %w", err)
	}
	defer func() { _ = f.Close() }() // opened for reading
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, data, opts...)
}

// Parse checks a configuration that is in memory. The name stands in messages
// for the file. The error is always an *Error.
func Parse(name string, data []byte, opts ...Option) (*Config, error) {
	o := options{}
	for _, opt := range opts {
		opt(&o)
	}
	src := newSource(name, data)
	if len(data) > maxFile {
		p := src.problem(pos{}, "", "is larger than 1 MiB", "this is hardly a configuration file")
		p.Excerpt = ""
		return nil, &Error{Problems: []Problem{p}}
	}
	root, problem := parseYAML(src, data)
	if problem != nil {
		return nil, &Error{Problems: []Problem{*problem}}
	}
	profile, plain := peek(root)
	c := Default(profile)
	if plain {
		c.Helper.Port = helperPortPlain
	}
	c.src = src
	d := &decoder{src: src, credentials: o.credentials}
	d.root = c.keys()
	d.section("", root, d.root)
	if c.BootstrapExpect == 0 {
		c.BootstrapExpect = c.Majority()
	}
	k := newChecker(c, d.problems)
	k.storeTypes = o.storeTypes
	k.driverDefaults()
	k.relations()
	sortProblems(k.problems)
	sortProblems(k.warnings)
	c.Warnings = k.warnings
	if len(k.problems) > 0 {
		return nil, &Error{Problems: k.problems, Warnings: k.warnings}
	}
	return c, nil
}

// peek finds the two values on which defaults of other keys depend. Anything
// wrong with them is reported when they are read in their turn.
func peek(root *yaml.Node) (profile Profile, plain bool) {
	profile = ProfileNormal
	if n := child(child(root, "detection"), "profile"); n != nil {
		if p := Profile(n.Value); slices.Contains([]Profile{ProfileFast, ProfileCalm}, p) {
			profile = p
		}
	}
	n := child(child(root, "helper"), "plain")
	return profile, n != nil && n.Value == "true"
}

func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// Check loads the file at path, looks at the files that it names on this
// machine, and writes everything that is wrong or doubtful to w. It returns an
// exit code: 0 when the agent can start with it, perhaps with warnings; 1 when
// something is wrong with it; 2 when it could not be read.
func Check(path string, w io.Writer, opts ...Option) int {
	var problems, warnings []Problem
	c, err := Load(path, opts...)
	if e := (*Error)(nil); errors.As(err, &e) {
		problems, warnings = e.Problems, e.Warnings
	} else if err != nil {
		fmt.Fprintf(w, "error: %v\n", err)
		return 2
	} else {
		missing, loose := c.CheckFiles()
		problems, warnings = missing, slices.Concat(c.Warnings, loose)
		sortProblems(warnings)
	}
	writeProblems(w, "error", problems)
	writeProblems(w, "warning", warnings)
	fmt.Fprintf(w, "%s: %s, %s\n", path, count(len(problems), "error"), count(len(warnings), "warning"))
	if len(problems) > 0 {
		return 1
	}
	return 0
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

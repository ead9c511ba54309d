package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Changes lists the keys whose values differ between the file that this
// configuration was read from and that of another, in order. A section that was
// added or taken away is told by its keys. Values are not told.
func (c *Config) Changes(other *Config) []string {
	a, b := c.written(), other.written()
	var keys []string
	for _, k := range slices.Sorted(maps.Keys(a)) {
		if v, ok := b[k]; !ok || v != a[k] {
			keys = append(keys, k)
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// written flattens the file to what stands at each key.
func (c *Config) written() map[string]string {
	all := map[string]string{}
	if c.src == nil {
		return all
	}
	if root, problem := parseYAML(c.src, []byte(strings.Join(c.src.lines, "\n"))); problem == nil {
		flatten(all, "", root)
	}
	return all
}

func flatten(all map[string]string, path string, n *yaml.Node) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			flatten(all, join(path, n.Content[i].Value), n.Content[i+1])
		}
	case yaml.SequenceNode:
		for i, item := range n.Content {
			flatten(all, fmt.Sprintf("%s.%d", path, i), item)
		}
	default:
		all[path] = n.Value
	}
}

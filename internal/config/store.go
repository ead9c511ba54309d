package config

import (
	"regexp"
	"slices"

	"go.yaml.in/yaml/v4"
)

// Store is one place where beats are written.
type Store struct {
	Name string
	Type string // dir, block or rados
	Path string // of a dir or block

	// Of a rados store. Namespace, CephConf and CephUser may be empty.
	Pool      string
	Namespace string
	CephConf  string
	CephUser  string
}

// Place says where the store is, in the words of its type.
func (s Store) Place() string {
	if s.Type != typeRados {
		return s.Path
	}
	if s.Namespace == "" {
		return s.Pool
	}
	return s.Pool + "/" + s.Namespace
}

// Options are what else is needed to reach the store, by the names of the keys.
func (s Store) Options() map[string]string {
	o := map[string]string{}
	for name, value := range map[string]string{"ceph_conf": s.CephConf, "ceph_user": s.CephUser} {
		if value != "" {
			o[name] = value
		}
	}
	return o
}

const (
	typeDir   = "dir"
	typeBlock = "block"
	typeRados = "rados"
)

// WithStoreTypes names the types of stores that this program was built with.
// Others are refused with that remark. Without it, all are accepted.
func WithStoreTypes(types ...string) Option {
	return func(o *options) { o.storeTypes = types }
}

var cephPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// cephName is a name that Ceph gives to something.
func cephName(key string, dst *string, doc string) field {
	return field{
		name: key, kind: "text", limits: "1 to 128 letters, digits, dots, dashes and underscores", preset: *dst, doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			text, ok := d.scalar(path, n)
			if !ok {
				return
			}
			if !cephPattern.MatchString(text) {
				d.bad(n, path, "is not a possible name", "use 1 to 128 letters, digits, dots, dashes and underscores, without a dot or dash at its start")
				return
			}
			*dst = text
		},
	}
}

// storeParts holds a store against what its type needs, what this program can, and
// the stores before it.
func (k *checker) storeParts(key string, s Store, before []Store) {
	if s.Type == "" {
		return
	}
	if len(k.storeTypes) > 0 && !slices.Contains(k.storeTypes, s.Type) {
		advice := "choose another type"
		if s.Type == typeRados {
			advice = "this build has no Ceph support; build with -tags ceph"
		}
		k.wrong("is not part of this program", advice, key+".type")
	}
	for _, part := range []struct {
		key, value string
		of, need   bool // it belongs to this type, which cannot do without
	}{
		{"path", s.Path, s.Type != typeRados, true},
		{"pool", s.Pool, s.Type == typeRados, true},
		{"namespace", s.Namespace, s.Type == typeRados, false},
		{"ceph_conf", s.CephConf, s.Type == typeRados, false},
		{"ceph_user", s.CephUser, s.Type == typeRados, false},
	} {
		switch {
		case part.of && part.need && part.value == "" && !k.given(key+"."+part.key):
			k.wrong("is missing", "add it: a store of type "+s.Type+" needs one", key+"."+part.key, key+".type")
		case !part.of && part.value != "":
			k.wrong("means nothing for a store of type "+s.Type, "remove it", key+"."+part.key)
		}
	}
	if s.Pool != "" && slices.ContainsFunc(before, func(o Store) bool { return o.Place() == s.Place() && o.CephConf == s.CephConf }) {
		k.wrong("is the place of another store", "two beats in one place are one path: remove one of the stores", key+".pool")
	}
}

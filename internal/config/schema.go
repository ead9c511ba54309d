package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// field is one key of a section: how it is called, what may stand there, what
// it means and where its value goes. What stands at the destination when the
// field is made is its default.
type field struct {
	name     string
	kind     string // the type, for people
	limits   string // the range or the words allowed, for people
	preset   string // the default, for people; empty when there is none
	doc      string
	required bool
	inner    func() []field // of a section, a table or a list of sections
	set      func(d *decoder, path string, n *yaml.Node)
}

// must marks a key as one that has to be there.
func must(f field) field {
	f.required = true
	f.preset = ""
	return f
}

func section(name, doc string, inner []field) field {
	return field{
		name: name, kind: "section", doc: doc,
		inner: func() []field { return inner },
		set:   func(d *decoder, path string, n *yaml.Node) { d.section(path, n, inner) },
	}
}

// table is a section whose keys are names that the operator chooses. The entry
// function gives the fields of one named entry, and what to do when they were read.
func table(name, kind, doc string, check func(string) error, entry func(name string) ([]field, func())) field {
	return field{
		name: name, kind: kind, doc: doc,
		inner: func() []field { fields, _ := entry(""); return fields },
		set: func(d *decoder, path string, n *yaml.Node) {
			d.mapping(path, n, func(k, v *yaml.Node) {
				if err := check(k.Value); err != nil {
					d.bad(k, path, err.Error(), "choose another name")
					return
				}
				fields, done := entry(k.Value)
				d.section(path+"."+k.Value, v, fields)
				done()
			})
		},
	}
}

// list is a sequence of sections; entry is called for each, as in a table.
func list(name, kind, doc string, most int, entry func() ([]field, func())) field {
	return field{
		name: name, kind: kind, limits: fmt.Sprintf("at most %d", most), doc: doc,
		inner: func() []field { fields, _ := entry(); return fields },
		set: func(d *decoder, path string, n *yaml.Node) {
			if !d.isKind(path, n, yaml.SequenceNode, "a list", "write it as [{…}, {…}] or as lines that begin with a dash") {
				return
			}
			if len(n.Content) > most {
				d.bad(n, path, fmt.Sprintf("has %d entries", len(n.Content)), fmt.Sprintf("keep at most %d", most))
				return
			}
			for i, item := range n.Content {
				at := fmt.Sprintf("%s.%d", path, i)
				d.src.at[at] = pos{item.Line, item.Column}
				fields, done := entry()
				d.section(at, item, fields)
				done()
			}
		},
	}
}

func duration(name string, dst *time.Duration, least, most time.Duration, doc string) field {
	limits := fmt.Sprintf("%s to %s", short(least), short(most))
	return field{
		name: name, kind: "duration", limits: limits, preset: short(*dst), doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			text, ok := d.scalar(path, n)
			if !ok {
				return
			}
			v, err := time.ParseDuration(text)
			switch _, bare := strconv.ParseFloat(text, 64); {
			case bare == nil && err != nil:
				d.bad(n, path, fmt.Sprintf("%s has no unit", text), fmt.Sprintf("write %ss or %sms; the range is %s", text, text, limits))
			case err != nil:
				d.bad(n, path, "is not a duration", "write a number with a unit: ms, s, m or h, such as 500ms, 1.5s or 1h30m; the range is "+limits)
			case v < least || v > most:
				d.bad(n, path, fmt.Sprintf("%s is out of range", short(v)), "choose from "+limits)
			default:
				*dst = v
			}
		},
	}
}

// short writes a duration without zero parts: 1h, not 1h0m0s.
func short(v time.Duration) string {
	s := v.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func integer(name string, dst *int, least, most int, doc string) field {
	limits := fmt.Sprintf("%d to %d", least, most)
	f := field{
		name: name, kind: "integer", limits: limits, doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			text, ok := d.scalar(path, n)
			if !ok {
				return
			}
			v, err := strconv.Atoi(text)
			switch {
			case err != nil || quoted(n):
				d.bad(n, path, "is not a whole number", "write digits only, without quotes; the range is "+limits)
			case v < least || v > most:
				d.bad(n, path, fmt.Sprintf("%d is out of range", v), "choose from "+limits)
			default:
				*dst = v
			}
		},
	}
	if *dst != 0 || least <= 0 {
		f.preset = strconv.Itoa(*dst)
	}
	return f
}

func port(dst *int, doc string) field { return integer("port", dst, 1, 65535, doc) }

func fraction(name string, dst *float64, least, most float64, doc string) field {
	limits := fmt.Sprintf("%g to %g", least, most)
	return field{
		name: name, kind: "number", limits: limits, preset: fmt.Sprint(*dst), doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			text, ok := d.scalar(path, n)
			if !ok {
				return
			}
			v, err := strconv.ParseFloat(text, 64)
			switch {
			case err != nil || quoted(n):
				d.bad(n, path, "is not a number", "write a fraction such as 0.5; the range is "+limits)
			case !(v >= least && v <= most): // so that "nan" is refused as well
				d.bad(n, path, text+" is out of range", "choose from "+limits)
			default:
				*dst = v
			}
		},
	}
}

func boolean(name string, dst *bool, doc string) field {
	return field{
		name: name, kind: "boolean", limits: "true, false", preset: strconv.FormatBool(*dst), doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			text, ok := d.scalar(path, n)
			if !ok {
				return
			}
			if quoted(n) || (text != "true" && text != "false") {
				d.bad(n, path, "is neither true nor false", "write true or false, without quotes")
				return
			}
			*dst = text == "true"
		},
	}
}

// word is a value out of a fixed set. Words in refused are known too, and refused
// with what is said there.
func word[T ~string](name string, dst *T, allowed []T, refused map[T]string, doc string) field {
	limits := joinWords(allowed)
	return field{
		name: name, kind: "word", limits: limits, preset: string(*dst), doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			text, ok := d.scalar(path, n)
			if !ok {
				return
			}
			if slices.Contains(allowed, T(text)) {
				*dst = T(text)
				return
			}
			if why, ok := refused[T(text)]; ok {
				d.bad(n, path, fmt.Sprintf("%q %s", text, why), "choose from "+limits)
				return
			}
			advice := "choose from " + limits
			if near := nearest(text, wordsOf(allowed)); near != "" {
				advice = fmt.Sprintf("did you mean %q? Possible are %s", near, limits)
			}
			d.bad(n, path, fmt.Sprintf("%q is not one of the possible words", text), advice)
		},
	}
}

func joinWords[T ~string](ws []T) string { return strings.Join(wordsOf(ws), ", ") }

func wordsOf[T ~string](ws []T) []string {
	out := make([]string, 0, len(ws))
	for _, w := range ws {
		out = append(out, string(w))
	}
	return out
}

var namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

const nameLimits = "1 to 63 of a-z, 0-9, '.', '_' and '-', starting and ending with a letter or digit"

func checkName(s string) error {
	if !namePattern.MatchString(s) {
		return fmt.Errorf("%q is not a possible name: want %s", s, nameLimits)
	}
	return nil
}

func name(key string, dst *string, doc string) field {
	return field{
		name: key, kind: "name", limits: "1 to 63 characters", preset: *dst, doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			text, ok := d.scalar(path, n)
			if !ok {
				return
			}
			if !namePattern.MatchString(text) {
				d.bad(n, path, "is not a possible name", "use "+nameLimits)
				return
			}
			*dst = text
		},
	}
}

var userPattern = regexp.MustCompile(`^[!-~]{1,64}$`)

func username(dst *string, doc string) field {
	return field{
		name: "username", kind: "text", limits: "1 to 64 visible ASCII characters", preset: *dst, doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			text, ok := d.scalar(path, n)
			if !ok {
				return
			}
			if !userPattern.MatchString(text) || strings.Contains(text, ":") {
				d.bad(n, path, "is not a possible user name", "use 1 to 64 visible ASCII characters without a colon")
				return
			}
			*dst = text
		},
	}
}

// file is an absolute path. The value is never repeated in a message: it may
// be a secret that was put where the path of its file belongs.
func file(key string, dst *string, doc string) field {
	return field{
		name: key, kind: "path", limits: "absolute, at most 4095 octets", preset: *dst, doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			text, ok := d.scalar(path, n)
			if !ok {
				return
			}
			advice := "write the path from the root on, starting with /"
			if strings.Contains(key, "password") || strings.Contains(key, "key") {
				advice = "put the secret into a file that only root can read and write the file's path here, starting with /"
			}
			switch {
			case !filepath.IsAbs(text):
				d.bad(n, path, "is not an absolute path", advice)
			case len(text) > 4095 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' }):
				d.bad(n, path, "is not a possible path", "use at most 4095 octets and no control characters")
			default:
				*dst = filepath.Clean(text)
			}
		},
	}
}

// secretFile is a file that is read for its content alone, so that systemd may
// hold it: the name of a credential does in place of a path.
func secretFile(key string, dst *string, doc string) field {
	f := file(key, dst, doc)
	plain := f.set
	f.kind, f.limits = "path or credential", "absolute, at most 4095 octets; or "+credentialPrefix+"NAME"
	f.set = func(d *decoder, path string, n *yaml.Node) {
		name, ok := strings.CutPrefix(n.Value, credentialPrefix)
		if n.Kind != yaml.ScalarNode || !ok {
			plain(d, path, n)
			return
		}
		if _, ok := d.scalar(path, n); !ok {
			return
		}
		if !credentialName.MatchString(name) || name == "." || name == ".." {
			d.bad(n, path, "is not a possible name of a credential", "use 1 to 255 of a-z, A-Z, 0-9, '.', '_' and '-', as in LoadCredential= of the unit")
			return
		}
		*dst = credentialPrefix + name
		if d.credentials != "" {
			*dst = filepath.Join(d.credentials, name)
		}
	}
	return f
}

func address(key string, dst *netip.Addr, doc string) field {
	return field{
		name: key, kind: "IP address", limits: "IPv4 or IPv6, no names", doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			text, ok := d.scalar(path, n)
			if !ok {
				return
			}
			a, err := netip.ParseAddr(text)
			switch {
			case err != nil || a.Zone() != "":
				d.bad(n, path, "is not an IP address", "write the address itself, such as 10.0.0.11 or fd00::11, without port, brackets and interface; names are not looked up, since name servers fail too")
			case a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
				d.bad(n, path, text+" is not the address of one machine", "write the machine's own address")
			default:
				*dst = a.Unmap()
			}
		},
	}
}

// addresses is a list of addresses, each of them once.
func addresses(key string, dst *[]netip.Addr, most int, doc string) field {
	const advice = "write a list of addresses: [10.0.0.1, 10.0.0.2]"
	return field{
		name: key, kind: "list of IP addresses", limits: fmt.Sprintf("at most %d, no names", most), doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			if !d.isKind(path, n, yaml.SequenceNode, "a list of addresses", advice) {
				return
			}
			if len(n.Content) > most {
				d.bad(n, path, fmt.Sprintf("has %d entries", len(n.Content)), fmt.Sprintf("keep at most %d", most))
				return
			}
			var all []netip.Addr
			for i, item := range n.Content {
				var addr netip.Addr
				at := fmt.Sprintf("%s.%d", path, i)
				d.src.at[at] = pos{item.Line, item.Column}
				address(key, &addr, doc).set(d, at, item)
				switch {
				case !addr.IsValid(): // It was told.
				case slices.Contains(all, addr):
					d.bad(item, at, addr.String()+" is in the list twice", "name each address once")
				default:
					all = append(all, addr)
				}
			}
			*dst = all
		},
	}
}

// linePattern is one line of printable text.
var linePattern = regexp.MustCompile(`^[^\x00-\x1f\x7f]{0,1000}$`)

const lineLimits = "one line of at most 1000 characters"

// line is any text on one line; it may be empty.
func line(key string, dst *string, doc string) field {
	return field{
		name: key, kind: "text", limits: lineLimits, preset: *dst, doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			if text, ok := d.scalar(path, n); !ok {
				return
			} else if !linePattern.MatchString(text) {
				d.bad(n, path, "is not one line of text", "use "+lineLimits)
			} else {
				*dst = text
			}
		},
	}
}

// lineOrNone is a line that may be taken away: "" in quotes.
func lineOrNone(key string, dst *string, doc string) field {
	f := line(key, dst, doc)
	some := f.set
	f.limits += `, or ""`
	f.set = func(d *decoder, path string, n *yaml.Node) {
		if n.Kind == yaml.ScalarNode && n.Value == "" && quoted(n) && n.Style&yaml.TaggedStyle == 0 {
			*dst = ""
			return
		}
		some(d, path, n)
	}
	return f
}

// texts is a list of lines.
func texts(key string, dst *[]string, most int, doc string) field {
	return field{
		name: key, kind: "list of texts", limits: fmt.Sprintf("at most %d, each %s", most, lineLimits), doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			if !d.isKind(path, n, yaml.SequenceNode, "a list of texts", "write it as [one, two]") {
				return
			}
			if len(n.Content) > most {
				d.bad(n, path, fmt.Sprintf("has %d entries", len(n.Content)), fmt.Sprintf("keep at most %d", most))
				return
			}
			all := make([]string, len(n.Content))
			for i, item := range n.Content {
				at := fmt.Sprintf("%s.%d", path, i)
				d.src.at[at] = pos{item.Line, item.Column}
				line(key, &all[i], doc).set(d, at, item)
			}
			*dst = all
		},
	}
}

// textTable is a section of names that the operator chooses, each with a line.
func textTable(key string, dst *map[string]string, doc string) field {
	return field{
		name: key, kind: "section of texts", limits: "each " + lineLimits, doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			all := map[string]string{}
			d.mapping(path, n, func(k, v *yaml.Node) {
				var text string
				line(k.Value, &text, doc).set(d, path+"."+k.Value, v)
				all[k.Value] = text
			})
			*dst = all
		},
	}
}

// levels is the fence ladder: a list of lists of device names.
func levels(key string, dst *[][]string, doc string) field {
	const advice = "write a list of levels, each a list of device names: [[bmc]] or [[psu-a, psu-b], [bmc]]"
	return field{
		name: key, kind: "list of lists of names", limits: "at most 4 levels of 4 devices", doc: doc,
		set: func(d *decoder, path string, n *yaml.Node) {
			if !d.isKind(path, n, yaml.SequenceNode, "a list of levels", advice) {
				return
			}
			var ladder [][]string
			seen := map[string]bool{}
			for _, level := range n.Content {
				if !d.isKind(path, level, yaml.SequenceNode, "a level, that is, a list of device names", advice) {
					return
				}
				var names []string
				for _, item := range level.Content {
					text, ok := d.scalar(path, item)
					if !ok {
						return
					}
					if seen[text] {
						d.bad(item, path, fmt.Sprintf("device %q stands in the ladder twice", text), "name each device once")
						return
					}
					seen[text] = true
					names = append(names, text)
				}
				if len(names) == 0 || len(names) > 4 {
					d.bad(level, path, "a level has 1 to 4 devices", advice)
					return
				}
				ladder = append(ladder, names)
			}
			if len(ladder) > 4 {
				d.bad(n, path, "has more than 4 levels", "remove some")
				return
			}
			*dst = ladder
		},
	}
}

package libvirt

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/haven-ha/haven"
)

// PolicyNamespace is the XML namespace of the haven element in a domain's
// metadata. The number at its end changes when old readers would misread it.
const PolicyNamespace = policyNamespaces + "1"

const (
	policyNamespaces = "https://github.com/haven-ha/haven/xmlns/policy/"
	policyElement    = "haven"
)

// Policy reads the haven element in /domain/metadata of a definition. Found says
// whether there is one. It is strict, because a word that is passed over would
// be a VM that is not treated as its owner wrote: what is not known gives an
// error that names the place. Nothing else of the definition is looked at,
// except that it must be well-formed.
func Policy(definition []byte) (p haven.Policy, found bool, err error) {
	if len(definition) > maxDefinition {
		return haven.Policy{}, false, fmt.Errorf("read policy: %d bytes are more than libvirt takes", len(definition))
	}
	r := policyReader{dec: xml.NewDecoder(bytes.NewReader(definition))}
	if err := r.domain(); err != nil {
		return haven.Policy{}, false, fmt.Errorf("read policy: %w", err)
	}
	return r.p, r.found, nil
}

type policyReader struct {
	dec   *xml.Decoder
	p     haven.Policy
	found bool
}

// domain walks over the whole definition.
func (r *policyReader) domain() error {
	roots := 0
	for {
		tok, err := r.dec.Token()
		if errors.Is(err, io.EOF) {
			if roots == 0 {
				return errors.New("there is no domain element")
			}
			return nil
		}
		if err != nil {
			return err
		}
		start, ok := tok.(xml.StartElement)
		if !ok {
			continue
		}
		if roots++; roots > 1 || start.Name != (xml.Name{Local: "domain"}) {
			return fmt.Errorf("line %d: element %s where one domain was expected", r.line(), start.Name.Local)
		}
		err = r.children(func(child xml.StartElement) error {
			if child.Name == (xml.Name{Local: "metadata"}) {
				return r.children(r.metadata, nil)
			}
			return r.dec.Skip()
		}, nil)
		if err != nil {
			return err
		}
	}
}

// children calls each for each child of the element that was just opened, until
// it is closed. Each must read its child to its end. Text is given to text,
// unless that is nil.
func (r *policyReader) children(each func(xml.StartElement) error, text func(string) error) error {
	for {
		tok, err := r.dec.Token()
		if err != nil {
			return err
		}
		switch t := tok.(type) {
		case xml.StartElement:
			if err := each(t); err != nil {
				return err
			}
		case xml.CharData:
			if text != nil {
				if err := text(string(t)); err != nil {
					return err
				}
			}
		case xml.EndElement:
			return nil
		}
	}
}

// metadata looks at one element of /domain/metadata.
func (r *policyReader) metadata(e xml.StartElement) error {
	const at = "/domain/metadata"
	ours := strings.HasPrefix(e.Name.Space, policyNamespaces)
	// A prefix that was never declared stands in the place of the namespace.
	forgotten := e.Name.Local == policyElement && (e.Name.Space == "" || e.Name.Space == policyElement)
	switch {
	case !ours && !forgotten:
		return r.dec.Skip()
	case e.Name.Space != PolicyNamespace:
		return r.wrong(at+"/"+e.Name.Local, "its namespace is %q, this version knows %s", e.Name.Space, PolicyNamespace)
	case e.Name.Local != policyElement:
		return r.wrong(at+"/"+e.Name.Local, "element is not known, %s is", policyElement)
	case r.found:
		return r.wrong(at+"/"+policyElement, "it is there twice")
	}
	r.found = true
	place := at + "/" + policyElement
	if err := r.attributes(place, e, r.setting); err != nil {
		return err
	}
	seen := map[string]int{}
	err := r.children(func(child xml.StartElement) error {
		seen[child.Name.Local]++
		return r.member(fmt.Sprintf("%s/%s[%d]", place, child.Name.Local, seen[child.Name.Local]), child)
	}, func(s string) error { return r.blank(place, s) })
	if err != nil {
		return err
	}
	if err := r.p.Validate(); err != nil {
		return r.wrong(place, "%w", err)
	}
	return nil
}

// setting puts one attribute of the haven element into the policy. It returns
// a policy of this field alone.
func (r *policyReader) setting(name, value string) (one haven.Policy, err error) {
	switch name {
	case "priority":
		one.Priority = haven.Priority(value)
		r.p.Priority = one.Priority
	case "restarts-in-place":
		n, err := number(value)
		if err != nil {
			return one, err
		}
		one.RestartsInPlace, r.p.RestartsInPlace = &n, &n
	case "storage-lost":
		one.StorageLost = haven.StorageLostPolicy(value)
		r.p.StorageLost = one.StorageLost
	case "isolation":
		one.Isolation = haven.IsolationPolicy(value)
		r.p.Isolation = one.Isolation
	case "io-error":
		one.IOError = haven.IOErrorPolicy(value)
		r.p.IOError = one.IOError
	default:
		return one, errUnknownAttribute
	}
	return one, nil
}

var errUnknownAttribute = errors.New("attribute is not known")

// member reads one child of the haven element.
func (r *policyReader) member(place string, e xml.StartElement) error {
	if e.Name.Space != PolicyNamespace {
		return r.wrong(place, "its namespace is %q, not %s", e.Name.Space, PolicyNamespace)
	}
	var one haven.Policy
	var set func(name, value string) error
	var needs []string
	switch e.Name.Local {
	case "allow", "prefer":
		set, needs = func(name, value string) error {
			if name != "host" {
				return errUnknownAttribute
			}
			if e.Name.Local == "allow" {
				one.AllowedHosts = []haven.HostID{haven.HostID(value)}
			} else {
				one.PreferredHosts = []haven.HostID{haven.HostID(value)}
			}
			return nil
		}, []string{"host"}
	case "group":
		one.Groups = make([]haven.Group, 1)
		set, needs = groupSetter(&one.Groups[0]), []string{"name", "rule"}
	case "start-after":
		one.StartAfter = make([]haven.StartAfter, 1)
		set, needs = startAfterSetter(&one.StartAfter[0]), []string{"vm"}
	default:
		return r.wrong(place, "element is not known, allow, prefer, group and start-after are")
	}
	given := map[string]bool{}
	err := r.attributes(place, e, func(name, value string) (haven.Policy, error) {
		given[name] = true
		return haven.Policy{}, set(name, value)
	})
	if err != nil {
		return err
	}
	for _, name := range needs {
		if !given[name] {
			return r.wrong(place, "the attribute %s is missing", name)
		}
	}
	if err := one.Validate(); err != nil {
		return r.wrong(place, "%w", err)
	}
	r.p.AllowedHosts = append(r.p.AllowedHosts, one.AllowedHosts...)
	r.p.PreferredHosts = append(r.p.PreferredHosts, one.PreferredHosts...)
	r.p.Groups = append(r.p.Groups, one.Groups...)
	r.p.StartAfter = append(r.p.StartAfter, one.StartAfter...)
	return r.children(func(child xml.StartElement) error {
		return r.wrong(place+"/"+child.Name.Local, "element is not known here")
	}, func(s string) error { return r.blank(place, s) })
}

func groupSetter(g *haven.Group) func(name, value string) error {
	return func(name, value string) error {
		switch name {
		case "name":
			g.Name = value
		case "rule":
			g.Rule = haven.GroupRule(value)
		case "strength":
			g.Strength = haven.GroupStrength(value)
		default:
			return errUnknownAttribute
		}
		return nil
	}
}

func startAfterSetter(a *haven.StartAfter) func(name, value string) error {
	return func(name, value string) (err error) {
		switch name {
		case "vm":
			a.VM = value
		case "ready":
			a.Ready = haven.Readiness(value)
		case "timeout":
			if a.TimeoutS, err = number(value); err == nil && a.TimeoutS == 0 {
				err = errors.New("0 s are no time to wait")
			}
		default:
			err = errUnknownAttribute
		}
		return err
	}
}

// attributes gives each attribute to set, and checks what comes back. An
// attribute that is empty would say nothing, and so is refused.
func (r *policyReader) attributes(place string, e xml.StartElement, set func(name, value string) (haven.Policy, error)) error {
	seen := map[xml.Name]bool{}
	for _, a := range e.Attr {
		if a.Name.Space == "xmlns" || a.Name == (xml.Name{Local: "xmlns"}) {
			continue
		}
		at := place + "/@" + a.Name.Local
		switch {
		case seen[a.Name]:
			return r.wrong(at, "it is there twice")
		case a.Name.Space != "":
			return r.wrong(at, "it has the namespace %q; attributes have none here", a.Name.Space)
		case a.Value == "":
			return r.wrong(at, "it is empty; leave it out to say nothing")
		}
		seen[a.Name] = true
		one, err := set(a.Name.Local, a.Value)
		if err == nil {
			err = one.Validate()
		}
		if err != nil {
			return r.wrong(at, "%w", err)
		}
	}
	return nil
}

func (r *policyReader) blank(place, s string) error {
	if s = strings.TrimSpace(s); s != "" {
		return r.wrong(place, "there is text where none belongs: %.40q", s)
	}
	return nil
}

func (r *policyReader) wrong(place, format string, args ...any) error {
	return fmt.Errorf("%s, line %d: %w", place, r.line(), fmt.Errorf(format, args...))
}

func (r *policyReader) line() int {
	line, _ := r.dec.InputPos()
	return line
}

// number reads decimal digits and nothing else.
func number(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || strconv.Itoa(n) != s {
		return 0, fmt.Errorf("%q is not a whole number", s)
	}
	return n, nil
}

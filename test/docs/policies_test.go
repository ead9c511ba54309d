package docs

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/vmrestart/libvirt"
)

const policyPage = "docs/vm-policies.md"

// wordsOf are the constants of a type, as written in a file.
func wordsOf(t *testing.T, path, typ string) []string {
	t.Helper()
	var all []string
	for _, m := range regexp.MustCompile(`(?m)^\s+\w+\s+`+typ+`\s+= "([a-z-]+)"`).FindAllStringSubmatch(read(t, path), -1) {
		all = append(all, m[1])
	}
	if len(all) < 2 {
		t.Fatalf("%s: only %v are of the type %s", path, all, typ)
	}
	return all
}

// schemaNode is an element of a RELAX NG schema.
type schemaNode struct {
	XMLName  xml.Name
	Name     string       `xml:"name,attr"`
	NS       *string      `xml:"ns,attr"`
	Text     string       `xml:",chardata"`
	Children []schemaNode `xml:",any"`
}

// schema lists what packaging/haven-policy.rng has: the elements, with their
// attributes, with the words that these may be, and the limits of numbers.
func schema(t *testing.T) (ns string, elements map[string]map[string][]string) {
	t.Helper()
	var root schemaNode
	if err := xml.Unmarshal([]byte(read(t, "packaging/haven-policy.rng")), &root); err != nil {
		t.Fatal(err)
	}
	defined := map[string]schemaNode{}
	for _, c := range root.Children {
		if c.XMLName.Local == "define" {
			defined[c.Name] = c
		}
	}
	elements = map[string]map[string][]string{}
	var walk func(n schemaNode, element, attribute string)
	walk = func(n schemaNode, element, attribute string) {
		switch n.XMLName.Local {
		case "element":
			element = n.Name
			elements[element] = map[string][]string{}
		case "attribute":
			if n.NS == nil || *n.NS != "" {
				t.Errorf("the attribute %s has a namespace", n.Name)
			}
			attribute = n.Name
			elements[element][attribute] = []string{}
		case "value":
			elements[element][attribute] = append(elements[element][attribute], n.Text)
		case "param":
			elements[element][attribute] = append(elements[element][attribute], n.Name+"="+n.Text)
		case "ref":
			n = defined[n.Name]
		}
		for _, c := range n.Children {
			walk(c, element, attribute)
		}
	}
	for _, c := range root.Children {
		if c.XMLName.Local == "start" {
			walk(c, "", "")
		}
	}
	return *root.NS, elements
}

// TestPolicySchema holds the schema against the code that reads the element.
func TestPolicySchema(t *testing.T) {
	ns, got := schema(t)
	if ns != libvirt.PolicyNamespace || !strings.Contains(read(t, policyPage), "\n    "+ns+"\n") {
		t.Errorf("the schema's namespace is %s, the code's %s; the page must name it", ns, libvirt.PolicyNamespace)
	}
	const p = "policy.go"
	host := []string{`pattern=[a-z0-9]([a-z0-9.\-]{0,61}[a-z0-9])?`}
	want := map[string]map[string][]string{
		"haven": {
			"priority":          wordsOf(t, p, "Priority"),
			"restarts-in-place": {"pattern=0|[1-9][0-9]*", "minInclusive=0", "maxInclusive=100"},
			"storage-lost":      wordsOf(t, p, "StorageLostPolicy"),
			"isolation":         wordsOf(t, p, "IsolationPolicy"),
			"io-error":          wordsOf(t, p, "IOErrorPolicy"),
		},
		"allow": {"host": host}, "prefer": {"host": host},
		"group": {"name": {`pattern=[A-Za-z0-9._\-]{1,63}`}, "rule": wordsOf(t, p, "GroupRule"), "strength": wordsOf(t, p, "GroupStrength")},
		"start-after": {
			"vm":      {"minLength=1", "maxLength=255"},
			"ready":   {"running", "guest-agent", "pattern=tcp:[1-9][0-9]{0,4}", "pattern=delay:[1-9][0-9]{0,3}"},
			"timeout": {"pattern=[1-9][0-9]*", "minInclusive=1", "maxInclusive=86400"},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the schema has\n%v, want\n%v", got, want)
	}
	// The code takes each word and limit of the schema, each attribute where the
	// schema has it and nowhere else, and nothing beyond the limits.
	whole := map[string]string{
		"haven": "", "allow": "host='a'", "prefer": "host='a'", "group": "name='a' rule='keep-apart'", "start-after": "vm='a'",
	}
	good := map[string]string{
		"host": "a", "name": "b", "vm": "c", "ready": "tcp:65535", "timeout": "86400", "restarts-in-place": "100",
	}
	for element, has := range want {
		for attribute, words := range has {
			values := slices.DeleteFunc(slices.Clone(words), func(w string) bool { return strings.Contains(w, "=") })
			if v, ok := good[attribute]; ok {
				values = append(values, v)
			}
			for _, v := range values {
				if err := parseWith(element, whole[element], attribute, v); err != nil {
					t.Errorf("the code refuses %s=%q of %s: %v", attribute, v, element, err)
				}
			}
			for other := range want {
				if _, ok := want[other][attribute]; !ok && parseWith(other, whole[other], attribute, values[0]) == nil {
					t.Errorf("the code takes %s in %s, the schema does not", attribute, other)
				}
			}
		}
	}
	for attribute, v := range map[string]string{"restarts-in-place": "101", "timeout": "86401", "ready": "delay:9999", "name": strings.Repeat("a", 64), "host": strings.Repeat("a", 64), "vm": strings.Repeat("a", 256)} {
		for element, has := range want {
			if _, ok := has[attribute]; ok && parseWith(element, whole[element], attribute, v) == nil {
				t.Errorf("the code takes %s=%q of %s", attribute, v, element)
			}
		}
	}
}

// parseWith reads a policy with one element that has one attribute set.
func parseWith(element, whole, attribute, value string) error {
	// The new value takes the place of the old one, if there is one.
	whole = regexp.MustCompile(`(^| )`+attribute+`='[^']*'`).ReplaceAllString(whole, "") + " " + attribute + "='" + value + "'"
	inner, outer := "<"+element+" "+whole+"/>", ""
	if element == "haven" {
		inner, outer = "", whole
	}
	_, found, err := libvirt.Policy(fmt.Appendf(nil, "<domain><metadata><haven xmlns='%s' %s>%s</haven></metadata></domain>", libvirt.PolicyNamespace, outer, inner))
	if err == nil && !found {
		return errors.New("it was not found")
	}
	return err
}

// TestPolicyTable holds the table of fields against the noun.
func TestPolicyTable(t *testing.T) {
	rows := table(t, policyPage, "policy")
	_, elements := schema(t)
	defaults := haven.MergePolicies(haven.Policy{}, haven.Policy{})
	words := map[string][]string{
		"priority": wordsOf(t, "policy.go", "Priority"), "storage_lost": wordsOf(t, "policy.go", "StorageLostPolicy"), "isolation": wordsOf(t, "policy.go", "IsolationPolicy"),
		"io_error": wordsOf(t, "policy.go", "IOErrorPolicy"), "groups": {"name", "rule", "keep-together", "keep-apart", "strength", "strict", "preferred"},
		"start_after": {"vm", "ready", "running", "guest-agent", "tcp:PORT", "delay:SECONDS"}, "allowed_hosts": nil, "preferred_hosts": nil, "restarts_in_place": nil,
	}
	fallback := map[string]string{
		"priority": "`" + string(defaults.Priority) + "`", "io_error": "`" + string(defaults.IOError) + "`", "restarts_in_place": fmt.Sprint(*defaults.RestartsInPlace),
		"storage_lost": "as its host: `response.storage_lost.action`", "isolation": "as its host: `response.isolation.action`",
		"groups":        fmt.Sprintf("none; `strength` is `%s`", haven.DefaultGroupStrength),
		"start_after":   fmt.Sprintf("none; `ready` is `%s`, the timeout %d s", haven.ReadyRunning, haven.DefaultStartTimeoutS),
		"allowed_hosts": "all", "preferred_hosts": "none",
	}
	limits := map[string]int{
		"allowed_hosts": haven.MaxPolicyHosts, "preferred_hosts": haven.MaxPolicyHosts, "groups": haven.MaxPolicyGroups, "start_after": haven.MaxPolicyStartAfter,
	}
	for f := range reflect.TypeFor[haven.Policy]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		row := rows["`"+name+"`"]
		delete(rows, "`"+name+"`")
		if len(row) != 4 || slices.Contains(row, "") {
			t.Errorf("%s does not explain %s: %q", policyPage, name, row)
			continue
		}
		inXML := strings.Trim(row[0], "`")
		if _, ok := elements[inXML]; !ok && elements["haven"][inXML] == nil {
			t.Errorf("%s is %s in XML, which the schema does not have", name, inXML)
		}
		var got []string
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			got = append(got, m[1])
		}
		if !slices.Equal(got, words[name]) {
			t.Errorf("%s: the page has the words %q, the code %q", name, got, words[name])
		}
		if row[2] != fallback[name] {
			t.Errorf("%s: the page has the default %q, the code %q", name, row[2], fallback[name])
		}
		if n := limits[name]; n > 0 && !strings.Contains(row[1], fmt.Sprintf("at most %d", n)) {
			t.Errorf("%s: the page does not say that at most %d are taken", name, n)
		}
	}
	for row := range rows {
		t.Errorf("%s explains %s, which no policy has", policyPage, row)
	}
	obstacles := table(t, policyPage, "obstacles")
	for _, w := range wordsOf(t, "obstacle.go", "ObstacleReason") {
		if len(obstacles["`"+w+"`"]) != 1 {
			t.Errorf("%s does not explain %s", policyPage, w)
		}
		delete(obstacles, "`"+w+"`")
	}
	if len(obstacles) > 0 {
		t.Errorf("%s explains %v, which is no obstacle", policyPage, obstacles)
	}
}

// TestPolicyExamples reads what the page shows.
func TestPolicyExamples(t *testing.T) {
	page := read(t, policyPage)
	block := func(kind string) string {
		_, rest, ok := strings.Cut(page, "```"+kind+"\n")
		text, _, ended := strings.Cut(rest, "```")
		if !ok || !ended {
			t.Fatalf("%s has no example in %s", policyPage, kind)
		}
		return text
	}
	metadata, found, err := libvirt.Policy([]byte("<domain><metadata>" + block("xml") + "</metadata></domain>"))
	if err != nil || !found {
		t.Fatalf("the example in XML: %v, %v", found, err)
	}
	d := json.NewDecoder(strings.NewReader(block("json")))
	d.DisallowUnknownFields()
	var ledger haven.Policy
	if err := d.Decode(&ledger); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if err := ledger.Validate(); err != nil {
		t.Errorf("the example in JSON: %v", err)
	}
	e := haven.MergePolicies(metadata, ledger)
	if len(metadata.AllowedHosts) == 0 || len(e.AllowedHosts) != 0 || e.From["allowed_hosts"] != haven.PolicyLedger || e.From["io_error"] != haven.PolicyMetadata {
		t.Errorf("[] in the one example takes back nothing of the other: %+v", e)
	}
	m := regexp.MustCompile(`--set '(.*)'`).FindStringSubmatch(page)
	if m == nil {
		t.Fatal("the page shows no virsh command")
	}
	// virsh adds the namespace.
	set := strings.Replace(m[1], "<haven", "<haven xmlns='"+libvirt.PolicyNamespace+"'", 1)
	if p, found, err := libvirt.Policy([]byte("<domain><metadata>" + set + "</metadata></domain>")); err != nil || !found || len(p.StartAfter) != 1 {
		t.Errorf("what virsh sets: %+v, %v, %v", p, found, err)
	}
	const message = `/domain/metadata/haven/group[2], line 9: groups[0].rule: "near" is not one of keep-together, keep-apart`
	wrong := "<domain><metadata><haven xmlns='" + libvirt.PolicyNamespace + "'><group name='a' rule='keep-apart'/>" + strings.Repeat("\n", 8) + "<group name='b' rule='near'/></haven></metadata></domain>"
	if _, _, err := libvirt.Policy([]byte(wrong)); err == nil || !strings.HasSuffix(err.Error(), message) || !strings.Contains(page, message) {
		t.Errorf("the page shows %s, the code says %v", message, err)
	}
}

package libvirt

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
)

func golden(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// domainWith is a definition with a haven element whose attributes and children
// are given.
func domainWith(attributes, children string) string {
	return "<domain type='kvm'>\n<name>a</name>\n<metadata><haven xmlns='" + PolicyNamespace + "' " + attributes + ">" + children + "</haven></metadata>\n</domain>"
}

func TestPolicyGolden(t *testing.T) {
	once := 1
	tests := []struct {
		name, file string
		want       haven.Policy
	}{
		{"virt-install", "policy-virt-install.xml", haven.Policy{
			Priority: haven.PriorityHigh, AllowedHosts: []haven.HostID{"hv1", "hv2", "hv3.example.org"}, PreferredHosts: []haven.HostID{"hv2"},
			Groups: []haven.Group{{Name: "web", Rule: haven.KeepApart, Strength: haven.GroupStrict}},
			StartAfter: []haven.StartAfter{
				{VM: "db1", Ready: "tcp:5432", TimeoutS: 300},
				{VM: "7c0f6d0a-3f0e-4d3c-8d0b-0e6a1c9b2d44", Ready: "delay:30"},
			},
			RestartsInPlace: &once, StorageLost: haven.StorageLostRestart, Isolation: haven.IsolationShutdown, IOError: haven.IOErrorResume,
		}},
		{"terraform", "policy-terraform.xml", haven.Policy{
			Priority: haven.PriorityOff, Groups: []haven.Group{{Name: "batch", Rule: haven.KeepTogether}},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data := golden(t, tt.file)
			before := slices.Clone(data)
			got, found, err := Policy(data)
			if err != nil || !found || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("Policy() = %+v, %v, %v", got, found, err)
			}
			if !slices.Equal(data, before) {
				t.Error("the definition was changed")
			}
			if fixed, err := Obstacles(data, true); err != nil || len(fixed) != 0 {
				t.Errorf("Obstacles() = %v, %v", fixed, err)
			}
		})
	}
}

func TestPolicyAbsent(t *testing.T) {
	for name, xml := range map[string]string{
		"no metadata":    "<domain/>",
		"empty":          "<domain><metadata/></domain>",
		"of others":      "<domain><metadata><x:policy xmlns:x='urn:x' haven='1'><haven/></x:policy></metadata></domain>",
		"another haven":  "<domain><metadata><x:haven xmlns:x='urn:x' a='1'/></metadata></domain>",
		"somewhere else": "<domain><devices><haven xmlns='" + PolicyNamespace + "' odd='1'/></devices></domain>",
	} {
		t.Run(name, func(t *testing.T) {
			if p, found, err := Policy([]byte(xml)); err != nil || found || !reflect.DeepEqual(p, haven.Policy{}) {
				t.Errorf("Policy() = %+v, %v, %v", p, found, err)
			}
		})
	}
	if _, found, err := Policy([]byte(domainWith("", ""))); err != nil || !found {
		t.Errorf("an element that says nothing: %v, %v", found, err)
	}
}

// An error names the place, and the line.
func TestPolicyStrict(t *testing.T) {
	const at = "read policy: /domain/metadata/haven"
	tests := []struct{ name, xml, want string }{
		{"attribute", domainWith("colour='red'", ""), at + "/@colour, line 3: attribute is not known"},
		{"word", domainWith("priority='High'", ""), at + `/@priority, line 3: priority: "High" is not one of highest`},
		{"empty", domainWith("priority=''", ""), at + "/@priority, line 3: it is empty"},
		{"twice", domainWith("priority='low' priority='high'", ""), at + "/@priority, line 3: it is there twice"},
		{"namespace of attribute", domainWith("xmlns:h='"+PolicyNamespace+"' h:priority='low'", ""), at + "/@priority, line 3: it has the namespace"},
		{"number", domainWith("restarts-in-place='many'", ""), at + `/@restarts-in-place, line 3: "many" is not a whole number`},
		{"sign", domainWith("restarts-in-place='+1'", ""), at + "/@restarts-in-place, line 3"},
		{"range", domainWith("restarts-in-place='101'", ""), at + "/@restarts-in-place, line 3: restarts_in_place: 101 is not from 0 to 100"},
		{"storage", domainWith("storage-lost='restart'", ""), at + "/@storage-lost"},
		{"isolation", domainWith("isolation='stop'", ""), at + "/@isolation"},
		{"io error", domainWith("io-error='ignore'", ""), at + "/@io-error"},
		{"text", domainWith("", "high"), at + `, line 3: there is text where none belongs: "high"`},
		{"text within", domainWith("", "<allow host='a'>b</allow>"), at + "/allow[1], line 3: there is text"},
		{"element", domainWith("", "<deny host='a'/>"), at + "/deny[1], line 3: element is not known"},
		{"element within", domainWith("", "\n<allow host='a'><b/></allow>"), at + "/allow[1]/b, line 4: element is not known here"},
		{"element of others", domainWith("", "<x xmlns='urn:x'/>"), at + `/x[1], line 3: its namespace is "urn:x"`},
		{"host", domainWith("", "<allow host='a'/><allow host='B'/>"), at + `/allow[2], line 3: allowed_hosts[0]: host name "B"`},
		{"no host", domainWith("", "<prefer/>"), at + "/prefer[1], line 3: the attribute host is missing"},
		{"wrong attribute", domainWith("", "<prefer vm='a'/>"), at + "/prefer[1]/@vm, line 3: attribute is not known"},
		{"host twice", domainWith("", "<allow host='a'/><allow host='a'/>"), at + ", line 3: allowed_hosts[1]: a is named twice"},
		{"no rule", domainWith("", "<group name='a'/>"), at + "/group[1], line 3: the attribute rule is missing"},
		{"odd rule", domainWith("", "<group name='a' rule='near'/>"), at + `/group[1], line 3: groups[0].rule: "near"`},
		{"odd strength", domainWith("", "<group name='a' rule='keep-apart' strength='1'/>"), at + "/group[1], line 3: groups[0].strength"},
		{"group attribute", domainWith("", "<group name='a' rule='keep-apart' size='1'/>"), at + "/group[1]/@size"},
		{"readiness", domainWith("", "<start-after vm='a' ready='http:80'/>"), at + "/start-after[1], line 3: start_after[0].ready"},
		{"timeout", domainWith("", "<start-after vm='a' timeout='10m'/>"), at + "/start-after[1]/@timeout, line 3: \"10m\" is not a whole number"},
		{"no time", domainWith("", "<start-after vm='a' timeout='0'/>"), at + "/start-after[1]/@timeout, line 3: 0 s"},
		{"start-after attribute", domainWith("", "<start-after name='a'/>"), at + "/start-after[1]/@name"},
		{"no namespace", "<domain><metadata><haven priority='low'/></metadata></domain>", at + `, line 1: its namespace is ""`},
		{"prefix not declared", "<domain><metadata><haven:haven/></metadata></domain>", at + `, line 1: its namespace is "haven"`},
		{"later version", "<domain><metadata><haven xmlns='" + policyNamespaces + "2'/></metadata></domain>", at + ", line 1: its namespace is"},
		{"other element of ours", "<domain><metadata><h:policy xmlns:h='" + PolicyNamespace + "'/></metadata></domain>", "read policy: /domain/metadata/policy, line 1: element is not known"},
		{"two", "<domain><metadata><haven xmlns='" + PolicyNamespace + "'/><haven xmlns='" + PolicyNamespace + "'/></metadata></domain>", at + ", line 1: it is there twice"},
		{"two metadata", "<domain><metadata><haven xmlns='" + PolicyNamespace + "'/></metadata><metadata><haven xmlns='" + PolicyNamespace + "'/></metadata></domain>", at + ", line 1: it is there twice"},
		{"nothing", "", "read policy: there is no domain element"},
		{"not a domain", "<network/>", "read policy: line 1: element network"},
		{"two domains", "<domain/><domain/>", "read policy: line 1: element domain"},
		{"cut off", domainWith("", "")[:80], "read policy: XML syntax error"},
		{"too long", "<domain>" + strings.Repeat(" ", maxDefinition) + "</domain>", "read policy: 4194321 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, found, err := Policy([]byte(tt.xml))
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) || found || !reflect.DeepEqual(p, haven.Policy{}) {
				t.Errorf("Policy() = %+v, %v,\n%v, want\n%s", p, found, err, tt.want)
			}
		})
	}
}

// Whatever a definition is like: no panic, and what is returned is valid.
func FuzzPolicy(f *testing.F) {
	f.Add(golden(f, "policy-virt-install.xml"))
	f.Add(golden(f, "policy-terraform.xml"))
	f.Add([]byte(domainWith("priority='off' io-error='x'", "<group name='a' rule='keep-apart'/>t<a/>")))
	f.Add([]byte("<domain><metadata><haven:haven/></metadata></domain>"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, found, err := Policy(data)
		if err != nil && found || !found && !reflect.DeepEqual(p, haven.Policy{}) {
			t.Errorf("Policy() = %+v, %v, %v", p, found, err)
		}
		if err := p.Validate(); err != nil {
			t.Errorf("a policy that is not valid: %v", err)
		}
		_, _ = Obstacles(data, false)
	})
}

// A definition that is damaged anywhere gives the same policy or an error, and a
// stranger's element beside ours changes nothing.
func TestPolicyBesideOthers(t *testing.T) {
	text := string(golden(t, "policy-virt-install.xml"))
	want, _, err := Policy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-z]{1,8}`).Draw(t, "name")
		other := "<o:" + name + " xmlns:o='urn:other' priority='low'><haven/><o:haven/></o:" + name + ">"
		where := rapid.SampledFrom([]string{"<metadata>", "</metadata>", "<devices>"}).Draw(t, "where")
		at := strings.Index(text, where)
		if !strings.HasPrefix(where, "</") {
			at += len(where)
		}
		got, found, err := Policy([]byte(text[:at] + other + text[at:]))
		if err != nil || !found || !reflect.DeepEqual(got, want) {
			t.Fatalf("Policy() = %+v, %v, %v", got, found, err)
		}
	})
}

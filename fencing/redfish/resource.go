package redfish

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
)

const (
	pathMax = 512
	root    = "/redfish/v1"
)

// link is a reference to another resource.
type link struct {
	ID string `json:"@odata.id"`
}

// system is what is needed of a ComputerSystem.
type system struct {
	Type       string  `json:"@odata.type"`
	UUID       string  `json:"UUID"`
	PowerState *string `json:"-"`
	Actions    struct {
		Reset struct {
			Target     string   `json:"target"`
			Allowable  []string `json:"ResetType@Redfish.AllowableValues"`
			ActionInfo string   `json:"@Redfish.ActionInfo"`
		} `json:"#ComputerSystem.Reset"`
	} `json:"Actions"`
	Links struct {
		Chassis []link `json:"Chassis"`
	} `json:"Links"`

	light light
	path  string
}

// UnmarshalJSON reads the system, and the light that stands among its properties.
// The power state is taken from the property of exactly that name: by itself the
// standard library takes one in other letters too, and the last of them.
func (s *system) UnmarshalJSON(data []byte) error {
	type plain system // without this method
	var exact map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(data, (*plain)(s)), json.Unmarshal(data, &s.light), json.Unmarshal(data, &exact)); err != nil {
		return err
	}
	s.PowerState = nil
	if state, ok := exact["PowerState"]; ok {
		return json.Unmarshal(state, &s.PowerState)
	}
	return nil
}

// check refuses what is not a computer system: a chassis and a manager have a
// power state too, and it says nothing about the host.
func (s *system) check() error {
	if !strings.HasPrefix(strings.TrimPrefix(s.Type, "#"), "ComputerSystem.") {
		return fmt.Errorf("%w: what is at %s is no computer system", fencing.ErrUnsupported, s.path)
	}
	return nil
}

// power is the state where that is On or Off, and an error for all else: a
// system that is being switched off may still write.
func (s *system) power() (haven.PowerState, error) {
	if s.PowerState == nil {
		return haven.PowerUnknown, fmt.Errorf("%w: it does not tell the power state", fencing.ErrNoState)
	}
	switch *s.PowerState {
	case "On":
		return haven.PowerOn, nil
	case "Off":
		return haven.PowerOff, nil
	case "PoweringOn", "PoweringOff", "Paused":
		return haven.PowerUnknown, fmt.Errorf("%w: its power state is %s", fencing.ErrNoState, *s.PowerState)
	}
	return haven.PowerUnknown, fmt.Errorf("%w: its power state is no word of the standard", fencing.ErrNoState)
}

// light is the indicator of a system or a chassis. Newer boards have Location,
// older ones LED, some both.
type light struct {
	Location *bool   `json:"LocationIndicatorActive"`
	LED      *string `json:"IndicatorLED"`
	Tag      string  `json:"@odata.etag"`

	header string // ETag of the answer
}

func (l light) any() bool { return l.Location != nil || l.LED != nil }

func (l light) etag() string {
	if l.header != "" {
		return l.header
	}
	return l.Tag
}

// blinking lists what may make it blink, best first.
func (l light) blinking() []any {
	var c []any
	if l.Location != nil {
		c = append(c, map[string]bool{"LocationIndicatorActive": true})
	}
	if l.LED != nil {
		c = append(c, map[string]string{"IndicatorLED": "Blinking"}, map[string]string{"IndicatorLED": "Lit"})
	}
	return c
}

// dark lists what may put it out, in the order of blinking.
func (l light) dark() []any {
	var c []any
	if l.Location != nil {
		c = append(c, map[string]bool{"LocationIndicatorActive": false})
	}
	if l.LED != nil {
		c = append(c, map[string]string{"IndicatorLED": "Off"})
	}
	return c
}

type actionInfo struct {
	Parameters []struct {
		Name      string   `json:"Name"`
		Allowable []string `json:"AllowableValues"`
	} `json:"Parameters"`
}

func (a actionInfo) resetTypes() []string {
	for _, p := range a.Parameters {
		if p.Name == "ResetType" {
			return p.Allowable
		}
	}
	return nil
}

type collection struct {
	Members []link `json:"Members"`
	Next    string `json:"Members@odata.nextLink"`
}

// only returns the path of the only member.
func (c collection) only() (string, error) {
	switch {
	case len(c.Members) == 0 && c.Next == "":
		return "", fmt.Errorf("%w: it has no computer system", fencing.ErrUnsupported)
	case len(c.Members) > 1 || c.Next != "":
		return "", fmt.Errorf("%w: it has several computer systems; the configuration must name the path of this host's", fencing.ErrUnsupported)
	}
	p, err := localPath(c.Members[0].ID)
	if err != nil {
		return "", fmt.Errorf("%w: its only system: %w", fencing.ErrUnsupported, err)
	}
	return p, nil
}

// parseUUID reads a UUID in the usual form. It is empty for anything else.
func parseUUID(s string) fencing.GUID {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 {
		return ""
	}
	return fencing.NewGUID([16]byte(b))
}

// localPath takes the path of a reference; a host in it is not looked at, for all
// requests go to the one address. It must be one of a Redfish resource.
func localPath(ref string) (string, error) {
	u, err := url.Parse(ref)
	if err != nil || len(ref) > pathMax {
		return "", errors.New("the reference is no path")
	}
	p := u.EscapedPath()
	if u.RawQuery != "" || u.Fragment != "" || p != root && !strings.HasPrefix(p, root+"/") || path.Clean(p) != strings.TrimSuffix(p, "/") {
		return "", fmt.Errorf("want the path of a resource below %s", root)
	}
	for _, c := range p {
		if c <= ' ' || c > '~' {
			return "", errors.New("want a path without blanks")
		}
	}
	return p, nil
}

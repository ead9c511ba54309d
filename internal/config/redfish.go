package config

import (
	"path"
	"regexp"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/haven-ha/haven"
)

// What stands for port and timeout of a device with driver redfish.
const (
	redfishPort    = 443
	redfishTimeout = 15 * time.Second
)

// driverDefaults sets what depends on a device's driver, which may stand in
// another place than the device.
func (k *checker) driverDefaults() {
	set := func(devices map[string]Device, keys func(n string) []string) {
		for _, n := range sorted(devices) {
			v, port, timeout := devices[n], false, false
			for _, key := range keys(n) {
				port = port || k.given(key+".port")
				timeout = timeout || k.given(key+".timeout")
			}
			if v.Driver != "redfish" {
				continue
			}
			if !port {
				v.Port = redfishPort
			}
			if !timeout {
				v.Timeout = redfishTimeout
			}
			devices[n] = v
		}
	}
	set(k.c.Fencing.Devices, func(n string) []string { return []string{"fencing.devices." + n} })
	for id, h := range k.c.Hosts {
		set(h.Fencing.Devices, func(n string) []string { return []string{"fencing.devices." + n, deviceKey(id, n)} })
	}
}

// seat is one host's place at a BMC's address.
type seat struct {
	host   haven.HostID
	system string
}

// same says whether two hosts would be the same machine. Where one names no
// system, the board has only one.
func (s seat) same(o seat) bool { return s.system == o.system || s.system == "" || o.system == "" }

// system tells apart what several hosts have behind one address.
func (v Device) system() string {
	if v.Driver != "redfish" {
		return ""
	}
	return strings.TrimSuffix(v.Redfish.System, "/")
}

// resource is the path of a Redfish resource.
func resource(key string, dst *string, doc string) field {
	const below = "/redfish/v1/"
	return field{
		name: key, kind: "path at the board", limits: "below " + below, preset: *dst, doc: doc,
		set: func(d *decoder, at string, n *yaml.Node) {
			text, ok := d.scalar(at, n)
			if !ok {
				return
			}
			odd := strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("?#%", r) })
			if odd || len(text) > 512 || !strings.HasPrefix(text, below) || path.Clean(text) != strings.TrimSuffix(text, "/") {
				d.bad(n, at, "is not the path of a Redfish resource", "write it as "+below+"Systems/1; the board lists them at "+below+"Systems")
				return
			}
			*dst = text
		},
	}
}

var sha256Pattern = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)

// fingerprint is a SHA-256, with or without colons.
func fingerprint(key string, dst *string, doc string) field {
	return field{
		name: key, kind: "SHA-256", limits: "64 hexadecimal digits", preset: *dst, doc: doc,
		set: func(d *decoder, at string, n *yaml.Node) {
			text, ok := d.scalar(at, n)
			if !ok {
				return
			}
			digits := strings.ToLower(strings.ReplaceAll(text, ":", ""))
			if !sha256Pattern.MatchString(digits) {
				d.bad(n, at, "is not a SHA-256", "write its 64 hexadecimal digits, in quotes; operations.md shows how to get them")
				return
			}
			*dst = digits
		},
	}
}

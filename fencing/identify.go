package fencing

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/haven-ha/haven"
)

// CleanUUID brings a system's UUID, as its firmware gives it, into one form: 36
// characters in lower case. What identifies nothing becomes empty: what is no
// UUID, all zeros, all ones, and the ones that makers of boards forgot to replace.
func CleanUUID(text string) string {
	digits := strings.ReplaceAll(strings.ToLower(strings.TrimSpace(text)), "-", "")
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) != 16 || NewGUID([16]byte(b)) == "" {
		return ""
	}
	switch digits {
	case "03000200040005000006000700080009", "00020003000400050006000700080009", // AMI's example, in both orders
		"12345678123456781234567812345678", "12345678123456789abccddeeff00000":
		return ""
	}
	return strings.Join([]string{digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]}, "-")
}

// Mistake says why a device seems to be another host's.
type Mistake struct {
	Why  string // names both identities
	Twin string // the key of another host's device that gives the same GUID
}

// Identify compares what devices say of themselves with what hosts say, and
// returns, by key, why some of them seem to be another host's:
//
//   - its GUID is not the UUID of its host, in any known order of bytes;
//   - its GUID is the UUID of another host;
//   - another host's device gives the same GUID, and neither is known to be in
//     the right place.
//
// What is not known speaks against nobody: a device without a GUID, a host without
// a UUID, and hosts that share one, for then it identifies nothing. A device whose
// GUID is its host's UUID is the right one, whoever else claims the same; so is one
// that an operator accepted, and then another host's that gives the same GUID is not.
func Identify(stations []Station) map[string]Mistake {
	shared := sharedUUIDs(stations)
	fits := func(guid GUID, uuid string) haven.Tri {
		if shared[uuid] {
			return haven.Unknown
		}
		return guid.MatchesUUID(uuid)
	}
	found := map[string]Mistake{}
	for _, a := range stations {
		own := fits(a.GUID, a.UUID)
		if a.GUID == "" || a.Accepted || own == haven.Yes {
			continue
		}
		var all []Mistake
		for _, b := range stations {
			switch {
			case b.Host == a.Host:
			case fits(a.GUID, b.UUID) == haven.Yes:
				all = append(all, Mistake{Why: fmt.Sprintf("its GUID %s is the UUID %s of %s", a.GUID, b.UUID, b.Host)})
			case a.GUID == b.GUID:
				all = append(all, Mistake{Why: fmt.Sprintf("its GUID %s is also that of device %s of %s", a.GUID, b.Key, b.Host), Twin: b.Key})
			}
		}
		if own == haven.No && len(all) == 0 {
			all = append(all, Mistake{Why: fmt.Sprintf("its GUID %s is not the UUID %s of %s", a.GUID, a.UUID, a.Host)})
		}
		if len(all) > 0 {
			found[a.Key] = slices.MinFunc(all, func(x, y Mistake) int { return cmp.Or(cmp.Compare(x.Twin, y.Twin), cmp.Compare(x.Why, y.Why)) })
		}
	}
	return found
}

// sharedUUIDs are those that more than one host claims.
func sharedUUIDs(stations []Station) map[string]bool {
	first, shared := map[string]haven.HostID{}, map[string]bool{}
	for _, s := range stations {
		if s.UUID == "" {
			continue
		}
		if host, seen := first[s.UUID]; seen && host != s.Host {
			shared[s.UUID] = true
		}
		first[s.UUID] = s.Host
	}
	return shared
}

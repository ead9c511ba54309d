package fencing_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing"
)

// One system in the three orders of bytes in which firmware tells it.
const (
	uuidA  = "a1234567-89ab-cdef-a123-456789abcd01"
	asIs   = "a123456789abcdefa123456789abcd01"
	whole  = "01cdab89674523a1efcdab89674523a1" // all reversed, as IPMI
	fields = "674523a1ab89efcda123456789abcd01" // the first three fields reversed, as SMBIOS
	uuidB  = "b1234567-89ab-cdef-a123-456789abcd02"
	asIsB  = "b123456789abcdefa123456789abcd02"
)

func TestIdentify(t *testing.T) {
	at := func(host haven.HostID, guid fencing.GUID, uuid string) fencing.Station {
		return fencing.Station{Host: host, Key: "bmc-" + string(host), Address: string(host), GUID: guid, UUID: uuid}
	}
	tests := []struct {
		name     string
		stations []fencing.Station
		want     map[string]string // key: a part of the reason
	}{
		{name: "its own, as is", stations: []fencing.Station{at("a", asIs, uuidA)}},
		{name: "its own, reversed", stations: []fencing.Station{at("a", whole, uuidA)}},
		{name: "its own, fields reversed", stations: []fencing.Station{at("a", fields, uuidA)}},
		{name: "another one", stations: []fencing.Station{at("a", "ffeeddccbbaa99887766554433221100", uuidA)}, want: map[string]string{"bmc-a": "is not the UUID a1234567-89ab-cdef-a123-456789abcd01 of a"}},
		{name: "no GUID says nothing", stations: []fencing.Station{at("a", "", uuidA)}},
		{name: "no UUID says nothing", stations: []fencing.Station{at("a", asIsB, "")}},
		{
			name: "addresses that were swapped", stations: []fencing.Station{at("a", asIsB, uuidA), at("b", asIs, uuidB)},
			want: map[string]string{"bmc-a": "of b", "bmc-b": "of a"},
		},
		{
			name: "one board at two hosts: the one in the right place is right", stations: []fencing.Station{at("a", asIs, uuidA), at("b", asIs, uuidB)},
			want: map[string]string{"bmc-b": "is the UUID a1234567-89ab-cdef-a123-456789abcd01 of a"},
		},
		{
			name: "one board at two hosts, nothing known of either", stations: []fencing.Station{at("a", asIs, ""), at("b", asIs, "")},
			want: map[string]string{"bmc-a": "also that of device bmc-b of b", "bmc-b": "also that of device bmc-a of a"},
		},
		{name: "a UUID that two hosts claim identifies nothing", stations: []fencing.Station{at("a", asIs, uuidB), at("b", whole, uuidB)}},
		{name: "two devices of one host may be one", stations: []fencing.Station{at("a", asIs, ""), {Host: "a", Key: "redfish-a", GUID: asIs}}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got := fencing.Identify(tc.stations)
			if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(tc.want))) {
				t.Fatalf("got %v, want %v", got, tc.want)
			}
			for key, part := range tc.want {
				if !strings.Contains(got[key].Why, part) {
					t.Errorf("%s: %+v, want %q", key, got[key], part)
				}
			}
		})
	}
}

func TestCleanUUID(t *testing.T) {
	for text, want := range map[string]string{
		"A1234567-89AB-CDEF-A123-456789ABCD01\n": uuidA, "a123456789abcdefa123456789abcd01": uuidA,
		"": "", "Not Settable": "", "00000000-0000-0000-0000-000000000000": "", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF": "",
		"03000200-0400-0500-0006-000700080009": "", "a1234567": "", strings.Repeat("a", 4096): "",
	} {
		if got := fencing.CleanUUID(text); got != want {
			t.Errorf("CleanUUID(%.40q) = %q, want %q", text, got, want)
		}
	}
}

// What is told of an error does not depend on chance, and an account that is too
// weak is told from a wrong password, though both are refused credentials.
func TestFailureOf(t *testing.T) {
	for want, err := range map[fencing.Failure]error{
		fencing.FailureNone: nil, fencing.FailureOther: errors.New("x"),
		fencing.FailureAuth: fmt.Errorf("log in: %w", fencing.ErrAuth), fencing.FailurePrivilege: fmt.Errorf("log in: %w", fencing.ErrPrivilege),
		fencing.FailureNotPermitted: fmt.Errorf("%w: %w", fencing.ErrNotPermitted, fencing.ErrUnreachable),
		fencing.FailureUnreachable:  fencing.ErrUnreachable, fencing.FailureBusy: fmt.Errorf("%w: %w", fencing.ErrBusy, fencing.ErrUnreachable),
	} {
		for range 20 {
			if got := fencing.FailureOf(err); got != want {
				t.Fatalf("FailureOf(%v) = %q, want %q", err, got, want)
			}
		}
		if is := want.Err(); is != nil && fencing.FailureOf(is) != want {
			t.Errorf("%s does not stand for itself", want)
		}
	}
	if !errors.Is(fencing.ErrPrivilege, fencing.ErrAuth) {
		t.Error("an account without privilege would be asked as often as a sound one")
	}
}

package cluster

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/haven-ha/haven"
)

func fullMeta() Meta {
	return Meta{
		Boot: "11111111-2222-4333-8444-555555555555", Session: 0xdeadbeef, Server: "c0ffee", APIPort: 7947,
		Role: haven.RoleWitness, Voter: true, Ledger: true, Generation: 3,
		Master: "kvm-01", MasterTerm: haven.Term{Generation: 3, Term: 17}, Leave: haven.LeaveShutdown,
	}
}

func TestMetaRoundTrip(t *testing.T) {
	short := rapid.StringMatching(`[!-~]{0,64}`)
	rapid.Check(t, func(t *rapid.T) {
		m := Meta{
			Boot: haven.BootID(short.Draw(t, "boot")), Session: rapid.Uint64().Draw(t, "session"),
			Server: short.Draw(t, "server"), APIPort: rapid.Uint16().Draw(t, "port"),
			Role:  rapid.SampledFrom([]haven.Role{haven.RoleHypervisor, haven.RoleWitness}).Draw(t, "role"),
			Voter: rapid.Bool().Draw(t, "voter"), Ledger: rapid.Bool().Draw(t, "ledger"),
			Generation: rapid.Uint64().Draw(t, "generation"), Master: haven.HostID(short.Draw(t, "master")),
			MasterTerm: haven.Term{Generation: rapid.Uint64().Draw(t, "g"), Term: rapid.Uint64().Draw(t, "t")},
			Leave:      rapid.SampledFrom([]haven.LeaveReason{"", haven.LeaveStopped, haven.LeaveShutdown, haven.LeaveUninstall}).Draw(t, "leave"),
		}
		b, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decodeMeta(b); err != nil || got != m {
			t.Fatalf("got %+v, %v; want %+v", got, err, m)
		}
	})
}

func TestMetaFits(t *testing.T) {
	m := fullMeta()
	m.Boot, m.Server, m.Master = haven.BootID(strings.Repeat("b", 64)), strings.Repeat("s", 64), haven.HostID(strings.Repeat("m", 64))
	m.Generation, m.MasterTerm = math.MaxUint64, haven.Term{Generation: math.MaxUint64, Term: math.MaxUint64}
	b, err := m.encode()
	if err != nil || len(b) > 250 {
		t.Errorf("%d octets, %v; want at most 250", len(b), err)
	}
}

func TestMetaRefuses(t *testing.T) {
	good, err := fullMeta().encode()
	if err != nil {
		t.Fatal(err)
	}
	with := func(at int, v byte) []byte { b := bytes.Clone(good); b[at] = v; return b }
	padded := append(bytes.Clone(good[:metaFixed]), append([]byte{0x83, 0}, good[metaFixed+1:]...)...)
	tests := []struct {
		name string
		b    []byte
	}{
		{"empty", nil},
		{"newer version", with(0, 2)},
		{"unknown flag", with(1, 0x80)},
		{"unknown reason", with(2, 9)},
		{"padded number", padded},
		{"one octet more", append(bytes.Clone(good), 0)},
		{"string too long", with(metaFixed+3, 255)},
		{"control character", with(metaFixed+4, 7)},
		{"text", []byte("role=witness,voter=true")},
		{"long garbage", bytes.Repeat([]byte{1}, 512)},
	}
	for i := range good {
		tests = append(tests, struct {
			name string
			b    []byte
		}{"cut off", good[:i]})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if m, err := decodeMeta(tt.b); err == nil || m != (Meta{}) {
				t.Errorf("%x was read as %+v, %v", tt.b, m, err)
			}
		})
	}
	for _, m := range []Meta{{Boot: "a b"}, {Server: "ü"}, {Master: haven.HostID(strings.Repeat("x", 65))}, {Role: "king"}, {Leave: "bored"}} {
		if _, err := m.encode(); err == nil {
			t.Errorf("%+v was encoded", m)
		}
	}
}

func FuzzDecodeMeta(f *testing.F) {
	good, _ := fullMeta().encode()
	f.Add(good)
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{1}, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMeta(b)
		if err != nil {
			return
		}
		again, err := m.encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x reads as %+v, which is written as %x, %v", b, m, again, err)
		}
	})
}

func FuzzDecodeNotice(f *testing.F) {
	good, _ := notice{host: "kvm-01", session: 7, reason: haven.LeaveStopped}.encode()
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := decodeNotice(b)
		if err != nil {
			return
		}
		again, err := n.encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x reads as %+v, which is written as %x, %v", b, n, again, err)
		}
	})
}

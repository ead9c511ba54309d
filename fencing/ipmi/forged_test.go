package ipmi_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/protocol"
	"github.com/bougou/go-ipmi/pkg/types"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/fencing/ipmi/ipmitest"
)

// statusOff is the answer to Get Chassis Status that says "off", for every
// request number that a short session may use.
func statusOff(requests ...uint8) [][]byte {
	var out [][]byte
	for _, n := range requests {
		out = append(out, protocol.BuildIPMIResponse(0x00, 0x01, n, 0x00, []byte{0x00, 0x00, 0x00, 0x00}))
	}
	return out
}

// forgeries are datagrams that say "off" without knowing any key.
func forgeries(genuine []byte) [][]byte {
	sessionID := binary.LittleEndian.Uint32(genuine[6:10])
	var out [][]byte
	for _, msg := range statusOff(1, 2, 3, 4) {
		for _, id := range []uint32{sessionID, 0} {
			plain := protocol.BuildRMCPPlusPacket(0, 0, id, 1, msg)
			signed := protocol.BuildRMCPPlusPacket(0, types.PayloadFlagAuthenticated, id, 1, msg)
			out = append(out, plain, append(signed, make([]byte, 20)...))
		}
		// A datagram of IPMI 1.5, without authentication.
		old := append([]byte{6, 0, 0xff, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, uint8(len(msg))}, msg...)
		out = append(out, old)
	}
	if genuine[5]&0x3f == 0 {
		// In the handshake a flipped bit is a wrong password: no reading, but
		// no false one either.
		flipped := append([]byte(nil), genuine...)
		flipped[len(flipped)-1] ^= 1
		out = append(out, flipped)
	}
	// Flags of a sealed packet around rubbish of all lengths: what is decrypted
	// before it is checked runs past its end.
	both := types.PayloadFlagAuthenticated | types.PayloadFlagEncrypted
	for n := range 70 {
		rubbish := make([]byte, n)
		for i := range rubbish {
			rubbish[i] = byte(rand.Uint32())
		}
		out = append(out, protocol.BuildRMCPPlusPacket(0, both, sessionID, 1, rubbish), rubbish)
	}
	return out
}

// P2: only an authentic answer says "off". A forger who sees each answer of
// the board and sends any number of datagrams before it changes nothing, and
// does not bring the process down.
func TestForgedReplies(t *testing.T) {
	for _, suite := range []int{17, 3} {
		b := board(t, func(c *ipmitest.Config) { c.Suites = []int{suite} })
		b.SetFaults(func(f *ipmitest.Faults) {
			f.Rewrite = func(p []byte) [][]byte { return append(forgeries(p), p) }
		})
		d := driver(t, b.Addr(), nil)
		for range 5 {
			wantPower(t, d, haven.PowerOn)
		}
	}
}

// The reason why the driver has a session of its own: the library's client
// takes an unauthenticated datagram for an answer. If this test fails after
// an upgrade, the library has learnt to check, and session.go can shrink.
func TestLibraryClientBelievesForgedReplies(t *testing.T) {
	b := board(t, nil)
	addr := netip.MustParseAddrPort(b.Addr())
	c, err := client.NewClient(addr.Addr().String(), int(addr.Port()), "haven", secret)
	if err != nil {
		t.Fatal(err)
	}
	c.WithCipherSuiteID(types.CipherSuiteID17).WithMaxPrivilegeLevel(types.PrivilegeLevelOperator)
	if err := c.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(t.Context()) }()
	b.SetFaults(func(f *ipmitest.Faults) {
		f.Rewrite = func(p []byte) [][]byte {
			var out [][]byte
			for _, msg := range statusOff(1, 2, 3, 4, 5, 6, 7, 8) {
				out = append(out, protocol.BuildRMCPPlusPacket(0, 0, 0, 1, msg))
			}
			return append(out, p)
		}
	})
	res, err := c.GetChassisStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if res.PowerIsOn {
		t.Error("the library's client told the forged answer from the true one")
	}
}

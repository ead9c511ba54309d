// Package fencing makes sure that a host is off, and says how it knows.
//
// A power command's return code proves nothing (P2): the only proof is a
// device that is trusted and that says "off" in fresh, repeated readings. So
// the package is made of pure deciders and thin runners around one small
// Driver interface:
//
//   - Run decides the steps of one fence: read, send off, wait, read again.
//     Execute carries them out.
//   - OffProof judges the readings taken of a host that is only suspected.
//   - Trust decides whether what a device says about a host may be a proof.
//   - Limit is the brake: so many power-downs in so much time, no more.
//   - Gate keeps it to one session per device, fences before readings.
//   - Tester looks at every device now and then, so that a wrong password is
//     an alarm today and not a surprise in the outage.
//
// Nothing here knows who is master or why a host is suspected; callers do.
package fencing

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/haven-ha/haven"
)

// Errors that drivers give. All of them mean that the power state is unknown.
var (
	// ErrAuth is returned when the device refused the user, the password or
	// the privilege. It must not be retried quickly: accounts get locked.
	ErrAuth = errors.New("device refused the credentials")
	// ErrPrivilege is returned when the device took user and password, or would,
	// and the account may not do what fencing needs. It is an ErrAuth as well.
	ErrPrivilege = fmt.Errorf("%w: the account has not the privilege", ErrAuth)
	// ErrUnfit is returned when a test of the device's own says that it would not
	// switch power.
	ErrUnfit = errors.New("device fails its own test")
	// ErrUnreachable is returned when the device did not answer within the
	// bound, or the network said that it cannot be reached.
	ErrUnreachable = errors.New("device does not answer")
	// ErrBusy is returned when the device has no session to spare or is
	// starting up, and when a session had to give way to a fence.
	ErrBusy = errors.New("device is busy")
	// ErrOursIsAtIt is returned when the device was not asked, or not to the end,
	// since something else of ours is at it. It says nothing about the device.
	ErrOursIsAtIt = errors.New("something else of ours is at the device")
	// ErrUnsupported is returned when the device, or the driver, cannot do
	// what was asked.
	ErrUnsupported = errors.New("not supported by the device")
	// ErrRejected is returned when the device refused a command in its present
	// state, as one that is off refuses to be switched off.
	ErrRejected = errors.New("device rejected the command in its present state")
	// ErrNoState is returned when the device answered a question for the power
	// state and said neither on nor off: it is between the two, or cannot tell.
	// It would take a power command all the same.
	ErrNoState = errors.New("device says neither on nor off")
	// ErrNotPermitted is returned when the caller's permission for a power
	// command was withdrawn; nothing was sent.
	ErrNotPermitted = errors.New("power command not permitted")
	// ErrNotYet is wrapped in a refusal that may be over in a moment. Nothing is
	// sent then, as with any other; a run goes on reading and asks again for
	// some seconds before it gives up.
	ErrNotYet = errors.New("not at this moment")
)

// Driver talks to one fence device. Every call is one fresh session that is
// closed before the call returns. Calls must return soon after their context
// ends, and must not be made at the same time: see Gate.
type Driver interface {
	// Power reads the chassis power state. On an error the reading still tells
	// when it was tried, and its state is unknown.
	Power(ctx context.Context) (Reading, error)
	// Set asks for one of ActionOff (at once, never a graceful shutdown),
	// ActionOn or ActionBlink. Success means that the device accepted the
	// command; it does not mean that anything happened. The driver asks permit
	// when the session is open and the command would leave, again before each
	// repetition, and returns ErrNotPermitted when it says no: opening a
	// session can take longer than a leader's lease. A nil permit permits.
	Set(ctx context.Context, action haven.FenceAction, permit Permit) error
	// Identity asks for the device's GUID. It is empty when the device has none.
	Identity(ctx context.Context) (GUID, error)
}

// Lamp is a driver that can say for how long the host's identify light blinks.
type Lamp interface {
	// Light makes it blink for so long, in seconds rounded up, or puts it out when
	// length is zero. It is ErrUnsupported to ask for longer than the device can.
	Light(ctx context.Context, length time.Duration, permit Permit) error
}

// Light asks a driver that is a Lamp, and is ErrUnsupported with any other.
func Light(ctx context.Context, d Driver, length time.Duration, permit Permit) error {
	lamp, ok := d.(Lamp)
	if !ok {
		return fmt.Errorf("%w: the driver neither times a light nor puts it out", ErrUnsupported)
	}
	return lamp.Light(ctx, length, permit)
}

// Permit is asked right before a power command leaves. The caller verifies its
// leadership in it (P3). An error means that nothing may be sent.
type Permit func(ctx context.Context) error

// Check asks the permit and wraps its refusal in ErrNotPermitted.
func (p Permit) Check(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	if p == nil {
		return nil
	}
	if err := p(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	return nil
}

// Reading is what one session with a device brought back.
type Reading struct {
	State haven.PowerState `json:"state"`
	// GUID is the system GUID that the device gave in the same session, or
	// empty when it gave none.
	GUID GUID `json:"guid,omitempty"`
	// Start is when the session was begun, Finish when the answer was in, both
	// by the reader's own clock with its monotonic part. The state was true at
	// some moment between them.
	Start  time.Time `json:"start"`
	Finish time.Time `json:"finish"`
	// Via is the host through which the device was reached, if not directly.
	Via haven.HostID `json:"via,omitempty"`
}

func (r Reading) String() string {
	s := fmt.Sprintf("power %s, read in %s", r.State, r.Finish.Sub(r.Start).Round(time.Millisecond))
	if r.GUID != "" {
		s += ", device " + string(r.GUID)
	}
	return s
}

// GUID is a device's system GUID: 32 hexadecimal digits in the order of the
// wire. The order has no meaning beyond being stable; see MatchesUUID.
type GUID string

// NewGUID turns the bytes of the wire into a GUID. All zeros and all ones say
// "none", as in SMBIOS.
func NewGUID(b [16]byte) GUID {
	if b == ([16]byte{}) || strings.Count(string(b[:]), "\xff") == len(b) {
		return ""
	}
	return GUID(hex.EncodeToString(b[:]))
}

// MatchesUUID compares the GUID with a host's DMI product UUID. Firmware
// writes a GUID in one of three byte orders, so all three are tried: as is,
// all reversed (IPMI), and with the first three fields reversed (SMBIOS). It
// is Unknown when either side is missing or is no UUID. A No is weak: on many
// boards the two never agree.
func (g GUID) MatchesUUID(uuid string) haven.Tri {
	want, err := hex.DecodeString(strings.ReplaceAll(strings.ToLower(uuid), "-", ""))
	if err != nil || len(want) != 16 || NewGUID([16]byte(want)) == "" {
		return haven.Unknown
	}
	got, err := hex.DecodeString(string(g))
	if err != nil || len(got) != 16 {
		return haven.Unknown
	}
	ipmi := [16]int{15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0}
	smbios := [16]int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15}
	asIs, reversed, mixed := true, true, true
	for i, w := range want {
		asIs = asIs && got[i] == w
		reversed = reversed && got[ipmi[i]] == w
		mixed = mixed && got[smbios[i]] == w
	}
	return haven.TriOf(asIs || reversed || mixed)
}

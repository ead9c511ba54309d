package fencing

import "errors"

// Failure is the kind of a driver's error, for people and for the wire.
type Failure string

// The kinds of failures. FailureNone is none.
const (
	FailureNone         Failure = ""
	FailureAuth         Failure = "auth"          // wrong user name or password
	FailurePrivilege    Failure = "privilege"     // the account may not switch power
	FailureUnreachable  Failure = "unreachable"   // no answer
	FailureBusy         Failure = "busy"          // no session to be had, or it is starting
	FailureUnsupported  Failure = "unsupported"   // it cannot do what is asked
	FailureRejected     Failure = "rejected"      // not in its present state
	FailureNotPermitted Failure = "not-permitted" // nothing was sent
	FailureIdentity     Failure = "identity"      // it seems to be another host's
	FailureNoState      Failure = "no-state"      // it says neither on nor off
	FailureUnfit        Failure = "unfit"         // a test of its own fails
	FailureOther        Failure = "other"
)

// failures pairs kinds with the errors of drivers. The first that fits names an
// error: one that wraps another is before it.
func failures() []struct {
	kind Failure
	is   error
} {
	return []struct {
		kind Failure
		is   error
	}{
		{FailureNotPermitted, ErrNotPermitted}, // a refusal wraps why; that nothing was sent says more
		{FailurePrivilege, ErrPrivilege},
		{FailureAuth, ErrAuth},
		{FailureUnfit, ErrUnfit},
		{FailureBusy, ErrBusy},
		{FailureRejected, ErrRejected},
		{FailureNoState, ErrNoState},
		{FailureUnsupported, ErrUnsupported},
		{FailureUnreachable, ErrUnreachable},
	}
}

// FailureOf says of which kind a driver's error is.
func FailureOf(err error) Failure {
	if err == nil {
		return FailureNone
	}
	for _, f := range failures() {
		if errors.Is(err, f.is) {
			return f.kind
		}
	}
	return FailureOther
}

// Err is the error that stands for the kind, or nil for one that no driver gives.
func (f Failure) Err() error {
	for _, known := range failures() {
		if known.kind == f {
			return known.is
		}
	}
	return nil
}

// Advice says what a person can do about it, before the device is needed.
func (f Failure) Advice() string {
	switch f {
	case FailureAuth:
		return "Correct the user name or the password: the one in the device's password_file is not the device's. Until then it is asked rarely, so that the account is not locked"
	case FailurePrivilege:
		return "Give the account the right to switch power: OPERATOR with IPMI, the role Operator with Redfish. The password is right"
	case FailureUnreachable:
		return "Look at the device's address, its cable and the network between; it may also be without power"
	case FailureBusy:
		return "It has no session to spare, or is starting. Look for other programs that keep sessions open there; if it lasts, restart the board"
	case FailureUnsupported, FailureRejected, FailureUnfit:
		return "It answers, but not as it should: look at its driver, its settings and its firmware"
	case FailureIdentity:
		return "Look whether its address is the right one. Blink the light: haven fence blink {host}. If the device is the host's own: haven host trust-bmc {host}"
	case FailureNoState:
		return "It answers, and says neither on nor off. If that lasts, nothing can be proved by it: look at its settings and its firmware"
	case FailureNone, FailureNotPermitted, FailureOther:
	}
	return ""
}

package libvirt

import (
	"errors"
	"fmt"
	"strings"

	lv "github.com/digitalocean/go-libvirt"

	"github.com/haven-ha/haven"
)

// The kinds of failure a caller tells apart with errors.Is. All but
// ErrOutcomeUnknown are definite: what was asked did not happen and will not
// happen any more.
var (
	// ErrOutcomeUnknown is returned when a call was sent that changes something
	// and its answer was not heard: the deadline passed, or the connection was
	// lost. It may have happened, or may yet happen.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrAlreadyRunning is returned when the VM to be started, or to be set
	// aside, is active.
	ErrAlreadyRunning = errors.New("already running")
	// ErrLocked is returned when a start failed because another process holds a
	// lock or lease on a disk of the VM. It is worth a quick retry.
	ErrLocked = errors.New("disk is locked")
	// ErrNoDisk is returned when a start failed because a disk, pool or volume
	// is not there or cannot be opened.
	ErrNoDisk = errors.New("disk is missing")
	// ErrNoNetwork is returned when a start failed because a network, bridge or
	// interface is not there or not active.
	ErrNoNetwork = errors.New("network is missing")
	// ErrNoMemory is returned when a start failed for want of memory.
	ErrNoMemory = errors.New("out of memory")
	// ErrUnsuitable is returned when the host cannot run this definition at
	// all: its CPU, machine type, emulator or a device is not supported here.
	ErrUnsuitable = errors.New("host is unsuitable")
	// ErrSavedImage is returned when a VM to be started has a managed-save
	// image and the caller did not allow to resume it. Memory that is older
	// than the disks destroys them.
	ErrSavedImage = errors.New("a managed-save image exists")
	// ErrConflict is returned when a definition cannot be stored because its
	// name or its UUID belongs to another domain of the host.
	ErrConflict = errors.New("name or UUID is taken")
	// ErrKept is returned when a definition could not be set aside without
	// losing something, and was left in place.
	ErrKept = errors.New("definition was left in place")
	// ErrFailed is returned when libvirt refused or failed for another reason.
	ErrFailed = errors.New("failed")
)

// Error is a failure of an operation on the VM manager. Its methods let a
// consumer tell the cases apart without importing this package.
type Error struct {
	Op   string // what was tried
	Kind error  // one of the sentinels above, haven.ErrUnavailable or haven.ErrNotFound
	Err  error  // libvirt's own words, or what went wrong on the way
}

func (e *Error) Error() string {
	switch {
	case e.Err == nil:
		return fmt.Sprintf("%s: %v", e.Op, e.Kind)
	case errors.Is(e.Err, e.Kind): // It says so itself.
		return fmt.Sprintf("%s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("%s: %v: %v", e.Op, e.Kind, e.Err)
}

// Unwrap gives the kind and the cause to errors.Is and errors.As.
func (e *Error) Unwrap() []error { return []error{e.Kind, e.Err} }

// OutcomeUnknown says whether what was asked may have happened or may yet happen.
func (e *Error) OutcomeUnknown() bool { return errors.Is(e.Kind, ErrOutcomeUnknown) }

// Locked says whether another process holds a lock on the VM's disks.
func (e *Error) Locked() bool { return errors.Is(e.Kind, ErrLocked) }

// AlreadyRunning says whether the VM was active already.
func (e *Error) AlreadyRunning() bool { return errors.Is(e.Kind, ErrAlreadyRunning) }

// classify finds the kind of an error that libvirt itself gave. Codes come
// first; messages are only read where libvirt has one code for many troubles.
// QEMU's own messages are never translated, libvirt's may be: then the kind is
// ErrFailed, which is as definite and only less precise.
func classify(err error) error {
	var le lv.Error
	if !errors.As(err, &le) {
		return ErrFailed
	}
	switch lv.ErrorNumber(le.Code) {
	case lv.ErrNoDomain:
		return haven.ErrNotFound
	case lv.ErrOperationTimeout:
		// Another job holds the VM, and it may be a start that somebody gave up
		// waiting for: that one can still happen (P1).
		return ErrOutcomeUnknown
	case lv.ErrNoMemory:
		return ErrNoMemory
	case lv.ErrNoNetwork, lv.ErrNoInterface, lv.ErrNoNetworkPort:
		return ErrNoNetwork
	case lv.ErrNoStoragePool, lv.ErrNoStorageVol, lv.ErrDeviceMissing:
		return ErrNoDisk
	case lv.ErrDomExist:
		return ErrConflict
	case lv.ErrConfigUnsupported, lv.ErrCPUIncompatible, lv.ErrNoDevice, lv.ErrOsType:
		return ErrUnsuitable
	default:
		return classifyText(le)
	}
}

// classifyText reads the message of an error whose code says too little.
func classifyText(le lv.Error) error {
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(le.Message, w) {
				return true
			}
		}
		return false
	}
	code := lv.ErrorNumber(le.Code)
	switch {
	case has(`Failed to get "write" lock`, `Failed to get shared "write" lock`, `Failed to get "consistent read" lock`,
		"Failed to lock byte", "Is another process using the image", "Failed to acquire lock"),
		code == lv.ErrResourceBusy && has("is locked", "ock"):
		return ErrLocked
	case code == lv.ErrOperationInvalid && has("already running", "already active", "domain is running"):
		return ErrAlreadyRunning
	case code == lv.ErrOperationFailed && has("already exists with uuid", "is already defined with uuid"):
		return ErrConflict
	case has("is not active") && has("etwork"), has("interface MTU", "Unable to add bridge", "add bridge"):
		return ErrNoNetwork
	case has("Cannot allocate memory", "cannot set up guest memory", "unable to map backing store"):
		return ErrNoMemory
	case has("Cannot access storage file", "Cannot access backing file", "Could not open '", "not find storage"):
		return ErrNoDisk
	case has("Cannot check QEMU binary", "does not support", "is not supported", "unsupported machine type"):
		return ErrUnsuitable
	}
	return ErrFailed
}

// failed wraps an error of a call that changes nothing, or was never begun.
// Whatever libvirt did not say itself means that it could not be asked.
func failed(op string, err error) error {
	var done *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &done):
		return err
	case fromLibvirt(err):
		return &Error{Op: op, Kind: classify(err), Err: err}
	}
	return &Error{Op: op, Kind: haven.ErrUnavailable, Err: err}
}

// fromLibvirt says whether the error is an answer, and not a lost connection.
func fromLibvirt(err error) bool {
	var le lv.Error
	return errors.As(err, &le) || errors.Is(err, lv.ErrUnsupported)
}

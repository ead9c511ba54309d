package watchdog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of a device.
var (
	// ErrBusy is returned when somebody else has the device open, such as
	// systemd's RuntimeWatchdog or sbd.
	ErrBusy = errors.New("somebody else has the watchdog open, such as systemd (RuntimeWatchdogSec) or sbd")
	// ErrNoWayOut is returned when the device, once started, cannot be stopped.
	ErrNoWayOut = errors.New("the watchdog cannot be stopped once it runs (nowayout)")
	// ErrSoft is returned of a timer in the kernel that it watches over.
	ErrSoft = errors.New("it is a timer of the kernel itself, which dies with it; fencing.watchdog.allow_softdog allows it")
	// ErrUnable is returned when the device cannot do what is needed.
	ErrUnable = errors.New("the watchdog cannot be used")
)

// softIdentity is what Linux' software watchdog calls itself.
const softIdentity = "Software Watchdog"

// Finder opens watchdog devices.
type Finder struct {
	// AllowSoft takes a software watchdog too.
	AllowSoft bool
	// Sys is where sysfs is; empty means /sys.
	Sys string
}

// Check says what of a device is known without opening it, which would start it:
// whether it could ever be used. A nil error promises nothing.
func (f Finder) Check(path string) error {
	if nowayout, ok := f.attribute(path, "nowayout"); ok && nowayout != "0" {
		return fmt.Errorf("watchdog %s: %w", path, ErrNoWayOut)
	}
	if identity, ok := f.attribute(path, "identity"); ok && identity == softIdentity && !f.AllowSoft {
		return fmt.Errorf("watchdog %s: %w", path, ErrSoft)
	}
	return nil
}

// attribute reads what sysfs tells of a device: the kernel's first one is also
// called watchdog, without a number.
func (f Finder) attribute(path, name string) (string, bool) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	base := filepath.Base(path)
	if base == "watchdog" {
		base = "watchdog0"
	}
	sys := f.Sys
	if sys == "" {
		sys = "/sys"
	}
	text, err := os.ReadFile(filepath.Join(sys, "class/watchdog", base, name))
	return strings.TrimSpace(string(text)), err == nil
}

// Open opens a device, which starts it, or pets one that runs. With takeOver it
// asks for nothing that the device must be able to do: it runs already.
func (f Finder) Open(path string, takeOver bool) (*Device, error) {
	if !takeOver {
		if err := f.Check(path); err != nil {
			return nil, err
		}
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("open watchdog %s: %w", path, ErrBusy)
	case err != nil:
		return nil, fmt.Errorf("open watchdog %s: %w", path, err)
	}
	d := &Device{path: path, fd: fd}
	if err := d.look(f.AllowSoft); err != nil && !takeOver {
		// It was just started, and nobody relies on it.
		return nil, errors.Join(fmt.Errorf("watchdog %s: %w", path, err), d.MagicClose())
	}
	return d, nil
}

// Device is an open watchdog device. Its methods must not be called at the same
// time. None of them waits for anything but the device's driver.
type Device struct {
	path     string
	fd       int
	Identity string
}

// look finds out what the device is, and whether it can do what is needed.
func (d *Device) look(allowSoft bool) error {
	info, err := unix.IoctlGetWatchdogInfo(d.fd)
	if err != nil {
		return fmt.Errorf("%w: it does not say what it can do: %w", ErrUnable, err)
	}
	d.Identity = strings.TrimRight(string(info.Identity[:]), "\x00")
	switch {
	case info.Options&unix.WDIOF_MAGICCLOSE == 0:
		return fmt.Errorf("%w: %q stops at every close, also when the agent is killed", ErrUnable, d.Identity)
	case info.Options&unix.WDIOF_SETTIMEOUT == 0:
		return fmt.Errorf("%w: %q has a timeout that cannot be set", ErrUnable, d.Identity)
	case d.Identity == softIdentity && !allowSoft:
		return ErrSoft
	}
	return nil
}

// SetTimeout sets the device's own timeout, in whole seconds, and returns what it
// is then: devices round. It is a pet.
func (d *Device) SetTimeout(t time.Duration) (time.Duration, error) {
	if err := unix.IoctlSetPointerInt(d.fd, unix.WDIOC_SETTIMEOUT, int(t/time.Second)); err != nil {
		return 0, fmt.Errorf("set timeout of watchdog %s to %s: %w", d.path, t, err)
	}
	return d.Timeout()
}

// Timeout is the device's own timeout.
func (d *Device) Timeout() (time.Duration, error) { return d.seconds("timeout", unix.WDIOC_GETTIMEOUT) }

// Left is the time until the device fires, in whole seconds. Many devices cannot
// tell.
func (d *Device) Left() (time.Duration, error) { return d.seconds("time left", unix.WDIOC_GETTIMELEFT) }

func (d *Device) seconds(what string, request uint) (time.Duration, error) {
	n, err := unix.IoctlGetUint32(d.fd, request)
	if err != nil {
		return 0, fmt.Errorf("get %s of watchdog %s: %w", what, d.path, err)
	}
	return time.Duration(n) * time.Second, nil
}

// Pet starts the device's count anew.
func (d *Device) Pet() error { return d.write("pet", 0) }

// MagicClose stops the device. One that is nowayout goes on.
func (d *Device) MagicClose() error {
	// A close is final, whatever it returns.
	return errors.Join(d.write("stop", 'V'), unix.Close(d.fd))
}

// Close leaves the device running. The kernel takes it for a pet.
func (d *Device) Close() error { return unix.Close(d.fd) }

func (d *Device) write(what string, b byte) error {
	for {
		_, err := unix.Write(d.fd, []byte{b})
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s watchdog %s: %w", what, d.path, err)
		}
		return nil
	}
}

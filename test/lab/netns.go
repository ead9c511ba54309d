package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// inNetns runs f on a thread of its own inside a network namespace. f must not
// start goroutines that expect to be there too. The thread ends with f.
func inNetns(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is not to be used again
		done <- func() error {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open network namespace %s: %w", path, err)
			}
			defer unix.Close(fd) //nolint:errcheck // opened for reading
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", path, err)
			}
			return f()
		}()
	}()
	return <-done
}

// setLinks takes interfaces of a network namespace up or down.
func setLinks(ns string, up bool, names ...string) error {
	return inNetns(ns, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		defer unix.Close(fd) //nolint:errcheck // nothing was written
		var errs []error
		for _, name := range names {
			if err := setLink(fd, name, up); err != nil {
				errs = append(errs, fmt.Errorf("switch link %s: %w", name, err))
			}
		}
		return errors.Join(errs...)
	})
}

func setLink(fd int, name string, up bool) error {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r); err != nil {
		return err
	}
	flags := r.Uint16() &^ unix.IFF_UP
	if up {
		flags |= unix.IFF_UP
	}
	r.SetUint16(flags)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

// link is an interface of a network namespace.
type link struct{ ns, name string }

// flags reads the interface's flags.
func (l link) flags() (flags uint16, err error) {
	err = inNetns(l.ns, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		defer unix.Close(fd) //nolint:errcheck // nothing was written
		r, err := unix.NewIfreq(l.name)
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r); err != nil {
			return fmt.Errorf("read flags of %s: %w", l.name, err)
		}
		flags = r.Uint16()
		return nil
	})
	return flags, err
}

// waitCarrier waits until a wire whose both ends are up carries frames: Linux tells
// the bridge about a new carrier up to a second late. A wire with an end down is
// not waited for.
func waitCarrier(ctx context.Context, ends ...link) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return poll(ctx, 5*time.Millisecond, func() (bool, error) {
		running := true
		for _, l := range ends {
			flags, err := l.flags()
			if err != nil {
				return false, err
			}
			if flags&unix.IFF_UP == 0 {
				return true, nil
			}
			running = running && flags&unix.IFF_RUNNING != 0
		}
		return running, nil
	})
}

// dialIn connects from inside a network namespace. The address must be numeric:
// then the socket is made on the calling thread, which is the one that counts.
func dialIn(ctx context.Context, ns, network, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial %s: want a numeric address: %w", address, err)
	}
	var conn net.Conn
	err := inNetns(ns, func() (err error) {
		conn, err = (&net.Dialer{FallbackDelay: -time.Second}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Package labdog is the lab's watchdog device: a file served by FUSE that takes
// the ioctls of /dev/watchdog and calls a function when it was not petted in time.
package labdog

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// File is the device's name below the mount point.
const File = "watchdog"

// Options say what to serve where.
type Options struct {
	Mount    string // an empty directory: the device appears in it as [File]
	Control  string // path of the unix socket that takes commands
	Identity string // what the device says it is, at most 32 octets
	Limits   Limits
	Timeout  time.Duration // before anybody sets it
	// Expired is called each time when the time is over. It may take long.
	Expired func()
}

// Serve mounts the device and serves it until the mount is gone. It can be opened
// once its control answers.
func Serve(o Options) error {
	d := newDog(o.Limits, o.Timeout, o.Expired)
	root := &root{device: &device{dog: d, identity: o.Identity}}
	server, err := fs.Mount(o.Mount, root, &fs.Options{MountOptions: fuse.MountOptions{
		FsName: "labdog", Name: "labdog", DirectMountStrict: true, AllowOther: true,
	}})
	if err != nil {
		return fmt.Errorf("mount %s: %w", o.Mount, err)
	}
	if err := keepFromChildren("/dev/fuse"); err != nil {
		return errors.Join(err, server.Unmount())
	}
	if err := os.Remove(o.Control); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.Join(fmt.Errorf("remove old control socket: %w", err), server.Unmount())
	}
	l, err := net.Listen("unix", o.Control)
	if err != nil {
		return errors.Join(fmt.Errorf("listen for watchdog commands: %w", err), server.Unmount())
	}
	ended := make(chan struct{})
	go func() { control(l, d); close(ended) }()
	server.Wait()
	_ = l.Close()
	<-ended
	d.cutPower()
	return nil
}

// keepFromChildren marks what this process has open at a path to be closed in the
// programs that it starts. Expired may boot the host, whose processes would hold
// the connection to the kernel open then: one that has the device open waits, at
// its end, for an answer that nobody gives, and the connection does not end while
// that process has it.
func keepFromChildren(path string) error {
	const open = "/proc/self/fd"
	all, err := os.ReadDir(open)
	if err != nil {
		return fmt.Errorf("list open files: %w", err)
	}
	for _, e := range all {
		fd, err := strconv.Atoi(e.Name())
		if to, _ := os.Readlink(open + "/" + e.Name()); err == nil && to == path {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

type root struct {
	fs.Inode
	device *device
}

// OnAdd makes the one file.
func (r *root) OnAdd(ctx context.Context) {
	r.AddChild(File, r.NewPersistentInode(ctx, r.device, fs.StableAttr{Mode: syscall.S_IFREG}), true)
}

type device struct {
	fs.Inode
	dog      *dog
	identity string
}

// Getattr tells what everybody may know of the file.
func (d *device) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = syscall.S_IFREG | 0o600
	return 0
}

// Setattr takes a truncation, and does nothing.
func (d *device) Setattr(_ context.Context, _ fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	out.Mode = syscall.S_IFREG | 0o600
	return 0
}

// Open lets one in at a time.
func (d *device) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, errno := d.dog.open()
	if errno != 0 {
		return nil, 0, errno
	}
	return h, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NONSEEKABLE, 0
}

// Write is a pet.
func (d *device) Write(_ context.Context, f fs.FileHandle, data []byte, _ int64) (uint32, syscall.Errno) {
	h, ok := f.(*handle)
	if !ok {
		return 0, syscall.EBADF
	}
	if errno := h.write(data); errno != 0 {
		return 0, errno
	}
	return uint32(len(data)), 0
}

// Release is the last close of one opening.
func (d *device) Release(_ context.Context, f fs.FileHandle) syscall.Errno {
	if h, ok := f.(*handle); ok {
		h.release()
	}
	return 0
}

// The ioctls of linux/watchdog.h, by their numbers.
const (
	ioctlSupport = iota
	ioctlStatus
	ioctlBootStatus
	ioctlTemperature
	ioctlOptions
	ioctlKeepAlive
	ioctlSetTimeout
	ioctlGetTimeout
	ioctlSetPretimeout
	ioctlGetPretimeout
	ioctlTimeLeft
)

const options = 0x8000 | 0x0100 | 0x0080 // KEEPALIVEPING, MAGICCLOSE, SETTIMEOUT

// Ioctl answers those that the kernel's core answers. The one that pets never
// arrives: FUSE refuses it, since its number promises a result that it has not.
func (d *device) Ioctl(_ context.Context, f fs.FileHandle, cmd uint32, _ uint64, in, out []byte) (int32, syscall.Errno) {
	h, ok := f.(*handle)
	if !ok || cmd>>8&0xff != 'W' {
		return 0, syscall.ENOTTY
	}
	put := func(seconds time.Duration) (int32, syscall.Errno) {
		if len(out) < 4 {
			return 0, syscall.EINVAL
		}
		binary.NativeEndian.PutUint32(out, uint32(seconds/time.Second))
		return 0, 0
	}
	switch cmd & 0xff {
	case ioctlSupport: // options, firmware version, identity
		if len(out) < 40 {
			return 0, syscall.EINVAL
		}
		binary.NativeEndian.PutUint32(out, options)
		copy(out[8:40], d.identity)
		return 0, 0
	case ioctlStatus, ioctlBootStatus:
		return put(0)
	case ioctlSetTimeout:
		if len(in) < 4 {
			return 0, syscall.EINVAL
		}
		if errno := h.setTimeout(time.Duration(binary.NativeEndian.Uint32(in)) * time.Second); errno != 0 {
			return 0, errno
		}
		return put(d.dog.status().Timeout)
	case ioctlGetTimeout:
		return put(d.dog.status().Timeout)
	case ioctlTimeLeft:
		return put(h.left())
	}
	return 0, syscall.ENOTTY
}

// control answers one command on each connection, one at a time.
func control(l net.Listener, d *dog) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(time.Second))
		line, err := bufio.NewReader(io.LimitReader(c, 256)).ReadString('\n')
		if err == nil {
			_ = json.NewEncoder(c).Encode(command(d, strings.TrimSpace(line)))
		}
		_ = c.Close()
	}
}

type answer struct {
	Status Status
	Error  string `json:",omitempty"`
}

func command(d *dog, line string) answer {
	switch line {
	case "status":
	case "power-cut":
		d.cutPower()
	case "nowayout on", "nowayout off":
		d.set(func(d *dog) { d.nowayout = line == "nowayout on" })
	case "broken on", "broken off":
		d.set(func(d *dog) { d.broken = line == "broken on" })
	default:
		return answer{Error: fmt.Sprintf("unknown command %q", line)}
	}
	return answer{Status: d.status()}
}

// Control sends commands to a serving process.
type Control string // the path of its control socket

// Status reads the device's state.
func (c Control) Status(ctx context.Context) (Status, error) { return c.do(ctx, "status") }

// CutPower stops the device and ends whatever has it open, as a power cut does.
func (c Control) CutPower(ctx context.Context) error {
	_, err := c.do(ctx, "power-cut")
	return err
}

// NoWayOut makes the device go on after a magic close.
func (c Control) NoWayOut(ctx context.Context, on bool) error {
	_, err := c.do(ctx, "nowayout "+onOff(on))
	return err
}

// Broken makes every write fail.
func (c Control) Broken(ctx context.Context, on bool) error {
	_, err := c.do(ctx, "broken "+onOff(on))
	return err
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func (c Control) do(ctx context.Context, line string) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", string(c))
	if err != nil {
		return Status{}, fmt.Errorf("dial watchdog control: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing to lose after the answer
	if d, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(d)
	}
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return Status{}, fmt.Errorf("send watchdog command: %w", err)
	}
	var a answer
	if err := json.NewDecoder(conn).Decode(&a); err != nil {
		return Status{}, fmt.Errorf("read watchdog answer: %w", err)
	}
	if a.Error != "" {
		return Status{}, fmt.Errorf("watchdog refused: %s", a.Error)
	}
	return a.Status, nil
}

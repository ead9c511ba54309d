// Package labfs is the lab's shared storage: a FUSE mount for each host over one
// exported directory, as coherent as a file server, with locks that hold across
// hosts, and with the faults of real storage, one host at a time.
package labfs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Options say what to mount where.
type Options struct {
	Export  string // the directory that all hosts share
	Mount   string // where this host's view of it appears
	Control string // path of the unix socket that takes commands
	Locks   bool   // file locks hold across hosts; without, each host has its own
	// AttrCache is for how long this host's kernel takes attributes from its own
	// memory, as an NFS client does (actimeo). Who asks with AT_STATX_FORCE_SYNC is
	// told the truth.
	AttrCache time.Duration
	// AttrLag is for how long the storage itself repeats what it told of a file, as
	// a file system with a caching process of its own does. It repeats it to
	// everybody.
	AttrLag time.Duration
}

// Serve mounts the export and serves it until the mount is gone.
func Serve(o Options) error {
	g := newGate()
	root, err := newRoot(o.Export, g)
	if err != nil {
		return err
	}
	// Unless it is wanted nothing is cached, so that hosts see each other's writes at once.
	options := &fs.Options{
		AttrTimeout:  &o.AttrCache,
		EntryTimeout: &o.AttrCache,
		MountOptions: fuse.MountOptions{
			FsName: o.Export, Name: "labfs", DirectMountStrict: true, AllowOther: true,
			MaxWrite: 1 << 20, EnableLocks: o.Locks,
		},
	}
	raw := &gated{RawFileSystem: lagging(fs.NewNodeFS(root, options), o.AttrLag), gate: g}
	server, err := fuse.NewServer(raw, o.Mount, &options.MountOptions)
	if err != nil {
		return fmt.Errorf("mount %s: %w", o.Mount, err)
	}
	done := make(chan struct{})
	go func() { server.Serve(); close(done) }()
	if err := server.WaitMount(); err != nil {
		return fmt.Errorf("mount %s: %w", o.Mount, err)
	}
	l, err := listen(o.Control)
	if err != nil {
		return errors.Join(err, server.Unmount())
	}
	controlDone := make(chan struct{})
	go func() { control(l, g); close(controlDone) }()
	<-done
	_ = l.Close()
	<-controlDone
	return nil
}

func newRoot(export string, g *gate) (fs.InodeEmbedder, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(export, &st); err != nil {
		return nil, fmt.Errorf("stat export %s: %w", export, err)
	}
	data := &fs.LoopbackRoot{Path: export, Dev: uint64(st.Dev)}
	root := &node{&fs.LoopbackNode{RootData: data}, g}
	data.RootNode = root
	return root, nil
}

func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old control socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for storage commands: %w", err)
	}
	return l, nil
}

// control answers one command on each connection, one at a time.
func control(l net.Listener, g *gate) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(time.Second))
		line, err := bufio.NewReader(io.LimitReader(c, 256)).ReadString('\n')
		if err == nil {
			_, _ = io.WriteString(c, command(g, strings.TrimSpace(line)))
		}
		_ = c.Close()
	}
}

func command(g *gate, line string) string {
	switch verb, rest, _ := strings.Cut(line, " "); verb {
	case "mode":
		if err := g.set(Mode(rest)); err != nil {
			return "error " + err.Error() + "\n"
		}
	case "release":
		g.release()
	case "status":
	default:
		return fmt.Sprintf("error unknown command %q\n", verb)
	}
	mode, held := g.state()
	return fmt.Sprintf("ok %d %s\n", held, mode)
}

// Status is the state of one host's storage.
type Status struct {
	Mode Mode
	Held int // requests that wait
}

// Control sends commands to a serving process.
type Control string // the path of its control socket

// Set changes the mode.
func (c Control) Set(ctx context.Context, m Mode) error {
	_, err := c.do(ctx, "mode "+string(m))
	return err
}

// Release fails the requests that wait now with EIO; the mode stays.
func (c Control) Release(ctx context.Context) error {
	_, err := c.do(ctx, "release")
	return err
}

// Status reads the mode and the number of waiting requests.
func (c Control) Status(ctx context.Context) (Status, error) { return c.do(ctx, "status") }

func (c Control) do(ctx context.Context, line string) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", string(c))
	if err != nil {
		return Status{}, fmt.Errorf("dial storage control: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing to lose after the answer
	if d, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(d)
	}
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return Status{}, fmt.Errorf("send storage command: %w", err)
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return Status{}, fmt.Errorf("read storage answer: %w", err)
	}
	return parseAnswer(strings.TrimSpace(answer))
}

func parseAnswer(answer string) (Status, error) {
	verb, rest, _ := strings.Cut(answer, " ")
	if verb != "ok" {
		return Status{}, fmt.Errorf("storage refused: %s", rest)
	}
	var s Status
	held, mode, _ := strings.Cut(rest, " ")
	if _, err := fmt.Sscan(held, &s.Held); err != nil {
		return Status{}, fmt.Errorf("parse storage answer %q: %w", answer, err)
	}
	s.Mode = Mode(mode)
	return s, nil
}

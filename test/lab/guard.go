package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const downTimeout = 30 * time.Second

// guard takes the lab down when the process that owns it ends without doing so:
// a test that runs into its time limit does not clean up.
type guard struct {
	cmd   *exec.Cmd
	leash io.Closer // the guard acts when this closes
}

func startGuard(s *spec) (*guard, error) {
	cmd := exec.Command(s.binary(), childGuard, s.Dir, strconv.Itoa(os.Getpid()))
	cmd.Env, cmd.Dir, cmd.Stderr = systemEnv(), "/", os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	leash, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	return &guard{cmd: cmd, leash: leash}, nil
}

// dismiss ends the guard once there is nothing left to guard.
func (g *guard) dismiss() error {
	_ = g.leash.Close()
	if err := g.cmd.Wait(); err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	return nil
}

// runGuard is the guard's process. The leash may be held by a copy of the owner
// that was on its way to become another program, so it looks at its parent too.
func runGuard(dir, owner string) error {
	let := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // an error means the same
		close(let)
	}()
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for strconv.Itoa(os.Getppid()) == owner {
		select {
		case <-let:
			return Down(context.Background(), dir)
		case <-look.C:
		}
	}
	return Down(context.Background(), dir)
}

// Down takes down whatever is left of the lab in a state directory, also of one
// whose owner died half-way. Without a lab there it does nothing. The logs stay,
// unless the directory was the lab's own.
func Down(ctx context.Context, dir string) error {
	s, err := loadSpec(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.tearDown(ctx)
}

// tearDown removes all that is the kernel's and then the state file. What fails
// does not keep the rest from being removed, and the state file stays for the
// next try. It is bounded by [downTimeout] and does not mind an ended ctx.
func (s *spec) tearDown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
	defer cancel()
	unlock, err := lockFile(ctx, s.file("down.lock"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // somebody else was faster
	}
	if err != nil {
		return fmt.Errorf("take lab %s down: %w", s.Prefix, err)
	}
	defer unlock()
	if _, err := os.Stat(specFile(s.Dir)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{s.killAll(ctx), s.removeMounts(), s.removeNetwork(ctx)}
	if err := cgroup(s.Cgroup).remove(ctx); err != nil {
		errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take lab %s down: %w", s.Prefix, err)
	}
	if s.OwnDir {
		return os.RemoveAll(s.Dir)
	}
	return os.Remove(specFile(s.Dir))
}

// killAll ends every process of the lab. The storage dies with them, which fails
// the requests that would keep others in the kernel.
func (s *spec) killAll(ctx context.Context) error {
	group := cgroup(s.Cgroup)
	err := group.kill()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = group.waitEmpty(ctx)
	}
	if err != nil {
		return fmt.Errorf("end processes: %w", err)
	}
	return nil
}

// stamps is the lab's diary.
type stamps struct {
	mu  sync.Mutex
	all []Stamp
}

// Stamp says when something was done to the lab.
type Stamp struct {
	At   time.Time // taken right before it was done
	What string    // such as "h1 power cut"
}

// Ms is the stamp's wall clock in milliseconds since 1970, as logs and the guests'
// watchers have it.
func (s Stamp) Ms() int64 { return s.At.UnixMilli() }

func (s *stamps) add(what string) Stamp {
	s.mu.Lock()
	defer s.mu.Unlock()
	stamp := Stamp{At: time.Now(), What: what}
	s.all = append(s.all, stamp)
	return stamp
}

package storagebeat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	// ErrTimeout is returned when an operation missed its deadline. Its child
	// was killed and left, unless the backend gave up by itself; a write may
	// still arrive.
	ErrTimeout = errors.New("storage did not answer in time")
	// ErrStuck is returned when the child of an earlier operation still hangs
	// in the kernel, so that there is no new one yet.
	ErrStuck = errors.New("an earlier storage operation still hangs")
	// ErrBusy is returned when another caller's operation did not end in time.
	ErrBusy = errors.New("another storage operation is under way")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("closed")
)

// ChildConfig says how a child is started.
type ChildConfig struct {
	// Command is the program and its first arguments, such as
	// {"/proc/self/exe", "store-child"}. It must end in ChildMain with the
	// arguments that follow. The path must be absolute.
	Command []string
	// Type is the store's kind; empty means TypeDir.
	Type string
	// Path is where the store is: an absolute path, for the types of this
	// package's family that have one. It is empty for a child that only probes.
	Path string
	// Options are what else a store of this type needs.
	Options map[string]string
	// Cluster is the cluster that the store must belong to; empty takes any.
	Cluster string
	// Timeout bounds each operation, with whatever bound its context has. It
	// has to be positive.
	Timeout time.Duration
	// Stderr takes what a failing child says; nil drops it.
	Stderr *os.File
}

// restartPause is the least time between two starts of a child, so that one
// that fails at once is not started in a tight loop.
const restartPause = 200 * time.Millisecond

// killWait is how long a kill may take before the process counts as stuck. One
// that does not hang in the kernel is gone within a few milliseconds.
const killWait = 100 * time.Millisecond

// reapWait bounds how long Close waits for a killed child.
const reapWait = 250 * time.Millisecond

// Child does the I/O of one store in a child process, one operation at a time.
// It starts the process when it is needed and has no goroutine of its own: a
// stuck process costs this one nothing but its entry in the process table. All
// methods are safe for concurrent use; an operation that finds another one
// waits for its turn within its context.
//
// A program must not make a second Child for a store whose first one may be
// stuck, or the bound of one process for each hung store is gone.
type Child struct {
	cfg   ChildConfig
	turn  chan struct{} // holds one token while an operation runs
	ctx   context.Context
	close context.CancelFunc

	// proc, id and started belong to whoever holds the turn.
	proc    *process
	id      uint64
	started time.Time

	slot atomic.Uint32 // what the ledger assigned; 0 while it is not known

	mu    sync.Mutex // guards stats
	stats ChildStats
}

// ChildStats count what happened to the children of a store.
type ChildStats struct {
	PID       int       `json:"pid,omitempty"`        // of the present process, also of a stuck one; 0 when none
	Started   int       `json:"started"`              // processes in all
	Abandoned int       `json:"abandoned"`            // that missed a deadline and were killed
	Stuck     bool      `json:"stuck"`                // the present process was killed and the kernel still holds it
	Since     time.Time `json:"stuck_since,omitzero"` // when it was killed
}

type process struct {
	pid      int
	in, out  *os.File // the parent's ends of its stdin and stdout
	killed   bool
	killedAt time.Time
}

// NewChild checks the configuration. It starts no process yet.
func NewChild(cfg ChildConfig) (*Child, error) {
	if len(cfg.Command) == 0 || !filepath.IsAbs(cfg.Command[0]) {
		return nil, fmt.Errorf("store child: command %q does not start with an absolute path", cfg.Command)
	}
	hasPath := cfg.Type == "" || cfg.Type == TypeDir || cfg.Type == TypeBlock
	if cfg.Path != "" && hasPath && !filepath.IsAbs(cfg.Path) {
		return nil, fmt.Errorf("store child: path %q is not absolute", cfg.Path)
	}
	if cfg.Timeout <= 0 {
		return nil, fmt.Errorf("store child: timeout %s is not positive", cfg.Timeout)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Child{cfg: cfg, turn: make(chan struct{}, 1), ctx: ctx, close: cancel}, nil
}

// ReadAll reads the identity and all records of the store.
func (c *Child) ReadAll(ctx context.Context) (Contents, error) {
	resp, err := c.do(ctx, request{Op: opRead})
	if err != nil {
		return Contents{}, err
	}
	return resp.contents()
}

// Write writes one record; see Device.
func (c *Child) Write(ctx context.Context, b RawBeat) error {
	slot := b.Slot
	if slot == 0 {
		slot = uint16(c.slot.Load())
	}
	_, err := c.do(ctx, request{Op: opWrite, Host: b.Host, Writer: b.Writer, Slot: slot, record: b.Data})
	return err
}

// WritePill puts a pill into a host's mailbox; see Mailer.
func (c *Child) WritePill(ctx context.Context, p RawPill) error {
	_, err := c.do(ctx, request{Op: opPill, Host: p.Host, record: p.Data})
	return err
}

// SetSlot says which slot the ledger assigned to this host. Stores without slots
// do not mind.
func (c *Child) SetSlot(slot uint16) { c.slot.Store(uint32(slot)) }

// ReadProbe reads the first block of a file or block device, given by an
// absolute path, past the page cache where that works. It does not touch the
// store. A hung file hangs this child: use another one than that of the beats.
func (c *Child) ReadProbe(ctx context.Context, path string) (Probe, error) {
	if !filepath.IsAbs(path) {
		return Probe{}, fmt.Errorf("probe %q: path is not absolute", path)
	}
	resp, err := c.do(ctx, request{Op: opProbe, Path: path})
	if err != nil {
		return Probe{}, err
	}
	if resp.Probe == nil {
		return Probe{}, errors.New("answer without a probe")
	}
	return *resp.Probe, nil
}

// Init makes a store at the child's path. It returns ErrNotEmpty, and with it
// the identity that is there, when a store or something else would be given up
// and options.Replace does not name it.
func (c *Child) Init(ctx context.Context, options InitOptions) (Identity, error) {
	resp, err := c.do(ctx, request{Op: opInit, Init: &options})
	if resp.Identity == nil {
		return Identity{}, err
	}
	return *resp.Identity, err
}

// Check looks at the store and tries a write beside the beats.
func (c *Child) Check(ctx context.Context) (CheckReport, error) {
	resp, err := c.do(ctx, request{Op: opCheck})
	if resp.Check == nil {
		return CheckReport{}, err
	}
	return *resp.Check, err
}

// Stats returns the counts so far.
func (c *Child) Stats() ChildStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

func (c *Child) note(f func(*ChildStats)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.stats)
}

// Close ends the operation under way and the child. It waits a moment for the
// process, and returns ErrStuck when the kernel still holds it; that process
// ends by itself when its storage lets it go. Further calls do nothing.
func (c *Child) Close() error {
	c.close()
	c.turn <- struct{}{} // An operation under way ends now: its context did.
	defer func() { <-c.turn }()
	if c.proc == nil {
		return nil
	}
	c.kill()
	ctx, cancel := context.WithTimeout(context.Background(), reapWait)
	defer cancel()
	for !c.reap() {
		if !pause(ctx, time.Millisecond) {
			return fmt.Errorf("close store child %d: %w", c.proc.pid, ErrStuck)
		}
	}
	return nil
}

// do runs one operation. An error of the operation itself comes with the
// response that carries it.
func (c *Child) do(ctx context.Context, req request) (response, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	stop := context.AfterFunc(c.ctx, cancel)
	defer stop()
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return response{}, fmt.Errorf("%s: %w", req.Op, c.because(ErrBusy))
	}
	defer func() { <-c.turn }()
	if c.ctx.Err() != nil {
		return response{}, fmt.Errorf("%s: %w", req.Op, ErrClosed)
	}
	if err := c.ready(ctx); err != nil {
		return response{}, fmt.Errorf("%s: %w", req.Op, err)
	}
	c.id++
	req.ID = c.id
	if end, ok := ctx.Deadline(); ok {
		req.Within = time.Until(end)
	}
	resp, err := c.proc.exchange(ctx, req)
	if err != nil {
		timeout := ctx.Err() != nil
		c.abandon(timeout)
		if timeout {
			err = c.because(ErrTimeout)
		}
		return response{}, fmt.Errorf("%s: %w", req.Op, err)
	}
	return resp, fromWire(resp.Error)
}

// because replaces the reason for the end of an operation when it was Close.
func (c *Child) because(err error) error {
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	return err
}

// ready makes sure that there is a process that waits for a request.
func (c *Child) ready(ctx context.Context) error {
	if c.proc != nil && !c.proc.killed {
		return nil
	}
	for c.proc != nil && !c.reap() {
		ago := time.Since(c.proc.killedAt)
		if ago > killWait {
			return fmt.Errorf("process %d, killed %s ago: %w", c.proc.pid, ago.Round(time.Millisecond), ErrStuck)
		}
		if !pause(ctx, killWait/20) {
			return c.because(ErrStuck)
		}
	}
	if !c.started.IsZero() && !pause(ctx, restartPause-time.Since(c.started)) {
		return c.because(ErrTimeout)
	}
	c.started = time.Now()
	p, err := startProcess(c.cfg)
	if err != nil {
		return err
	}
	c.proc = p
	c.note(func(s *ChildStats) { s.PID = p.pid; s.Started++ })
	return nil
}

// pause waits for d and says whether ctx lasted as long.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// abandon kills the process and leaves it. It is not waited for: in the middle
// of a hung operation a kill takes effect only when the storage comes back.
func (c *Child) abandon(timeout bool) {
	c.kill()
	if timeout {
		c.note(func(s *ChildStats) { s.Abandoned++ })
	}
	c.reap()
}

func (c *Child) kill() {
	if c.proc.killed {
		return
	}
	c.proc.killed, c.proc.killedAt = true, time.Now()
	_ = c.proc.in.Close()
	_ = c.proc.out.Close()
	// The process is not reaped yet, so the number is still its own.
	_ = syscall.Kill(c.proc.pid, syscall.SIGKILL)
	at := c.proc.killedAt
	c.note(func(s *ChildStats) { s.Stuck, s.Since = true, at })
}

// reap asks, without waiting, whether the kernel has let the killed process go.
func (c *Child) reap() bool {
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(c.proc.pid, &status, syscall.WNOHANG, nil)
	if pid == 0 || errors.Is(err, syscall.EINTR) {
		return false
	}
	// It ended, or somebody else reaped it: either way it is gone.
	c.proc = nil
	c.note(func(s *ChildStats) { s.PID, s.Stuck, s.Since = 0, false, time.Time{} })
	return true
}

// startProcess starts a child by hand: os/exec would leave a goroutine and a
// thread waiting for a process that may never end.
func startProcess(cfg ChildConfig) (*process, error) {
	options := ""
	if len(cfg.Options) > 0 {
		text, err := json.Marshal(cfg.Options)
		if err != nil {
			return nil, fmt.Errorf("start store child: %w", err) // It does not happen: these are strings.
		}
		options = string(text)
	}
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start store child: %w", err)
	}
	defer func() { _ = childIn.Close() }()
	out, childOut, err := os.Pipe()
	if err != nil {
		_ = in.Close()
		return nil, fmt.Errorf("start store child: %w", err)
	}
	defer func() { _ = childOut.Close() }()
	stderr := cfg.Stderr
	if stderr == nil {
		if stderr, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err == nil {
			defer func() { _ = stderr.Close() }()
		}
	}
	var pid int
	if err == nil {
		args := append(append([]string{}, cfg.Command...), cfg.Type, cfg.Path, cfg.Cluster, options)
		pid, err = syscall.ForkExec(cfg.Command[0], args, &syscall.ProcAttr{
			Dir:   "/",
			Env:   []string{},
			Files: []uintptr{childIn.Fd(), childOut.Fd(), stderr.Fd()},
			Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
		})
	}
	if err != nil {
		_ = in.Close()
		_ = out.Close()
		return nil, fmt.Errorf("start store child: %w", err)
	}
	return &process{pid: pid, in: in, out: out}, nil
}

// exchange sends one request and waits for its answer until ctx ends.
func (p *process) exchange(ctx context.Context, req request) (response, error) {
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		past := time.Unix(1, 0)
		_ = p.in.SetWriteDeadline(past)
		_ = p.out.SetReadDeadline(past)
		close(fired)
	})
	resp, err := p.roundTrip(req)
	if !stop() {
		// The pipes have a deadline in the past now and serve no more.
		<-fired
		if err == nil {
			err = ctx.Err()
		}
	}
	return resp, err
}

func (p *process) roundTrip(req request) (response, error) {
	if err := sendMessage(p.in, req, req.record); err != nil {
		return response{}, fmt.Errorf("ask store child: %w", err)
	}
	var resp response
	var err error
	if resp.records, err = receiveMessage(p.out, &resp); err != nil {
		return response{}, fmt.Errorf("hear store child: %w", err)
	}
	if resp.ID != req.ID {
		return response{}, fmt.Errorf("store child answered request %d, not %d", resp.ID, req.ID)
	}
	return resp, nil
}

//go:build ceph

package rados

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	ceph "github.com/ceph/go-ceph/rados"

	"github.com/haven-ha/haven/storagebeat"
)

// session is a connection to a Ceph cluster that is made when it is needed, and
// anew when it may be of no use any more.
type session struct {
	place Place
	conf  string
	user  string

	conn  *ceph.Conn
	io    *ceph.IOContext
	limit time.Duration // what librados was last told
	spent bool          // the connection failed; the next operation takes a new one
	quiet time.Time     // since when no touch was answered; zero while they are
}

const (
	// unbounded is the limit when nobody set one.
	unbounded = 30 * time.Second
	// connectTime is how long a connection may take to be made. It goes on when the
	// operation that wanted it is over, and the next one finds it.
	connectTime = 20 * time.Second
	// renewAfter is how long a connection is left to mend itself, which librados does
	// better and with less effort than a new one.
	renewAfter = time.Minute
)

// limitOf is how long the next touch may take: what the context leaves, less a
// tenth for the way back. Librados counts whole seconds, and takes 0 for ever.
func limitOf(ctx context.Context) time.Duration {
	end, ok := ctx.Deadline()
	if !ok {
		return unbounded
	}
	left := time.Until(end)
	return max((left - left/10).Truncate(time.Second), time.Second)
}

// ready returns what reads and writes the place, with its limits set for the next
// touch.
func (s *session) ready(ctx context.Context) (*ceph.IOContext, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.spent {
		s.close()
	}
	if s.conn == nil {
		if err := s.connect(ctx); err != nil {
			return nil, fmt.Errorf("connect to Ceph: %w", s.verdict(err))
		}
	}
	if err := s.bound(ctx); err != nil {
		return nil, err
	}
	if s.io == nil {
		pool, err := s.conn.OpenIOContext(s.place.Pool)
		if errors.Is(err, ceph.ErrNotFound) {
			return nil, fmt.Errorf("there is no pool %q: %w", s.place.Pool, storagebeat.ErrNoIdentity)
		}
		if err != nil {
			return nil, fmt.Errorf("open pool %s: %w", s.place.Pool, s.verdict(err))
		}
		pool.SetNamespace(s.place.Namespace)
		s.io = pool
	}
	return s.io, ctx.Err()
}

func (s *session) connect(ctx context.Context) error {
	conn, err := ceph.NewConn()
	if s.user != "" {
		conn, err = ceph.NewConnWithUser(s.user)
	}
	if err != nil {
		return err
	}
	if s.conf != "" {
		err = conn.ReadConfigFile(s.conf)
	} else {
		err = conn.ReadDefaultConfigFile()
	}
	if err != nil {
		return fmt.Errorf("read Ceph configuration %s: %w", s.conf, err)
	}
	limit := limitOf(ctx)
	for option, value := range map[string]string{
		"client_mount_timeout": seconds(connectTime), "rados_mon_op_timeout": seconds(limit), "rados_osd_op_timeout": seconds(limit),
		// The child has nowhere to write; its parent logs what comes back.
		"log_to_stderr": "false", "log_file": "", "admin_socket": "",
	} {
		if err := conn.SetConfigOption(option, value); err != nil {
			return fmt.Errorf("set %s: %w", option, err)
		}
	}
	if err := conn.Connect(); err != nil {
		return err
	}
	s.conn, s.limit, s.spent, s.quiet = conn, limit, false, time.Time{}
	return nil
}

// bound tells librados how long the next touches may take. It asks that of
// operations when they begin.
func (s *session) bound(ctx context.Context) error {
	limit := limitOf(ctx)
	if limit == s.limit {
		return nil
	}
	for _, option := range []string{"rados_osd_op_timeout", "rados_mon_op_timeout"} {
		if err := s.conn.SetConfigOption(option, seconds(limit)); err != nil {
			return fmt.Errorf("set %s: %w", option, err)
		}
	}
	s.limit = limit
	return nil
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }

// verdict says what an error means for the connection, and to the parent. What
// the storage answered is fine; after anything else the connection may be one
// that never works again, such as one that Ceph has put on its block list.
func (s *session) verdict(err error) error {
	switch code(err) {
	case 0, int(syscall.ENOENT), int(syscall.EEXIST), int(syscall.ENOSPC), int(syscall.EDQUOT), int(syscall.EOPNOTSUPP), compareFailed:
		return err
	case int(syscall.ETIMEDOUT):
		if s.quiet.IsZero() {
			s.quiet = time.Now()
		}
		s.spent = s.spent || time.Since(s.quiet) > renewAfter
		return fmt.Errorf("%w: %w", err, storagebeat.ErrTimeout)
	}
	s.spent = true
	return err
}

// compareFailed stands for all codes of a comparison that failed.
const compareFailed = 4095

// code is the error number within an error of librados, positive; 0 when there
// is none.
func code(err error) int {
	var coded interface{ ErrorCode() int }
	if !errors.As(err, &coded) {
		return 0
	}
	// Below the numbers of errors stands where a comparison failed.
	return min(-coded.ErrorCode(), compareFailed)
}

// reopen makes the next operation look the pool up by its name again: what is
// there may be another one.
func (s *session) reopen() {
	if s.io != nil {
		s.io.Destroy()
		s.io = nil
	}
}

func (s *session) close() {
	s.reopen()
	if s.conn != nil {
		s.conn.Shutdown()
		s.conn = nil
	}
	s.spent = false
}

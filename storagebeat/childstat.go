package storagebeat

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/haven-ha/haven/internal/blockio"
)

// FileAttr is what the storage tells of a file without its being opened.
type FileAttr = blockio.Attr

// Stat asks the storage for a file's attributes, given by an absolute path, past
// the kernel's attribute cache. It opens nothing and does not touch the store. A
// hung file hangs this child: use another one than that of the beats.
func (c *Child) Stat(ctx context.Context, path string) (FileAttr, error) {
	if !filepath.IsAbs(path) {
		return FileAttr{}, fmt.Errorf("stat %q: path is not absolute", path)
	}
	resp, err := c.do(ctx, request{Op: opStat, Path: path})
	if err != nil {
		return FileAttr{}, err
	}
	if resp.Attr == nil {
		return FileAttr{}, errors.New("answer without attributes")
	}
	return *resp.Attr, nil
}

// Rest ends the process when it is not needed for a while; the next operation
// starts another one. It does nothing while an operation runs or hangs.
func (c *Child) Rest() {
	select {
	case c.turn <- struct{}{}:
	default:
		return
	}
	defer func() { <-c.turn }()
	if c.proc == nil || c.proc.killed {
		return
	}
	c.kill()
	ctx, cancel := context.WithTimeout(c.ctx, reapWait)
	defer cancel()
	for !c.reap() {
		if !pause(ctx, time.Millisecond) {
			return
		}
	}
}

func statFile(path string) (*FileAttr, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("stat %q: path is not absolute", path)
	}
	a, err := blockio.Stat(path)
	if err != nil {
		return nil, err
	}
	return &a, nil
}

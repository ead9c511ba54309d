package storagebeat

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/haven-ha/haven/internal/blockio"
)

// Probe is what was seen of the first block of a file or device.
type Probe struct {
	Octets  int           `json:"octets"` // that were there, at most one block
	Direct  bool          `json:"direct"` // read past the page cache
	Latency time.Duration `json:"latency_ns"`
}

// ChildMain is the whole life of a store's child process. A program calls it at
// once when it was started with its hidden store-child argument, with what
// follows that argument: the store's type, path and cluster name, all empty for a
// child that only probes files, then options as JSON. Types are the kinds of
// stores that it serves, besides those in directories. It returns the exit code when stdin ends, which
// is how the child learns that its parent is gone, even with an operation stuck.
//
// It ignores the signals that ask the agent to stop: the agent's farewell is
// still to be written then.
func ChildMain(args []string, stdin io.Reader, stdout io.Writer, types ...Type) int {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	return childMain(args, stdin, stdout, func(op) {}, types...)
}

// childMain calls before ahead of each operation; tests hang there.
func childMain(args []string, stdin io.Reader, stdout io.Writer, before func(op), types ...Type) int {
	if len(args) != 4 {
		return 2
	}
	c := &childServer{before: before}
	c.store, c.broken = openBackend(args, append([]Type{Dir()}, types...))
	requests := make(chan request)
	go func() {
		defer close(requests)
		for {
			var req request
			var err error
			if req.record, err = receiveMessage(stdin, &req); err != nil {
				return
			}
			requests <- req
		}
	}()
	for req := range requests {
		done := make(chan response, 1)
		go func() { done <- c.serve(req) }()
		select {
		case resp := <-done:
			if err := sendMessage(stdout, resp, resp.records); err != nil {
				return 1
			}
		case <-requests:
			// The parent is gone, or broke the rule of one operation at a
			// time. The operation may hang; the process ends with it.
			return 0
		}
	}
	return 0
}

// openBackend opens the backend that the arguments name. A child that only probes
// has none.
func openBackend(args []string, types []Type) (Backend, error) {
	kind, o := args[0], OpenOptions{Path: args[1], Cluster: args[2]}
	if o.Path == "" {
		return nil, errors.New("this child has no store")
	}
	if args[3] != "" {
		if err := json.Unmarshal([]byte(args[3]), &o.Options); err != nil {
			return nil, fmt.Errorf("options of the store: %w", err)
		}
	}
	for _, t := range types {
		if t.Name == cmp.Or(kind, TypeDir) {
			return t.Open(o)
		}
	}
	return nil, fmt.Errorf("stores of type %q are not part of this program", kind)
}

type childServer struct {
	store  Backend
	broken error // why there is no store
	before func(op)
}

func (c *childServer) serve(req request) response {
	c.before(req.Op)
	resp := response{ID: req.ID}
	err := c.broken
	switch {
	case req.Op == opProbe:
		resp.Probe, err = probe(req.Path)
	case req.Op == opStat:
		resp.Attr, err = statFile(req.Path)
	case err == nil:
		ctx, cancel := context.WithTimeout(context.Background(), req.Within)
		defer cancel()
		err = c.operate(ctx, req, &resp)
	}
	resp.Error = toWire(err)
	return resp
}

// operate does one operation of the store.
func (c *childServer) operate(ctx context.Context, req request, resp *response) (err error) {
	switch req.Op {
	case opRead:
		var contents Contents
		if contents, err = c.store.ReadAll(ctx); err == nil {
			resp.setContents(contents)
		}
	case opWrite:
		err = c.store.Write(ctx, RawBeat{Host: req.Host, Writer: req.Writer, Slot: req.Slot, Data: req.record})
	case opPill:
		err = c.store.WritePill(ctx, RawPill{Host: req.Host, Data: req.record})
	case opInit:
		if req.Init == nil {
			err = errors.New("init without options")
			break
		}
		var id Identity
		id, err = c.store.Init(ctx, *req.Init)
		resp.Identity = &id
	case opCheck:
		var r CheckReport
		r, err = c.store.Check(ctx)
		resp.Check = &r
	default:
		err = fmt.Errorf("unknown operation %q", req.Op)
	}
	return err
}

// probe reads the first block of a file or block device.
func probe(path string) (*Probe, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("probe %q: path is not absolute", path)
	}
	started := time.Now()
	f, err := blockio.Open(path, blockio.Read)
	if err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	n, err := f.ReadAt(blockio.Buffer(blockio.Align), 0)
	direct := f.Direct()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("probe %s: %w", path, err)
	}
	return &Probe{Octets: n, Direct: direct, Latency: time.Since(started)}, nil
}

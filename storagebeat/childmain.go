package storagebeat

import (
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
// follows that argument: the store's path and cluster name, both empty for a
// child that only probes files. It returns the exit code when stdin ends, which
// is how the child learns that its parent is gone, even with an operation stuck.
//
// It ignores the signals that ask the agent to stop: the agent's farewell is
// still to be written then.
func ChildMain(args []string, stdin io.Reader, stdout io.Writer) int {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	return childMain(args, stdin, stdout, func(op) {})
}

// childMain calls before ahead of each operation; tests hang there.
func childMain(args []string, stdin io.Reader, stdout io.Writer, before func(op)) int {
	if len(args) != 2 {
		return 2
	}
	c := &childServer{path: args[0], store: newDirStore(args[0], args[1]), before: before}
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

type childServer struct {
	path   string
	store  *dirStore
	before func(op)
}

func (c *childServer) serve(req request) response {
	c.before(req.Op)
	resp := response{ID: req.ID}
	var err error
	switch req.Op {
	case opRead:
		var contents Contents
		if contents, err = c.store.readAll(); err == nil {
			resp.setContents(contents)
		}
	case opWrite:
		err = c.store.write(RawBeat{Host: req.Host, Writer: req.Writer, Data: req.record})
	case opProbe:
		resp.Probe, err = probe(req.Path)
	case opInit:
		if req.Init == nil {
			err = errors.New("init without options")
			break
		}
		var id Identity
		id, err = initStore(c.path, *req.Init)
		resp.Identity = &id
	case opCheck:
		var r CheckReport
		r, err = c.store.check()
		resp.Check = &r
	default:
		err = fmt.Errorf("unknown operation %q", req.Op)
	}
	resp.Error = toWire(err)
	return resp
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

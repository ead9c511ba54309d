package helper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Lister lists the names of the running and paused VMs. It must come back soon
// after its context ends.
type Lister interface {
	Running(ctx context.Context) ([]string, error)
}

const (
	// listLimit bounds a question to libvirtd. The answer to a request is due
	// within 2 s.
	listLimit = 1500 * time.Millisecond
	// listAge is how long an answer may serve other requests, counted from
	// when its question began.
	listAge = 500 * time.Millisecond
)

// lists turns many requests into one question at a time.
type lists struct {
	from Lister
	log  *slog.Logger

	mu      sync.Mutex
	flight  *flight // the last one, ended or not
	failing bool    // whether the last one that ended failed
}

// flight is one question. Its fields are set before done is closed.
type flight struct {
	begun time.Time
	done  chan struct{}
	names []string
	err   error
}

// get returns a list whose question began at most listLimit ago.
func (l *lists) get(ctx context.Context) ([]string, error) {
	f := l.join()
	limit := time.NewTimer(listLimit + 200*time.Millisecond)
	defer limit.Stop()
	select {
	case <-f.done:
		return f.names, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-limit.C:
		return nil, fmt.Errorf("libvirtd was asked %v ago and has not answered", time.Since(f.begun).Round(time.Millisecond))
	}
}

// join returns the question that is under way, or one answered just now, or
// begins a new one.
func (l *lists) join() *flight {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.flight; f != nil {
		select {
		case <-f.done:
			if f.err == nil && time.Since(f.begun) <= listAge {
				return f
			}
		default:
			return f
		}
	}
	f := &flight{begun: time.Now(), done: make(chan struct{})}
	l.flight = f
	go func() {
		defer close(f.done)
		// No request's context: the answer is for all that wait.
		ctx, cancel := context.WithTimeout(context.Background(), listLimit)
		defer cancel()
		f.names, f.err = l.from.Running(ctx)
		if f.err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			f.err = fmt.Errorf("libvirtd did not answer within %v: %w", listLimit, f.err)
		}
		l.tell(f.err)
	}()
	return f
}

// tell logs when the list is lost and when it is back.
func (l *lists) tell(err error) {
	l.mu.Lock()
	was := l.failing
	l.failing = err != nil
	l.mu.Unlock()
	switch {
	case err != nil && !was:
		l.log.Warn("list of VMs is not known", "error", err)
	case err == nil && was:
		l.log.Info("list of VMs is known again")
	}
}

// wait waits for the question under way, until ctx ends.
func (l *lists) wait(ctx context.Context) {
	l.mu.Lock()
	f := l.flight
	l.mu.Unlock()
	if f == nil {
		return
	}
	select {
	case <-f.done:
	case <-ctx.Done():
	}
}

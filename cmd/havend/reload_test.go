package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/haven-ha/haven/internal/config"
)

// told is an agent that hears of reloads.
type told chan error

func (t told) Reload(configuration error) []error { t <- configuration; return nil }

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestReload: a signal has the agent's secrets read again, and the log names the
// keys of the configuration that want a restart, never their values. A file that
// cannot be used is a problem, and the agent runs on with what it had.
func TestReload(t *testing.T) {
	sample, err := os.ReadFile("../../packaging/haven.yaml")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "haven.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(string(sample))
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	agent, signals := make(told), make(chan os.Signal)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() {
		reloader{path: path, running: cfg, agent: agent, log: slog.New(slog.NewTextHandler(&log, nil))}.run(ctx, signals)
	})
	reload := func() error { signals <- syscall.SIGHUP; return <-agent }

	if err := reload(); err != nil || strings.Contains(log.String(), "has changed") {
		t.Errorf("nothing changed: %v, %s", err, log.String())
	}
	write(strings.ReplaceAll(string(sample), "/etc/haven/bmc.password", "/etc/haven/hush-hush"))
	if err := reload(); err != nil || !strings.Contains(log.String(), "fencing.devices.bmc.password_file") || strings.Contains(log.String(), "hush") {
		t.Errorf("%v, %s", err, log.String())
	}
	write(strings.Replace(string(sample), "\ngossip:", "\ngosip:", 1))
	if err := reload(); err == nil || !strings.Contains(err.Error(), "did you mean gossip?") {
		t.Error(err)
	}
	write("")
	if err := reload(); err == nil {
		t.Error("an empty file passes")
	}
}

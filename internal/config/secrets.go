package config

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// Secrets keeps in memory what the secret files of a configuration hold. So a disk
// that hangs or fails keeps nobody from fencing, a file that is being written does
// no harm, and a new password is taken up when the operator says so, or when the
// old one is refused. It is safe for concurrent use.
type Secrets struct {
	log *slog.Logger

	mu    sync.Mutex
	files map[string]*SecretFile
}

// NewSecrets makes an empty collection.
func NewSecrets(log *slog.Logger) *Secrets {
	return &Secrets{log: log, files: map[string]*SecretFile{}}
}

// File returns the secret of a file, which is read when it is asked for first.
func (s *Secrets) File(path string) *SecretFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[path]
	if f == nil {
		f = &SecretFile{path: path, log: s.log, slow: secretPatience}
		if path != "" { // Where there is no secret, there is nothing to read again.
			s.files[path] = f
		}
	}
	return f
}

// Reloaded says what came of reading one file again.
type Reloaded struct {
	Path    string
	Changed bool
	// Err says why the secret of before, if there is one, stays in use.
	Err error
}

// Reload reads all files again, all at once, and waits for each two seconds at
// most.
func (s *Secrets) Reload() []Reloaded {
	s.mu.Lock()
	var files []*SecretFile
	for _, f := range s.files {
		files = append(files, f)
	}
	s.mu.Unlock()
	slices.SortFunc(files, func(a, b *SecretFile) int { return strings.Compare(a.path, b.path) })
	out := make([]Reloaded, len(files))
	var all sync.WaitGroup
	for i, f := range files {
		all.Go(func() {
			changed, err := f.Reload()
			out[i] = Reloaded{Path: f.path, Changed: changed, Err: err}
		})
	}
	all.Wait()
	return out
}

// SecretFile is the secret in one file.
type SecretFile struct {
	path string
	log  *slog.Logger
	slow time.Duration // how long a reading is waited for

	mu      sync.Mutex
	kept    Secret
	changes uint64 // how often kept became another one
	warned  string
	refused bool // by whom it is for: the file may have a newer one
	reading *secretReading
}

type secretReading struct {
	done    chan struct{}
	changed bool
	err     error
}

// secretPatience is how long a file may take: longer than any disk that works, and
// short beside a fence.
const secretPatience = 2 * time.Second

// ErrSlowSecret is returned when a file could not be read in time.
var ErrSlowSecret = errors.New("the file system does not answer")

// Text returns the secret: from memory, unless it was never read, or was refused
// since it was read.
func (f *SecretFile) Text() (string, error) {
	f.mu.Lock()
	kept, look := f.kept, f.kept.IsZero() || f.refused
	f.refused = false
	f.mu.Unlock()
	if !look {
		return kept.Reveal(), nil
	}
	_, err := f.Reload()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kept.IsZero() {
		return "", err
	}
	if err != nil {
		f.log.Error("a secret was refused and its file cannot be read again; the old one stays", "file", f.path, "error", err)
	}
	return f.kept.Reveal(), nil
}

// Changes counts how often the secret became another one.
func (f *SecretFile) Changes() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changes
}

// Refused says that whoever the secret is for did not take it. The file is read
// again before the next use.
func (f *SecretFile) Refused() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused = true
}

// Reload reads the file again, and says whether the secret is another one now.
// After an error the one of before stays.
func (f *SecretFile) Reload() (changed bool, err error) {
	for joined := true; joined; {
		f.mu.Lock()
		r := f.reading
		// What another reading finds may be older than this question.
		if joined = r != nil; !joined {
			r = &secretReading{done: make(chan struct{})}
			f.reading = r
			go f.read(r) // A reading that hangs in the kernel cannot be ended; there is one for a file at most.
		}
		f.mu.Unlock()
		slow := time.NewTimer(f.slow)
		select {
		case <-r.done:
			changed, err = r.changed, r.err
		case <-slow.C:
			return false, fmt.Errorf("read %s: %w", f.path, ErrSlowSecret)
		}
		slow.Stop()
	}
	return changed, err
}

func (f *SecretFile) read(r *secretReading) {
	s, warning, err := LoadSecret(f.path)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		r.changed = f.kept.Reveal() != s.Reveal()
		f.kept, f.refused = s, false
		if r.changed {
			f.changes++
		}
		if warning != f.warned && warning != "" {
			f.log.Warn("a secret is not kept well", "warning", warning, "advice", "chmod 600 "+f.path)
		}
		f.warned = warning
	}
	r.err, f.reading = err, nil
	close(r.done)
}

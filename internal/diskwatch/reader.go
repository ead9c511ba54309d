package diskwatch

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"path/filepath"
	"sync"
	"time"

	"github.com/haven-ha/haven/internal/blockio"
	"github.com/haven-ha/haven/storagebeat"
)

// Found is what a look at one file brought.
type Found struct {
	Path           string
	Started, Ended time.Time
	Attr           blockio.Attr
	Err            error
}

// lanes is how many child processes read disks. Each directory has one of them,
// so that a hung pool does not hide the activity in another; with more
// directories than lanes some share one. It is also all that hung mounts cost.
const lanes = 4

// Reader reads attributes of files through this host's own mounts.
type Reader struct {
	children [lanes]*storagebeat.Child

	mu   sync.Mutex
	dirs map[string]int
}

// NewReader makes a Reader. Command starts a child; see storagebeat.ChildMain.
// Timeout bounds the look at one file. No process is started yet.
func NewReader(command []string, timeout time.Duration) (*Reader, error) {
	r := &Reader{dirs: map[string]int{}}
	for i := range r.children {
		c, err := storagebeat.NewChild(storagebeat.ChildConfig{Command: command, Timeout: timeout})
		if err != nil {
			return nil, fmt.Errorf("set up disk reader: %w", err)
		}
		r.children[i] = c
	}
	return r, nil
}

// Stat looks at files, those of one directory one after the other. It ends with
// its context and returns one Found for each path, in order.
func (r *Reader) Stat(ctx context.Context, paths []string) []Found {
	found := make([]Found, len(paths))
	var work [lanes][]int
	for i, p := range paths {
		lane := r.lane(filepath.Dir(p))
		work[lane] = append(work[lane], i)
	}
	var wg sync.WaitGroup
	for lane, items := range work {
		if len(items) == 0 {
			continue
		}
		wg.Go(func() {
			var hung error
			for _, i := range items {
				f := Found{Path: paths[i], Started: time.Now(), Err: hung}
				if hung == nil {
					f.Attr, f.Err = r.children[lane].Stat(ctx, paths[i])
				}
				if errors.Is(f.Err, storagebeat.ErrTimeout) || errors.Is(f.Err, storagebeat.ErrStuck) || errors.Is(f.Err, storagebeat.ErrBusy) {
					hung = f.Err // The others of this turn would only wait as long again.
				}
				f.Ended = time.Now()
				found[i] = f
			}
		})
	}
	wg.Wait()
	return found
}

// maxDirs bounds the directories that have a lane of their own choice.
const maxDirs = 64

func (r *Reader) lane(dir string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n, ok := r.dirs[dir]; ok {
		return n
	}
	if n := len(r.dirs); n < maxDirs {
		r.dirs[dir] = n % lanes
		return n % lanes
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(dir)) // never fails
	return int(h.Sum32() % lanes)
}

// Rest ends the children when no look is due for a while. One that hangs stays.
func (r *Reader) Rest() {
	for _, c := range r.children {
		c.Rest()
	}
}

// Stats counts what happened to the children.
func (r *Reader) Stats() []storagebeat.ChildStats {
	stats := make([]storagebeat.ChildStats, 0, lanes)
	for _, c := range r.children {
		stats = append(stats, c.Stats())
	}
	return stats
}

// Close ends the children.
func (r *Reader) Close() error {
	var errs []error
	for _, c := range r.children {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

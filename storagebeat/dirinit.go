package storagebeat

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/haven-ha/haven/internal/blockio"
)

// initStore makes a store in a directory. The directory is made too, but
// not its parent: what should be mounted there has to be.
func initStore(path string, opt InitOptions) (Identity, error) {
	id := Identity{Cluster: opt.Cluster}
	if _, err := rand.Read(id.ID[:]); err != nil {
		return Identity{}, err
	}
	text, err := EncodeIdentity(id)
	if err != nil {
		return Identity{}, err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return Identity{}, fmt.Errorf("make store: %w", err)
	}
	old, replace, err := mayInit(path, opt)
	if err != nil {
		return old, err
	}
	if err := os.Mkdir(filepath.Join(path, beatsName), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return Identity{}, fmt.Errorf("make store: %w", err)
	}
	if err := putIdentity(path, id, text, replace); err != nil {
		return Identity{}, err
	}
	// The old records name the old identity and mean nothing any more.
	if err := removeBeats(path); err != nil {
		return Identity{}, err
	}
	return id, blockio.SyncDir(path)
}

// mayInit says whether a store may be made at path, and whether an identity is
// replaced by that.
func mayInit(path string, opt InitOptions) (old Identity, replace bool, err error) {
	old, err = readIdentity(path)
	switch {
	case err == nil && opt.Replace == old.Cluster:
		return old, true, nil
	case err == nil:
		return old, false, fmt.Errorf("store %s of cluster %q is there; only its name given as the one to replace makes a new one: %w",
			old.ID, old.Cluster, ErrNotEmpty)
	case !errors.Is(err, ErrNoIdentity) && !errors.Is(err, ErrForeign):
		return Identity{}, false, err
	case opt.Replace == path:
		return Identity{}, true, nil
	}
	d, err := os.Open(path)
	if err != nil {
		return Identity{}, false, fmt.Errorf("look into store: %w", err)
	}
	names, err := d.Readdirnames(1)
	_ = d.Close()
	if err != nil && !errors.Is(err, io.EOF) {
		return Identity{}, false, fmt.Errorf("look into store: %w", err)
	}
	if len(names) > 0 {
		return Identity{}, false, fmt.Errorf("%s holds %s; only that path given as the one to replace uses it: %w", path, names[0], ErrNotEmpty)
	}
	return Identity{}, false, nil
}

// putIdentity writes the identity whole or not at all. Of two that make a
// store at once, one wins and the other fails.
func putIdentity(path string, id Identity, text []byte, replace bool) error {
	tmp, final := filepath.Join(path, identityName+"."+id.ID.String()), filepath.Join(path, identityName)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil && replace {
		err = os.Rename(tmp, final)
	} else if err == nil {
		err = os.Link(tmp, final)
	}
	if rerr := os.Remove(tmp); err == nil && !errors.Is(rerr, os.ErrNotExist) {
		err = rerr
	}
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("write identity: somebody else makes a store here: %w", ErrNotEmpty)
	}
	if err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}

func removeBeats(path string) error {
	d := newDirStore(path, "")
	names, err := d.list()
	if err != nil {
		return err
	}
	for _, name := range names {
		_, _, beat := parseBeatName(name)
		if _, mail := parseMailboxName(name); !beat && !mail {
			continue
		}
		if err := os.Remove(d.beatPath(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove old beat: %w", err)
		}
	}
	return nil
}

// check looks at a store and tries it with a record of its own name, which is
// no beat and is removed again.
func (d *dirStore) check() (CheckReport, error) {
	started := time.Now()
	c, err := d.readAll()
	if err != nil {
		return CheckReport{}, err
	}
	r := CheckReport{Identity: c.Identity, Records: len(c.Beats)}
	if len(c.Beats) > 0 {
		r.ReadLatency = time.Since(started) / time.Duration(len(c.Beats))
	}
	for _, raw := range c.Beats {
		if _, err := DecodeAt(c.Identity.ID, raw); err == nil {
			r.Valid++
		}
	}
	if r.FileSystem, r.Local, err = blockio.FileSystem(d.path); err != nil {
		return r, err
	}
	err = d.tryWrite(&r)
	return r, err
}

func (d *dirStore) tryWrite(r *CheckReport) (err error) {
	var n [8]byte
	if _, err := rand.Read(n[:]); err != nil {
		return err
	}
	path := filepath.Join(d.path, beatsName, fmt.Sprintf("check-%x", n))
	f, err := blockio.Open(path, blockio.Create)
	if err != nil {
		return fmt.Errorf("try a write: %w", err)
	}
	defer func() {
		_ = f.Close()
		if rerr := os.Remove(path); err == nil {
			err = rerr
		}
	}()
	data := blockio.Buffer(RecordSize)
	copy(data, n[:])
	started := time.Now()
	if err := f.WriteAt(data, 0); err != nil {
		return fmt.Errorf("try a write: %w", err)
	}
	r.WriteLatency = time.Since(started)
	back := blockio.Buffer(RecordSize)
	if _, err := f.ReadAt(back, 0); err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if !bytes.Equal(back, data) {
		return fmt.Errorf("read back: %w", ErrTorn)
	}
	r.Direct = f.Direct()
	return nil
}

package agent

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/haven-ha/haven"
)

type identityFile struct {
	State       haven.StateID     `json:"state"`
	Incarnation haven.Incarnation `json:"incarnation"`
}

// OpenIdentity reads who the agent of this data directory is, and counts this
// start. A directory without an identity gets a new one: to the others it is a
// stranger. The new count is on disk when OpenIdentity returns.
func OpenIdentity(dir string) (haven.StateID, haven.Incarnation, error) {
	path := filepath.Join(dir, "identity.json")
	var id identityFile
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		id.State = haven.StateID(rand.Text())
	case err != nil:
		return "", 0, fmt.Errorf("read identity: %w", err)
	default:
		if err := json.Unmarshal(data, &id); err != nil || id.State == "" {
			return "", 0, fmt.Errorf("read identity: %s is damaged; if the directory is lost, remove it as a whole", path)
		}
	}
	id.Incarnation++
	if data, err = json.Marshal(id); err != nil {
		return "", 0, fmt.Errorf("write identity: %w", err)
	}
	if err := replaceFile(path, data); err != nil {
		return "", 0, fmt.Errorf("write identity: %w", err)
	}
	return id.State, id.Incarnation, nil
}

// replaceFile puts a file in place as a whole, on disk when it returns.
func replaceFile(path string, data []byte) (err error) {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(tmp, path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

package pki

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// File modes: a certificate may be read by everybody, a key by its owner only.
const (
	certMode = 0o644
	keyMode  = 0o600
)

// maxFile bounds what is read of a PEM file.
const maxFile = 1 << 20

// SavePair writes a certificate and its key. Each file appears whole or not
// at all. Existing files are replaced only when replace is set: a CA's key
// that is overwritten by accident cannot be brought back.
func SavePair(pair Pair, certPath, keyPath string, replace bool) error {
	if !replace {
		for _, p := range []string{certPath, keyPath} {
			if _, err := os.Lstat(p); err == nil {
				return fmt.Errorf("save %s: %w", p, fs.ErrExist)
			}
		}
	}
	// The key goes first: a certificate without its key is of no use, and a
	// key without a certificate is found by the next attempt.
	if err := writeFile(keyPath, pair.Key, keyMode, replace); err != nil {
		return fmt.Errorf("save key: %w", err)
	}
	if err := writeFile(certPath, pair.Cert, certMode, replace); err != nil {
		return fmt.Errorf("save certificate: %w", err)
	}
	return nil
}

// LoadPair reads what SavePair wrote, and refuses a key that others can read.
func LoadPair(certPath, keyPath string) (Pair, error) {
	cert, err := readFile(certPath)
	if err != nil {
		return Pair{}, fmt.Errorf("load certificate: %w", err)
	}
	info, err := os.Stat(keyPath)
	if err != nil {
		return Pair{}, fmt.Errorf("load key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return Pair{}, fmt.Errorf("load key: %s can be used by others (mode %#o): set it to 0600", keyPath, mode)
	}
	key, err := readFile(keyPath)
	if err != nil {
		return Pair{}, fmt.Errorf("load key: %w", err)
	}
	return Pair{Cert: cert, Key: key}, nil
}

// LoadCA reads a CA from its two files.
func LoadCA(certPath, keyPath string) (*CA, error) {
	pair, err := LoadPair(certPath, keyPath)
	if err != nil {
		return nil, err
	}
	ca, err := ParseCA(pair)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	return ca, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // Nothing was written.
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return data, nil
}

func writeFile(path string, data []byte, mode fs.FileMode, replace bool) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".haven-pki-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // After a rename it is gone already.
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if replace {
		err = os.Rename(tmp.Name(), path)
	} else {
		// A link fails when somebody else made the file in the meantime.
		err = os.Link(tmp.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

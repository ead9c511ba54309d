package cli

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/haven-ha/haven/internal/config"
)

// keyOctets makes gossip use AES-256.
const keyOctets = 32

const defaultKeyFile = "/etc/haven/gossip.key"

func (a *app) keys() *cobra.Command {
	return group("keys", "Make and look at the keys that gossip is encrypted with",
		"  haven keys generate ./gossip.key\n  haven keys show", a.keysGenerate(), a.keysShow())
}

func (a *app) keysGenerate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "generate [FILE]", Short: "Make a gossip key", Args: cobra.MaximumNArgs(1),
		Long: `Make a gossip key of 32 random octets in a new file that only its owner can read
(default: gossip.key_file of the configuration). Every host needs the same file.
An existing file is left alone, unless --replace is given: hosts with different
keys do not hear each other.`,
		Example: "  haven keys generate\n  haven keys generate ./gossip.key",
	}
	replace := cmd.Flags().Bool("replace", false, "overwrite an existing file: all hosts need the new one then")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		path := a.keyFile(args)
		key := make([]byte, keyOctets)
		if _, err := rand.Read(key); err != nil {
			return fmt.Errorf("generate key: %w", err)
		}
		if err := writeSecret(path, base64.StdEncoding.EncodeToString(key)+"\n", *replace); err != nil {
			return err
		}
		info := keyInfo{Number: 1, Bits: len(key) * 8, Fingerprint: fingerprint(key), Encrypts: true}
		if a.json() {
			return a.printJSON(keyFile{path, []keyInfo{info}})
		}
		a.printf("%s: a new key, fingerprint %s. Copy the file to every host.\n", path, info.Fingerprint)
		return nil
	}
	return cmd
}

type keyFile struct {
	File string    `json:"file"`
	Keys []keyInfo `json:"keys"`
}

// keyInfo is what may be seen of a key.
type keyInfo struct {
	Number      int    `json:"number"`
	Bits        int    `json:"bits"`
	Fingerprint string `json:"fingerprint"`
	Encrypts    bool   `json:"encrypts"` // the others only decrypt
}

func (a *app) keysShow() *cobra.Command {
	return &cobra.Command{
		Use: "show [FILE]", Short: "Show the fingerprints of the gossip keys, never the keys", Args: cobra.MaximumNArgs(1),
		Long: `Show the fingerprints of the keys in a file (default: gossip.key_file of the
configuration), so that the files of two hosts can be compared. The keys
themselves are never shown. The first encrypts; all decrypt.`,
		Example: "  haven keys show\n  haven keys show ./gossip.key",
		RunE: func(_ *cobra.Command, args []string) error {
			path := a.keyFile(args)
			infos, err := a.readKeys(path)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(keyFile{path, infos})
			}
			t := newTable("KEY", "BITS", "FINGERPRINT", "USE")
			for _, k := range infos {
				use := "decrypts"
				if k.Encrypts {
					use = "encrypts and decrypts"
				}
				t.row([]string{fmt.Sprint(k.Number), fmt.Sprint(k.Bits), k.Fingerprint, use})
			}
			a.show(t)
			return nil
		},
	}
}

func (a *app) keyFile(args []string) string {
	if len(args) > 0 {
		return args[0]
	}
	if c := a.readConfig(); c != nil {
		return c.Gossip.KeyFile
	}
	return defaultKeyFile
}

func (a *app) readKeys(path string) ([]keyInfo, error) {
	lines, warning, err := config.LoadSecrets(path)
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	if warning != "" {
		a.warnf("%s", warning)
	}
	var infos []keyInfo
	for i, l := range lines {
		key, err := base64.StdEncoding.DecodeString(l.Reveal())
		if err != nil || len(key) != 16 && len(key) != 24 && len(key) != 32 {
			return nil, fmt.Errorf("read keys: key %d in %s is not base64 of 16, 24 or 32 octets", i+1, path)
		}
		infos = append(infos, keyInfo{Number: i + 1, Bits: len(key) * 8, Fingerprint: fingerprint(key), Encrypts: i == 0})
	}
	if len(infos) == 0 {
		return nil, fmt.Errorf("read keys: %s holds none", path)
	}
	return infos, nil
}

// fingerprint names a key without giving it away: 48 bits of a hash of a key that
// has at least 128.
func fingerprint(key []byte) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:6])
}

// writeSecret makes a file whole or not at all, for its owner only.
func writeSecret(path, text string, replace bool) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".haven-*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if rerr := os.Remove(f.Name()); err == nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = rerr
		}
	}()
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if replace {
		err = os.Rename(f.Name(), path)
	} else {
		err = os.Link(f.Name(), path)
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already; --replace overwrites it", path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

package storagebeat_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	haven "github.com/haven-ha/haven"
	"github.com/haven-ha/haven/storagebeat"
	"github.com/haven-ha/haven/storagebeat/storetest"
)

func TestDirConforms(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Place {
		path := filepath.Join(t.TempDir(), ".haven")
		return storetest.Place{
			Open: func(t testing.TB, cluster string) storagebeat.Backend {
				t.Helper()
				b, err := storagebeat.Dir().Open(storagebeat.OpenOptions{Path: path, Cluster: cluster})
				if err != nil {
					t.Fatal(err)
				}
				return b
			},
			Occupy: func(t testing.TB) {
				t.Helper()
				if err := os.MkdirAll(filepath.Join(path, "lost+found"), 0o700); err != nil {
					t.Fatal(err)
				}
			},
			Seize: storagebeat.InitOptions{Replace: path},
			Damage: func(t testing.TB, host haven.HostID, w storagebeat.Writer, data []byte) {
				t.Helper()
				if err := overwriteFile(filepath.Join(path, "beats", string(host)+"."+w.String()), data); err != nil {
					t.Fatal(err)
				}
			},
			Spoil: func(t testing.TB, host haven.HostID, data []byte) {
				t.Helper()
				if err := overwriteFile(filepath.Join(path, "beats", string(host)+".mailbox"), data); err != nil {
					t.Fatal(err)
				}
			},
			Vanish: func(t testing.TB) func() {
				t.Helper()
				away := path + ".away"
				if err := os.Rename(path, away); err != nil {
					t.Fatal(err)
				}
				return func() {
					if err := os.Rename(away, path); err != nil {
						t.Fatal(err)
					}
				}
			},
		}
	})
}

func overwriteFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	return errors.Join(err, f.Close())
}

func TestDirOpens(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    storagebeat.OpenOptions
	}{
		{"a relative path", storagebeat.OpenOptions{Path: "x"}},
		{"an unknown option", storagebeat.OpenOptions{Path: "/x", Options: map[string]string{"a": "b"}}},
	} {
		if b, err := storagebeat.Dir().Open(tc.o); err == nil {
			t.Errorf("%s: %v", tc.name, b)
		}
	}
	if !bytes.Equal([]byte(storagebeat.EraseName("/dev/x", "prod")), []byte("/dev/x:prod")) {
		t.Error("the name of what may be erased is part of the command line")
	}
}

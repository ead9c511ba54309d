package agent

import (
	"os"
	"path/filepath"
	"testing"
)

// TestIdentity: each start counts; a directory that was lost is a new identity,
// a damaged file is never taken for a lost one.
func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	state, n, err := OpenIdentity(dir)
	if err != nil || state == "" || n != 1 {
		t.Fatalf("first start: %q %d %v", state, n, err)
	}
	again, n, err := OpenIdentity(dir)
	if err != nil || again != state || n != 2 {
		t.Fatalf("second start: %q %d %v", again, n, err)
	}
	path := filepath.Join(dir, "identity.json")
	// A start that was killed in the middle leaves its new file behind.
	if err := os.WriteFile(path+".new", []byte("{\"sta"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, n, err = OpenIdentity(dir); err != nil || again != state || n != 3 {
		t.Fatalf("after a start that was killed: %q %d %v", again, n, err)
	}
	for _, damaged := range []string{"", "{", "{}", "null", `{"state":"","incarnation":9}`} {
		if err := os.WriteFile(path, []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _, err := OpenIdentity(dir); err == nil {
			t.Errorf("a file that holds %q gave the identity %q", damaged, got)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if other, n, err := OpenIdentity(dir); err != nil || other == state || n != 1 {
		t.Errorf("a lost directory: %q %d %v", other, n, err)
	}
}

// TestLockDir: two agents never have one data directory.
func TestLockDir(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDir(dir); err == nil {
		t.Fatal("locked twice")
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if unlock, err = lockDir(dir); err != nil {
		t.Fatalf("after it was given back: %v", err)
	}
	if err := unlock(); err != nil {
		t.Error(err)
	}
}

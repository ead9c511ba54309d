package block

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/haven-ha/haven/storagebeat"
)

// TestMain makes the test program its own store child.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "store-child" {
		os.Exit(storagebeat.ChildMain(os.Args[2:], os.Stdin, os.Stdout, Type()))
	}
	if len(os.Args) > 1 && os.Args[1] == "labfs" {
		os.Exit(serveLabfs(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// childOf starts a child for a device as an agent would.
func childOf(t testing.TB, cfg storagebeat.ChildConfig) *storagebeat.Child {
	t.Helper()
	cfg.Command, cfg.Type, cfg.Stderr = []string{"/proc/self/exe", "store-child"}, storagebeat.TypeBlock, os.Stderr
	c, err := storagebeat.NewChild(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// What an agent does, and what it is told, goes through the child process.
func TestChildOfABlockStore(t *testing.T) {
	cfg := storagebeat.ChildConfig{
		Path: newDevice(t, testSize), Cluster: "prod", Timeout: time.Minute, Options: map[string]string{OptionFile: "yes"},
	}
	c := childOf(t, cfg)
	if _, err := c.Init(t.Context(), storagebeat.InitOptions{Cluster: "prod", Slots: MaxSlots}); err == nil {
		t.Fatal("1024 slots in 8 MiB")
	}
	id, err := c.Init(t.Context(), storagebeat.InitOptions{Cluster: "prod", Slots: 10})
	if err != nil {
		t.Fatal(err)
	}
	w := storagebeat.WriterAgent
	if err := c.Write(t.Context(), beat(t, id, "kvm-01", w, 0, 1)); !errors.Is(err, storagebeat.ErrNoSlot) {
		t.Fatalf("without a slot: %v", err)
	}
	c.SetSlot(11)
	if err := c.Write(t.Context(), beat(t, id, "kvm-01", w, 0, 2)); !errors.Is(err, storagebeat.ErrNoSlot) {
		t.Fatalf("a slot beyond the store: %v", err)
	}
	c.SetSlot(10)
	if err := c.Write(t.Context(), beat(t, id, "kvm-01", w, 0, 3)); err != nil {
		t.Fatal(err)
	}
	other := childOf(t, cfg)
	other.SetSlot(10)
	if err := other.Write(t.Context(), beat(t, id, "kvm-02", w, 0, 1)); !errors.Is(err, storagebeat.ErrSlotTaken) {
		t.Fatalf("another host's slot: %v", err)
	}
	contents, err := other.ReadAll(t.Context())
	if err != nil || len(contents.Beats) != 1 || contents.Beats[0].Slot != 10 {
		t.Fatalf("%+v, %v", contents, err)
	}
	if e := storagebeat.Dump(contents)[0]; e.Slot != 10 || e.Beat == nil || e.Beat.Sequence != 3 {
		t.Errorf("%+v", e)
	}
	r, err := c.Check(t.Context())
	if err != nil || r.Slots != 10 || r.Valid != 1 || !r.Direct {
		t.Errorf("%+v, %v", r, err)
	}
	cfg.Options = map[string]string{"what": "ever"}
	if _, err := childOf(t, cfg).ReadAll(t.Context()); err == nil {
		t.Error("an unknown option was taken")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.ReadAll(ended); err == nil {
		t.Error("read with a context that has ended")
	}
}

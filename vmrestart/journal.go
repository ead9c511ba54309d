package vmrestart

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/haven-ha/haven"
)

// Journal keeps what an executor must not forget. Save has it on disk when it
// returns.
type Journal interface {
	Load() (JournalState, error)
	Save(JournalState) error
}

// JournalState is the content of the journal: the highest term that was seen
// and the latest order for each VM.
type JournalState struct {
	Version int                        `json:"version"`
	Highest haven.Term                 `json:"highest_term"`
	VMs     map[haven.VMID]OrderRecord `json:"vms"`
	// Released are the VMs that a configured response stopped, each with the boot
	// in which it did; see Executor.Release.
	Released map[haven.VMID]haven.BootID `json:"released,omitempty"`
}

// OrderRecord is one order and how it stands.
type OrderRecord struct {
	Order  haven.Order       `json:"order"`
	Status haven.OrderStatus `json:"status"`
	Detail string            `json:"detail,omitempty"`
	Locked bool              `json:"locked,omitempty"`
	// Tried is on disk before the VM manager is called: a crash after it leaves
	// the outcome unknown.
	Tried bool `json:"tried,omitempty"`
}

func (s JournalState) clone() JournalState {
	s.VMs = maps.Clone(s.VMs)
	s.Released = maps.Clone(s.Released)
	return s
}

const journalVersion = 1

// FileJournal keeps the journal in one file, replaced as a whole.
type FileJournal struct{ Path string }

// Load reads the file. A file that does not exist is an empty journal; one that
// cannot be read whole is an error, never an empty journal.
func (j FileJournal) Load() (JournalState, error) {
	data, err := os.ReadFile(j.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return JournalState{Version: journalVersion, VMs: map[haven.VMID]OrderRecord{}}, nil
	}
	if err != nil {
		return JournalState{}, err
	}
	var s JournalState
	if err := json.Unmarshal(data, &s); err != nil {
		return JournalState{}, fmt.Errorf("%s is damaged: %w", j.Path, err)
	}
	if s.Version != journalVersion {
		return JournalState{}, fmt.Errorf("%s has version %d, this agent reads %d", j.Path, s.Version, journalVersion)
	}
	if s.VMs == nil {
		return JournalState{}, fmt.Errorf("%s is damaged: it has no orders, not even none", j.Path)
	}
	for id, r := range s.VMs {
		if r.Order.VM != id || r.Order.ID == "" || r.Status == haven.OrderNone {
			return JournalState{}, fmt.Errorf("%s is damaged: the order of VM %q", j.Path, id)
		}
	}
	return s, nil
}

// Save writes a new file beside the old one, syncs it and puts it in its place.
func (j FileJournal) Save(s JournalState) error {
	s.Version = journalVersion
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	tmp := j.Path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, j.Path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	// When this fails, the file may be the new one or, after a crash, the old
	// one. The caller takes neither for granted.
	return syncDir(filepath.Dir(j.Path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

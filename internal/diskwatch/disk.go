package diskwatch

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/haven-ha/haven"
	"github.com/haven-ha/haven/internal/blockio"
)

// MaxDisks bounds the disks of one host that are watched. Of a host with more,
// activity is still seen; that it is idle is never said.
const MaxDisks = 512

// maxPath is the longest path that Linux takes.
const maxPath = 4095

// Disk is one disk of a VM that its host may write to.
type Disk struct {
	VM haven.VMID `json:"vm"`
	// Path is that of its file; empty when there is none to compare.
	Path string `json:"path,omitempty"`
	// Layer says that it is a lower layer of a chain. A change of it is activity,
	// as while layers are merged; nobody needs it to be idle.
	Layer bool `json:"layer,omitempty"`
	// Blind says why nobody can tell that it is idle, such as for a block device.
	Blind string `json:"blind,omitempty"`
}

// ErrBadList is returned for a list of disks that no master sends.
var ErrBadList = errors.New("not a list of disks")

// CheckList checks a list that came over the network. Only what names one place,
// without a way around, is looked at.
func CheckList(disks []Disk) error {
	if len(disks) > MaxDisks {
		return fmt.Errorf("%w: %d disks are more than %d", ErrBadList, len(disks), MaxDisks)
	}
	for _, d := range disks {
		if _, err := haven.ParseVMID(string(d.VM)); err != nil {
			return fmt.Errorf("%w: %w", ErrBadList, err)
		}
		switch {
		case d.Path == "" && d.Blind == "":
			return fmt.Errorf("%w: a disk of VM %s has no path, and nothing says why", ErrBadList, d.VM)
		case d.Path == "":
		case len(d.Path) > maxPath, !filepath.IsAbs(d.Path), filepath.Clean(d.Path) != d.Path, strings.ContainsRune(d.Path, 0):
			return fmt.Errorf("%w: path %.100q of VM %s is not absolute and clean", ErrBadList, d.Path, d.VM)
		}
	}
	return nil
}

// Reading is one look at one file.
type Reading struct {
	Path string
	// Started and Ended are when it began and ended, by the observer's own
	// monotonic clock, since an origin that is the same for all readings.
	Started, Ended time.Duration
	Attr           blockio.Attr
	// Err says why there are no attributes; empty if there are.
	Err string
}

// bad says why a reading tells nothing about idleness.
func (r *Reading) bad() string {
	switch {
	case r.Err != "":
		return r.Err
	case !r.Attr.Regular:
		return "it is not a regular file, and of a device nobody can tell"
	case !r.Attr.Shared:
		return fmt.Sprintf("it is on %s here, which other hosts do not see", r.Attr.FileSystem)
	}
	return ""
}

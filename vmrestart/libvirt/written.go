package libvirt

import (
	"fmt"

	"libvirt.org/go/libvirtxml"

	"github.com/haven-ha/haven"
)

// Written is a place that a VM may write to as long as it runs.
type Written struct {
	// Path is that of a file or block device on the host; empty when there is none.
	Path string
	// Layer says that it is a lower layer of a chain, which is written only while
	// layers are merged.
	Layer bool
	// Blind says why a neighbour cannot see writes to it, such as for a disk on
	// the network; empty for a file.
	Blind string
}

// WrittenBy lists the places that a VM may write to, by its definition. Disks that
// are read only, CD and floppy drives, and disks that several VMs share are left
// out: that they are still, or not, says nothing of this VM.
func WrittenBy(xml []byte) (haven.VMID, []Written, error) {
	if len(xml) > maxDefinition {
		return "", nil, fmt.Errorf("parse definition: %d bytes are more than libvirt takes", len(xml))
	}
	var d libvirtxml.Domain
	if err := d.Unmarshal(string(xml)); err != nil {
		return "", nil, fmt.Errorf("parse definition: %w", err)
	}
	id, err := haven.ParseVMID(d.UUID)
	if err != nil {
		return "", nil, fmt.Errorf("parse definition: %w", err)
	}
	if d.Devices == nil {
		return id, nil, nil
	}
	var all []Written
	for i := range d.Devices.Disks {
		all = append(all, writtenDisk(&d.Devices.Disks[i])...)
	}
	for i := range d.Devices.Filesystems {
		if d.Devices.Filesystems[i].ReadOnly == nil {
			all = append(all, Written{Blind: "it writes to a directory of its host"})
			break
		}
	}
	if len(d.Devices.Hostdevs) > 0 {
		all = append(all, Written{Blind: "it uses a device of its host, which may be a disk"})
	}
	return id, all, nil
}

func writtenDisk(d *libvirtxml.DomainDisk) []Written {
	if d.Source == nil || d.ReadOnly != nil || d.Shareable != nil || d.Device == "cdrom" || d.Device == "floppy" {
		return nil
	}
	top, empty := writtenSource(d.Source)
	if empty {
		return nil
	}
	if d.Transient != nil {
		top.Blind = "its writes go to a file that ends with it"
	}
	all := []Written{top}
	if d.Source.DataStore != nil && d.Source.DataStore.Source != nil {
		if data, empty := writtenSource(d.Source.DataStore.Source); !empty {
			all = append(all, data)
		}
	}
	if d.Mirror != nil && d.Mirror.Source != nil {
		if w, _ := writtenSource(d.Mirror.Source); w.Blind == "" && w.Path != "" {
			w.Layer = true
			all = append(all, w)
		}
	}
	for b := d.BackingStore; b != nil && b.Source != nil; b = b.BackingStore {
		if w, _ := writtenSource(b.Source); w.Blind == "" && w.Path != "" {
			w.Layer = true
			all = append(all, w)
		}
	}
	return all
}

func writtenSource(s *libvirtxml.DomainDiskSource) (w Written, empty bool) {
	switch {
	case s.File != nil:
		return Written{Path: s.File.File}, s.File.File == ""
	case s.Block != nil:
		return Written{Path: s.Block.Dev, Blind: "a block device keeps no time of its last write"}, s.Block.Dev == ""
	case s.Network != nil:
		return Written{Blind: fmt.Sprintf("a %s disk is not a file on its host", s.Network.Protocol)}, false
	case s.Volume != nil:
		return Written{Blind: "only its host's VM manager knows where a pool's volume is"}, false
	}
	return Written{Blind: "it is not a file"}, false
}

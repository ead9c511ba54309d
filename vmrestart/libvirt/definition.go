package libvirt

import (
	"fmt"
	"math"

	"libvirt.org/go/libvirtxml"

	"github.com/haven-ha/haven"
)

// maxDefinition is the longest string libvirt's RPC carries (REMOTE_STRING_MAX).
const maxDefinition = 4 << 20

// Disk is a disk of a VM as its definition names it.
type Disk struct {
	Target   string // in the guest: vda
	Path     string // of a file or block device on the host; empty otherwise
	Source   string // "file", "block", "network", "volume" …
	Device   string // "disk", "cdrom", "lun", "floppy"
	ReadOnly bool
	// Optional says that a start does not fail when the source is missing.
	Optional bool
}

// Parsed is what Haven reads out of a domain definition. The definition itself
// is passed on as it was and never written anew from this: what the parser does
// not know would be lost.
type Parsed struct {
	ID        haven.VMID
	Name      string
	MemoryMiB uint64 // what it may use at most, rounded up
	VCPUs     int
	Disks     []Disk // with a source
	// Fixed tells why the VM cannot be moved to another host, as far as the
	// definition alone shows.
	Fixed []haven.Obstacle
	tpm   bool
}

// Parse reads a domain definition.
func Parse(xml []byte) (Parsed, error) {
	if len(xml) > maxDefinition {
		return Parsed{}, fmt.Errorf("parse definition: %d bytes are more than libvirt takes", len(xml))
	}
	var d libvirtxml.Domain
	if err := d.Unmarshal(string(xml)); err != nil {
		return Parsed{}, fmt.Errorf("parse definition: %w", err)
	}
	id, err := haven.ParseVMID(d.UUID)
	if err != nil {
		return Parsed{}, fmt.Errorf("parse definition: %w", err)
	}
	p := Parsed{ID: id, Name: d.Name, VCPUs: 1}
	if d.Name == "" {
		return Parsed{}, fmt.Errorf("parse definition: no name")
	}
	if d.VCPU != nil {
		p.VCPUs = int(d.VCPU.Value)
	}
	switch {
	case d.MaximumMemory != nil && d.Memory == nil:
		p.MemoryMiB, err = mebibytes(uint64(d.MaximumMemory.Value), d.MaximumMemory.Unit)
	case d.Memory != nil:
		p.MemoryMiB, err = mebibytes(uint64(d.Memory.Value), d.Memory.Unit)
	}
	if err != nil {
		return Parsed{}, fmt.Errorf("parse definition: %w", err)
	}
	if d.Devices != nil {
		p.devices(d.Devices)
	}
	p.commandLine(d.QEMUCommandline)
	return p, nil
}

// DiskPaths lists the host paths of the disks a start needs: files and block
// devices, CD images included.
func DiskPaths(xml []byte) ([]string, error) {
	p, err := Parse(xml)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, d := range p.Disks {
		if d.Path != "" && !d.Optional {
			paths = append(paths, d.Path)
		}
	}
	return paths, nil
}

func (p *Parsed) devices(d *libvirtxml.DomainDeviceList) {
	for i := range d.Disks {
		p.disk(&d.Disks[i])
	}
	p.obstacles(d)
}

func (p *Parsed) disk(d *libvirtxml.DomainDisk) {
	s := d.Source
	if s == nil {
		return
	}
	out := Disk{Device: d.Device, ReadOnly: d.ReadOnly != nil, Optional: s.StartupPolicy == "optional"}
	if d.Target != nil {
		out.Target = d.Target.Dev
	}
	switch {
	case s.File != nil:
		out.Source, out.Path = "file", s.File.File
	case s.Block != nil:
		out.Source, out.Path = "block", s.Block.Dev
	case s.Network != nil:
		out.Source = "network"
	case s.Volume != nil:
		out.Source = "volume"
	case s.Dir != nil:
		out.Source = "dir"
	default:
		out.Source = "other"
	}
	if out.Source == "file" && out.Path == "" || out.Source == "block" && out.Path == "" {
		return // An empty drive.
	}
	p.Disks = append(p.Disks, out)
	p.localDisk(d, out.Target)
}

// mebibytes converts an amount in one of libvirt's units, rounding up.
func mebibytes(n uint64, unit string) (uint64, error) {
	bytes := map[string]uint64{
		"b": 1, "bytes": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
		"": 1 << 10, "k": 1 << 10, "KiB": 1 << 10, "M": 1 << 20, "MiB": 1 << 20,
		"G": 1 << 30, "GiB": 1 << 30, "T": 1 << 40, "TiB": 1 << 40,
	}
	f, ok := bytes[unit]
	if !ok {
		return 0, fmt.Errorf("memory unit %q is not known", unit)
	}
	if n > math.MaxUint64/f/2 {
		return 0, fmt.Errorf("memory of %d %s is beyond belief", n, unit)
	}
	return (n*f + 1<<20 - 1) >> 20, nil
}

package libvirt

import (
	"fmt"
	"regexp"
	"strings"

	"libvirt.org/go/libvirtxml"

	"github.com/haven-ha/haven"
)

// Obstacles tells why a VM cannot be protected or moved, as far as its
// definition alone shows: devices and files that are the host's own for sure.
// Whether a path leads to shared storage only the hosts can tell, and they are
// asked before a start. Whether the definition is kept is not in it either.
func Obstacles(definition []byte, persistent bool) ([]haven.Obstacle, error) {
	p, err := Parse(definition)
	if err != nil {
		return nil, err
	}
	var all []haven.Obstacle
	if !persistent {
		all = append(all, haven.Obstacle{Reason: haven.ObstacleTransient, Why: "its definition is gone when it stops, and with it all that Haven could start"})
	}
	return append(all, p.Fixed...), nil
}

func (p *Parsed) fix(reason haven.ObstacleReason, device, why string) {
	p.Fixed = append(p.Fixed, haven.Obstacle{Reason: reason, Device: device, Why: why})
}

// obstacles collects what ties the VM to its host, besides its disks.
func (p *Parsed) obstacles(d *libvirtxml.DomainDeviceList) {
	for i := range d.Hostdevs {
		if kind, tied := hostdev(&d.Hostdevs[i]); tied {
			p.fix(haven.ObstacleHostDevice, "hostdev "+kind, "it uses a device of this host")
		}
	}
	for i := range d.Interfaces {
		switch s := d.Interfaces[i].Source; {
		case s == nil:
		case s.Hostdev != nil:
			p.fix(haven.ObstacleHostDevice, "interface hostdev", "a network interface is a device of this host")
		case s.VDPA != nil:
			p.fix(haven.ObstacleHostDevice, "interface vdpa "+s.VDPA.Device, "a network interface is a device of this host")
		}
	}
	for i := range d.TPMs {
		p.tpm = true
		p.tpmState(d.TPMs[i].Backend)
	}
	p.lines(d)
	for i := range d.Inputs {
		switch s := d.Inputs[i].Source; {
		case s == nil:
		case s.Passthrough != nil:
			p.fix(haven.ObstacleHostDevice, "input "+s.Passthrough.EVDev, "it uses an input device of this host")
		case s.EVDev != nil:
			p.fix(haven.ObstacleHostDevice, "input "+s.EVDev.Dev, "it uses an input device of this host")
		}
	}
	for i := range d.Smartcards {
		if d.Smartcards[i].Host != nil {
			p.fix(haven.ObstacleHostDevice, "smartcard", "it uses the smartcard reader of this host")
		}
	}
	for i := range d.Memorydevs {
		if s := d.Memorydevs[i].Source; s != nil && s.PMem != nil {
			p.fix(haven.ObstacleHostDevice, "memory "+s.Path, "its memory is a persistent memory module of this host")
		}
	}
}

// hostdev names the kind of a passed-through device and says whether it ties the
// VM to its host.
func hostdev(h *libvirtxml.DomainHostdev) (kind string, tied bool) {
	switch {
	case h.SubsysPCI != nil:
		return "pci" + pciAddress(h.SubsysPCI.Source), true
	case h.SubsysUSB != nil:
		s := h.SubsysUSB.Source
		return "usb", s == nil || s.StartUpPolicy != "optional" // optional: it starts without
	case h.SubsysMDev != nil:
		return "mdev", true
	case h.SubsysSCSI != nil:
		s := h.SubsysSCSI.Source
		return "scsi", s == nil || s.ISCSI == nil // an iSCSI unit is reached from anywhere
	case h.SubsysSCSIHost != nil:
		return "scsi_host", true
	case h.CapsStorage != nil:
		return "storage", true
	case h.CapsMisc != nil:
		return "misc", true
	case h.CapsNet != nil:
		return "net", true
	}
	return "of an unknown kind", true
}

func pciAddress(s *libvirtxml.DomainHostdevSubsysPCISource) string {
	if s == nil || s.Address == nil {
		return ""
	}
	n := func(p *uint) uint {
		if p == nil {
			return 0
		}
		return *p
	}
	a := s.Address
	return fmt.Sprintf(" %04x:%02x:%02x.%x", n(a.Domain), n(a.Bus), n(a.Slot), n(a.Function))
}

func (p *Parsed) tpmState(b *libvirtxml.DomainTPMBackend) {
	const kept = "the state of its TPM is on this host"
	switch {
	case b == nil:
	case b.Passthrough != nil:
		p.fix(haven.ObstacleHostDevice, "tpm passthrough", "it uses the TPM of this host")
	case b.Emulator != nil && b.Emulator.Source == nil: // with a source it may be shared
		p.fix(haven.ObstacleTPMState, "tpm emulator", kept)
	case b.External != nil && b.External.Source != nil && b.External.Source.UNIX != nil:
		p.fix(haven.ObstacleTPMState, "tpm external", kept)
	}
}

// lines looks for character devices of the host.
func (p *Parsed) lines(d *libvirtxml.DomainDeviceList) {
	seen := map[string]bool{} // libvirt repeats the first serial line as a console
	check := func(kind string, s *libvirtxml.DomainChardevSource) {
		if s != nil && s.Dev != nil && !seen[s.Dev.Path] {
			seen[s.Dev.Path] = true
			p.fix(haven.ObstacleHostDevice, kind+" "+s.Dev.Path, "it uses a character device of this host")
		}
	}
	for i := range d.Serials {
		check("serial", d.Serials[i].Source)
	}
	for i := range d.Parallels {
		check("parallel", d.Parallels[i].Source)
	}
	for i := range d.Consoles {
		check("console", d.Consoles[i].Source)
	}
	for i := range d.Channels {
		check("channel", d.Channels[i].Source)
	}
}

// commandLine looks for devices that are passed through behind libvirt's back.
func (p *Parsed) commandLine(c *libvirtxml.DomainQEMUCommandline) {
	if c == nil {
		return
	}
	for _, a := range c.Args {
		for _, device := range []string{"vfio-pci", "vfio-ccw", "vfio-ap", "usb-host", "vhost-vdpa"} {
			if strings.Contains(a.Value, device) {
				p.fix(haven.ObstacleHostDevice, "qemu:commandline "+device, "it uses a device of this host")
			}
		}
	}
}

// localDisk records a disk without which the VM does not start, and which no
// other host can have: the source itself and what it is based on.
func (p *Parsed) localDisk(d *libvirtxml.DomainDisk, target string) {
	if d.Source == nil || d.Source.StartupPolicy == "optional" {
		return
	}
	why := localSource(d.Source)
	for b := d.BackingStore; b != nil && why == ""; b = b.BackingStore {
		if b.Source != nil {
			why = localSource(b.Source)
		}
	}
	if why != "" {
		p.fix(haven.ObstacleLocalDisk, "disk "+target, why)
	}
}

// localSource says why a disk is on this host only, or nothing.
func localSource(s *libvirtxml.DomainDiskSource) string {
	if s.DataStore != nil && s.DataStore.Source != nil {
		if why := localSource(s.DataStore.Source); why != "" {
			return why
		}
	}
	switch {
	case s.NVME != nil:
		return "it is an NVMe drive in this host"
	case s.VHostVDPA != nil:
		return "it is a vDPA device of this host"
	case s.Block != nil:
		return localPath(s.Block.Dev)
	case s.File != nil:
		return localPath(s.File.File)
	}
	return ""
}

var hostDrive = regexp.MustCompile(`^/dev/(shm/.*|z?ram[0-9]+|loop[0-9]+|sr[0-9]+|fd[0-9]+|cdrom)$`)

// localPath knows the paths that lead to memory or drives of one host whatever
// is mounted where. Any other path may be shared.
func localPath(path string) string {
	m := hostDrive.FindStringSubmatch(path)
	switch {
	case m == nil:
		return ""
	case strings.HasPrefix(m[1], "shm/"), strings.Contains(m[1], "ram"):
		return "it is in this host's memory"
	case strings.HasPrefix(m[1], "loop"):
		return "it is a loop device of this host"
	}
	return "it is in a drive of this host"
}

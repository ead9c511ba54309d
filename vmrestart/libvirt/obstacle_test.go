package libvirt

import (
	"slices"
	"strings"
	"testing"

	"github.com/haven-ha/haven"
)

func TestObstacles(t *testing.T) {
	const address = "<source><address domain='0x0000' bus='0x3b' slot='0x00' function='0x1'/></source>"
	disk := func(source string) string { return "<disk " + source + "<target dev='vdz'/></disk>" }
	tests := []struct {
		name, devices string
		want          []string // reason and device
	}{
		{"PCI", "<hostdev mode='subsystem' type='pci'>" + address + "</hostdev>", []string{"host-device hostdev pci 0000:3b:00.1"}},
		{"two of them", "<hostdev mode='subsystem' type='pci'>" + address + "</hostdev><hostdev mode='subsystem' type='mdev' model='vfio-pci'><source><address uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/></source></hostdev>", []string{"host-device hostdev pci 0000:3b:00.1", "host-device hostdev mdev"}},
		{"USB", "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/><product id='0x2'/></source></hostdev>", []string{"host-device hostdev usb"}},
		{"USB, optional", "<hostdev mode='subsystem' type='usb'><source startupPolicy='optional'><vendor id='0x1'/><product id='0x2'/></source></hostdev>", nil},
		{"SCSI", "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/><address bus='0' target='0' unit='0'/></source></hostdev>", []string{"host-device hostdev scsi"}},
		{"iSCSI", "<hostdev mode='subsystem' type='scsi'><source protocol='iscsi' name='iqn.2014-07.com.example:x/1'><host name='example.com' port='3260'/></source></hostdev>", nil},
		{"vhost SCSI", "<hostdev mode='subsystem' type='scsi_host'><source protocol='vhost' wwpn='naa.5123456789abcde0'/></hostdev>", []string{"host-device hostdev scsi_host"}},
		{"passed-through NIC", "<interface type='hostdev'><source><address type='pci' domain='0' bus='1' slot='0' function='0'/></source></interface>", []string{"host-device interface hostdev"}},
		{"vDPA NIC", "<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>", []string{"host-device interface vdpa /dev/vhost-vdpa-0"}},
		{"bridge and macvtap", "<interface type='bridge'><source bridge='br0'/></interface><interface type='direct'><source dev='eth0' mode='bridge'/></interface>", nil},
		{"TPM emulator", "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>", []string{"tpm-state tpm emulator"}},
		{"TPM emulator on a path", "<tpm model='tpm-crb'><backend type='emulator' version='2.0'><source type='dir' path='/srv/tpm'/></backend></tpm>", nil},
		{"TPM of the host", "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>", []string{"host-device tpm passthrough"}},
		{"serial line", "<serial type='dev'><source path='/dev/ttyS0'/></serial><console type='dev'><source path='/dev/ttyS0'/></console>", []string{"host-device serial /dev/ttyS0"}},
		{"pty", "<serial type='pty'/><console type='pty'/>", nil},
		{"mouse", "<input type='passthrough' bus='virtio'><source evdev='/dev/input/event1'/></input><input type='evdev'><source dev='/dev/input/event2'/></input><input type='tablet' bus='usb'/>", []string{"host-device input /dev/input/event1", "host-device input /dev/input/event2"}},
		{"smartcard", "<smartcard mode='host'/>", []string{"host-device smartcard"}},
		{"persistent memory", "<memory model='nvdimm'><source><path>/dev/dax0.0</path><pmem/></source><target><size unit='KiB'>1</size></target></memory>", []string{"host-device memory /dev/dax0.0"}},
		{"NVMe", disk("type='nvme' device='disk'><source type='pci' namespace='1'><address domain='0' bus='1' slot='0' function='0'/></source>"), []string{"local-disk disk vdz"}},
		{"vDPA disk", disk("type='vhostvdpa' device='disk'><source dev='/dev/vhost-vdpa-0'/>"), []string{"local-disk disk vdz"}},
		{"memory file", disk("type='file' device='disk'><source file='/dev/shm/a.img'/>"), []string{"local-disk disk vdz"}},
		{"loop", disk("type='block' device='disk'><source dev='/dev/loop7'/>"), []string{"local-disk disk vdz"}},
		{"CD drive", disk("type='block' device='cdrom'><source dev='/dev/sr0'/>"), []string{"local-disk disk vdz"}},
		{"CD drive, optional", disk("type='block' device='cdrom'><source dev='/dev/sr0' startupPolicy='optional'/>"), nil},
		{"volume group with such a name", disk("type='block' device='disk'><source dev='/dev/srv/a'/>") + strings.ReplaceAll(disk("type='block' device='disk'><source dev='/dev/loops/ram0'/>"), "vdz", "vdy"), nil},
		{"base in memory", disk("type='file' device='disk'><source file='/srv/x'/><backingStore type='file'><format type='raw'/><source file='/dev/shm/base'/></backingStore>"), []string{"local-disk disk vdz"}},
		{"may be shared", disk("type='file' device='disk'><source file='/var/lib/libvirt/images/x.qcow2'/>"), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			all, err := Obstacles([]byte(strings.Replace(bigXML, "%DEVICES%", tt.devices, 1)), true)
			var got []string
			for _, o := range all {
				got = append(got, string(o.Reason)+" "+o.Device)
				if o.Why == "" {
					t.Errorf("%v does not say why", o)
				}
			}
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("Obstacles() = %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestObstaclesElsewhere(t *testing.T) {
	xml := strings.Replace(bigXML, "%DEVICES%", "", 1)
	all, err := Obstacles([]byte(xml), false)
	if err != nil || len(all) != 1 || all[0].Reason != haven.ObstacleTransient {
		t.Errorf("a transient VM: %v, %v", all, err)
	}
	xml = strings.Replace(xml, "</domain>", "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-device'/><qemu:arg value='vfio-pci,host=3b:00.0'/></qemu:commandline></domain>", 1)
	all, err = Obstacles([]byte(xml), true)
	if err != nil || len(all) != 1 || all[0].Device != "qemu:commandline vfio-pci" {
		t.Errorf("behind libvirt's back: %v, %v", all, err)
	}
	if _, err := Obstacles([]byte("<domain/>"), true); err == nil {
		t.Error("what cannot be read has no obstacles")
	}
}
